"""Distillation: a student that is told what its teacher would say."""

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.files import hash_file
from posttrain.recipes.distillation import losses as distillation
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load
from posttrain.recipes.train import train
from torch.nn import functional

from .conftest import losses

PACKED = {"packing": True, "packing_strategy": "bfd", "max_length": 128}


def run(recipe: Path) -> list[dict[str, Any]]:
    """Trains a recipe and returns what it logged of each step."""
    loaded = load(recipe)
    train(loaded)
    lines = (Path(loaded.recipe.output_dir) / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def by(teacher: Path, **more: Any) -> dict[str, Any]:
    return {"teacher": {"name_or_path": str(teacher), **more}}


def test_a_student_equal_to_its_teacher_has_no_divergence(
    make_recipe: Callable[..., Path], tiny_model_dir: Path
) -> None:
    first = run(make_recipe("distill", sections=by(tiny_model_dir), alpha=0.25, hidden_cosine=2.0, max_steps=1))[0]
    assert first["kl"] == 0
    assert first["cosine"] == pytest.approx(0, abs=1e-6)
    assert first["loss"] == pytest.approx(0.25 * first["ce"], rel=1e-5)


def test_with_alpha_one_it_is_fine_tuning(make_recipe: Callable[..., Path], other_model_dir: Path) -> None:
    tuned = make_recipe("sft", "tuned", **PACKED)
    distilled = make_recipe("distill", "distilled", sections=by(other_model_dir), alpha=1.0, **PACKED)
    expected, logged = run(tuned), run(distilled)
    assert [line["loss"] for line in logged] == pytest.approx([line["loss"] for line in expected], abs=2e-5)
    for name in ("grad_norm", "mean_token_accuracy", "num_tokens"):
        assert [line[name] for line in logged] == pytest.approx([line[name] for line in expected], rel=1e-3), name


def test_plain_text_is_learnt_whole_as_in_pretraining(
    make_recipe: Callable[..., Path], other_model_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    packed = {"packing": True, "packing_strategy": "bfd_split", "max_steps": 3}
    expected = run(make_recipe("pretrain", "pretrained", **packed))
    text = {"train": {"path": str(tmp_path / "text.jsonl"), "format": "text"}}
    sections = {**by(other_model_dir), "data": text, "model": {"name_or_path": str(tiny_model_dir)}}
    logged = run(make_recipe("distill", sections=sections, alpha=1.0, **packed))
    assert [line["loss"] for line in logged] == pytest.approx([line["loss"] for line in expected], abs=2e-5)


def direct(student: Any, teacher: Any, batch: dict[str, Any], temperature: float) -> tuple[float, float, float]:
    """Cross entropy, divergence and cosine distance from whole logits, as the papers write them."""
    inputs = {key: value for key, value in batch.items() if key != "labels"} | {"use_cache": False}
    with torch.no_grad():
        ours, theirs = (model(**inputs, output_hidden_states=True) for model in (student, teacher))
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    p, q = (torch.softmax(out.logits[:, :-1] / temperature, -1)[kept] for out in (ours, theirs))
    kl = (q * (q / p).log()).sum(-1).mean()
    ce = functional.cross_entropy(ours.logits[:, :-1][kept], labels[kept])
    states = [out.hidden_states[-1][:, :-1][kept] for out in (ours, theirs)]
    return float(ce), float(kl), float((1 - functional.cosine_similarity(*states, dim=-1)).mean())


@pytest.mark.parametrize("chunk", [512, 7])
@pytest.mark.parametrize("packed", [True, False])
def test_the_loss_is_that_of_the_papers(
    make_recipe: Callable[..., Path],
    tiny_model_dir: Path,
    other_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    chunk: int,
) -> None:
    from posttrain.recipes.distillation.trainer import DistillTrainer
    from transformers import AutoModelForCausalLM

    batches: list[dict[str, Any]] = []
    original = DistillTrainer.compute_loss

    def keeping(self: Any, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        batches.append(dict(inputs))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(DistillTrainer, "compute_loss", keeping)
    fields = {"alpha": 0.3, "temperature": 3.0, "hidden_cosine": 0.7, "chunk": chunk, "max_steps": 1}
    recipe = make_recipe("distill", sections=by(other_model_dir), **fields, **(PACKED if packed else {}))
    logged = run(recipe)[0]
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (tiny_model_dir, other_model_dir))
    assert ("position_ids" in batches[0]) == packed
    ce, kl, cosine = direct(student, teacher, batches[0], 3.0)
    assert kl > 0.05, "a divergence worth testing"
    assert logged["ce"] == pytest.approx(ce, rel=1e-4)
    assert logged["kl"] == pytest.approx(kl, rel=1e-4)
    assert logged["cosine"] == pytest.approx(cosine, rel=1e-4)
    assert logged["loss"] == pytest.approx(0.3 * ce + 0.7 * 9 * kl + 0.7 * cosine, rel=1e-4)


def test_chunks_have_the_gradient_of_the_whole() -> None:
    torch.manual_seed(0)
    hidden, head, labels = torch.randn(50, 8), torch.randn(8, 30), torch.randint(30, (50,))
    teacher = torch.randn(50, 30)
    found = []
    for chunk in (50, 7):
        h, w = hidden.clone().requires_grad_(), head.clone().requires_grad_()
        sums = distillation.summed(
            h,
            labels,
            lambda x, w=w: x @ w,
            lambda logits, part: distillation.divergence(logits, teacher[part], 2.0),
            chunk=chunk,
        )
        (sums.cross_entropy + sums.divergence).backward()
        found.append((h.grad, w.grad))
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole)


def test_packed_rows_give_each_token_the_divergence_that_it_has_alone(
    make_recipe: Callable[..., Path], other_model_dir: Path
) -> None:
    once = {"max_steps": 1, "per_device_train_batch_size": 80, "alpha": 0.0}
    alone = run(make_recipe("distill", "alone", sections=by(other_model_dir), **once))[0]
    packed = run(make_recipe("distill", "packed", sections=by(other_model_dir), **once, **PACKED))[0]
    assert packed["kl"] == pytest.approx(alone["kl"], rel=1e-5)
    assert packed["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("fields", [{}, PACKED])
def test_cached_answers_over_the_whole_vocabulary_are_the_teacher(
    make_recipe: Callable[..., Path], other_model_dir: Path, fields: dict[str, Any], tiny_model_dir: Path
) -> None:
    held_out = {"eval_strategy": "steps", "eval_steps": 4}
    data = {"train": {"path": "messages.jsonl"}, "eval": {"path": "messages.jsonl", "limit": 30}}
    size = json.loads((tiny_model_dir / "config.json").read_text())["vocab_size"]
    whole = make_recipe("distill", "whole", sections={**by(other_model_dir), "data": data}, **held_out, **fields)
    expected = run(whole)
    cached = {**by(other_model_dir, top_k=size), "data": data}
    logged = run(make_recipe("distill", "cached", sections=cached, **held_out, **fields))
    for name in ("loss", "kl", "ce", "grad_norm"):
        assert [line[name] for line in logged] == pytest.approx([line[name] for line in expected], rel=1e-4), name
    evals = [
        [json.loads(line).get("eval_kl") for line in path.read_text().splitlines() if "eval_loss" in line]
        for path in (whole.parent / "whole" / "log.jsonl", whole.parent / "cached" / "log.jsonl")
    ]
    assert len(evals[0]) == 3
    assert evals[1] == pytest.approx(evals[0], rel=1e-4)


def test_the_tail_of_a_cached_answer_is_one_outcome() -> None:
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(4, 20), 3 * torch.randn(4, 20)
    full = distillation.divergence(student, teacher, 2.0)
    for k in (1, 5, 19):
        ids, log_q, log_rest = distillation.top_k(teacher, k, 2.0)
        kl = distillation.top_k_divergence(student, ids, log_q, log_rest, 2.0)
        p, q = (torch.softmax(logits / 2, -1) for logits in (student, teacher))
        order = q.argsort(descending=True)
        p, q = p.gather(-1, order), q.gather(-1, order)
        p, q = (torch.cat([x[:, :k], x[:, k:].sum(-1, keepdim=True)], -1) for x in (p, q))
        torch.testing.assert_close(kl, (q * (q / p).log()).sum(-1))
        assert (kl <= full + 1e-6).all(), "merging outcomes never adds divergence"
        assert (distillation.top_k_divergence(teacher, ids, log_q, log_rest, 2.0).abs() < 1e-6).all()
    torch.testing.assert_close(
        distillation.top_k_divergence(student, *distillation.top_k(teacher, 20, 2.0), 2.0), full, rtol=1e-5, atol=1e-6
    )


def test_answers_are_made_once_and_again_for_another_teacher(
    make_recipe: Callable[..., Path],
    tiny_model_dir: Path,
    other_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from posttrain.recipes.distillation import cached

    asked: list[str] = []
    original = cached.load_teacher
    monkeypatch.setattr("posttrain.recipes.job.cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(
        cached, "load_teacher", lambda spec, tokenizer: asked.append(spec.name_or_path) or original(spec, tokenizer)
    )
    for name, teacher in (("a", other_model_dir), ("b", other_model_dir), ("c", tiny_model_dir)):
        run(make_recipe("distill", name, sections=by(teacher, top_k=4), max_steps=2))
    assert asked == [str(other_model_dir), str(tiny_model_dir)]
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_answers_are_made_again_once_a_branch_of_the_hub_is_another_teacher(
    make_recipe: Callable[..., Path],
    tiny_model_dir: Path,
    other_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("posttrain.recipes.job.cache_dir", lambda: tmp_path / "cache")
    home = tmp_path / "hub" / "models--org--teacher"
    (home / "refs").mkdir(parents=True)
    for name, teacher in (("a", tiny_model_dir), ("b", other_model_dir)):
        shutil.copytree(teacher, home / "snapshots" / (name * 40))
        (home / "refs" / "main").write_text(name * 40)
        run(make_recipe("distill", name, sections=by(Path("org/teacher"), top_k=4), max_steps=1))
    assert losses(tmp_path / "a") != losses(tmp_path / "b")


def test_a_student_with_adapters_learns_and_the_teacher_does_not_change(
    make_recipe: Callable[..., Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    teacher = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    for name, weight in teacher.named_parameters():
        weight.data *= 8 if "_proj" in name else 1  # what adapters can reach
    teacher.save_pretrained(tmp_path / "teacher")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "teacher")
    before = hash_file(tmp_path / "teacher" / "model.safetensors")
    sections = {**by(tmp_path / "teacher"), "lora": {"r": 8}}
    fields = {"alpha": 0.0, "learning_rate": 0.02, "temperature": 1.0, "max_steps": 40}
    logged = run(make_recipe("distill", sections=sections, **fields))
    assert logged[-1]["kl"] < 0.7 * logged[0]["kl"]
    assert hash_file(tmp_path / "teacher" / "model.safetensors") == before


def with_tokens(folder: Path, source: Path, more: list[str]) -> Path:
    """Copies a model with a few more tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens(more)
    model = AutoModelForCausalLM.from_pretrained(source)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_teacher_of_another_vocabulary_is_refused_with_the_way_out(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    other = with_tokens(tmp_path / "other", tiny_model_dir, ["zebra"])
    with pytest.raises(RecipeError, match=r"'zebra'.*posttrain data answers.*trl\.experimental\.gold"):
        run(make_recipe("distill", sections=by(other)))


def test_an_output_layer_padded_to_another_size_is_no_other_vocabulary(
    make_recipe: Callable[..., Path], tmp_path: Path, other_model_dir: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    padded = tmp_path / "padded"
    model = AutoModelForCausalLM.from_pretrained(other_model_dir)
    model.resize_token_embeddings(576)
    model.save_pretrained(padded)
    AutoTokenizer.from_pretrained(other_model_dir).save_pretrained(padded)
    expected = run(make_recipe("distill", "plain", sections=by(other_model_dir), max_steps=3))
    assert [line["kl"] for line in run(make_recipe("distill", "padded-run", sections=by(padded), max_steps=3))] == (
        pytest.approx([line["kl"] for line in expected], rel=1e-5)
    )


@pytest.mark.parametrize(
    ("teacher", "fields", "message"),
    [
        ({"top_k": 4}, {"hidden_cosine": 1.0}, "top_k keeps none of them"),
        ({"top_k": 100_000}, {}, "top_k is 100000, but there are"),
        ({}, {"alpha": 1.5}, r"alpha: must be in \[0, 1\]"),
        ({}, {"temperature": 0.0}, r"temperature: must be in \(0, "),
    ],
)
def test_what_cannot_be_done_is_said(
    make_recipe: Callable[..., Path],
    tiny_model_dir: Path,
    teacher: dict[str, Any],
    fields: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InputError, match=message):
        run(make_recipe("distill", sections=by(tiny_model_dir, **teacher), **fields))


def test_hidden_states_of_another_size_are_refused(
    make_recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config: Any = AutoConfig.from_pretrained(tiny_model_dir)
    config.hidden_size, config.head_dim = 48, 12
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path / "wide")
    recipe = make_recipe("distill", sections=by(tmp_path / "wide"), hidden_cosine=1.0)
    with pytest.raises(RecipeError, match="the student's have 32 numbers and the teacher's 48"):
        run(recipe)
    assert run(make_recipe("distill", "without", sections=by(tmp_path / "wide"), max_steps=1))[0]["kl"] > 0


def test_the_private_names_of_trl_are_as_they_were() -> None:
    from trl.models.utils import _ForwardRedirection
    from trl.trainer.sft_trainer import SFTTrainer

    parameters = list(inspect.signature(_ForwardRedirection.__call__).parameters)
    assert parameters[:4] == ["self", "wrapper_module", "original_module", "method"]
    source = inspect.getsource(SFTTrainer)
    assert 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}' in source
    assert "self._total_train_tokens = 0" in source
    assert list(inspect.signature(SFTTrainer.compute_loss).parameters) == [
        "self",
        "model",
        "inputs",
        "return_outputs",
        "num_items_in_batch",
    ]


@pytest.mark.slow
def test_a_black_box_teacher_answers_and_the_student_trains_on_its_answers(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from posttrain.recipes.model_tools import Answers

    teacher = make_recipe("sft", "teacher", max_steps=120, learning_rate=0.01, save_strategy="no")
    run(teacher)
    questions = [{"prompt": f"What is {number}+{number + 3}?"} for number in range(100, 120)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    prompts, model = str(tmp_path / "questions.jsonl"), str(tmp_path / "teacher")
    answers = Answers(prompts=prompts, model=model, max_new_tokens=24, max_bad_share=0.9)
    assert answers.run(tmp_path / "answers").startswith(f"{tmp_path / 'answers' / 'answers.jsonl'}: ")
    data = {"train": {"path": str(tmp_path / "answers" / "answers.jsonl"), "format": "messages"}}
    assert len(run(make_recipe("sft", "student", sections={"data": data}, max_steps=2))) == 2
