"""The data tools that ``posttrain data`` and the steps of pipelines run."""

import json
from collections.abc import Mapping
from inspect import Parameter, Signature, getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import typer

from ..chat_templates.errors import InputError, did_you_mean
from ..data_tools.functions import function_file, load_function

if TYPE_CHECKING:
    from ..data_tools.tool import Tool

# Where each tool's model of its arguments is, imported when the tool is used, and the line that `--help` has for it.
TOOLS: Mapping[str, tuple[str, str]] = {
    "answers": ("posttrain.recipes.model_tools:Answers", "Let a model answer prompts, for training on the answers."),
    "best_of_n": ("posttrain.recipes.model_tools:BestOfN", "Work out what the best of n answers is worth by a reward."),
    "clean": ("posttrain.data_tools.clean:Clean", "Leave out rows that rules find bad: web text, chats, code."),
    "compare_tokenizers": (
        "posttrain.recipes.tokenizer_tools:CompareTokenizers",
        "Compare tokenizers on rows: tokens, fertility, what they lose.",
    ),
    "convert": ("posttrain.data_tools.convert:Convert", "Bring rows of any layout to canonical columns."),
    "decontaminate": ("posttrain.recipes.model_tools:Decontaminate", "Find and remove rows that hold items of tests."),
    "dedup": ("posttrain.data_tools.dedup:Dedup", "Remove rows that say what another row says."),
    "explain": ("posttrain.data_tools.explain:Explain", "Show why a row went, beside the one that stays for it."),
    "extend_tokenizer": (
        "posttrain.recipes.tokenizer_tools:ExtendTokenizer",
        "Extend a model's tokenizer by merges learnt on rows.",
    ),
    "lines": ("posttrain.data_tools.lines:Lines", "Cut lines and paragraphs that stand in many rows."),
    "prepare": ("posttrain.recipes.prepare_data:Prepare", "Mix and tokenise a recipe's rows; say where they are from."),
    "quality": ("posttrain.data_tools.quality:Quality", "Score rows by a classifier trained on good and bad ones."),
    "score_rows": ("posttrain.recipes.score_rows:ScoreRows", "Score rows by a model: perplexity, bits per byte, IFD."),
    "scrub": ("posttrain.data_tools.scrub:Scrub", "Replace e-mail, phones, cards, accounts, IPs and keys in rows."),
    "semantic": ("posttrain.data_tools.semantic:Semantic", "Flag rows that mean nearly what an earlier one means."),
    "select": ("posttrain.recipes.select_rows:Select", "Keep the rows most like rows that are wanted (RDS+)."),
    "stats": ("posttrain.recipes.model_tools:Stats", "Measure rows: lengths, turns, tokens, duplicates."),
    "tokenizer": ("posttrain.data_tools.tokenizer:Tokenizer", "Train a byte-level BPE or Unigram tokenizer."),
}


def load_tool(name: str) -> type["Tool"]:
    """Imports a tool: one of the table, or a user's own, ``file.py:Name``.

    Raises:
        InputError: There is no such tool, or it is none.
    """
    from ..data_tools.tool import Tool

    if name not in TOOLS and not function_file(name):
        hint = did_you_mean(name, TOOLS) or f"known: {', '.join(TOOLS)}, or a tool of your own, file.py:Name"
        raise InputError(f"no tool '{name}'", hint=hint)
    tool: Any = load_function(TOOLS[name][0] if name in TOOLS else name, "tool")
    if not (isinstance(tool, type) and issubclass(tool, Tool)):
        raise InputError("is no class made from posttrain.data_tools.tool.Tool", where=f"tool {name}")
    return tool


def run_command(name: str, *arguments: str) -> None:
    """Runs ``posttrain data NAME ARGUMENTS``, a command whose arguments are the fields of the tool's model.

    Raises:
        PosttrainError: There is no such tool, an argument is wrong, or the work failed.
    """
    from ..data_tools.specfile import Document, validate

    tool = load_tool(name)

    def print_schema(wanted: bool) -> None:
        if wanted:
            print(json.dumps(tool.model_json_schema(), indent=2))
            raise typer.Exit

    def run(output: Path, json_schema: bool, **values: Any) -> None:
        checked = validate(tool, Document(Path(f"posttrain data {name}"), values))
        assert checked is not None, "no problem was raised, so it validated"
        print(checked.run(output) or output)

    folder = typer.Option("-o", help="The folder that is written into.")
    schema = typer.Option("--json-schema", help="Print the JSON Schema.", is_eager=True, callback=print_schema)
    parameters = [
        *_parameters(tool),
        _parameter("output", Annotated[Path, folder], Path(name.rpartition(":")[2])),
        _parameter("json_schema", Annotated[bool, schema], False),
    ]
    command: Any = run
    command.__signature__ = Signature(parameters)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(help=(getdoc(tool) or "").replace("``", "`"))(command)
    app([*arguments], prog_name=f"posttrain data {name}")


def _parameters(tool: type["Tool"]) -> list[Parameter]:
    """The fields of a tool as the command line takes them: what it reads without a name, what is not plain as YAML."""
    from ..data_tools.spec import SourceSpec
    from ..data_tools.specfile import parse_scalar
    from ..data_tools.tool import Source

    def read_yaml(value: Any) -> Any:
        return parse_scalar(value) if isinstance(value, str) else value  # else it is the default

    def read_source(value: Any) -> Any:
        return parse_scalar(value) if isinstance(value, str) and value.startswith("{") else value

    paths: dict[Any, Any] = {SourceSpec: str, list[Source]: list[str]}
    plain = (bool, int, float, str, str | None, list[str])
    parameters = []
    unnamed = next((key for key, field in tool.model_fields.items() if field.annotation in paths), None)
    for key, field in tool.model_fields.items():
        kind, said = field.annotation, field.description
        if key == unnamed:
            sources = typer.Argument(help=said, parser=read_source, metavar=key)
            annotation = Annotated[paths[kind], sources]
        elif (kind in plain and not field.metadata) or get_origin(kind) is Literal:
            annotation = Annotated[kind, typer.Option(help=said)]
        else:
            annotation = Annotated[str, typer.Option(help=said, parser=read_yaml, metavar="<yaml>")]
        default = Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        parameters.append(_parameter(key, annotation, default))
    return parameters


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
