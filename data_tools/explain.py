"""`data explain`: why a row was removed or flagged, beside the row for which it was."""

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
    """Where the row was, such as `train.jsonl:17`; any part of that."""

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
        found = [entry for entry in entries if self.row == entry.row] or [e for e in entries if self.row in e.row]
        if not found:
            raise DataError("no such row went", where=self.row, hint=f"{len(entries):,} did: see {path}")
        shown = [entry.describe() for entry in found[:EXAMPLES]]
        return "\n".join(shown + ([f"and {len(found) - EXAMPLES:,} more"] if len(found) > EXAMPLES else []))
