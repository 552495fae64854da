"""From a ``data:`` section to the rows that a trainer reads: tokenised, mixed, packed, mapped from the disk.

Two kinds of folders are cached. ``tokens-<key>`` holds the tokens of one source, whatever the mixture it is part of;
``<key>`` holds finished rows. Changing weights, lengths or packing thus tokenises nothing again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..chat_templates import ChatTemplate, fingerprint
from .cache import get_or_build
from .dataset import DataReport, load
from .errors import DataError
from .files import hash_json
from .pack import Strategy
from .rows import Plan, Tokenised, write_rows
from .sources import content_hash
from .store import Store, StoreWriter
from .summary import PreparedReport, SourceSummary
from .tokens import Encoder, LossOn, encode_batches

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from .spec import DataSpec, Kind, SourceSpec

CACHE_VERSION = 5  # raise it whenever the same input would give other tokens or rows
ROWS_FILE = "rows.arrow"
TOKENISED: "frozenset[Kind]" = frozenset({"text", "messages", "prompt_completion"})
BATCH_ROWS = 512
BATCH_CHARACTERS = 4_000_000


@dataclass(frozen=True)
class Prepared:
    """Rows ready for a trainer.

    Attributes:
        dataset: Mapped Arrow: ``input_ids`` and ``labels`` (-100 where there is no loss), lists of int32, and
            ``seq_lengths``, the tokens of each sequence of the row, when packed.
        report: What is in it, and what had to be dropped.
        fingerprint: 16 hexadecimal digits that change with anything that could change the rows.
        cached: Whether the rows were found rather than made.
    """

    dataset: "Dataset"
    report: PreparedReport
    fingerprint: str
    cached: bool = False


def prepare(
    spec: "DataSpec",
    split: Literal["train", "eval"],
    *,
    base_dir: Path,
    tokenizer: "PreTrainedTokenizerBase",
    template: ChatTemplate | None,
    accepts: "Sequence[Kind]",
    max_length: int | None,
    packing: Strategy | None,
    loss_on: LossOn,
    cache_dir: Path,
    num_proc: int = 1,
) -> Prepared:
    """Tokenises, mixes and packs the sources of a split, or finds that it has been done.

    Training documents are mixed and shuffled as ``mix`` describes; evaluation documents all come once, in order, and
    ``tokens`` does not apply to them. ``bfd_split`` and ``wrapped`` cut long documents without losing a token, so
    ``too_long`` only applies to ``bfd`` and to rows that are not packed.

    Args:
        spec: The ``data:`` section.
        split: Which of its parts.
        base_dir: Where relative paths start, the recipe's folder.
        tokenizer: Its EOS ends text; the template must be installed already.
        template: For conversations; None if there are none.
        accepts: Kinds of rows that the stage can use, of ``text``, ``messages`` and ``prompt_completion``.
        max_length: Tokens of a row; None for no bound, without packing only.
        packing: How documents share rows; None for one document a row.
        loss_on: Which tokens of conversations and prompts carry loss; see ``tokens.Encoder``.
        cache_dir: Where results are kept. Processes may share it.
        num_proc: Processes that tokenise.

    Raises:
        DataError: A source cannot be read or split, too many rows are bad, or nothing is left.
        TemplateError: The template cannot mark the loss that is asked for.
    """
    if packing is not None and max_length is None:
        raise ValueError("packing needs max_length")
    if not set(accepts) <= TOKENISED:
        raise ValueError(f"only {', '.join(sorted(TOKENISED))} rows are tokenised here, not {accepts}")
    sources = spec.train if split == "train" else spec.eval
    if sources is None:
        raise ValueError("the recipe has no evaluation data")
    plan = _plan(spec, split, max_length, packing)
    if spec.loss_on == "last":
        if loss_on != "assistant":
            raise DataError("data.loss_on: last chooses among the assistant's turns, but here every token carries loss")
        loss_on = "completion"
    encoder = Encoder(tokenizer, template, loss_on)
    reading = _Reading(base_dir, tuple(accepts), spec.max_bad_share, encoder, cache_dir, num_proc)
    names = [_source_key(source, reading) for source in sources]

    def build(path: Path) -> PreparedReport:
        tokenised = [_tokenised(source, name, reading) for source, name in zip(sources, names, strict=True)]
        return write_rows(plan, tokenised, path, spec.max_bad_share)

    decides = {"version": CACHE_VERSION, "sources": names, "plan": asdict(plan)}
    return rows_of(sources, decides, build, cache_dir, spec.max_bad_share)


def rows_of(
    sources: "Sequence[SourceSpec]",
    decides: dict[str, Any],
    build: Callable[[Path], PreparedReport],
    cache_dir: Path,
    max_bad_share: float,
) -> Prepared:
    """Takes finished rows from the cache, or has them built there.

    Args:
        sources: Where the rows come from.
        decides: All that decides the rows, but the titles of the sources.
        build: Writes the rows to a file.
        cache_dir: Where results are kept.
        max_bad_share: The largest share of a source's rows that may be bad.

    Raises:
        DataError: Too many rows of a source are bad.
    """
    key = hash_json({**decides, "titles": [source.title for source in sources]})
    entry = get_or_build(cache_dir, key, lambda folder: build(folder / ROWS_FILE).to_dict())
    report = PreparedReport.from_dict(entry.report)
    for source in report.sources:  # again, since the allowed share is no part of the key
        _check_share(source, max_bad_share)
    return Prepared(_open_rows(entry.folder / ROWS_FILE, key), report, key, cached=not entry.built)


@dataclass(frozen=True)
class _Reading:
    """How sources are read and tokenised."""

    base_dir: Path
    accepts: "tuple[Kind, ...]"
    max_bad_share: float
    encoder: Encoder
    cache_dir: Path
    num_proc: int


def _plan(spec: "DataSpec", split: str, max_length: int | None, packing: Strategy | None) -> Plan:
    """Picks what decides the rows out of the recipe."""
    if split == "eval":
        return Plan(max_length, packing, spec.too_long, mixed=False)
    weights = None if spec.mix == "concat" else tuple(source.weight for source in spec.train)
    return Plan(max_length, packing, spec.too_long, True, weights, spec.tokens, spec.seed)


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Returns 16 hexadecimal digits of all that decides how a tokenizer turns text into ids."""
    import tokenizers

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [type(tokenizer).__name__, tokenizer.get_vocab(), repr(sorted(tokenizer.init_kwargs.items()))]
    else:
        rust = tokenizers.Tokenizer.from_str(backend.to_str())
        rust.no_truncation()  # these two follow the last call, and we use neither
        rust.no_padding()
        rules = [rust.to_str(), tokenizers.__version__]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return hash_json([rules, special, tokenizer.eos_token_id, bool(getattr(tokenizer, "split_special_tokens", False))])


