"""Proof, for one template and one tokenizer, that training on their output teaches what is meant.

Each check is a function from the encoded probes to the problems it found. They look at tokens, not at the template's
text, so that they hold for any template that anyone brings.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from .errors import TemplateError
from .probes import Case, Probe, build_case, default_probes, end_of_turn
from .rendering import (
    Conversation,
    encode,
    holds,
    render,
    require_generation_marks,
    special_pattern,
    with_strings,
)
from .templates import ChatTemplate, is_single_token

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Severity = Literal["error", "warning"]
Problem = tuple[Severity, str]


@dataclass(frozen=True)
class Finding:
    """What one check found; ``severity`` says what it costs if not ``ok``."""

    check: str
    ok: bool
    severity: Severity
    message: str


@dataclass(frozen=True)
class _Subject:
    """What is put to the test."""

    template: ChatTemplate
    tokenizer: "PreTrainedTokenizerBase"
    cases: Sequence[Case]
    max_length: int | None
    given: bool
    """Whether the conversations are the caller's own."""


def verify(
    template: ChatTemplate,
    tokenizer: "PreTrainedTokenizerBase",
    conversations: Sequence[Conversation] | None = None,
    *,
    rows: Sequence[tuple[str, Conversation]] = (),
    max_length: int | None = None,
) -> list[Finding]:
    """Checks a template with a tokenizer, for loss on the assistant's turns alone.

    The tokenizer is taken as it is: call ``install`` first. It need not carry the template.

    Args:
        template: The template.
        tokenizer: A fast tokenizer.
        conversations: Rows of the caller's data; without any, built-in ones are taken (turns, system message, Unicode,
            white space at the edges, special tokens as text, and reasoning and tools where the template has them).
        rows: Conversations to try beside those, each with where it is from; those that do not render are passed over.
        max_length: The length in tokens that rows are truncated to; None leaves that unchecked.

    Returns:
        One finding for each check that passed, and one for each severity of each check that did not. Training is
        sound if none has ``ok`` False with severity ``error``.
    """
    try:
        require_generation_marks(template)
    except TemplateError as error:
        return [Finding("generation marks", False, "error", str(error))]
    given = [Probe(f"conversation {i}", conversation) for i, conversation in enumerate(conversations or [])]
    probes = given or [
        replace(probe, name=f"the made-up conversation '{probe.name}'") for probe in default_probes(template, tokenizer)
    ]
    built = [(probe, build_case(template, tokenizer, probe)) for probe in probes]
    refused: list[Problem] = [
        ("error" if probe.required else "warning", f"{probe.name}: {result}")
        for probe, result in built
        if isinstance(result, TemplateError)
    ]
    cases = [result for _, result in built if isinstance(result, Case)]
    tried = (build_case(template, tokenizer, Probe(where, row, required=False)) for where, row in rows)
    cases += [case for case in tried if isinstance(case, Case)]
    subject = _Subject(template, tokenizer, cases, max_length, bool(given))
    findings = _findings("renders", refused, "every conversation renders")
    for name, (check, proven) in _CHECKS.items():
        findings += _findings(name, list(check(subject)), proven)
    return findings


def _findings(check: str, problems: Sequence[Problem], proven: str) -> list[Finding]:
    """One finding per severity, told by its first problem and the number of others."""
    findings = []
    for severity in ("error", "warning"):
        messages = list(dict.fromkeys(message for own, message in problems if own == severity))
        if messages:
            more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
            findings.append(Finding(check, False, severity, messages[0] + more))
    return findings or [Finding(check, True, "error", proven)]


def _special_tokens(subject: _Subject) -> Iterator[Problem]:
    end = end_of_turn(subject.template, subject.tokenizer)
    needed = {*subject.template.special_tokens, *([end] if end else [])}
    for token in sorted(needed):
        if not is_single_token(subject.tokenizer, token):
            yield "error", f"{token} is not a single token of this tokenizer; install the template"


def _loss_text(subject: _Subject) -> Iterator[Problem]:
    """The loss ranges of the text are the assistant's words and the end of turn."""
    end = end_of_turn(subject.template, subject.tokenizer)
    for case in subject.cases:
        marks = [message.get("train") for message in case.probe.conversation["messages"]]
        spoken = [
            m for m, mark in zip(case.messages, marks, strict=True) if m["role"] == "assistant" and mark is not False
        ]
        if len(spoken) != len(case.turns):
            yield "error", f"{case.probe.name}: {_wrong_number(case, len(spoken))}"
            continue
        for message, (start, stop) in zip(spoken, case.turns, strict=True):
            text, after = case.rendered.text[start:stop], case.rendered.text[stop:]
            problem = _turn_problem(text, after, message, end or "")
            if problem:
                yield problem[0], f"{case.probe.name}: {problem[1]}"


