"""The kinds of things that a suite scores: how each is defined, templated and run."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data_tools.files import hash_json
from . import classification, definitions, generations, heldout, pairs, perplexity
from .classification import Labelled
from .definitions import Definition
from .errors import SuiteError
from .generations import Prompts
from .models import LoadedModel
from .pairs import Pairs
from .perplexity import Text
from .records import Result
from .runs import Target
from .spec import Chat, SuiteSpec

CALLS = ".calls"
"""The suffix of the record of an endpoint's calls, beside the log of the answers."""
Job = Definition | Text | Pairs | Labelled | Prompts


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
        (generations.define, suite.prompts),
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


def chat_of(job: Job, suite: SuiteSpec) -> Chat:
    """Returns when a job's prompts are templated; texts never are, and pairs that are conversations have to be."""
    if isinstance(job, Definition):
        return job.spec.chat or suite.chat
    if isinstance(job, Prompts):
        return generations.chat_of(job.spec, suite)
    return "auto" if isinstance(job, Pairs) else "never"


def needs_model(job: Job) -> bool:
    """Whether a job is done by the model that transformers loads."""
    return not isinstance(job, Prompts) or job.spec.backend == "transformers"


def check_targets(jobs: Sequence[Job], targets: Sequence[Target]) -> None:
    """Refuses to let one model on a server answer for several checkpoints.

    Raises:
        SuiteError: A prompt set's ``model`` is the same for all of them.
    """
    if len({target.model_hash for target in targets}) < 2:
        return
    for job in jobs:
        if isinstance(job, Prompts) and job.spec.backend == "endpoint" and "{" not in job.spec.model:
            raise SuiteError(
                f"one model on the server, '{job.spec.model}', would answer for {len(targets)} checkpoints",
                where=job.spec.title,
                hint='score one of them, or name each: `model: "{folder}"`',
            )


def checked_with(job: Job, target: Target) -> Path | None:
    """Returns the checkpoint that :func:`check` needs for a job; None if it is the same for all of them."""
    return target.folder if isinstance(job, Pairs | Labelled) else None


def check(job: Job, target: Target) -> None:
    """Builds a job's task and looks at its rows, so that what is wrong with them costs no model's loading.

    Raises:
        PosttrainError: A package, a metric or a right answer is missing, or a row cannot be used.
    """
    if isinstance(job, Definition):
        from . import harness

        with harness.noted():
            definitions.check(job)
    elif isinstance(job, Labelled):
        classification.check(job, target.folder)
    elif isinstance(job, Pairs):
        for _ in heldout.written(job.spec, target.folder, "preference"):
            pass  # the end tells whether enough of them can be used


def clean(job: Job, target: Target) -> None:
    """Removes what a job has kept for the case of a kill, now that its score is written."""
    if isinstance(job, Prompts):
        log = generations.log_path(target.store, target.model_hash, job)
        for path in (log, log.with_suffix(CALLS)):
            with contextlib.suppress(OSError):  # a folder of finished scores may be read-only
                path.unlink()


@dataclass
class Runner:
    """Runs jobs on one checkpoint.

    Attributes:
        target: The checkpoint.
        suite: The suite.
        load: Gives its model, loaded once.
        progress: Takes a line for each thing done.
    """

    target: Target
    suite: SuiteSpec
    load: Callable[[], LoadedModel]
    progress: Callable[[str], None]
    _wrapped: Any = field(default=None, init=False)

    def run(self, job: Job, template: str | None) -> Result:
        """Runs a job.

        Args:
            job: One of the suite's.
            template: The fingerprint of the chat template, if it is to be applied.

        Raises:
            PosttrainError: It cannot be scored on this checkpoint.
        """
        if isinstance(job, Prompts):
            return self._answers(job, template)
        loaded = self.load()
        if isinstance(job, Definition):
            from . import harness

            loaded.needs_language_model(job.spec.title)
            if self._wrapped is None:
                with harness.noted() as notes:
                    self._wrapped = harness.wrap(loaded, self.suite)
                for note in harness.summary(notes):
                    self.progress(f"{self.target.name}: {note}")
            return harness.run_task(job, self._wrapped, self.suite, templated=template is not None)
        if isinstance(job, Pairs):
            return pairs.run_pairs(job, loaded, self.suite)
        if isinstance(job, Labelled):
            return classification.run_labelled(job, loaded, self.suite)
        loaded.needs_language_model(job.spec.title)
        return perplexity.run_text(job, loaded, self.suite)

    def _answers(self, job: Prompts, template: str | None) -> Result:
        """Lets the checkpoint answer prompts, by the backend that they ask for."""
        templated = template is not None
        target, how = self.target, generations.sampling_of(job, self.suite)
        log = generations.log_path(target.store, target.model_hash, job)
        if job.spec.backend == "endpoint":
            own = {"folder": target.folder, "run": target.run, "checkpoint": target.checkpoint, "step": target.step}
            server = job.spec.server(**own)
            backend = generations.served(server, log.with_suffix(CALLS), how, job.spec, target.model_hash)
        elif job.spec.backend == "vllm":
            limits = {"max_length": self.suite.max_length, "dtype": self.suite.dtype}
            backend = generations.by_vllm(target.folder, how, job.spec, templated=templated, **limits)
        else:
            loaded = self.load()
            loaded.needs_language_model(job.spec.title)
            backend = generations.here(loaded, how, job.spec, templated=templated, max_length=self.suite.max_length)
        return generations.run_prompts(job, backend, log, template=template, progress=self.progress)
