"""Strict YAML: line numbers for every value, duplicate keys refused, numbers by YAML 1.2, all problems at once."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import yaml

from ..chat_templates.errors import did_you_mean, first_line
from .errors import SpecError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic_core import ErrorDetails

Model = TypeVar("Model", bound="BaseModel")
Made = TypeVar("Made")
KeyPath = tuple[str | int, ...]

_MAX_VALUES = 100_000  # of a file with its anchors written out; a few lines of nested anchors make billions


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalar types of YAML 1.2's core schema.

    YAML 1.1 reads ``1e-5`` as a string, ``no`` as false, ``1:30`` as 90 and ``2026-11-21`` as a date.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own shape)


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first))


def _construct_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    """Reads 0o17 as octal and 017 as seventeen, as YAML 1.2 does."""
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass
class Document:
    """A parsed YAML file.

    Attributes:
        path: The file.
        value: Plain dicts, lists and scalars.
        lines: The 1-based line of every key and item, by its path of keys and indices.
        overrides: The overrides that replaced a value, by its path of keys, as the user typed them.
        places: The ``file:line`` of each override that a file holds, such as a study's; others are of the command line.
        problems: What was already wrong while reading, as printable lines.
    """

    path: Path
    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)
    overrides: dict[KeyPath, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def where(self, key: KeyPath) -> str:
        """Returns ``file:line`` of a key or of its nearest parent in the file, or the override that set it."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return self.where_said(self.overrides[key[:length]])
            if key[:length] in self.lines:
                return f"{self.path}:{self.lines[key[:length]]}"
        return str(self.path)

    def where_said(self, *overrides: str) -> str:
        """Returns where overrides stand, and what they say."""
        places = dict.fromkeys(self.places.get(override, "command line") for override in overrides)
        return f"{', '.join(places)} ({' '.join(overrides)})"

    def problem(self, key: KeyPath, what: str, hint: str | None = None) -> None:
        """Records a problem at a key."""
        text = f"{self.where(key)}: {dotted(key)}: {what}" if key else f"{self.where(key)}: {what}"
        self.problems.append(f"{text}; {hint}" if hint else text)


