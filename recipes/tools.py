"""The data tools that ``posttrain data`` and the steps of pipelines run."""

import json
from collections.abc import Mapping
from inspect import Parameter, Signature, getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import typer

from ..chat_templates.errors import InputError, did_you_mean
from ..data_tools.functions import function_file, load_function

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

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
    "explain": ("posttrain.data_tools.explain:Explain", "Show why a row went; of a duplicate, what stays."),
    "extend_tokenizer": (
        "posttrain.recipes.tokenizer_tools:ExtendTokenizer",
        "Extend a model's tokenizer by merges learnt on rows.",
    ),
    "lines": ("posttrain.data_tools.lines:Lines", "Cut lines and paragraphs that stand in many rows."),
    "mup": ("posttrain.recipes.coordinates:Mup", "Check muP over widths: sizes of activations, best learning rates."),
    "prepare": ("posttrain.recipes.prepare_data:Prepare", "Mix and tokenise a recipe's rows; say where they are from."),
    "quality": ("posttrain.data_tools.quality:Quality", "Score rows by a classifier trained on good and bad ones."),
    "sample": ("posttrain.recipes.sample_rows:Sample", "Keep so many tokens: at random, by length, score or DSIR."),
    "scaling": ("posttrain.recipes.scaling:Scaling", "Fit a scaling law to runs: exponents, best sizes, predictions."),
    "score_rows": ("posttrain.recipes.score_rows:ScoreRows", "Score rows by a model: perplexity, bits per byte, IFD."),
    "scrub": ("posttrain.data_tools.scrub:Scrub", "Replace e-mail, phones, cards, accounts, IPs and keys in rows."),
    "semantic": ("posttrain.data_tools.semantic:Semantic", "Flag rows that mean nearly what an earlier one means."),
    "select": ("posttrain.recipes.select_rows:Select", "Keep rows like those wanted (RDS+), or unlike one another."),
    "stats": ("posttrain.recipes.model_tools:Stats", "Measure rows: lengths, turns, tokens, duplicates."),
    "synthesize": (
        "posttrain.recipes.synthesize:Synthesize",
        "Make rows with a model: tasks, pairs, worked answers.",
    ),
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
        values = {key: _given(tool, key, value) for key, value in values.items()}
        checked = validate(tool, Document(Path(f"posttrain data {name}"), values))
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

    def read_source(value: Any) -> Any:
        return parse_scalar(value) if isinstance(value, str) and value.startswith("{") else value

    paths: dict[Any, Any] = {SourceSpec: str, list[Source]: list[str]}
    parameters = []
    unnamed = _unnamed(tool)
    for key, field in tool.model_fields.items():
        kind, said = field.annotation, field.description
        if key == unnamed:
            sources = typer.Argument(help=said, parser=read_source, metavar=key)
            annotation = Annotated[paths[kind], sources]
        elif get_origin(kind) is Literal:  # checked with all else, which knows what a misspelt one may mean
            annotation = Annotated[str, typer.Option(help=said, metavar=f"[{'|'.join(get_args(kind))}]")]
        elif not _is_yaml(field):
            annotation = Annotated[kind, typer.Option(help=said)]
        else:
            default = field.get_default(call_default_factory=True)
            shown: Any = False if field.is_required() or default is None else str(default)
            option = typer.Option(help=said, metavar="<yaml>", show_default=shown)
            empty = Parameter.empty if field.is_required() else None
            parameters.append(_parameter(key, Annotated[list[str] | None, option], empty))
            continue
        default = Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
        parameters.append(_parameter(key, annotation, default))
    return parameters


def _unnamed(tool: type["Tool"]) -> str | None:
    """Returns the field that comes without a name: what the tool reads."""
    from ..data_tools.spec import SourceSpec
    from ..data_tools.tool import Source

    return next((key for key, one in tool.model_fields.items() if one.annotation in (SourceSpec, list[Source])), None)


def _is_yaml(field: "FieldInfo") -> bool:
    """Says whether an option of this field takes YAML, rather than what the command line has words for."""
    from pydantic import BeforeValidator

    plain = (bool, int, float, str, str | None, list[str])
    return not (
        (field.annotation in plain and not any(isinstance(one, BeforeValidator) for one in field.metadata))
        or get_origin(field.annotation) is Literal
    )


def _given(tool: type["Tool"], key: str, value: Any) -> Any:
    """Returns what an option that may be any YAML was given: a list where it stands several times and is one.

    Raises:
        InputError: It stands several times and is no list.
    """
    from ..data_tools.specfile import parse_scalar
    from ..data_tools.tool import comma_separated

    field = tool.model_fields[key]
    if value is None:
        return field.get_default(call_default_factory=True)
    if key == _unnamed(tool) or not _is_yaml(field) or not isinstance(value, list):
        return value
    read = [parse_scalar(text) for text in value]
    if len(read) == 1:
        return read[0]
    kinds = [get_args(kind)[0] if get_origin(kind) is Annotated else kind for kind in get_args(field.annotation)]
    if not any(get_origin(kind) is list for kind in (field.annotation, *kinds)):
        raise InputError(f"stands {len(read)} times", where=f"--{key.replace('_', '-')}", hint="give it once")
    names = any(getattr(one, "func", None) is comma_separated for one in field.metadata)
    found: list[Any] = []
    for one in read:
        one = comma_separated(one) if names else one
        found += one if isinstance(one, list) else [one]
    return found


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
