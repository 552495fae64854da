"""Answers of checkpoints to prompt sets, as ``score`` saved them and as judges, votes and reports read them."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError
from ..data_tools.ask import TOO_LONG
from ..data_tools.dataset import DataReport, usable
from ..data_tools.errors import RowError
from ..data_tools.files import hash_file
from ..data_tools.sources import read_rows
from ..data_tools.spec import SourceSpec
from .checkpoints import model_hash, read_manifest
from .errors import EvalError
from .judges import DATA_FILES
from .prompt_sets import ASKED, Prompt, answer_of, turns_of
from .records import Score, ScoreStore, parquet
from .runs import RUN_FILE
from .thinking import TAGS, strip_thinking

KIND = "answers"
"""The value of ``Score.detail["kind"]`` that marks the score of a prompt set."""

FAILED = "failed"
"""How a turn ended that a server rejected."""
UNFINISHED = ("length", "content_filter", TOO_LONG, FAILED)
"""The values of ``Answer.finish`` under which an answer did not come to its end."""


@dataclass(frozen=True)
class Answer:
    """One answer to one prompt, with the prompt itself, so that a judge needs no other file.

    Attributes:
        prompt_id: The prompt's id in its set.
        prompt_key: A hash of everything that was asked: what joins answers of different models.
        category: The prompt's category, or None.
        turns: What the user said, a text for each turn.
        references: A right answer for each turn, or None.
        sample: Which of several answers to the same prompt, from 0.
        texts: The answer to each turn, without what the model thought.
        raw: The answer to each turn as it was generated.
        finish: How each turn ended: ``stop``, ``length``, or what the server said.
        prompt_tokens: Over all turns, or None where nobody counted.
        completion_tokens: Likewise.
        seconds: Time to answer; a batch's time divided by its prompts.
        system: The system message before the first turn, or None; None in files of older versions.
    """

    prompt_id: str
    prompt_key: str
    category: str | None
    turns: tuple[str, ...]
    references: tuple[str, ...] | None
    sample: int
    texts: tuple[str, ...]
    raw: tuple[str, ...]
    finish: tuple[str, ...]
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float | None
    system: str | None = None

    @functools.cached_property
    def key(self) -> str:
        """Returns a hash of the prompt and of what is judged: the same answer is never judged twice."""
        return hashlib.sha256(json.dumps([self.prompt_key, self.texts]).encode()).hexdigest()[:32]

    @property
    def ended_key(self) -> str:
        """Returns the same for a judge to whom an answer that was cut is another one."""
        return self.key if self.finished else f"{self.key}-cut"

    @property
    def finished(self) -> bool:
        """Says whether the last answer came to its end; what an unknown writer left is taken for whole."""
        return self.finish[-1] not in UNFINISHED

    @property
    def characters(self) -> int:
        """Returns the length of what is judged."""
        return sum(len(text) for text in self.texts)


@dataclass(frozen=True)
class AnswerSet:
    """All answers of one model to one prompt set.

    Attributes:
        run: The run's name.
        checkpoint: ``checkpoint-<step>``, ``final``, or the name of a file of answers.
        step: The optimiser step, if known.
        model_hash: What identifies the model (:attr:`Score.model`); ``file:<hash>`` for a file of answers.
        task: The prompt set's name in the suite.
        task_hash: The hash of the prompts and the settings under which they were answered.
        folder: The run folder, where judgments of these answers go; None for a file of answers.
        answers: In the order of the prompts.
    """

    run: str
    checkpoint: str
    step: int | None
    model_hash: str
    task: str
    task_hash: str
    folder: Path | None
    answers: tuple[Answer, ...]

    @property
    def name(self) -> str:
        """Returns ``run/checkpoint``."""
        return f"{self.run}/{self.checkpoint}"

    def by_prompt(self) -> dict[tuple[str, int], Answer]:
        """Returns the answers by prompt key and sample."""
        return {(answer.prompt_key, answer.sample): answer for answer in self.answers}


def to_parquet(answers: Sequence[Answer]) -> bytes:
    """Packs answers as a Parquet file, a row for each."""
    return parquet({name: [getattr(answer, name) for answer in answers] for name in Answer.__dataclass_fields__})


def read_answers(path: Path) -> tuple[Answer, ...]:
    """Reads what :func:`to_parquet` wrote.

    Raises:
        PosttrainError: The file is missing or damaged.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return tuple(_answer_from(row) for row in rows)
    except (OSError, pyarrow.ArrowException, KeyError, TypeError) as error:
        hint = "remove it and its line in scores.jsonl, and score again"
        raise PosttrainError(f"the answers cannot be read: {error}", where=str(path), hint=hint) from error


