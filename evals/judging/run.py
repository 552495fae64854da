"""Judging: asks what has not been asked, keeps each verdict as it comes, and writes each candidate's figures once."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...chat_templates.errors import InputError, PosttrainError
from ...data_tools.ask import ask
from ...data_tools.errors import BusyError
from ...data_tools.files import locked
from ...data_tools.progress import Say
from ..answers import AnswerSet
from ..generations import PromptTask, define
from ..records import LOCKS, Score, ScoreStore, now
from ..spec import SuiteSpec
from ..stats.intervals import spelt
from .backends import OpenJudge
from .budget import Spending
from .judgments import Judgment, JudgmentStore, about
from .parse import Verdict
from .plan import JudgingPlan, home_of, open_plan
from .questions import Question, questions_of
from .scores import figures, record_of

_REASON = 4000
_TELL = 200  # questions from which on every tenth of them is worth a line


@dataclass
class JudgeReport:
    """What a call of :func:`judge` did.

    Attributes:
        done: The scores written now.
        judged: Judgments made now, ties of equal answers among them.
        skipped: Scores that had been written before.
        problems: What could not be judged, each in a line; the rest went on.
    """

    done: list[Score] = field(default_factory=list)
    judged: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Returns 1 if anything is left unjudged, else 0."""
        return 1 if self.problems else 0

    @property
    def lines(self) -> tuple[str, ...]:
        """Returns the outcome in words."""
        counts = f"{self.judged} judgments made, {len(self.done)} scores written, {self.skipped} written before"
        return (counts, *(f"not judged: {problem}" for problem in self.problems))


def judge(
    folders: Sequence[Path],
    suite: SuiteSpec,
    *,
    prompts: Sequence[PromptTask] | None = None,
    device: str | None = None,
    progress: Say = lambda line: None,
) -> JudgeReport:
    """Judges the answers that lie in run folders by every entry of a suite's ``judges:``.

    Each judgment is on the disk before the next is waited for, and what a server replied before that; so a kill loses
    what was in flight, and another call goes on from there. Several processes may judge: they take turns at a run
    folder. A candidate's score is written once all its questions have a final answer; what failed for the network's
    or the budget's sake is listed, and tried again by the next call.

    Args:
        folders: Run folders whose answers were saved by ``score``.
        suite: The suite.
        prompts: Its prompt sets as ``score`` has just read them; by default they are read.
        device: Where models in this process run; the first GPU if there is one.
        progress: Takes a line for each thing done.

    Returns:
        What was done and what could not be. One entry's failure does not stop the others.

    Raises:
        InputError: A judge is wrong: a prompt that does not render, a rule or a model that is not there. Nothing has
            been asked then.
    """
    report = JudgeReport()
    plans = _plans(folders, suite, prompts, device, report)
    judges = [one for plan in plans for one in plan.judges]
    for one in judges:
        one.check()
    with contextlib.ExitStack() as stack:
        if any(one.settings.backend in ("model", "reward") for one in judges):  # a server needs no such libraries
            from ..models import hub_access

            stack.enter_context(hub_access(suite.offline))
        for plan in plans:
            report.problems += plan.problems
            try:
                with _alone(plan, progress):
                    plan.load()
                    _ask_all(plan, report, progress)
                    if all(one.known_version() for one in plan.judges):
                        for candidate in plan.ranked:
                            _score(plan, candidate, report, progress)
            except PosttrainError as error:
                report.problems.append(f"{plan.entry.title}: {error}")
            for one in plan.judges:
                one.close()
    return report


def pending_judgments(folders: Sequence[Path], suite: SuiteSpec) -> int:
    """Returns how many judgments and scores are missing, without asking any judge.

    What cannot be judged is missing, too: a refused candidate is told of again by every call of :func:`judge`.

    Raises:
        InputError: An entry, a judge or a prompt set is wrong.
    """
    report = JudgeReport()
    count = 0
    for plan in _plans(folders, suite, None, None, report):
        missing = sum(_left(plan, one) for one in plan.judges)
        known = all(one.known_version() for one in plan.judges)
        unscored = sum(not plan.has_score(answers) for answers in plan.ranked) if known else 0
        count += (missing or unscored) + len(plan.problems)
    return count + len(report.problems)


