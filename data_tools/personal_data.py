"""Personal data and secrets inside a text: where they are, each verified as its kind allows.

Every pattern is linear in the text: what it repeats is bounded, or starts only where a run starts.
"""

import functools
import importlib
import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..chat_templates.errors import first_line
from .errors import DataError, HubError, is_silence
from .generate import places

KindName = Literal["key", "email", "iban", "card", "national", "phone", "ip", "person"]
KINDS: tuple[KindName, ...] = get_args(KindName)
_PLACEHOLDER = re.compile(r"<?[A-Z]{2,8}(?:_[0-9a-f]{8})?>")
_CONTEXT = 48  # characters before a find in which its context word stands


@dataclass(frozen=True)
class Find:
    """A piece of personal data.

    Attributes:
        kind: What it is.
        start: Its first character.
        end: The character after it.
        value: What it says, in one form whatever the spacing and case, so that pseudonyms are stable.
    """

    kind: KindName
    start: int
    end: int
    value: str


Finder = Callable[[str], Iterator[Find]]

# --- e-mail ---

# A letter or digit of a script with spaces: in Chinese, Japanese and Korean a word may stand right before an address.
_LETTER = r"[^\W\u2e80-\ud7af\uf900-\ufaff\uff00-\uffef]"
_EMAIL = re.compile(
    rf"(?<!{_LETTER}){_LETTER}(?:{_LETTER}|[.%+'-]){{0,63}}@"
    rf"((?:{_LETTER}(?:(?:{_LETTER}|-){{0,61}}{_LETTER})?\.){{1,8}}(?:xn--[a-z0-9-]{{2,59}}|(?:(?!\d){_LETTER}){{2,24}}))"
    rf"(?!{_LETTER})"
)
# What stands behind an @ and a dot in files' names (icon@2x.png) and products of matrices (x@layer.weight).
_NO_DOMAINS = re.compile(
    r"png|jpe?g|gif|svg|webp|ico|css|[jt]sx?|json|html?|xml|ya?ml|txt|csv|pdf|zip|dist|jar|dll|exe|so|weights?|bias|mean"
    r"|sum|shape|dot|conj|transpose|values|data|real|imag|inverse|inv|flatten|reshape",
    re.IGNORECASE,
)
_USER_IN_URL = re.compile(r"://[^\s/:@<>]{1,64}:[^\s/:@<>]{0,64}\Z")
_RESERVED_DOMAIN = re.compile(r"(?:^|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.IGNORECASE)


def find_emails(text: str, reserved: bool = False) -> Iterator[Find]:
    """Yields addresses; those at example.com and its kin (RFC 2606) only where ``reserved``.

    ``https://name:password@host.com`` holds none.
    """
    if "@" not in text:
        return
    for match in _EMAIL.finditer(text):
        domain = match[1]
        if _NO_DOMAINS.fullmatch(domain.rpartition(".")[2]) or match[0].startswith("git@"):
            continue
        if _USER_IN_URL.search(text, max(0, match.start() - 132), match.start()):
            continue
        if reserved or not _RESERVED_DOMAIN.search(domain):
            yield Find("email", match.start(), match.end(), match[0].lower())


# --- cards ---

# Groups as cards have them, not amid a row of such groups: a table of years is none. A check code may follow.
_CARD = re.compile(
    r"(?<![\w.,/-])(?:(?<!\d\d\d\d )\d{4}([ -])(?:\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|\d{6}\1\d{4,5})(?!\1\d{4}\b)"
    r"|\d{12,19})(?![\w-]|[.,]\d)",
    re.ASCII,
)
# Prefixes with the lengths that issuers give (ISO/IEC 7812 and the issuers' own tables), as ranges of the first digits.
_ISSUERS: Sequence[tuple[int, int, frozenset[int]]] = (
    (4, 4, frozenset({13, 16, 19})),  # Visa
    (51, 55, frozenset({16})),  # Mastercard
    (2221, 2720, frozenset({16})),
    (34, 34, frozenset({15})),  # American Express
    (37, 37, frozenset({15})),
    (6011, 6011, frozenset(range(16, 20))),  # Discover
    (644, 649, frozenset(range(16, 20))),
    (65, 65, frozenset(range(16, 20))),
    (300, 305, frozenset(range(14, 20))),  # Diners Club
    (36, 36, frozenset(range(14, 20))),
    (38, 39, frozenset(range(14, 20))),
    (3528, 3589, frozenset(range(16, 20))),  # JCB
    (62, 62, frozenset(range(16, 20))),  # UnionPay
    (6759, 6759, frozenset(range(12, 20))),  # Maestro
    (6761, 6763, frozenset(range(12, 20))),
)


def luhn(digits: str) -> bool:
    """Says whether the last digit checks the others (Luhn, ISO/IEC 7812-1 annex B)."""
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def find_cards(text: str) -> Iterator[Find]:
    """Yields numbers of payment cards: Luhn's digit, an issuer's prefix with its length, and groups as cards have."""
    for match in _CARD.finditer(text):
        # a group of three at the end belongs to the number, or is its check code
        for said in (match[0], match[0][:19]) if match[1] else (match[0],):
            digits = re.sub(r"\D", "", said)
            if _issued(digits) and luhn(digits):
                yield Find("card", match.start(), match.start() + len(said), digits)
                break


def _issued(digits: str) -> bool:
    return any(
        low <= int(digits[: len(str(low))]) <= high and len(digits) in lengths for low, high, lengths in _ISSUERS
    )


# --- IBAN ---

# The length of each country's IBAN (SWIFT's registry).
_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 "
    "ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 "
    "LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 "
    "PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 "
    "YE30"
)
IBAN_LENGTHS: Mapping[str, int] = {pair[:2]: int(pair[2:]) for pair in _LENGTHS.split()}
_IBAN_HEAD = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}[0-9]{2}(?=[ -]?[A-Za-z0-9])")


