"""Answers of a checkpoint to a prompt set: saved once, for judges, votes and reports.

The figures here say what the answers are like, and nothing of how good they are.

- **answered**: the share of answers that are whole and not empty, in every turn.
- **characters**, **tokens**: the mean length of an answer over all its turns, without and with its thoughts.
- **cut**: the share with a turn that ran into the limit of tokens.
- **seconds**: the mean time of an answer.

Standard errors are those of prompts; of one answer to each prompt they are lm-eval's, ``sqrt(p (1 - p) / (n - 1))``.
"""

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data_tools.ask import TOO_LONG, Backend, Local, Log, Query, Server, ask, request_of
from ..data_tools.encode import TextEncoder
from ..data_tools.endpoint import BUDGET_SPENT, REJECTED, Reply
from ..data_tools.endpoint_client import Endpoint
from ..data_tools.errors import DataError
from ..data_tools.files import hash_json
from ..data_tools.generate import VLLM_BATCH, Sampling, generate, load_vllm, room
from ..data_tools.overlap import Item
from ..data_tools.progress import Say
from .answers import FAILED, KIND, Answer, to_parquet
from .errors import EvalError, SuiteError
from .models import load_tokenizer
from .prompt_sets import Prompt, PromptsSpec, load_prompts
from .records import LOCKS, Metric, Result
from .runs import Target
from .spec import Chat, SuiteSpec
from .stats.intervals import grouped_mean
from .task import Checkpoint, Task
from .thinking import opened_by, strip_thinking
from .vllm_tasks import refuse_adapter

CALLS = ".calls"
"""The suffix of the record of an endpoint's calls, beside the log of the answers."""
_TELL_EVERY = 30.0  # seconds between lines of progress
_METHOD = 2  # raise when a change here changes answers
_LOG = 2  # raise when the lines of the log change
_SETTINGS = (
    "max_new_tokens",
    "temperature",
    "top_p",
    "samples",
    "system",
    "plain",
    "thinking",
    "backend",
    "limit",
    "extra",
)
_USER = "\n\nUser:"
_TAIL = 32  # tokens at a prompt's end, where a template may have opened a thought


@dataclass(frozen=True)
class PromptTask(Task):
    """A prompt set of a suite, read and hashed.

    Attributes:
        spec: What the suite says of it.
        task_hash: As of :class:`Task`.
        prompts: What is asked.
        notes: What was dropped.
        settings: What decides the answers, for the record.
        is_limited: Whether the limit leaves prompts out.
    """

    spec: PromptsSpec
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]
    is_limited: bool

    has_items = True

    @property
    def needs_model(self) -> bool:
        """Whether the checkpoint answers by the model that transformers loads."""
        return self.spec.backend == "transformers"

    def items(self) -> list[Item]:
        """Returns the prompts with their references, as :meth:`Task.items`."""
        return [Item(one.key, "\n".join(one.turns), "\n".join(one.references or ())) for one in self.prompts]

    def chat(self, suite: SuiteSpec) -> Chat:
        """Returns when the chat template is applied; a server does that itself."""
        return "never" if self.spec.backend == "endpoint" else self.settings["chat"]

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Refuses to let one model on a server answer for several checkpoints."""
        alike = len({target.model_hash for target in targets}) < 2
        if self.spec.backend == "endpoint" and "{" not in self.spec.model and not alike:
            raise SuiteError(
                f"one model on the server, '{self.spec.model}', would answer for {len(targets)} checkpoints",
                where=self.spec.title,
                hint='score one of them, or name each: `model: "{folder}"`',
            )

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Lets the checkpoint answer the prompts, as :meth:`Task.run`."""
        log = log_path(checkpoint.target.store, checkpoint.target.model_hash, self)
        backend = self.backend(checkpoint, log.with_suffix(CALLS), templated=template is not None)
        return run_prompts(self, backend, log, template=template, progress=checkpoint.progress)

    def backend(self, checkpoint: Checkpoint, record: Path, *, templated: bool) -> Backend:
        """Returns the checkpoint as what answers.

        Args:
            checkpoint: The checkpoint.
            record: What keeps what a server was asked and what it answered, until all answers are there.
            templated: Whether the chat template is applied.

        Raises:
            DataError: vLLM is not installed, or cannot load the checkpoint.
            EvalError: vLLM is to load an adapter, or the checkpoint is no language model.
        """
        spec, target, suite, sampling = self.spec, checkpoint.target, checkpoint.suite, self.sampling(checkpoint.suite)
        if spec.backend == "endpoint":
            own = {"folder": target.folder, "run": target.run, "checkpoint": target.checkpoint, "step": target.step}
            return served(Endpoint(spec.server(**own), record), sampling, spec, target.model_hash)
        if spec.backend == "vllm":
            refuse_adapter(target.folder)
            longest = {} if suite.max_length is None else {"max_model_len": suite.max_length}
            model: Any = load_vllm(str(target.folder), dtype=suite.dtype, **longest)
            tokenizer, _ = load_tokenizer(str(target.folder))
            sampling = replace(sampling, batch_size=max(sampling.batch_size, VLLM_BATCH))
        else:
            loaded = checkpoint.language_model(spec.title)
            model, tokenizer = loaded.model, loaded.tokenizer
        encoder = TextEncoder.of(tokenizer, suite.template_variables)
        engine = partial(generate, model, tokenizer, kept=tuple(itertools.chain(*spec.thinking)))
        return local(encoder, engine, suite.max_length or room(model), sampling, spec, templated=templated)

    def sampling(self, suite: SuiteSpec) -> Sampling:
        """Returns how the prompts are to be answered."""
        spec, size = self.spec, suite.size_of_batch(self.spec.batch_size)
        return Sampling(spec.max_new_tokens, spec.temperature, spec.top_p, self.settings["seed"], size)

    def clean(self, target: Target) -> None:
        """Removes the logs of answers and calls, now that the score is written."""
        log = log_path(target.store, target.model_hash, self)
        for path in (log, log.with_suffix(CALLS)):
            with contextlib.suppress(OSError):  # a folder of finished scores may be read-only
                path.unlink()


