"""Sampling as an axis of a suite: each text task under several named settings, and what several samples tell.

Every sample goes through the task's own filters and ``process_results`` as if it were the only one. An item's value of
a metric is then the mean over its samples, so that intervals and comparisons are over items and never over samples.
Beside it stand the unbiased pass@k, the vote of k (maj@k) where the task's filters give an answer to vote with, and
how far the samples lie apart: the standard deviation of the metric from one set of samples to the next.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..data_tools.generate import Draw, Sampling, seed_of
from .errors import EvalError, SuiteError
from .records import Metric
from .spec import SamplingSpec
from .stats.samples import majority_at_k, pass_at_k

if TYPE_CHECKING:
    import torch

_UNREAD = ("", "[invalid]")  # what lm-eval's filters give where they find no answer


class Draws:
    """Draws the tokens of lm-eval's generations, each sample by random numbers of its own.

    So a sample depends on its prompt, its number and the seed, and not on what stands in a batch with it.

    Args:
        setting: How tokens are drawn.
        seed: Of the draws.
    """

    def __init__(self, setting: SamplingSpec, seed: int):
        self.setting, self.seed = setting, seed
        self.seen: Counter[tuple[int, ...]] = Counter()

    def processors(self, prompts: "torch.Tensor", mask: "torch.Tensor", most: int) -> list[Any]:
        """Returns what draws the next tokens of a batch, as transformers' logits processors.

        Args:
            prompts: Token ids, ``[rows][tokens]``, padded on the left.
            mask: 0 where they are padded.
            most: Tokens of an answer at most.
        """
        how = Sampling(most, self.setting.temperature, self.setting.top_p, self.seed)
        seeds = []
        for row, here in zip(prompts.tolist(), mask.tolist(), strict=True):
            prompt = [token for token, kept in zip(row, here, strict=True) if kept]
            seeds.append(seed_of(self.seed, str(self.seen[tuple(prompt)]), prompt))
            self.seen[tuple(prompt)] += 1
        return [Draw(how, seeds)]


class Samples:
    """Has a task of lm-eval score each of several samples of an item, and combine them.

    Args:
        task: lm-eval's, built; it is changed.
        setting: How many samples, and which k.
        primary: The metric that pass@k and maj@k are of; a filter that it names with it counts nothing here, where each
            filter's readings have figures of their own.
        seed: Of draws of voters.

    Raises:
        SuiteError: The task has no such metric.
    """

    def __init__(self, task: Any, setting: SamplingSpec, primary: str | None, seed: int):
        from lm_eval.api.metrics import mean

        name = primary.partition(",")[0] if primary else None
        if name is not None and name not in task.aggregation():
            hint = f"it has: {', '.join(task.aggregation())}"
            raise SuiteError(f"the task has no metric '{name}', of which samples could be combined", hint=hint)
        self.task, self.setting, self.primary, self.seed = task, setting, name, seed
        self.scored: list[list[dict[str, Any]]] = []
        self._filter, self._score = task.apply_filters, task.process_results
        self._means = {name for name, how in task.aggregation().items() if how is mean}
        self._votes = bool(task.config.filter_list) and name != "strict_match"  # votes are of the flexible readings
        task.set_config("repeats", setting.samples)
        task.apply_filters, task.process_results = self.apply_filters, self.process_results
        for name in [*(f"pass@{k}" for k in setting.ks), *(f"maj@{k}" for k in setting.ks)]:
            task._aggregation_list.setdefault(name, mean)
            task._higher_is_better.setdefault(name, True)

    def apply_filters(self) -> None:
        """Filters each sample by itself."""
        instances = self.task._instances
        every = [list(instance.resps) for instance in instances]
        read: list[dict[str, list[Any]]] = [{} for _ in instances]
        for number in range(self.setting.samples):
            for instance, texts in zip(instances, every, strict=True):
                instance.resps = [texts[number]]
            self._filter()
            for instance, found in zip(instances, read, strict=True):
                for name, value in instance.filtered_resps.items():
                    found.setdefault(name, []).append(value)
        for instance, texts, found in zip(instances, every, read, strict=True):
            instance.resps, instance.filtered_resps = texts, found

    def process_results(self, doc: Any, results: Sequence[Sequence[Any]]) -> dict[str, float]:
        """Returns an item's figures: those that are means over items, each as the mean over its samples."""
        scored = [self._score(doc, [one[number] for one in results]) for number in range(self.setting.samples)]
        self.scored.append(scored)
        found = {}
        for name in scored[0]:
            values = [figures[name] for figures in scored]
            if name in self._means and all(isinstance(value, int | float) for value in values):
                found[name] = statistics.fmean(values)
        right = [float(figures[self.primary]) for figures in scored] if self.primary in found else []
        if not right or set(right) - {0.0, 1.0}:
            return found
        voters = _voters(results[0]) if self._votes else None
        for k in self.setting.ks:
            found.setdefault(f"pass@{k}", pass_at_k(len(right), int(sum(right)), k))
            if voters is not None:
                found[f"maj@{k}"] = majority_at_k(voters, right, k, self.seed)
        return found

    def told(self, metrics: Sequence[Metric]) -> list[Metric]:
        """Returns a task's figures, the primary one first, with the spread of its samples.

        Where the metric is graded there is no pass@k and no maj@k: they would be of those items alone whose samples
        all happen to be 0 or 1.
        """
        partial = [one for one in metrics if one.name.startswith(("pass@", "maj@")) and one.n < metrics[0].n]
        return [*(one for one in metrics if one not in partial), *self._spread(metrics[0])]

    def _spread(self, metric: Metric) -> list[Metric]:
        """Returns how far the samples' own figures of a metric lie apart; nothing where there is one sample."""
        name, _, wanted = metric.name.partition(",")
        filters = [ensemble.name for ensemble in self.task._filters]
        items = len(self.scored) // len(filters)
        start = items * filters.index(wanted) if wanted else 0
        rows = self.scored[start : start + items]
        numbers = range(self.setting.samples)
        if len(numbers) < 2 or not rows or name not in rows[0][0]:
            return []
        means = [statistics.fmean(float(row[number][name]) for row in rows) for number in numbers]
        label = f"{name}_sample_sd" + (f",{wanted}" if wanted else "")
        return [Metric(label, statistics.stdev(means), None, metric.n, higher_is_better=False)]


