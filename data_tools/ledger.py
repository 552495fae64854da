"""The append-only record of what a server was asked, what it answered, and what that cost.

A line is written before each request is sent (``sent``: the most that it can cost) and after it (``got``: the answer
as it came, and what it did cost; or ``failed``). So whenever the process dies, the record knows every answer that was
read, and counts every request whose outcome nobody knows at the most that it can have cost.
"""

import json
import math
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

from ..chat_templates.errors import PosttrainError
from .endpoint import Budget, Prices, Reply, read_reply
from .files import append_line, locked

_SYNC_EVERY = 1.0  # seconds between waits for the disk; a kill loses nothing, a power cut so much
_MOST_EXCESS = 16_384


@dataclass(frozen=True)
class Spent:
    """What a record says was spent.

    Attributes:
        tokens: Of prompts and answers, as the server counted them; where nobody counted, the most that it can be.
        money: What they cost; None without prices.
        calls: Requests that were answered.
        unsettled: Requests whose outcome nobody knows: killed, cut off or timed out. They count in full.
        hours: From line to line of the record, pauses as long as they count.
    """

    tokens: int
    money: float | None
    calls: int
    unsettled: int
    hours: float


@dataclass(frozen=True)
class Charge:
    """What a request costs, or can cost at most."""

    prompt_tokens: int
    completion_tokens: int
    cost: float | None

    @property
    def tokens(self) -> int:
        """Returns the tokens of prompt and answer."""
        return self.prompt_tokens + self.completion_tokens


class Record:
    """A record on disk; whoever adds to it holds :meth:`locked`.

    Args:
        path: The file; it and its folder are made when the first request is sent.
        prices: What tokens cost, or None.
        pause: Seconds between two lines that count as work, at most: a request that was under way takes no longer.
    """

    def __init__(self, path: Path, prices: Prices | None, pause: float = 120):
        self.path = path
        self._pause = pause
        self._seconds, self._at = 0.0, math.inf
        self.excess = 0  # tokens of a prompt beyond the bound that we had for it, as the server has shown
        self._prices = prices
        self._read = 0
        self._places: dict[str, tuple[int, int]] = {}
        self._open: dict[str, Charge] = {}
        self._tokens, self._money, self._calls = 0, 0.0, 0
        self._synced = -_SYNC_EVERY

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Waits until no other process adds to the record, and reads what others have added."""
        with locked(self.path.with_name(f".{self.path.name}.lock"), wait=True):
            self.refresh()
            yield

    def refresh(self) -> None:
        """Reads what was added since the last time; a torn last line is left aside.

        Raises:
            PosttrainError: A whole line is not one of ours.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as handle:
            handle.seek(self._read)
            for line in handle:
                if not line.endswith(b"\n"):
                    break
                try:
                    self._replay(json.loads(line), self._read, len(line))
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    where = f"{self.path}, byte {self._read}"
                    raise PosttrainError("not a line of a record", where=where, hint="remove that line") from error
                self._read += len(line)

    def _replay(self, line: dict[str, Any], start: int, length: int) -> None:
        event, call = line["event"], line["id"]
        at = datetime.fromisoformat(line["at"]).timestamp()
        self._seconds, self._at = self._worked(at), at
        if event == "sent":
            self._open[call] = self._charge(line)
            self._count(self._open[call])
        elif event == "got":
            self._places[line["key"]] = start, length
            charge, reserved = self._charge(line), self._release(call)
            if reserved is not None:
                self.excess += min(max(0, charge.prompt_tokens - reserved.prompt_tokens), _MOST_EXCESS)
            self._count(charge)
            self._calls += 1
        elif event == "failed" and line["released"]:
            self._release(call)

    def _release(self, call: str) -> Charge | None:
        """Counts what was reserved no longer; None if its first line was removed by hand."""
        reserved = self._open.pop(call, None)
        if reserved is not None:
            self._count(reserved, -1)
        return reserved

    def _count(self, charge: Charge, sign: int = 1) -> None:
        self._tokens += sign * charge.tokens
        self._money += sign * (charge.cost or 0.0)

    def _charge(self, line: dict[str, Any]) -> Charge:
        prompt, completion, cost = int(line["prompt_tokens"]), int(line["completion_tokens"]), line["cost"]
        return self.charge(prompt, completion) if cost is None else Charge(prompt, completion, float(cost))

    def charge(self, prompt_tokens: int, completion_tokens: int) -> Charge:
        """Returns what so many tokens cost at today's prices."""
        cost = None if self._prices is None else self._prices.cost(prompt_tokens, completion_tokens)
        return Charge(prompt_tokens, completion_tokens, cost)

    @property
    def spent(self) -> Spent:
        """Returns what was spent, as far as was read."""
        money = None if self._prices is None else max(0.0, self._money)
        return Spent(self._tokens, money, self._calls, len(self._open), self._seconds / 3600)

    def _worked(self, now: float) -> float:
        """Returns the seconds that count until now."""
        return self._seconds + min(max(0.0, now - self._at), self._pause)

    def left(self, budget: Budget | None) -> float:
        """Returns the seconds that a budget leaves; infinitely many if it has no hours."""
        if budget is None or budget.hours is None:
            return math.inf
        return max(0.0, 3600 * budget.hours - self._worked(datetime.now(UTC).timestamp()))

    def has_room(self, charge: Charge, budget: Budget | None) -> bool:
        """Says whether a budget allows another request, at the most that it can cost."""
        if budget is None:
            return True
        if self.left(budget) == 0:
            return False
        if budget.tokens is not None and self._tokens + charge.tokens > budget.tokens:
            return False
        # the sum of many prices is only exact to about the twelfth digit
        return budget.money is None or self._money + (charge.cost or 0.0) <= budget.money * (1 + 1e-12)

    def find(self, key: str) -> Reply | None:
        """Returns the answer to an earlier request, read anew from what the server sent; None if that was no answer."""
        place = self._places.get(key)
        if place is None:
            return None
        with self.path.open("rb") as handle:
            handle.seek(place[0])
            line = json.loads(handle.read(place[1]))
        cost = self._charge(line).cost
        reply = read_reply(key, line["body"], seconds=line["seconds"], cost=cost, recorded=True)
        return None if reply.finish is None else reply

    def sent(self, key: str, charge: Charge) -> str:
        """Reserves what a request can cost, on disk, before it is sent; returns the call's id."""
        call = secrets.token_hex(6)
        self._append({"event": "sent", "id": call, "key": key, **asdict(charge)})
        return call

    def got(self, call: str, key: str, request: dict[str, Any], body: str, seconds: float, charge: Charge) -> None:
        """Keeps an answer as it came."""
        kept = {"request": request, "body": body, "seconds": round(seconds, 4)}
        self._append({"event": "got", "id": call, "key": key, **asdict(charge), **kept})

    def failed(self, call: str, error: str, *, released: bool) -> None:
        """Notes that a call gave no answer, and whether it is certain that it cost nothing."""
        self._append({"event": "failed", "id": call, "released": released, "error": error})

    def _append(self, line: dict[str, Any]) -> None:
        text = json.dumps({**line, "at": datetime.now(UTC).isoformat(timespec="milliseconds")}, ensure_ascii=False)
        sync = line["event"] == "got" and monotonic() - self._synced >= _SYNC_EVERY
        append_line(self.path, text, sync=sync)
        self._synced = monotonic() if sync else self._synced
        self.refresh()
