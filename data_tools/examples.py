"""Canonical rows to examples, in batches: one or more parts of tokens, a mask of loss, and further columns.

A document, text or conversation, is an example of one part that carries loss; a prompt with its answers, or a text to
classify, has the parts that ``PARTS`` names, and its trainer decides what is learnt.
"""

import functools
import json
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..chat_templates import ChatTemplate, ConversationError, encode
from ..chat_templates.errors import InputError, PosttrainError
from ..chat_templates.probes import end_of_turn
from ..chat_templates.rendering import require_generation_marks
from .encode import REFUSED, Ids, Talk, TextEncoder
from .errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .spec import Kind

LossOn = Literal["assistant", "completion", "all"]
Row = dict[str, Any]

# The lists of tokens that an example of each kind is made of, in order; a document is the one list `input_ids`.
PARTS: "dict[Kind | None, tuple[str, ...]]" = {
    None: ("input_ids",),
    "preference": ("prompt_ids", "chosen_ids", "rejected_ids"),
    "unpaired": ("prompt_ids", "completion_ids"),
    "prompt": ("prompt_ids",),
    "classification": ("input_ids",),
}
EMPTY = "empty"
NO_LOSS = "no token carries loss"
SAME_TOKENS = "chosen equals rejected as tokens"
NO_TEXT = "empty text"


