"""`data compare_tokenizers`: what tokenizers make of one's own rows, of numbers and code, and what they lose."""

import dataclasses
import hashlib
import io
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from .encode import TextEncoder
from .files import write_atomic
from .languages import MIN_PROBABILITY, identifier, model_version
from .row_tool import CHANGED, Counts, Decide, Outcome, Plan, TextTool, decide_readable
from .sources import Row
from .spec import SourceSpec
from .tool_report import Bar, Plot, Table, ToolReport, percent

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

BYTES, WORDS = "bytes", "words"
LOST = "Texts that do not come back"
_TOGETHER = "together"
_PARTED = "\t"  # between a group and what is measured of it
_AROUND = 20  # characters shown on either side of a difference
PROBES = {
    "a number": "1234567",
    "a decimal": "3.14159",
    "a date": "2026-11-29",
    "a sum": "48 + 17 = 65",
    "indented code": "    if x:\n        return x",
    "code with tabs": "\tif x {\n\t\treturn x",
    "names in code": "max_new_tokens maxNewTokens",
    "an address": "https://example.org/a?b=1",
    "LaTeX": r"\frac{1}{2}\sum_{i=0}^n x_i",
    "German": "Geschwindigkeitsbegrenzung",
    "Chinese": "人人生而自由",
    "Hindi": "सभी मनुष्य",
    "emoji": "👍🏽",
}
"""What every tokenizer is shown, whatever the rows are."""
ODD = {
    "spaces at both ends": "  a  ",
    "two spaces": "a  b",
    "tabs and newlines": "\ta\n\n\nb\r\nc",
    "other line ends": "a\u2028b\u0085c\x0cd",
    "capital letters": "Ab CD",
    "accents in two characters": "e\u0301",
    "ligatures, wide letters": "\ufb01 ｆｕｌｌ",
    "spaces without a break": "a\u00a0b\u202fc",
    "characters without width": "a\u200db\ufeffc",
    "emoji of several characters": "👩‍👩‍👧 👍🏽",
    "NUL": "a\0b",
    "the last code point": "a\U0010ffffb",
}
"""Texts that some tokenizers do not give back."""


