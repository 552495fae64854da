"""Conversations to text to tokens, with a mask of the tokens that carry loss.

Rendering happens in transformers' own Jinja sandbox; the ``{% generation %}`` blocks of a template give the character
ranges that the model is to learn, and the offsets of a fast tokenizer turn them into a mask over tokens.
"""

import itertools
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .errors import InputError, TemplateError
from .templates import ChatTemplate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = Mapping[str, Any]
"""``{"messages": [{"role": …, "content": …}, …], "tools": [JSON schema, …] | None}``.

An assistant's ``reasoning_content`` is given to the template under the name that it reads. ``train: False`` in a
message takes its text and its end of turn out of the loss.
"""
Span = tuple[int, int]
_MARKS = range(0xF0000, 0xFFFFE)  # private use: no character


class ConversationError(TemplateError):
    """One conversation of a batch does not fit the template; ``index`` is its place in the batch."""

    def __init__(self, what: str, *, index: int, hint: str | None = None):
        super().__init__(what, where=f"conversation {index}", hint=hint)
        self.index = index


@dataclass(frozen=True)
class Rendered:
    """The text of a conversation, and the character ranges inside ``{% generation %}``, ascending and disjoint."""

    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, with True for each token that carries loss (both of length T)."""

    input_ids: list[int]
    loss_mask: list[bool]
    straddling: tuple[int, ...]
    """Positions of the tokens that lie across the edge of a loss range; they carry no loss."""


def render(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> Rendered:
    """Renders one conversation in the Jinja sandbox.

    Args:
        template: The template; it need not be installed in the tokenizer.
        messages: The turns. Content is a string or a list of ``{"type": "text", "text": …}`` parts; keys whose value
            is None are left out, as ``apply_chat_template`` does.
        tokenizer: Gives ``bos_token``, ``eos_token`` and so on to the template.
        tools: JSON schemas of functions.
        add_generation_prompt: Ends the text where the assistant is to go on.
        **variables: Further variables of the template, such as ``enable_thinking``.

    Raises:
        TemplateError: The template refuses the conversation, or would silently drop its tools.
    """
    from jinja2 import TemplateError as JinjaError
    from transformers.utils.chat_template_utils import render_jinja_template

    from .sandbox import LimitError, bound_chat_templates

    messages = [plain_message(message) for message in messages]
    if not messages:
        raise TemplateError("the conversation is empty")
    if any("reasoning_content" in message for message in messages):
        key = template.reasoning_key
        if key is None:
            raise TemplateError(
                f"template '{template.name}' has no reasoning",
                hint="use qwen3, or another template that renders it, or take the reasoning out of the rows",
            )
        messages = [
            {key if name == "reasoning_content" else name: value for name, value in message.items()}
            for message in messages
        ]
    if not template.supports_tools and (tools or any(m.get("tool_calls") or m.get("role") == "tool" for m in messages)):
        raise TemplateError(
            f"template '{template.name}' has no tools",
            hint="use hermes-tools, qwen3 or a template with marks and tools",
        )
    try:
        bound_chat_templates()
        rendered: Any = render_jinja_template(  # typed as str, but a pair
            conversations=[messages],
            tools=[dict(tool) for tool in tools] if tools else None,
            chat_template=template.source,
            # Asking for spans that a template does not mark would only log a warning.
            return_assistant_tokens_mask=template.marks_generation,
            add_generation_prompt=add_generation_prompt,
            **{**tokenizer.special_tokens_map, **variables},
        )
    except LimitError as error:
        what = f"chat template '{template.name}' does not come to an end: {error}"
        raise InputError(what, hint="look for loops inside loops") from error
    except (JinjaError, TypeError, ValueError, KeyError, ArithmeticError, RecursionError, MemoryError) as error:
        raise TemplateError(f"template '{template.name}' does not render: {error}") from error
    texts, spans = rendered
    return Rendered(texts[0], tuple((start, end) for start, end in spans[0] if start < end) if spans else ())


def plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Drops None values, joins a content of text parts, and refuses what a template would quietly print as nothing."""
    plain = {key: value for key, value in message.items() if value is not None and key != "train"}
    content = plain.get("content")
    if isinstance(content, list):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise TemplateError("a message has a content part that is not text", hint="only text is supported")
        plain["content"] = "".join(part["text"] for part in content)
    elif not isinstance(content, str) and not (content is None and plain.get("tool_calls")):
        raise TemplateError(f"a message's content is {content!r}", hint="it must be a string")
    if not isinstance(plain.get("role"), str):
        raise TemplateError(f"a message's role is {plain.get('role')!r}", hint="it must be a string")
    return plain


