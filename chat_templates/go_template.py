"""Renders the part of Go's ``text/template`` that Ollama's templates are written in.

Text, trim markers, comments, ``if``, ``range``, variables, fields, parentheses and the functions ``and or not eq ne lt
gt len slice index``, with the data and the collation of messages that Ollama gives a template (ollama/ollama,
``template/template.go``). Anything else is refused: what cannot be rendered here cannot be proved.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import TemplateError

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""\s+ | (?P<string>"(?:\\.|[^"\\\n])*"|`[^`]*`) | (?P<number>\d+) | (?P<op>:=|=|,|\(|\))
    | (?P<name>\$?[\w.]*[\w.]|\$)""",
    re.VERBOSE,
)
_KEYWORDS = ("if", "else", "end", "range", "with", "define", "block", "template", "break", "continue")
_FIELDS = {"Role": "", "Content": "", "Thinking": "", "Images": [], "ToolCalls": [], "ToolName": "", "ToolCallID": ""}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\"}
_NO_VALUE = "<no value>"


@dataclass(frozen=True)
class _Node:
    """A piece of a template: text, an action, or a block with its branches."""

    kind: str
    value: Any
    body: "tuple[_Node, ...]" = ()
    otherwise: "tuple[_Node, ...]" = ()


def render_go(source: str, messages: Sequence[Mapping[str, Any]]) -> str:
    """Renders a conversation as Ollama does.

    Args:
        source: The template, written over ``.Messages``.
        messages: Its messages, each with ``role`` and ``content``.

    Raises:
        TemplateError: The template is wrong, or uses more of Go than is read here.
    """
    system, collated = collate(messages)
    data = {"System": system, "Messages": collated, "Tools": [], "Response": "", "Think": False, "IsThinkSet": False}
    try:
        return "".join(_run(parse(source), data, [{"$": data}]))
    except RecursionError as error:
        raise TemplateError("the TEMPLATE is nested too deeply") from error


