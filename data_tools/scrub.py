"""`data scrub`: e-mail, numbers of people and accounts, and keys inside rows are replaced, or such rows go."""

import hashlib
import hmac
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..chat_templates.errors import did_you_mean
from .errors import DataError, missing_column
from .files import hash_tree
from .personal_data import (
    KINDS,
    NATIONAL,
    Find,
    Finder,
    KindName,
    find_cards,
    find_emails,
    find_ibans,
    find_ips,
    find_keys,
    national_finder,
    person_finder,
    phone_finder,
)
from .row_tool import Decide, Outcome, RowTool
from .sources import Row
from .spec import SourceSpec
from .tool import comma_separated

PLACEHOLDER = re.compile(rf"<(?:{'|'.join(kind.upper() for kind in KINDS)})(?:_[0-9a-f]{{8}})?>")
_AROUND = 80  # characters on each side of a find that an example shows


def _as_codes(value: Any) -> Any:
    value = comma_separated(value)
    return [part.upper() if isinstance(part, str) else part for part in value] if isinstance(value, list) else value


class Scrub(RowTool):
    """Replaces personal data and secrets in the texts of rows, those of messages too; nothing else changes.

    Each find is verified as its kind allows: cards by Luhn's digit and an issuer's prefix, IBANs by mod 97 and the
    country's length, national numbers by check digits and a word before them, phones by the plan of the region, keys by
    what they begin with or, 16 characters and longer, by entropy behind a word for them: a short password, `password:
    hunter2`, stays, unless it stands in a URL, `https://ann:hunter2@host.com`. An IPv4 address whose numbers are all
    below 32 may be a version: it counts behind a word for a host (`server`, `from`, `dns`) or with a port or a prefix
    (`8.8.4.4:53`, `8.8.4.0/24`). Examples in the report show the shape of what was found.
    """

    kinds: Annotated[list[KindName], Field(min_length=1), BeforeValidator(comma_separated)] = Field(
        default_factory=lambda: ["key", "email", "iban", "card", "phone", "ip"]
    )
    """What is looked for: `key`, `email`, `iban`, `card`, `phone`, `ip`; `national`, which needs `countries`, and
    `person`, which needs `ner`."""
    columns: Annotated[list[str] | None, BeforeValidator(comma_separated)] = None
    """The columns whose texts are scrubbed; by default every text of a row."""
    replace: Literal["mask", "pseudonym", "drop"] = "mask"
    """`mask` writes `<EMAIL>`; `pseudonym` writes `<EMAIL_3f2a91c0>`, the same for the same address in all files under
    one `seed`; `drop` leaves the row out."""
    seed: Annotated[str | None, BeforeValidator(lambda seed: str(seed) if isinstance(seed, int) else seed)] = Field(
        default=None, exclude=True, min_length=1
    )
    """The key of pseudonyms. Whoever knows it can find out which number a pseudonym stands for by trying all of them:
    a long secret hides them, and no report holds it."""
    regions: Annotated[list[str], BeforeValidator(_as_codes)] = Field(default_factory=list)
    """Countries whose phone numbers are known without their `+` code, such as `US,DE`; by default only `+` counts."""
    countries: Annotated[list[str], BeforeValidator(_as_codes)] = Field(default_factory=list)
    """Countries whose national numbers are looked for, by `national`; those with check digits alone can be."""
    ner: str | None = None
    """A folder or Hub id of a model of token classification, by which names of people are found: as it finds them, and
    no other check is made, so look at the examples in the report."""
    reserved: bool = False
    """Whether what belongs to nobody counts too: private and documentation ranges of IP, e-mail at example.com."""

    @model_validator(mode="after")
    def _check(self) -> "Scrub":
        if ("national" in self.kinds) != bool(self.countries):
            raise ValueError("`national` among `kinds` and `countries` go together: give both, or neither")
        if ("person" in self.kinds) != bool(self.ner):
            raise ValueError("`person` among `kinds` and `ner`, a model, go together: give both, or neither")
        for country in self.countries:
            if country not in NATIONAL:
                hint = did_you_mean(country, NATIONAL) or f"known: {', '.join(NATIONAL)}"
                raise ValueError(f"countries: no national number with check digits is known of '{country}'; {hint}")
        if self.replace == "pseudonym" and self.seed is None:
            raise ValueError("pseudonyms need a `seed`: a secret that you keep")
        return self

    def identity(self) -> Any:
        """Returns hashes of the seed, which the arguments do not hold, and of the files of a model's folder."""
        model = hash_tree(Path(self.ner), "*") if self.ner else None
        return [self.seed and hashlib.sha256(self.seed.encode()).hexdigest(), model]

    def finders(self) -> Sequence[Finder]:
        """Returns what looks for each kind, in the order in which they come first where finds overlap.

        Raises:
            DataError: A kind needs a package that is not installed, or a region is unknown.
        """
        known: Mapping[KindName, Callable[[], Iterable[Finder]]] = {
            "key": lambda: [find_keys],
            "email": lambda: [partial(find_emails, reserved=self.reserved)],
            "iban": lambda: [find_ibans],
            "card": lambda: [find_cards],
            "national": lambda: map(national_finder, self.countries),
            "phone": lambda: [phone_finder(_known_regions(self.regions))],
            "ip": lambda: [partial(find_ips, reserved=self.reserved)],
            "person": lambda: [person_finder(str(self.ner))],
        }
        try:
            return [finder for kind in KINDS if kind in self.kinds for finder in known[kind]()]
        except ImportError as error:
            hint = "pip install 'posttrain[scrub]', or leave phone and national out of `kinds`"
            raise DataError(f"needs the package '{error.name}'", where="kinds", hint=hint) from error

    def decider(self, source: SourceSpec) -> Decide:
        """Returns what scrubs each row."""
        finders = self.finders()

        def decide(rows: Sequence[Row]) -> list[Outcome]:
            return [self._outcome(row, finders) for row in rows]

        return decide

    def _outcome(self, row: Row, finders: Sequence[Finder]) -> Outcome:
        found: list[tuple[Find, str]] = []
        around: list[str] = []

        def scrub(value: Any) -> Any:
            if isinstance(value, str):
                text, finds = scrub_text(value, finders, self._placeholder)
                if finds:
                    found.extend((find, shape(said)) for find, said in finds)
                    first = PLACEHOLDER.search(text)
                    place = first.start() if first else 0
                    around.append(text[max(0, place - _AROUND) : place + 2 * _AROUND])
                return text
            if isinstance(value, Mapping):
                return {name: scrub(item) for name, item in value.items()}
            return [scrub(item) for item in value] if isinstance(value, list | tuple) else value

        names = row.values if self.columns is None else self.columns
        missing = next((name for name in names if name not in row.values), None)
        if missing is not None:
            error = missing_column(missing, row.values)
            return Outcome(None, error.reason, error.detail, shown="")
        values = row.values | {name: scrub(row.values[name]) for name in names}
        if not found:
            return Outcome(row.values)
        counts = Counter(find.kind for find, _ in found)
        detail = ", ".join(dict.fromkeys(f"{find.kind} {seen}" for find, seen in found))
        shown = "\n".join(around)
        if self.replace == "drop":
            first = next(kind for kind in KINDS if counts[kind])
            return Outcome(None, f"holds a find: {first}", detail, shown=shown)
        return Outcome(values, detail=detail, edits=counts, shown=shown)

    def _placeholder(self, find: Find) -> str:
        if self.replace != "pseudonym" or self.seed is None:
            return f"<{find.kind.upper()}>"
        message = f"{find.kind}\0{find.value}".encode()
        return f"<{find.kind.upper()}_{hmac.new(self.seed.encode(), message, hashlib.sha256).hexdigest()[:8]}>"


