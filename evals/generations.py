"""Answers of a checkpoint to a prompt set: saved once, for judges, votes and reports.

The figures here say what the answers are like, and nothing of how good they are.

- **answered**: the share of answers that are whole and not empty, in every turn.
- **characters**, **tokens**: the mean length of an answer over all its turns, without and with its thoughts.
- **cut**: the share with a turn that ran into the limit of tokens.
- **seconds**: the mean time of an answer.

Standard errors are those of prompts; of one answer to each prompt they are lm-eval's, ``sqrt(p (1 - p) / (n - 1))``.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.errors import DataError
from ..data_tools.files import append_line, hash_json, read_jsonl_log
from ..data_tools.generate import Sampling
from .answerers import FAILED, TOO_LONG, Answerer, Ask, Said
from .answers import KIND, Answer, to_parquet
from .errors import SuiteError
from .prompt_sets import Prompt, PromptsSpec, load_prompts
from .records import LOCKS, Metric, Result
from .spec import Chat, SuiteSpec

_TELL_EVERY = 30.0  # seconds between lines of progress
_METHOD = 2  # raise when a change here changes answers
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


@dataclass(frozen=True)
class Prompts:
    """A prompt set of a suite, read and hashed.

    Attributes:
        spec: What the suite says of it.
        task_hash: Of the prompts and of what decides the answers, but the weights and the chat template.
        prompts: What is asked.
        notes: What was dropped.
        settings: What decides the answers, for the record.
    """

    spec: PromptsSpec
    task_hash: str
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    settings: dict[str, Any]


def define(spec: PromptsSpec, suite: SuiteSpec) -> Prompts:
    """Reads a prompt set and hashes it by content.

    Raises:
        SuiteError: It cannot be found or read.
    """
    try:
        prompts, notes = load_prompts(spec)
    except DataError as error:
        raise SuiteError(str(error), where=spec.title) from error
    settings = spec.model_dump(mode="json", include=set(_SETTINGS))
    settings |= {
        "seed": suite.seed if spec.seed is None else spec.seed,
        "chat": "server" if spec.backend == "endpoint" else chat_of(spec, suite),
    }
    settings |= suite.model_dump(include={"max_length", "dtype"})
    asked = [[prompt.id, prompt.key, prompt.category, prompt.references] for prompt in prompts]
    digest = hash_json({"prompts": asked, "settings": settings, "method": _METHOD})
    return Prompts(spec, digest, tuple(prompts), notes, settings)


def chat_of(spec: PromptsSpec, suite: SuiteSpec) -> Chat:
    """Returns when the chat template is applied; a server does that itself."""
    return "never" if spec.backend == "endpoint" else spec.chat or suite.chat


def log_path(store: Path, model_hash: str, job: Prompts) -> Path:
    """Returns where answers are kept until all of them are there."""
    return store / LOCKS / f"answers-{model_hash[:12]}-{job.spec.title}-{job.task_hash[:8]}.jsonl"


def sampling_of(job: Prompts, suite: SuiteSpec) -> Sampling:
    """Returns how a prompt set is to be answered."""
    spec = job.spec
    return Sampling(
        max_new_tokens=spec.max_new_tokens,
        temperature=spec.temperature,
        top_p=spec.top_p,
        seed=job.settings["seed"],
        batch_size=suite.size_of_batch(spec.batch_size),
    )


def run_prompts(
    job: Prompts,
    answerer: Answerer,
    log: Path,
    *,
    template: str | None,
    progress: Callable[[str], None] = lambda line: None,
) -> Result:
    """Answers every prompt, turn by turn, going on with what the log holds.

    Args:
        job: The prompts.
        answerer: Who answers.
        log: Where answers are kept until all of them are there; the caller removes it then.
        template: The fingerprint of the chat template, if one is applied.
        progress: Takes a line now and then.

    Raises:
        PosttrainError: The answers cannot be had, or not be kept.
    """
    said = _Log(log, {"task_hash": job.task_hash, "template": template})
    for turn in range(max(len(prompt.turns) for prompt in job.prompts)):
        _answer_turn(job, turn, answerer, said, progress)
    answers = [_answer(prompt, sample, said) for prompt in job.prompts for sample in range(job.spec.samples)]
    return _result(job, answers, said)


class _Log:
    """What has been said, by turn and key, in memory and on the disk: a line for each batch."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self._path = path
        self.turns: dict[int, dict[str, Said]] = {}
        lines = self._read()
        if lines[:1] != [identity]:  # nobody's, or another template's
            path.unlink(missing_ok=True)
            append_line(path, json.dumps(identity))
            return
        for line in lines[1:]:
            found = {key: Said(**said) for key, said in line["said"].items()}
            self.turns.setdefault(line["turn"], {}).update(found)

    def _read(self) -> list[dict[str, Any]]:
        try:
            return read_jsonl_log(self._path)
        except PosttrainError:
            return []  # answers can be had again

    def take(self, turn: int, said: dict[str, Said]) -> None:
        """Keeps the answers of a batch."""
        record = {"turn": turn, "said": {key: asdict(one) for key, one in said.items()}}
        append_line(self._path, json.dumps(record))
        self.turns.setdefault(turn, {}).update(said)


