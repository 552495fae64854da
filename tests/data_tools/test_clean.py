"""Rules for web text, conversations and code: published rules to the letter, faults of datatrove's not repeated."""

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from posttrain.data_tools import web_rules
from posttrain.data_tools.clean import Clean, Thresholds
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.web_rules import DATATROVE, PUNCTUATION, STOP_WORDS, TERMINAL, c4, fineweb, gopher, words_of

from ..rows import read_rows, write_texts

EXACT = Thresholds(**DATATROVE)
SENTENCES = [
    "The river of the north is wide and it has to be crossed with a boat.",
    "Nobody knows that they have been there with us!",
    "Is it true that he went to the town - and to the sea?",
    "naïve café “quoted” text, with “marks”",
    "a list item without an end",
    "and so on...",
    "It's the dog's bone; they've seen it [12] [edit].",
    "Use of cookies is described in the privacy policy.",
    "Please enable javascript to see this.",
    "x = {y};",
    "Lorem ipsum dolor sit amet.",
    "漢字 かな。",
]
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "the", "of", "and"]
WORDS += ["to", "12", "34", "#", "...", "…", "(", ")", "&"]


def pages(seed: int, count: int) -> list[str]:
    """Texts that each rule finds something in, by how they are put together."""
    draw = random.Random(seed)
    texts = ["", " ", "\n\n", "…", "a", "'", "it's", "\n x\n\nx \n", "\x1c".join(SENTENCES), "\r\n".join(SENTENCES)]
    for _ in range(count):
        lines = []
        common = draw.random()
        for _ in range(draw.choice([1, 2, 4, 8, 20])):
            kind = draw.random()
            line = " ".join(draw.choices(WORDS, k=draw.randrange(1, 14)))
            if kind < common:
                line = draw.choice(SENTENCES[: draw.choice([3, 7, 12])])
            if draw.random() < 0.3 and lines:
                line = draw.choice(lines)
            if draw.random() < 0.1:
                line = draw.choice(["• ", "- ", "  -", "\t"]) + line
            if draw.random() < 0.1:
                line += draw.choice(["...", ".", " …", "!", "\u2029next", "  "])
            lines += [line] * draw.choice([1, 1, 1, 2, 5])
        joint = draw.choice(["\n", "\n", "\n\n", " ", "\n \n", "\n" * 9])
        texts.append(draw.choice(["", "", "\n", " "]) + joint.join(lines) + draw.choice(["", "", "\n", " "]))
        if draw.random() < 0.1:
            texts[-1] = draw.choice(["•", "- "]) + texts[-1].replace("\n", draw.choice(["\n-", "\n• "]))
        if draw.random() < 0.03:
            texts[-1] = texts[-1].replace(" ", draw.choice(["", "# "]))
    return texts


def gopher_rules(text: str, words: list[str]) -> bool:
    """Gopher's rules as table A1 and section A.1.1 have them, where datatrove reads them otherwise as it does."""
    spoken = [word for word in words if not all(sign in PUNCTUATION for sign in word)]
    if not 50 <= len(spoken) <= 100_000 or not 3 <= sum(map(len, spoken)) / len(spoken) <= 10:
        return False
    if text.count("#") > 0.1 * len(words) or len(re.findall(r"\.\.\.|…", text)) > 0.1 * len(words):
        return False
    lines = text.splitlines()
    if len([line for line in lines if re.match(r"\s*[•-]", line)]) > 0.9 * len(lines):
        return False
    if len([line for line in lines if re.search(r"(\.\.\.|…)\s*$", line)]) > 0.3 * len(lines):
        return False
    if len([word for word in words if any(map(str.isalpha, word))]) < 0.8 * len(words):
        return False
    if len({*words} & {*STOP_WORDS}) < 2:
        return False
    for parts in (re.split(r"\n\n+", text.strip()), re.split(r"\n+", text)):
        repeated = [part for place, part in enumerate(parts) if part in parts[:place]]
        if len(repeated) > 0.3 * len(parts) or len("".join(repeated)) > 0.2 * len(text):
            return False
    for n, limit in {2: 0.2, 3: 0.18, 4: 0.16}.items():
        grams = [" ".join(words[place : place + n]) for place in range(len(words) - n + 1)]
        first = max(grams, key=grams.count, default="")
        if len(first) * grams.count(first) / len(text) > limit:
            return False
    for n, limit in {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}.items():
        seen, place, characters = [], 0, 0
        while place + n <= len(words):
            gram = "".join(words[place : place + n])
            characters += len(gram) * (gram in seen)
            place += n if gram in seen else 1
            seen.append(gram)
        if characters / len(text) > limit:
            return False
    return True


