"""The tasks of datatrove's executors leave what a tool alone leaves; what a task left undone is an error."""

import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools import row_tool
from posttrain.data_tools.convert import Convert
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.row_tool import Blocks
from posttrain.data_tools.spec import SourceSpec
from posttrain.recipes import pipeline as pipelines
from posttrain.recipes.tools import load_tool, run_command

from .tool_cases import needs, row_tools, rows_of, write_rows


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 8)


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    """A file, and a folder of five."""
    folder = tmp_path / "many"
    folder.mkdir()
    rows = rows_of("clean", 90)
    for number in range(5):
        write_rows(folder / f"{number}.jsonl", rows[number * 10 : number * 10 + 10])
    return [write_rows(tmp_path / "rows.jsonl", [*rows[45:], b"{"]), folder]


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def call(name: str, *arguments: Any) -> None:
    with pytest.raises(SystemExit, match="0"):
        run_command(name, *map(str, arguments))


@pytest.mark.parametrize("tasks", [4, 9])
def test_tasks_leave_what_the_tool_alone_leaves(tmp_path: Path, sources: list[Path], tasks: int) -> None:
    """Four tasks have files to themselves, of nine each reads all files for its blocks."""
    shared = ("--max-bad-share", "0.5", "--held-out", "0.2")
    call("convert", *sources, *shared, "-o", tmp_path / "alone")
    options = (
        "--executor",
        "local",
        "--executor-tasks",
        tasks,
        "--executor-options",
        "{workers: 1}",
    )  # in this process
    call("convert", *sources, *shared, *options, "-o", tmp_path / "tasks")
    assert bytes_of(tmp_path / "tasks") == bytes_of(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("name", row_tools())
def test_every_row_tool_gives_the_same_under_four_processes(
    tmp_path: Path, sources: list[Path], name: str, exact_model_dir: Path
) -> None:
    arguments = [*sources, "--max-bad-share", "0.5", *needs(name, tmp_path, lambda: exact_model_dir)]
    call(name, *arguments, "-o", tmp_path / "alone")
    call(name, *arguments, "--executor", "local", "--executor-tasks", 4, "-o", tmp_path / "tasks")
    assert bytes_of(tmp_path / "tasks") == bytes_of(tmp_path / "alone")


@pytest.mark.parametrize("tasks", [1, 3, 4, 50])
def test_each_block_is_one_task_s(tmp_path: Path, sources: list[Path], tasks: int) -> None:
    specs = [SourceSpec(path=str(path)) for path in sources]
    blocks = Blocks(specs, Convert(sources=specs).decider, tmp_path / "work", True)
    done = [blocks(task, tasks)["rows"] for task in range(tasks)]
    assert sum(done) == sum(blocks.gather(number).rows for number in (0, 1)) == 46 + 50
    assert all(done) == (tasks < 10)  # else there is not a block for each
    assert blocks(0, tasks)["rows"] == done[0]  # once more: nothing is decided on again, and as much is counted


def test_what_a_task_left_undone_is_an_error_and_not_a_shorter_file(tmp_path: Path, sources: list[Path]) -> None:
    specs = [SourceSpec(path=str(path)) for path in sources]
    blocks = Blocks(specs, Convert(sources=specs).decider, tmp_path / "work", True)
    for task in (0, 1, 3):
        blocks(task, 4)
    with pytest.raises(PosttrainError, match=r"0 of an unknown number of rows of .*many/1.jsonl were decided on"):
        blocks.gather(1)
    shutil.rmtree(tmp_path / "work")
    for task in (0, 1, 2):
        blocks(task, 30)
    with pytest.raises(PosttrainError, match=r"16 of 46 rows of .*rows.jsonl were decided on"):
        blocks.gather(0)


def test_a_task_that_fails_is_one_error_and_the_next_call_goes_on(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [SourceSpec(path=str(path)) for path in sources]
    tool = Convert(
        sources=specs, executor="local", executor_tasks=3, executor_options={"workers": 1}, max_bad_share=0.5
    )
    settle, calls = row_tool.settle, []

    def failing(block: Any, decide: Any) -> Any:
        calls.append(block)
        if len(calls) == 4:
            raise DataError("is broken", where="x.jsonl", hint="mend it")
        return settle(block, decide)

    monkeypatch.setattr(row_tool, "settle", failing)
    with pytest.raises(PosttrainError, match=r"logs: a task failed: x.jsonl: is broken; mend it; run the same command"):
        tool.run(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.jsonl"))
    tool.run(tmp_path / "out")
    assert len(calls) == 4 + 6 + 10 - 3  # blocks of 46 rows, and of five files of 10


def test_options_are_those_of_datatrove(tmp_path: Path, sources: list[Path]) -> None:
    specs = [SourceSpec(path=str(path)) for path in sources]
    with pytest.raises(DataError, match=r"executor_options: .*unexpected keyword argument 'worker'"):
        Convert(sources=specs, executor="local", executor_options={"worker": 2}).run(tmp_path / "out")
    with pytest.raises(DataError, match=r"executor_options: .*missing 2 required .*'time' and 'partition'"):
        Convert(sources=specs, executor="slurm").run(tmp_path / "out")


@pytest.mark.slow
def test_slurm_is_given_an_array_of_the_tasks(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for sbatch runs the script that datatrove writes once for each number of the array, as Slurm would."""
    module = f'#!/bin/bash\nexec {sys.executable} -m datatrove.tools.%s "$@"\n'
    commands: dict[str, str] = {
        "sbatch": (
            '#!/bin/bash\nscript="${@: -1}"\ncp "$script" "$KEPT/$(basename $script)"\n'
            "last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $script)\n"
            "grep -q '^#SBATCH --wait$' $script || exit 1\n"
            "for n in $(seq 0 $last); do SLURM_ARRAY_TASK_ID=$n SLURM_NODELIST=here bash $script >&2 || exit 1; done\n"
            "echo Submitted batch job 17\n"
        ),
        "srun": '#!/bin/bash\nwhile [[ $1 == -* ]]; do [[ $1 == -n ]] && shift; shift; done\nexec "$@"\n',
        "scontrol": "#!/bin/bash\necho here\n",
        "launch_pickled_pipeline": module % "launch_pickled_pipeline",
        "merge_stats": module % "merge_stats",
    }
    (tmp_path / "bin").mkdir()
    (tmp_path / "kept").mkdir()
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KEPT", str(tmp_path / "kept"))
    monkeypatch.setattr(row_tool, "BLOCK_ROWS", 4096)  # the jobs are processes of their own
    call("convert", *sources, "--max-bad-share", "0.5", "-o", tmp_path / "alone")
    options = ("--executor", "slurm", "--executor-tasks", 3, "--executor-options", "{partition: cpu, time: '1:00:00'}")
    call("convert", *sources, "--max-bad-share", "0.5", *options, "-o", tmp_path / "tasks")
    assert bytes_of(tmp_path / "tasks") == bytes_of(tmp_path / "alone")
    scripts = [path.read_text() for path in (tmp_path / "kept").iterdir()]
    assert any("#SBATCH --array=0-2\n" in script and "#SBATCH --partition=cpu\n" in script for script in scripts)


def test_a_tool_that_other_processes_cannot_import_is_refused(tmp_path: Path, sources: list[Path]) -> None:
    """They would wait for each other for ever."""
    (tmp_path / "own.py").write_text(
        'from posttrain.data_tools.convert import Convert\n\n\nclass Own(Convert):\n    """Converts."""\n'
    )
    own = f"{tmp_path / 'own.py'}:Own"
    with pytest.raises(DataError, match="executor: other processes cannot import this tool"):
        run_command(own, str(sources[1]), "--executor", "local", "-o", str(tmp_path / "out"))
    call(own, sources[1], "-o", tmp_path / "out")


def test_without_datatrove_it_is_said_what_to_install(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "posttrain.data_tools.executors", None)
    specs = [SourceSpec(path=str(path)) for path in sources]
    with pytest.raises(DataError, match=r"executor: needs the package .*pip install 'posttrain\[datatrove\]'"):
        Convert(sources=specs, executor="local").run(tmp_path / "out")
    assert load_tool("convert") is Convert


def test_the_executor_is_no_part_of_what_is_done(sources: list[Path]) -> None:
    """Neither the report nor the name of the folder of work tells who decided."""
    specs = [SourceSpec(path=str(path)) for path in sources]
    dumps: list[Callable[..., Any]] = [
        Convert(sources=specs).model_dump_json,
        Convert(sources=specs, executor="local", executor_tasks=4, executor_options={"workers": 1}).model_dump_json,
    ]
    assert dumps[0]() == dumps[1]()


@pytest.mark.slow
def test_a_pipeline_of_tools_gives_the_same_rows_under_four_tasks(
    tmp_path: Path, sources: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From raw rows to scrubbed ones, each step under datatrove's local executor."""
    monkeypatch.chdir(tmp_path)
    tools: list[tuple[str, dict[str, Any]]] = [
        ("convert", {"sources": [*map(str, sources)], "max_bad_share": 0.5}),
        ("clean", {"sources": ["@convert"], "presets": ["c4"]}),
        ("dedup", {"sources": ["@clean"]}),
        ("scrub", {"sources": ["@dedup"]}),
    ]
    for folder, executor in (("alone", {}), ("tasks", {"executor": "local", "executor_tasks": 4})):
        steps = [{"name": tool, "tool": tool, "args": args | executor} for tool, args in tools]
        (tmp_path / f"{folder}.yaml").write_text(yaml.safe_dump({"steps": steps, "output_dir": "out"}))
        assert pipelines.run(tmp_path / f"{folder}.yaml")
        (tmp_path / "out").rename(tmp_path / folder)
    for tool, _ in tools:
        found = [bytes_of(tmp_path / folder / tool) for folder in ("alone", "tasks")]
        assert found[0] == found[1]
        assert any(name.endswith(".jsonl") and rows for name, rows in found[0].items())
