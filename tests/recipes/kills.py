"""Kills a command before its n-th file-changing event, lets it run again, and compares what lies there then.

Any command of posttrain will do. It runs in a fork of the test's process, which has imported everything, so that a kill
costs a second; what it starts as processes of their own is counted with it.
"""

import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .kill_hook import sitecustomize

_TIMES = ("created", "finished", "seconds", "saved", "when")
_LOCKS = (".lock", ".scoring")
_TOLD_APART = re.compile(r"\.[a-z0-9_]{8} *$|[0-9a-f]{8,}|[0-9]+")


@dataclass(frozen=True)
class Command:
    """What is killed.

    Attributes:
        root: The folder below which it changes files; its content is what the command starts from.
        arguments: As for ``posttrain``.
        timed: Names of files that show wall times, and of which only their being there is compared.
        exact: Whether all other files are compared by their bytes, as they hold no times.
    """

    root: Path
    arguments: Sequence[str | Path]
    timed: Sequence[str] = ()
    exact: bool = False


class Killer:
    """Runs one command again and again from the same beginning.

    Args:
        command: The command.
        scratch: A folder outside of the command's root.
    """

    def __init__(self, command: Command, scratch: Path):
        self.command = command
        self._events = scratch / "events"
        self._output = scratch / "output"
        self._start = Path(shutil.copytree(command.root, scratch / "start"))
        code = self._run(at=0, modules=scratch / "modules")
        assert code == 0, self._output.read_text()
        for name in (scratch / "modules").read_text().split():  # so that no fork need import them again
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        self.events = self._events.read_text().split("\n")[:-1]
        self.expected = snapshot(command.root, command.timed, exact=command.exact)

    def kill(self, at: int) -> None:
        """Kills the command before its event number ``at`` (from 1), runs it again, and compares.

        Raises:
            AssertionError: It did not die, did not end the second time, or left something else than it should.
        """
        event = self.events[at - 1].strip()
        shutil.rmtree(self.command.root)
        shutil.copytree(self._start, self.command.root)
        code = self._run(at)
        assert code != 0, f"not killed at {at}, {event}: {self._output.read_text()}"
        code = self._run(at=0)
        assert code == 0, f"killed at {at}, {event}: {self._output.read_text()}"
        found = snapshot(self.command.root, self.command.timed, exact=self.command.exact)
        names = self.expected.keys() | found.keys()
        different = [name for name in names if self.expected.get(name, "absent") != found.get(name, "absent")]
        shown = {name: _difference(self.expected.get(name), found.get(name)) for name in sorted(different)}
        assert not different, f"killed at {at}, {event}: {str(shown)[:3000]}"

    def chosen(self, number: int, *, kinds: bool = False) -> list[int]:
        """Returns numbers of events, evenly spread over all, or over the last of each kind.

        Events are of one kind if they differ by numbers, hashes and the names of temporary files alone.
        """
        among = list(range(1, len(self.events) + 1))
        if kinds:
            among = sorted({_TOLD_APART.sub("", event): at for at, event in enumerate(self.events, 1)}.values())
        step = len(among) / number
        return sorted({among[max(1, round(len(among) - step * (place + 0.3))) - 1] for place in range(number)})

    def _run(self, at: int, modules: Path | None = None) -> int:
        """Runs the command in a process group of its own; returns its exit code, negative for a signal."""
        self._events.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            code = _in_child(self.command, self._events, self._output, at)
            if modules:
                modules.write_text(" ".join(sorted(sys.modules)))
            os._exit(code)
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)


def _in_child(command: Command, events: Path, output: Path, at: int) -> int:
    """Becomes the command."""
    try:
        os.setpgid(0, 0)
        sink = os.open(output, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.environ |= {"KILL_ROOT": str(command.root), "KILL_EVENTS": str(events), "KILL_AT": str(at)}
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(sitecustomize.__file__).parent), os.environ.get("PYTHONPATH")])
        )
        sitecustomize.install(str(command.root), str(events), at)
        return _call(list(map(str, command.arguments)))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _call(arguments: list[str]) -> int:
    """Runs a command of posttrain's; ``train`` becomes another process, so its module is called instead."""
    from posttrain.recipes import cli, launch, train
    from posttrain.recipes.forks import Forks

    launch.run = _forked  # type: ignore[assignment]
    Forks.prepare = lambda self: None  # type: ignore[method-assign]  # forks of its own would import again
    if arguments[0] == "train":
        return train.main(arguments[1:])
    sys.argv = ["posttrain", *arguments]
    cli.main()
    return 0


def _forked(command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Stands for ``launch.run``: what a command starts is a fork of it, which has imported everything too."""
    from posttrain.recipes import launch

    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code: Any = 70
    try:
        os.environ.update(environment or {})
        code = _call(["train", *command[3:]] if command[2] == launch.MODULE else list(command[3:]))
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def snapshot(root: Path, timed: Sequence[str] = (), *, exact: bool = False) -> dict[str, Any]:
    """Returns what lies below a folder, wall times aside, or of all files the bytes."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix != ".lock"]
    names = {str(path.relative_to(root)): path for path in files}
    kept = {name: path for name, path in names.items() if not any(part in _LOCKS for part in name.split("/"))}
    return {name: None if path.name in timed else _content(path, exact) for name, path in kept.items()}


def _content(path: Path, exact: bool) -> Any:
    import hashlib

    if exact:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    import pyarrow.parquet
    import torch

    if path.suffix == ".jsonl":
        return _timeless([json.loads(line) for line in path.read_text().splitlines()])
    if path.suffix == ".json" and "cache" not in path.parts:
        found = _timeless(json.loads(path.read_text()))
        # A manifest hashes files that hold times; what it says of the weights is what counts.
        return {**found, "files": sorted(found["files"])} if path.name == "manifest.json" else found
    if path.suffix == ".parquet":
        return _timeless(pyarrow.parquet.read_table(path).to_pydict())
    if path.name.startswith("progress_"):
        return repr(_timeless(torch.load(path, weights_only=True)))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _difference(old: Any, new: Any) -> Any:
    """Returns the parts of two contents that differ."""
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [_difference(a, b) for a, b in zip(old, new, strict=True) if a != b]
    if isinstance(old, dict) and isinstance(new, dict):
        return {k: _difference(old.get(k), new.get(k)) for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
    return old, new


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not _is_time(key) and value.get("name") not in _TIMES}
        return {key: _timeless(item) for key, item in kept.items()}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _is_time(key: Any) -> bool:
    return isinstance(key, str) and (
        key in _TIMES or key.endswith(("_runtime", "_per_second", "step_time", "memory_gib"))
    )