@dataclass(frozen=True)
class Example:
    """One tokenised example: its parts, as ``PARTS`` names them, a document's mask of loss, and further columns."""

    parts: tuple[Ids, ...]
    loss: NDArray[np.uint8] | None = None
    fields: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Tokenised examples, end to end.

    Attributes:
        ids: Token ids of all parts of all kept examples, int32, ``[tokens]``.
        loss: 1 where a token of a document carries loss, uint8, ``[tokens]``.
        lengths: Tokens of each part, int64, ``[kept, parts]``.
        fields: The further columns of each kept example, as JSON, ``[kept]``; empty for documents, which have none.
        types: For each of these columns the types of value found, as ``type_of`` names them, each with the number of
            the first row that has it.
        dropped: By the number of a row in the batch: why it is not kept.
        cut: Texts to classify that were cut.
    """

    ids: NDArray[np.int32]
    loss: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    fields: list[str]
    types: dict[str, dict[str, int]]
    dropped: dict[int, RowError]
    cut: int


@dataclass
class Encoder:
    """Tokenises rows for one tokenizer and template; texts, prompts and answers as :class:`.encode.TextEncoder` does.

    Documents: ``text`` rows are what the tokenizer puts before a text (BOS, if any), the text and EOS; all of it
    carries loss. ``messages`` rows are what the chat template makes of them: the template, not we, ends turns. Loss on
    the assistant (``assistant``), on its last turn only (``completion``), or on everything. ``prompt_completion`` rows
    are BOS, prompt, completion, EOS, with loss on the completion and EOS (``all``: on the prompt too); as messages,
    they are one conversation with loss on the assistant's part of the completion.

    A text to classify is tokenised as the tokenizer does it by itself, a second text as the second of a pair.

    Attributes:
        tokenizer: The tokenizer.
        template: For conversations; None if there are none.
        loss_on: Which tokens of documents carry loss.
        kind: What the examples are, None for documents; a preference row under ``unpaired`` becomes a wanted and an
            unwanted one.
        cut_to: Tokens that a text to classify is cut to; None leaves it whole.

    Raises:
        InputError: The tokenizer has no EOS, or messages come without a chat template.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate | None = None
    loss_on: LossOn = "assistant"
    kind: "Kind | None" = None
    cut_to: int | None = None

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Tokenises canonical rows, documents of any mixture of kinds; the order of those kept is the order given."""
        if self.kind is None:
            return _join(self._documents(rows), 1)
        if self.kind == "classification":
            return self._classified(rows)
        answers = [_answers_of(row) if self.kind != "prompt" else () for row in rows]
        talks = [
            Talk(row["prompt"], [row[name] for name in names], row.get("tools"))
            for row, names in zip(rows, answers, strict=True)
        ]
        made = [
            split if isinstance(split, RowError) else self._answered(row, *split)
            for row, split in zip(rows, self._texts.split(talks), strict=True)
        ]
        return _join(made, len(PARTS[self.kind]))

    @functools.cached_property
    def _texts(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.template, whole=True)

    def _documents(self, rows: Sequence[Row]) -> "list[list[Example] | RowError]":
        """Tokenises texts, prompts of text with completions, and conversations, those of a kind together."""
        results: list[Any] = [None] * len(rows)
        kinds = [
            "text"
            if "text" in row
            else "pair"
            if isinstance(row.get("prompt"), str)
            else "chat"
            if "messages" in row or "prompt" in row
            else None
            for row in rows
        ]
        for kind, make in (("text", self._text), ("pair", self._pairs), ("chat", self._conversations)):
            numbers = [number for number, found in enumerate(kinds) if found == kind]
            made = make([rows[number] for number in numbers]) if numbers else []
            for number, result in zip(numbers, made, strict=True):
                results[number] = result if isinstance(result, RowError) else _document(*result)
        if None in kinds:
            raise ValueError(f"no kind of row to tokenise: {sorted(rows[kinds.index(None)])}")
        return results

    def _text(self, rows: Sequence[Row]) -> list[Any]:
        return [[(ids, 1)] for ids in self._texts.documents([row["text"] for row in rows])]

    def _pairs(self, rows: Sequence[Row]) -> list[Any]:
        made = self._texts.split([Talk(row["prompt"], [row["completion"]]) for row in rows])
        on_prompt = int(self.loss_on == "all")
        return [
            [(prompt, on_prompt), (completion, 1)] if completion else RowError(EMPTY, "no completion")
            for prompt, [completion] in made
        ]

    def _conversations(self, rows: Sequence[Row]) -> list[Any]:
        template = self.template
        if template is not None and self.loss_on != "all" and not template.marks_generation:
            return self._answers(template, rows)
        return [
            made if isinstance(made, RowError) else [made]
            for made in self._encode([self.conversation(r) for r in rows])
        ]

    def conversation(self, row: Row) -> Row:
        """Returns a row of messages as the one conversation that is encoded, each turn with its mark of loss."""
        if "messages" in row:
            messages = row["messages"]
            if self.loss_on == "completion":
                spoken = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
                messages = [
                    {**message, "train": False} if number in spoken[:-1] else message
                    for number, message in enumerate(messages)
                ]
        else:
            prompt = row["prompt"]
            if self.loss_on != "all":
                prompt = [{**message, "train": False} for message in prompt]
            messages = [*prompt, *row["completion"]]
        return {"messages": messages, "tools": row.get("tools")}

    def _answers(self, template: ChatTemplate, rows: Sequence[Row]) -> list[Any]:
        """Puts the loss on what follows the prompt, to the end of the turn, for a template that does not mark turns."""
        if any(len(row.get("completion", ())) != 1 or row["completion"][0].get("train") is False for row in rows):
            require_generation_marks(template)
        talks = [Talk(row["prompt"], [row["completion"]], row.get("tools")) for row in rows]
        end = self.tokenizer.convert_tokens_to_ids(end_of_turn(template, self.tokenizer) or "")
        results: list[Any] = []
        for made in self._texts.split(talks):
            if isinstance(made, RowError):
                results.append(made)
                continue
            prompt, [answer] = made
            stop = next((i for i in range(len(answer), 0, -1) if answer[i - 1] == end), len(answer))
            results.append([(prompt, 0), (answer[:stop], 1), (answer[stop:], 0)])
        return results

    def _encode(self, conversations: Sequence[Row]) -> list[Any]:
        """Encodes conversations; one that the template refuses becomes a RowError, and the others go on."""
        if self.template is None:
            raise InputError(
                "the rows are conversations, but there is no chat template", hint="set model.chat_template"
            )
        loss_on = "all" if self.loss_on == "all" else "assistant"
        results: list[Any] = []
        at = 0
        while at < len(conversations):
            try:
                encoded = encode(self.template, self.tokenizer, conversations[at:], loss_on, whole=True)
                return results + [
                    (item.input_ids, np.frombuffer(bytes(item.loss_mask), dtype=np.uint8)) for item in encoded
                ]
            except ConversationError as error:
                # those before the refused one are known to render
                results += self._encode(conversations[at : at + error.index])
                results.append(RowError(REFUSED, "; ".join(filter(None, (error.what, error.hint)))))
                at += error.index + 1
        return results

    def _answered(self, row: Row, prompt: Ids, answers: list[Ids]) -> "list[Example] | RowError":
        """Makes the examples of a row from the tokens of its prompt and answers."""
        if self.kind == "prompt":
            return [Example((prompt,), fields=row)] if prompt else RowError(EMPTY)
        empty = next((name for name, ids in zip(_answers_of(row), answers, strict=True) if not ids), None)
        if empty:
            return RowError(f"empty {empty}")
        if "chosen" not in row:
            return [Example((prompt, answers[0]), fields={"label": row["label"]})]
        chosen, rejected = answers
        if chosen == rejected:
            return RowError(SAME_TOKENS)
        if self.kind == "unpaired":
            return [Example((prompt, ids), fields={"label": ids is chosen}) for ids in answers]
        return [Example((prompt, chosen, rejected), fields={"margin": row["margin"]} if "margin" in row else {})]

    def _classified(self, rows: Sequence[Row]) -> Batch:
        """Tokenises texts, or pairs of texts, with the tokens around them; those too long are cut, and counted."""
        texts = [(row["text"], row["text_pair"]) if "text_pair" in row else row["text"] for row in rows]
        made = list(_with_specials(self.tokenizer, None)(texts))
        long = [number for number, ids in enumerate(made) if self.cut_to is not None and len(ids) > self.cut_to]
        if long:
            cut = _with_specials(self.tokenizer, self.cut_to)([texts[number] for number in long])
            for number, ids in zip(long, cut, strict=True):
                made[number] = ids
        around = [self.tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)]
        examples = [
            [Example((ids,), fields={"label": row["label"]})]
            if len(ids) > around["text_pair" in row]
            else RowError(NO_TEXT)
            for row, ids in zip(rows, made, strict=True)
        ]
        return _join(examples, 1, len(long))


def _answers_of(row: Row) -> tuple[str, ...]:
    """Names the columns of a row's answers."""
    return ("chosen", "rejected") if "chosen" in row else ("completion",)