def _source_key(source: "SourceSpec", reading: _Reading) -> str:
    """Names the tokens of one source; weight and name change none of them."""
    encoder, template = reading.encoder, reading.encoder.template
    return "tokens-" + hash_json(
        {
            "version": CACHE_VERSION,
            "content": content_hash(source, reading.base_dir),
            "source": source.model_dump(mode="json", exclude={"weight", "name"}),
            "tokenizer": tokenizer_hash(encoder.tokenizer),
            "template": fingerprint(template, encoder.tokenizer) if template else None,
            "loss_on": encoder.loss_on,
            "accepts": reading.accepts,
        }
    )


def _tokenised(source: "SourceSpec", key: str, reading: _Reading) -> Tokenised:
    """Reads and tokenises a source, or finds its tokens."""

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
        )
        places: list[list[str]] = []

        def batches() -> Iterator[list[dict[str, Any]]]:
            for batch in row_batches(rows):
                places.append([where for where, _ in batch])
                yield [row for _, row in batch]

        with StoreWriter(folder) as writer, progress_shown(f"tokenising {source.title}") as advance:
            for batch in encode_batches(reading.encoder, batches(), reading.num_proc):
                where = places.pop(0)
                for number, error in sorted(batch.dropped.items()):
                    ours.drop(error.reason, where[number], error.detail)
                kept = [place for number, place in enumerate(where) if number not in batch.dropped]
                writer.append(batch.ids, batch.loss, batch.lengths, kept)
                advance(len(where), len(batch.ids))
        return asdict(merged(report, ours))

    entry = get_or_build(reading.cache_dir, key, build)
    report = DataReport(**entry.report)
    report.source = source.title
    report.check(reading.max_bad_share)
    return Tokenised(Store.open(entry.folder), report)


def merged(reader: DataReport, tokeniser: DataReport) -> DataReport:
    """Adds what the tokeniser dropped to what the reader did."""
    dropped = reader.dropped | {
        reason: count + reader.dropped.get(reason, 0) for reason, count in tokeniser.dropped.items()
    }
    kept = reader.kept - sum(tokeniser.dropped.values())
    return replace(reader, kept=kept, dropped=dropped, examples=tokeniser.examples | reader.examples)


def row_batches(rows: Iterator[tuple[str, dict[str, Any]]]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """Groups rows by number, and by characters where a row can be a whole book."""
    batch: list[tuple[str, dict[str, Any]]] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row[1].get("text") or "")
        if len(batch) == BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


@contextmanager
def progress_shown(title: str) -> Iterator[Callable[[int, int], None]]:
    """Shows rows and tokens done on a terminal, and nothing elsewhere."""
    import sys

    if not sys.stderr.isatty():
        yield lambda rows, tokens: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("{task.fields[rows]:,} rows, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, rows=0, tokens=0)
        done = [0, 0]

        def advance(rows: int, tokens: int) -> None:
            done[0] += rows
            done[1] += tokens
            progress.update(task, rows=done[0], tokens=done[1])

        yield advance


def _check_share(source: SourceSummary, max_bad_share: float) -> None:
    """Stops if a source lost too many rows, those that are too long among them."""
    DataReport(source.name, None, None, source.rows, source.kept, source.dropped, source.examples).check(max_bad_share)


def _open_rows(path: Path, key: str) -> "Dataset":
    """Maps an Arrow stream; the fingerprint makes what ``datasets`` derives from it cacheable in turn."""
    from datasets import Dataset

    return Dataset(Dataset.from_file(str(path)).data, fingerprint=key)
