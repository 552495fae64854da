"""Generation in batches: the same answer in any company, drawn from the distribution that was asked for."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from posttrain.chat_templates.errors import PosttrainError
from posttrain.data_tools.encode import TextEncoder
from posttrain.data_tools.errors import DataError
from posttrain.data_tools.generate import Sampling, draw, generate, load_vllm, places, room
from posttrain.evals.models import load_language_model


@pytest.fixture(scope="module")
def loaded(tiny_model_dir: Path) -> tuple[Any, Any]:
    loaded = load_language_model(str(tiny_model_dir))
    return loaded.model, loaded.tokenizer


def prompts(tokenizer: Any, number: int = 9) -> list[list[int]]:
    return [tokenizer("hello " * (1 + i % 4) + f"question {i}")["input_ids"] for i in range(number)]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.8}])
def test_an_answer_does_not_depend_on_the_batch_or_the_order(loaded: tuple[Any, Any], sampling: dict[str, Any]) -> None:
    model, tokenizer = loaded
    ids = prompts(tokenizer)
    keys = [""] * len(ids)
    alone = [g.text for g in generate(model, tokenizer, ids, Sampling(12, batch_size=1, **sampling), keys)]
    for size in (4, 9):
        found = generate(model, tokenizer, ids[::-1], Sampling(12, batch_size=size, **sampling), keys)
        assert [g.text for g in found][::-1] == alone
    assert len(set(alone)) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_computes_nan_answers_nothing(tiny_model_dir: Path, temperature: float) -> None:
    broken = load_language_model(str(tiny_model_dir))
    broken.model.model.norm.weight.data[3] = float("nan")
    ids = prompts(broken.tokenizer, 3)
    with pytest.raises(PosttrainError, match="do the weights hold NaN"):
        list(generate(broken.model, broken.tokenizer, ids, Sampling(4, temperature=temperature), [""] * 3))


def test_seeds_and_keys_draw_anew(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = prompts(tokenizer, 1) * 3

    def texts(seed: int, keys: list[str]) -> list[str]:
        return [g.text for g in generate(model, tokenizer, ids, Sampling(12, temperature=1.0, seed=seed), keys)]

    assert len(set(texts(0, ["a"] * 3))) == 1, "equal prompts under equal keys are the same question"
    found = texts(0, ["0", "1", "2"])
    assert len(set(found)) == 3
    assert texts(0, ["2", "1", "0"]) == found[::-1]
    assert not set(texts(1, ["0", "1", "2"])) & set(found)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6), (2.0, 0.3)])
def test_tokens_are_drawn_with_their_chances(loaded: tuple[Any, Any], temperature: float, top_p: float) -> None:
    import torch

    model, tokenizer = loaded
    ids = prompts(tokenizer, 1)[0]
    with torch.no_grad():
        chances = (6 * model(torch.tensor([ids])).logits[0, -1].float() / temperature).softmax(-1)  # peaked
    order = chances.argsort(descending=True)
    inside = order[: int((chances[order].cumsum(0) < top_p).sum()) + 1]
    wanted = torch.zeros_like(chances)
    wanted[inside] = chances[inside] / chances[inside].sum()
    number = 4000
    sampling = Sampling(1, temperature=temperature / 6, top_p=top_p)
    drawn = draw(model, tokenizer, [ids] * number, sampling, range(number))
    counts = Counter(answer[0] for answer, _ in drawn)
    assert set(counts) <= set(inside.tolist()), "nothing outside the nucleus"
    for token, chance in enumerate(wanted.tolist()):
        spread = (chance * (1 - chance) / number) ** 0.5
        assert abs(counts[token] / number - chance) <= 5 * spread + 2 / number, (token, chance)


def test_tokens_are_counted_and_the_end_is_known(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = prompts(tokenizer)
    whole = list(generate(model, tokenizer, ids, Sampling(20), [""] * len(ids)))
    assert all((g.finish, g.completion_tokens) == ("length", 20) for g in whole)
    assert [g.prompt_tokens for g in whole] == [len(prompt) for prompt in ids]
    assert all(g.seconds > 0 for g in whole)
    ends: Any = model.generation_config.eos_token_id
    tokens = [draw(model, tokenizer, [prompt], Sampling(20), [0])[0][0] for prompt in ids]
    try:
        model.generation_config.eos_token_id = [ends, tokens[0][3], tokens[1][5]]
        ended = list(generate(model, tokenizer, ids, Sampling(20), [""] * len(ids)))
    finally:
        model.generation_config.eos_token_id = ends
    stops = {ends, tokens[0][3], tokens[1][5]}
    for row, before, after in zip(tokens, whole, ended, strict=True):
        place = next((i for i, token in enumerate(row) if token in stops), None)
        assert after.finish == ("length" if place is None else "stop")
        assert after.completion_tokens == (20 if place is None else place + 1), "the token that ends it counts"
        assert before.text.startswith(after.text)


def test_penalties_of_the_checkpoint_do_not_shape_the_answer(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = prompts(tokenizer, 2)
    plain = [g.text for g in generate(model, tokenizer, ids, Sampling(12), ["", ""])]
    try:
        model.generation_config.update(repetition_penalty=1.8, temperature=0.3, top_k=3, do_sample=True)
        assert [g.text for g in generate(model, tokenizer, ids, Sampling(12), ["", ""])] == plain
    finally:
        model.generation_config.update(repetition_penalty=1.0, temperature=1.0, top_k=50, do_sample=False)


def test_room_is_that_of_the_model(loaded: tuple[Any, Any]) -> None:
    model, _ = loaded
    assert room(model) == 256


def test_what_cannot_be_asked_is_said(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match="no chat template"):
        TextEncoder.of(loaded[1]).prompts([[{"role": "user", "content": "x"}]], where="tiny")


def test_vllm_is_asked_for_by_name_where_it_is_missing() -> None:
    import importlib.util

    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(DataError, match="vLLM is not installed"):
        load_vllm("any")


@pytest.mark.parametrize(
    ("kind", "length", "most", "learned"),
    [
        ("gpt2", {"n_positions": 12, "n_embd": 8}, 12, True),
        ("opt", {"max_position_embeddings": 12, "word_embed_proj_dim": 8, "ffn_dim": 8}, 12, True),
        ("roberta", {"max_position_embeddings": 12, "pad_token_id": 1}, 10, True),
        ("llama", {"max_position_embeddings": 12, "intermediate_size": 8}, 12, False),
        ("bloom", {}, None, False),
    ],
)
def test_a_model_reads_as_much_as_it_has_places(kind: str, length: Any, most: int | None, learned: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModel

    sizes = {"vocab_size": 99, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = AutoModel.from_config(AutoConfig.for_model(kind, **(sizes | length))).eval()
    assert places(model) == (most, learned)
    model(torch.full((1, most or 20), 5))
    if learned:
        with pytest.raises((IndexError, RuntimeError)):  # RoBERTa's is the latter
            model(torch.full((1, (most or 0) + 1), 5))
