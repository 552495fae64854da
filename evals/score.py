"""Scoring: finds the checkpoints of runs that are not yet scored, scores them once, loses nothing when killed."""

import contextlib
import functools
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..chat_templates.errors import PosttrainError, did_you_mean
from ..data_tools.errors import BusyError
from ..data_tools.files import hash_json, locked
from ..data_tools.progress import Say
from . import classification, definitions, generations, groups, own_metrics, pairs, perplexity
from .checkpoints import CHANGED_BASE, base_has_changed, base_of, is_unchanged, verify
from .contamination import MOST_BYTES, find_touched
from .errors import SuiteError
from .loading import Loader
from .models import LoadedModel, applies_template, check_length, hub_access, template_of
from .records import LOCKS, Result, Score, ScoreStore, now, versions
from .runs import Target, Unfinished, find_targets, is_closed, is_run
from .spec import SuiteSpec
from .stats.intervals import spelt
from .suite_files import load_suite
from .task import Checkpoint, Task
from .team import Team
from .vllm_tasks import vllm_version


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
        is_empty: Whether there was no complete checkpoint to score.
        is_early: Whether that is so because final models were asked for, of runs that have not ended.
        prompts: The prompt sets of the suite as they were read, for its judges.
    """

    done: tuple[Score, ...] = ()
    skipped: int = 0
    failed: tuple[Failure, ...] = ()
    unfinished: tuple[Unfinished, ...] = ()
    interrupted: bool = False
    is_empty: bool = False
    is_early: bool = False
    prompts: tuple[generations.PromptTask, ...] = ()

    @property
    def exit_code(self) -> int:
        """Returns 1 if anything failed; 2 if all did and the input is wrong, or nothing was there to score; else 0."""
        if not self.failed:
            return 2 if self.is_empty and not self.is_early else 0
        return 1 if self.done or self.skipped else min(failure.exit_code for failure in self.failed)


def define_all(suite: SuiteSpec) -> list[Task]:
    """Finds and hashes everything that a suite scores.

    Raises:
        SuiteError: With every task that is wrong.
    """
    if suite.backend == "vllm":
        vllm_version()
    harness_tasks, means = definitions.each_setting(suite)
    kinds: list[tuple[Callable[..., Task], Sequence[Any]]] = [
        (definitions.define, harness_tasks),
        (perplexity.define, suite.perplexity),
        (pairs.define, suite.pairs),
        (classification.define, suite.classification),
        (own_metrics.define, suite.functions),
        (generations.define, suite.prompts),
    ]
    tasks: list[Task] = []
    problems: list[SuiteError] = []
    for define, specs in kinds:
        for spec in specs:
            try:
                tasks.append(define(spec, suite))
            except SuiteError as error:
                problems.append(error)
    if not problems:
        tasks += [groups.define(group, suite, tasks) for group in means]
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SuiteError("\n".join(str(problem) for problem in problems))
    return tasks


def score(
    paths: Sequence[Path | str],
    suite: SuiteSpec | str | Path,
    *,
    watch: bool = False,
    final_only: bool = False,
    device: str | None = None,
    output: Path | None = None,
    poll_seconds: float = 5.0,
    progress: Say = lambda line: None,
    team: Team | None = None,
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
        team: The processes that score together, all of which call this with the same arguments. The first leads; the
            others help it, and return an empty report.

    Returns:
        What was done, skipped and failed. One task's failure does not stop the others.

    Raises:
        SpecError: The suite's file is wrong.
        SuiteError: Tasks do not exist or do not fit their data; all of them, before any model is loaded.
        InputError: A path is neither a run nor a model.
    """
    spec = suite if isinstance(suite, SuiteSpec) else load_suite(suite)
    tasks = define_all(spec) if team is None else team.together(lambda: define_all(spec))
    scoring = _Scoring(spec, tasks, team.device(device) if team else device, progress, team)
    if team and not team.leads:
        scoring.follow(team)
        return ScoreReport()
    if spec.left_out:
        count = len(spec.tasks) + len(spec.left_out)
        told = f"{spec.name}: {len(spec.tasks)} of {count} tasks, from {spec.data_dir}"
        progress(f"{told}; it does not hold {', '.join(spec.left_out)}")
    targets: list[Target] = []
    unfinished: list[Unfinished] = []
    interrupted = over = False
    try:
        while True:
            # Asked first: a save may end meanwhile.
            over = all(is_closed(Path(path)) for path in paths if is_run(Path(path)))
            targets, unfinished = find_targets(paths, output, offline=spec.offline, final_only=final_only)
            for task in scoring.tasks:
                task.check_targets(targets)
            files = [target.name for target in targets if target.is_answers]
            if files and not any(task.takes_answers for task in scoring.tasks):
                hint = "answers are written to tasks that generate text, such as gsm8k_cot or humaneval"
                raise SuiteError("no task of the suite asks for written answers", where=files[0], hint=hint)
            busy = [target for target in targets if not scoring.score(target)]
            if not busy and (over or not watch):
                break
            if busy and not watch:
                progress(f"waiting for another process that scores {', '.join(target.name for target in busy)}")
            time.sleep(poll_seconds)
    except KeyboardInterrupt:
        if not watch:
            raise
        interrupted = True
    finally:
        scoring.loader.release()
        if team:
            team.order(None)  # the others are done
    if spec.contamination != "never" and not interrupted:
        bound = None if spec.contamination == "always" else MOST_BYTES
        for store in dict.fromkeys(target.store for target in targets):
            with hub_access(spec.offline):
                find_touched(store, scoring.tasks, most_bytes=bound, progress=progress)
    is_empty = not targets and not interrupted
    return ScoreReport(
        tuple(scoring.done),
        len(scoring.skipped - scoring.written),
        tuple(scoring.failed.values()),
        tuple(unfinished),
        interrupted,
        is_empty,
        is_empty and final_only and not over,
        tuple(task for task in scoring.tasks if isinstance(task, generations.PromptTask)),
    )


