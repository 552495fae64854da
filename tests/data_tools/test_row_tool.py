"""Tools that look at rows one by one: every row accounted for, the same bytes after a kill, hostile files survived."""

import datetime
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools import row_tool
from posttrain.data_tools.clean import Clean
from posttrain.data_tools.convert import TRIMMED, Convert
from posttrain.data_tools.dedup import Dedup
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.explain import Explain
from posttrain.data_tools.lines import Lines
from posttrain.data_tools.row_tool import Outcome, RowTool, json_line
from posttrain.data_tools.spec import SourceSpec
from posttrain.data_tools.tool_report import Spread, Tally, percent

from ..rows import read_rows, write_rows

ANY = SourceSpec(path="any.jsonl")


class Odd(RowTool):
    """Keeps odd numbers."""

    def decider(self, source: SourceSpec) -> row_tool.Decide:
        def decide(rows: Any) -> list[Outcome]:
            return [
                Outcome(row.values, measures={"n": row.values["n"]})
                if row.values["n"] % 2
                else Outcome(None, "even", str(row.values["n"]))
                for row in rows
            ]

        return decide


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


def odd(*paths: str, **more: Any) -> Odd:
    return Odd(sources=[SourceSpec(path=path) for path in paths], **more)


@pytest.mark.parametrize(
    "tool", [Clean(sources=[ANY], presets=["fineweb"]), Dedup(sources=[ANY]), Lines(sources=[ANY])]
)
def test_marks_of_an_earlier_call_are_not_written_over(tool: RowTool, tmp_path: Path) -> None:
    def mark(path: str, folder: Path) -> list[dict[str, Any]]:
        tool.model_copy(update={"sources": [SourceSpec(path=path)], "remove": False}).run(folder)
        return read_rows(folder / "a.jsonl")

    first = mark(write_rows(tmp_path / "a.jsonl", [{"text": "One sentence that stands here."}] * 20), tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.jsonl:[12]: has a column \w+ already; rename it"):
        mark(str(tmp_path / "out" / "a.jsonl"), tmp_path / "again")
    assert len(first) == 20


def test_columns_are_named_as_a_command_line_has_them() -> None:
    assert Dedup.model_validate({"sources": "a.jsonl", "columns": "text, title"}).columns == ["text", "title"]


def test_every_row_is_written_or_counted_with_examples(tmp_path: Path) -> None:
    rows = [{"n": number} for number in range(60)]
    said = odd(write_rows(tmp_path / "a.jsonl", [*rows, "{"])).run(tmp_path / "out")
    assert read_rows(tmp_path / "out" / "a.jsonl") == [{"n": number} for number in range(1, 60, 2)]
    found = report(tmp_path / "out")
    assert found["files"][0] | {"source": ""} == {
        "source": "",
        "file": "a.jsonl",
        "rows": 61,
        "removed": 31,
        "kept": 30,
        "reasons": {"even": 30, "unreadable: not JSON": 1},
    }
    even, unreadable = found["counts"]["Left out"]
    assert (even["name"], even["count"], len(even["examples"])) == ("even", 30, 10)
    assert (unreadable["name"], unreadable["count"]) == ("unreadable: not JSON", 1)
    assert "30 of 61 rows, 31 left out" in said
    assert not list((tmp_path / "out").glob(".work-*"))


def test_the_page_escapes_what_rows_say(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"n": 1}, {"n": 2, "text": "<script>alert(1)</script>"}])
    odd(path).run(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=4))
def test_a_written_row_reads_back_as_it_was_but_for_numbers_that_json_has_not(row: dict[str, Any]) -> None:
    mended: list[str] = []
    line = json_line(row, "a.jsonl:1", mended)
    assert line.count(b"\n") == 1
    finite = json.loads(json.dumps(row), parse_constant=lambda _: None)
    assert repr(json.loads(line)) == repr(finite)
    assert mended == ([] if repr(row) == repr(finite) else ["a.jsonl:1"])


def test_why_a_row_went_is_known_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 7)
    rows = [*({"n": number} for number in range(40)), "{"]
    odd(write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "b.jsonl", rows[:9]), max_bad_share=0.5).run(
        tmp_path / "out"
    )
    log = read_rows(tmp_path / "out" / "left_out.log")
    assert [entry["detail"] for entry in log if entry["reason"] == "even"] == [
        str(number) for number in (*range(0, 40, 2), *range(0, 9, 2))
    ]

    def explain(row: str) -> str:
        return Explain(folder=str(tmp_path / "out"), row=row).run(tmp_path)

    assert explain("b.jsonl:3") == f"{tmp_path}/b.jsonl:3: even: 2"
    assert explain("a.jsonl:41").startswith(f"{tmp_path}/a.jsonl:41: unreadable: not JSON: ")
    assert explain("a.jsonl").endswith("and 11 more")
    with pytest.raises(DataError, match=r"b\.jsonl:4: no such row went"):
        explain("b.jsonl:4")


