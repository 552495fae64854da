"""`data explain`: why a row was left out or flagged, beside the row for which it was, if it was for one."""

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from .dedup import LEDGER as REMOVED
from .dedup import Removal
from .errors import DataError
from .files import read_jsonl_log, read_object
from .row_tool import LEFT_OUT
from .semantic import LEDGER as FLAGGED
from .semantic import Flag
from .tool import Tool
from .tool_report import EXAMPLES, REPORT

# By the titles of the reports of those that keep a ledger of their own.
_LEDGERS: Mapping[Any, tuple[str, type[Removal | Flag]]] = {
    "posttrain data dedup": (REMOVED, Removal),
    "posttrain data semantic": (FLAGGED, Flag),
}


class Explain(Tool):
    """Shows why a row went or was flagged; of a duplicate, the row for which it was, and what the two share."""

    folder: str
    """What a data tool wrote into that leaves rows out."""
    row: str
    """Where the row was, such as `train.jsonl:17`; any part of that, with the number whole. Of a row that stays, those
    are shown for which it stays."""

    def run(self, output_dir: Path) -> str:
        """Reads the ledgers; writes nothing.

        Raises:
            DataError: There is no ledger, or no such row in it.
        """
        folder = Path(self.folder)
        title = read_object(folder / REPORT).get("title")
        name, kind = _LEDGERS.get(title, (LEFT_OUT, None))  # others may lie there, of earlier calls
        if not (folder / name).is_file():
            hint = "name the folder of a data tool that leaves rows out"
            raise DataError("there is no ledger of removed rows", where=str(folder), hint=hint)
        entries = [kind(**line) for line in read_jsonl_log(folder / name)] if kind else []
        named = _named(self.row, {place for entry in entries for place in (entry.row, _other(entry))})
        found = [entry for entry in entries if entry.row in named]
        stay = sorted({_other(entry) for entry in entries} & named)
        if found and not _ENDS_IN_NUMBER.search(self.row):
            stay = []  # many rows are asked for: those that went
        if not found and not stay:
            return self._left_out(folder / LEFT_OUT, f"{len(entries):,} did: see {folder / name}")
        parts = [_show([entry.describe() for entry in found])] if found else []
        for other in stay[:EXAMPLES]:
            like = [entry.describe() for entry in entries if _other(entry) == other]
            parts.append(f"{other} stays; found to be like it: {len(like):,}\n{_show(like)}")
        if len(stay) > EXAMPLES:
            parts.append(f"and {len(stay) - EXAMPLES:,} more that stay")
        return "\n".join(parts)

    def _left_out(self, log: Path, others: str) -> str:
        """Returns why rows went that are no duplicates; ``others`` says which did, where none was left out."""
        entries = read_jsonl_log(log)
        named = _named(self.row, {entry["row"] for entry in entries})
        found = [entry for entry in entries if entry["row"] in named]
        if not found:
            what = "no such row went, and none for it"
            raise DataError(what, where=self.row, hint=f"{len(entries):,} did: see {log}" if entries else others)
        return _show([": ".join(filter(None, entry.values())) for entry in found])


_ENDS_IN_NUMBER = re.compile(r"(^|[: ])\d+$")


def _other(entry: Removal | Flag) -> str:
    """Returns where the row is that stays."""
    return entry.kept if isinstance(entry, Removal) else entry.like


def _named(name: str, places: Collection[str]) -> set[str]:
    """Returns the places that a part of them names: itself, if there is such a one; the number of a row is whole."""
    if name in places:
        return {name}
    before = r"(?<=:)" if name.isdecimal() else ""
    after = r"(?!\d)" if _ENDS_IN_NUMBER.search(name) else ""
    pattern = re.compile(before + re.escape(name) + after)
    return {place for place in places if pattern.search(place)}


def _show(described: Sequence[str]) -> str:
    more = [f"and {len(described) - EXAMPLES:,} more"] if len(described) > EXAMPLES else []
    return "\n".join([*described[:EXAMPLES], *more])