def find_ibans(text: str) -> Iterator[Find]:
    """Yields account numbers: the country's length and the remainder 1 by 97 (ISO 13616, ISO 7064)."""
    for match in _IBAN_HEAD.finditer(text):
        length = IBAN_LENGTHS.get(match[0][:2].upper())
        if length is None:
            continue
        end, characters = match.start(), []
        while end < len(text) and len(characters) < length:
            if text[end] in " -" and text[end - 1] not in " -":
                end += 1
                continue
            if not (text[end].isascii() and text[end].isalnum()):
                break
            characters.append(text[end].upper())
            end += 1
        whole = "".join(characters)
        ends = end == len(text) or not (text[end].isascii() and text[end].isalnum())
        if len(whole) == length and ends and _remainder_97(whole) == 1:
            yield Find("iban", match.start(), end, whole)


def _remainder_97(iban: str) -> int:
    return int("".join(str(int(character, 36)) for character in iban[4:] + iban[:4])) % 97


# --- national numbers ---


@dataclass(frozen=True)
class NationalFormat:
    """A country's number with check digits.

    Attributes:
        module: What verifies it in python-stdnum, such as ``nl.bsn``.
        pattern: What it looks like.
        words: What stands before it, one of these.
    """

    module: str
    pattern: str
    words: str