def _answer_from(row: Mapping[str, Any]) -> Answer:
    answer = Answer(**{name: row[name] for name in Answer.__dataclass_fields__ if name in row or name != "system"})
    listed = {name: tuple(value) for name, value in vars(answer).items() if isinstance(value, list)}
    return replace(answer, **listed)


def answer_scores(folder: Path, task: str | None = None) -> list[Score]:
    """Returns the scores of a run folder that stand for answers to a prompt set, in the order they were written."""
    scores = ScoreStore(folder).load()
    return [s for s in scores if (s.detail or {}).get("kind") == KIND and task in (None, s.task)]


def load_answers(folder: Path, score: Score) -> AnswerSet:
    """Reads the answers that a score of a run folder stands for.

    Raises:
        PosttrainError: Their file is missing or damaged.
    """
    answers = read_answers(folder / score.samples_name)
    return AnswerSet(score.run, score.checkpoint, score.step, score.model, score.task, score.task_hash, folder, answers)


def find_answers(folders: Iterable[Path], task: str, task_hash: str | None = None) -> list[AnswerSet]:
    """Returns the answer sets of run folders for one prompt set, each model once."""
    found: dict[str, AnswerSet] = {}
    for folder in folders:
        for score in answer_scores(folder, task):
            if task_hash in (None, score.task_hash) and score.model not in found:
                found[score.model] = load_answers(folder, score)
    return list(found.values())


def answers_of(
    path: Path, prompts: Sequence[Prompt], *, task: str, task_hash: str, thinking: Sequence[tuple[str, str]] = TAGS
) -> tuple[AnswerSet, tuple[str, ...]]:
    """Finds the answers of a run's final model, of a checkpoint, or of a file (:func:`answers_from_file`).

    Args:
        path: The run folder, the checkpoint's folder, or the file.
        prompts: The prompt set.
        task: Its name in the suite.
        task_hash: The hash of the answers that these are compared with.
        thinking: Tags around thoughts in a file.

    Returns:
        The answers, and notes of what could not be joined.

    Raises:
        EvalError: There are no answers to these prompts.
        InputError: The file cannot be read.
    """
    if path.name.endswith(DATA_FILES):
        return answers_from_file(path, prompts, task=task, task_hash=task_hash, thinking=thinking)
    run = path if (path / RUN_FILE).exists() or not path.name.startswith("checkpoint-") else path.parent
    where, name = f"baseline {path}", f"`{task}`"
    scores = [score for score in answer_scores(run, task) if score.task_hash == task_hash]
    manifest = read_manifest(path)
    if manifest is not None:
        scores = [score for score in scores if score.model in (model_hash(path), manifest.weights)]
    if len({score.model for score in scores}) > 1:
        raise EvalError(f"several models have answers to {name} there", where=where, hint="name one of its checkpoints")
    if not scores:
        hint = "score it with this suite first" if path.is_dir() else "there is no such folder"
        raise EvalError(f"no answers to {name} as the suite asks them", where=where, hint=hint)
    return load_answers(run, scores[0]), ()


def answers_from_file(
    path: Path,
    prompts: Sequence[Prompt],
    *,
    task: str = "",
    task_hash: str = "",
    thinking: Sequence[tuple[str, str]] = TAGS,
) -> tuple[AnswerSet, tuple[str, ...]]:
    """Reads another model's answers from a file, to be compared with.

    Rows may be AlpacaEval's outputs (``instruction``, ``output``, ``generator``), MT-bench's or Arena-Hard's model
    answers, own rows with ``prompt`` or ``turns`` and ``output`` (a text, or one for each turn), or what
    :func:`to_parquet` wrote. They are joined by what was asked, never by their place, and by the prompt's id where a
    row says nothing of it: an ``id`` may count the rows of its file, and so be that of another prompt.

    Args:
        path: JSON, JSON lines or Parquet, each also ``.gz``.
        prompts: The prompt set.
        task: The prompt set's name in the suite.
        task_hash: The hash of the answers that these are compared with.
        thinking: Tags around thoughts, which are not judged.

    Returns:
        The answers, in the order of the prompts, and notes of what could not be joined.

    Raises:
        InputError: The file cannot be read, or holds no answer to any of the prompts.
    """
    known = _PromptSet(prompts)
    found: dict[tuple[str, int], Answer] = {}
    names: set[str] = set()
    report = DataReport(source=str(path))

    def read(row: Mapping[str, Any]) -> Answer:
        answer = _answer_to(row, known, thinking)
        names.update(row[name] for name in _MODELS if isinstance(row.get(name), str))
        return answer

    for where, answer in usable(read_rows(SourceSpec(path=str(path)), Path.cwd()), read, report):
        if found.setdefault((answer.prompt_key, answer.sample), answer) is not answer:
            report.drop("the prompt is answered already", where)
    if not found:
        reasons = ", ".join(f"{count} rows: {reason}" for reason, count in report.dropped.items()) or "it is empty"
        raise InputError(f"no answer to the prompts: {reasons}", where=str(path), hint="is it of the same prompt set?")
    ordered = [found[key] for prompt in prompts for key in sorted(k for k in found if k[0] == prompt.key)]
    answered = {key for key, _ in found}
    missing = sum(prompt.key not in answered for prompt in prompts)
    notes = [f"{count} rows of {path.name} left aside: {reason}" for reason, count in report.dropped.items()]
    notes += [f"{path.name} has no answer to {missing} of {len(prompts)} prompts"] if missing else []
    said = f"{known.with_system} rows of {path.name} say a system message, and the set asks without one"
    notes += [said] if known.with_system else []
    run = names.pop() if len(names) == 1 else path.name.partition(".")[0]
    weights = f"file:{hash_file(path)[:16]}"
    return AnswerSet(run, path.name, None, weights, task, task_hash, None, tuple(ordered)), tuple(notes)


