"""``profile: true``: a torch trace of a few steps, and where their time went in words."""

import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..data_tools.progress import Say

FOLDER = "profile"
FIRST, STEPS = 3, 3  # the first steps allocate and compile, and are none like the others
_WORDS = {
    "forward": "forward pass and loss",
    "backward": "backward pass",
    "optimizer": "optimizer",
    "rest": "data, log and all else between",
}


class Profiler(TrainerCallback):
    """Traces three steps of the first process, from the third on, and says where their time went.

    The trace is a file for chrome://tracing or ui.perfetto.dev. On a GPU the traced steps wait for it at the end of
    each part, so that a part is charged what it took; a profiler also slows all that is short.

    Args:
        say: Takes a line for the user.
    """

    def __init__(self, say: Say = print):
        self._say = say
        self._seconds = dict.fromkeys(_WORDS, 0.0)
        self._profile: Any = None
        self._began = self._mark = 0.0
        self._last = 0

    def attach(self, trainer: Any) -> None:
        """Takes the times of a trainer's parts."""
        compute, train = trainer.compute_loss, trainer.training_step

        def compute_loss(*args: Any, **kwargs: Any) -> Any:
            with self._part("forward"):
                return compute(*args, **kwargs)

        def training_step(*args: Any, **kwargs: Any) -> Any:
            before = self._seconds["forward"]
            with self._part("backward"):
                loss = train(*args, **kwargs)
            self._seconds["backward"] -= self._seconds["forward"] - before
            return loss

        trainer.compute_loss, trainer.training_step = compute_loss, training_step

    @contextmanager
    def _part(self, name: str) -> Any:
        began = _now() if self._profile else 0.0
        yield
        if self._profile:
            self._seconds[name] += _now() - began

    def on_step_end(self, args, state, control, **kwargs):
        """Begins after the steps that are left out, and ends after those that are traced."""
        if not state.is_world_process_zero:
            return
        if self._profile is None and not self._last and state.global_step >= FIRST - 1:
            self._last = state.global_step + STEPS
            cuda = [torch.profiler.ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *cuda])
            self._profile.start()
            self._began = _now()
        elif self._profile is not None and state.global_step == self._last:
            self._end(Path(str(args.output_dir)))

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Starts the optimizer's clock."""
        if self._profile:
            self._mark = _now()

    def on_optimizer_step(self, args, state, control, **kwargs):
        """Stops it."""
        if self._profile:
            self._seconds["optimizer"] += _now() - self._mark

    def on_train_end(self, args, state, control, **kwargs):
        """Says so where the run was too short."""
        if state.is_world_process_zero and (self._profile is not None or not self._last):
            self._say(f"profile: nothing was written, since the run took fewer than {FIRST - 1 + STEPS} steps")

    def close(self) -> None:
        """Ends a trace that is not whole: a process that ends while one is made may crash."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _end(self, run_dir: Path) -> None:
        whole = _now() - self._began
        self._profile.stop()
        profile, self._profile = self._profile, None
        folder = run_dir / FOLDER
        folder.mkdir(exist_ok=True)
        profile.export_chrome_trace(str(folder / "trace.json"))
        text = "\n".join(words(whole, self._seconds, profile.key_averages()))
        (folder / "profile.txt").write_text(text + "\n")
        self._say(f"{text}\nprofile: {folder / 'trace.json'} is the trace, for ui.perfetto.dev or chrome://tracing")


def words(whole: float, seconds: dict[str, float], operations: Any) -> list[str]:
    """Says where the time of traced steps went.

    Args:
        whole: Seconds of all of them.
        seconds: Those of each part.
        operations: ``key_averages`` of torch's profiler.
    """
    seconds = seconds | {"rest": max(0.0, whole - sum(seconds.values()))}
    parts = ", ".join(f"{_WORDS[name]} {part / whole:.0%}" for name, part in seconds.items())
    lines = [f"profile: a step took {whole / STEPS:.3g} s: {parts}"]
    for device in ("CPU", "GPU"):
        field = "self_cpu_time_total" if device == "CPU" else "self_device_time_total"
        times = {each.key: getattr(each, field, 0.0) for each in operations}
        total = sum(times.values())
        if total:
            most = sorted(times, key=lambda key: -times[key])[:5]
            lines.append(f"profile: on the {device} most in " + ", ".join(f"{k} {times[k] / total:.0%}" for k in most))
    return lines


def _now() -> float:
    """Returns the time once the GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.monotonic()