# Only formats with check digits: others (a US social security number, a Danish CPR number) would match any number.
NATIONAL: Mapping[str, Sequence[NationalFormat]] = {
    "AU": [NationalFormat("au.tfn", r"\d{3} ?\d{3} ?\d{2,3}", r"tfn|tax file")],
    "BE": [NationalFormat("be.nn", r"\d{2}\.?\d{2}\.?\d{2}[- ]?\d{3}[.]?\d{2}", r"rijksregister\w*|registre national")],
    "BR": [NationalFormat("br.cpf", r"\d{3}\.?\d{3}\.?\d{3}-?\d{2}", r"cpf")],
    "CA": [NationalFormat("ca.sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", r"sin|social insurance")],
    "CH": [NationalFormat("ch.ssn", r"756\.?\d{4}\.?\d{4}\.?\d{2}", r"ahv\w*|avs|sozialversicherungs\w*")],
    "CN": [NationalFormat("cn.ric", r"\d{17}[\dXx]", r"身份证\w*|id card|resident id\w*")],
    "DE": [NationalFormat("de.idnr", r"\d{2} ?\d{3} ?\d{3} ?\d{3}", r"steuer-?id\w*|steuerident\w*|idnr|tax id")],
    "ES": [
        NationalFormat("es.dni", r"\d{8}-?[A-Za-z]", r"dni|nif"),
        NationalFormat("es.nie", r"[XYZxyz]-?\d{7}-?[A-Za-z]", r"nie|nif"),
    ],
    "FI": [NationalFormat("fi.hetu", r"\d{6}[-+A-FU-Y]\d{3}[\dA-Z]", r"hetu|henkilötunnus")],
    "FR": [
        NationalFormat(
            "fr.nir", r"[12] ?\d{2} ?\d{2} ?(?:\d{2}|2[ABab]) ?\d{3} ?\d{3} ?\d{2}", r"nir|sécu\w*|insee|nss"
        )
    ],
    "GB": [NationalFormat("gb.nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", r"nhs")],
    "IN": [NationalFormat("in_.aadhaar", r"\d{4}[ -]?\d{4}[ -]?\d{4}", r"aadhaar|aadhar|uidai")],
    "IT": [
        NationalFormat("it.codicefiscale", r"[A-Za-z]{6}\d{2}[A-Za-z]\d{2}[A-Za-z]\d{3}[A-Za-z]", r"fiscale|c\.?f\.?")
    ],
    "NL": [NationalFormat("nl.bsn", r"\d{4}\.?\d{2}\.?\d{3}", r"bsn|burgerservice\w*|sofi\w*")],
    "NO": [NationalFormat("no.fodselsnummer", r"\d{6} ?\d{5}", r"fødsels\w*|fodsels\w*|personnummer")],
    "PL": [NationalFormat("pl.pesel", r"\d{11}", r"pesel")],
    "SE": [NationalFormat("se.personnummer", r"(?:\d{2})?\d{6}[-+]?\d{4}", r"person\w*nummer|pnr")],
    "TR": [NationalFormat("tr.tckimlik", r"\d{11}", r"kimlik|tckn|t\.?c\.?")],
    "ZA": [NationalFormat("za.idnr", r"\d{6} ?\d{4} ?\d{2} ?\d", r"id(?: number| no\.?)?")],
}


def national_finder(country: str) -> Finder:
    """Returns what finds a country's numbers: their check digits are right and a word of theirs stands before.

    Raises:
        ImportError: python-stdnum is not installed.
    """
    formats = [
        (
            importlib.import_module(f"stdnum.{one.module}").is_valid,
            re.compile(rf"(?<![\w.-])(?:{one.pattern})(?![\w-]|\.\d)", re.ASCII),
            re.compile(rf"(?<![A-Za-z])(?:{one.words})(?![A-Za-z])", re.IGNORECASE),
        )
        for one in NATIONAL[country]
    ]

    def find(text: str) -> Iterator[Find]:
        for valid, pattern, words in formats:
            if not words.search(text):
                continue
            for match in pattern.finditer(text):
                if words.search(_before(text, match.start())) and valid(match[0]):
                    yield Find("national", match.start(), match.end(), re.sub(r"\W", "", match[0]).upper())

    return find


def _before(text: str, place: int) -> str:
    """Returns what stands before a place; a placeholder such as <PHONE> is no word for what follows it."""
    return _PLACEHOLDER.sub(" ", text[max(0, place - _CONTEXT) : place])


# --- phones ---

_PLUS = re.compile(r"(?<![\w+./=-])\+(?:\d|\(\d)[\d ().\xa0/-]{5,22}\d(?![\w-]|[.,]\d)", re.ASCII)
_LOCAL = re.compile(
    r"(?<![\w+./=#,-])(?<![\d)] )(?:\((?=\d{1,6}\)))?\d[\d ().\xa0/-]{5,18}\d(?![\w-]|[.,/:]\d| \d)", re.ASCII
)
_PHONE_WORD = re.compile(
    r"\b(?:tel\w*|phone\w*|call\w*|ring|mobile?\w*|cell\w*|fax|whatsapp|sms|text me|hotline|handy|ruf\w*|contact)\b",
    re.IGNORECASE,
)


