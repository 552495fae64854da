"""The data tools that need models' tokenizers: they are compared, and extended with the models."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeInt

from ..chat_templates.errors import InputError
from ..data_tools.compare_tokenizers import CompareTokenizersSpec, Named, show_pieces
from ..data_tools.errors import DataError, RowError
from ..data_tools.extend_tokenizer import EXTENSION, Extension, count_words, extend, read_backend, require_bpe
from ..data_tools.files import explain_full_disk, locked, write_json
from ..data_tools.spec import Share
from ..data_tools.tokenizer import hash_place, texts_of_sources
from ..data_tools.tool import Sources, Tool
from ..data_tools.tool_report import PAGE, Table, ToolReport, percent
from .errors import RunError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from ..evals.models import LoadedModel

_SHOWN = 50  # new tokens that the page lists
_MAX_LENGTH = 1024  # tokens that a model reads at once where bits per byte are measured


class CompareTokenizers(CompareTokenizersSpec):
    """Compares tokenizers on rows: tokens, bytes per token, tokens per word, vocabulary used, and what they lose.

    Numbers, code and odd characters are shown as each cuts them. Writes ``report.json`` and ``report.html``.
    """

    def open(self) -> list[Named]:
        """Loads the tokenizers, each by a name as short as tells them apart.

        Raises:
            PosttrainError: One cannot be found or read.
        """
        return load_tokenizers(self.tokenizers)

    def identity(self) -> Any:
        """Returns the hashes of the tokenizers' files, and what else the figures depend on."""
        return [super().identity(), *tokenizer_hashes(self.tokenizers)]


def load_tokenizers(names: Sequence[str]) -> list[Named]:
    """Loads the tokenizers of runs, folders or Hub ids; a folder is called by its own name, where no two have it.

    Raises:
        PosttrainError: One cannot be found or read.
    """
    from ..evals.models import load_tokenizer

    short = [Path(name).resolve().name if Path(name).is_dir() else name for name in names]
    shown = [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]
    return [Named(title, load_tokenizer(str(_folder(name)))[0]) for title, name in zip(shown, names, strict=True)]


def tokenizer_hashes(names: Sequence[str]) -> list[str]:
    """Returns the hashes of the tokenizers' files."""
    from ..evals.checkpoints import tokenizer_hash

    return [tokenizer_hash(_folder(name)) for name in names]


def _folder(name: str) -> Path:
    """Returns where a tokenizer is: in a folder of its own, as `data tokenizer` writes it, or beside a model."""
    from ..evals.runs import locate

    alone = Path(name)
    return alone if (alone / "tokenizer.json").is_file() else locate(name)


