"""What every run does around the trainer's own steps: manifests, rotation, the log, going on where a killed run was."""

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data_tools.files import append_line
from ..data_tools.plain_values import with_leaves
from ..data_tools.progress import ProgressLine, Say
from ..evals import checkpoints
from ..evals.models import save_head
from . import rundir
from .adapters import allocator_of
from .load import Loaded

if TYPE_CHECKING:
    from .monitor import Monitor


class CheckpointKeeper(TrainerCallback):
    """Makes a save trustworthy: clears what a killed save left in its way, and writes the manifest last.

    Old checkpoints are removed here rather than by the Trainer, which would do it before the new one's manifest is
    written, so that a kill between the two would leave no whole checkpoint at all.

    Scores while the run trains (``score.every: N``) belong here too: a checkpoint is scored once it is whole, and none
    is removed before its scores have been looked at.

    Args:
        loaded: The recipe: ``trainer.save_total_limit`` says how many checkpoints to keep, ``score.start`` whether to
            save the weights before the first step, as ``checkpoint-0``, for scoring only.
        progress: What ends a run that has come to its end.
        say: Takes a line for the user.

    Attributes:
        trainer: Set once the trainer, which takes its callbacks first, has been built.
        monitor: What is scored and decided while the run trains; None where nothing is.
    """

    trainer: Any = None
    monitor: "Monitor | None" = None

    def __init__(self, loaded: Loaded, progress: "ProgressKeeper", *, say: Say):
        score = loaded.recipe.score
        self._loaded, self._progress, self._say = loaded, progress, say
        self.limit: int | None = loaded.recipe.trainer.get("save_total_limit")
        self.start = score is not None and score.start
        self._every = score.every if score is not None and isinstance(score.every, int) else None
        self._deferred = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Saves the start, or ends the rotation that a kill may have cut short.

        Under DeepSpeed and FSDP a model can be saved only now that training has prepared it.
        """
        if self._every:
            from .monitor import Monitor

            self.monitor = Monitor(self._loaded, state.max_steps, self._say)
        if state.global_step and self._look(state):
            self._progress.end()
        if state.global_step == 0 and self.start:
            self.trainer.save_model(str(_folder(args, 0)))
            self._complete(_folder(args, 0), state, kwargs.get("model"), resumable=False)
        elif state.global_step and PartialState().is_main_process:
            self._rotate(Path(str(args.output_dir)), state)

    def on_step_end(self, args, state, control, **kwargs):
        """Removes a damaged folder of the step about to be saved; puts off a save where an epoch ends.

        What is evaluated and logged at the end of an epoch belongs to the step that ended it: had that step been saved
        before, a run resumed from there would leave it out.
        """
        if self._every and (state.global_step % self._every == 0 or state.global_step >= state.max_steps):
            control.should_save = True
        self._deferred = control.should_save and (control.should_training_stop or (state.epoch or 0.5) % 1 == 0)
        if self._deferred:
            control.should_save = False
        self._clear(args, state, control)

    def on_evaluate(self, args, state, control, **kwargs):
        """Removes an unfinished folder where the evaluation decides on saving."""
        best = args.save_strategy == "best" and checkpoints.read_manifest(_folder(args, state.global_step)) is None
        self._clear(args, state, control, always=best)

    def on_epoch_end(self, args, state, control, **kwargs):
        """Removes a damaged folder of the step about to be saved."""
        control.should_save = control.should_save or self._deferred
        self._deferred = False
        self._clear(args, state, control)

    def _clear(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *, always: bool = False
    ) -> None:
        if control.should_save or always:
            folder = _folder(args, state.global_step)
            if PartialState().is_main_process and folder.exists():
                shutil.rmtree(folder)
            PartialState().wait_for_everyone()

    def on_save(self, args, state, control, **kwargs):
        """Writes the manifest once every process has written its part."""
        folder = _folder(args, state.global_step)
        self._complete(folder, state, kwargs.get("model"), resumable=not args.save_only_model)
        if self._stops():
            control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """Waits for scores that are made beside the training, and removes what they kept."""
        if self.monitor and PartialState().is_main_process:
            self.monitor.finish(state.global_step)
            self._rotate(Path(str(args.output_dir)), state)
        PartialState().wait_for_everyone()

    def _look(self, state: TrainerState) -> bool:
        """Scores and decides what is due; returns, in every process, whether the run ends here."""
        if self.monitor and PartialState().is_main_process:
            told = self.monitor.stop
            self.monitor.look(state.global_step)
            if self.monitor.stop and not told:
                self._say(self.monitor.stop)
        return self._stops()

    def _stops(self) -> bool:
        """Says in every process what the first one has decided."""
        if self.monitor is None:
            return False
        return bool(broadcast_object_list([self.monitor.stop])[0])

    def _complete(self, folder: Path, state: TrainerState, model: Any, *, resumable: bool) -> None:
        PartialState().wait_for_everyone()
        if PartialState().is_main_process:
            save_head(folder, model)
            rundir.write_card(folder)
            checkpoints.write_manifest(folder, step=state.global_step, resumable=resumable)
        self._look(state)
        if PartialState().is_main_process:
            self._rotate(folder.parent, state)
        PartialState().wait_for_everyone()

    def _rotate(self, run_dir: Path, state: TrainerState) -> None:
        """Removes the oldest checkpoints beyond the limit; never the best one, nor for damaged ones that lie ahead."""
        if self.limit is None:
            return
        best = Path(state.best_model_checkpoint).name if state.best_model_checkpoint else None
        kept = {best, "checkpoint-0"} | (self.monitor.kept if self.monitor else set())
        made = [path for path in checkpoints.list_checkpoints(run_dir) if path.name not in kept]
        made = [path for path in made if (checkpoints.step_of(path) or 0) <= state.global_step]
        for folder in made[: -self.limit]:
            checkpoints.remove(folder)


class ProgressDisplay(TrainerCallback):
    """Shows how far a run is, in place of transformers' bars and dictionaries: one line with loss, rate and time left.

    On a terminal it moves, and evaluations stand above it; elsewhere it is a plain line now and then.

    Args:
        title: What the line begins with.
    """

    def __init__(self, title: str):
        self._title = title
        self._line: ProgressLine | None = None
        self._figures: dict[str, Any] = {}
        self._began = (0, 0.0)

    def on_train_begin(self, args, state, control, **kwargs):
        """Begins the line."""
        if state.is_world_process_zero:
            self._line = ProgressLine(self._title, state.max_steps, terminal=False if args.disable_tqdm else None)
            self._began = (state.global_step, time.monotonic())

    def on_step_end(self, args, state, control, **kwargs):
        """Moves the line on."""
        self._show(state)

    def on_prediction_step(self, args, state, control, **kwargs):
        """Says that the run evaluates."""
        self._show(state, "evaluating")

    def _show(self, state: TrainerState, doing: str = "") -> None:
        if self._line is None:
            return
        step, known = state.global_step, self._figures
        begun, when = self._began
        parts = [f"{step:,}/{state.max_steps:,}"]
        parts += [f"loss {known['loss']:.4g}"] if "loss" in known else []
        parts += [f"reward {known['reward']:.4g}"] if "reward" in known else []
        parts += [f"{known['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in known else []
        if step > begun:
            left = (time.monotonic() - when) / (step - begun) * (state.max_steps - step)
            parts.append(f"{clock(left)} left")
        self._line.show(", ".join([*parts, doing] if doing else parts), step)

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        """Keeps the newest figures; those of an evaluation get a line that stays."""
        logs = logs or {}
        self._figures |= {name: logs[name] for name in ("loss", "reward", "tokens_per_second") if name in logs}
        held_out = {name: value for name, value in logs.items() if name.startswith("eval_") and "_per_" not in name}
        held_out.pop("eval_runtime", None)
        if self._line is not None and held_out:
            said = ", ".join(f"{name} {value:.4g}" for name, value in held_out.items() if isinstance(value, float))
            print(f"step {state.global_step:,}: {said}", flush=True)

    def on_save(self, args, state, control, **kwargs):
        """Gives the terminal free: a checkpoint may be scored now, by a process that has lines of its own."""
        self.close()

    def on_train_end(self, args, state, control, **kwargs):
        """Ends the line."""
        self.close()

    def close(self) -> None:
        """Takes the line off the terminal."""
        if self._line is not None:
            self._line.hide()


def clock(seconds: float) -> str:
    """Returns a time as people say it: ``4:05``, ``3:04:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _folder(args: TrainingArguments, step: int) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{step}"


