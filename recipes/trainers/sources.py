"""The loss of each source in the log, or the reward, and how much of each a run has learnt from.

A mixture's loss says little: it falls where an easy source's share grows. Each source's own is a mean over what its
loss is a mean over, tokens or rows, since the last line of the log, over all batches of a step and all processes.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode

Unit = Literal["tokens", "hidden tokens", "rows", "completions"]


class SourceLosses:
    """Adds up what a trainer learns from each source.

    Args:
        names: The sources, in the order of their numbers in the rows.
        of: What has a loss, or, of completions, a reward.

    Attributes:
        logged: Whether the log has their losses: that of one source alone is the loss.
        state: What a checkpoint keeps: ``since`` [sources, 2], the losses and their number since the last line of the
            log in this process, and ``run`` [sources], the number up to that line in all processes.
    """

    def __init__(self, names: tuple[str, ...], of: Unit):
        self.of, self.logged, self._prefix = of, len(names) > 1, "reward/" if of == "completions" else "loss/"
        again = [names[:number].count(name) for number, name in enumerate(names)]
        self.names = tuple(f"{name} ({n + 1})" if n else name for name, n in zip(names, again, strict=True))
        self.state = {
            "since": torch.zeros(len(names), 2, dtype=torch.float64),
            "run": torch.zeros(len(names), dtype=torch.float64),
        }

    def add(self, losses: torch.Tensor, sources: torch.Tensor | None, *, counted: bool = True) -> None:
        """Adds the losses of some tokens or rows, or the rewards of some completions.

        Args:
            losses: Those that count, [N].
            sources: The source of each, [N]; None where there is one alone.
            counted: Whether they are new ones, and not terms of losses that are added elsewhere.
        """
        number = torch.zeros_like(losses, dtype=torch.int64) if sources is None else sources
        mine = number == torch.arange(len(self.names), device=losses.device)[:, None]
        # one source after the other, not scattered: sums on a GPU then have an order
        counts = mine.sum(1) if counted else torch.zeros(len(mine), device=losses.device)
        self.add_sums(torch.stack([(mine * losses.detach().double()).sum(1), counts.double()], dim=1))

    def add_sums(self, sums: torch.Tensor) -> None:
        """Adds losses and their numbers, float64 ``[sources, 2]``."""
        self.state["since"] = self.state["since"].to(sums.device) + sums

    def take(self, accelerator: Any) -> dict[str, float]:
        """Returns what goes into a line of the log, and begins anew; to be called in all processes."""
        since: Any = accelerator.reduce(self.state["since"].to(accelerator.device), reduction="sum")
        self.state["since"] = torch.zeros_like(since)
        self.state["run"] = self.state["run"].to(since.device) + since[:, 1]
        if not self.logged:
            return {}
        return {
            self._prefix + name: round(loss / count, 6)
            for name, (loss, count) in zip(self.names, since.tolist(), strict=True)
            if count
        }

    def counts(self) -> list[int]:
        """Returns the tokens that carry loss, or rows, that the run has learnt from by the last line of the log."""
        return [int(count) for count in self.state["run"].tolist()]


class BySource:
    """Logs the loss, or reward, of each source; stands before the trainer's class among the bases.

    Args:
        sources: The names of the sources.
        **arguments: Those of the trainer.
    """

    sources_are_of: Unit = "tokens"

    accelerator: Any

    def __init__(self, *args: Any, sources: tuple[str, ...], **arguments: Any):
        super().__init__(*args, **arguments)
        self.sources = SourceLosses(sources, self.sources_are_of)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Logs what the trainer logs, with the figures of the sources beside the loss of the training."""
        if "loss" in logs:
            logs.update(self.sources.take(self.accelerator))
        elif "train_loss" in logs:  # the end: what came since the last line is counted
            self.sources.take(self.accelerator)
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class _Means(TorchFunctionMode):
    """Keeps the vectors of which a mean is taken that a gradient flows through, each with its mean."""

    _TAKEN = (torch.mean, torch.Tensor.mean, torch.Tensor.nanmean)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in self._TAKEN and len(args) == 1 and not kwargs and args[0].dim() == 1 and result.requires_grad:
            self.found.append((args[0], result))
        return result


def losses_of_rows(compute: Callable[[], torch.Tensor], rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Computes the loss of a batch, and what each of its rows has in it.

    TRL's trainers take the means of their rows' losses, of several kinds perhaps, and return the weighted sum alone. A
    mean's weight is the derivative of the loss by it; no pass through the model is needed for that.

    Args:
        compute: Computes it.
        rows: How many rows there are.

    Returns:
        The loss, and the rows' losses, [rows], whose mean it is: but for terms that are no mean over rows.
    """
    with _Means() as means:
        loss = compute()
    # what is picked by a mask is of tokens, as many as rows though they may be
    found = [each for each in means.found if len(each[0]) == rows and "Index" not in type(each[0].grad_fn).__name__]
    of_rows = torch.zeros(rows, dtype=torch.float32, device=loss.device)
    if found:
        weights = torch.autograd.grad(loss, [mean for _, mean in found], retain_graph=True, allow_unused=True)
        for (vector, _), weight in zip(found, weights, strict=True):
            if weight is not None:  # else it is a figure of the log
                of_rows += vector.detach().float() * weight
    return loss, of_rows
