"""datatrove's executors (0.10): a tool's blocks decided on by many tasks, here, on a Slurm cluster or by Ray.

The tasks write into the tool's folder of work, which all machines must see. What they leave is what the tool alone
would have left, so that it goes on from there; nothing is known from datatrove's marks of completion, which name a task
and neither its arguments nor its rows.
"""

import importlib
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep

from ..chat_templates.errors import PosttrainError, first_line
from .errors import DataError

Job = Callable[[int, int], Mapping[str, int]]
"""What a task does, given its number and how many there are; returns what it counted."""

_CLASSES: Mapping[str, tuple[str, str]] = {
    "local": ("datatrove.executor.local", "LocalPipelineExecutor"),
    "slurm": ("datatrove.executor.slurm", "SlurmPipelineExecutor"),
    "ray": ("datatrove.executor.ray", "RayPipelineExecutor"),
}


class BlocksStep(PipelineStep):
    """The one step of a tool's pipeline: it reads, decides and writes; datatrove's statistics count its rows."""

    name = "blocks"
    type = "posttrain"

    def __init__(self, job: Job):
        super().__init__()
        self.job = job

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        """Does the work of one task; no document leaves it."""
        try:
            counted = self.job(rank, world_size)
        except Exception as error:
            # What loses its arguments on the way between processes, as ours would, leaves the caller waiting for ever.
            name = "" if isinstance(error, PosttrainError) else f"{type(error).__name__}: "
            raise RuntimeError(f"{name}{error}") from error
        for label, value in counted.items():
            self.stat_update(label, value=value, unit="task")
        yield from ()


def run_tasks(job: Job, executor: str, tasks: int, options: Mapping[str, Any], folder: Path) -> None:
    """Runs a job's tasks and waits for their end; those that a killed call has ended are not run again.

    Args:
        job: What each task does; it is sent to other processes, and other machines, by dill.
        executor: Whose they are: ``local``, ``slurm`` or ``ray``.
        tasks: How many.
        options: Arguments of datatrove's class of executor, as they stand.
        folder: For datatrove's logs and marks; one for each job and number of tasks.

    Raises:
        DataError: An option is unknown or missing.
        PosttrainError: A task failed, or the executor could not be started.
    """
    module, name = _CLASSES[executor]
    given = dict(options)
    if executor == "slurm":
        given["sbatch_args"] = {"wait": "", **given.get("sbatch_args", {})}  # sbatch returns when the array has ended
    try:
        made = getattr(importlib.import_module(module), name)(
            pipeline=[BlocksStep(job)], tasks=tasks, logging_dir=str(folder.resolve()), **given
        )
    except (TypeError, ValueError) as error:
        what = f"datatrove's {name} cannot be made: {first_line(error).replace(f'{name}.__init__()', 'it')}"
        raise DataError(
            what, where="executor_options", hint="they are its arguments, as datatrove names them"
        ) from error
    try:
        made.run()
    except Exception as error:  # whatever a task, a scheduler or a cluster may raise
        said = (getattr(error, "stderr", None) or b"") if isinstance(error, subprocess.CalledProcessError) else b""
        what = f"a task failed: {first_line(error)} {said if isinstance(said, str) else said.decode(errors='replace')}"
        hint = "run the same command again when it is mended: finished blocks are kept"
        raise PosttrainError(what.strip(), where=str(folder / "logs"), hint=hint) from error
