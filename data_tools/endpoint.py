"""The one client for OpenAI-compatible servers.

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
killed, cut off or timed out, the whole reservation counts as spent. A server that answers with more tokens than it was
allowed, or hides what it spends, cannot be held to a budget by anybody but itself.
"""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from .endpoint_calls import Calls, Finished
from .endpoint_limits import Clock, Limits, Sleep
from .endpoint_record import Record, Spent
from .endpoint_reply import BUDGET_SPENT, REJECTED, Reply, Request
from .endpoint_spec import Budget, EndpointSpec, Prices
from .errors import DataError

__all__ = ["BUDGET_SPENT", "REJECTED", "Budget", "Endpoint", "EndpointSpec", "Prices", "Reply", "Request", "Spent"]

Take = Callable[[Request, Reply], None]
Progress = Callable[[int, int], None]


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
    """

    def __init__(
        self,
        spec: EndpointSpec,
        record: Path,
        *,
        limits: Limits | None = None,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ):
        self.spec = spec
        self.limits = limits or Limits(spec.requests_per_minute, spec.tokens_per_minute, clock, sleep)
        self._record = Record(record, spec.prices)
        self._sleep = sleep
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
            with self._record.locked():
                unknown = []
                for key, equal in same.items():
                    reply = self._record.find(key)
                    if reply is None:
                        unknown.append((key, equal[0]))
                    else:
                        finished(key, reply)
                if unknown:
                    api_key = _api_key(self.spec.api_key_env)
                    _run(self._call(unknown, finished, api_key))
        finally:
            self._asking = False

    async def _call(self, unknown: list[tuple[str, Request]], finished: Finished, api_key: str) -> None:
        """Asks the server what the record does not know."""
        from openai import AsyncOpenAI

        client = AsyncOpenAI(
            base_url=self.spec.base_url, api_key=api_key or "none", timeout=self.spec.timeout, max_retries=0
        )
        async with client:
            await Calls(self.spec, self._record, client, api_key, self.limits, self._sleep).run(unknown, finished)

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
        self._record.refresh()
        return self._record.spent


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
