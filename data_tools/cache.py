"""Folders that are built once for a key, whole or not at all, however many processes ask at the same time."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from .files import hash_file, write_json

META = "meta.json"
WHOLE_FILE = 64 * 2**20
BLOCK = 64 * 2**10
BLOCKS = 256


@dataclass(frozen=True)
class Entry:
    """A built folder.

    Attributes:
        folder: Where its files lie.
        report: What the builder returned.
        built: Whether this call built it; false if it was found.
        problem: Why an older folder of the key was thrown away, or None.
    """

    folder: Path
    report: dict[str, Any]
    built: bool
    problem: str | None = None


def get_or_build(cache_dir: Path, key: str, build: Callable[[Path], dict[str, Any]]) -> Entry:
    """Returns the folder of a key, building it if it is missing or damaged.

    A folder is built under a temporary name beside its place, synced, and renamed, so that a kill leaves either no
    folder or a whole one. A lock per key makes a second process wait for the first one's folder.

    Args:
        cache_dir: Holds all entries; made if missing.
        key: Names the entry; whatever changes its content must change it.
        build: Writes files into an empty folder and returns a report that JSON can hold.

    Raises:
        PosttrainError: The cache cannot be written. What ``build`` raises passes through.
    """
    from filelock import FileLock

    folder = cache_dir / key
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{key}.lock", fallback_to_soft=False):
            problem = damage(folder)
            if problem is None:
                return Entry(folder, _read_meta(folder)["report"], built=False)
            existed = folder.exists()
            report = _build(folder, build)
            return Entry(folder, report, built=True, problem=problem if existed else None)
    except OSError as error:
        raise PosttrainError(f"cannot write the cache: {error.strerror or error}", where=str(folder)) from error


def damage(folder: Path) -> str | None:
    """Says what is wrong with an entry, or returns None if it is whole.

    Files of up to 64 MB are compared by their whole SHA-256; of longer ones the size and 256 evenly spaced blocks are
    compared, which finds truncation and unwritten ranges without reading a corpus at every start.
    """
    try:
        meta = _read_meta(folder)
        files, key = meta["files"], meta.get("key", folder.name)  # entries of older versions do not say
    except FileNotFoundError:
        return "not there, or not finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{META} is damaged"
    if key != folder.name:
        return f"it is the folder of {key}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['size']}"
        if _digest(path) != expected["digest"]:
            return f"{name} has changed"
    return None


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Builds beside the place and renames; the caller holds the lock, so the temporary name has one owner."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # what a killed process left
    temporary.mkdir(parents=True)
    try:
        report = build(temporary)
        paths = sorted(path for path in temporary.rglob("*") if path.is_file())
        for path in paths:
            _sync(path)
        files = {
            str(path.relative_to(temporary)): {"size": path.stat().st_size, "digest": _digest(path)} for path in paths
        }
        write_json(temporary / META, {"key": folder.name, "report": report, "files": files})
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.replace(folder)
    _sync(folder.parent)
    return report


def _read_meta(folder: Path) -> dict[str, Any]:
    """Reads an entry's description."""
    return json.loads((folder / META).read_text(encoding="utf-8"))


def _digest(path: Path) -> str:
    """Hashes a short file whole, a long one by evenly spaced blocks that include its first and last."""
    size = path.stat().st_size
    if size <= WHOLE_FILE:
        return hash_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for number in range(BLOCKS):
            handle.seek((size - BLOCK) * number // (BLOCKS - 1))
            digest.update(handle.read(BLOCK))
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Asks the kernel to put a file or folder on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