def _plans(
    folders: Sequence[Path],
    suite: SuiteSpec,
    prompts: Sequence[PromptTask] | None,
    device: str | None,
    report: JudgeReport,
) -> list[JudgingPlan]:
    """Opens every entry; one without answers becomes a problem."""
    judged = {entry.prompts for entry in suite.judges}
    jobs = {job.spec.title: job for job in prompts or ()}
    for spec in suite.prompts:
        if spec.title in judged and spec.title not in jobs:
            jobs[spec.title] = define(spec, suite)
    plans = []
    for entry in suite.judges:
        try:
            plans.append(open_plan(entry, jobs[entry.prompts], folders, device))
        except InputError:
            raise
        except PosttrainError as error:
            report.problems.append(f"{entry.title}: {error}")
    return plans


def _left(plan: JudgingPlan, judge: OpenJudge) -> int:
    """Returns how many judgments a judge still has to make."""
    version = judge.known_version()
    if plan.budget is not None and version is None:
        return plan.budget
    left = len(plan.missing(plan.questions(judge, version)))
    return left if plan.budget is None else left + Spending(plan, judge).left()


@contextlib.contextmanager
def _alone(plan: JudgingPlan, progress: Say) -> Iterator[None]:
    """Holds a lock in every run folder that an entry writes to, always in the same order.

    It is one lock for all entries: two of them, or two suites, may ask the same judge the same.
    """
    with contextlib.ExitStack() as stack:
        for home in sorted(plan.homes, key=lambda home: str(home.resolve())):
            path = home / LOCKS / "judging"
            try:
                stack.enter_context(locked(path))
            except BusyError:
                progress(f"waiting for another process that judges {plan.entry.title}")
                stack.enter_context(locked(path, wait=True))
        yield


def _ask_all(plan: JudgingPlan, report: JudgeReport, progress: Say) -> None:
    """Asks every judge of an entry what is missing; of a budget's judgments a batch at a time."""
    lost: Counter[str] = Counter()
    for one in plan.judges:
        try:
            lost += _ask(plan, one, plan.missing(plan.questions(one, one.version)), report, progress)
            spending = Spending(plan, one) if plan.budget is not None else None
            while spending and (questions := spending.batch()):
                lost += _ask(plan, one, questions, report, progress)
                spending.failed |= {question.key for question in plan.missing(questions)}
        except PosttrainError as error:  # another judge, or a candidate that is judged, must not suffer from it
            report.problems.append(f"{plan.entry.title}: {error}")
    for reason, count in lost.items():
        report.problems.append(f"{plan.entry.title}: {count} questions: {reason}; judge again to try them again")


def _ask(
    plan: JudgingPlan, judge: OpenJudge, questions: Sequence[Question], report: JudgeReport, progress: Say
) -> Counter[str]:
    """Asks questions and keeps every judgment as it comes; returns how many gave none, by reason."""
    if not questions:
        return Counter()
    equal = {question.key: Verdict("judged", 0.5, reason="equal answers") for question in questions if question.equal}
    what = f"{plan.entry.title}: {judge.spec.name}: {len(questions)} judgments to make"
    progress(f"{what}, {len(equal)} of equal answers" if equal else what)
    log = _Log(plan, judge, questions, report, progress)
    log.keep(equal)
    for home in dict.fromkeys(question.pair.home for question in questions if question.key not in equal):
        ask([question for question in questions if question.pair.home == home], judge.backend(home), log)
    lost = [plan.judgments[q.key].reason if q.key in plan.judgments else "" for q in plan.missing(questions)]
    return Counter(reason.partition(":")[0] or "no reply" for reason in lost)


