"""Means over the tasks of a group, made of what its tasks scored; no model is asked again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data_tools.files import hash_json
from .definitions import HarnessTask
from .errors import EvalError
from .records import Metric, Result, Score, ScoreStore, parquet
from .report.items import Items, read_items
from .runs import Target
from .spec import Chat, GroupSpec, SuiteSpec
from .stats.robustness import robustness
from .stats.strata import StratifiedMean, group_mean
from .task import Checkpoint, Task

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class GroupName:
    """What a score says of a group.

    Attributes:
        title: What the leaderboard calls it.
        limit: Of its tasks, where they have the same.
    """

    title: str
    limit: int | None


@dataclass(frozen=True)
class GroupTask(Task):
    """The means of a group, done once its tasks are.

    Attributes:
        group: What the suite says of it.
        members: Its tasks.
    """

    spec: GroupName
    group: GroupSpec
    members: tuple[HarnessTask, ...]

    @property
    def needs_model(self) -> bool:
        """It reads the scores of its tasks."""
        return False

    def needs(self) -> list[str]:
        """Returns the tasks that are averaged."""
        if self.group.mean == "robust":
            return [f"what is right in all of {len(self.members)} ways to ask"]
        return [f"the {self.group.mean} mean of {len(self.members)} tasks"]

    def chat(self, suite: SuiteSpec) -> Chat:
        """Returns ``auto`` if a task of it may apply the template."""
        return "never" if all(member.chat(suite) == "never" for member in self.members) else "auto"

    def run(self, checkpoint: Checkpoint, template: str | None) -> Result:
        """Averages the scores of the tasks, as :meth:`Task.run`."""
        scores = [self._score(checkpoint, member, template) for member in self.members]
        _check_directions(scores, self.spec.title, robust=self.group.mean == "robust")
        items = [_items(checkpoint.target, score) for score in scores]
        if self.group.mean == "robust":
            return self._robust(scores, items, checkpoint.suite.seed)
        values = [item.values for item in items]
        names = {score.metrics[0].name.split(",")[0] for score in scores}
        name = names.pop() if len(names) == 1 else "mean"
        kinds = ["macro", "micro", *(["centred"] if self.group.mean == "centred" else [])]
        kinds.sort(key=lambda kind: kind != self.group.mean)  # the one that stands for the group comes first
        baselines = [member.spec.baseline or 0.0 for member in self.members]
        means = {
            "centred_accuracy" if kind == "centred" else f"{name}_{kind}": group_mean(kind, values, baselines)
            for kind in kinds
        }
        up = scores[0].metrics[0].higher_is_better
        metrics = tuple(
            Metric(key, mean.value, mean.stderr, len(mean.items), higher_is_better=up) for key, mean in means.items()
        )
        first, stands = next(iter(means.items()))
        shots = {score.num_fewshot for score in scores}
        coverage = {"coverage": self.group.coverage} if self.group.coverage else {}
        figures = {score.task: score.metrics[0].value for score in scores}
        baselines_kept = {m.spec.title: m.spec.baseline for m in self.members if m.spec.baseline is not None}
        detail: dict[str, Any] = {
            "kind": "group",
            "mean": self.group.mean,
            "tasks": figures,
            "baselines": baselines_kept,
        }
        return Result(
            metrics,
            _samples(scores, items, first, stands),
            shots.pop() if len(shots) == 1 else None,
            detail=detail | coverage,
        )

    def _robust(self, scores: Sequence[Score], items: Sequence[Items], seed: int) -> Result:
        """Compares the ways in which the same items were asked; their rows stand in the same order."""
        if len({tuple(key.partition(":")[0] for key in held.keys) for held in items}) != 1:
            raise EvalError("its ways to ask do not have the same items", where=self.spec.title)
        metrics, least = robustness(np.stack([held.values for held in items]), seed=seed)
        figures = {score.task: score.metrics[0].value for score in scores}
        detail = {"kind": "group", "mean": "robust", "tasks": figures, "metric": scores[0].metrics[0].name}
        samples = parquet(
            {
                "doc_id": list(range(len(least))),
                "doc_hash": list(items[0].keys),  # as the task stands
                "filter": ["none"] * len(least),
                f"metric.{metrics[0].name}": least.tolist(),
            }
        )
        return Result(tuple(metrics), samples, scores[0].num_fewshot, detail=detail)

    def _score(self, checkpoint: Checkpoint, member: HarnessTask, template: str | None) -> Score:
        """Returns the score of a task on the checkpoint."""
        target = checkpoint.target
        applied = None if member.chat(checkpoint.suite) == "never" else template
        key = (target.model_hash, member.spec.title, member.task_hash, applied)
        found = next((score for score in ScoreStore(target.store).load() if score.key == key), None)
        if found is None:
            what = f"its task {member.spec.title} has no score"
            raise EvalError(what, where=self.spec.title, hint="once it has one, the same command adds the mean")
        return found


def define(group: GroupSpec, suite: SuiteSpec, tasks: Sequence[Task]) -> GroupTask:
    """Finds the tasks of a group among those of its suite; its hash is made of theirs."""
    members = tuple(task for task in tasks if isinstance(task, HarnessTask) and task.spec.title in group.tasks)
    limits = {member.spec.limit for member in members}
    content = {
        "tasks": {member.spec.title: member.task_hash for member in members},
        "mean": group.mean,
        "baselines": {member.spec.title: member.spec.baseline for member in members},
    }
    name = GroupName(group.title, limits.pop() if len(limits) == 1 else None)
    return GroupTask(name, hash_json(content), group, members)


def _check_directions(scores: Sequence[Score], where: str, *, robust: bool) -> None:
    """Refuses a mean over figures of which some are better the greater and others the smaller."""
    down = [score for score in scores if not score.metrics[0].higher_is_better]
    if not down or (len(down) == len(scores) and not robust):
        return
    told = ", ".join(f"{score.metrics[0].name} of {score.task}" for score in down[:3])
    what = "the least of several ways is no worst one" if robust else "no mean of it and the others says what is better"
    hint = "name a `metric` of the task that is better where it is greater, or leave the task out of the group"
    raise EvalError(f"{told} is better the smaller it is: {what}", where=where, hint=hint)


def _items(target: Target, score: Score) -> Items:
    """Reads the items of a task's figure."""
    path: Path = target.store / score.samples_name
    metric = score.metrics[0]
    found = read_items(path, metric.name, metric.value)
    if found is None:
        what = f"{metric.name} of {score.task} is no mean of items that {path} holds"
        raise EvalError(what, hint="name a `metric` of the task that is a mean over items, such as acc")
    return found


def _samples(scores: Sequence[Score], items: Sequence[Items], name: str, mean: StratifiedMean) -> bytes:
    """Packs what each item adds to the mean, so that two checkpoints can be compared item by item."""
    keys = [f"{score.task}:{key}" for score, held in zip(scores, items, strict=True) for key in held.keys]
    return parquet(
        {
            "doc_id": keys,
            "doc_hash": [""] * len(keys),
            "filter": ["none"] * len(keys),
            f"metric.{name}": mean.items.tolist(),
        }
    )