def _wrong_number(case: Case, spoken: int) -> str:
    """Says why there are more ranges with loss than turns, or fewer, and what to do."""
    what = f"{spoken} assistant turns, but {len(case.turns)} ranges with loss"
    texts = [case.rendered.text[start:stop] for start, stop in case.turns]
    others = [message for message in case.messages if message["role"] != "assistant" and message.get("content")]
    taken = next((m["role"] for m in others if any(m["content"].strip() in text for text in texts)), None)
    if taken:
        return (
            f"{what}: your else-branch, or a block around all roles, took the {taken} turn; put the generation block "
            "under `if message.role == 'assistant'` alone"
        )
    return f"{what}: put one generation block around each turn of the assistant, inside the loop over messages"


def _turn_problem(text: str, after: str, message: dict, end: str) -> Problem | None:
    words = message.get("content", "")
    if not end or not text.endswith(end):
        if end and after.lstrip().startswith(end):
            return "error", (
                f"the end of turn {end} carries no loss, so that the model would not learn to stop: move "
                "{% endgeneration %} behind it"
            )
        if end and text.rstrip().endswith(end):
            return "error", (
                f"the loss covers {text[len(text.rstrip()) :]!r} after the end of turn {end}: move "
                "{% endgeneration %} before it"
            )
        return "error", f"the loss covers {text!r}, which does not end with the end of turn {end!r}"
    learnt = text.removesuffix(end)
    if message.get("tool_calls") or message.get("reasoning_content"):
        # Their form is the format's own affair; that they are there is not.
        parts = [words.strip(), (message.get("reasoning_content") or "").strip()]
        parts += [(call.get("function") or call)["name"] for call in message.get("tool_calls") or []]
        missing = [part for part in parts if part not in learnt]
        return ("error", f"the loss covers {text!r}, without {missing[0]!r}") if missing else None
    if learnt in (words, " " + words):  # a format whose prompt ends in a colon lets the model write the space
        return None
    if learnt.strip() == words.strip() or _unspaced(learnt) == _unspaced(words):
        return "warning", (
            f"white space at the edges of the assistant's text is changed: {words!r} to {learnt!r}; write the words as "
            "they are, without `| trim` and without space between them and the generation block"
        )
    remedy = ": move {% generation %} behind what the template writes before the words" if words in learnt else ""
    return "error", f"the loss covers {text!r} where the assistant said {words!r}{remedy}"


def _unspaced(text: str) -> str:
    """Returns a text without white space, and without thoughts that are empty."""
    return "".join(text.split()).replace("<think></think>", "")


