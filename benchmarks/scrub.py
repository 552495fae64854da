"""What `posttrain data scrub` finds and what it takes for a find: on a labelled set made here, and on real texts.

    python benchmarks/scrub.py [FILE OF ROWS OR TEXT ...]

Positives are made by other means than the tool's patterns: phones are phonenumbers' example numbers, national numbers
random ones that python-stdnum calls valid, cards and IBANs closed by computed check digits, keys random characters. A
find counts only if its span is the label's to the character. Negatives are numbers and names of the kinds that tools
for personal data are known to stumble over. On real files there are no labels: finds by kind and by megabyte are
printed with their shapes, for people to judge.
"""

import gzip
import importlib
import json
import random
import string
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import phonenumbers
from posttrain.data_tools.personal_data import IBAN_LENGTHS, NATIONAL
from posttrain.data_tools.scrub import Scrub, scrub_text
from posttrain.data_tools.tool_report import texts_of

KINDS = ["key", "email", "iban", "card", "national", "phone", "ip"]  # people's names are found by a model of the user's
SEED = 3  # the patterns were written while looking at 1 and 2
EACH = 500
REGIONS = ["US", "GB", "DE", "FR", "IN", "BR"]
COUNTRIES = ["NL", "GB", "PL", "BR", "ES", "CA"]
WORDS = {"NL": "BSN", "GB": "NHS number", "PL": "PESEL", "BR": "CPF", "ES": "DNI", "CA": "social insurance"}
FRAMES = [
    "{}",
    "Please note {} for later.",
    "({})",
    "| Ann | {} | 7 |",
    "<p>{}</p>",
    "'{}', 12",
    "see: {}; thanks",
    "他是{}。",
]


def some(rng: random.Random, alphabet: str, count: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(count))


