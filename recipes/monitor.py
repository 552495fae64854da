"""Scores while a run trains: a checkpoint every N steps, the best of them kept, and an end where nothing is gained.

What is decided rests on the scores of the run's folder alone, and only on those of the looks that are due at a step; so
a run that was killed decides as one that was not. Scoring is ``posttrain score``, in a process of its own: between two
steps, or beside the training on a device of its own. Beside it, a look's scores count from the next look on, whenever
they came.
"""

import subprocess
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..chat_templates.errors import did_you_mean
from ..data_tools.files import write_json
from ..data_tools.progress import Say
from ..evals import checkpoints
from ..evals.definitions import each_setting
from ..evals.records import Metric, Score, ScoreStore
from ..evals.report.items import read_items
from ..evals.runs import RUN_FILE, read_record
from ..evals.spec import SuiteSpec
from ..evals.stats.selection import select
from ..evals.stats.stopping import no_gain
from . import launch
from .errors import RecipeError, RunError
from .load import Loaded
from .schema import ColumnSpec, ScoreSpec


@dataclass
class Monitor:
    """Scores the checkpoints of a run and decides by them.

    Attributes:
        loaded: The recipe, whose ``score`` section says ``every: N``.
        last: The run's last step, which is a look too.
        say: Takes a line for the user.
        best: The folder of the best checkpoint; None where the recipe wants none or none is known.
        stop: Why the run ends early; None while it goes on.
    """

    loaded: Loaded
    last: int
    say: Say = print
    best: str | None = None
    stop: str | None = None
    _scored: set[int] = field(default_factory=set)
    _beside: "tuple[int, subprocess.Popen[bytes]] | None" = None

    @property
    def spec(self) -> ScoreSpec:
        """Returns the recipe's ``score`` section."""
        score = self.loaded.recipe.score
        assert score is not None, "a run is watched because its recipe says so"
        return score

    @property
    def run_dir(self) -> Path:
        """Returns the run folder."""
        return Path(self.loaded.recipe.output_dir)

    def looks(self, step: int) -> list[int]:
        """Returns the steps of the looks that are due at a step."""
        return [look for look in looks_of(self.spec, self.last) if look <= step]

    @property
    def kept(self) -> set[str]:
        """Returns the checkpoints that must stay, however old: the best one and what is being scored."""
        return {self.best or ""} | ({f"checkpoint-{self._beside[0]}"} if self._beside else set())

    def look(self, step: int) -> None:
        """Scores what is due at a step, and decides; called once the step's checkpoint is whole, and after a kill.

        Raises:
            RunError: A score that a decision needs is not there.
        """
        due = self.looks(step)
        if not due:
            return
        if self.spec.device is None:
            self._score(due[-1])
            self._decide(due)
        else:
            self._wait(due[:-1])
            self._decide(due[:-1])
            if step < self.last and not self.stop:
                self._start(due[-1])

    def finish(self, step: int) -> None:
        """Waits for what is scored beside the training, and chooses the best of all looks.

        Raises:
            RunError: A score that a decision needs is not there.
        """
        if self.spec.device is not None and (due := self.looks(step)):
            self._wait(due)
            self._decide(due)

    # --- scoring ---

    def _command(self, look: int) -> list[str]:
        folders = [self.run_dir / f"checkpoint-{look}"]
        spec, references = self.spec, self.loaded.references
        return launch.score_command(folders, spec.suite, references, final_only=False, device=spec.device)

    def _score(self, look: int) -> None:
        """Scores a checkpoint to the end, once; one that was rotated away before a kill has been."""
        if look not in self._scored and (self.run_dir / f"checkpoint-{look}").is_dir():
            self._end(look, launch.run(self._command(look), launch.alone()))

    def _start(self, look: int) -> None:
        """Begins to score a checkpoint beside the training."""
        if look not in self._scored and self._beside is None:
            self._beside = look, subprocess.Popen(self._command(look), env=launch.alone())

    def _wait(self, due: list[int]) -> None:
        """Waits for what is scored beside the training; what a kill has ended is scored now."""
        if self._beside is not None and self._beside[0] in due:
            self._end(self._beside[0], self._beside[1].wait())
            self._beside = None
        if due:
            self._score(due[-1])

    def _end(self, look: int, code: int) -> None:
        self._scored.add(look)
        if code:
            self.say(f"step {look}: not all was scored; `posttrain score {self.run_dir}` tries again")

    # --- deciding ---

    def _decide(self, due: list[int]) -> None:
        """Chooses the best checkpoint and says whether the run ends, by the looks that are scored."""
        spec, found = self.spec, {}
        if spec.keep_best and due:
            found["best"] = self._choose(spec.keep_best, due)
            self.best = found["best"]["checkpoint"]
        if spec.early_stop and due and self.stop is None:
            found |= self._test(due)
        if found:
            write_json(self.run_dir / RUN_FILE, {**read_record(self.run_dir), **found})

    def _choose(self, column: ColumnSpec, due: list[int]) -> dict[str, Any]:
        """Describes the best checkpoint of a column, chosen by half of the items and measured on the others."""
        figures, items, clusters = self._column(column, due)
        up = _is_up(column, next(iter(figures.values())))
        sign = 1 if up else -1
        best = max(figures, key=lambda name: sign * figures[name].value)
        chosen = select(items, clusters, higher_is_better=up) if len(items) == len(figures) else None
        if chosen is not None:
            best = chosen.name
        found: dict[str, Any] = {"checkpoint": best, "step": checkpoints.step_of(Path(best)), "column": column.column}
        found |= {"metric": figures[best].name, "value": figures[best].value, "candidates": len(figures)}
        if chosen is not None and not figures[best].name.startswith("bits_per_"):  # half of a ratio is another ratio
            found |= {"measured": asdict(chosen.reported), "note": chosen.note}
        return found

    def _test(self, due: list[int]) -> dict[str, Any]:
        """Ends the run where its last checkpoints are shown to gain nothing worth having."""
        spec = self.spec.early_stop
        assert spec is not None, "the caller has looked"
        figures, items, clusters = self._column(spec, due)
        without = sorted(figures.keys() - items.keys())
        if without:
            hint = "early_stop tests the difference of two checkpoints item by item; name another column"
            raise RunError(f"{without[0]}: {spec.column} keeps no value of each item", hint=hint)
        verdict = no_gain(
            items,
            clusters,
            looks=len(looks_of(self.spec, self.last)),
            min_delta=spec.min_delta,
            patience=spec.patience,
            alpha=spec.alpha,
            higher_is_better=_is_up(spec, next(iter(figures.values()))),
        )
        if verdict is None:
            return {}
        bound, each = verdict.bound, "is" if spec.patience == 1 else "are each"
        most = f"better by {bound:.4g} at most" if bound > 0 else f"worse by {-bound:.4g} or more"
        self.stop = (
            f"stopped at {due[-1]} of {self.last} steps: in {spec.column} {' and '.join(verdict.later)} {each} {most} "
            f"than {verdict.best}; worth having is {spec.min_delta:g}"
        )
        return {"early_stop": {"step": due[-1], "of": self.last, **asdict(verdict)}}

    def _column(
        self, column: ColumnSpec, due: list[int]
    ) -> tuple[dict[str, Metric], dict[str, dict[Hashable, float]], dict[Hashable, Hashable] | None]:
        """Returns a column's figure of each look, its items where they can be read, and their clusters.

        Raises:
            RunError: A look has no such figure, or the looks were scored by different versions of the task.
        """
        task, _, name = column.column.partition("/")
        scores = [score for score in ScoreStore(self.run_dir).load() if score.task == task]
        of_looks = {look: self._versions(scores, look) for look in due}
        # Another suite, or this one before it was changed, may have asked something else under the same title.
        shared = [version for version in of_looks[due[0]] if all(version in known for known in of_looks.values())]
        if not shared and all(of_looks.values()):
            what = f"the looks at `{task}` were scored by different versions of the task"
            hint = "undo what was changed in the suite or its files, and the same command goes on from here"
            raise RunError(what, where=str(self.run_dir), hint=hint)
        figures: dict[str, Metric] = {}
        items: dict[str, dict[Hashable, float]] = {}
        clusters: dict[Hashable, Hashable] | None = None
        for look, versions in of_looks.items():
            folder = self.run_dir / f"checkpoint-{look}"
            score = next((versions[version] for version in shared or versions), None)
            figure = score and _figure(score, name)
            if score is None or figure is None:
                known = ", ".join(metric.name for metric in score.metrics) if score else "none"
                what = f"step {look} has no score of `{column.column}`"
                hint = f"what went wrong stands above; the same command goes on from here (figures of {task}: {known})"
                raise RunError(what, where=str(self.run_dir), hint=hint)
            figures[folder.name] = figure
            found = read_items(self.run_dir / score.samples_name, figure.name, figure.value)
            if found is not None:
                items[folder.name] = dict(zip(found.keys, found.values.tolist(), strict=True))
                if found.clusters:
                    clusters = dict(zip(found.keys, found.clusters, strict=True))
        return figures, items, clusters

    def _versions(self, scores: Sequence[Score], look: int) -> dict[str, Score]:
        """Returns a look's scores among those of a task, by the task's hash, the first that was written first."""
        folder = self.run_dir / f"checkpoint-{look}"
        model = checkpoints.model_hash(folder) if folder.is_dir() else None
        mine = [score for score in scores if score.model == model]
        return {score.task_hash: score for score in mine or [score for score in scores if score.step == look]}


