"""The arena: a local page on which people vote on saved answers, blind and side by side."""

import contextlib
import functools
import getpass
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...chat_templates.errors import InputError, did_you_mean
from ...data_tools.progress import Say
from ..answers import AnswerSet, answer_scores, find_answers
from ..judging.judgments import Order
from ..stats.compare import votes_for_verdict
from .page import question_view
from .schedule import Matchup, Schedule, match
from .server import open_server
from .votes import Votes

PREFERENCES = {"left": 1.0, "tie": 0.5, "right": 0.0}
"""What a choice says of the answer on the left."""


class Arena:
    """One voter's session. Every method may be called from any thread and returns what the page shows next.

    Args:
        sets: The models' answers to one prompt set; all pairs of them are asked about.
        votes: The voter's votes.
        seed: Of the order in which matchups come.

    Raises:
        InputError: There is nothing to vote on.
    """

    def __init__(self, sets: Sequence[AnswerSet], votes: Votes, seed: int = 0):
        matchups, self._identical = match(sets)
        if not matchups:
            same = f": all {self._identical} pairs of answers are identical" if self._identical else ""
            raise InputError(f"the models share no prompt with different answers{same}", where=sets[0].task)
        self._votes = votes
        self._schedule = Schedule(matchups, seed)
        for vote in votes.load(self._schedule.matchups):
            self._schedule.count(vote, own=vote.judge_version == votes.version)
        self._lock = threading.Lock()
        self._skipped: list[str] = []
        self._shown: tuple[Matchup, Order, float] | None = None

    @property
    def total(self) -> int:
        """Returns how many matchups there are."""
        return self._schedule.total

    @property
    def done(self) -> int:
        """Returns how many this voter has voted on."""
        return self._schedule.total - self._schedule.remaining

    def question(self) -> dict[str, Any]:
        """Returns the question on the table; loading the page again does not change it."""
        with self._lock:
            return self._view("")

    def vote(self, asked: object, choice: object) -> dict[str, Any]:
        """Writes a vote and goes on. A vote on another question than the one on the table is not counted.

        Raises:
            InputError: There is no such choice.
            PosttrainError: The vote cannot be written; the question stays.
        """
        if not isinstance(choice, str) or choice not in PREFERENCES:
            raise InputError("a vote is left, right or tie")
        with self._lock:
            if self._shown is None or self._shown[0].id != asked:
                return self._view("That pair was already decided; nothing was changed.")
            matchup, order, since = self._shown
            left = PREFERENCES[choice]
            preference = left if order == "candidate-first" else 1 - left
            vote = self._votes.cast(matchup, order, preference, round(time.monotonic() - since, 3))
            self._schedule.count(vote, own=True)
            self._shown = None
            if matchup.id in self._skipped:
                self._skipped.remove(matchup.id)
            said = {"left": "Left is better", "right": "Right is better", "tie": "A tie"}[choice]
            return self._view(f"{said}: saved.")

    def skip(self, asked: object) -> dict[str, Any]:
        """Puts the question off until all others are decided."""
        with self._lock:
            if self._shown is not None and self._shown[0].id == asked:
                name = self._shown[0].id
                self._skipped = [*(other for other in self._skipped if other != name), name]
                self._shown = None
            return self._view("Skipped; it comes again at the end.")

    def undo(self) -> dict[str, Any]:
        """Takes the last vote back and puts its question on the table again, as it was shown.

        Raises:
            PosttrainError: That cannot be written; the vote stands.
        """
        with self._lock:
            vote = self._votes.retract()
            if vote is None:
                return self._view("There is no vote to take back.")
            matchup = self._schedule.count(vote, -1, own=True)
            if matchup is not None:
                straight = vote.candidate == matchup.candidate.model_hash
                turned: Order = "candidate-second" if vote.order == "candidate-first" else "candidate-first"
                self._shown = (matchup, vote.order if straight else turned, time.monotonic())
            return self._view("The last vote is taken back.")

    @functools.cached_property
    def _suffice(self) -> str:
        """Says how many votes a verdict of the report takes, before anybody votes for an hour in vain."""
        pairs = self._schedule.pairs
        counts = [f"{votes_for_verdict(tenths / 10, pairs):,} where {tenths} of 10 go one way" for tenths in (6, 7, 8)]
        among = f" among {pairs} pairs of models" if pairs > 1 else ""
        return f"A verdict{among} mostly takes about {', '.join(counts)} (votes a pair, ties aside)."

    def _view(self, said: str) -> dict[str, Any]:
        """Puts a question on the table if there is none, and describes the table."""
        if self._shown is None:
            # What was skipped comes again, the longest ago first, once nothing else is left.
            matchup = self._schedule.next(self._skipped) or next(
                (self._schedule.matchups[name] for name in self._skipped), None
            )
            if matchup is not None:
                self._shown = (matchup, self._schedule.order(matchup), time.monotonic())
        progress = {
            "done": self.done,
            "total": self.total,
            "skipped": len(self._skipped),
            "identical": self._identical,
            "undo": self._votes.undoable,
            "said": said,
            "suffice": self._suffice,
        }
        return progress | ({} if self._shown is None else question_view(*self._shown[:2]))


