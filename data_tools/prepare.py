"""From a ``data:`` section to the rows that a trainer reads: tokenised, mixed, packed, mapped from the disk.

Two kinds of folders are cached. ``tokens-<key>`` (of other kinds than documents ``examples-<key>``) holds the tokens of
one source, whatever the mixture it is part of; ``<key>`` holds finished rows. Changing weights, lengths or packing thus
tokenises nothing again, save texts to classify, which are cut as the tokenizer cuts them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat_templates import ChatTemplate, fingerprint
from .cache import get_or_build
from .dataset import NUMBERS, DataReport, PreparedReport, batched, load
from .errors import DataError
from .examples import PARTS, Encoder, LossOn, encode_batches
from .files import hash_json
from .pack import Strategy
from .progress import progress_shown
from .rows import RowPlan, write_rows
from .sources import content_hash
from .store import Examples, Store, StoreWriter

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .spec import DataSpec, Kind, SourceSpec

CACHE_VERSION = 6  # raise it whenever the same input would give other tokens or rows
ROWS_FILE = "rows.arrow"
DOCUMENTS: "frozenset[Kind]" = frozenset({"text", "messages", "prompt_completion"})


@dataclass(frozen=True)
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        dataset: Mapped Arrow, with the columns that ``prepare`` names.
        report: What is in it, and what had to be dropped.
        fingerprint: 16 hexadecimal digits that change with anything that could change the rows.
        cached: Whether the rows were found rather than made.
        contents: The hash of each source's content (:func:`~.sources.content_hash`), in the order of the recipe.
    """

    dataset: "Dataset"
    report: PreparedReport
    fingerprint: str
    cached: bool
    contents: tuple[str, ...]


def prepare(
    spec: "DataSpec",
    split: Literal["train", "eval"],
    *,
    base_dir: Path,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate | None,
    accepts: "Sequence[Kind]",
    max_length: int | None,
    cache_dir: Path,
    packing: Strategy | None = None,
    loss_on: LossOn = "assistant",
    num_proc: int = 1,
) -> Prepared:
    """Tokenises, mixes and packs the sources of a split, or finds that it has been done.

    The columns of the rows, where token ids are lists of int32:

    * documents (``text``, ``messages``, ``prompt_completion``): ``input_ids`` and ``labels`` (-100 where there is no
      loss); ``seq_lengths``, the tokens of each sequence of the row, when packed; where training rows are of several
      sources, ``sources``, the number of each piece's, and ``source_lengths``, its tokens (other kinds have
      ``source_number``, the row's);
    * ``preference``: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, and ``margin`` (float) if the sources have one;
    * ``unpaired``: ``prompt_ids``, ``completion_ids``, ``label`` (bool); a pair becomes a wanted and an unwanted row;
    * ``prompt``: ``prompt`` (text or messages) and the source's other plain columns, ``completion`` among them for
      prompt-completion rows;
    * ``classification``: ``input_ids``, ``label`` as the source has it.

    Training rows are mixed as ``mix`` describes, each weighing the tokens that a model reads for it (a pair: its prompt
    twice), and ordered as ``order`` or ``schedule`` says; evaluation rows all come once, in order, and ``tokens`` does
    not apply to them.
    ``bfd_split`` and ``wrapped`` cut long documents without losing a token, so ``too_long`` only applies to ``bfd`` and
    to rows that are not packed.

    Args:
        spec: The ``data:`` section.
        split: Which of its parts.
        base_dir: Where relative paths start, the recipe's folder.
        tokenizer: Its EOS ends text; the template must be installed already.
        template: For conversations; None if there are none.
        accepts: Kinds of rows that the stage can use: kinds of documents, or another kind, for ``unpaired`` with
            ``preference`` behind it.
        max_length: Tokens of a row, of prompt and answer together; for a prompt alone, which is never cut, what must
            leave room for a token. None for no bound, without packing only.
        cache_dir: Where results are kept. Processes may share it.
        packing: How documents share rows; None for one document a row.
        loss_on: Which tokens of conversations and prompts carry loss, in documents; see ``examples.Encoder``.
        num_proc: Processes that tokenise.

    Raises:
        DataError: A source cannot be read or split, too many rows are bad or too long, nothing is left, or the labels
            are all the same (``unpaired``) or of several types (``classification``).
        TemplateError: The template cannot mark the loss that is asked for.
    """
    from datasets import Dataset

    if packing is not None and max_length is None:
        raise ValueError("packing needs max_length")
    kind = None if set(accepts) <= DOCUMENTS else accepts[0]
    if kind not in PARTS or (kind and not set(accepts) <= {kind, "preference" if kind == "unpaired" else kind}):
        raise ValueError(f"no rows are made here of {accepts}")
    sources = spec.train if split == "train" else spec.eval
    if sources is None:
        raise ValueError("the recipe has no evaluation data")
    plan = _plan(spec, split, max_length, packing, kind)
    if kind is None and spec.loss_on == "last":
        if loss_on != "assistant":
            raise DataError("data.loss_on: last chooses among the assistant's turns, but here every token carries loss")
        loss_on = "completion"
    encoder = Encoder(tokenizer, template, loss_on, kind, _cut_to(plan, tokenizer))
    reading = _Reading(base_dir, tuple(accepts), spec.max_bad_share, encoder, cache_dir, num_proc)
    contents = tuple(content_hash(source, base_dir) for source in sources)
    columns = [_number_columns(spec, source) if split == "train" else () for source in sources]
    makes = {"tokenizer": _tokenizer_hash(tokenizer), "template": template and fingerprint(template, tokenizer)}
    names = [_source_key(*each, reading, makes) for each in zip(sources, contents, columns, strict=True)]

    def build(folder: Path) -> dict[str, Any]:
        examples = [_tokenised(*each, reading) for each in zip(sources, names, columns, strict=True)]
        return write_rows(plan, examples, folder / ROWS_FILE, spec.max_bad_share).to_dict()

    titles = [source.title for source in sources]
    key = hash_json({"version": CACHE_VERSION, "sources": names, "plan": plan.key(), "titles": titles})
    entry = get_or_build(cache_dir, key, build)
    report = PreparedReport.from_dict(entry.report)
    report.check(spec.max_bad_share)  # again, since the allowed share is no part of the key
    rows = Dataset.from_file(str(entry.folder / ROWS_FILE))
    dataset = Dataset(rows.data, fingerprint=key)  # so that what `datasets` derives from the rows can be cached in turn
    return Prepared(dataset, report, key, cached=not entry.built, contents=contents)


