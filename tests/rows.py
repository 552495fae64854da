"""Files of JSON Lines, as tests write and read them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_rows(path: Path, rows: Iterable[Any]) -> str:
    """Writes a row a line; one that is a text stays as it is, be it JSON or not."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def write_texts(path: Path, texts: Iterable[Any]) -> str:
    """Writes texts as rows of a column ``text``; one that is a row stays one."""
    return write_rows(path, [{"text": text} if isinstance(text, str) else text for text in texts])


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Reads what is a row a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]
