"""A web server for one page on this machine alone.

Whoever else can reach the port, another user of the machine or a page open in the same browser, must neither read
answers nor vote. So it listens on loopback only; a secret stands in the path of every address; a ``Host`` that is no
loopback name is refused, against names that were rebound to this machine; and a request that another site's page
made is refused by its ``Origin``.
"""

import contextlib
import ipaddress
import json
import re
import secrets
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Any, Protocol

from ...chat_templates.errors import InputError, PosttrainError
from .page import page

_LARGEST = 10_000  # bytes of a request's body
_PATIENCE = 30  # seconds for a request's next byte
_NAME = re.compile(r"(\[[0-9a-f:]+\]|[^:\[\]]+)(?::\d+)?", re.IGNORECASE)  # a Host header

_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ArenaTable(Protocol):
    """What the server serves: each method returns what the page shows next."""

    def question(self) -> dict[str, Any]:
        """Describes the table."""
        ...

    def vote(self, asked: object, choice: object) -> dict[str, Any]:
        """Decides a question."""
        ...

    def skip(self, asked: object) -> dict[str, Any]:
        """Puts a question off."""
        ...

    def undo(self) -> dict[str, Any]:
        """Takes the last vote back."""
        ...


class ArenaServer(ThreadingHTTPServer):
    """The server of one table, on a thread of its own from the start."""

    daemon_threads = True
    allow_reuse_port = False  # a second server on the port would take some of the requests

    def __init__(self, table: ArenaTable, host: str, port: int, title: str):
        self.table = table
        self.token = secrets.token_urlsafe(24)
        self.html, self.policy = page(title)
        if ":" in host:
            self.address_family = socket.AF_INET6
        super().__init__((host, port), _Handler)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/{self.token}/"
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def server_bind(self) -> None:
        """Binds without asking the name server for this machine's name, which may take long."""
        TCPServer.server_bind(self)

    def wait(self) -> None:
        """Waits for a Ctrl-C, which passes through."""
        self._thread.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing: a browser that closes a connection early is no error."""


@contextlib.contextmanager
def open_server(table: ArenaTable, host: str = "127.0.0.1", port: int = 0, *, title: str = "") -> Iterator[ArenaServer]:
    """Serves a table for the length of a ``with`` block.

    Raises:
        InputError: The address is not of this machine alone, or is taken.
    """
    address = "127.0.0.1" if host == "localhost" else host
    if not _is_loopback(address):
        hint = "give 127.0.0.1; from another machine, use `ssh -L`"
        raise InputError("the arena listens on this machine alone", where=host, hint=hint)
    try:
        server = ArenaServer(table, address, port, title)
    except (OSError, OverflowError) as error:
        hint = "give another port, or 0 for a free one"
        raise InputError(f"cannot listen: {error}", where=f"{host}:{port}", hint=hint) from error
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    server: ArenaServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    timeout = _PATIENCE

    def do_GET(self) -> None:
        place = self._place()
        if place == "":
            self._send(200, self.server.html.encode(), "text/html; charset=utf-8")
        elif place == "question":
            self._json(200, self.server.table.question())
        elif place is not None:
            self._refuse(404, "there is nothing here")

    def do_POST(self) -> None:
        place = self._place()
        if place is None:
            return
        body = self._body()
        if body is None:
            return
        table = self.server.table
        try:
            if place == "vote":
                self._json(200, table.vote(body.get("id"), body.get("choice")))
            elif place == "skip":
                self._json(200, table.skip(body.get("id")))
            elif place == "undo":
                self._json(200, table.undo())
            else:
                self._refuse(404, "there is nothing here")
        except InputError as error:
            self._refuse(400, str(error))
        except (PosttrainError, OSError) as error:
            self._refuse(500, str(error))

    def _place(self) -> str | None:
        """Returns what is asked for behind the secret, or None after refusing a request that is not our page's."""
        host = self.headers.get("Host", "")
        name = _NAME.fullmatch(host)
        if name is None or (name[1] != "localhost" and not _is_loopback(name[1].strip("[]"))):
            return self._refuse(421, "not the name of this machine")
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            return self._refuse(403, "the request comes from another page")
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            return self._refuse(403, "the request comes from another page")
        token, slash, place = self.path.removeprefix("/").partition("/")
        if not slash or not secrets.compare_digest(token.encode("latin-1", "replace"), self.server.token.encode()):
            return self._refuse(403, "open the address that the terminal shows")
        return place

    def _body(self) -> dict[str, Any] | None:
        """Returns a request's JSON object, or None after refusing anything else."""
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > _LARGEST:
            return self._refuse(413, "no length, or too long")
        content = self.rfile.read(int(length))
        if self.headers.get_content_type() != "application/json":
            return self._refuse(415, "not JSON")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        return value if isinstance(value, dict) else self._refuse(400, "not a JSON object")

    def _refuse(self, code: int, why: str) -> None:
        self.close_connection = True  # a body that was not read would be taken for the next request
        self._json(code, {"error": why})

    def _json(self, code: int, value: dict[str, Any]) -> None:
        self._send(code, json.dumps(value).encode(), "application/json")

    def _send(self, code: int, content: bytes, kind: str) -> None:
        self.send_response_only(code)
        headers = _HEADERS | {"Content-Type": kind, "Content-Length": str(len(content))}
        headers |= {"Content-Security-Policy": self.server.policy}
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the terminal is for the address and for errors."""
