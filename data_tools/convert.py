"""`data convert`: rows of any known or mapped layout as canonical columns, every row that is not one named."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from .conversations import ROLES
from .errors import DataError, RowError
from .row_tool import Counts, Decide, Outcome, Plan, RowTool, canonical_reader
from .sources import Row
from .spec import Kind, SourceSpec
from .tool_report import ToolReport

TRIMMED = "turns without an answer cut off the end"


class Convert(RowTool):
    """Converts rows to canonical columns: roles and keys by one name, whatever the file calls them.

    A chat that ends before an answer loses its last turns, as nothing would be learnt from them. What no column of the
    kind holds is left out, and counted.
    """

    kind: Kind | None = None
    """What the rows become; by default what their columns or mapping say. Conversations also become `prompt`, and
    single ones `prompt_completion`."""
    trim: bool = True
    """Whether turns after the last answer are cut off conversations; else such a row is left out, with its reason."""

    def plan(self, folder: Path) -> Plan:
        """Refuses a source of which nothing is left: its rows are not what they were taken for."""

        def add(report: ToolReport, counts: Mapping[str, Counts]) -> ToolReport:
            for title, found in counts.items():
                if not found.kept:
                    reason, examples = next(iter(found.reasons.examples.items()))
                    what = f"none of its {found.rows:,} rows can be converted: {examples[0].where}: {reason}"
                    raise DataError(what, where=title, hint="say what they are with `format:` or a mapping")
            return report

        return Plan(self.decider, add)

    def decider(self, source: SourceSpec) -> Decide:
        """Chooses the format by the source's first rows.

        Raises:
            DataError: No format fits, or the rows cannot become what is wanted.
        """
        unread: Counter[str] = Counter()
        canonical = canonical_reader(source, (self.kind,) if self.kind else get_args(Kind), unread)

        def convert(row: Row) -> Outcome:
            unread.clear()
            values, cut = _trimmed(row.values) if self.trim else (row.values, 0)
            try:
                made = canonical(values)
            except RowError as error:
                return Outcome(None, error.reason, error.detail)
            edits = {f"not kept: {what}": count for what, count in unread.items()}
            return Outcome(_without_none(made), edits=edits | ({TRIMMED: cut} if cut else {}))

        def decide(rows: Sequence[Row]) -> list[Outcome]:
            return [convert(row) for row in rows]

        return decide


def _trimmed(values: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Cuts the turns after the last answer off a conversation; returns how many."""
    for name in ("messages", "conversations", "conversation"):
        turns = values.get(name)
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            continue
        spoken = [ROLES.get(str(turn.get("role", turn.get("from")))) == "assistant" for turn in turns]
        if any(spoken) and (cut := spoken[::-1].index(True)):
            return values | {name: turns[:-cut]}, cut
    return values, 0


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
