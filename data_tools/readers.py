"""Files to rows, one reader for each type of file, each a generator that holds a small part of the file."""

import codecs
import contextlib
import csv
import functools
import gzip
import io
import json
import re
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from pydantic_core import from_json

from .errors import DataError, RowError

if TYPE_CHECKING:
    import pyarrow as pa

    from .spec import SourceSpec

_CHUNK = 1 << 20  # characters of a JSON array read at a time
# Characters or bytes of a row, or of one text in it: a whole library in one row is a fault.
# Python's own limit for a CSV field, 131,072, is shorter than many documents.
MAX_ROW = 1 << 25
# Lists and objects inside each other: Python itself, and what walks through a row, give up at about 900.
MAX_LEVELS = 100
# What a gzip file may hold beside what it weighs; text that repeats itself is packed 20 to 1, a bomb 1,000 to 1.
_FREE, _RATIO = 1 << 24, 200
_BATCH = 1024  # rows of a columnar file
_SCALARS = {str, int, float, bool, type(None)}


class Row(NamedTuple):
    """A row as it lies in its source.

    Attributes:
        where: ``file.jsonl:17`` (line), ``file.json[17]`` or ``org/name[train][17]`` (index from 0).
        values: Plain Python values by column.
        problem: Why the row could not be read, or None.
    """

    where: str
    values: dict[str, Any]
    problem: RowError | None = None


Reader = Callable[[Path, str, "SourceSpec"], Iterator[Row]]


def is_packed(path: Path) -> bool:
    """Whether a file is gzip by its name, in capitals too."""
    return path.suffix.lower() == ".gz"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Opens a file for reading bytes, through gzip if its name says so; a damaged file is a DataError."""
    try:
        with io.BufferedReader(_Unpacked(path), 1 << 16) if is_packed(path) else path.open("rb") as handle:
            yield handle
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"damaged gzip file: {error}", where=str(path), hint="fetch or compress it again") from error
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}", where=str(path)) from error


class _Unpacked(io.RawIOBase):
    """A gzip file that is given up once it has unpacked to far more than any text would."""

    def __init__(self, path: Path):
        self._path, self._file = path, gzip.open(path, "rb")  # noqa: SIM115
        self._most = max(_FREE, _RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._file.seek(offset, whence)

    def readinto(self, buffer: Any, /) -> int:
        count = self._file.readinto(buffer)
        if self._file.tell() > self._most:
            raise DataError(
                f"unpacks to more than {_RATIO} times its size, as text does not",
                where=str(self._path),
                hint="unpack it by hand, and name the unpacked file",
            )
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


_LONG = RowError(f"longer than {MAX_ROW >> 20} MiB", "cut it into rows")


def _bounded_lines(handle: IO[bytes]) -> Iterator[bytes | None]:
    """Yields lines; None for one that is too long, whose rest is passed over."""
    while line := handle.readline(MAX_ROW + 1):
        if len(line) <= MAX_ROW:
            yield line
            continue
        while line and not line.endswith(b"\n"):
            line = handle.readline(1 << 20)
        yield None


def read_json(path: Path, name: str, source: "SourceSpec") -> Iterator[Row]:
    """Reads one JSON object a line, or an array of objects; which of them is told from the first character."""
    with opened(path) as handle:
        first, second = _first_lines(handle)
        handle.seek(0)
        if first.startswith(b"["):
            yield from _read_array(handle, name)
        elif first == b"{" and not second.startswith(b"{"):
            raise DataError(
                "one JSON object over many lines is no list of rows",
                where=name,
                hint="write an array of objects, or one object a line",
            )
        else:
            yield from _read_lines(handle, name)


def _first_lines(handle: IO[bytes]) -> tuple[bytes, bytes]:
    """Returns the beginnings of the first two lines that hold something; of a file of fewer, empty ones."""
    found: list[bytes] = []
    while len(found) < 2 and (line := handle.readline(1 << 16)):
        line = line.removeprefix(codecs.BOM_UTF8).strip()
        found += [line] if line else []
    first, second, *_ = *found, b"", b""
    return first, second


def _read_lines(handle: IO[bytes], name: str) -> Iterator[Row]:
    """Reads JSON Lines."""
    for number, line in enumerate(_bounded_lines(handle), start=1):
        where = f"{name}:{number}"
        if line is None:
            yield Row(where, {}, _LONG)
            continue
        try:
            # Twice as fast as Python's json and stricter: what both read they read as the same, the rest is Python's.
            value = from_json(line, allow_inf_nan=False)
        except ValueError:
            yield from _read_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
            continue
        if type(value) is dict and _SCALARS.issuperset(map(type, value.values())):
            yield Row(where, value)
        else:
            yield _row(where, value, line.decode(), suspect=False)


def _read_line(line: bytes, where: str) -> Iterator[Row]:
    """Reads a line as Python does: numbers that are not finite too, and every fault in Python's words."""
    try:
        text = line.decode()
        if text.isspace():
            return
        value = json.loads(text)
    except UnicodeDecodeError as error:
        yield Row(where, {}, RowError("not valid UTF-8", str(error)))
    except (ValueError, RecursionError) as error:
        yield Row(where, {}, RowError("not JSON", str(error)))
    else:
        yield _row(where, value, text, suspect=has_surrogate_escape(text))


