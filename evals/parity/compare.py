"""Two forms of one model compared: what differs, by how much, where first, and why if that is known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..sequences import shared_start
from .portrait import GreedyAnswer, Portrait, ScoredSequence, as_json

Status = Literal["same", "close", "differs", "not compared"]
"""``close`` is within the stated tolerance."""

TOLERANCES: dict[str, tuple[float, float]] = {
    "exact": (1e-3, 1e-4),
    "float32": (1e-3, 1e-4),
    "float16": (0.1, 0.01),
    "bfloat16": (1.0, 0.1),
    "quantized": (2.0, 0.1),
}
"""The largest and the mean difference of a token's log-probability, in nats, that two forms may have whose weights are
rounded to a type. What is stored is computed in float32, so that between equal weights only the order of sums is left.
Merging SmolLM2-135M in bfloat16 changes a log-probability by .015 in the mean and .19 at most (182 tokens), and a
trainer that computes in bfloat16 is .045 away: the tolerance tells such noise from a fault, while the check of the
weights is exact up to the rounding of each number, and finds another adapter or 4-bit weights whatever they do."""


_INNER = ("RoPE", "configuration", "quantisation", "weights")  # what makes log-probabilities of the same tokens differ
_OUTER = ("chat template", "BOS of each request", "added tokens", "tokenisation", "special tokens", "stop tokens")


@dataclass(frozen=True)
class ParityCheck:
    """One thing that was compared.

    Attributes:
        name: What.
        status: What came of it.
        detail: Both sides where they differ, or over how much they agree.
        largest: The largest difference, in nats or of the weights; None where there is no such number.
        cause: What explains differences of the checks behind it, if this one does.
    """

    name: str
    status: Status
    detail: str
    largest: float | None = None
    cause: str | None = None


@dataclass(frozen=True)
class FirstDifference:
    """The first token at which two forms part.

    Attributes:
        where: In which text or answer.
        position: The token's place in it, from 0; of an answer, in the answer.
        tokens: The token of each side; the same one where only its probability differs.
        margins: By how much each side's likeliest token leads its next, in nats; None where it is not known.
        cause: What is known to explain it.
    """

    where: str
    position: int
    tokens: tuple[str, str]
    margins: tuple[float | None, float | None]
    cause: str | None = None


def compare_tokens(one: Portrait, other: Portrait) -> list[ParityCheck]:
    """Compares all that is said without the weights: template, tokens, configuration.

    Args:
        one: The form that is taken to be right.
        other: The other.
    """
    return [
        _template(one, other),
        _special(one, other),
        compare_stops(one.stops.values(), other.stops.values()),
        _bos(one, other),
        _added(one, other),
        _tokenisation(one, other),
        *_config(one, other),
    ]


def _template(one: Portrait, other: Portrait) -> ParityCheck:
    name, cause = "chat template", "another chat template"
    if one.template_source == other.template_source and one.rendered == other.rendered:
        return ParityCheck(name, "same", "none" if one.template is None else f"fingerprint {one.template}")
    if one.template_source is None or other.template_source is None:
        lacking = one.name if one.template_source is None else other.name
        return ParityCheck(name, "differs", f"{lacking} has none", cause="no chat template")
    parted = [probe for probe, text in one.rendered.items() if other.rendered.get(probe) != text]
    if not parted:
        return ParityCheck(name, "same", f"another text, rendered alike on {len(one.rendered)} probes")
    texts = (one.rendered[parted[0]], other.rendered.get(parted[0]))
    where = f"{len(parted)} of {len(one.rendered)} probes render differently, first '{parted[0]}': "
    return ParityCheck(name, "differs", where + _parting(*texts), cause=cause)


def _parting(one: str | None, other: str | None) -> str:
    """Shows where two texts part."""
    if one is None or other is None:
        return "one of the two refuses it"
    at = shared_start(one, other)
    return f"{one[at : at + 40]!r} is {other[at : at + 40]!r} from character {at} on"


def _special(one: Portrait, other: Portrait) -> ParityCheck:
    wrong = [
        f"{kind} is {_token(one.special[kind])}, not {_token(other.special[kind])}"
        for kind in one.special
        if one.special[kind] != other.special[kind]
    ]
    if not wrong:
        said = ", ".join(f"{kind} {_token(value)}" for kind, value in one.special.items())
        return ParityCheck("special tokens", "same", said)
    kinds = [kind for kind in one.special if one.special[kind] != other.special[kind]]
    return ParityCheck(
        "special tokens", "differs", "; ".join(wrong), cause=f"another {' and '.join(kinds).upper()} token"
    )


def _token(value: tuple[str, int] | None) -> str:
    return "none" if value is None else f"{value[0]} ({value[1]})"


def compare_stops(one: Any, other: Any, name: str = "stop tokens") -> ParityCheck:
    """Compares the texts that end an answer."""
    ours, theirs = sorted(set(one)), sorted(set(other))
    if ours == theirs:
        return ParityCheck(name, "same", ", ".join(ours) or "none")
    missing, extra = sorted(set(ours) - set(theirs)), sorted(set(theirs) - set(ours))
    parts = [f"does not stop at {', '.join(missing)}"] if missing else []
    parts += [f"stops at {', '.join(extra)} too"] if extra else []
    return ParityCheck(name, "differs", "; ".join(parts), cause="other stop tokens")


def _bos(one: Portrait, other: Portrait) -> ParityCheck:
    """Each request begins with the same number of BOS tokens on both sides, at most one."""
    name, counts = "BOS of each request", []
    for request, ids in one.requests.items():
        theirs = other.requests.get(request)
        pair = _leading(ids, one), None if theirs is None else _leading(theirs, other)
        if pair[0] != pair[1]:
            what = f"{request}: {pair[0]} on one side, {'no request' if pair[1] is None else pair[1]} on the other"
            cause = "missing BOS" if (pair[1] or 0) < pair[0] else "an extra BOS"
            return ParityCheck(name, "differs", what, cause=cause)
        if pair[0] > 1:
            return ParityCheck(name, "differs", f"{request}: {pair[0]} on both sides", cause="more than one BOS")
        counts.append(f"{request}: {pair[0]}")
    return ParityCheck(name, "same", ", ".join(counts))


def _leading(ids: Sequence[int], portrait: Portrait) -> int:
    """Counts the BOS tokens that a request begins with."""
    bos = portrait.special["bos"]
    if bos is None:
        return 0
    return next((at for at, token in enumerate(ids) if token != bos[1]), len(ids))


def _added(one: Portrait, other: Portrait) -> ParityCheck:
    name = "added tokens"
    if one.added == other.added:
        return ParityCheck(name, "same", f"{len(one.added)}")
    lost = [f"{text} ({number})" for number, text in one.added.items() if text not in other.added.values()]
    moved = [
        text for number, text in one.added.items() if text in other.added.values() and other.added.get(number) != text
    ]
    new = [text for text in other.added.values() if text not in one.added.values()]
    parts = [f"lacks {', '.join(lost[:5])}"] if lost else []
    parts += [f"has {', '.join(moved[:5])} under other ids"] if moved else []
    parts += [f"has {', '.join(new[:5])} besides"] if new else []
    return ParityCheck(name, "differs", "; ".join(parts), cause="a lost added token" if lost else "other added tokens")


def _tokenisation(one: Portrait, other: Portrait) -> ParityCheck:
    name = "tokenisation"
    parted = [text for text, ids in one.tokens.items() if other.tokens.get(text) != ids]
    if not parted:
        return ParityCheck(name, "same", f"{len(one.tokens)} hard strings")
    ours, theirs = one.tokens[parted[0]], other.tokens[parted[0]]
    at = shared_start(ours, theirs)
    what = f"{len(parted)} of {len(one.tokens)} hard strings, first {parted[0][:40]!r}: from token {at} on "
    what += f"{list(ours[at : at + 4])} is {list(theirs[at : at + 4])}"
    return ParityCheck(name, "differs", what, cause="another tokenisation")


def _config(one: Portrait, other: Portrait) -> list[ParityCheck]:
    """Compares rotary embeddings apart from the rest; fields that one side alone has are its own bookkeeping."""
    rope = [name for name in one.config if "rope" in name or "rotary" in name]
    shared = [name for name in one.config if name in other.config and name not in rope]
    checks = [
        _fields("RoPE", one.config, other.config, rope, "wrong RoPE parameters"),
        _fields("configuration", one.config, other.config, shared, "another configuration"),
    ]
    if one.quantized == other.quantized:
        checks.append(ParityCheck("quantisation", "same", one.quantized or "none"))
    else:
        what = f"{one.quantized or 'none'} is {other.quantized or 'none'}"
        checks.append(ParityCheck("quantisation", "differs", what, cause="quantised weights"))
    return checks


def _fields(
    name: str, one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str], cause: str
) -> ParityCheck:
    parted = [key for key in keys if not _alike(one.get(key), other.get(key))]
    if not parted:
        shown = as_json({key: one.get(key) for key in keys}) if len(keys) < 3 else f"{len(keys)} fields"
        return ParityCheck(name, "same", shown)
    what = "; ".join(f"{key}: {as_json(one.get(key))} is {as_json(other.get(key))}" for key in parted[:4])
    return ParityCheck(name, "differs", what, cause=cause)


def _alike(one: Any, other: Any) -> bool:
    """Whether two values of a configuration mean the same; files keep some numbers in float32."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_alike(one.get(key), other.get(key)) for key in one.keys() | other.keys())
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6 * max(abs(one), abs(other))
    return one == other


