"""The reference: every key of YAML files and data tools by their JSON Schemas, and the command line by click."""

import ast
import inspect
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from posttrain.evals.judges import JudgeSpec
from posttrain.evals.spec import SuiteSpec
from posttrain.recipes.cli import app
from posttrain.recipes.schema import Pipeline, Recipe, Study
from posttrain.recipes.stage_table import STAGES
from posttrain.recipes.tools import TOOLS, load_tool
from posttrain.recipes.trainer_fields import fields_of
from pydantic import BaseModel

# The pages of files: the model of each, and a line on what it is.
FILES: Mapping[str, tuple[type[BaseModel], str]] = {
    "recipe": (Recipe, "What `posttrain train` reads. Of `trainer`, see [the trainer section](trainer.md)."),
    "pipeline": (Pipeline, "What `posttrain run` reads."),
    "study": (Study, "What `posttrain study` reads."),
    "suite": (SuiteSpec, "What `posttrain score --suite` reads."),
    "judge": (JudgeSpec, "A judge's `judge.yaml`; the same keys in a suite's entry replace them."),
}


def write(folder: Path) -> None:
    """Writes the pages into a folder; a page that is there and would be the same stays untouched."""
    pages = {name: _page(f"Keys of a {name}", said, {"": model}) for name, (model, said) in FILES.items()}
    tools = {name: load_tool(name) for name in sorted(TOOLS)}
    said = "Arguments of `posttrain data TOOL`, and keys of `args` in a pipeline's step; `a_b` is `--a-b` there."
    pages |= {"tools": _page("Data tools", said, tools), "trainer": _trainer(), "commands": _commands()}
    pages["museum"] = _museum(Path(__file__).parents[1] / "tests" / "museum")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _museum(folder: Path) -> str:
    """The museum of traps: the docstring of each of its tests, and the test."""
    lines = [
        "# A museum of traps",
        "",
        "Silent faults of the field: nothing fails, and the result is wrong. Each room is a test that shows the fault",
        "in the library that has it, as it is installed, and that it is not here. It fails once that is mended.",
        "",
    ]
    for path in sorted(folder.glob("test_*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        subject = (ast.get_docstring(tree) or "").removeprefix("Rooms of the museum: ").rstrip(".")
        lines += [f"## {subject.capitalize()}", ""]
        for room in tree.body:
            if isinstance(room, ast.FunctionDef) and room.name.startswith("test_"):
                title = room.name.removeprefix("test_").replace("_", " ").capitalize()
                code = textwrap.dedent("\n".join(source.splitlines()[room.body[1].lineno - 1 : room.end_lineno]))
                lines += [f"### {title}", "", ast.get_docstring(room) or "", "", "```python", code, "```", ""]
    return "\n".join(lines)


def _page(title: str, said: str, models: Mapping[str, type[BaseModel]]) -> str:
    """One page: each model's keys, and after all of them those of the sections that they hold."""
    lines, sections = [f"# {title}", "", said, ""], {}
    for name, model in models.items():
        schema = model.model_json_schema()
        sections |= schema.get("$defs", {})
        lines += [*([f"## {name}", ""] if name else []), *_keys(schema)]
    for name in sorted(sections):
        if "properties" in sections[name]:
            lines += [f"## {name}", "", *_keys(sections[name])]
    return "\n".join(lines)


def _keys(schema: Mapping[str, Any]) -> list[str]:
    """The lines of one mapping: what it is, and a point for each key."""
    lines = [*_text(schema.get("description", "")), ""]
    required = schema.get("required", ())
    for key, entry in schema.get("properties", {}).items():
        facts = [_type(entry)]
        if key in required:
            facts.append("required")
        elif entry.get("default") not in (None, [], {}):
            facts.append(f"default `{entry['default']}`")
        said = " ".join(_text(entry.get("description", "")))
        lines.append(f"- **`{key}`** ({', '.join(facts)})" + (f": {said}" if said else ""))
    return [*lines, ""]


def _type(entry: Mapping[str, Any]) -> str:
    """A JSON Schema's type in words, the sections in it as links."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in entry or "const" in entry:
        return " / ".join(f"`{word}`" for word in entry.get("enum", [entry.get("const")]))
    options = entry.get("anyOf") or entry.get("oneOf") or entry.get("allOf")
    if options:
        return " or ".join(dict.fromkeys(_type(option) for option in options if option.get("type") != "null"))
    kind = entry.get("type", "any value")
    if kind == "array":
        return f"list of {_type(entry.get('items', {}))}"
    if kind == "object" and isinstance(entry.get("additionalProperties"), dict):
        return f"mapping to {_type(entry['additionalProperties'])}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [f"{sign} {entry[bound]}" for bound, sign in bounds.items() if bound in entry]
    return " ".join([{"object": "mapping"}.get(kind, kind), *said])


def _text(description: str) -> list[str]:
    """A docstring as Markdown: code is marked, nothing else is markup."""
    plain = re.sub(r":\w+:(?=`)", "", inspect.cleandoc(description)).replace("``", "`")
    parts = re.split(r"(`[^`]+`)", plain)  # code at the odd places
    parts[::2] = [re.sub(r"([<>*\[\]_])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts).splitlines()


def _trainer() -> str:
    """The page of the trainer section: for each stage whose fields it takes, what differs, what is said elsewhere."""
    lines = [
        "# The trainer section",
        "",
        "Verbatim fields of the configuration class of the stage's trainer, checked against it and never redeclared;",
        "what a field does is said in the library's own documentation.",
        "",
    ]
    for name, stage in STAGES.items():
        fields = fields_of(stage.config)
        package, _, kind = stage.config.split(":")
        lines += [f"## {name}", "", f"Fields of `{kind}` ({package}): "]
        lines[-1] += ", ".join(f"`{field}`" for field in fields if field not in stage.owned) + "."
        lines += ["", *(f"- **`{key}`** is `{value}` here by default" for key, value in stage.defaults.items())]
        lines += [*(f"- `{key}` is refused: {_text(why)[0]}" for key, why in stage.owned.items() if key in fields), ""]
    return "\n".join(lines)


def _commands() -> str:
    """The page of the command line: the help of each command as it is printed."""
    group: Any = typer.main.get_command(app)
    lines = ["# Commands", "", "Exit codes: 0 done, 1 the work failed, 2 the input is wrong.", ""]
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=f"posttrain {name}", max_content_width=110)
        lines += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(lines)
