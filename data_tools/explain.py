"""`data explain`: why a row was removed or flagged, beside the row for which it was."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from .dedup import LEDGER as REMOVED
from .dedup import Removal
from .errors import DataError
from .files import read_jsonl_log
from .semantic import LEDGER as FLAGGED
from .semantic import Flag
from .tool import Tool
from .tool_report import EXAMPLES


class Explain(Tool):
    """Shows why a row went or was flagged: the row for which it was, how alike the two are, and what they share."""

    folder: str
    """What `data dedup` or `data semantic` wrote into."""
    row: str
    """Where the row was, such as `train.jsonl:17`; any part of that, with the number whole. Of a row that stays, those
    are shown for which it stays."""

    def run(self, output_dir: Path) -> str:
        """Reads the ledger; writes nothing.

        Raises:
            DataError: There is no ledger, or no such row in it.
        """
        ledgers = {name: Path(self.folder) / name for name in (REMOVED, FLAGGED)}
        path = next((path for path in ledgers.values() if path.is_file()), None)
        if path is None:
            hint = "name the folder of a `data dedup` or `data semantic`"
            raise DataError("there is no ledger of removed rows", where=str(ledgers[REMOVED]), hint=hint)
        kind = Removal if path.name == REMOVED else Flag
        entries = [kind(**line) for line in read_jsonl_log(path)]
        named = _named(self.row, {place for entry in entries for place in (entry.row, _other(entry))})
        found = [entry for entry in entries if entry.row in named]
        stay = sorted({_other(entry) for entry in entries} & named)
        if found and not _ENDS_IN_NUMBER.search(self.row):
            stay = []  # many rows are asked for: those that went
        if not found and not stay:
            what = "no such row went, and none for it"
            raise DataError(what, where=self.row, hint=f"{len(entries):,} did: see {path}")
        parts = [_show(found)] if found else []
        for other in stay[:EXAMPLES]:
            like = [entry for entry in entries if _other(entry) == other]
            parts.append(f"{other} stays; found to be like it: {len(like):,}\n{_show(like)}")
        if len(stay) > EXAMPLES:
            parts.append(f"and {len(stay) - EXAMPLES:,} more that stay")
        return "\n".join(parts)


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


def _show(entries: Sequence[Removal | Flag]) -> str:
    shown = [entry.describe() for entry in entries[:EXAMPLES]]
    return "\n".join(shown + ([f"and {len(entries) - EXAMPLES:,} more"] if len(entries) > EXAMPLES else []))
