"""An OpenAI-compatible server on a real socket that fails as it is told to, and counts what it was paid for.

    with FaultServer(plan=each("500", "429"), reply=lambda messages: "A") as server:
        EndpointSpec(model="m", base_url=server.url)

A plan takes the body of a request and how often the same question has come, from 1, and names a fault or None. The
faults are the names in :data:`FAULTS`; ``429:0.05`` and ``503:0.05`` send a ``Retry-After`` of so many seconds.
"""

import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Plan = Callable[[dict[str, Any], int], "str | None"]

REFUSED = {str(s): s for s in (400, 401, 402, 403, 404, 405, 408, 409, 413, 422, 425, 429, 500, 502, 503)}
LOST = ("timeout", "cut", "truncated", "malformed", "no_choices", "no_choice", "null")  # charged for; no answer arrives
ODD = ("thought", "empty", "length", "refusal", "filter")
USAGES = ("no_usage", "wrong_usage")
FAULTS = (*REFUSED, *LOST, *ODD, *USAGES, "error_200")


def each(*faults: str | None) -> Plan:
    """The first times that a question comes it meets these faults, one after the other; then it is answered."""
    return lambda body, times: faults[times - 1] if times <= len(faults) else None


def sometimes(share: float, *faults: str, seed: int = 0) -> Plan:
    """Any request meets one of these faults with such a chance, the same one in every run."""

    def plan(body: dict[str, Any], times: int) -> str | None:
        draw = random.Random(f"{seed} {times} {question(body)}")
        return draw.choice(faults) if draw.random() < share else None

    return plan


def question(body: dict[str, Any]) -> str:
    """Returns what makes two requests ask the same."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:16]


def count(text: str) -> int:
    """Counts tokens as this server does: four bytes each, at least one."""
    return max(1, len(text.encode(errors="replace")) // 4)


class FaultServer:
    """The server; it listens from the start and until :meth:`close`.

    Args:
        plan: Which request meets which fault; none does without.
        reply: What a conversation is answered with; None for an answer without a text.
        logprobs: Whether log-probabilities that are asked for are given; else they are ignored silently. A callable
            gives those of the first token, ``{token: log-probability}``.
        delay: Seconds that each answer takes.
        hang: Seconds after which a request that meets ``timeout`` is let go.

    Attributes:
        url: To be given as ``base_url``.
        requests: Bodies in the order that they came.
        keys: The ``Authorization`` headers.
        arrivals: Seconds of the monotonic clock at which they came.
        paid: How often each question was answered to the end, with whatever answer.
        lost: How often the answer to a question was paid for and did not arrive.
        met: How often each fault was met.
        tokens: All that was charged for, by the server's true count.
        most_busy: How many requests it had at a time, at most.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        reply: Callable[[list[dict[str, Any]]], str | None] = lambda messages: str(messages[-1]["content"]).upper(),
        *,
        logprobs: bool | Callable[[list[dict[str, Any]]], dict[str, float]] = False,
        delay: float = 0.0,
        hang: float = 5.0,
    ):
        self.plan, self.reply, self.logprobs, self.delay, self.hang = plan or each(), reply, logprobs, delay, hang
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.arrivals: list[float] = []
        self.paid: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.met: Counter[str] = Counter()
        self.tokens = self.busy = self.most_busy = 0
        self._times: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening; requests that hang are let go."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    def begin(self, body: dict[str, Any], key: str | None) -> str | None:
        """Notes a request, and returns the fault that it meets."""
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            self.arrivals.append(time.monotonic())
            self.busy += 1
            self.most_busy = max(self.most_busy, self.busy)
            self._times[question(body)] += 1
            fault = self.plan(body, self._times[question(body)])
            if fault is not None:
                self.met[fault.partition(":")[0]] += 1
            return fault

    def end(self) -> None:
        """Notes that a request has left."""
        with self._lock:
            self.busy -= 1

    def answer(self, body: dict[str, Any], fault: str | None) -> dict[str, Any]:
        """Makes the answer to a request; of one for an embedding, how often it has each letter."""
        if "input" in body:
            with self._lock:
                (self.lost if fault in LOST else self.paid)[question(body)] += 1
            vector = [float(body["input"].lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"]
            usage = {"prompt_tokens": count(body["input"]), "total_tokens": count(body["input"])}
            return {"object": "list", "data": [{"embedding": vector, "index": 0}], "model": "m", "usage": usage}
        none = {"null": None, "thought": None, "empty": "", "filter": ""}
        text: str | None = none.get(fault or "", self.reply(body["messages"]))
        message: dict[str, Any] = {"role": "assistant", "content": text}
        finish = {"length": "length", "thought": "length", "filter": "content_filter"}.get(fault or "", "stop")
        if fault == "refusal":
            message |= {"content": None, "refusal": "I cannot judge this."}
        choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": finish}
        if body.get("logprobs") and self.logprobs and text:
            choice["logprobs"] = {"content": [self._first_token(body, text)]}
        prompt = sum(count(str(message["content"])) + 3 for message in body["messages"])
        completion = min(count(text or ""), body.get("max_tokens") or 1 << 30)
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        with self._lock:
            self.tokens += prompt + completion
            (self.lost if fault in LOST else self.paid)[question(body)] += 1
        answer: dict[str, Any] = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"]}
        if fault != "no_choices":
            answer["choices"] = [] if fault == "no_choice" else [choice]
        if fault == "wrong_usage":
            usage = {"prompt_tokens": -5, "completion_tokens": "many", "total_tokens": 0}
        return answer if fault == "no_usage" else answer | {"usage": usage}

    def _first_token(self, body: dict[str, Any], text: str) -> dict[str, Any]:
        chances = self.logprobs(body["messages"]) if callable(self.logprobs) else {text[0]: -0.1, "?": -2.4}
        ranked = sorted(chances.items(), key=lambda item: -item[1])[: body.get("top_logprobs", 0)]
        best = max(chances.items(), key=lambda item: item[1])
        rivals = [{"token": token, "logprob": value, "bytes": None} for token, value in ranked]
        return {"token": best[0], "logprob": best[1], "bytes": None, "top_logprobs": rivals}

    def wait(self, seconds: float) -> None:
        """Sleeps, but not beyond the end."""
        self._closing.wait(seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed, or gave up


def _handler(server: FaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fault = server.begin(body, self.headers["Authorization"])
            try:
                self._respond(body, fault)
            finally:
                server.end()

        def _respond(self, body: dict[str, Any], fault: str | None) -> None:
            name, _, seconds = (fault or "").partition(":")
            if name in REFUSED:
                message = f"planted {name}, {self.headers['Authorization']}"  # some servers repeat the key
                error = {"error": {"message": message, "type": "planted", "code": name}}
                self._send(REFUSED[name], json.dumps(error), {"Retry-After": seconds} if seconds else {})
                return
            if name == "error_200":
                self._send(200, json.dumps({"error": {"message": "upstream is busy", "code": 502}}))
                return
            server.wait(server.delay)
            data = json.dumps(server.answer(body, fault))
            if name == "timeout":
                server.wait(server.hang)
            elif name == "cut":
                self._send(200, data, cut=len(data) // 2)
            elif name == "truncated":
                self._send(200, data[: len(data) // 2])
            elif name == "malformed":
                self._send(200, "<html>I am a proxy</html>")
            else:
                self._send(200, data)

        def _send(self, status: int, text: str, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for header, value in (headers or {}).items():
                self.send_header(header, value)
            self.end_headers()
            self.wfile.write(data[:cut])
            if cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler
