"""Where rows come from: which files a source means, or which data set on the Hub, and their rows in order."""

import fnmatch
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import did_you_mean
from .errors import DataError, HubError, is_silence, missing_column
from .files import hash_file, hash_json, read_object
from .readers import READERS, Row, read_batches

if TYPE_CHECKING:
    from datasets import Dataset

    from .spec import SourceSpec

__all__ = ["Row", "content_hash", "is_hub", "local_files", "read_rows", "refuse_own"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# What stands beside rows in folders that `datasets`, data tools, `data answers` and steps of pipelines write.
_NOT_ROWS = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "report.json",
    "manifest.json",
    "settings.json",
}
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
}


def data_suffix(path: Path | str) -> str | None:
    """Returns the type of a data file, such as ``.jsonl``, or None; a last ``.gz`` or ``.test`` is looked through."""
    name = str(path).lower().removesuffix(".gz").removesuffix(".test")  # WinoBias: pro_stereotyped_type1.txt.test
    return next((suffix for suffix in READERS if name.endswith(suffix)), None)


def _type_of(source: "SourceSpec", file: Path) -> str | None:
    """Returns what a source says that its files are, or their names."""
    return f".{source.file_type}" if source.file_type else data_suffix(file)


def is_hub(source: "SourceSpec", base_dir: Path) -> bool:
    """Whether a path means a data set on the Hub: an ``org/name`` that is not, and does not look like, a local path."""
    path = source.path
    if not _HUB_ID.fullmatch(path) or data_suffix(path) or source.file_type or glob.has_magic(path):
        return False
    return not (base_dir / path).exists() and not (base_dir / path).parent.exists()


def local_files(source: "SourceSpec", base_dir: Path) -> list[Path]:
    """Returns the files of a local source, sorted.

    A folder means the data files of one type below it; if their names or folders speak of splits, those of the
    source's split.

    Raises:
        DataError: There are none, they are of several types or of no known one, or the split is not there.
    """
    path = base_dir / Path(source.path).expanduser()
    if path.is_dir():
        return _files_of_split(source, path, base_dir)
    if path.is_file():
        files = [path]
    elif path.exists():
        raise DataError("is no file that can be read twice", where=source.path, hint="save what it gives as a file")
    elif glob.has_magic(source.path):
        files = _matches(path)
        if not files:
            raise DataError("no file matches", where=source.path)
    else:
        raise _not_found(source.path, path, base_dir)
    unknown = next((file for file in files if _type_of(source, file) is None), None)
    if unknown is not None:
        types = ", ".join(READERS)
        raise DataError(
            "not a known type of data file",
            where=show_path(unknown, base_dir),
            hint=f"types are {types}, each also .gz; or say with `file_type` what it is",
        )
    if source.split != "train":
        raise DataError(
            f"split '{source.split}' of a file",
            where=source.path,
            hint="a split belongs to a folder or a Hub data set; name the file of that split",
        )
    return files


def _matches(pattern: Path) -> list[Path]:
    """Returns the files that match a glob, sorted; hidden ones only if it names them."""
    parts = pattern.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    base, rest = Path(*parts[:fixed]), parts[fixed:]
    found = sorted(file for file in base.glob("/".join(rest)) if file.is_file())
    return found if any(part.startswith(".") for part in rest) else [file for file in found if not _hidden(file, base)]


def _hidden(file: Path, base: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(base).parts)


def _not_found(given: str, path: Path, base_dir: Path) -> DataError:
    """Words a missing file, looking for its nearest neighbour in the nearest folder that is there."""
    folder = path
    while not folder.parent.is_dir():
        folder = folder.parent
    names = sorted(item.name for item in folder.parent.iterdir())
    close = did_you_mean(folder.name, names)
    inside = show_path(folder.parent, base_dir)
    return DataError("no such file or folder", where=given, hint=close or f"looked in {inside}")


def show_path(path: Path, base_dir: Path) -> str:
    """Returns a path as the recipe would write it."""
    return str(path.relative_to(base_dir)) if path.is_relative_to(base_dir) else str(path)


def _files_of_split(source: "SourceSpec", folder: Path, base_dir: Path) -> list[Path]:
    """Returns the data files below a folder that belong to the source's split."""
    where = show_path(folder, base_dir)
    found = sorted(
        file
        for file in folder.rglob("*")
        if _type_of(source, file) and file.is_file() and not _is_beside_rows(file) and not _hidden(file, folder)
    )
    controls = {inner for inner in {file.parent for file in found} - {folder} if _is_control(inner)}
    found = [file for file in found if file.parent not in controls]
    splits: dict[str, list[Path]] = {}
    for file in found:
        splits.setdefault(_split_of(file.relative_to(folder)) or "", []).append(file)
    unnamed = splits.pop("", [])
    wanted = _SPLIT_WORDS.get(source.split, source.split)
    files = splits.get(wanted, []) if splits else unnamed if wanted == "train" else []
    if not files:
        have = ", ".join(sorted(splits)) or ("train" if unnamed else "none")
        what = f"no files of split '{source.split}'" if found else "no data files in this folder"
        raise DataError(what, where=where, hint=f"splits here: {have}" if found else f"types are {', '.join(READERS)}")
    types = sorted({str(_type_of(source, file)) for file in files})
    if len(types) > 1:
        raise DataError(
            f"files of several types: {', '.join(types)}",
            where=where,
            hint=f"choose some by a glob, {where}/*{types[0]}",
        )
    return files


def _is_beside_rows(file: Path) -> bool:
    """Whether a file holds no rows of its folder: `datasets` keeps what `map` made of a saved one beside it."""
    is_cache = file.name.startswith("cache-") and file.suffix == ".arrow" and (file.parent / "state.json").exists()
    return is_cache or file.name in _NOT_ROWS


