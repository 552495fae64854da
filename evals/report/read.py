"""Reads run folders for the report; what cannot be read becomes a notice, and the rest is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...chat_templates.errors import PosttrainError, first_line
from ...data_tools.files import read_jsonl_log
from ..answers import KIND, Answer, read_answers
from ..checkpoints import Manifest
from ..judging.judgments import JUDGMENTS, Judgment, judgment_from, settled
from ..parity.record import ParityReport, read_comparisons
from ..records import CONTAMINATION, SCORES, superseded
from ..runs import read_record, saved_models
from .items import samples_path
from .text import Record, detail_of, mapping, whole

AnswerSets = tuple[tuple[Record, tuple[Answer, ...]], ...]
"""Scores of prompt sets, each with the answers that it stands for."""


@dataclass(frozen=True)
class RunFolder:
    """What one run folder holds, as far as it could be read.

    Attributes:
        path: The folder.
        record: ``run.json``, or an empty dict.
        scores: The lines of ``scores.jsonl``, in order.
        log: The lines of ``log.jsonl``, in order.
        saved: Name (``final`` for the root) and manifest of each checkpoint that has one.
        judgments: The lines of ``judgments.jsonl``, those that hold.
        answers: What the scores of prompt sets stand for.
        contamination: The lines of ``contamination.jsonl``, in order.
        parity: Forms of its model that were compared with each other.
        problems: What could not be read, a clause each.
        source: The file of another harness that it was read from; None of a run.
    """

    path: Path
    record: Record
    scores: tuple[Record, ...]
    log: tuple[Record, ...]
    saved: tuple[tuple[str, Manifest], ...]
    judgments: tuple[Judgment, ...]
    answers: AnswerSets
    contamination: tuple[Record, ...]
    parity: tuple[ParityReport, ...]
    problems: tuple[str, ...]
    source: Path | None = None


def read_run(folder: Path) -> RunFolder:
    """Reads one run folder; damaged parts are named in ``problems``."""
    problems: list[str] = []
    record = read_record(folder, problems)
    lines = read_jsonl_log(folder / SCORES, problems)
    stale = superseded(lines)
    scores = tuple(_without_idle_limit(score) for index, score in enumerate(lines) if index not in stale)
    log = tuple(read_jsonl_log(folder / "log.jsonl", problems))
    judgments = _judgments(folder / JUDGMENTS, problems)
    answers = _answers(folder, scores, problems)
    contamination = tuple(read_jsonl_log(folder / CONTAMINATION, problems))
    saved = tuple(saved_models(folder))
    parity = tuple(read_comparisons(folder))
    return RunFolder(folder, record, scores, log, saved, judgments, answers, contamination, parity, tuple(problems))


def _without_idle_limit(score: Record) -> Record:
    """Takes from a line of lm-eval a limit that left no item out, as older versions recorded it."""
    detail, metrics, limit = detail_of(score), score.get("metrics"), whole(score.get("limit"))
    counts = [whole(mapping(metric).get("n")) for metric in metrics] if isinstance(metrics, list) else []
    most = max((n for n in counts if n is not None), default=None)  # a metric may be of a part of the items
    if detail.get("kind") != "lm-eval" or limit is None or most is None:
        return score
    if most + (whole(detail.get("too_long")) or 0) >= limit:
        return score
    if isinstance(changes := detail.get("changes"), list):
        detail = {**detail, "changes": [change for change in changes if change != "a limit"]}
    return {**score, "limit": None, "detail": detail}


def _judgments(path: Path, problems: list[str]) -> tuple[Judgment, ...]:
    lines = [_judgment(record) for record in read_jsonl_log(path, problems)]
    bad = lines.count(None)
    if bad:
        problems.append(f"{path.name}: {bad} line{'s are' if bad > 1 else ' is'} no judgment and left out")
    return tuple(settled(line for line in lines if line is not None))


def _judgment(record: Record) -> Judgment | None:
    try:
        found = judgment_from(record, JUDGMENTS)
    except PosttrainError:
        return None
    # Sums over judgments need finite numbers of a possible size, and a pair all of its other side.
    numbers = [value for value in vars(found).values() if isinstance(value, int | float)]
    other = [value is not None for value in (found.opponent, found.opponent_answer, found.opponent_length)]
    return found if all(abs(value) < 1e15 for value in numbers) and any(other) == all(other) else None


def _answers(folder: Path, scores: Sequence[Record], problems: list[str]) -> AnswerSets:
    found = []
    for score in scores:
        if detail_of(score).get("kind") != KIND:
            continue
        path = samples_path(folder, score)
        if path is None:
            problems.append(f"the answers to {score.get('task')} have no file")
            continue
        try:
            answers = read_answers(path)
        except PosttrainError as error:
            problems.append(f"{path.name} cannot be read ({first_line(error)})")
            continue
        if all(_is_whole(answer) for answer in answers):
            found.append((score, answers))
        else:
            problems.append(f"{path.name} holds no answers")
    return tuple(found)


def _is_whole(answer: Answer) -> bool:
    lists = (answer.turns, answer.texts, answer.raw, answer.finish, answer.references or ())
    if not all(isinstance(group, tuple) for group in lists) or not isinstance(answer.sample, int):
        return False
    texts = [answer.prompt_id, answer.prompt_key, *(text for group in lists for text in group)]
    return all(isinstance(text, str) for text in texts)
