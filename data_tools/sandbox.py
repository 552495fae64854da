"""Runs programs that nobody has read: Python written by a model, with limits that hold against malice.

A program sees the interpreter's files read-only, an empty ``/tmp`` of limited size, no network, no other process and
no file of the user's. It has a wall time, CPU time, memory, processes and output of its own. Bubblewrap builds the
walls where it is installed, else ``unshare`` and ``chroot``; where neither works, nothing is run.

Three things need care. RLIMIT_NPROC does nothing for uid 0 and is counted for a user, so a program of root's is run as
a user that no other program has, and one of anyone else's in a user namespace, which has a count of its own. A sandbox
that fails must never look like a wrong answer: the walls report that the program starts, and a run without that report
is tried again, then an error. And no program may pass itself: checks run in a process of their own (``sandboxed.py``).

Memory is watched as the sum of what its processes hold, ten times a second; what hides outside of any process (System
V segments, files in memory) is bounded by the limits on processes and files alone.
"""

import contextlib
import functools
import itertools
import marshal
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from ..chat_templates.errors import PosttrainError

TRIES = 4
Walls = Literal["bubblewrap", "namespaces"]
_COMMANDS: dict[Walls, str] = {"bubblewrap": "bwrap", "namespaces": "unshare"}
_FIRST_USER = 1_900_000_000  # far above what any machine hands out
_USERS = 1_000_000
_users = itertools.count(os.getpid() * 997)
_INNER = "/inner"
_FILES = 64  # that a process has open
_PATIENCE = 9  # times its wall time that a program may wait for a processor besides
_TICK = 0.1  # seconds between looks at how much memory is held
_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")

_LAUNCHER = Path(__file__).with_name("sandboxed.py").read_text()

# What bubblewrap does, by hand. The shell stays process 1, so that signals to the program do what they do elsewhere.
_WALLS = """
set -e
root=$1 disk=$2 prefix=$3 folders=$4; shift 4
show() { mkdir -p "$root$2"; mount --rbind "$1" "$root$2"; mount -o remount,bind,ro "$root$2"; }
mount --make-rprivate /
mount -t tmpfs -o mode=755,size=1m tmpfs "$root"
for folder in $folders; do
    if [ -L "$folder" ]; then cp -P "$folder" "$root$folder"; elif [ -d "$folder" ]; then show "$folder" "$folder"; fi
done
show "$prefix" /interpreter
mkdir "$root/proc" "$root/tmp" "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=1777,size="$disk" tmpfs "$root/tmp"
for node in null zero random urandom; do touch "$root/dev/$node"; mount --bind "/dev/$node" "$root/dev/$node"; done
mount -o remount,bind,ro "$root"
set +e
chroot "$root" "$@"
code=$?
exit $code
"""


class SandboxError(PosttrainError):
    """No sandbox can be built on this machine."""


@dataclass(frozen=True)
class Limits:
    """What a program may take.

    Attributes:
        wall: Seconds from start to end, and besides what it waited for a processor, up to nine times as many.
        cpu: CPU seconds of each process.
        memory: Bytes that its processes hold together, and of address space of each.
        processes: Processes and threads at a time.
        disk: Bytes in ``/tmp``, which is memory too.
        output: Bytes that are read of what it prints; one more ends it.
    """

    wall: float = 10.0
    cpu: int = 5
    memory: int = 1 << 30
    processes: int = 16
    disk: int = 1 << 24
    output: int = 1 << 16