class ExtendTokenizer(Tool):
    """Extends a model's tokenizer by merges learnt on rows, and gives the model rows for the new tokens.

    Writes a whole model folder, which any recipe trains, with ``report.json`` and ``report.html``. The new rows are the
    means of those of the old tokens that they are made of; until they are trained, the model knows little of them.
    """

    sources: Sources
    """What to learn from: every text, prompt, completion and message of the rows. A part is held out, by the hash of
    the text, and tells what was gained."""
    model: str
    """A run, a folder or a Hub id, with a byte-level or SentencePiece BPE tokenizer."""
    reference: Sources | None = None
    """Rows of what the model is to stay good at; the extension is refused if it costs tokens on them."""
    new_tokens: Annotated[int, Field(gt=0, le=1_000_000)] = 1000
    """Tokens to add, at most."""
    min_frequency: Annotated[int, Field(ge=2)] = 20
    """How often a pair of tokens must occur to be joined: a token that is seen less often is hardly learnt."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """The share of the texts that is held out."""
    min_gain: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """The share of the tokens of held-out texts that must be saved at least; less is refused."""
    measure: NonNegativeInt = 16
    """How many held-out texts the model is asked for their bits per byte before and after; 0 for none."""
    max_bytes: Annotated[int, Field(gt=0, le=2**31 - 1)] = 2**28
    """Bytes of text to learn from, at most. Of more, texts are chosen by their hash."""
    max_bad_share: Share = 0.02
    """The largest share of a source's rows that may be unusable."""

    def run(self, output_dir: Path) -> str:
        """Learns the merges, proves that they cost no tokens, and writes the model.

        Raises:
            DataError: The tokenizer cannot be extended, the rows cannot be read, or there is too little to gain.
            InputError: The folder holds another model, or the model is an adapter or quantised.
            PosttrainError: The model cannot be loaded, or the folder cannot be written.
        """
        work = output_dir / ".work"
        with locked(output_dir / ".lock"), explain_full_disk(output_dir):
            shutil.rmtree(work, ignore_errors=True)
            try:
                return self._run(output_dir, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)

    def _run(self, output_dir: Path, work: Path) -> str:
        from ..evals.models import load_language_model, load_tokenizer
        from ..evals.runs import locate

        folder = locate(self.model)
        _refuse(folder, output_dir)
        before = Named("before", load_tokenizer(str(folder))[0])
        learnt, held_out = self._texts()
        extension = _learn(before, learnt, self.new_tokens, self.min_frequency, str(folder))
        after = _extended(before, extension, work / "tokenizer")
        reference = list(texts_of_sources(self.reference, self.max_bad_share)) if self.reference else []
        costs = {
            "held-out texts": token_cost(before, after, held_out),
            "texts learnt from": token_cost(before, after, learnt),
        }
        costs |= {"reference": token_cost(before, after, reference)} if reference else {}
        refuse_costs(costs, self.min_gain)
        loaded = load_language_model(str(folder))
        if getattr(loaded.model.config, "quantization_config", None) is not None:
            raise InputError("the model is quantised; its embeddings cannot grow", where=self.model)
        measured = held_out[: self.measure]
        bits = {"before": _bits_per_byte(loaded, measured)} if measured else {}
        parameters = sum(weight.numel() for weight in loaded.model.parameters())
        add_rows(loaded.model, extension.first, extension.pieces)
        grown = replace(loaded, tokenizer=after.tokenizer)
        bits |= {"after": _bits_per_byte(grown, measured)} if measured else {}
        added = sum(weight.numel() for weight in loaded.model.parameters()) - parameters
        _write(grown, extension, work, output_dir)
        report = self._report(extension, costs, bits, (parameters, added), after, held_out)
        report.write(output_dir)
        return f"{report.as_text()}\n{output_dir / PAGE}"

    def _texts(self) -> tuple[list[str], list[str]]:
        """Returns the texts to learn from and those held out."""
        total = sum(len(text.encode()) for text in texts_of_sources(self.sources, self.max_bad_share))
        share = min(1.0, self.max_bytes / max(total, 1))
        learnt, held_out = [], []
        for text in dict.fromkeys(texts_of_sources(self.sources, self.max_bad_share)):
            place = hash_place(text.encode())
            if place < share:
                (held_out if place < self.held_out * share else learnt).append(text)
        for what, texts in (("to learn from", learnt), ("held out", held_out)):
            if not texts:
                raise DataError(f"none of the texts is {what}", hint="give more rows, or another `held_out`")
        return learnt, held_out

    def _report(
        self,
        extension: Extension,
        costs: "Mapping[str, TokenCost]",
        bits: Mapping[str, float],
        parameters: tuple[int, int],
        after: Named,
        held_out: Sequence[str],
    ) -> ToolReport:
        uses = [0] * len(extension.tokens)
        for ids in after.encode(held_out):
            for token in ids:
                if token >= extension.first:
                    uses[token - extension.first] += 1
        seen, new = sum(map(bool, uses)), len(uses)
        gain = costs["held-out texts"]
        before, added = parameters
        summary = [
            f"{new:,} new tokens behind {extension.first:,}: {gain.before:,} tokens of held-out texts become "
            f"{gain.after:,} ({100 * gain.change:+.1f}%)",
            f"{percent(seen, new)} of the new tokens occur in held-out texts, together {sum(uses):,} times",
            f"{added:,} parameters more ({100 * added / before:.1f}%)",
        ]
        if bits:
            summary.append(
                f"Bits per byte of {min(self.measure, len(held_out))} held-out texts, before any training: "
                f"{bits['before']:.3f} with the old tokens, {bits['after']:.3f} with the new ones: train it"
            )
        cost_table = Table(
            "Tokens",
            ["texts", "bytes", "before", "after", "change"],
            [[what, one.bytes, one.before, one.after, f"{100 * one.change:+.2f}%"] for what, one in costs.items()],
            "No text has more tokens than before: each was looked at.",
        )
        order = sorted(range(new), key=lambda place: (-uses[place] * (len(extension.pieces[place]) - 1), place))
        listed = [
            [
                show_pieces([after.decode([extension.first + place])]),
                show_pieces([after.decode([piece]) for piece in extension.pieces[place]]),
                uses[place],
                uses[place] * (len(extension.pieces[place]) - 1),
            ]
            for place in order[:_SHOWN]
        ]
        header = ["token", "made of", "in held-out texts", "tokens saved"]
        tokens_table = Table(f"The {len(listed)} new tokens that save most", header, listed)
        more = {"bits_per_byte": dict(bits), "first_new_token": extension.first, "new_tokens": new}
        arguments = self.model_dump(mode="json")
        title = "posttrain data extend_tokenizer"
        return ToolReport(title, arguments, summary, [cost_table, tokens_table], more=more, printed=[cost_table])