class _Log:
    """Where :func:`ask` keeps what a judge says: in the run folder of each question's candidate.

    Attributes:
        answers: The judgments made now that are final, by key.
    """

    def __init__(
        self,
        plan: JudgingPlan,
        judge: OpenJudge,
        questions: Sequence[Question],
        report: JudgeReport,
        progress: Say,
    ):
        self._plan, self._judge, self._report, self._progress = plan, judge, report, progress
        self._questions = {question.key: question for question in questions}
        self._done = 0
        self.answers: dict[str, Judgment] = {}

    def keep(self, verdicts: Mapping[str, Verdict]) -> None:
        """Writes judgments; what is not on the disk counts for nothing: no figure may rest on it."""
        new: dict[Path, list[Judgment]] = {}
        total = len(self._questions)
        for key, verdict in verdicts.items():
            self._done += 1
            if total >= _TELL and self._done % (total // 10) == 0:
                self._progress(f"{self._plan.entry.title}: {self._judge.spec.name}: {self._done} of {total}")
            judgment, old = _judgment(self._judge, self._questions[key], verdict), self._plan.judgments.get(key)
            if old is None or (old.status, old.reason) != (judgment.status, judgment.reason):
                new.setdefault(self._questions[key].pair.home, []).append(judgment)
            # Else it failed as it did before: one line is enough.
        for home, judgments in new.items():
            JudgmentStore(home).append(*judgments)
            self._plan.judgments.update({judgment.key: judgment for judgment in judgments})
            self._report.judged += sum(judgment.status not in ("failed", "rejected") for judgment in judgments)
        self.answers.update({key: self._plan.judgments[key] for key in verdicts if self._plan.is_final(key)})


def _judgment(judge: OpenJudge, question: Question, verdict: Verdict) -> Judgment:
    """Turns what a judge said of the answers in the order that it saw them into a judgment of the candidate."""
    pair = question.pair
    return Judgment(
        judge=judge.spec.name,
        judge_version=judge.version,
        backend=judge.settings.backend,
        judge_model=judge.model_name,
        order=question.order,
        repeat=question.repeat,
        status=verdict.status,
        preference=None if verdict.preference is None else question.of_candidate(verdict.preference),
        rating=verdict.rating,
        reason=verdict.reason[:_REASON].encode(errors="replace").decode(),
        prompt_tokens=verdict.prompt_tokens,
        completion_tokens=verdict.completion_tokens,
        cost=verdict.cost,
        seconds=None if verdict.seconds is None else round(verdict.seconds, 4),
        created=now(),
        **about(pair.candidate, question.answer, pair.opponent, question.other, question.key_of),
    )


def _score(plan: JudgingPlan, candidate: AnswerSet, report: JudgeReport, progress: Say) -> None:
    """Writes a candidate's figures, if they are whole and not there yet."""
    pairs = [pair for pair in plan.pairs() if candidate.model_hash in pair.names]
    asked = [question.key for one in plan.judges for p in pairs for question in questions_of(one.spec, p, one.version)]
    said = [plan.judgments[key] for key in asked if plan.is_final(key)]
    if len(said) < len(asked) if plan.budget is None else any(_left(plan, one) for one in plan.judges):
        return
    if plan.has_score(candidate):
        report.skipped += 1
        return
    title = plan.entry.title
    if plan.rejects_too_much(said):
        reasons = [judgment.reason for judgment in said if judgment.status == "rejected"]
        what = f"{candidate.name}: the server rejected {len(reasons)} of {len(said)} questions: {reasons[0]}"
        share = f"more than `max_rejected_share` ({plan.entry.max_rejected_share:g})"
        report.problems.append(f"{title}: {what}; {share}; judge again to try them again")
        return
    result = figures(plan, candidate, said)
    if result is None:
        what = f"{candidate.name}: none of {len(said)} judgments gave a verdict"
        if not asked:
            what = f"{candidate.name}: no other model has answered the same prompts; name another run to compare with"
        elif any(one.way == "logprobs" for one in plan.judges):
            what += "; a judge that thinks or explains before its label needs `answer_by: text`"
        report.problems.append(f"{title}: {what}")
        return
    record, home = record_of(plan, candidate, said, result), home_of(candidate)
    if ScoreStore(home).append(record, result.samples):
        report.done.append(record)
        first = result.metrics[0]
        figure = f"{spelt(first, result.detail)} (n={first.n})"
        progress("; ".join([f"{candidate.name}: {title}: {figure}", *result.notes]))
