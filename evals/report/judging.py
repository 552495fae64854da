"""Adds to a leaderboard what judges said, what answers came to, and the answers themselves."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..answers import Answer
from ..judging.audit import AuditRow, audit
from ..judging.families import families_of
from ..judging.judgments import Judgment
from ..records import model_of
from .facts import STAMP, usage_of
from .format import checkpoint_label
from .judged import judgings
from .judged_model import Player
from .model import Leaderboard, Notice, Row
from .read import RunFolder
from .samples import gather
from .text import plain
from .verdicts import Tested


def unique(judgments: Iterable[Judgment]) -> list[Judgment]:
    """Returns judgments of several run folders, each once: two runs may hold the same weights."""
    found: dict[str, Judgment] = {}
    for judgment in judgments:
        if judgment.key not in found or found[judgment.key].status != "judged":
            found[judgment.key] = judgment
    return list(found.values())


def of_newest_answers(
    judgments: Sequence[Judgment], answers: Sequence[tuple[Row, dict[str, Any], Sequence[Answer]]]
) -> tuple[list[Judgment], list[Notice]]:
    """Leaves out what was said of answers that have since been made anew, for other prompts or with other settings.

    An answer that came out the same is not judged again, so its judgment may name the older settings: the answers tell,
    not the hash. Of a player whose answers are not here the latest judgment of each question holds.

    Args:
        judgments: All that may be shown.
        answers: Row, score and answers of the newest set of each row and prompt set.
    """
    newest: dict[str, dict[str, Any]] = {}
    for _, score, _ in answers:
        task = str(score.get("task"))
        if task not in newest or str(score.get("created")) >= str(newest[task].get("created")):
            newest[task] = score
    known: dict[tuple[str, str | None], set[str]] = {}
    for row, score, some in answers:
        task = str(score.get("task"))
        keys = known.setdefault((task, row.model_hash), set())
        if score.get("task_hash") == newest[task].get("task_hash"):
            keys.update(key for answer in some for key in (answer.key, answer.ended_key))
    latest: dict[tuple[Any, ...], Judgment] = {}
    for said in judgments:
        sides = ((said.candidate, said.candidate_answer), (said.opponent, said.opponent_answer))
        if all((said.task, player) not in known or answer in known[said.task, player] for player, answer in sides):
            where = (said.judge_version, said.task, said.prompt_key, said.sample, said.order, said.repeat)
            place = (*where, said.candidate, said.opponent)
            if place not in latest or said.created >= latest[place].created:
                latest[place] = said
    older = len(judgments) - len(latest)
    text = f"{older} judgments left out: of answers that have since been made anew, with other prompts or settings"
    return list(latest.values()), [Notice("warning", text)] if older else []


def with_judgings(
    leaderboard: Leaderboard, held: Mapping[str, RunFolder], judgments: Sequence[Judgment], rules: Iterable[str]
) -> tuple[Leaderboard, Tested]:
    """Adds judgings, usage and samples, and returns what the verdicts on the judgings are to rest on.

    Args:
        leaderboard: With its rows and columns.
        held: The folder of each run, by the run's id.
        judgments: All that may be shown.
        rules: Versions of judges that are rules, whose every figure is stamped.
    """
    players = _players(leaderboard)
    stamps = dict.fromkeys(rules, STAMP)
    answers = [(row, *pair) for row in leaderboard.rows for pair in _answers_of(row, held[row.run])]
    usage = [found for row, score, some in answers if (found := usage_of(row, score, some))]
    given = [(row.model_hash or "", str(score.get("task")), some) for row, score, some in answers]
    judgments, older = of_newest_answers(judgments, answers)
    audited, notices = _audit(judgments, [folder.path for folder in held.values()])
    summed, tested = judgings(judgments, players, stamps, audited)
    board = replace(
        leaderboard,
        notices=(*leaderboard.notices, *older, *notices),
        judgings=summed,
        usage=tuple(usage),
        samples=gather(given, judgments, players, stamps),
    )
    return board, tested


def _audit(judgments: Sequence[Judgment], folders: Sequence[Path]) -> tuple[list[AuditRow], list[Notice]]:
    """Audits the judges, and puts each judge's own warnings before the reader."""
    if not judgments:
        return [], []
    models = dict.fromkeys(judgment.judge_model for judgment in judgments if judgment.backend != "human")
    rows = audit(judgments, families=families_of(folders, models))
    notices = [
        Notice("warning", f"judge {plain(row.judge, 40)}: {plain(warning, 300)}")
        for row in rows
        if row.is_sum
        for warning in row.warnings
    ]
    return rows, notices


def _players(leaderboard: Leaderboard) -> dict[str, Player]:
    """Returns a player for each model with a row, in the order of the rows."""
    found: dict[str, Player] = {}
    for row in leaderboard.rows:
        if row.model_hash:
            found.setdefault(row.model_hash, Player(row.model_hash, checkpoint_label(leaderboard, row), row.id))
    return found


def player_names(leaderboard: Leaderboard) -> dict[str, str]:
    """Returns the name of every player, by model hash."""
    judged = {player.id: player.name for judging in leaderboard.judgings for player in judging.players}
    return judged | {model: player.name for model, player in _players(leaderboard).items()}


def _answers_of(row: Row, folder: RunFolder) -> list[tuple[dict[str, Any], Sequence[Answer]]]:
    """Returns the answer sets of a row's model, the newest of each prompt set."""
    newest = {}
    for score, answers in folder.answers:
        if row.model_hash and model_of(score) == row.model_hash:
            newest[score.get("task")] = (score, answers)
    return list(newest.values())
