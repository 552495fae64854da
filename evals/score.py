"""Scoring: finds the checkpoints of runs that are not yet scored, scores them once, loses nothing when killed."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from ..chat_templates.errors import PosttrainError
from ..data_tools.errors import BusyError
from ..data_tools.files import locked, write_atomic
from . import definitions, jobs
from .checkpoints import base_of, is_unchanged, verify
from .jobs import Job
from .models import LoadedModel, applies_template, hub_access, load_model, template_of
from .records import LOCKS, Result, Score, ScoreStore
from .runs import Target, Unfinished, find_targets, is_closed, is_run
from .spec import Chat, SuiteSpec, load_suite
from .stats.intervals import spelt

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Failure:
    """A task that could not be scored, or a whole checkpoint.

    Attributes:
        checkpoint: ``run/checkpoint``.
        task: The task, or None if the checkpoint itself is at fault.
        reason: What went wrong, in a line.
        detail: The traceback where the error was not foreseen, else empty.
        exit_code: 2 if what the user gave is wrong, else 1.
    """

    checkpoint: str
    task: str | None
    reason: str
    detail: str = ""
    exit_code: int = 1

    def __str__(self) -> str:
        task = f"{self.task}: " if self.task and not self.reason.startswith(self.task) else ""
        return f"{self.checkpoint}: {task}{self.reason}"


@dataclass(frozen=True)
class ScoreReport:
    """What a call of ``score`` did.

    Attributes:
        done: The scores written now.
        skipped: How many (checkpoint, task) pairs were scored before, or under another folder with the same model.
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
        """Returns 1 if anything failed, but 2 if all did and what the user gave is wrong; else 0."""
        if not self.failed:
            return 0
        return 1 if self.done or self.skipped else min(failure.exit_code for failure in self.failed)


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
    unchanged: dict[tuple[Path, str], bool] = field(default_factory=dict)
    checked: dict[tuple[str, Path | None], Exception | None] = field(default_factory=dict)


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
    runs: they share the checkpoints out among themselves. Folders of one run with the same model (the last checkpoint
    and the final model) are scored once; the record bears the first one's name, and a reader finds it for the other by
    ``model_hash``.

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
    defined = jobs.define_all(spec)
    session = _Session(spec, defined, jobs.suite_version(defined), device, progress)
    unfinished: list[Unfinished] = []
    interrupted = False
    try:
        while True:
            # Asked first: a save may end meanwhile.
            over = all(is_closed(Path(path)) for path in paths if is_run(Path(path)))
            targets, unfinished = find_targets(paths, output, offline=spec.offline, final_only=final_only)
            jobs.check_targets(defined, targets)
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
    defined = jobs.define_all(suite)
    session = _Session(suite, defined, jobs.suite_version(defined), None, lambda line: None)
    targets, _ = find_targets(paths, None, offline=suite.offline, final_only=final_only)
    # Folders with the same model share their scores.
    distinct = {(target.store, target.model_hash): target for target in targets}
    return sum(len(_missing(session, target)) for target in distinct.values())


def _score_target(session: _Session, target: Target) -> bool:
    """Scores what is missing on a checkpoint; false if another process is at work on it."""
    try:
        todo = _missing(session, target)
        if not todo:
            return True
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(target.store / LOCKS / target.model_hash[:12]))
            except BusyError:
                return False
            todo = _missing(session, target)  # another process may have just ended
            problems = verify(target.folder, resume_state=False) if target.has_manifest else []
            if problems:
                raise PosttrainError("damaged, left as it is: " + "; ".join(problems))
            if todo:
                _name_model(session, target)
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
    templates = [_chat(job, session) for job in session.jobs]
    fingerprint = _template(session, target.folder) if any(chat != "never" for chat in templates) else None
    todo = []
    for job, chat in zip(session.jobs, templates, strict=True):
        template = None if chat == "never" else fingerprint
        known = [(model, job.spec.title, job.task_hash, template) for model in (target.model_hash, target.weights_hash)]
        if known[0] in store_keys or (known[1] in store_keys and _is_unchanged(session, target)):
            session.skipped.add((str(target.folder), job.spec.title))
            jobs.clean(job, target)
        elif (str(target.folder), job.spec.title) not in session.failed:
            todo.append(job)
    return todo