def _plan(
    spec: "DataSpec", split: str, max_length: int | None, packing: Strategy | None, kind: "Kind | None"
) -> RowPlan:
    """Picks what decides the rows out of the recipe."""
    if kind and spec.too_long == "split":
        raise DataError(f"data.too_long: split cuts text in pieces, and {kind} rows are no such text", hint="use drop")
    if kind not in (None, "prompt") and spec.max_prompt_length is not None:
        raise DataError(f"data.max_prompt_length is for stages that train on prompts, not on {kind} rows")
    if kind and spec.loss_on == "last":
        raise DataError(f"data.loss_on: last is for conversations to learn from, not for {kind} rows")
    bounds: Any = {"kind": kind, "max_prompt_length": spec.max_prompt_length}
    if split == "eval":
        return RowPlan(max_length, packing, spec.too_long, mixed=False, **bounds)
    weights = None if spec.mix == "concat" else tuple(source.weight for source in spec.train)
    bounds |= {"temperature": spec.temperature or 1.0, "phases": spec.phases}
    bounds["order"] = spec.order if spec.order.by != "shuffled" else None
    row_weights = tuple(source.row_weight for source in spec.train)
    bounds["row_weights"] = row_weights if any(row_weights) else ()
    bounds["by_source"] = len(spec.train) > 1
    return RowPlan(max_length, packing, spec.too_long, True, weights, spec.tokens, spec.seed, **bounds)


def _number_columns(spec: "DataSpec", source: "SourceSpec") -> tuple[str, ...]:
    """Names the columns by whose numbers the rows of a source are weighed and ordered."""
    return tuple(dict.fromkeys(column for column in (source.row_weight, spec.order.column) if column is not None))


def _cut_to(plan: RowPlan, tokenizer: "PreTrainedTokenizerBase") -> int | None:
    """Returns the tokens that texts to classify are cut to, with their special tokens, or None."""
    if plan.kind != "classification" or plan.too_long != "truncate" or plan.max_length is None:
        return None
    around = tokenizer.num_special_tokens_to_add(pair=True)
    if plan.max_length <= around:
        raise DataError(f"max_length {plan.max_length} leaves no room for text beside {around} special tokens")
    return plan.max_length


