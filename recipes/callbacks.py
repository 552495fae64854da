"""What every run does around the trainer's own steps: manifests, rotation, the log."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data_tools.files import append_line
from ..evals import checkpoints
from ..evals.models import save_head
from .errors import RunError
from .rundir import LOG


class CheckpointKeeper(TrainerCallback):
    """Makes a save trustworthy: clears what a killed save left in its way, and writes the manifest last.

    Old checkpoints are removed here rather than by the Trainer, which would do it before the new one's manifest is
    written, so that a kill between the two would leave no whole checkpoint at all.

    Args:
        limit: How many checkpoints to keep (``save_total_limit``), or None for all.
    """

    def __init__(self, limit: int | None):
        self.limit = limit

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Removes a damaged folder of the step about to be saved."""
        self._clear(args, state, control)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Removes a damaged folder of the step about to be saved."""
        self._clear(args, state, control)

    def _clear(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        if control.should_save:
            folder = _folder(args, state.global_step)
            if PartialState().is_main_process and folder.exists():
                shutil.rmtree(folder)
            PartialState().wait_for_everyone()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the manifest once every process has written its part."""
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            folder = _folder(args, state.global_step)
            save_head(folder, kwargs.get("model"))
            checkpoints.write_manifest(folder, step=state.global_step, resumable=not args.save_only_model)
            self._rotate(folder.parent, state)
        PartialState().wait_for_everyone()

    def _rotate(self, run_dir: Path, state: TrainerState) -> None:
        """Removes the oldest checkpoints beyond the limit, but never the best one."""
        if self.limit is None:
            return
        best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
        kept = [path for path in checkpoints.list_checkpoints(run_dir) if path.name not in (best, "checkpoint-0")]
        for folder in kept[: -self.limit]:
            # Without its manifest a half-removed folder is never taken for a whole one.
            (folder / checkpoints.MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder)


def _folder(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"


class StartKeeper(TrainerCallback):
    """Saves the weights before the first step as ``checkpoint-0``, for scoring only.

    It is a callback because under DeepSpeed and FSDP a model can be saved only once training has prepared it.

    Attributes:
        trainer: Set once the trainer, which takes its callbacks first, has been built.
    """

    trainer: "Trainer | None" = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Saves, unless the run resumes from a later step."""
        if state.global_step == 0 and self.trainer is not None:
            folder = _folder(args, 0)
            self.trainer.save_model(str(folder))
            PartialState().wait_for_everyone()
            if PartialState().is_main_process:
                save_head(folder, kwargs.get("model"))
                checkpoints.write_manifest(folder, step=0, resumable=False)


class LogKeeper(TrainerCallback):
    """Appends what the trainer logs to ``log.jsonl``, so that a run's curve outlives its checkpoints."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes one line from the main process; what is not a finite number is written as its name.

        Raises:
            RunError: The loss is not finite: every weight is lost already, and every further step is wasted.
        """
        if state.is_world_process_zero and logs:
            line = {"step": state.global_step, **{key: _jsonable(value) for key, value in logs.items()}}
            append_line(Path(str(args.output_dir)) / LOG, json.dumps(line), sync=False)
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise RunError(
                f"the loss is {loss} at step {state.global_step}",
                where=str(args.output_dir),
                hint="lower trainer.learning_rate or trainer.max_grad_norm, and begin again in another output_dir",
            )


def _jsonable(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