def _written_as_phone(said: str) -> bool:
    """Says whether digits that no word names are in three groups, or in two behind a trunk 0 or an area's parenthesis.

    Else 4000/2000 and 60000 - 10800 are numbers of Brazil and India, and 0.30412 is one of Germany.
    """
    groups = re.findall(r"\d+", said)
    return len(groups) > 2 or (len(groups) == 2 and said[0] in "0(" and "." not in said)


def phone_finder(regions: Sequence[str]) -> Finder:
    """Returns what finds numbers in the international form, and those that people of these regions write.

    Raises:
        ImportError: phonenumbers is not installed.
    """
    import phonenumbers
    from phonenumbers import Leniency, NumberParseException, PhoneNumberMatcher

    @functools.lru_cache(1 << 16)
    def international(candidate: str) -> str | None:
        try:
            number = phonenumbers.parse(candidate)
        except NumberParseException:
            return None
        valid = phonenumbers.is_valid_number(number)
        return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164) if valid else None

    @functools.lru_cache(1 << 16)
    def regional(candidate: str, named: bool) -> tuple[int, int, str] | None:
        # a number without a country says little: its groups must be the region's own, or a word must name it
        leniency = Leniency.VALID if named else Leniency.STRICT_GROUPING
        for region in regions:
            for match in PhoneNumberMatcher(candidate, region, leniency=leniency, max_tries=4):
                if named or _written_as_phone(match.raw_string):
                    e164 = phonenumbers.format_number(match.number, phonenumbers.PhoneNumberFormat.E164)
                    return match.start, match.end, e164
        return None

    def find(text: str) -> Iterator[Find]:
        if "+" in text:
            for match in _PLUS.finditer(text):
                if (e164 := international(match[0])) is not None:
                    yield Find("phone", match.start(), match.end(), e164)
        for match in _LOCAL.finditer(text) if regions else ():
            named = _PHONE_WORD.search(_before(text, match.start())) is not None
            if not named and not re.search(r"\d\)?[ \xa0/-]", match[0]):
                continue
            if (found := regional(match[0], named)) is not None:
                yield Find("phone", match.start() + found[0], match.start() + found[1], found[2])

    return find


# --- IP ---

_IPV4 = re.compile(r"(?<![\w.])(?<!\w/)(?<!\d-)(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\w)", re.ASCII)
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f]{4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)
_VERSION_WORD = re.compile(r"\b(?:v|ver|version|release|rev|build|section|chapter|clause|rule|§)\.?[ :=]{0,3}$", re.I)
_HOST_WORD = re.compile(
    r"(?<![^\W_])(?:ips?|ipv4|address(?:es)?|addrs?|hosts?|(?:name|dns)?servers?|resolvers?|dns|ping|gateways?|from"
    r"|peers?|clients?)(?![^\W_])|://|@",
    re.I,
)
# A port, or the length of a network's prefix: no version has them. Quotes and brackets stand around versions too.
_PORT_OR_PREFIX = re.compile(r":\d{2,5}(?![\w:.])|/(?:[89]|[12]\d|3[0-2])(?![\w/.])", re.ASCII)
_SMALL = 32  # versions and numbers of sections have parts below it
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def find_ips(text: str, reserved: bool = False) -> Iterator[Find]:
    """Yields addresses of machines; those of private and documentation ranges only where ``reserved``.

    Four small numbers may be a version: such are addresses only behind a word for a host, or with a port or a prefix.
    """
    for match in _IPV4.finditer(text) if "." in text else ():
        try:
            address = ipaddress.IPv4Address(match[0])
        except ValueError:
            continue
        before = _before(text, match.start())
        said = _HOST_WORD.search(before) or _PORT_OR_PREFIX.match(text, match.end())
        if _VERSION_WORD.search(before) or (max(address.packed) < _SMALL and not said):
            continue
        if reserved or (address.is_global and not address.is_multicast):
            yield Find("ip", match.start(), match.end(), str(address))
    for match in _IPV6.finditer(text) if ":" in text else ():
        try:
            address = ipaddress.IPv6Address(match[0])
        except ValueError:
            continue
        if sum(map(bool, match[0].split(":"))) < 3:
            continue  # a slice or a scope of a program, 2000::3
        if reserved or (address in _GLOBAL_UNICAST and address.is_global):
            yield Find("ip", match.start(), match.end(), str(address))