def define(spec: PromptsSpec, suite: SuiteSpec) -> PromptTask:
    """Reads a prompt set and hashes it by content.

    Raises:
        SuiteError: It cannot be found or read.
    """
    try:
        prompts, notes, is_limited = load_prompts(spec)
    except DataError as error:
        raise SuiteError(str(error), where=spec.title) from error
    settings = spec.model_dump(mode="json", include=set(_SETTINGS))
    settings |= {
        "seed": suite.seed if spec.seed is None else spec.seed,
        "chat": "server" if spec.backend == "endpoint" else spec.chat or suite.chat,
    }
    settings |= suite.model_dump(include={"max_length", "dtype"})
    if suite.template_variables and settings["chat"] != "never":
        if spec.backend == "endpoint":
            hint = "say `extra: {chat_template_kwargs: {…}}` to a server that knows it, such as vLLM"
            raise SuiteError("`template_variables` do not reach a server", where=spec.title, hint=hint)
        settings["template_variables"] = dict(suite.template_variables)
    asked = [[prompt.id, prompt.key, prompt.category, prompt.references] for prompt in prompts]
    digest = hash_json({"prompts": asked, "settings": settings, "method": _METHOD})
    return PromptTask(spec, digest, tuple(prompts), notes, settings, is_limited)


def log_path(store: Path, model_hash: str, job: PromptTask) -> Path:
    """Returns where answers are kept until all of them are there."""
    return store / LOCKS / f"answers-{model_hash[:12]}-{job.spec.title}-{job.task_hash[:8]}.jsonl"


@dataclass(frozen=True)
class Said:
    """What came of one turn: a record of the log.

    Attributes:
        raw: What was generated.
        text: The answer in it, without thoughts.
        finish: ``stop``, ``length``, ``too_long`` for a prompt that leaves the model no room, ``failed`` where a server
            rejected it, or what it said; None if no answer came.
        prompt_tokens: Tokens read, if counted.
        completion_tokens: Tokens written, if counted.
        seconds: Time it took; a batch's time divided by its prompts.
        cut_thought: Whether the model was still thinking at the end.
        error: Why there is no answer.
    """

    raw: str
    text: str
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None
    cut_thought: bool = False
    error: str | None = None