def has_surrogate_escape(text: str) -> bool:
    """Whether JSON has an escape of half a surrogate pair, the other half of which may be missing."""
    return "\\u" in text and ("\\ud" in text or "\\uD" in text)


def lone_surrogate() -> RowError:
    """Returns the error of a value that holds half a surrogate pair, which no text can."""
    detail = r"an escape such as \ud83d stands without its other half, which makes no character"
    return RowError("lone surrogate", detail)


def _row(where: str, value: Any, text: str, *, suspect: bool) -> Row:
    """Makes a row of a parsed text; ``suspect`` asks to look for halves of surrogate pairs, which are no text."""
    if not isinstance(value, dict):
        return Row(where, {}, RowError("not a JSON object", type(value).__name__))
    if text.count("[") + text.count("{") > MAX_LEVELS and _deeper_than(MAX_LEVELS, value):
        return Row(where, {}, RowError(f"nested deeper than {MAX_LEVELS} levels"))
    if suspect and not encodes(value):
        if not encodes(text):
            return Row(where, {}, RowError("not valid UTF-8"))
        return Row(where, {}, lone_surrogate())
    return Row(where, value)


def _deeper_than(levels: int, value: Any) -> bool:
    """Whether lists and objects stand inside each other more often than that."""
    found = [value]
    for _ in range(levels):
        inner = (one.values() if isinstance(one, dict) else one for one in found if isinstance(one, dict | list))
        found = [item for items in inner for item in items]
    return any(isinstance(one, dict | list) for one in found)