# --- keys and tokens ---

_BODY = r"[A-Za-z0-9_-]"
_KEYS = [
    re.compile(pattern, re.ASCII)
    for pattern in (
        r"(?<!\w)(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}(?!\w)",  # Amazon
        r"(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}(?!\w)",  # GitHub
        r"(?<!\w)github_pat_\w{22,255}(?!\w)",
        rf"(?<!\w)glpat-{_BODY}{{20,64}}(?!\w)",  # GitLab
        rf"(?<![\w-])sk-(?=[a-z-]{{0,12}}{_BODY}{{0,40}}\d)(?={_BODY}{{0,40}}[A-Z]){_BODY}{{20,255}}(?!\w)",  # OpenAI
        r"(?<!\w)(?:sk|pk|rk)_(?:live|test)_[A-Za-z0-9]{16,128}(?!\w)",  # Stripe
        r"(?<!\w)xox[abposr]-[A-Za-z0-9-]{10,128}(?!\w)",  # Slack
        rf"(?<!\w)AIza{_BODY}{{35}}(?!\w)",  # Google
        r"(?<!\w)hf_[A-Za-z0-9]{30,64}(?!\w)",  # Hugging Face
        r"(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)",
        rf"(?<!\w)pypi-AgEI{_BODY}{{50,255}}",
        rf"(?<!\w)SG\.{_BODY}{{22}}\.{_BODY}{{43}}(?!\w)",  # SendGrid
        rf"(?<!\w)eyJ{_BODY}{{8,4096}}\.eyJ{_BODY}{{8,4096}}\.{_BODY}{{8,1024}}",  # JSON web token
    )
]
_KEY_GATE = re.compile(
    r"A(?:KIA|SIA|ROA|IDA|Iza)|gh[pousr]_|github_pat_|glpat-|sk-|[spr]k_(?:live|test)_|xox[abposr]-|hf_|npm_|pypi-|SG\.|eyJ"
)
_PEM = re.compile(
    r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:\s|\\[nr]){0,8}+(?:[A-Za-z-]{2,20}: [^\n]{0,100}(?=\n)|[A-Za-z0-9+/=]{16,}+)){1,4000}+"
    r"(?:(?:\s|\\[nr]){0,8}[A-Za-z0-9+/=]{1,80}(?=(?:\s|\\[nr]){0,8}-----END))?"
    r"(?:(?:\s|\\[nr]){0,8}-----END [A-Z0-9 ]{0,40}KEY(?: BLOCK)?-----)?"
)
_PASSWORD_IN_URL = re.compile(r"(?<=://)[^\s/:@<>]{1,64}:([^\s/:@<>]{1,64})(?=@[\w.-])")
# What manuals write in place of a password.
_NO_PASSWORD = re.compile(r"pass(?:w(?:or)?d)?|pwd|secret|token|\W+|.*[\[\]{}$*].*|x+", re.IGNORECASE)
_ASSIGNED = re.compile(
    r"(?:api[_ -]?key|secret(?:[_ -]?key)?|token|passw(?:or)?d|pwd|credentials?|(?:access|private|auth)[_ -]?key)"
    r"[\"'`]?(?:\s{0,3}(?::=|=>|[:=])\s{0,3}| is )[\"'`]?([\w+/=~-]{16,256})(?![\w(.\[])"
    r"|\bbearer ([\w+/=~.-]{16,512})",
    re.IGNORECASE | re.ASCII,
)
_LEAST_ENTROPY = 3.0  # bits a character: hexadecimal digits at random have 4, 16 of them some 3.3