def collate(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Returns all system messages as one text, and the messages, those of one role in a row made one."""
    system = [message["content"] for message in messages if message["role"] == "system"]
    collated: list[dict[str, Any]] = []
    for message in messages:
        if collated and collated[-1]["Role"] == message["role"] != "tool":
            collated[-1]["Content"] += "\n\n" + message["content"]
        else:
            collated.append({**_FIELDS, "Role": message["role"], "Content": message["content"]})
    return "\n\n".join(system), collated


def quote(text: str) -> str:
    """Writes a text as a Go string."""
    escaped = "".join({"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}.get(c, c) for c in text)
    return f'"{escaped}"'


def parse(source: str) -> tuple[_Node, ...]:
    """Parses a template.

    Raises:
        TemplateError: It is wrong, or uses more of Go than is read here.
    """
    pieces = list(_pieces(source))
    nodes, at = _parse_list(pieces, 0, inside=False)
    assert at == len(pieces), "a list outside any block ends with the template"
    return nodes


def _pieces(source: str) -> Iterator[tuple[str, Any]]:
    """Splits a template into text and the tokens of its actions."""
    at, trim = 0, False
    while True:
        start = source.find("{{", at)
        text = source[at : start if start >= 0 else len(source)]
        text = text.lstrip(_SPACE) if trim else text
        if start < 0:
            yield "text", text
            return
        begin = start + 2
        if source[begin : begin + 1] == "-" and source[begin + 1 : begin + 2] in tuple(_SPACE):
            text, begin = text.rstrip(_SPACE), begin + 2
        yield "text", text
        comment = re.compile(r"\s*/\*.*?\*/\s*?(\s-)?\}\}", re.DOTALL).match(source, begin)
        if comment:
            at, trim = comment.end(), comment[1] is not None
            continue
        tokens, at, trim = _action(source, begin)
        yield "action", tokens


def _action(source: str, at: int) -> tuple[list[tuple[str, str]], int, bool]:
    """Reads the tokens of an action up to its end; says whether the text behind it is trimmed."""
    tokens: list[tuple[str, str]] = []
    while True:
        if source.startswith("}}", at):
            return tokens, at + 2, False
        if source.startswith("-}}", at) and source[at - 1] in _SPACE:
            return tokens, at + 3, True
        found = _TOKEN.match(source, at)
        if not found:
            raise TemplateError(f"the TEMPLATE has {source[at : at + 20]!r}, which is not read here")
        if found.lastgroup:
            tokens.append((found.lastgroup, found[0]))
        at = found.end()


def _parse_list(pieces: list[tuple[str, Any]], at: int, *, inside: bool) -> tuple[tuple[_Node, ...], int]:
    """Reads nodes up to the ``end`` or ``else`` that closes their block."""
    nodes: list[_Node] = []
    while at < len(pieces):
        kind, value = pieces[at]
        if kind == "text":
            nodes.append(_Node("text", value))
            at += 1
            continue
        word = value[0][1] if value else ""
        if word in ("end", "else"):
            if not inside:
                raise TemplateError(f"the TEMPLATE has a {word} without a block")
            return tuple(nodes), at
        if word in ("if", "range"):
            node, at = _parse_block(pieces, at, value)
            nodes.append(node)
            continue
        if word in _KEYWORDS or not value:
            raise TemplateError(f"the TEMPLATE has an action that is not read here: {word or 'an empty one'}")
        nodes.append(_Node("action", value))
        at += 1
    if inside:
        raise TemplateError("the TEMPLATE has a block without an end")
    return tuple(nodes), at


def _parse_block(pieces: list[tuple[str, Any]], at: int, head: list[tuple[str, str]]) -> tuple[_Node, int]:
    body, at = _parse_list(pieces, at + 1, inside=True)
    closing, otherwise = pieces[at][1], ()
    if closing[0][1] == "else" and len(closing) > 1:  # else if: a block of its own, closed by the same end
        if closing[1][1] != "if":
            raise TemplateError(f"the TEMPLATE has an else {closing[1][1]}, which is not read here")
        inner, at = _parse_block(pieces, at, closing[1:])
        return _Node(head[0][1], head[1:], body, (inner,)), at
    if closing[0][1] == "else":
        otherwise, at = _parse_list(pieces, at + 1, inside=True)
        if [word for _, word in pieces[at][1]] != ["end"]:
            raise TemplateError("the TEMPLATE has an else behind the last one")
    return _Node(head[0][1], head[1:], body, otherwise), at + 1


def _run(nodes: Sequence[_Node], dot: Any, scopes: list[dict[str, Any]]) -> Iterator[str]:
    """Renders nodes; ``scopes`` holds the variables, the innermost last."""
    for node in nodes:
        if node.kind == "text":
            yield node.value
        elif node.kind == "action":
            declared, value = _evaluate(node.value, dot, scopes)
            if not declared:
                yield _text(value)
        elif node.kind == "if":
            inner = [*scopes, {}]
            value = _evaluate(node.value, dot, inner)[1]
            yield from _run(node.body if _true(value) else node.otherwise, dot, inner)
        else:
            yield from _range(node, dot, scopes)


def _range(node: _Node, dot: Any, scopes: list[dict[str, Any]]) -> Iterator[str]:
    names, tokens = [], node.value
    ops = [word for _, word in tokens]
    if ":=" in ops:
        names = [word for word in ops[: ops.index(":=")] if word != ","]
        tokens = tokens[ops.index(":=") + 1 :]
    items = _evaluate(tokens, dot, scopes)[1]
    if not isinstance(items, list):
        raise TemplateError("the TEMPLATE has a range over something that is no list")
    for index, item in enumerate(items):
        values = {0: (), 1: (item,), 2: (index, item)}[len(names)]
        yield from _run(node.body, item, [*scopes, dict(zip(names, values, strict=True))])
    if not items:
        yield from _run(node.otherwise, dot, [*scopes, {}])


def _evaluate(tokens: list[tuple[str, str]], dot: Any, scopes: list[dict[str, Any]]) -> tuple[bool, Any]:
    """Evaluates a pipeline; says whether it sets a variable."""
    if len(tokens) > 2 and tokens[0][1].startswith("$") and tokens[1][1] in (":=", "="):
        name, value = tokens[0][1], _Expression(tokens[2:], dot, scopes).whole()
        holder = scopes[-1]
        if tokens[1][1] == "=":
            holder = next((scope for scope in reversed(scopes) if name in scope), None)
            if holder is None:
                raise TemplateError(f"the TEMPLATE sets {name}, which it has not declared")
        holder[name] = value
        return True, value
    return False, _Expression(tokens, dot, scopes).whole()


class _Expression:
    """A command of Go's templates: an operand, or a function with its operands."""

    def __init__(self, tokens: list[tuple[str, str]], dot: Any, scopes: list[dict[str, Any]]):
        self.tokens, self.dot, self.scopes, self.at = tokens, dot, scopes, 0

    def whole(self) -> Any:
        value = self.command()
        if self.at != len(self.tokens):
            raise TemplateError(f"the TEMPLATE has {self.tokens[self.at][1]!r} where an action should end")
        return value

    def command(self) -> Any:
        if self.at >= len(self.tokens):
            raise TemplateError("the TEMPLATE lacks a value")
        kind, word = self.tokens[self.at]
        if kind != "name" or word[0] in ".$" or word in ("true", "false", "nil"):
            return self.operand()
        self.at += 1
        operands = []
        while self.at < len(self.tokens) and self.tokens[self.at][1] != ")":
            operands.append(self.operand())
        return _call(word, operands)

    def operand(self) -> Any:
        kind, word = self.tokens[self.at]
        self.at += 1
        if word == "(" and kind == "op":
            value = self.command()
            if self.at >= len(self.tokens) or self.tokens[self.at][1] != ")":
                raise TemplateError("the TEMPLATE has a parenthesis that is not closed")
            self.at += 1
            follows = self.at < len(self.tokens) and self.tokens[self.at]
            if follows and follows[1].startswith(".") and follows[1] != ".":  # (index .Messages 0).Role
                self.at += 1
                return _fields(value, follows[1][1:])
            return value
        if kind == "string":
            return word[1:-1] if word[0] == "`" else re.sub(r"\\(.)", _unescape, word[1:-1])
        if kind == "number":
            return int(word)
        if word in ("true", "false"):
            return word == "true"
        if word == ".":
            return self.dot
        if word[0] == ".":
            return _fields(self.dot, word[1:])
        if word[0] == "$":
            name, _, path = word.partition(".")
            holder = next((scope for scope in reversed(self.scopes) if name in scope), None)
            if holder is None:
                raise TemplateError(f"the TEMPLATE reads {name}, which it has not declared")
            return _fields(holder[name], path) if path else holder[name]
        raise TemplateError(f"the TEMPLATE has {word!r} where a value should stand")


def _unescape(found: re.Match[str]) -> str:
    if found[1] not in _ESCAPES:
        raise TemplateError(f"the TEMPLATE has the escape {found[0]!r}, which is not read here")
    return _ESCAPES[found[1]]


def _fields(value: Any, path: str) -> Any:
    for name in path.split("."):
        if not isinstance(value, dict):
            raise TemplateError(f"the TEMPLATE reads .{name} of something that has no fields")
        if "Role" in value and name not in value:
            raise TemplateError(f"the TEMPLATE reads .{name}, which a message does not have")
        value = value.get(name)
    return value


def _call(name: str, operands: list[Any]) -> Any:
    try:
        if name in ("and", "or"):
            wanted = name == "or"
            return next((value for value in operands if _true(value) is wanted), operands[-1])
        if name == "not":
            (value,) = operands
            return not _true(value)
        if name == "eq":
            first, *others = operands
            return any(_same(first, other) for other in others)
        if name in ("ne", "lt", "gt"):
            one, two = operands
            return not _same(one, two) if name == "ne" else one < two if name == "lt" else one > two
        if name == "len":
            (value,) = operands
            return len(value.encode() if isinstance(value, str) else value)
        if name == "index":
            value, *places = operands
            for place in places:
                value = value[place]
            return value
        if name == "slice":
            value, *bounds = operands
            return value[slice(bounds[0] if bounds else None, bounds[1] if len(bounds) > 1 else None)]
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise TemplateError(f"the TEMPLATE calls {name} with values that it does not take") from error
    raise TemplateError(f"the TEMPLATE calls {name}, which is not read here")


def _same(one: Any, two: Any) -> bool:
    if type(one) is not type(two):
        raise TemplateError("the TEMPLATE compares values of two kinds")
    return one == two


def _true(value: Any) -> bool:
    return bool(value)


def _text(value: Any) -> str:
    if value is None:
        return _NO_VALUE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int):
        return str(value)
    raise TemplateError("the TEMPLATE writes out something that is no text")