def _is_control(folder: Path) -> bool:
    """Whether a folder holds what `data select` wrote beside its choice to compare that with, its ``baselines``."""
    arguments = read_object(folder.parent / "report.json").get("arguments")
    baselines = arguments.get("baselines") if isinstance(arguments, dict) else None
    return isinstance(baselines, list) and folder.name in baselines


def _split_of(path: Path) -> str | None:
    """Returns the split that a file's name speaks of, or the nearest of its folders that does."""
    for part in reversed(path.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def refuse_own(sources: "Sequence[SourceSpec]", outputs: Sequence[Path], base_dir: Path = Path()) -> None:
    """Refuses to write over what is read, or to where the same call would read it the next time.

    Raises:
        DataError: Naming the source.
    """
    for source in sources:
        if is_hub(source, base_dir):
            continue
        read = {path.resolve() for path in local_files(source, base_dir)}
        path = base_dir / Path(source.path).expanduser()
        for output in outputs:
            written = output.resolve()
            if written in read:
                raise DataError(
                    "would be written over by its own rows", where=source.title, hint="name another folder: -o"
                )
            inside = path.is_dir() and written.is_relative_to(path.resolve())
            if inside or (glob.has_magic(source.path) and _is_match(written, path.resolve())):
                what = "its rows would be written among what is read, and be read the next time"
                raise DataError(what, where=source.title, hint="name another folder: -o")


def _is_match(file: Path, pattern: Path) -> bool:
    """Whether a glob means a file, part by part: only ``**`` goes through folders."""
    return fnmatch.fnmatch(str(file), str(pattern)) if "**" in pattern.parts else file.match(str(pattern))


def read_rows(source: "SourceSpec", base_dir: Path) -> Iterator[Row]:
    """Reads the rows of a source in order, as plain Python values, with ``columns`` renamed.

    Args:
        source: What to read. Its ``limit`` is not applied, since it counts usable rows.
        base_dir: The folder that relative paths start from.

    Yields:
        Each row. One that cannot be read (a line that is no JSON) is there too, with its ``problem``.

    Raises:
        DataError: The source cannot be found or read, or is damaged.
    """
    rows = _hub_rows(source) if is_hub(source, base_dir) else _local_rows(source, base_dir)
    return map(_renamer(source.columns), rows) if source.columns else rows


def _local_rows(source: "SourceSpec", base_dir: Path) -> Iterator[Row]:
    """Reads file after file."""
    labelled = _labelled(source)
    for file in local_files(source, base_dir):
        suffix = _type_of(source, file) or ""
        where = show_path(file, base_dir)
        if suffix != ".txt" and "sample_by" in source.model_fields_set:
            raise DataError("`sample_by` is for .txt files", where=where, hint="remove it")
        if suffix not in (".csv", ".tsv") and source.has_no_header:
            raise DataError(
                "numbered `columns` are for .csv and .tsv files", where=where, hint="use the columns' names"
            )
        rows = READERS[suffix](file, where, source)
        if labelled:
            rows = (row._replace(values=row.values | {"label": file.parent.name}) for row in rows)
        yield from rows


def _labelled(source: "SourceSpec") -> bool:
    """Whether the names of folders are the labels of the texts in them."""
    return source.format == "classification" and source.sample_by == "document"


def _renamer(columns: dict[str, str]) -> Any:
    """Returns what renames the columns of a row; a column that is not there spoils the row."""

    def rename(row: Row) -> Row:
        if row.problem is not None:
            return row
        for old in columns:
            if old not in row.values:
                problem, new = missing_column(old, row.values), columns[old]
                if new in row.values:
                    problem.detail += f"; `columns` has the file's name first: {{{new}: {old}}}?"
                return Row(row.where, {}, problem)
        values = {name: value for name, value in row.values.items() if name not in columns}
        return Row(row.where, values | {new: row.values[old] for old, new in columns.items()})

    return rename


def _hub_dataset(source: "SourceSpec") -> "Dataset":
    """Downloads a data set, or takes it from the cache.

    Raises:
        DataError: It does not exist, or lacks the split or subset.
        HubError: The Hub cannot be reached.
    """
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        dataset: Any = load_dataset(source.path, source.subset, split=source.split, revision=source.revision)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        if is_silence(error):
            raise HubError("cannot load from the Hub", where=source.path) from error
        hint = f"or did you mean a local file? there is no {source.path} beside the recipe"
        raise DataError(
            f"cannot load from the Hub: {str(error).splitlines()[0]}", where=source.path, hint=hint
        ) from error
    return dataset


def _hub_rows(source: "SourceSpec") -> Iterator[Row]:
    dataset: Any = _hub_dataset(source)
    tables = dataset.with_format("arrow").iter(batch_size=1024)
    batches = (batch for table in tables for batch in table.to_batches())
    revision = f"@{source.revision}" if source.revision else ""
    split = f"{source.subset}/{source.split}" if source.subset else source.split
    return read_batches(batches, f"{source.path}{revision}[{split}]")  # tools know rows by it: no two may share one


def content_hash(source: "SourceSpec", base_dir: Path) -> str:
    """Returns 16 hexadecimal digits that change when the rows of a source can have changed.

    Local files count by their bytes, in order; a Hub data set by the commit of its files.

    Raises:
        DataError: The source cannot be found.
    """
    if not is_hub(source, base_dir):
        files = local_files(source, base_dir)
        labels = [file.parent.name for file in files] if _labelled(source) else []
        return hash_json([hash_file(file) for file in files] + labels)
    dataset = _hub_dataset(source)
    origin = sorted(dataset.info.download_checksums or ()) or dataset._fingerprint
    return hash_json([source.path, source.subset, source.split, origin])
