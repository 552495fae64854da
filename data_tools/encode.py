"""Texts, prompts and their answers to token ids: for training, rollouts, scoring, judges and synthesis alike.

One rule on control tokens holds wherever a row or a prompt is made: **text never becomes a control token.**
``<|im_end|>`` and the like, written out by a user, an assistant, a tool, a system message or a document, stay the
characters that they are. Control tokens come from the chat template, and around plain text from the tokenizer: what it
puts before a text (BOS, if any), and one EOS after a text that ends. A plain text that itself begins with that BOS, or
ends with that EOS, written out, has it once. Added tokens that are not special (``<think>``) are text as any other.

A server tokenises what it is sent by itself; what it makes of such text is out of our hands.
"""

import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..chat_templates import ChatTemplate, TemplateError, encode, from_tokenizer, render
from ..chat_templates.errors import InputError
from ..chat_templates.rendering import (
    encode_marked,
    holds,
    mark_special,
    plain_message,
    require_whole,
    special_pattern,
    special_texts,
)
from .errors import DataError, RowError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

Ids = list[int]
Messages = Sequence[dict[str, Any]]

PART_APART = "chosen and rejected do not leave the prompt at the same token"
REFUSED = "the chat template refuses it"
# Characters that a completion is tried behind, to see its tokens as they are inside a text; see `_continued`.
ANCHORS = ("\n", "a", ":", "1")


@dataclass(frozen=True)
class Talk:
    """A prompt, text or messages, with the answers to it, each text or messages likewise, and the tools on offer."""

    prompt: str | Messages
    answers: Sequence[str | Messages] = ()
    tools: Sequence[dict[str, Any]] | None = None


