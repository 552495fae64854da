"""What goes wrong while a model trains, by the figures of its steps; and the record of it, ``watchdog.jsonl``.

A figure is compared with the median of those before it, in units of their median absolute deviation: a robust z-score
(Iglewicz and Hoaglin 1993, "How to detect and handle outliers"), which one outlier does not move as it would mean and
standard deviation. Nothing heavy is imported: ``watch`` reads the record too.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data_tools.files import read_jsonl_log

FILE = "watchdog.jsonl"
WINDOW = 50  # figures that one is compared with
LATEST = 5  # of them, that a jump is measured from
ENOUGH = 20  # figures before the first is judged
SPIKE = 8.0  # robust standard deviations; a normal draw is never there, and batches of text seldom beyond 5
FALLEN, IN_ROW = 3.0, 5  # rewards: so many deviations below the median, so many lines of the log in a row
MUTED = 20  # steps after a warning in which the same is not said again
FATAL = ("loss not finite", "gradient not finite")  # every weight is lost: no run goes on after these
MOST_REWINDS = 5  # of a run; more mean that the batches are not to blame


@dataclass(frozen=True)
class Fault:
    """Something that went wrong.

    Attributes:
        step: The step at which it began.
        name: What it is, such as ``loss spike``.
        what: The same in a clause, with figures.
        hint: What to do about it.
    """

    step: int
    name: str
    what: str
    hint: str


_SLOWER = "lower trainer.learning_rate or lengthen trainer.warmup_steps"
_HINTS = {
    "loss not finite": f"{_SLOWER}, and look at the rows of this step (posttrain show); fp16 overflows where bf16 not",
    "gradient not finite": f"{_SLOWER}; fp16 overflows where bf16 does not",
    "loss spike": f"look at the rows of this step (posttrain show); if spikes come again, {_SLOWER}",
    "exploding gradient": f"{_SLOWER}, or lower trainer.max_grad_norm",
    "no supervised token": "the batch taught nothing: look at its rows and their loss mask (posttrain show); "
    "trainer.max_length may have cut the answers off",
    "reward collapse": "raise the KL coefficient (trainer.beta; ppo: trainer.kl_coef), lower trainer.learning_rate, "
    "and read what the policy writes",
    "KL blow-up": "raise the KL coefficient (trainer.beta; ppo: trainer.kl_coef) or lower trainer.learning_rate",
}


class Detector:
    """Judges the figures of one run, step by step.

    Args:
        clip: ``trainer.max_grad_norm``; gradients below it are not exploding, whatever came before. 0 for none.
        spikes: Whether a loss can spike. That of a policy which learns from its own samples says nothing, and may be
            about 0 at any time: its rewards and its divergence from the reference are judged instead. KTO's is bounded
            (Ethayarajh et al. 2024, arXiv:2402.01306, section 4.1), and a batch's depends on how many of its answers
            are wanted.
        scaled: Whether losses are scaled for fp16: a gradient that overflows is part of it, and its step is left out.

    Attributes:
        history: The latest figures by name, which checkpoints keep.
    """

    def __init__(self, *, clip: float = 0.0, spikes: bool = True, scaled: bool = False):
        self._clip, self._spikes, self._scaled = clip, spikes, scaled
        self.history: dict[str, list[float]] = {}

    def step(self, step: int, loss: float, grad_norm: float | None, supervised: float | None) -> list[Fault]:
        """Judges a step.

        Args:
            step: Its number.
            loss: Its loss, the mean over processes.
            grad_norm: The norm of its gradient before clipping; None where it is not known.
            supervised: How many of its tokens carry loss; None where the stage has no such thing.
        """
        if supervised == 0:  # whatever its loss is, it says nothing
            return [self._fault(step, "no supervised token", "no token of the batch carries loss")]
        found = []
        if not math.isfinite(loss):
            found.append(self._fault(step, "loss not finite", f"the loss is {loss}"))
        elif self._spikes:
            median, z = self._rise("loss", loss, relative=0.05, absolute=0.02)
            if z > SPIKE:
                what = f"the loss is {loss:.4g} after a median of {median:.4g}"
                found.append(self._fault(step, "loss spike", f"{what} (robust z {z:.0f})"))
        if grad_norm is not None and math.isfinite(loss):
            found += self._gradient(step, grad_norm)
        return found

    def _gradient(self, step: int, norm: float) -> list[Fault]:
        if not math.isfinite(norm):
            fault = self._fault(step, "gradient not finite", f"the norm of the gradient is {norm}")
            return [] if self._scaled else [fault]
        if norm <= 0:  # nothing was learnt, as from a group whose answers all got one reward
            return []
        # Norms spread by factors: their logarithms are compared, so that it takes 7.4 times the median at least.
        median, z = self._compare("grad_norm", math.log(norm), absolute=0.25)
        if z > SPIKE and norm > self._clip:
            what = f"the norm of the gradient is {norm:.4g} after a median of {math.exp(median):.4g}"
            return [self._fault(step, "exploding gradient", f"{what} (robust z {z:.0f} of its logarithm)")]
        return []

    def log(self, step: int, logs: Mapping[str, Any]) -> list[Fault]:
        """Judges what a sampling stage has logged."""
        found: list[Fault] = []
        reward, kl = logs.get("reward"), logs.get("kl")
        if isinstance(reward, float) and math.isfinite(reward):
            found += self._reward(step, reward)
        if isinstance(kl, float) and not math.isfinite(kl):
            found.append(self._fault(step, "KL blow-up", f"the divergence from the reference is {kl}"))
        elif isinstance(kl, float):
            median, z = self._rise("kl", math.log(max(kl, 1e-6)), absolute=0.25, enough=ENOUGH // 2)
            if z > SPIKE and kl > 1:
                what = f"the divergence from the reference is {kl:.4g} nats after a median of {math.exp(median):.4g}"
                found.append(self._fault(step, "KL blow-up", f"{what} (robust z {z:.0f} of its logarithm)"))
        return found

    def _reward(self, step: int, reward: float) -> list[Fault]:
        """Judges a reward by those before the latest few, of which all must have fallen."""
        _, z = self._compare("reward", reward, relative=0.02, absolute=1e-3, enough=ENOUGH // 2)
        low = self.history.setdefault("low rewards", [])
        if z >= -FALLEN:
            low.clear()
            return []
        self.history["reward"].pop()  # what is compared with is what the policy had before it fell
        low.append(float(step))
        if len(low) < IN_ROW:
            return []
        first, median = int(low[0]), statistics.median(self.history["reward"])
        low.clear()
        what = f"the reward is {reward:.4g} after a median of {median:.4g}, and was lower since step {first}"
        return [self._fault(first, "reward collapse", what)]

    def _rise(self, name: str, value: float, **floors: Any) -> tuple[float, float]:
        """Returns the median of a figure, and how far a new value lies above it or above the latest few.

        A loss that falls fast, or a divergence that grows from 0, spreads so widely that a spike is hardly beyond it:
        a value above the median is judged by its jump too.
        """
        latest = self.history.get(name, [])[-LATEST:]
        jump = value - statistics.median(latest) if latest else 0.0
        median, z = self._compare(name, value, **floors)
        floor = max(floors.get("relative", 0.0) * abs(median), floors["absolute"])
        _, of_jump = self._compare(f"{name}, jump", jump, absolute=floor, enough=floors.get("enough", ENOUGH))
        return median, max(z, of_jump) if z > 1 else z

    def _compare(
        self, name: str, value: float, *, relative: float = 0.0, absolute: float = 0.0, enough: int = ENOUGH
    ) -> tuple[float, float]:
        """Returns the median of a figure and the robust z-score of a new value, which then belongs to them.

        Args:
            name: The figure.
            value: Its new value.
            relative: What the deviation is at least, as a share of the median; figures that hardly vary, such as the
                loss of a large batch, would else make a spike of everything.
            absolute: What the deviation is at least.
            enough: Without so many values the score is 0.
        """
        before = self.history.setdefault(name, [])
        median, z = value, 0.0
        if len(before) >= enough:
            median = statistics.median(before)
            # 1.4826 makes of the median absolute deviation of normal draws their standard deviation
            deviation = 1.4826 * statistics.median(abs(other - median) for other in before)
            z = (value - median) / max(deviation, relative * abs(median), absolute)
        before.append(value)
        del before[:-WINDOW]
        return median, z

    def _fault(self, step: int, name: str, what: str) -> Fault:
        return Fault(step, name, what, _HINTS[name])


def read(run_dir: Path, problems: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads what the watchdog of a run has seen: ``step``, ``fault``, ``what``, ``hint``, and ``did``."""
    return read_jsonl_log(run_dir / FILE, problems)


def skipped_steps(events: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the steps whose batches are skipped, in the order in which they were found out."""
    return [int(event["step"]) for event in events if event.get("did") == "rewind"]