class RankAllocation(TrainerCallback):
    """Shares out AdaLoRA's ranks after each optimizer step (Zhang et al. 2023, arXiv:2303.10512, algorithm 1).

    Nobody else calls peft's allocator, without which the ranks stay as they begin. It is told how long the run is.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Lays the schedule out over the run's steps."""
        if allocator := allocator_of(kwargs["model"]):
            allocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Updates what each rank is worth, while the step's gradients are there, and masks those beyond the budget."""
        if allocator_of(kwargs["model"]):
            kwargs["model"].base_model.update_and_allocate(state.global_step + 1)


class AveragedWeights(TrainerCallback):
    """Puts a schedule-free optimizer's mean of iterates in the place of the weights that are about to be saved.

    That mean is its model (Defazio et al. 2024, arXiv:2405.15682, section 2); gradients are taken elsewhere. The
    Trainer swaps it in to evaluate, but not to save (transformers 5.23). The next step swaps it out.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Swaps it in where a save, or the end, comes next."""
        optimizer: Any = kwargs.get("optimizer")
        if (control.should_save or control.should_training_stop) and hasattr(optimizer, "eval"):
            optimizer.eval()

    on_epoch_end = on_step_end


class ProgressKeeper(TrainerCallback):
    """Writes the log, and makes a resumed run's log and end those of an uninterrupted one.

    transformers resumes steps, optimizer and random numbers. It forgets the loss since the last line of the log and the
    sum behind ``train_loss``; TRL forgets its token count and the metrics not logged yet. And a run that had come to
    its end trains one step more (seen with transformers 5.23 and TRL 1.16).

    Private names used here, which a test holds to what they are: transformers' ``_globalstep_last_logged``,
    ``_initial_global_step``, ``_initial_num_input_tokens_seen``, ``_run_epoch``, ``_total_loss_scalar``, ``_tr_loss``;
    TRL's ``_metrics``, ``_pending_metrics``, ``_stored_metrics``, ``_total_train_tokens``.

    Attributes:
        trainer: Set once the trainer, which takes its callbacks first, has been built.
    """

    trainer: Any = None

    def __init__(self) -> None:
        self._earlier = self._began = 0.0
        self._evaluates_on_start = False

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes back what ``on_save`` kept; a run that was at its end takes no step."""
        self._began = time.monotonic()
        if state.global_step == 0:
            return
        trainer, folder = self.trainer, _folder(args, state.global_step)
        self._evaluates_on_start, args.eval_on_start = args.eval_on_start, False  # it has been, and is in the log
        best = _folder(args, state.best_global_step or 0)
        if state.best_global_step and best.is_dir():
            state.best_model_checkpoint = str(best)  # the path that was saved goes astray when a run is moved
        kept = _read_progress(args, folder)
        if kept:
            self._earlier = kept["seconds"]
            trainer._tr_loss.fill_(kept["loss"])
            trainer._total_loss_scalar, trainer._globalstep_last_logged = kept["loss_sum"], kept["logged"]
            trainer._initial_global_step = trainer._initial_num_input_tokens_seen = 0
            if kept["tokens"] is not None:
                trainer._total_train_tokens = kept["tokens"]
            if kept.get("sources") is not None:
                trainer.sources.state.update(kept["sources"])
            for name, values in kept["metrics"].items():
                _refill(getattr(trainer, name, {}), values)
            trainer.model.train(kept["training"])  # TRL's log asks it which metrics are meant
        stopped = bool(kept) and kept["stopped"] and kept["max_steps"] == state.max_steps
        if state.global_step >= state.max_steps or stopped:
            self.end()

    def end(self) -> None:
        """Ends a resumed run before it takes a step."""
        self.trainer._run_epoch = self._stop

    def _stop(self, **_: Any) -> None:
        self.trainer.control.should_training_stop = True

    def on_epoch_begin(self, args, state, control, **kwargs):
        """Leaves the settings as the recipe has them."""
        args.eval_on_start = args.eval_on_start or self._evaluates_on_start

    def on_save(self, args, state, control, **kwargs):
        """Writes what this process would forget."""
        if args.save_only_model:
            return
        trainer = self.trainer
        kept = {
            "seconds": self._earlier + time.monotonic() - self._began,
            "loss": trainer._tr_loss.item(),
            "loss_sum": trainer._total_loss_scalar,
            "logged": trainer._globalstep_last_logged,
            "tokens": getattr(trainer, "_total_train_tokens", None),
            "sources": trainer.sources.state if hasattr(trainer, "sources") else None,
            "metrics": {name: with_leaves(vars(trainer)[name], _plain) for name in _METRICS if name in vars(trainer)},
            "training": trainer.model.training,
            "stopped": control.should_training_stop,
            "max_steps": state.max_steps,
        }
        torch.save(kept, _folder(args, state.global_step) / _progress_name(args))

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        """Writes a line of ``log.jsonl``, which outlives checkpoints; its speeds are those of all parts of a run."""
        logs = {} if logs is None else logs
        if self._earlier and "train_runtime" in logs:
            seconds = logs["train_runtime"]
            logs["train_runtime"] = round(seconds + self._earlier, 4)
            for name in [name for name in logs if name.startswith("train_") and name.endswith("_per_second")]:
                logs[name] = round(logs[name] * seconds / logs["train_runtime"], 3)
        if state.is_world_process_zero and logs:
            line = rundir.log_line({**logs, "step": state.global_step})
            append_line(Path(str(args.output_dir)) / rundir.LOG, line, sync=False)


_METRICS = ("_metrics", "_pending_metrics", "_stored_metrics")


def _progress_name(args: TrainingArguments) -> str:
    return f"progress_{args.process_index}_of_{args.world_size}.pt"


def _read_progress(args: TrainingArguments, folder: Path) -> dict[str, Any]:
    """Reads what was kept of this process, or of the first one where another number of processes trained."""
    own = folder / _progress_name(args)
    paths = [own] if own.is_file() else sorted(folder.glob("progress_0_of_*.pt"))
    return torch.load(paths[0], map_location="cpu", weights_only=True) if paths else {}


def _plain(value: Any) -> Any:
    """Turns a figure of a library's own type into what can be loaded without running code."""
    return value.item() if hasattr(value, "item") and not isinstance(value, torch.Tensor) else value


def _refill(target: Any, values: dict[Any, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict):
            _refill(target[key], value)
        else:
            target[key] = value
