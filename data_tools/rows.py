"""Tokenised examples to finished rows: long ones decided on, mixed and packed; ``store.py`` writes them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from .dataset import PhaseSummary, PreparedReport, SourceSummary
from .errors import DataError
from .examples import NO_LOSS
from .mix import Mixture, Phase, as_given, in_order, mix, sort_by
from .pack import Rows, Strategy, in_batches, one_per_row, pack, pack_in_order, split
from .store import Examples, Lengths, write_arrow

if TYPE_CHECKING:
    from .spec import Kind, OrderSpec

TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG = "prompt longer than max_length"
LONG_PROMPT = "longer than max_prompt_length"
SAME_ONCE_CUT = "chosen equals rejected once cut to max_length"
WRITE_TOKENS = 1 << 20
WRITE_ROWS = 1 << 14


@dataclass(frozen=True)
class RowPlan:
    """How rows are made of examples; whatever it holds is part of the key under which rows are cached.

    Attributes:
        max_length: Tokens of a row; None for no bound.
        packing: How documents share rows; None for one example a row.
        too_long: What happens to an example longer than a row, unless the packing cuts it without loss.
        mixed: Whether examples are mixed and shuffled; otherwise all come once, in order.
        weights: See ``mix.mix``.
        tokens: See ``mix.mix``.
        temperature: See ``mix.mix``.
        seed: Of the mixture and of the order of packed rows.
        kind: What the examples are; None for documents.
        max_prompt_length: Tokens of a prompt; None for no bound. Only for kind ``prompt``.
        phases: See ``mix.mix``.
        order: How the rows are ordered once they are chosen; None for shuffled ones.
        row_weights: For each source the column of its rows' weights, or None; empty where no source has one.
        by_source: Whether rows say from which sources they are.
    """

    max_length: int | None
    packing: Strategy | None
    too_long: Literal["drop", "truncate", "split", "error"]
    mixed: bool
    weights: tuple[float, ...] | None = None
    tokens: int | None = None
    seed: int = 0
    kind: "Kind | None" = None
    max_prompt_length: int | None = None
    temperature: float = 1.0
    phases: tuple[Phase, ...] = ()
    order: "OrderSpec | None" = None
    row_weights: tuple[str | None, ...] = ()
    by_source: bool = False

    @property
    def in_order(self) -> bool:
        """Whether packing keeps the order of the documents."""
        return bool(self.order or self.phases)

    def key(self) -> dict[str, Any]:
        """Returns what it says as plain values; of documents, without what only other kinds have."""
        rest = set() if self.kind else {"kind", "max_prompt_length"}
        said = asdict(self) | {"order": self.order and self.order.model_dump()}
        absent: dict[str, Any] = {
            "temperature": 1.0,
            "phases": (),
            "order": None,
            "row_weights": (),
            "by_source": False,
        }
        rest |= {name for name, nothing in absent.items() if said[name] == nothing}  # rows of older recipes stay good
        return {name: value for name, value in said.items() if name not in rest}


def write_rows(plan: RowPlan, sources: Sequence[Examples], path: Path, max_bad_share: float) -> PreparedReport:
    """Writes the rows of all sources to an Arrow stream.

    Args:
        plan: How to make them.
        sources: The examples; rows dropped here are added to the sources' reports.
        path: The file to write.
        max_bad_share: The largest share of a source's rows that may be dropped in all.

    Raises:
        DataError: Too many rows are too long, or one is that must not be; the sources' columns do not fit together;
            all training labels are the same.
    """
    types = _column_types(plan, sources)
    fitted = [_fit(source, plan) for source in sources]
    for source in sources:
        source.report.check(max_bad_share)
    # a model reads all parts of an example, and a pair's prompt twice
    read = [lengths.sum(axis=1) + (lengths[:, 0] if plan.kind == "preference" else 0) for lengths, _ in fitted]
    mixture = _mixture(plan, sources, read)
    sizes = np.empty((len(mixture.source), sources[0].parts), dtype=np.int64)
    for number, (lengths, _) in enumerate(fitted):
        mine = mixture.source == number
        sizes[mine] = lengths[mixture.document[mine]]
    if plan.kind is not None or plan.max_length is None:
        rows = [one_per_row(lengths) for lengths in sizes.T]
    elif plan.packing is None:
        rows = [split(sizes[:, 0], plan.max_length)]
    else:
        strategy = "bfd_split" if plan.packing == "bfd" and plan.too_long == "split" else plan.packing
        rows = [
            pack_in_order(sizes[:, 0], plan.max_length, strategy, mixture.begins())
            if plan.in_order
            else pack(sizes[:, 0], plan.max_length, strategy, seed=plan.seed if plan.mixed else None)
        ]
    batches = in_batches(rows, WRITE_TOKENS, most=len(rows[0]) if plan.kind is None else WRITE_ROWS)
    packed = plan.packing is not None
    loss_tokens, without, labels = write_arrow(
        path, plan.kind, batches, mixture, sources, types, packed=packed, by_source=plan.by_source
    )
    if plan.mixed and len(labels) == 1:  # answers all wanted, or all unwanted, teach nothing about the difference
        raise DataError(
            f"all {len(mixture.source)} training rows have the label {str(labels.pop()).lower()}",
            where=sources[0].report.source,
            hint="add rows with the other label; the stage learns from the difference",
        )
    summaries = tuple(
        SourceSummary.of(source.report, plan.kind, source.truncated + cut, loss, share)
        for source, (_, cut), share, loss in zip(sources, fitted, mixture.shares, loss_tokens, strict=True)
    )
    tokens = sum(share.tokens for share in mixture.shares)
    fill = rows[0].fill(plan.max_length) if plan.packing and plan.max_length else None
    order = "" if not plan.mixed or plan.phases else plan.order.sentence if plan.order else "shuffled"
    phases = _phases(mixture, rows[0])
    return PreparedReport(summaries, len(rows[0]), tokens, sum(loss_tokens), fill, without, order, phases)


def _mixture(plan: RowPlan, sources: Sequence[Examples], read: Sequence[Lengths]) -> Mixture:
    """Chooses the examples, given the tokens that a model reads for each, and puts them in order."""
    if not plan.mixed:
        return in_order(read)
    columns = plan.row_weights or [None] * len(sources)
    weights = [_weights(source, column) if column else None for source, column in zip(sources, columns, strict=True)]
    mixture = mix(
        read,
        plan.weights,
        tokens=plan.tokens,
        seed=plan.seed,
        temperature=plan.temperature,
        row_weights=weights,
        phases=plan.phases,
    )
    if plan.order is None:
        return mixture
    if plan.order.by == "given":
        return as_given(mixture)
    column = plan.order.column
    values = [source.numbers(column) for source in sources] if column else read
    return sort_by(mixture, values, descending=plan.order.descending)


def _weights(source: Examples, column: str) -> Any:
    """Returns the weights of a source's rows.

    Raises:
        DataError: One of them is negative.
    """
    weights = source.numbers(column)
    if len(negative := np.flatnonzero(weights < 0)):
        number = int(negative[0])
        where = next(source.store.where([number * source.parts]))
        raise DataError(
            f"row_weight: the column '{column}' holds {weights[number]:g}", where=where, hint="0 is the least"
        )
    return weights


def _phases(mixture: Mixture, rows: Rows) -> tuple[PhaseSummary, ...]:
    """Says of each phase what it holds and how many rows begin in it."""
    if not mixture.phases:
        return ()
    phase = np.searchsorted(mixture.begins(), rows.document[rows.offsets[:-1]], side="right") - 1
    counts = np.bincount(phase, minlength=len(mixture.phases)).tolist()
    return tuple(
        PhaseSummary(count, one.documents, one.tokens, one.target, one.share)
        for one, count in zip(mixture.phases, counts, strict=True)
    )


def _fit(source: Examples, plan: RowPlan) -> tuple[Lengths, int]:
    """Decides on long examples; returns the tokens of each part (0: not used) and how many examples were cut."""
    lengths, limit = source.lengths.copy(), plan.max_length
    prompt = lengths[:, 0].copy()
    longest = prompt + lengths[:, 1:].max(axis=1, initial=0)
    if plan.kind == "prompt":
        if plan.max_prompt_length:
            long = np.flatnonzero(longest > plan.max_prompt_length)
            _refuse(source, plan, long, longest, "data.max_prompt_length", plan.max_prompt_length)
            _drop(source, plan, lengths, long, LONG_PROMPT, longest)
        if limit:  # a prompt as long as the whole conversation may be leaves no room for an answer
            long = np.flatnonzero((longest > limit - 1) & (lengths[:, 0] > 0))
            _refuse(source, plan, long, longest, "max_length", limit)
            _drop(source, plan, lengths, long, PROMPT_TOO_LONG, longest)
        return lengths, 0
    if limit is None or plan.packing in ("bfd_split", "wrapped"):
        return lengths, 0
    long = np.flatnonzero(longest > limit)
    _refuse(source, plan, long, longest, "max_length", limit)
    if plan.too_long == "split":
        return lengths, 0
    if plan.too_long == "drop" or plan.kind == "classification":
        _drop(source, plan, lengths, long, TOO_LONG, longest)
        return lengths, 0
    if plan.kind is None:
        lengths[long] = limit
        _drop(source, plan, lengths, long[~source.store.learns(long, limit)], NO_LOSS, longest)
    else:
        lengths[long, 1:] = np.minimum(lengths[long, 1:], np.maximum(limit - prompt[long], 0)[:, None])
        _drop(source, plan, lengths, long[prompt[long] >= limit], PROMPT_TOO_LONG, prompt)
        _drop(source, plan, lengths, _alike(source, lengths, long), SAME_ONCE_CUT, longest)
    return lengths, int((lengths[long, 0] > 0).sum())


def _alike(source: Examples, lengths: Lengths, cut: Lengths) -> Lengths:
    """Finds the pairs among some examples whose answers have become the same."""
    found = []
    for number in cut[lengths[cut, 0] > 0].tolist():
        if source.parts == 3:
            one, other = (number, 1), (number, 2)
        elif source.per_row == 2:
            one, other = (number - number % 2, 1), (number - number % 2 + 1, 1)
        else:
            continue
        length = int(lengths[one])
        if length == lengths[other] and np.array_equal(source.ids(*one, length), source.ids(*other, length)):
            found.append(number)
    return np.array(found, dtype=np.int64)


def _refuse(source: Examples, plan: RowPlan, long: Lengths, tokens: Lengths, name: str, bound: int) -> None:
    """Stops if no row may be too long, or none can be split, and one is."""
    solid = plan.too_long == "split" and source.report.kind != "text"
    if len(long) and (plan.too_long == "error" or solid):
        rows = len(np.unique(long // source.per_row))
        what = f"{rows} rows are longer than {bound} tokens (the first has {tokens[long[0]]})"
        what += f", and only text can be split, not {source.report.kind}" if solid else ""
        raise DataError(
            what,
            where=next(source.store.where([int(long[0]) * source.parts])),
            hint=f"raise {name}, or set data.too_long to drop{' or truncate' if plan.kind is None else ''}",
        )


def _drop(source: Examples, plan: RowPlan, lengths: Lengths, examples: Lengths, reason: str, tokens: Lengths) -> None:
    """Takes the rows of some examples out, all that each became, and counts them in the source's report."""
    if not len(examples):
        return
    report, each = source.report, source.per_row
    rows = np.unique(examples // each)
    first = rows * each
    for number in range(each):
        lengths[first + number] = 0
    report.kept -= len(rows)
    report.dropped[reason] = report.dropped.get(reason, 0) + len(rows)
    shown = report.examples.setdefault(reason, [])
    places = source.store.where([int(number) * source.parts for number in first[: 3 - len(shown)]])
    mend = " (data.too_long: drop)" if plan.kind is None and reason == TOO_LONG else ""
    shown += [f"{at}: {max(tokens[n : n + each])} tokens{mend}" for n, at in zip(first, places, strict=False)]


def _column_types(plan: RowPlan, sources: Sequence[Examples]) -> dict[str, Any]:
    """Decides the Arrow type of each further column.

    Raises:
        DataError: A column that the trainer reads has values of several types, or is missing from some sources.
    """
    import pyarrow as pa

    found: dict[str, dict[str, str]] = {}
    for source in sources:
        for name, types in source.types.items():
            found[name] = {**types, **found.get(name, {})}
    with_margin = [source for source in sources if "margin" in source.types]
    if plan.kind == "preference" and 0 < len(with_margin) < len(sources):
        without = next(source for source in sources if "margin" not in source.types)
        raise DataError(
            f"has no margin, but {with_margin[0].report.source} has one",
            where=without.report.source,
            hint="give every source a margin (`margin: 0` is one), or rename the column with `columns:`",
        )
    arrow = {name: _arrow_type(set(types)) for name, types in found.items()}
    if plan.kind == "classification" and arrow["label"] == pa.json_():
        places = "; ".join(f"{_TYPE_WORDS.get(name, name)} at {where}" for name, where in found["label"].items())
        raise DataError(f"the labels are of more than one type: {places}", hint="make them all names, or all numbers")
    return arrow


_TYPE_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def _arrow_type(types: set[str]) -> Any:
    """Returns the Arrow type that holds some types of value; JSON if no other does."""
    import pyarrow as pa

    scalars = {"str": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}
    if types <= {"int", "float"} and "float" in types:
        return pa.float64()
    if len(types) == 1 and (name := next(iter(types))) in scalars:
        return scalars[name]
    if types == {"messages"}:
        return pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if all(name.startswith("list[") for name in types):
        inner = {name[5:-1] for name in types} - {""}
        kind = _arrow_type(inner) if inner else pa.string()
        return kind if kind == pa.json_() else pa.list_(kind)
    return pa.json_()