@dataclass
class Named:
    """A tokenizer by the name that it has in the report.

    Attributes:
        name: The name.
        tokenizer: The tokenizer.
    """

    name: str
    tokenizer: "PreTrainedTokenizerBase"

    def __post_init__(self) -> None:
        self._encoder = TextEncoder(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the tokens of texts, with nothing before or after them; no text becomes a control token."""
        return self._encoder.texts(texts) if texts else []

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of tokens, as it is."""
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        decoded: Any = self.tokenizer.decode(list(ids), **options)
        return decoded

    def loss(self, text: str, ids: Sequence[int]) -> tuple[str, str] | None:
        """Says in which way a text does not come back from its tokens, and where first; None if it does."""
        back = self.decode(ids)
        if back == text:
            return None
        same = next((place for place, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), None)
        place = min(len(text), len(back)) if same is None else same
        start = max(0, place - _AROUND)
        detail = f"at character {place}: {text[start : place + _AROUND]!r} became {back[start : place + _AROUND]!r}"
        return self._cause(text, back, ids), detail

    def _cause(self, text: str, back: str, ids: Sequence[int]) -> str:
        unknown = self.tokenizer.unk_token_id
        if unknown is not None and unknown in ids:
            return "unknown tokens"
        for form in ("NFC", "NFKC", "NFD", "NFKD"):
            if back == unicodedata.normalize(form, text):
                return f"characters become their {form} form"
        if back.casefold() == text.casefold():
            return "capital letters are lost"
        if "".join(back.split()) == "".join(text.split()):
            return "white space changes"
        return "characters change"


class CompareTokenizersSpec(TextTool):
    """The arguments, and all that needs no other room than this one."""

    writes_rows: ClassVar[bool] = False

    tokenizers: list[str] = Field(min_length=1)
    """Runs, folders or Hub ids. The others are measured against the first."""
    languages: bool = False
    """Whether the language of each row is told; `und` is what cannot be told, such as short texts and code."""
    by: str | None = None
    """A column that rows are told apart by in place of the language, such as `lang`."""

    def open(self) -> list[Named]:
        """Returns the tokenizers.

        Raises:
            PosttrainError: One cannot be found or read.
        """
        raise NotImplementedError

    def identity(self) -> Any:
        """Returns the model of languages, if there is one."""
        return model_version() if self.languages else None

    def plan(self, folder: Path) -> Plan:
        """Opens the tokenizers; which of their tokens a block has goes into a file of its own."""
        opened, seen = self.open(), folder / "seen"

        def add(report: ToolReport, counts: Mapping[str, Counts]) -> ToolReport:
            return _add(self, report, counts, opened, gather_seen(seen, opened))

        return Plan(lambda source: self._decider(source, opened, seen), add)

    def _decider(self, source: SourceSpec, opened: Sequence[Named], seen: Path) -> Decide:
        read = self.reader(source)
        identify = identifier(MIN_PROBABILITY) if self.languages and self.by is None else None

        def decide(rows: Sequence[Row], texts: Sequence[str]) -> list[Outcome]:
            tokens = {one.name: one.encode(texts) for one in opened}
            if rows:
                keep_seen(seen, rows[0], opened, tokens)
            languages = [language for language, _ in identify(texts)] if identify else [""] * len(texts)
            outcomes = []
            for place, (row, text) in enumerate(zip(rows, texts, strict=True)):
                ids = {name: found[place] for name, found in tokens.items()}
                group = languages[place] if self.by is None else str(row.values.get(self.by, "–"))
                outcomes.append(_outcome(row, text, ids, opened, group))
            return outcomes

        return decide_readable(read, decide)


def _outcome(row: Row, text: str, ids: Mapping[str, Sequence[int]], opened: Sequence[Named], group: str) -> Outcome:
    """Measures a row; what it loses under which tokenizer counts as a change of it."""
    measures = {BYTES: len(text.encode()), WORDS: len(text.split())} | {name: len(some) for name, some in ids.items()}
    lost = {one.name: one.loss(text, ids[one.name]) for one in opened}
    edits = {f"{name}: {found[0]}": 1 for name, found in lost.items() if found}
    detail = "; ".join(f"{name}, {found[1]}" for name, found in lost.items() if found)
    named = {f"{group}{_PARTED}{name}": number for name, number in measures.items()}
    return Outcome(row.values, detail=detail, edits=edits, measures=named)


def keep_seen(folder: Path, first: Row, opened: Sequence[Named], tokens: Mapping[str, Sequence[Sequence[int]]]) -> None:
    """Writes which tokens of each vocabulary a block has, a bit each, into a file named after its first row."""
    bits = {}
    for number, one in enumerate(opened):
        found = np.zeros(_size(one), bool)
        for ids in tokens[one.name]:
            found[np.asarray(ids, np.int64)] = True
        bits[str(number)] = np.packbits(found)
    buffer = io.BytesIO()
    np.savez(buffer, **bits)
    write_atomic(folder / f"{hashlib.sha256(first.where.encode()).hexdigest()[:32]}.npz", buffer.getvalue())


def _size(one: Named) -> int:
    """Returns one more than the last id."""
    return max(one.tokenizer.get_vocab().values(), default=0) + 1


def gather_seen(folder: Path, opened: Sequence[Named]) -> "dict[str, NDArray[np.bool_]]":
    """Returns which tokens of each vocabulary any block has."""
    found = {one.name: np.zeros(_size(one), bool) for one in opened}
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as bits:
            for number, one in enumerate(opened):
                found[one.name] |= np.unpackbits(bits[str(number)], count=len(found[one.name])).astype(bool)
    return found


def _add(
    spec: CompareTokenizersSpec,
    report: ToolReport,
    counts: Mapping[str, Counts],
    opened: Sequence[Named],
    seen: "Mapping[str, NDArray[np.bool_]]",
) -> ToolReport:
    names = [one.name for one in opened]
    by_source, by_group = _sums(counts)
    everything = _total(by_source.values())
    sources = by_source | ({_TOGETHER: everything} if len(by_source) > 1 else {})
    bytes_note = "Bytes of UTF-8: more of them in a token, and a text costs less."
    words_note = "Words are runs of characters without white space; Chinese, Japanese and Thai have none (fertility)."
    cost = Table("Tokens", ["source", BYTES, *names], [_cost(title, found, names) for title, found in sources.items()])
    ratios = [
        _ratio_table("Bytes per token, by source", "source", sources, BYTES, names, bytes_note),
        _ratio_table("Tokens per word, by source", "source", sources, WORDS, names, words_note),
    ]
    tables = [
        cost,
        *ratios,
        vocabulary_table(opened, seen, everything),
        _numbers_table(opened),
        _probe_table(opened),
        _odd_table(opened, counts),
        _special_table(opened),
    ]
    if spec.languages or spec.by:
        what = spec.by or "language"
        ranked = dict(sorted(by_group.items(), key=lambda item: (-item[1][BYTES], item[0])))
        tables.append(_ratio_table(f"Bytes per token, by {what}", what, ranked, BYTES, names, bytes_note))
        tables.append(_ratio_table(f"Tokens per word, by {what}", what, ranked, WORDS, names, words_note))
    bars = [
        Bar(f"{title}, {name}", round(_per(found[BYTES], found[name]), 3), name)
        for title, found in sources.items()
        for name in names
    ]
    plots = [Plot("Bytes per token", "source and tokenizer", bars)]
    tallies = {LOST if heading == CHANGED else heading: tally for heading, tally in report.tallies.items()}
    return dataclasses.replace(
        report, tables=[*report.tables, *tables], plots=plots, tallies=tallies, printed=[cost, ratios[0]]
    )


def _sums(counts: Mapping[str, Counts]) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Returns what is measured, by source and by group."""
    by_source: dict[str, dict[str, float]] = {}
    by_group: dict[str, dict[str, float]] = {}
    for title, found in counts.items():
        for key, spread in found.measures.items():
            group, _, name = key.rpartition(_PARTED)
            for sums in (by_source.setdefault(title, {}), by_group.setdefault(group, {})):
                sums[name] = sums.get(name, 0) + spread.total
    return by_source, by_group


def _total(some: Iterable[dict[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for sums in some:
        total.update(sums)
    return dict(total)


def _per(one: float, other: float) -> float:
    return one / other if other else 0.0


def _cost(title: str, found: Mapping[str, float], names: Sequence[str]) -> list[Any]:
    """Returns the tokens of a source, those of all tokenizers but the first with what they cost more or less."""
    first = found[names[0]]
    more = [f"{found[name]:,.0f} ({100 * _per(found[name] - first, first):+.1f}%)" for name in names[1:]]
    return [title, int(found[BYTES]), f"{first:,.0f}", *more]


def _ratio_table(
    title: str, what: str, sums: Mapping[str, Mapping[str, float]], unit: str, names: Sequence[str], note: str
) -> Table:
    rows = []
    for group, found in sums.items():
        pairs = [(found[unit], found[name]) if unit == BYTES else (found[name], found[unit]) for name in names]
        rows.append([group, int(found[unit]), *[f"{_per(*pair):.2f}" for pair in pairs]])
    return Table(title, [what, unit, *names], rows, note)


def vocabulary_table(
    opened: Sequence[Named], seen: "Mapping[str, NDArray[np.bool_]]", everything: Mapping[str, float]
) -> Table:
    """Returns how much of each vocabulary is seen, and how many tokens there are in all, by tokenizer's name."""
    rows = []
    for one in opened:
        size, found = len(one.tokenizer), int(seen[one.name].sum())
        rows.append([one.name, _kind(one), size, found, percent(found, size), int(everything[one.name])])
    header = ["tokenizer", "model", "vocabulary", "seen in the rows", "share", "tokens"]
    return Table("Vocabulary", header, rows, "What the rows never have is still paid for, in rows of the embeddings.")


def _kind(one: Named) -> str:
    backend: Any = getattr(one.tokenizer, "backend_tokenizer", None)
    return type(backend.model).__name__ if backend is not None else type(one.tokenizer).__name__


def _pieces(one: Named, text: str) -> list[str]:
    """Cuts a text as its tokens do; a token that is a part of a character goes with those that end it."""
    pieces, ids = [], one.encode([text])[0]
    begun: list[int] = []
    before = ""
    for place, token in enumerate(ids):
        begun.append(token)
        whole = one.decode(ids[: place + 1])
        if "\ufffd" in whole[len(before) :] and place + 1 < len(ids):
            continue
        pieces.append(whole[len(before) :] + (f"[{len(begun)}]" if len(begun) > 1 else ""))
        before, begun = whole, []
    return pieces


def _numbers_table(opened: Sequence[Named]) -> Table:
    """Says how numbers of each length are cut: the most frequent way, and the share of numbers that are cut so."""
    rows = []
    for one in opened:
        cells = []
        for digits in range(1, 7):
            low = 10 ** (digits - 1) if digits > 1 else 0
            numbers = [str(number) for number in range(low, 10**digits, max(1, 10**digits // 1009))]
            ways = Counter("+".join(str(len(piece)) for piece in _cut_digits(one, ids)) for ids in one.encode(numbers))
            way, count = min(ways.items(), key=lambda item: (-item[1], item[0]))
            cells.append(f"{way} ({100 * count / len(numbers):.0f}%)")
        rows.append([one.name, *cells])
    header = ["tokenizer", *[f"{digits} digits" for digits in range(1, 7)]]
    note = (
        "The most frequent cut of numbers, as lengths of their pieces, and the share of numbers that are cut so. Where "
        "like numbers are cut in several ways, a model has to learn arithmetic for each."
    )
    return Table("Numbers", header, rows, note)


def _cut_digits(one: Named, ids: Sequence[int]) -> list[str]:
    pieces = [one.decode([token]).strip() for token in ids]
    return [piece for piece in pieces if piece]  # a token of nothing but the space before a word has no digit


def _probe_table(opened: Sequence[Named]) -> Table:
    rows = []
    for what, text in PROBES.items():
        cells = [f"{len(one.encode([text])[0])}: {show_pieces(_pieces(one, text))}" for one in opened]
        rows.append([what, *cells])
    note = "How many tokens, and where they cut; [3] stands behind a character, or several, that three tokens make."
    return Table("Numbers, code and other writing", ["text", *[one.name for one in opened]], rows, note)


def show_pieces(pieces: Sequence[str]) -> str:
    """Returns the pieces of a text with signs between them, and for white space."""
    signs = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥", "\r": "␍"})
    return " · ".join(piece.translate(signs) for piece in pieces)


def probe_bytes() -> dict[int, str]:
    """Returns for each of the 243 bytes that UTF-8 can have a character that has it."""
    found: dict[int, str] = {}
    leads = [*range(0x80), *range(0x80, 0x800, 0x3F), *range(0x800, 0xD800, 0xFC1), *range(0x10000, 0x110000, 0x3FFC1)]
    for point in [*leads, *range(0x80, 0x100), *range(0xE000, 0x10000, 0x800), 0x100000]:
        for byte in chr(point).encode():
            found.setdefault(byte, chr(point))
    return dict(sorted(found.items()))


def _odd_table(opened: Sequence[Named], counts: Mapping[str, Counts]) -> Table:
    """Says which odd texts come back, how many of the bytes, and how many of the rows."""
    rows: list[list[Any]] = []
    edits = Counter[str]()
    for found in counts.values():
        edits.update(found.edits.counts)
    total = sum(found.kept for found in counts.values())
    failed = [sum(count for key, count in edits.items() if key.startswith(f"{one.name}: ")) for one in opened]
    rows.append(["the rows", *[f"all {total:,}" if not some else f"{some:,} of {total:,} do not" for some in failed]])
    characters = probe_bytes()
    texts = [f"a{character}b" for character in characters.values()]
    cells = []
    for one in opened:
        ids = one.encode(texts)
        bad = [byte for byte, text, some in zip(characters, texts, ids, strict=True) if one.loss(text, some)]
        cells.append(f"not {', '.join(f'{byte:02X}' for byte in bad)}" if bad else f"all {len(texts)}")
    rows.append(["the bytes of UTF-8", *cells])
    for what, text in ODD.items():
        lost = [one.loss(text, one.encode([text])[0]) for one in opened]
        rows.append([what, *["yes" if found is None else f"no: {found[0]}" for found in lost]])
    return Table("Does a text come back from its tokens?", ["text", *[one.name for one in opened]], rows)


def _special_table(opened: Sequence[Named]) -> Table:
    rows = []
    for one in opened:
        tokenizer: Any = one.tokenizer
        named = {
            role: getattr(tokenizer, f"{role}_token", None)
            for role in ("bos", "eos", "pad", "unk", "mask", "sep", "cls")
        }
        said = ", ".join(f"{role} {token}" for role, token in named.items() if token is not None)
        around = tokenizer.decode(tokenizer("a", verbose=False)["input_ids"]).replace("a", "…", 1)
        added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
        rows.append([one.name, said, around, sum(added.values()), len(added) - sum(added.values())])
    header = ["tokenizer", "named", "puts around a text", "special tokens", "other added tokens"]
    return Table("Special tokens", header, rows)
