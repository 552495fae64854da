"""Scores and the append-only file that keeps them."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.files import append_line, locked, read_jsonl_log, write_atomic

SCORES = "scores.jsonl"
CONTAMINATION = "contamination.jsonl"
LOCKS = ".scoring"  # a folder of lock files; hidden, so that no manifest lists it
Key = tuple[str, str, str, str | None]
_OLD_KEY = ("weights_hash", "task", "task_hash", "template_fingerprint")  # of lines that name no model


@dataclass(frozen=True)
class Metric:
    """One figure.

    Attributes:
        name: Such as ``acc``; with the filter behind a comma if the task has more than one (``exact_match,strict``).
        value: The figure, in the metric's own unit.
        stderr: Its standard error in the same unit, or None if none is known.
        n: How many documents it was taken over.
        higher_is_better: Which way is up.
        low: Lower end of its 95% interval, where that is not what value and standard error say (a bootstrap's
            percentile, say), else None.
        high: Upper end.
    """

    name: str
    value: float
    stderr: float | None
    n: int
    higher_is_better: bool
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Result:
    """What a task gave on a model.

    Attributes:
        metrics: The figures; the first stands for the task.
        samples: A Parquet file of what was asked, answered and counted, a row for each document and filter.
        num_fewshot: Worked examples in the prompt; None for perplexity.
        notes: What a reader must know: what lm-eval warned of, such as prompts cut to the model's length, with
            counts; rows that were dropped; what chance would be.
        detail: What is no single figure, as JSON, such as a confusion matrix.
        is_limited: Whether a limit, where there is one, may have left items out.
    """

    metrics: tuple[Metric, ...]
    samples: bytes
    num_fewshot: int | None
    notes: tuple[str, ...] = ()
    detail: dict[str, Any] | None = None
    is_limited: bool = True


@dataclass(frozen=True)
class Score:
    """One task on one checkpoint: a line of ``scores.jsonl``.

    Attributes:
        run: The run's name.
        run_id: The hash of its recipe; empty for a model that no recipe made.
        checkpoint: The folder, ``checkpoint-<step>`` or ``final``. Two folders with the same model share one record.
        step: The optimiser step of the checkpoint.
        weights_hash: What identifies the weights.
        suite: The suite under which it was scored.
        suite_version: The hash of the suite's content.
        task: The task's name in the suite.
        task_hash: The hash of everything that decides the task's result but the model.
        num_fewshot: Worked examples in the prompt; None for perplexity.
        metrics: The figures; the first is the one that stands for the task.
        template_fingerprint: Of the chat template that was applied, or None if none was.
        judge_version: Of the judge or the jury; None where none takes part.
        limit: Documents at most, or None where those scored are all.
        versions: Of the packages that took part.
        seconds: Wall time of the task.
        created: When, in ISO 8601, UTC.
        notes: What a reader must know of the figures; empty in lines of older versions.
        detail: What is no single figure, as JSON; None in lines of older versions.
        model_hash: What identifies the model (:func:`~.checkpoints.model_hash`); empty in lines of older versions.
    """

    run: str
    run_id: str
    checkpoint: str
    step: int | None
    weights_hash: str
    suite: str
    suite_version: str
    task: str
    task_hash: str
    num_fewshot: int | None
    metrics: tuple[Metric, ...]
    template_fingerprint: str | None
    judge_version: str | None
    limit: int | None
    versions: dict[str, str]
    seconds: float
    created: str
    notes: tuple[str, ...] = ()
    detail: dict[str, Any] | None = None
    model_hash: str = ""

    @property
    def model(self) -> str:
        """Returns what tells the model from others: older versions knew it by its weights alone."""
        return self.model_hash or self.weights_hash

    @property
    def key(self) -> Key:
        """Returns what no two records of a store share; ``task_hash`` covers few-shot number, limit and settings."""
        return (self.model, self.task, self.task_hash, self.template_fingerprint)

    @property
    def samples_name(self) -> str:
        """Returns the name, within the run folder, of the Parquet file with the task's samples."""
        return samples_name(self.model, self.task, self.task_hash)


