"""Scoring: finds the checkpoints of runs that are not yet scored, scores them once, loses nothing when killed."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError
from ..data_tools.files import hash_json, locked, write_atomic
from . import classification, definitions, pairs, perplexity
from .checkpoints import verify
from .classification import Labelled
from .definitions import Definition
from .errors import SuiteError
from .models import LoadedModel, hub_access, load_model, template_of
from .pairs import Pairs
from .perplexity import Text
from .records import LOCKS, Result, Score, ScoreStore
from .spec import Chat, SuiteSpec, load_suite
from .targets import Target, Unfinished, find_targets, is_finished

Job = Definition | Text | Pairs | Labelled
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """A task that could not be scored, or a whole checkpoint.

    Attributes:
        checkpoint: ``run/checkpoint``.
        task: The task, or None if the checkpoint itself is at fault.
        reason: What went wrong, in a line.
        detail: The traceback where the error was not foreseen, else empty.
    """

    checkpoint: str
    task: str | None
    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.checkpoint}: {self.task + ': ' if self.task else ''}{self.reason}"


@dataclass(frozen=True)
class ScoreReport:
    """What a call of ``score`` did.

    Attributes:
        done: The scores written now.
        skipped: How many (checkpoint, task) pairs were scored before, or under another folder with the same weights.
        failed: What could not be scored; the rest went on.
        unfinished: Checkpoint folders without a manifest, whose save has not ended.
        interrupted: Whether Ctrl-C ended a watch.
    """

    done: tuple[Score, ...] = ()
    skipped: int = 0
    failed: tuple[Failure, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """Returns 1 if anything failed, else 0."""
        return 1 if self.failed else 0


@dataclass
class _Session:
    """The state of one call of ``score``."""

    suite: SuiteSpec
    jobs: list[Job]
    version: str
    device: str | None
    progress: Progress
    done: list[Score] = field(default_factory=list)
    failed: dict[tuple[str, str | None], Failure] = field(default_factory=dict)
    written: set[tuple[str, str]] = field(default_factory=set)
    skipped: set[tuple[str, str]] = field(default_factory=set)
    templates: dict[Path, str | None] = field(default_factory=dict)


def score(
    paths: Sequence[Path | str],
    suite: SuiteSpec | str | Path,
    *,
    watch: bool = False,
    final_only: bool = False,
    device: str | None = None,
    output: Path | None = None,
    poll_seconds: float = 5.0,
    progress: Progress = lambda line: None,
) -> ScoreReport:
    """Scores every complete checkpoint that has no score for a task of the suite yet.

    For each task the samples are written first and the score line last, both whole or not at all; so a kill at any
    moment loses at most the task at work, and a later call takes up from there. Several processes may score the same
    runs: they share the checkpoints out among themselves. Folders of one run with the same weights (the last
    checkpoint and the final model) are scored once; the record bears the first one's name, and a reader finds it for
    the other by ``weights_hash``.

    Args:
        paths: Run folders, single checkpoints of runs, plain model folders, or Hub ids.
        suite: A suite, or its name or path.
        final_only: Of a run, score the final model and leave its checkpoints.
        watch: Go on until each run's ``run.json`` says that it is finished and all is scored.
        device: Such as ``cpu`` or ``cuda:1``; the first GPU if there is one.
        output: The folder under which the scores of plain models go, a run folder for each.
        poll_seconds: How long to wait between looks for new checkpoints, or for another process's.
        progress: Takes a line for each thing done.

    Returns:
        What was done, skipped and failed. One task's failure does not stop the others.

    Raises:
        SpecError: The suite's file is wrong.
        SuiteError: Tasks do not exist or do not fit their data; all of them, before any model is loaded.
        InputError: A path is neither a run nor a model.
    """
    spec = suite if isinstance(suite, SuiteSpec) else load_suite(suite)
    jobs = define_all(spec)
    session = _Session(spec, jobs, suite_version(jobs), device, progress)
    unfinished: list[Unfinished] = []
    interrupted = False
    try:
        while True:
            over = all(is_finished(Path(path)) for path in paths)  # asked first: a save may end meanwhile
            targets, unfinished = find_targets(paths, output, offline=spec.offline, final_only=final_only)
            busy = [target for target in targets if not _score_target(session, target)]
            if not busy and (over or not watch):
                break
            if busy and not watch:
                progress(f"waiting for another process that scores {', '.join(target.name for target in busy)}")
            time.sleep(poll_seconds)
    except KeyboardInterrupt:
        if not watch:
            raise
        interrupted = True
    failed = tuple(session.failed.values())
    return ScoreReport(
        tuple(session.done), len(session.skipped - session.written), failed, tuple(unfinished), interrupted
    )


def pending(paths: Sequence[Path | str], suite: SuiteSpec, *, final_only: bool = False) -> int:
    """Returns how many (checkpoint, task) pairs of some runs have no score yet, without loading any model.

    Raises:
        SuiteError: A task does not exist or does not fit its data.
        InputError: A path is not a run.
    """
    jobs = define_all(suite)
    session = _Session(suite, jobs, suite_version(jobs), None, lambda line: None)
    targets, _ = find_targets(paths, None, offline=suite.offline, final_only=final_only)
    # Folders with the same weights share their scores.
    distinct = {(target.store, target.weights_hash): target for target in targets}
    return sum(len(_missing(session, target)) for target in distinct.values())


def define_all(suite: SuiteSpec) -> list[Job]:
    """Finds and hashes everything that a suite scores.

    Raises:
        SuiteError: With every task that is wrong.
    """
    jobs: list[Job] = []
    problems: list[SuiteError] = []
    kinds: list[tuple[Callable[..., Job], Sequence[Any]]] = [
        (definitions.define, suite.tasks),
        (perplexity.define, suite.perplexity),
        (pairs.define, suite.pairs),
        (classification.define, suite.classification),
    ]
    for define, specs in kinds:
        for spec in specs:
            try:
                jobs.append(define(spec, suite))
            except SuiteError as error:
                problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SuiteError("\n".join(str(problem) for problem in problems))
    return jobs


def suite_version(jobs: Sequence[Job]) -> str:
    """Returns the hash of a suite's content: the hash of each task, by its name."""
    return hash_json({job.spec.title: job.task_hash for job in jobs})


