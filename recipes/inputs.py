"""Finding what a recipe names: models, data, templates and suites, beside its file or from the current directory."""

import contextlib
import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..chat_templates.errors import TemplateError, did_you_mean
from ..data_tools.functions import function_file
from ..data_tools.specfile import Document, KeyPath

_FILE_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".yaml", ".yml", ".jinja")
# Where a recipe names files or models: the section, or list of sections, and the keys in it.
_PATHS = (
    (("model",), "name_or_path", "tokenizer"),
    (("adapter",), "name_or_path"),
    (("teacher",), "name_or_path"),
    (("critic",), "name_or_path"),
    (("gold",), "model"),
    (("rewards",), "model"),
    (("data", "train"), "path"),
    (("data", "eval"), "path"),
)


def find_inputs(document: Document, references: Mapping[str, Path]) -> None:
    """Makes the paths in a recipe absolute; what is neither a file nor possibly a Hub id becomes a problem.

    Args:
        document: The recipe, its references replaced.
        references: Folders of a pipeline's earlier steps; what lies in them need not exist yet.
    """
    steps = tuple(str(folder) for folder in references.values())
    for key, *names in _PATHS:
        for place, section in _sections(document, key):
            for name in names:
                _find_path(document, place, section, name, steps)
            if key == ("model",):
                _find_template(document, section)
            elif "function" in section:
                _find_function(document, place, section, "function")
    _find_function(document, (), document.value, "rollout_func")
    _find_function(document, (), document.value, "environment")
    for key in ("tools", "environment"):
        several = document.value.get(key)
        places = several if isinstance(several, dict) else range(len(several)) if isinstance(several, list) else ()
        for name in places:
            _find_function(document, (key,), several, name)
    classify = document.value.get("classify")
    if isinstance(classify, dict) and isinstance(classify.get("metrics"), list):
        for number, value in enumerate(classify["metrics"]):  # each a script, or a metric's name
            if isinstance(value, str) and (value.endswith(".py") or value.startswith((".", "/", "~"))):
                classify["metrics"][number] = _found(document, ("classify", "metrics", number), value)
    score = document.value.get("score")
    if isinstance(score, dict):
        find_suite(document, score)


def find_value(file: Path, parts: Sequence[str], value: Any) -> Any:
    """Returns a copy of the value of one key of a recipe, with the paths in it as ``find_inputs`` finds them.

    Args:
        file: What they are looked for beside.
        parts: The key; numbers are places in a list.
        value: The value; what names nothing there stays, to be looked for beside the recipe.
    """
    nested = copy.deepcopy(value)
    for part in reversed(parts[1:]):
        nested = [nested] if part.isdecimal() else {part: nested}
    document = Document(file, {parts[0]: nested})
    find_inputs(document, {})
    found = document.value[parts[0]]
    for part in parts[1:]:
        found = found[0 if part.isdecimal() else part]
    return found


def _sections(document: Document, key: tuple[str, ...]) -> Iterator[tuple[KeyPath, dict[str, Any]]]:
    """Yields the section at a key, or each of the sections of its list, with its place."""
    value: Any = document.value
    for part in key:
        value = value.get(part) if isinstance(value, dict) else None
    places: Any = [(key, value)] if isinstance(value, dict) else []
    places += [((*key, index), item) for index, item in enumerate(value)] if isinstance(value, list) else []
    return ((place, section) for place, section in places if isinstance(section, dict))


def beside(document: Document, value: str) -> Path | None:
    """Returns the path of a file or folder beside the YAML file or, failing that, in the current directory."""
    path = Path(value).expanduser()
    for base in (document.path.parent, Path()):
        with contextlib.suppress(OSError):  # of a text that is too long for a name, such as a prompt
            if (base / path).exists():
                return (base / path).absolute()
    return None


def find_sources(document: Document, key: KeyPath, section: Any, name: Any, references: Mapping[str, Path]) -> None:
    """Resolves the sources that an argument of a tool names, as those of a recipe: a path, a mapping, or some of them.

    Args:
        document: The pipeline.
        key: Where the section stands in it.
        section: The arguments, or a list of sources; changed in place.
        name: The argument, or the place in the list.
        references: Folders of earlier steps; what lies in them need not exist yet.
    """
    value, steps = section[name], tuple(map(str, references.values()))
    if isinstance(value, list):
        for number in range(len(value)):
            find_sources(document, (*key, name), value, number, references)
    elif isinstance(value, dict):
        _find_path(document, (*key, name), value, "path", steps)
    else:
        _find_path(document, key, section, name, steps)


def _find_path(document: Document, key: KeyPath, section: Any, name: Any, steps: tuple[str, ...]) -> None:
    """Resolves one path of a section, or of a list, in place."""
    value = section.get(name) if isinstance(section, dict) else section[name]
    if not isinstance(value, str) or value.startswith("@") or (steps and value.startswith(steps)):
        return
    if beside(document, value) is None and any(character in value for character in "*?["):
        pattern = document.path.parent / Path(value).expanduser()
        section[name] = str(pattern.absolute())  # the reader says if nothing fits
        return
    is_path = value.startswith((".", "/", "~")) or value.count("/") > 1 or value.endswith(_FILE_SUFFIXES)
    section[name] = _found(document, (*key, name), value, is_path)


def _find_function(document: Document, place: KeyPath, section: Any, name: Any) -> None:
    """Makes the file of a function's place absolute."""
    function = section.get(name) if isinstance(section, dict) else section[name]
    if isinstance(function, str) and (file := function_file(function)):
        section[name] = function.replace(file, _found(document, (*place, name), file), 1)


def _found(document: Document, key: KeyPath, value: str, is_path: bool = True) -> str:
    """Returns the absolute path of what a value names; where that is missing, the value and, of a path, a problem."""
    found = beside(document, value)
    if found is None and is_path:
        path = document.path.parent / value
        hint = f"there is no folder {path.parent}"
        if path.parent.is_dir():
            close = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=1)
            hint = f"did you mean '{close[0]}'?" if close else f"looked in {path.parent} and in the current directory"
        document.problem(key, f"no such file or folder: {value}", hint)
    return value if found is None else str(found)


def _find_template(document: Document, model: dict[str, Any]) -> None:
    """Resolves the chat template and loads it once, so that an unknown or broken one is a problem of the recipe."""
    from .. import chat_templates

    value = model.get("chat_template")
    if not isinstance(value, str):
        return
    found = None if value in chat_templates.names() else beside(document, value)
    if found is not None:
        model["chat_template"] = str(found)
    try:
        chat_templates.load(model["chat_template"])
    except TemplateError as error:
        document.problem(("model", "chat_template"), error.what, error.hint)


def find_suite(document: Document, score: dict[str, Any]) -> None:
    """Resolves the suite of a recipe's or pipeline's ``score`` section in place, by name or as a file."""
    from ..evals.suite_files import suite_names

    value = score.get("suite")
    if not isinstance(value, str) or value in suite_names():
        return
    found = beside(document, value)
    if found is not None and found.is_file():
        score["suite"] = str(found)
    else:
        hint = did_you_mean(value, suite_names()) or f"built-in suites: {', '.join(suite_names())}, or a file's path"
        document.problem(("score", "suite"), f"there is no suite '{value}'", hint)
