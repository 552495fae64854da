"""A cache entry is whole or absent, and built once however many ask for it."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.cache import damage, get_or_build


def build(folder: Path) -> dict:
    (folder / "rows.arrow").write_bytes(b"0123456789" * 1000)
    (folder / "other.bin").write_bytes(b"x")
    return {"rows": 3}


def never(folder: Path) -> dict:
    raise AssertionError("built although it was there")


def test_a_second_call_finds_what_the_first_built(tmp_path):
    first = get_or_build(tmp_path, "key", build)
    assert (first.built, first.report) == (True, {"rows": 3})
    second = get_or_build(tmp_path, "key", never)
    assert (second.built, second.report, second.folder) == (False, {"rows": 3}, first.folder)
    assert get_or_build(tmp_path, "other", build).built


def truncate(folder: Path) -> None:
    os.truncate(folder / "rows.arrow", 500)


def flip(folder: Path) -> None:
    content = bytearray((folder / "rows.arrow").read_bytes())
    content[5000] ^= 1
    (folder / "rows.arrow").write_bytes(content)


def remove(folder: Path) -> None:
    (folder / "rows.arrow").unlink()


def remove_meta(folder: Path) -> None:
    (folder / "meta.json").unlink()


def tear_meta(folder: Path) -> None:
    os.truncate(folder / "meta.json", 20)


def empty_meta(folder: Path) -> None:
    (folder / "meta.json").write_text(json.dumps([]))


@pytest.mark.parametrize("harm", [truncate, flip, remove, remove_meta, tear_meta, empty_meta])
def test_a_damaged_entry_is_rebuilt_and_says_why(tmp_path, harm):
    folder = get_or_build(tmp_path, "key", build).folder
    harm(folder)
    assert damage(folder)
    entry = get_or_build(tmp_path, "key", build)
    assert entry.built
    assert entry.problem
    assert damage(folder) is None


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(tmp_path):
    get_or_build(tmp_path, "key", build).folder.rename(tmp_path / "other")
    entry = get_or_build(tmp_path, "other", build)
    assert (entry.built, entry.problem) == (True, "it is the folder of key")


def test_a_build_that_fails_leaves_nothing_behind(tmp_path):
    def fail(folder: Path) -> dict:
        (folder / "part").write_text("x")
        raise PosttrainError("no")

    with pytest.raises(PosttrainError, match="no"):
        get_or_build(tmp_path, "key", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def die(folder: Path) -> dict:
    (folder / "part").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def test_a_kill_while_building_leaves_no_entry_and_no_leftover_in_the_next(tmp_path):
    process = multiprocessing.get_context("fork").Process(target=get_or_build, args=(tmp_path, "key", die))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    entry = get_or_build(tmp_path, "key", build)
    assert entry.built
    assert sorted(path.name for path in entry.folder.iterdir()) == ["meta.json", "other.bin", "rows.arrow"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.lock"]


def _build_and_count(cache_dir: Path) -> None:
    def counted(folder: Path) -> dict:
        with (cache_dir / "builds").open("a") as handle:
            handle.write("x")
        return build(folder)

    assert get_or_build(cache_dir, "key", counted).report == {"rows": 3}


def test_processes_that_race_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    racers = [context.Process(target=_build_and_count, args=(tmp_path,)) for _ in range(6)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 6
    assert (tmp_path / "builds").read_text() == "x"