def _score_target(session: _Session, target: Target) -> bool:
    """Scores what is missing on a checkpoint; false if another process is at work on it."""
    try:
        todo = _missing(session, target)
        if not todo:
            return True
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(target.store / LOCKS / target.weights_hash[:12]))
            except PosttrainError:
                return False
            todo = _missing(session, target)  # another process may have just ended
            problems = verify(target.folder, resume_state=False) if target.has_manifest else []
            if problems:
                raise PosttrainError("damaged, left as it is: " + "; ".join(problems))
            if todo:
                with hub_access(session.suite.offline):  # no sooner: closing the Hub imports the libraries that use it
                    _score_jobs(session, target, todo)
    except Exception as error:  # one checkpoint's failure must not stop the others; it is reported
        _fail(session, target, None, error)
    return True


def _missing(session: _Session, target: Target) -> list[Job]:
    """Returns the jobs without a score on a checkpoint, but for those that failed in this call."""
    if (str(target.folder), None) in session.failed:
        return []
    store_keys = ScoreStore(target.store).keys()
    templates = [_chat(job, session.suite) for job in session.jobs]
    fingerprint = _template(session, target.folder) if any(chat != "never" for chat in templates) else None
    todo = []
    for job, chat in zip(session.jobs, templates, strict=True):
        template = None if chat == "never" else fingerprint
        if (target.weights_hash, job.spec.title, job.task_hash, template) in store_keys:
            session.skipped.add((str(target.folder), job.spec.title))
        elif (str(target.folder), job.spec.title) not in session.failed:
            todo.append(job)
    return todo


