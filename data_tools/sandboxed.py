"""What runs inside the walls of the sandbox: a program that nobody has read, and apart from it what checks it.

``sandbox.py`` hands this file's text to an interpreter within the walls; nothing imports it. The process that starts
here sets the limits, forks one that becomes the program, and only then reads the checks. It runs them itself, with the
program's names bound to stand-ins: a call goes over a pipe and comes back as plain values. So the program sees neither
a check nor a verdict, and cannot reach either. What it returns is compared here, where an ``__eq__`` of its own, a
redefined builtin, an early exit or a look into other frames has no say.
"""

from __future__ import annotations

import builtins
import io
import marshal
import os
import resource
import select
import signal
import sys
import types
from _pickle import Pickler, Unpickler  # each further import costs every program its time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

_IMMUTABLE = 1 << 8  # Py_TPFLAGS_IMMUTABLETYPE
MOST = 1 << 28  # bytes of one value
PLAIN = (bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset)
NAMES = {("builtins", kind.__name__) for kind in (*PLAIN, range, slice)} | {
    *(("collections", name) for name in ("OrderedDict", "Counter", "deque", "defaultdict")),
    *(("decimal", "Decimal"), ("fractions", "Fraction")),
    *(("datetime", name) for name in ("date", "datetime", "time", "timedelta")),
}
# What a call may raise in the checks. Some end a loop early, as if all were well; some are made of more than a text.
ERRORS: dict[str, Any] = {
    name: kind
    for name, kind in vars(builtins).items()
    if isinstance(kind, type)
    and issubclass(kind, Exception)
    and not issubclass(kind, (StopIteration, StopAsyncIteration, UnicodeError, ExceptionGroup))
}


def crosses(value: Any) -> bool:
    """Says whether a value, or a type of such values, goes over the pipe as what it is."""
    kind = value if isinstance(value, type) else type(value)
    return value is None or (kind.__module__, kind.__qualname__) in NAMES


class StandIn:
    """Something that lies in the program, as the checks see it: to be called, read and gone through over the pipe.

    It is equal to itself alone, whatever the program says.
    """

    def __init__(self, place: int, remote: Remote):
        object.__setattr__(self, "_place", place)
        object.__setattr__(self, "_remote", remote)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Calls it in the program."""
        return self._remote.ask("call", self, args, named)

    def __getattr__(self, name: str) -> Any:
        return self._remote.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote.ask("setattr", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._remote.ask("getitem", self, key)

    def __len__(self) -> int:
        return self._remote.ask("len", self)

    def __bool__(self) -> bool:
        return True

    def __str__(self) -> str:
        return str(self._remote.ask("str", self))

    def __iter__(self) -> Any:
        going = self._remote.ask("iter", self)
        while True:
            values = self._remote.ask("next", going)
            if not values:
                return
            yield values[0]


class Remote:
    """The end of a pipe: values go over it plain, anything else by its place in a list of the process that has it."""

    def __init__(self, reading: int, writing: int, program: int | None = None):
        self.reading, self.writing, self.program = reading, writing, program
        self.mine: list[Any] = []
        self.heard = 0

    def send(self, value: Any) -> None:
        """Writes a value: its length, then itself."""
        remote = self

        class Sender(Pickler):
            def persistent_id(self, value: Any) -> Any:
                if isinstance(value, StandIn):
                    return value._place
                if crosses(value) or isinstance(value, PLAIN):
                    return None
                remote.mine.append(value)
                return len(remote.mine) - 1

            def reducer_override(self, value: Any) -> Any:
                base: Any = next((kind for kind in PLAIN if isinstance(value, kind)), None)
                return NotImplemented if base is None or crosses(value) else (base, (base(value),))

        buffer = io.BytesIO()
        Sender(buffer, 4).dump(value)
        rest = memoryview(len(buffer.getvalue()).to_bytes(8, "big") + buffer.getvalue())
        while rest:
            rest = rest[os.write(self.writing, rest) :]

    def receive(self) -> Any:
        """Reads a value; EOFError where nobody writes any more."""
        remote = self

        class Receiver(Unpickler):
            def find_class(self, module: str, name: str) -> Any:
                if (module, name) not in NAMES:
                    raise ValueError(f"{module}.{name} is no plain value")
                kind = getattr(__import__(module), name)
                # What arrives may set attributes of what it names: a type that allows it is only to be called.
                return kind if kind.__flags__ & _IMMUTABLE else lambda *args: kind(*args)  # noqa: PLW0108

            def persistent_load(self, place: Any) -> Any:
                return StandIn(place, remote) if remote.program is not None else remote.mine[place]

        if (size := int.from_bytes(self._read(8), "big")) > MOST:
            raise ValueError(f"{size} bytes")
        value = Receiver(io.BytesIO(self._read(size))).load()
        self.heard += 1
        return value

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            if self.program is not None and self.reading not in select.select([self.reading, self.program], [], [])[0]:
                raise EOFError  # it has ended, though what it has started may hold the pipe
            if not (part := os.read(self.reading, min(count - len(parts), 1 << 20))):
                raise EOFError
            parts += part
        return bytes(parts)

    def ask(self, *request: Any) -> Any:
        """Has the program do something, and returns what came of it."""
        self.send(request)
        kind, *answer = self.receive()
        if kind == "value":
            return answer[0]
        name, text = map(str, answer)
        raise ERRORS[name](text) if name in ERRORS else RuntimeError(f"{name}: {text}")

    def serve(self, names: dict[str, Any]) -> None:
        """Does what is asked for, in the program's process."""
        doing = {
            "get": lambda wanted: {name: names[name] for name in wanted if name in names},
            "call": lambda function, args, named: function(*args, **named),
            "getattr": getattr,
            "setattr": setattr,
            "getitem": lambda value, key: value[key],
            "len": len,
            "str": str,
            "iter": iter,
            "next": lambda going: [value for _, value in zip(range(1), going, strict=False)],
        }
        while True:
            try:
                action, *args = self.receive()
            except EOFError:
                return
            try:
                answer = ("value", doing[action](*args))
            except Exception as error:  # whatever a program can raise is an answer too
                answer = ("error", type(error).__name__, str(error))
            self.send(answer)