def _document(*pieces: tuple[Ids, Any]) -> "list[Example] | RowError":
    """Lays pieces of a document end to end, the loss of each 0, 1 or a mask; refuses one that teaches nothing."""
    ids = pieces[0][0] if len(pieces) == 1 else [token for piece, _ in pieces for token in piece]
    if not ids:
        return RowError(EMPTY)
    masks = [np.full(len(piece), loss, np.uint8) if isinstance(loss, int) else loss for piece, loss in pieces]
    loss = np.concatenate(masks)
    # nothing predicts the first token
    return [Example((ids,), loss)] if loss[1:].any() else RowError(NO_LOSS)


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


def _join(made: "Sequence[list[Example] | RowError]", parts: int, cut: int = 0) -> Batch:
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
    ids = np.fromiter(flat, dtype=np.int32, count=int(lengths.sum()))
    masks = [example.loss for example in kept if example.loss is not None]
    return Batch(
        ids,
        np.concatenate(masks) if masks else np.zeros(len(ids), np.uint8),
        lengths,
        [json.dumps(example.fields, ensure_ascii=False) for example in kept if example.loss is None],
        types,
        dropped,
        cut,
    )


def encode_batches(
    encoder: Callable[[Sequence[Row]], Batch], batches: Iterable[Sequence[Row]], num_proc: int = 1
) -> Iterator[Batch]:
    """Tokenises batches in order, in this process or in ``num_proc`` spawned ones.

    The encoder is a dataclass, which other processes get a fresh copy of.

    A fast tokenizer already uses all cores for plain text; processes pay for chat templates, whose rendering is Python,
    once the data takes longer than the few seconds that each process needs to start.

    Raises:
        PosttrainError: A process died.
    """
    if num_proc <= 1:
        for batch in batches:
            yield encoder(batch)
        return
    waiting = iter(batches)
    busy: list[Any] = []

    def hand_out(connection: Any) -> None:
        if (batch := next(waiting, None)) is not None:
            with _dying_is_an_error():
                connection.send(batch)
            busy.append(connection)

    # each worker has one batch at a time, and they answer in turn: order is kept and no pipe can fill up
    with _workers(encoder, num_proc) as connections:
        for connection in connections:
            hand_out(connection)
        while busy:
            connection = busy.pop(0)
            with _dying_is_an_error():
                result = connection.recv()
            if isinstance(result, BaseException):
                raise result
            hand_out(connection)
            yield result


@contextmanager
def _dying_is_an_error() -> Iterator[None]:
    """Words the broken pipe that a dead process leaves."""
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise PosttrainError(
            "a tokenising process died",
            hint="was memory short? a script that asks for processes also needs `if __name__ == '__main__':`",
        ) from error


@contextmanager
def _workers(encoder: Any, count: int) -> Iterator[list[Any]]:
    """Starts processes that answer batches, and ends them."""
    import multiprocessing

    context = multiprocessing.get_context("spawn")  # threads of the tokenizer and of torch do not survive a fork
    pairs = [context.Pipe() for _ in range(count)]
    fresh = replace(encoder)  # without what it has worked out, which cannot be sent
    processes = [context.Process(target=_work, args=(theirs, fresh), daemon=True) for _, theirs in pairs]
    try:
        for process in processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        yield [ours for ours, _ in pairs]
    finally:
        for ours, _ in pairs:
            ours.close()
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _work(connection: Any, encoder: Any) -> None:
    """Answers batches until the other end closes; an exception is an answer, to be raised over there."""
    import os

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while True:
        try:
            rows = connection.recv()
        except EOFError:
            return
        try:
            connection.send(encoder(rows))
        except PosttrainError as error:
            connection.send(error)
        except Exception:
            connection.send(RuntimeError(f"in a tokenising process:\n{traceback.format_exc()}"))
