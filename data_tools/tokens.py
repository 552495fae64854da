"""Canonical rows to token ids and a mask of the tokens that carry loss, in batches."""

import functools
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..chat_templates import ChatTemplate, ConversationError, encode
from ..chat_templates.errors import InputError, PosttrainError
from ..chat_templates.probes import end_of_turn
from ..chat_templates.rendering import require_generation_marks
from .encode import REFUSED, Talk, TextEncoder
from .errors import RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossOn = Literal["assistant", "completion", "all"]
Row = dict[str, Any]
Result = TypeVar("Result")

EMPTY = "empty"
NO_LOSS = "no token carries loss"


@dataclass(frozen=True)
class Batch:
    """Tokenised rows, end to end.

    Attributes:
        ids: Token ids of all kept rows, int32, ``[tokens]``.
        loss: 1 where a token carries loss, uint8, ``[tokens]``.
        lengths: Tokens of each kept row, int64, ``[kept]``.
        dropped: By the number of a row in the batch: why it is not kept.
    """

    ids: NDArray[np.int32]
    loss: NDArray[np.uint8]
    lengths: NDArray[np.int64]
    dropped: dict[int, RowError] = field(default_factory=dict)


@dataclass
class Encoder:
    """Tokenises rows for one tokenizer and template.

    ``text`` rows are what the tokenizer puts before a text (BOS, if any), the text and EOS; all of it carries loss.
    ``messages`` rows are what the chat template makes of them: the template, not we, ends turns. Loss on the assistant
    (``assistant``), on its last turn only (``completion``), or on everything. ``prompt_completion`` rows are BOS,
    prompt, completion, EOS, with loss on the completion and EOS (``all``: on the prompt too); as messages, they are one
    conversation with loss on the assistant's part of the completion.

    Texts, prompts and completions are tokenised by :class:`.encode.TextEncoder`.

    Raises:
        InputError: The tokenizer has no EOS, or messages come without a chat template.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate | None = None
    loss_on: LossOn = "assistant"

    def __call__(self, rows: Sequence[Row]) -> Batch:
        """Tokenises canonical rows of any mixture of kinds; the order of those kept is the order given."""
        dropped: dict[int, RowError] = {}
        pieces: dict[int, list[tuple[list[int], Any]]] = {}
        for choose, make in ((_is_text, self._text), (_is_pair, self._pairs), (_is_chat, self._conversations)):
            numbers = [number for number, row in enumerate(rows) if choose(row)]
            made = make([rows[number] for number in numbers]) if numbers else []
            for number, result in zip(numbers, made, strict=True):
                if isinstance(result, RowError):
                    dropped[number] = result
                else:
                    pieces[number] = result
        unknown = next((row for n, row in enumerate(rows) if n not in dropped and n not in pieces), None)
        if unknown is not None:
            raise ValueError(f"no kind of row to tokenise: {sorted(unknown)}")
        return _join(pieces, dropped)

    @functools.cached_property
    def _texts(self) -> TextEncoder:
        return TextEncoder(self.tokenizer, self.template, whole=True)

    def _text(self, rows: Sequence[Row]) -> list[Any]:
        made = self._texts.documents([row["text"] for row in rows])
        return [[(ids, 1)] if ids else RowError(EMPTY) for ids in made]

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
                return results + [(list(item.input_ids), np.array(item.loss_mask, dtype=np.uint8)) for item in encoded]
            except ConversationError as error:
                # those before the refused one are known to render
                results += self._encode(conversations[at : at + error.index])
                results.append(RowError(REFUSED, "; ".join(filter(None, (error.what, error.hint)))))
                at += error.index + 1
        return results


def _is_text(row: Row) -> bool:
    return "text" in row


def _is_pair(row: Row) -> bool:
    return isinstance(row.get("prompt"), str)


def _is_chat(row: Row) -> bool:
    return "messages" in row or isinstance(row.get("prompt"), list)


def _join(pieces: dict[int, list[tuple[list[int], Any]]], dropped: dict[int, RowError]) -> Batch:
    """Lays the kept rows end to end; a row in which nothing can be learnt is dropped."""
    kept: list[list[tuple[list[int], Any]]] = []
    lengths = []
    for number in sorted(pieces):
        parts = pieces[number]
        length = sum(len(ids) for ids, _ in parts)
        if length == 0:
            dropped[number] = RowError(EMPTY)
        elif not _learns(parts):
            dropped[number] = RowError(NO_LOSS)
        else:
            kept.append(parts)
            lengths.append(length)
    flat = [part for parts in kept for part in parts]
    ids = np.fromiter(chain.from_iterable(ids for ids, _ in flat), dtype=np.int32, count=sum(lengths))
    masks = [np.full(len(ids), loss, dtype=np.uint8) if isinstance(loss, int) else loss for ids, loss in flat]
    loss = np.concatenate(masks) if masks else np.zeros(0, dtype=np.uint8)
    return Batch(ids, loss, np.array(lengths, dtype=np.int64), dropped)


def _learns(parts: list[tuple[list[int], Any]]) -> bool:
    """Whether a token after the first, which nothing predicts, carries loss."""
    at = 0
    for ids, loss in parts:
        after = ids[1:] if at == 0 else ids
        if len(after) and (loss if isinstance(loss, int) else np.any(loss[len(ids) - len(after) :])):
            return True
        at += len(ids)
    return False


def encode_batches(
    encoder: Callable[[Sequence[Row]], Result], batches: Iterable[Sequence[Row]], num_proc: int = 1
) -> Iterator[Result]:
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
