"""Tokenised examples to finished rows: long ones decided on, mixed, and written to Arrow with their further columns."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .dataset import DataReport
from .errors import DataError
from .example_encoder import PARTS
from .mix import Mixture
from .pack import ranges
from .rows import TOO_LONG, Plan, list_array, order
from .store import Store
from .summary import PreparedReport, SourceSummary

if TYPE_CHECKING:
    from .spec import Kind

PROMPT_TOO_LONG = "prompt longer than max_length"
LONG_PROMPT = "longer than max_prompt_length"
SAME_ONCE_CUT = "chosen equals rejected once cut to max_length"
WRITE_TOKENS = 1 << 20
WRITE_ROWS = 1 << 14
FIELDS, ENDS = "fields.json", "fields.int64"


@dataclass(frozen=True)
class ExamplePlan(Plan):
    """How rows are made of examples; all of it is part of the key under which rows are cached.

    Attributes:
        kind: What the examples are.
        max_prompt_length: Tokens of a prompt; None for no bound. Only for kind ``prompt``.
    """

    kind: "Kind" = "preference"
    max_prompt_length: int | None = None


class FieldsWriter:
    """Appends the further columns of examples to a folder, as one JSON object for each."""

    def __init__(self, folder: Path):
        self._objects, self._ends = (folder / FIELDS).open("wb"), (folder / ENDS).open("wb")
        self._at = 0

    def append(self, fields: Sequence[str]) -> None:
        """Appends JSON objects."""
        encoded = [text.encode() for text in fields]
        ends = self._at + np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._objects.write(b"".join(encoded))
        self._ends.write(ends.astype("<i8").tobytes())
        self._at = int(ends[-1]) if len(ends) else self._at

    def __enter__(self) -> "FieldsWriter":
        return self

    def __exit__(self, *_: Any) -> None:
        self._objects.close()
        self._ends.close()


@dataclass(frozen=True)
class Examples:
    """The tokenised examples of a source.

    Attributes:
        store: Their tokens; each part of an example is a document of its own.
        parts: Parts of an example.
        per_row: Examples that each row became.
        report: What was dropped on the way to them.
        types: For each further column the types of value found, with where each was found first.
        truncated: Examples that have been cut already.
    """

    store: Store
    parts: int
    per_row: int
    report: DataReport
    types: Mapping[str, Mapping[str, str]]
    truncated: int

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each part, ``[examples, parts]``."""
        return self.store.lengths.reshape(-1, self.parts)

    def ids(self, example: int, part: int, length: int) -> NDArray[np.int32]:
        """Returns the first tokens of a part of an example."""
        start = int(self.store.starts[example * self.parts + part])
        return self.store.ids[start : start + length]

    def fields(self, examples: NDArray[np.int64]) -> list[dict[str, Any]]:
        """Reads the further columns of some examples."""
        objects, edges = self._objects
        return [json.loads(objects[edges[number] : edges[number + 1]].tobytes()) for number in examples]

    @functools.cached_property
    def _objects(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        ends = np.fromfile(self.store.folder / ENDS, dtype="<i8")
        return np.memmap(self.store.folder / FIELDS, dtype="u1", mode="r"), np.concatenate([[0], ends])


def write_examples(plan: ExamplePlan, sources: Sequence[Examples], path: Path, max_bad_share: float) -> PreparedReport:
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
    lengths = [_tokens(plan.kind, cut) for cut, _ in fitted]
    mixture = order(plan, lengths)
    if plan.kind == "unpaired" and plan.mixed:
        _check_labels(mixture, sources)
    answers = _write_arrow(plan, mixture, sources, [cut for cut, _ in fitted], types, path)
    summaries = tuple(
        SourceSummary(
            name=source.report.source,
            kind=plan.kind,
            rows=source.report.rows,
            kept=source.report.kept,
            dropped=source.report.dropped,
            examples=source.report.examples,
            truncated=source.truncated + truncated,
            loss_tokens=answered,
            unread=source.report.unread,
            turns=source.report.turns,
            literal=source.report.literal,
            **asdict(share),
        )
        for source, (_, truncated), share, answered in zip(sources, fitted, mixture.shares, answers, strict=True)
    )
    tokens = sum(summary.tokens for summary in summaries)
    return PreparedReport(summaries, len(mixture.source), tokens, sum(answers), None, 0)


def _tokens(kind: "Kind", lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts the tokens that a model reads for each example, ``[examples]``: a pair is its prompt read twice."""
    total = lengths.sum(axis=1)
    return total + lengths[:, 0] if kind == "preference" else total


def _fit(source: Examples, plan: ExamplePlan) -> tuple[NDArray[np.int64], int]:
    """Decides on long examples; returns the tokens of each part (0: not used) and how many examples were cut."""
    lengths = source.lengths.copy()
    prompt = lengths[:, 0].copy()
    longest = prompt + lengths[:, 1:].max(axis=1, initial=0)
    if plan.kind == "prompt":
        bounds = [
            (plan.max_prompt_length, LONG_PROMPT, "data.max_prompt_length"),
            (plan.max_length, PROMPT_TOO_LONG, "max_length"),
        ]
        for bound, reason, name in bounds:
            # a prompt as long as the whole conversation may be leaves no room for an answer
            long = np.flatnonzero(longest > (bound - (reason == PROMPT_TOO_LONG))) if bound else np.zeros(0, np.int64)
            long = long[lengths[long, 0] > 0]
            _refuse(source, plan, long, longest, name, f"{bound} tokens")
            _drop(source, lengths, long, reason, longest)
        return lengths, 0
    if plan.max_length is None:
        return lengths, 0
    long = np.flatnonzero(longest > plan.max_length)
    _refuse(source, plan, long, longest, "max_length", f"{plan.max_length} tokens")
    if plan.too_long != "truncate" or plan.kind == "classification":
        _drop(source, lengths, long, TOO_LONG, longest)
        return lengths, 0
    lengths[long, 1:] = np.minimum(lengths[long, 1:], np.maximum(plan.max_length - prompt[long], 0)[:, None])
    _drop(source, lengths, long[prompt[long] >= plan.max_length], PROMPT_TOO_LONG, prompt)
    _drop(source, lengths, _alike(source, lengths, long), SAME_ONCE_CUT, longest)
    return lengths, int((lengths[long, 0] > 0).sum())


def _alike(source: Examples, lengths: NDArray[np.int64], cut: NDArray[np.int64]) -> NDArray[np.int64]:
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


def _refuse(
    source: Examples, plan: Plan, long: NDArray[np.int64], tokens: NDArray[np.int64], name: str, bound: str
) -> None:
    """Stops if no row may be too long and one is."""
    if plan.too_long == "error" and len(long):
        rows = len(np.unique(long // source.per_row))
        raise DataError(
            f"{rows} rows are longer than {bound} (the first has {tokens[long[0]]})",
            where=next(source.store.where([int(long[0]) * source.parts])),
            hint=f"raise {name}, or set data.too_long to drop",
        )


def _drop(
    source: Examples, lengths: NDArray[np.int64], examples: NDArray[np.int64], reason: str, tokens: NDArray[np.int64]
) -> None:
    """Takes the rows of some examples out, all that each became, and counts them."""
    if not len(examples):
        return
    report = source.report
    rows = np.unique(examples // source.per_row)
    first = rows * source.per_row
    for number in range(source.per_row):
        lengths[first + number] = 0
    report.kept -= len(rows)
    report.dropped[reason] = report.dropped.get(reason, 0) + len(rows)
    shown = report.examples.setdefault(reason, [])
    for number, where in zip(
        first, source.store.where([int(n) * source.parts for n in first[: 3 - len(shown)]]), strict=False
    ):
        shown.append(f"{where}: {max(tokens[number : number + source.per_row])} tokens")


def _column_types(plan: ExamplePlan, sources: Sequence[Examples]) -> dict[str, Any]:
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
    if plan.kind == "classification" and (arrow["label"] == pa.json_()):
        places = "; ".join(f"{_TYPE_WORDS.get(name, name)} at {where}" for name, where in found["label"].items())
        raise DataError(f"the labels are of more than one type: {places}", hint="make them all names, or all numbers")
    return arrow


def _check_labels(mixture: Mixture, sources: Sequence[Examples]) -> None:
    """Refuses answers that are all wanted, or all unwanted, which teach nothing about the difference."""
    seen: set[bool] = set()
    for number, examples in enumerate(sources):
        documents = mixture.document[mixture.source == number]
        for begin in range(0, len(documents), WRITE_ROWS):
            seen |= {fields["label"] for fields in examples.fields(documents[begin : begin + WRITE_ROWS])}
            if len(seen) == 2:
                return
    raise DataError(
        f"all {len(mixture.source)} training rows have the label {str(seen.pop()).lower()}",
        where=sources[0].report.source,
        hint="add rows with the other label; the stage learns from the difference",
    )


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
    plan: ExamplePlan,
    mixture: Mixture,
    sources: Sequence[Examples],
    lengths: Sequence[NDArray[np.int64]],
    types: Mapping[str, Any],
    path: Path,
) -> list[int]:
    """Writes rows in batches of about a million tokens; returns the tokens of each source's answers."""
    import pyarrow as pa

    written = () if plan.kind == "prompt" else PARTS[plan.kind]
    schema = pa.schema([(name, pa.list_(pa.int32())) for name in written] + list(types.items()))
    sizes = np.empty((len(mixture.source), len(PARTS[plan.kind])), dtype=np.int64)
    for number, cut in enumerate(lengths):
        mine = mixture.source == number
        sizes[mine] = cut[mixture.document[mine]]
    ends = np.cumsum(sizes.sum(axis=1))
    begin = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
        while begin < len(sizes):
            before = int(ends[begin - 1]) if begin else 0
            end = max(begin + 1, int(np.searchsorted(ends, before + WRITE_TOKENS, side="right")))
            here = slice(begin, min(end, begin + WRITE_ROWS))
            source, document = mixture.source[here], mixture.document[here]
            columns = [_token_lists(sources, source, document, part, sizes[here, part]) for part in range(len(written))]
            columns += _field_arrays(sources, source, document, types)
            writer.write_batch(pa.record_batch(columns, schema=schema))
            begin = here.stop
    answers = sizes[:, 1:].sum(axis=1)
    return [int(answers[mixture.source == number].sum()) for number in range(len(sources))]


def _token_lists(
    sources: Sequence[Examples],
    source: NDArray[np.int64],
    document: NDArray[np.int64],
    part: int,
    sizes: NDArray[np.int64],
) -> Any:
    """Collects the tokens of one part of some examples."""
    ids = np.empty(int(sizes.sum()), dtype=np.int32)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    for number, examples in enumerate(sources):
        mine = np.flatnonzero(source == number)
        starts = examples.store.starts[document[mine] * examples.parts + part]
        ids[ranges(offsets[mine], sizes[mine])] = examples.store.ids[ranges(starts, sizes[mine])]
    return list_array(offsets, ids)


def _field_arrays(
    sources: Sequence[Examples], source: NDArray[np.int64], document: NDArray[np.int64], types: Mapping[str, Any]
) -> list[Any]:
    """Collects the further columns of some examples."""
    import pyarrow as pa

    if not types:
        return []
    values: list[dict[str, Any]] = [{}] * len(source)
    for number, examples in enumerate(sources):
        mine = np.flatnonzero(source == number)
        for place, fields in zip(mine.tolist(), examples.fields(document[mine]), strict=True):
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
