"""Canonical rows of prompts, answers and labels to token ids, in batches."""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..chat_templates import ChatTemplate
from .encode import Ids, Talk, TextEncoder
from .errors import RowError
from .tokens import EMPTY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .spec import Kind

Row = dict[str, Any]

SAME_TOKENS = "chosen equals rejected as tokens"
NO_TEXT = "empty text"

# The lists of tokens that an example of each kind is made of, in order.
PARTS: "dict[Kind, tuple[str, ...]]" = {
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "unpaired": ("prompt_ids", "completion_ids"),
    "prompt": ("prompt_ids",),
    "classification": ("input_ids",),
}


@dataclass(frozen=True)
class Example:
    """One tokenised example: its parts, as ``PARTS`` names them, and its further columns."""

    parts: tuple[Ids, ...]
    fields: Row = field(default_factory=dict)


@dataclass(frozen=True)
class ExampleBatch:
    """Tokenised examples, end to end.

    Attributes:
        ids: Token ids of all parts of all kept examples, int32, ``[tokens]``.
        lengths: Tokens of each part, int64, ``[kept, parts]``.
        fields: The further columns of each kept example, as JSON, ``[kept]``.
        types: For each of these columns the types of value found, as ``type_of`` names them, each with the number of
            the first row that has it.
        dropped: By the number of a row in the batch: why it is not kept.
        cut: Texts to classify that were cut.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    fields: list[str]
    types: dict[str, dict[str, int]]
    dropped: dict[int, RowError]
    cut: int = 0


@dataclass
class ExampleEncoder:
    """Tokenises rows of one kind for one tokenizer and template.

    Prompts and answers are those of :class:`.encode.TextEncoder`.

    A text to classify is tokenised as the tokenizer does it by itself, a second text as the second of a pair.

    Attributes:
        tokenizer: The tokenizer.
        template: For conversations; None if there are none.
        kind: What the examples are; a preference row under ``unpaired`` becomes a wanted and an unwanted one.
        cut_to: Tokens that a text to classify is cut to; None leaves it whole.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate | None
    kind: "Kind"
    cut_to: int | None = None

    def __call__(self, rows: Sequence[Row]) -> ExampleBatch:
        """Tokenises canonical rows, whose prompts are text or messages."""
        cut = 0
        if self.kind == "classification":
            made, cut = self._classified(rows)
        else:
            talks = [
                Talk(row["prompt"], [row[name] for name in _answers_of(row, self.kind)], row.get("tools"))
                for row in rows
            ]
            made = [
                split if isinstance(split, RowError) else self._example(row, *split)
                for row, split in zip(rows, self._texts.split(talks), strict=True)
            ]
        return _join(made, len(PARTS[self.kind]), cut)

    @functools.cached_property
    def _texts(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.template, whole=True)

    def _example(self, row: Row, prompt: Ids, answers: list[Ids]) -> "list[Example] | RowError":
        """Makes the examples of a row from its tokens."""
        if self.kind == "prompt":
            return [Example((prompt,), row)] if prompt else RowError(EMPTY)
        empty = next((name for name, ids in zip(_answers_of(row), answers, strict=True) if not ids), None)
        if empty:
            return RowError(f"empty {empty}")
        if "chosen" not in row:
            return [Example((prompt, answers[0]), {"label": row["label"]})]
        chosen, rejected = answers
        if chosen == rejected:
            return RowError(SAME_TOKENS)
        if self.kind == "unpaired":
            return [Example((prompt, chosen), {"label": True}), Example((prompt, rejected), {"label": False})]
        return [Example((prompt, chosen, rejected), {"margin": row["margin"]} if "margin" in row else {})]

    def _classified(self, rows: Sequence[Row]) -> "tuple[list[list[Example] | RowError], int]":
        """Tokenises texts, or pairs of texts, with the tokens around them; also counts those that had to be cut."""
        texts = [(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows]
        made = _with_specials(self.tokenizer, None)(texts)
        long = [number for number, ids in enumerate(made) if self.cut_to is not None and len(ids) > self.cut_to]
        if long:
            cut = _with_specials(self.tokenizer, self.cut_to)([texts[number] for number in long])
            made = list(made)
            for number, ids in zip(long, cut, strict=True):
                made[number] = ids
        around = [self.tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)]
        return [
            [Example((ids,), {"label": row["label"]})] if len(ids) > around["text_pair" in row] else RowError(NO_TEXT)
            for row, ids in zip(rows, made, strict=True)
        ], len(long)


def _answers_of(row: Row, kind: "Kind | None" = None) -> tuple[str, ...]:
    """Names the columns of a row's answers."""
    if kind == "prompt":
        return ()
    return ("chosen", "rejected") if "chosen" in row else ("completion",)


def _with_specials(tokenizer: "PreTrainedTokenizerBase", cut_to: int | None) -> Callable[[Sequence[Any]], list[Ids]]:
    """Returns a function from texts, or pairs of texts, to ids as the tokenizer makes them for a classifier."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        call: Any = tokenizer
        options = {"truncation": True, "max_length": cut_to} if cut_to is not None else {}
        return lambda texts: [
            call(*((text,) if isinstance(text, str) else text), **options)["input_ids"] for text in texts
        ]
    from tokenizers import Tokenizer

    rust = Tokenizer.from_str(backend.to_str())
    rust.no_padding()
    rust.no_truncation()
    if cut_to is not None:
        rust.enable_truncation(cut_to, direction=tokenizer.truncation_side)
    rust.encode_special_tokens = True
    return lambda texts: [item.ids for item in rust.encode_batch_fast(list(texts), add_special_tokens=True)]


def type_of(value: Any) -> str:
    """Names the type of a value of a column: ``str``, ``list[int]``, ``messages``, ``json`` and so on."""
    if isinstance(value, list):
        inner = {type_of(part) for part in value}
        if inner <= {"message"} and value:
            return "messages"
        if inner <= {"int", "float"} and "float" in inner:
            return "list[float]"
        return f"list[{''.join(inner)}]" if len(inner) <= 1 and inner <= {"str", "int", "bool"} else "json"
    if isinstance(value, dict):
        plain = value.keys() == {"role", "content"} and all(isinstance(part, str) for part in value.values())
        return "message" if plain else "json"
    return type(value).__name__ if isinstance(value, str | int | float) else "json"


def _join(made: "Sequence[list[Example] | RowError]", parts: int, cut: int) -> ExampleBatch:
    """Lays the kept examples end to end."""
    kept: list[Example] = []
    dropped: dict[int, RowError] = {}
    types: dict[str, dict[str, int]] = {}
    for number, result in enumerate(made):
        if isinstance(result, RowError):
            dropped[number] = result
            continue
        kept += result
        for name, value in result[0].fields.items():
            types.setdefault(name, {}).setdefault(type_of(value), number)
    lengths = np.array([[len(ids) for ids in example.parts] for example in kept], dtype=np.int64).reshape(-1, parts)
    flat = chain.from_iterable(chain.from_iterable(example.parts for example in kept))
    return ExampleBatch(
        np.fromiter(flat, dtype=np.int32, count=int(lengths.sum())),
        lengths,
        [json.dumps(example.fields, ensure_ascii=False) for example in kept],
        types,
        dropped,
        cut,
    )
