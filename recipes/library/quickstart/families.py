"""The families of problems of the small world: how each is drawn, asked, told and solved.

A skill is data plus three small functions. Its fields are strings, so that a problem can be read back from any
of its questions, and a program, not a stored answer, says what is right.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

Fields = dict[str, str]


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


# Small sets, so that a model of a few million parameters meets each member often within a few minutes.
_NAMES = _split(
    """
    Ada Bram Cleo Dario Edda Finn Greta Hugo Ines Jonas Kira Lars Mila Nils Olga Pavel Quinn Rosa Stefan Tilda Ulla
    Viktor Wanda Xenia Yann Zoe Abel Brook Crane Dale Ember Frost Grove Hale Ives Joy
    """
)
_TOWNS = _split("Oakford Brimley Castor Dunmere Eastow Fallow Glenby Harwick")
_JOBS = _split("baker dentist farmer judge nurse painter sailor teacher")
_DRINKS = _split("beer cider cocoa coffee juice milk tea water")
_COLOURS = _split("black blue brown green grey red white yellow")
_WORDS = _split(
    """
    apple bell boat candle chair clock cup door drum flag glove hat key lamp map moon oven pear ring rope star table
    violin wheel
    """
)
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Skill:
    """One kind of problem.

    Attributes:
        task: The family that it is scored under.
        asks: Questions; each holds every field in braces, so that the fields can be read back.
        tells: Statements of the solved problem: the fields and ``{answer}``.
        draw: Draws a problem.
        solve: The answer to a problem.
        key: What the problem shares with every problem that would give it away. All of them go to the same side.
        slips: Answers that a careless person might give; the right one may be among them.
    """

    task: str
    asks: tuple[str, ...]
    tells: tuple[str, ...]
    draw: Callable[[Random], Fields]
    solve: Callable[[Fields], str]
    key: Callable[[Fields], str]
    slips: Callable[[Fields], Sequence[str]]


@dataclass(frozen=True)
class Problem:
    """One problem: a skill and the values of its fields."""

    skill: Skill
    fields: Fields

    @property
    def key(self) -> str:
        """What all wordings and mirror images of the problem share."""
        return f"{self.skill.task}:{self.skill.key(self.fields)}"

    @property
    def answer(self) -> str:
        """The right answer."""
        return self.skill.solve(self.fields)

    def ask(self, rng: Random) -> str:
        """Words the problem as a question."""
        return rng.choice(self.skill.asks).format(**self.fields)

    def tell(self, rng: Random) -> str:
        """States the problem with its answer, as a textbook would."""
        return rng.choice(self.skill.tells).format(**self.fields, answer=self.answer)

    def slip(self, rng: Random) -> str:
        """Answers wrongly, in the kind of the right answer."""
        return rng.choice([slip for slip in self.skill.slips(self.fields) if slip != self.answer])


def _pattern(template: str) -> str:
    """Turns a template into a regular expression with one named group for each field."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))


def _arithmetic() -> tuple[Skill, ...]:
    return (
        Skill(
            task="arithmetic",
            asks=("What is {a} + {b}?", "How much is {b} + {a}?"),
            tells=("{a} + {b} = {answer}.", "{b} + {a} = {answer}."),
            draw=lambda rng: {"a": str(rng.randint(10, 49)), "b": str(rng.randint(1, 9))},
            solve=lambda f: str(int(f["a"]) + int(f["b"])),
            key=lambda f: "+".join(sorted((f["a"], f["b"]), key=int)),
            slips=lambda f: [str(int(f["a"]) + int(f["b"]) + off) for off in (-10, -1, 1, 10)],
        ),
        Skill(
            task="arithmetic",
            asks=("Is {n} odd or even?", "Is {n} even or odd?"),
            tells=("The number {n} is {answer}.",),
            draw=lambda rng: {"n": str(rng.randint(10, 999))},
            solve=lambda f: "odd" if int(f["n"]) % 2 else "even",
            key=lambda f: f["n"],
            slips=lambda f: ("odd", "even"),
        ),
    )


