"""Rows that hold test items go, are named with their evidence, and nothing else changes."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from posttrain.data_tools import decontaminate as module
from posttrain.data_tools.decontaminate import COPIES, Benchmarks, DecontaminateSpec, read_items
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.overlap import Item
from posttrain.data_tools.spec import SourceSpec

from ..rows import read_rows, write_rows

WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "en", "ip", "ol", "un", "ast")]


def sentence(draw: random.Random, count: int) -> str:
    return " ".join(draw.choices(WORDS, weights=[1 / (rank + 2) for rank in range(len(WORDS))], k=count))


def made(seed: int, count: int) -> list[str]:
    draw = random.Random(seed)
    return [f"{sentence(draw, 18)} {draw.randrange(1000)}" for _ in range(count)]


ITEMS = [Item(str(number), text, f"answer {number}") for number, text in enumerate(made(1, 40))]


def spec_of(*paths: str, **more: Any) -> DecontaminateSpec:
    return DecontaminateSpec(sources=[SourceSpec(path=path) for path in paths], **({"paraphrases": "off"} | more))


def decontaminate(spec: DecontaminateSpec, benchmarks: Benchmarks, folder: Path) -> str:
    class Decontaminate(DecontaminateSpec):
        def benchmarks(self) -> Benchmarks:
            return benchmarks

    return Decontaminate.model_validate(dict(spec)).run(folder)


LEAKS = [
    {"messages": [{"role": "user", "content": ITEMS[3].question.upper()}, {"role": "assistant", "content": "9"}]},
    {"messages": [{"role": "user", "content": "Hello"}], "note": {"source": ITEMS[7].question.replace(" ", "\n- ")}},
]
CLEAN: list[dict[str, Any]] = [{"prompt": text, "n": number, "none": None} for number, text in enumerate(made(2, 300))]


def test_rows_with_items_are_removed_and_all_others_written_as_they_were(tmp_path: Path) -> None:
    rows = [*CLEAN[:100], LEAKS[0], *CLEAN[100:200], LEAKS[1], *CLEAN[200:]]
    said = decontaminate(spec_of(write_rows(tmp_path / "train.jsonl", rows)), {"quiz": ITEMS}, tmp_path / "out")
    assert read_rows(tmp_path / "out" / "train.jsonl") == CLEAN
    evidence = read_rows(tmp_path / "out" / "evidence.log")
    assert [(line["row"].split(":")[-1], line["item"], line["verdict"]) for line in evidence] == [
        ("101", "3", "n-grams"),
        ("202", "7", "n-grams"),
    ]
    assert evidence[0]["words"] == ITEMS[3].question
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["files"][0] == {
        "source": str(tmp_path / "train.jsonl"),
        "file": "train.jsonl",
        "rows": 302,
        "removed": 2,
        "kept": 300,
        "reasons": {"quiz: n-grams": 2},
    }
    [reason] = report["counts"]["Left out"]
    assert (reason["name"], reason["count"]) == ("quiz: n-grams", 2)
    assert ITEMS[3].question in reason["examples"][0]["detail"]
    assert "300 of 302 rows, 2 left out" in said
    assert "2 of 40 items seen (n = 8)" in said


def test_flagged_rows_stay_with_what_was_found_in_them(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", [CLEAN[0], LEAKS[0]])
    decontaminate(spec_of(source, remove=False), {"quiz": ITEMS}, tmp_path / "out")
    first, second = read_rows(tmp_path / "out" / "train.jsonl")
    assert first == {**CLEAN[0], "contamination": []}
    mark = {"benchmark": "quiz", "item": "3", "verdict": "n-grams", "words": ITEMS[3].question}
    assert second == {**LEAKS[0], "contamination": [mark]}
    with pytest.raises(DataError, match=r"train\.jsonl:2: has a column contamination already"):
        decontaminate(spec_of(str(tmp_path / "out" / "train.jsonl"), remove=False), {"quiz": ITEMS}, tmp_path / "again")


def test_marks_of_an_earlier_call_which_quote_items_are_not_searched(tmp_path: Path) -> None:
    marks = [{"benchmark": "quiz", "item": "3", "verdict": "n-grams", "words": ITEMS[3].question}]
    rows = [{**CLEAN[0], "contamination": marks}, {**CLEAN[1], "contamination": ITEMS[3].question}]
    source = write_rows(tmp_path / "train.jsonl", rows)
    decontaminate(spec_of(source), {"quiz": ITEMS}, tmp_path / "out")
    assert read_rows(tmp_path / "out" / "train.jsonl") == rows[:1]


def test_each_run_says_which_planted_copies_it_would_find_and_writes_none_of_them(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "train.jsonl", CLEAN)
    said = decontaminate(spec_of(source), {"quiz": ITEMS, "few": ITEMS[:3]}, tmp_path / "out")
    assert "verbatim 100%, re-wrapped 100%, re-cased 100%, re-punctuated 100%" in said
    assert "reworded 0%" in said
    assert read_rows(tmp_path / "out" / "train.jsonl") == CLEAN
    assert not read_rows(tmp_path / "out" / "evidence.log")
    planted = json.loads((tmp_path / "out" / "report.json").read_text())["planted"]
    assert {(copy["copy"], copy["planted"]) for copy in planted} == {(kind, 43) for kind in COPIES}


def test_a_search_that_misses_what_was_planted_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.COPIES, "verbatim", lambda text: text[::-1])  # type: ignore[arg-type]
    with pytest.raises(module.PosttrainError, match="40 of 40 planted verbatim copies were not found"):
        decontaminate(spec_of(write_rows(tmp_path / "train.jsonl", CLEAN)), {"quiz": ITEMS}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))


def test_what_is_too_short_to_be_found_is_counted_and_named(tmp_path: Path) -> None:
    items = [Item("a", "2 + 2?", "4"), Item("b", "Who wrote the play Hamlet?", "Shakespeare"), *ITEMS]
    source = write_rows(
        tmp_path / "train.jsonl", [{"text": "who wrote the play hamlet? Answer: Shakespeare. 2 + 2? 4"}]
    )
    said = decontaminate(spec_of(source), {"quiz": items}, tmp_path / "out")
    assert "1 of 42 items seen (n = 8), too short to be found: 1" in said
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["benchmarks"][0]["found_as_a_whole_only"] == 1
    [short] = report["counts"]["Items too short to be found"]
    assert [example["text"] for example in short["examples"]] == ["2 + 2?\n4"]


def test_a_call_is_the_answer_of_an_item(tmp_path: Path) -> None:
    def asked(*numbers: int) -> list[dict[str, Any]]:
        call = {"type": "function", "id": "call_1", "function": {"name": "divide", "arguments": {"numbers": numbers}}}
        question = {"role": "user", "content": "How often does it go?"}
        return [question, {"role": "assistant", "content": "", "tool_calls": [call]}]

    items = read_items([SourceSpec(path=write_rows(tmp_path / "quiz.jsonl", [{"messages": asked(91, 7)}]))])
    [[item]] = items.values()
    assert item.question == "How often does it go?"
    source = write_rows(tmp_path / "train.jsonl", [{"messages": asked(91, 7)}, {"messages": asked(90, 6)}])
    decontaminate(spec_of(source), items, tmp_path / "out")
    assert read_rows(tmp_path / "out" / "train.jsonl") == [{"messages": json.loads(json.dumps(asked(90, 6)))}]


def test_a_rewording_is_a_possible_paraphrase_and_no_ngram_hit(tmp_path: Path) -> None:
    draw = random.Random(5)
    rows = [{"text": text} for text in made(3, 1500)]
    reworded = {}
    for number in range(0, 40, 4):
        words = ITEMS[number].question.split()
        draw.shuffle(words)
        reworded[str(number)] = " ".join(words[:-2])
    rows[700:700] = [{"text": text} for text in reworded.values()]
    source = write_rows(tmp_path / "train.jsonl", rows)
    said = decontaminate(spec_of(source, paraphrases="flag"), {"quiz": ITEMS}, tmp_path / "out")
    assert "0 of 40 items seen" in said
    assert re.search(r"reworded ([6-9]\d|100)% as possible paraphrases", said)
    evidence = read_rows(tmp_path / "out" / "evidence.log")
    assert {line["verdict"] for line in evidence} == {"possible paraphrase"}
    found = {(int(line["row"].split(":")[-1]), line["item"]) for line in evidence}
    right = {(701 + place, item) for place, item in enumerate(reworded)}
    assert right <= found
    assert len(found - right) <= 5  # 1.5 are to be expected
    assert len(read_rows(tmp_path / "out" / "train.jsonl")) == len(rows)
    decontaminate(spec_of(source, paraphrases="remove"), {"quiz": ITEMS}, tmp_path / "out")
    assert len(read_rows(tmp_path / "out" / "train.jsonl")) == len(rows) - len(found)


@pytest.mark.parametrize("rows", [[], ["no row"]])
def test_a_file_without_rows_is_named(tmp_path: Path, rows: list[str]) -> None:
    path = write_rows(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"a\.jsonl: holds no readable rows"):
        decontaminate(spec_of(path, paraphrases="flag"), {"made": ITEMS}, tmp_path / "out")


def test_several_sources_have_files_of_their_own_and_bad_rows_are_counted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = write_rows(tmp_path / "train.jsonl", CLEAN[:200])
    second = tmp_path / "b" / "train.jsonl"
    second.write_text(json.dumps(LEAKS[1]) + "\n" + json.dumps(CLEAN[7]) + "\nno json\n")
    with pytest.raises(DataError, match=r"1 of 3 rows cannot be read: .*train\.jsonl:3"):
        decontaminate(spec_of(first, str(second)), {"quiz": ITEMS}, tmp_path / "out")
    decontaminate(spec_of(first, str(second), max_bad_share=0.5), {"quiz": ITEMS}, tmp_path / "out")
    assert read_rows(tmp_path / "out" / "train.jsonl") == CLEAN[:200]
    assert read_rows(tmp_path / "out" / "train-2.jsonl") == [CLEAN[7]]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "unreadable: " in page
    assert "built-in method" not in page
    with pytest.raises(DataError, match="no test items"):
        decontaminate(spec_of(first), {"quiz": []}, tmp_path / "out")


def test_no_text_of_a_row_is_markup_on_the_page(tmp_path: Path) -> None:
    items = [Item("<b>", "<script>alert(1)</script> one two three four five six seven eight", "x"), *ITEMS]
    source = write_rows(tmp_path / "train.jsonl", [{"text": items[0].text}])
    decontaminate(spec_of(source), {"<i>quiz": items}, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script" not in page
    assert "<i>" not in page


def test_items_are_read_from_files_of_any_known_layout(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "answer": "So."}, {"question": "How?", "answer": "Thus."}]
    path = write_rows(tmp_path / "quiz.jsonl", rows)
    source = SourceSpec(path=path, name="quiz", prompt="{{ question }}", completion="{{ answer }}")
    found = read_items([source])
    assert [(item.question, item.answer) for item in found["quiz"]] == [("Why?", "So."), ("How?", "Thus.")]
    renamed = spec_of("a.jsonl", items={"path": path, "columns": {"question": "prompt", "answer": "completion"}})
    assert [(item.question, item.answer) for item in renamed.benchmarks()[path]] == [("Why?", "So."), ("How?", "Thus.")]
    text = write_rows(tmp_path / "text.jsonl", [{"text": "All of it."}])
    assert [item.question for item in read_items([SourceSpec(path=text)])[text]] == ["All of it."]


def test_a_long_item_is_told_by_its_passages_and_not_taken_for_another() -> None:
    from posttrain.data_tools.ngrams import split_words
    from posttrain.data_tools.overlap import Item
    from posttrain.data_tools.paraphrases import Nearest, count_words

    def words(n: int, count: int) -> str:
        return " ".join(f"word{n}x{place}" for place in range(count))

    items = [Item(str(n), words(n, 450 if n == 0 else 12), "") for n in range(12)]
    rows = split_words([words(0, 450), *(words(n, 12) for n in range(1, 12))])
    near = Nearest(items, count_words(rows)).of(rows)
    assert {(int(row), int(item)) for row, item in zip(near.rows, near.items, strict=True)} == {
        (n, n) for n in range(12)
    }
    assert (near.margins > 0.9).all()