def dotted(key: KeyPath) -> str:
    """Formats a path of keys as ``data.train[0].path``."""
    text = ""
    for part in key:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def load_document(path: Path) -> Document:
    """Reads a YAML file whose top level is a mapping; duplicate keys become problems of the document.

    Raises:
        SpecError: The file is missing, is not UTF-8 or YAML, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise SpecError([f"{path}: cannot read: {reason}"]) from error
    document = Document(path, None)
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise SpecError([f"{path}: the top level must be a mapping of keys to values"])
        document.lines[()] = node.start_mark.line + 1
        document.value = _convert(loader, node, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        hint = "; put the @reference in quotes" if "'@'" in str(error.problem) else ""
        raise SpecError([f"{path}{line}: not valid YAML: {error.problem or error}{hint}"]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([f"{path}: not valid YAML: {first_line(error)}"]) from error
    except RecursionError as error:
        raise SpecError([f"{path}: nested too deeply; does an anchor contain itself?"]) from error
    finally:
        if loader is not None:
            loader.dispose()
    return document


def parse_scalar(text: str) -> Any:
    """Reads one YAML value, such as the right-hand side of an override, as it would be read in a file.

    Raises:
        ValueError: The text is not YAML; says why.
    """
    if text.startswith("@"):
        return text  # a reference to a pipeline's step; YAML would want it quoted, which a shell takes away
    scratch = Document(Path("the value"), None)
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = None if node is None else _convert(loader, node, (), scratch)
    except (yaml.YAMLError, SpecError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the value is not valid YAML: {getattr(error, 'problem', None) or first_line(error)}"
        ) from error
    if scratch.problems:
        raise ValueError(scratch.problems[0].partition(": ")[2])
    return value


def _convert(loader: _Loader, node: yaml.Node, key: KeyPath, document: Document) -> Any:
    """Turns a node into plain values, noting lines and duplicate keys on the way."""
    if len(document.lines) > _MAX_VALUES:
        raise yaml.YAMLError(f"more than {_MAX_VALUES} values, anchors written out")
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, child in enumerate(node.value):
            document.lines[*key, index] = child.start_mark.line + 1
            items.append(_convert(loader, child, (*key, index), document))
        return items
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node, deep=True)
    _refuse_duplicates(node, key, document)
    loader.flatten_mapping(node)  # `<<: *anchor`
    mapping = {}
    for key_node, child in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            where = f"{document.path}:{key_node.start_mark.line + 1}"
            raise SpecError([f"{where}: {dotted(key) or 'top level'}: a key must be a plain word"])
        name = key_node.value  # as written: `true` stays a word, `0` is the column's name
        document.lines[*key, name] = key_node.start_mark.line + 1
        mapping[name] = _convert(loader, child, (*key, name), document)
    return mapping


def _refuse_duplicates(node: yaml.MappingNode, key: KeyPath, document: Document) -> None:
    """Notes each key that a mapping holds twice."""
    first: dict[str, int] = {}
    for key_node, _ in node.value:
        name, line = str(key_node.value), key_node.start_mark.line + 1
        if name in first and name != "<<":
            where = f"{document.path}:{line}: {dotted((*key, name))}"
            document.problems.append(f"{where}: duplicate key; it already stands in line {first[name]}")
        first.setdefault(name, line)


def validate(model: type[Model], document: Document) -> Model:
    """Checks a document against a pydantic model and returns the model.

    Args:
        model: The schema; unknown keys are problems if it forbids extras.
        document: The parsed file. Problems found are added to ``document.problems``.

    Raises:
        SpecError: With every problem of the document, sorted by line.
    """
    return settled(document, try_model(model, document))


def try_model(model: type[Model], document: Document, at: KeyPath = ()) -> Model | None:
    """Does the same for a caller that has more to check: it raises nothing, and returns None of what does not fit.

    Args:
        model: As of :func:`validate`.
        document: As of :func:`validate`.
        at: The key of the part that is checked; by default it is the whole.
    """
    from pydantic import ValidationError

    result, value = None, document.value
    for part in at:
        value = value[part]
    try:
        result = model.model_validate(value)
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            _add_problem(model, document, detail, (*at, *_key_of(value, detail["loc"])), at)
    return result


def settled(document: Document, made: Made | None) -> Made:
    """Returns what was made of a document; what could not be made has left a problem, which is raised."""
    raise_if_problems(document)
    assert made is not None, "no problem was reported, so it was made"
    return made


def raise_if_problems(document: Document) -> None:
    """Raises what a document has gathered, in the order of its lines and without repetition."""
    if document.problems:

        def line(problem: str) -> int:
            match = re.match(re.escape(str(document.path)) + r":(\d+):", problem)
            return int(match[1]) if match else 0

        raise SpecError(sorted(dict.fromkeys(document.problems), key=line))


def with_references(document: Document, value: Any, references: Mapping[str, Path], key: KeyPath = ()) -> Any:
    """Returns a value in which ``@name`` and ``@name/rest`` are the folder that a pipeline's step of that name wrote.

    Args:
        document: A reference to no known step becomes a problem of it.
        value: The document's value, or a part of it.
        references: The folders of the steps that may be named.
        key: Where the value stands in the document.
    """
    if isinstance(value, dict):
        return {k: with_references(document, v, references, (*key, k)) for k, v in value.items()}
    if isinstance(value, list):
        return [with_references(document, v, references, (*key, i)) for i, v in enumerate(value)]
    if not (isinstance(value, str) and value.startswith("@")):
        return value
    name, _, rest = value[1:].partition("/")
    if name in references:
        return str(references[name] / rest) if rest else str(references[name])
    known = f"steps before this one: {', '.join(references)}"
    hint = did_you_mean(name, references) or (known if references else "an @step has a meaning only in a pipeline")
    document.problem(key, f"no earlier step is named '{name}'", hint)
    return value


def _add_problem(
    model: type["BaseModel"], document: Document, detail: "ErrorDetails", key: KeyPath, at: KeyPath
) -> None:
    """Words one pydantic error as a problem of the document."""
    if detail["type"] == "extra_forbidden":
        known = _fields_at(model, key[len(at) : -1])
        hint = did_you_mean(str(key[-1]), known) or (f"known keys: {', '.join(sorted(known))}" if known else None)
        document.problem(key, "unknown key", hint)
    elif detail["type"] == "missing":
        document.problem(key, "this key is required")
    elif detail["type"] in ("literal_error", "enum"):
        expected = str(detail.get("ctx", {}).get("expected", ""))
        value = str(detail["input"])
        hint = did_you_mean(value, re.findall(r"'([^']*)'", expected))
        document.problem(key, f"must be one of {expected.replace(' or ', ', ')}, not {value!r}", hint)
    elif detail["type"] == "value_error":
        document.problem(key, detail["msg"].removeprefix("Value error, "))
    else:
        message = detail["msg"][0].lower() + detail["msg"][1:]
        value = detail["input"]
        shown = "" if isinstance(value, dict | list) else f", not {value!r}"
        document.problem(key, message.removeprefix("input ") + shown)


def _key_of(value: Any, location: tuple[int | str, ...]) -> KeyPath:
    """Drops the union tags that pydantic puts between the keys of a location."""
    key: KeyPath = ()
    part: Any  # a key of a dict or an index into a list
    for index, part in enumerate(location):
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            key, value = (*key, part), value[part]
        elif index == len(location) - 1 and isinstance(value, dict) and str(part).isidentifier():
            key = (*key, part)  # a missing key
    return key


def _fields_at(model: Any, key: KeyPath) -> list[str]:
    """Returns the field names of the schema at a key, looking through optionals, unions, lists and dicts."""
    from pydantic import BaseModel

    candidates = [model]
    for part in key:
        reached = []
        for candidate in candidates:
            if isinstance(candidate, type) and issubclass(candidate, BaseModel) and isinstance(part, str):
                fields = candidate.model_fields
                if part in fields:
                    reached.extend(_unfold(fields[part].annotation))
            elif get_origin(candidate) is dict:
                reached.extend(_unfold(get_args(candidate)[1]))
            else:
                reached.append(candidate)  # an index into a list, which _unfold has already opened
        candidates = reached
    names = []
    for candidate in candidates:
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            names.extend(candidate.model_fields)
    return names


def _unfold(annotation: Any) -> list[Any]:
    """Flattens ``X | list[Y] | None`` to its leaf types; a dict is one, since its keys are names of the file's own."""
    arguments = get_args(annotation)
    if not arguments or get_origin(annotation) is dict:
        return [annotation]
    return [leaf for argument in arguments for leaf in _unfold(argument)]
