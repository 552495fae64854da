"""What a prepared training set holds, and what had to be dropped on the way to it."""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class SourceSummary:
    """What became of one source.

    Attributes:
        name: Its name in reports.
        kind: The kind of its rows.
        rows: Rows read.
        kept: Rows that can be trained on.
        dropped: Rows that cannot, by reason.
        examples: Up to three dropped rows for each reason.
        truncated: Kept rows that were cut to ``max_length``.
        documents: Rows in the mixture, repetitions counted.
        tokens: Their tokens.
        loss_tokens: Those that carry loss.
        epochs: Tokens in the mixture over tokens kept.
        target: The share of the mixture that was asked for.
        share: The share that was reached.
        unread: What its rows hold that nothing reads, with the number of rows.
        turns: Rows whose text became turns of the chat template.
        literal: Rows whose text spells tokens of the chat template.
    """

    name: str
    kind: str
    rows: int
    kept: int
    dropped: dict[str, int]
    examples: dict[str, list[str]]
    truncated: int
    documents: int
    tokens: int
    loss_tokens: int
    epochs: float
    target: float
    share: float
    unread: dict[str, int] = field(default_factory=dict)
    turns: int = 0
    literal: int = 0

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the rows were read, in sentences."""
        notes = []
        if self.turns:
            notes.append(f"{self.turns:,} rows of text became turns of the chat template; `raw: true` leaves them text")
        if self.literal:
            notes.append(
                f"{self.literal:,} rows spell tokens of the chat template in their text, where they are characters and "
                "begin or end no turn; give conversations as messages"
            )
        if self.unread:
            names = [f"{name} ({count:,} rows)" for name, count in sorted(self.unread.items())]
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            notes.append(f"not read: {', '.join(names[:20])}{more}")
        return notes


@dataclass(frozen=True)
class PreparedReport:
    """What a prepared set holds.

    Attributes:
        sources: One summary for each source, in the order of the recipe.
        rows: Rows of the set: packed rows if packed, documents or pieces of them otherwise.
        tokens: Tokens in all rows.
        loss_tokens: Those that carry loss. The first of a sequence never does, since nothing predicts it.
        fill: Tokens over rows times ``max_length``; None without packing.
        rows_without_loss: Rows on which nothing is learnt; only pieces of split conversations can be such.
    """

    sources: tuple[SourceSummary, ...]
    rows: int
    tokens: int
    loss_tokens: int
    fill: float | None
    rows_without_loss: int

    @property
    def dropped(self) -> dict[str, int]:
        """Dropped rows of all sources, by reason."""
        totals: dict[str, int] = {}
        for source in self.sources:
            for reason, count in source.dropped.items():
                totals[reason] = totals.get(reason, 0) + count
        return totals

    @property
    def notes(self) -> list[str]:
        """What a user should know of how the rows of each source were read."""
        return [f"{source.name}: {note}" for source in self.sources for note in source.notes]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for ``run.json``, with the total of ``dropped``."""
        return asdict(self) | {"sources": [asdict(source) for source in self.sources], "dropped": self.dropped}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "PreparedReport":
        """Reads what ``to_dict`` gave."""
        fields: dict[str, Any] = {name: item for name, item in value.items() if name != "dropped"}
        fields["sources"] = tuple(SourceSummary(**source) for source in value["sources"])
        return cls(**fields)
