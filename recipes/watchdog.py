"""The watchdog of a run: looks at every step, and warns, stops, or goes back and skips the batch.

Going back is done by whoever trains (`train.py`): the run begins anew from the last checkpoint before the fault, and
the step that failed takes no update. Which steps are skipped stands in the run's ``watchdog.jsonl``, so a run that was
killed goes on as one that was not. PaLM's authors went back 100 steps and skipped 200 to 500 batches, and the spikes
did not come again (Chowdhery et al. 2022, arXiv:2204.02311, section 5.1).

transformers' private name used here, which a test holds to what it is: ``_get_grad_norm``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from ..data_tools.files import append_line, write_json
from ..data_tools.progress import Say
from . import faults
from .errors import RunError

STATE = "watchdog.json"  # in a checkpoint: the figures that the next ones are compared with


class Rewind(Exception):  # noqa: N818 - it is no error
    """The run goes back before a step, whose batch is then skipped.

    Attributes:
        fault: What was found.
    """

    def __init__(self, fault: faults.Fault):
        super().__init__(fault.what)
        self.fault = fault


class Watchdog(TrainerCallback):
    """Looks at the loss, the gradient and the supervised tokens of every step, and at rewards and divergence.

    Args:
        run_dir: The run folder.
        does: What is done about a fault.
        sampled: Whether the policy learns from its own samples.
        spikes: Whether its loss can spike, as ``faults.Detector`` says.
        say: Takes a line for the user.
    """

    def __init__(
        self,
        run_dir: Path,
        does: Literal["warn", "stop", "rewind"],
        *,
        sampled: bool,
        spikes: bool,
        say: Say = print,
    ):
        self._run_dir, self._does, self._say = run_dir, does, say
        self._sampled, self._spikes = sampled, spikes
        self._skipped = set(faults.skipped_steps(faults.read(run_dir)))
        self._detector = faults.Detector()
        self._muted: dict[str, int] = {}
        self._losses: list[torch.Tensor] = []
        self._norm: Any = None
        self._supervised: torch.Tensor | None = None
        self._since_log = [0, 0]  # steps, and those of them that were skipped
        self._pending: list[tuple[int, Any, torch.Tensor]] = []

    def attach(self, trainer: Any) -> None:
        """Reads the figures of a trainer's steps as they are made; none is changed but those of skipped steps."""
        take, train, norm, log = trainer.get_batch_samples, trainer.training_step, trainer._get_grad_norm, trainer.log
        sources = getattr(trainer, "sources", None)

        def get_batch_samples(*args: Any, **kwargs: Any) -> Any:
            batches, items = take(*args, **kwargs)
            self._losses, self._supervised = [], supervised_tokens(batches)
            return batches, items

        def training_step(*args: Any, **kwargs: Any) -> Any:
            kept = dict(sources.state) if sources else {}
            loss = train(*args, **kwargs).detach()
            if trainer.state.global_step + 1 in self._skipped:
                if sources:
                    sources.state.update(kept)
                return torch.zeros_like(loss)
            self._losses.append(loss)
            return loss

        def get_grad_norm(*args: Any, **kwargs: Any) -> Any:
            self._norm = norm(*args, **kwargs)
            return self._norm

        def logged(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                steps, skipped = self._since_log
                self._since_log = [0, 0]
                if skipped:
                    logs["skipped_steps"] = skipped
                    logs["loss"] *= steps / max(1, steps - skipped)  # they added nothing to the sum
                    if skipped == steps:
                        del logs["loss"], logs["grad_norm"]
            log(logs, *args, **kwargs)

        trainer.get_batch_samples, trainer.training_step = get_batch_samples, training_step
        trainer._get_grad_norm, trainer.log = get_grad_norm, logged

    def on_train_begin(self, args, state, control, **kwargs):
        """Takes back the figures that the next ones are compared with."""
        self._detector = faults.Detector(clip=args.max_grad_norm, spikes=self._spikes, scaled=args.fp16)
        path = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE
        if path.is_file():
            kept = json.loads(path.read_text())
            self._detector.history, self._since_log = kept["history"], kept["since_log"]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Lets a skipped step take no update: without gradients an optimizer changes neither weights nor moments."""
        if state.global_step + 1 in self._skipped:
            kwargs["model"].zero_grad(set_to_none=True)

    def on_step_end(self, args, state, control, **kwargs):
        """Judges the step: at once on a CPU, one step later on a GPU, which is not waited for."""
        step = state.global_step
        self._since_log[0] += 1
        if step in self._skipped:
            self._since_log[1] += 1
        elif self._losses:
            self._pending.append((step, *self._figures(args.device)))
        self._judge(wait=control.should_save or args.device.type != "cuda")

    def on_save(self, args, state, control, **kwargs):
        """Judges what has not been, before the checkpoint counts as whole, and keeps the figures in it."""
        self._judge(wait=True)
        if PartialState().is_main_process:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            write_json(folder / STATE, {"history": self._detector.history, "since_log": self._since_log})

    def on_log(self, args, state, control, logs: dict[str, Any] | None = None, **kwargs):
        """Judges rewards and divergence, which TRL has gathered from all processes."""
        self._judge(wait=True)
        if self._sampled and logs and "loss" in logs:
            self._act(self._detector.log(state.global_step, logs))

    def _figures(self, device: torch.device) -> tuple[Any, torch.Tensor]:
        """Returns loss, norm and supervised tokens of a step over all processes [3], and what says that they are made.

        -1 stands for what is not known.
        """
        loss = torch.stack(self._losses).sum()
        norm = -1.0 if self._norm is None else self._norm
        figures = [loss, norm, -1.0 if self._supervised is None else self._supervised]
        values: Any = torch.stack([torch.as_tensor(each, device=device).float() for each in figures])
        if PartialState().num_processes > 1:
            torch.distributed.all_reduce(values)
            values /= PartialState().num_processes
        if device.type != "cuda":
            return None, values
        there = torch.empty(3, pin_memory=True).copy_(values, non_blocking=True)
        made = torch.cuda.Event()
        made.record()
        return made, there

    def _judge(self, *, wait: bool) -> None:
        ready = len(self._pending) if wait else max(0, len(self._pending) - 1)
        due, self._pending = self._pending[:ready], self._pending[ready:]
        for step, made, values in due:
            if made is not None:
                made.synchronize()
            loss, norm, supervised = values.tolist()
            self._act(
                self._detector.step(step, loss, None if norm == -1 else norm, None if supervised < 0 else supervised)
            )

    def _act(self, found: Sequence[faults.Fault]) -> None:
        """Does about faults what the recipe says; every process finds the same.

        Raises:
            RunError: The run is to stop, or has gone back too often.
            Rewind: The run is to go back.
        """
        for fault in found:
            if self._does == "warn" and fault.step < self._muted.get(fault.name, 0):
                continue
            self._muted[fault.name] = fault.step + faults.MUTED
            does = "stop" if self._does == "warn" and fault.name in faults.FATAL else self._does
            if does == "rewind" and len(self._skipped) >= faults.MOST_REWINDS:
                does = "stop"
            said = f"watchdog: step {fault.step}: {fault.what}"
            if does == "rewind":
                raise Rewind(fault)
            record(self._run_dir, fault, does)
            if does == "stop":
                if self._does == "rewind":
                    said += f"; the run went back {len(self._skipped)} times already, so no batch is to blame"
                raise RunError(said, where=str(self._run_dir), hint=fault.hint)
            self._say(f"{said}; {fault.hint}")


def record(run_dir: Path, fault: faults.Fault, did: str) -> None:
    """Writes a fault into the run's record, in the first process."""
    if PartialState().is_main_process:
        line = {"step": fault.step, "fault": fault.name, "what": fault.what, "hint": fault.hint, "did": did}
        append_line(run_dir / faults.FILE, json.dumps(line))


def supervised_tokens(batches: Sequence[Any]) -> torch.Tensor | None:
    """Counts the tokens of a step's batches that carry loss, by their labels or masks; None where they have neither."""
    counts = []
    for batch in batches:
        for name, column in batch.items() if isinstance(batch, dict) else ():
            if not isinstance(column, torch.Tensor) or column.dim() != 2:
                continue
            if name.endswith("labels") and not column.is_floating_point():
                counts.append((column[:, 1:] != -100).sum())
            elif name == "completion_mask":
                counts.append(column[:, 1:].sum())
    return torch.stack(counts).sum() if counts else None
