"""Where rows come from: what data tools did on the way to a file, as far back as their reports are there."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..chat_templates.errors import PosttrainError
from ..data_tools.files import read_json
from ..data_tools.sources import is_hub, local_files
from ..data_tools.spec import SourceSpec
from ..data_tools.tool_report import REPORT, percent

_REASONS = 3  # of a tool, that the page names
_READ = ("sources", "rows", "prompts")  # the arguments of tools that name what they make their rows of
_LIKE = ("queries", "target", "good", "labelled")  # and those that name what rows are to be like


def origins(sources: Sequence[SourceSpec], base_dir: Path) -> dict[str, list[str]]:
    """Returns what is to be known of training rows beside themselves, as ``run.json`` keeps it.

    Args:
        sources: The rows.
        base_dir: The folder that relative paths start from.

    Returns:
        ``written_by``, the models that wrote rows of them or of what they were made of; ``judged_by``, the judges that
        had to prefer those; and ``chosen_like``, the rows by the likeness to which they were chosen; each only if there
        are any.
    """
    found: dict[str, dict[str, None]] = {}
    seen: set[Path] = set()
    left = [(source, base_dir) for source in sources]
    while left:
        for file in _there(*left.pop()):
            for folder in (file.parent, file.parent.parent):
                if folder in seen or (folder != file.parent and _entry(file) is None):
                    continue
                seen.add(folder)
                report = _report(folder)
                arguments = report["arguments"]
                if "max_new_tokens" in arguments and isinstance(arguments.get("model"), str):  # asked it for text
                    found.setdefault("written_by", {})[arguments["model"]] = None
                for judge in report.get("judged_by", ()):
                    found.setdefault("judged_by", {})[judge] = None
                chosen_by = [arguments]
                if isinstance(arguments.get("classifier"), str):  # the folder of the call that trained it
                    chosen_by += [
                        _report(here / arguments["classifier"])["arguments"] for here in (Path(), folder.parent)
                    ]
                for like in (like for one in chosen_by for like in _sources(one, _LIKE)):
                    found.setdefault("chosen_like", {})[like.path] = None
                left += [(source, here) for source in _sources(arguments, _READ) for here in (Path(), folder.parent)]
    return {what: list(names) for what, names in found.items()}


def _sources(arguments: Mapping[str, Any], names: tuple[str, ...]) -> list[SourceSpec]:
    """Returns what some arguments of a tool name, as far as it can be read."""
    found = []
    for name in names:
        values = arguments.get(name) or ()
        for value in values if isinstance(values, list) else [values]:
            with contextlib.suppress(ValidationError):
                found.append(SourceSpec.model_validate(value))
    return found


def _there(source: SourceSpec, base_dir: Path) -> list[Path]:
    try:
        return files_of(source, base_dir)
    except PosttrainError:  # no longer there
        return []


def files_of(source: SourceSpec, folder: Path) -> list[Path]:
    """Returns the files of a source on this machine; none of a data set on the Hub.

    Raises:
        PosttrainError: They are not there.
    """
    return [] if is_hub(source, folder) else list(local_files(source, folder))


def steps_to(file: Path) -> Iterator[list[Any]]:
    """Yields what data tools did on the way to a file, the last first, as far back as their reports are there."""
    seen: set[Path] = set()
    read = None  # rows that the later tool read, by which an earlier one's report is known to be of these rows
    while file.resolve() not in seen:
        seen.add(file.resolve())
        found = _entry(file)
        if found is None or (read is not None and found.entry[found.count] != read):
            return
        kept = found.entry[found.count]
        ranked = sorted(found.entry["reasons"].items(), key=lambda item: -item[1])
        went = [f"{reason} ({count:,})" for reason, count in ranked]
        if "held_out" in found.entry:
            others = {"held_out": "held out", "kept": "for training"}
            went[:0] = [f"{what} ({found.entry[key]:,})" for key, what in others.items() if key != found.count]
        read = found.entry["rows"]
        yield [found.step, read, kept, percent(kept, read), "; ".join(went[:_REASONS])]
        before = _file_of(found)
        if before is None:
            return
        file = before


@dataclass(frozen=True)
class _Made:
    """What a report says of one of its files: the tool, its folder and arguments, the entry, and its count's key."""

    step: str
    folder: Path
    arguments: Mapping[str, Any]
    entry: Mapping[str, Any]
    count: str


def _entry(file: Path) -> _Made | None:
    """Finds the report that a file of rows belongs to: beside it, or above the folder of a split."""
    for folder in (file.parent, file.parent.parent):
        report = _report(folder)
        for one in report.get("files", ()):
            for name, count in (("file", "kept"), ("held_out_file", "held_out")):
                if one.get(name) and "reasons" in one and folder / one[name] == file:
                    step = report["title"].removeprefix("posttrain data ")
                    return _Made(step, folder, report["arguments"], one, count)
    return None


def _file_of(made: _Made) -> Path | None:
    """Returns the file that a tool read, if it was one: from here, or from beside the tool's folder."""
    sources = made.arguments.get("sources", ())
    source = next((one for one in sources if (one.get("name") or one["path"]) == made.entry["source"]), None)
    for here in (Path(), made.folder.parent) if source else ():
        files = _there(SourceSpec.model_validate(source), here)
        if len(files) == 1:
            return files[0]
    return None


def _report(folder: Path) -> dict[str, Any]:
    """Returns what a data tool said of its work in a folder; of any other file of that name no arguments."""
    report = read_json(folder / REPORT)
    if isinstance(report, dict) and isinstance(report.get("arguments"), dict):
        return report
    return {"arguments": {}}
