"""The sandbox that templates of chats and of mappings run in: what they can reach is bounded, and so is what they take.

jinja2's own sandbox keeps a template from everything but its data; it lets two loops inside each other run for years,
and ``'x' * 10**10`` fill the memory. Here each loop and call is a step, values and output have a largest size, and a
render has a deadline. Imported inside functions only, since jinja2 takes a while.
"""

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_STEPS = 200_000
MOST_CHARACTERS = 1 << 26
MOST_PARTS = 300_000  # values inside a value
MOST_SECONDS = 10.0
_WIDTHS = ("center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice")
_WIDE = re.compile(r"\d+")  # a width in a format
_STEP = " step"  # no template can name such a filter
_METHODS = frozenset(dir(dict))  # which jinja2 prefers to keys


class LimitError(SecurityError):
    """A template takes more steps, characters or seconds than any conversation or row can need."""


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment whose templates end."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.bound()

    def bound(self) -> None:
        """Sets up the limits, also in an environment of jinja2's own class that became one of this."""
        self._used = threading.local()
        self.filters = {name: _bounded_filter(name, run) for name, run in self.filters.items()}
        self.filters[_STEP] = self._step
        self.finalize = self._written

    def start(self) -> None:
        """Begins a render: nothing is used up yet."""
        self._used.steps, self._used.written, self._used.end = 0, 0, time.monotonic() + MOST_SECONDS

    @pass_context  # without one to pass, compiling would work it out
    def _step(self, _: Any, value: Any = None) -> Any:
        """What loops go through in each round, and what assignments give."""
        used = self._used
        try:
            used.steps += 1
        except AttributeError:  # nothing has begun a render in this thread
            self.start()
        if used.steps > MOST_STEPS:
            raise LimitError(f"it takes more than {MOST_STEPS:,} steps")
        if time.monotonic() > used.end:
            raise LimitError(f"it takes more than {MOST_SECONDS:g} seconds")
        return measured(value)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Calls a function from a template."""
        __self._step(__context)
        method = getattr(__obj, "__wrapped__", __obj)
        whose = getattr(method, "__self__", None)
        values = (whose, *args) if isinstance(whose, str) else args
        _check_growth(getattr(method, "__name__", ""), (*values, *kwargs.values()))
        return measured(super().call(__context, __obj, *args, **kwargs))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Reads a key of an object, most of all a message's, or what else jinja2 finds under a name."""
        if type(obj) is dict and attribute in obj and attribute not in _METHODS:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Calculates, unless the result were a giant."""
        if operator == "+" and type(left) is str and type(right) is str and len(left) + len(right) <= MOST_CHARACTERS:
            return left + right
        size = 0
        if isinstance(left, int) and isinstance(right, int):
            powers = max(left.bit_length(), 1) * max(right, 1)
            size = 64 * (powers if operator == "**" else left.bit_length() + right.bit_length())
        elif operator == "*":
            lengths = [_length(one) * other for one, other in ((left, right), (right, left)) if isinstance(other, int)]
            size = max(lengths, default=0)
        elif operator == "+":
            size = _length(left) + _length(right)
        elif operator == "%":
            _check_growth("format", (left,))
        if size > MOST_CHARACTERS:
            raise LimitError(f"a value would be larger than {MOST_CHARACTERS:,} characters")
        return super().call_binop(context, operator, left, right)

    def _written(self, value: Any) -> Any:
        """Counts what is written."""
        text = value if isinstance(value, str) else str(measured(value)) if isinstance(value, list | dict) else ""
        used = self._used
        used.written = getattr(used, "written", 0) + len(text)
        if used.written > MOST_CHARACTERS:
            raise LimitError(f"it writes more than {MOST_CHARACTERS:,} characters")
        return value

    def _generate(self, source: nodes.Template, *args: Any, **options: Any) -> str:
        """Compiles a template with a step in each round of its loops, and around each value that it assigns."""
        for loop in source.find_all(nodes.For):
            loop.body.insert(0, nodes.ExprStmt(_stepped(nodes.Const(None)), lineno=loop.lineno))
        for assignment in source.find_all(nodes.Assign):
            assignment.node = _stepped(assignment.node)
        source.set_environment(self)
        return super()._generate(source, *args, **options)


def _stepped(value: Any) -> nodes.Filter:
    return nodes.Filter(value, _STEP, [], [], None, None)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_growth(name: str, values: Sequence[Any]) -> None:
    """Refuses what would make a giant of small values: widths, formats, replacements and joins."""
    for value in values:
        measured(value)
    size = 0
    if name in _WIDTHS:
        size = max((value for value in values[1:] if isinstance(value, int)), default=0)
    elif name in ("format", "format_map") and values and isinstance(values[0], str):
        size = max((int(digits[:20]) for digits in _WIDE.findall(values[0])), default=0)
    elif name == "replace" and len(values) > 2:
        size = (_length(values[0]) + 1) * _length(values[2]) // 16
    elif name == "join" and len(values) > 1:
        size = (_length(values[0]) + 1) * (_length(values[1]) + 1) // 16
    if size > MOST_CHARACTERS:
        raise LimitError(f"{name} would make a value of more than {MOST_CHARACTERS:,} characters")


def measured(value: Any) -> Any:
    """Returns a value that is not a giant.

    Raises:
        LimitError: It is.
    """
    if isinstance(value, str):
        if len(value) > MOST_CHARACTERS:
            raise LimitError(f"a value is larger than {MOST_CHARACTERS:,} characters")
    elif isinstance(value, list | tuple | dict) and value:
        waiting, seen = [value], 0
        while waiting:
            part = waiting.pop()
            seen += len(part)
            if seen > MOST_PARTS:
                raise LimitError(f"a value has more than {MOST_PARTS:,} parts")
            inner = part.values() if isinstance(part, dict) else part
            waiting += [item for item in inner if isinstance(item, list | tuple | dict)]
    return value


def _bounded_filter(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    passes = getattr(run, "jinja_pass_arg", None) is not None  # the environment, or such, comes first

    @functools.wraps(run)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_growth(name, (*(args[1:] if passes else args), *kwargs.values()))
        return measured(run(*args, **kwargs))

    return bounded


def bound_chat_templates() -> None:
    """Has transformers compile chat templates with bounds, in this process: tokenizers' own methods render them too.

    Its filters, functions and marks of generation stay. Compiling is bounded as well: it works out constants.
    """
    from transformers.utils import chat_template_utils as theirs

    plain: Any = theirs._cached_compile_jinja_template  # which caches nothing; its caller does
    if getattr(plain, "bounded", False):
        return

    def compile_bounded(source: str) -> Any:
        environment = plain("").environment
        environment.__class__ = Sandbox
        environment.bound()
        template = environment.from_string(source)
        root = template.root_render_func

        def render(*args: Any) -> Iterator[str]:
            environment.start()
            yield from root(*args)

        template.root_render_func = render
        return template

    compile_bounded.bounded = True  # type: ignore[attr-defined]
    theirs._cached_compile_jinja_template = compile_bounded  # type: ignore[assignment]
    theirs._compile_jinja_template.cache_clear()
