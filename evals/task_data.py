"""The files of a task: which of them a folder of a known layout holds, and how their rows become the task's.

A layout is data, a YAML file in ``evals/layouts`` or a ``layout.yaml`` in the folder itself. It says for each task
which files are its splits and where their columns differ from those that the task reads.
"""

import functools
import glob
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ..chat_templates.errors import did_you_mean
from ..data_tools.errors import RowError, missing_column
from ..data_tools.files import hash_file, hash_json
from ..data_tools.mapping import compile_template, syntax_problem
from ..data_tools.readers import Row
from ..data_tools.sources import read_rows
from ..data_tools.spec import ClosedSection, SourceSpec
from ..data_tools.specfile import load_document, settled, try_model
from .errors import SuiteError

LAYOUTS = Path(__file__).parent / "layouts"
_OWN = "layout.yaml"  # in a folder that says its own layout


class TaskRows(ClosedSection):
    """How the rows of files become the rows that a task reads."""

    fields: dict[str, str] = {}
    """Columns that the task reads and the files lack, each as a Jinja template over the file's columns. A template that
    is one expression gives its value: ``{label: "{{ answer | int }}"}``. The file's other columns stay as they are."""
    where: dict[str, str | int | bool] = {}
    """Only rows whose columns hold these values are the task's: ``{subject: anatomy}``."""
    records: str | None = None
    """The key that the rows stand under, in a file that is one JSON object."""
    coverage: str | None = None
    """What part of the task's own data the files are, where they are not all of it; it stands in the column's title."""


class LayoutTask(TaskRows):
    """Where a folder keeps the rows of one task."""

    files: dict[str, str] = Field(min_length=1)
    """A file for each split of the task, within the folder; or a pattern such as ``data/test-*.parquet`` for several
    whose rows are read one file after another, each with the column ``file`` besides."""
    overrides: dict[str, Any] = {}
    """Keys of the task's YAML to replace, as in a suite."""


class Layout(ClosedSection):
    """A folder of benchmarks, as a table of tasks."""

    name: str
    """What the layout is called; its file's name."""
    tasks: dict[str, LayoutTask] = {}
    """Tasks by name. ``{part}`` in a name stands for any word, which ``files`` and ``where`` may repeat; of several
    names that fit, the first holds."""

    def entry(self, task: str) -> LayoutTask | None:
        """Returns the entry of a task, its placeholders filled in, or None."""
        for pattern, entry in self.tasks.items():
            parts = re.split(r"\{(\w+)\}", pattern)
            texts, names = parts[::2], parts[1::2]
            regex = re.escape(texts[0]) + "".join(
                f"(?P<{name}>\\w+?){re.escape(text)}" for name, text in zip(names, texts[1:], strict=True)
            )
            if found := re.fullmatch(regex, task):
                return _filled(entry, found.groupdict())
        return None


def _filled(entry: LayoutTask, words: Mapping[str, str]) -> LayoutTask:
    """Puts the words that a name was made of into the places that repeat them."""

    def put(value: Any) -> Any:
        for name, word in words.items():
            value = value.replace(f"{{{name}}}", word) if isinstance(value, str) else value
        return value

    update = {
        "files": {split: put(file) for split, file in entry.files.items()},
        "where": {column: put(value) for column, value in entry.where.items()},
        "records": put(entry.records),
    }
    return entry.model_copy(update=update)


@dataclass(frozen=True)
class DataFolder:
    """A folder whose layout is known.

    Attributes:
        path: The folder.
        layout: Its layout.
    """

    path: Path
    layout: Layout

    def entry(self, task: str) -> LayoutTask | None:
        """Returns where the folder keeps a task's rows, with absolute paths; None where a file of it is missing."""
        entry = self.layout.entry(task)
        if entry is None:
            return None
        files = {split: str(self.path / file) for split, file in entry.files.items()}
        if not all(files_at(file) for file in files.values()):
            return None
        return entry.model_copy(update={"files": files})


def open_folder(path: Path, layout: str | Path | None = None) -> DataFolder:
    """Finds the layout of a folder.

    Args:
        path: The folder.
        layout: A layout's name or file. By default it is the folder's own ``layout.yaml`` or, failing that, the layout
            of ours of which the folder holds most files.

    Raises:
        SuiteError: There is no such folder or layout, or the folder has none of the layouts that are known.
        SpecError: The layout's file is wrong.
    """
    if not path.is_dir():
        raise SuiteError(f"there is no folder {path}", where="data_dir")
    known = sorted(file.stem for file in LAYOUTS.glob("*.yaml"))
    if layout is not None:
        file = Path(layout) if str(layout).endswith((".yaml", ".yml")) else LAYOUTS / f"{layout}.yaml"
        if not file.is_file():
            hint = did_you_mean(str(layout), known) or f"known layouts: {', '.join(known)}; or give a path to a .yaml"
            raise SuiteError(f"there is no layout '{layout}'", hint=hint)
        return DataFolder(path, read_layout(file))
    if (path / _OWN).is_file():
        return DataFolder(path, read_layout(path / _OWN))
    layouts = [read_layout(LAYOUTS / f"{name}.yaml") for name in known]
    best = max(layouts, key=lambda candidate: _files_there(path, candidate))
    if not _files_there(path, best):
        hint = f"known layouts: {', '.join(known)}; a {_OWN} in the folder, or `layout:`, names one of your own"
        raise SuiteError(f"{path} has none of the layouts that are known", where="data_dir", hint=hint)
    return DataFolder(path, best)


