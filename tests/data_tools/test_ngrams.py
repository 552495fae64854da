"""Words and n-grams: the same as a plain loop finds, whatever the texts and however many at once."""

import random

import pytest
from posttrain.data_tools import ngrams as module
from posttrain.data_tools.ngrams import NgramIndex, ngrams, normalise, split_words, words_in

PIECES = [
    "Two",
    "two",
    "3.5",
    "don't",
    "naïve",
    "STRASSE",
    "straße",
    "数学",
    "カナ",
    "…",
    "“quoted”",
    "a_b",
    "\n",
    "\t-- ",
    "é",
    "e\u0301",
    "दीन",
    "❤\ufe0f",
    "´",
    "",
    " ",
]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choice(PIECES) + draw.choice(" \n.") for _ in range(draw.randrange(25))) for _ in range(count)]


@pytest.mark.parametrize("chunk", [1, 100, 1 << 19])
def test_words_are_those_of_a_plain_loop(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    many = texts(200, 1)
    words = split_words(many)
    plain = [words_in(text) for text in many]
    assert words.counts.tolist() == [len(found) for found in plain]
    named: dict[str, int] = {}
    for word, value in zip((word for found in plain for word in found), words.hashes.tolist(), strict=True):
        assert named.setdefault(word, value) == value
    assert len(set(named.values())) == len(named)


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_ngrams_are_equal_where_their_words_are(n: int) -> None:
    many = texts(150, 2)
    hashes, bounds = ngrams(split_words(many), n)
    plain = [tuple(w[i : i + n]) for w in map(words_in, many) for i in range(len(w) - n + 1)]
    assert bounds[-1] == len(plain) == len(hashes)
    assert len(set(zip(plain, hashes.tolist(), strict=True))) == len(set(plain)) == len(set(hashes.tolist()))


def test_signs_of_scripts_without_spaces_are_words() -> None:
    assert words_in("我们有3个苹果。") == ["我", "们", "有", "3", "个", "苹", "果"]
    assert words_in("ラーメン２杯") == ["ラ", "ー", "メ", "ン", "2", "杯"]
    assert words_in("„Größe“ – it’s") == ["grösse", "it", "s"]
    assert normalise("plain ASCII, as it IS") == "plain ASCII, as it IS"


def test_a_word_keeps_its_vowel_signs_and_accents() -> None:
    assert len({tuple(words_in(word)) for word in ("दिन", "दीन", "दान", "दन")}) == 4
    assert words_in("தமிழ் மொழி, বাংলা") == ["தமிழ்", "மொழி", "বাংলা"]
    assert words_in("за\u0301мок ọkọ́") == ["за\u0301мок", "ọkọ\u0301"]
    assert words_in("cafe\u0301 CAFE\u0301") == words_in("café CAFÉ") == ["café", "café"]
    assert words_in("it´s I ❤\ufe0f it 1\ufe0f\u20e3") == ["it", "s", "i", "it", "1"], "no mark stands alone"


def test_what_words_are_has_a_version() -> None:
    """A trained classifier is kept by its words: where this fails for a good reason, raise the version too."""
    text = "3.5 don't STRASSE straße 数学 カナ “a_b” e\u0301 दीन ❤\ufe0f ´ за\u0301мок ２杯 ไทย"
    assert (module.WORDS_VERSION, hex(split_words([text]).wholes[0])) == (2, "0xa62f7fdd8fbb0ab8")


def test_the_index_finds_each_ngram_wherever_it_stands() -> None:
    items = ["the cat sat on the mat", "on the mat sat the cat sat on", "nothing at all"]
    rows = ["", "He said:\nthe CAT\nsat on it", "on the mat", "a mat"]
    index = NgramIndex.build(split_words(items), 3)
    found = set(zip(*(array.tolist() for array in index.find(split_words(rows))), strict=True))
    assert found == {(1, 2, 0, 0), (1, 2, 1, 4), (1, 3, 0, 1), (1, 3, 1, 5), (2, 0, 0, 3), (2, 0, 1, 0)}


def test_no_rows_and_no_items_are_no_trouble() -> None:
    index = NgramIndex.build(split_words([]), 3)
    assert [len(part) for part in index.find(split_words(["a b c d"]))] == [0, 0, 0, 0]
    assert [len(part) for part in index.find(split_words([]))] == [0, 0, 0, 0]
    assert len(split_words([])) == 0
