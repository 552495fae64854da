"""Held-out rows as a trainer would see them."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_tools.errors import DataError
from ..data_tools.files import hash_json
from ..data_tools.overlap import Item, text_of_turns
from ..data_tools.sources import content_hash
from .errors import SuiteError
from .models import LoadedModel, hub_access, load_tokenizer, model_length
from .spec import ClassificationSpec, PerplexitySpec, RowsSpec, SuiteSpec

if TYPE_CHECKING:
    from ..data_tools.spec import Kind


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


def written(spec: RowsSpec, folder: Path, kind: "Kind") -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads the rows as they are written, each with where it stands, before a checkpoint's model is loaded.

    Raises:
        DataError: The rows cannot be read, or too many are unusable.
    """
    from ..chat_templates.templates import from_tokenizer
    from ..data_tools.dataset import load

    tokenizer, fingerprint = load_tokenizer(str(folder))
    template = from_tokenizer(tokenizer) if fingerprint else None
    return load(spec.source(), Path.cwd(), (kind,), template=template, max_bad_share=spec.max_bad_share)


def items_of_rows(spec: RowsSpec, kind: "Kind") -> list[Item]:
    """Returns what held-out rows ask, with the right answer or label, to be looked for in training data.

    An item is known by its number: a score's samples say which it is where no row was dropped.

    Raises:
        DataError: The rows cannot be read, or too many are unusable.
    """
    from ..data_tools.dataset import load

    found = []
    for _, row in load(spec.source(), Path.cwd(), (kind,), max_bad_share=spec.max_bad_share):
        question = "\n".join(
            filter(None, (row.get("text") or text_of_turns(row.get("prompt") or ""), row.get("text_pair")))
        )
        answer = text_of_turns(row["chosen"]) if "chosen" in row else str(row.get("label", ""))
        found.append(Item(str(len(found)), question, answer))
    return found


def read(
    spec: RowsSpec, loaded: LoadedModel, suite: SuiteSpec, kind: "Kind"
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Tokenises the rows by the very code that prepares a trainer's rows.

    Returns:
        The rows with the columns of their kind, as ``prepare.prepare`` describes them, and notes of what was
        dropped or cut.

    Raises:
        DataError: The rows cannot be read, or too many are unusable.
    """
    from ..chat_templates.templates import from_tokenizer
    from ..data_tools.prepare import prepare
    from ..data_tools.spec import DataSpec

    too_long = spec.too_long if isinstance(spec, ClassificationSpec) else "drop"
    source = spec.source()
    data = DataSpec(train=[source], eval=[source], max_bad_share=spec.max_bad_share, too_long=too_long)
    template = from_tokenizer(loaded.tokenizer) if loaded.template_fingerprint else None
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(
            data,
            "eval",
            base_dir=Path.cwd(),
            tokenizer=loaded.tokenizer,
            template=template,
            accepts=(kind,),
            max_length=spec.max_length or suite.max_length or model_length(loaded.model),
            cache_dir=Path(folder),
        )
        rows = prepared.dataset.to_list()
    report = prepared.report
    notes = [f"{count} rows dropped: {reason}" for reason, count in report.dropped.items()]
    cut = sum(item.truncated for item in report.sources)
    notes += [f"{cut} rows cut to the model's length"] if cut else []
    return rows, tuple(notes)
