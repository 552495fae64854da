"""From what a judge wrote to its verdict; what cannot be read is a status, never a score."""

import html
import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ..judges import JudgeSettings
from ..thinking import strip_thinking
from .judgments import Status

PARSER = 2
"""A part of the version of judges that write or are behind a server: raise it when a change here changes a verdict."""
LEAST_MASS = 0.5
"""What the labels must hold of the probability at a server: with less, it would say something else."""
_REFUSALS = re.compile(
    r"\b(?:I\s+(?:can(?:no|')t|am\s+(?:not\s+able|unable)|will\s+not|won't|must\s+decline)"
    r"|I'm\s+(?:not\s+able|unable|sorry)|(?:sorry|apologi[sz]e),?\s+(?:but\s+)?I|as\s+an\s+AI)\b",
    re.IGNORECASE,
)

# --- one spelling of what looks the same ---

_SHOWN_AS_NOTHING = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_SAME = str.maketrans(
    {
        **dict.fromkeys("【〔〖❲⁅", "["),
        **dict.fromkeys("】〕〗❳⁆", "]"),
        **dict.fromkeys("⟦〚", "[["),
        **dict.fromkeys("⟧〛", "]]"),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("“”„‟″«»「」『』", '"'),
        **dict.fromkeys("⁄∕", "/"),
        **{"≫": ">>", "≪": "<<", "٫": "."},
    }
)
_RAISED = ("<super>", "<sub>", "<fraction>")  # folding these would make 82 of 8² and 81/2 of 8½


def normalised(text: str) -> str:
    """Returns a text in one spelling: NFKC, plain brackets and quotes, no escapes, nothing that cannot be seen."""
    text = re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), html.unescape(text))
    if not text.isascii():
        text = unicodedata.normalize("NFC", "".join(map(_folded, text))).translate(_SAME)
    text = "".join(c for c in text if c.isprintable() or c.isspace())
    text = re.sub(r"\n\s*\n", "\n\n", re.sub(r"[^\S\n]+", " ", text))
    return re.sub(r"(?<!\\)\\+(?=[^\w\s\\])", "", text)


def _folded(character: str) -> str:
    if unicodedata.category(character) == "Cf" or _SHOWN_AS_NOTHING.match(character):
        return ""
    raised = unicodedata.decomposition(character).startswith(_RAISED)
    return character if raised else unicodedata.normalize("NFKC", character)


# --- marks ---

_DRESS = " \t\r\n*_`#\"':()[]{}$;!"  # what a verdict may be dressed in
_OPEN, _CLOSE = r"\[(?:[\s*_`]*\[)+", r"\](?:[\s*_`]*\])+"
_BOXED = r"\\(?:boxed|fbox)\s*\{((?:[^{}\n]|\{[^{}\n]*\})*)\}"
_MARK = re.compile(rf"{_OPEN}([^\[\]]{{0,200}}?){_CLOSE}|{_BOXED}|{_OPEN}|\[[^\[\]\n]{{1,40}}{_CLOSE}")
_QUOTED = re.compile(r"(?:begin|end) .* [0-9a-f]{12}")  # what stands around a text in our own prompts
# A verdict without its brackets at the end of a line: not one to count, but one that an earlier mark must not outvote.
_LOOSE = re.compile(
    r"(?:\b(?:verdict|answer|winner|rating|score|decision|choice)\b[\s*_`\"']{0,8}(?:is|[:=])+[\s*_`\"'$(]{0,8}"
    r"|\*\*\s*|\[\s*|`)([^\n*`\[\]:=]{1,40}?)[\s*_`\"'$)\].!]{0,12}$",
    re.IGNORECASE | re.MULTILINE,
)
_LATEX = re.compile(
    r"\\(?:boxed|fbox|mbox|text\w*|math\w+|bf|rm|large|Large|quad|[,;!])\s*|</?(?:b|i|u|em|strong|code|mark|span|big)\b[^<>]*>"
)
_NAMES = (
    r"answer|response|assistant|model|option|output|choice|verdict|winner|decision|judge?ment|rating|score|grade|mark"
)
_LEAD = re.compile(rf"(?:(?:my|the|is|it|final|overall|total|better|best|preferred|{_NAMES})\b[\s:=*_`\"']*)+")
_TAIL = re.compile(r"\s+(?:is\s+(?:the\s+)?(?:better|best|winner)|wins)$")
_TIES = ("tie", "a tie", "tied", "draw", "equal")
_SCALED = re.compile(r"(.+?)\s*(>+|=+|<+)\s*(.+)")
_NUMBER = re.compile(
    r"([+-]?\d+(?:[.,]\d+)?|[+-]?\.\d+)\s*(?:(?:/|out of|of)\s*(\d+(?:[.,]\d+)?)|(%))?"
    r"\s*(?:points?|pts?|stars?|marks?|punkte?|puntos?|分|点|점|★|⭐)?"
)

