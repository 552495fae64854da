"""From a ``data:`` section to examples of preference, wanted and unwanted answers, prompts, or texts with labels.

As in ``prepare``, two kinds of folders are cached: ``examples-<key>`` holds the tokens of one source, and ``<key>``
finished rows. Changing weights or lengths thus tokenises nothing again, save texts to classify, which are cut as the
tokenizer cuts them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..chat_templates import ChatTemplate, fingerprint
from .cache import get_or_build
from .dataset import DataReport, load
from .errors import DataError
from .example_encoder import PARTS, ExampleBatch, ExampleEncoder
from .example_rows import ExamplePlan, Examples, FieldsWriter, write_examples
from .files import hash_json
from .prepare import Prepared, merged, progress_shown, row_batches, rows_of, tokenizer_hash
from .sources import content_hash
from .store import Store, StoreWriter
from .summary import PreparedReport
from .tokens import encode_batches

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .spec import DataSpec, Kind, SourceSpec

EXAMPLES_VERSION = 5  # raise it whenever the same input would give other tokens or rows


def prepare_examples(
    spec: "DataSpec",
    split: Literal["train", "eval"],
    *,
    base_dir: Path,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate | None,
    kind: "Kind",
    accepts: "Sequence[Kind]",
    max_length: int | None,
    cache_dir: Path,
    num_proc: int = 1,
) -> Prepared:
    """Tokenises and mixes the sources of a split, or finds that it has been done.

    The columns of the rows, where token ids are lists of int32:

    * ``preference``: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, and ``margin`` (float) if the sources have one;
    * ``unpaired``: ``prompt_ids``, ``completion_ids``, ``label`` (bool); a pair becomes a wanted and an unwanted row;
    * ``prompt``: ``prompt`` (text or messages) and the source's other plain columns, ``completion`` among them for
      prompt-completion rows;
    * ``classification``: ``input_ids``, ``label`` as the source has it.

    Training rows are mixed and shuffled as ``mix`` describes, each weighing the tokens that a model reads for it (a
    pair: its prompt twice); evaluation rows all come once, in order, and ``tokens`` does not apply to them.

    Args:
        spec: The ``data:`` section.
        split: Which of its parts.
        base_dir: Where relative paths start, the recipe's folder.
        tokenizer: Its EOS ends text answers; the template must be installed already.
        template: For conversations; None if there are none.
        kind: What the rows are to be.
        accepts: Kinds of rows that may become it: ``kind`` itself, and for ``unpaired`` also ``preference``.
        max_length: Tokens of prompt and answer together; for a prompt alone, which is never cut, what must leave room
            for a token. None for no bound.
        cache_dir: Where results are kept. Processes may share it.
        num_proc: Processes that tokenise.

    Raises:
        DataError: A source cannot be read, too many rows are bad or too long, nothing is left, or the labels are all
            the same (``unpaired``) or of several types (``classification``).
    """
    if kind not in PARTS or not set(accepts) <= {kind, *({"preference"} if kind == "unpaired" else ())}:
        raise ValueError(f"no {kind} examples are made here of {accepts}")
    sources = spec.train if split == "train" else spec.eval
    if sources is None:
        raise ValueError("the recipe has no evaluation data")
    plan = _plan(spec, split, kind, max_length)
    encoder = ExampleEncoder(tokenizer, template, kind, _cut_to(plan, tokenizer))
    reading = _Reading(base_dir, tuple(accepts), spec.max_bad_share, encoder, cache_dir, num_proc)
    names = [_source_key(source, reading) for source in sources]

    def build(path: Path) -> PreparedReport:
        examples = [_tokenised(source, name, reading) for source, name in zip(sources, names, strict=True)]
        return write_examples(plan, examples, path, spec.max_bad_share)

    decides = {"version": EXAMPLES_VERSION, "sources": names, "plan": asdict(plan)}
    return rows_of(sources, decides, build, cache_dir, spec.max_bad_share)


@dataclass(frozen=True)
class _Reading:
    """How sources are read and tokenised."""

    base_dir: Path
    accepts: "tuple[Kind, ...]"
    max_bad_share: float
    encoder: ExampleEncoder
    cache_dir: Path
    num_proc: int


def _plan(spec: "DataSpec", split: str, kind: "Kind", max_length: int | None) -> ExamplePlan:
    """Picks what decides the rows out of the recipe."""
    if spec.too_long == "split":
        raise DataError(f"data.too_long: split cuts text in pieces, and {kind} rows are no such text", hint="use drop")
    if spec.max_prompt_length is not None and kind != "prompt":
        raise DataError(f"data.max_prompt_length is for stages that train on prompts, not on {kind} rows")
    if spec.loss_on == "last":
        raise DataError(f"data.loss_on: last is for conversations to learn from, not for {kind} rows")
    bounds = {"kind": kind, "max_prompt_length": spec.max_prompt_length}
    if split == "eval":
        return ExamplePlan(max_length, None, spec.too_long, mixed=False, **bounds)
    weights = None if spec.mix == "concat" else tuple(source.weight for source in spec.train)
    return ExamplePlan(max_length, None, spec.too_long, True, weights, spec.tokens, spec.seed, **bounds)


def _cut_to(plan: ExamplePlan, tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Returns the tokens that texts to classify are cut to, with their special tokens, or None."""
    if plan.kind != "classification" or plan.too_long != "truncate" or plan.max_length is None:
        return None
    around = tokenizer.num_special_tokens_to_add(pair=True)
    if plan.max_length <= around:
        raise DataError(f"max_length {plan.max_length} leaves no room for text beside {around} special tokens")
    return plan.max_length


