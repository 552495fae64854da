"""A model is all that decides its answers: a score, a run folder and a row on the board belong to that and no other."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from posttrain.evals import report
from posttrain.evals.checkpoints import (
    is_unchanged,
    model_hash,
    other_than_base,
    read_manifest,
    weights_hash,
    write_manifest,
)
from posttrain.evals.errors import EvalError
from posttrain.evals.models import head_config, load_model
from posttrain.evals.records import SCORES, ScoreStore
from posttrain.evals.score import pending, score
from posttrain.evals.suite_files import load_suite

from .conftest import CHOICES, write_rows

MakeRun = Callable[..., Path]


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value, indent=2))


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


@pytest.fixture
def choices(tmp_path: Path) -> Path:
    """A suite of one quick task."""
    write_rows(tmp_path / "choices.jsonl", CHOICES)
    path = tmp_path / "quick.yaml"
    path.write_text("tasks:\n  - {task: multiple_choice, name: choices, data_files: {test: choices.jsonl}}\n")
    return path


@pytest.fixture
def adapter(tmp_path: Path, model: Path) -> Path:
    """An adapter of ``model``, beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "adapter" / "checkpoint-1"
    base = AutoModelForCausalLM.from_pretrained(model)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"])).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    return folder


def fewer_merges(value: dict[str, Any]) -> None:
    value["model"]["merges"] = value["model"]["merges"][:20]


CHANGES: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("tokenizer.json", fewer_merges),
    ("tokenizer.json", lambda v: v["added_tokens"][0].update(lstrip=True)),
    ("tokenizer_config.json", lambda v: v.update(add_bos_token=True)),
    ("tokenizer_config.json", lambda v: v.update(chat_template="{{ messages }}")),
    ("config.json", lambda v: v["rope_parameters"].update(rope_theta=500.0)),
    ("config.json", lambda v: v.update(dtype="bfloat16")),
    ("config.json", lambda v: v.update(id2label={"0": "bad", "1": "good"})),
    ("generation_config.json", lambda v: v.update(eos_token_id=[1, 3])),
]
NEW = {"chat_template.jinja": "{{ 1 }}", "special_tokens_map.json": "{}", "vocab.txt": "a", "merges.txt": "a b"}
NEW |= {"added_tokens.json": "{}", "modeling_own.py": "", "head.json": "{}", "tokenizer.model": "x", "vocab.json": "{}"}
NEW |= {"additional_chat_templates/tools.jinja": "{{ 1 }}", "qwen.tiktoken": "x", "tekken.json": "{}"}
ASIDE = ("README.md", "training_args.bin", "trainer_state.json", "optimizer.pt", "LICENSE.txt", "run.json", ".cache")
ASIDE += ("all_results.json", "scores.jsonl", "samples/a.json", "checkpoint-3/config.json")


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_whatever_decides_an_answer_makes_another_model(model: Path, name: str, change: Callable[..., Any]):
    before, weights = model_hash(model), weights_hash(model)
    edit(model / name, change)
    assert model_hash(model) != before
    assert weights_hash(model) == weights


@pytest.mark.parametrize("name", NEW)
def test_a_file_that_models_are_read_from_makes_another_model(model: Path, name: str):
    before = model_hash(model)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).write_text(NEW[name])
    added = model_hash(model)
    assert added != before
    (model / name).write_text(NEW[name].replace("1", "2").replace("a", "c").replace("{}", '{"a": 1}') + "\n#")
    assert model_hash(model) not in (before, added)


def test_what_decides_nothing_leaves_a_model_the_same(model: Path, tmp_path: Path):
    before = model_hash(model)
    for name in ASIDE:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
    edit(model / "config.json", lambda v: v.update(_name_or_path="/elsewhere", transformers_version="4.0"))
    edit(model / "tokenizer.json", lambda v: None)
    edit(model / "tokenizer_config.json", lambda v: v.update(name_or_path="x", is_local=True))
    assert model_hash(model) == before
    assert model_hash(shutil.copytree(model, tmp_path / "copy")) == before
    write_manifest(model, step=3, resumable=False)
    assert model_hash(model) == before
    assert (read_manifest(model) or pytest.fail("no manifest")).model == before


def test_weights_of_the_same_size_under_an_old_manifest_are_other_weights(make_run: MakeRun):
    run = make_run()
    one, other = run / "checkpoint-1", run / "checkpoint-2"
    before = weights_hash(one), model_hash(one)
    shutil.copy(other / "model.safetensors", one / "model.safetensors")
    assert weights_hash(one) != before[0]
    assert len({(weights_hash(folder), model_hash(folder)) for folder in (one, other, run)}) == 1