def compare_behaviour(
    one: Portrait, other: Portrait, kind: str, found: Sequence[ParityCheck], decode: Any
) -> tuple[list[ParityCheck], FirstDifference | None]:
    """Compares log-probabilities and greedy answers.

    Args:
        one: The form that is taken to be right.
        other: The other.
        kind: Which of the tolerances holds.
        found: What was compared before, some of which may explain what is found here.
        decode: Makes text of a token.

    Returns:
        The checks, and the first token that differs.
    """
    most, mean = TOLERANCES[kind]
    causes = {check.name: check.cause for check in found if check.cause}
    inner = next((causes[name] for name in _INNER if name in causes), None)
    outer = next((causes[name] for name in _OUTER if name in causes), None)
    logs, first = compare_logs(one.scored, other.scored, most, mean, inner, decode)
    texts, parted = compare_answers(one.answers, other.answers, most, (outer, inner), decode)
    return [*([logs] if logs else []), *([texts] if texts else [])], first or parted


def compare_logs(
    ours: Sequence[ScoredSequence],
    theirs: Sequence[ScoredSequence],
    most: float,
    mean: float,
    cause: str | None,
    decode: Any,
) -> tuple[ParityCheck | None, FirstDifference | None]:
    """Compares the log-probabilities of the tokens that both have scored; see :func:`compare_behaviour`."""
    import numpy as np

    name = "log-probabilities"
    pairs = [(a, b) for a in ours for b in theirs if a.name == b.name]
    if not pairs:
        return None, None
    different = np.concatenate([np.abs(a.logs[: len(b.logs)] - b.logs[: len(a.logs)]) for a, b in pairs])
    largest, average = float(different.max()), float(different.mean())
    what = f"{len(different)} tokens, mean {average:.2g}; tolerance {most:g}, mean {mean:g}"
    if np.isfinite(largest) and largest <= most and average <= mean:
        return ParityCheck(name, "same" if largest == 0 else "close", what, largest), None
    bound = most if largest > most or not np.isfinite(largest) else mean
    for a, b in pairs:
        gap = np.abs(a.logs[: len(b.logs)] - b.logs[: len(a.logs)])
        over = np.flatnonzero(~(gap <= bound))
        if len(over):
            at = int(over[0])
            token, margins = "", (None, None)
            if len(a.margins):  # not a classifier's outputs
                token, margins = decode(a.ids[at + 1]), (_known(a.margins[at]), _known(b.margins[at]))
            first = FirstDifference(a.name, at + 1, (token, token), margins, cause)
            return ParityCheck(name, "differs", what, largest), first
    raise AssertionError("a difference over the tolerance lies somewhere")


