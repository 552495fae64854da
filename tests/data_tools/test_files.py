"""Files survive whatever comes between."""

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import InputError, PosttrainError
from posttrain.data_tools import files
from posttrain.data_tools.errors import BusyError


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(PosttrainError, match=r"result\.json: cannot write: No space left"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(tmp_path / "x", "text")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_never_leaves_half_a_file(tmp_path: Path):
    path = tmp_path / "x"
    files.write_atomic(path, "old")
    script = f"""
        import os, signal, pathlib
        from posttrain.data_tools import files
        os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        files.write_atomic(pathlib.Path({str(path)!r}), "new" * 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_others_can_read_what_is_written(tmp_path: Path):
    files.write_atomic(tmp_path / "deep" / "x", b"\x00")
    assert (tmp_path / "deep" / "x").stat().st_mode & 0o777 == 0o644


def test_no_reader_gets_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "x", math.nan)
    assert list(tmp_path.iterdir()) == []


def test_a_hash_depends_on_content_not_on_the_order_of_keys():
    assert files.hash_json({"a": 1, "b": [1, 2]}) == files.hash_json({"b": [1, 2], "a": 1})
    assert files.hash_json([1, 2]) != files.hash_json([2, 1])
    assert len(files.hash_json(None)) == 16


@pytest.mark.parametrize("torn", ["", '{"n": 2', '{"n": ' + "9" * 70_000])
def test_a_torn_last_line_is_lost_and_nothing_else(tmp_path: Path, torn: str):
    path = tmp_path / "log.jsonl"
    for n in (0, 1):
        files.append_line(path, json.dumps({"n": n}))
    with path.open("a") as handle:
        handle.write(torn)
    assert [record["n"] for record in files.read_jsonl_log(path)] == [0, 1]
    files.append_line(path, '{"n": 3}')
    assert [record["n"] for record in files.read_jsonl_log(path)] == [0, 1, 3]


def test_a_log_that_is_only_a_torn_line_starts_anew(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n"')
    assert files.read_jsonl_log(path) == []
    files.append_line(path, "{}")
    assert path.read_text() == "{}\n"


@pytest.mark.parametrize("bad", ["nonsense", "[1]", ""])
def test_a_whole_bad_line_in_a_log_is_named(tmp_path: Path, bad: str):
    path = tmp_path / "log.jsonl"
    path.write_text(f'{{"n": 0}}\n{bad}\n{{"n": 2}}\n')
    with pytest.raises(PosttrainError, match=r"log\.jsonl:2: not"):
        files.read_jsonl_log(path)


def test_a_record_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="one line"):
        files.append_line(tmp_path / "log", "a\nb")


def test_two_writers_cannot_hold_one_lock(tmp_path: Path):
    lock = tmp_path / ".lock"
    with files.locked(lock), pytest.raises(PosttrainError, match="another process"), files.locked(lock):
        pass
    with files.locked(lock):
        pass


def test_a_lock_that_cannot_be_made_is_no_other_process(tmp_path: Path):
    folder = tmp_path / "folder"
    (folder / ".lock").mkdir(parents=True)
    with pytest.raises(PosttrainError, match=r"\.lock: cannot lock: .*can you write there") as caught:
        files.locked(folder / ".lock").__enter__()
    assert not isinstance(caught.value, BusyError)  # whom one would wait for


@pytest.mark.parametrize("folder", ["file", "file/below/it"])
def test_a_folder_cannot_be_made_below_a_file(tmp_path: Path, folder: str):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=rf"{folder}: is, or lies below, a file; name another folder"):
        files.locked(tmp_path / folder / ".lock").__enter__()


def test_an_error_that_quotes_data_moves_no_cursor():
    error = PosttrainError("not 'a\x1b[2J\u202e\0'", where="naïve.jsonl:1", hint="first\nsecond")
    assert str(error) == "naïve.jsonl:1: not 'a\\x1b[2J\\u202e\\x00'; first\nsecond"