@dataclass(frozen=True)
class _Reading:
    """How sources are read and tokenised."""

    base_dir: Path
    accepts: "tuple[Kind, ...]"
    max_bad_share: float
    encoder: Encoder
    cache_dir: Path
    num_proc: int


def _source_key(
    source: "SourceSpec", content: str, columns: tuple[str, ...], reading: _Reading, makes: dict[str, Any]
) -> str:
    """Names the tokens of one source, and the columns of numbers beside them; weights and name change none of them."""
    encoder = reading.encoder
    decides = {
        "version": CACHE_VERSION,
        "content": content,
        "source": source.model_dump(mode="json", exclude={"weight", "row_weight", "name"}),
        **makes,
        "accepts": reading.accepts,
    }
    if columns:
        decides["numbers"] = columns
    if encoder.kind is None:
        return "tokens-" + hash_json(decides | {"loss_on": encoder.loss_on})
    return "examples-" + hash_json(decides | {"kind": encoder.kind, "cut_to": encoder.cut_to})


def _tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns 16 hexadecimal digits of all that decides how a tokenizer turns text into ids."""
    import tokenizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [type(tokenizer).__name__, tokenizer.get_vocab(), repr(sorted(tokenizer.init_kwargs.items()))]
    else:
        rules = [_without_lengths(backend.to_str()), tokenizers.__version__]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hash_json([rules, special, tokenizer.eos_token_id, bool(getattr(tokenizer, "split_special_tokens", False))])


def _without_lengths(text: str) -> str:
    """Returns a tokenizer's JSON without truncation and padding, which follow the last call: we use neither.

    They stand first; reading and writing the vocabulary behind them would take longer than tokenising a small source.
    """
    for key in ('"truncation":', '"padding":'):
        begin = text.index(key) + len(key)
        _, end = json.JSONDecoder().raw_decode(text, begin)
        text = text[:begin] + "null" + text[end:]
    return text


def _tokenised(source: "SourceSpec", key: str, columns: tuple[str, ...], reading: _Reading) -> Examples:
    """Reads and tokenises a source, or finds its tokens."""
    kind = reading.encoder.kind

    def build(folder: Path) -> dict[str, Any]:
        report = DataReport()
        ours = DataReport()  # filled in later than the reader's, which counts towards `limit` as it goes
        rows = load(
            source,
            reading.base_dir,
            reading.accepts,
            template=reading.encoder.template,
            report=report,
            max_bad_share=reading.max_bad_share,
            numbers=columns,
        )
        places: list[list[str]] = []
        numbers: list[list[list[float]]] = []
        types: dict[str, dict[str, str]] = {}
        cut = 0

        def batches() -> Iterator[list[dict[str, Any]]]:
            for batch in batched(rows):
                places.append([where for where, _ in batch])
                numbers.append([row.pop(NUMBERS) for _, row in batch] if columns else [])
                yield [row for _, row in batch]

        with StoreWriter(folder) as writer, progress_shown(f"tokenising {source.title}") as advance:
            for batch in encode_batches(reading.encoder, batches(), reading.num_proc):
                where = places.pop(0)
                for number, error in sorted(batch.dropped.items()):
                    ours.drop(error.reason, where[number], error.detail)
                for name, found in batch.types.items():
                    types[name] = {what: where[number] for what, number in found.items()} | types.get(name, {})
                kept = [place for number, place in enumerate(where) if number not in batch.dropped]
                repeats = batch.lengths.size // max(1, len(kept))  # parts of all examples of a row
                kept = [place for place in kept for _ in range(repeats)]
                given = [row for number, row in enumerate(numbers.pop(0)) if number not in batch.dropped]
                given = [row for row in given for _ in range(len(batch.lengths) // len(given))]
                writer.append(batch.ids, batch.loss, batch.lengths.ravel(), kept, batch.fields, given)
                cut += batch.cut
                advance(len(where), len(batch.ids))
        report.add(ours)
        per_row = 2 if kind == "unpaired" and report.kind == "preference" else 1
        return {"report": asdict(report), "types": types, "per_row": per_row, "truncated": cut}

    entry = get_or_build(reading.cache_dir, key, build)
    found = entry.report if "report" in entry.report else {"report": entry.report}  # documents of older versions
    report = DataReport(**found["report"])
    report.source = source.title
    report.check(reading.max_bad_share)
    rest: Any = {name: found[name] for name in ("per_row", "types", "truncated") if name in found}
    return Examples(Store.open(entry.folder), report, len(PARTS[kind]), columns=columns, **rest)