def _source_key(source: "SourceSpec", reading: _Reading) -> str:
    """Names the tokens of one source; weight and name change none of them."""
    encoder = reading.encoder
    return "examples-" + hash_json(
        {
            "version": EXAMPLES_VERSION,
            "content": content_hash(source, reading.base_dir),
            "source": source.model_dump(mode="json", exclude={"weight", "name"}),
            "tokenizer": tokenizer_hash(encoder.tokenizer),
            "template": fingerprint(encoder.template, encoder.tokenizer) if encoder.template else None,
            "kind": encoder.kind,
            "cut_to": encoder.cut_to,
            "accepts": reading.accepts,
        }
    )


def _tokenised(source: "SourceSpec", key: str, reading: _Reading) -> Examples:
    """Reads and tokenises a source, or finds its tokens."""
    parts = len(PARTS[reading.encoder.kind])

    def build(folder: Path) -> dict[str, Any]:
        report, ours = DataReport(), DataReport()
        rows = load(
            source,
            reading.base_dir,
            reading.accepts,
            template=reading.encoder.template,
            report=report,
            max_bad_share=reading.max_bad_share,
        )
        types: dict[str, dict[str, str]] = {}
        cut = 0
        with (
            StoreWriter(folder) as writer,
            FieldsWriter(folder) as fields,
            progress_shown(f"tokenising {source.title}") as advance,
        ):
            for places, batch in _encoded(reading, rows):
                for number, error in sorted(batch.dropped.items()):
                    ours.drop(error.reason, places[number], error.detail)
                for name, found in batch.types.items():
                    types[name] = {kind: places[number] for kind, number in found.items()} | types.get(name, {})
                kept = [place for number, place in enumerate(places) if number not in batch.dropped]
                repeats = batch.lengths.size // max(1, len(kept))
                where = [place for place in kept for _ in range(repeats)]
                writer.append(batch.ids, np.zeros(len(batch.ids), np.uint8), batch.lengths.ravel(), where)
                fields.append(batch.fields)
                cut += batch.cut
                advance(len(places), len(batch.ids))
        per_row = 2 if reading.encoder.kind == "unpaired" and report.kind == "preference" else 1
        return {"report": asdict(merged(report, ours)), "types": types, "per_row": per_row, "truncated": cut}

    entry = get_or_build(reading.cache_dir, key, build)
    report = DataReport(**entry.report["report"])
    report.source = source.title
    report.check(reading.max_bad_share)
    rest = {name: entry.report[name] for name in ("per_row", "types", "truncated")}
    return Examples(Store.open(entry.folder), parts, report=report, **rest)


def _encoded(reading: _Reading, rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[tuple[list[str], ExampleBatch]]:
    """Yields where the rows of a batch are, and the batch tokenised."""
    places: list[list[str]] = []

    def batches() -> Iterator[list[dict[str, Any]]]:
        for batch in row_batches(rows):
            places.append([where for where, _ in batch])
            yield [row for _, row in batch]

    for batch in encode_batches(reading.encoder, batches(), reading.num_proc):
        yield places.pop(0), batch
