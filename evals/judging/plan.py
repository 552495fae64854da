"""One entry of a suite's ``judges:`` opened over run folders: what is to be asked, and what has been."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...chat_templates.errors import InputError
from ...data_tools.files import hash_json
from ..answers import AnswerSet, answer_scores
from ..errors import EvalError, SuiteError
from ..judges import JudgingSpec, PairBudget, load_judges
from ..records import Score, ScoreStore
from .bench import Bench
from .judgments import Judgment, JudgmentStore
from .questions import (
    Pair,
    Question,
    all_pairs,
    baseline_of,
    candidates_of,
    home_of,
    no_answers,
    null_answers,
    questions_of,
    ratings_of,
)

if TYPE_CHECKING:
    from ..generations import Prompts

FINAL = ("judged", "unparsed", "refused", "truncated", "rejected")
"""Statuses of judgments that asking again would not change; what failed is tried again."""


@dataclass
class Plan:
    """An entry, its judges, and the answers that they are to judge.

    Attributes:
        entry: What the suite says.
        job: Its prompt set.
        benches: The judge, or the members of its jury.
        sets: The candidates, and in ``pairs: all`` their opponents.
        baseline: Whom they are compared with, or None.
        null: The null answer to some of the prompts, or None.
        notes: What of the baseline could not be joined.
        problems: Candidates that were left out, and why.
        judgments: What has been said, by key, over all run folders.
    """

    entry: JudgingSpec
    job: "Prompts"
    benches: tuple[Bench, ...]
    sets: tuple[AnswerSet, ...]
    baseline: AnswerSet | None
    null: AnswerSet | None
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    judgments: dict[str, Judgment] = field(default_factory=dict)
    _pairs: list[Pair] | None = None

    @property
    def homes(self) -> list[Path]:
        """Returns the run folders that keep the judgments, each once, however it was spelt: each is locked once."""
        found = [home_of(answers) for answers in self.sets]
        homes: dict[Path, Path] = {}
        for home in (*found, *([self.null_home] if self.null else [])):
            homes.setdefault(home.resolve(), home)
        return list(homes.values())

    @property
    def null_home(self) -> Path:
        """Returns the folder that keeps the judgments of the null answer: the baseline's, if it is a run's."""
        folder = self.baseline.folder if self.baseline else None
        return folder or home_of(self.sets[0])

    @property
    def budget(self) -> int | None:
        """Returns how many judgments may be made of all pairs, or None."""
        return self.entry.pairs.budget if isinstance(self.entry.pairs, PairBudget) else None

    @property
    def rating(self) -> bool:
        """Says whether answers are rated, not compared."""
        return self.benches[0].judge.settings.kind == "rating"

    def load(self) -> None:
        """Reads what has been said; where a server rejected too much to give a score, that is asked again."""
        self.judgments = {j.key: j for home in self.homes for j in JudgmentStore(home).load()}
        self._pairs = None
        known, about = self._known_versions, {}
        for judgment in self.judgments.values():
            if judgment.task == self.entry.prompts and judgment.judge_version in known:
                for model in (judgment.candidate, judgment.opponent):
                    about.setdefault(model, []).append(judgment)
        for answers in self.ranked:
            said = about.get(answers.model_hash, [])
            if self.rejects_too_much(said):
                for judgment in said:
                    if judgment.status == "rejected":
                        self.judgments.pop(judgment.key, None)

    @property
    def _known_versions(self) -> set[str | None]:
        return {bench.known_version() for bench in self.benches}

    def rejects_too_much(self, said: Sequence[Judgment]) -> bool:
        """Says whether the judges' servers rejected more of the questions about a candidate than the entry allows."""
        rejected = sum(judgment.status == "rejected" for judgment in said)
        return rejected > self.entry.max_rejected_share * len(said)

    def pairs(self) -> list[Pair]:
        """Returns the pairs to compare; the candidate of each is whose folder keeps the judgments."""
        if self._pairs is None:
            self._pairs = self._find_pairs()
        return self._pairs

    def _find_pairs(self) -> list[Pair]:
        if self.rating:
            return []
        if self.entry.pairs == "baseline":
            assert self.baseline is not None, "checked when the suite was read"
            base = self.baseline
            return [Pair(s, base, home_of(s)) for s in self.sets if s.model_hash != base.model_hash]
        known = self._known_versions
        return all_pairs(self.sets, (j for j in self.judgments.values() if j.judge_version in known))

    def questions(self, bench: Bench) -> list[Question]:
        """Returns everything that a judge is asked, the null answer included; of a budget's pairs everything."""
        if self.rating:
            return [question for answers in self.sets for question in ratings_of(bench.judge, answers)]
        asked = [question for pair in self.pairs() for question in questions_of(bench.judge, pair)]
        return asked + self.null_questions(bench)

    def null_questions(self, bench: Bench) -> list[Question]:
        """Returns what a judge is asked of the null answer."""
        if self.null is None or self.baseline is None:
            return []
        return questions_of(bench.judge, Pair(self.null, self.baseline, self.null_home))

    def missing(self, version: str | None, questions: Iterable[Question]) -> list[Question]:
        """Returns the questions without a final judgment; all of them where the judge's version is not known."""
        if version is None:
            return list(questions)
        return [question for question in questions if not self.is_final(question.key(version))]

    def is_final(self, key: str) -> bool:
        """Says whether a question needs no more asking."""
        found = self.judgments.get(key)
        return found is not None and found.status in FINAL

    def opponents(self, candidate: AnswerSet) -> list[AnswerSet]:
        """Returns whom a candidate is compared with."""
        sides = [(pair.candidate, pair.opponent) for pair in self.pairs()]
        sides += [(b, a) for a, b in sides]
        return [other for one, other in sides if one is candidate]

    def score_hash(self, candidate: AnswerSet) -> str:
        """Returns the hash of what decides a candidate's figures, but its weights."""
        entry = self.entry
        settings = [[b.judge.settings.orders, b.judge.settings.repeats] for b in self.benches]
        pairs = entry.pairs if isinstance(entry.pairs, str) else entry.pairs.model_dump()
        by_end = any(bench.judge.by_end for bench in self.benches)
        return hash_json(
            {
                "prompts": self.job.task_hash,
                "judges": [[bench.judge.name, bench.version] for bench in self.benches],
                "vote": self.benches[0].judge.settings.vote if len(self.benches) > 1 else None,
                "asked": settings,
                "pairs": None if self.rating else pairs,
                "opponents": sorted([other.model_hash, _said(other, by_end)] for other in self.opponents(candidate)),
            }
        )

    @property
    def judge_version(self) -> str:
        """Returns the version of the judge, or of the jury."""
        versions = [bench.version for bench in self.benches]
        return versions[0] if len(versions) == 1 else hash_json(versions)

    def answered(self, candidate: AnswerSet) -> Score:
        """Returns the score that stands for a candidate's answers: the last, if another template made them anew."""
        scores = answer_scores(home_of(candidate), self.entry.prompts)
        mine = (candidate.model_hash, candidate.task_hash)
        return next(score for score in reversed(scores) if (score.model, score.task_hash) == mine)

    def has_score(self, candidate: AnswerSet) -> bool:
        """Says whether a candidate's figures are written."""
        told = self.answered(candidate)
        key = (candidate.model_hash, self.entry.title, self.score_hash(candidate), told.template_fingerprint)
        written = ScoreStore(home_of(candidate)).keys()
        return key in written

    @property
    def ranked(self) -> list[AnswerSet]:
        """Returns the candidates that get a row: all but the baseline that the others are compared with."""
        if self.entry.pairs != "baseline" or self.baseline is None:
            return list(self.sets)
        return [s for s in self.sets if s.model_hash != self.baseline.model_hash]