def samples_name(model: str, task: str, task_hash: str) -> str:
    """Returns the name, within a run folder, of the Parquet file with the samples of a model's score."""
    return f"samples/{model[:12]}-{task}-{task_hash[:8]}.parquet"


def now() -> str:
    """Returns the time as records have it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Returns the versions of the packages that decide a score."""
    return {name: version(name) for name in ("lm-eval", "transformers", "torch", "tokenizers", "posttrain")}


def parquet(table: dict[str, Any]) -> bytes:
    """Packs columns as a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(table), buffer, compression="zstd")
    return buffer.getvalue()


def _score_from(record: dict[str, Any], where: str) -> Score:
    """Builds a score from its line; keys that a later version may add are left aside."""
    try:
        metrics = tuple(_known(Metric, metric) for metric in record["metrics"])
        if not isinstance(record.get("detail"), dict | None):
            raise TypeError("detail is no JSON object")
        score = _known(Score, record)
        if not all(isinstance(part, str | None) for part in (*score.key, score.run, score.checkpoint)):
            raise TypeError("a name or a hash is no text")
        return replace(score, metrics=metrics, notes=tuple(score.notes))
    except (KeyError, TypeError) as error:
        raise PosttrainError(f"not a score: {error}", where=where, hint="remove that line") from error


def _known(kind: Any, record: dict[str, Any]) -> Any:
    """Builds a record from the keys that this version knows; one without a default must be there."""
    return kind(**{name: record[name] for name in kind.__dataclass_fields__ if name in record})


def model_of(line: Mapping[str, Any]) -> str | None:
    """Returns what tells a score's model from others; lines of older versions name its weights alone."""
    found = line.get("model_hash") or line.get("weights_hash")
    return found if isinstance(found, str) and found else None


def superseded(lines: Sequence[Mapping[str, Any]]) -> set[int]:
    """Returns the places of lines of older versions, which name no model, that another line of the weights replaces."""
    keys = [json.dumps([line.get(name) for name in _OLD_KEY]) for line in lines]
    named = {key for key, line in zip(keys, lines, strict=True) if line.get("model_hash")}
    return {index for index, line in enumerate(lines) if not line.get("model_hash") and keys[index] in named}


class ScoreStore:
    """The scores of one run folder, in ``scores.jsonl``.

    Several processes may append to one store: the file is locked for each append, and what another has written
    meanwhile is read first, so that no key is ever written twice.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / SCORES

    def load(self) -> list[Score]:
        """Returns the scores in the order they were written, the first of each key; a torn last line is dropped.

        Raises:
            PosttrainError: A whole line is not a score.
        """
        scores: dict[Key, Score] = {}
        for number, record in enumerate(read_jsonl_log(self.path), start=1):
            score = _score_from(record, f"{self.path}:{number}")
            scores.setdefault(score.key, score)
        stale = superseded([vars(score) for score in scores.values()])
        return [score for index, score in enumerate(scores.values()) if index not in stale]

    def keys(self) -> set[Key]:
        """Returns the keys of all scores."""
        return {score.key for score in self.load()}

    def append(self, score: Score, samples: bytes | None = None) -> bool:
        """Writes a score and syncs it to the disk: its samples first, then the line that makes them count.

        Args:
            score: The score.
            samples: Its Parquet file; None leaves what is there.

        Returns:
            False if another process has already written this key.
        """
        if samples is not None:
            write_atomic(self.folder / score.samples_name, samples)
        line = json.dumps(asdict(score), ensure_ascii=False, allow_nan=False)
        with locked(self.folder / LOCKS / "scores", wait=True):
            if score.key in self.keys():
                return False
            append_line(self.path, line)
        return True