def _known_regions(regions: Sequence[str]) -> Sequence[str]:
    import phonenumbers

    for region in regions:
        if region not in phonenumbers.SUPPORTED_REGIONS:
            raise DataError(f"no region '{region}'", where="regions", hint="two letters of a country, such as US or DE")
    return regions


def scrub_text(
    text: str, finders: Sequence[Finder], placeholder: Callable[[Find], str]
) -> tuple[str, list[tuple[Find, str]]]:
    """Replaces what the finders find, until they find nothing, so that a second call changes nothing.

    Returns:
        The text and each find, with what it said. Where finds overlap, an earlier finder's goes first.
    """
    found: list[tuple[Find, str]] = []
    while finds := _apart(text, finders):
        pieces, end = [], 0
        for find in finds:
            pieces += [text[end : find.start], placeholder(find)]
            found.append((find, text[find.start : find.end]))
            end = find.end
        text = "".join([*pieces, text[end:]])
    return text, found


def _apart(text: str, finders: Sequence[Finder]) -> list[Find]:
    """Returns finds that neither overlap nor touch a placeholder, in the order of the text."""
    taken = bytearray(len(text))
    for match in PLACEHOLDER.finditer(text) if "<" in text else ():
        taken[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    chosen = []
    for find in itertools.chain.from_iterable(finder(text) for finder in finders):
        if not any(taken[find.start : find.end]):
            taken[find.start : find.end] = b"\1" * (find.end - find.start)
            chosen.append(find)
    return sorted(chosen, key=lambda find: find.start)


def shape(value: str) -> str:
    """Returns what a value looks like and not what it says: letters as a and A, digits as 0, at most 40 characters."""
    shown = "".join(
        "0" if character.isdigit() else character if not character.isalpha() else "A" if character.isupper() else "a"
        for character in value
    )
    return shown if len(shown) <= 40 else f"{shown[:36]}… ({len(value)} characters)"