def _template(session: _Session, folder: Path) -> str | None:
    """Returns the fingerprint of a checkpoint's template, read once; a watch asks for it at every look."""
    if folder not in session.templates:
        session.templates[folder] = template_of(folder)
    return session.templates[folder]


def _chat(job: Job, suite: SuiteSpec) -> Chat:
    """Returns when a job's prompts are templated; texts never are, and pairs that are conversations have to be."""
    if isinstance(job, Definition):
        return job.spec.chat or suite.chat
    return "auto" if isinstance(job, Pairs) else "never"


def _score_jobs(session: _Session, target: Target, jobs: Sequence[Job]) -> None:
    session.progress(f"{target.name}: {len(jobs)} of {len(session.jobs)} tasks to score")
    with _model(target, session) as loaded:
        lm = None
        for job in jobs:
            started = time.perf_counter()
            try:
                templated = loaded.templated(_chat(job, session.suite))
                if isinstance(job, Definition):
                    from . import harness

                    loaded.needs_language_model(job.spec.title)
                    lm = lm or harness.wrap(loaded, session.suite)
                    result = harness.run_task(job, lm, session.suite, templated=templated)
                else:
                    result = _run(job, loaded, session.suite)
            except Exception as error:  # one task's failure must not stop the others; it is reported
                _fail(session, target, job, error)
                continue
            template = loaded.template_fingerprint if templated else None
            _keep(session, target, job, result, template, time.perf_counter() - started)


def _run(job: Text | Pairs | Labelled, loaded: LoadedModel, suite: SuiteSpec) -> Result:
    """Scores what is not lm-eval's."""
    if isinstance(job, Pairs):
        return pairs.run_pairs(job, loaded, suite)
    if isinstance(job, Labelled):
        return classification.run_labelled(job, loaded, suite)
    loaded.needs_language_model(job.spec.title)
    return perplexity.run_text(job, loaded, suite)


@contextlib.contextmanager
def _model(target: Target, session: _Session) -> Iterator[LoadedModel]:
    """Holds a checkpoint's model in memory for the length of a block."""
    import gc

    import torch

    loaded = load_model(str(target.folder), device=session.device, dtype=session.suite.dtype)
    try:
        yield loaded
    finally:
        del loaded
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _keep(session: _Session, target: Target, job: Job, result: Result, template: str | None, seconds: float) -> None:
    """Writes a result: the samples, then the line that makes it count."""
    record = Score(
        run=target.run,
        run_id=target.run_id,
        checkpoint=target.checkpoint,
        step=target.step,
        weights_hash=target.weights_hash,
        suite=session.suite.name,
        suite_version=session.version,
        task=job.spec.title,
        task_hash=job.task_hash,
        num_fewshot=result.num_fewshot,
        metrics=result.metrics,
        template_fingerprint=template,
        judge_version=None,
        limit=job.spec.limit,
        versions=definitions.versions(),
        seconds=round(seconds, 3),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        notes=result.notes,
        detail=result.detail,
    )
    write_atomic(target.store / record.samples_name, result.samples)
    if not ScoreStore(target.store).append(record):
        return
    session.done.append(record)
    session.written.add((str(target.folder), job.spec.title))
    first = result.metrics[0]
    interval = f" ± {1.96 * first.stderr:.4g}" if first.stderr is not None else ""
    figure = f"{first.name} {first.value:.4g}{interval} (n={first.n}, {seconds:.1f} s)"
    session.progress("; ".join([f"{target.name}: {job.spec.title}: {figure}", *result.notes]))


def _fail(session: _Session, target: Target, job: Job | None, error: Exception) -> None:
    task = job.spec.title if job else None
    foreseen = isinstance(error, PosttrainError)
    reason = str(error) if foreseen else _describe(error)
    detail = "" if foreseen else "".join(traceback.format_exception(error))
    failure = Failure(target.name, task, reason, detail)
    session.failed[str(target.folder), task] = failure
    session.progress(f"failed: {failure}")


def _describe(error: Exception) -> str:
    """Words an exception that was not foreseen: its type, its first line, and the line of code it came from."""
    text = str(error).strip().split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"
