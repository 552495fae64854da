"""Several processes give the scores of one, to the byte, and fail as one."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals import team
from posttrain.evals.harness_model import batches_of_hflm
from posttrain.evals.records import ScoreStore
from posttrain.recipes import launch

from ..recipes import warm
from .conftest import CHOICES, LINES, PROMPTS, write_rows

SUITE = """\
too_long: cut
tasks:
  - {task: multiple_choice, name: choices, data_files: {test: choices.jsonl}}
  - {task: exact_match, name: sums, data_files: {test: prompts.jsonl}, gen_kwargs: {max_gen_toks: 4}}
  - task: exact_match
    name: drawn
    data_files: {test: prompts.jsonl}
    gen_kwargs: {max_gen_toks: 4}
    sampling: {name: hot, temperature: 1.0, samples: 2}
  - {task: wikitext_like.yaml, name: rolling, data_files: {test: lines.jsonl}}
perplexity:
  - {name: lines, path: text.txt, sample_by: line}
batch_size: 3
"""
ROLLING = """\
task: wikitext_like
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: bits_per_byte}]
"""


def run(processes: int, model: Path, suite: Path, output: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    arguments = ["score", str(model), "--suite", str(suite), "-o", str(output), "--device", "cpu"]
    if processes == 1:
        return warm.run(*arguments)
    return subprocess.run(
        [sys.executable, "-m", "posttrain.recipes.cli", *arguments, "--processes", str(processes)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A suite of whatever passes are shared out for."""
    folder = tmp_path / "suite"
    folder.mkdir()
    write_rows(folder / "choices.jsonl", CHOICES * 4)
    write_rows(folder / "prompts.jsonl", PROMPTS * 3)
    write_rows(folder / "lines.jsonl", [{"text": line} for line in LINES])
    (folder / "text.txt").write_text("\n".join(LINES) + "\n")
    (folder / "wikitext_like.yaml").write_text(ROLLING)
    (folder / "all.yaml").write_text(SUITE)
    return folder / "all.yaml"


def scores(run: Path) -> list[Any]:
    """Returns what is written, but for what differs from one day to the next."""
    lines = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("seconds") > 0
        assert line.pop("created")
    samples = [(run / one.samples_name).read_bytes() for one in ScoreStore(run).load()]
    return [*(json.dumps(line) for line in lines), *samples]


@pytest.mark.slow
def test_two_processes_give_the_scores_of_one(tmp_path: Path, tiny_model_dir: Path, suite: Path):
    one, two = (run(count, tiny_model_dir, suite, tmp_path / str(count)) for count in (1, 2))
    assert one.returncode == two.returncode == 0, one.stderr + two.stderr
    found = [scores(tmp_path / count / tiny_model_dir.name) for count in "12"]
    assert len(found[0]) == 2 * 5
    assert found[0] == found[1]
    figures = re.compile(r", [\d.]+ s\)")
    assert figures.sub("", two.stdout) == figures.sub("", one.stdout)


@pytest.mark.slow
def test_a_process_that_fails_or_dies_is_one_error_and_leaves_nothing_half_written(
    tmp_path: Path, tiny_model_dir: Path, suite: Path
):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from posttrain.evals import forward\n"
        "    def fail(*_, **__):\n"
        "        if os.environ['FAULT'] == 'raise':\n"
        "            raise MemoryError('no more')\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    forward._padded = fail\n"
    )
    found = run(2, tiny_model_dir, suite, tmp_path / "o", PYTHONPATH=str(tmp_path), FAULT="raise")
    assert found.returncode == 1
    assert [line for line in found.stderr.splitlines() if "no more" in line] == [
        f"failed: {tiny_model_dir.name}/final: lines: process 1: MemoryError: no more"
    ]
    done = {score.task for score in ScoreStore(tmp_path / "o" / tiny_model_dir.name).load()}
    assert done == {"choices", "sums", "drawn", "rolling"}, "the other tasks are scored, in step"
    found = run(2, tiny_model_dir, suite, tmp_path / "o", PYTHONPATH=str(tmp_path), FAULT="die")
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert "process 1 was ended by signal 9" in found.stderr
    assert len(ScoreStore(tmp_path / "o" / tiny_model_dir.name).load()) == 4
    assert run(1, tiny_model_dir, suite, tmp_path / "o").returncode == 0
    assert len(ScoreStore(tmp_path / "o" / tiny_model_dir.name).load()) == 5