@dataclass(frozen=True)
class TokenCost:
    """What texts cost in tokens.

    Attributes:
        bytes: Of the texts.
        before: Tokens by the old tokenizer.
        after: By the new one.
        dearer: The first text that has more tokens than before; None if none has.
        lost: The first text that does not come back as it did; None if all do.
    """

    bytes: int
    before: int
    after: int
    dearer: str | None
    lost: str | None

    @property
    def change(self) -> float:
        """The share of the tokens that is added, or saved, if it is below zero."""
        return (self.after - self.before) / self.before if self.before else 0.0


def token_cost(before: Named, after: Named, texts: Sequence[str]) -> TokenCost:
    """Counts the tokens of texts under two tokenizers, and looks whether each comes back from the new tokens too."""
    old, new = before.encode(texts), after.encode(texts)
    triples = list(zip(texts, old, new, strict=True))
    dearer = next((text for text, one, other in triples if len(other) > len(one)), None)
    lost = next((text for text, one, other in triples if before.decode(one) != after.decode(other)), None)
    size = sum(len(text.encode()) for text in texts)
    return TokenCost(size, sum(map(len, old)), sum(map(len, new)), dearer, lost)


def refuse_costs(costs: Mapping[str, TokenCost], min_gain: float) -> None:
    """Refuses an extension that costs tokens, loses text, or gains too little on held-out texts.

    Raises:
        DataError: With the figures.
    """
    for what, cost in costs.items():
        if cost.lost is not None:
            raise DataError(f"a text would not come back from its tokens: {cost.lost[:60]!r}", where=what)
        if cost.dearer is not None:
            raise DataError(
                f"the new tokens cost tokens, {cost.before:,} become {cost.after:,}: more in {cost.dearer[:60]!r}",
                where=what,
            )
    gain = costs["held-out texts"]
    if -gain.change < min_gain:
        raise DataError(
            f"{gain.before:,} tokens would become {gain.after:,}: {abs(100 * gain.change):.1f}% saved, of at least "
            f"{100 * min_gain:.1f}% wanted",
            where="held-out texts",
            hint="keep the tokenizer as it is, or give more rows or new_tokens, or a lower min_gain",
        )


def _refuse(folder: Path, output_dir: Path) -> None:
    """Refuses what cannot be extended, and to write over a model."""
    from ..evals.models import ADAPTER

    if (folder / ADAPTER).is_file():
        hint = "merge the adapter first: posttrain merge"
        raise InputError("is an adapter, whose base has the embeddings", where=str(folder), hint=hint)
    if (output_dir / "config.json").exists() and not (output_dir / EXTENSION).exists():
        raise InputError("holds another model", where=str(output_dir), hint="say -o with the name of a new folder")
    if not (folder / "tokenizer.json").is_file():
        raise InputError("has no tokenizer.json", where=str(folder), hint="load the tokenizer and save it again")