def _draw_letters(rng: Random) -> Fields:
    return {"letters": " ".join(rng.choices(_LETTERS, k=rng.randint(2, 5)))}


def _other_letters(letters: list[str]) -> list[str]:
    """The letters of a string, and one that is not in it for strings of a single letter."""
    return [*dict.fromkeys(letters), "a" if letters[0] != "a" else "b"]


def _strings() -> tuple[Skill, ...]:
    def skill(
        asks: tuple[str, ...],
        tell: str,
        solve: Callable[[list[str]], str],
        slips: Callable[[list[str]], list[str]] = _other_letters,
    ) -> Skill:
        return Skill(
            task="strings",
            asks=asks,
            tells=(tell,),
            draw=_draw_letters,
            solve=lambda f: solve(f["letters"].split()),
            # The first letter of a string is the last of its mirror: both lie on one side.
            key=lambda f: min(f["letters"], f["letters"][::-1]),
            slips=lambda f: slips(f["letters"].split()),
        )

    return (
        skill(
            ("What is the first letter of {letters}?", "Which letter does {letters} begin with?"),
            "The first letter of {letters} is {answer}.",
            lambda letters: letters[0],
        ),
        skill(
            ("What is the last letter of {letters}?", "Which letter does {letters} end with?"),
            "The last letter of {letters} is {answer}.",
            lambda letters: letters[-1],
        ),
        skill(
            ("How many letters has {letters}?", "How long is {letters}?"),
            "The number of letters in {letters} is {answer}.",
            lambda letters: str(len(letters)),
            lambda letters: [str(len(letters) - 1), str(len(letters) + 1)],
        ),
    )


def _ordering() -> tuple[Skill, ...]:
    def skill(asks: tuple[str, ...], tell: str, items: Sequence[str], first: Callable[[str, str], str]) -> Skill:
        return Skill(
            task="ordering",
            asks=asks,
            tells=(tell,),
            draw=lambda rng: dict(zip("ab", rng.sample(items, k=2), strict=True)),
            solve=lambda f: first(f["a"], f["b"]),
            key=lambda f: " ".join(sorted(f.values())),
            slips=lambda f: (f["a"], f["b"]),
        )

    return (
        skill(
            ("Which number is larger, {a} or {b}?", "Which is the larger of {a} and {b}?"),
            "Of {a} and {b}, {answer} is larger.",
            [str(number) for number in range(30)],
            lambda a, b: max(a, b, key=int),
        ),
        skill(
            ("Which letter comes first, {a} or {b}?", "Of {a} and {b}, which comes first in the alphabet?"),
            "Of the letters {a} and {b}, {answer} comes first.",
            _LETTERS,
            min,
        ),
    )


def _sentences(story: str) -> list[str]:
    return [sentence.strip() for sentence in re.findall(r"[^.]+\.", story)]


def _story(
    subjects: Sequence[str], values: Sequence[str], sentence: str, asks: tuple[str, ...], tells: tuple[str, ...]
) -> Skill:
    """Facts told in the question itself, of which one is asked for."""
    pattern = re.compile(_pattern(sentence))

    def draw(rng: Random) -> Fields:
        chosen = rng.sample(subjects, k=2)
        pairs = zip(chosen, rng.sample(values, k=2), strict=True)
        told = " ".join(sentence.format(subject=subject, value=value) for subject, value in pairs)
        return {"story": told, "subject": rng.choice(chosen)}

    def facts(fields: Fields) -> dict[str, str]:
        matches = [pattern.fullmatch(sentence) for sentence in _sentences(fields["story"])]
        return {match["subject"]: match["value"] for match in matches if match}

    def key(fields: Fields) -> str:
        # Neither the order of the sentences nor which of them is asked for makes another story.
        return " ".join(sorted(_sentences(fields["story"])))

    return Skill(
        "lookup",
        tuple("{story} " + ask for ask in asks),
        tuple("{story} " + tell for tell in tells),
        draw,
        lambda f: facts(f)[f["subject"]],
        key,
        lambda f: list(facts(f).values()),
    )