def pending(paths: Sequence[Path | str], suite: SuiteSpec, *, final_only: bool = False) -> int:
    """Returns how many (checkpoint, task) pairs of some runs have no score yet, without loading any model.

    Raises:
        SuiteError: A task does not exist or does not fit its data.
        InputError: A path is not a run.
    """
    scoring = _Scoring(suite, define_all(suite), None, lambda line: None, None)
    targets, _ = find_targets(paths, None, offline=suite.offline, final_only=final_only)
    # Folders with the same model share their scores.
    distinct = {(target.store, target.model_hash): target for target in targets}
    return sum(len(scoring.missing(target)) for target in distinct.values())


@dataclass(frozen=True)
class _Order:
    """What the leading process has the others score with it."""

    target: Target
    task: str
    template: str | None


class _Scoring:
    """One call of ``score``: what is to be done, and what was; checkpoints and tasks are known by folder and title."""

    def __init__(self, suite: SuiteSpec, tasks: list[Task], device: str | None, progress: Say, team: Team | None):
        self.suite, self.tasks, self.progress, self.team = suite, tasks, progress, team
        self.loader = Loader(device, suite.dtype)
        self.version = hash_json({task.spec.title: task.task_hash for task in tasks})
        self.done: list[Score] = []
        self.failed: dict[tuple[str, str | None], Failure] = {}
        self.written: set[tuple[str, str]] = set()
        self.skipped: set[tuple[str, str]] = set()
        self.checked: dict[tuple[str, Path | None], Exception | None] = {}
        # Read once; a watch asks for them at every look.
        self.template_of = functools.cache(lambda folder: template_of(folder, self.loader.tokenizer))
        self.is_unchanged = functools.cache(lambda folder, _: base_of(folder) is None and is_unchanged(folder))

    def score(self, target: Target) -> bool:
        """Scores what is missing on a checkpoint; false if another process is at work on it."""
        try:
            if not self.missing(target):
                return True
            with contextlib.ExitStack() as stack:
                try:
                    stack.enter_context(locked(target.store / LOCKS / target.model_hash[:12]))
                except BusyError:
                    return False
                todo = self.missing(target)  # another process may have just ended
                problems = verify(target.folder, resume_state=False) if target.has_manifest else []
                if problems:
                    raise PosttrainError("damaged, left as it is: " + "; ".join(problems))
                if todo:
                    self._name_model(target)
                    with hub_access(self.suite.offline):  # no sooner: closing the Hub imports the libraries that use it
                        self._run(target, todo)
        except Exception as error:  # one checkpoint's failure must not stop the others; it is reported
            self._fail(target, None, error)
        return True

    def missing(self, target: Target) -> list[Task]:
        """Returns the tasks without a score on a checkpoint, but for those that failed in this call."""
        folder = str(target.folder)
        if (folder, None) in self.failed:
            return []
        known = ScoreStore(target.store).keys()
        fingerprint = self._fingerprint(target, self.tasks)
        todo = []
        for task in self.tasks:
            template = None if task.chat(self.suite) == "never" else fingerprint
            new, old = (
                (m, task.spec.title, task.task_hash, template) for m in (target.model_hash, target.weights_hash)
            )
            if new in known or (old in known and self.is_unchanged(target.folder, target.model_hash)):
                self.skipped.add((folder, task.spec.title))
                task.clean(target)
            elif (folder, task.spec.title) not in self.failed and (task.takes_answers or not target.is_answers):
                todo.append(task)
        return todo

    def _fingerprint(self, target: Target, tasks: Sequence[Task]) -> str | None:
        """Returns that of a checkpoint's chat template, if a task may apply it."""
        asked = not target.is_answers and any(task.chat(self.suite) != "never" for task in tasks)
        return self.template_of(target.folder) if asked else None

    def _name_model(self, target: Target) -> None:
        """Writes scores of older versions, which know a model by its weights alone, once more under its name."""
        store = ScoreStore(target.store)
        for old in store.load():
            mine = not old.model_hash and old.weights_hash == target.weights_hash
            if mine and self.is_unchanged(target.folder, target.model_hash):
                named = replace(old, model_hash=target.model_hash)
                samples = target.store / old.samples_name
                store.append(named, samples.read_bytes() if samples.is_file() else None)

    def _run(self, target: Target, todo: Sequence[Task]) -> None:
        """Scores a checkpoint on each task that is in order."""
        self.progress(f"{target.name}: {len(todo)} of {len(self.tasks)} tasks to score")
        todo = [task for task in todo if self._is_sound(target, task)]
        fingerprint = self._fingerprint(target, todo)
        load = functools.cache(lambda: self.loader.load(str(target.folder)))
        checkpoint = Checkpoint(target, self.suite, load, self.progress)
        for task in todo:
            if self.suite.backend == "vllm" and not isinstance(task, definitions.HarnessTask):
                checkpoint.lm = None  # those come first, and vLLM takes what memory there is
            if task.needs_model and not target.is_answers:
                load()  # no task's failure but the checkpoint's
            started = time.perf_counter()
            try:
                beyond = self._beyond(target, task, load)
                templated = not target.is_answers and applies_template(task.chat(self.suite), fingerprint)
                template = fingerprint if templated else None
                if self.team and task.is_divided and task.needs_model and not target.is_answers:
                    self.team.order(_Order(target, task.spec.title, template))
                    result = self.team.together(lambda task=task, how=template: task.run(checkpoint, how))
                else:
                    result = task.run(checkpoint, template)
            except Exception as error:  # one task's failure must not stop the others; it is reported
                self._fail(target, task, error)
                continue
            result = replace(result, notes=(*result.notes, *beyond))
            self._keep(target, task, result, template, time.perf_counter() - started)
        if not all(task.needs_model for task in todo):
            self.loader.release()  # another engine may need the memory

    def _beyond(self, target: Target, task: Task, load: Callable[[], LoadedModel]) -> list[str]:
        """Says that a task is to ask more tokens at once of a model than it was made for.

        Raises:
            InputError: It has no places for them.
        """
        asked = getattr(task.spec, "max_length", None) or self.suite.max_length
        if not asked or not task.needs_model or target.is_answers:
            return []
        told = check_length(load().model, asked, f"max_length is {asked:,}", "say {most} or less")
        return [told] if told else []

    def follow(self, team: Team) -> None:
        """Does a part of the passes of each task that the leading process orders, until it orders no more."""
        checkpoint: Checkpoint | None = None
        tasks = {task.spec.title: task for task in self.tasks}
        while (order := team.order(None)) is not None:
            if checkpoint is None or checkpoint.target.model_hash != order.target.model_hash:
                checkpoint = None  # and with it the last model
                load = functools.cache(lambda folder=str(order.target.folder): self.loader.load(folder))
                checkpoint = Checkpoint(order.target, self.suite, load, self.progress)
            with contextlib.suppress(Exception), hub_access(self.suite.offline):  # the leading process tells it
                team.together(functools.partial(_check_and_run, tasks[order.task], checkpoint, order.template))
        self.loader.release()

    def _is_sound(self, target: Target, task: Task) -> bool:
        """Says whether a task's rows and packages are in order, and reports what is wrong."""
        key = (task.spec.title, target.folder if task.reads_checkpoint else None)
        if key not in self.checked:
            self.checked[key] = None
            try:
                task.check(target.folder)
            except Exception as error:  # one task's failure must not stop the others; it is reported
                self.checked[key] = error
        error = self.checked[key]
        if error is not None:
            self._fail(target, task, error)
        return error is None

    def _keep(self, target: Target, task: Task, result: Result, template: str | None, seconds: float) -> None:
        """Writes a result and tells of it."""
        record = Score(
            run=target.run,
            run_id=target.run_id,
            checkpoint=target.checkpoint,
            step=target.step,
            weights_hash=target.weights_hash,
            model_hash=target.model_hash,
            suite=self.suite.name,
            suite_version=self.version,
            task=task.spec.title,
            task_hash=task.task_hash,
            num_fewshot=result.num_fewshot,
            metrics=result.metrics,
            template_fingerprint=template,
            judge_version=None,
            limit=task.spec.limit if result.is_limited else None,
            versions=versions(),
            seconds=round(seconds, 3),
            created=now(),
            notes=(*result.notes, *self._notes(target, template)),
            detail=result.detail,
        )
        is_new = ScoreStore(target.store).append(record, result.samples)
        task.clean(target)
        if not is_new:
            return
        self.done.append(record)
        self.written.add((str(target.folder), task.spec.title))
        first = result.metrics[0]
        figure = f"{spelt(first, result.detail)} (n={first.n}, {seconds:.1f} s)"
        self.progress("; ".join([f"{target.name}: {task.spec.title}: {figure}", *record.notes]))

    def _notes(self, target: Target, template: str | None) -> Iterator[str]:
        """Says in what the model asked is not what a reader takes it for."""
        if base_has_changed(target.folder):
            yield CHANGED_BASE
        if template is not None and self.suite.template_variables:
            words = set(re.findall(r"\w+", str(self.loader.tokenizer(str(target.folder))[0].chat_template)))
            for name in sorted(self.suite.template_variables.keys() - words):
                hint = did_you_mean(name, words)
                yield f"template_variables: the chat template reads no '{name}'{'; ' + hint if hint else ''}"

    def _fail(self, target: Target, task: Task | None, error: Exception) -> None:
        title = task.spec.title if task else None
        if isinstance(error, PosttrainError):
            failure = Failure(target.name, title, str(error), exit_code=error.exit_code)
        else:
            failure = Failure(target.name, title, _describe(error), "".join(traceback.format_exception(error)))
        self.failed[str(target.folder), title] = failure
        self.progress(f"failed: {failure}")


def _check_and_run(task: Task, checkpoint: Checkpoint, template: str | None) -> Result:
    """Scores a task as the leading process does, which has checked it before."""
    task.check(checkpoint.target.folder)
    return task.run(checkpoint, template)


def _describe(error: Exception) -> str:
    """Words an exception that was not foreseen: its type, its first line, and the line of code it came from."""
    text = str(error).strip().split("\n")[0]
    frames = traceback.extract_tb(error.__traceback__)
    place = f" (in {Path(frames[-1].filename).name}:{frames[-1].lineno}: {frames[-1].line})" if frames else ""
    return f"{type(error).__name__}{': ' + text if text else ''}{place}"