def serve(
    folders: Sequence[Path | str],
    *,
    task: str | None = None,
    port: int = 0,
    voter: str | None = None,
    seed: int = 0,
    progress: Say = print,
) -> int:
    """Serves the page until Ctrl-C.

    Each vote is in ``judgments.jsonl`` of its candidate's run folder before the page shows the next pair.

    Args:
        folders: Run folders with saved answers.
        task: The prompt set; needed if the runs have answered more than one.
        port: Where to listen; 0 takes a free one.
        voter: Who votes; by default the user's name. Each voter is asked about every pair.
        seed: Of the order in which pairs come.
        progress: Takes the lines that a terminal shows, the page's address among them.

    Returns:
        How many votes were cast.

    Raises:
        InputError: There is nothing to vote on, or the port is taken.
        PosttrainError: An arena of this voter is open already, or a file is damaged.
    """
    paths = list({Path(folder).resolve(): Path(folder) for folder in folders}.values())
    sets = choose(paths, task)
    votes = Votes(paths, voter or _user())
    with votes.alone():
        arena = Arena(sets, votes, seed)
        before = arena.done
        with open_server(arena, port=port, title=sets[0].task) as server:
            known = {score.model for path in paths for score in answer_scores(path, sets[0].task)}
            if other := len(known) - len(sets):
                progress(f"{other} models left out: their answers were given under other settings")
            progress(f"{len(sets)} models, {arena.total} pairs of answers, {before} voted on by {votes.voter}")
            with contextlib.suppress(KeyboardInterrupt):  # which may come as soon as the page is announced
                progress(f"vote at {server.url} (Ctrl-C ends; every vote is kept)")
                server.wait()
        progress(f"{arena.done} of {arena.total} pairs voted on")
        return arena.done - before


def choose(folders: Sequence[Path], task: str | None) -> list[AnswerSet]:
    """Returns the answers of at least two models to one prompt set.

    Raises:
        InputError: There are none, or it is not clear to which.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise InputError("no such run folder", where=", ".join(missing))
    tasks = sorted({score.task for folder in folders for score in answer_scores(folder)})
    hint = "save some with `posttrain score` and a suite that has `prompts:`"
    if not tasks:
        raise InputError("no answers are saved here", where=", ".join(map(str, folders)), hint=hint)
    if task is None and len(tasks) > 1:
        raise InputError("there are answers to several prompt sets", hint=f"say which: {', '.join(tasks)}")
    chosen = tasks[0] if task is None else task
    if chosen not in tasks:
        known = did_you_mean(chosen, tasks) or f"there is {', '.join(tasks)}"
        raise InputError(f"no answers to the prompt set {chosen!r}", hint=known)
    sets = find_answers(folders, chosen, _asked_alike(folders, chosen))
    if len(sets) < 2:
        raise InputError("only one model has answered", where=chosen, hint="give a second run, or score a checkpoint")
    return sets


def _asked_alike(folders: Sequence[Path], task: str) -> str | None:
    """Returns the hash of the prompts and settings under which most models have answered, of several the latest.

    None if no two have the same: then they are compared on the prompts that they share.
    """
    models: dict[str, set[str]] = {}
    latest: dict[str, str] = {}
    for score in (score for folder in folders for score in answer_scores(folder, task)):
        models.setdefault(score.task_hash, set()).add(score.model)
        latest[score.task_hash] = max(latest.get(score.task_hash, ""), score.created)
    best = max(models, key=lambda found: (len(models[found]), latest[found]))
    return best if len(models[best]) > 1 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may have no name for its user
        return "anonymous"
