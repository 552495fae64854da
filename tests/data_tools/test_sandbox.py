"""Programs that nobody has read: eight attacks are stopped and named, and a sandbox that fails is no wrong answer."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from posttrain.data_tools import sandbox as module
from posttrain.data_tools.sandbox import Checks, Limits, ProgramSandbox, SandboxError, find_sandbox

LIMITS = Limits(wall=3, cpu=1, memory=1 << 28, processes=16, disk=1 << 20, output=1 << 14)


@pytest.fixture(scope="module", params=["bubblewrap", "namespaces"])
def sandbox(request: pytest.FixtureRequest) -> ProgramSandbox:
    if not shutil.which({"bubblewrap": "bwrap", "namespaces": "unshare"}[request.param]):
        pytest.skip(f"{request.param} is not installed")
    sandbox = ProgramSandbox(request.param, os.geteuid() == 0)
    if (outcome := sandbox.run("pass")).status == "unknown":
        pytest.skip(f"this machine cannot build it: {outcome.reason}")
    return sandbox


@pytest.mark.parametrize(
    ("attack", "status", "reason"),
    [
        ("while True: pass", "stopped", "cpu"),
        ("x = 'a' * (1 << 30)", "failed", "memory"),
        (
            "import os, time\nfor _ in range(8):\n    if os.fork() == 0:\n        break\n"
            "x = bytearray(b'a') * (1 << 27)\ntime.sleep(9)",
            *("stopped", "memory"),
        ),
        ("import os\nwhile True:\n    if os.fork() == 0:\n        while True: pass", "failed", "processes"),
        ("while True: print('x' * 1000)", "stopped", "output"),
        ("import socket\nsocket.create_connection(('1.1.1.1', 80), 2)", "failed", "OSError: [Errno 101]"),
        # Bubblewrap brings up a loopback of its own, where nobody listens.
        ("import socket\nsocket.create_connection(('127.0.0.1', 22), 2)", "failed", ""),
        ("open('/usr/planted', 'w')", "failed", "OSError: [Errno 30] Read-only"),
        ("open('/dev/shm/planted', 'w')", "failed", ""),
        ("open('/tmp/x', 'wb').write(b'a' * (1 << 22))", "failed", "OSError"),
    ],
)
def test_an_attack_is_stopped_and_named(sandbox: ProgramSandbox, attack: str, status: str, reason: str) -> None:
    outcome = sandbox.run(attack, limits=LIMITS)
    assert (outcome.status, outcome.reason[: len(reason)]) == (status, reason)
    assert len(outcome.stdout) <= LIMITS.output
    assert sandbox.run("print('still here')", limits=LIMITS).stdout == "still here\n"


def test_the_files_of_the_user_are_out_of_sight(sandbox: ProgramSandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    for place in (tmp_path / "secret", Path.home(), Path.cwd(), Path("/etc/passwd")):
        outcome = sandbox.run(f"import os\nos.stat({str(place)!r})", limits=LIMITS)
        assert outcome.reason.startswith("FileNotFoundError"), place
    assert sandbox.run("import os\nprint(sorted(os.environ))").stdout.find("KEY") < 0


def test_a_program_that_does_nothing_for_long_is_stopped(sandbox: ProgramSandbox) -> None:
    outcome = sandbox.run("import time\ntime.sleep(60)", limits=Limits(wall=1))
    assert (outcome.status, outcome.reason) == ("stopped", "time")


def test_a_program_is_not_stopped_for_the_time_that_it_waits_for_a_processor(
    sandbox: ProgramSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = Limits(wall=1.0)
    monkeypatch.setattr("posttrain.data_tools.sandbox._waited", lambda pid: 60.0)
    assert sandbox.run("import time\ntime.sleep(1.5)", limits=waits).status == "ended"
    monkeypatch.setattr("posttrain.data_tools.sandbox._waited", lambda pid: 2.0)
    outcome = sandbox.run("import time\ntime.sleep(60)", limits=waits)
    assert (outcome.status, outcome.reason) == ("stopped", "time")
    assert outcome.seconds >= 3


def test_killing_the_parent_kills_nobody_outside_and_passes_nothing(sandbox: ProgramSandbox) -> None:
    attack = "import os\nfor pid in (1, os.getppid(), -1):\n    try: os.kill(pid, 9)\n    except OSError: pass"
    outcome = sandbox.run(f"def f(): pass\n{attack}", Checks("assert f() == 1", ("f",)), LIMITS)
    assert (outcome.status, outcome.reason) in [
        ("failed", "AssertionError: assert f() == 1"),  # it was not allowed to kill anybody
        ("failed", "it killed its checker"),
    ]
    assert sandbox.run("pass").status == "ended"


def test_nothing_outlives_a_program(sandbox: ProgramSandbox) -> None:
    child = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(97.53)"
    sandbox.run(child, limits=LIMITS)
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not any(b"97.53" in command for command in commands)


FORGERIES = {
    "an exit": "import sys\nsys.exit(0)",
    "a hard exit": "import os\nos._exit(0)",
    "an exit when called": "import os\ndef f(x): os._exit(0)",
    "equal to everything": "class Yes:\n    def __eq__(self, other): return True\ndef f(x): return Yes()",
    "an int equal to everything": "class Yes(int):\n    def __eq__(self, other): return True\ndef f(x): return Yes(0)",
    "a builtin redefined": "def f(x): return 0\ndef abs(x): return 0\nimport builtins\nbuiltins.abs = abs",
    "the checks read": "import sys\ndef f(x):\n    return sys._getframe(3).f_locals['checks']",
    "an error that ends loops": "def f(x): raise StopIteration",
    "a report written": "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'started\\nended')\n"
    "    except OSError: pass\ndef f(x): return 0",
    "the checker's files": "import os\nfor pid in os.listdir('/proc'):\n    for fd in range(3, 64):\n"
    "        try: open(f'/proc/{pid}/fd/{fd}', 'wb', 0).write(b'ended')\n        except OSError: pass\n"
    "def f(x): return 0",
    "the checker's memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb').read(1)\ndef f(x): return 0",
    "an answer of its own making": "import os\nos.write(1, b'ended')\nraise SystemExit",
    "a class that is not plain": "import os\nclass P:\n    def __reduce__(self): return (print, ('ended',))\n"
    "def f(x): return P()",
}


@pytest.mark.parametrize("program", FORGERIES.values(), ids=FORGERIES)
def test_no_program_passes_itself(sandbox: ProgramSandbox, program: str) -> None:
    checks = "assert abs(f(1) - 2) < 1\nassert all(map(lambda y: y == 2, map(f, [1, 1])))"
    outcome = sandbox.run(program, Checks(checks, ("f",)), LIMITS)
    assert outcome.status == "failed", outcome


def test_no_program_makes_a_user_namespace_where_mounts_would_be_memory(sandbox: ProgramSandbox) -> None:
    outcome = sandbox.run("import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == -1")
    assert outcome.status == "ended", outcome.reason


def test_checks_see_what_a_program_returns_as_if_it_were_their_own(sandbox: ProgramSandbox) -> None:
    program = """
