"""Which language a text is in, by py3langid's model of 139 languages, and ``und`` where that cannot be told.

Models of languages answer on anything: ``hello world`` is Fulfulde to this one, SQL German. So code, addresses and
markup are left aside, and a text of which too little is left, or of which the model is not sure, is undetermined.
"""

import functools
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from ..chat_templates.errors import did_you_mean
from .errors import DataError

UNDETERMINED = "und"
"""ISO 639's code of a text whose language is not told."""
MIN_LETTERS = 50
MIN_PROBABILITY = 0.7
_NO_LANGUAGE = "zxx"  # ISO 639's code of what is no language: numbers, markup
_ENOUGH = 1000  # characters that are looked at: more decide nothing and cost time
_ASIDE = re.compile(
    r"^[ ]{0,3}(```|~~~).*?(?:^[ ]{0,3}\1|\Z)"  # blocks of code
    r"|`[^`\n]+`"
    r"|(?:https?|ftp)://\S+|\bwww\.\S+|\S+@\S+\.\w+"
    r"|<[^<>\n]{1,200}>|\{\{.*?\}\}|\\[A-Za-z]+|&\w+;",
    re.DOTALL | re.MULTILINE,
)
_CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:>>>|[$%@]\s?\w|//|/\*|<!)|[=!+*/|&]=|=>|->|\w\(\w*\)|^\s*\w+\(|\)\s*:\s*$|[\[\]{}=\\]"
)
_RUN = re.compile(r"[^\W\d_]+")

Identify = Callable[[Sequence[str]], list[tuple[str, float]]]


def prose_of(text: str) -> str:
    """Returns the beginning of what a text says beside code, addresses and markup."""
    left = _ASIDE.sub(" ", text[: 4 * _ENOUGH])
    lines = [line for line in left.split("\n") if not _CODE_LINE.search(line)]
    return "\n".join(lines)[:_ENOUGH]


def letters_of(text: str) -> int:
    """Counts letters, those of scripts whose letters say more as more: by bytes of UTF-8, so a Han sign is three."""
    return sum(len(run.encode("utf-8", "replace")) for run in _RUN.findall(text))


@functools.cache
def _model() -> Any:
    """Loads the model, of 4 MB, once."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        hint = "pip install 'posttrain[languages]'"
        raise DataError("needs the package 'py3langid'", where="languages", hint=hint) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def model_version() -> str:
    """Returns what identifies the model: an answer may be another with another version.

    Raises:
        DataError: The package is not installed.
    """
    import importlib.metadata

    _model()
    return f"py3langid {importlib.metadata.version('py3langid')}"


def check_codes(codes: Collection[str]) -> None:
    """Refuses languages that the model does not know.

    Raises:
        DataError: A code is unknown, or the package is not installed.
    """
    known = sorted({*_model().labels, UNDETERMINED} - {_NO_LANGUAGE})
    for code in codes:
        if code not in known:
            hint = did_you_mean(code, known) or f"known: {', '.join(known)}"
            raise DataError(f"no language '{code}'", where="languages", hint=hint)


def identifier(min_probability: float | None) -> Identify:
    """Returns what gives for each text its language and the model's probability of it.

    Args:
        min_probability: What the model must give; a text of less is ``und``. None: anything.

    Raises:
        DataError: The package is not installed.
    """
    model = _model()
    least = min_probability or 0.0

    def identify(texts: Sequence[str]) -> list[tuple[str, float]]:
        found = []
        for text in texts:
            prose = prose_of(text)
            code, probability = (UNDETERMINED, 0.0) if letters_of(prose) < MIN_LETTERS else model.classify(prose)
            is_told = probability >= least and code != _NO_LANGUAGE
            found.append((code if is_told else UNDETERMINED, probability))
        return found

    return identify