@dataclass(frozen=True)
class Checks:
    """What a program must be right in.

    Attributes:
        source: Python, which the program never sees: ``assert``s on what it defines.
        names: What the checks take from the program: the function that was asked for, say. All else that they read,
            they define or import.
        setup: Python that runs before those names are taken.
    """

    source: str
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class ProgramOutcome:
    """How a program ended.

    Attributes:
        status: ``ended``: it ran to its last line, and so did its checks. ``failed``: an error, a check that does not
            hold, an exit before the last line, or a signal. ``stopped``: a limit of wall time, CPU time, memory or
            output ended it. ``unknown``: the sandbox failed, and so again each time it was tried; nothing is known of
            the program.
        reason: Why, where it did not end: ``time``, ``cpu``, ``output``, ``memory``, ``processes``, ``exit 3``,
            ``SIGSEGV``, or the last line of its error.
        stdout: What it printed, as far as it was read.
        stderr: Likewise.
        seconds: Wall time.
    """

    status: Literal["ended", "failed", "stopped", "unknown"]
    reason: str
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True)
class ProgramSandbox:
    """The walls that this machine can build.

    Attributes:
        walls: Who builds them.
        as_root: Whether the user of this process is root, so that programs run as users of their own.
    """

    walls: Walls
    as_root: bool

    def run(
        self, program: str, checks: Checks | None = None, limits: Limits = Limits(), stdin: str = ""
    ) -> ProgramOutcome:
        """Runs one program, and again up to ``TRIES`` times where the sandbox fails.

        Args:
            program: Python source.
            checks: What it must be right in. Without, ``ended`` is the program's own word.
            limits: What it may take; its checks, in a process of their own, as much again.
            stdin: What it can read.

        Returns:
            How it ended.
        """
        outcome = ProgramOutcome("unknown", "", "", "", 0.0)
        for attempt in range(TRIES):
            time.sleep(0.1 * (2**attempt - 1))
            with tempfile.TemporaryDirectory(prefix="sandbox-") as root:
                outcome = self._once(program, checks, limits, stdin, root)
            if outcome.status != "unknown":
                break
        return outcome

    def run_all(
        self,
        programs: Iterable[tuple[str, Checks | None]],
        limits: Limits,
        workers: int | None = None,
    ) -> Iterator[ProgramOutcome]:
        """Runs many, some at a time, and yields how each ended, in their order.

        Args:
            programs: With their checks; read as far as they are needed.
            limits: Of each.
            workers: Programs at a time; as many as this process has cores by default.
        """
        workers = workers or len(os.sched_getaffinity(0))
        with ThreadPoolExecutor(workers) as pool:
            waiting: list[Future[ProgramOutcome]] = []
            try:
                for program, checks in programs:
                    waiting.append(pool.submit(self.run, program, checks, limits))
                    if len(waiting) > 2 * workers:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def _once(self, program: str, checks: Checks | None, limits: Limits, stdin: str, root: str) -> ProgramOutcome:
        """Runs a program once."""
        source = program.encode("utf-8", "surrogatepass")
        orders = marshal.dumps([checks.setup, checks.names, checks.source]) if checks else b""
        reports, report = os.pipe()
        ordered, ordering = os.pipe()
        settings = {
            "limits": {
                "CPU": limits.cpu,
                "AS": limits.memory,
                "NPROC": limits.processes,
                "FSIZE": limits.disk,
                "NOFILE": _FILES,
                "CORE": 0,
            },
            "length": len(source),
            "checked": checks is not None,
            "orders": ordered,
            "report": report,
            "user": _FIRST_USER + 2 * (next(_users) % _USERS) if self.as_root else None,
            "root": _INNER if self.as_root and self.walls == "bubblewrap" else "",
        }
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, reports)
            try:
                process = subprocess.Popen(
                    [
                        *self._wrap(limits, root),
                        *(_interpreter(), "-I", "-S", "-c", _LAUNCHER, marshal.dumps(settings).hex()),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=[report, ordered],
                    start_new_session=True,
                    env={
                        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
                        "HOME": "/tmp",
                        "LANG": "C.UTF-8",
                        "LD_LIBRARY_PATH": "/interpreter/lib",
                        "MALLOC_ARENA_MAX": "2",  # a thread would reserve 64 MiB of the address space for its own
                    },
                )
            except BaseException:
                os.close(ordering)
                raise
            finally:
                os.close(report)
                os.close(ordered)
            stack.callback(_end, process)
            given = {
                process.stdin: source + stdin.encode("utf-8", "surrogatepass"),
                os.fdopen(ordering, "wb", buffering=0): orders,
            }
            read, stopped = _watch(process, reports, given, limits, begun + limits.wall)
        stdout, stderr, said = (part.decode("utf-8", "replace") for part in read)
        status, reason = _verdict(said, stopped, _last_line(stderr), process.returncode)
        return ProgramOutcome(status, reason, stdout, stderr, time.monotonic() - begun)

    def _wrap(self, limits: Limits, root: str) -> list[str]:
        """Returns the command that builds the walls around what follows it."""
        prefix = os.path.realpath(sys.base_prefix)
        if self.walls == "namespaces":
            user = [] if self.as_root else ["--user", "--map-root-user"]
            # Whoever is root of a user namespace alone loses those rights before the program starts.
            drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
            namespaces = ["--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts"]
            script = ["sh", "-c", _WALLS, "walls", root, str(limits.disk), prefix, " ".join(_FOLDERS)]
            return ["unshare", *user, *namespaces, *script, *([] if self.as_root else drop)]
        # Root's programs change their root once more, from which they see the same (see `sandboxed.py`).
        inside = []
        for at in ("", _INNER) if self.as_root else ("",):
            inside += ["--perms", "0755", "--dir", at] if at else []
            for folder in map(Path, _FOLDERS):
                if folder.is_symlink():
                    inside += ["--symlink", str(folder.readlink()), f"{at}{folder}"]
                elif folder.is_dir():
                    inside += ["--ro-bind", str(folder), f"{at}{folder}"]
            inside += ["--ro-bind", prefix, f"{at}/interpreter", "--proc", f"{at}/proc"]
            inside += ["--dev", f"{at}/dev", "--remount-ro", f"{at}/dev"]
            inside += ["--perms", "1777", "--size", str(limits.disk), "--tmpfs", f"{at}/tmp"]
        caps = ("CAP_SETUID", "CAP_SETGID", "CAP_SYS_CHROOT")  # until they have become a user of their own
        user = ["--unshare-user", "--disable-userns", "--uid", "65534", "--gid", "65534"]
        return [
            *("bwrap", "--die-with-parent", "--new-session"),
            *([part for cap in caps for part in ("--cap-add", cap)] if self.as_root else user),
            *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"),
            *(*inside, "--remount-ro", "/"),
        ]


@functools.cache
def find_sandbox() -> ProgramSandbox:
    """Returns the walls that work here, found out by running a program within them.

    Raises:
        SandboxError: None does; says what each lacked.
    """
    as_root, lacking = os.geteuid() == 0, []
    for walls, command in _COMMANDS.items():
        if not shutil.which(command):
            lacking.append(f"{command} is not installed")
            continue
        outcome = ProgramSandbox(walls, as_root).run("import os\nassert os.getuid() and not os.listdir('/tmp')")
        if outcome.status == "ended":
            return ProgramSandbox(walls, as_root)
        lacking.append(f"{command}: {outcome.reason}")
    raise SandboxError(
        f"programs that nobody has read cannot be run here: {'; '.join(lacking)}", hint="install bubblewrap"
    )


def _interpreter() -> str:
    """Returns where the program finds this interpreter, without its environment: only root may see a home folder."""
    inside = os.path.relpath(os.path.realpath(sys.executable), os.path.realpath(sys.base_prefix))
    return f"/interpreter/{inside}"


def _watch(
    process: subprocess.Popen[bytes], reports: int, given: dict[Any, bytes], limits: Limits, deadline: float
) -> tuple[tuple[bytes, bytes, bytes], str]:
    """Feeds and reads a program until it has ended or a limit is reached; returns what was read and which limit."""
    assert process.stdout
    assert process.stderr
    read = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), reports: bytearray()}
    stopped, looked, waited = "", time.monotonic(), 0.0

    def is_over() -> bool:
        nonlocal waited
        late = time.monotonic() - deadline
        waited = max(waited, _waited(process.pid)) if late >= 0 else 0.0  # what has ended tells it no more
        return late >= 0 and late >= min(waited, _PATIENCE * limits.wall)

    with selectors.DefaultSelector() as selector:
        for fd in read:
            selector.register(fd, selectors.EVENT_READ)
        for pipe in given:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_WRITE)
        while not stopped and len(selector.get_map()):
            left = deadline - time.monotonic()
            ready = selector.select(min(_TICK, left) if left > 0 else _TICK)
            if is_over():
                stopped = "time"
            elif time.monotonic() - looked >= _TICK:
                looked = time.monotonic()
                stopped = "memory" if _held(process.pid) > limits.memory else ""
            for key, _ in ready:
                pipe: Any = key.fileobj
                if pipe in given:
                    given[pipe] = _feed(pipe, given[pipe])
                    if not given[pipe]:
                        selector.unregister(pipe)
                        pipe.close()
                    continue
                chunk = os.read(key.fd, 1 << 16)
                read[key.fd] += chunk
                if not chunk:
                    selector.unregister(key.fd)
                elif key.fd != reports and sum(map(len, read.values())) > limits.output:
                    stopped = "output"
    while not stopped and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_TICK)
        stopped = "time" if process.poll() is None and is_over() else ""
    for pipe in given:
        with contextlib.suppress(OSError):
            pipe.close()
    _end(process)
    out, errors, said = (bytes(value) for value in read.values())
    return (out[: limits.output], errors[: limits.output], said), stopped


