"""Hostile files, for every data tool: a row that is no row is counted, a file that is no file is one error."""

import gzip
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools import readers
from posttrain.recipes.tools import load_tool, run_command

from .tool_cases import EVERY, NEEDS, needs, row_tools, rows_of, write_rows

LONG = 1 << 17  # characters of what repeats one character, which no pattern may take minutes for


def nested(depth: int) -> bytes:
    return b'{"text": "x", "prompt": "x", "a": ' + b"[" * depth + b"]" * depth + b"}"


def said(text: Any, **more: Any) -> bytes:
    return json.dumps({"text": text, "prompt": text, **more}).encode()


# Lines that cannot be read as rows.
UNREADABLE = {
    "bytes that are no UTF-8": b'{"text": "\xff\xfe", "prompt": "\xff"}',
    "NUL bytes": b"\0" * 64,
    "10,000 levels": nested(10_000),
    "900 levels": nested(900),
    "300 levels": nested(300),
    "half of a surrogate pair": b'{"text": "a \\ud83d b", "prompt": "\\ud83d"}',
    "half of a surrogate pair in a key": b'{"text": "a", "prompt": "a", "\\udfff": 1}',
    "no object": b"[1, 2]",
    "a number of 5,000 digits": b'{"text": "a", "prompt": "a", "n": ' + b"9" * 5000 + b"}",
    "half a line": b'{"text": "a',
}
# Rows that may be of use or not.
ODD = {
    "a number": said(5),
    "nothing": said(None),
    "a truth value": said(True),
    "a list": said(["a", 1, None]),
    "an object": said({"a": {"b": "c"}}),
    "an empty text": said(""),
    "white space": said(" \n\t\u2028 "),
    "NUL in a text": said("a\0b \0" + "word " * 40),
    "control characters": said("\x1b[31mred\x07 \u202e" + "word " * 40),
    "not a number": b'{"text": "a b c", "prompt": "a b c", "score": NaN}',
    "infinity": b'{"text": "a b c", "prompt": "a b c", "score": -Infinity}',
    "no columns": b"{}",
    "a key twice": b'{"text": "a", "text": "b", "prompt": "a"}',
    "a million": said("x", n=10**40),
    **{f"{character!r} all along": said(character * LONG) for character in "a.@<-1 \n"},
    "unclosed brackets": said("<a href=" * 2000 + "(" * 5000 + "`" * 5000),
    "numbers all along": said("4111 " * 5000),
    "addresses all along": said("a.b-c@" * 5000),
}


