"""`data stats`: how many rows, turns, words and tokens there are, how long they are, and how many say the same."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from .compare_tokenizers import Named, gather_seen, keep_seen, vocabulary_table
from .dedup import Dedup, count_duplicates
from .languages import MIN_PROBABILITY, identifier, model_version
from .row_tool import Counts, Decide, Outcome, Plan, TextTool, decide_readable
from .sources import Row
from .spec import SourceSpec
from .tool_report import Spread, Table, ToolReport

CHARACTERS, BYTES, WORDS, TURNS = "characters", "bytes", "words", "turns"
_TOKENS = "tokens, "  # before a tokenizer's name
_TALKS = ("messages", "conversations", "conversation")


class StatsSpec(TextTool):
    """The arguments that need no other room than this one."""

    writes_rows: ClassVar[bool] = False

    duplicates: bool = True
    """Whether rows are counted that say what an earlier row says: exact, normalised and near-duplicates, as `dedup`
    finds them."""
    languages: bool = False
    """Whether the language of each row is told; `und` is what cannot be told, such as short texts and code."""

    def identity(self) -> Any:
        """Returns the model of languages, if there is one."""
        return model_version() if self.languages else None

    def open(self) -> list[Named]:
        """Returns the tokenizers whose tokens are counted.

        Raises:
            PosttrainError: One cannot be found or read.
        """
        return []

    def plan(self, folder: Path) -> Plan:
        """Looks for duplicates, where they are wanted; which tokens a block has goes into a file of its own."""
        opened, seen = self.open(), folder / "seen"
        rows: list[list[Any]] = []
        if self.duplicates:
            rows = count_duplicates(Dedup(sources=self.sources, columns=self.columns), folder / "hashes")

        def add(report: ToolReport, counts: Mapping[str, Counts]) -> ToolReport:
            tables = [*report.tables, *_tables(counts)]
            if opened:
                totals = {one.name: _total(counts, f"{_TOKENS}{one.name}") for one in opened}
                tables.append(vocabulary_table(opened, gather_seen(seen, opened), totals))
            if self.duplicates:
                tables.append(Table("Rows that say what an earlier row says", ["how", "rows"], rows))
            return dataclasses.replace(report, tables=tables)

        return Plan(lambda source: self._decider(source, opened, seen), add)

    def _decider(self, source: SourceSpec, opened: Sequence[Named], seen: Path) -> Decide:
        """Measures rows; those that no layout reads are named."""
        read = self.reader(source)
        identify = identifier(MIN_PROBABILITY) if self.languages else None

        def decide(rows: Sequence[Row], texts: Sequence[str]) -> list[Outcome]:
            tokens = {one.name: one.encode(texts) for one in opened}
            if rows and opened:
                keep_seen(seen, rows[0], opened, tokens)
            languages = iter(identify(texts) if identify else ())
            outcomes = []
            for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
                measures = {CHARACTERS: len(text), BYTES: len(text.encode()), WORDS: len(text.split())}
                turns = next((len(row.values[name]) for name in _TALKS if isinstance(row.values.get(name), list)), 0)
                measures |= {TURNS: turns} if turns else {}
                measures |= {f"{_TOKENS}{name}": len(ids[place]) for name, ids in tokens.items()}
                groups = {"language": next(languages)[0]} if identify else {}
                outcomes.append(Outcome(row.values, measures=measures, groups=groups))
            return outcomes

        return decide_readable(read, decide)


def _tables(counts: Mapping[str, Counts]) -> list[Table]:
    """Returns what is measured of each source, and what a tokenizer makes of its bytes and words."""
    lengths, tokens = [], []
    for title, found in counts.items():
        for name, spread in found.measures.items():
            quantiles = [round(spread.quantile(share)) for share in (0.5, 0.95)]
            lengths.append(
                [
                    title,
                    name,
                    int(spread.total),
                    round(spread.total / spread.count, 1),
                    *quantiles,
                    int(spread.most),
                ]
            )
            if name.startswith(_TOKENS):
                ratios = [_ratio(found.measures[BYTES], spread), _ratio(spread, found.measures[WORDS])]
                tokens.append([title, name.removeprefix(_TOKENS), int(spread.total), *ratios])
    note = "Median and 95th percentile to 19%, the width of a bin."
    header = ["source", "of a row", "together", "mean", "median", "95%", "largest"]
    tables = [Table("Lengths", header, lengths, note)]
    if tokens:
        header = ["source", "tokenizer", "tokens", "bytes per token", "tokens per word"]
        tables.append(Table("Tokens", header, tokens, "Words are runs of characters without white space."))
    return tables


def _ratio(one: Spread, other: Spread) -> float:
    return round(one.total / other.total, 3) if other.total else 0.0


def _total(counts: Mapping[str, Counts], name: str) -> float:
    return sum(found.measures[name].total for found in counts.values() if name in found.measures)
