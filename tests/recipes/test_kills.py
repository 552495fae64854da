"""A command that is killed before any of its changes to files ends, run again, with the same bits."""

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from posttrain.recipes.load import load
from posttrain.recipes.train import train

from . import tool_cases
from .conftest import EVERY_RECIPE, filled
from .kills import Command, Killer

TOOL_KILLS = int(os.environ.get("KILLS", "10"))  # of each data tool, whose runs are short, over the kinds of changes
KILLS = int(os.environ.get("KILLS", "2"))  # of each command; `make kills` is for more
# Unless told how often: a stage of each family, and what writes more than a model (a critic, a teacher's answers).
STAGES = (
    EVERY_RECIPE if "KILLS" in os.environ else ["pretrain", "dpo", "ppo", "classify", "distill", "pretrain mlm bert"]
)

SHORT = {"max_steps": 4, "save_steps": 2, "lr_scheduler_type": "constant", "per_device_train_batch_size": 2}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"lora": {"r": 2, "alpha": 4}},
    "dora": {"lora": {"r": 2, "alpha": 4, "use_dora": True}},
    "new tokens": {"lora": {"r": 2, "alpha": 4}, "model": {"name_or_path": "{model}", "chat_template": "llama3"}},
    "qlora": {"lora": {"r": 2, "alpha": 4}, "quantization": "nf4"},
}