def _known(margin: float) -> float | None:
    """Returns a margin; None where a server told of one token only."""
    return float(margin) if math.isfinite(margin) else None


def compare_answers(
    ours: Sequence[GreedyAnswer],
    theirs: Sequence[GreedyAnswer],
    most: float,
    causes: tuple[str | None, str | None],
    decode: Any,
) -> tuple[ParityCheck | None, FirstDifference | None]:
    """Compares greedy answers; where both sides' likeliest tokens are as good as tied, either may win.

    Args:
        ours: Those of the form that is taken to be right.
        theirs: Those of the other.
        most: The largest difference of a log-probability that is allowed.
        causes: What is known to make prompts differ, and what answers to the same prompt.
        decode: Makes text of a token.
    """
    if not ours or not theirs:
        return None, None
    name, ties, first, prompts = "greedy answers", 0, None, 0
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True), start=1):
        where = f"answer {number}"
        known = a.prompt is not None and b.prompt is not None
        if a.prompt != b.prompt if known else None not in (a.length, b.length) and a.length != b.length:
            prompts += 1
            first = first or FirstDifference(f"prompt {number}", *_parted_prompt(a, b, decode), (None, None), causes[0])
            continue
        if a.text == b.text and (a.ids is None or b.ids is None or a.ids == b.ids):
            continue
        at, tokens = _parted_answer(a, b, decode)
        margins = _at(a.margins, at), _at(b.margins, at)
        leads = [margin for margin in margins if margin is not None]
        if leads and max(leads) <= 2 * most:
            ties += 1
            continue
        first = first or FirstDifference(where, at, tokens, margins, causes[1] or causes[0])
    alike = f"{len(ours)} answers" + (f", {ties} parted where two tokens are as good as tied" if ties else "")
    if first is None:
        return ParityCheck(name, "close" if ties else "same", alike), None
    what = (
        f"{prompts} of {len(ours)} prompts differ" if prompts else f"parted in {first.where} at token {first.position}"
    )
    return ParityCheck(name, "differs", what), first


