"""A recipe's own mapping: sandboxed Jinja templates that turn a row's columns into a training example."""

import functools
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .errors import DataError, RowError, missing_column

if TYPE_CHECKING:
    from ..chat_templates.sandbox import Sandbox

Values = dict[str, Any]
Evaluate = Callable[[Values], Any]

# Jinja's filters that write out whatever they are given, None as the word.
_TEXT_FILTERS = (
    "capitalize", "center", "e", "escape", "forceescape", "format", "join", "lower", "replace", "safe", "string",
    "striptags", "title", "trim", "upper", "urlencode", "urlize",
)  # fmt: skip


@functools.cache
def _environment() -> "Sandbox":
    from jinja2 import StrictUndefined, nodes

    from ..chat_templates.sandbox import Sandbox

    class MappingSandbox(Sandbox):
        """An environment in which ``~`` joins what the filter ``string`` makes of its values."""

        def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
            for joined in source.find_all(nodes.Concat):
                joined.nodes = [nodes.Filter(part, "string", [], [], None, None) for part in joined.nodes]
            return super()._generate(source, *args, **options)

    environment = MappingSandbox(undefined=StrictUndefined, keep_trailing_newline=True)
    for name in set(environment.globals) - {"range", "namespace"}:
        del environment.globals[name]  # `{{ dict }}` is a misnamed column, not Python's dict
    environment.finalize = _with_empty(environment.finalize)
    environment.filters["join"] = _joining(environment.filters["join"])
    environment.filters |= {name: _with_empty(environment.filters[name]) for name in _TEXT_FILTERS}
    return environment


def _with_empty(run: Callable[..., Any]) -> Callable[..., Any]:
    """Has a function take None as empty text: a column that is null does not say "None"."""

    @functools.wraps(run)
    def filled(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(kwargs, _filled(kwargs.values()), strict=True))
        return run(*_filled(args), **named)

    return filled


def _filled(values: Iterable[Any]) -> list[Any]:
    return ["" if value is None else value for value in values]


def _joining(run: Callable[..., str]) -> Callable[..., str]:
    """Has Jinja's filter ``join`` take None among what it joins as empty text."""
    from jinja2.filters import make_attrgetter

    @functools.wraps(run)
    def joined(context: Any, value: Iterable[Any], d: str = "", attribute: str | int = "") -> str:
        if attribute != "":
            value = map(make_attrgetter(context.environment, attribute), value)
        return run(context, _filled(value), d)

    return joined


def syntax_problem(source: str) -> str | None:
    """Returns what is wrong with a template's syntax, or None."""
    from jinja2 import TemplateError, TemplateSyntaxError

    try:
        compile_template(source)
    except TemplateSyntaxError as error:
        return f"{error.message} (in line {error.lineno} of the template)" if error.lineno > 1 else error.message
    except TemplateError as error:
        return str(error)
    return None


def compile_template(source: str, *, to_text: bool = False) -> Evaluate:
    """Compiles a template to a function of a row's columns.

    A template that is one expression and nothing else, ``{{ label }}``, gives the value itself, so that a number, a
    truth value or a list stays one; a text keeps the space around it, but for the end of its line, and where text is
    wanted so does a number. Any other template gives text, in which None is empty. The row as a whole is ``row``, for
    columns whose names are no identifiers: ``{{ row['#1 String'] }}``.

    Args:
        source: The template.
        to_text: Whether what it gives is a text in the end, see ``as_text``.

    Raises:
        jinja2.TemplateSyntaxError: The template is not one.
    """
    if "{" not in source:
        return lambda row: source
    environment = _environment()
    lone = _lone_expression(source)
    if lone is None:
        return _guarded(environment.from_string(source).render)
    before, expression, after = lone
    if expression.isidentifier() and expression.lower() not in ("true", "false", "none"):
        evaluate = _column(expression)
    else:
        evaluate = _guarded(environment.compile_expression(expression, undefined_to_none=False))
    if not before + after:
        return evaluate

    def spaced(row: Values) -> Any:
        value = evaluate(row)
        is_text = isinstance(value, str | int | float if to_text else str)
        return f"{before}{value}{after}" if is_text else value

    return spaced


def _column(name: str) -> Evaluate:
    """Reads one column: most templates are no more, and Jinja takes fifty times as long for it."""

    def run(row: Values) -> Any:
        try:
            return row[name]
        except KeyError:
            if name == "row":
                return row
            raise missing_column(name, row) from None

    return run


def _lone_expression(source: str) -> tuple[str, str, str] | None:
    """Returns the expression of a template that is nothing else, between the space around it, or None."""
    from jinja2 import nodes

    body = _environment().parse(source).body
    text = source.strip()
    if len(body) != 1 or not isinstance(body[0], nodes.Output) or not text.startswith("{{"):
        return None
    parts: list[Any] = [*body[0].nodes]
    before = parts.pop(0).data if isinstance(parts[0], nodes.TemplateData) else ""
    after = parts.pop().data if isinstance(parts[-1], nodes.TemplateData) else ""
    if len(parts) != 1 or (before + after).strip():
        return None
    expression = text[2:-2].strip().removeprefix("-").removesuffix("-").strip()
    return before, expression, after.removesuffix("\n")  # with which YAML ends a block


def _guarded(evaluate: Callable[..., Any]) -> Evaluate:
    """Wraps a compiled template; what goes wrong in it becomes a reason to drop the row."""
    from jinja2 import Undefined, UndefinedError
    from jinja2.exceptions import SecurityError

    from ..chat_templates.sandbox import LimitError

    def run(row: Values) -> Any:
        try:
            _environment().start()
            value = evaluate({"row": row, **row})
            if isinstance(value, Undefined):
                value._fail_with_undefined_error()  # type: ignore[no-untyped-call]
        except LimitError as error:
            raise DataError(
                f"the mapping does not come to an end: {error}", hint="look for loops inside loops"
            ) from error
        except SecurityError as error:
            raise DataError(f"the mapping does what the sandbox forbids: {error}") from error
        except UndefinedError as error:
            raise _missing(str(error), row) from error
        except Exception as error:  # whatever an expression can raise: a type that does not fit, a division by zero
            raise RowError(f"the mapping fails: {type(error).__name__}", str(error)) from error
        return value

    return run


def _missing(message: str, row: Values) -> RowError:
    """Words an undefined name as a missing column."""
    name, _, rest = message.partition(" is undefined")
    name = name.strip("'")
    in_row = re.fullmatch(r"'dict object' has no attribute '(.*)'", message)
    if in_row and in_row[1] not in row:
        return missing_column(in_row[1], row)
    if rest or not message.endswith(" is undefined") or name in row:
        return RowError(f"the mapping fails: {message}")
    return missing_column(name, row)


def as_text(value: Any, what: str) -> str:
    """Returns a rendered value as text; nothing becomes the empty text.

    Raises:
        RowError: The value is a list or a dict, whose printed form is no text to train on.
    """
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, list | dict | tuple | set):
        raise RowError(f"{what} is a {type(value).__name__}, not text")
    return str(value)
