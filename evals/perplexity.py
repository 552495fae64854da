"""Perplexity, bits per byte, entropy rate and vocabulary coverage of a model on a text.

How a text is scored:

- Each document is tokenised by itself, as text that holds no control token (see ``data_tools.encode``). The
  tokenizer's BOS, or its EOS where it has none (as in pretraining on EOS-joined documents), is put before it as context
  and is not scored; without either, the first token of a document has no context, is not scored, and is left out of the
  token count.
  No EOS is scored, so that figures are those of the text alone and bytes and tokens match.
- Windows of ``max_length`` tokens move on by ``stride``; a window scores only what no window before it has. Every token
  is scored exactly once, with at least ``max_length - stride`` tokens of context, or all there are.
- Bytes are those of the UTF-8 text as read, nothing is detokenised. They are counted for whole documents.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data_tools.dataset import load
from ..data_tools.encode import TextEncoder
from ..data_tools.errors import RowError
from ..data_tools.files import hash_json
from ..data_tools.mapping import as_text, compile_template
from ..data_tools.overlap import Item
from ..data_tools.sources import read_rows
from .errors import EvalError, SuiteError
from .forward import token_sums
from .heldout import content_of, is_limited
from .models import model_length
from .records import Metric, Result, parquet
from .spec import PerplexitySpec, SuiteSpec
from .stats.intervals import ratio
from .task import Checkpoint, Task
from .task_data import choose_rows

_METHOD = 2  # raise when a change here changes figures
_MIN_CLUSTERS = 8  # with fewer documents, windows stand in for them in the standard error
_MAX_EXPONENT = 700  # beyond it exp overflows: such a perplexity is left out


@dataclass(frozen=True)
class Window:
    """A stretch of one document, with the part of it that is scored.

    Attributes:
        document: Its index.
        start: The index in the document (with its prefix token) of the first token fed.
        end: One past the last token fed.
        first: The index of the first token scored; tokens ``first`` to ``end - 1`` are.
    """

    document: int
    start: int
    end: int
    first: int


@dataclass(frozen=True)
class Text(Task):
    """A perplexity text of a suite, found and hashed."""

    spec: PerplexitySpec

    is_divided = has_items = True

    def items(self) -> list[Item]:
        """Returns them, as :meth:`Task.items`."""
        return [Item(str(number), text) for number, (_, text) in enumerate(documents(self.spec))]

    def check(self, folder: Path) -> None:
        """Chooses the rows of a text that is a part of a file, as :meth:`Task.check`."""
        if self.spec.where:
            documents(self.spec)

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Measures a model on the text, as :meth:`Task.run`."""
        spec, suite, loaded = self.spec, checkpoint.suite, checkpoint.language_model(self.spec.title)
        texts = documents(spec)
        tokens = encode([content for _, content in texts], loaded.tokenizer)
        max_length = spec.max_length or suite.max_length or model_length(loaded.model)
        stride = spec.stride or max(1, max_length // 2)
        if stride >= max_length:
            raise SuiteError(f"a stride of {stride} leaves no context in windows of {max_length}", where=spec.title)
        cut = [Window(i, *part) for i, ids in enumerate(tokens) for part in windows(len(ids), max_length, stride)]
        if not cut:
            raise EvalError("the text has no token to score", where=spec.title)
        nll, entropy = score_windows(loaded.model, tokens, cut, suite.size_of_batch())
        table = _table(texts, tokens, cut, loaded.tokenizer) | {"nll": nll, "entropy": entropy}
        by_document = len(np.unique(table["document"])) >= _MIN_CLUSTERS
        metrics = sorted(figures(table, by_document=by_document), key=lambda metric: metric.name != spec.metric)
        if metrics[0].name != spec.metric:
            raise EvalError(f"the {spec.metric} is too large for a number", where=spec.title)
        notes = () if by_document else (f"fewer than {_MIN_CLUSTERS} documents, so the interval is over windows",)
        limited = is_limited(spec.source(), "text")
        if spec.where and spec.limit is not None:  # which counts the chosen rows
            limited = len(documents(spec.model_copy(update={"limit": None}))) > spec.limit
        # The table has a row for each window; sums are in nats.
        return Result(tuple(metrics), parquet(table), None, notes, is_limited=limited)


def documents(spec: PerplexitySpec) -> list[tuple[str, str]]:
    """Reads the documents of a text, each with where it stands.

    Raises:
        DataError: They cannot be read.
        SuiteError: A row lacks a column, or none is of the text.
    """
    source = spec.source()
    if not spec.where:
        return [(where, str(row["text"])) for where, row in load(source, Path.cwd(), ("text",))]
    rows = choose_rows(list(read_rows(source, Path.cwd())), spec.where, spec.path)
    text_of = compile_template(spec.text or "{{ text }}")
    try:
        texts = [(row.where, as_text(text_of(row.values), "the text")) for row in rows]
    except RowError as error:
        raise SuiteError(str(error), where=spec.title) from error
    return [(where, text) for where, text in texts if text][: spec.limit]


def define(spec: PerplexitySpec, suite: SuiteSpec) -> Text:
    """Hashes a text by its content and the settings that change its figures.

    Raises:
        SuiteError: The text cannot be found.
    """
    keys = {"split", "text", "columns", "sample_by", "limit", "max_length", "stride", "metric"}
    content = {"data": content_of(spec, suite), "spec": spec.model_dump(include=keys), "method": _METHOD}
    if spec.where:
        content["where"] = spec.where
    return Text(spec, hash_json(content | suite.model_dump(include={"max_length", "dtype"})))


def encode(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Tokenises documents, each behind the token that is its first context, if the tokenizer has one."""
    before = first_context(tokenizer)
    return [before + ids for ids in TextEncoder(tokenizer).texts(texts)]


def first_context(tokenizer: Any) -> list[int]:
    """Returns the token that a text is scored behind: BOS, or EOS where there is none; nothing where neither is."""
    prefix = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [] if prefix is None else [prefix]


def windows(length: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Cuts a document into windows that score each of its tokens but the first exactly once.

    Args:
        length: Tokens of the document, with its prefix token.
        max_length: Tokens of a window, at most.
        stride: Tokens that a window scores, at most; the first window scores all but its first token.

    Yields:
        ``(start, end, first)``: the window feeds tokens ``start`` to ``end - 1`` and scores ``first`` to ``end - 1``.
    """
    end, first = min(length, max_length), 1
    while first < length:
        yield max(0, end - max_length), end, first
        first, end = end, min(length, end + stride)


def score_windows(
    model: Any, tokens: Sequence[Sequence[int]], cut: Sequence[Window], batch_size: int
) -> tuple["np.ndarray", "np.ndarray"]:
    """Runs windows through a model.

    Returns:
        For each window the sum over its scored tokens of the negative log-likelihood, and of the entropy of the model's
        prediction, in nats, float64 ``[windows]``.
    """
    rows = [tokens[window.document][window.start : window.end] for window in cut]
    return token_sums(model, rows, [window.first - window.start for window in cut], batch_size)


def _table(
    documents: Sequence[tuple[str, str]], tokens: Sequence[Sequence[int]], cut: Sequence[Window], tokenizer: Any
) -> dict[str, Any]:
    """Returns what is known of each window before the model has spoken, by column.

    A window's bytes are its document's, shared out by scored tokens, so that they add up to the text's.
    """
    document = np.array([window.document for window in cut])
    count = np.array([window.end - window.first for window in cut], dtype=np.int64)
    sizes = np.array([len(content.encode()) for _, content in documents], dtype=np.float64)
    per_document = np.bincount(document, weights=count, minlength=len(documents))
    unknown, partial = _special_ids(tokens, tokenizer)
    scored = [tokens[window.document][window.first : window.end] for window in cut]
    return {
        "document": document,
        "where": [documents[i][0] for i in document],
        "first_token": np.array([window.first for window in cut]),
        "tokens": count,
        "bytes": sizes[document] * count / per_document[document],
        "unknown": np.array([sum(token in unknown for token in ids) for ids in scored]),
        "byte_fallback": np.array([sum(token in partial for token in ids) for ids in scored]),
    }


def _special_ids(tokens: Sequence[Sequence[int]], tokenizer: Any) -> tuple[set[int], set[int]]:
    """Returns which of the ids that occur are the unknown token, and which are bytes that are no character alone.

    The second are SentencePiece's ``<0xE2>`` pieces, and in a byte-level vocabulary pieces of characters.
    """
    used = sorted({token for ids in tokens for token in ids})
    unknown = {tokenizer.unk_token_id} if tokenizer.unk_token_id is not None else set()
    names = tokenizer.convert_ids_to_tokens(used)
    texts = tokenizer.batch_decode([[token] for token in used])
    partial = {
        token
        for token, name, text in zip(used, names, texts, strict=True)
        if (re.fullmatch(r"<0x[0-9A-F]{2}>", name or "") or "\ufffd" in text) and token not in unknown
    }
    return unknown, partial


def figures(table: dict[str, Any], *, by_document: bool) -> list[Metric]:
    """Turns the sums of windows into figures, each with its standard error over documents or windows.

    Each is a ratio of two sums over clusters (:func:`~.stats.intervals.ratio`).
    """
    columns = {key: np.asarray(table[key], dtype=np.float64) for key in table if key != "where"}
    if by_document:
        groups = np.unique(table["document"], return_inverse=True)[1]
        columns = {key: np.bincount(groups, weights=values) for key, values in columns.items()}
    clusters = len(columns["tokens"])
    bits, entropy = columns["nll"] / math.log(2), columns["entropy"] / math.log(2)
    tokens, size = columns["tokens"], columns["bytes"]
    nats, nats_error = ratio(columns["nll"], tokens)
    ratios = {
        "bits_per_byte": (bits, size),
        "bits_per_token": (bits, tokens),
        "entropy_per_token": (entropy, tokens),
        "entropy_per_byte": (entropy, size),
        "tokens_per_byte": (tokens, size),
        "unknown_rate": (columns["unknown"], tokens),
        "byte_fallback_rate": (columns["byte_fallback"], tokens),
    }
    metrics = [Metric(name, *ratio(y, x), clusters, higher_is_better=False) for name, (y, x) in ratios.items()]
    if nats < _MAX_EXPONENT:
        perplexity = math.exp(nats)
        error = None if nats_error is None else perplexity * nats_error  # d exp(u) = exp(u) du
        metrics.append(Metric("perplexity", perplexity, error, clusters, False))
    return metrics
