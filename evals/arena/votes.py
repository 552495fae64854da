"""Votes in the judgment stores of the candidates' run folders, as those of a judge named ``human``."""

import contextlib
import hashlib
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ...chat_templates.errors import PosttrainError
from ...data_tools.errors import BusyError
from ...data_tools.files import hash_json, locked
from ..judging.judgments import HUMAN, Judgment, JudgmentStore, Order, about
from ..records import LOCKS
from .schedule import Matchup, judged_id

_ASKED = 1  # raise when the page asks something else, so that votes of both kinds stay apart


def voter_version(voter: str) -> str:
    """Returns the judge's version of a voter: each is a judge of their own, compared with the others in the audit."""
    return hash_json({"judge": HUMAN, "voter": voter, "asked": _ASKED})


class Votes:
    """The votes of all voters over some run folders; each is on the disk before it counts.

    Args:
        folders: Run folders; votes go to the candidate's.
        voter: Who votes.
    """

    def __init__(self, folders: Sequence[Path], voter: str):
        self.voter = voter
        self.version = voter_version(voter)
        self._stores = {folder: JudgmentStore(folder) for folder in folders}
        self._cast: list[tuple[Path, Judgment]] = []

    def load(self, asked: Container[str]) -> list[Judgment]:
        """Reads all votes, of this voter and of others.

        Args:
            asked: The matchups of this session; only votes on these can be taken back in it.

        Raises:
            PosttrainError: A store is damaged.
        """
        found = [(folder, j) for folder, store in self._stores.items() for j in store.load() if j.backend == HUMAN]
        self._cast = sorted(
            [(folder, j) for folder, j in found if j.judge_version == self.version and judged_id(j) in asked],
            key=lambda item: item[1].created,
        )
        return [vote for _, vote in found]

    def cast(self, matchup: Matchup, order: Order, preference: float, seconds: float | None) -> Judgment:
        """Writes a vote.

        Args:
            matchup: What was shown.
            order: Which answer was on the left; the left one counts as the first.
            preference: The candidate's: 1, .5 or 0.
            seconds: How long the voter looked at it.
        """
        folder = matchup.candidate.folder
        assert folder is not None, "only answers of run folders are shown"
        vote = Judgment(
            judge=HUMAN,
            judge_version=self.version,
            backend=HUMAN,
            judge_model=self.voter,
            order=order,
            repeat=0,
            status="judged",
            preference=preference,
            rating=None,
            reason="",
            prompt_tokens=None,
            completion_tokens=None,
            cost=None,
            seconds=seconds,
            created=_now(),
            **about(matchup.candidate, matchup.own, matchup.opponent, matchup.other, lambda answer: answer.key),
        )
        self._stores[folder].append(vote)
        self._cast.append((folder, vote))
        return vote

    def retract(self) -> Judgment | None:
        """Takes this voter's last vote back, in whichever session it was cast; None if there is none."""
        if not self._cast:
            return None
        folder, vote = self._cast[-1]
        self._stores[folder].append(replace(vote, status="retracted", preference=None, created=_now()))
        self._cast.pop()
        return vote

    @property
    def undoable(self) -> bool:
        """Says whether there is a vote to take back."""
        return bool(self._cast)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds off a second arena of the same voter, whose votes this one would not see.

        Raises:
            PosttrainError: There is one.
        """
        name = f"arena-{hashlib.sha256(self.voter.encode()).hexdigest()[:12]}"
        with contextlib.ExitStack() as stack:
            for folder in self._stores:
                try:
                    stack.enter_context(locked(folder / LOCKS / name))
                except BusyError as error:
                    hint = "vote there, end it, or vote under another name"
                    what = f"an arena is already open for {self.voter!r}"
                    raise PosttrainError(what, where=str(folder), hint=hint) from error
            yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")  # finer than a key can be pressed: votes have an order
