"""Where the tasks are: files of our own and lm-eval's 14,000, found without reading all of them."""

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..chat_templates.errors import did_you_mean
from ..data_tools.errors import listing
from ..data_tools.files import write_json
from .errors import SuiteError

TASKS = Path(__file__).parent / "tasks"


def lm_eval_folder() -> Path:
    """Returns where lm-eval is installed, without importing it."""
    spec = find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise SuiteError("lm-eval is not installed", hint="pip install lm-eval")
    return Path(spec.origin).parent


def find(name: str) -> Path:
    """Returns the YAML file of a task: a path, one of ``evals/tasks``, or a built-in of lm-eval.

    Raises:
        SuiteError: There is none, or the name stands for several tasks.
    """
    if name.endswith((".yaml", ".yml")):
        return Path(name)
    own = TASKS / f"{name}.yaml"
    if own.is_file():
        return own
    index = _index()
    if name in index["tasks"]:
        return lm_eval_folder() / "tasks" / index["tasks"][name]
    if name in index["several"]:
        members = members_of(name)
        raise SuiteError(f"'{name}' stands for {len(members)} tasks", hint=f"they are: {listing(members, 8)}")
    names = [*index["tasks"], *(path.stem for path in TASKS.glob("*.yaml"))]
    hint = did_you_mean(name, names) or "a task of your own is a path that ends in .yaml"
    raise SuiteError(f"lm-eval has no task '{name}'", hint=hint)


def members_of(name: str) -> list[str]:
    """Returns the tasks that a group or a tag of lm-eval stands for, those of its groups too; none of a task."""
    if name.endswith((".yaml", ".yml")) or (TASKS / f"{name}.yaml").is_file():
        return []
    index = _index()
    found: dict[str, None] = {}
    seen: set[str] = set()

    def add(member: str) -> None:
        if member in index["tasks"]:
            found[member] = None
        elif member not in seen:
            seen.add(member)
            for inner in index["several"].get(member, []):
                add(inner)

    if name not in index["tasks"]:
        add(name)
    return list(found)


def _index() -> dict[str, Any]:
    """Returns lm-eval's task names and files, from the user's cache; the first call scans for some 20 seconds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = cache / "posttrain" / f"lm-eval-{version('lm-eval')}-tasks-2.json"
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # absent, or torn by an older version's write: built again
        index = _scan()
        write_json(path, index)
        return index


def _scan() -> dict[str, Any]:
    from lm_eval.tasks._index import Kind, TaskIndex

    root = lm_eval_folder() / "tasks"
    tasks: dict[str, str] = {}
    several: dict[str, list[str]] = {}
    for name, entry in TaskIndex.build([root]).items():
        if entry.kind in (Kind.TASK, Kind.PY_TASK) and entry.yaml_path is not None:
            tasks[name] = entry.yaml_path.relative_to(root.resolve()).as_posix()
        elif entry.kind is Kind.TAG:
            several[name] = sorted(entry.tags)
        elif entry.kind is Kind.GROUP:
            several[name] = list(_named_in((entry.cfg or {}).get("task")))
    return {"tasks": tasks, "several": several}


def _named_in(members: Any) -> Iterator[str]:
    """Yields the tasks, tags and groups that a group lists, those of groups written inside it too."""
    for member in members if isinstance(members, list) else [members] if members else []:
        if not isinstance(member, dict):
            yield str(member)
        elif isinstance(member.get("task"), list):
            yield from _named_in(member["task"])
        else:
            yield str(member.get("task") or member.get("group"))