@dataclass
class TextEncoder:
    """Tokenises texts, prompts and answers for one tokenizer and template.

    The prompt of a conversation is the template's rendering up to where the assistant is to go on; its answer is what
    the rendering of the whole adds. A prompt of text begins with BOS, if the tokenizer has one, and an answer of text
    ends with one EOS. Prompt and answer of text are tokenised apart, not as one string cut afterwards: a generating
    model also gets the prompt's own tokens and continues from there, and no token can lie across the boundary.

    Attributes:
        tokenizer: The tokenizer.
        template: For conversations; None if there are none.
        whole: Whether a text that the template leaves out spoils a conversation, as it does one to learn from.
        variables: Further variables of the template, such as ``enable_thinking``.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: ChatTemplate | None = None
    whole: bool = False
    variables: Mapping[str, Any] = field(default_factory=dict)
    _border: str | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> "TextEncoder":
        """Returns the encoder of a tokenizer and the template that it carries, if it does."""
        template = from_tokenizer(tokenizer) if tokenizer.chat_template else None
        return cls(tokenizer, template, variables=variables or {})

    def prompts(self, prompts: Sequence[str | Messages], *, where: str | None = None) -> list[Ids]:
        """Returns the tokens of prompts, text or messages.

        Args:
            prompts: What a model is to go on from.
            where: Whose prompts they are, for errors.

        Raises:
            DataError: The template refuses a conversation, or there is none.
        """
        found = []
        for prompt, made in zip(prompts, self.split([Talk(prompt) for prompt in prompts]), strict=True):
            if isinstance(made, RowError):
                first = prompt[0] if prompt else {}
                hint = f"it begins {str(first)[:120]}"
                if isinstance(first, dict) and first.get("role") == "system":
                    hint = "templates without a system role need prompts without a system message"
                raise DataError(f"a prompt cannot be used: {made}", where=where, hint=hint)
            found.append(made[0])
        return found

    def split(self, talks: Sequence[Talk]) -> list[Any]:
        """Returns the tokens of each prompt and of its answers, ``(ids, [ids, …])``, or a RowError that says why not.

        Raises:
            DataError: There are conversations, but no template.
        """
        results: list[Any] = [None] * len(talks)
        for is_text, make in ((True, self._split_text), (False, self._split_chat)):
            numbers = [number for number, talk in enumerate(talks) if isinstance(talk.prompt, str) is is_text]
            made = make([talks[number] for number in numbers]) if numbers else []
            for number, result in zip(numbers, made, strict=True):
                results[number] = result
        return results

    def texts(self, texts: Sequence[str]) -> list[Ids]:
        """Tokenises texts with nothing before or after them, as beginnings of a text."""
        found = self._as_text(texts)
        for number, text in enumerate(texts) if self._leaks else ():
            if self._leaks.intersection(found[number]):
                found[number] = self.marked(*mark_special(text, self.special))
        return found

    def marked(self, text: str, mark: str) -> Ids:
        """Tokenises a rendered text in which control tokens that are text stand between two marks."""
        return encode_marked(self.tokenizer, text, mark, self.special) if mark in text else self._rendered([text])[0]

    def begun(self, texts: Sequence[str]) -> list[Ids]:
        """Tokenises texts that begin a sequence: behind what the tokenizer puts there, which comes once."""
        begin: Any = self.tokenizer.decode(self.prefix) if self.prefix else ""
        return [self.prefix + ids for ids in self.texts([text.removeprefix(begin) for text in texts])]

    def ended(self, texts: Sequence[str]) -> list[Ids]:
        """Tokenises answers of text, as they continue a prompt, each with one EOS; without a token they stay empty."""
        bare = [text.removesuffix(self._eos_text) for text in texts]
        made = self.texts(bare) if self._continues else [self._continued(text) for text in bare]
        return [[*ids, self.eos] if ids or b != text else [] for ids, b, text in zip(made, bare, texts, strict=True)]

    def documents(self, texts: Sequence[str]) -> list[Ids]:
        """Tokenises whole texts between BOS, if any, and one EOS; a text without a token stays empty."""
        bare = [text.removesuffix(self._eos_text) for text in texts]
        made = self.begun(bare)
        nothing = [len(ids) == len(self.prefix) and b == text for ids, b, text in zip(made, bare, texts, strict=True)]
        return [[] if empty else [*ids, self.eos] for ids, empty in zip(made, nothing, strict=True)]

    @functools.cached_property
    def special(self) -> re.Pattern[str]:
        """What matches any control token written out."""
        return special_pattern(self.tokenizer, self.template) or re.compile(r"(?!)")

    @functools.cached_property
    def prefix(self) -> Ids:
        """What the tokenizer puts before a text by itself."""
        plain = self._as_text(["a"])[0]
        full = list(self.tokenizer("a", add_special_tokens=True)["input_ids"])  # type: ignore[arg-type]
        starts = [i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain]
        return full[: starts[0]] if starts else []

    @functools.cached_property
    def eos(self) -> int:
        """The token that ends a text.

        Raises:
            InputError: There is none.
        """
        if self.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos_token, so no text could ever end", hint="set one")
        return self.tokenizer.eos_token_id  # type: ignore[return-value]

    @property
    def _eos_text(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.eos))

    @functools.cached_property
    def _continues(self) -> bool:
        """Whether tokens of two texts end to end are tokens of one text; SentencePiece's leading space breaks it."""
        first, second = self._as_text(["x", "y"])
        return self.tokenizer.decode(first + second) == "xy"

    @functools.cached_property
    def _as_text(self) -> Callable[[Sequence[str]], list[Ids]]:
        return _plain_ids(self.tokenizer, as_text=True)

    @functools.cached_property
    def _rendered(self) -> Callable[[Sequence[str]], list[Ids]]:
        return _plain_ids(self.tokenizer, as_text=False)

    @functools.cached_property
    def _leaks(self) -> set[int]:
        """The control tokens that the model of the tokenizer knows too, so that asking for text does not part them."""
        known = {token.content: number for number, token in self.tokenizer.added_tokens_decoder.items()}
        special = special_texts(self.tokenizer, self.template) if self.tokenizer.is_fast else set()
        control = [text for text in known if text in special]
        return {known[text] for text, ids in zip(control, self._as_text(control), strict=True) if known[text] in ids}

    def _continued(self, text: str) -> Ids:
        """Tokenises a text as the continuation of another, without the space that a beginning gets.

        The text is tokenised behind one character, whose tokens are then cut off; a character that grows together with
        the text is given up for the next.
        """
        if not text:
            return []
        for anchor in ANCHORS:
            before, whole = self.texts([anchor, anchor + text])
            if whole[: len(before)] == before and len(whole) > len(before):
                return whole[len(before) :]
        return self.texts([text])[0]

    def _split_text(self, talks: Sequence[Talk]) -> list[Any]:
        answers = [text for talk in talks for text in talk.answers]
        made = iter(self.ended(answers) if answers else [])  # type: ignore[arg-type]
        prompts = self.begun([talk.prompt for talk in talks])  # type: ignore[misc]
        return [(prompt, [next(made) for _ in talk.answers]) for prompt, talk in zip(prompts, talks, strict=True)]

    def _split_chat(self, talks: Sequence[Talk]) -> list[Any]:
        if self.template is None:
            hint = "set model.chat_template, or take a model that has one"
            raise DataError("the rows are conversations, but there is no chat template", hint=hint)
        results: list[Any] = []
        rendered: list[tuple[int, list[str]]] = []
        for talk in talks:
            try:
                made = self._render(self.template, talk)
            except TemplateError as error:
                made = RowError(REFUSED, "; ".join(filter(None, (error.what, error.hint))))
            if isinstance(made, list) and isinstance(made[0], str):
                rendered.append((len(results), made))
            results.append(made)
        for (number, _), ids in zip(rendered, self._tokens([texts for _, texts in rendered]), strict=True):
            results[number] = ids
        return [made if isinstance(made, RowError) else _part(made[0], made[1:]) for made in results]

    def _render(self, template: ChatTemplate, talk: Talk) -> list[Any]:
        """Renders a prompt and the conversations that it begins; those that hold special tokens as text to ids at once.

        Raises:
            TemplateError: The template refuses one.
        """
        prompt, *answers = (
            [plain_message(message) for message in messages]  # type: ignore[arg-type]
            for messages in (talk.prompt, *talk.answers)
        )
        whole = [(prompt, True), *(([*prompt, *answer], False) for answer in answers)]
        if holds([prompt, answers, talk.tools], self.special):
            return [
                encode(
                    template,
                    self.tokenizer,
                    [{"messages": messages, "tools": talk.tools}],
                    "all",
                    whole=self.whole,
                    **{**self.variables, "add_generation_prompt": open_ended},
                )[0].input_ids
                for messages, open_ended in whole
            ]
        texts = []
        for messages, open_ended in whole:
            options: dict[str, Any] = {**self.variables, "tools": talk.tools, "add_generation_prompt": open_ended}
            texts.append(render(template, messages, tokenizer=self.tokenizer, **options).text)
            if self.whole:
                require_whole(template, messages, texts[-1])
        return texts

    def _tokens(self, rendered: Sequence[list[str]]) -> list[list[Ids]]:
        """Tokenises prompts and the conversations that they begin; what these share is tokenised once.

        That is the text before the last special token of the prompt.
        """
        pieces: list[str] = []
        shares: list[bool] = []
        for texts in rendered:
            at = self._last_border(texts[0]) if len(texts) > 1 else 0
            share = at > 0 and all(text.startswith(texts[0][:at]) for text in texts)
            pieces += [texts[0][:at], *(text[at:] for text in texts)] if share else texts
            shares.append(share)
        made = iter(self._rendered(pieces))
        results: list[list[Ids]] = []
        for texts, share in zip(rendered, shares, strict=True):
            head = next(made) if share else []
            results.append([head + next(made) for _ in texts])
        return results

    def _last_border(self, prompt: str) -> int:
        """Returns where the last special token of a prompt begins; 0 if there is none to part the text at."""
        if self._border is None or self._border not in prompt:
            self._border = _find_border(self.tokenizer, prompt)
        return max(prompt.rfind(self._border), 0) if self._border else 0