@pytest.mark.parametrize("named", ["absolute", "relative", "hub"])
def test_an_adapter_is_another_model_when_its_base_is(
    adapter: Path, model: Path, tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch
):
    import torch
    from huggingface_hub import constants
    from safetensors.torch import load_file, save_file

    if named == "relative":
        edit(adapter / "adapter_config.json", lambda v: v.update(base_model_name_or_path="../../model"))
    if named == "hub":
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        home = tmp_path / "hub" / "models--org--base"
        (home / "refs").mkdir(parents=True)
        (home / "refs" / "main").write_text("abc")
        shutil.copytree(model, home / "snapshots" / "abc")
        edit(adapter / "adapter_config.json", lambda v: v.update(base_model_name_or_path="org/base"))
        model = home / "snapshots" / "abc"
    before = model_hash(adapter)
    edit(model / "tokenizer_config.json", lambda v: v.update(add_bos_token=True))  # an adapter brings its own
    (model / "README.md").write_text("more")
    assert model_hash(adapter) == before
    edit(model / "config.json", lambda v: v.update(rms_norm_eps=0.1))
    changed = model_hash(adapter)
    assert changed != before
    tensors = {name: tensor + torch.ones(1) for name, tensor in load_file(model / "model.safetensors").items()}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert model_hash(adapter) not in (before, changed)


def test_an_adapter_is_loaded_on_the_revision_of_its_base_that_identifies_it(
    adapter: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home, found = tmp_path / "hub" / "models--org--base", {}
    (home / "refs").mkdir(parents=True)
    for number, name in enumerate(("main", "v2"), start=1):
        commit = str(number) * 40
        (home / "refs" / name).write_text(commit)
        shutil.copytree(model, home / "snapshots" / commit)
        edit(home / "snapshots" / commit / "config.json", lambda v, n=number: v.update(rms_norm_eps=n / 100))
    for revision in ("main", "v2"):
        fields = {"base_model_name_or_path": "org/base", "revision": revision}
        edit(adapter / "adapter_config.json", lambda v, fields=fields: v.update(fields))
        found[model_hash(adapter)] = load_model(str(adapter), device="cpu").model.config.rms_norm_eps
    assert list(found.values()) == [0.01, 0.02]


@pytest.mark.parametrize("form", ["as it is", "in shards", "a tensor changed", "pickled beside", "pickled"])
def test_weights_are_the_base_of_an_adapter_however_they_are_saved(
    adapter: Path, model: Path, tmp_path: Path, form: str
):
    import torch
    from safetensors.torch import load_file, save_file

    copy = shutil.copytree(model, tmp_path / "copy")
    tensors = load_file(copy / "model.safetensors")
    if form in ("in shards", "a tensor changed"):
        names = sorted(tensors)
        tensors[names[-1]] += form == "a tensor changed"
        for number, held in enumerate((names[::2], names[1::2]), start=1):
            part = {name: tensors[name] for name in held}
            save_file(part, copy / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    if "pickled" in form:
        torch.save(tensors, copy / "pytorch_model.bin")
    if form not in ("as it is", "pickled beside"):
        (copy / "model.safetensors").unlink()
    said = other_than_base(adapter, str(copy))
    changed = f"it names {model} as its base, and the weights of {copy} are others"
    assert said == (changed if form == "a tensor changed" else None)


@pytest.mark.parametrize(
    ("base", "said"),
    [("./base", None), ("org/model", None), ("old/model", "it names old/model as its base, and not org/model")],
)
def test_where_no_weights_are_here_two_names_of_the_hub_alone_are_told_apart(
    adapter: Path, base: str, said: str | None
):
    edit(adapter / "adapter_config.json", lambda v: v.update(base_model_name_or_path=base))
    assert other_than_base(adapter, "org/model") == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"base_model_name_or_path": "../moved/away"}', r"cannot load the adapter's base \.\./moved/away.*is to name"),
        ('{"base_model_name_or_path": "org/gone"}', "cannot load the adapter's base org/gone.*is to name"),
        ('{"base_model_name_or_path": 5}', "cannot load the adapter's base 5.*is to name"),
        ('{"base_model_name_or_path": ["a"]}', r"cannot load the adapter's base \['a'\].*is to name"),
        ("{}", "does not name its base model.*is to name"),
        ("[]", "is not an object with fields"),
        ("null", "is not an object with fields"),
        ('{"base_model', "is not JSON"),
        ("", "is not JSON"),
    ],
)
def test_an_adapter_whose_base_cannot_be_told_or_found_is_one_clear_error(adapter: Path, content: str, said: str):
    (adapter / "adapter_config.json").write_text(content)
    for look in (lambda: load_model(str(adapter), device="cpu"), lambda: head_config(adapter)):
        with pytest.raises(EvalError, match=f"(?s){said}"):
            look()


