"""A pipeline does what has changed, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from posttrain.data_tools.errors import DataError, SpecError
from posttrain.recipes import launch
from posttrain.recipes.errors import RecipeError, RunError
from posttrain.recipes.forks import Forks
from posttrain.recipes.load import load
from posttrain.recipes.pipeline import STATE, _is_done, load_pipeline, plan, run
from posttrain.recipes.scoring import _suite_of

from . import warm

TRAINER = {
    "max_length": 32,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer, a pretraining and a fine-tuning step, each model scored on one held-out question."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text(
        "".join(json.dumps({"text": f"{n} and {n} make {2 * n}."}) + "\n" for n in range(60))
    )
    turns = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(60)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps({"messages": turn}) + "\n" for turn in turns))
    (tmp_path / "held.jsonl").write_text('{"prompt": "7?", "answer": "7!"}\n')
    files = {
        "suite.yaml": {
            "tasks": [{"task": "exact.yaml", "data_files": {"test": "held.jsonl"}, "gen_kwargs": {"max_gen_toks": 8}}]
        },
        "pretrain.yaml": {
            "stage": "pretrain",
            "model": {"config": CONFIG, "tokenizer": "@tokenizer"},
            "data": {"train": {"path": "text.jsonl"}},
            "trainer": TRAINER,
            "score": {"suite": "suite.yaml", "every": "checkpoint", "start": True},
            "output_dir": "unused",
        },
        "sft.yaml": {
            "stage": "sft",
            "model": {"name_or_path": "@pretrain", "chat_template": "chatml"},
            "data": {"train": {"path": "chat.jsonl"}},
            "trainer": TRAINER,
            "score": {"suite": "suite.yaml"},
            "output_dir": "unused",
        },
        "pipeline.yaml": {
            "steps": [
                {"name": "tokenizer", "tool": "tokenizer", "args": {"sources": ["text.jsonl"], "vocab_size": 280}},
                {"name": "pretrain", "recipe": "pretrain.yaml"},
                {"name": "sft", "recipe": "sft.yaml"},
            ],
            "parity": ["sft"],
            "output_dir": "out",
        },
    }
    for name, value in files.items():
        (tmp_path / name).write_text(yaml.safe_dump(value))
    task = Path(__file__).parents[2] / "evals" / "tasks" / "exact_match.yaml"
    (tmp_path / "exact.yaml").write_text(f"include: {task}\ntask: exact\n")
    return tmp_path / "pipeline.yaml"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_only_what_has_changed_is_done_again_and_nothing_is_lost(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "run", warm.launched)
    monkeypatch.setattr(Forks, "prepare", lambda self: None)
    said: list[str] = []
    assert run(pipeline, say=said.append)
    board = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    rows = json.dumps(board)
    assert all(name in rows for name in ("checkpoint-0", "checkpoint-2", "checkpoint-4", "sft"))
    scores = (tmp_path / "out" / "pretrain" / "scores.jsonl").read_text().splitlines()
    assert len(scores) == 3, "checkpoint-4 and the final model have the same weights"

    assert [(row["parity"][0]["verdict"] if row["parity"] else None) for row in board["rows"]].count("same") == 1

    said.clear()
    assert not run(pipeline, say=said.append)
    assert said[-1] == "out: every step is unchanged and every checkpoint scored; nothing to do"

    record = tmp_path / "out" / "sft" / "parity.json"
    kept = record.read_text()
    record.write_text(kept.replace('"same"', '"differs"'))
    with pytest.raises(RunError, match="sft: transformers reads another model"):
        run(pipeline, say=said.append)
    assert "differs" in (tmp_path / "out" / "leaderboard.md").read_text(), "the report is written all the same"
    record.write_text(kept)
    assert run(pipeline, say=said.append), "the report alone"

    said.clear()
    before = (tmp_path / "out" / "sft" / "model.safetensors").read_bytes()
    assert run(pipeline, ["sft.trainer.learning_rate=0.05"], say=said.append)
    assert "pretrain: unchanged, skipped" in said
    assert any(line.startswith("sft: its inputs have changed; the earlier output is now ") for line in said)
    assert (tmp_path / "out" / "sft.old-1" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / "sft" / "model.safetensors").read_bytes() != before

    copy = shutil.copytree(tmp_path, tmp_path.parent / "copy")
    monkeypatch.chdir(copy)
    said.clear()
    assert not run(copy / "pipeline.yaml", ["sft.trainer.learning_rate=0.05"], say=said.append)
    assert said[-1] == "out: every step is unchanged and every checkpoint scored; nothing to do"


def keys(pipeline: Path) -> dict[str, str]:
    """The keys of all steps, planned in the folder that the pipeline lies in."""
    spec, document = load_pipeline(pipeline)
    return {name: planned.key for name, planned in plan(document, spec).items()}


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_pipeline_that_lies_elsewhere_is_the_same_and_one_of_other_files_is_not(
    pipeline: Path, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, how: Callable[..., Path]
) -> None:
    value = yaml.safe_load(pipeline.read_text())
    shutil.copytree(tiny_model_dir, tmp_path / "base")
    value["steps"][2]["overrides"] = ["model.name_or_path=base", "data.train.path=chat.jsonl"]
    pipeline.write_text(yaml.safe_dump(value))
    before = keys(pipeline)
    elsewhere = tmp_path.parent / "elsewhere" / how.__name__
    elsewhere.parent.mkdir(exist_ok=True)
    how(tmp_path, elsewhere)
    monkeypatch.chdir(elsewhere)
    moved = elsewhere / "pipeline.yaml"
    assert keys(moved) == before
    (elsewhere / "base" / "README.md").write_text("words")
    assert keys(moved) == before
    edit = (elsewhere / "base" / "config.json").read_text().replace("1e-06", "1e-05")
    (elsewhere / "base" / "config.json").write_text(edit)
    assert {name for name, key in keys(moved).items() if key != before[name]} == {"sft"}
    with (elsewhere / "text.jsonl").open("a") as rows:
        rows.write('{"text": "One more."}\n')
    assert {name for name, key in keys(moved).items() if key != before[name]} == {"tokenizer", "pretrain", "sft"}


@pytest.mark.parametrize("torn", ["", '{"key": "a', "[]"])
def test_a_damaged_state_of_a_step_is_that_of_another_step(pipeline: Path, tmp_path: Path, torn: str) -> None:
    spec, document = load_pipeline(pipeline)
    step = plan(document, spec)["tokenizer"]
    step.folder.mkdir(parents=True)
    (step.folder / STATE).write_text(torn)
    assert not _is_done(step)


@pytest.mark.parametrize("how", [shutil.copytree, shutil.move])
def test_a_tools_file_that_is_named_absolutely_may_lie_anywhere(
    pipeline: Path, tmp_path: Path, how: Callable[..., Path]
) -> None:
    def planned(place: Path) -> str:
        value = yaml.safe_load(pipeline.read_text())
        value["steps"][0]["args"]["sources"] = [str(place / "text.jsonl")]
        pipeline.write_text(yaml.safe_dump(value))
        return keys(pipeline)["tokenizer"]

    (tmp_path / "data").mkdir()
    shutil.copy(tmp_path / "text.jsonl", tmp_path / "data")
    before = planned(tmp_path / "data")
    assert planned(how(tmp_path / "data", tmp_path / "elsewhere")) == before
    (tmp_path / "elsewhere" / "text.jsonl").write_text('{"text": "Another."}\n')
    assert planned(tmp_path / "elsewhere") != before


@pytest.mark.parametrize(
    ("tool", "args"),
    [
        ("tokenizer", {"sources": ["data/*.jsonl"]}),
        ("tokenizer", {"sources": "corpus"}),
        ("tokenizer", {"sources": [{"path": "./corpus", "name": "pages"}]}),
        ("sample", {"sources": ["text.jsonl"], "by": "dsir", "target": "corpus/**/*.jsonl", "tokens": 9.0}),
        ("decontaminate", {"sources": ["text.jsonl"], "tasks": ["piqa"], "data_dir": "./corpus"}),
        ("prepare", {"recipe": "prepared.yaml", "references": {"tokenizer": "@tokenizer"}}),
    ],
)
def test_a_tool_runs_again_when_what_it_reads_has_changed_wherever_one_stands(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, args: dict
) -> None:
    files = [tmp_path / "data" / "a.jsonl", tmp_path / "corpus" / "part" / "a.jsonl"]
    for file in files:
        file.parent.mkdir(parents=True)
        shutil.copy(tmp_path / "text.jsonl", file)
    recipe = yaml.safe_load((tmp_path / "pretrain.yaml").read_text())
    recipe["data"] = {"train": {"path": "corpus"}}
    (tmp_path / "prepared.yaml").write_text(yaml.safe_dump(recipe))
    value = yaml.safe_load(pipeline.read_text())
    value["steps"] = [value["steps"][0], {"name": "x", "tool": tool, "args": args}]
    pipeline.write_text(yaml.safe_dump(value | {"parity": [], "output_dir": str(tmp_path / "out")}))
    before = keys(pipeline)
    (tmp_path / "out" / "tokenizer").mkdir(parents=True)
    (tmp_path / "out" / "tokenizer" / "tokenizer.json").write_text("{}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert keys(pipeline) == before
    for file in files:
        file.write_text('{"text": "Another."}\n')
    assert {name for name, key in keys(pipeline).items() if key != before[name]} == {"x"}


def test_a_law_is_fitted_again_when_a_run_has_changed_and_not_when_it_was_scored(
    pipeline: Path, tmp_path: Path
) -> None:
    for name in ("runs/a", "runs/b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    value = yaml.safe_load(pipeline.read_text())
    value["steps"] = [{"name": "x", "tool": "scaling", "args": {"data": ["./runs"]}}]
    pipeline.write_text(yaml.safe_dump(value | {"parity": []}))
    before = keys(pipeline)
    (tmp_path / "runs" / "a" / "scores.jsonl").write_text("{}\n")
    shutil.copytree(tmp_path / "runs" / "a", tmp_path / "runs" / "a.old-1")
    assert keys(pipeline) == before
    (tmp_path / "runs" / "b" / "log.jsonl").write_text("{}\n")
    assert keys(pipeline) != before


def test_a_folder_that_a_tool_cannot_read_is_told_before_anything_runs(pipeline: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "a.jsonl").write_text("{}\n")
    (tmp_path / "mixed" / "b.csv").write_text("a\n1\n")
    value = yaml.safe_load(pipeline.read_text())
    value["steps"] = [{"name": "x", "tool": "dedup", "args": {"sources": ["./mixed"]}}]
    pipeline.write_text(yaml.safe_dump(value | {"parity": []}))
    with pytest.raises(DataError, match="files of several types"):
        keys(pipeline)


def test_a_tool_that_is_told_of_a_folder_with_its_own_output_does_not_run_for_ever(
    pipeline: Path, tmp_path: Path
) -> None:
    value = yaml.safe_load(pipeline.read_text())
    value["steps"] = [{"name": "x", "tool": "decontaminate", "args": {"sources": ["text.jsonl"], "data_dir": "./"}}]
    pipeline.write_text(yaml.safe_dump(value | {"parity": []}))
    before = keys(pipeline)
    (tmp_path / "out" / "x").mkdir(parents=True)
    (tmp_path / "out" / "x" / "text.jsonl").write_text("{}\n")
    assert keys(pipeline) == before


def test_the_suite_of_a_run_that_was_moved_without_it_is_asked_for(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = {"recipe": {"score": {"suite": "suite.yaml"}}, "recipe_path": str(tmp_path / "gone" / "sft.yaml")}
    assert _suite_of(record, "run") == "suite.yaml", "it lies in the current directory"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(RecipeError, match=r"names the suite suite.yaml.*say --suite with its file"):
        _suite_of(record, "run")


def broken(pipeline: Path, steps: list[dict] | None = None, **more: object) -> str:
    value = yaml.safe_load(pipeline.read_text())
    pipeline.write_text(yaml.safe_dump({**value, **({"steps": steps} if steps else {}), **more}))
    with pytest.raises(SpecError) as caught:
        run(pipeline)
    assert not (pipeline.parent / "out" / "tokenizer" / "tokenizer.json").exists(), "nothing runs before all is checked"
    return str(caught.value)


TOKENIZER = {"name": "tokenizer", "tool": "tokenizer", "args": {"sources": ["text.jsonl"], "vocab_size": 280}}


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"name": "x", "tool": "tokeniser", "args": {}}, "no tool 'tokeniser'; did you mean 'tokenizer'?"),
        ({"name": "x", "tool": "tokenizer", "args": {"vocabsize": 9, "sources": []}}, "did you mean 'vocab_size'?"),
        ({"name": "x", "tool": "tokenizer", "args": {"vocab_size": 280}}, "args.sources: this key is required"),
        ({"name": "x", "recipe": "pretrian.yaml"}, "no such file: pretrian.yaml"),
        ({"name": "x", "recipe": "sft.yaml"}, "no earlier step is named 'pretrain'"),
        (
            {"name": "x", "tool": "tokenizer", "args": {"sources": 5, "vocab_size": 280}},
            "args.sources: should be a valid list, not 5",
        ),
        (
            {"name": "x", "tool": "dedup", "args": {"sources": ["text.jsonl", {"path": "txt.jsonl"}]}},
            "args.sources[1].path: no such file or folder: txt.jsonl; did you mean 'text.jsonl'?",
        ),
        ({"name": "x", "tool": "convert", "args": {"sources": "text.jsonl", "to": "x" * 300 + "."}}, "args.to: "),
        (
            {"name": "x", "tool": "mup", "args": {"recipe": "pretrain.yaml"}},
            "pretrain.yaml:14: model.tokenizer: no earlier step is named",
        ),
        ({"name": "x"}, "a step has either recipe or tool"),
        (TOKENIZER, "a step before this one is already named 'tokenizer'"),
    ],
)
def test_a_wrong_step_is_found_before_any_step_runs(pipeline: Path, step: dict, words: str) -> None:
    assert words in broken(pipeline, [TOKENIZER, step])


@pytest.mark.parametrize(
    ("score", "words"),
    [
        ({"suite": "suit.yaml"}, "there is no suite 'suit.yaml'"),
        ({"suite": "suite.yaml", "steps": ["sftt"]}, "no step 'sftt' that trains; did you mean 'sft'?"),
        ({"suite": "suite.yaml", "steps": ["tokenizer"]}, "no step 'tokenizer' that trains"),
        ({"suite": "suite.yaml", "steps": []}, "no step trains a model"),
        ({"suite": "typo.yaml"}, "prompts[0].pat: unknown key; did you mean 'path'?"),
        ({"suite": "later.yaml"}, "no earlier step is named 'sftt'; did you mean 'sft'?"),
    ],
)
def test_a_wrong_scoring_is_found_before_any_step_runs(pipeline: Path, score: dict, words: str) -> None:
    (pipeline.parent / "typo.yaml").write_text("prompts:\n  - {name: chat, path: chat, pat: x}\n")
    judges = "judges:\n  - {judge: rating, prompts: chat, model: '@sftt', backend: model}\n"
    (pipeline.parent / "later.yaml").write_text(f"prompts:\n  - {{name: chat, path: '@sft/rows.jsonl'}}\n{judges}")
    assert words in broken(pipeline, score=score)


@pytest.mark.parametrize("name", ["sftt", "tokenizer"])
def test_parity_is_of_steps_that_train(pipeline: Path, name: str) -> None:
    assert f"parity[0]: no step '{name}' that trains" in broken(pipeline, parity=[name])


def test_an_override_reaches_the_step_it_names(pipeline: Path) -> None:
    spec, _ = load_pipeline(pipeline, ["sft.trainer.max_steps=9", "output_dir=elsewhere"])
    assert spec.output_dir == "elsewhere"
    assert spec.steps[2].overrides == ["trainer.max_steps=9"]


def test_an_override_of_the_file_names_what_lies_beside_it_and_one_of_the_command_line_what_is_here(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = yaml.safe_load(pipeline.read_text())
    value["steps"][2] |= {"recipe": "recipes/sft.yaml", "overrides": ["data.train.path=chat.jsonl"]}
    pipeline.write_text(yaml.safe_dump(value))
    for name in ("recipes", "here"):
        shutil.copytree(tmp_path, tmp_path / name, ignore=shutil.ignore_patterns("recipes", "here"))
    monkeypatch.chdir(tmp_path / "here")

    def rows(*overrides: str) -> tuple[str, ...]:
        loaded = plan(*load_pipeline(pipeline, overrides)[::-1])["sft"].loaded
        assert loaded is not None
        # a step is trained by the command line that it would be by hand
        again = load(loaded.path, loaded.overrides, loaded.references)
        return loaded.recipe.data.train[0].path, again.recipe.data.train[0].path

    assert rows() == (str(tmp_path / "chat.jsonl"),) * 2
    assert rows("sft.data.train.path=chat.jsonl") == (str(tmp_path / "here" / "chat.jsonl"),) * 2


def test_an_override_of_a_tool_is_refused_and_not_forgotten(pipeline: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot take tokenizer\.vocab_size=300; overrides belong to a recipe"):
        run(pipeline, ["tokenizer.vocab_size=300"])
