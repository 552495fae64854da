"""A study trains every arm, size and seed once, and says of the arms only what the seeds and items bear out."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import SpecError
from posttrain.evals import runs
from posttrain.evals.records import Metric, Score, ScoreStore
from posttrain.evals.report import items
from posttrain.evals.stats.compare import Hypothesis, judge, seeded_difference
from posttrain.recipes import launch
from posttrain.recipes.forks import Forks
from posttrain.recipes.pipeline import plan
from posttrain.recipes.study import (
    STATE,
    StudyTime,
    TaskOutcome,
    _by_item,
    _report,
    _scores,
    check_study,
    fit,
    grid,
    load_study,
    run_study,
)

from . import warm

STUDY = {
    "recipe": "pretrain.yaml",
    "steps": [{"name": "tokenizer", "tool": "tokenizer", "args": {"sources": ["sums.jsonl"], "vocab_size": 280}}],
    "arms": {"sums": [], "sums_again": ["trainer.logging_steps=2"], "noise": ["data.train.path=noise.jsonl"]},
    "sizes": {"short": ["trainer.max_steps=3"], "long": ["trainer.max_steps=12"]},
    "suite": "suite.yaml",
    "output_dir": "out",
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sums to learn, noise to learn in their place, and held-out sums."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    texts = {
        "sums.jsonl": [f"{a} and {b} make {a + b}." for a in range(20) for b in range(10)],
        "noise.jsonl": ["qzx jkv wvy " * (number % 5 + 1) for number in range(200)],
        "held.jsonl": [f"{a} and {b} make {a + b}." for a in range(20, 30) for b in range(3)],
    }
    for name, lines in texts.items():
        (tmp_path / name).write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    trainer = {"max_length": 32, "max_steps": 4, "logging_steps": 4, "learning_rate": 0.01}
    trainer |= {"per_device_train_batch_size": 4, "gradient_checkpointing": False}
    recipe = {"stage": "pretrain", "model": {"config": config, "tokenizer": "@tokenizer"}, "output_dir": "unused"}
    recipe |= {"data": {"train": {"path": "sums.jsonl"}}, "trainer": trainer}
    suite = {"perplexity": [{"name": "sums", "path": "held.jsonl", "text": "{{ text }}"}]}
    for name, value in {"pretrain.yaml": recipe, "suite.yaml": suite, "study.yaml": STUDY}.items():
        (tmp_path / name).write_text(yaml.safe_dump(value, sort_keys=False))
    return tmp_path / "study.yaml"


def change(study: Path, **keys: object) -> Path:
    study.write_text(yaml.safe_dump(STUDY | keys, sort_keys=False))
    return study


def test_every_arm_size_and_seed_is_a_cell_and_a_seed_comes_whole(study: Path) -> None:
    spec, document = load_study(study)
    pipeline, _ = grid(spec, document, spec.seeds)
    names = [step.name for step in pipeline.steps]
    assert names[0] == "tokenizer"
    assert names[1:7] == [f"{arm}.{size}.1" for size in ("short", "long") for arm in ("sums", "sums_again", "noise")]
    assert len(names) == 1 + 3 * 2 * 3
    noise = next(step for step in pipeline.steps if step.name == "noise.long.2")
    assert noise.overrides == [
        "trainer.max_steps=12",
        "data.train.path=noise.jsonl",
        "trainer.seed=2",
        "data.seed=2",
    ]


def test_the_next_seed_finds_the_steps_of_the_first_unchanged(study: Path) -> None:
    """A tool that reads an earlier step was run anew for the second seed, and all cells with it."""
    rows = {"name": "rows", "tool": "sample", "args": {"sources": ["sums.jsonl"], "tokens": 100}}
    tokenizer = {"name": "tokenizer", "tool": "tokenizer", "args": {"sources": ["@rows"], "vocab_size": 280}}
    spec, document = load_study(change(study, steps=[rows, tokenizer]))
    keys = []
    for seeds in ([1], [1, 2]):
        pipeline, made = grid(spec, document, seeds)
        keys.append({name: one.key for name, one in plan(made, pipeline).items()})
    assert keys[0].items() <= keys[1].items()


def test_a_step_that_names_sizes_and_seeds_is_made_for_each_and_arms_take_their_own(study: Path) -> None:
    step: dict[str, Any] = {"name": "drawn-{size}-{seed}", "tool": "sample"}
    step["args"] = {"sources": "sums.jsonl", "tokens": "{size}", "seed": "{seed}"}
    arms = {"all": [], "drawn": ["data.train.path=@drawn-{size}-{seed}/sums.jsonl"]}
    change(study, steps=[*STUDY["steps"], step], arms=arms, sizes={"20": [], "40": []})
    spec, document = load_study(study)
    steps = {step.name: step for step in grid(spec, document, [1, 2])[0].steps}
    assert [name for name in steps if "-" in name] == ["drawn-20-1", "drawn-20-2", "drawn-40-1", "drawn-40-2"]
    assert steps["drawn-40-2"].args == {"sources": "sums.jsonl", "tokens": 40, "seed": 2}
    assert steps["drawn.40.2"].overrides[0] == "data.train.path=@drawn-40-2/sums.jsonl"
    check_study(study, [])
    change(study, steps=[*STUDY["steps"], step | {"name": "drawn-{size}"}], arms=arms)
    with pytest.raises(SpecError, match=r"study.yaml:\d+: steps\[1\].name: the step uses \{seed\}"):
        check_study(study, [])


def test_a_check_says_how_many_cells_there_are_and_what_they_can_show(study: Path) -> None:
    said = check_study(study, [])
    assert said[0].startswith("3 arms x 2 sizes x 3 seeds: 18 cells; 4 comparisons with sums")
    assert "times the standard deviation between seeds" in said[1]
    assert "no verdict" in check_study(study, ["seeds=[1, 2]"])[1]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"arms": {"sums": []}}, "arms"),
        ({"baseline": "nothing"}, "no arm 'nothing'; arms: sums, sums_again, noise"),
        ({"seeds": [1, 1, 2]}, "one stands twice"),
        ({"arms": {"a": [], "b.c": []}}, "arms"),
        (
            {"arms": {"a": [], "b": ["trainer.lerning_rate=1"]}},
            r"study.yaml:12 \(trainer.lerning_rate=1\): ",
        ),
        ({"sizes": {"a": ["trainer"]}}, r"study.yaml:17 \(trainer\): is not of the form key=value"),
        ({"suite": "nothing.yaml"}, "no suite 'nothing.yaml'"),
        ({"size": {}}, "did you mean 'sizes'"),
    ],
)
def test_a_wrong_study_is_refused_before_anything_runs(study: Path, keys: dict[str, object], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        run_study(change(study, **keys))
    assert not Path("out").exists() or not any(Path("out").glob("*.1"))


@pytest.mark.parametrize("budget", [float("nan"), float("inf"), 0, -1])
def test_a_budget_is_a_number_of_hours(study: Path, budget: float) -> None:
    with pytest.raises(InputError, match="number of hours above 0"):
        run_study(study, budget=budget)


def test_a_budget_buys_the_first_sizes_from_three_seeds_and_then_more_seeds(study: Path) -> None:
    """Three arms: a seed of the short size takes .3 h, of the long one 1.2 h; the step took .1 h."""
    spec, _ = load_study(change(study, seeds=[1, 2, 3, 4, 5, 6]))
    seconds = {"steps": 360.0, "first cell of short": 360.0, "first cell of long": 1440.0, "seed 1": 50.0}
    spent = StudyTime(seconds, [*seconds])

    def bought(budget: float) -> tuple[int, list[str]]:
        kept = fit(spec, spent, budget)
        return len(kept.seeds), [*kept.sizes]

    assert bought(100) == (6, ["short", "long"])
    assert bought(0.1 + 3 * 1.5 + 0.01) == (3, ["short", "long"])
    assert bought(0.1 + 3 * 1.5 - 0.01) == (6, ["short"])
    assert bought(0.1 + 0.4 + 3 * 0.3 + 0.01) == (3, ["short"]), "the first cell of the long size has been paid for"
    with pytest.raises(InputError, match=r"3 seeds of the size 'short': they take 1.4 h"):
        bought(1)


@pytest.mark.parametrize(("sizes", "curves"), [(["100", "400"], 3), (["short", "long"], 0), (["100"], 0)])
def test_arms_are_curves_over_sizes_that_are_numbers(study: Path, sizes: list[str], curves: int) -> None:
    spec, document = load_study(change(study, sizes={size: [] for size in sizes}))
    draw = np.random.default_rng(0)
    found = []
    for size in sizes:
        values = {arm: list(draw.normal(1, 0.1, 3)) for arm in spec.arms}
        against = {
            arm: Hypothesis(seeded_difference([[x] for x in values[arm]], [[x] for x in values["sums"]]))
            for arm in spec.others
        }
        found.append(TaskOutcome("solutions", size, "bits_per_byte", values, judge(against), by_items=False))
    _report(spec, document, spec.seeds, found).write(Path("out"))
    page = Path("out/report.html").read_text()
    assert page.count('class="line"') == curves
    assert page.count("<svg") == (1 if curves else len(sizes)), "else bars"
    assert ("noise, 400: " in page) == bool(curves), "each point says its figure"
    tables = json.loads(Path("out/report.json").read_text())["tables"]
    for column, one in enumerate(found if len(sizes) > 1 else [], start=1):
        (best,) = [row[0] for row in tables[0]["rows"] if row[column].endswith(" *")]
        assert best == max(one.values, key=lambda arm: sum(one.values[arm])), "more is better of these"


def test_only_scores_of_the_suite_as_it_stands_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever suite they were asked under, and whatever was asked since."""
    monkeypatch.setattr(runs, "find_targets", lambda *_, **__: ([SimpleNamespace(model_hash="m")], []))
    lines = [
        Score(
            *("run", "", "final", 1, "w", suite, "", task, task_hash, 0, (Metric("acc", value, 0.1, 9, True),)),
            *(None, None, None, {}, 1.0, "", (), None, "m"),
        )
        for suite, task, task_hash, value in [
            ("other", "arc", "whole", 0.5),
            ("mine", "arc", "ten items", 0.9),
            ("mine", "gone", "g", 0.1),
        ]
    ]
    for line in lines:
        ScoreStore(tmp_path).append(line)
    found = _scores(tmp_path, {"arc": "whole", "piqa": "p"})
    assert {task: score.metrics[0].value for task, score in found.items()} == {"arc": 0.5}


