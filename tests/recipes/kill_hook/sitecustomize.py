"""Counts the file-changing events of a command below a folder, and kills it before one of them.

Python runs this file at the start of every process whose ``PYTHONPATH`` names its folder, so that the processes that a
command starts are counted too; a forked test calls ``install`` itself.
"""

# ruff: noqa: PTH100, PTH112, PTH115, PTH117, PTH118, PTH202
# It runs at every start of Python and in every audit event, where pathlib would be slow.

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

RECORD = 160  # bytes of an event in the file of events, so that its size tells their number
_NATIVE = {"torch.serialization": "save", "safetensors.torch": "serialize_file"}  # they write without Python's `open`
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink"}


def _is_gone(path: Any, folder: int = -1) -> bool:
    return folder < 0 and not os.path.lexists(path)


def install(root: str, events: str, at: int) -> None:
    """Counts from now on.

    Args:
        root: Where changes count.
        events: The file to which each event is written.
        at: Before which event to send SIGKILL; 0 for none. A native write is torn in the middle.
    """
    log = os.open(events, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

    def happens(event: str, path: Any, folder: Any = -1) -> bool:
        """Notes an event; says whether it is the one."""
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and not os.path.isabs(name):
            name = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), name)
        name = os.path.abspath(name)
        if not name.startswith(root + os.sep) or name == events:
            return False
        os.write(log, f"{event} {name[len(root) + 1 :]}"[: RECORD - 1].ljust(RECORD - 1).encode() + b"\n")
        return 0 < at <= os.fstat(log).st_size // RECORD  # past it, where another process came between

    def die() -> None:
        # An odd number ends this process alone, as the kernel does when memory runs out; an even one all of them.
        os.kill(os.getpid() if at % 2 else 0, signal.SIGKILL)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            mode, flags = args[1], args[2] or 0
            written = any(letter in mode for letter in "wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if written and not os.path.isdir(args[0]) and happens("open", args[0]):
                die()
        elif (event == "os.mkdir" and os.path.isdir(args[0])) or (event == "os.remove" and _is_gone(*args)):
            return  # it will fail, and changes nothing
        elif event in _CHANGES and happens(event, args[len(args) > 3], args[-1]):  # where a rename goes to
            die()

    def torn(name: str, write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(content: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
            fatal = happens(name, path)
            result = write(content, path, *args, **kwargs)
            if fatal:
                os.truncate(path, os.path.getsize(path) // 2)
                die()
            return result

        return wrapped

    def replace(module: Any) -> None:
        name = _NATIVE[module.__name__]
        wrapped = torn(name, getattr(module, name))
        setattr(module, name, wrapped)
        if name == "save" and "torch" in sys.modules:
            sys.modules["torch"].save = wrapped  # type: ignore[attr-defined]

    class Finder:
        """Wraps a module's writing function once the module is loaded."""

        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name not in _NATIVE:
                return None
            specs = (
                f.find_spec(name, path, target) for f in sys.meta_path if f is not self and hasattr(f, "find_spec")
            )
            spec = next(filter(None, specs), None)
            load: Any = spec and spec.loader
            if load:
                plain = load.exec_module
                load.exec_module = lambda module: (plain(module), replace(module))
            return spec

    sys.addaudithook(hook)
    for name in _NATIVE:
        if name in sys.modules:
            replace(sys.modules[name])
    sys.meta_path.insert(0, Finder())  # type: ignore[arg-type]


if "KILL_ROOT" in os.environ:
    install(os.environ["KILL_ROOT"], os.environ["KILL_EVENTS"], int(os.environ["KILL_AT"]))
