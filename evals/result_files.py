"""Files that other harnesses wrote, read whole and within bounds: JSON, and inspect's logs.

A log of inspect is a zip of ``header.json`` and ``samples/`` (its log/_recorders/eval.py), or the same as one JSON
object (json.py).
"""

import io
import json
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..chat_templates.errors import InputError, first_line
from ..data_tools.files import without_surrogates
from ..data_tools.readers import opened

Json = dict[str, Any]
"""An object of such a file, of which nothing is known."""

MOST_BYTES = 1 << 29
"""Of a file of results, or of one member of a log: no figures weigh more."""

FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RecursionError)
"""What a file of another shape makes a reader raise."""

_ZSTD = 93  # the zip format's number for it


def read_whole(path: Path) -> bytes:
    """Returns the content of a file, unpacked if its name ends in ``.gz``.

    Raises:
        InputError: It cannot be read, or is too large for a file of results.
    """
    with opened(path) as handle:
        data = handle.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise too_large(path, path.stat().st_size)
    return data


def parse_json(data: bytes, where: object) -> Any:
    """Returns a JSON value without lone surrogates.

    Raises:
        InputError: It is no JSON.
    """
    try:
        return without_surrogates(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise InputError(f"damaged, not JSON: {first_line(error)}", where=str(where), hint="copy it again") from error


def damaged(where: object, error: Exception, hint: str = "copy it again, or leave it out") -> InputError:
    """Words what a reader stumbled over."""
    said = f"lacks {error}" if isinstance(error, KeyError) else first_line(error)
    return InputError(f"damaged: {said}", where=str(where), hint=hint)


def too_large(where: object, size: int) -> InputError:
    """Words that a file is larger than any file of results."""
    what = f"{size / 2**20:,.0f} MiB, more than any file of results has ({MOST_BYTES >> 20} MiB)"
    return InputError(what, where=str(where), hint="is it a file of results?")


def read_archive(path: Path) -> tuple[Json, Iterator[Json]]:
    """Returns the header of a log of inspect (``.eval``), and what yields its samples.

    Raises:
        InputError: It is damaged, or its evaluation has not ended.
    """

    def samples() -> Iterator[Json]:
        with _archive(path) as archive:
            for info in archive.infolist():
                if re.fullmatch(r"samples/[^/]+\.json", info.filename):
                    yield parse_json(_member(path, archive, info), f"{path}/{info.filename}")

    with _archive(path) as archive:
        if "header.json" not in archive.namelist():
            raise InputError("the evaluation has not ended: no header.json", where=str(path))
        header = parse_json(_member(path, archive, archive.getinfo("header.json")), f"{path}/header.json")
    if not isinstance(header, dict):
        raise InputError("damaged: its header is no object", where=str(path))
    return header, samples()


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise damaged(path, error) from error


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Reads a file of a zip; inspect packs them by zstd, which Python's zipfile does not read before 3.14."""
    where = f"{path}/{info.filename}"
    if info.file_size > MOST_BYTES:
        raise too_large(where, info.file_size)
    try:
        if info.compress_type != _ZSTD:
            return archive.read(info)
        import pyarrow

        with path.open("rb") as handle:
            handle.seek(info.header_offset)
            local = handle.read(30)  # name and extra field behind it need not be as long as the directory says
            handle.seek(int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little"), io.SEEK_CUR)
            packed = handle.read(info.compress_size)
        with pyarrow.input_stream(pyarrow.BufferReader(packed), compression="zstd") as stream:
            data = stream.read(info.file_size + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise damaged(where, error) from error
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise InputError("damaged: it is not whole", where=where, hint="copy it again, or leave it out")
    return data
