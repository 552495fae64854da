"""What a judge is to be asked: which answers of whom, against whom, in which order."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ...chat_templates.errors import PosttrainError
from ..answers import Answer, AnswerSet, answer_scores, answers_from_file, find_answers, load_answers
from ..checkpoints import model_hash, read_manifest
from ..errors import EvalError
from ..judges import DATA_FILES, Judge, JudgingSpec
from ..runs import RUN_FILE
from .judgments import NULL, Judgment, Order, judgment_key

if TYPE_CHECKING:
    from ..generations import Prompts

NULL_TEXT = "Thank you for your question. I hope that this helps."


@dataclass(frozen=True)
class Question:
    """One thing to ask a judge.

    Attributes:
        candidate: Whose answer is judged.
        answer: That answer.
        opponent: Whom it is compared with; None for a rating.
        other: The opponent's answer.
        order: Which of the two the judge sees first.
        repeat: Which of several times that it is asked.
        home: The run folder that keeps the judgment.
        by_end: Whether the judge sees if an answer is finished or was cut, as a reward model does.
    """

    candidate: AnswerSet
    answer: Answer
    opponent: AnswerSet | None
    other: Answer | None
    order: Order
    repeat: int
    home: Path
    by_end: bool = False

    def key(self, version: str) -> str:
        """Returns the key of its judgment by a judge."""
        other = self.key_of(self.other) if self.other else None
        opponent = self.opponent.model_hash if self.opponent else None
        who = (self.candidate.model_hash, opponent, self.answer.sample)
        return judgment_key(version, self.key_of(self.answer), other, self.order, self.repeat, who)

    def key_of(self, answer: Answer) -> str:
        """Returns the key of an answer to this judge."""
        return answer.ended_key if self.by_end else answer.key

    @property
    def sides(self) -> list[Answer]:
        """Returns the answers, in the order in which the judge sees them."""
        return [self.first, *([self.second] if self.second else [])]

    @property
    def first(self) -> Answer:
        """Returns the answer that the judge sees first."""
        return self.other if self.order == "candidate-second" and self.other else self.answer

    @property
    def second(self) -> Answer | None:
        """Returns the answer that it sees second; None for a rating."""
        return self.answer if self.order == "candidate-second" else self.other

    @property
    def equal(self) -> bool:
        """Says whether the judge sees the same answer twice, which needs no judge."""
        same = self.other is not None and self.other.texts == self.answer.texts
        return same and len({answer.finished for answer in self.sides if self.by_end}) < 2


@dataclass(frozen=True)
class Pair:
    """Two answer sets to be compared.

    Attributes:
        candidate: The one whose run folder keeps the judgments.
        opponent: The other.
        home: That folder.
    """

    candidate: AnswerSet
    opponent: AnswerSet
    home: Path

    @property
    def names(self) -> tuple[str, str]:
        """Returns both model hashes."""
        return self.candidate.model_hash, self.opponent.model_hash


def orders_of(judge: Judge, pair: Pair | None = None, prompt_key: str = "") -> tuple[Order, ...]:
    """Returns the orders in which a judge is asked; where that is one, a draw by prompt, so that neither side has it.

    Args:
        judge: Who is asked.
        pair: About whom; without, the orders are right in number only.
        prompt_key: About which prompt.
    """
    if judge.settings.kind == "rating":
        return ("alone",)
    if not judge.ordered:
        return ("candidate-first",)
    if judge.settings.orders == "both":
        return ("candidate-first", "candidate-second")
    names = pair.names if pair else ("", "")
    first = Random(f"{judge.settings.seed}/{prompt_key}/{'/'.join(sorted(names))}").randrange(2)
    return ("candidate-first",) if sorted(names)[first] == names[0] else ("candidate-second",)


def joined(candidate: AnswerSet, opponent: AnswerSet) -> Iterator[tuple[Answer, Answer]]:
    """Returns the answers of two sets to the same prompts; a sample that the other lacks meets its first."""
    others = opponent.by_prompt()
    for answer in candidate.answers:
        other = others.get((answer.prompt_key, answer.sample)) or others.get((answer.prompt_key, 0))
        if other is not None:
            yield answer, other


def questions_of(judge: Judge, pair: Pair, prompts: frozenset[str] | None = None) -> list[Question]:
    """Returns all that a judge is asked of a pair.

    Args:
        judge: Who is asked.
        pair: The answers.
        prompts: Keys of the prompts to take; None for all.
    """
    return [
        Question(pair.candidate, answer, pair.opponent, other, order, repeat, pair.home, judge.by_end)
        for answer, other in joined(pair.candidate, pair.opponent)
        if prompts is None or answer.prompt_key in prompts
        for order in orders_of(judge, pair, answer.prompt_key)
        for repeat in range(_repeats(judge))
    ]


def ratings_of(judge: Judge, candidate: AnswerSet) -> list[Question]:
    """Returns all that a judge is asked of one answer set."""
    return [
        Question(candidate, answer, None, None, "alone", repeat, home_of(candidate), judge.by_end)
        for answer in candidate.answers
        for repeat in range(_repeats(judge))
    ]


def _repeats(judge: Judge) -> int:
    return judge.settings.repeats if judge.ordered else 1


def home_of(answers: AnswerSet) -> Path:
    """Returns the run folder of answers that are no file's."""
    assert answers.folder is not None, "candidates come from run folders"
    return answers.folder


