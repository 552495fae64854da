"""Studies: one recipe in several versions, each from several seeds, and what may be said of their differences.

A study is a pipeline of its cells, so that they share every step, are skipped while nothing has changed, and go on
after a kill; what is here is the grid, and the comparison.
"""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data_tools.files import read_json, write_json
from ..data_tools.specfile import Document, load_document, raise_if_problems, validate
from ..data_tools.tool_report import PAGE, Bar, Plot, Table, ToolReport
from .errors import RunError
from .load import apply_override
from .pipeline import plan, plan_score, run_steps
from .schema import Pipeline, Study

if TYPE_CHECKING:
    from ..evals.records import Score
    from ..evals.stats.compare import Comparison
    from .pipeline import Plan

STATE = "study.json"


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    arm: str
    size: str
    seed: int

    @property
    def name(self) -> str:
        """Of its step, and so of its folder."""
        return f"{self.arm}.{self.size}.{self.seed}"


@dataclass(frozen=True)
class Outcome:
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


def load_study(path: Path, overrides: Sequence[str] = ()) -> tuple[Study, Document]:
    """Reads a study.

    Raises:
        SpecError: With every problem of the file; those of its recipe come with the grid (:func:`grid`).
    """
    document = load_document(path)
    for override in overrides:
        apply_override(document, override)
    study = validate(Study, document)
    assert study is not None, "no problem was raised, so it validated"
    return study, document


def grid(study: Study, document: Document, seeds: Sequence[int]) -> tuple[Pipeline, Document]:
    """Returns the pipeline of the cells of some seeds, and the document that says where its keys stand."""
    steps = copy.deepcopy(document.value.get("steps") or [])  # planning writes folders where `@name` stood
    for cell in cells(study, seeds):
        fixed = [f"trainer.seed={cell.seed}", f"data.seed={cell.seed}"]
        overrides = [*study.sizes[cell.size], *study.arms[cell.arm], *fixed]
        steps.append({"name": cell.name, "recipe": study.recipe, "overrides": overrides})
    score = {"suite": study.suite, "steps": [cell.name for cell in cells(study, seeds)]}
    value = {"steps": steps, "score": score, "report": False, "output_dir": study.output_dir}
    made = Document(document.path, value, document.lines)
    pipeline = validate(Pipeline, made)
    raise_if_problems(made)
    assert pipeline is not None, "no problem was raised, so it validated"
    return pipeline, made


def cells(study: Study, seeds: Sequence[int]) -> list[Cell]:
    """Returns the cells in the order they are run: every arm and size of one seed before the next seed."""
    return [Cell(arm, size, seed) for seed in seeds for size in study.sizes for arm in study.arms]


def check_study(path: Path, overrides: Sequence[str]) -> list[str]:
    """Checks a study and all its cells before anything is run; returns what there is to say of it.

    Raises:
        PosttrainError: The file, or a recipe with the overrides of a cell, is wrong.
    """
    study, document = load_study(path, overrides)
    pipeline, made = grid(study, document, study.seeds)
    plan_score(made, pipeline, plan(made, pipeline))
    return [*_describe(study), *_hours(study)]


def plan_one_seed(path: Path, overrides: Sequence[str]) -> "Mapping[str, Plan]":
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
    hours: float | None = None,
    processes: int | None = None,
    accelerate: str | None = None,
    say: Callable[[str], None] = print,
) -> list[Outcome]:
    """Runs the cells that have not been run, a seed at a time, and writes the page after each seed from the second on.

    Args:
        path: The study's YAML file.
        overrides: ``key=value``, of the study.
        hours: Start no further seed that would end after so many hours of running, those of earlier calls included, by
            the longest seed so far.
        processes: How many processes train each cell.
        accelerate: The accelerate config they are launched with.
        say: Where the progress is told, a line at a time.

    Returns:
        What came of it.

    Raises:
        PosttrainError: A file is wrong or a cell failed; what was finished before stays.
    """
    study, document = load_study(path, overrides)
    for line in check_study(path, overrides):
        say(line)
    state = Path(study.output_dir) / STATE
    found: list[Outcome] = []
    said = "one seed says nothing of how the next would differ: no table yet"
    for count, seed in enumerate(study.seeds, start=1):
        spent = _spent(study)
        longest = max(spent.values(), default=0.0)
        if hours is not None and str(seed) not in spent and sum(spent.values()) + longest > hours * 3600:
            say(f"seed {seed}: left out, since a seed takes {_time(longest)} of the {hours:g} h")
            break
        started = time.monotonic()
        pipeline, made = grid(study, document, study.seeds[:count])
        worked = run_steps(pipeline, made, processes=processes, accelerate=accelerate, say=say)
        if worked or str(seed) not in spent:
            spent[str(seed)] = spent.get(str(seed), 0.0) + time.monotonic() - started
            write_json(state, {"seconds": spent})
        if count > 1:
            found = outcomes(study, document, study.seeds[:count])
            report = _report(study, document, study.seeds[:count], found)
            report.write(Path(study.output_dir))
            said = f"{report.as_text()}\n{Path(study.output_dir) / PAGE}"
    say(said)
    return found


