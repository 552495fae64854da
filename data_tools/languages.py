"""Which language a text is in, by py3langid's model of 139 languages, and ``und`` where that cannot be told.

Models of languages answer on anything: ``hello world`` is Fulfulde to this one, SQL German. So code, addresses and
markup are left aside, and a text of which too little is left, or of which the model is not sure, is undetermined.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..chat_templates.errors import did_you_mean
from .errors import DataError
from .ragged import bounds_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

UNDETERMINED = "und"
"""ISO 639's code of a text whose language is not told."""
MIN_LETTERS = 50
MIN_PROBABILITY = 0.7
_NO_LANGUAGE = "zxx"  # ISO 639's code of what is no language: numbers, markup
_ENOUGH = 1000  # characters that are looked at: more decide nothing and cost time
_TOGETHER = 1024  # texts that are classified at a time
_ASIDE = re.compile(
    r"^[ ]{0,3}(```|~~~).*?(?:^[ ]{0,3}\1|\Z)"  # blocks of code
    r"|`[^`\n]+`"
    r"|(?:https?|ftp)://\S+|\bwww\.\S+|\S+@\S+\.\w+"
    r"|<[^<>\n]{1,200}>|\{\{.*?\}\}|\\[A-Za-z]+|&\w+;",
    re.DOTALL | re.MULTILINE,
)
_ASIDE_SIGN = re.compile(r"[`<@\\&~]|://|www\.|\{\{")  # one of these is in all that is left aside
_CODE_SIGN = re.compile(r"[;{}()\[\]=>$%@/\\]|<!")  # and one of these in lines of code
_CODE_LINE = re.compile(
    r"[;{}]\s*$|^\s*(?:>>>|[$%@]\s?\w|//|/\*|<!)|[=!+*/|&]=|=>|->|\w\(\w*\)|^\s*\w+\(|\)\s*:\s*$|[\[\]{}=\\]"
)
_RUN = re.compile(r"[^\W\d_]+")

Identify = Callable[[Sequence[str]], list[tuple[str, float]]]


def prose_of(text: str) -> str:
    """Returns the beginning of what a text says beside code, addresses and markup."""
    for looked_at in (2 * _ENOUGH, 8 * _ENOUGH):
        left = text[:looked_at]
        if _ASIDE_SIGN.search(left):
            left = _ASIDE.sub(" ", left)
        if _CODE_SIGN.search(left):
            lines = left.split("\n")
            left = "\n".join(line for line in lines if not (_CODE_SIGN.search(line) and _CODE_LINE.search(line)))
        if len(left) >= _ENOUGH or len(text) <= looked_at:
            break
    return left[:_ENOUGH]


def letters_of(text: str) -> int:
    """Counts letters, those of scripts whose letters say more as more: by bytes of UTF-8, so a Han sign is three."""
    return sum(len(run.encode("utf-8", "replace")) for run in _RUN.findall(text))