def find_keys(text: str) -> Iterator[Find]:
    """Yields keys, tokens and passwords of URLs: by what they begin with, or by entropy behind a word for them."""
    if _KEY_GATE.search(text):
        for pattern in _KEYS:
            for match in pattern.finditer(text):
                yield Find("key", match.start(), match.end(), match[0])
    if "PRIVATE KEY" in text:
        for match in _PEM.finditer(text):
            yield Find("key", match.start(), match.end(), match[0])
    if "://" in text:
        for match in _PASSWORD_IN_URL.finditer(text):
            if not _NO_PASSWORD.fullmatch(match[1]):
                yield Find("key", match.start(1), match.end(1), match[1])
    for match in _ASSIGNED.finditer(text):
        group = match.lastindex or 1
        if _random(match[group]):
            yield Find("key", match.start(group), match.end(group), match[group])


def _random(value: str) -> bool:
    """Says whether a value looks drawn at random: digits among letters, no name of words, much entropy."""
    if not (re.search(r"\d", value) and re.search(r"[A-Za-z]", value)):
        return False
    parts = [part for part in re.split(r"[^A-Za-z0-9]+", value) if part]
    if all(re.fullmatch(r"[A-Z]?[a-z]+|[A-Z]+|\d{1,4}|[a-z]{1,12}\d{1,3}", part) for part in parts):
        return False  # a name of words, max_new_tokens_1
    return entropy(value) >= _LEAST_ENTROPY


def entropy(value: str) -> float:
    """Returns bits a character, by the value's own frequencies (Shannon 1948)."""
    counts = Counter(value).values()
    return -sum(count / len(value) * math.log2(count / len(value)) for count in counts)


# --- names of people ---

_PERSONS = {"PER", "PERSON", "NAME_STUDENT", "FIRSTNAME", "LASTNAME", "GIVENNAME", "SURNAME"}  # of models' label sets
_NAME = re.compile(r"\w(?:.*\w)?", re.DOTALL)
_LONGEST = 512  # tokens that a model reads at once, where it does not say


def person_finder(model: str) -> Finder:
    """Returns what finds names of people as a model of token classification does: nothing verifies them.

    A text of more tokens than the model reads at once is read in overlapping parts.

    Args:
        model: A folder or Hub id.

    Raises:
        DataError: It cannot be loaded, or none of its labels means a person.
        HubError: The Hub cannot be reached.
    """
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    try:
        loaded: Any = AutoModelForTokenClassification.from_pretrained(model)
        tokenizer: Any = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, KeyError) as error:
        if is_silence(error):
            raise HubError("cannot load the model", where=f"ner {model}") from error
        hint = "name a folder or Hub id of a model of token classification"
        raise DataError(f"cannot be loaded: {first_line(error)}", where=f"ner {model}", hint=hint) from error
    labels = {label.rpartition("-")[2].upper() for label in loaded.config.label2id}
    if not labels & _PERSONS:
        what = f"none of its labels means a person: {', '.join(sorted(labels))}"
        raise DataError(what, where=f"ner {model}", hint="name a model that was trained to find them")
    tokenizer.model_max_length = min(tokenizer.model_max_length, places(loaded)[0] or _LONGEST)
    # "first": a word is a name if its first token is; the parts overlap by a quarter
    options: Any = {"aggregation_strategy": "first", "stride": tokenizer.model_max_length // 4}
    tag: Any = pipeline("token-classification", model=loaded, tokenizer=tokenizer, **options)

    def find(text: str) -> Iterator[Find]:
        for found in tag(text) if text.strip() else ():
            if found["entity_group"].upper() in _PERSONS:
                # some tokenizers do not say where words end, and a full stop goes with the name before it
                said = _NAME.search(text, found["start"], found["end"])
                if said is not None:
                    yield Find("person", said.start(), said.end(), " ".join(said[0].casefold().split()))

    return find
