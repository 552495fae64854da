"""Writing files so that a kill at any moment leaves them whole, and reading them back so."""

import contextlib
import errno
import fcntl
import gc
import glob
import hashlib
import json
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, PosttrainError, first_line
from .errors import BusyError

_NO_ROOM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file grew beyond what this process may write (ulimit -f)",
}
_MAKE_ROOM = "make room and run the same command again: what is done is kept"


def _no_room(error: BaseException, folder: Path) -> str | None:
    """Says what limit an error came of, or None if it came of something else.

    Python keeps the number of a system error; safetensors and Arrow write it into their text, torch says only that a
    write failed.
    """
    seen = error
    while seen is not None:
        text = str(seen)
        written = re.search(r"(?:os error|errno) (\d+)", text, re.IGNORECASE)
        number = getattr(seen, "errno", None) or (int(written[1]) if written else None)
        if number in _NO_ROOM:
            return _NO_ROOM[number]
        if re.search(r"PytorchStreamWriter|unexpected pos|iostream", text):
            if shutil.disk_usage(folder).free < 2**24:
                return _NO_ROOM[errno.ENOSPC]
            if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
                return _NO_ROOM[errno.EFBIG]
            return "the disk takes no more; is a quota used up?"
        seen = seen.__cause__ or seen.__context__
    return None


@contextlib.contextmanager
def explain_full_disk(folder: Path) -> Iterator[None]:
    """Turns what a full disk, a used-up quota or ``ulimit -f`` makes libraries raise into one clear error.

    Args:
        folder: Where most is written.

    Raises:
        PosttrainError: Writing failed for want of room.
    """
    try:
        yield
    except PosttrainError as error:
        if error.hint is None and _no_room(error, folder):
            error.hint = _MAKE_ROOM
        raise
    except Exception as error:
        reason = _no_room(error, folder)
        if reason is None:
            raise
        where = str(getattr(error, "filename", None) or folder)
        raise PosttrainError(f"{reason} ({first_line(error)})", where=where, hint=_MAKE_ROOM) from error


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file under a temporary name beside it, syncs it, and renames it into place.

    Raises:
        PosttrainError: The disk is full or the folder cannot be written; an older file of the name is untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked_temporary(path) as handle:
            temporary = Path(handle.name)
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
            temporary.chmod(0o644)  # NamedTemporaryFile makes 0600; results are for others to read
            temporary.replace(path)
    except OSError as error:
        raise PosttrainError(f"cannot write: {error.strerror or error}", where=str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # only there if something, a Ctrl-C included, came between


def _locked_temporary(path: Path) -> Any:
    """Opens and locks a temporary file beside a path; removes those that nobody locks: their writers were killed."""
    for orphan in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError), orphan.open("rb+") as found:
            fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
            orphan.unlink()
    handle = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)  # noqa: SIM115
    with contextlib.suppress(OSError):  # a file system without locks clears no orphans either
        fcntl.flock(handle, fcntl.LOCK_EX)
    # Another process may have taken it for an orphan before it was locked.
    return handle if Path(handle.name).exists() else _locked_temporary(path)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically; NaN and infinity are refused, since no other reader takes them."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Looks for no garbage while large files are read, which would go through all of their values again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def read_json(path: Path) -> Any:
    """Reads a small JSON file; None if there is none, or none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    """Reads a small JSON file of one object; empty if there is none, or none that can be read."""
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_tree(folder: Path, pattern: str = "**/*") -> str:
    """Returns 16 hexadecimal digits of the names and bytes of a folder's files, but for hidden and compiled ones.

    Args:
        folder: The folder.
        pattern: Which of its files: by default all below it; ``*`` are those directly in it.
    """
    found = sorted(file.relative_to(folder) for file in folder.glob(pattern) if file.is_file())
    named = [file for file in found if not any(part[0] == "." or part == "__pycache__" for part in file.parts)]
    return hash_json([[file.as_posix(), hash_file(folder / file)] for file in named])


def hash_json(value: Any) -> str:
    """Returns 16 hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def append_line(path: Path, line: str, *, sync: bool = True) -> None:
    """Appends one line to a log; a torn last line left by a kill is cut off first.

    Args:
        path: The log.
        line: The record.
        sync: Whether to wait until the disk has it. Without, the line survives a kill but not a power cut.

    Raises:
        ValueError: ``line`` holds a newline, which would make it two records.
        PosttrainError: The log cannot be written.
    """
    if "\n" in line:
        raise ValueError("a log record is one line")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as handle:
            _cut_torn_line(handle)
            handle.write(line.encode() + b"\n")
            handle.flush()
            if sync:
                os.fsync(handle.fileno())
    except OSError as error:
        raise PosttrainError(f"cannot append: {error.strerror or error}", where=str(path)) from error