def become_program(source: bytes, remote: Remote, name: str) -> None:
    """Runs the program, then does what the checks ask for; a program that fails ends as any does."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    sys.argv[:] = ["program.py"]
    exec(compile(source, "program.py", "exec"), module.__dict__)
    remote.send("ready")
    remote.serve(module.__dict__)


def check(setup: str, names: list[str], checks: str, remote: Remote) -> str:
    """Runs the checks; returns why they failed, or nothing."""
    known: dict[str, Any] = {"__name__": "checks"}
    try:
        exec(compile(setup, "setup.py", "exec"), known)
        known |= remote.ask("get", names)
        exec(compile(checks, "checks.py", "exec"), known)
    except EOFError:
        raise
    except BaseException as error:
        lines, trace = [], error.__traceback__
        while trace:
            lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == "checks.py" else []
            trace = trace.tb_next
        told = str(error) or (checks.splitlines()[lines[-1] - 1].strip() if lines else "")
        return f"{type(error).__name__}: {told}"[:300]
    return ""


def read(fd: int, count: int) -> bytes:
    """Reads so many bytes."""
    found = b""
    while len(found) < count and (part := os.read(fd, count - len(found))):
        found += part
    return found


def unprivileged(user: int | None) -> None:
    """Becomes a user of its own where the caller is root."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)


def main() -> None:
    """Splits into the program and its checker, and reports how both ended.

    The report is ``started``, a line, then ``ended``, ``failed`` with why, or the program's ``exit`` code.
    """
    settings = marshal.loads(bytes.fromhex(sys.argv[1]))
    user, report = settings["user"], settings["report"]
    if settings["root"]:
        os.chroot(settings["root"])  # whoever has changed its root makes no user namespaces, and so no mounts
    os.chdir("/tmp")
    source = read(0, settings["length"])
    for name, most in settings["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most + 1 if name == "CPU" else most))
    if user is None:
        import ctypes

        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE: no process of the same user may look into this one
    requests, answers = os.pipe(), os.pipe()
    program = os.fork()
    if not program:
        for fd in (requests[1], answers[0], report, settings["orders"]):
            os.close(fd)
        unprivileged(user)
        become_program(source, Remote(requests[0], answers[1]), "program" if settings["checked"] else "__main__")
        return
    unprivileged(user and user + 1)
    os.close(requests[0])
    os.close(answers[1])
    os.write(report, b"started\n")
    remote = Remote(answers[0], requests[1], os.pidfd_open(program))
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    told = ""
    try:
        remote.receive()
        if settings["checked"]:
            orders = b""
            while part := os.read(settings["orders"], 1 << 20):
                orders += part
            setup, names, checks = marshal.loads(orders)
            failed = check(setup, names, checks, remote)
            told = f"failed {failed}" if failed else "ended"
    except (EOFError, BrokenPipeError):
        pass  # the program has ended before its time: its exit code says how
    except Exception as error:  # what a program can send is anything
        told = f"failed it answered what cannot be read: {type(error).__name__}: {error}"[:300]
    os.close(requests[1])
    if not told:
        code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
        told = "ended" if code == 0 and not settings["checked"] and remote.heard else f"exit {code}"
    os.write(report, told.encode(errors="replace"))
    os._exit(0)


main()