def c4_rules(text: str) -> str | None:
    """C4's rules in datatrove's order; the text that is left, None of one that goes."""
    kept, sentences = [], 0
    for whole in text.splitlines():
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", whole.strip())
        if max(map(len, whole.split()), default=0) > 1000 or not re.search(r"[.?!\"']\Z", line) or line[-3:] == "...":
            continue
        if len(whole.split()) < 3:
            continue
        if "lorem ipsum" in line.lower():
            return None
        if "javascript" in line.lower():
            continue
        if "{" in line:
            return None
        if re.search("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies", line.lower()):
            continue
        sentences += len(re.split(r"[.!?][\"'”’)\]]*\s+(?=\S)", line))
        kept.append(line)
    return "\n".join(kept).strip() if sentences >= 5 else None


def fineweb_rules(text: str, words: list[str]) -> bool:
    """FineWeb's rules with datatrove's threshold of duplicates."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines or sum(line[-1] in TERMINAL for line in lines) / len(lines) < 0.12:
        return False
    if len([line for line in lines if len(line) <= 30]) / len(lines) > 0.67:
        return False
    repeated = [line for place, line in enumerate(lines) if line in lines[:place]]
    return len("".join(repeated)) / (len(text) - text.count("\n")) <= 0.01 and text.count("\n") / len(words) <= 0.3


def simple_words(text: str) -> list[str]:
    return re.findall(r"(?:\w|(?<=\w)['’](?=\w))+|(?:(?!(?<=\w)['’]\w)[^\w\s])+", text)


def test_presets_named_datatrove_are_the_published_rules_as_datatrove_reads_them() -> None:
    texts = pages(1, 700)
    found = {name: made(EXACT, True)(texts) for name, made in (("gopher", gopher), ("c4", c4), ("fineweb", fineweb))}
    for place, text in enumerate(texts):
        words = simple_words(text)
        assert words == words_of(text)
        assert (not found["gopher"][place].reason) == gopher_rules(text, words), text
        assert (not found["fineweb"][place].reason) == fineweb_rules(text, words), text
        verdict, left = found["c4"][place], c4_rules(text)
        assert (not verdict.reason) == (left is not None), text
        if left is not None:
            assert (text if verdict.text is None else verdict.text) == left
    reasons = {name: {verdict.reason for verdict in verdicts} for name, verdicts in found.items()}
    assert len(reasons["gopher"]) >= 14
    assert len(reasons["c4"]) == 4
    assert len(reasons["fineweb"]) == 6


def test_presets_named_datatrove_are_datatrove(datatrove: dict[str, Callable[[str], tuple[str, str]]]) -> None:
    texts = [text for text in pages(2, 400) if text]
    for name, made in (("gopher", gopher), ("c4", c4), ("fineweb", fineweb)):
        for text, verdict in zip(texts, made(EXACT, True)(texts), strict=True):
            reasons = [run(text) for key, run in datatrove.items() if key.startswith(name)]
            assert bool(verdict.reason) == any(reason for reason, _ in reasons), text
            if not verdict.reason:
                assert (text if verdict.text is None else verdict.text) == reasons[-1][1]


@pytest.fixture
def datatrove() -> dict[str, Callable[[str], tuple[str, str]]]:
    pytest.importorskip("datatrove")
    spec = importlib.util.spec_from_file_location(
        "clean_speed", Path(__file__).parents[2] / "benchmarks/clean_speed.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.datatrove_filters()


def test_the_compiled_core_counts_words_as_the_expression_does() -> None:
    pytest.importorskip("numba")
    texts = [*pages(3, 200), "a\x00b", "\ud83d x", "x'", "don't’s 'tis", "'", "a'", "’b"]
    marked = random.Random(4)
    texts += ["a", *("".join(marked.choices("aद\u0301ि'. \n❤\ufe0f", k=size)) for size in range(1, 200))]
    spoken = [[word for word in words_of(text) if not PUNCTUATION.issuperset(word)] for text in texts]
    found = gopher(Thresholds(min_words=10_000), compiled=True)(texts)
    assert [verdict.detail for verdict in found] == [f"{len(words)}, at least 10000" for words in spoken]
    lengths = gopher(Thresholds(min_words=None, min_word_length=10_000), compiled=True)(texts)
    means = [f"{sum(map(len, words)) / len(words):.4g}, at least 10000" for words in spoken if words]
    assert [verdict.detail for verdict, words in zip(lengths, spoken, strict=True) if words] == means


PAGE = (
    "The harbour lies to the north of the town, and the road that leads there is old.\n"
    "Boats have come with salt, grain and timber since the walls were built in 1240.\n"
    "Today it is used to repair ferries; nobody would want it to be closed again.\n"
    "A small museum tells visitors how nets were made, who sailed and who stayed at home.\n"
    "It opens at nine on weekdays, later on Sundays, and is free for children under ten."
)


def test_stop_words_are_known_in_capitals() -> None:
    shouted = PAGE.upper()
    assert gopher(EXACT, True)([shouted])[0].reason == "few stop words"
    assert gopher(EXACT)([shouted])[0].reason == ""


def test_words_of_punctuation_are_no_words_without_letters() -> None:
    marked = PAGE.replace(" ", " - ", 40)
    assert gopher(EXACT, True)([marked])[0].reason == "few words with letters"
    assert gopher(EXACT)([marked])[0].reason == ""


def test_one_repeated_footer_does_not_drop_a_page() -> None:
    page = "\n".join(["Back to the top", PAGE, "Back to the top"])
    assert fineweb(EXACT, True)([page])[0].reason == "characters in duplicate lines"
    assert fineweb(Thresholds())([page])[0].reason == ""


def test_braces_and_filler_count_anywhere_in_a_page() -> None:
    for line, reason in (("function f(x) {", "curly bracket"), ("Lorem ipsum dolor", "lorem ipsum")):
        page = f"{PAGE}\n{line}"
        assert c4(EXACT, True)([page])[0].reason == ""
        assert c4(EXACT)([page])[0].reason == reason


def test_citations_are_no_words_of_a_line() -> None:
    page = f"{PAGE}\nSee it [1] [2] ."
    assert c4(EXACT, True)([page])[0].reason == c4(EXACT)([page])[0].reason == ""
    assert c4(EXACT)([f"{PAGE}\n[1] [2] Yes."])[0].edits == {"line of few words": 1}
    assert c4(EXACT, True)([f"{PAGE}\n[1] [2] Yes."])[0].text == f"{PAGE}\n  Yes."


def test_blank_lines_are_no_duplicates() -> None:
    page = "\n \n".join(PAGE.split("\n"))
    assert gopher(EXACT, True)([page])[0].reason == "duplicate lines"
    assert gopher(EXACT)([page])[0].reason == ""


def test_an_ngram_that_stands_once_is_no_repetition() -> None:
    short = "Please summarise the following article"
    limits = Thresholds(min_words=None, min_stop_words=None)
    assert gopher(limits, True)([short])[0].reason == "most frequent 2-gram"
    assert gopher(limits)([short])[0].reason == ""


def test_null_switches_a_rule_off_and_zero_is_zero() -> None:
    text = PAGE + " #"
    assert gopher(Thresholds(max_hashes=None))([text])[0].reason == ""
    assert gopher(Thresholds(max_hashes=0))([text])[0].reason == "many hashes"
    optional = [name for name, field in Thresholds.model_fields.items() if type(None) in get_args(field.annotation)]
    loose = Thresholds.model_validate(dict.fromkeys([*optional, "top_ngrams", "duplicate_ngrams"]))
    assert {verdict.reason for verdict in gopher(loose)(pages(5, 100))} == {"", "too few words"}


NO_PYTHON = f"cannot be parsed as Python {sys.version_info[0]}.{sys.version_info[1]}"


def clean(path: str, folder: Path, presets: str, **more: Any) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    Clean.model_validate({"sources": [path], "presets": presets} | more).run(folder)
    counts = json.loads((folder / "report.json").read_text())["counts"]
    return read_rows(folder / Path(path).name), {
        heading: {entry["name"]: entry["count"] for entry in entries} for heading, entries in counts.items()
    }


def test_rows_go_by_the_first_preset_that_finds_fault_and_cuts_are_counted_apart(tmp_path: Path) -> None:
    rows = [PAGE, "Too short.", PAGE + "\nHome | About", PAGE + "\n{", PAGE.replace("\n", " ") * 3]
    path = write_texts(tmp_path / "a.jsonl", [{"text": text, "id": number} for number, text in enumerate(rows)])
    kept, counts = clean(path, tmp_path / "out", "gopher, c4")
    assert [row["id"] for row in kept] == [0, 2]
    assert kept[1]["text"] == PAGE
    assert counts["Left out"] == {"gopher: too few words": 1, "c4: curly bracket": 1, "gopher: duplicate 5-grams": 1}
    assert counts["Changed"] == {"c4: line that ends no sentence cut": 1}
    kept, counts = clean(path, tmp_path / "marked", "gopher,c4", remove=False)
    assert [row["clean_reasons"] for row in kept][:4] == [
        [],
        ["gopher: too few words", "c4: few sentences"],
        [],
        ["c4: curly bracket"],
    ]
    assert [row["text"] for row in kept] == rows
    own = {"min_words": 1, "min_stop_words": 0, "top_ngrams": {"2": 0.9}}
    kept, _ = clean(path, tmp_path / "own", "gopher", thresholds=own)
    assert [row["id"] for row in kept] == [0, 1, 2, 3]


def test_c4_asks_for_three_sentences_and_lines_of_five_words_and_datatrove_for_five_and_three(tmp_path: Path) -> None:
    lines = PAGE.split("\n")
    rows = ["\n".join(lines[:3]), f"{PAGE}\nIt is free today."]
    path = write_texts(tmp_path / "a.jsonl", [{"text": text} for text in rows])
    assert clean(path, tmp_path / "c4", "c4")[0] == [{"text": rows[0]}, {"text": PAGE}]
    assert clean(path, tmp_path / "datatrove", "c4_datatrove")[0] == [{"text": rows[1]}]
    own = {"min_sentences": 1, "min_line_words": 4}
    for preset in ("c4", "c4_datatrove"):
        assert clean(path, tmp_path / f"{preset}-own", preset, thresholds=own)[0] == [{"text": text} for text in rows]


def test_rules_for_pages_are_refused_on_conversations_and_short_rows(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}]
    chats = write_texts(tmp_path / "a.jsonl", [{"messages": talk}])
    with pytest.raises(DataError, match=r"`gopher` is made for web pages, and these are conversations"):
        clean(chats, tmp_path / "out", "gopher")
    short = write_texts(tmp_path / "b.jsonl", ["A short row."] * 3)
    with pytest.raises(DataError, match="half of the first rows have fewer than 50 words"):
        clean(short, tmp_path / "out", "gopher")
    assert clean(short, tmp_path / "out", "gopher", thresholds={"min_words": 50})[0] == []
    with pytest.raises(DataError, match="hold no conversations"):
        clean(short, tmp_path / "out", "chat")


def test_lines_are_cut_out_of_one_column_of_text_alone(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": PAGE}]
    pair = {"text": PAGE, "text_pair": PAGE, "label": 1}
    for row, columns in ((pair, None), (pair, ["text", "text_pair"]), ({"messages": talk}, ["messages"])):
        path = write_texts(tmp_path / "a.jsonl", [row])
        with pytest.raises(DataError, match="cuts lines out of one column"):
            clean(path, tmp_path / "out", "c4", columns=columns)
        assert clean(path, tmp_path / "marked", "c4", columns=columns, remove=False)[0] == [row | {"clean_reasons": []}]
    path = write_texts(tmp_path / "a.jsonl", [pair | {"text_pair": f"{PAGE}\nHome"}])
    assert clean(path, tmp_path / "out", "c4", columns=["text_pair"])[0] == [pair]


LONG = "The answer has to be given in several steps. First one looks at the whole and then "


@pytest.mark.parametrize(
    ("question", "answer", "reason"),
    [
        ("Why?", "Because it rains.", ""),
        ("Which town?", "Paris", ""),
        ("Do it", "I'm sorry, but I can't assist with that.", "refusal"),
        ("Do it", "Sorry, I cannot do that.", "refusal"),
        ("How to say sorry?", "I'm sorry, I can't come is what you could say.", ""),
        ("How to say sorry?", "I'm sorry, but I can't help you with that.", "refusal"),
        ("Write a letter that declines an offer", "I am sorry, but I cannot sign this. Yours, Ann", ""),
        ("Generate an excuse for today", "I'm sorry, but I'm unable to come into work today.", ""),
        ("What does HAL say?", "\"I'm sorry, Dave. I'm afraid I can't do that.\"", ""),
        ("How do I squat?", "I'm afraid you won't be able to, but here is what you can do.", ""),
        ("How do I steal?", "I'm afraid I can't speak to that.", "refusal"),
        ("What is the weather?", "I am sorry, but I am a program and cannot access it.", "refusal"),
        ("How deep is it?", "Unfortunately, I'm currently unable to look it up.", "refusal"),
        ("Sing it", "I can't help falling in love with you.", ""),
        ("Sing it", "I can't help you with songs.", "refusal"),
        ("Say sorry", "I'm sorry that I was late to the meeting.", ""),
        ("Who?", "As an AI language model, I have no body.", "speaks of itself as a model"),
        ("What is AI?", "AI stands for artificial intelligence, such as a language model.", ""),
        ("Say it again, Sam", "say it again, Sam!", "answer repeats the question"),
        ("How?", LONG + "at the parts of which it was made and", "cut off"),
        ("How?", LONG + "at its parts.", ""),
        ("How?", LONG + "at its parts. They have to be told apart. Each of them has a name that was giv", "cut off"),
        ("How?", LONG.replace(". ", " and then\n") + "at its parts. So. It is. They all have names", ""),
        ("How?", LONG + "at these:\n- one part of it that is quite long\n- another part of it that is long", ""),
        ("How?", LONG + "share what one has found with friends and others! #answers #steps", ""),
        ("How?", LONG + "writes down what it is:\nlet parts = 1 + 2 + 3 + 4 + 5", ""),
        ("Code?", "Here it is:\n```python\nprint(1)", "cut off"),
        ("Code?", "Here it is:\n```python\nprint(1)\n```", ""),
    ],
)
def test_answers(tmp_path: Path, question: str, answer: str, reason: str) -> None:
    talk = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    kept, counts = clean(write_texts(tmp_path / "a.jsonl", [{"messages": talk}]), tmp_path / "out", "chat")
    assert counts["Left out"] == ({f"chat: {reason}": 1} if reason else {})
    assert len(kept) == (not reason)


def test_turns_out_of_order_are_named(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
    rows = [[user, answer], [answer, user, answer], [user, user, answer], [user, answer, answer]]
    path = write_texts(tmp_path / "a.jsonl", [{"messages": talk} for talk in rows])
    kept, counts = clean(path, tmp_path / "out", "chat")
    assert len(kept) == 1
    assert counts["Left out"] == {"chat: does not begin with the user": 1, "chat: turns out of order": 2}


def test_code_that_is_broken_generated_or_minified_goes(tmp_path: Path) -> None:
    good = "def f(x):\n    return x + 1\n"
    rows = [
        {"text": good, "path": "a.py"},
        {"text": "def f(x:\n", "path": "b.py"},
        {"text": "def f(x:\n", "path": "b.c"},
        {"text": "# This file is automatically generated. Do not edit.\n" + good, "path": "c.py"},
        {"text": '# what was generated with the key\nprint("do not edit")\n', "path": "d.py"},
        {"text": "var a=1;" * 400, "path": "e.js"},
        {"text": "(" * 3000 + ")" * 3000, "path": "f.py"},
    ]
    path = write_texts(tmp_path / "a.jsonl", rows)
    kept, counts = clean(path, tmp_path / "out", "code", thresholds={"max_mean_line": None, "min_alphanumeric": None})
    assert [row["path"] for row in kept] == ["a.py", "b.c", "d.py"]
    assert counts["Left out"] == {f"code: {NO_PYTHON}": 1, "code: generated": 1, "code: long line": 2}
    assert Counter(row["path"] for row in clean(path, tmp_path / "o", "code", python=True)[0]) == {"a.py": 1, "d.py": 1}


def test_python_in_answers_is_parsed(tmp_path: Path) -> None:
    def talk(code: str) -> dict[str, Any]:
        answer = {"role": "assistant", "content": f"So:\n\n```python\n{code}\n```\n"}
        return {"messages": [{"role": "user", "content": "How?"}, answer]}

    path = write_texts(tmp_path / "a.jsonl", [talk("print(1)"), talk("print 1"), talk(">>> 1 + 1\n2")])
    kept, counts = clean(path, tmp_path / "out", "chat,code")
    assert len(kept) == 2
    assert counts["Left out"] == {f"code: {NO_PYTHON}": 1}


def test_words_of_any_script_are_whole() -> None:
    words = ["में", "हिन्दी", "தமிழ்", "cafe\u0301", "l’été"]
    assert words_of(" ".join(words)) == words
    assert Thresholds(stop_words=words).stop_words == words


def test_a_stop_word_that_no_text_can_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'e-mail' is not one word"):
        Thresholds(stop_words=["e-mail"])


@pytest.mark.parametrize("datatrove", [False, True])
def test_the_compiled_core_gives_the_same_verdicts(datatrove: bool) -> None:
    pytest.importorskip("numba")
    texts = pages(8, 300)
    loose = Thresholds(min_words=None, min_alphabetic_words=None, min_stop_words=None, top_ngrams={1: 0.05, 3: 0.1})
    for limits in (EXACT, loose):
        found = gopher(limits, datatrove, compiled=False)(texts)
        assert gopher(limits, datatrove, compiled=True)(texts) == found
        assert any("duplicate" in verdict.reason for verdict in found)


def test_verdicts_do_not_depend_on_what_is_looked_at_together() -> None:
    texts = pages(7, 60)
    for preset in (gopher(EXACT), c4(EXACT), fineweb(EXACT)):
        assert [preset([text])[0] for text in texts] == preset(texts)
    assert gopher(EXACT)([]) == []


def test_compiled_verdicts_do_not_depend_on_what_is_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("numba")
    texts = pages(7, 60)
    check = gopher(EXACT, compiled=True)
    whole = check(texts)
    monkeypatch.setattr(web_rules, "CHUNK", 300)
    assert check(texts) == whole
    assert check([]) == []