def test_items_that_are_not_independent_are_compared_by_cluster(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, _ = load_study(study)
    score = SimpleNamespace(samples_name="samples", metrics=[SimpleNamespace(name="win_rate", value=0.5)])
    for arm in loaded.arms:
        for seed in loaded.seeds:
            (Path("out") / f"{arm}.short.{seed}").mkdir(parents=True)
            (Path("out") / f"{arm}.short.{seed}" / "samples").touch()
    found = items.Items(("a:0", "a:1", "b:0"), np.array([0.0, 1.0, 0.5]), ("a", "a", "b"))
    monkeypatch.setattr(items, "read_items", lambda *_: found)
    read: Any = _by_item(loaded, "short", loaded.seeds, {arm: cast(Any, [score] * 3) for arm in loaded.arms})
    values, clusters = read
    assert clusters == ("a", "a", "b")
    assert [len(of_arm) for of_arm in values.values()] == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_tells_noise_from_sums_and_nothing_from_nothing(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "run", warm.launched)
    monkeypatch.setattr(Forks, "prepare", lambda self: None)
    change(study, sizes={"long": ["trainer.max_steps=12"]})
    said: list[str] = []

    def killed(line: str) -> None:
        said.append(line)
        if line == "sums_again.long.2: running":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study, say=killed)
    assert said.index("sums.long.1: running") < said.index(next(line for line in said if "a seed takes about" in line))
    spent = json.loads((Path("out") / STATE).read_text())
    assert spent["done"] == ["steps", "first cell of long", "seed 1"]
    assert spent["seconds"]["seed 2"] > 0, "what the killed seed has taken is not forgotten"

    (found,) = run_study(study, say=said.append)
    assert found.by_items
    assert [len(values) for values in found.values.values()] == [3, 3, 3]
    assert found.values["sums"] == found.values["sums_again"]
    noise, again = found.comparisons["noise"], found.comparisons["sums_again"]
    assert noise.verdict == "worse"
    assert noise.difference.low is not None
    assert noise.difference.low > 0
    assert again.verdict == "no verdict"
    assert again.difference.value == 0
    page = json.loads(Path("out/report.json").read_text())
    assert "sums, long: noise is worse than sums: +" in page["summary"][0]
    scored = Path("out/noise.long.3/scores.jsonl").read_text()
    value = json.loads(scored.splitlines()[-1])["metrics"][0]["value"]
    assert found.values["noise"][2] == value

    said.clear()
    run_study(study, say=said.append)
    assert not any(line.endswith("running") for line in said)
    assert said[-1] == "out: every cell is unchanged and scored; nothing to do"