def _key(prompt: Prompt, sample: int) -> str:
    return f"{prompt.key}/{sample}"


def _answer_turn(job: Prompts, turn: int, answerer: Answerer, said: _Log, progress: Callable[[str], None]) -> None:
    """Answers one turn of every prompt that has it and whose turns before were answered."""
    asks = []
    done = said.turns.setdefault(turn, {})
    for prompt in job.prompts:
        if turn >= len(prompt.turns):
            continue
        for sample in range(job.spec.samples):
            key = _key(prompt, sample)
            before = [said.turns[earlier][key] for earlier in range(turn)]
            ended = next((one.finish for one in before if one.finish in (TOO_LONG, FAILED)), None)
            if ended is not None:
                done[key] = Said("", "", ended, None, None, None)
            else:
                asks.append(Ask(key, sample, _messages(prompt, [one.text for one in before])))
    told = time.monotonic()

    def take(found: dict[str, Said]) -> None:
        nonlocal told
        said.take(turn, found)
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            answered = sum(ask.key in done for ask in asks)
            progress(f"{job.spec.title}: turn {turn + 1}: {answered} of {len(asks)} prompts answered")

    answerer(asks, job.spec, done, take)


def _messages(prompt: Prompt, answers: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Returns the conversation up to the turn that is to be answered."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for turn, answer in zip(prompt.turns, answers, strict=False):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return (*messages, {"role": "user", "content": prompt.turns[len(answers)]})


def _answer(prompt: Prompt, sample: int, said: _Log) -> Answer:
    turns = [said.turns[turn][_key(prompt, sample)] for turn in range(len(prompt.turns))]
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


def _result(job: Prompts, answers: Sequence[Answer], said: _Log) -> Result:
    """Packs the answers, their figures and what a reader must know."""
    thinking = sum(one.cut_thought for turn in said.turns.values() for one in turn.values())
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
    return Result(figures(answers), to_parquet(answers), None, tuple(notes), detail)


def figures(answers: Sequence[Answer]) -> tuple[Metric, ...]:
    """Returns the means over answers, each with its standard error over prompts."""
    import numpy as np

    from .perplexity import ratio

    columns: dict[str, tuple[list[float | None], bool]] = {
        "answered": ([float(_is_whole(answer)) for answer in answers], True),
        "characters": ([float(answer.characters) for answer in answers], True),
        "tokens": ([answer.completion_tokens for answer in answers], True),
        "cut": ([float("length" in answer.finish) for answer in answers], False),
        "seconds": ([answer.seconds for answer in answers], False),
    }
    prompts = np.unique([answer.prompt_key for answer in answers], return_inverse=True)[1]
    metrics = []
    for name, (values, up) in columns.items():
        known = np.array([value is not None for value in values])
        if known.any():
            groups = np.unique(prompts[known], return_inverse=True)[1]
            numbers = np.array([value for value in values if value is not None], dtype=np.float64)
            sums, counts = np.bincount(groups, weights=numbers), np.bincount(groups).astype(np.float64)
            metrics.append(Metric(name, *ratio(sums, counts), len(sums), up))
    return tuple(metrics)


def _is_whole(answer: Answer) -> bool:
    return all(text.strip() for text in answer.texts) and all(finish == "stop" for finish in answer.finish)
