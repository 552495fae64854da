"""Reads run folders for the report; what cannot be read becomes a notice, and the rest is kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...chat_templates.errors import PosttrainError
from ..answers import KIND, Answer, read_answers
from ..judging.judgments import JUDGMENTS, WITHOUT_VERDICT, Judgment, settled
from ..records import superseded
from ..runs import RUN_FILE, saved_models
from .items import samples_path


@dataclass(frozen=True)
class RunFolder:
    """What one run folder holds, as far as it could be read.

    Attributes:
        path: The folder.
        record: ``run.json``, or an empty dict.
        scores: The lines of ``scores.jsonl``, in order.
        log: The lines of ``log.jsonl``, in order.
        saved: For each checkpoint with a readable manifest: name (``final`` for the root), step, weights hash and model
            hash, which manifests of older versions lack.
        judgments: The lines of ``judgments.jsonl``, those that hold.
        answers: What the scores of prompt sets stand for: the score, and its answers.
        problems: What could not be read, a clause each.
    """

    path: Path
    record: dict[str, Any] = field(default_factory=dict)
    scores: tuple[dict[str, Any], ...] = ()
    log: tuple[dict[str, Any], ...] = ()
    saved: tuple[tuple[str, int | None, str, str], ...] = ()
    judgments: tuple[Judgment, ...] = ()
    answers: tuple[tuple[dict[str, Any], tuple[Answer, ...]], ...] = ()
    problems: tuple[str, ...] = ()


def read_run(folder: Path) -> RunFolder:
    """Reads one run folder; damaged parts are named in ``problems``."""
    problems: list[str] = []
    record = _read_record(folder / RUN_FILE, problems)
    scores = _read_lines(folder / "scores.jsonl", problems)
    stale = superseded(scores)
    scores = tuple(score for index, score in enumerate(scores) if index not in stale)
    log = _read_lines(folder / "log.jsonl", problems)
    judgments = _judgments(folder / JUDGMENTS, problems)
    answers = _answers(folder, scores, problems)
    saved = tuple((name, m.step, m.weights, str(m.model)) for name, m in saved_models(folder))
    return RunFolder(folder, record, scores, log, saved, judgments, answers, tuple(problems))


def _judgments(path: Path, problems: list[str]) -> tuple[Judgment, ...]:
    lines = [_judgment(record) for record in _read_lines(path, problems)]
    bad = sum(line is None for line in lines)
    if bad:
        problems.append(f"{path.name}: {bad} line{'s are' if bad > 1 else ' is'} no judgment and left out")
    return tuple(settled(line for line in lines if line is not None))


# fmt: off
_TEXTS = (
    "judge", "judge_version", "backend", "judge_model", "task", "task_hash", "prompt_id", "prompt_key", "candidate",
    "candidate_name", "candidate_answer", "reason", "created",
)
# fmt: on
_OPTIONAL_TEXTS = ("category", "opponent", "opponent_name", "opponent_answer")
_COUNTS = ("sample", "candidate_length", "repeat")
_NUMBERS = ("preference", "rating", "cost", "seconds", "prompt_tokens", "completion_tokens", "opponent_length")
_CHOICES = {
    "order": ("candidate-first", "candidate-second", "alone"),
    "status": ("judged", *WITHOUT_VERDICT, "retracted"),
}


def _judgment(record: dict[str, Any]) -> Judgment | None:
    """Builds a judgment from its line if every field is of its type, so that nothing later need ask."""
    try:
        values = {name: record[name] for name in Judgment.__dataclass_fields__}
    except KeyError:
        return None
    texts = all(isinstance(values[name], str) for name in _TEXTS)
    texts = texts and all(values[name] is None or isinstance(values[name], str) for name in _OPTIONAL_TEXTS)
    counts = all(_is_number(values[name]) and isinstance(values[name], int) for name in _COUNTS)
    numbers = all(values[name] is None or _is_number(values[name]) for name in _NUMBERS)
    chosen = all(values[name] in allowed for name, allowed in _CHOICES.items())
    if not (texts and counts and numbers and chosen):
        return None
    pair = [values[name] is not None for name in ("opponent", "opponent_answer", "opponent_length")]
    preference = values["preference"]
    fits = any(pair) == all(pair) and (preference is None or 0 <= preference <= 1)
    if values["status"] == "judged" and preference is None and values["rating"] is None:
        fits = False
    return Judgment(**values) if fits else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _answers(
    folder: Path, scores: Sequence[dict[str, Any]], problems: list[str]
) -> tuple[tuple[dict[str, Any], tuple[Answer, ...]], ...]:
    found = []
    for score in scores:
        detail = score.get("detail")
        if not isinstance(detail, dict) or detail.get("kind") != KIND:
            continue
        path = samples_path(folder, score)
        try:
            answers = read_answers(path) if path else None
        except PosttrainError as error:
            problems.append(f"{path.name if path else ''} cannot be read ({_short(error)})")
            continue
        if answers is None:
            problems.append(f"the answers to {score.get('task')} have no file")
        elif not all(_is_whole(answer) for answer in answers):
            problems.append(f"{path.name if path else ''} holds no answers")
        else:
            found.append((score, tuple(answers)))
    return tuple(found)


def _is_whole(answer: Answer) -> bool:
    texts = (answer.prompt_id, answer.prompt_key)
    lists = (answer.turns, answer.texts, answer.raw, answer.finish, answer.references or ())
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(group, tuple) and all(isinstance(text, str) for text in group) for group in lists)
        and isinstance(answer.sample, int)
    )


def _read_record(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        value = _clean(json.loads(path.read_bytes()))
    except FileNotFoundError:
        problems.append("run.json is missing, so stage, parent and provenance are unknown")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"run.json cannot be read ({_short(error)}), so stage, parent and provenance are unknown")
        return {}
    if not isinstance(value, dict):
        problems.append("run.json is not a JSON object, so stage, parent and provenance are unknown")
        return {}
    return value


def _read_lines(path: Path, problems: list[str]) -> tuple[dict[str, Any], ...]:
    """Reads a JSON-lines log; unlike ``read_jsonl_log`` it keeps the other lines when one is damaged."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return ()
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({_short(error)})")
        return ()
    if lines[-1].strip():
        problems.append(f"{path.name}: the last line is torn and was left out (a kill, or a writer still at work)")
    records = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            value = _clean(json.loads(line)) if line.strip() else None
        except (ValueError, RecursionError) as error:
            problems.append(f"{path.name}:{number} is not JSON and was left out ({_short(error)})")
            continue
        if isinstance(value, dict):
            records.append(value)
        elif value is not None:
            problems.append(f"{path.name}:{number} is not a JSON object and was left out")
    return tuple(records)


def _clean(value: Any) -> Any:
    """Replaces lone surrogates, which JSON can spell and UTF-8 cannot, in every string of a JSON value."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


def _short(error: BaseException) -> str:
    return str(error).split("\n")[0][:120]