@pytest.fixture(autouse=True)
def _counted(record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the summary of the tests say how many kills there were."""
    plain = Killer.kill

    def kill(self: Killer, at: int) -> None:
        plain(self, at)
        record_property("kill", self.events[at - 1].strip())

    monkeypatch.setattr(Killer, "kill", kill)


@pytest.fixture
def killer(tmp_path: Path, make_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Killer]:
    """Returns a function that makes a killer of a training run, its token cache included."""

    def make(stage: str, **options: Any) -> Killer:
        recipe = make_recipe(stage, **{**SHORT, **options})
        root = tmp_path / "root"
        (root / "run").mkdir(parents=True)
        monkeypatch.setattr("posttrain.recipes.job.cache_dir", lambda: root / "cache")
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        return Killer(Command(root, ["train", recipe, f"output_dir={root / 'run'}"]), scratch)

    return make


def named(runs: Killer, *ends: str) -> list[int]:
    """Returns the last event of each kind, by how its line ends."""
    return [max(n for n, event in enumerate(runs.events, 1) if event.strip().endswith(end)) for end in ends]


@pytest.mark.slow
def test_a_run_killed_between_its_last_checkpoint_and_its_end_takes_no_step_more(killer: Callable[..., Killer]) -> None:
    runs = killer("sft")
    for at in named(runs, "run/log.jsonl", "run/model.safetensors", "run/run.json"):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_ends_with_the_same_bits_wherever_it_was_killed(killer: Callable[..., Killer], stage: str) -> None:
    runs = killer(stage)
    for at in runs.chosen(KILLS):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_under_muon_ends_with_the_same_bits(killer: Callable[..., Killer]) -> None:
    runs = killer("sft", optim="muon", weight_decay=0.1)
    for at in runs.chosen(KILLS):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_preparation_ends_with_the_same_bits_wherever_it_was_killed(killer: Callable[..., Killer]) -> None:
    runs = killer("pretrain")
    changes = [at for at, event in enumerate(runs.events, 1) if " cache/" in event]
    assert len(changes) > 2
    for at in changes[:: max(1, len(changes) // KILLS)]:
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_kind_of_adapter_ends_with_the_same_bits(
    killer: Callable[..., Killer], tiny_model_dir: Path, adapter: str
) -> None:
    runs = killer("sft", sections=filled(ADAPTERS[adapter], model=str(tiny_model_dir)))
    for at in runs.chosen(KILLS):
        runs.kill(at)


TASK = Path(__file__).parents[2] / "evals" / "tasks" / "exact_match.yaml"
SUITE = """
tasks: [{task: exact.yaml, data_files: {test: held.jsonl}, gen_kwargs: {max_gen_toks: 4}}]
perplexity: [{name: held, path: text.jsonl}]
prompts: [{name: chat, path: chat.jsonl, max_new_tokens: 4}]
judges: [{judge: rules-not-a-judge, prompts: chat, rule: "rules.py:longer", pairs: all}]
"""


@pytest.fixture
def scored(tmp_path: Path, make_recipe: Callable[..., Path]) -> Path:
    """A folder with a run of two checkpoints and a suite that asks, measures and judges by a rule."""
    root = tmp_path / "root"
    root.mkdir()
    train(load(make_recipe("sft", **SHORT), [f"output_dir={root / 'run'}"]))
    (root / "suite.yaml").write_text(SUITE)
    (root / "exact.yaml").write_text(f"include: {TASK}\ntask: exact\n")
    (root / "held.jsonl").write_text('{"prompt": "7?", "answer": "7!"}\n')
    (root / "text.jsonl").write_text('{"text": "It is what it is."}\n')
    (root / "chat.jsonl").write_text('{"prompt": "What is 1+1?"}\n{"prompt": "Who?"}\n')
    (root / "rules.py").write_text("def longer(prompt, answer, **_):\n    return float(len(answer))\n")
    (tmp_path / "scratch").mkdir()
    return root


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_scoring_and_judging_write_the_same_wherever_they_were_killed(scored: Path, tmp_path: Path) -> None:
    arguments = ["score", scored / "run", "--suite", scored / "suite.yaml"]
    runs = Killer(Command(scored, arguments), tmp_path / "scratch")
    for at in [*named(runs, "scores.jsonl", "judgments.jsonl"), *runs.chosen(2 * KILLS)]:
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_report_is_the_same_wherever_it_was_killed(scored: Path, tmp_path: Path) -> None:
    from posttrain.evals.score import score

    score([scored / "run"], scored / "suite.yaml", device="cpu")
    runs = Killer(Command(scored, ["report", scored / "run", "-o", scored / "out"]), tmp_path / "scratch")
    for at in runs.chosen(KILLS):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_pipeline_ends_the_same_wherever_it_was_killed(
    scored: Path, make_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(scored / "cache"))
    shutil.rmtree(scored / "run")
    (scored / "suite.yaml").write_text(SUITE.partition("judges:")[0])  # its first model has nobody to be compared with
    steps = []
    for name in ("pretrain", "sft"):
        recipe = yaml.safe_load(make_recipe(name, name, **SHORT).read_text())
        recipe |= {"score": {"suite": str(scored / "suite.yaml"), "every": "end"}}
        if steps:
            recipe["model"]["name_or_path"] = "@pretrain"
        (scored / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
        steps.append({"name": name, "recipe": f"{name}.yaml"})
    (scored / "all.yaml").write_text(yaml.safe_dump({"steps": steps, "output_dir": str(scored / "out")}))
    timed = ("leaderboard.html", "leaderboard.md", "leaderboard.csv", ".report.json")  # they show how long answers took
    runs = Killer(Command(scored, ["run", scored / "all.yaml"], timed), tmp_path / "scratch")
    for at in runs.chosen(KILLS):
        runs.kill(at)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "more"), tool_cases.CALLS, ids=lambda value: "".join(value))
def test_a_data_tool_ends_with_the_same_bytes_wherever_it_was_killed(
    tmp_path: Path, exact_model_dir: Path, monkeypatch: pytest.MonkeyPatch, name: str, more: Sequence[str]
) -> None:
    monkeypatch.setattr("posttrain.data_tools.row_tool.BLOCK_ROWS", 16)
    root = tmp_path / "root"
    (root / "out").mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    rows = tool_cases.write_rows(root / "rows.jsonl", [*tool_cases.rows_of(name), b"{"])  # one is left out
    needs = tool_cases.needs(name, tmp_path, lambda: exact_model_dir)
    arguments = ["data", name, rows, *needs, *more, "-o", root / "out"]
    runs = Killer(Command(root, arguments, exact=True), tmp_path / "scratch")
    assert not [path for path in root.rglob("*") if path.name.startswith(".work")]
    for at in runs.chosen(TOOL_KILLS, kinds=True):
        runs.kill(at)