def _parted_prompt(a: GreedyAnswer, b: GreedyAnswer, decode: Any) -> tuple[int, tuple[str, str]]:
    """Returns where two prompts part, and the tokens there; of a prompt that is only counted, its length."""
    if a.prompt is None or b.prompt is None:
        shorter = min(a.length or 0, b.length or 0)
        return shorter, (f"{a.length} tokens", f"{b.length} tokens")
    at = shared_start(a.prompt, b.prompt)
    return at, (_decoded(a.prompt, at, decode), _decoded(b.prompt, at, decode))


def _parted_answer(a: GreedyAnswer, b: GreedyAnswer, decode: Any) -> tuple[int, tuple[str, str]]:
    """Returns the first token at which two answers part; of a text without tokens, that of the other side."""
    if a.ids is not None and b.ids is not None:
        at = shared_start(a.ids, b.ids)
        return at, (_decoded(a.ids, at, decode), _decoded(b.ids, at, decode))
    shared = shared_start(a.text, b.text)
    ids, text, at = a.ids or b.ids or (), "", 0
    while at < len(ids) and len(text + decode(ids[at])) <= shared:
        text += decode(ids[at])
        at += 1
    return at, (a.text[len(text) :][:20], b.text[len(text) :][:20])


def _decoded(ids: Sequence[int], at: int, decode: Any) -> str:
    return decode(ids[at]) if at < len(ids) else "the end"


def _at(values: Sequence[float], at: int) -> float | None:
    return values[at] if at < len(values) else None