def local(
    encoder: TextEncoder, engine: Any, room: int | None, sampling: Sampling, spec: PromptsSpec, *, templated: bool
) -> Local:
    """Returns a model in this process as what answers a prompt set.

    Args:
        encoder: Of the checkpoint's tokenizer and chat template.
        engine: What generates; see :class:`Local`.
        room: Tokens of prompt and answer together; None if nobody knows.
        sampling: How to answer.
        spec: The prompt set.
        templated: Whether the chat template is applied.
    """

    def encode(queries: Sequence[Query]) -> list[list[int]]:
        if templated:
            return encoder.prompts([query.messages for query in queries])
        return encoder.prompts([plain_text(query.messages, spec.plain) for query in queries])

    def read(prompt: list[int], reply: Reply) -> Said:
        if reply.finish == TOO_LONG:
            return Said("", "", TOO_LONG, reply.prompt_tokens, 0, None)
        end: Any = encoder.tokenizer.decode(prompt[-_TAIL:])
        opened = opened_by(end, spec.thinking) if templated else None
        stripped = strip_thinking(reply.text, spec.thinking, opened=opened)
        text, finish = stripped.text, reply.finish
        if not templated:
            text, end, _ = text.partition(_USER) if spec.plain == "dialogue" else text.lstrip().partition("\n")
            text, finish = text.strip(), "stop" if end else finish
        return Said(reply.text, text, finish, reply.prompt_tokens, reply.completion_tokens, reply.seconds, stripped.cut)

    return Local(encode, engine, sampling, room, read=read)


def plain_text(messages: Sequence[Mapping[str, str]], how: str) -> str:
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


def served(endpoint: Endpoint, sampling: Sampling, spec: PromptsSpec, model_hash: str) -> Server:
    """Returns a server that has a checkpoint loaded as what answers a prompt set.

    Args:
        endpoint: The server.
        sampling: How to answer.
        spec: The prompt set.
        model_hash: The checkpoint's, so that a server's answers for another model are never taken for its own.
    """

    def read(reply: Reply) -> Said:
        if reply.finish in (None, REJECTED):
            return Said("", "", reply.finish, None, None, None, error=reply.error or "no answer")
        stripped = strip_thinking(reply.text, spec.thinking)
        raw, thought = reply.text, _thought(reply.raw)
        if thought and spec.thinking:
            raw = f"{spec.thinking[0][0]}{thought}{spec.thinking[0][1]}{raw}"
        cut = stripped.cut or bool(thought and not stripped.text.strip() and reply.finish == "length")
        tokens = reply.prompt_tokens, reply.completion_tokens
        return Said(raw, stripped.text, reply.finish, *tokens, reply.seconds, cut)

    def salt(query: Query) -> str:
        return f"{model_hash} {query.key.rpartition(' ')[0]} {len(query.messages)}"

    return Server(endpoint, lambda query: request_of(query, sampling, salt(query)), read)


def _thought(raw: Any) -> str:
    """Returns the thoughts that a server has told apart from the answer itself."""
    try:
        message = raw["choices"][0]["message"]
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""
    return thought.encode(errors="replace").decode() if isinstance(thought, str) else ""


def run_prompts(
    job: PromptTask,
    backend: Backend,
    log: Path,
    *,
    template: str | None,
    progress: Say = lambda line: None,
) -> Result:
    """Answers every prompt, turn by turn, going on with what the log holds.

    Args:
        job: The prompts.
        backend: Who answers, such as :meth:`PromptTask.backend`.
        log: Where answers are kept until all of them are there; the caller removes it then.
        template: The fingerprint of the chat template, if one is applied.
        progress: Takes a line now and then.

    Raises:
        PosttrainError: The answers cannot be had, or not be kept.
    """
    said = Log(
        log,
        lambda line: Said(**{name: line[name] for name in Said.__dataclass_fields__}),
        lambda said: None if said.finish in (None, REJECTED) else asdict(said),
        header={"task_hash": job.task_hash, "template": template, "log": _LOG},
    )
    for turn in range(max(len(prompt.turns) for prompt in job.prompts)):
        _answer_turn(job, turn, backend, said, progress)
    answers = [_answer(prompt, sample, said) for prompt in job.prompts for sample in range(job.spec.samples)]
    return _result(job, answers, said)


def _key(prompt: Prompt, sample: int, turn: int) -> str:
    return f"{prompt.key}/{sample} {turn}"


