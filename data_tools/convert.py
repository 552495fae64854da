"""`data convert`: rows of any known or mapped layout as canonical columns, every row that is not one named.

A share of the rows can be held out. They are split by cluster: near-duplicates and rows of one prompt stand on one
side, so that no held-out row has been seen in other words.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import numpy as np
from pydantic import Field, NonNegativeInt

from .conversations import ROLES
from .dedup import Dedup, RowClusters, cluster_rows
from .errors import DataError
from .formats import choose
from .ngrams import mix_bits
from .row_tool import (
    Counts,
    Decide,
    Outcome,
    Plan,
    RowTool,
    canonical_reader,
    canonical_text,
    decide_readable,
    first_rows,
)
from .sources import Row
from .spec import FormatName, Kind, SourceSpec
from .tool_report import Table, ToolReport, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRIMMED = "turns without an answer cut off the end"
# Layouts whose conversation has what is learnt; of others, and of a mapping, it can be the prompt alone.
_LEARNT_FROM: tuple[FormatName, ...] = ("messages", "sharegpt", "unpaired")


class Convert(RowTool):
    """Converts rows to canonical columns: roles and keys by one name, whatever the file calls them.

    A chat that ends before an answer loses its last turns, as nothing would be learnt from them; a prompt, of an answer
    in a column of its own too, keeps them. What no column of the kind holds is left out, and counted. With `held_out`,
    rows go to `train/` and `validation/`, the two splits of the folder.
    """

    kind: Kind | None = None
    """What the rows become; by default what their columns or mapping say. Conversations also become `prompt`, and
    single ones `prompt_completion`."""
    trim: bool = True
    """Whether turns after the last answer are cut off conversations with answers; else such a row is left out, with its
    reason."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of each source's rows that is held out, such as .02. Near-duplicates, as `dedup` finds them, and rows
    of one prompt are not parted."""
    seed: NonNegativeInt = 0
    """Decides which rows are held out."""

    @property
    def folders(self) -> tuple[str, str] | None:
        """The two splits of the folder, if rows are held out."""
        return ("train", "validation") if self.held_out else None

    def plan(self, folder: Path) -> Plan:
        """Decides which rows are held out, and refuses a source of which nothing is left.

        Raises:
            DataError: No rows can be held out.
        """
        apart: list[set[str]] = [set() for _ in self.sources]
        tables: list[Table] = []
        if self.held_out:
            clusters = self._clusters(folder / "hashes")
            chosen = choose_heldout(clusters, self.held_out, self.seed)
            if not chosen.any():
                hint = "a larger share; rows that are alike, or of one prompt, are not parted"
                raise DataError(f"no rows can be held out at a share of {self.held_out:g}", where="held_out", hint=hint)
            for number, source in enumerate(self.sources):
                if chosen[clusters.sources == number].all():
                    what = f"a share of {self.held_out:g} leaves no row to train on"
                    raise DataError(what, where=source.title, hint="a smaller share")
            apart = clusters.places(chosen)
            tables.append(self._table(clusters, chosen))

        def decider(source: SourceSpec) -> Decide:
            mine = apart[self.number_of(source)]
            decide = self.decider(source)

            def decide_and_part(rows: Sequence[Row]) -> list[Outcome]:
                outcomes = zip(rows, decide(rows), strict=True)
                return [made._replace(held_out=row.where in mine) for row, made in outcomes]

            return decide_and_part if mine else decide

        def add(report: ToolReport, counts: Mapping[str, Counts]) -> ToolReport:
            for title, found in counts.items():
                if not found.kept:
                    reason, examples = next(iter(found.reasons.examples.items()))
                    what = f"none of its {found.rows:,} rows can be converted: {examples[0].where}: {reason}"
                    raise DataError(what, where=title, hint="say what they are with `format:` or a mapping")
            return dataclasses.replace(
                report,
                tables=[*report.tables, *tables],
            )

        return Plan(decider, add)

    def _clusters(self, folder: Path) -> RowClusters:
        def reader(source: SourceSpec, text_of: Callable[[Mapping[str, Any]], str]) -> Callable[[Row], str]:
            canonical = self._canonical(source)
            return lambda row: text_of(canonical(row)[0])

        reads, prompts = ([reader(one, text_of) for one in self.sources] for text_of in (canonical_text, prompt_text))
        return cluster_rows(Dedup(sources=self.sources), reads, prompts, folder)

    def _table(self, clusters: RowClusters, chosen: "NDArray[np.bool_]") -> Table:
        """Returns how many rows of each source are held out, and how many of those have others like them."""
        shared = np.bincount(clusters.labels)[clusters.labels] > 1
        rows = []
        for number, source in enumerate(self.sources):
            mine = clusters.sources == number
            held = int((mine & chosen).sum())
            rows.append([source.title, int(mine.sum()), held, percent(held, mine.sum()), int((mine & shared).sum())])
        largest = int(np.bincount(clusters.labels).max())
        note = (
            "Rows are alike if one is a near-duplicate of the other (at least 80% of their word 5-grams in common; 99% "
            f"of pairs so alike are found) or if they answer one prompt; the largest group has {largest:,} rows. A "
            "group is held out whole or not at all, so that large ones stay in the training set."
        )
        header = ["source", "rows", "held out", "share", "with others alike"]
        return Table("Held out", header, rows, note)

    def _canonical(
        self, source: SourceSpec, unread: "Counter[str] | None" = None
    ) -> Callable[[Row], tuple[dict[str, Any], int]]:
        """Returns what converts a row of a source, and says how many turns were cut; it raises RowError."""
        kinds = (self.kind,) if self.kind else get_args(Kind)
        canonical = canonical_reader(source, kinds, unread)
        name, kind = choose(source, first_rows(source), kinds)
        trims = self.trim and name in _LEARNT_FROM and kind != "prompt"

        def convert(row: Row) -> tuple[dict[str, Any], int]:
            values, cut = _trimmed(row.values) if trims else (row.values, 0)
            return {name: value for name, value in canonical(values).items() if value is not None}, cut

        return convert

    def decider(self, source: SourceSpec) -> Decide:
        """Chooses the format by the source's first rows.

        Raises:
            DataError: No format fits, or the rows cannot become what is wanted.
        """
        unread: Counter[str] = Counter()
        canonical = self._canonical(source, unread)

        def convert(row: Row) -> Outcome:
            unread.clear()
            made, cut = canonical(row)
            edits = {f"not kept: {what}": count for what, count in unread.items()}
            return Outcome(made, edits=edits | ({TRIMMED: cut} if cut else {}))

        return decide_readable(convert, lambda _, outcomes: outcomes)


def prompt_text(values: Mapping[str, Any]) -> str:
    """Returns what a row of canonical columns says up to its first answer; nothing of one that has no prompt."""
    talk = values.get("messages", values.get("prompt", ""))
    if isinstance(talk, str):
        return talk
    answer = next((place for place, turn in enumerate(talk) if turn["role"] == "assistant"), len(talk))
    return canonical_text({"messages": talk[:answer]})


def choose_heldout(clusters: RowClusters, share: float, seed: int) -> "NDArray[np.bool_]":
    """Chooses whole clusters, in an order drawn from a seed and from what they say, until each source gave its share.

    Returns:
        Whether each row is held out, shape (rows,). No source gives more than its share, rounded.
    """
    count = int(clusters.labels.max(initial=-1)) + 1
    first = np.full(count, np.iinfo(np.uint64).max)
    np.minimum.at(first, clusters.labels, mix_bits(clusters.hashes ^ mix_bits(np.array([seed + 1], np.uint64))))
    members = np.argsort(clusters.labels, kind="stable")
    bounds = np.searchsorted(clusters.labels[members], np.arange(count + 1))
    wanted = np.rint(share * np.bincount(clusters.sources)).astype(np.int64)
    taken = np.zeros_like(wanted)
    chosen = np.zeros(len(clusters.labels), bool)
    for cluster in np.argsort(first, kind="stable"):
        if (taken == wanted).all():
            break
        rows = members[bounds[cluster] : bounds[cluster + 1]]
        with_it = taken + np.bincount(clusters.sources[rows], minlength=len(wanted))
        if (with_it <= wanted).all():
            taken, chosen[rows] = with_it, True
    return chosen


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