def baseline_of(spec: JudgingSpec, job: "Prompts") -> tuple[AnswerSet, tuple[str, ...]]:
    """Finds the answers of an entry's baseline, with notes of what could not be joined.

    Args:
        spec: The entry.
        job: Its prompt set.

    Raises:
        EvalError: The baseline has no answers to these prompts.
        InputError: The file of answers cannot be read.
    """
    assert spec.baseline is not None, "the caller has one"
    path = Path(spec.baseline).resolve()  # one folder must not be two, whatever its paths: each is locked once
    if path.name.endswith(DATA_FILES):
        tags = job.spec.thinking
        return answers_from_file(path, job.prompts, task=spec.prompts, task_hash=job.task_hash, thinking=tags)
    run = path if (path / RUN_FILE).exists() or not path.name.startswith("checkpoint-") else path.parent
    where, name = f"baseline {path}", f"`{spec.prompts}`"
    scores = [score for score in answer_scores(run, spec.prompts) if score.task_hash == job.task_hash]
    manifest = read_manifest(path)
    if manifest is not None:
        scores = [score for score in scores if score.model in (model_hash(path), manifest.weights)]
    if len({score.model for score in scores}) > 1:
        raise EvalError(f"several models have answers to {name} there", where=where, hint="name one of its checkpoints")
    if not scores:
        hint = "score it with this suite first" if path.is_dir() else "there is no such folder"
        raise EvalError(f"no answers to {name} as the suite asks them", where=where, hint=hint)
    return load_answers(run, scores[0]), ()


def null_answers(baseline: AnswerSet, size: int, seed: int) -> AnswerSet:
    """Returns the null answer to some of a baseline's prompts.

    Null models win where a judge is gullible (Zheng et al. 2024, arXiv:2410.07137); this one does not even try.
    """
    first = {answer.prompt_key: answer for answer in reversed(baseline.answers)}
    keys = Random(f"{seed}/{baseline.model_hash}").sample(sorted(first), min(size, len(first)))
    answers = []
    for key in keys:
        told = first[key]
        texts = (NULL_TEXT,) * len(told.turns)
        finish = ("stop",) * len(texts)
        silent = replace(told, sample=0, texts=texts, raw=texts, finish=finish)
        answers.append(replace(silent, prompt_tokens=0, completion_tokens=0, seconds=0.0))
    return AnswerSet(NULL, NULL, None, NULL, baseline.task, NULL, None, tuple(answers))


def candidates_of(folders: Iterable[Path], prompts: str, task_hash: str) -> list[AnswerSet]:
    """Returns the answer sets of run folders, each model once, checkpoints in the order of their steps."""
    sets = find_answers(folders, prompts, task_hash)
    places = {str(found.folder): number for number, found in reversed(list(enumerate(sets)))}
    return sorted(sets, key=lambda s: (places[str(s.folder)], s.step if s.step is not None else 1 << 62))


def all_pairs(sets: Sequence[AnswerSet], judged: Iterable[Judgment]) -> list[Pair]:
    """Returns every pair of answer sets once; the candidate is the later one, unless the pair was judged otherwise."""
    known = {(judgment.candidate, judgment.opponent) for judgment in judged}
    pairs = []
    for number, later in enumerate(sets):
        for earlier in sets[:number]:
            turned = (earlier.model_hash, later.model_hash) in known
            turned = turned and (later.model_hash, earlier.model_hash) not in known
            candidate, opponent = (earlier, later) if turned else (later, earlier)
            pairs.append(Pair(candidate, opponent, home_of(candidate)))
    return pairs


def sampled(keys: Sequence[str], pair: Pair, seed: int) -> list[str]:
    """Returns prompts in the order in which a pair takes them when it may not take all: each pair its own."""
    return Random(f"{seed}/{'/'.join(sorted(pair.names))}").sample(sorted(keys), len(keys))


def no_answers(prompts: str) -> PosttrainError:
    """Returns the error of an entry that finds nothing to judge."""
    return EvalError(f"no answers to `{prompts}` as the suite asks them", hint="score the runs with this suite first")