def _said(answers: AnswerSet, by_end: bool) -> str:
    """Returns a hash of answers; the weights alone do not tell them, since a chat template can be changed."""
    return hash_json([answer.ended_key if by_end else answer.key for answer in answers.answers])


def open_plan(
    entry: JudgingSpec, jobs: Mapping[str, "Prompts"], folders: Sequence[Path], device: str | None = None
) -> Plan:
    """Finds an entry's answers and opens its judges; nothing is asked.

    Args:
        entry: What the suite says.
        jobs: The prompt sets of the suite by name.
        folders: Run folders.
        device: Where a model in this process runs.

    Raises:
        InputError: The entry or a judge is wrong.
        EvalError: There are no answers to judge.
    """
    job = jobs[entry.prompts]
    places = dict.fromkeys(Path(folder).resolve() for folder in folders)
    sets = candidates_of(places, entry.prompts, job.task_hash)
    if not sets:
        raise no_answers(entry.prompts)
    judges = load_judges(entry)
    baseline, notes = baseline_of(entry, job) if entry.baseline is not None else (None, ())
    size = entry.canary_size(len({answer.prompt_key for answer in baseline.answers})) if baseline else 0
    null = null_answers(baseline, size, judges[0].settings.seed) if baseline and size else None
    plan = Plan(entry, job, (), tuple(sets), baseline, null, notes)
    names = [entry.title] if len(judges) == 1 else [f"{entry.title}-{judge.name}" for judge in judges]
    plan.benches = tuple(Bench(j, name, plan.homes, device) for j, name in zip(judges, names, strict=True))
    known = [version for bench in plan.benches if (version := bench.known_version()) is not None]
    if len(set(known)) < len(known):
        hint = "give them different models, prompts or seeds"
        raise SuiteError("two members of the jury are the same judge", where=entry.title, hint=hint)
    _refuse(plan)
    plan.load()
    return plan


def _refuse(plan: Plan) -> None:
    """Leaves out candidates about which a judge cannot be impartial."""
    kept, problems = [], []
    for answers in plan.sets:
        try:
            for bench in plan.benches:
                bench.refuse(answers)
            kept.append(answers)
        except InputError as error:
            problems.append(f"{plan.entry.title}: {error}")
    if plan.baseline is not None:
        for bench in plan.benches:
            bench.refuse(plan.baseline)
    if not kept:
        raise EvalError("\n".join(problems))
    plan.sets, plan.problems = tuple(kept), tuple(problems)
