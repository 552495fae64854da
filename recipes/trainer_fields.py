"""The fields of a trainer's configuration class, read from its source without importing it.

Importing ``SFTConfig`` takes about ten seconds, most of it torch and transformers; a recipe must be checkable in
well under three. The classes are plain dataclasses, so their source says all: names, annotations, defaults. A test
holds what is read here against ``dataclasses.fields`` of the imported class.
"""

import ast
import functools
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError, did_you_mean

# Where a base class or an enumeration named in a configuration module is defined, if not beside it.
_ELSEWHERE = {
    "TrainingArguments": ("transformers", "training_args.py"),
    "SchedulerType": ("transformers", "trainer_utils.py"),
    "IntervalStrategy": ("transformers", "trainer_utils.py"),
    "SaveStrategy": ("transformers", "trainer_utils.py"),
    "HubStrategy": ("transformers", "trainer_utils.py"),
    "OptimizerNames": ("transformers", "training_args.py"),
}
# Packages whose classes a configuration class of ours may extend.
_PACKAGES = ("trl", "transformers")
# Lists whose class also takes one item by itself, and makes a list of it.
_ONE_WILL_DO: dict[str, tuple[type, ...]] = {"loss_type": (str,)}
_PRIMITIVES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
    "dict": (dict,),
    "list": (list,),
    "None": (type(None),),
}


@dataclass(frozen=True)
class Field:
    """One field of a configuration class.

    Attributes:
        name: Its name.
        annotation: Its annotation as written, such as ``float | None``.
        default: Its default, or None where the source computes it.
        types: The Python types that a YAML value may have; empty if the annotation is beyond what YAML can say.
        choices: The values of the enumeration in its annotation, if there is one.
    """

    name: str
    annotation: str
    default: Any
    types: tuple[type, ...]
    choices: tuple[str, ...]


@functools.cache
def fields_of(config: str) -> Mapping[str, Field]:
    """Returns the fields of a configuration class, inherited ones included.

    Args:
        config: ``package:file:class``, such as ``trl:trainer/sft_config.py:SFTConfig``.

    Raises:
        PosttrainError: The package is not installed, or its layout has changed.
    """
    package, file, name = config.split(":")
    return _class_fields(_package_folder(package) / file, name)


def _package_folder(package: str) -> Path:
    """Finds an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PosttrainError(f"the package {package} is not installed", hint=f"pip install {package}")
    return Path(spec.submodule_search_locations[0])


@functools.cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _find(path: Path, name: str) -> tuple[Path, ast.ClassDef]:
    """Finds a class in a module, in the sibling it imports the class from, or in the table above."""
    for node in _parse(path).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return path, node
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            source = _imported_file(path, node.level, node.module)
            if source is not None:
                return _find(source, name)
    if name in _ELSEWHERE:
        package, file = _ELSEWHERE[name]
        elsewhere = _package_folder(package) / file
        if elsewhere != path:
            return _find(elsewhere, name)
    raise PosttrainError(f"class {name} not found", where=str(path), hint="install the versions in constraints.txt")


def _imported_file(path: Path, level: int, module: str) -> Path | None:
    """Returns the file of a module that another imports from, relatively or by its full name, if it is one file."""
    if level:
        file = path.parents[level - 1] / f"{module.replace('.', '/')}.py"
    else:
        package, _, rest = module.partition(".")
        if package not in _PACKAGES or not rest:
            return None
        file = _package_folder(package) / f"{rest.replace('.', '/')}.py"
    return file if file.is_file() else None


def _class_fields(path: Path, name: str) -> dict[str, Field]:
    """Collects a class's annotated attributes after those of its bases, as ``dataclasses`` does."""
    path, node = _find(path, name)
    fields: dict[str, Field] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            fields |= _class_fields(path, base.id)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            if _is_not_settable(statement):
                continue
            field = _field(path, statement.target.id, statement)
            fields[field.name] = field
    return fields


def _is_not_settable(statement: ast.AnnAssign) -> bool:
    """Says whether a field is ``init=False`` or a class variable, so that no user sets it."""
    if ast.unparse(statement.annotation).startswith("ClassVar"):
        return True
    value = statement.value
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return any(k.arg == "init" and isinstance(k.value, ast.Constant) and k.value.value is False for k in keywords)


def _field(path: Path, name: str, statement: ast.AnnAssign) -> Field:
    """Reads one annotated assignment."""
    annotation = ast.unparse(statement.annotation)
    types: list[type] = []
    choices: list[str] = []
    for part in _parts(statement.annotation):
        if part in _PRIMITIVES:
            types.extend(_PRIMITIVES[part])
        elif part in _ELSEWHERE:
            choices.extend(_enumeration(path, part))
    if list in types:
        types.extend(_ONE_WILL_DO.get(name, ()))
    return Field(name, annotation, _default(statement.value), tuple(types), tuple(choices))


def _parts(annotation: ast.expr) -> list[str]:
    """Splits ``dict[str, Any] | str | None`` into ``dict``, ``str``, ``None``."""
    if isinstance(annotation, ast.BinOp):
        return _parts(annotation.left) + _parts(annotation.right)
    if isinstance(annotation, ast.Subscript):
        name = ast.unparse(annotation.value)
        return _parts(annotation.slice) if name == "Optional" else [name]
    return [ast.unparse(annotation)]


def _default(value: ast.expr | None) -> Any:
    """Evaluates a literal default, plain or inside ``field(default=…)``; None if the source computes it."""
    if isinstance(value, ast.Call):
        value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
    try:
        return None if value is None else ast.literal_eval(value)
    except ValueError:
        return None


def _enumeration(path: Path, name: str) -> list[str]:
    """Returns the string values of an enumeration."""
    _, node = _find(path, name)
    values = []
    for statement in node.body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
            values.append(str(statement.value.value))
    return values


def problems(values: Mapping[str, Any], fields: Mapping[str, Field]) -> list[tuple[str, str, str | None]]:
    """Compares a recipe's ``trainer:`` section with the fields of its configuration class.

    Returns:
        ``(key, what is wrong, hint)`` for every key that is unknown or holds a value of the wrong type.
    """
    found = []
    for key, value in values.items():
        if key not in fields:
            found.append((key, "unknown key", did_you_mean(key, fields)))
            continue
        field = fields[key]
        # bool is a subclass of int, yet `learning_rate: true` is a mistake.
        is_stray_bool = isinstance(value, bool) and bool not in field.types
        if field.types and (is_stray_bool or not isinstance(value, field.types)):
            found.append((key, f"must be {field.annotation}, not {value!r}", None))
        elif field.choices and isinstance(value, str) and value not in field.choices:
            hint = did_you_mean(value, field.choices) or f"one of {', '.join(field.choices)}"
            found.append((key, f"has no value {value!r}", hint))
    return found