def test_an_adapter_is_the_same_wherever_it_and_its_base_lie(adapter: Path, model: Path, tmp_path: Path):
    before = model_hash(adapter)
    moved = shutil.move(model, tmp_path / "moved")
    edit(adapter / "adapter_config.json", lambda v: v.update(base_model_name_or_path=str(moved), inference_mode=False))
    edit(adapter / "adapter_config.json", lambda v: v["target_modules"].reverse())
    assert model_hash(adapter) == before
    write_manifest(adapter, step=1, resumable=False)
    shutil.rmtree(moved)
    assert model_hash(adapter) == before, "the base is gone: the manifest knows what it was"
    edit(adapter / "tokenizer_config.json", lambda v: v.update(add_bos_token=True))
    assert model_hash(adapter) != before


def test_an_adapter_that_was_moved_with_its_base_is_loaded_on_it(adapter: Path, model: Path, tmp_path: Path):
    from posttrain.evals.errors import EvalError
    from posttrain.evals.models import load_model

    write_manifest(adapter, step=1, resumable=False)
    before = model_hash(adapter)
    moved = tmp_path / "elsewhere" / "project"
    moved.mkdir(parents=True)
    shutil.move(adapter.parent, moved)
    shutil.move(model, moved)
    adapter = moved / "adapter" / "checkpoint-1"
    edit(moved / "model" / "tokenizer_config.json", lambda v: v.update(add_bos_token=True))
    assert model_hash(adapter) == before
    assert load_model(str(adapter), device="cpu").template_fingerprint is None
    edit(moved / "model" / "config.json", lambda v: v.update(rms_norm_eps=0.1))
    with pytest.raises(EvalError, match=f"the adapter's base is gone: {model}"):  # another model of the same name
        load_model(str(adapter), device="cpu")
    assert model_hash(adapter) == before


def test_a_changed_tokenizer_is_scored_anew_as_another_row(model: Path, choices: Path, tmp_path: Path):
    out = tmp_path / "out"
    first = score([model], choices, device="cpu", output=out)
    (model / "README.md").write_text("words")
    assert score([model], choices, device="cpu", output=out).skipped == 1
    edit(model / "tokenizer.json", fewer_merges)
    second = score([model], choices, device="cpu", output=out)
    assert (len(first.done), len(second.done), second.skipped) == (1, 1, 0)
    assert first.done[0].weights_hash == second.done[0].weights_hash
    assert first.done[0].model_hash != second.done[0].model_hash
    board = report.build(sorted(path for path in out.iterdir() if path.name[0] != "."))
    assert {row.model_hash for row in board.rows} == {first.done[0].model_hash, second.done[0].model_hash}
    assert len({run.name for run in board.runs}) == 2
    edit(model / "tokenizer.json", lambda v: None)
    shutil.copy(tmp_path / "choices.jsonl", model / "notes.jsonl")
    assert score([model], choices, device="cpu", output=out).skipped == 1


def test_a_changed_base_has_an_adapter_scored_anew_and_says_so(
    adapter: Path, model: Path, choices: Path, capsys: pytest.CaptureFixture[str]
):
    write_manifest(adapter, step=1, resumable=False)
    (first,) = score([adapter.parent], choices, device="cpu").done
    assert not score([adapter.parent], choices, device="cpu").done
    edit(model / "config.json", lambda v: v.update(rms_norm_eps=0.1))
    (second,) = score([adapter.parent], choices, device="cpu").done
    assert second.model_hash != first.model_hash
    note = "the adapter's base is not what the adapter was trained on: it has changed since"
    assert (note in second.notes, note in first.notes) == (True, False)
    said = capsys.readouterr().err  # merging, chatting and exporting load it so too
    assert said.count(f"warning: {adapter}: {note}\n") == 1
    assert (adapter.parent / first.samples_name).is_file()
    assert (adapter.parent / second.samples_name).is_file()