@pytest.fixture
def call(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Runs a tool; returns its folder of output, or raises its error."""

    def run(name: str, source: Path | str, *, patient: bool = False) -> Path:
        out = tmp_path / f"out-{name}"
        arguments = needs(name, tmp_path, lambda: request.getfixturevalue("exact_model_dir"))
        arguments += ["--max-bad-share", "1"] if patient else []
        with pytest.raises(SystemExit, match="0"):
            run_command(name, str(source), *arguments, "-o", str(out))
        return out

    return run


def tools(*, slow: Callable[[str], bool]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) if slow(name) else name for name in EVERY]


def patient(name: str) -> bool:
    """Whether a tool can be told how many rows may be bad; else it goes on with one in fifty."""
    return "max_bad_share" in load_tool(name).model_fields


def asks_models(name: str) -> bool:
    return any("{model}" in part for part in NEEDS.get(name, ()))


@pytest.mark.parametrize("name", tools(slow=asks_models))
def test_rows_that_are_none_are_counted(tmp_path: Path, call: Callable[..., Path], name: str) -> None:
    rows = [*rows_of(name, 70 if patient(name) else 700), *UNREADABLE.values()]
    out = call(name, write_rows(tmp_path / "rows.jsonl", rows), patient=patient(name))
    if name in row_tools():
        found = json.loads((out / "report.json").read_text())
        assert found["files"][0]["rows"] == len(rows)
        unreadable = [one["count"] for one in found["counts"]["Left out"] if one["name"].startswith("unreadable")]
        assert sum(unreadable) == len(UNREADABLE)


@pytest.mark.parametrize("name", tools(slow=asks_models))
@pytest.mark.timeout(60)
def test_odd_rows_are_used_or_counted(tmp_path: Path, call: Callable[..., Path], name: str) -> None:
    rows = [*rows_of(name, 70 if patient(name) else 1400), *ODD.values()]
    out = call(name, write_rows(tmp_path / "rows.jsonl", rows), patient=patient(name))
    if name in row_tools():
        [file] = json.loads((out / "report.json").read_text())["files"]
        assert (file["rows"], file["kept"] + file["removed"]) == (len(rows), len(rows))
        if file["file"]:
            written = (out / file["file"]).read_bytes().split(b"\n")[:-1]
            assert len(written) == file["kept"]
            assert all(isinstance(json.loads(line), dict) for line in written)


def empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def blank(path: Path) -> Path:
    path.write_bytes(b"\n  \n\n")
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    (path / "loop").symlink_to(path)
    os.mkfifo(path / "pipe.jsonl")
    return path


def noise(path: Path) -> Path:
    path.write_bytes(bytes(range(256)) * 64)
    return path


def parquet(path: Path) -> Path:
    return noise(path.with_suffix(".parquet"))


def not_packed(path: Path) -> Path:
    return noise(path.with_name("rows.jsonl.gz"))


def torn(path: Path) -> Path:
    path = path.with_name("rows.jsonl.gz")
    path.write_bytes(gzip.compress(said("word " * 5000))[:-20])
    return path


def bomb(path: Path) -> Path:
    path = path.with_name("rows.jsonl.gz")
    path.write_bytes(gzip.compress(b" " * (1 << 22), 9))
    return path


def unclosed(path: Path) -> Path:
    path = path.with_suffix(".csv")
    path.write_text('text,label\n"a,1\nb,2\n')
    return path


FILES = [empty, blank, pipe, loop, folder, noise, parquet, not_packed, torn, bomb, unclosed]


@pytest.mark.parametrize("name", tools(slow=asks_models))
@pytest.mark.timeout(120)
def test_a_file_that_is_none_is_one_error(
    tmp_path: Path, call: Callable[..., Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_FREE", 1 << 20)  # the bomb need not be large
    for number, make in enumerate(FILES):
        (tmp_path / str(number)).mkdir()
        path = make(tmp_path / str(number) / "rows.jsonl")
        with pytest.raises(PosttrainError) as caught:
            call(name, path)
        assert (make.__name__, caught.value.exit_code) == (make.__name__, 2), caught.value
        assert path.name.partition(".")[0] in str(caught.value), make.__name__
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / f"out-{name}").glob("*.jsonl")), make.__name__


@pytest.mark.parametrize("name", [name for name in row_tools(writing=True) if not asks_models(name)])
def test_what_is_written_never_stands_among_what_is_read(tmp_path: Path, name: str) -> None:
    """Else a second call would read what the first wrote."""
    more = needs(name, tmp_path, lambda: tmp_path)
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    write_rows(folder / "rows.jsonl", rows_of(name))
    for source, out in ((folder, folder), (folder, folder / "deep"), (f"{folder}/*.jsonl", folder)):
        before = sorted(path.name for path in folder.rglob("*.jsonl"))
        with pytest.raises(PosttrainError, match=r"written .*name another folder: -o"):
            run_command(name, str(source), *more, "-o", str(out))
        assert sorted(path.name for path in folder.rglob("*.jsonl")) == before


MEASURE = """
import resource, sys
from posttrain.recipes.tools import run_command
try:
    run_command(*sys.argv[1:])
except SystemExit as done:
    assert not done.code
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["convert", "clean", "dedup", "scrub", "stats"])
def test_memory_is_bounded_by_the_largest_row_that_is_one(tmp_path: Path, name: str) -> None:
    """A line of 100 MB costs what the reader holds of it; the largest text that is a row costs 50 bytes a byte."""
    more = needs(name, tmp_path, lambda: tmp_path)
    rows = rows_of(name, 400)
    draw = random.Random(0)
    words = " ".join(f"w{draw.randrange(50_000)}" for _ in range(1_400_000))  # 9 MB
    long = write_rows(tmp_path / "long.jsonl", [*rows, b'{"text": "' + b"word " * 20_000_000 + b'"}'])
    large = write_rows(tmp_path / "large.jsonl", [*rows, {"text": words}])
    peaks = {}
    for path in (write_rows(tmp_path / "rows.jsonl", rows), long, large):
        out = tmp_path / f"out-{path.stem}"
        command = [sys.executable, "-c", MEASURE, name, str(path), *more, "-o", str(out)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks[path.stem] = int(done.stdout.split("peak")[1])
    assert peaks["long"] < peaks["rows"] + 120
    assert peaks["large"] < peaks["rows"] + 50 * large.stat().st_size / 2**20
