"""The one client for OpenAI-compatible servers, and for Ollama's own API.

Nothing is paid twice: every answer is in an append-only record before anybody sees it, under a key of all that was
asked, and who asks the same again gets it from there. That holds for answers that are refused, cut or empty as well,
since they were paid for; another :attr:`Request.salt` asks anew. After a kill only what was in flight is asked again,
at most as many requests as the concurrency allows.

What fails is of three kinds. Statuses 429 and 5xx, lost connections and bodies that are no completion (half of one, a
proxy's page, an answer without choices or content) are tried again, so often and no more. A request that the server
will not take (400, 413, 422: too long, filtered) is rejected, alone. A wrong key or model ends the run with one error.

A budget is kept over the life of the record. Before a request is sent, the most that it can cost is reserved on disk:
a token for each byte of the request, 128 for what the model's chat template may add (more, once the server has shown
that it adds more), and ``max_tokens``. The server's own count settles it. Where that is missing, or a request was
killed, cut off or timed out, the whole reservation counts as spent. Hours are counted from line to line of the record,
and a request is given up when they are over. A server that answers with more tokens than it was
allowed, or hides what it spends, cannot be held to a budget by anybody but itself.
"""

import asyncio
import email.utils
import os
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from .endpoint import (
    BUDGET_SPENT,
    REJECTED,
    EndpointSpec,
    Reply,
    Request,
    one_line,
    parse_json,
    read_reply,
    token_counts,
    worst_case,
)
from .errors import DataError
from .ledger import Record, Spent

MINUTE = 60.0
LONGEST_WAIT = 600.0
"""Seconds: who asks us to wait longer is not waited for."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds: the longest pause after the first failed try, and after any."""
_TICK = 1e-3
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

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]
Finished = Callable[[str, Reply], None]
Take = Callable[[Request, Reply], None]
Progress = Callable[[int, int], None]


# --- how fast ---


@dataclass
class Sent:
    """What a request has taken of the limits; set lower once it is known to have taken less."""

    time: float
    tokens: int
    requests: int = 1


class RateLimits:
    """Requests and tokens in any minute, and silence for as long as the server asked for.

    Unlike a token bucket of the same rate, which lets twice as much through in the minute after a pause, these limits
    hold for every minute wherever it begins; so they also satisfy servers that have a bucket or count by the clock.
    Whoever came first is let through first, so that a long request is not overtaken by short ones for ever.

    Args:
        requests: Requests in any minute, or None.
        tokens: Tokens in any minute, or None.
        clock: Seconds that only grow.
        sleep: Waits for so many seconds of that clock.
    """

    def __init__(
        self, requests: int | None, tokens: int | None, clock: Clock = time.monotonic, sleep: Sleep = asyncio.sleep
    ):
        self._requests, self._tokens = requests, tokens
        self._clock = clock
        self._sleep = sleep
        self._sent: deque[Sent] = deque()
        self._quiet_until = clock()
        self.begin()

    def begin(self) -> None:
        """Makes ready for another event loop; what was sent in the last minute still counts."""
        self._turn = asyncio.Lock()

    async def acquire(self, tokens: int) -> Sent:
        """Waits until a request of so many tokens may be sent, and counts it as sent."""
        async with self._turn:
            while (seconds := self.wait(tokens)) > 0:
                await self._sleep(seconds)
            self._sent.append(Sent(self._clock(), tokens))
            return self._sent[-1]

    def wait(self, tokens: int) -> float:
        """Returns for how many seconds a request has no room; one that is larger than the limit has it when alone."""
        now = self._clock()
        while self._sent and self._sent[0].time + MINUTE <= now:
            self._sent.popleft()
        seconds = max(self._quiet_until - now, 0.0)
        for limit, amount, name in ((self._requests, 1, "requests"), (self._tokens, tokens, "tokens")):
            if limit is None:
                continue
            room = limit - min(amount, limit)
            for sent in reversed(self._sent):
                room -= getattr(sent, name)
                if room < 0:  # this one must be a minute old first, and with it all that were sent before
                    seconds = max(seconds, sent.time + MINUTE - now, _TICK)
                    break
        return seconds

    def be_quiet(self, seconds: float) -> None:
        """Lets nothing through for so long."""
        self._quiet_until = max(self._quiet_until, self._clock() + seconds)