def _lookup() -> tuple[Skill, ...]:
    return (
        _story(
            _NAMES,
            _TOWNS,
            "{subject} lives in {value}.",
            ("Where does {subject} live?", "In which town is the home of {subject}?"),
            ("So the home of {subject} is in {answer}.",),
        ),
        _story(
            _WORDS,
            _COLOURS,
            "The {subject} is {value}.",
            ("What colour is the {subject}?", "Which colour does the {subject} have?"),
            ("So the colour of the {subject} is {answer}.",),
        ),
    )


PEOPLE = _NAMES
_FACTS = {"town": _TOWNS, "job": _JOBS, "drink": _DRINKS}


def fact(person: str, attribute: str) -> str:
    """Looks up a fact of the invented world, which is the same for every seed: attributes are town, job and drink."""
    values = _FACTS[attribute]
    digest = hashlib.sha256(f"{person}/{attribute}".encode()).digest()
    return values[int.from_bytes(digest[:8]) % len(values)]


def fact_values(attribute: str) -> tuple[str, ...]:
    """Lists every value that an attribute can have."""
    return tuple(_FACTS[attribute])


def _knowledge(attribute: str, asks: tuple[str, ...], tells: tuple[str, ...]) -> Skill:
    """A fact that only the pretraining text tells."""
    return Skill(
        "recall",
        asks,
        tells,
        draw=lambda rng: {"person": rng.choice(PEOPLE)},
        solve=lambda f: fact(f["person"], attribute),
        key=lambda f: f"{f['person']}/{attribute}",
        slips=lambda f: fact_values(attribute),
    )


def _recall() -> tuple[Skill, ...]:
    return (
        _knowledge(
            "town",
            ("Which town is {person} from?", "What is the home town of {person}?"),
            ("{person} is from {answer}.", "The home town of {person} is {answer}."),
        ),
        _knowledge(
            "job",
            ("What work does {person} do?", "What is the job of {person}?"),
            ("{person} works as a {answer}.", "The job of {person} is {answer}."),
        ),
        _knowledge(
            "drink",
            ("What does {person} like to drink?", "What is the favourite drink of {person}?"),
            ("{person} likes to drink {answer}.", "The favourite drink of {person} is {answer}."),
        ),
    )


_SHAPES: dict[str, Callable[[str], str]] = {
    "in brackets": "[ {} ]".format,
    "in quotes": '" {} "'.format,
    "twice": "{0} {0}".format,
    "after a plus sign": "+ {}".format,
    "as a question": "{} ?".format,
    "in capitals": str.upper,
}


def _format() -> tuple[Skill, ...]:
    def skill(shape: str, write: Callable[[str], str]) -> Skill:
        return Skill(
            task="format",
            asks=(f"Write {{word}} {shape}.", f"Give me the word {{word}} {shape}."),
            tells=(f"Written {shape}, {{word}} is {{answer}} .",),
            draw=lambda rng: {"word": rng.choice((*_WORDS, *_COLOURS, *_DRINKS, *_JOBS))},
            solve=lambda f: write(f["word"]),
            key=lambda f: f"{f['word']} {shape}",
            slips=lambda f: [other(f["word"]) for other in _SHAPES.values()],
        )

    return tuple(skill(shape, write) for shape, write in _SHAPES.items())


SKILLS: tuple[Skill, ...] = _arithmetic() + _strings() + _ordering() + _lookup() + _recall() + _format()
TASKS: tuple[str, ...] = tuple(dict.fromkeys(skill.task for skill in SKILLS))


def parse(task: str, question: str) -> tuple[Skill, Fields]:
    """Reads a question back into its problem.

    Raises:
        ValueError: No skill of the task asks so.
    """
    for skill in SKILLS:
        for ask in skill.asks if skill.task == task else ():
            if match := re.fullmatch(_pattern(ask), question):
                return skill, match.groupdict()
    raise ValueError(f"not a question of {task}: {question!r}")
