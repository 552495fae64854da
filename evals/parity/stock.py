"""What stock transformers makes of a model folder, by the folder alone: what a user or a server gets that loads it.

The suite knows more than the folder's files say, such as that the tokenizer's end of text ends an answer whatever
``generation_config.json`` names. Here nothing is known besides: ``AutoTokenizer``, ``apply_chat_template`` and
``generate`` with the folder's own generation configuration, greedily.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..models import LoadedModel, auto_class, kind_of, telling_where
from .portrait import GreedyAnswer, Material, Portrait, portray

STOCK = "transformers"
"""What the command line calls it."""
STOCK_FORM = "read by transformers alone"
"""What a comparison calls it."""


def load_stock(folder: Path, dtype: str) -> LoadedModel:
    """Loads a model folder as its user does.

    Raises:
        EvalError: transformers cannot load it.
    """
    from transformers import AutoConfig, AutoTokenizer

    with telling_where(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        kind: Any = auto_class(kind_of(AutoConfig.from_pretrained(folder).architectures))
        model = kind.from_pretrained(folder, dtype=dtype)
    return LoadedModel(model.eval(), tokenizer, None)


def portray_stock(name: str, loaded: LoadedModel, material: Material) -> Portrait:
    """Asks a model for all that can be compared, with nothing but the methods of its own classes where they decide.

    Args:
        name: What this form is called.
        loaded: What :func:`load_stock` returned.
        material: What it is tried on.
    """
    tokenizer: Any = loaded.tokenizer
    told = portray(name, loaded, replace(material, questions=()))
    if loaded.outputs is not None:
        return told
    named = loaded.model.generation_config.eos_token_id  # type: ignore[union-attr]
    stops = {named} - {None} if not isinstance(named, list) else set(named)
    requests = dict(told.requests)
    if tokenizer.chat_template:
        for number, talk in enumerate(material.questions, start=1):
            requests[f"chat {number}"] = tuple(_request(tokenizer, talk)["input_ids"][0].tolist())
    return replace(
        told,
        stops={stop: str(tokenizer.convert_ids_to_tokens(stop)) for stop in sorted(stops)},
        requests=requests,
        answers=tuple(_answer(loaded, talk, material.max_new_tokens, stops) for talk in material.questions),
    )


def _request(tokenizer: Any, talk: Sequence[dict[str, str]]) -> Any:
    """Returns a question as tensors: under the template, or plain where there is none."""
    if not tokenizer.chat_template:
        return tokenizer(talk[-1]["content"], return_tensors="pt")
    return tokenizer.apply_chat_template(list(talk), add_generation_prompt=True, return_tensors="pt", return_dict=True)


def _answer(loaded: LoadedModel, talk: Sequence[dict[str, str]], most: int, stops: set[int]) -> GreedyAnswer:
    """Answers one question greedily; the token that ends the answer is no part of the text."""
    import torch

    model: Any = loaded.model
    given = _request(loaded.tokenizer, talk)
    given.pop("token_type_ids", None)
    with torch.inference_mode():
        output = model.generate(**given, do_sample=False, max_new_tokens=most)
    prompt = given["input_ids"][0].tolist()
    ids = output[0, len(prompt) :].tolist()
    ended = bool(ids) and ids[-1] in stops
    text: Any = loaded.tokenizer.decode(ids[: len(ids) - ended], skip_special_tokens=True)
    return GreedyAnswer(tuple(prompt), tuple(ids), text, len(prompt))
