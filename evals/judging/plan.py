"""One entry of a suite's ``judges:`` opened over run folders: who is compared with whom, and what has been said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from ...chat_templates.errors import InputError
from ...data_tools.files import hash_json
from ..answers import AnswerSet, answer_scores, answers_of, find_answers
from ..errors import EvalError
from ..judges import JudgingSpec, PairBudget
from ..records import Score, ScoreStore
from .backends import OpenJudge, open_judges
from .judgments import NULL, Judgment, JudgmentStore
from .questions import Pair, Question, questions_of

if TYPE_CHECKING:
    from ..generations import PromptTask

FINAL = ("judged", "unparsed", "refused", "truncated", "rejected")
"""Statuses of judgments that asking again would not change; what failed is tried again."""
NULL_TEXT = "Thank you for your question. I hope that this helps."


@dataclass
class JudgingPlan:
    """An entry, its judges, and the answers that they are to judge.

    Attributes:
        entry: What the suite says.
        job: Its prompt set.
        judges: The judge, or the members of its jury.
        sets: The candidates, and in ``pairs: all`` their opponents.
        baseline: Whom they are compared with, or None.
        null: The null answer to some of the prompts beside the baseline, or None.
        notes: What of the baseline could not be joined.
        problems: Candidates that were left out, and why.
        judgments: What has been said, by key, over all run folders.
    """

    entry: JudgingSpec
    job: "PromptTask"
    judges: tuple[OpenJudge, ...]
    sets: tuple[AnswerSet, ...]
    baseline: AnswerSet | None
    null: Pair | None
    notes: tuple[str, ...]
    problems: tuple[str, ...]
    judgments: dict[str, Judgment] = field(default_factory=dict)
    _pairs: list[Pair] | None = None

    @property
    def homes(self) -> list[Path]:
        """Returns the run folders that keep the judgments, each once, however it was spelt: each is locked once."""
        return _homes(self.sets, self.null and self.null.home)

    @property
    def budget(self) -> int | None:
        """Returns how many judgments of all pairs each member of a jury may make, or None."""
        pairs = self.entry.pairs
        return pairs.budget // len(self.judges) if isinstance(pairs, PairBudget) else None

    @property
    def rating(self) -> bool:
        """Says whether answers are rated, not compared."""
        return self.judges[0].settings.kind == "rating"

    @property
    def ranked(self) -> list[AnswerSet]:
        """Returns the candidates that get a row: all but the baseline that the others are compared with."""
        if self.entry.pairs != "baseline" or self.baseline is None:
            return list(self.sets)
        return [answers for answers in self.sets if answers.model_hash != self.baseline.model_hash]

    # --- what has been said ---

    def load(self) -> None:
        """Reads what has been said; where a server rejected too much to give a score, that is asked again."""
        self.judgments = {j.key: j for home in self.homes for j in JudgmentStore(home).load()}
        self._pairs = None
        about: dict[str | None, list[Judgment]] = {}
        for judgment in self._said():
            for model in (judgment.candidate, judgment.opponent):
                about.setdefault(model, []).append(judgment)
        for answers in self.ranked:
            said = about.get(answers.model_hash, [])
            if self.rejects_too_much(said):
                for judgment in said:
                    if judgment.status == "rejected":
                        self.judgments.pop(judgment.key, None)

    def _said(self) -> list[Judgment]:
        """Returns what the entry's judges have said of its prompt set."""
        known = {judge.known_version() for judge in self.judges}
        return [j for j in self.judgments.values() if j.task == self.entry.prompts and j.judge_version in known]

    def rejects_too_much(self, said: Sequence[Judgment]) -> bool:
        """Says whether the judges' servers rejected more of the questions about a candidate than the entry allows."""
        rejected = sum(judgment.status == "rejected" for judgment in said)
        return rejected > self.entry.max_rejected_share * len(said)

    def is_final(self, key: str) -> bool:
        """Says whether a question needs no more asking."""
        found = self.judgments.get(key)
        return found is not None and found.status in FINAL

    # --- what is to be asked ---

    def pairs(self) -> list[Pair]:
        """Returns the pairs to compare, or the answer sets to rate; the first of each keeps the judgments."""
        if self._pairs is None:
            base = self.baseline
            if self.rating:
                self._pairs = [Pair(answers, None, home_of(answers)) for answers in self.sets]
            elif self.entry.pairs == "baseline":
                self._pairs = [Pair(answers, base, home_of(answers)) for answers in self.ranked]
            else:
                self._pairs = self._all_pairs()
        return self._pairs

    def _all_pairs(self) -> list[Pair]:
        """Returns every pair once; the candidate is the later one, unless the pair was judged otherwise."""
        known = {(said.candidate, said.opponent) for said in self._said()}
        pairs = []
        for number, later in enumerate(self.sets):
            for earlier in self.sets[:number]:
                turned = (earlier.model_hash, later.model_hash) in known
                turned = turned and (later.model_hash, earlier.model_hash) not in known
                candidate, opponent = (earlier, later) if turned else (later, earlier)
                pairs.append(Pair(candidate, opponent, home_of(candidate)))
        return pairs

    def questions(self, judge: OpenJudge, version: str | None) -> list[Question]:
        """Returns all that a version of a judge is asked; of a budget what is asked besides: of the null answer."""
        pairs = [*(self.pairs() if self.budget is None else []), *([self.null] if self.null else [])]
        return [question for pair in pairs for question in questions_of(judge.spec, pair, version)]

    def missing(self, questions: Iterable[Question]) -> list[Question]:
        """Returns the questions without a final judgment; all of them where the judge's version is not known."""
        return [question for question in questions if not self.is_final(question.key)]

    # --- what is to be written ---

    def opponents(self, candidate: AnswerSet) -> list[AnswerSet]:
        """Returns whom a candidate is compared with."""
        sides = [(pair.candidate, pair.opponent) for pair in self.pairs() if pair.opponent is not None]
        sides += [(b, a) for a, b in sides]
        return [other for one, other in sides if one is candidate]

    def score_hash(self, candidate: AnswerSet) -> str:
        """Returns the hash of what decides a candidate's figures, but its weights."""
        pairs = self.entry.pairs
        by_end = any(judge.spec.by_end for judge in self.judges)
        # The weights alone do not tell an opponent's answers, since a chat template can be changed.
        others = [
            [other.model_hash, hash_json([answer.ended_key if by_end else answer.key for answer in other.answers])]
            for other in self.opponents(candidate)
        ]
        return hash_json(
            {
                "prompts": self.job.task_hash,
                "judges": [[judge.spec.name, judge.version] for judge in self.judges],
                "vote": ("members" if self.rating else self.judges[0].settings.vote) if len(self.judges) > 1 else None,
                "asked": [[judge.settings.orders, judge.settings.repeats] for judge in self.judges],
                "pairs": None if self.rating else pairs if isinstance(pairs, str) else pairs.model_dump(),
                "opponents": sorted(others),
            }
        )

    @property
    def judge_version(self) -> str:
        """Returns the version of the judge, or of the jury."""
        versions = [judge.version for judge in self.judges]
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