def with_luhn(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * 2 if place % 2 == 0 else int(digit)
        total += doubled // 10 + doubled % 10
    return digits + str(-total % 10)


def email(rng: random.Random) -> str:
    name = some(rng, string.ascii_letters, rng.randint(1, 9)) + rng.choice(["", ".", "_", "+", "-"]) + "z"
    host = some(rng, string.ascii_lowercase + string.digits, rng.randint(2, 12))
    return f"{name}@{host}{rng.choice(['.com', '.co.uk', '.de', '.museum', '.mail.org', '.рф', '.io'])}"


def card(rng: random.Random) -> str:
    prefix, length = rng.choice(
        [("4", 16), ("51", 16), ("2345", 16), ("37", 15), ("6011", 16), ("36", 14), ("3530", 16)]
    )
    digits = with_luhn(prefix + some(rng, string.digits, length - len(prefix) - 1))
    sizes = {16: (4, 4, 4, 4), 15: (4, 6, 5), 14: (4, 6, 4)}[length]
    groups, place = [], 0
    for size in sizes:
        groups.append(digits[place : place + size])
        place += size
    return rng.choice(["", " ", "-"]).join(groups)


def iban(rng: random.Random) -> str:
    country = rng.choice(sorted(IBAN_LENGTHS))
    body = some(rng, string.digits, IBAN_LENGTHS[country] - 4)
    number = int("".join(str(int(character, 36)) for character in f"{body}{country}00"))
    whole = f"{country}{98 - number % 97:02}{body}"
    return " ".join(whole[place : place + 4] for place in range(0, len(whole), 4)) if rng.random() < 0.5 else whole


def national(rng: random.Random) -> tuple[str, str]:
    country = rng.choice(COUNTRIES)
    valid = importlib.import_module(f"stdnum.{NATIONAL[country][0].module}").is_valid
    length = {"NL": 9, "GB": 10, "PL": 11, "BR": 11, "ES": 8, "CA": 9}[country]
    while True:
        number = some(rng, string.digits, length)
        number += "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] if country == "ES" else ""
        if valid(number):
            return WORDS[country], number


def phone(rng: random.Random) -> str:
    region = rng.choice(REGIONS)
    kind = rng.choice([phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE])
    number = phonenumbers.example_number_for_type(region, kind)
    assert number is not None, region
    forms = phonenumbers.PhoneNumberFormat
    return phonenumbers.format_number(number, rng.choice([forms.INTERNATIONAL, forms.E164, forms.NATIONAL]))


def ip(rng: random.Random) -> str:
    if rng.random() < 0.7:
        first = rng.choice([46, 51, 81, 93, 134, 151, 185, 212])
        return f"{first}.{rng.randint(0, 255)}.{rng.randint(0, 255)}.{rng.randint(1, 255)}"
    return "2a01:" + ":".join(f"{rng.randint(0, 65535):x}" for _ in range(7))


def key(rng: random.Random) -> tuple[str, str]:
    mixed = string.ascii_letters + string.digits
    makers: list[Callable[[], tuple[str, str]]] = [
        lambda: ("", "AKIA" + some(rng, string.ascii_uppercase + string.digits, 16)),
        lambda: ("", "ghp_" + some(rng, mixed, 36)),
        lambda: ("", "sk-" + some(rng, mixed, 48)),
        lambda: ("", "hf_" + some(rng, mixed, 34)),
        lambda: ("", "xoxb-" + some(rng, string.digits, 12) + "-" + some(rng, mixed, 24)),
        lambda: ("", ".".join(("eyJ" + some(rng, mixed, 20), "eyJ" + some(rng, mixed, 40), some(rng, mixed, 43)))),
        lambda: ("api_key = ", some(rng, mixed, 32)),
        lambda: ("SECRET_KEY: ", some(rng, "0123456789abcdef", 40)),
        lambda: ("password=", some(rng, mixed + "-_", 20)),
    ]
    return rng.choice(makers)()


def negatives(rng: random.Random) -> dict[str, Callable[[], str]]:
    def number(count: int) -> str:
        return some(rng, string.digits, count)

    return {
        "versions": lambda: f"v{rng.randint(0, 30)}.{rng.randint(0, 99)}.{rng.randint(0, 99)}.{rng.randint(0, 99)}",
        "dates": lambda: (
            f"2{number(3)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}T10:{rng.randint(10, 59)}:07.{number(6)}Z"
        ),
        "UUIDs": lambda: str(uuid.UUID(int=rng.getrandbits(128))),
        "ISBNs": lambda: f"978-{number(1)}-{number(3)}-{number(5)}-{number(1)}",
        "git hashes": lambda: some(rng, "0123456789abcdef", 40),
        "16 random digits": lambda: number(16),
        "9 to 11 random digits": lambda: number(rng.randint(9, 11)),
        "rows of a table": lambda: " ".join(number(rng.randint(1, 6)) for _ in range(8)),
        "years in a row": lambda: " ".join(str(rng.randint(1900, 2030)) for _ in range(8)),
        "decimals": lambda: f"{rng.random() * 10**5:.16g} + {rng.random():.15f}",
        "code": lambda: (
            f"x{number(1)} = W{number(1)}@model.layer{number(1)}.weight[{number(1)}::2] + std::max(a, {number(3)})"
        ),
        "times and MACs": lambda: ":".join(some(rng, "0123456789abcdef", 2) for _ in range(rng.choice([3, 6]))),
        "names of settings": lambda: f"token = max_new_tokens_{number(1)}_of_model_{number(2)}",
        "private addresses": lambda: f"192.168.{rng.randint(0, 255)}.{rng.randint(0, 255)}",
        "small versions in brackets": lambda: rng.choice(["{}", '"{}"', "[{}]", "lib-a ({})", ">= {}:"]).format(
            ".".join(str(rng.randint(0, 31)) for _ in range(4))
        ),
    }


def labelled(tool: Scrub) -> None:
    """Prints recall and precision of each kind, then false finds by kind of negative."""
    rng = random.Random(SEED)
    finders = tool.finders()
    makers = {"email": email, "card": card, "iban": iban, "national": national, "phone": phone, "ip": ip, "key": key}
    hit, false = Counter[str](), Counter[str]()
    for kind, make in makers.items():
        for _ in range(EACH):
            made = make(rng)
            word, value = made if isinstance(made, tuple) else ("", made)
            said = f"{word}{'' if not word or word[-1] in ' =' else ' '}{value}"
            text = rng.choice(FRAMES).format(said)
            start = text.index(said) + len(said) - len(value)
            for find, _ in scrub_text(text, finders, tool._placeholder)[1]:
                right = (find.kind, find.start, find.end) == (kind, start, start + len(value))
                (hit if right else false)[find.kind] += 1
    rows, wrong = [], Counter(false)
    for name, make in negatives(rng).items():
        found = Counter[str]()
        for _ in range(EACH):
            text = rng.choice(FRAMES).format(make())
            found.update(find.kind for find, _ in scrub_text(text, finders, tool._placeholder)[1])
        wrong += found
        said = ", ".join(f"{kind} {count}" for kind, count in found.items()) or "none"
        rows.append(f"| {name} | {EACH} | {said} |")
    print(
        f"| kind | labels | recall | wrong among labels | false on {len(rows) * EACH:,} negatives | precision of all |"
    )
    print("|---|---|---|---|---|---|")
    for kind in KINDS:
        precision = hit[kind] / max(1, hit[kind] + wrong[kind])
        alone = wrong[kind] - false[kind]
        print(f"| {kind} | {EACH} | {hit[kind] / EACH:.3f} | {false[kind]} | {alone} | {precision:.3f} |")
    print("\n| negatives | texts | false finds |\n|---|---|---|")
    print("\n".join(rows))


def read_texts(path: Path) -> Iterator[str]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    name, text = path.name.removesuffix(".gz"), data.decode("utf-8", "replace")
    if name.endswith(".jsonl"):
        for line in filter(str.strip, text.split("\n")):
            yield from texts_of(json.loads(line))
    elif name.endswith(".json"):
        yield from texts_of(json.loads(text))
    else:
        yield from text.split("\n\n")


def real(tool: Scrub, paths: Sequence[Path]) -> None:
    """Prints finds by kind and the rate for each file."""
    finders = tool.finders()
    print(f"\n| file | million characters | {' | '.join(KINDS)} | million characters a CPU second |")
    print("|---" * (len(KINDS) + 3) + "|")
    for path in paths:
        texts = list(read_texts(path))
        size, begun, found = sum(map(len, texts)) / 1e6, time.process_time(), Counter[str]()
        for text in texts:
            found.update(find.kind for find, _ in scrub_text(text, finders, tool._placeholder)[1])
        rate = size / (time.process_time() - begun)
        counts = " | ".join(str(found[kind]) for kind in KINDS)
        print(f"| {path.parent.name}/{path.name} | {size:.2f} | {counts} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    scrub = Scrub.model_validate(
        {"sources": [{"path": "-"}], "kinds": KINDS, "countries": COUNTRIES, "regions": REGIONS}
    )
    labelled(scrub)
    real(scrub, [Path(name) for name in sys.argv[1:]])
