"""What adapters train, how it is held and saved: on a tied bfloat16 model that pads with its eos token."""

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.data_tools.files import hash_file, read_object, write_json
from posttrain.evals.checkpoints import Base, base_of
from posttrain.evals.models import load_model
from posttrain.recipes.adapters import adapter_config
from posttrain.recipes.check import check_all
from posttrain.recipes.decisions import decide, trainer_config
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.job import open_job
from posttrain.recipes.load import load
from posttrain.recipes.model import load_model as load_empty
from posttrain.recipes.train import train

from ..conftest import build_tokenizer, save_model
from . import warm
from .conftest import figures, for_cpus, needs_deepspeed, run
from .test_resume import WEIGHTS, undo_end

Make = Callable[..., Path]
TABLES = {"lm_head.weight", "model.embed_tokens.weight"}
ROWS = {"model.embed_tokens.token_adapter.trainable_tokens_delta"}
# The lora section, whether the template adds tokens, the quantization, and what is trained beside the adapters.
KINDS: dict[str, tuple[dict[str, Any], bool, str | None, set[str]]] = {
    "lora": ({}, False, None, set()),
    "dora": ({"use_dora": True}, False, None, set()),
    "rslora": ({"use_rslora": True}, False, None, set()),
    "input embeddings": ({"modules_to_save": ["embed_tokens"]}, False, None, TABLES),
    "output layer": ({"modules_to_save": ["lm_head"]}, False, None, TABLES),
    "last norm": ({"modules_to_save": ["model.norm"]}, False, None, {"model.norm.weight"}),
    "new tokens": ({}, True, None, ROWS),
    "new tokens and tables": ({"modules_to_save": ["lm_head"]}, True, None, TABLES),
    "qlora": ({}, False, "nf4", set()),
    "qdora": ({"use_dora": True}, False, "nf4", set()),
    "qlora with new tokens": ({}, True, "nf4", ROWS),
    "qlora with output layer": ({"modules_to_save": ["lm_head"]}, False, "nf4", TABLES),
}