def test_the_share_of_rows_that_stay_is_drawn_by_source(tmp_path: Path) -> None:
    counted = {"a": [1, 2, 3, 4], "b": [1, 3]}
    paths = [write_rows(tmp_path / f"{name}.jsonl", [{"n": n} for n in numbers]) for name, numbers in counted.items()]
    odd(*paths).run(tmp_path / "out")
    (plot,) = [plot for plot in report(tmp_path / "out")["plots"] if plot["title"] == "Rows kept, by source"]
    assert [bar["value"] for bar in plot["bars"]] == [50.0, 100.0]


@pytest.mark.parametrize("value", [b"x", "\ud83d", {(1, 2): 3}, object()])
def test_a_value_without_json_is_an_error_that_names_row_and_column(value: Any) -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl:1: column 'a' cannot be written as JSON: .*data convert"):
        json_line({"n": float("nan"), "a": [value]}, "a.jsonl:1")


def test_dates_of_a_parquet_file_are_written_as_text(tmp_path: Path) -> None:
    day, moment = datetime.date(2026, 1, 2), datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    rows = [{"n": 1, "day": day, "at": [{"time": moment}], "score": float("nan")}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    odd(str(tmp_path / "a.parquet")).run(tmp_path / "out")
    written = {"n": 1, "day": "2026-01-02", "at": [{"time": "2026-01-02T03:04:05+00:00"}], "score": None}
    assert read_rows(tmp_path / "out" / "a.jsonl") == [written]


def test_a_killed_call_goes_on_behind_its_last_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 10)
    path = write_rows(tmp_path / "a.jsonl", [{"n": number} for number in range(95)])
    odd(path).run(tmp_path / "whole")
    seen: list[int] = []

    class Dies(Odd):
        def decider(self, source: SourceSpec) -> row_tool.Decide:
            decide = super().decider(source)

            def counting(rows: Any) -> Any:
                seen.extend(row.values["n"] for row in rows)
                if len(seen) == 40:
                    raise KeyboardInterrupt
                return decide(rows)

            return counting

    Dies.__name__ = "Odd"
    tool = Dies(sources=[SourceSpec(path=path)])
    with pytest.raises(KeyboardInterrupt):
        tool.run(tmp_path / "out")
    assert not (tmp_path / "out" / "a.jsonl").exists()
    tool.run(tmp_path / "out")
    assert seen == [*range(40), *range(30, 95)]
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix} == {
        p.name: p.read_bytes() for p in (tmp_path / "whole").iterdir() if p.suffix
    }


def test_blocks_of_other_arguments_or_rows_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 10)
    path = write_rows(tmp_path / "a.jsonl", [{"n": number} for number in range(25)] + [{"n": "x"}])
    with pytest.raises(TypeError):
        odd(path).run(tmp_path / "out")
    write_rows(tmp_path / "a.jsonl", [{"n": number} for number in range(100, 125)])
    odd(path).run(tmp_path / "out")
    assert read_rows(tmp_path / "out" / "a.jsonl") == [{"n": number} for number in range(101, 125, 2)]