_MODELS = ("generator", "model_id", "model")  # where benchmarks name who answered


class _PromptSet:
    """A prompt set, to be looked up by what rows of a file of answers say of their prompts."""

    def __init__(self, prompts: Sequence[Prompt]):
        self.keys = {prompt.key for prompt in prompts}
        self.with_system = 0
        """How many rows were found that say a system message where the set asks without one."""
        self._by_id = {prompt.id: prompt for prompt in prompts}
        self._by_turns: dict[tuple[str, ...], list[Prompt]] = {}
        for prompt in prompts:
            self._by_turns.setdefault(_stripped(prompt.turns), []).append(prompt)

    def find(self, row: Mapping[str, Any], identity: str) -> Prompt:
        """Returns what a row answers; of prompts that differ in the system message alone, the row's, or that of its id.

        Files of answers may leave a system message of the set out. One that they say where the set has none is a
        setting of who answered, often the default of a chat template, and counted; else it is a part of what is asked.

        Raises:
            RowError: It is not in the set, or what the row says of it cannot be read.
        """
        if all(row.get(name) is None for name in ASKED):
            if identity in self._by_id:
                return self._by_id[identity]
            raise RowError("its prompt is not in the set")
        if isinstance(said := row.get("messages"), list):  # the answers are not what was asked
            row = {**row, "messages": [m for m in said if not (isinstance(m, dict) and m.get("role") == "assistant")]}
        turns, system = turns_of(row)
        same = self._by_turns.get(_stripped(turns), [])
        if not same:
            raise RowError(f"its prompt is not {'that of its id' if identity in self._by_id else 'in the set'}")
        exact = [prompt for prompt in same if _stripped([prompt.system or ""]) == _stripped([system or ""])]
        is_added = system is not None and not any(prompt.system for prompt in same)
        fitting = exact if system and not is_added else same
        named = [prompt for prompt in fitting if prompt.id == identity]
        found = next((group[0] for group in (named, exact, fitting) if len(group) == 1), None)
        if found is None:
            raise RowError("its prompt is in the set under other system messages")
        self.with_system += is_added
        return found


def _stripped(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts)


def _answer_to(row: Mapping[str, Any], known: _PromptSet, thinking: Sequence[tuple[str, str]]) -> Answer:
    """Reads one row of a file of answers; one that is none, or to no prompt of the set, raises RowError."""
    if "prompt_key" in row and "raw" in row:
        try:
            own = _answer_from(row)
        except KeyError as error:
            raise RowError("a column is missing", str(error)) from error
        if own.prompt_key not in known.keys:
            raise RowError("its prompt is not in the set")
        return own
    identity, texts = answer_of(row)
    prompt = known.find(row, identity)
    if len(texts) != len(prompt.turns):
        raise RowError("not an answer for each turn")
    stripped = tuple(strip_thinking(text, thinking).text for text in texts)
    unknown = ("unknown",) * len(texts)
    return Answer(
        prompt.id, prompt.key, prompt.category, prompt.turns, prompt.references, 0, stripped, texts, unknown,
        prompt_tokens=None, completion_tokens=None, seconds=None, system=prompt.system,
    )  # fmt: skip