def pause(tries: int, retry_after: float | None) -> float:
    """Returns for how long to wait after so many failed tries: exponential back-off with full jitter.

    Full jitter draws from zero to the limit that doubles each time (Brooker 2015, "Exponential Backoff And Jitter");
    it comes on top of what the server asked for.
    """
    limit = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries - 1, 16))
    return (retry_after or 0.0) + random.uniform(0, limit)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns the seconds that a server asks to wait: ``retry-after-ms`` or ``Retry-After``, a number or a date."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            try:
                seconds = max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
            except (ValueError, TypeError):
                continue
        if 0 <= seconds < float("inf"):
            return seconds
    return None


# --- one run of requests ---


class TryError(Exception):
    """A try gave no answer.

    Args:
        error: Why, in one line.
        again: Whether another try may help.
        unpaid: Whether it is certain that the try cost nothing.
        fatal: What to do about it, if no other request can be answered either.
        wait: Seconds that the server asks us to wait.
    """

    def __init__(
        self,
        error: str,
        *,
        again: bool = False,
        unpaid: bool = False,
        fatal: str | None = None,
        wait: float | None = None,
    ):
        super().__init__(error)
        self.again, self.unpaid, self.fatal, self.wait = again, unpaid, fatal, wait


class RequestRun:
    """One run of requests, inside an event loop.

    Args:
        endpoint: Whom to ask; its record is held locked.
        api_key: What errors must not show.
    """

    def __init__(self, endpoint: "Endpoint", api_key: str):
        self._spec, self._record, self._limits = endpoint.spec, endpoint.record, endpoint.limits
        self._sleep = endpoint.sleep
        self._api_key = api_key
        self._settled = asyncio.Event()
        self._in_flight = 0
        self._failed_in_row = self._rejected = 0
        self._end: Exception | None = None
        self._resting: set[asyncio.Task[None]] = set()

    async def run(self, requests: list[tuple[str, Request]], finished: Finished) -> None:
        """Asks all, and hands over each reply as it comes.

        Args:
            requests: Each with its key; no key twice.
            finished: Takes a key and its reply.

        Raises:
            PosttrainError: The server answers nothing, refuses us, or the record cannot be written. Answers to what
                was in flight are kept all the same.
        """
        from openai import AsyncOpenAI

        self._limits.begin()
        left = iter(requests)
        number = min(self._spec.concurrency, len(requests))
        key, seconds = self._api_key or "none", self._spec.timeout
        async with AsyncOpenAI(base_url=self._spec.base_url, api_key=key, timeout=seconds, max_retries=0) as client:
            self._post = client.post
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
            try:
                reply = await self._answer(key, request.path, request.body(self._spec))
                self._go_on()
                finished(key, reply)
            except Exception as error:  # whatever it is: what is in flight is paid for and may end, the rest stops
                self._end = self._end or error
                for worker in self._resting:
                    worker.cancel()
                return

    def _go_on(self) -> None:
        """Ends this worker if another has ended the run."""
        if self._end is not None:
            raise asyncio.CancelledError

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

    async def _answer(self, key: str, path: str, body: dict[str, Any]) -> Reply:
        """Tries until there is an answer or no use in trying."""
        last = ""
        for tries in range(1, self._spec.retries + 2):
            try:
                reply = await self._try(key, path, body)
            except TryError as failed:
                self._go_on()
                last = str(failed)
                if failed.fatal is not None:
                    raise self._ended(last, failed.fatal) from None
                if not failed.again:
                    self._failed_in_row = 0  # the server is there
                    self._rejected += 1
                    if self._rejected >= _NONE_TAKEN and not self._record.spent.calls:
                        hint = "it took none of the requests: check `model` and `extra`"
                        raise self._ended(last, hint) from None
                    return Reply(key, finish=REJECTED, error=last)
                if (failed.wait or 0.0) > LONGEST_WAIT:
                    return Reply(key, error=f"the server asks for a long pause: {failed.wait:.0f} s")
                if tries <= self._spec.retries:
                    with self._rest():
                        await self._sleep(pause(tries, failed.wait))
            else:
                self._failed_in_row = 0
                return reply
        self._failed_in_row += 1
        if self._failed_in_row >= _GIVE_UP:
            raise self._ended(last.partition(": ")[2], "check that the server is up; what was answered is kept")
        return Reply(key, error=last)

    def _ended(self, error: str, hint: str) -> PosttrainError:
        return PosttrainError(f"the endpoint does not answer: {error}", where=self._spec.address, hint=hint)

    async def _try(self, key: str, path: str, body: dict[str, Any]) -> Reply:
        """Sends a request once, if the budget allows it."""
        admitted = await self._admit(key, body)
        if admitted is None:
            return Reply(key, error=BUDGET_SPENT)
        call, sent = admitted
        self._in_flight += 1
        begun = time.perf_counter()
        try:
            text = await self._send(path, body)
            seconds = time.perf_counter() - begun
            # what an answer costs: by the server's count, or else the most that it can be
            counted = zip(token_counts(parse_json(text)), worst_case(body), strict=True)
            charge = self._record.charge(*(most if tokens is None else tokens for tokens, most in counted))
            reply = read_reply(key, text, seconds=seconds, cost=charge.cost)
            if reply.finish is None:  # no completion, whatever its status said: the network's fault, not the model's
                kind, _, detail = str(reply.error).partition(": ")
                raise TryError(f"the request failed ({kind}): {self._clean(detail or text[:80])}", again=True)
            self._record.got(call, key, body, text, seconds, charge)
            sent.tokens = charge.tokens
            return reply
        except TryError as failed:
            self._record.failed(call, str(failed), released=failed.unpaid)
            if failed.unpaid:
                sent.tokens = 0
            if failed.wait is not None:
                self._limits.be_quiet(min(failed.wait, LONGEST_WAIT))
            raise
        finally:
            self._in_flight -= 1
            self._settled.set()

    async def _admit(self, key: str, body: dict[str, Any]) -> tuple[str, Sent] | None:
        """Waits for room in the limits and the budget, and reserves it; None if the budget is spent."""
        budget = self._spec.budget
        prompt, answer = worst_case(body)
        while True:
            self._go_on()
            most = self._record.charge(prompt + self._record.excess, answer)
            if self._record.has_room(most, budget):
                with self._rest():
                    sent = await self._limits.acquire(prompt // 3 + answer)  # a token of English is over three bytes
                if self._end is None and self._record.has_room(most, budget):
                    return self._record.sent(key, most), sent
                sent.tokens = sent.requests = 0
            elif self._in_flight:
                self._settled.clear()
                with self._rest():
                    await self._settled.wait()  # what is in flight may cost less than it could
            else:
                return None

    async def _send(self, path: str, body: dict[str, Any]) -> str:
        """Sends a request and reads the whole answer, as text."""
        import httpx2
        import openai

        limit = min(self._spec.timeout, self._record.left(self._spec.budget))
        try:
            async with asyncio.timeout(limit):  # the client's own time-out is for each packet
                response = await self._post(path, cast_to=httpx2.Response, body=body)
        except TimeoutError:
            raise TryError(f"the request failed (timeout): no answer in {limit:g} s", again=True) from None
        except openai.APIStatusError as error:
            raise self._refused(error) from error
        except openai.APIConnectionError as error:
            cause = type(error.__cause__).__name__
            said = f"(connection): {self._clean(str(error.__cause__ or '')) or cause}"
            said = "(timeout): the server is silent" if isinstance(error, openai.APITimeoutError) else said
            raise TryError(f"the request failed {said}", again=True, unpaid=cause in _NOT_SENT) from error
        text = response.content.decode(errors="replace")
        return text.replace(self._api_key, "[api key]") if len(self._api_key) >= _REAL_KEY else text

    def _refused(self, error: Any) -> TryError:
        """Returns what a status that is no success means: no use at all, another try, or no use for this request."""
        status, said = error.status_code, self._clean(str(error))
        code = error.code if isinstance(error.code, str | int) else status
        line = f"the request failed ({type(error).__name__}): {said}"
        if hint := _HOPELESS.get(code) or _HOPELESS.get(status):
            name = self._spec.api_key_env
            hint = hint if hint != "key" else f"check the key in {name}" if name else "give `api_key_env`"
            return TryError(said, unpaid=True, fatal=hint)
        if status in _AGAIN or not 400 <= status < 500:
            return TryError(line, again=True, unpaid=status in _UNPAID, wait=retry_after(error.response.headers))
        return TryError(line, unpaid=True)

    def _clean(self, text: str) -> str:
        """Returns a server's text as one line that does not show the key."""
        return one_line(text.replace(self._api_key, "[api key]") if self._api_key else text)


# --- a server and its record ---


class Endpoint:
    """A server, with the record of all that it was asked.

    Several processes may share a record: they take turns, and each sees what those before it have paid for.

    Args:
        spec: The server.
        record: A JSON Lines file, made when it is needed.
        limits: :attr:`limits` of another endpoint at the same server, so that both together keep to them.
        clock: Seconds that only grow, for the limits of a minute.
        sleep: Waits for so many seconds of that clock.

    Attributes:
        limits: What was sent in the last minute.
        record: The record.
    """

    def __init__(
        self,
        spec: EndpointSpec,
        record: Path,
        *,
        limits: RateLimits | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        self.spec = spec
        self.limits = limits or RateLimits(spec.requests_per_minute, spec.tokens_per_minute, clock, sleep)
        self.record = Record(record, spec.prices, spec.timeout)
        self.sleep = sleep
        self._asking = False

    def ask(self, requests: Iterable[Request], take: Take, *, progress: Progress | None = None) -> None:
        """Asks, and waits until every request is answered or there is a reason that it is not.

        Args:
            requests: What to ask. Equal ones are asked once.
            take: Takes each request with its reply, in the order that they come; what the record knows comes first.
                An error that it raises ends the run, once what is in flight has been answered and kept.
            progress: Takes after each reply how many there are, and how many there will be.

        Raises:
            DataError: The API key is not set, or the package ``openai`` is not installed.
            PosttrainError: The server refuses us (401, 403, 404), takes or answers no request; or the record is
                damaged. Asked again, the work goes on where it was.
        """
        if self._asking:
            raise RuntimeError("`take` cannot ask the endpoint that it takes from")
        same: dict[str, list[Request]] = {}
        for request in requests:
            same.setdefault(request.key(self.spec), []).append(request)
        total, done = sum(map(len, same.values())), 0

        def finished(key: str, reply: Reply) -> None:
            nonlocal done
            for request in same[key]:
                take(request, reply)
                done += 1
                if progress is not None:
                    progress(done, total)

        self._asking = True
        try:
            with self.record.locked():
                unknown = []
                for key, equal in same.items():
                    reply = self.record.find(key)
                    if reply is None:
                        unknown.append((key, equal[0]))
                    else:
                        finished(key, reply)
                if unknown:
                    _run(RequestRun(self, _api_key(self.spec.api_key_env)).run(unknown, finished))
        finally:
            self._asking = False

    def probe_logprobs(self) -> bool:
        """Says whether the server really gives log-probabilities of the likeliest tokens, by asking for one token.

        Some servers take the fields and leave them out of the answer. What was found is in the record, under the
        server and the model, so that the question is asked once.

        Raises:
            PosttrainError: As for :meth:`ask`; or the question could not be answered, which says nothing either way.
        """
        question = ({"role": "user", "content": "Answer with one word: yes or no."},)
        replies: list[Reply] = []
        request = Request(question, max_tokens=1, top_logprobs=5, salt="probe")
        self.ask([request], lambda request, reply: replies.append(reply))
        reply = replies[0]
        if reply.finish is None:
            what = f"cannot tell whether the endpoint gives log-probabilities: {reply.error}"
            raise PosttrainError(what, where=self.spec.address, hint="check that the server is up, and try again")
        return bool(reply.logprobs) and len(reply.logprobs[0]) > 1

    @property
    def spent(self) -> Spent:
        """Returns what the record says was spent, by this process and all others."""
        self.record.refresh()
        return self.record.spent


def _api_key(variable: str | None) -> str:
    """Reads the API key; empty if the server takes none."""
    try:
        import openai  # noqa: F401
    except ImportError as error:
        raise DataError("an endpoint needs the openai package", hint="pip install 'posttrain[judge]'") from error
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise DataError(f"the environment variable {variable} is not set", hint="it holds the API key")
    if not (key.isascii() and key.isprintable()):
        raise DataError(f"the environment variable {variable} holds no API key", hint="it is one line of ASCII")
    return key


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs to the end, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        asyncio.run(work)
        return
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, work).result()
