"""Classifiers train, keep the names of their classes, learn from teachers, and refuse what makes no sense."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from posttrain.chat_templates.errors import InputError
from posttrain.data_tools.errors import DataError
from posttrain.evals.models import load_model
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.load import load

from .conftest import losses, run

COLOURS = ("amber", "blue", "crimson")
ENCODER = {
    "model_type": "modernbert",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "cls_token_id": 1,
    "sep_token_id": 1,
}
BERT = {**ENCODER, "model_type": "bert", "hidden_dropout_prob": 0.0}
del BERT["cls_token_id"], BERT["sep_token_id"]


def text_of(colour: str, length: int = 0) -> str:
    return f"{colour} is {'so ' * length}{colour}"


def write_rows(path: Path, label: Callable[[int], Any], rows: int = 60) -> str:
    """Writes texts that begin and end with a colour, with the label of the colour's number."""
    lines = [{"text": text_of(COLOURS[n % 3], n % 5), "label": label(n % 3)} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


LABELS: dict[str, Callable[[int], Any]] = {
    "single_label": lambda n: COLOURS[n],
    "multi_label": lambda n: [COLOURS[n], "warm"] if n != 1 else [],
    "regression": lambda n: n - 1.0,
}


@pytest.fixture
def recipe(make_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a recipe over coloured rows."""

    def make(problem: str = "single_label", name: str = "run", **options: Any) -> Path:
        rows = write_rows(tmp_path / f"{problem}.jsonl", LABELS[problem])
        classify = {"problem": problem, **options.pop("classify", {})}
        data = {"train": {"path": rows}, "eval": {"path": rows}, **options.pop("data", {})}
        sections = {"classify": classify, "data": data, **options.pop("sections", {})}
        trainer = {"max_steps": 45, "learning_rate": 0.01, "save_strategy": "no", "eval_strategy": "epoch", **options}
        return make_recipe("classify", name, sections=sections, **trainer)

    return make


def last_evaluation(run_dir: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_loss" in line][-1]


def predict(run_dir: Path, texts: list[str]) -> torch.Tensor:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(run_dir, dtype=torch.float32).eval()
    batch = AutoTokenizer.from_pretrained(run_dir)(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.mark.parametrize(
    ("problem", "figure", "least"), [("single_label", "accuracy", 1.0), ("multi_label", "accuracy", 1.0)]
)
def test_a_decoder_learns_labels_and_the_saved_model_names_them(
    recipe: Callable[..., Path], problem: str, figure: str, least: float
) -> None:
    from transformers import pipeline

    run_dir = run(recipe(problem))
    assert last_evaluation(run_dir)[f"eval_{figure}"] >= least
    config = json.loads((run_dir / "config.json").read_text())
    assert config["problem_type"] == f"{problem}_classification"
    assert set(config["label2id"]) == {*COLOURS, "warm"} - ({"warm"} if problem == "single_label" else {"blue"})
    classifier = pipeline("text-classification", model=str(run_dir), device="cpu")
    assert classifier(text_of("crimson"))[0]["label"] in ("crimson", "warm")


def test_a_regression_learns_numbers(recipe: Callable[..., Path]) -> None:
    run_dir = run(recipe("regression", max_steps=40))
    assert last_evaluation(run_dir)["eval_pearson"] > 0.98
    assert json.loads((run_dir / "config.json").read_text())["problem_type"] == "regression"
    texts = [text_of(colour) for colour in COLOURS]
    assert predict(run_dir, texts)[:, 0].tolist() == pytest.approx([-1, 0, 1], abs=0.4)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_encoder_pools_as_the_recipe_says(recipe: Callable[..., Path], tiny_model_dir: Path, pooling: str) -> None:
    model = {"config": ENCODER, "tokenizer": str(tiny_model_dir)}
    run_dir = run(recipe(classify={"pooling": pooling}, sections={"model": model}, max_steps=4))
    assert json.loads((run_dir / "config.json").read_text())["classifier_pooling"] == pooling
    assert len(losses(run_dir)) == 4


def test_pooling_is_refused_where_the_model_has_one_way_only(recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match="a llama pools in its own way only"):
        run(recipe(classify={"pooling": "mean"}))


@pytest.mark.parametrize("quantization", [None, "nf4"])
@pytest.mark.parametrize("body", ["llama", "bert"])
def test_adapters_leave_the_head_whole_in_float32_and_the_final_model_is_plain(
    recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path, quantization: str | None, body: str
) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    if quantization:
        pytest.importorskip("bitsandbytes")
    base = tmp_path / "base"
    if body == "bert":
        torch.manual_seed(0)
        config = BertConfig(**{key: value for key, value in BERT.items() if key != "model_type"}, vocab_size=512)
        AutoModelForSequenceClassification.from_config(config).to(torch.bfloat16).save_pretrained(base)
    else:
        AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(base)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(base)
    sections: dict[str, Any] = {"model": {"name_or_path": str(base)}, "lora": {"r": 8, "alpha": 16}}
    if quantization:
        sections["quantization"] = quantization
    run_dir = run(recipe(sections=sections, learning_rate=0.01))
    saved = load_file(run_dir / "adapter" / "adapter_model.safetensors")
    head = {name: tensor for name, tensor in saved.items() if "score" in name or "classifier" in name}
    assert head
    assert all(tensor.dtype == torch.float32 for tensor in head.values())
    assert losses(run_dir)[-1] < 0.7 * losses(run_dir)[0]
    assert not (run_dir / "adapter_config.json").exists()
    assert load_model(str(run_dir / "adapter")).outputs == 3, "an adapter's checkpoint is scored as a classifier"
    right = predict(run_dir, [text_of(colour) for colour in COLOURS]).argmax(-1).tolist()
    assert right == [0, 1, 2]


@pytest.mark.slow
def test_class_weights_move_the_answers_towards_the_rare_class(recipe: Callable[..., Path], tmp_path: Path) -> None:
    rows = tmp_path / "noise.jsonl"
    lines = [{"text": "the same", "label": "rare" if n % 8 == 0 else "common"} for n in range(64)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": {"path": str(rows)}, "eval": {"path": str(rows)}}
    large = {"per_device_train_batch_size": 64, "max_steps": 30}
    shares = {}
    for name, weights in (("plain", None), ("balanced", "balanced"), ("named", {"rare": 7.0})):
        found = run(recipe(name=name, data=data, classify={"class_weights": weights}, **large))
        shares[name] = predict(found, ["the same"]).softmax(-1)[0, 1].item()
    assert shares["plain"] == pytest.approx(1 / 8, abs=0.1)
    assert shares["balanced"] == pytest.approx(0.5, abs=0.1)
    assert shares["named"] == pytest.approx(shares["balanced"], abs=0.02)


def test_a_student_learns_from_a_teacher_alone_whatever_the_order_of_its_classes(
    recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    """With alpha 0 the labels carry no loss: the student's are shuffled, and it answers as its teacher does."""
    teacher = run(recipe(name="teacher"))
    wrong = write_rows(tmp_path / "wrong.jsonl", lambda n: COLOURS[(n + 1) % 3])
    path = recipe(
        name="student",
        data={"train": {"path": wrong}},
        classify={"labels": ["crimson", "amber", "blue"]},
        sections={"teacher": {"name_or_path": str(teacher)}},
        alpha=0.0,
        temperature=1.0,
        learning_rate=0.005,
        per_device_train_batch_size=12,
    )
    student = run(path)
    texts = [text_of(colour) for colour in COLOURS]
    probabilities = predict(student, texts).softmax(-1)
    torch.testing.assert_close(probabilities[:, [1, 2, 0]], predict(teacher, texts).softmax(-1), atol=0.1, rtol=0)


def test_a_teacher_with_other_classes_or_another_vocabulary_is_refused(
    recipe: Callable[..., Path], tmp_path: Path, tiny_model_dir: Path
) -> None:
    from transformers import AutoTokenizer

    teacher = run(recipe(name="teacher", max_steps=1))
    taught = {"sections": {"teacher": {"name_or_path": str(teacher)}}}
    rows = tmp_path / "two.jsonl"
    lines = [{"text": f"It is {colour}", "label": colour} for colour in COLOURS[:2] for _ in range(4)]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    two = {"train": {"path": str(rows)}, "eval": {"path": str(rows)}}
    with pytest.raises(RecipeError, match="it has crimson besides"):
        run(recipe(name="two", data=two, **taught))
    with pytest.raises(RecipeError, match="was trained for single_label, but the student is for regression"):
        run(recipe("regression", name="other", **taught))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(tmp_path / "more tokens")
    model = {"name_or_path": str(tiny_model_dir), "tokenizer": str(tmp_path / "more tokens")}
    with pytest.raises(RecipeError, match="its vocabulary is not the student's"):
        run(recipe(name="grown", sections={"teacher": {"name_or_path": str(teacher)}, "model": model}))


@pytest.mark.parametrize(
    ("problem", "trainer", "says"),
    [
        ("regression", {"label_smoothing_factor": 0.1}, "nothing is smoothed where the problem is regression"),
        ("multi_label", {"label_smoothing_factor": 0.1}, "nothing is smoothed"),
        ("single_label", {"alpha": 0.3}, "alpha weighs a teacher, and the recipe has none"),
        (
            "single_label",
            {"train_sampling_strategy": "batch_rebalance"},
            "train_sampling_strategy: has no value 'batch_rebalance'",
        ),
    ],
)
def test_trainer_fields_that_mean_nothing_here_are_refused(
    recipe: Callable[..., Path], problem: str, trainer: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        run(recipe(problem, **trainer))


def test_labels_that_cannot_be_learnt_are_refused(recipe: Callable[..., Path], tmp_path: Path) -> None:
    one = write_rows(tmp_path / "one.jsonl", lambda n: "amber")
    with pytest.raises(DataError, match="only one class, 'amber'"):
        run(recipe(data={"train": {"path": one}}))
    strange = write_rows(tmp_path / "strange.jsonl", lambda n: ("amber", "blue", "green")[n])
    with pytest.raises(DataError, match=r"data\.eval: .*'green' \(20 rows\)"):
        run(recipe(name="two", data={"eval": {"path": strange}}))
    words = write_rows(tmp_path / "words.jsonl", lambda n: COLOURS[n])
    with pytest.raises(DataError, match=r"data\.train: words\.jsonl:1: the label '\w+' is not a number"):
        run(recipe("regression", name="three", data={"train": {"path": words}}))
    with pytest.raises(RecipeError, match=r"no class 'bleu'; did you mean 'blue'"):
        run(recipe(name="four", classify={"class_weights": {"bleu": 2.0}}))


def test_several_names_in_one_text_are_no_class_and_the_hint_makes_a_list_of_them(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    texts = ["sports,politics", "business", "politics,business", "sports"]
    (tmp_path / "table.csv").write_text(
        "text,label\n" + "".join(f'about {n},"{text}"\n' for n, text in enumerate(texts))
    )
    source = {"path": str(tmp_path / "table.csv"), "format": "classification"}
    data = {"train": source, "eval": source}
    with pytest.raises(DataError, match=r"data\.train: .* no label is a list") as caught:
        run(recipe("multi_label", data=data, max_steps=1))
    written = re.search(r"\{\{.*?\}\}", caught.value.hint or "")
    assert written is not None
    source = {"path": str(tmp_path / "table.csv"), "text": "{{ text }}", "label": written[0]}
    run_dir = run(recipe("multi_label", data={"train": source, "eval": source}, max_steps=1))
    config = json.loads((run_dir / "config.json").read_text())
    assert set(config["label2id"]) == {"business", "politics", "sports"}


METRIC = """
import datasets
import evaluate


class Share(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"share": sum(p == r for p, r in zip(predictions, references)) / len(references)}
"""


def test_a_metric_script_beside_the_recipe_is_logged_and_scored_without_a_network(
    recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from posttrain.evals.records import ScoreStore
    from posttrain.recipes.scoring import score_models

    pytest.importorskip("evaluate")
    (tmp_path / "share.py").write_text(METRIC)
    path = recipe(classify={"metrics": ["share.py"]})
    suite = {"classification": [{"name": "colours", "path": str(tmp_path / "single_label.jsonl")}]}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    run_dir = run(path)
    line = last_evaluation(run_dir)
    assert line["eval_share:share"] == line["eval_accuracy"] > 0
    code = score_models(
        [str(run_dir)], suite=str(tmp_path / "suite.yaml"), watch=False, final_only=True, output=None, references={}
    )
    assert code == 0
    (score,) = ScoreStore(run_dir).load()
    figures = {metric.name: metric.value for metric in score.metrics}
    assert figures["share:share"] == figures["accuracy"] == line["eval_accuracy"]


def test_a_metric_script_that_is_not_there_is_a_problem_of_the_recipe(recipe: Callable[..., Path]) -> None:
    from posttrain.data_tools.errors import SpecError

    with pytest.raises(SpecError, match=r"classify\.metrics.*no such file.*shared\.py"):
        load(recipe(classify={"metrics": ["./shared.py"]}))


def test_without_the_metrics_library_one_error_says_what_to_install(
    recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "evaluate", None)
    with pytest.raises(InputError, match=r"pip install 'posttrain\[metrics\]'"):
        run(recipe(classify={"metrics": ["accuracy"]}))