import collections, dataclasses, decimal
def same(x): return x
def count(xs): return collections.Counter(xs)
def squares(n): return (i * i for i in range(n))
def wrong(x): raise ValueError("no such x")
Point = collections.namedtuple("Point", "x y")
def point(): return Point(1, 2)
@dataclasses.dataclass
class Node:
    value: "int"
    next: "Node | None" = None
def length(node): return 0 if node is None else 1 + length(node.next)
"""
    checks = """
values = [None, True, 7, 1 << 9000, 2.5, float("inf"), 1j, "\\ud800é", b"b", [1, (2, {3: {4}})], frozenset([5])]
assert same(values) == values and same(True) is True and type(same((1,))) is tuple
assert count("aab") == {"a": 2, "b": 1} and sorted(squares(4)) == [0, 1, 4, 9]
from decimal import Decimal
assert same(Decimal("1.5")) == Decimal("1.5") and point() == (1, 2)
root = Node(1)
root.next = Node(2)
assert length(root) == 2 and root.next.value == 2
try: wrong(1)
except ValueError as error: assert str(error) == "no such x"
else: raise AssertionError("it did not raise")
"""
    names = ("same", "count", "squares", "wrong", "point", "Node", "length")
    outcome = sandbox.run(program, Checks(checks, names))
    assert (outcome.status, outcome.reason) == ("ended", "")
    missing = sandbox.run("def other(): pass", Checks("same(1)", names))
    assert (missing.status, missing.reason) == ("failed", "NameError: name 'same' is not defined")


@pytest.mark.parametrize("end", ["import sys\nsys.exit(0)", "import os\nos._exit(0)", "raise SystemExit"])
def test_a_program_that_leaves_before_its_end_has_not_ended(sandbox: ProgramSandbox, end: str) -> None:
    outcome = sandbox.run(f"{end}\nassert False")
    assert (outcome.status, outcome.reason) == ("failed", "exit 0 before its last line")


def test_what_a_program_reads_and_says(sandbox: ProgramSandbox) -> None:
    outcome = sandbox.run("import sys\nprint(input() + 'é')\nprint('no', file=sys.stderr)", stdin="ja\nmore")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ended", "jaé\n", "no\n")
    assert sandbox.run("x = 1 +").reason == "SyntaxError: invalid syntax"
    assert sandbox.run("assert 1 == 2, 'sum'").reason == "AssertionError: sum"
    assert sandbox.run("import ctypes\nctypes.string_at(0)").reason == "SIGSEGV"
    assert sandbox.run("x = '" + "y" * 3_000_000 + "'\nassert len(x) == 3_000_000").status == "ended"


def test_input_that_is_no_unicode_text_reaches_a_program(sandbox: ProgramSandbox) -> None:
    outcome = sandbox.run("import sys\nprint(sys.stdin.buffer.read())", stdin="a\ud800b")
    assert (outcome.status, outcome.stdout) == ("ended", "b'a\\xed\\xa0\\x80b'\n")


def test_a_program_that_never_reads_its_input_ends(sandbox: ProgramSandbox) -> None:
    assert sandbox.run("pass", stdin="x" * 1_000_000).status == "ended"


def test_many_at_once_each_have_limits_of_their_own(sandbox: ProgramSandbox) -> None:
    crowd = "import threading, time\nfor _ in range(10): threading.Thread(target=time.sleep, args=(.2,)).start()"
    programs = [crowd if number % 2 else f"assert {number} < 6" for number in range(12)]
    outcomes = list(sandbox.run_all(((program, None) for program in programs), LIMITS, workers=4))
    assert [outcome.status for outcome in outcomes] == ["failed" if n in (6, 8, 10) else "ended" for n in range(12)]


def test_a_sandbox_that_fails_is_no_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ProgramSandbox, "_wrap", lambda *_: [sys.executable, "-c", "raise SystemExit('no walls')"])
    monkeypatch.setattr(module.time, "sleep", lambda _: None)
    outcome = ProgramSandbox("bubblewrap", as_root=False).run("pass")
    assert (outcome.status, outcome.reason) == ("unknown", "no walls")


def test_where_nothing_can_build_walls_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    find_sandbox.cache_clear()
    try:
        with pytest.raises(SandboxError, match="cannot be run here: bwrap is not installed; unshare is not installed"):
            find_sandbox()
    finally:
        find_sandbox.cache_clear()


def test_an_answer_cannot_change_the_types_that_checks_compare(sandbox: ProgramSandbox) -> None:
    program = """
import os, sys
def f(x):
    frame = sys._getframe()
    while "remote" not in frame.f_locals:
        frame = frame.f_back
    change = b"cfractions\\nFraction\\n(N(V__eq__\\ncbuiltins\\nstr\\ndtb"
    data = b"(Vvalue\\n" + change + b"(I1\\ntRt."
    remote = frame.f_locals["remote"]
    os.write(remote.writing, len(data).to_bytes(8, "big") + data)
    os.read(remote.reading, 1)
"""
    outcome = sandbox.run(program, Checks("assert f(2) == 4", ("f",)))
    assert outcome.status == "failed", outcome