def encode(
    template: ChatTemplate,
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation],
    loss_on: Literal["assistant", "all"] = "assistant",
    *,
    special_in_content: Literal["text", "special"] = "text",
    whole: bool = False,
    **variables: Any,
) -> list[Encoded]:
    """Renders and tokenizes a batch.

    No special token is added beyond those that the template writes, so there is no second BOS.

    Args:
        template: The template; it need not be installed in the tokenizer.
        tokenizer: A fast tokenizer (offsets are needed).
        conversations: The batch.
        loss_on: ``assistant``: the tokens wholly inside the template's ``{% generation %}`` blocks; ``all``: every one.
        special_in_content: What becomes of ``<|im_end|>`` and the like inside the data. ``text`` encodes it as the
            ordinary characters it is, so that no row can end its turn or open another; ``special`` gives the special
            token, as ``apply_chat_template`` does by default.
        whole: Whether a text that the template leaves out is an error, as it is in rows to learn from.
        **variables: Further variables of the template, such as ``enable_thinking``.

    Returns:
        One ``Encoded`` per conversation, in order.

    Raises:
        ConversationError: A conversation does not render.
        TemplateError: The template marks no generation and the loss is asked for the assistant only, or the tokenizer
            is not a fast one.
    """
    if loss_on == "assistant":
        require_generation_marks(template)
    if not tokenizer.is_fast:
        raise TemplateError("the tokenizer gives no offsets", hint="a fast tokenizer (tokenizer.json) is needed")
    special = special_pattern(tokenizer, template) if special_in_content == "text" else None
    rendered = []
    for i, conversation in enumerate(conversations):
        try:
            made, mark = _render_one(template, tokenizer, conversation, special, variables, whole=whole)
            rendered.append((in_loss(template, conversation["messages"], made, loss_on), mark))
        except TemplateError as error:
            raise ConversationError(error.what, index=i, hint=error.hint) from error

    unmarked = [made.text for made, mark in rendered if mark is None]
    tokenized = iter(_tokenize(tokenizer, unmarked) if unmarked else ())
    encoded = []
    for made, mark in rendered:
        if mark is None or special is None:
            tokens = next(tokenized)
        else:
            made, tokens = _tokenize_marked(tokenizer, made, mark, special)
        encoded.append(_with_mask(tokenizer, made, tokens, loss_on))
    return encoded


def require_generation_marks(template: ChatTemplate) -> None:
    """Raises a TemplateError if the template cannot say what the assistant wrote."""
    if not template.marks_generation:
        from .templates import names

        raise TemplateError(
            f"template '{template.name}' has no {{% generation %}} block, so no loss can be put on the assistant alone",
            hint=f"use one of {', '.join(names())}, add the markers to a copy, or put the loss on all tokens",
        )


class _Offsets(Sequence[Span]):
    """The character range of each token of an encoding, made when it is looked at: a mask needs but a few."""

    def __init__(self, encoding: Any):
        self._encoding, self._count = encoding, len(encoding)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if type(number) is int and 0 <= number < self._count:
            return self._encoding.token_to_chars(number)
        return self._encoding.offsets[number]

    def __iter__(self) -> Iterator[Span]:
        return iter(self._encoding.offsets)


@dataclass(frozen=True)
class _Tokens:
    """Token ids and the character range of each, in order."""

    ids: list[int]
    offsets: Sequence[Span]


def _tokenize(tokenizer: "PreTrainedTokenizerBase", texts: list[str], as_text: bool = False) -> list[_Tokens]:
    # What `tokenizer(texts)` calls, without the lists that it makes of every encoding.
    rust: Any = tokenizer.backend_tokenizer
    if rust.truncation is not None:
        rust.no_truncation()
    if rust.padding is not None:
        rust.no_padding()
    if rust.encode_special_tokens != as_text:
        rust.encode_special_tokens = as_text
    return [_Tokens(made.ids, _Offsets(made)) for made in rust.encode_batch(texts, add_special_tokens=False)]


def _with_mask(
    tokenizer: "PreTrainedTokenizerBase", rendered: Rendered, tokens: _Tokens, loss_on: str, *, by_byte: bool = False
) -> Encoded:
    mask = [loss_on == "all"] * len(tokens.ids)
    straddling: list[int] = []
    for span in rendered.spans if loss_on == "assistant" else ():
        first, last, across = _tokens_inside(tokenizer, rendered.text, tokens, span)
        mask[first:last] = [True] * (last - first)
        straddling += across
    if straddling and not by_byte:
        return _with_mask(tokenizer, rendered, _byte_by_byte(rendered.text, tokens), loss_on, by_byte=True)
    return Encoded(tokens.ids, mask, tuple(straddling))


def _end(span: Span) -> int:
    return span[1]


