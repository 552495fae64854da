"""Tokenised examples to finished rows: long ones decided on, mixed, packed and written to Arrow."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .dataset import DataReport, PreparedReport, SourceSummary
from .errors import DataError
from .examples import NO_LOSS, PARTS
from .mix import Mixture, Share, mix
from .pack import Rows, Strategy, in_batches, one_per_row, pack, split
from .store import Store

if TYPE_CHECKING:
    from .spec import Kind

TOO_LONG = "longer than max_length"
PROMPT_TOO_LONG = "prompt longer than max_length"
LONG_PROMPT = "longer than max_prompt_length"
SAME_ONCE_CUT = "chosen equals rejected once cut to max_length"
WRITE_TOKENS = 1 << 20
WRITE_ROWS = 1 << 14

Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Plan:
    """How rows are made of examples; whatever it holds is part of the key under which rows are cached.

    Attributes:
        max_length: Tokens of a row; None for no bound.
        packing: How documents share rows; None for one example a row.
        too_long: What happens to an example longer than a row, unless the packing cuts it without loss.
        mixed: Whether examples are mixed and shuffled; otherwise all come once, in order.
        weights: See ``mix.mix``.
        tokens: See ``mix.mix``.
        seed: Of the mixture and of the order of packed rows.
        kind: What the examples are; None for documents.
        max_prompt_length: Tokens of a prompt; None for no bound. Only for kind ``prompt``.
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

    def key(self) -> dict[str, Any]:
        """Returns what it says as plain values; of documents, without what only other kinds have."""
        rest = {} if self.kind else {"kind", "max_prompt_length"}
        return {name: value for name, value in asdict(self).items() if name not in rest}


@dataclass(frozen=True)
class Examples:
    """The tokenised examples of a source.

    Attributes:
        store: Their tokens; each part of an example is a document of its own.
        report: What was dropped on the way to them.
        parts: Parts of an example.
        per_row: Examples that each row became.
        types: For each further column the types of value found, with where each was found first.
        truncated: Examples that have been cut already.
    """

    store: Store
    report: DataReport
    parts: int = 1
    per_row: int = 1
    types: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    truncated: int = 0

    @property
    def lengths(self) -> Lengths:
        """Tokens of each part, ``[examples, parts]``."""
        return self.store.lengths.reshape(-1, self.parts)

    def ids(self, example: int, part: int, length: int) -> NDArray[np.int32]:
        """Returns the first tokens of a part of an example."""
        start = int(self.store.starts[example * self.parts + part])
        return self.store.ids[start : start + length]


def write_rows(plan: Plan, sources: Sequence[Examples], path: Path, max_bad_share: float) -> PreparedReport:
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
    mixture = _order(plan, [_tokens(plan, lengths) for lengths, _ in fitted])
    sizes = np.empty((len(mixture.source), sources[0].parts), dtype=np.int64)
    for number, (lengths, _) in enumerate(fitted):
        mine = mixture.source == number
        sizes[mine] = lengths[mixture.document[mine]]
    rows = [_lay_out(plan, sizes[:, 0])] if plan.kind is None else [_whole(lengths) for lengths in sizes.T]
    batches = in_batches(rows, WRITE_TOKENS, most=len(rows[0]) if plan.kind is None else WRITE_ROWS)
    loss_tokens, without = _write_arrow(plan, batches, mixture, sources, types, path)
    summaries = tuple(
        SourceSummary.of(source.report, plan.kind, source.truncated + cut, loss, share)
        for source, (_, cut), share, loss in zip(sources, fitted, mixture.shares, loss_tokens, strict=True)
    )
    tokens = sum(share.tokens for share in mixture.shares)
    fill = rows[0].fill(plan.max_length) if plan.packing and plan.max_length else None
    return PreparedReport(summaries, len(rows[0]), tokens, sum(loss_tokens), fill, without)


def _tokens(plan: Plan, lengths: Lengths) -> Lengths:
    """Counts the tokens that a model reads for each example, ``[examples]``: a pair is its prompt read twice."""
    total = lengths.sum(axis=1)
    return total + lengths[:, 0] if plan.kind == "preference" else total


def _fit(source: Examples, plan: Plan) -> tuple[Lengths, int]:
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


def _refuse(source: Examples, plan: Plan, long: Lengths, tokens: Lengths, name: str, bound: int) -> None:
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


def _drop(source: Examples, plan: Plan, lengths: Lengths, examples: Lengths, reason: str, tokens: Lengths) -> None:
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


def _order(plan: Plan, lengths: Sequence[Lengths]) -> Mixture:
    """Mixes training examples; takes evaluation examples as they come, those of no length left out."""
    if plan.mixed:
        return mix(lengths, plan.weights, tokens=plan.tokens, seed=plan.seed)
    kept = [np.flatnonzero(source) for source in lengths]
    source = np.repeat(np.arange(len(kept)), [len(documents) for documents in kept])
    totals = [int(source.sum()) for source in lengths]
    shares = [total / sum(totals) for total in totals]
    return Mixture(
        source,
        np.concatenate(kept),
        tuple(Share(len(k), t, 1.0, s, s) for k, t, s in zip(kept, totals, shares, strict=True)),
    )