def _files_there(folder: Path, layout: Layout) -> int:
    """Counts the files of a layout that a folder holds; placeholders stand for anything."""
    names = {file for entry in layout.tasks.values() for file in entry.files.values()}
    return sum(1 for name in names if any(folder.glob(re.sub(r"\{\w+\}", "*", name))))


def read_layout(path: Path) -> Layout:
    """Reads a layout.

    Raises:
        SpecError: With every problem of the file and its line.
    """
    document = load_document(path)
    document.value.setdefault("name", path.stem)
    layout = try_model(Layout, document)
    for name, entry in layout.tasks.items() if layout else ():
        for column, problem in field_problems(entry):
            document.problem(("tasks", name, "fields", column), problem)
    return settled(document, layout)


def field_problems(rows: TaskRows) -> Iterator[tuple[str, str]]:
    """Yields each column whose template is none, and what is wrong with it."""
    for column, template in rows.fields.items():
        if problem := syntax_problem(template):
            yield column, problem


def files_at(path: str | Path) -> list[Path]:
    """Returns the file of a split, or those that its pattern means, sorted; none where there is none."""
    if Path(path).is_file() or not glob.has_magic(str(path)):
        return [Path(path)] if Path(path).is_file() else []
    pattern = Path(path)
    found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))
    return sorted(file for file in found if file.is_file())


def hash_rows(path: Path) -> str:
    """Returns the hash of the content of a split's file, or of its files with their names."""
    files = files_at(path)
    if len(files) < 2:
        return hash_file(files[0] if files else path)
    return hash_json([[file.name, hash_file(file)] for file in files])


def read_task_rows(path: Path, how: TaskRows) -> list[Row]:
    """Reads the rows of a file, or of the files of a pattern, that are a task's, with the columns that it reads.

    Raises:
        DataError: The file cannot be read or is of no known type.
        SuiteError: A row cannot be read or lacks a column, or none is left.
    """
    chosen = choose_rows(_whole_file(path, how.records, hash_rows(path)), how.where, str(path))
    if not how.fields:
        return chosen
    templates = {column: compile_template(template) for column, template in how.fields.items()}
    return [_mapped(row, templates) for row in chosen]


def choose_rows(rows: Sequence[Row], where: Mapping[str, Any], source: str) -> list[Row]:
    """Returns the rows whose columns hold some values.

    Raises:
        SuiteError: A row cannot be read or lacks a column, or none is left.
    """
    chosen = [row for row in rows if _belongs(_usable(row), where)]
    if not chosen:
        wanted = ", ".join(f"{column} {value!r}" for column, value in where.items())
        raise SuiteError(f"none of its {len(rows)} rows has {wanted}", where=source)
    return chosen


@functools.lru_cache(maxsize=2)
def _whole_file(path: Path, records: str | None, _: str) -> list[Row]:
    """Reads all rows of a file, once for its content: the 57 subjects of MMLU share one."""
    rows = []
    files = files_at(path)
    for file in files or [path]:
        for row in read_rows(SourceSpec(path=str(file)), file.parent):
            more = {"file": file.name} if len(files) > 1 else {}
            rows.append(Row(row.where, more | _usable(row).values))
    if records:
        rows = [record for row in rows for record in _records(row, records)]
    if not rows:
        raise SuiteError("the file holds no rows", where=str(path))
    return rows


def _usable(row: Row) -> Row:
    if row.problem is not None:
        raise SuiteError(str(row.problem), where=row.where)
    return row


def _records(row: Row, key: str) -> list[Row]:
    """Returns the rows that stand in a list inside another."""
    found = row.values.get(key)
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        names = ", ".join(row.values)
        raise SuiteError(f"there is no list of rows under '{key}'", where=row.where, hint=f"its keys: {names}")
    return [Row(f"{row.where}.{key}[{index}]", record) for index, record in enumerate(found)]


def _belongs(row: Row, where: Mapping[str, Any]) -> bool:
    for column, value in where.items():
        if column not in row.values:
            raise SuiteError(str(missing_column(column, row.values)), where=row.where)
        if row.values[column] != value:
            return False
    return True


def _mapped(row: Row, templates: Mapping[str, Any]) -> Row:
    try:
        made = {column: evaluate(row.values) for column, evaluate in templates.items()}
    except RowError as error:
        raise SuiteError(f"`fields` cannot be made: {error}", where=row.where) from error
    return Row(row.where, {**row.values, **made})