def open_plan(entry: JudgingSpec, job: "PromptTask", folders: Sequence[Path], device: str | None) -> JudgingPlan:
    """Finds an entry's answers and opens its judges; nothing is asked.

    Args:
        entry: What the suite says.
        job: Its prompt set.
        folders: Run folders.
        device: Where a model in this process runs.

    Raises:
        InputError: The entry or a judge is wrong.
        EvalError: There are no answers to judge.
    """
    places = {Path(folder).resolve(): number for number, folder in reversed(list(enumerate(folders)))}
    found = find_answers(sorted(places, key=places.__getitem__), entry.prompts, job.task_hash)
    if not found:
        hint = "score the runs with this suite first"
        raise EvalError(f"no answers to `{entry.prompts}` as the suite asks them", hint=hint)
    sets = sorted(found, key=lambda s: (places[home_of(s)], s.step if s.step is not None else 1 << 62))
    baseline, notes = None, ()
    if entry.baseline is not None:
        path = Path(entry.baseline).resolve()  # one folder must not be two, whatever its paths: each is locked once
        asked = {"task": entry.prompts, "task_hash": job.task_hash, "thinking": job.spec.thinking}
        baseline, notes = answers_of(path, job.prompts, **asked)
    null = _null_answers(entry, baseline, entry.members[0].settings.seed) if baseline else None
    judges = open_judges(
        entry.title, entry.members, _homes(sets, baseline.folder if baseline and null else None), device
    )
    sets, problems = _impartial(entry, judges, sets, baseline)
    # The null answer's judgments lie beside the baseline's, if it is a run's.
    pair = Pair(null, baseline, baseline.folder or home_of(sets[0])) if baseline and null else None
    plan = JudgingPlan(entry, job, judges, tuple(sets), baseline, pair, notes, tuple(problems))
    plan.load()
    return plan


def home_of(answers: AnswerSet) -> Path:
    """Returns the run folder of answers that are no file's."""
    assert answers.folder is not None, "candidates come from run folders"
    return answers.folder


def _homes(sets: Sequence[AnswerSet], another: Path | None) -> list[Path]:
    homes: dict[Path, Path] = {}
    for home in (*map(home_of, sets), *([another] if another else [])):
        homes.setdefault(home.resolve(), home)
    return list(homes.values())


def _null_answers(entry: JudgingSpec, baseline: AnswerSet, seed: int) -> AnswerSet | None:
    """Returns the null answer to some of a baseline's prompts, if the entry wants it.

    Null models win where a judge is gullible (Zheng et al. 2024, arXiv:2410.07137); this one does not even try.
    """
    first = {answer.prompt_key: answer for answer in reversed(baseline.answers)}
    size = int(entry.canary or 0)
    if entry.canary is None or entry.canary is True:
        size = max(5, min(50, len(first) // 10)) if entry.canary or entry.pairs == "baseline" else 0
    if not size:
        return None
    answers = []
    for key in Random(f"{seed}/{baseline.model_hash}").sample(sorted(first), min(size, len(first))):
        texts = (NULL_TEXT,) * len(first[key].turns)
        silent = replace(first[key], sample=0, texts=texts, raw=texts, finish=("stop",) * len(texts))
        answers.append(replace(silent, prompt_tokens=0, completion_tokens=0, seconds=0.0))
    return AnswerSet(NULL, NULL, None, NULL, baseline.task, NULL, None, tuple(answers))


def _impartial(
    entry: JudgingSpec, judges: Sequence[OpenJudge], sets: Sequence[AnswerSet], baseline: AnswerSet | None
) -> tuple[list[AnswerSet], list[str]]:
    """Returns the candidates that every judge can be impartial about, and what is wrong with the others."""
    kept, problems = [], []
    for answers in sets:
        try:
            for judge in judges:
                judge.refuse(answers)
            kept.append(answers)
        except InputError as error:
            problems.append(f"{entry.title}: {error}")
    if baseline is not None:
        for judge in judges:
            judge.refuse(baseline)
    if not kept:
        raise EvalError("\n".join(problems))
    return kept, problems
