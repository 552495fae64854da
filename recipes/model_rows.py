"""Data tools for which a language model reads rows: what they are told of it, how it is loaded, what it is given."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import model_validator

from ..chat_templates.errors import InputError
from ..data_tools.dataset import Shape
from ..data_tools.encode import TextEncoder
from ..data_tools.errors import DataError
from ..data_tools.row_tool import TextTool, blocks_of, canonical_reader
from ..data_tools.sources import Row
from ..data_tools.spec import Count, Kind, SourceSpec
from ..data_tools.tool_report import Bar, Plot

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..evals.models import LoadedModel

CHUNK_ROWS = 256  # read by the model between two files of work
_BARS = 40
_KINDS: tuple[Kind, ...] = ("prompt_completion", "text")


class ModelRows(TextTool):
    """The arguments that tools have in common for which a language model reads rows."""

    model: str
    """A run, a folder or a Hub id of a language model."""
    of: Literal["answer", "text"] | None = None
    """What counts: the last answer with what stands before it, or all that a row says, as plain text; by default the
    answer where there is a prompt."""
    chat_template: str | None = None
    """A `.jinja` file or a built-in name, for models that bring no template of their own."""
    max_length: Count | None = None
    """Tokens that the model reads at once; by default what it was made for."""
    batch_size: Count = 16
    """Rows that the model reads at a time."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """What the weights are held in; `auto` is as saved. In float32 no batch changes a loss by more than some millionths
    of a nat; in bfloat16, which is faster on a GPU, by hundredths."""

    @model_validator(mode="after")
    def _columns_are_texts(self) -> Self:
        if self.columns is not None and self.of != "text":
            raise ValueError("columns are read as texts; say `of: text` beside them")
        return self

    def identity(self) -> Any:
        """Returns the hash of the model, and the chat template's text."""
        from .. import chat_templates
        from ..evals.checkpoints import model_hash
        from ..evals.runs import locate

        template = chat_templates.load(self.chat_template).source if self.chat_template else None
        return [model_hash(locate(self.model)), template]


class RowModel:
    """The model of such a tool, loaded when it is first needed.

    Args:
        spec: The tool's arguments.
        answers: Whether rows must have an answer.
    """

    def __init__(self, spec: ModelRows, *, answers: bool = False):
        self.spec, self._answers = spec, answers or spec.of == "answer"

    @property
    def max_length(self) -> int:
        """Tokens that the model reads at once.

        Raises:
            InputError: More are asked for than it was made for.
        """
        from ..evals.models import model_length

        own, asked = model_length(self.loaded.model), self.spec.max_length
        if asked is not None and asked > own:
            raise InputError(f"max_length is {asked}, and {self.spec.model} was made for {own} tokens")
        return asked or own

    @functools.cached_property
    def loaded(self) -> "LoadedModel":
        """The model; its tokenizer carries the template."""
        from .. import chat_templates
        from ..evals.models import load_language_model
        from ..evals.runs import locate

        spec = self.spec
        loaded = load_language_model(str(locate(spec.model)), spec.dtype)
        if spec.chat_template is not None:
            template = chat_templates.load(spec.chat_template)
            if added := chat_templates.install(template, loaded.tokenizer):
                what = f"the model has not learnt tokens of the chat template {template.name}: {', '.join(added)}"
                raise InputError(what, hint="take a template of text alone, such as alpaca, or a model that knows them")
        return loaded

    def chunks(self, source: SourceSpec) -> Iterator[list[Row]]:
        """Yields the readable rows of a source, so many at a time that a kill loses little."""
        for block in blocks_of(source):
            for at in range(0, len(block), CHUNK_ROWS):
                yield [row for row in block[at : at + CHUNK_ROWS] if row.problem is None]

    def reader(self, source: SourceSpec) -> Callable[[Row], dict[str, Any]]:
        """Returns what gives a row's ``text``, or its ``prompt`` and ``completion``; it raises RowError.

        Raises:
            DataError: The rows' layout is unknown or holds nothing to read; later, that there is no chat template.
        """
        spec = self.spec
        if spec.of == "text":
            text = spec.reader(source)
            return lambda row: {"text": text(row)}
        kinds: tuple[Kind, ...] = ("prompt_completion",) if self._answers else _KINDS
        template = TextEncoder.of(self.loaded.tokenizer).template
        canonical = canonical_reader(source, kinds, shape=lambda source, report: Shape(source, report, template))

        def read(row: Row) -> dict[str, Any]:
            found = canonical(row.values)
            if template is None and isinstance(found.get("prompt"), list):
                hint = "name one of text alone, `chat_template: alpaca`, or score what rows say: `of: text`"
                raise DataError("is a conversation, and the model has no chat template", where=row.where, hint=hint)
            return found

        return read


def rank_correlation(one: "NDArray[np.float64]", other: "NDArray[np.float64]") -> float | str:
    """Returns Spearman's coefficient; a dash where one of the two does not vary."""
    import numpy as np

    from ..evals.stats.bootstrap import midranks
    from ..evals.stats.classification import correlation

    if len(np.unique(one)) == 1 or len(np.unique(other)) == 1:
        return "–"
    weights = np.ones((1, len(one)))
    return float(correlation(weights, midranks(one)(weights), midranks(other)(weights))[0])


def histogram(name: str, values: "NDArray[np.float64]") -> Plot:
    """Returns bars of equal width from the first to the 99th percentile, the rest at either end."""
    import numpy as np

    low, high = np.quantile(values, [0.01, 0.99], method="inverted_cdf").tolist()
    edges = np.linspace(low, high, _BARS + 1) if high > low else np.array([low, low])
    places = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    counts = np.bincount(places, minlength=len(edges) - 1)
    labels = [f"{a:.4g} to {b:.4g}" for a, b in itertools.pairwise(edges.tolist())]
    labels[0], labels[-1] = f"up to {edges[1]:.4g}", f"{edges[-2]:.4g} and more"
    bars = [Bar(label, float(count)) for label, count in zip(labels, counts, strict=True)]
    return Plot(name, f"{name}, each bar {(high - low) / _BARS:.3g} wide, the last hundredth at either end", bars)