def _learn(before: Named, texts: Sequence[str], new_tokens: int, min_frequency: int, where: str) -> Extension:
    backend: Any = getattr(before.tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise DataError("the tokenizer is no fast one", where=where, hint="a tokenizer.json is needed")
    content = json.loads(backend.to_str())
    require_bpe(content, where)
    found = extend(content, count_words(read_backend(content), texts), new_tokens, min_frequency)
    if not found.tokens:
        hint = "give more rows, or a lower min_frequency"
        raise DataError(f"no two tokens stand side by side {min_frequency} times", where=where, hint=hint)
    return found


def _extended(before: Named, extension: Extension, folder: Path) -> Named:
    """Saves the tokenizer with its merges beside the work, and loads it as its user will.

    Raises:
        RunError: transformers makes something else of the file, as it may for classes that build their own tokenizer.
    """
    from ..evals.models import load_tokenizer

    before.tokenizer.save_pretrained(str(folder))
    content = json.dumps(extension.content, ensure_ascii=False, indent=2)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    after = Named("after", load_tokenizer(str(folder))[0])
    got = after.tokenizer.convert_tokens_to_ids(list(extension.tokens))
    if got != list(range(extension.first, extension.first + len(extension.tokens))):
        kind = type(after.tokenizer).__name__
        raise RunError(f"transformers' {kind} does not read the new tokens from tokenizer.json", where=str(folder))
    return after


def add_rows(model: "PreTrainedModel", first: int, pieces: Sequence[Sequence[int]]) -> None:
    """Gives a model rows for new tokens: the means of the rows of what they are made of, in float32.

    That is the transfer of Gee et al. 2022 (arXiv:2402.09977, section 3). Embeddings that stand behind the vocabulary,
    as some models have for speed, are used first. Tied tables stay tied.

    Args:
        model: A language model.
        first: The id of the first new token.
        pieces: The old tokens of each new one.
    """
    import torch

    rows: Any = model.get_input_embeddings().weight
    if first + len(pieces) > rows.shape[0]:
        model.resize_token_embeddings(first + len(pieces), mean_resizing=False)
    tables: list[Any] = [model.get_input_embeddings()]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not tables[0].weight:
        tables.append(output)
    with torch.no_grad():
        for table in tables:
            _set_means(table.weight, first, pieces)
            if getattr(table, "bias", None) is not None:
                _set_means(table.bias, first, pieces)


def _set_means(weight: "torch.Tensor", first: int, pieces: Sequence[Sequence[int]]) -> None:
    for place, old in enumerate(pieces):
        weight[first + place] = weight[list(old)].float().mean(0).to(weight.dtype)


def _bits_per_byte(loaded: "LoadedModel", texts: Sequence[str]) -> float:
    """Returns the bits per byte of texts together, as `score_rows` measures it."""
    from ..evals.models import model_length
    from ..evals.row_scores import text_likelihoods

    length = min(_MAX_LENGTH, model_length(loaded.model))
    found = [
        one for one in text_likelihoods(loaded, texts, max_length=length, batch_size=1) if not isinstance(one, RowError)
    ]
    size = sum(one.bytes for one in found)
    return sum(one.nats for one in found) / math.log(2) / size if size else math.nan


def _write(grown: "LoadedModel", extension: Extension, work: Path, output_dir: Path) -> None:
    """Writes the model beside its folder, loads it again, and moves the files in when both say the same."""
    from .merge import write_whole

    write_whole(grown.model, grown.tokenizer, work / "model")
    _require_same(grown, work / "model")
    fields = {"first": extension.first, "pieces": [list(pieces) for pieces in extension.pieces]}
    write_json(output_dir / EXTENSION, fields)  # first: it says that what follows is ours
    for name in ("config.json", *(path.name for path in output_dir.glob("*.safetensors*"))):
        (output_dir / name).unlink(missing_ok=True)  # of an earlier call, which was killed or had other arguments
    files = sorted((work / "model").iterdir(), key=lambda path: path.name == "config.json")
    for path in files:
        path.replace(output_dir / path.name)


def _require_same(grown: "LoadedModel", folder: Path) -> None:
    """Compares the logits of the model in memory and of the one on the disk, over every new token.

    Raises:
        RunError: They differ.
    """
    import torch

    from ..evals.models import load_model

    rows: Any = grown.model.get_input_embeddings().weight
    size = rows.shape[0]
    ids = torch.arange(max(0, size - _MAX_LENGTH), size, device=grown.model.device)[None]
    again = load_model(str(folder), device=str(grown.model.device)).model
    with torch.inference_mode():
        one, other = (model.eval()(input_ids=ids).logits for model in (grown.model, again))
    if not torch.equal(one, other):
        raise RunError("the model that was written is another one than that in memory", where=str(folder))