@pytest.fixture
def adapted(make_recipe: Make, instruct_model_dir: Path) -> Make:
    """Returns a function that writes a recipe of four steps with adapters of a kind."""

    def make(kind: str, stage: str = "sft", name: str = "run", **sections: Any) -> Path:
        lora, grows, quantization, _ = KINDS[kind]
        if quantization:
            pytest.importorskip("bitsandbytes")
        template = {} if stage == "classify" else {"chat_template": "llama3" if grows else "chatml"}
        sections = {
            "model": {"name_or_path": str(instruct_model_dir), **template},
            "lora": {"r": 4, "alpha": 8, **lora},
            **({"quantization": quantization} if quantization else {}),
            **sections,
        }
        return make_recipe(stage, name, sections=sections, learning_rate=0.02, max_steps=4, save_steps=2)

    return make


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of an adapter file by their names in the model."""
    from safetensors.torch import load_file

    tensors = load_file(folder / "adapter_model.safetensors")
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


def checked(recipe: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert check_all([recipe], [], {}, read_data=True) == 0
    return capsys.readouterr().out


def test_padding_is_no_token_to_learn(adapted: Make, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = adapted("lora")
    said = checked(recipe, capsys)
    tensors = stored(run(recipe) / "adapter")
    assert all("lora_" in name for name in tensors)
    assert f"trained ({sum(tensor.numel() for tensor in tensors.values()):,})" in said
    assert "new tokens" not in said


@pytest.fixture
def bare_model_dir(tmp_path: Path) -> Path:
    """A model as GPT-2 is published: one special token, which begins and ends texts."""
    specials = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    tokenizer = build_tokenizer(specials, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    return save_model(tmp_path / "bare", tokenizer)


@pytest.mark.parametrize("stage", ["sft", "distill", "distill_on_policy"])
def test_a_pad_token_that_has_to_be_added_is_not_trained_and_no_teacher_stumbles_over_it(
    stage: str, adapted: Make, bare_model_dir: Path
) -> None:
    sections: dict[str, Any] = {"model": {"name_or_path": str(bare_model_dir), "chat_template": "chatml"}}
    if stage != "sft":
        sections["teacher"] = {"name_or_path": str(bare_model_dir)}
    run_dir = run(adapted("lora", stage, **sections))
    loaded = load_model(str(run_dir / "checkpoint-4"), device="cpu")
    assert loaded.tokenizer.pad_token == "<|pad|>"
    assert all("lora_" in name for folder in ("checkpoint-4", "adapter") for name in stored(run_dir / folder))


def test_check_names_the_tokens_that_the_template_adds(adapted: Make, capsys: pytest.CaptureFixture[str]) -> None:
    said = checked(adapted("new tokens"), capsys)
    assert "new tokens: <|start_header_id|> <|end_header_id|> <|eot_id|>" in said
    assert f"{3 * 32} parameters in float32" in said


@pytest.mark.parametrize("kind", ["lora", "last norm", "input embeddings", "new tokens", "new tokens and tables"])
def test_an_adapter_that_goes_on_trains_the_tokens_that_the_template_adds_or_is_refused(
    kind: str, adapted: Make, tmp_path: Path
) -> None:
    job = open_job(load(adapted(kind)))
    config = adapter_config(job, load_empty(job.loaded.recipe, job.tokenizer, empty=True))
    assert config is not None
    config.save_pretrained(str(tmp_path / "first"))
    recipe = load(adapted("new tokens", name="on", lora=None, adapter={"name_or_path": str(tmp_path / "first")}))
    args = trainer_config(recipe)
    if kind in ("lora", "last norm"):
        said = r"adapter\.name_or_path: it trains no rows for <\|start_header_id\|> <\|end_header_id\|> <\|eot_id\|>"
        with pytest.raises(RecipeError, match=said):
            decide(recipe, args)
    else:
        assert decide(recipe, args).size.trainable


def test_an_adapter_names_the_commit_of_its_base(
    adapted: Make, instruct_model_dir: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of peft's, which names none, nobody could tell which of a repository's it was; so it goes on upon any of them."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    home = tmp_path / "hub" / "models--org--m"
    (home / "refs").mkdir(parents=True)
    for name, commit, model in (("main", "a" * 40, tiny_model_dir), ("v1", "b" * 40, instruct_model_dir)):
        (home / "refs" / name).write_text(commit)
        shutil.copytree(model, home / "snapshots" / commit)

    def on(revision: str | None, name: str, **sections: Any) -> Path:
        model = {"name_or_path": "org/m", "revision": revision, "chat_template": "chatml"}
        return adapted("lora", name=name, model=model, **sections)

    adapter = run(on("v1", "first")) / "adapter"
    assert base_of(adapter) == Base("org/m", "b" * 40, home / "snapshots" / ("b" * 40))
    second = {"lora": None, "adapter": {"name_or_path": str(adapter)}}
    job = open_job(load(on("v1", "second", **second)))
    for named in ("b" * 40, None):
        fields = read_object(adapter / "adapter_config.json")
        write_json(adapter / "adapter_config.json", {**fields, "revision": named})
        config = adapter_config(job, load_empty(job.loaded.recipe, job.tokenizer, empty=True))
        assert config is not None
        assert config.revision == "b" * 40
        for revision in ("v1", None):
            recipe = load(on(revision, "second", **second))
            refused = pytest.raises(RecipeError, match=r"and the weights of org/m@a+ are others")
            with refused if named and revision is None else contextlib.nullcontext():
                decide(recipe, trainer_config(recipe))


@pytest.mark.parametrize("kind", KINDS)
def test_adapter_files_hold_what_was_trained_in_float32_and_no_more(kind: str, adapted: Make) -> None:
    """Each of them is scored too: lm-eval ties the embeddings of a model that it is given."""
    from lm_eval.models import huggingface

    hflm: Any = huggingface.HFLM  # its registering decorator hides its type

    run_dir = run(adapted(kind))
    tensors = stored(run_dir / "checkpoint-4")
    assert {name for name in tensors if "lora_" not in name} == KINDS[kind][3]
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    ids = torch.arange(5, 25)[None]
    logits = []
    for folder in (run_dir / "checkpoint-4", run_dir / "adapter", run_dir):
        loaded: Any = load_model(str(folder), device="cpu")
        model: Any = hflm(pretrained=loaded.model, tokenizer=loaded.tokenizer).model
        with torch.no_grad():
            logits.append(model(ids).logits.float())
    assert torch.equal(logits[0], logits[1])
    torch.testing.assert_close(logits[0], logits[2], atol=0.02, rtol=0)  # merged weights are rounded to bfloat16


@pytest.mark.parametrize("kind", ["output layer", "qlora with output layer", "last norm"])
def test_stock_peft_loads_what_was_trained_in_full_and_needs_both_names_of_tied_tables(
    kind: str, adapted: Make, instruct_model_dir: Path
) -> None:
    """Once peft does without the second name, the adapter file can do without it too."""
    from peft import PeftModel
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = run(adapted(kind)) / "checkpoint-4"

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval().float()(torch.arange(5, 25)[None]).logits

    def stock() -> Any:
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(instruct_model_dir), str(folder))

    torch.testing.assert_close(logits(stock()), logits(load_model(str(folder), device="cpu").model))
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in [name for name in tensors if name.removeprefix("base_model.model.") in TABLES]:
        save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, {"format": "pt"})
        with pytest.raises(KeyError, match=name):
            stock()


@pytest.mark.slow
@needs_deepspeed
def test_zero3_trains_whole_tables_for_new_tokens_and_stores_them_once(adapted: Make, tmp_path: Path) -> None:
    result = warm.run_two("train", adapted("new tokens"), config=for_cpus("zero3", tmp_path))
    assert result.returncode == 0, result.stderr[-3000:]
    for folder in ("checkpoint-4", "adapter"):
        tensors = stored(tmp_path / "run" / folder)
        assert {name for name in tensors if "lora_" not in name} == TABLES
        assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        load_model(str(tmp_path / "run" / folder), device="cpu")


RESUMED = [
    *(("sft", kind) for kind in ("qlora", "qdora", "qlora with new tokens", "qlora with output layer", "new tokens")),
    *((stage, "qlora") for stage in ("dpo", "orpo", "reward", "classify", "ppo", "distill")),
]


@pytest.mark.parametrize(("stage", "kind"), RESUMED)
def test_a_run_in_two_parts_gives_the_same_bits_and_losses(
    stage: str, kind: str, adapted: Make, instruct_model_dir: Path
) -> None:
    teacher = {"teacher": {"name_or_path": str(instruct_model_dir)}} if stage == "distill" else {}
    recipe = adapted(kind, stage, **teacher)
    run_dir = run(recipe)
    expected = hash_file(run_dir / WEIGHTS), hash_file(run_dir / "adapter" / "adapter_model.safetensors")
    log = figures(run_dir)
    undo_end(run_dir)
    shutil.rmtree(run_dir / "checkpoint-4")
    run(recipe)
    assert figures(run_dir) == log
    assert (hash_file(run_dir / WEIGHTS), hash_file(run_dir / "adapter" / "adapter_model.safetensors")) == expected


@pytest.mark.parametrize("target", [["q_proj", "lm_head"], ["q_proj", "embed_tokens"], ".*(q_proj|lm_head)"])
def test_an_adapter_on_a_tied_output_layer_is_refused_by_check_and_train_alike(
    target: Any, adapted: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = adapted("lora", lora={"target_modules": target})
    assert check_all([recipe], [], {}, read_data=True) == 2
    said = "lora.target_modules puts an adapter on"
    assert said in capsys.readouterr().err
    with pytest.raises(RecipeError, match=said):
        train(load(recipe))