def _answer_turn(job: PromptTask, turn: int, backend: Backend, said: Log, progress: Say) -> None:
    """Answers one turn of every prompt that has it and whose turns before were answered.

    Raises:
        EvalError: The budget is spent, the network failed, or the server rejected more prompts than may stay without
            an answer.
    """
    queries = []
    for prompt in job.prompts:
        for sample in range(job.spec.samples if turn < len(prompt.turns) else 0):
            before = [said.answers[_key(prompt, sample, earlier)] for earlier in range(turn)]
            ended = next((one.finish for one in before if one.finish in (TOO_LONG, FAILED)), None)
            key = _key(prompt, sample, turn)
            if ended is not None:
                said.answers[key] = Said("", "", ended, None, None, None)
            else:
                queries.append(Query(key, _messages(prompt, [one.text for one in before]), sample))
    queries.sort(key=lambda query: query.key)  # batches are the same whatever order the prompts are in
    told = time.monotonic()

    def tell(answered: int, number: int) -> None:
        nonlocal told
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            progress(f"{job.spec.title}: turn {turn + 1}: {answered} of {number} prompts answered")

    ask(queries, backend, said, tell)
    unanswered = sorted(said.failed.values(), key=lambda one: one.finish is not None)  # first what was lost
    lost = [one for one in unanswered if one.finish is None]
    if lost or len(unanswered) > job.spec.max_bad_share * len(queries):
        spent = any(one.error.startswith(BUDGET_SPENT) for one in unanswered)
        raise EvalError(
            f"{len(unanswered)} of {len(queries)} prompts got no answer: "
            f"{BUDGET_SPENT if spent else unanswered[0].error}",
            where=job.spec.base_url,
            hint=f"{'raise the `budget` and ' if spent else ''}score again: the other answers are kept",
        )
    said.keep({key: Said("", "", FAILED, None, None, None) for key in said.failed})
    said.failed.clear()


def _messages(prompt: Prompt, answers: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Returns the conversation up to the turn that is to be answered."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for turn, answer in zip(prompt.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return (*messages, {"role": "user", "content": prompt.turns[len(answers)]})


def _answer(prompt: Prompt, sample: int, said: Log) -> Answer:
    turns = [said.answers[_key(prompt, sample, turn)] for turn in range(len(prompt.turns))]
    return Answer(
        prompt_id=prompt.id,
        prompt_key=prompt.key,
        category=prompt.category,
        turns=prompt.turns,
        references=prompt.references,
        sample=sample,
        texts=tuple(one.text for one in turns),
        raw=tuple(one.raw for one in turns),
        finish=tuple(one.finish for one in turns),
        prompt_tokens=_sum([one.prompt_tokens for one in turns]),
        completion_tokens=_sum([one.completion_tokens for one in turns]),
        seconds=_sum([one.seconds for one in turns]),
        system=prompt.system,
    )


def _sum(values: Sequence[Any]) -> Any:
    """Returns the sum of what is known, or None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _result(job: PromptTask, answers: Sequence[Answer], said: Log) -> Result:
    """Packs the answers, their figures and what a reader must know."""
    thinking = sum(one.cut_thought for one in said.answers.values())
    too_long = sum(TOO_LONG in answer.finish for answer in answers)
    failed = sum(FAILED in answer.finish for answer in answers)
    notes = [*job.notes]
    notes += [f"{failed} prompts got no answer from the server"] if failed else []
    notes += [f"{too_long} prompts too long for the model: no answer"] if too_long else []
    notes += [f"{thinking} answers still thought at the limit of tokens: empty"] if thinking else []
    detail = {
        "kind": KIND,
        "settings": job.settings,
        "prompts": len(job.prompts),
        "drops": list(job.notes),
        "too_long": too_long,
        "failed": failed,
        "cut_thoughts": thinking,
        "empty": sum(not any(text.strip() for text in answer.texts) for answer in answers),
    }
    return Result(figures(answers), to_parquet(answers), None, tuple(notes), detail, is_limited=job.is_limited)


def figures(answers: Sequence[Answer]) -> tuple[Metric, ...]:
    """Returns the means over answers, each with its standard error over prompts."""
    columns: dict[str, tuple[list[float | None], bool]] = {
        "answered": ([float(_is_whole(answer)) for answer in answers], True),
        "characters": ([float(answer.characters) for answer in answers], True),
        "tokens": ([answer.completion_tokens for answer in answers], True),
        "cut": ([float("length" in answer.finish) for answer in answers], False),
        "seconds": ([answer.seconds for answer in answers], False),
    }
    metrics = []
    for name, (values, up) in columns.items():
        known = [(answer.prompt_key, value) for answer, value in zip(answers, values, strict=True) if value is not None]
        if known:
            keys, numbers = zip(*known, strict=True)
            groups = np.unique(keys, return_inverse=True)[1]
            metrics.append(Metric(name, *grouped_mean(np.array(numbers), groups), int(groups.max()) + 1, up))
    return tuple(metrics)


def _is_whole(answer: Answer) -> bool:
    return all(text.strip() for text in answer.texts) and all(finish == "stop" for finish in answer.finish)
