"""A small world of tasks whose answers a program can check, written as training text and held-out questions.

All text is made here, so it carries no licence. The seed decides the draws and which problems are held out; the
skills and the facts of the world are the same for every seed. The side of a problem (train or held out) is a hash
of its key, which all its wordings and mirror images share, so no held-out problem can slip into the training text.
The one thing told about held-out questions is knowledge: the pretraining text states the facts that `recall` asks for.

The pipelines beside this file run it as they would any file of your own: the data tool `world.py:World`, the reward
function `world.py:gold` and the rule `world.py:verdict`.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from posttrain.data_tools.files import write_atomic
from posttrain.data_tools.spec import Share
from posttrain.data_tools.tool import Tool
from pydantic import NonNegativeInt

HELD_OUT_SHARE = 0.3
_PATIENCE = 10_000  # draws without a new problem before a task counts as exhausted


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


# Small sets, so that a model of a few million parameters meets each member often within a few minutes.
PEOPLE = _split(
    """
    Ada Bram Cleo Dario Edda Finn Greta Hugo Ines Jonas Kira Lars Mila Nils Olga Pavel Quinn Rosa Stefan Tilda Ulla
    Viktor Wanda Xenia Yann Zoe Abel Brook Crane Dale Ember Frost Grove Hale Ives Joy
    """
)
_WORDS = _split(
    """
    apple bell boat candle chair clock cup door drum flag glove hat key lamp map moon oven pear ring rope star table
    violin wheel
    """
)
_COLOURS = _split("black blue brown green grey red white yellow")
_FACTS = {
    "town": _split("Oakford Brimley Castor Dunmere Eastow Fallow Glenby Harwick"),
    "job": _split("baker dentist farmer judge nurse painter sailor teacher"),
    "drink": _split("beer cider cocoa coffee juice milk tea water"),
}
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Fields = dict[str, str]
_Row = dict[str, Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Skill:
    """One kind of problem: data and small functions of its fields, strings that can be read back from any question.

    Attributes:
        task: The family that it is scored under.
        asks: Questions; each holds every field in braces, so that the fields can be read back.
        tells: Statements of the solved problem: the fields and ``{answer}``.
        draw: Draws a problem.
        solve: The answer to a problem: a program, not a stored answer, says what is right.
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

    @property
    def slips(self) -> list[str]:
        """Wrong answers, in the kind of the right one."""
        return [slip for slip in self.skill.slips(self.fields) if slip != self.answer]

    def ask(self, rng: Random) -> str:
        """Words the problem as a question."""
        return rng.choice(self.skill.asks).format(**self.fields)

    def tell(self, rng: Random) -> str:
        """States the problem with its answer, as a textbook would."""
        return rng.choice(self.skill.tells).format(**self.fields, answer=self.answer)


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def _pattern(template: str) -> str:
    """Turns a template into a regular expression with one named group for each field."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+?)", re.escape(template))


def _other_letters(letters: list[str]) -> list[str]:
    """The letters of a string, and one that is not in it for strings of a single letter."""
    return [*dict.fromkeys(letters), "a" if letters[0] != "a" else "b"]


def _letters(
    asks: tuple[str, ...],
    tell: str,
    solve: Callable[[list[str]], str],
    slips: Callable[[list[str]], list[str]] = _other_letters,
) -> Skill:
    return Skill(
        "strings",
        asks,
        (tell,),
        draw=lambda rng: {"letters": " ".join(rng.choices(_LETTERS, k=rng.randint(2, 5)))},
        solve=lambda f: solve(f["letters"].split()),
        # The first letter of a string is the last of its mirror: both lie on one side.
        key=lambda f: min(f["letters"], f["letters"][::-1]),
        slips=lambda f: slips(f["letters"].split()),
    )


def _order(asks: tuple[str, ...], tell: str, items: Sequence[str], first: Callable[[str, str], str]) -> Skill:
    return Skill(
        "ordering",
        asks,
        (tell,),
        draw=lambda rng: dict(zip("ab", rng.sample(items, k=2), strict=True)),
        solve=lambda f: first(f["a"], f["b"]),
        key=lambda f: " ".join(sorted(f.values())),
        slips=lambda f: (f["a"], f["b"]),
    )


def _story(subjects: Sequence[str], values: Sequence[str], sentence: str, asks: tuple[str, ...], tell: str) -> Skill:
    """Facts told in the question itself, of which one is asked for."""

    def draw(rng: Random) -> Fields:
        chosen = rng.sample(subjects, k=2)
        pairs = zip(chosen, rng.sample(values, k=2), strict=True)
        told = " ".join(sentence.format(subject=subject, value=value) for subject, value in pairs)
        return {"story": told, "subject": rng.choice(chosen)}

    def sentences(fields: Fields) -> list[str]:
        return [sentence.strip() for sentence in re.findall(r"[^.]+\.", fields["story"])]

    def facts(fields: Fields) -> dict[str, str]:
        matches = [re.fullmatch(_pattern(sentence), told) for told in sentences(fields)]
        return {match["subject"]: match["value"] for match in matches if match}

    return Skill(
        "lookup",
        tuple("{story} " + ask for ask in asks),
        ("{story} " + tell,),
        draw,
        solve=lambda f: facts(f)[f["subject"]],
        # Neither the order of the sentences nor which of them is asked for makes another story.
        key=lambda f: " ".join(sorted(sentences(f))),
        slips=lambda f: list(facts(f).values()),
    )


def fact(person: str, attribute: str) -> str:
    """Looks up a fact of the invented world, which is the same for every seed: attributes are town, job and drink."""
    values = _FACTS[attribute]
    return values[_hashed(f"{person}/{attribute}") % len(values)]


def _knowledge(attribute: str, asks: tuple[str, ...], tells: tuple[str, ...]) -> Skill:
    """A fact that only the pretraining text tells."""
    return Skill(
        "recall",
        asks,
        tells,
        draw=lambda rng: {"person": rng.choice(PEOPLE)},
        solve=lambda f: fact(f["person"], attribute),
        key=lambda f: f"{f['person']}/{attribute}",
        slips=lambda f: _FACTS[attribute],
    )


_SHAPES: dict[str, Callable[[str], str]] = {
    "in brackets": "[ {} ]".format,
    "in quotes": '" {} "'.format,
    "twice": "{0} {0}".format,
    "after a plus sign": "+ {}".format,
    "as a question": "{} ?".format,
    "in capitals": str.upper,
}


def _shape(shape: str, write: Callable[[str], str]) -> Skill:
    return Skill(
        "format",
        (f"Write {{word}} {shape}.", f"Give me the word {{word}} {shape}."),
        (f"Written {shape}, {{word}} is {{answer}} .",),
        draw=lambda rng: {"word": rng.choice((*_WORDS, *_COLOURS, *_FACTS["drink"], *_FACTS["job"]))},
        solve=lambda f: write(f["word"]),
        key=lambda f: f"{f['word']} {shape}",
        slips=lambda f: [other(f["word"]) for other in _SHAPES.values()],
    )


SKILLS: tuple[Skill, ...] = (
    Skill(
        "arithmetic",
        ("What is {a} + {b}?", "How much is {b} + {a}?"),
        ("{a} + {b} = {answer}.", "{b} + {a} = {answer}."),
        draw=lambda rng: {"a": str(rng.randint(10, 49)), "b": str(rng.randint(1, 9))},
        solve=lambda f: str(int(f["a"]) + int(f["b"])),
        key=lambda f: "+".join(sorted((f["a"], f["b"]), key=int)),
        slips=lambda f: [str(int(f["a"]) + int(f["b"]) + off) for off in (-10, -1, 1, 10)],
    ),
    Skill(
        "arithmetic",
        ("Is {n} odd or even?", "Is {n} even or odd?"),
        ("The number {n} is {answer}.",),
        draw=lambda rng: {"n": str(rng.randint(10, 999))},
        solve=lambda f: "odd" if int(f["n"]) % 2 else "even",
        key=lambda f: f["n"],
        slips=lambda f: ("odd", "even"),
    ),
    _letters(
        ("What is the first letter of {letters}?", "Which letter does {letters} begin with?"),
        "The first letter of {letters} is {answer}.",
        lambda letters: letters[0],
    ),
    _letters(
        ("What is the last letter of {letters}?", "Which letter does {letters} end with?"),
        "The last letter of {letters} is {answer}.",
        lambda letters: letters[-1],
    ),
    _letters(
        ("How many letters has {letters}?", "How long is {letters}?"),
        "The number of letters in {letters} is {answer}.",
        lambda letters: str(len(letters)),
        lambda letters: [str(len(letters) - 1), str(len(letters) + 1)],
    ),
    _order(
        ("Which number is larger, {a} or {b}?", "Which is the larger of {a} and {b}?"),
        "Of {a} and {b}, {answer} is larger.",
        [str(number) for number in range(30)],
        lambda a, b: max(a, b, key=int),
    ),
    _order(
        ("Which letter comes first, {a} or {b}?", "Of {a} and {b}, which comes first in the alphabet?"),
        "Of the letters {a} and {b}, {answer} comes first.",
        _LETTERS,
        min,
    ),
    _story(
        PEOPLE,
        _FACTS["town"],
        "{subject} lives in {value}.",
        ("Where does {subject} live?", "In which town is the home of {subject}?"),
        "So the home of {subject} is in {answer}.",
    ),
    _story(
        _WORDS,
        _COLOURS,
        "The {subject} is {value}.",
        ("What colour is the {subject}?", "Which colour does the {subject} have?"),
        "So the colour of the {subject} is {answer}.",
    ),
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
    *(_shape(shape, write) for shape, write in _SHAPES.items()),
)
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


def check(task: str, question: str, answer: str) -> bool:
    """Says whether an answer is right: surrounding blanks and one closing full stop are forgiven, nothing else.

    Raises:
        ValueError: The question is not one of the task's.
    """
    skill, fields = parse(task, question)
    return answer.strip().removesuffix(".").rstrip() == skill.solve(fields)


def gold(prompts: Sequence[Any], completions: Sequence[Any], task: Sequence[str], **columns: Any) -> list[float]:
    """Rewards answers by :func:`check`; a reward function as TRL's trainers take them.

    Args:
        prompts: Conversations that end with the question, or the questions as text.
        completions: The answers, messages or text.
        task: The family of each question, a column of ``prompts/*.jsonl``.
        columns: The other columns, which are not needed.

    Returns:
        1.0 for each right answer, else 0.0.

    Raises:
        ValueError: A prompt is not a question of its task.
    """

    def last(messages: Any) -> str:
        return messages if isinstance(messages, str) else messages[-1]["content"]

    rows = zip(task, prompts, completions, strict=True)
    return [float(check(family, last(prompt), last(answer))) for family, prompt, answer in rows]


def verdict(prompt: Mapping[str, Any], answer: str) -> float:
    """Marks an answer by :func:`check`; a rule as the judge ``rules-not-a-judge`` takes it.

    Args:
        prompt: A row of ``heldout/prompts.jsonl`` as a judge sees it: ``category`` and the last of ``turns``.
        answer: The answer.

    Returns:
        1.0 for a right answer, else 0.0.
    """
    return float(check(prompt["category"], prompt["turns"][-1], answer))


# The people who write the answers: careful ones, and careless ones with these habits. Demonstrations of mixed quality
# and comparisons by careful annotators are what post-training starts from (Ouyang et al. 2022, arXiv:2203.02155,
# section 3): a model tuned on the former learns the habits too, and the latter can mend them.
HABITS: Mapping[str, Callable[[Problem, Random], str]] = {
    "hedge": lambda problem, rng: f"I think it is {problem.answer}, maybe.",
    "apologise": lambda problem, rng: f"{problem.answer}, sorry if that is wrong.",
    "guess": lambda problem, rng: rng.choice(problem.slips),
}
_WRITTEN = (3, 1, 1)  # how often each habit shows in demonstrations
_COMPARED = (1, 1, 2)  # and in comparisons, which are asked for where they are not easy


def _careless(problem: Problem, rng: Random, weights: tuple[int, ...]) -> str:
    """Answers by one of the habits, drawn anew each time."""
    return rng.choices(tuple(HABITS.values()), weights)[0](problem, rng)


def is_held_out(problem: Problem, seed: int) -> bool:
    """Says on which side a problem lies, from its key and the seed alone."""
    return _hashed(f"{seed}/{problem.key}") < HELD_OUT_SHARE * 2**64


def _distinct(items: Iterable[_T], key: Callable[[_T], str], count: int) -> Iterator[_T]:
    """Takes the first items of distinct keys, as many as wanted or as there seem to be."""
    seen: set[str] = set()
    repeats = 0
    for item in items:
        if len(seen) == count or repeats == _PATIENCE:
            return
        if key(item) in seen:
            repeats += 1
            continue
        repeats = 0
        seen.add(key(item))
        yield item


def _prompt(task: str, question: str, answer: str) -> _Row:
    return {"prompt": [{"role": "user", "content": question}], "task": task, "answer": answer}


class World(Tool):
    """Writes the world's training sets and what is held out; the same bytes for the same arguments.

    ``pretrain.jsonl`` and ``sft.jsonl`` have their held-out questions in ``heldout/``, where ``prompts.jsonl`` has
    some of every family as a prompt set for judges. ``preference/`` (pairs of answers), ``prompts/`` (questions without
    answers) and ``classification/`` (questions with their family) each hold a ``train.jsonl`` and a ``heldout.jsonl``.
    """

    seed: int = 0
    """Decides every draw, and which problems are held out."""
    pages: NonNegativeInt = 8000
    """Pretraining documents of solved problems."""
    biographies: NonNegativeInt = 60
    """How often the facts about each person are told."""
    quiz_share: Share = 0.1
    """The share of the pages that are lists of questions with answers, as text on the web has them."""
    conversations: NonNegativeInt = 24000
    """Chats of one to three turns for supervised fine-tuning."""
    heldout: NonNegativeInt = 100
    """Held-out questions for each task, in each set; all there are for a task that has fewer."""
    careless: Share = 0.0
    """The share of the chats of `sft.jsonl` whose answers careless annotators write: hedged, apologetic or wrong. The
    questions stay the same."""
    preferences: NonNegativeInt = 6000
    """Pairs of a right answer and a careless one."""
    prompts: NonNegativeInt = 6000
    """Questions for reinforcement learning."""
    classification: NonNegativeInt = 3600
    """Questions to sort into families, all different, fewer where a family has no more."""

    def run(self, output_dir: Path) -> None:
        """Draws every file by a generator of its own, so that the size of one changes no other."""
        held_out = {task: self._held_out_questions(task) for task in TASKS}
        asked = [
            {"question": row["question"], "answer": row["answer"], "task": task}
            for task, rows in held_out.items()
            for row in rows
        ]
        mixed = self._rng("prompts/heldout").sample(asked, len(asked))  # the first of them are of every family
        files = {
            "pretrain.jsonl": self._pretrain(),
            "sft.jsonl": self._sft(),
            "preference/train.jsonl": self._preference("train", self.preferences),
            "preference/heldout.jsonl": self._preference("heldout", self.heldout * len(TASKS)),
            "prompts/train.jsonl": self._prompts(),
            "prompts/heldout.jsonl": [_prompt(row["task"], row["question"], row["answer"]) for row in mixed],
            "classification/train.jsonl": self._classification("train", self.classification),
            "classification/heldout.jsonl": self._classification("heldout", self.heldout * len(TASKS)),
            "heldout/text.jsonl": self._held_out_text(),
            "heldout/all.jsonl": asked,
            "heldout/prompts.jsonl": [
                {"id": f"q{number}", "prompt": row["question"], "category": row["task"], "reference": row["answer"]}
                for number, row in enumerate(mixed[: 2 * self.heldout], start=1)
            ],
            **{f"heldout/{task}.jsonl": rows for task, rows in held_out.items()},
        }
        for name, rows in files.items():
            write_atomic(output_dir / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def _rng(self, name: str) -> Random:
        return Random(f"{self.seed}/{name}")

    def _draw(self, rng: Random, task: str, side: str) -> Iterator[Problem]:
        """Draws problems of a task from one side without end, its skills in turn."""
        for skill in cycle([skill for skill in SKILLS if skill.task == task]):
            problem = Problem(skill, skill.draw(rng))
            while is_held_out(problem, self.seed) != (side == "heldout"):
                problem = Problem(skill, skill.draw(rng))
            yield problem

    def _ask(self, rng: Random) -> Iterator[tuple[Problem, str]]:
        """Asks questions of the train side without end, of every family equally often."""
        sources = {task: self._draw(rng, task, "train") for task in TASKS}
        while True:
            problem = next(sources[rng.choice(TASKS)])
            yield problem, problem.ask(rng)

    def _ask_once(self, rng: Random, side: str, count: int) -> list[tuple[Problem, str]]:
        """Asks distinct questions of one side, as many of each family, shuffled."""
        found: list[tuple[Problem, str]] = []
        for task in TASKS:
            asked = ((problem, problem.ask(rng)) for problem in self._draw(rng, task, side))
            found += _distinct(asked, lambda pair: pair[1], count // len(TASKS))
        rng.shuffle(found)
        return found

    def _pretrain(self) -> list[_Row]:
        """Textbook pages on every skill, a few of them quizzes, and the biographies, shuffled."""
        rng = self._rng("pretrain")
        sources = {task: self._draw(rng, task, "train") for task in TASKS}
        texts = []
        for task, _ in zip(cycle(TASKS), range(self.pages), strict=False):
            problems = [next(sources[task]) for _ in range(3)]
            if rng.random() < self.quiz_share:
                texts.append("\n".join(f"{problem.ask(rng)} {problem.answer}" for problem in problems))
            elif task != "recall":  # knowledge is told by the biographies alone
                texts.append("\n".join(problem.tell(rng) for problem in problems))
        for _ in range(self.biographies):
            for person in PEOPLE:  # worded and ordered anew each time
                skills = [skill for skill in SKILLS if skill.task == "recall"]
                rng.shuffle(skills)
                texts.append(" ".join(Problem(skill, {"person": person}).tell(rng) for skill in skills))
        rng.shuffle(texts)
        return [{"text": text} for text in texts]

    def _sft(self) -> list[_Row]:
        """Chats, each by one annotator; who it is and what a careless one writes is drawn apart from the questions."""
        rng, annotators = self._rng("sft"), self._rng("annotators")
        asked = self._ask(rng)
        rows = []
        for _ in range(self.conversations):
            messages: list[_Row] = []
            is_careless = annotators.random() < self.careless
            for _ in range(rng.randint(1, 3)):
                problem, question = next(asked)
                answer = _careless(problem, annotators, _WRITTEN) if is_careless else problem.answer
                messages.append({"role": "user", "content": question})
                messages.append({"role": "assistant", "content": answer})
            rows.append({"messages": messages})
        return rows

    def _preference(self, side: str, count: int) -> list[_Row]:
        """Pairs of answers, the right one preferred; on the train side a question may return."""
        rng = self._rng(f"preference/{side}")
        asked = self._ask(rng) if side == "train" else self._ask_once(rng, side, count)
        rows = []
        for (problem, question), _ in zip(asked, range(count), strict=False):
            answers = {"chosen": problem.answer, "rejected": _careless(problem, rng, _COMPARED)}
            row = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
            rows.append({"prompt": [{"role": "user", "content": question}], **row, "task": problem.skill.task})
        return rows

    def _prompts(self) -> list[_Row]:
        asked = zip(self._ask(self._rng("prompts")), range(self.prompts), strict=False)
        return [_prompt(problem.skill.task, question, problem.answer) for (problem, question), _ in asked]

    def _classification(self, side: str, count: int) -> list[_Row]:
        asked = self._ask_once(self._rng(f"classification/{side}"), side, count)
        return [{"text": question, "label": problem.skill.task} for problem, question in asked]

    def _held_out_questions(self, task: str) -> list[_Row]:
        """Held-out problems, each key once; questions of recall carry four options, for a multiple-choice task."""
        rng = self._rng(task)
        rows: list[_Row] = []
        for problem in _distinct(self._draw(rng, task, "heldout"), lambda problem: problem.key, self.heldout):
            row: _Row = {"question": problem.ask(rng), "answer": problem.answer}
            if task == "recall":
                options = [problem.answer, *rng.sample(problem.slips, k=3)]
                rng.shuffle(options)
                row |= {"options": options, "gold": options.index(problem.answer)}
            rows.append(row)
        return rows

    def _held_out_text(self) -> list[_Row]:
        """Textbook pages on held-out problems, for perplexity."""
        rng = self._rng("text")
        tasks = [task for task in TASKS if task != "recall"]
        sources = {task: self._draw(rng, task, "heldout") for task in tasks}
        return [
            {"text": "\n".join(next(sources[task]).tell(rng) for _ in range(4)), "domain": task}
            for task, _ in zip(cycle(tasks), range(self.heldout), strict=False)
        ]