def encodes(value: Any) -> bool:
    """Whether every text inside a value can be written as UTF-8."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            return False
        return True
    if isinstance(value, dict):
        return all(encodes(key) and encodes(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(encodes, value))


_BLANK = re.compile(r"[ \t\r\n]*")


class _Window:
    """The part of a long text that is in memory: it grows at the end and is cut at the front."""

    def __init__(self, handle: IO[bytes]):
        # Bytes that are no UTF-8 become lone surrogates, which spoil only the row they stand in.
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._handle = handle
        self.text = ""
        self.position = 0
        self.ended = False
        self.grow()
        self.text = self.text.removeprefix("\ufeff")

    def grow(self) -> None:
        """Drops what has been read and reads on, at least as much as is waiting."""
        self.text = self.text[self.position :]
        self.position = 0
        block = self._handle.read(max(_CHUNK, len(self.text)))
        self.ended = not block
        self.text += self._decode(block, final=self.ended)

    def peek(self) -> str:
        """Returns the next character that is no white space, or nothing at the end."""
        while True:
            match = _BLANK.match(self.text, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self.text) or self.ended:
                return self.text[self.position : self.position + 1]
            self.grow()


def _read_array(handle: IO[bytes], name: str) -> Iterator[Row]:
    """Reads the elements of a JSON array one by one, without holding the array."""
    window = _Window(handle)
    window.peek()
    window.position += 1  # the bracket
    decode = json.JSONDecoder().raw_decode
    index = 0
    while window.peek() != "]":
        where = f"{name}[{index}]"
        while True:
            try:
                value, end = decode(window.text, window.position)
                if end < len(window.text):  # else a number could go on
                    break
                problem: Exception | str = "the file ends inside the array"
            except (ValueError, RecursionError) as error:
                problem = error
            if window.ended:
                raise DataError(f"not JSON from here on: {problem}", where=where, hint="is the file whole?")
            if len(window.text) - window.position > MAX_ROW:
                raise DataError(str(_LONG.reason), where=where, hint=f"{_LONG.detail}; or is a quotation mark missing?")
            window.grow()
        element = window.text[window.position : end]
        yield _row(where, value, element, suspect=has_surrogate_escape(element) or not encodes(element))
        window.position = end
        index += 1
        following = window.peek()
        if following not in (",", "]") or not following:
            raise DataError("not JSON: no comma after this element", where=where, hint="is the file whole?")
        window.position += following == ","
    window.position += 1
    if window.peek():
        hint = "write one array, or one object a line"
        raise DataError("more stands behind the array of rows, and would not be read", where=name, hint=hint)


def _read_table(path: Path, name: str, source: "SourceSpec", **dialect: Any) -> Iterator[Row]:
    """Reads separated values; the first line names the columns unless ``columns`` numbers them."""
    header: list[str] | None = None
    csv.field_size_limit(MAX_ROW)
    with opened(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
        records = csv.reader(text, strict=True, **dialect)
        while True:
            line = records.line_num + 1
            where = f"{name}:{line}"
            try:
                fields = next(records, None)
            except csv.Error as error:
                if records.line_num > line:  # who knows how many rows it swallowed
                    hint = "is a quotation mark that opens here left unclosed, or not doubled inside the field?"
                    raise DataError(f"not CSV: {error}", where=where, hint=hint) from error
                yield Row(where, {}, RowError("not CSV", str(error)))
                continue
            if fields is None:
                return
            if not fields:
                continue
            if header is None and not source.has_no_header:
                header = _header(fields, where)
                continue
            header = header or [str(index) for index in range(len(fields))]
            if len(fields) != len(header):
                detail = f"{len(fields)} where there are {len(header)} columns"
                yield Row(where, {}, RowError("wrong number of fields", detail))
            elif not encodes(fields):
                yield Row(where, {}, RowError("not valid UTF-8"))
            else:
                yield Row(where, dict(zip(header, fields, strict=True)))


def _header(fields: list[str], where: str) -> list[str]:
    if not encodes(fields):
        raise DataError("the names of the columns are not valid UTF-8", where=where, hint="save the file as UTF-8")
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise DataError(
            f"two columns are named '{twice[0]}'",
            where=where,
            hint="if the file has no header, name its columns by number: `columns: {0: text, 1: label}`",
        )
    return fields


def read_txt(path: Path, name: str, source: "SourceSpec") -> Iterator[Row]:
    """Reads plain text: a row is a line with something in it, a paragraph (blank lines between), or the file."""
    with opened(path) as handle:
        if source.sample_by == "document":
            text = handle.read(MAX_ROW + 1)
            if len(text) > MAX_ROW:
                yield Row(name, {}, _LONG)
                return
            yield from _text_row(name, text.removeprefix(codecs.BOM_UTF8))
            return
        paragraphs = source.sample_by == "paragraph"
        gathered: list[bytes] = []
        start = 1
        size = 0
        for number, line in enumerate(_bounded_lines(handle), start=1):
            size = len(line or b"") + (size if gathered else 0)
            if line is None or size > MAX_ROW:
                yield Row(f"{name}:{number}", {}, _LONG)
                gathered = []
                continue
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            blank = not line.strip()
            if not blank:
                start = start if gathered else number
                gathered.append(line)
            if gathered and (blank or not paragraphs):
                yield from _text_row(f"{name}:{start}", b"".join(gathered).rstrip(b"\r\n"))
                gathered = []
        if gathered:
            yield from _text_row(f"{name}:{start}", b"".join(gathered).rstrip(b"\r\n"))


def _text_row(where: str, data: bytes) -> Iterator[Row]:
    try:
        yield Row(where, {"text": data.decode()})
    except UnicodeDecodeError as error:
        yield Row(where, {}, RowError("not valid UTF-8", str(error)))


@contextlib.contextmanager
def _seekable(path: Path) -> Iterator[Any]:
    """Opens a columnar file, which is read from its end; a compressed one is unpacked to a temporary file first."""
    if not is_packed(path):
        yield str(path)
        return
    with tempfile.TemporaryFile() as unpacked, opened(path) as handle:
        while block := handle.read(1 << 20):
            unpacked.write(block)
        unpacked.seek(0)
        yield unpacked


def read_parquet(path: Path, name: str, source: "SourceSpec") -> Iterator[Row]:
    """Reads a Parquet file, a batch of rows at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _seekable(path) as file:
        try:
            with pq.ParquetFile(file) as table:
                yield from read_batches(table.iter_batches(batch_size=_BATCH), name)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a whole Parquet file: {_first_line(error)}", where=str(path)) from error