def _lay_out(plan: Plan, lengths: Lengths) -> Rows:
    """Makes rows of the documents of a mixture."""
    if plan.packing is None:
        return one_per_row(lengths) if plan.max_length is None else split(lengths, plan.max_length)
    assert plan.max_length is not None
    strategy = "bfd_split" if plan.packing == "bfd" and plan.too_long == "split" else plan.packing
    rows = pack(lengths, plan.max_length, strategy)
    if plan.mixed and not rows.joined:  # packing has sorted by length; a trainer may read in order
        rows = rows.take(np.random.default_rng([plan.seed, len(rows)]).permutation(len(rows)))
    return rows


def _whole(lengths: Lengths) -> Rows:
    """Makes a row of one part of each example of a mixture."""
    numbers = np.arange(len(lengths) + 1)
    return Rows(numbers[:-1], np.zeros_like(lengths), lengths, numbers)


def _column_types(plan: Plan, sources: Sequence[Examples]) -> dict[str, Any]:
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


def _write_arrow(
    plan: Plan,
    batches: Iterable[list[Rows]],
    mixture: Mixture,
    sources: Sequence[Examples],
    types: Mapping[str, Any],
    path: Path,
) -> tuple[list[int], int]:
    """Writes batches of rows, each a list of the rows of every part of the examples.

    Returns:
        For each source its tokens that carry loss, of documents, or else those of its answers; and how many documents
        carry none.

    Raises:
        DataError: All training labels are the same.
    """
    import pyarrow as pa

    lists = PARTS[plan.kind] if plan.kind != "prompt" else ()  # prompts are tokenised again where they are answered
    if plan.kind is None:
        lists += ("labels", "seq_lengths") if plan.packing else ("labels",)
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in lists] + list(types.items()))
    loss_tokens = np.zeros(len(sources), dtype=np.int64)
    labels: set[bool] = set()  # answers all wanted, or all unwanted, teach nothing about the difference
    without = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        for here in batches:
            owners = [mixture.source[part.document] for part in here]
            if plan.kind is None:
                columns, with_loss = _document_columns(here[0], mixture, sources)
                loss_tokens += np.bincount(np.repeat(owners[0], here[0].length)[with_loss], minlength=len(sources))
                starts = np.cumsum(here[0].row_lengths()) - here[0].row_lengths()
                without += int((np.add.reduceat(with_loss, starts, dtype=np.int64) == 0).sum())
            else:
                columns = [
                    _lists(part.length, _gather(part, number, mixture, sources, "ids"))
                    for number, part in enumerate(here[: len(lists)])
                ]
                for part, owner in zip(here[1:], owners[1:], strict=True):
                    np.add.at(loss_tokens, owner, part.length)
                columns += _field_arrays(sources, owners[0], mixture.document[here[0].document], types)
                labels |= set(columns[-1].to_pylist()) if plan.kind == "unpaired" else set()
            writer.write_batch(pa.record_batch(columns[: len(schema)], schema=schema))
    if plan.mixed and len(labels) == 1:
        raise DataError(
            f"all {len(mixture.source)} training rows have the label {str(labels.pop()).lower()}",
            where=sources[0].report.source,
            hint="add rows with the other label; the stage learns from the difference",
        )
    return loss_tokens.tolist(), without


def _document_columns(part: Rows, mixture: Mixture, sources: Sequence[Examples]) -> tuple[list[Any], NDArray[np.bool_]]:
    """Makes ``input_ids``, ``labels`` and ``seq_lengths`` of some rows; also says which tokens carry loss."""
    sequences = part.row_lengths() if part.joined else part.length
    per_row = np.ones(len(part), dtype=np.int64) if part.joined else np.diff(part.offsets)
    ids = _gather(part, 0, mixture, sources, "ids")
    with_loss = _gather(part, 0, mixture, sources, "loss").astype(bool)
    with_loss[np.cumsum(sequences) - sequences] = False  # what precedes the first token is another sequence
    labels = np.where(with_loss, ids, np.int32(-100))
    lists = [_lists(part.row_lengths(), values) for values in (ids, labels)]
    return [*lists, _lists(per_row, sequences.astype(np.int32))], with_loss


def _gather(
    part: Rows, number: int, mixture: Mixture, sources: Sequence[Examples], column: Literal["ids", "loss"]
) -> Any:
    """Collects ids or loss of the tokens of one part of the examples of some rows, ``[tokens]``."""
    values = np.empty(int(part.length.sum()), dtype=np.int32)
    owners, documents = mixture.source[part.document], mixture.document[part.document]
    for owner, source in enumerate(sources):
        mine = owners == owner
        there = source.store.places(documents[mine] * source.parts + number, part.start[mine], part.length[mine])
        values[np.repeat(mine, part.length)] = getattr(source.store, column)[there]
    return values


def _lists(lengths: Lengths, values: NDArray[np.int32]) -> Any:
    """Makes an Arrow column of lists."""
    import pyarrow as pa

    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))


def _field_arrays(
    sources: Sequence[Examples], owner: Lengths, document: Lengths, types: Mapping[str, Any]
) -> list[Any]:
    """Collects the further columns of some examples."""
    import pyarrow as pa

    if not types:
        return []
    values: list[dict[str, Any]] = [{}] * len(owner)
    for number, examples in enumerate(sources):
        mine = np.flatnonzero(owner == number)
        for place, fields in zip(mine.tolist(), examples.store.fields(document[mine]), strict=True):
            values[place] = fields
    columns = []
    for name, kind in types.items():
        column = [fields.get(name) for fields in values]
        if kind == pa.json_():
            texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in column]
            columns.append(pa.ExtensionArray.from_storage(kind, pa.array(texts, pa.string())))
        else:
            columns.append(pa.array(column, kind))
    return columns