def _byte_by_byte(text: str, tokens: _Tokens) -> _Tokens:
    """Gives each byte-fallback token its own character's range.

    A Unigram model joins unknown characters that stand together before it falls back to bytes, and gives every byte
    the range of all of them: a newline of the template and an unknown letter of the answer would look like one token.
    """
    offsets: list[Span] = []
    for (start, end), group in itertools.groupby(tokens.offsets):
        size = len(list(group))
        characters = [(start + i, start + i + 1) for i, char in enumerate(text[start:end]) for _ in char.encode()]
        offsets += characters if len(characters) == size else [(start, end)] * size
    return _Tokens(tokens.ids, offsets)


def _tokens_inside(
    tokenizer: "PreTrainedTokenizerBase", text: str, tokens: _Tokens, span: Span
) -> tuple[int, int, list[int]]:
    """Finds the tokens ``first:last`` that lie wholly inside a span, and those across one of its edges."""
    start, end = span
    offsets, count = tokens.offsets, len(tokens.ids)

    def begin(i: int) -> int:
        # A tokenizer with trim_offsets leaves a token's leading space out of its offsets: count it in, so that such a
        # token is seen to lie across an edge. (Tokens that share the bytes of one character also share its offsets.)
        return min(offsets[i][0], offsets[i - 1][1]) if i else offsets[i][0]

    across: list[int] = []
    first = bisect_right(offsets, start, key=_end)
    while first < count and begin(first) < start < offsets[first][1]:
        across.append(first)
        first += 1
    last = bisect_right(offsets, end, lo=min(first, count), key=_end)
    if last < count and begin(last) < end:
        # A special token with rstrip=True (Phi-3's) reaches over the white space after it, yet is itself inside.
        visible = text[: offsets[last][1]].rstrip()
        if tokens.ids[last] in tokenizer.added_tokens_decoder and len(visible) <= end:
            last += 1
        else:
            across.append(last)
    return first, max(first, last), across


def _render_one(
    template: ChatTemplate,
    tokenizer: "PreTrainedTokenizerBase",
    conversation: Conversation,
    special: re.Pattern[str] | None,
    variables: dict[str, Any],
    *,
    whole: bool,
) -> tuple[Rendered, str | None]:
    """Renders a conversation; one that holds special tokens as text gets a mark around each, which is also returned."""
    tools, mark = conversation.get("tools"), None
    # joined first: a token may be written in two parts of a content
    messages: Any = [plain_message(message) for message in conversation["messages"]]
    if special is not None and holds([messages, tools], special):
        (messages, tools), mark = mark_special((messages, tools), special)
    rendered = render(template, messages, tokenizer=tokenizer, tools=tools, **variables)
    if whole:
        require_whole(template, messages, rendered.text)
    return rendered, mark


def in_loss(
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    rendered: Rendered,
    loss_on: Literal["assistant", "all"] = "assistant",
) -> Rendered:
    """Takes the turns out of the loss ranges that are marked to carry none.

    Raises:
        TemplateError: The template does not mark each turn apart, or another's message is marked to carry loss.
    """
    marks = [message.get("train") for message in messages if message["role"] == "assistant"]
    if loss_on == "all":
        if any(message.get("train") is False for message in messages):
            raise TemplateError("a message is marked to carry no loss, but every token does", hint="drop the mark")
        return rendered
    if any(message.get("train") and message["role"] != "assistant" for message in messages):
        raise TemplateError("a message that is not the assistant's is marked to carry loss", hint="drop the mark")
    if False not in marks:
        return rendered
    if len(marks) != len(rendered.spans):
        raise TemplateError(
            f"template '{template.name}' marks {len(rendered.spans)} parts for {len(marks)} turns of the assistant, so "
            "no turn can be left out",
            hint="put one {% generation %} block around each turn",
        )
    spans = zip(rendered.spans, marks, strict=True)
    return Rendered(rendered.text, tuple(span for span, mark in spans if mark is not False))


_THOUGHT = re.compile(r"</?think>")


def require_whole(template: ChatTemplate, messages: Sequence[Mapping[str, Any]], text: str) -> None:
    """Refuses a rendering that lacks part of what was said; white space at the edges does not count.

    Raises:
        TemplateError: Naming the message.
    """
    for index, message in enumerate(messages):
        if message["role"] == "tool":  # written as JSON, or cut into fields, as the format will have it
            continue
        for name in ("content", "reasoning_content"):
            said = message.get(name)
            if not isinstance(said, str) or said.strip() in text:
                continue
            lines = [line.strip() for part in _THOUGHT.split(said) for line in part.splitlines()]
            lost = next((line for line in lines if line not in text), None)
            if lost is not None:
                raise TemplateError(
                    f"template '{template.name}' leaves out text of message {index} ({message['role']}): {lost[:60]!r}",
                    hint="use a template that renders it, or take it out of the rows",
                )