@dataclass(frozen=True)
class _Model:
    """py3langid's model: naive Bayes on the bytes that an automaton sees (Lui and Baldwin 2012, "langid.py").

    ``classify`` says what the package's own of one text says, and walks through many at once.

    Attributes:
        codes: The languages, shape (languages,).
        weights: Log-probabilities of features, shape (features, columns).
        prior: Likewise of languages, shape (columns,).
        column: The language of each column; some have two.
        moves: The states that follow, by the row of a state and a byte.
        rows: Where the row of each state begins in ``moves``.
        features: What is seen on arriving at each state, or -1.
    """

    codes: Sequence[str]
    weights: "NDArray[np.float32]"
    prior: "NDArray[np.float32]"
    column: "NDArray[np.int64]"
    moves: "NDArray[np.int32]"
    rows: "NDArray[np.int64]"
    features: "NDArray[np.int32]"

    def classify(self, texts: Sequence[str]) -> tuple["NDArray[np.int64]", "NDArray[np.float32]"]:
        """Returns the place of each text's language among the codes, and its probability."""
        encoded = [_encode(text) for text in texts]
        seen = self._features(encoded)
        np.log1p(seen.data, out=seen.data)
        scores = seen @ self.weights + self.prior
        scores[np.diff(seen.indptr) == 0] = 0  # nothing seen: any language
        scores /= np.sqrt(np.maximum([len(text) for text in encoded], 1))[:, None]
        np.exp(scores - scores.max(axis=1, keepdims=True), out=scores)
        scores /= scores.sum(axis=1, keepdims=True)
        folded = np.zeros((len(texts), len(self.codes)), np.float32)
        np.add.at(folded.T, self.column, scores.T)
        best = folded.argmax(axis=1)
        return best, folded[np.arange(len(texts)), best]

    def _features(self, texts: Sequence[bytes]) -> "csr_array":
        """Counts the features of each text: all automata take a step at a time, the longest text first."""
        from scipy.sparse import csr_array

        order = np.argsort([-len(text) for text in texts], kind="stable")
        lengths = np.array([len(text) for text in texts], np.int64)[order]
        starts = bounds_of(lengths)[:-1]
        signs = np.frombuffer(b"".join(texts[place] for place in order), np.uint8)
        states = np.zeros(len(texts), np.int32)
        rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
        for step in range(int(lengths[0]) if len(lengths) else 0):
            going = int(np.searchsorted(-lengths, -step))
            states = self.moves[self.rows[states[:going]] + signs[starts[:going] + step]]
            found = self.features[states]
            at = np.flatnonzero(found >= 0)
            rows.append(order[at])
            columns.append(found[at])
        row, column = np.concatenate(rows), np.concatenate(columns)
        counts = csr_array((np.ones(len(row), np.float32), (row, column)), (len(texts), len(self.weights)))
        counts.sum_duplicates()
        return counts


def _encode(text: str) -> bytes:
    """Returns the bytes that the model reads."""
    text = text.lower() if text.isupper() else text
    return unicodedata.normalize("NFC", text).encode("utf-8", "surrogatepass")


@functools.cache
def _model() -> _Model:
    """Loads the model once: a file of 4 MB, 130 MB in memory."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        hint = "pip install 'posttrain[languages]'"
        raise DataError("needs the package 'py3langid'", where="languages", hint=hint) from error
    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    codes = list(dict.fromkeys(found.nb_classes))
    return _Model(
        codes,
        found.nb_ptc.astype(np.float32),
        found.nb_pc,
        np.array([codes.index(code) for code in found.nb_classes]),
        np.array(found.tk_nextmove, np.int32),
        np.array(found.tk_row, np.int64) << 8,
        np.array(found.tk_output, np.int32),
    )


def model_version() -> str:
    """Returns what identifies the model: an answer may be another with another version.

    Raises:
        DataError: The package is not installed.
    """
    import importlib.metadata

    _model()
    return f"py3langid {importlib.metadata.version('py3langid')}"


def known_codes() -> list[str]:
    """Returns the languages that can be told, by their ISO 639 codes, and ``und``.

    Raises:
        DataError: The package is not installed.
    """
    return sorted({*_model().codes, UNDETERMINED} - {_NO_LANGUAGE})


def check_codes(codes: Collection[str]) -> None:
    """Refuses languages that the model does not know.

    Raises:
        DataError: A code is unknown, or the package is not installed.
    """
    known = known_codes() if codes else []
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
        prose = [prose_of(text) for text in texts]
        enough = [place for place, text in enumerate(prose) if letters_of(text) >= MIN_LETTERS]
        found = [(UNDETERMINED, 0.0)] * len(texts)
        for first in range(0, len(enough), _TOGETHER):
            some = enough[first : first + _TOGETHER]
            best, probabilities = model.classify([prose[place] for place in some])
            for place, number, probability in zip(some, best.tolist(), probabilities.tolist(), strict=True):
                code = str(model.codes[number])
                is_told = probability >= least and code != _NO_LANGUAGE
                found[place] = (code if is_told else UNDETERMINED, probability)
        return found

    return identify
