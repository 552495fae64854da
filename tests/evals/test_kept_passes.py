"""A task that was killed goes on where it stood, to the figures that it would have had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from posttrain.evals import kept_passes, shared_context
from posttrain.evals.harness_model import HarnessModel
from posttrain.evals.records import ScoreStore
from posttrain.evals.score import score

from .conftest import CHOICES, PROMPTS, write_rows

SUITE = """
batch_size: 1
tasks:
  - {task: multiple_choice, name: choices, data_files: {test: choices.jsonl}}
  - {task: exact_match, name: sums, data_files: {test: prompts.jsonl}, gen_kwargs: {max_gen_toks: 4}}
  - {task: exact_match, name: drawn, data_files: {test: prompts.jsonl}, gen_kwargs: {max_gen_toks: 4},
     sampling: {name: warm, temperature: 1.0, samples: 2, k: [1]}}
"""
PASSES = len(CHOICES) + len(PROMPTS) + 2 * len(PROMPTS)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "suite"
    folder.mkdir()
    write_rows(folder / "choices.jsonl", CHOICES)
    write_rows(folder / "prompts.jsonl", PROMPTS)
    (folder / "toy.yaml").write_text(SUITE)
    return folder / "toy.yaml"


class Counter:
    """Counts passes, and interrupts in one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.count, self.fatal = 0, -1
        monkeypatch.setattr(shared_context, "BUDGET", 16)
        monkeypatch.setattr(shared_context, "_run", self.around(shared_context._run))
        monkeypatch.setattr(HarnessModel, "_write", self.around(HarnessModel._write))

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            if self.count == self.fatal:
                raise KeyboardInterrupt
            self.count += 1
            return function(*args, **options)

        return counted


def outcome(run: Path) -> dict[str, Any]:
    """Returns what was found, without times."""
    return {
        s.task: (s.metrics, s.detail, pq.read_table(run / s.samples_name).to_pylist()) for s in ScoreStore(run).load()
    }


def logs(run: Path) -> list[Path]:
    return list((run / ".scoring").glob("passes-*"))


@pytest.mark.parametrize("fatal", [2, len(CHOICES) + 2, PASSES - 1])
def test_no_pass_is_run_twice_and_all_figures_are_the_same(
    fatal: int, make_run: Callable[..., Path], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = make_run((1,), name="whole"), make_run((1,), name="killed")
    counter = Counter(monkeypatch)
    score([whole], suite, device="cpu")
    passes = counter.count
    assert passes >= PASSES
    counter.count, counter.fatal = 0, fatal
    with pytest.raises(KeyboardInterrupt):
        score([killed], suite, device="cpu")
    assert logs(killed)
    counter.fatal = -1
    score([killed], suite, device="cpu")
    assert counter.count == passes
    assert outcome(killed) == outcome(whole)
    assert logs(killed) == logs(whole) == []


def test_passes_under_other_versions_are_run_again(
    make_run: Callable[..., Path], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.evals import definitions

    run, counter = make_run((1,)), Counter(monkeypatch)
    counter.fatal = 3
    with pytest.raises(KeyboardInterrupt):
        score([run], suite, device="cpu")
    counter.count, counter.fatal = 0, -1
    monkeypatch.setattr(definitions, "versions", lambda: {"torch": "another"})
    score([run], suite, device="cpu")
    assert counter.count >= PASSES


def test_what_torch_draws_is_not_kept_as_it_is_another_answer_each_time(
    make_run: Callable[..., Path], suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = "task: exact_match, name: sums, data_files: {test: prompts.jsonl}"
    how = "gen_kwargs: {max_gen_toks: 4, do_sample: true, temperature: 1.0}"
    suite.write_text(f"batch_size: 1\ntasks: [{{{task}, {how}}}]\n")
    run, counter = make_run((1,)), Counter(monkeypatch)
    counter.fatal = 3
    with pytest.raises(KeyboardInterrupt):
        score([run], suite, device="cpu")
    assert (counter.count, logs(run)) == (3, [])


def test_what_is_no_number_is_not_kept_and_what_is_damaged_run_again(tmp_path: Path) -> None:
    kept = kept_passes.KeptPasses(tmp_path, "task")
    for value in (float("nan"), 1.5):
        kept.once(value == value, lambda value=value: [value])
    [log] = logs(tmp_path)
    log.write_text('damaged\n{"pass": 1}\n' + log.read_text())
    again = kept_passes.KeptPasses(tmp_path, "task")
    assert again.once(False, lambda: "anew") == "anew"
    assert again.once(True, lambda: "anew") == [1.5]
