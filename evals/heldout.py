"""Held-out rows as a trainer would see them."""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..data_tools.errors import DataError
from ..data_tools.files import hash_json
from ..data_tools.overlap import Item, text_of_turns
from ..data_tools.sources import content_hash
from .errors import SuiteError
from .models import LoadedModel, hub_access, load_tokenizer, model_length
from .spec import ClassificationSpec, PerplexitySpec, RowsSpec, SuiteSpec
from .task import Task

if TYPE_CHECKING:
    from ..data_tools.prepare import PreparedReport
    from ..data_tools.spec import Kind, SourceSpec


def content_of(spec: RowsSpec | PerplexitySpec, suite: SuiteSpec) -> str:
    """Returns the hash of the content of a suite's rows or text.

    Raises:
        SuiteError: They cannot be found.
    """
    on_hub = not Path(spec.path).is_absolute()
    try:
        with hub_access(suite.offline) if on_hub else contextlib.nullcontext():
            return content_hash(spec.source(), Path.cwd())
    except DataError as error:
        raise SuiteError(str(error), where=spec.title) from error


def is_limited(source: "SourceSpec", kind: "Kind") -> bool:
    """Says whether a source's limit leaves rows out that could be used: reads one more than it takes."""
    from ..data_tools.dataset import load

    if source.limit is None:
        return False
    more = source.model_copy(update={"limit": source.limit + 1})
    return sum(1 for _ in load(more, Path.cwd(), (kind,), max_bad_share=1.0)) > source.limit


def fingerprint(spec: RowsSpec, suite: SuiteSpec, **more: Any) -> str:
    """Hashes the rows' content, what the suite says of them, and the suite's settings that change figures.

    Raises:
        SuiteError: The rows cannot be found.
    """
    from ..data_tools.prepare import CACHE_VERSION

    data = content_of(spec, suite)
    said = spec.model_dump(mode="json", exclude={"name", "path", "weight", "reference", "metrics", "batch_size"})
    if "max_bad_share" not in spec.model_fields_set:
        said["max_bad_share"] = 0.02  # the default under which scores of labelled rows were written, which stand
    settings = suite.model_dump(include={"max_length", "dtype", "seed"})
    return hash_json({"data": data, "spec": said, "suite": settings, "examples": CACHE_VERSION, **more})


@dataclass(frozen=True)
class RowsTask(Task):
    """Held-out rows of a suite, found and hashed.

    Attributes:
        spec: What the suite says of them.
        task_hash: As of :class:`Task`.
    """

    spec: RowsSpec

    kind: ClassVar["Kind"]
    """Of the rows."""
    is_divided = has_items = True
    reads_checkpoint = True  # its head decides which labels there are, its template which rows can be used

    def items(self) -> list[Item]:
        """Returns what the rows ask, with the right answer or label, as :meth:`Task.items`.

        An item is known by its number: a score's samples say which it is where no row was dropped.
        """
        from ..data_tools.dataset import load

        spec, found = self.spec, []
        for _, row in load(spec.source(), Path.cwd(), (self.kind,), max_bad_share=spec.max_bad_share):
            question = "\n".join(
                filter(None, (row.get("text") or text_of_turns(row.get("prompt") or ""), row.get("text_pair")))
            )
            answer = text_of_turns(row["chosen"]) if "chosen" in row else str(row.get("label", ""))
            found.append(Item(str(len(found)), question, answer))
        return found

    def written(self, folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        """Reads the rows as they are written, each with where it stands, before a checkpoint's model is loaded.

        Raises:
            DataError: The rows cannot be read, or too many are unusable.
        """
        from ..chat_templates.templates import from_tokenizer
        from ..data_tools.dataset import load

        spec = self.spec
        tokenizer, fingerprint = load_tokenizer(str(folder))
        template = from_tokenizer(tokenizer) if fingerprint else None
        return load(spec.source(), Path.cwd(), (self.kind,), template=template, max_bad_share=spec.max_bad_share)

    def read(self, loaded: LoadedModel, suite: SuiteSpec) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """Tokenises the rows as a trainer's are.

        Returns:
            The rows with the columns of their kind, as ``prepare.prepare`` describes them, and notes of what was
            dropped or cut.

        Raises:
            DataError: The rows cannot be read, or too many are unusable.
        """
        spec = self.spec
        too_long = spec.too_long if isinstance(spec, ClassificationSpec) else "drop"
        longest = spec.max_length or suite.max_length or model_length(loaded.model)
        how = {"max_bad_share": spec.max_bad_share, "too_long": too_long}
        rows, report = prepared_rows(spec.source(), loaded, self.kind, max_length=longest, **how)
        notes = [f"{count} rows dropped: {reason}" for reason, count in report.dropped.items()]
        cut = sum(item.truncated for item in report.sources)
        notes += [f"{cut} rows cut to the model's length"] if cut else []
        return rows, tuple(notes)


def prepared_rows(
    source: "SourceSpec", loaded: LoadedModel, kind: "Kind", *, max_length: int | None, **how: Any
) -> "tuple[list[dict[str, Any]], PreparedReport]":
    """Tokenises rows by the very code that prepares a trainer's rows, and reports what had to be dropped or cut.

    Args:
        source: The rows.
        loaded: Whose tokenizer and template are used.
        kind: Of the rows.
        max_length: Tokens of a row, if they are bounded.
        **how: Further keys of a recipe's ``data:`` section.

    Raises:
        DataError: The rows cannot be read, or too many are unusable.
    """
    from ..chat_templates.templates import from_tokenizer
    from ..data_tools.prepare import prepare
    from ..data_tools.spec import DataSpec

    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(
            DataSpec(train=[source], eval=[source], **how),
            "eval",
            base_dir=Path.cwd(),
            tokenizer=loaded.tokenizer,
            template=from_tokenizer(loaded.tokenizer) if loaded.template_fingerprint else None,
            accepts=(kind,),
            max_length=max_length,
            cache_dir=Path(folder),
        )
        return prepared.dataset.to_list(), prepared.report