def _voters(readings: Sequence[Any]) -> list[str | float | None] | None:
    """Returns what each sample votes for, None where it could not be read; None for a task that has no votes.

    It is the reading itself or, where the task says more of one, its `vote`: without the key, as for programs, an
    answer is no vote. So an item of which nothing could be read has votes like any other, and none is right.
    """
    voters: list[str | float | None] = []
    for reading in readings:
        read = reading
        while isinstance(read, list):
            read = next(iter(read), None)
        if isinstance(read, dict):
            if "vote" not in read:
                return None
            read = read["vote"]
        voters.append(read if isinstance(read, str | int | float) and read not in _UNREAD else None)
    return voters


def generation_settings(setting: SamplingSpec, own: dict[str, Any]) -> dict[str, Any]:
    """Returns the generation settings that a named one replaces.

    A checkpoint's ``generation_config.json`` may hold a ``top_k`` and penalties, which would shape the draws unseen.

    Args:
        setting: The named setting.
        own: The task's settings.
    """
    settings: dict[str, Any] = {"do_sample": False, "num_beams": setting.beams}
    settings |= {key: value for key, value in {"temperature": 0.0, "top_p": 1.0, "top_k": 50}.items() if key in own}
    if setting.temperature > 0:  # a processor of ours draws
        settings |= {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    return settings


def check_drawn(draws: Draws, task: Any, setting: SamplingSpec) -> None:
    """Refuses samples that something else than :class:`Draws` has generated.

    Raises:
        EvalError: It was not asked for every sample.
    """
    drawn, wanted = sum(draws.seen.values()), setting.samples * len(task.instances)
    if drawn != wanted:
        raise EvalError(f"{drawn} of {wanted} samples were drawn as the setting '{setting.name}' says")
