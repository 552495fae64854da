"""Sending requests to an OpenAI-compatible server: so many at a time, within limits and budget, again if that helps."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import PosttrainError
from .endpoint_limits import LONGEST_WAIT, Limits, Sleep, Ticket, pause, retry_after
from .endpoint_record import Charge, Record
from .endpoint_reply import (
    BUDGET_SPENT,
    REJECTED,
    Reply,
    Request,
    one_line,
    parse_json,
    read_reply,
    token_counts,
    worst_case,
)
from .endpoint_spec import EndpointSpec

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_GIVE_UP = 8  # requests in a row that got no answer after all their retries
_NONE_TAKEN = 32  # requests that the server rejected, when it never has answered any
_AGAIN = (408, 409, 425, 429)  # and from 500 on
_HOPELESS = {  # what no other request would fare better with, and what to do
    **dict.fromkeys((401, 403, 407, "invalid_api_key"), "key"),
    **dict.fromkeys((404, 405, 410, "model_not_found"), "check `model` and `base_url`"),
    **dict.fromkeys((402, "insufficient_quota"), "the account has no money left"),
}
_REAL_KEY = 16  # characters; what is shorter is no secret, and may well be a word of an answer
_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol")
_UNPAID = (429, 500, 501, 503, 529)  # the server itself says that it did not answer; a gateway cannot know

Finished = Callable[[str, Reply], None]


@dataclass(frozen=True)
class Failure:
    """Why a try gave no answer.

    Attributes:
        error: In one line.
        again: Whether another try may help.
        unpaid: Whether it is certain that the try cost nothing.
        fatal: What to do about it, if no other request can be answered either.
        wait: Seconds that the server asks us to wait.
    """

    error: str
    again: bool = False
    unpaid: bool = False
    fatal: str | None = None
    wait: float | None = None


class Calls:
    """One run of requests, inside an event loop.

    Args:
        spec: The server.
        record: Held locked.
        client: Made of ``spec``.
        api_key: What errors must not show.
        limits: How fast.
        sleep: Waits before the next try.
    """

    def __init__(
        self, spec: EndpointSpec, record: Record, client: "AsyncOpenAI", api_key: str, limits: Limits, sleep: Sleep
    ):
        self._spec = spec
        self._record = record
        self._client = client
        self._api_key = api_key
        self._limits = limits
        self._sleep = sleep
        self._settled = asyncio.Condition()
        self._in_flight = 0
        self._failed_in_row = self._rejected = 0
        self._end: Exception | None = None
        self._resting: set[asyncio.Task[None]] = set()
        limits.begin()

    async def run(self, requests: list[tuple[str, Request]], finished: Finished) -> None:
        """Asks all, and hands over each reply as it comes.

        Args:
            requests: Each with its key; no key twice.
            finished: Takes a key and its reply.

        Raises:
            PosttrainError: The server answers nothing, refuses us, or the record cannot be written. Answers to what
                was in flight are kept all the same.
        """
        left = iter(requests)
        number = min(self._spec.concurrency, len(requests))
        workers = [asyncio.create_task(self._work(left, finished)) for _ in range(number)]
        try:
            await asyncio.wait(workers)
        finally:
            for worker in workers:
                worker.cancel()  # after an interrupt; else they are done
            await asyncio.gather(*workers, return_exceptions=True)
        if self._end is not None:
            raise self._end

    async def _work(self, left: Iterator[tuple[str, Request]], finished: Finished) -> None:
        """Answers one request after another until none is left, or the run is to end."""
        for key, request in left:
            if self._end is not None:
                return
            try:
                reply = await self._answer(key, request.body(self._spec))
                if reply is not None and self._end is None:
                    finished(key, reply)
            except Exception as error:  # whatever it is: what is in flight is paid for and may end, the rest stops
                self._end = self._end or error
                for worker in self._resting:
                    worker.cancel()
                return

    @contextmanager
    def _rest(self) -> Iterator[None]:
        """Marks that a worker only waits, so that the end of the run need not wait for it."""
        worker = asyncio.current_task()
        assert worker is not None
        self._resting.add(worker)
        try:
            yield
        finally:
            self._resting.discard(worker)

    async def _answer(self, key: str, body: dict[str, Any]) -> Reply | None:
        """Tries until there is an answer or no use in trying; None if the run ends before."""
        last = ""
        for tries in range(1, self._spec.retries + 2):
            came = await self._try(key, body)
            if isinstance(came, Reply):
                self._failed_in_row = 0
                return came
            if came is None or self._end is not None:
                return None
            if came.fatal is not None:
                raise self._ended(came.error, came.fatal)
            if not came.again:
                self._failed_in_row = 0  # the server is there
                self._rejected += 1
                if self._rejected >= _NONE_TAKEN and not self._record.spent.calls:
                    raise self._ended(came.error, "it took none of the requests: check `model` and `extra`")
                return Reply(key, finish=REJECTED, error=came.error)
            if (came.wait or 0.0) > LONGEST_WAIT:
                return Reply(key, error=f"the server asks for a long pause: {came.wait:.0f} s")
            last = came.error
            if tries <= self._spec.retries:
                with self._rest():
                    await self._sleep(pause(tries, came.wait))
        self._failed_in_row += 1
        if self._failed_in_row >= _GIVE_UP:
            raise self._ended(last.partition(": ")[2], "check that the server is up; what was answered is kept")
        return Reply(key, error=last)

    def _ended(self, error: str, hint: str) -> PosttrainError:
        return PosttrainError(f"the endpoint does not answer: {error}", where=self._spec.address, hint=hint)

    async def _try(self, key: str, body: dict[str, Any]) -> Reply | Failure | None:
        """Sends a request once; None if the run ends before it is sent."""
        admitted = await self._admit(key, body)
        if not isinstance(admitted, tuple):
            return Reply(key, error=BUDGET_SPENT) if self._end is None else None
        call, ticket = admitted
        self._in_flight += 1
        begun = time.perf_counter()
        try:
            text = await self._send(body)
            if isinstance(text, Failure):
                self._record.failed(call, text.error, released=text.unpaid)
                if text.unpaid:
                    self._limits.used(ticket, 0)
                if text.wait is not None:
                    self._limits.be_quiet(min(text.wait, LONGEST_WAIT))
                return text
            seconds = time.perf_counter() - begun
            charge = self._charge(body, text)
            reply = read_reply(key, text, seconds=seconds, cost=charge.cost)
            if reply.finish is None:  # no completion, whatever its status said: the network's fault, not the model's
                kind, _, detail = str(reply.error).partition(": ")
                failure = f"the request failed ({kind}): {self._clean(detail or text[:80])}"
                self._record.failed(call, failure, released=False)
                return Failure(failure, again=True)
            self._record.got(call, key, body, text, seconds, charge)
            self._limits.used(ticket, charge.tokens)
            return reply
        finally:
            self._in_flight -= 1
            async with self._settled:
                self._settled.notify_all()

    async def _admit(self, key: str, body: dict[str, Any]) -> tuple[str, Ticket] | None:
        """Waits for room in the limits and the budget, and reserves it; None if the budget is spent or the run ends."""
        budget = self._spec.budget
        prompt, answer = worst_case(body)
        while self._end is None:
            most = self._record.charge(prompt + self._record.excess, answer)
            if not self._record.has_room(most, budget):
                if not self._in_flight:
                    return None
                with self._rest():
                    async with self._settled:
                        if self._in_flight:
                            await self._settled.wait()  # what is in flight may cost less than it could
                continue
            with self._rest():
                ticket = await self._limits.acquire(prompt // 3 + answer)  # a token of English is over three bytes
            if self._end is None and self._record.has_room(most, budget):
                return self._record.sent(key, most), ticket
            self._limits.unused(ticket)
        return None

    def _charge(self, body: dict[str, Any], text: str) -> Charge:
        """Returns what an answer costs: by the server's count, or else the most that it can be."""
        counted = zip(token_counts(parse_json(text)), worst_case(body), strict=True)
        return self._record.charge(*(most if tokens is None else tokens for tokens, most in counted))

    async def _send(self, body: dict[str, Any]) -> str | Failure:
        """Sends a request and reads the whole answer, as text."""
        import openai

        others = {name: value for name, value in body.items() if name not in ("model", "messages")}
        create = self._client.chat.completions.with_raw_response.create
        try:
            async with asyncio.timeout(self._spec.timeout):  # the client's own time-out is for each packet
                response = await create(model=body["model"], messages=body["messages"], extra_body=others)
        except TimeoutError:
            return Failure(f"the request failed (timeout): no answer in {self._spec.timeout:g} s", again=True)
        except openai.APIStatusError as error:
            return self._refused(error)
        except openai.APITimeoutError as error:
            unpaid = type(error.__cause__).__name__ in _NOT_SENT
            return Failure("the request failed (timeout): the server is silent", again=True, unpaid=unpaid)
        except openai.APIConnectionError as error:
            unpaid = type(error.__cause__).__name__ in _NOT_SENT
            detail = self._clean(str(error.__cause__ or "")) or type(error.__cause__).__name__
            return Failure(f"the request failed (connection): {detail}", again=True, unpaid=unpaid)
        text = response.http_response.content.decode(errors="replace")
        if len(self._api_key) >= _REAL_KEY:
            text = text.replace(self._api_key, "[api key]")
        return text

    def _refused(self, error: Any) -> Failure:
        """Returns what a status that is no success means: no use at all, another try, or no use for this request."""
        status, said = error.status_code, self._clean(str(error))
        code = error.code if isinstance(error.code, str | int) else status
        line = f"the request failed ({type(error).__name__}): {said}"
        if hint := _HOPELESS.get(code) or _HOPELESS.get(status):
            name = self._spec.api_key_env
            hint = hint if hint != "key" else f"check the key in {name}" if name else "give `api_key_env`"
            return Failure(said, unpaid=True, fatal=hint)
        if status in _AGAIN or not 400 <= status < 500:
            return Failure(line, again=True, unpaid=status in _UNPAID, wait=retry_after(error.response.headers))
        return Failure(line, unpaid=True)

    def _clean(self, text: str) -> str:
        """Returns a server's text as one line that does not show the key."""
        return one_line(text.replace(self._api_key, "[api key]") if self._api_key else text)
