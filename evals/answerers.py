"""Who answers prompts: the checkpoint in this process, by transformers or vLLM, or on a server."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..data_tools.encode import TextEncoder
from ..data_tools.endpoint import BUDGET_SPENT, REJECTED, EndpointSpec, Reply, Request
from ..data_tools.endpoint_client import Endpoint
from ..data_tools.generate import Generated, Sampling, generate, generate_vllm, load_vllm, room
from .errors import EvalError
from .models import ADAPTER, LoadedModel, load_tokenizer
from .prompt_sets import PromptsSpec
from .thinking import opened_by, strip_thinking

TOO_LONG = "too_long"
FAILED = "failed"
_VLLM_BATCH = 256  # prompts: vLLM makes its own batches of them
_USER = "\n\nUser:"
_TAIL = 32  # tokens at a prompt's end, where a template may have opened a thought

Messages = tuple[dict[str, str], ...]


@dataclass(frozen=True)
class Ask:
    """One turn to be answered.

    Attributes:
        key: The prompt's hash and the number of the sample.
        sample: That number.
        messages: The conversation so far; it ends with what the user says.
    """

    key: str
    sample: int
    messages: Messages


@dataclass(frozen=True)
class Said:
    """What came of one turn: a record of the log.

    Attributes:
        raw: What was generated.
        text: The answer in it, without thoughts.
        finish: ``stop``, ``length``, ``too_long`` for a prompt that leaves the model no room, ``failed`` where a server
            rejected it, or what it said.
        prompt_tokens: Tokens read, if counted.
        completion_tokens: Tokens written, if counted.
        seconds: Time it took; a batch's time divided by its prompts.
        cut_thought: Whether the model was still thinking at the end.
    """

    raw: str
    text: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None
    cut_thought: bool = False


Take = Callable[[dict[str, Said]], None]
# Takes all that is asked in one turn, the prompt set, the keys of what was answered before, and what takes answers.
Answerer = Callable[[Sequence[Ask], PromptsSpec, Collection[str], Take], None]
# Takes prompts of tokens, how to answer them, and for each what its draws depend on besides.
Engine = Callable[[list[list[int]], Sampling, list[str]], Iterable[Generated]]


@dataclass(frozen=True)
class Local:
    """A model in this process.

    Attributes:
        encoder: Of the checkpoint's tokenizer and chat template.
        engine: What generates.
        templated: Whether the chat template is applied.
        room: Tokens that the model can hold, prompt and answer together; None if nobody knows.
        sampling: How to answer.
    """

    encoder: TextEncoder
    engine: Engine
    templated: bool
    room: int | None
    sampling: Sampling

    def __call__(self, asks: Sequence[Ask], spec: PromptsSpec, done: Collection[str], take: Take) -> None:
        """Answers one turn of many prompts, the longest first.

        What stands in a batch together depends on the prompts alone and never on what is done already, so that a
        killed run ends with the answers of an undisturbed one. A prompt that leaves less room than an answer may
        have gets what is left.

        Args:
            asks: All of the turn, those answered before too.
            spec: The prompt set.
            done: The keys of those answered before.
            take: Takes the answers of each batch as it comes.
        """
        plain = None if self.templated else spec.plain
        prompts: list[Any] = [plain_text(ask.messages, plain) if plain else ask.messages for ask in asks]
        ids = {ask.key: made for ask, made in zip(asks, self.encoder.prompts(prompts), strict=True)}
        samples = {ask.key: str(ask.sample) for ask in asks}
        most = self.sampling.max_new_tokens
        limits = {key: most if self.room is None else min(most, self.room - len(ids[key])) for key in ids}
        refused = {key: len(ids[key]) for key in ids if limits[key] < 1 and key not in done}
        if refused:
            take({key: Said("", "", TOO_LONG, tokens, 0, None) for key, tokens in refused.items()})
        fitting = sorted((key for key in ids if limits[key] > 0), key=lambda key: (-len(ids[key]), key))
        for batch in batches(fitting, limits, self.sampling.batch_size):
            if not all(key in done for key in batch):
                settings = replace(self.sampling, max_new_tokens=limits[batch[0]])
                given = self.engine([ids[key] for key in batch], settings, [samples[key] for key in batch])
                take({key: self._said(spec, ids[key], one) for key, one in zip(batch, given, strict=True)})

    def _said(self, spec: PromptsSpec, prompt: list[int], given: Generated) -> Said:
        """Takes the answer out of what was generated."""
        end: Any = self.encoder.tokenizer.decode(prompt[-_TAIL:])
        opened = opened_by(end, spec.thinking) if self.templated else None
        stripped = strip_thinking(given.text, spec.thinking, opened=opened)
        text, finish = stripped.text, str(given.finish)
        if not self.templated:
            text, end, _ = text.partition(_USER) if spec.plain == "dialogue" else text.lstrip().partition("\n")
            text, finish = text.strip(), "stop" if end else finish
        return Said(given.text, text, finish, given.prompt_tokens, given.completion_tokens, given.seconds, stripped.cut)


def batches(keys: Sequence[str], limits: dict[str, int], size: int) -> Iterator[list[str]]:
    """Cuts prompts, longest first, into batches in which all may have answers of the same length."""
    batch: list[str] = []
    for key in keys:
        if batch and (len(batch) == size or limits[key] != limits[batch[0]]):
            yield batch
            batch = []
        batch.append(key)
    if batch:
        yield batch


def plain_text(messages: Messages, how: str) -> str:
    """Returns a conversation as the text that a model without a chat template, a base model, continues.

    A dialogue is ``{system}``, then for each turn ``User: {turn}`` and ``Assistant: {answer}``, with blank lines
    between; it ends with ``Assistant:``, and an answer ends where the model lets the user speak again. A bare prompt is
    ``{turn}``, which the answer follows on the same line.

    Args:
        messages: What was said.
        how: ``dialogue`` or ``bare``.
    """
    if how == "bare":
        ends = {"user": "", "assistant": "\n", "system": "\n"}
        spoken = (f"{' ' * (m['role'] == 'assistant')}{m['content']}{ends[m['role']]}" for m in messages)
        return "".join(spoken)
    names = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
    return "\n\n".join([*(names[m["role"]] + m["content"] for m in messages), "Assistant:"])


def here(loaded: LoadedModel, sampling: Sampling, *, templated: bool, max_length: int | None) -> Local:
    """Lets a loaded model answer.

    Args:
        loaded: The checkpoint.
        sampling: How to answer.
        templated: Whether the chat template is applied.
        max_length: Tokens of prompt and answer together; what the model takes by default.
    """

    def engine(prompts: list[list[int]], settings: Sampling, keys: list[str]) -> Iterable[Generated]:
        return generate(loaded.model, loaded.tokenizer, prompts, settings, key=keys)

    return Local(TextEncoder.of(loaded.tokenizer), engine, templated, max_length or room(loaded.model), sampling)


def by_vllm(folder: Path, sampling: Sampling, *, templated: bool, max_length: int | None, dtype: str) -> Local:
    """Lets vLLM load a checkpoint and answer, many prompts at a time.

    Raises:
        DataError: vLLM is not installed, or cannot load the checkpoint.
        EvalError: The checkpoint is an adapter.
    """
    if (folder / ADAPTER).is_file():
        hint = "merge it into its base first, or use `backend: transformers`"
        raise EvalError("vLLM is given whole models, and this is an adapter", where=str(folder), hint=hint)
    longest = {} if max_length is None else {"max_model_len": max_length}
    model = load_vllm(str(folder), dtype=dtype, **longest)
    tokenizer, _ = load_tokenizer(str(folder))

    def engine(prompts: list[list[int]], settings: Sampling, keys: list[str]) -> Iterable[Generated]:
        return generate_vllm(model, tokenizer, prompts, settings, key=keys)

    settings = replace(sampling, batch_size=max(sampling.batch_size, _VLLM_BATCH))
    return Local(TextEncoder.of(tokenizer), engine, templated, max_length or room(model), settings)


@dataclass(frozen=True)
class Served:
    """A server that has the checkpoint loaded.

    It makes its prompts by itself: what it takes for a control token in a message is out of our hands.

    Attributes:
        server: Where it is, and the checkpoint's name there.
        record: What keeps what it was asked and what it answered, until all answers are there.
        sampling: How to answer.
        model_hash: The checkpoint's, so that a server's answers for another model are never taken for its own.
    """

    server: EndpointSpec
    record: Path
    sampling: Sampling
    model_hash: str

    def __call__(self, asks: Sequence[Ask], spec: PromptsSpec, done: Collection[str], take: Take) -> None:
        """Answers one turn of many prompts; what the server said is kept as it comes.

        Raises:
            EvalError: The budget is spent, the network failed, or the server rejected more prompts than may stay
                without an answer.
        """
        waiting = {self._salt(ask): ask for ask in asks if ask.key not in done}
        lost: dict[str, str] = {}
        rejected: dict[str, str] = {}

        def took(request: Request, reply: Reply) -> None:
            key = waiting[request.salt].key
            if reply.finish in (None, REJECTED):
                (rejected if reply.finish else lost)[key] = reply.error or "no answer"
            else:
                take({key: _replied(reply, spec)})

        Endpoint(self.server, self.record).ask([self._request(ask) for ask in waiting.values()], took)
        if lost or len(rejected) > spec.max_bad_share * len(asks):
            reasons = [*lost.values(), *rejected.values()]
            spent = any(reason.startswith(BUDGET_SPENT) for reason in reasons)
            raise EvalError(
                f"{len(reasons)} of {len(asks)} prompts got no answer: {BUDGET_SPENT if spent else reasons[0]}",
                where=self.server.base_url,
                hint=f"{'raise the `budget` and ' if spent else ''}score again: the other answers are kept",
            )
        take({key: Said("", "", FAILED, None, None, None) for key in rejected})

    def _request(self, ask: Ask) -> Request:
        how = self.sampling
        return Request(
            ask.messages,
            how.max_new_tokens,
            temperature=how.temperature,
            top_p=how.top_p,
            seed=how.seed + ask.sample if how.temperature > 0 else None,
            salt=self._salt(ask),
        )

    def _salt(self, ask: Ask) -> str:
        return f"{self.model_hash} {ask.key} {len(ask.messages)}"


def _replied(reply: Reply, spec: PromptsSpec) -> Said:
    stripped = strip_thinking(reply.text, spec.thinking)
    raw, thought = reply.text, _thought(reply.raw)
    if thought and spec.thinking:
        raw = f"{spec.thinking[0][0]}{thought}{spec.thinking[0][1]}{raw}"
    cut = stripped.cut or bool(thought and not stripped.text.strip() and reply.finish == "length")
    finish = str(reply.finish)
    return Said(raw, stripped.text, finish, reply.prompt_tokens, reply.completion_tokens, reply.seconds, cut)


def _thought(raw: Any) -> str:
    """Returns the thoughts that a server has told apart from the answer itself."""
    try:
        message = raw["choices"][0]["message"]
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""
    return thought if isinstance(thought, str) else ""