def special_texts(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate | None) -> set[str]:
    """Returns the special tokens of the tokenizer and the template, as they are written."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    if template is not None:  # published tokenizers hold some that are not called special
        special |= {*template.special_tokens, *([template.end_of_turn] if template.end_of_turn else [])}
    return special


def special_pattern(
    tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate | None = None
) -> re.Pattern[str] | None:
    """Returns what matches any special token of the tokenizer or the template, or None if there is none."""
    special = special_texts(tokenizer, template)
    # Longest first, so that a token wins over those it contains.
    return re.compile("|".join(map(re.escape, sorted(special, key=lambda t: (-len(t), t))))) if special else None


def strings_in(value: Any) -> list[str]:
    """Returns every string in nested lists and mappings, keys too: those of a tool's arguments are anyone's."""
    found, waiting = [], [value]
    for one in waiting:
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, Mapping):
            waiting += one
            waiting += one.values()
    return found


def holds(value: Any, pattern: re.Pattern[str]) -> bool:
    """Whether a string in nested lists and mappings matches a pattern that matches no NUL."""
    return pattern.search("\0".join(strings_in(value))) is not None


def is_mark(char: str) -> bool:
    """Says whether a character is one that :func:`mark_special` marks with."""
    return char != "" and ord(char) in _MARKS


def mark_special(value: Any, special: re.Pattern[str]) -> tuple[Any, str]:
    """Puts a character that stands nowhere else around each special token written out in nested lists and mappings.

    Returns:
        The marked copy, and the mark: what :func:`encode_marked` needs to tell them from the template's own.
    """
    held = set("".join(strings_in(value)))
    mark = next(char for char in map(chr, _MARKS) if char not in held)
    return with_strings(value, special, rf"{mark}\g<0>{mark}"), mark


def with_strings(value: Any, pattern: re.Pattern[str], replacement: str) -> Any:
    """Returns a copy of nested lists and mappings with ``pattern`` replaced in every string and key."""
    if isinstance(value, str):
        return pattern.sub(replacement, value)
    if isinstance(value, Mapping):
        return {
            with_strings(key, pattern, replacement): with_strings(item, pattern, replacement)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [with_strings(item, pattern, replacement) for item in value]
    return value


def encode_marked(tokenizer: "PreTrainedTokenizerBase", text: str, mark: str, special: re.Pattern[str]) -> list[int]:
    """Tokenizes a rendered text in which what stands between two marks is plain characters."""
    return _tokenize_marked(tokenizer, Rendered(text, ()), mark, special)[1].ids


def _tokenize_marked(
    tokenizer: "PreTrainedTokenizerBase", marked: Rendered, mark: str, special: re.Pattern[str]
) -> tuple[Rendered, _Tokens]:
    """Tokenizes a marked text piece by piece: what stands between two marks as plain characters, the rest as usual."""
    # Odd pieces are marked ones. A mark that lost its fellow (a template that cuts content) only separates.
    pieces = re.split(f"{mark}({special.pattern}){mark}|{mark}", marked.text)
    ids: list[int] = []
    offsets: list[Span] = []
    at = 0
    for i, piece in enumerate(pieces):
        for part in _as_plain_parts(tokenizer, piece) if piece and i % 2 else [piece or ""]:
            tokens = _tokenize_piece(tokenizer, part, first=not ids, as_text=i % 2 == 1)
            ids += tokens.ids
            offsets += [(start + at, end + at) for start, end in tokens.offsets]
            at += len(part)

    def unmarked(position: int) -> int:
        return position - marked.text.count(mark, 0, position)

    spans = tuple((unmarked(start), unmarked(end)) for start, end in marked.spans)
    return Rendered(marked.text.replace(mark, ""), spans), _Tokens(ids, offsets)


def _as_plain_parts(tokenizer: "PreTrainedTokenizerBase", token: str) -> list[str]:
    """Cuts a special token's text in two if the model, unlike its added tokens, knows it too (HF's Unigram does)."""
    made = _tokenize(tokenizer, [token], as_text=True)[0].ids
    return [token[:1], token[1:]] if tokenizer.convert_tokens_to_ids(token) in made else [token]


def _tokenize_piece(tokenizer: "PreTrainedTokenizerBase", piece: str, first: bool, as_text: bool) -> _Tokens:
    if not first:
        # A SentencePiece tokenizer puts a space before a text; after a newline it does not, and the newline is cut off.
        tokens = _byte_by_byte("\n" + piece, _tokenize(tokenizer, ["\n" + piece], as_text)[0])
        cut = bisect_right(tokens.offsets, 1, key=_end)
        if cut and (cut == len(tokens.ids) or tokens.offsets[cut][0] >= 1):
            return _Tokens(tokens.ids[cut:], [(start - 1, end - 1) for start, end in tokens.offsets[cut:]])
    return _tokenize(tokenizer, [piece], as_text)[0]