def _loss_tokens(subject: _Subject) -> Iterator[Problem]:
    """The tokens with loss decode to the loss ranges of the text."""
    tokenizer = subject.tokenizer
    for case in subject.cases:
        if case.encoded.straddling:
            continue  # reported by the boundary check
        runs = [_decode(tokenizer, run) for run in _loss_runs(case)]
        texts = [case.rendered.text[start:stop] for start, stop in case.turns]
        if len(runs) == len(texts) and all(map(_same, runs, texts)):
            continue
        alone = [_decode(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        if len(runs) == len(texts) and all(map(_same, runs, alone)):
            yield "warning", f"{case.probe.name}: the tokenizer cannot write {texts!r}; it makes it {runs!r}"
        else:
            yield "error", f"{case.probe.name}: the tokens with loss decode to {runs!r}, not to {texts!r}"


def _boundaries(subject: _Subject) -> Iterator[Problem]:
    for case in subject.cases:
        for i in case.encoded.straddling:
            token = _decode(subject.tokenizer, case.encoded.input_ids[i : i + 1])
            what = f"token {token!r} lies across the edge of the loss, so it carries none{_strip(case)}"
            yield _severity(case), f"{case.probe.name}: {what}"


def _end_of_turn(subject: _Subject) -> Iterator[Problem]:
    """The last token with loss of each turn is the end of turn, and that is the eos token."""
    tokenizer, end = subject.tokenizer, end_of_turn(subject.template, subject.tokenizer)
    if end is None:
        yield "error", "neither the template nor the tokenizer names an end of turn"
        return
    if tokenizer.eos_token != end:
        yield (
            "error",
            f"turns end with {end}, but the eos token is {tokenizer.eos_token}, which carries no loss and at which "
            "generation would wait; install the template",
        )
    expected = tokenizer.convert_tokens_to_ids(end)
    for case in subject.cases:
        runs = _loss_runs(case)
        spoken = any(message["role"] == "assistant" for message in case.messages)
        if spoken and not runs and (case.turns or case.probe.required):
            yield "error", f"{case.probe.name}: no token carries loss"
        for run in runs:
            if run[-1] != expected:
                yield "error", f"{case.probe.name}: the loss ends with {_decode(tokenizer, run[-1:])!r}, not with {end}"


def _prompt_prefix(subject: _Subject) -> Iterator[Problem]:
    """What the model is given when it is to answer is, token for token, what stood before the answer in training."""
    for case in subject.cases:
        for i, message in enumerate(case.messages):
            if message["role"] == "assistant" and i:
                prompt = _encode_part(subject, case, i, add_generation_prompt=True)
                if isinstance(prompt, TemplateError):
                    yield "error", f"{case.probe.name}: no prompt before turn {i + 1}: {prompt}"
                elif case.encoded.input_ids[: len(prompt)] != prompt:
                    what = f"{_divergence(subject, prompt, case)} in the prompt of turn {i}"
                    yield _severity(case), f"{case.probe.name}: {what}{_strip(case)}"


def _turn_prefix(subject: _Subject) -> Iterator[Problem]:
    """A conversation is, token for token, the beginning of its own continuation."""
    for case in subject.cases:
        for i, message in enumerate(case.messages[:-1]):
            if message["role"] == "assistant":
                part = _encode_part(subject, case, i + 1)
                if isinstance(part, TemplateError) or case.encoded.input_ids[: len(part)] != part:
                    why = part if isinstance(part, TemplateError) else _divergence(subject, part, case)
                    yield "warning", f"{case.probe.name}: turns change when others follow: {why}"


def _bos(subject: _Subject) -> Iterator[Problem]:
    tokenizer, bos = subject.tokenizer, subject.tokenizer.bos_token_id
    if bos is None:
        return
    adds = tokenizer("a")["input_ids"][:1] == [bos]
    for case in subject.cases:
        if case.encoded.input_ids[:2] == [bos, bos]:
            yield "error", f"{case.probe.name}: begins with two {tokenizer.bos_token}"
        elif adds and case.encoded.input_ids[:1] != [bos]:
            yield "warning", f"the tokenizer begins every text with {tokenizer.bos_token}, but the template does not"


def _truncation(subject: _Subject) -> Iterator[Problem]:
    if subject.max_length is None:
        return
    # Of the built-in conversations only the shortest: the others say nothing of the caller's data.
    for case in subject.cases if subject.given else subject.cases[:1]:
        mask = case.encoded.loss_mask
        if any(mask) and not any(mask[: subject.max_length]):
            first = mask.index(True)
            yield (
                "error",
                f"{case.probe.name}: cut to max_length {subject.max_length} no token carries loss, since the answer "
                f"begins at token {first + 1}",
            )


def _pad(subject: _Subject) -> Iterator[Problem]:
    tokenizer = subject.tokenizer
    if tokenizer.pad_token_id is None:
        yield "error", "the tokenizer has no pad token; install the template"
    elif tokenizer.pad_token_id == tokenizer.eos_token_id:
        yield (
            "error",
            f"the pad token is the eos token {tokenizer.eos_token}, so masking padding masks the end of every turn; "
            "install the template",
        )


def _content(subject: _Subject) -> Iterator[Problem]:
    for case in subject.cases:
        for message in case.messages:
            role, words = message["role"], message.get("content", "")
            if role not in ("system", "user"):
                continue
            if words.strip() not in case.rendered.text:
                yield (
                    "error",
                    f"{case.probe.name}: the {role} message is dropped or changed: write its content in a branch of "
                    f"its own, `if message.role == '{role}'`",
                )
            elif words not in case.rendered.text:
                yield (
                    "warning",
                    f"{case.probe.name}: white space at the edges of {role} text is removed; drop `| trim`, or "
                    "strip the rows if the model was trained so",
                )


def _tools(subject: _Subject) -> Iterator[Problem]:
    """Definitions, calls and results are in the text; of these only the calls carry loss."""
    for case in subject.cases:
        text, loss = case.rendered.text, "".join(case.rendered.text[a:b] for a, b in case.turns)
        head = text[: case.turns[0][0]] if case.turns else text
        for tool in case.tools:
            name = (tool.get("function") or tool)["name"]
            if name not in head:
                yield "error", f"{case.probe.name}: the definition of tool {name} is dropped"
        for message in case.messages:
            if message["role"] == "tool" and message["content"] not in text:
                yield "error", f"{case.probe.name}: the result of a tool is dropped"
            elif message["role"] == "tool" and message["content"] in loss:
                yield "error", f"{case.probe.name}: the result of a tool carries loss"


def _injection(subject: _Subject) -> Iterator[Problem]:
    """Special tokens written in the data stay text."""
    special = special_pattern(subject.tokenizer)
    if special is None:
        return
    for case in subject.cases:
        if not holds(case.probe.conversation, special):
            continue
        if subject.given:
            yield (
                "warning",
                f"{case.probe.name} holds special tokens in its text; encode() makes them plain text, but "
                "apply_chat_template would make them real",
            )
        harmless = with_strings(case.probe.conversation, special, "x")
        expected = encode(subject.template, subject.tokenizer, [harmless])[0]
        if _count_special(subject, case.encoded.input_ids) != _count_special(subject, expected.input_ids):
            yield "warning", f"{case.probe.name}: special tokens in the text become real ones even as plain text"


def _own(subject: _Subject) -> Iterator[Problem]:
    """A template that stands for the model's own renders as that does."""
    own = subject.template.stands_for
    for case in subject.cases if own else ():
        try:
            theirs, ours = (
                render(template, case.messages, tokenizer=subject.tokenizer, tools=case.tools).text
                for template in (own, subject.template)
                if template is not None
            )
        except TemplateError as error:
            yield "error", f"{case.probe.name}: the model's own template refuses it: {error}"
            continue
        if theirs != ours:
            yield "error", f"{case.probe.name}: the model's own template writes it in another way; mark a copy of it"


_CHECKS: dict[str, tuple[Callable[[_Subject], Iterator[Problem]], str]] = {
    "special tokens": (_special_tokens, "every special token of the template is one token"),
    "loss text": (_loss_text, "the loss covers exactly the assistant's text and the end of turn"),
    "loss tokens": (_loss_tokens, "the tokens with loss decode to exactly that text"),
    "boundaries": (_boundaries, "no token lies across the edge of the loss"),
    "end of turn": (_end_of_turn, "the end of turn is the eos token, and carries loss"),
    "prompt prefix": (_prompt_prefix, "each prompt is a token prefix of the conversation"),
    "turn prefix": (_turn_prefix, "each conversation is a token prefix of its continuation"),
    "bos": (_bos, "no second BOS, none missing"),
    "truncation": (_truncation, "truncated conversations keep a token with loss"),
    "pad": (_pad, "the pad token is not the eos token"),
    "content": (_content, "system and user text is kept"),
    "tools": (_tools, "tools are rendered; only calls carry loss"),
    "own template": (_own, "the model's own template renders the same"),
    "injection": (_injection, "special tokens in the data stay text"),
}


def _encode_part(
    subject: _Subject, case: Case, stop: int, *, add_generation_prompt: bool = False
) -> list[int] | TemplateError:
    part = {"messages": case.messages[:stop], "tools": case.tools}
    try:
        encoded = encode(subject.template, subject.tokenizer, [part], add_generation_prompt=add_generation_prompt)
        return encoded[0].input_ids
    except TemplateError as error:
        return error


def _divergence(subject: _Subject, part: list[int], case: Case) -> str:
    whole = case.encoded.input_ids
    at = next((i for i, (a, b) in enumerate(itertools.zip_longest(part, whole)) if a != b), len(part))
    ours, theirs = (_decode(subject.tokenizer, ids[at : at + 5]) for ids in (part, whole))
    return f"at token {at + 1} {ours!r} stands for {theirs!r}"


def _loss_runs(case: Case) -> list[list[int]]:
    """The ids of each unbroken run of tokens with loss."""
    pairs = zip(case.encoded.input_ids, case.encoded.loss_mask, strict=True)
    return [[i for i, _ in run] for loss, run in itertools.groupby(pairs, key=lambda pair: pair[1]) if loss]


def _decode(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _same(decoded: str, text: str) -> bool:
    """Equality but for the space that a SentencePiece decoder takes from the head of a text."""
    return decoded in (text, text.removeprefix(" "))


def _severity(case: Case) -> Severity:
    """What tokens that differ cost: little where a format may do as it likes, or white space stands at an edge."""
    return "error" if case.probe.required and not _spaced_edges(case) else "warning"


def _spaced_edges(case: Case) -> bool:
    return any(text != text.strip() for text in (message.get("content", "") for message in case.messages))


def _strip(case: Case) -> str:
    """Says what to do where white space at an edge is the cause."""
    return "; strip messages that begin or end with white space" if _spaced_edges(case) else ""


def _count_special(subject: _Subject, ids: Sequence[int]) -> int:
    special = {i for i, token in subject.tokenizer.added_tokens_decoder.items() if token.special}
    return sum(i in special for i in ids)
