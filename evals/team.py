"""Several processes that score together: each runs a part of the passes of a model, and all know what all have found.

A task goes the same way in every process. Where passes are independent of each other, they are cut into batches as one
process would cut them, each process runs some of the batches, and the results are exchanged (:func:`divided`). So the
figures are those of one process to the bit. The first process leads: it alone decides what is scored, and writes.

Processes talk through one call only, :meth:`Team.exchange`, in which each says what it is at. One that fails says so in
the place of what the others wait for, so that all of them give the task up and are in step again.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from ..chat_templates.errors import PosttrainError, first_line
from .errors import EvalError

T = TypeVar("T")

_PART, _END, _ORDER = "part", "end", "order"


class ProcessLostError(BaseException):
    """Another process is gone: nothing can be scored any more, so no task's failure is to hide it."""


class _Ended(BaseException):  # no Exception: nobody on the way is to go on without the others
    """Another process has ended the task."""


@dataclass(frozen=True)
class Team:
    """The processes that score together.

    Attributes:
        rank: This one's number; 0 leads.
        size: How many there are.
        local_rank: This one's number on its machine.
    """

    rank: int
    size: int
    local_rank: int

    @property
    def leads(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    def device(self, named: str | None) -> str | None:
        """Returns where this process's model goes: each has a GPU of its own, if there are any."""
        import torch

        if named is not None or not torch.cuda.is_available():
            return named
        return f"cuda:{self.local_rank % torch.cuda.device_count()}"

    def exchange(self, kind: str, value: Any) -> list[tuple[str, Any]]:
        """Tells all processes something and returns what each has told, in order.

        Raises:
            ProcessLostError: One of them has gone.
        """
        import torch.distributed as dist

        told: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(told, (kind, value))
        except RuntimeError as error:
            raise ProcessLostError(first_line(error)) from error
        return told

    def together(self, work: Callable[[], T]) -> T:
        """Does something in all processes, whose batches are shared out; it fails in all of them or in none.

        Raises:
            EvalError: It failed in another process.
        """
        mark = _AT_WORK.set(self)
        try:
            result, failure = work(), None
        except _Ended as ended:
            raise EvalError(str(ended)) from None
        except Exception as error:  # the others must hear of whatever it is
            result, failure = None, error
        finally:
            _AT_WORK.reset(mark)
        told = self.exchange(_END, None if failure is None else _describe(failure))
        if failure is not None:
            raise failure
        if problem := _problem(told, _END):
            raise EvalError(problem)
        return result  # type: ignore[return-value]

    def order(self, what: Any) -> Any:
        """Returns what the leading process gives as an order; only its argument is read."""
        (kind, found), *_ = self.exchange(_ORDER, what if self.leads else None)
        if kind != _ORDER:
            raise ProcessLostError("the processes are out of step")
        return found


_AT_WORK: ContextVar[Team | None] = ContextVar("team", default=None)


def at_work() -> Team | None:
    """Returns the team among which batches are shared out here, or None where this process does them all."""
    return _AT_WORK.get()


def divided(
    sizes: Sequence[int], work: Callable[[int], T], progress: Callable[[int], Any] = lambda number: None
) -> list[T]:
    """Does something for each of some batches, in this process or shared out among several.

    Each process gets batches that follow each other, which may have something in common.

    Args:
        sizes: How much each batch costs, in any unit.
        work: Takes a batch's number; what it returns must not depend on who does it, and travels pickled.
        progress: Takes the number of each batch that is done.

    Returns:
        What ``work`` returned for each batch.
    """
    team = at_work()
    found: dict[int, T] = {}

    def do(numbers: Sequence[int]) -> None:
        for number in numbers:
            found[number] = work(number)
            progress(number)

    if team is None:
        do(range(len(sizes)))
    else:
        mine = _blocks(sizes, team.size)[team.rank]
        found |= _shared(team, found, lambda: do(mine))
        for number in set(found) - set(mine):
            progress(number)
    return [found[number] for number in range(len(sizes))]


class Calls:
    """The passes of a loop that cannot be taken apart: run once with each process's own passes, then with all results.

    Args:
        team: Who shares them, in turns.
    """

    def __init__(self, team: Team):
        self._team = team
        self._found: dict[int, Any] = {}
        self._next = 0
        self.known = False  # whether all results are there

    def run(self, loop: Callable[[], T]) -> T:
        """Runs the loop twice, and returns what it does with everybody's results."""
        self._found |= _shared(self._team, self._found, loop)
        self.known, self._next = True, 0
        return loop()

    def do(self, call: Callable[[], T], instead: T) -> T:
        """Returns the result of a pass of the loop; in its first round ``instead`` of those of other processes."""
        number, self._next = self._next, self._next + 1
        if not self.known and number % self._team.size == self._team.rank:
            self._found[number] = call()
        return self._found.get(number, instead)


@contextlib.contextmanager
def joined() -> Iterator[Team | None]:
    """Joins the processes that ``accelerate launch`` or ``torchrun`` has started; None if this is the only one."""
    size = int(os.environ.get("WORLD_SIZE") or 1)
    if size < 2 or "RANK" not in os.environ:
        yield None
        return
    from datetime import timedelta

    import torch.distributed as dist

    # Objects only are exchanged, which gloo does on any machine; a watch may wait for days.
    dist.init_process_group("gloo", timeout=timedelta(days=365))
    try:
        if dist.get_rank():
            os.environ["TQDM_DISABLE"] = "1"  # one bar is enough
        yield Team(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK") or 0))
    finally:
        dist.destroy_process_group()


def _shared(team: Team, found: dict[int, T], work: Callable[[], Any]) -> dict[int, T]:
    """Does this process's part, which fills ``found``, and returns what all have found.

    Raises:
        EvalError: The part of another process failed.
        _Ended: Another process has given up, or is elsewhere.
    """
    failure = None
    try:
        work()
    except Exception as error:  # the others wait for this part, whatever became of it
        failure = error
    told = team.exchange(_PART, (found, None if failure is None else _describe(failure)))
    if problem := _problem(told, _PART):
        raise _Ended(problem)
    if failure is not None:
        raise failure
    for rank, (_, (part, failed)) in enumerate(told):
        if failed is not None:
            raise EvalError(f"process {rank}: {failed}")
        found = found | part
    return found


def _problem(told: Sequence[tuple[str, Any]], kind: str) -> str | None:
    """Returns what is wrong where all processes should be at the same."""
    for rank, (said, value) in enumerate(told):
        if said == _END and value is not None:
            return f"process {rank}: {value}"
    astray = [str(rank) for rank, (said, _) in enumerate(told) if said != kind]
    return f"the processes are out of step: {', '.join(astray)} went another way" if astray else None


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, PosttrainError) else f"{type(error).__name__}: {first_line(error)}"


def _blocks(sizes: Sequence[int], count: int) -> list[range]:
    """Cuts batches into runs of about the same cost, one for each process."""
    whole, done, cuts = sum(sizes), 0, [0]
    for number, size in enumerate(sizes):
        # A batch belongs to the process in whose share its middle lies.
        owner = int((done + size / 2) * count / whole) if whole else 0
        cuts += [number] * (min(owner, count - 1) + 1 - len(cuts))
        done += size
    cuts += [len(sizes)] * (count + 1 - len(cuts))
    return [range(start, end) for start, end in itertools.pairwise(cuts)]
