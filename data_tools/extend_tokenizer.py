"""Extending a BPE tokenizer by merges: BPE learning gone on with, on texts of one's own, behind the merges there are.

That is continued BPE training (Purason et al. 2025, arXiv:2512.03989). Tokens that are only added to a vocabulary
(``add_tokens``) are looked for before anything else, inside words too, and often cost tokens. A merge behind all others
is made where the old ones have nothing more to join, so no text gets more tokens than it had.
"""

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError
from .files import read_json

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

EXTENSION = "extension.json"
"""In the folder of an extended model: the id of its first new token, and the old tokens that each is made of."""
_SPACES = ("Ġ", "▁")  # what stands for a space at the beginning of a word: bytes as GPT-2 writes them; SentencePiece
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_DIGIT = re.compile(r"[0-9]")
_LONGEST = 64  # tokens of a word that is learnt from; longer ones are cut
_BASE = 0x20000  # a token's id behind this code point is its character while merges are learnt: no surrogates there
_SPARE = 1.25  # merges that are learnt for each that is wanted, as some give tokens that are there already
_TOGETHER = 256  # texts encoded at a time


@dataclass(frozen=True)
class Extension:
    """A tokenizer with merges behind those that it had.

    Attributes:
        content: All of its ``tokenizer.json``.
        first: The id of its first new token; the others follow.
        tokens: The new tokens as the vocabulary spells them, in the order of their ids.
        pieces: The old tokens that each is made of.
    """

    content: Mapping[str, Any]
    first: int
    tokens: Sequence[str]
    pieces: Sequence[Sequence[int]]

    def backend(self) -> "Backend":
        """Returns the tokenizer."""
        return read_backend(self.content)


def new_tokens_of(folder: Path) -> range:
    """Returns the ids of the tokens by which the model of a folder was extended and that it has yet to learn."""
    fields = read_json(folder / EXTENSION)
    return range(fields["first"], fields["first"] + len(fields["pieces"])) if isinstance(fields, dict) else range(0)


def read_backend(content: Mapping[str, Any]) -> "Backend":
    """Returns the tokenizer of a ``tokenizer.json``, which cuts and pads nothing."""
    import tokenizers

    return tokenizers.Tokenizer.from_str(json.dumps({**content, "truncation": None, "padding": None}))


def require_bpe(content: Mapping[str, Any], where: str) -> None:
    """Refuses tokenizers to which merges cannot be added.

    Raises:
        DataError: It is no BPE, or one that marks the parts of words.
    """
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        what = f"only BPE tokenizers can be extended by merges, and this is {model.get('type') or 'none of tokenizers'}"
        raise DataError(what, where=where, hint="train a tokenizer, and a model, of your own: `data tokenizer`")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise DataError(f"has {name} '{model[name]}', with which no merges are learnt", where=where)


def count_words(backend: "Backend", texts: Iterable[str]) -> Counter[tuple[int, ...]]:
    """Counts words, each as the tokens that it has now; no merge will reach beyond one.

    A word is what the tokenizer never merges across, and begins anew at a space. Added tokens, and bytes that stand for
    characters without a token, are in none; nor are digits, where the tokenizer leaves each a token of its own.
    """
    vocabulary = backend.get_vocab()
    spaces = {number for token, number in vocabulary.items() if token and all(sign in _SPACES for sign in token)}
    begins = {number for token, number in vocabulary.items() if token.startswith(_SPACES)}
    apart = {number for token, number in vocabulary.items() if _BYTE.fullmatch(token)}
    added = set(backend.get_added_tokens_decoder())
    digits = {token for token, number in vocabulary.items() if _DIGIT.search(token) and number not in apart | added}
    apart |= added | ({vocabulary[token] for token in digits} if max(map(len, digits), default=0) == 1 else set())
    counts: Counter[tuple[int, ...]] = Counter()
    for batch in _batches(texts, _TOGETHER):
        for encoding in backend.encode_batch(batch, add_special_tokens=False):
            word: list[int] = []
            number: int | None = None
            for token, in_word in zip(encoding.ids, encoding.word_ids, strict=True):
                new = token in begins and word and word[-1] not in spaces
                if in_word != number or new or token in apart or len(word) == _LONGEST:
                    _count(counts, word)
                    word = []
                number = in_word
                if token not in apart:
                    word.append(token)
            _count(counts, word)
    return counts


def _count(counts: Counter[tuple[int, ...]], word: Sequence[int]) -> None:
    if len(word) > 1:  # nothing is left to join in the others
        counts[tuple(word)] += 1


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


def extend(
    content: Mapping[str, Any], counts: Mapping[tuple[int, ...], int], new_tokens: int, min_frequency: int
) -> Extension:
    """Goes on with BPE on words of old tokens, and puts the merges behind the old ones.

    A merge to a token that the vocabulary has already leads to that token. None leads to an added token, which written
    out would then be the control token.

    Args:
        content: ``tokenizer.json`` of a BPE tokenizer.
        counts: Words as old tokens, see :func:`count_words`.
        new_tokens: Tokens at most that become new.
        min_frequency: How often a pair must occur to be joined.
    """
    new = copy.deepcopy(dict(content))
    model = new["model"]
    added = {token["content"]: token["id"] for token in new.get("added_tokens") or ()}
    vocabulary: dict[str, int] = model["vocab"]
    spelt = {number: token for token, number in vocabulary.items()}
    for token, number in added.items():  # else the ids that other libraries give out next would be taken
        vocabulary.setdefault(token, number)
    as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
    first = max(vocabulary.values()) + 1
    tokens: list[str] = []
    pieces: list[list[int]] = []
    names = {chr(_BASE + number): token for number, token in spelt.items()}  # of characters, and what is made of them
    for one, other in _learn(counts, round(new_tokens * _SPARE) + 16, min_frequency):
        left, right = names.get(one), names.get(other)
        if left is None or right is None or left + right in added:
            continue
        joined = left + right
        if joined not in vocabulary:
            if len(tokens) == new_tokens:
                break
            vocabulary[joined] = first + len(tokens)
            tokens.append(joined)
            pieces.append([ord(character) - _BASE for character in one + other])
        names[one + other] = joined
        model["merges"].append(f"{left} {right}" if as_text else [left, right])
    return Extension(new, first, tokens, pieces)


def _learn(counts: Mapping[tuple[int, ...], int], merges: int, min_frequency: int) -> list[tuple[str, str]]:
    """Returns the merges that BPE makes of words, in order, of strings with a character for each old token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    if not counts:
        return []
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    alphabet = {token for word in counts for token in word}
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + merges, min_frequency=min_frequency, special_tokens=[], show_progress=False
    )
    lines = (f"{''.join(chr(_BASE + token) for token in word)}\n" * count for word, count in sorted(counts.items()))
    backend.train_from_iterator(lines, trainer)
    return [tuple(pair) for pair in json.loads(backend.to_str())["model"]["merges"]]
