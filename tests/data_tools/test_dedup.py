"""A row goes only for a row that stays and says the same; every removal can be looked up."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from posttrain.data_tools import row_tool
from posttrain.data_tools.clean import Clean
from posttrain.data_tools.dedup import Dedup, longest_shared
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.explain import Explain
from posttrain.data_tools.near_duplicates import Bands, Candidates, Shingles, choose_removals, jaccard
from posttrain.data_tools.ngrams import split_words, words_in
from posttrain.data_tools.spec import SourceSpec

from ..rows import read_rows, write_texts

WORDS = [a + b + c for a in "bdfgklmnprstvz" for b in "aeiou" for c in ("", "n", "r", "st")]


def sentence(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def changed(draw: random.Random, text: str, share: float) -> str:
    return " ".join(draw.choice(WORDS) if draw.random() < share else word for word in text.split())


def dedup(path: str, folder: Path, **more: Any) -> list[dict[str, Any]]:
    Dedup(sources=[SourceSpec(path=path)], **more).run(folder)
    return read_rows(folder / Path(path).name)


def grams(text: str, n: int) -> set[tuple[str, ...]]:
    """The definition, by sets."""
    words = words_in(text)
    return {tuple(words[place : place + n]) for place in range(max(len(words) - n + 1, min(len(words), 1)))}


def similarity(a: str, b: str, n: int = 5) -> float:
    return len(grams(a, n) & grams(b, n)) / max(len(grams(a, n) | grams(b, n)), 1)


def some_texts(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    texts = [sentence(draw, draw.randrange(1, 60)) for _ in range(count)]
    for _ in range(count):
        texts.append(changed(draw, draw.choice(texts), draw.choice([0, 0.01, 0.03, 0.08, 0.3])))
    draw.shuffle(texts)
    return texts


def test_similarities_are_those_of_the_sets() -> None:
    texts = [*some_texts(1, 60), "", "one", "one two", "One, two!", "...", "naïve 漢字 café", "naïve 漢字 CAFÉ"]
    pairs = np.array([(a, b) for a in range(len(texts)) for b in range(a + 1, len(texts))])
    found = jaccard(Shingles.of(split_words(texts), 5), pairs, chunk=500)
    assert found == pytest.approx([similarity(texts[a], texts[b]) for a, b in pairs.tolist()])


def test_short_texts_are_alike_only_where_they_are_equal() -> None:
    texts = ["yes", "no", "Yes!", "a b c", "a b d", "", " "]
    found = jaccard(Shingles.of(split_words(texts), 5), np.array([(0, 1), (0, 2), (3, 4), (5, 6), (0, 5)]))
    assert found.tolist() == [0, 1, 0, 0, 0]


def test_pairs_are_looked_at_as_often_as_the_formula_says() -> None:
    draw = random.Random(3)
    bands, pairs = Bands(4, 3), []
    for _ in range(1500):
        text = sentence(draw, 40)
        pairs.append((text, changed(draw, text, 0.06)))
    found = looked = expected = 0
    for a, b in pairs:
        keys = bands.keys(split_words([a, b]), 5)
        looked += bool((keys[0] == keys[1]).any())
        expected += bands.recall(similarity(a, b))
        found += 1
    # Four standard errors of a sum of so many draws.
    assert abs(looked - expected) < 4 * (found * 0.25) ** 0.5
    assert 200 < expected < 1400


@pytest.mark.parametrize("seed", range(2))
def test_every_text_that_goes_is_like_one_that_stays(seed: int) -> None:
    texts = some_texts(seed, 100)
    words = split_words(texts)
    shingles = Shingles.of(words, 5)
    candidates = Candidates.of(Bands(60, 3).keys(words, 5))
    found = choose_removals(candidates, len(texts), lambda pairs: jaccard(shingles, pairs), 0.7)
    gone = np.flatnonzero(found.kept >= 0)
    assert len(gone) > 15
    for place in gone.tolist():
        keeper = int(found.kept[place])
        assert found.kept[keeper] == -1
        assert keeper < place
        assert similarity(texts[place], texts[keeper]) == pytest.approx(found.similarity[place])
        assert found.similarity[place] >= 0.7
    stays = np.flatnonzero(found.kept < 0).tolist()
    left = [(a, b) for a in stays for b in stays if a < b and texts[a] and similarity(texts[a], texts[b]) >= 0.7]
    assert not left  # 60 bands of 3 miss a pair in 10^11


@pytest.mark.parametrize("seed", range(5))
def test_what_goes_is_what_deciding_all_anew_after_each_comparison_gives(seed: int) -> None:
    draw, count = np.random.default_rng(seed), 80
    likeness = np.triu(draw.random((count, count)).round(2), 1)
    pairs = np.argwhere((likeness > 0.75) & (draw.random((count, count)) < 0.6))
    found = choose_removals(Candidates(pairs, []), count, lambda some: likeness[some[:, 0], some[:, 1]], 0.8)
    compared = set(map(tuple, pairs.tolist()))
    while True:
        kept = [-1] * count
        asked = set()
        for text in range(count):
            alike = [one for one in range(text) if (one, text) in compared and likeness[one, text] >= 0.8]
            stays = [one for one in alike if kept[one] < 0]
            kept[text] = max(stays, key=lambda one: (likeness[one, text], -one)) if stays else -1
            asked |= set() if stays else {(kept[one], text) for one in alike}
        if asked <= compared:
            break
        compared |= asked
    assert found.kept.tolist() == kept
    assert found.compared == len(compared) > len(pairs)
    assert found.similarity.tolist() == [likeness[one, text] if one >= 0 else 0 for text, one in enumerate(kept)]
    assert found.nearness.tolist() == [
        max((likeness[one, other] for one, other in compared if other == text), default=0) for text in range(count)
    ]


@pytest.mark.parametrize("threshold", [0.5, 0.8, 1])
def test_an_exact_join_misses_no_pair(threshold: float) -> None:
    texts = some_texts(11, 150)
    shingles = Shingles.of(split_words(texts), 3)
    found = Candidates.joined(shingles, threshold)
    every = np.array(list(itertools.combinations(range(len(texts)), 2)))
    alike = every[jaccard(shingles, every) >= threshold]
    assert len(alike) > 30
    assert {*map(tuple, alike.tolist())} <= {*map(tuple, found.pairs.tolist())}
    assert len(found.pairs) < len(every) / 4
    assert (found.pairs[:, 0] < found.pairs[:, 1]).all()
    assert not found.buckets
    assert len(Candidates.joined(Shingles.of(split_words([]), 3), threshold).pairs) == 0


def test_dedup_can_join_exactly(tmp_path: Path) -> None:
    draw = random.Random(12)
    texts = [sentence(draw, 60) for _ in range(40)]
    texts += [changed(draw, text, 0.02) for text in texts]
    path = write_texts(tmp_path / "a.jsonl", texts)
    kept = dedup(path, tmp_path / "out", exact_join=True, threshold=0.7)
    assert [row["text"] for row in kept] == [
        row["text"] for row in dedup(path, tmp_path / "bands", threshold=0.7, bands=300, rows=2)
    ]
    assert 40 < len(kept) < 80


def test_a_chain_of_likenesses_removes_no_row_that_is_like_none_that_stays(tmp_path: Path) -> None:
    words = sentence(random.Random(5), 90).split()
    chain = [" ".join([*words[5 * step :], *(f"y{number}" for number in range(5 * step))]) for step in range(8)]
    assert all(similarity(a, b) > 0.7 for a, b in itertools.pairwise(chain))
    assert similarity(chain[0], chain[-1]) < 0.5
    kept = [
        row["text"]
        for row in dedup(write_texts(tmp_path / "a.jsonl", chain), tmp_path / "out", threshold=0.7, bands=200, rows=2)
    ]
    for text in chain:
        assert text in kept or max(similarity(text, other) for other in kept) >= 0.7
    assert len(kept) > 1


def test_rows_of_one_template_with_answers_of_their_own_stay(tmp_path: Path) -> None:
    draw = random.Random(7)
    frame = "Read the following question with care and answer it in one sentence without any further remark"
    rows = [f"{frame}: {sentence(draw, 12)}" for _ in range(400)]
    assert len(dedup(write_texts(tmp_path / "a.jsonl", rows + rows[:50]), tmp_path / "out")) == 400


def test_numbers_are_words(tmp_path: Path) -> None:
    rows = [f"A train leaves at {hour} and arrives after {hour + 2} hours" for hour in range(1, 9)]
    assert len(dedup(write_texts(tmp_path / "a.jsonl", rows), tmp_path / "out")) == 8


def test_the_ledger_shows_what_went_and_why(tmp_path: Path) -> None:
    draw = random.Random(2)
    first, second = sentence(draw, 60), sentence(draw, 60)
    near = " ".join([*second.split()[:-2], "quite", "otherwise"])
    path = write_texts(tmp_path / "a.jsonl", [first, second, first.upper() + ".", near, first, sentence(draw, 60)])
    kept = dedup(path, tmp_path / "out")
    assert [row["text"] for row in kept[:2]] == [first, second]
    assert len(kept) == 3
    ledger = read_rows(tmp_path / "out" / "removed.log")
    assert [(entry["row"].split(":")[-1], entry["kept"].split(":")[-1], entry["how"]) for entry in ledger] == [
        ("3", "1", "normalised"),
        ("4", "2", "near"),
        ("5", "1", "exact"),
    ]
    assert ledger[1]["similarity"] == pytest.approx(similarity(near, second), abs=1e-4)
    assert ledger[1]["shared"] == " ".join(second.split()[:-2])
    said = Explain(folder=str(tmp_path / "out"), row="a.jsonl:4").run(tmp_path)
    assert "near duplicate" in said
    assert near in said
    with pytest.raises(DataError, match="no such row went"):
        Explain(folder=str(tmp_path / "out"), row="a.jsonl:6").run(tmp_path)
    with pytest.raises(DataError, match="no ledger"):
        Explain(folder=str(tmp_path), row="a").run(tmp_path)


def test_a_ledger_of_an_earlier_call_is_not_believed(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["one", "one", "two"])
    Dedup(sources=[SourceSpec(path=path)]).run(tmp_path / "out")
    write_texts(tmp_path / "a.jsonl", ["one", "a bad word", "two"])
    (tmp_path / "listed.txt").write_text("bad word\n")
    Clean(sources=[SourceSpec(path=path)], blocklist=str(tmp_path / "listed.txt")).run(tmp_path / "out")
    assert "listed words" in Explain(folder=str(tmp_path / "out"), row="a.jsonl:2").run(tmp_path)


def test_a_row_that_nothing_is_said_of_is_sent_to_the_ledger_that_says_something(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["one", "one", "two"])
    Dedup(sources=[SourceSpec(path=path)]).run(tmp_path / "out")
    (tmp_path / "out" / "left_out.log").unlink()  # as earlier versions left their folders
    with pytest.raises(DataError, match="no such row went") as caught:
        Explain(folder=str(tmp_path / "out"), row="a.jsonl:3").run(tmp_path)
    assert caught.value.hint == f"1 did: see {tmp_path}/out/removed.log"


def test_the_number_of_a_row_is_whole_and_a_row_that_stays_says_so(tmp_path: Path) -> None:
    draw = random.Random(11)
    texts = [sentence(draw, 30) for _ in range(14)]
    for name in "xy":
        (tmp_path / name).mkdir()
    path = write_texts(tmp_path / "x" / "a.jsonl", [*texts, texts[0], texts[2], texts[0]])
    other = write_texts(tmp_path / "y" / "a.jsonl", [texts[1], "alone"])
    Dedup(sources=[SourceSpec(path=path), SourceSpec(path=other)]).run(tmp_path / "out")

    def explain(row: str) -> list[str]:
        said = Explain(folder=str(tmp_path / "out"), row=row).run(tmp_path)
        return [line.split(",")[0].split(" of ")[0] for line in said.splitlines() if not line.startswith("  ")]

    went = [f"{path}:{number} went: exact duplicate" for number in (15, 16, 17)]
    stays = [f"{path}:1 stays; found to be like it: 2", went[0], went[2]]
    assert explain(f"{path}:1") == stays
    assert explain("a.jsonl:15") == went[:1]
    assert explain("15") == went[:1]
    ambiguous = [f"{other}:1 went: exact duplicate", *stays]
    assert explain("a.jsonl:1") == explain("1") == ambiguous
    assert explain("a.jsonl") == [*went, ambiguous[0]]
    for row in ("a.jsonl:4", "5", f"{other}:2"):
        with pytest.raises(DataError, match="no such row went, and none for it"):
            explain(row)


def test_rows_around_the_threshold_are_shown_before_anyone_trusts_it(tmp_path: Path) -> None:
    draw = random.Random(6)
    rows = []
    for share in (0, 0.005, 0.01, 0.02, 0.03, 0.05):
        text = sentence(draw, 60)
        rows += [text, changed(draw, text, share)]
    dedup(write_texts(tmp_path / "a.jsonl", rows), tmp_path / "out", bands=200, rows=2)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    [curve] = [table["rows"] for table in found["tables"] if table["title"] == "At other thresholds"]
    alike = [similarity(a, b) for a, b in zip(rows[::2], rows[1::2], strict=True)]
    assert [row[1] for row in curve] == [sum(one >= row[0] for one in alike) for row in curve]
    shown = {entry["name"]: entry["examples"] for entry in found["counts"]["Around the threshold"]}
    assert [float(one["detail"].split()[0]) for one in shown["least alike rows that go"]] == sorted(
        round(one, 3) for one in alike if 0.8 <= one < 1
    )
    stay = [float(one["detail"].split()[0]) for one in shown["most alike rows that stay"]]
    assert stay == sorted((round(one, 3) for one in alike if 0 < one < 0.8), reverse=True)


def tables_of(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "report.json").read_text())
    return {table["title"]: table["rows"] for table in found["tables"]} | {"summary": "\n".join(found["summary"])}


@pytest.mark.parametrize("remove", [True, False])
def test_the_report_counts_what_went_and_nothing_of_the_reference(tmp_path: Path, remove: bool) -> None:
    draw = random.Random(12)
    texts = some_texts(12, 60)
    # A row equal to one that goes as a near-duplicate, equal short ones, and some of them in the reference, twice.
    long = sentence(draw, 60)
    texts += [long, long + " more", long + " more", "Yes!", "yes", "yes", *texts[:10]]
    test = write_texts(tmp_path / "test.jsonl", [*texts[:9], *texts[:9], "yes", "Yes"])
    path = write_texts(tmp_path / "a.jsonl", texts)
    for threshold in (0.5, 0.72, 0.8, 1):
        folder = tmp_path / f"{threshold}"
        kept = dedup(path, folder, against=[SourceSpec(path=test)], threshold=threshold, remove=remove)
        ledger = read_rows(folder / "removed.log")
        found = tables_of(folder)
        assert len(ledger) > 20
        assert [entry["went"] for entry in ledger] == [remove] * len(ledger)
        assert len(kept) == len(texts) - len(ledger) * remove
        hows = [entry["how"] for entry in ledger]
        assert found["Duplicates"] == [[how, hows.count(how)] for how in ("exact", "normalised", "near")]
        curve = {row[0]: row[1] for row in found["At other thresholds"]}
        assert curve[threshold] == len(ledger)
        assert list(curve.values()) == sorted(curve.values(), reverse=True)
        if remove:
            count = sum(len(words_in(text)) for text in texts)
            left = sum(len(words_in(row["text"])) for row in kept)
            assert f"{count - left:,} of {count:,} words go with {len(ledger):,} rows" in found["summary"]


def test_turns_that_stay_are_not_counted_among_those_that_go(tmp_path: Path) -> None:
    draw = random.Random(13)
    a, b, c, d = (turn(sentence(draw, 20), sentence(draw, 20)) for _ in range(4))
    near = [b[0], {"role": "assistant", "content": b[1]["content"] + " at last"}]
    talks = [[*a, *b], [*a, *c], [*d, *near, *a], [*near, *b]]
    path = write_texts(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    dedup(path, tmp_path / "out", by="turn")
    found = tables_of(tmp_path / "out")
    assert found["Duplicates"] == [["exact", 2, 1], ["normalised", 0, 0], ["near", 2, 0]]
    assert "164 of 364 words go with 4 turns; 1 more stay amid others" in found["summary"]
    curve = {row[0]: row[1] for row in found["At other thresholds"]}
    assert curve[0.8] == 4
    assert curve[1.0] == 3  # `near` in the third conversation would stay, that in the last is the first's equal


def test_what_a_tool_wrote_is_a_source_of_rows_alone(tmp_path: Path) -> None:
    rows = dedup(write_texts(tmp_path / "a.jsonl", ["a b c", "d e f", "A b c"]), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").glob("*.jsonl")] == ["a.jsonl"]
    Dedup(sources=[SourceSpec(path=str(tmp_path / "out"), name="again")]).run(tmp_path / "twice")
    assert read_rows(tmp_path / "twice" / "again.jsonl") == rows


def test_what_is_in_a_reference_goes_and_the_reference_stays(tmp_path: Path) -> None:
    draw = random.Random(4)
    texts = [sentence(draw, 30) for _ in range(20)]
    test = write_texts(tmp_path / "test.jsonl", [texts[3], texts[3], texts[7]])
    path = write_texts(tmp_path / "a.jsonl", texts)
    kept = dedup(path, tmp_path / "out", against=[SourceSpec(path=test)])
    assert [row["text"] for row in kept] == [text for text in texts if text not in (texts[3], texts[7])]
    assert sorted(file.name for file in (tmp_path / "out").iterdir() if file.suffix) == [
        "a.jsonl", "left_out.log", "removed.log", "report.html", "report.json",
    ]  # fmt: skip


def test_a_reference_in_the_output_folder_is_not_written_over(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "train.jsonl", ["a"])
    (tmp_path / "out").mkdir()
    test = write_texts(tmp_path / "out" / "train.jsonl", ["b"])
    with pytest.raises(DataError, match="written over by its own rows"):
        dedup(path, tmp_path / "out", against=[SourceSpec(path=test)])
    assert "b" in Path(test).read_text()


def test_rows_can_be_compared_with_a_reference_alone(tmp_path: Path) -> None:
    draw = random.Random(5)
    texts = [sentence(draw, 60) for _ in range(6)]
    nearly = texts[0] + " and more"
    test = write_texts(tmp_path / "test.jsonl", [texts[0], texts[1]])
    path = write_texts(tmp_path / "a.jsonl", [texts[2], nearly, texts[1], texts[2], texts[3] + " x", texts[3], nearly])
    kept = dedup(path, tmp_path / "out", against=[SourceSpec(path=test)], within=False)
    assert [row["text"] for row in kept] == [texts[2], texts[2], texts[3] + " x", texts[3]]
    with pytest.raises(ValueError, match="against"):
        Dedup(sources=[SourceSpec(path=path)], within=False)


def test_duplicates_can_be_marked_instead(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", ["a b c", "d e f", "A b c"])
    kept = dedup(path, tmp_path / "out", remove=False)
    assert [row["duplicate_of"] for row in kept] == [None, None, f"{path}:1"]


def test_chats_are_compared_by_what_is_said(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}]
    rows = [
        {"messages": talk, "id": 1},
        {"messages": talk, "id": 2},
        {"messages": [*talk[:1], talk[1] | {"content": "No"}]},
    ]
    assert [row.get("id") for row in dedup(write_texts(tmp_path / "a.jsonl", rows), tmp_path / "out")] == [1, None]
    only = dedup(
        write_texts(tmp_path / "b.jsonl", [{"q": "a", "x": 1}, {"q": "a", "x": 2}]), tmp_path / "o", columns=["q"]
    )
    assert only == [{"q": "a", "x": 1}]


def asked(question: str = "How many is it?", **answer: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "It is five."} | answer]
    }


def called(name: str, number: str = "1", **arguments: Any) -> dict[str, Any]:
    call = {"type": "function", "id": f"call_{number}", "function": {"name": name, "arguments": arguments}}
    return asked(content="", tool_calls=[call])


@pytest.mark.parametrize("by", ["row", "turn"])
def test_chats_that_reason_or_call_otherwise_say_other_things(tmp_path: Path, by: str) -> None:
    rows = [
        asked(),
        asked(reasoning_content="Two and three."),
        asked(reasoning_content="One and four."),
        called("calc", a=2),
        called("calc", a=3),
        called("search", a=3),
    ]
    rows.append(called("send", a=1, b=2))
    again = [called("search", "2", a=3), called("send", b=2, a=1), asked(reasoning_content="Two and three.")]
    path = write_texts(tmp_path / "a.jsonl", [*rows, *again])
    assert dedup(path, tmp_path / "out", by=by) == rows
    assert {entry["how"] for entry in read_rows(tmp_path / "out" / "removed.log")} == {"exact"}


def test_tools_tell_chats_apart_and_make_none_alike(tmp_path: Path) -> None:
    calc, search = (
        {"type": "function", "function": {"name": name, "description": f"{name} " + " ".join(WORDS)}}
        for name in ("calc", "search")
    )
    rows = [asked() | {"tools": tools} for tools in ([calc], [calc, search])]
    other = asked("And how many are those?") | {"tools": [calc]}
    path = write_texts(tmp_path / "a.jsonl", [*rows, other, rows[1]])
    assert dedup(path, tmp_path / "out") == [*rows, other]


def test_a_long_chat_with_other_tools_is_no_near_duplicate(tmp_path: Path) -> None:
    said = sentence(random.Random(9), 60)
    tools = [[{"type": "function", "function": {"name": name}}] for name in ("get_weather", "send_mail")]
    rows = [asked(said) | more for more in ({"tools": tools[0]}, {"tools": tools[1]}, {})]
    near = [asked(f"{said} now") | more for more in ({"tools": tools[1]}, {})]
    path = write_texts(tmp_path / "a.jsonl", [*rows, *near])
    assert dedup(path, tmp_path / "out") == rows
    assert [row["kept"] for row in read_rows(tmp_path / "out" / "removed.log")] == [f"{path}:2", f"{path}:3"]


def turn(question: str, *answers: str) -> list[dict[str, str]]:
    answered = [{"role": "assistant", "content": answer} for answer in answers]
    return [{"role": "user", "content": question}, *answered]


def test_turns_at_the_end_of_a_conversation_go(tmp_path: Path) -> None:
    draw = random.Random(8)
    a, b, c, d, e = (turn(sentence(draw, 30), sentence(draw, 30)) for _ in range(5))
    near = [b[0], {"role": "assistant", "content": b[1]["content"] + " at last"}]
    system = [{"role": "system", "content": "Be kind."}]
    talks = [[*a, *b], [*system, *c, *a], [*a, *d], [*near, *a], [*e[:1], *e], [*c, *near, *b]]
    path = write_texts(tmp_path / "a.jsonl", [{"messages": talk} for talk in talks])
    kept = [row["messages"] for row in dedup(path, tmp_path / "out", by="turn")]
    assert kept == [[*a, *b], [*system, *c], [*a, *d], [*e[:1], *e]]
    ledger = read_rows(tmp_path / "out" / "removed.log")
    found = [
        (entry["row"].split(":")[-1], entry["kept"].split(":")[-1], entry["how"], entry["went"]) for entry in ledger
    ]
    assert found == [
        ("2, turn 2 of 2", "1, turn 1 of 2", "exact", True),
        ("3, turn 1 of 2", "1, turn 1 of 2", "exact", False),
        ("4, turn 1 of 2", "1, turn 2 of 2", "near", True),
        ("4, turn 2 of 2", "1, turn 1 of 2", "exact", True),
        ("6, turn 1 of 3", "2, turn 1 of 2", "exact", True),
        ("6, turn 2 of 3", "1, turn 2 of 2", "near", True),
        ("6, turn 3 of 3", "1, turn 2 of 2", "exact", True),
    ]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    counted = {entry["name"]: entry["count"] for entry in report["counts"]["Changed"] + report["counts"]["Left out"]}
    assert counted == {
        "turn cut from the end": 1,
        "duplicate turn stays amid others": 1,
        "every turn is a duplicate": 2,
    }
    assert any("go with 6 turns; 1 more stay amid others" in line for line in report["summary"])
    assert "a.jsonl:3, turn 1 of 2 stays: exact" in Explain(folder=str(tmp_path / "out"), row="a.jsonl:3").run(tmp_path)
    marked = dedup(path, tmp_path / "marked", by="turn", remove=False)
    assert [row["messages"] for row in marked] == talks
    assert [row["duplicate_of"] for row in marked[:3]] == [
        [None, None],
        [None, f"{path}:1, turn 1 of 2"],
        [f"{path}:1, turn 1 of 2", None],
    ]


def test_turns_are_those_of_conversations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="messages"):
        dedup(write_texts(tmp_path / "a.jsonl", ["a", "b"]), tmp_path / "out", by="turn")
    rows = [{"messages": turn("a", "b")}, {"messages": []}, {"messages": None}, {"messages": turn("a", "b")}]
    assert dedup(write_texts(tmp_path / "b.jsonl", rows), tmp_path / "out", by="turn") == rows[:2]


def test_a_second_call_after_a_kill_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 16)
    path = write_texts(tmp_path / "a.jsonl", some_texts(9, 60))
    dedup(path, tmp_path / "whole")
    whole = {file.name: file.read_bytes() for file in (tmp_path / "whole").iterdir() if file.suffix}
    fsync, calls = row_tool.os.fsync, [0]
    for at in (2, 5, 9, 12, 15, 19):
        calls[0] = -at

        def dies(number: int) -> None:
            calls[0] += 1
            if calls[0] == 0:
                raise KeyboardInterrupt
            fsync(number)

        with monkeypatch.context() as patch:
            patch.setattr(row_tool.os, "fsync", dies)
            with pytest.raises(KeyboardInterrupt):
                dedup(path, tmp_path / f"out{at}")
        dedup(path, tmp_path / f"out{at}")
        assert {file.name: file.read_bytes() for file in (tmp_path / f"out{at}").iterdir() if file.suffix} == whole


def test_what_counts_as_a_duplicate_is_said(tmp_path: Path) -> None:
    text = sentence(random.Random(3), 60)
    rows = [text, text, text.upper(), text.upper(), text + " more", "!", "!", "?"]
    path = write_texts(tmp_path / "a.jsonl", rows)
    for match, stays in (("exact", [0, 2, 4, 5, 7]), ("normalised", [0, 4, 5, 7]), ("near", [0, 5, 7])):
        kept = dedup(path, tmp_path / match, match=match)
        assert [row["text"] for row in kept] == [rows[place] for place in stays]
    hows = [(entry["row"].split(":")[-1], entry["how"]) for entry in read_rows(tmp_path / "normalised" / "removed.log")]
    assert hows == [("2", "exact"), ("3", "normalised"), ("4", "normalised"), ("7", "exact")]


@pytest.mark.parametrize("match", ["exact", "normalised"])
def test_texts_of_one_hash_that_differ_both_stay(tmp_path: Path, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.data_tools.dedup.xxhash.xxh3_128_digest", lambda text: bytes(16))
    monkeypatch.setattr("posttrain.data_tools.ngrams.Words.wholes", property(lambda words: 0 * words.bounds[1:]))
    rows = ["one text", "another", "one text"]
    assert [
        row["text"] for row in dedup(write_texts(tmp_path / "a.jsonl", rows), tmp_path / "out", match=match)
    ] == rows[:2]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    [table] = [table["rows"] for table in report["tables"] if table["title"] == "Duplicates"]
    assert dict(table)["exact"] == 1


def test_the_longest_shared_run_is_found() -> None:
    assert longest_shared("a b c d e f g h i j", "x c d e f g h i j y") == "c d e f g h i j"
    assert longest_shared("a b", "b c") == "b"
    assert longest_shared("a", "b") == ""
