"""The right answers of a task's rows, looked at before any model: lm-eval counts what it cannot read as wrong."""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..chat_templates.errors import first_line
from ..data_tools.errors import listing
from ..data_tools.sources import Row
from .errors import SuiteError
from .spec import TaskSpec
from .task_data import TaskRows, read_task_rows

_SHOWN = 5
_COLUMN = re.compile(r"[A-Za-z_]\w*")


def check_gold(task: Any, spec: TaskSpec, data_files: Mapping[str, Path]) -> None:
    """Refuses a task with rows whose right answer is missing, or is none of those that can be given.

    Args:
        task: lm-eval's, built as far as its documents.
        spec: What the suite says of it.
        data_files: The local file of each split.

    Raises:
        SuiteError: With the first of the rows, by file and line, and how many there are.
    """
    if not hasattr(task, "features"):  # a Python class, which reads its documents in its own way
        return
    where = spec.title
    _check_columns(task, where)
    config = task.config
    split = config.test_split or config.validation_split
    found = _wrong(task, task.task_docs, spec.limit, split, data_files, spec)
    if config.num_fewshot:
        shots = task.fewshot_cfg
        examples = shots.split or (config.training_split if shots.samples is None else None)
        _check_pool(task, examples == split, where)
        if examples not in (None, split):
            found += _wrong(task, task.fewshot_docs(), None, examples, data_files, spec)
    if found:
        text = f"{len(found)} row{'s have' if len(found) > 1 else ' has'} no right answer that could be given: "
        hint = "a right answer is the index of an option, from 0, or its text; of generated text, a text"
        raise SuiteError(text + listing(found, _SHOWN, "; "), where=where, hint=hint)


def _check_pool(task: Any, is_scored: bool, where: str) -> None:
    """Refuses more worked examples than there are."""
    shots, there = task.fewshot_cfg, len(task.sampler.df)
    # of two splits without a name lm-eval draws one example more, lest it draw the item itself
    spare = is_scored or (shots.split == task.config.test_split and shots.sampler == "default")
    if task.config.num_fewshot > there - spare:
        what = f"{task.config.num_fewshot} worked examples are asked for, and there are {there - spare} to take"
        raise SuiteError(what, where=where, hint="say a smaller `num_fewshot`, or give a file of more")


def _check_columns(task: Any, where: str) -> None:
    """Refuses names of columns that the rows do not have: lm-eval takes such a name for the text itself."""
    parts = ("doc_to_text", "doc_to_choice") if callable(task.config.process_results) else _PARTS
    for part in parts:
        name = getattr(task.config, part)
        if isinstance(name, str) and _COLUMN.fullmatch(name) and name not in task.features:
            hint = f"they have: {', '.join(task.features)}; `overrides: {{{part}: …}}` names another"
            raise SuiteError(f"{part} reads the column '{name}', which the rows do not have", where=where, hint=hint)


_PARTS = ("doc_to_text", "doc_to_choice", "doc_to_target")


def _wrong(
    task: Any,
    docs: Collection[Any],
    limit: int | None,
    split: str | None,
    data_files: Mapping[str, Path],
    how: TaskRows,
) -> list[str]:
    """Says what is wrong with the rows of a split that take part, a clause each."""
    file = data_files.get(split or "")
    part = enumerate(islice(docs, limit))
    found = {place: what for place, doc in part if (what := _problem(task, doc, own=file is None))}
    if not found:
        return []
    docs = list(docs)
    # As they are written; none of a data set of the task's own.
    rows = read_task_rows(file, how) if file else []
    if len(rows) == len(docs) and task.config.process_docs is None:
        # A number with a point or a gap turns a whole column into such numbers: the rows as written tell which it was.
        said = {p: _problem(task, dict.fromkeys(task.features) | rows[p].values, own=False) for p in found}
        written = {place: what for place, what in said.items() if what}
        return [f"{rows[place].where}: {what}" for place, what in (written or found).items()]
    return [f"{_where(docs[place], rows) or f'{split}[{place}]'}: {what}" for place, what in found.items()]


def _where(doc: Any, rows: Sequence[Row]) -> str | None:
    """Finds the row that a document was made of, by what both hold."""
    for row in rows:
        if all(row.values[key] == doc[key] for key in row.values if key in doc):
            return row.where
    return None


def _problem(task: Any, doc: Any, *, own: bool) -> str | None:
    """Says what is wrong with the right answer of a document; None of one that can be given.

    Args:
        task: lm-eval's.
        doc: The document.
        own: Whether the task's own data set says that labels are true or false, which count as 1 and 0.
    """
    config = task.config
    custom = callable(config.process_results)  # what it makes of the target is its own affair
    try:
        target = task.doc_to_target(doc)
        options = None if config.doc_to_choice is None else task.doc_to_choice(doc)
        if task.OUTPUT_TYPE == "multiple_choice" and isinstance(text := task.doc_to_text(doc), int):
            target = text  # the options are beginnings, and the answer is which of them
    except Exception as error:  # templates and functions fail in ways of their own
        return f"it cannot be read ({type(error).__name__}: {first_line(error)})"
    if not custom and not own and (text := _read_as_list(task, doc, target)):
        return f"the text '{text}' is read as a list of right answers (`doc_to_target: COLUMN` reads it as it is)"
    if options is not None:
        # lm-eval makes numbers of digits that a template has spelled, though the row names an option by its text
        text = str(target)
        named = isinstance(target, int) and text in options and text in doc.values()
        if named and options[target : target + 1] != [text]:
            return f"the answer '{text}' is the text of one option and the number of another"
        return _out_of_range(target, options, custom=custom, own=own)
    if isinstance(config.doc_to_target, int) or (custom and not _reads_column(config.doc_to_target, task.features)):
        return None
    texts = target if isinstance(target, list | tuple) else [target]
    lost = any(_is_void(value) for value in doc.values())  # a template spells such a value
    void = any(_is_void(text) or (lost and text in ("None", "nan")) for text in texts)
    empty = not custom and not any(str(text).strip() for text in texts)
    return f"the answer is {target!r}" if void or empty else None


def _read_as_list(task: Any, doc: Any, target: Any) -> str | None:
    """Returns the text of a row that a template repeats and lm-eval reads as a list, if it does."""
    from lm_eval.utils import apply_template

    template = task.config.doc_to_target
    if not isinstance(target, list) or not isinstance(template, str) or template in task.features:
        return None
    text = apply_template(template, doc)
    return text if text in doc.values() else None


def _out_of_range(target: Any, options: Any, *, custom: bool, own: bool) -> str | None:
    """Says what is wrong with a choice among options."""
    if not isinstance(options, list) or not options or not all(isinstance(option, str) for option in options):
        return f"the options are {options!r}, no list of texts"
    count = len(options)
    chosen = target if isinstance(target, list) else [target]
    for one in chosen or [None]:
        index = isinstance(one, int) and (own or not isinstance(one, bool)) and 0 <= one < count
        text = isinstance(one, str) and not isinstance(target, list) and (one in options or custom)
        if not text and not index and not (custom and isinstance(target, list)):
            return f"the answer {target!r} is none of {count} options"
    return None


def _is_void(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _reads_column(target: Any, features: Sequence[str]) -> bool:
    """Says whether a target is read from a column, not computed."""
    return isinstance(target, str) and ("{{" in target or target in features)
