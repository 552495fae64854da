"""What every stage's log says beside the trainer's own figures: speed, use of the device, memory."""

import resource
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback

from ..data_tools.progress import Say
from .optimizers import trained_groups


class Meter(TrainerCallback):
    """Adds to each line of a trainer's log what training costs.

    ``tokens_per_second``
        Tokens that the model is trained on, of all processes, padding left out, and KTO's mismatched answers, which it
        only reads; in stages that sample, those of prompts and completions, each time they are learnt from.
        Evaluations, saves and the log itself do not count as time.
    ``mfu``
        Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): the FLOPs that these tokens
        need over what the devices could have done. Absent where their peak is not known.
    ``memory_gib``
        The most that the process has held: on CUDA what tensors took, elsewhere resident memory.
    ``grad_norm/attention`` and the like
        What each group of weights (``optimizers.trained_groups``) has in ``grad_norm``, the norm before clipping of the
        step that is logged: the root of the sum of their squares. Left out under DeepSpeed and FSDP, where no process
        has whole gradients.

    Args:
        flops: The FLOPs of training on a token.
        peak: FLOPs a second of one device; None where that is not known.
        say: Takes a line for the user.
    """

    def __init__(self, flops: float, peak: float | None, *, say: Say):
        self._flops, self._peak, self._say = flops, peak, say
        self._groups: dict[str, list[torch.nn.Parameter]] = {}
        self._norms: dict[str, torch.Tensor] = {}
        self._seconds = 0.0
        self._mark = time.monotonic()
        self._tokens: Any = 0

    def attach(self, trainer: Any) -> None:
        """Counts the tokens of a trainer's batches and adds to what it logs."""
        compute, log = trainer.compute_loss, trainer.log

        def compute_loss(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if model.training:  # prompts have been answered by now
                self._tokens = self._tokens + tokens_of(inputs)
            return compute(model, inputs, *args, **kwargs)

        def logged(logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
            if "loss" in logs:
                logs.update(self._figures(trainer) | self._group_norms(logs.get("grad_norm")))
            log(logs, *args, **kwargs)
            self._mark = time.monotonic()

        trainer.compute_loss, trainer.log = compute_loss, logged
        if trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
            self._say("log: no norms of the gradient by group of weights, of which no process has all")
        else:
            self._groups = trained_groups(trainer.model)

    def _figures(self, trainer: Any) -> dict[str, float]:
        """Returns the figures since the last line of the log, and begins anew; to be called in all processes."""
        self._pass()
        counted: Any = trainer.accelerator.reduce(torch.as_tensor(self._tokens, device=trainer.args.device))
        tokens = int(counted)
        rate = tokens / max(self._seconds, 1e-9)
        self._seconds, self._tokens = 0.0, 0
        figures = {"tokens_per_second": round(rate, 1)} if tokens else {}
        if self._peak and tokens:
            figures["mfu"] = round(self._flops * rate / self._peak / trainer.args.world_size, 4)
        return figures | {"memory_gib": round(peak_memory() / 2**30, 3)}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Takes the groups' norms where the step may be logged."""
        step = state.global_step + 1
        if args.logging_strategy == "steps" and step % state.logging_steps and step > 1:
            return
        self._norms = {}
        for kind, weights in self._groups.items():
            if gradients := [weight.grad for weight in weights if weight.grad is not None]:
                self._norms[kind] = torch.nn.utils.get_total_norm(gradients)

    def _group_norms(self, whole: float | None) -> dict[str, float]:
        """Returns the groups' norms as they were before clipping, which left their shares as they are."""
        if not self._norms:
            return {}
        norms = torch.stack(list(self._norms.values())).double()
        scale = 1.0 if whole is None else whole / norms.norm().clamp(min=1e-30)
        found = (norms * scale).tolist()
        named, self._norms = dict(zip(self._norms, found, strict=True)), {}
        return {f"grad_norm/{kind}": round(norm, 6) for kind, norm in sorted(named.items())}

    def _pass(self) -> None:
        now = time.monotonic()
        self._seconds, self._mark = self._seconds + now - self._mark, now

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the clock."""
        self._mark = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        """Counts the step's time."""
        self._pass()

    def on_evaluate(self, args, state, control, **kwargs):
        """Leaves an evaluation's time out."""
        self._mark = time.monotonic()

    on_save = on_evaluate


def tokens_of(batch: dict[str, Any]) -> Any:
    """Counts the tokens of a batch that a model is trained on, whatever its columns are called; not waited for."""
    trained = {name: column for name, column in batch.items() if not name.startswith("KL_")}  # of KTO, only read
    ends = ("attention_mask", *(("prompt_mask", "completion_mask") if "prompt_mask" in batch else ()))
    masks = [column for name, column in trained.items() if name.endswith(ends)]
    if masks:
        return sum(mask.sum() for mask in masks)
    return sum(ids.numel() for name, ids in trained.items() if name.endswith("input_ids"))


def peak_memory() -> int:
    """Returns the bytes that this process has held at most."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