def _below(pid: int) -> Iterator[int]:
    """Yields a process and all below it, as far as /proc tells."""
    yield pid
    with contextlib.suppress(OSError, ValueError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _below(int(child))


def _held(pid: int) -> int:
    """Returns the bytes of memory of their own that a process and all below it hold; 0 where /proc does not tell."""
    pages = 0
    for process in _below(pid):
        with contextlib.suppress(OSError, ValueError):
            _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
            pages += int(resident) - int(shared)
    return pages * os.sysconf("SC_PAGESIZE")


def _waited(pid: int) -> float:
    """Returns the most seconds that a process or one below it was ready and had no processor: no fault of a program."""
    most = 0
    for process in _below(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            most = max(most, int(Path(f"/proc/{process}/schedstat").read_text().split()[1]))
    return most / 1e9


def _feed(pipe: IO[bytes], given: bytes) -> bytes:
    """Writes what the pipe takes now; returns the rest, of which there is none where nobody reads any more."""
    try:
        return given[os.write(pipe.fileno(), given[: 1 << 16]) :]
    except BrokenPipeError:
        return b""


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills the walls' builder, and with it the namespace and all that is in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _verdict(said: str, stopped: str, last: str, code: int) -> tuple[Any, str]:
    """Says how a program ended, by what was reported from inside the walls and its last words."""
    started, _, told = said.partition("\n")
    if not started:
        return "unknown", last or f"exit {code}"
    if stopped:
        return "stopped", stopped
    if not told:
        return "failed", "it killed its checker"
    how, _, what = told.partition(" ")
    if how == "exit":
        code = int(what)
        if -code in (signal.SIGXCPU, signal.SIGKILL):
            return "stopped", "cpu" if -code == signal.SIGXCPU else "killed"
        how, what = "failed", signal.Signals(-code).name if code < 0 else last or f"exit {code} before its last line"
    if what.startswith("MemoryError"):
        return how, "memory"
    if what.startswith(("BlockingIOError: [Errno 11]", "RuntimeError: can't start new thread")):
        return how, "processes"
    return how, what


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "").strip()