def _is_unchanged(session: _Session, target: Target) -> bool:
    """Says whether scores of older versions, which know a model by its weights alone, are provably this model's."""
    key = (target.folder, target.model_hash)
    if key not in session.unchanged:
        session.unchanged[key] = base_of(target.folder) is None and is_unchanged(target.folder)
    return session.unchanged[key]


def _name_model(session: _Session, target: Target) -> None:
    """Writes scores of older versions once more under the model's name, before new ones join them."""
    store = ScoreStore(target.store)
    for old in store.load():
        if not old.model_hash and old.weights_hash == target.weights_hash and _is_unchanged(session, target):
            named = replace(old, model_hash=target.model_hash)
            if (samples := target.store / old.samples_name).is_file():
                write_atomic(target.store / named.samples_name, samples.read_bytes())
            store.append(named)


def _template(session: _Session, folder: Path) -> str | None:
    """Returns the fingerprint of a checkpoint's template, read once; a watch asks for it at every look."""
    if folder not in session.templates:
        session.templates[folder] = template_of(folder)
    return session.templates[folder]


def _chat(job: Job, session: _Session) -> Chat:
    return jobs.chat_of(job, session.suite)


def _score_jobs(session: _Session, target: Target, todo: Sequence[Job]) -> None:
    session.progress(f"{target.name}: {len(todo)} of {len(session.jobs)} tasks to score")
    todo = [job for job in todo if _is_sound(session, target, job)]
    fingerprint = _template(session, target.folder) if any(_chat(job, session) != "never" for job in todo) else None
    with _model(target, session) as load:
        runner = jobs.Runner(target, session.suite, load, session.progress)
        for job in todo:
            if jobs.needs_model(job):
                load()  # no job's failure but the checkpoint's
            started = time.perf_counter()
            try:
                template = fingerprint if applies_template(_chat(job, session), fingerprint) else None
                result = runner.run(job, template)
            except Exception as error:  # one task's failure must not stop the others; it is reported
                _fail(session, target, job, error)
                continue
            _keep(session, target, job, result, template, time.perf_counter() - started)


def _is_sound(session: _Session, target: Target, job: Job) -> bool:
    """Says whether a job's rows and packages are in order, and reports what is wrong."""
    key = (job.spec.title, jobs.checked_with(job, target))
    if key not in session.checked:
        session.checked[key] = None
        try:
            jobs.check(job, target)
        except Exception as error:  # one task's failure must not stop the others; it is reported
            session.checked[key] = error
    error = session.checked[key]
    if error is not None:
        _fail(session, target, job, error)
    return error is None


@contextlib.contextmanager
def _model(target: Target, session: _Session) -> Iterator[Callable[[], LoadedModel]]:
    """Gives what loads a checkpoint's model when it is first asked for, and holds it for the length of a block."""
    import gc

    held: list[LoadedModel] = []

    def load() -> LoadedModel:
        if not held:
            held.append(load_model(str(target.folder), device=session.device, dtype=session.suite.dtype))
        return held[0]

    try:
        yield load
    finally:
        held.clear()
        gc.collect()
        import torch

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
        model_hash=target.model_hash,
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
    is_new = ScoreStore(target.store).append(record)
    jobs.clean(job, target)
    if not is_new:
        return
    session.done.append(record)
    session.written.add((str(target.folder), job.spec.title))
    first = result.metrics[0]
    figure = f"{spelt(first, result.detail)} (n={first.n}, {seconds:.1f} s)"
    session.progress("; ".join([f"{target.name}: {job.spec.title}: {figure}", *result.notes]))


def _fail(session: _Session, target: Target, job: Job | None, error: Exception) -> None:
    task = job.spec.title if job else None
    if isinstance(error, PosttrainError):
        failure = Failure(target.name, task, str(error), exit_code=error.exit_code)
    else:
        failure = Failure(target.name, task, _describe(error), "".join(traceback.format_exception(error)))
    session.failed[str(target.folder), task] = failure
    session.progress(f"failed: {failure}")


def _describe(error: Exception) -> str:
    """Words an exception that was not foreseen: its type, its first line, and the line of code it came from."""
    text = str(error).strip().split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"