def _cut_torn_line(handle: Any) -> None:
    """Truncates an open log after its last newline."""
    size = handle.seek(0, os.SEEK_END)
    end = size
    while end > 0:
        start = max(0, end - 65536)
        handle.seek(start)
        newline = handle.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        handle.truncate(end)
    handle.seek(0, os.SEEK_END)


def write_jsonl_log(path: Path, entries: Iterable[Any]) -> None:
    """Writes dataclasses as a log that ``read_jsonl_log`` reads, whole or not at all."""
    write_atomic(path, "".join(json.dumps(asdict(entry), ensure_ascii=False) + "\n" for entry in entries))


def read_jsonl_log(path: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads an append-only log; a torn last line (no newline) is dropped, a bad line elsewhere is an error.

    Args:
        path: The log.
        problems: Takes a clause for whatever cannot be read, which is then left out instead of raised.

    Raises:
        PosttrainError: A line that was completely written is not a JSON object, and no problems are collected.
    """
    if not path.exists():
        return []
    try:
        *lines, torn = path.read_bytes().split(b"\n")
    except OSError as error:
        if problems is None:
            raise
        problems.append(f"{path.name} cannot be read ({first_line(error)})")
        return []
    if torn.strip() and problems is not None:
        problems.append(f"{path.name}: the last line is torn and was left out (a kill, or a writer still at work)")
    records = []
    for number, line in enumerate(lines, start=1):
        if problems is not None and not line.strip():
            continue
        try:
            record = json.loads(line)
            if isinstance(record, dict):
                records.append(record if problems is None else without_surrogates(record))
                continue
            what, why = "not a JSON object", ""
        except (ValueError, RecursionError) as error:
            what, why = "not JSON", str(error)
        if problems is None:
            raise PosttrainError(f"{what}: {why}" if why else what, where=f"{path}:{number}", hint="remove that line")
        problems.append(f"{path.name}:{number} is {what} and was left out" + (f" ({why})" if why else ""))
    return records


def without_surrogates(value: Any) -> Any:
    """Replaces lone surrogates, which JSON can spell and UTF-8 cannot, in every string of a JSON value."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Holds an exclusive lock on a file for the length of a ``with`` block; the kernel frees it when we die.

    Args:
        path: The lock file.
        wait: Whether to wait for another process that holds it.

    Raises:
        BusyError: Another process holds it, and ``wait`` is false.
        InputError: A file stands in the place of its folder.
        PosttrainError: The file cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path, blocking=wait, fallback_to_soft=False)  # a soft lock would outlive a kill
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        what, hint = "another process is working here", "wait for it to end, or stop it"
        raise BusyError(what, where=str(path.parent), hint=hint) from error
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError("is, or lies below, a file", where=str(path.parent), hint="name another folder") from error
    except OSError as error:
        hint = "work is kept beside what it is about: can you write there?"
        raise PosttrainError(f"cannot lock: {error.strerror or error}", where=str(path), hint=hint) from error
    try:
        yield
    finally:
        lock.release()
