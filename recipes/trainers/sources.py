"""The loss of each source in the log, and how much of each a run has learnt from.

A mixture's loss says little: it falls where an easy source's share grows. Each source's own is a mean over its tokens
since the last line of the log, over all batches of a step and all processes.
"""

from typing import Any

import torch

PREFIX = "loss/"


class SourceLosses:
    """Adds up what a trainer learns from each source.

    Args:
        names: The sources, in the order of their numbers in the rows.

    Attributes:
        state: What a checkpoint keeps: ``since`` [sources, 2], the losses and their number since the last line of the
            log in this process, and ``run`` [sources], the number up to that line in all processes.
    """

    def __init__(self, names: tuple[str, ...]):
        again = [names[:number].count(name) for number, name in enumerate(names)]
        self.names = tuple(f"{name} ({n + 1})" if n else name for name, n in zip(names, again, strict=True))
        self.state = {
            "since": torch.zeros(len(names), 2, dtype=torch.float64),
            "run": torch.zeros(len(names), dtype=torch.float64),
        }

    def add(self, losses: torch.Tensor, sources: torch.Tensor | None) -> None:
        """Adds the losses of some tokens or rows.

        Args:
            losses: Those that count, [N].
            sources: The source of each, [N]; None where there is one alone.
        """
        number = torch.zeros_like(losses, dtype=torch.int64) if sources is None else sources
        mine = number == torch.arange(len(self.names), device=losses.device)[:, None]
        # one source after the other, not scattered: sums on a GPU then have an order
        self.add_sums(torch.stack([(mine * losses.detach().double()).sum(1), mine.sum(1).double()], dim=1))

    def add_sums(self, sums: torch.Tensor) -> None:
        """Adds losses and their numbers, float64 ``[sources, 2]``."""
        self.state["since"] = self.state["since"].to(sums.device) + sums

    def take(self, accelerator: Any) -> dict[str, float]:
        """Returns what goes into a line of the log, and begins anew; to be called in all processes."""
        since: Any = accelerator.reduce(self.state["since"].to(accelerator.device), reduction="sum")
        self.state["since"] = torch.zeros_like(since)
        self.state["run"] = self.state["run"].to(since.device) + since[:, 1]
        if len(self.names) == 1:
            return {}  # it is the loss
        return {
            PREFIX + name: round(loss / count, 6)
            for name, (loss, count) in zip(self.names, since.tolist(), strict=True)
            if count
        }

    def counts(self) -> list[int]:
        """Returns the tokens that carry loss, or rows, that the run has learnt from by the last line of the log."""
        return [int(count) for count in self.state["run"].tolist()]