def _plain_ids(tokenizer: "PreTrainedTokenizerBase", *, as_text: bool) -> Callable[[Sequence[str]], list[Ids]]:
    """Returns a function from texts to ids with nothing added, cut or padded.

    A fast tokenizer's Rust part is called without offsets, which spares most of the time that ``tokenizer(texts)``
    takes on Python objects that nobody reads. It is one of ours alone, since the tokenizer may be set to truncate or
    pad; but for its added tokens it shares what it is made of. ``as_text`` parts special tokens into characters.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        options: Any = {"add_special_tokens": False, "split_special_tokens": as_text, "verbose": False}
        return lambda texts: [list(ids) for ids in tokenizer(list(texts), **options)["input_ids"]] if texts else []  # type: ignore[union-attr]
    rust = _with_same_parts(backend)
    rust.encode_special_tokens = as_text
    return lambda texts: [item.ids for item in rust.encode_batch_fast(list(texts), add_special_tokens=False)]


def _with_same_parts(backend: "Tokenizer") -> "Tokenizer":
    """Returns a tokenizer like another, without truncation and padding, around the same vocabulary in memory.

    Writing out and reading the other takes seconds where a vocabulary is large.
    """
    from tokenizers import Tokenizer

    rust = Tokenizer(backend.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor"):  # before the tokens, which may be normalised
        if getattr(backend, part) is not None:
            setattr(rust, part, getattr(backend, part))
    added = [token for _, token in sorted(backend.get_added_tokens_decoder().items())]
    for special, tokens in itertools.groupby(added, lambda token: token.special):
        add = rust.add_special_tokens if special else rust.add_tokens
        add(list(tokens))
    return rust


def _part(prompt: Ids, wholes: list[Ids]) -> Any:
    """Cuts conversations where they leave their prompt, which must be the same place for all of them."""
    ends = {_shared(prompt, whole) for whole in wholes}
    if len(ends) > 1:
        return RowError(PART_APART)
    end = ends.pop() if ends else len(prompt)
    return prompt[:end], [whole[end:] for whole in wholes]


def _shared(prompt: Ids, whole: Ids) -> int:
    """Counts the tokens that a conversation shares with its prompt."""
    if whole[: len(prompt)] == prompt:
        return len(prompt)
    return next((at for at, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), len(whole))


def _find_border(tokenizer: "PreTrainedTokenizerBase", text: str) -> str:
    """Returns the last token of a text at which it falls into two that are tokenised apart; empty if it has none.

    That is a special token which takes no white space from its neighbours and overlaps with no other token.
    """
    added = tokenizer.added_tokens_decoder.values()
    found = [
        (text.rfind(token.content), token.content)
        for token in added
        if token.special and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
    ]
    others = [token.content for token in added]
    return next((border for at, border in sorted(found, reverse=True) if at > 0 and _stands_alone(border, others)), "")


def _stands_alone(border: str, others: Sequence[str]) -> bool:
    """Whether no other token holds a token, or ends as it begins."""
    return not any(
        other != border and (border in other or any(border.startswith(other[-n:]) for n in range(1, len(other) + 1)))
        for other in others
    )