def read_arrow(path: Path, name: str, source: "SourceSpec") -> Iterator[Row]:
    """Reads an Arrow IPC file, or a stream as `datasets` saves it."""
    import pyarrow as pa

    with _seekable(path) as file:
        try:
            with pa.memory_map(file) if isinstance(file, str) else pa.PythonFile(file) as opened:
                if opened.read(6) == b"ARROW1":
                    table = pa.ipc.open_file(opened)
                    batches = map(table.get_batch, range(table.num_record_batches))
                else:
                    opened.seek(0)
                    batches = iter(pa.ipc.open_stream(opened))
                yield from read_batches(batches, name)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"not a whole Arrow file: {_first_line(error)}", where=str(path)) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def read_batches(batches: "Iterator[pa.RecordBatch]", name: str) -> Iterator[Row]:
    """Turns batches of columns into rows, numbered from 0."""
    index = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for row in _rows_of(batch.slice(start, _BATCH)):
                where = f"{name}[{index}]"
                if not isinstance(row, RowError) and any(
                    isinstance(value, str) and len(value) > MAX_ROW for value in row.values()
                ):
                    row = _LONG
                yield Row(where, {}, row) if isinstance(row, RowError) else Row(where, row)
                index += 1


def _rows_of(batch: "pa.RecordBatch") -> list[dict[str, Any] | RowError]:
    """Converts a batch to dicts; a text that is no UTF-8 spoils its own row only."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError as error:
        if batch.num_rows == 1:
            return [RowError("not valid UTF-8", str(error))]
        return [row for index in range(batch.num_rows) for row in _rows_of(batch.slice(index, 1))]
    for name, mend in {field.name: _mender(field.type) for field in batch.schema}.items():
        if mend is not None:
            for row in rows:
                row[name] = mend(row[name])
    return rows


def _mender(kind: "pa.DataType") -> Callable[[Any], Any] | None:
    """Returns what turns a value of an Arrow type back into what was written, or None if it already is.

    A columnar file gives every object the keys of all, null where a row had none, so two tools' arguments would be
    merged: nulls inside objects are dropped. Members kept as JSON text, as `datasets` does, are parsed, nulls and all.
    """
    import pyarrow as pa

    if getattr(kind, "extension_name", "") == "arrow.json":
        return lambda value: None if value is None else json.loads(value)
    if pa.types.is_struct(kind):
        members = {field.name: _mender(field.type) or _same for field in kind}
        return lambda value: value and {key: members[key](item) for key, item in value.items() if item is not None}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        mend = _mender(kind.value_type)
        return mend and (lambda value: value and [mend(item) for item in value])
    return None


def _same(value: Any) -> Any:
    return value


READERS: dict[str, Reader] = {
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".csv": functools.partial(_read_table, delimiter=","),
    ".tsv": functools.partial(_read_table, delimiter="\t", quoting=csv.QUOTE_NONE),  # a quotation mark is a character
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_txt,
}