def check_columns(loaded: Loaded, suite: SuiteSpec) -> None:
    """Refuses decisions by what the suite does not score.

    Raises:
        RecipeError: A column's task is not in the suite.
    """
    score = loaded.recipe.score
    assert score is not None, "the caller has looked"
    sections = (
        *(*each_setting(suite), suite.perplexity, suite.pairs),
        *(suite.classification, suite.functions, suite.prompts, suite.judges),
    )
    titles = [item.title for section in sections for item in section]
    for key, column in (("keep_best", score.keep_best), ("early_stop", score.early_stop)):
        task = column.column.partition("/")[0] if column else None
        if task is not None and task not in titles:
            hint = did_you_mean(task, titles) or f"it scores {', '.join(titles)}"
            raise RecipeError(f"score.{key}.column: the suite has no task '{task}'", hint=hint)


def described(spec: ScoreSpec, last: int) -> list[str]:
    """Says how often a run of so many steps is scored while it trains, and at how many of these looks it may end."""
    if not isinstance(spec.every, int):
        return []
    looks = len(looks_of(spec, last))
    where = f"on {spec.device}, beside the training" if spec.device else "between steps"
    lines = [f"score: {looks} looks while the run trains, {where}"]
    if spec.early_stop:
        able = looks - 1 - spec.early_stop.patience
        few = "warning: score.early_stop can end nothing: there are too few looks; lower score.every or patience"
        error = f"each with an error of {spec.early_stop.alpha / max(1, able):.2g} at most"
        lines.append(f"score.early_stop: the run may end at {able} of them, {error}" if able > 0 else few)
    return lines


def looks_of(spec: ScoreSpec, last: int) -> list[int]:
    """Returns the steps after which a run of so many steps is scored: every N, the last, and the start if asked for."""
    assert isinstance(spec.every, int), "a run is scored every N steps"
    return [*([0] if spec.start else []), *range(spec.every, last, spec.every), last]


def _is_up(column: ColumnSpec, figure: Metric) -> bool:
    return figure.higher_is_better if column.direction is None else column.direction == "max"


def _figure(score: Score, name: str) -> Metric | None:
    """Returns the figure of a name, or the one that stands for the task."""
    return next((metric for metric in score.metrics if name in ("", metric.name)), None)