@pytest.mark.slow
def test_a_wrong_suite_is_told_once(tmp_path: Path, tiny_model_dir: Path, suite: Path):
    suite.write_text(suite.read_text().replace("multiple_choice", "multiple_choise"))
    found = run(2, tiny_model_dir, suite, tmp_path / "o")
    assert found.returncode == 2
    assert found.stderr.count("multiple_choise") == run(1, tiny_model_dir, suite, tmp_path / "o").stderr.count(
        "multiple_choise"
    )


def test_batches_are_shared_out_in_runs_of_like_cost():
    for sizes, count in (([5, 1, 1, 1, 1, 1], 2), ([1], 3), ([], 2), ([3] * 7, 3), ([0, 0], 2)):
        blocks = team._blocks(sizes, count)
        assert len(blocks) == count
        assert [number for block in blocks for number in block] == list(range(len(sizes)))
    assert [list(block) for block in team._blocks([5, 1, 1, 1, 1, 1], 2)] == [[0], [1, 2, 3, 4, 5]]


def test_every_batch_is_done_here_where_there_is_no_team(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    assert team.divided([1, 1, 1], lambda number: number * 2, seen.append) == [0, 2, 4]
    assert seen == [0, 1, 2]
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with team.joined() as found:
        assert found is None


class Other(team.Team):
    """Of two processes the first; what the other says is given."""

    def exchange(self, kind: str, value: Any) -> list[tuple[str, Any]]:
        return [(kind, value), OTHER.pop(0)]


OTHER: list[tuple[str, Any]] = []


def test_what_fails_in_another_process_fails_here():
    pair = Other(0, 2, 0)
    OTHER[:] = [("part", ({1: "b"}, None)), ("end", None)]
    assert pair.together(lambda: team.divided([1, 1], lambda _: "a")) == ["a", "b"]
    OTHER[:] = [("part", ({}, "MemoryError: no more")), ("end", None)]
    with pytest.raises(team.EvalError, match="process 1: MemoryError: no more"):
        pair.together(lambda: team.divided([1, 1], lambda _: "a"))
    OTHER[:] = [("end", "OSError: gone")]  # it never came to its part, and speaks no more
    with pytest.raises(team.EvalError, match="process 1: OSError: gone"):
        pair.together(lambda: team.divided([1, 1], lambda _: "a"))
    OTHER[:] = [("end", "OSError: gone")]
    with pytest.raises(team.EvalError, match="process 1: OSError: gone"):
        pair.together(lambda: "done")
    OTHER[:] = [("part", ({}, None))]
    with pytest.raises(team.EvalError, match="out of step"):
        pair.together(lambda: "done")


def test_requests_are_cut_into_the_batches_of_lm_eval():
    from lm_eval.models.utils import Collator

    rows = [[1, 2, n] for n in range(4)] + [[5, 6, 7, 8], [9, 9], [1, 3, 4], [2, 3, 4]]
    requests = [(("", ""), row[:-1], row[-1:]) for row in rows]
    collator = Collator(
        requests,
        sort_fn=lambda r: (-len(r[1] + r[2]), tuple(r[1] + r[2])),
        group_by="contexts",
        group_fn=lambda r: r[-2] + r[-1][:-1],
    )
    theirs = [[request[1] + request[2] for request in batch] for batch in collator.get_batched(n=2)]
    ours = batches_of_hflm(rows, 2)
    assert sorted(number for batch in ours for number in batch) == list(range(len(rows)))
    assert len(theirs) == len(ours)
    for firsts, batch in zip(theirs, ours, strict=True):
        assert {tuple(row[:-1]) for row in firsts} == {tuple(rows[number][:-1]) for number in batch}


def test_the_command_line_is_passed_on_without_the_number_of_processes():
    from posttrain.recipes.cli import _without_processes

    assert _without_processes(["score", "m", "--processes", "2", "--suite", "x"]) == ["score", "m", "--suite", "x"]
    assert _without_processes(["score", "--processes=2", "m"]) == ["score", "m"]
    command = launch.in_processes(2, ["score", "m"])
    assert command[-4:] == ["-m", "posttrain.recipes.cli", "score", "m"]
    assert command[command.index("--num_processes") + 1] == "2"
