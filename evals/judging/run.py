"""Judging: asks what has not been asked, keeps each verdict as it comes, and writes each candidate's figures once."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ...chat_templates.errors import InputError, PosttrainError
from ...data_tools.errors import BusyError
from ...data_tools.files import locked, write_atomic
from .. import definitions
from ..answers import AnswerSet
from ..generations import Prompts, define
from ..records import LOCKS, Result, Score, ScoreStore
from ..spec import SuiteSpec
from ..stats.intervals import spelt
from . import scores as judge_scores
from .bench import Bench
from .budget import Spending
from .judgments import Judgment, JudgmentStore
from .parse import Verdict
from .plan import Plan, open_plan
from .questions import Question, home_of, questions_of, ratings_of

_KEEP = 256  # judgments of a local judge between two writes: what a kill loses at most
_REASON = 4000
_TELL = 200  # questions from which on every tenth of them is worth a line
Progress = Callable[[str], None]


@dataclass(frozen=True)
class JudgeReport:
    """What a call of :func:`judge` did.

    Attributes:
        done: The scores written now.
        judged: Judgments made now, ties of equal answers among them.
        skipped: Scores that had been written before.
        problems: What could not be judged, each in a line; the rest went on.
    """

    done: tuple[Score, ...] = ()
    judged: int = 0
    skipped: int = 0
    problems: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """Returns 1 if anything is left unjudged, else 0."""
        return 1 if self.problems else 0

    @property
    def lines(self) -> tuple[str, ...]:
        """Returns the outcome in words."""
        counts = f"{self.judged} judgments made, {len(self.done)} scores written, {self.skipped} written before"
        return (counts, *(f"not judged: {problem}" for problem in self.problems))


@dataclass
class _Session:
    """The state of one call."""

    progress: Progress
    suite: SuiteSpec
    done: list[Score] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    judged: int = 0
    skipped: int = 0


def judge(
    folders: Sequence[Path], suite: SuiteSpec, *, device: str | None = None, progress: Progress = lambda line: None
) -> JudgeReport:
    """Judges the answers that lie in run folders by every entry of a suite's ``judges:``.

    Each judgment is on the disk before the next is waited for, and what a server replied before that; so a kill loses
    what was in flight, and another call goes on from there. Several processes may judge: they take turns at a run
    folder. A candidate's score is written once all its questions have a final answer; what failed for the network's
    or the budget's sake is listed, and tried again by the next call.

    Args:
        folders: Run folders whose answers were saved by ``score``.
        suite: The suite.
        device: Where models in this process run; the first GPU if there is one.
        progress: Takes a line for each thing done.

    Returns:
        What was done and what could not be. One entry's failure does not stop the others.

    Raises:
        InputError: A judge is wrong: a prompt that does not render, a rule or a model that is not there. Nothing has
            been asked then.
    """
    session = _Session(progress, suite)
    plans = list(_plans(session, folders, suite, device))
    for plan in plans:
        for bench in plan.benches:
            bench.check()
    for plan in plans:
        session.problems += plan.problems
        try:
            with _alone(plan, progress), _offline(plan, suite):
                plan.load()
                _work(session, plan)
        except PosttrainError as error:
            session.problems.append(f"{plan.entry.title}: {error}")
        for bench in plan.benches:
            bench.close()
    return JudgeReport(tuple(session.done), session.judged, session.skipped, tuple(session.problems))


def pending_judgments(folders: Sequence[Path], suite: SuiteSpec) -> int:
    """Returns how many judgments and scores are missing, without asking any judge.

    What cannot be judged is missing, too: a refused candidate is told of again by every call of :func:`judge`.

    Raises:
        InputError: An entry, a judge or a prompt set is wrong.
    """
    session = _Session(lambda line: None, suite)
    count = 0
    for plan in _plans(session, folders, suite, None):
        missing = sum(_left(plan, bench) for bench in plan.benches)
        known = all(bench.known_version() for bench in plan.benches)
        unscored = sum(not plan.has_score(answers) for answers in plan.ranked) if known else 0
        count += (missing or unscored) + len(plan.problems)
    return count + len(session.problems)


def _plans(session: _Session, folders: Sequence[Path], suite: SuiteSpec, device: str | None) -> Iterator[Plan]:
    """Opens every entry; one without answers becomes a problem."""
    jobs: dict[str, Prompts] = {}
    for spec in suite.prompts:
        if any(entry.prompts == spec.title for entry in suite.judges):
            jobs[spec.title] = define(spec, suite)
    for entry in suite.judges:
        try:
            yield open_plan(entry, jobs, folders, device)
        except InputError:
            raise
        except PosttrainError as error:
            session.problems.append(f"{entry.title}: {error}")


def _left(plan: Plan, bench: Bench) -> int:
    """Returns how many judgments a judge still has to make."""
    version = bench.known_version()
    if plan.budget is None:
        return len(plan.missing(version, plan.questions(bench)))
    if version is None:
        return _share(plan)
    return Spending(plan, bench, _share(plan)).left() + len(plan.missing(version, plan.null_questions(bench)))


def _share(plan: Plan) -> int:
    """Returns how many judgments of a budget each member of a jury makes."""
    return (plan.budget or 0) // len(plan.benches)


@contextlib.contextmanager
def _alone(plan: Plan, progress: Progress) -> Iterator[None]:
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


def _offline(plan: Plan, suite: SuiteSpec) -> contextlib.AbstractContextManager[None]:
    """Closes the Hub to models in this process, if the suite says so; a server needs no such libraries."""
    if not any(bench.judge.settings.backend in ("model", "reward") for bench in plan.benches):
        return contextlib.nullcontext()
    from ..models import hub_access

    return hub_access(suite.offline)


def _work(session: _Session, plan: Plan) -> None:
    """Asks what is missing of one entry and writes the scores that are whole."""
    lost: Counter[str] = Counter()
    for bench in plan.benches:
        try:
            if plan.budget is None:
                lost += _ask(session, plan, bench, plan.missing(bench.version, plan.questions(bench)))
            else:
                lost += _spend(session, plan, bench)
        except PosttrainError as error:  # another judge, or a candidate that is judged, must not suffer from it
            session.problems.append(f"{plan.entry.title}: {error}")
    for reason, count in lost.items():
        session.problems.append(f"{plan.entry.title}: {count} questions: {reason}; judge again to try them again")
    if all(bench.known_version() for bench in plan.benches):
        for answers in plan.ranked:
            _score(session, plan, answers)


def _ask(session: _Session, plan: Plan, bench: Bench, questions: Sequence[Question]) -> Counter[str]:
    """Asks questions and keeps every judgment as it comes; returns how many gave none, by reason."""
    if not questions:
        return Counter()
    asked = [question for question in questions if not question.equal]
    what = f"{plan.entry.title}: {bench.judge.name}: {len(questions)} judgments to make"
    session.progress(f"{what}, {len(questions) - len(asked)} of equal answers" if len(asked) < len(questions) else what)
    with _keeping(session, plan, bench, len(questions)) as take:
        for question in questions:
            if question.equal:
                take(question, Verdict("judged", 0.5, reason="equal answers"))
        for home in dict.fromkeys(question.home for question in asked):
            bench.ask(home, [question for question in asked if question.home == home], take)
    lost = [question.key(bench.version) for question in plan.missing(bench.version, questions)]
    reasons = (plan.judgments[key].reason if key in plan.judgments else "no reply" for key in lost)
    return Counter(reason.partition(":")[0] or "no reply" for reason in reasons)


@contextlib.contextmanager
def _keeping(session: _Session, plan: Plan, bench: Bench, total: int) -> Iterator[Callable[[Question, Verdict], None]]:
    """Gives a function that keeps verdicts: a server's at once, since they were paid for, others in batches."""
    done = 0
    size = 1 if bench.judge.settings.backend == "endpoint" else _KEEP
    waiting: list[tuple[Question, Judgment]] = []

    def flush() -> None:
        while waiting:
            home = waiting[0][0].home
            kept = [judgment for question, judgment in waiting if question.home == home]
            JudgmentStore(home).append(*kept)  # what is not on the disk counts for nothing: no figure may rest on it
            waiting[:] = [(question, judgment) for question, judgment in waiting if question.home != home]
            plan.judgments.update({judgment.key: judgment for judgment in kept})
            session.judged += sum(judgment.status not in ("failed", "rejected") for judgment in kept)

    def take(question: Question, verdict: Verdict) -> None:
        nonlocal done
        done += 1
        if total >= _TELL and done % (total // 10) == 0:
            session.progress(f"{plan.entry.title}: {bench.judge.name}: {done} of {total}")
        judgment = _judgment(bench, question, verdict)
        old = plan.judgments.get(judgment.key)
        if old is not None and (old.status, old.reason) == (judgment.status, judgment.reason):
            return  # it failed as it did before: one line is enough
        waiting.append((question, judgment))
        if len(waiting) >= size:
            flush()

    try:
        yield take
    finally:
        flush()


def _judgment(bench: Bench, question: Question, verdict: Verdict) -> Judgment:
    """Turns what a judge said of the answers in the order that it saw them into a judgment of the candidate."""
    candidate, answer, opponent, other = question.candidate, question.answer, question.opponent, question.other
    preference = verdict.preference
    if preference is not None and question.order == "candidate-second":
        preference = 1 - preference
    return Judgment(
        judge=bench.judge.name,
        judge_version=bench.version,
        backend=bench.judge.settings.backend,
        judge_model=bench.model_name,
        task=candidate.task,
        task_hash=candidate.task_hash,
        prompt_id=answer.prompt_id,
        prompt_key=answer.prompt_key,
        category=answer.category,
        sample=answer.sample,
        candidate=candidate.model_hash,
        candidate_name=candidate.name,
        candidate_answer=question.key_of(answer),
        candidate_length=answer.characters,
        opponent=opponent.model_hash if opponent else None,
        opponent_name=opponent.name if opponent else None,
        opponent_answer=question.key_of(other) if other else None,
        opponent_length=other.characters if other else None,
        order=question.order,
        repeat=question.repeat,
        status=verdict.status,
        preference=preference,
        rating=verdict.rating,
        reason=verdict.reason[:_REASON].encode(errors="replace").decode(),
        prompt_tokens=verdict.prompt_tokens,
        completion_tokens=verdict.completion_tokens,
        cost=verdict.cost,
        seconds=None if verdict.seconds is None else round(verdict.seconds, 4),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _spend(session: _Session, plan: Plan, bench: Bench) -> Counter[str]:
    """Makes a budget of judgments, a batch at a time."""
    lost = _ask(session, plan, bench, plan.missing(bench.version, plan.null_questions(bench)))
    spending = Spending(plan, bench, _share(plan))
    while questions := spending.batch():
        lost += _ask(session, plan, bench, questions)
        spending.failed |= {question.key(bench.version) for question in plan.missing(bench.version, questions)}
    return lost


def _score(session: _Session, plan: Plan, candidate: AnswerSet) -> None:
    """Writes a candidate's figures, if they are whole and not there yet: the samples, then the line that counts."""
    asked = [(bench, question.key(bench.version)) for bench in plan.benches for question in _of(plan, bench, candidate)]
    whole = all(plan.is_final(key) for _, key in asked)
    if plan.budget is not None:
        whole = all(_left(plan, bench) == 0 for bench in plan.benches)
    if not whole:
        return
    if plan.has_score(candidate):
        session.skipped += 1
        return
    said = [plan.judgments[key] for _, key in asked if plan.is_final(key)]
    if plan.rejects_too_much(said):
        reasons = [judgment.reason for judgment in said if judgment.status == "rejected"]
        what = f"{candidate.name}: the server rejected {len(reasons)} of {len(said)} questions: {reasons[0]}"
        share = f"more than `max_rejected_share` ({plan.entry.max_rejected_share:g})"
        session.problems.append(f"{plan.entry.title}: {what}; {share}; judge again to try them again")
        return
    result = judge_scores.result(
        judge_scores.Judged(plan.entry, plan.benches, candidate, plan.opponents(candidate), said), plan.notes
    )
    if result is None:
        what = f"{candidate.name}: none of {len(said)} judgments gave a verdict"
        if not asked:
            what = f"{candidate.name}: no other model has answered the same prompts; name another run to compare with"
        elif any(bench.way == "logprobs" for bench in plan.benches):
            what += "; a judge that thinks or explains before its label needs `answer_by: text`"
        session.problems.append(f"{plan.entry.title}: {what}")
        return
    record = _record(plan, candidate, result, sum(judgment.seconds or 0.0 for judgment in said))
    home = home_of(candidate)
    write_atomic(home / record.samples_name, result.samples)
    if ScoreStore(home).append(record):
        session.done.append(record)
        first = result.metrics[0]
        figure = f"{spelt(first, result.detail)} (n={first.n})"
        session.progress("; ".join([f"{candidate.name}: {plan.entry.title}: {figure}", *result.notes]))


def _of(plan: Plan, bench: Bench, candidate: AnswerSet) -> list[Question]:
    """Returns what a judge is asked about one candidate, whichever side of a pair it is on."""
    if plan.rating:
        return ratings_of(bench.judge, candidate)
    pairs = [pair for pair in plan.pairs() if candidate.model_hash in pair.names]
    return [question for pair in pairs for question in questions_of(bench.judge, pair)]


def _record(plan: Plan, candidate: AnswerSet, result: Result, seconds: float) -> Score:
    """Returns a candidate's line: of the answers' own but for what the judges decide."""
    return replace(
        plan.answered(candidate),
        task=plan.entry.title,
        task_hash=plan.score_hash(candidate),
        num_fewshot=None,
        metrics=result.metrics,
        judge_version=plan.judge_version,
        versions=definitions.versions(),
        seconds=round(seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=result.notes,
        detail=result.detail,
    )