def outcomes(study: Study, document: Document, seeds: Sequence[int]) -> list[Outcome]:
    """Reads the scores of the cells and compares the arms: one family over all tasks, sizes and arms.

    Raises:
        RunError: A cell has no score of a task, or cells were asked different things.
    """
    from ..evals.spec import load_suite
    from ..evals.stats.compare import Question, judge, seeded_difference

    pipeline, made = grid(study, document, seeds)
    scoring = plan_score(made, pipeline, plan(made, pipeline))
    assert scoring is not None, "a grid is always scored"
    suite = load_suite(scoring.suite, scoring.references).name
    scores = {cell: _scores(Path(study.output_dir) / cell.name, suite) for cell in cells(study, seeds)}
    tasks = study.outcomes or list(next(iter(scores.values())))
    questions: dict[tuple[str, str, str], Question] = {}
    kept: dict[tuple[str, str], tuple[Mapping[str, Sequence[float]], str, bool]] = {}
    for task in tasks:
        for size in study.sizes:
            mine = {arm: [_one(scores, Cell(arm, size, seed), task) for seed in seeds] for arm in study.arms}
            asked = {score.task_hash for of_arm in mine.values() for score in of_arm}
            if len(asked) > 1:
                raise RunError("cells were scored by different versions of the task", where=f"{task}, {size}")
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
                questions[task, size, arm] = Question(difference, metric.higher_is_better)
    answers = judge(questions)
    return [
        Outcome(task, size, metric, figures, {arm: answers[task, size, arm] for arm in study.others}, by_items)
        for (task, size), (figures, metric, by_items) in kept.items()
    ]


def _scores(folder: Path, suite: str) -> dict[str, "Score"]:
    """Returns the scores of a cell's final model by task, the last of each."""
    from ..evals.records import ScoreStore
    from ..evals.runs import find_targets

    targets, _ = find_targets([folder], None, final_only=True)
    models = {target.model_hash for target in targets}
    return {one.task: one for one in ScoreStore(folder).load() if one.model in models and one.suite == suite}


def _one(scores: Mapping[Cell, Mapping[str, "Score"]], cell: Cell, task: str) -> "Score":
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
            path = Path(study.output_dir) / Cell(arm, size, seed).name / score.samples_name
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


def _spent(study: Study) -> dict[str, float]:
    """Returns the seconds that each seed took, by seed."""
    state = read_json(Path(study.output_dir) / STATE)
    return dict(state["seconds"]) if isinstance(state, dict) else {}


def _hours(study: Study) -> list[str]:
    """Says how long the rest will take, by the seeds that were run."""
    spent = _spent(study)
    left = sum(str(seed) not in spent for seed in study.seeds)
    if not spent:
        return ["how long a seed takes is known once one has run; --hours ends in time"]
    longest = max(spent.values())
    return [f"{len(spent)} seeds took {_time(sum(spent.values()))}; {left} more take about {_time(left * longest)}"]


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _report(study: Study, document: Document, seeds: Sequence[int], found: Sequence[Outcome]) -> ToolReport:
    tables = [_table(study, outcome) for outcome in found]
    answers = [(one, arm, said) for one in found for arm, said in one.comparisons.items()]
    verdicts = [answer for answer in answers if answer[-1].verdict != "no verdict"]
    summary = [
        f"{one.task}, {one.size}: {arm} is {said.verdict} than {study.reference} by {abs(said.difference.value):.4g} "
        f"[{_signed(said.difference.low)}, {_signed(said.difference.high)}] {one.metric}."
        for one, arm, said in verdicts
    ]
    if rest := len(answers) - len(verdicts):
        said = f"No verdict on {rest} of {len(answers)} comparisons with {study.reference}"
        summary.append(f"{said} ({len(seeds)} seeds).")
    plots = [
        Plot(
            f"{one.task}, {one.size}",
            f"{one.metric}, the mean of {len(seeds)} seeds",
            [Bar(arm, sum(values) / len(values)) for arm, values in one.values.items()],
        )
        for one in found
    ]
    title = study.name or document.path.stem
    return ToolReport(title, document.value, summary, tables, plots, printed=tables)


def _table(study: Study, outcome: Outcome) -> Table:
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