def test_what_another_version_left_half_done_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 10)
    path = write_rows(tmp_path / "a.jsonl", [{"n": number} for number in range(25)])

    class Measures(Odd):
        writes_rows: ClassVar[bool] = False  # a block is its counts alone, which say nothing of their age
        dies: ClassVar[bool] = True

        def decider(self, source: SourceSpec) -> row_tool.Decide:
            decide = super().decider(source)

            def until_the_end(rows: Any) -> list[Outcome]:
                if self.dies and rows[0].values["n"] == 20:
                    raise KeyboardInterrupt
                return [outcome._replace(reason="as now") if not self.dies else outcome for outcome in decide(rows)]

            return until_the_end

    monkeypatch.setattr(row_tool, "WORK_VERSION", row_tool.WORK_VERSION - 1)
    with pytest.raises(KeyboardInterrupt):
        Measures(sources=[SourceSpec(path=path)]).run(tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(Measures, "dies", False)
    Measures(sources=[SourceSpec(path=path)]).run(tmp_path / "out")
    assert {entry["name"]: entry["count"] for entry in report(tmp_path / "out")["counts"]["Left out"]} == {"as now": 13}


def test_kill_minus_nine_leaves_nothing_half_done(tmp_path: Path) -> None:
    """The process is killed while it writes its third file; the next call ends with the same bytes."""
    path = write_rows(tmp_path / "a.jsonl", [{"text": f"row {number}"} for number in range(300)])
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from posttrain.data_tools import row_tool\n"
        "from posttrain.data_tools.convert import Convert\n"
        "from posttrain.data_tools.spec import SourceSpec\n"
        "row_tool.BLOCK_ROWS = 50\n"
        "calls, replace = [], os.fsync\n"
        "def fsync(number):\n"
        "    calls.append(1)\n"
        "    if len(calls) == int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(number)\n"
        "os.fsync = fsync\n"
        "Convert(sources=[SourceSpec(path=sys.argv[1])]).run(Path(sys.argv[2]))\n"
    )

    def run(folder: Path, at: int) -> int:
        return subprocess.run([sys.executable, "-c", script, path, str(folder), str(at)], check=False).returncode

    assert run(tmp_path / "whole", 0) == 0
    assert run(tmp_path / "out", 5) == -signal.SIGKILL
    assert not (tmp_path / "out" / "a.jsonl").exists()
    assert run(tmp_path / "out", 0) == 0
    for name in ("a.jsonl", "report.json", "report.html"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_block_without_all_of_its_rows_is_decided_on_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder of work is after a kill between the removal of two of its files."""
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 10)
    path = write_rows(tmp_path / "a.jsonl", [{"n": number} for number in range(95)])
    join = row_tool.join

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(row_tool, "join", stop)
    with pytest.raises(KeyboardInterrupt):
        odd(path).run(tmp_path / "out")
    monkeypatch.setattr(row_tool, "join", join)
    blocks = sorted((tmp_path / "out").glob(".work-*/0/*-*.jsonl"))
    assert len(blocks) == 10
    blocks[3].unlink()
    blocks[5].write_text("")
    odd(path).run(tmp_path / "out")
    assert [row["n"] for row in read_rows(tmp_path / "out" / "a.jsonl")] == [*range(1, 95, 2)]


@pytest.mark.parametrize("block", [4, 64])
def test_parquet_holds_keys_that_come_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", block)
    rows = [{"n": number} | ({"late": "x"} if number > 6 else {}) for number in range(1, 12, 2)]
    odd(write_rows(tmp_path / "a.jsonl", rows), output_format="parquet").run(tmp_path / "out")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "a.parquet").to_pylist()
    assert [row["late"] for row in table] == [None, None, None, "x", "x", "x"]


@pytest.mark.parametrize("value", ["one", 10**30])
def test_what_parquet_has_no_type_for_is_one_clear_error(tmp_path: Path, value: Any) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"n": 1, "x": 1}, {"n": 3, "x": value}])
    with pytest.raises(DataError, match=r"a\.parquet: cannot be written as Parquet.*write `jsonl`"):
        odd(path, output_format="parquet").run(tmp_path / "out")


def test_rows_go_below_the_files_of_a_glob_unless_it_would_read_them_there(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write_rows(tmp_path / "x" / "a.jsonl", [{"n": 1}])
    odd(str(tmp_path / "x" / "*.jsonl")).run(tmp_path / "x" / "out")
    for pattern, folder in (("*.jsonl", "."), ("../x/*.jsonl", "."), ("**/*.jsonl", "new")):
        with pytest.raises(DataError, match="be read the next time"):
            odd(str(tmp_path / "x" / pattern)).run(tmp_path / "x" / folder)


def test_what_cannot_be_done_is_said(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"n": 1}])
    with pytest.raises(DataError, match=r"written over by its own rows"):
        odd(path).run(tmp_path)
    with pytest.raises(DataError, match="stands twice"):
        odd(path, path).run(tmp_path / "out")
    with pytest.raises(DataError, match="no readable rows"):
        odd(write_rows(tmp_path / "b.jsonl", ["no", "["])).run(tmp_path / "out")
    with pytest.raises(DataError, match=r"2 of 4 rows cannot be read: .*c\.jsonl:1: unreadable: not JSON"):
        odd(write_rows(tmp_path / "c.jsonl", ["{", {"n": 1}, "no", {"n": 3}])).run(tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(PosttrainError, match="cannot"):
        odd(path).run(tmp_path / "file" / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_no_file_of_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl"):
        odd(str(tmp_path / "a.jsonl")).run(tmp_path / "out")


def test_a_chat_that_ends_before_an_answer_loses_its_last_turns(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}, {"from": "human", "value": "And?"}]
    path = write_rows(tmp_path / "a.jsonl", [{"conversations": talk, "id": 4}, {"conversations": talk[:1]}])
    Convert(sources=[SourceSpec(path=path)]).run(tmp_path / "out")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert read_rows(tmp_path / "out" / "a.jsonl") == [{"messages": messages}]
    found = report(tmp_path / "out")["counts"]
    assert {entry["name"]: entry["count"] for entry in found["Changed"]} == {TRIMMED: 1, "not kept: column id": 1}
    assert [entry["count"] for entry in found["Left out"]] == [1]


PARIS = {"role": "user", "content": "Capital of France?"}
GREETING = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]


@pytest.mark.parametrize(
    ("more", "how"),
    [
        ({"chosen": {"from": "gpt", "value": "Paris."}, "rejected": {"from": "gpt", "value": "Rome."}}, {}),
        ({}, {"kind": "prompt"}),
        ({"answer": "Paris."}, {"prompt": "{{ conversations }}", "completion": "{{ answer }}"}),
    ],
)
def test_a_prompt_keeps_the_question_it_ends_with(tmp_path: Path, more: dict[str, Any], how: dict[str, Any]) -> None:
    talk = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]
    row = {"conversations": [*talk, {"from": "human", "value": PARIS["content"]}], **more}
    source = {"path": write_rows(tmp_path / "a.jsonl", [row]), **{key: how[key] for key in how if key != "kind"}}
    Convert.model_validate({"sources": [source], "kind": how.get("kind")}).run(tmp_path / "out")
    assert read_rows(tmp_path / "out" / "a.jsonl")[0]["prompt"] == [*GREETING, PARIS]


def test_a_source_of_which_nothing_can_be_converted_is_an_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "Hi", "chosen": ["a", "b"], "rejected": ["c", "d"]}] * 3)
    with pytest.raises(DataError, match=r"none of its 3 rows can be converted: .*a\.jsonl:1: chosen is neither text"):
        Convert(sources=[SourceSpec(path=path)]).run(tmp_path / "out")
    assert not (tmp_path / "out" / "a.jsonl").exists()


def test_converted_rows_are_read_as_what_they_were_before(tmp_path: Path) -> None:
    rows = [{"instruction": "Add", "input": "1 and 2", "output": "3"}, {"instruction": "Say", "output": "no"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    Convert(sources=[SourceSpec(path=path)]).run(tmp_path / "once")
    Convert(sources=[SourceSpec(path=str(tmp_path / "once" / "a.jsonl"))]).run(tmp_path / "twice")
    assert (tmp_path / "twice" / "a.jsonl").read_bytes() == (tmp_path / "once" / "a.jsonl").read_bytes()
    [first, second] = read_rows(tmp_path / "once" / "a.jsonl")
    assert [turn["content"] for turn in first["messages"]] == ["Add\n\n1 and 2", "3"]
    assert second["messages"][1]["content"] == "no"


def test_spreads_and_tallies_of_parts_are_those_of_the_whole() -> None:
    numbers = [0, 0.4, 1, 1.9, 2, 3, 1000, 1e6]
    whole, left, right = Spread(), Spread(), Spread()
    for place, number in enumerate(numbers):
        whole.add(number)
        (left, right)[place > 3].add(number)
    left.merge(right)
    assert left == whole == Spread.from_dict(json.loads(json.dumps(whole.to_dict())))
    assert (whole.count, whole.least, whole.most, whole.bins[0]) == (8, 0, 1e6, 2)
    assert whole.quantile(0.5) == pytest.approx(1.9, rel=0.2)
    tally, other = Tally(), Tally()
    for place in range(14):
        (tally, other)[place > 7].add("x", f"row {place}", "text")
    tally.merge(other)
    assert tally.counts == {"x": 14}
    assert [example.where for example in tally.examples["x"]] == [f"row {place}" for place in range(10)]


def test_all_and_none_are_said_of_nothing_less() -> None:
    assert [percent(part, 10_000) for part in (0, 1, 10, 9_990, 9_999, 10_000)] == [
        "0.0%", "<0.1%", "0.1%", "99.9%", ">99.9%", "100.0%",
    ]  # fmt: skip
    assert percent(0, 0) == "–"


def test_a_folder_with_rows_of_another_call_is_refused_and_kept(tmp_path: Path) -> None:
    a, b = (write_rows(tmp_path / f"{name}.jsonl", [{"text": name}]) for name in "ab")
    Convert(sources=[SourceSpec(path=a), SourceSpec(path=b)]).run(tmp_path / "out")
    with pytest.raises(DataError, match=r"holds rows of an earlier call that this one would not write over: b\.jsonl"):
        Convert(sources=[SourceSpec(path=a)]).run(tmp_path / "out")
    with pytest.raises(DataError, match=r"a\.jsonl and 1 more"):
        Convert(sources=[SourceSpec(path=a), SourceSpec(path=b)], output_format="parquet").run(tmp_path / "out")
    assert (tmp_path / "out" / "b.jsonl").exists()
    Convert(sources=[SourceSpec(path=a), SourceSpec(path=b)], kind="text").run(tmp_path / "out")