# --- sentences ---

_ENDS = re.compile(
    r"(?<!\bvs)(?<!\be\.g)(?<!\bi\.e)[.!?。][\"')\]*_`]*(?=\s|$)|\n[^\S\n]*\n|[\].!?;:*]\s*\n|\n(?=\s*[A-Z#*>|\d-])"
)
# What takes a mark back, right before it and right behind it.
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|nor|no|cannot|rather than|instead of|less than|more than)|n't)"
    r"(?:\s+(?:quite|really|exactly|necessarily|clearly|be|is|it|it's|that|the|answer|verdict|winner|think|believe|say"
    r"|choose|pick|prefer|call|go|with|for)\b){0,4}[\s*_`\"'(]*$|~~\s*$|<(?:s|del|strike)>\s*$",
    re.IGNORECASE,
)
_REJECTED = re.compile(
    r"[\s*_`\"')]*(?:(?:is|was|seems|would be)\s+(?:clearly\s+|just\s+)?"
    r"(?:not|never|wrong|incorrect|worse|worst|the (?:worse|worst|loser))|isn't|wasn't|loses|lost"
    r"|does(?:n't| not) win|~~)",
    re.IGNORECASE,
)
# What says, right before a mark that ends its sentence, that it takes the place of an earlier one.
_INSTEAD = re.compile(
    r"\b(?:final(?:ly)?|in the end|eventually|ultimately|after all|on (?:balance|reflection)|now|no|actually|instead"
    r"|hence|so|thus|therefore|overall|verdict|or rather|wait|correction|I (?:conclude|choose|pick|prefer|go with))\b"
    r"(?:\s+(?:is|it is|my|the|verdict|answer)){0,4}[\s,:*_`\"'-]{0,12}$",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """What came of asking a judge once.

    Attributes:
        status: As of a judgment.
        preference: For the answer that it saw first, in [0, 1]; None without a verdict, and of ratings.
        rating: The mark; None without a verdict, and of pairs.
        reason: What the judge wrote, or why there is no verdict.
        prompt_tokens: Tokens that it read.
        completion_tokens: Tokens that it wrote.
        cost: Money.
        seconds: Time.
    """

    status: Status
    preference: float | None = None
    rating: float | None = None
    reason: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None


def parse(text: str, settings: JudgeSettings, *, finish: str | None = "stop") -> Verdict:
    """Reads a judge's reply.

    The text is normalised first, so that a verdict counts however it is spelt: in full-width letters or escaped
    brackets, with characters that nobody sees, in bold, with a decimal comma or a unit. Of several verdicts the last
    one counts, since a judge that thinks aloud may quote others before it. But an earlier one never stands in for a
    later one that cannot be read or is off the scale, and two different ones in a sentence are none, unless the
    sentence takes the first back (``at first [[B]], finally [[A]]``). A reply that was cut has a verdict only if that
    was the last thing it said.

    Args:
        text: The reply; thoughts between tags such as ``<think>`` are left aside.
        settings: Labels, scale and pattern.
        finish: How the reply ended, ``length`` where the limit of tokens cut it.
    """
    spoken = strip_thinking(normalised(text)).text
    value, rest = _last(spoken, settings)
    if finish == "content_filter":
        return Verdict("refused", reason=text or "the server's filter stopped the reply")
    if finish == "length" and (value is None or rest.strip(_DRESS + ".")):
        return Verdict("truncated", reason=text)
    if value is None:
        return Verdict("refused" if _REFUSALS.search(spoken[:400]) else "unparsed", reason=text)
    if settings.kind == "rating":
        return Verdict("judged", rating=value, reason=text)
    return Verdict("judged", value, reason=text)


def _last(text: str, settings: JudgeSettings) -> tuple[float | None, str]:
    """Returns what the last verdict says, None if that is nothing, and what follows it."""
    if settings.pattern is not None:
        return _by_pattern(text, settings)
    marks = [match for match in _MARK.finditer(text) if not _QUOTED.fullmatch((match[1] or "").strip())]
    if not marks:  # a reply that is a label or a mark and nothing else
        return _read(text, settings, bare=True), ""
    last, value = marks[-1], _value(marks[-1], settings)
    rest = text[last.end() :]
    if value is None or _DENIED.search(text[: last.start()][-99:]) or _REJECTED.match(rest):
        return None, rest
    if _contradicted(text, marks, settings):
        return None, rest
    loose = [_read(match[1], settings) for match in _LOOSE.finditer(rest)]
    return (None if any(said is not None and said != value for said in loose) else value), rest


def _by_pattern(text: str, settings: JudgeSettings) -> tuple[float | None, str]:
    """Reads by a regular expression of the user's, with emphasis and without: it need not know of any."""
    found: list[tuple[float | None, str]] = []
    for said in (text, re.sub(r"\*+|`+|(?<!\w)_+|_+(?!\w)", "", text)):
        matches = [m for m in re.finditer(settings.pattern or "", said, re.IGNORECASE) if m[1] is not None]
        if matches:
            last, marks = matches[-1], list(_MARK.finditer(said))
            marked = any(mark.start() <= last.start(1) < mark.end() for mark in marks)
            later = marked and marks[-1].start() >= last.end()  # in the same brackets, and the pattern cannot read it
            found.append((None if later else _read(last[1], settings), said[last.end() :]))
    if not found:
        return _read(text, settings, bare=True), ""
    return found[0] if len({value for value, _ in found}) == 1 else (None, found[0][1])


def _contradicted(text: str, marks: list[re.Match[str]], settings: JudgeSettings) -> bool:
    """Says whether the last mark's sentence has another verdict before it that it does not take back."""
    last, value = marks[-1], _value(marks[-1], settings)
    begin = max((match.end() for match in _ENDS.finditer(text, 0, last.start())), default=0)
    before = [mark for mark in marks[:-1] if mark.start() >= begin and _value(mark, settings) not in (None, value)]
    if not before:
        return False
    end = re.match(r"[\s*_`\"')]*(?:$|[.!?;\n。])", text[last.end() :])
    return end is None or _INSTEAD.search(text[before[-1].end() : last.start()][-99:]) is None


def _value(mark: re.Match[str], settings: JudgeSettings) -> float | None:
    """Returns what a mark says; None of one that is torn."""
    said = mark[1] if mark[1] is not None else mark[2]
    return None if said is None else _read(said, settings)


def _read(said: str, settings: JudgeSettings, *, bare: bool = False) -> float | None:
    """Returns the rating or preference that some words are; bare ones must be it alone, without words around."""
    plain = " ".join(said.split()).casefold()
    undressed = _undressed(plain)
    if settings.kind == "rating":
        if bare:
            return _rating(undressed, settings) if re.fullmatch(r"[+-]?[\d.,]+", undressed) else None
        return _rating(_LEAD.sub("", undressed, count=1), settings)
    known = _spellings(settings)
    found = known.get(plain, known.get(undressed))
    if found is not None or bare:
        return found
    known |= {word: 0.5 for word in _TIES if word not in known}
    said = _TAIL.sub("", undressed)
    for label, side in known.items():
        if said == label or (said.endswith(label) and _LEAD.fullmatch(said.removesuffix(label))):
            return side
    scale = _SCALED.fullmatch(_LEAD.sub("", said, count=1) if _LEAD.match(said) else said)
    sides = [known.get(_undressed(part)) for part in (scale[1], scale[3])] if scale else []
    if scale is None or sorted(map(str, sides)) != ["0.0", "1.0"]:
        return None
    return 0.5 if "=" in scale[2] else sides[0] if ">" in scale[2] else sides[1]


def _undressed(text: str) -> str:
    """Returns a text without emphasis and brackets around it; a point before a digit is a part of a number."""
    text = _LATEX.sub("", text).lstrip(_DRESS).rstrip(_DRESS + ".,")
    return text[1:-1].strip(_DRESS) if text[:1] == "<" and text[-1:] == ">" else text


def _spellings(settings: JudgeSettings) -> dict[str, float]:
    """Returns the preference for the first answer by label: as given, and undressed where that is still one label's."""
    sides: dict[str, float] = {}
    labels = [" ".join(normalised(label).split()).casefold() for label in settings.labels.all]
    undressed = [_undressed(label) for label in labels]
    for label, short, side in zip(labels, undressed, (1.0, 0.0, 0.5), strict=True):
        if short and undressed.count(short) == 1 and short not in labels:
            sides[short] = side
        sides[label] = side
    return sides


def _rating(text: str, settings: JudgeSettings) -> float | None:
    """Returns a mark on the scale.

    ``8,5`` is 8.5. ``1,000`` may be a thousand or one: it is neither, unless a thousand alone lies on the scale.
    """
    match, (low, high) = _NUMBER.fullmatch(text), settings.scale
    if match is None:
        return None
    out_of = 100.0 if match[3] else None if match[2] is None else float(match[2].replace(",", "."))
    rating = float(match[1].replace(",", "."))
    if re.fullmatch(r"[+-]?\d{1,3},\d{3}", match[1]):
        rating = math.nan if low <= rating <= high else float(match[1].replace(",", ""))
    return rating if low <= rating <= high and out_of in (None, high) else None


def from_labels(logs: Mapping[str, float], settings: JudgeSettings, *, least_mass: float = 0.0) -> Verdict:
    """Turns log-probabilities of labels into a verdict: of pairs the expected preference, of ratings the expected mark.

    The probabilities are those among the labels alone; a mark's expectation is that of G-Eval (Liu et al. 2023,
    arXiv:2303.16634, section 2, equation 1).

    Args:
        logs: Natural logarithm by label; labels that are missing have none of the probability.
        settings: Labels or scale.
        least_mass: What the labels must hold together.
    """
    names = labels_of(settings)
    values = [logs.get(name, -math.inf) for name in names]
    top = max(values)
    shares = [math.exp(value - top) for value in values] if math.isfinite(top) else []
    mass = math.exp(top) * sum(shares) if shares else 0.0
    if not shares or mass < least_mass:
        return Verdict("unparsed", reason=f"the labels hold {mass:.3g} of the probability")
    shares = [share / sum(shares) for share in shares]
    said = ", ".join(f"{name} {share:.4g}" for name, share in zip(names, shares, strict=True))
    reason = f"{said}; the labels hold {mass:.3g} of the probability"
    if settings.kind == "rating":
        mark = sum(int(name) * share for name, share in zip(names, shares, strict=True))
        return Verdict("judged", rating=mark, reason=reason)
    return Verdict("judged", shares[0] + shares[2] / 2, reason=reason)


def labels_of(settings: JudgeSettings) -> tuple[str, ...]:
    """Returns what the judge may say: three labels, or every mark."""
    if settings.kind == "rating":
        return tuple(str(mark) for mark in range(settings.scale[0], settings.scale[1] + 1))
    return settings.labels.all


def from_tokens(tokens: Mapping[str, float], settings: JudgeSettings) -> Verdict:
    """Reads a server's log-probabilities of the first token: spellings of one label (`` A``, ``A``) are added up."""
    logs: dict[str, float] = {}
    names = set(labels_of(settings))
    for token, log in tokens.items():
        name = token.strip()
        if name in names:
            old = logs.get(name)
            logs[name] = log if old is None else max(old, log) + math.log1p(math.exp(-abs(old - log)))
    return from_labels(logs, settings, least_mass=LEAST_MASS)