def forget_models(run: Path) -> None:
    """Makes a run's files those of a version that knew a model by its weights alone."""
    lines = [json.loads(line) for line in (run / SCORES).read_text().splitlines()]
    for line, old in zip(lines, ScoreStore(run).load(), strict=True):
        line.pop("model_hash")
        old_name = f"samples/{old.weights_hash[:12]}-{old.task}-{old.task_hash[:8]}.parquet"
        (run / old.samples_name).rename(run / old_name)
    (run / SCORES).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_score_of_an_older_version_counts_where_nothing_can_have_changed(
    make_run: MakeRun, choices: Path, tmp_path: Path
):
    run = make_run((1, 2))
    score([run], choices, device="cpu")
    forget_models(run)
    before = (run / SCORES).read_bytes()
    assert pending([run], load_suite(choices)) == 0
    assert score([run], choices, device="cpu").done == ()
    assert (run / SCORES).read_bytes() == before
    text = choices.read_text().replace("name: choices", "name: more")
    choices.write_text(choices.read_text() + text.split("\n")[1] + "\n")
    assert {s.task for s in score([run], choices, device="cpu").done} == {"more"}
    board = report.build([run])
    assert [sorted(row.names) for row in board.rows] == [["checkpoint-1"], ["checkpoint-2", "final"]]
    assert [len(row.cells) for row in board.rows] == [2, 2], "old and new scores of a checkpoint are one row"
    assert all((run / s.samples_name).is_file() for s in ScoreStore(run).load())


def test_a_score_of_an_older_version_does_not_count_where_something_can_have_changed(
    make_run: MakeRun, model: Path, choices: Path, tmp_path: Path
):
    out = tmp_path / "out"
    score([model], choices, device="cpu", output=out)
    forget_models(out / "model")
    edit(out / "model" / "run.json", lambda v: [v.pop("model_hash"), v.pop("source")])
    edit(model / "tokenizer.json", fewer_merges)
    (done,) = score([model], choices, device="cpu", output=out).done  # no manifest could prove anything
    assert [s.model_hash for s in ScoreStore(out / "model").load()] == [done.model_hash]
    assert [row.model_hash for row in report.build([out / "model"]).rows] == [done.model_hash]
    run = make_run((1,), final=False)
    score([run], choices, device="cpu")
    forget_models(run)
    edit(run / "checkpoint-1" / "tokenizer.json", fewer_merges)
    assert not is_unchanged(run / "checkpoint-1")
    (failure,) = score([run], choices, device="cpu").failed
    assert "tokenizer.json" in failure.reason


def test_two_models_of_one_folder_name_are_two_runs(tiny_model_dir: Path, choices: Path, tmp_path: Path):
    models = [shutil.copytree(tiny_model_dir, tmp_path / parent / "model") for parent in ("a", "b")]
    edit(models[1] / "config.json", lambda v: v.update(rms_norm_eps=0.1))
    out = tmp_path / "out"
    done = score(models, choices, device="cpu", output=out).done
    assert [s.run for s in done] == ["model", "b--model"]
    assert [json.loads((out / s.run / "run.json").read_text())["name"] for s in done] == ["model", "b--model"]
    assert len({run.name for run in report.build([out]).runs}) == 2
    assert score(models[::-1], choices, device="cpu", output=out).skipped == 2
    copy = shutil.copytree(models[0], tmp_path / "c" / "model")
    assert score([copy], choices, device="cpu", output=out).skipped == 1, "the same model under the same name"


@pytest.mark.parametrize("spelt", ["model", "./model/", "other/../model", "."])
def test_a_model_is_one_run_however_its_path_is_spelt(
    model: Path, choices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelt: str
):
    (tmp_path / "other").mkdir()
    (done,) = score([model], choices, device="cpu", output=tmp_path / "out").done
    (model / "config.json").touch()
    monkeypatch.chdir(model if spelt == "." else tmp_path)
    assert score([spelt], choices, device="cpu", output=tmp_path / "out").skipped == 1
    assert done.run == "model"


def test_the_model_itself_is_no_run_folder_for_its_scores(model: Path, choices: Path, tmp_path: Path):
    (done,) = score([model], choices, device="cpu", output=tmp_path).done
    assert not (model / "run.json").exists()
    assert score([model], choices, device="cpu", output=tmp_path).skipped == 1
    assert done.run.startswith("model-")
