"""Studies: one recipe in several versions, each from several seeds, and what may be said of their differences.

A study is a pipeline of its cells, so that they share every step, are skipped while nothing has changed, and go on
after a kill; what is here is the grid, and the comparison.
"""

import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import InputError
from ..data_tools.errors import BusyError
from ..data_tools.files import read_json, write_json
from ..data_tools.plain_values import with_leaves
from ..data_tools.progress import Say
from ..data_tools.specfile import Document, KeyPath, load_document, parse_scalar, raise_if_problems, validate
from ..data_tools.tool_report import PAGE, Bar, Drawing, Plot, Table, ToolReport
from .errors import RunError
from .load import apply_override
from .pipeline import plan, plan_score, run_steps
from .schema import Pipeline, Study

if TYPE_CHECKING:
    from ..evals.records import Score
    from ..evals.stats.compare import Comparison
    from .pipeline import PlannedStep

STATE = "study.json"
_STEPS = "steps"


@dataclass(frozen=True)
class StudyCell:
    """One training of a study."""

    arm: str
    size: str
    seed: int

    @property
    def name(self) -> str:
        """Of its step, and so of its folder."""
        return f"{self.arm}.{self.size}.{self.seed}"


@dataclass(frozen=True)
class TaskOutcome:
    """What the cells of one size give on one task.

    Attributes:
        task: The task.
        size: The size.
        metric: The figure.
        values: Of each arm the figure of each seed, in the order of the seeds.
        comparisons: Of each arm but the baseline: it less the baseline.
        by_items: Whether the items stand behind the comparisons, or the seeds' figures alone.
    """

    task: str
    size: str
    metric: str
    values: Mapping[str, Sequence[float]]
    comparisons: Mapping[str, "Comparison"]
    by_items: bool


@dataclass(frozen=True)
class StudyTime:
    """What the parts of a study took.

    Attributes:
        seconds: Of each part that was begun: the shared steps, the first cell of a size, the rest of a seed.
        done: The parts that have ended.
    """

    seconds: dict[str, float]
    done: list[str]

    @classmethod
    def of(cls, study: Study) -> "StudyTime":
        """Reads it from the study's folder."""
        state = read_json(Path(study.output_dir) / STATE)
        state = state if isinstance(state, dict) else {}
        return cls(dict(state.get("seconds", {})), list(state.get("done", [])))

    @property
    def total(self) -> float:
        """All seconds."""
        return sum(self.seconds.values())

    def of_cells(self, study: Study) -> float:
        """Returns the seconds of one seed by the first cell of each size."""
        return len(study.arms) * sum(self.seconds.get(_size(size), 0.0) for size in study.sizes)

    def of_seed(self, study: Study) -> float:
        """Returns the seconds of one seed, by the longest so far."""
        seeds = [self.seconds[_seed(seed)] for seed in study.seeds if _seed(seed) in self.done]
        return max([*seeds, self.of_cells(study)])


def load_study(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, Document]:
    """Reads a study.

    Raises:
        SpecError: With every problem of the file; those of its recipe come with the grid (:func:`grid`).
    """
    document = load_document(path)
    for override in overrides:
        apply_override(document, override)
    return validate(Study, document), document


def grid(
    study: Study, document: Document, seeds: Sequence[int], only: Sequence[StudyCell] | None = None
) -> tuple[Pipeline, Document]:
    """Returns the pipeline of some seeds' cells, or only of some, and the document that says where its keys stand."""
    wanted = cells(study, seeds) if only is None else only
    steps: list[Any] = []
    lines = {key: line for key, line in document.lines.items() if key[:1] != ("steps",)}
    for number, step in enumerate(document.value.get("steps") or []):
        for names in _variants(study, document, number, seeds):
            below = {key[2:]: line for key, line in document.lines.items() if key[:2] == ("steps", number)}
            lines |= {("steps", len(steps), *key): line for key, line in below.items()}
            steps.append(_filled(step, names))  # a copy: planning writes folders where `@name` stood
    for cell in wanted:
        written: list[KeyPath] = [("sizes", cell.size, place) for place in range(len(study.sizes[cell.size]))]
        written += [("arms", cell.arm, place) for place in range(len(study.arms[cell.arm]))]
        for place, key in enumerate(written):
            if key in document.lines and not {key[:1], key[:2], key} & document.overrides.keys():
                lines["steps", len(steps), "overrides", place] = document.lines[key]
        overrides = _filled([*study.sizes[cell.size], *study.arms[cell.arm]], {"size": cell.size, "seed": cell.seed})
        overrides += [f"trainer.seed={cell.seed}", f"data.seed={cell.seed}"]
        steps.append({"name": cell.name, "recipe": study.recipe, "overrides": overrides})
    value = {"steps": steps, "report": False, "output_dir": study.output_dir}
    if wanted:
        value["score"] = {"suite": study.suite, "steps": [cell.name for cell in wanted]}
    made = Document(document.path, value, lines)
    return validate(Pipeline, made), made


