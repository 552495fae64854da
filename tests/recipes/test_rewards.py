"""Completions are scored by functions, whatever they do wrong, and by models that read what they were trained on."""

from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain import chat_templates
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.examples import Encoder
from posttrain.data_tools.functions import load_function
from posttrain.evals.errors import EvalError
from posttrain.recipes import rewards
from posttrain.recipes.errors import RecipeError, RunError
from posttrain.recipes.schema import RewardSpec

from ..conftest import build_tokenizer

PROMPT = [{"role": "user", "content": "What is 1+4?"}]
INPUTS: dict[str, Any] = {
    "prompts": ["a", "b", "c"],
    "completions": ["x", "yy", "zzz"],
    "completion_ids": [[1], [1, 2], [1, 2, 3]],
    "answer": [1, 2, 3],
}


def scorer(folder: Path, tokenizer: Any, *, template: str | None = "chatml", labels: int = 1) -> Path:
    """Saves a tiny reward model, as a `reward` run would."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    if template:
        chat_templates.install(chat_templates.load(template), tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.num_labels = labels
    LlamaForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def policy_tokenizer(template: str | None = "chatml") -> Any:
    tokenizer = build_tokenizer()
    if template:
        chat_templates.install(chat_templates.load(template), tokenizer)
    return tokenizer


def load(folder: Path, tokenizer: Any) -> rewards.RewardModel:
    return rewards.RewardModel(str(folder), tokenizer, torch.device("cpu"), 2)


def ids_read(model: rewards.RewardModel, *rows: Any) -> list[list[int]]:
    """Returns the tokens that a model reads of prompts, answers and the tokens drawn for them."""
    return model.reader.ids(model.completions(*rows))


def as_trained(tokenizer: Any, prompt: Any, answer: Any) -> list[int]:
    """Returns the tokens of a row of a `reward` run: prompt and chosen answer."""
    template = chat_templates.from_tokenizer(tokenizer) if tokenizer.chat_template else None
    row = {"prompt": prompt, "completion": answer, "label": True}
    return Encoder(tokenizer, template, kind="unpaired")([row]).ids.tolist()


@pytest.mark.parametrize("template", ["chatml", "llama3", "alpaca"])
def test_a_sampled_answer_that_ends_is_read_as_the_same_answer_in_training(tmp_path: Path, template: str) -> None:
    tokenizer = policy_tokenizer(template)
    model = load(scorer(tmp_path, build_tokenizer(), template=template), tokenizer)
    answer = [{"role": "assistant", "content": "It is 5."}]
    sampled = [*tokenizer("It is 5.")["input_ids"], tokenizer.eos_token_id]
    assert ids_read(model, [PROMPT], [answer], [sampled]) == [as_trained(tokenizer, PROMPT, answer)]


def test_a_text_answer_that_ends_is_read_as_in_training(tmp_path: Path) -> None:
    tokenizer = policy_tokenizer(None)
    model = load(scorer(tmp_path, build_tokenizer(), template=None), tokenizer)
    sampled = [*tokenizer(" It is 5.")["input_ids"], tokenizer.eos_token_id]
    assert ids_read(model, ["1+4?"], [" It is 5."], [sampled]) == [as_trained(tokenizer, "1+4?", " It is 5.")]


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_an_answer_that_was_cut_has_no_end(tmp_path: Path, template: str) -> None:
    tokenizer = policy_tokenizer()
    model = load(scorer(tmp_path, build_tokenizer(), template=template), tokenizer)
    sampled = tokenizer("It is")["input_ids"]
    [ids] = ids_read(model, [PROMPT], [[{"role": "assistant", "content": "It is"}]], [sampled])
    assert model.reader.loaded.tokenizer.decode(ids).endswith("It is")


@pytest.mark.parametrize("template", ["chatml", "llama3", None])
def test_an_answer_of_nothing_is_read_as_its_end_alone(tmp_path: Path, template: str | None) -> None:
    tokenizer = policy_tokenizer(template and "chatml")
    model = load(scorer(tmp_path, build_tokenizer(), template=template), tokenizer)
    prompt, said = (PROMPT, [{"role": "assistant", "content": "x"}]) if template else ("1+4?", "x")
    nothing = [{"role": "assistant", "content": ""}] if template else ""
    own: Any = model.reader.loaded.tokenizer
    whole = as_trained(own, prompt, said)
    [ended, cut] = ids_read(model, [prompt] * 2, [nothing] * 2, [[tokenizer.eos_token_id], []])
    [x] = own("x")["input_ids"]
    place = len(whole) - 1 - whole[::-1].index(x)
    assert ended == whole[:place] + whole[place + 1 :]
    assert cut == whole[:place]


def test_a_model_with_another_template_reads_the_text_in_its_own(tmp_path: Path) -> None:
    tokenizer = policy_tokenizer("chatml")
    model = load(scorer(tmp_path, build_tokenizer(), template="llama3"), tokenizer)
    answer = [{"role": "assistant", "content": "It is 5."}]
    sampled = [*tokenizer("It is 5.")["input_ids"], tokenizer.eos_token_id]
    own = model.reader.loaded.tokenizer
    assert ids_read(model, [PROMPT], [answer], [sampled]) == [as_trained(own, PROMPT, answer)]


def test_the_score_is_the_models_own_whatever_stands_beside_it(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    tokenizer = policy_tokenizer()
    model = load(scorer(tmp_path, build_tokenizer()), tokenizer)
    texts = ["5", "It is 5, of course.", "No idea"]
    answers = [[{"role": "assistant", "content": text}] for text in texts]
    sampled = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    expected = [plain(torch.tensor([as_trained(tokenizer, PROMPT, answer)])).logits.item() for answer in answers]
    assert model.score([PROMPT] * 3, answers, sampled) == pytest.approx(expected, abs=1e-5)


def test_a_language_model_is_refused_as_a_reward_model(tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match="is not a sequence classifier but LlamaForCausalLM"):
        load(tiny_model_dir, policy_tokenizer())


def test_a_classifier_of_three_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has 3 outputs instead of one"):
        load(scorer(tmp_path, build_tokenizer(), labels=3), policy_tokenizer())


def test_a_model_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="nowhere: cannot load"):
        load(tmp_path / "nowhere", policy_tokenizer())


def test_conversations_for_a_model_without_a_template_are_one_clear_error(tmp_path: Path) -> None:
    model = load(scorer(tmp_path, build_tokenizer(), template=None), policy_tokenizer())
    with pytest.raises(EvalError, match="has no chat template, but the prompts are conversations"):
        model.score([PROMPT], [[{"role": "assistant", "content": "5"}]], [[4]])


def raises(completions: list[str], **columns: Any) -> list[float]:
    return [1 / (len(text) - 2) for text in completions]


FAULTS = {
    "an exception": (raises, r"reward f: raised ZeroDivisionError: .*row 1: prompt 'b', completion 'yy'"),
    "too few": (lambda completions, **_: [1.0], "reward f: returned 1 values for 3 completions"),
    "nothing": (lambda **_: None, "reward f: raised TypeError"),
    "not a number": (
        lambda **_: [0.0, float("nan"), 1.0],
        r"returned nan, which is neither a finite number nor None; row 1: .*'yy'",
    ),
    "infinite": (lambda **_: [0.0, 1.0, float("inf")], "returned inf.*row 2"),
    "text": (lambda **_: ["1", "2", "3"], "returned '1'.*row 0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_function_does_wrong_is_one_error_that_names_it_and_the_row(fault: str) -> None:
    function, message = FAULTS[fault]
    with pytest.raises(RunError, match=message):
        rewards.function_term(function, "f")(**INPUTS)


def test_a_function_gets_the_columns_it_names_or_all() -> None:
    seen: dict[str, Any] = {}

    def everything(**columns: Any) -> list[float]:
        seen.update(columns)
        return [0, 1, 2]

    assert rewards.function_term(everything, "f")(**INPUTS) == [0.0, 1.0, 2.0]
    assert seen == INPUTS
    assert rewards.function_term(lambda answer: [value * 2 for value in answer], "f")(**INPUTS) == [2.0, 4.0, 6.0]
    assert rewards.function_term(lambda prompts, completions: torch.ones(3), "f")(**INPUTS) == [1.0, 1.0, 1.0]


def test_a_function_is_found_in_a_file_and_in_a_package(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def good(completions):\n    return [1.0] * len(completions)\n")
    assert load_function(f"{tmp_path / 'mine.py'}:good")(["a", "b"]) == [1.0, 1.0]
    assert load_function("json:dumps")(1) == "1"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{folder}/mine.py:bad", "has no function bad"),
        ("{folder}/broken.py:good", "cannot be imported: SyntaxError"),
        ("no_such_package:good", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_function_that_cannot_be_found_is_one_clear_error(tmp_path: Path, reference: str, message: str) -> None:
    (tmp_path / "mine.py").write_text("def good(completions):\n    return [1.0] * len(completions)\n")
    (tmp_path / "broken.py").write_text("def good(:\n")
    with pytest.raises(PosttrainError, match=message):
        load_function(reference.format(folder=tmp_path))


def test_an_asynchronous_function_is_refused_where_nothing_awaits_it() -> None:
    async def later(**columns: Any) -> list[float]:
        return []

    with pytest.raises(RecipeError, match="asynchronous"):
        rewards.for_each(rewards.function_term(later, "f"), "f")


def test_terms_are_named_after_what_they_are() -> None:
    assert rewards.name_of(RewardSpec(function="a.b:good")) == "good"
    assert rewards.name_of(RewardSpec(function="/x/y.py:good", name="mine")) == "mine"
    assert rewards.name_of(RewardSpec(model="/runs/reward")) == "reward"