def _variants(study: Study, document: Document, number: int, seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields what stands for ``{size}`` and ``{seed}`` in a step: one step for each that its name speaks of.

    Raises:
        SpecError: The step speaks of one that its name does not, so that several steps would have one name.
    """
    step = document.value["steps"][number]
    axes = {"size": list(study.sizes), "seed": list(seeds)}
    for axis in axes:
        named = f"{{{axis}}}" in step["name"]
        if not named and f"{{{axis}}}" in json.dumps(step):
            document.problem(("steps", number, "name"), f"the step uses {{{axis}}}, so its name must hold it too")
        axes[axis] = axes[axis] if named else [None]
    raise_if_problems(document)
    yield from (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))


def _filled(values: Any, names: Mapping[str, Any]) -> Any:
    """Returns a copy with the cell's own for ``{size}`` and ``{seed}``; what is nothing else is read as YAML."""

    def fill(value: Any) -> Any:
        for name, said in names.items() if isinstance(value, str) else ():
            if value == f"{{{name}}}":
                return parse_scalar(str(said))
            value = value.replace(f"{{{name}}}", str(said))
        return value

    return with_leaves(values, fill)


def cells(study: Study, seeds: Sequence[int]) -> list[StudyCell]:
    """Returns the cells in the order they are run: every arm and size of one seed before the next seed."""
    return [StudyCell(arm, size, seed) for seed in seeds for size in study.sizes for arm in study.arms]


def check_study(path: Path, overrides: Sequence[str]) -> list[str]:
    """Checks a study and all its cells before anything is run; returns what there is to say of it.

    Raises:
        PosttrainError: The file, or a recipe with the overrides of a cell, is wrong.
    """
    study, document = load_study(path, overrides)
    pipeline, made = grid(study, document, study.seeds)
    plan_score(made, pipeline, plan(made, pipeline))
    return [*_describe(study), _hours(study)]


def plan_one_seed(path: Path, overrides: Sequence[str]) -> "Mapping[str, PlannedStep]":
    """Plans the steps and one cell of each arm and size: those of other seeds need the same.

    Raises:
        PosttrainError: The file, or a recipe with the overrides of a cell, is wrong.
    """
    study, document = load_study(path, overrides)
    pipeline, made = grid(study, document, study.seeds[:1])
    return plan(made, pipeline)


def run_study(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    budget: float | None = None,
    processes: int | None = None,
    accelerate: str | None = None,
    say: Say = print,
) -> list[TaskOutcome]:
    """Runs the cells that have not been run, a seed at a time, and writes the page after each seed from the second on.

    The baseline's first cell of each size comes first: what it takes says what all will take.

    Args:
        path: The study's YAML file.
        overrides: ``key=value``, of the study.
        budget: Hours of running, those of earlier calls included: only what fits of the grid is run (:func:`fit`), and
            no seed is begun that would end later, by the longest so far.
        processes: How many processes train each cell.
        accelerate: The accelerate config they are launched with.
        say: Where the progress is told, a line at a time.

    Returns:
        What came of it.

    Raises:
        PosttrainError: A file is wrong or a cell failed; what was finished before stays.
    """
    if budget is not None and not 0 < budget < math.inf:
        raise InputError(f"a budget is a number of hours above 0, not {budget:g}")
    study, document = load_study(path, overrides)
    for line in check_study(path, overrides):
        say(line)
    first = study.seeds[:1]
    pilots = {size: [StudyCell(study.reference, size, first[0])] for size in study.sizes}
    found: list[TaskOutcome] = []
    said = "one seed says nothing of how the next would differ: no table yet"
    worked = False

    def run(part: str, pipeline: Pipeline, made: Document) -> None:
        def work(tell: Say) -> bool:
            return run_steps(pipeline, made, processes=processes, accelerate=accelerate, say=tell)

        nonlocal worked
        worked |= _timed(study, part, work, say)

    if _seed(first[0]) not in StudyTime.of(study).done:
        if study.steps:
            run(_STEPS, *grid(study, document, first, []))
        for size, pilot in pilots.items():
            run(_size(size), *grid(study, document, first, pilot))
        say(_hours(study))
    if budget is not None:
        study = fit(study, StudyTime.of(study), budget)
        for line in _describe(study):
            say(f"within {budget:g} h: {line}")
    for count, seed in enumerate(study.seeds, start=1):
        spent = StudyTime.of(study)
        due = spent.total + spent.of_seed(study)
        if budget is not None and count > 1 and _seed(seed) not in spent.seconds and due > budget * 3600:
            say(f"seed {seed}: left out, since a seed takes {_time(spent.of_seed(study))} of the {budget:g} h")
            break
        run(_seed(seed), *grid(study, document, study.seeds[:count]))
        if count > 1:
            found = outcomes(study, document, study.seeds[:count])
            report = _report(study, document, study.seeds[:count], found)
            report.write(Path(study.output_dir))
            said = f"{report.as_text()}\n{Path(study.output_dir) / PAGE}"
    say(said)
    if not worked:
        say(f"{study.output_dir}: every cell is unchanged and scored; nothing to do")
    return found


def fit(study: Study, spent: StudyTime, budget: float) -> Study:
    """Returns the part of a study's grid that a budget pays for: the first sizes, and the first seeds.

    Sizes are left out, the last first, until three seeds fit, without which there is no verdict; then as many seeds as
    fit, since each makes smaller differences detectable.

    Args:
        study: The study.
        spent: What the shared steps and a cell of each size took.
        budget: Hours.

    Raises:
        InputError: Not even the first size fits.
    """
    least = min(3, len(study.seeds))
    names = list(study.sizes)
    needed = 0.0
    for count in range(len(names), 0, -1):
        kept = study.model_copy(update={"sizes": {name: study.sizes[name] for name in names[:count]}})
        other = sum(spent.seconds.get(part, 0.0) for part in (_STEPS, *map(_size, names[count:])))
        each = spent.of_cells(kept)
        seeds = int((budget * 3600 - other) / each) if each else len(study.seeds)
        if seeds >= least:
            return kept.model_copy(update={"seeds": study.seeds[:seeds]})
        needed = other + least * each
    hours = math.ceil(needed / 36) / 100
    what = f"a budget of {budget:g} h does not pay for {least} seeds of the size '{names[0]}': they take {hours:g} h"
    raise InputError(what, hint="give that, fewer arms, or a smaller first size")


def outcomes(study: Study, document: Document, seeds: Sequence[int]) -> list[TaskOutcome]:
    """Reads the scores of the cells and compares the arms: one family over all tasks, sizes and arms.

    Raises:
        RunError: A cell has no score of a task.
    """
    from ..evals.score import define_all
    from ..evals.stats.compare import Hypothesis, judge, seeded_difference
    from ..evals.suite_files import load_suite

    pipeline, made = grid(study, document, seeds)
    scoring = plan_score(made, pipeline, plan(made, pipeline))
    assert scoring is not None, "a grid is always scored"
    asked = {task.spec.title: task.task_hash for task in define_all(load_suite(scoring.suite, scoring.references))}
    scores = {cell: _scores(Path(study.output_dir) / cell.name, asked) for cell in cells(study, seeds)}
    tasks = study.outcomes or [task for task in asked if any(task in of_cell for of_cell in scores.values())]
    questions: dict[tuple[str, str, str], Hypothesis] = {}
    kept: dict[tuple[str, str], tuple[Mapping[str, Sequence[float]], str, bool]] = {}
    for task in tasks:
        for size in study.sizes:
            mine = {arm: [_one(scores, StudyCell(arm, size, seed), task) for seed in seeds] for arm in study.arms}
            metric = mine[study.reference][0].metrics[0]
            figures = {arm: [score.metrics[0].value for score in of_arm] for arm, of_arm in mine.items()}
            values, clusters = _by_item(study, size, seeds, mine) or (None, None)
            kept[task, size] = (figures, metric.name, values is not None)
            for arm in study.others:
                one, other = (
                    (values[name] if values else [[value] for value in figures[name]])
                    for name in (arm, study.reference)
                )
                difference = seeded_difference(one, other, clusters)
                questions[task, size, arm] = Hypothesis(difference, metric.higher_is_better)
    answers = judge(questions)
    return [
        TaskOutcome(task, size, metric, figures, {arm: answers[task, size, arm] for arm in study.others}, by_items)
        for (task, size), (figures, metric, by_items) in kept.items()
    ]


def _scores(folder: Path, asked: Mapping[str, str]) -> dict[str, "Score"]:
    """Returns the scores of a cell's final model by task, of the versions whose hashes are given; the last of each."""
    from ..evals.records import ScoreStore
    from ..evals.runs import find_targets

    targets, _ = find_targets([folder], None, final_only=True)
    models = {target.model_hash for target in targets}
    kept = (one for one in ScoreStore(folder).load() if one.model in models and asked.get(one.task) == one.task_hash)
    return {one.task: one for one in kept}


def _one(scores: Mapping[StudyCell, Mapping[str, "Score"]], cell: StudyCell, task: str) -> "Score":
    if task not in scores[cell]:
        known = ", ".join(scores[cell]) or "none"
        raise RunError(f"has no score of the task '{task}'", where=cell.name, hint=f"tasks that were scored: {known}")
    return scores[cell][task]


def _by_item(
    study: Study, size: str, seeds: Sequence[int], scores: Mapping[str, Sequence["Score"]]
) -> "tuple[Mapping[str, list[Any]], tuple[str, ...] | None] | None":
    """Returns of each arm the items' values from each seed, and their clusters; None if unknown or not the same."""
    from ..evals.report.items import read_items

    values: dict[str, list[Any]] = {}
    asked: set[tuple[tuple[str, ...], tuple[str, ...] | None]] = set()
    for arm, of_arm in scores.items():
        for seed, score in zip(seeds, of_arm, strict=True):
            path = Path(study.output_dir) / StudyCell(arm, size, seed).name / score.samples_name
            items = read_items(path, score.metrics[0].name, score.metrics[0].value) if path.is_file() else None
            if items is None:
                return None
            asked.add((items.keys, items.clusters))
            values.setdefault(arm, []).append(items.values)
    if len(asked) != 1:
        return None
    ((_, clusters),) = asked
    return values, clusters


def _describe(study: Study) -> list[str]:
    """Says how many cells there are, and what they can show."""
    from ..evals.stats.compare import ALPHA, smallest_difference

    seeds, sizes = len(study.seeds), len(study.sizes)
    tasks = len(study.outcomes) if study.outcomes else 1
    comparisons = len(study.others) * sizes * tasks
    lines = [
        f"{len(study.arms)} arms x {sizes} sizes x {seeds} seeds: {len(study.arms) * sizes * seeds} cells; "
        f"{comparisons} comparisons with {study.reference}{'' if study.outcomes else ' on each task of the suite'}"
    ]
    if seeds < 3:
        return [*lines, "two seeds give differences, but no verdict: that takes three or more"]
    spread = smallest_difference(1 / math.sqrt(seeds), alpha=ALPHA / comparisons, df=seeds - 1)
    return [
        *lines,
        f"four times in five a verdict on a true difference of {spread:.1f} times the standard deviation between "
        "seeds, if items add nothing to it",
    ]


def _size(size: str) -> str:
    return f"first cell of {size}"


def _seed(seed: int) -> str:
    return f"seed {seed}"


def _timed(study: Study, part: str, work: Callable[[Say], bool], say: Say) -> bool:
    """Does a part and keeps what it took, at every line that it says: a kill -9 forgets one step at most."""
    before, started = StudyTime.of(study), time.monotonic()
    known = before.seconds.get(part, 0.0)

    def keep(done: Sequence[str]) -> None:
        seconds = before.seconds | {part: known + time.monotonic() - started}
        write_json(Path(study.output_dir) / STATE, {"seconds": seconds, "done": done})

    def tell(line: str) -> None:
        if part not in before.done:
            keep(before.done)
        say(line)

    try:
        worked = work(tell)
    except BusyError:  # of another call, which keeps its own time
        raise
    except BaseException:
        keep(before.done)
        raise
    if worked or part not in before.done:
        keep([*dict.fromkeys([*before.done, part])])
    return worked


def _hours(study: Study) -> str:
    """Says how long the rest will take."""
    spent = StudyTime.of(study)
    if not all(_size(size) in spent.done for size in study.sizes):
        return "how long it takes is known once a cell of each size has run, which come first"
    left = sum(_seed(seed) not in spent.done for seed in study.seeds)
    each = spent.of_seed(study)
    return f"{_time(spent.total)} so far; a seed takes about {_time(each)}, {left} more {_time(left * each)}"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _report(study: Study, document: Document, seeds: Sequence[int], found: Sequence[TaskOutcome]) -> ToolReport:
    tables = [*_over_sizes(study, found), *(_table(study, outcome) for outcome in found)]
    answers = [(one, arm, said) for one in found for arm, said in one.comparisons.items()]
    verdicts = [answer for answer in answers if answer[-1].verdict != "no verdict"]
    summary = [
        f"{one.task}, {one.size}: {arm} is {said.verdict} than {study.reference}: {_signed(said.difference.value)} "
        f"[{_signed(said.difference.low)}, {_signed(said.difference.high)}] {one.metric}."
        for one, arm, said in verdicts
    ]
    if rest := len(answers) - len(verdicts):
        said = f"No verdict on {rest} of {len(answers)} comparisons with {study.reference}"
        summary.append(f"{said} ({len(seeds)} seeds).")
    curves = _curves(study, found)
    plots = [
        Plot(
            f"{one.task}, {one.size}",
            f"{one.metric}, the mean of {len(seeds)} seeds",
            [Bar(arm, sum(values) / len(values)) for arm, values in one.values.items()],
        )
        for one in found
        if not curves
    ]
    title = study.name or document.path.stem
    return ToolReport(title, document.value, summary, tables, plots, charts=curves, printed=tables)


def _curves(study: Study, found: Sequence[TaskOutcome]) -> list[Drawing]:
    """Draws each task's figure over the sizes, where their names are numbers: the mean, and from least to most seed."""
    from ..evals.report.svg import Point, Segment, Series, chart

    try:
        at = {size: float(size) for size in study.sizes}
    except ValueError:
        return []
    made: list[Drawing] = []
    for task in dict.fromkeys(one.task for one in found):
        mine = sorted((one for one in found if one.task == task), key=lambda one: at[one.size])
        series = []
        for index, arm in enumerate(study.arms):
            seeds = [(one.size, one.values[arm]) for one in mine]
            means = [(size, sum(values) / len(values), values) for size, values in seeds]
            points = [Point(at[size], y, min(few), max(few), f"{arm}, {size}: {y:.4g}") for size, y, few in means]
            series.append(Series(arm, index, tuple(points)))
        name = f"{task}: {mine[0].metric} over sizes, from the least to the most of the seeds"
        far = max(at.values())
        if svg := chart(series, [Segment(0.0, far, far, "")], name=name, x_label="size", log=False):
            made.append(Drawing(name, svg, list(study.arms)))
    return made


def _over_sizes(study: Study, found: Sequence[TaskOutcome]) -> list[Table]:
    """Each task's means with the best of each size marked: whether what is best for a small size is so for a large."""
    tables: list[Table] = []
    for task in dict.fromkeys(one.task for one in found if len(study.sizes) > 1):
        mine = [one for one in found if one.task == task]
        higher = next(iter(mine[0].comparisons.values())).higher_is_better
        means = [{arm: statistics.mean(values) for arm, values in one.values.items()} for one in mine]
        best = [(max if higher else min)(of_size, key=of_size.__getitem__) for of_size in means]
        rows = [
            [arm, *(f"{of_size[arm]:.4g}{' *' * (arm == one)}" for of_size, one in zip(means, best, strict=True))]
            for arm in study.arms
        ]
        note = f"{mine[0].metric}, means over seeds; * the best of a size, which is no verdict."
        tables.append(Table(f"{task} over sizes", ["arm", *(one.size for one in mine)], rows, note))
    return tables


def _table(study: Study, outcome: TaskOutcome) -> Table:
    """One task at one size: the arms, and what may be said of each beside the baseline."""
    import numpy as np

    rows: list[list[Any]] = []
    for arm, values in outcome.values.items():
        spread = float(np.std(values, ddof=1))
        row = [arm, float(np.mean(values)), spread]
        said = outcome.comparisons.get(arm)
        if said is None:
            rows.append([*row, "baseline", *["–"] * 5])
            continue
        found = said.difference
        smallest = "–" if said.smallest is None else said.smallest
        ends = [_signed(found.low), _signed(found.high)]
        rows.append([*row, _signed(found.value), *ends, f"{said.p_adjusted:.3g}", smallest, said.verdict])
    header = ["arm", outcome.metric, "sd of seeds", "difference", "from", "to", "p", "detectable", "verdict"]
    over = "seeds and items" if outcome.by_items else "seeds"
    note = (
        f"95% intervals over {over}; p and verdicts by Holm's method over all comparisons of the page; detectable: the "
        "true difference that gets a verdict four times in five."
    )
    return Table(f"{outcome.task}, {outcome.size}", header, rows, note)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4g}"
