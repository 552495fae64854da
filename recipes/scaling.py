"""The data tool ``scaling``: fits a scaling law to the figures of runs, and says what it predicts and how surely."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from ..data_tools.errors import DataError
from ..data_tools.files import read_jsonl_log
from ..data_tools.sources import read_rows
from ..data_tools.tool import Sources, Tool
from ..data_tools.tool_report import PAGE, Table, ToolReport
from ..evals.runs import is_run, is_set_aside, read_record
from .estimate import stored_parameters
from .rundir import LOG

if TYPE_CHECKING:
    from ..evals.stats.intervals import Estimate
    from ..evals.stats.scaling import Fit

_COLUMNS = ("parameters", "tokens", "loss")
_ENDS = ("from", "to")


@dataclass(frozen=True)
class ScalingRun:
    """What a row says of a run.

    Attributes:
        name: The row's ``name``, or where it is.
        parameters: Of the model.
        tokens: It was trained on.
        loss: On held-out text.
    """

    name: str
    parameters: float
    tokens: float
    loss: float

    @property
    def flops(self) -> float:
        """Of training, 6 N D."""
        return 6 * self.parameters * self.tokens


class Scaling(Tool):
    """Fits L(N, D) = E + A / N^alpha + B / D^beta to runs: exponents, best sizes, and whether larger runs keep to it.

    A run is the folder of one that trained a model from nothing and evaluated it at the end, or a row of a table:
    ``parameters``, ``tokens`` (or ``flops``, of 6 N D) and ``loss`` on held-out text; other names by ``columns`` of the
    source. Runs of a learning rate that falls with their own length belong together; checkpoints on the way of one run
    do not. Of folders all parameters are counted, and the tokens that carried loss. Count them the same way in a table:
    with or without embeddings changes the exponents of small models. Writes ``report.json`` and ``report.html``.
    """

    data: Sources
    """Run folders, folders of them, such as a pipeline's, and tables of runs."""
    hold_out: NonNegativeInt = 0
    """Keep so many runs of the most compute out of the fit, and say whether they are where it expects them."""
    leave_out: NonNegativeInt = 0
    """Leave out so many runs of the highest loss: the law is for trained models."""
    huber: PositiveFloat = 1e-3
    """How far a log loss may be off before it counts by its distance and no longer by its square."""
    budgets: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Floating-point operations of training to find the best model for; 1, 10 and 100 times the largest run's if not
    given."""
    served: NonNegativeFloat = 0.0
    """Tokens that the model will read and write in its life: the more, the smaller is the cheapest model."""
    draws: Annotated[int, Field(ge=100)] = 500
    """Resamples of the runs that the intervals are from."""
    seed: int = 0
    """Of the resamples."""

    def run(self, output_dir: Path) -> str:
        """Fits and writes the report.

        Raises:
            DataError: A row or folder is no such run, or there are too few of them for a law.
        """
        from ..evals.stats import scaling

        runs = sorted(self._read(), key=lambda run: run.loss)
        runs = sorted(runs[: max(0, len(runs) - self.leave_out)], key=lambda run: run.flops)
        held = runs[max(0, len(runs) - self.hold_out) :]
        fitted = runs[: len(runs) - len(held)]
        figures = _figures(fitted)
        try:
            fit = scaling.fit(*figures, delta=self.huber, draws=self.draws, seed=self.seed)
            squares = scaling.fit(*figures, delta=None, draws=0)
        except ValueError as error:
            raise DataError(str(error), where=f"{len(fitted)} runs to fit") from error
        law = _law_table(fit)
        summary = [_summary(fit, fitted)]
        tables = [law, _choices(fitted, fit, squares, self.huber)]
        if isoflops := scaling.isoflops(*figures):
            tables.append(_isoflop_table(isoflops, fit))
        tables.append(self._best(fit, fitted))
        printed = [law, tables[-1]]
        if held:
            table, said = _held_table(fit, held, self.seed)
            tables.append(table)
            printed.append(table)
            summary.append(said)
        report = ToolReport(
            "Scaling law", self.model_dump(mode="json"), summary, tables, more={"law": vars(fit.law)}, printed=printed
        )
        report.write(output_dir)
        return f"{report.as_text()}\n{output_dir / PAGE}"

    def _read(self) -> list[ScalingRun]:
        found = []
        evaluated: dict[str, Path] = {}
        for source in self.data:
            if folders := run_folders(Path(source.path)):
                found += [_finished_run(folder, evaluated) for folder in folders]
                continue
            for row in read_rows(source, Path()):
                if row.problem:
                    raise DataError(str(row.problem), where=row.where)
                found.append(_run(row.where, row.values))
        return found

    def _best(self, fit: "Fit", fitted: list[ScalingRun]) -> Table:
        """The best model for each budget, and with tokens served the cheapest of the same loss."""
        most = max(run.flops for run in fitted)
        rows: list[list[Any]] = []
        for flops in self.budgets or [most, 10 * most, 100 * most]:
            size, tokens = fit.law.optimum(flops)
            sizes = fit.estimate(lambda law, flops=flops: law.optimum(flops)[0])
            loss = fit.estimate(lambda law, flops=flops: float(law.loss(*law.optimum(flops))))
            row = [f"{flops:.3g}", size, *_ends(sizes), tokens, tokens / size, loss.value, *_ends(loss)]
            if self.served:
                small, long = fit.law.cheapest(loss.value, self.served)
                spent = 6 * small * long + 2 * small * self.served
                row += [small, long, f"{100 * (1 - spent / (flops + 2 * size * self.served)):.1f}%"]
            rows.append(row)
        header = ["FLOPs", "parameters", *_ENDS, "tokens", "tokens a parameter", "loss", *_ENDS]
        note = "Of the law itself, beyond the runs too, where it may bend: 95% intervals say nothing of that."
        if self.served:
            header += ["parameters, served", "tokens, served", "FLOPs saved"]
            note += f" Served: the cheapest model of the same loss, with {self.served:.3g} tokens read and written."
        return Table("The best model for a budget", header, rows, note)


def run_folders(path: Path) -> list[Path]:
    """Returns the run folders that a path names: itself, or those in it that no changed step left; none for rows."""
    if is_run(path) or not path.is_dir():
        return [path] if is_run(path) else []
    return sorted(folder for folder in path.iterdir() if is_run(folder) and not is_set_aside(folder))


def _finished_run(folder: Path, evaluated: dict[str, Path]) -> ScalingRun:
    """Reads a run folder.

    Args:
        folder: It.
        evaluated: Takes the rows it was evaluated on, by fingerprint, with the first run of them.

    Raises:
        DataError: The run has not ended, says not all that a law needs, or was evaluated on other rows than the others.
    """
    record = read_record(folder)
    log = [line for line in read_jsonl_log(folder / LOG) if "step" in line]
    losses = [line["eval_loss"] for line in log if "eval_loss" in line and line["step"] == log[-1]["step"]]
    parameters = stored_parameters(folder)
    if record.get("finished") is None or parameters is None:
        raise DataError("the run has not ended, or its model is gone", where=str(folder), hint="run it again")
    if record.get("parent") or record["recipe"]["model"].get("name_or_path"):
        what = "the model was trained before, on tokens that nobody counted"
        raise DataError(what, where=str(folder), hint="take runs of new models (model.config)")
    if not record.get("trained"):
        what = f"a run of stage {record.get('stage')} does not count its tokens"
        raise DataError(what, where=str(folder), hint="take runs of pretrain or sft")
    if not losses:
        hint = "give the recipe data.eval and trainer.eval_strategy: epoch, which evaluates at the end, too"
        raise DataError("the run was not evaluated after its last step", where=str(folder), hint=hint)
    rows = str(record["data"]["eval"]["fingerprint"])
    first = evaluated.setdefault(rows, folder)
    if len(evaluated) > 1:
        other = next(iter(evaluated.values()))
        raise DataError(f"was evaluated on other rows than {other}", where=str(first), hint="one law has one data.eval")
    tokens = sum(source["loss_tokens"] for source in record["trained"])
    loss = _number(str(folder), "eval_loss", {"eval_loss": losses[-1]})
    return ScalingRun(str(record.get("name") or folder.name), parameters, tokens, loss)


def _run(where: str, values: Mapping[str, Any]) -> ScalingRun:
    """Reads a row.

    Raises:
        DataError: A column is missing or holds no number above zero.
    """
    values = dict(values)
    if "tokens" not in values and "flops" in values:
        values["tokens"] = _number(where, "flops", values) / 6 / _number(where, "parameters", values)
    name = values.get("name")
    return ScalingRun(str(where if name is None else name), *(_number(where, column, values) for column in _COLUMNS))


def _number(where: str, column: str, values: Mapping[str, Any]) -> float:
    if column not in values:
        hint = "name it by `columns`, such as {path: runs.csv, columns: {Model Size: parameters, Training FLOP: flops}}"
        raise DataError(f"has no column '{column}', only {', '.join(map(str, values))}", where=where, hint=hint)
    try:
        number = float(values[column])
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise DataError(f"'{column}' is {values[column]!r}, which is no number above zero", where=where)
    return number


def _figures(runs: list[ScalingRun]) -> tuple[list[float], list[float], list[float]]:
    return [run.parameters for run in runs], [run.tokens for run in runs], [run.loss for run in runs]


def _ends(estimate: "Estimate") -> tuple[Any, Any]:
    return ("–" if estimate.low is None else estimate.low, "–" if estimate.high is None else estimate.high)


def _summary(fit: "Fit", runs: list[ScalingRun]) -> str:
    law, a = fit.law, fit.estimate(lambda law: law.exponent)
    low, high = _ends(a)
    return (
        f"{len(runs)} runs: L(N, D) = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.4g} + {law.B:.4g} / D^{law.beta:.4g}. "
        f"The best size grows as compute to the {a.value:.3f} [{low:.3f}, {high:.3f}]."
    )


def _law_table(fit: "Fit") -> Table:
    rows: list[list[Any]] = []
    for name in ("E", "A", "alpha", "B", "beta", "exponent"):
        found = fit.estimate(lambda law, name=name: getattr(law, name))
        rows.append([name, found.value, found.stderr, *_ends(found)])
    note = f"exponent: a of N_opt ~ C^a. 95% intervals, percentiles of {len(fit.resampled)} resamples of the runs."
    return Table("The law", ["figure", "value", "standard error", *_ENDS], rows, note)


def _choices(runs: list[ScalingRun], fit: "Fit", squares: "Fit", huber: float) -> Table:
    """The law under other choices: another loss, and without the runs of the highest loss."""
    from ..evals.stats import scaling

    found = [(f"Huber, {huber:g}", fit.law), ("squares of log losses", squares.law)]
    fewer = sorted(runs, key=lambda run: run.loss)[: len(runs) - max(1, len(runs) // 50)]
    try:
        without = scaling.fit(*_figures(fewer), delta=huber, draws=0)
        found.append((f"without the {len(runs) - len(fewer)} of highest loss", without.law))
    except ValueError:
        pass  # too few are left
    rows = [[name, law.E, law.A, law.alpha, law.B, law.beta, law.exponent] for name, law in found]
    note = "Where these differ by more than the intervals above, a few runs decide: look at them before the law."
    return Table("How much the choices matter", ["fit", "E", "A", "alpha", "B", "beta", "exponent"], rows, note)


def _isoflop_table(found: list[Any], fit: "Fit") -> Table:
    """The best sizes of runs of equal compute, beside the law's."""
    import numpy as np

    rows: list[list[Any]] = [
        [f"{one.flops:.3g}", one.runs, one.parameters or "not enclosed", one.loss or "–", fit.law.optimum(one.flops)[0]]
        for one in found
    ]
    enclosed = [one for one in found if one.parameters]
    note = "Parabolas over log N of at least four sizes at one compute; not enclosed: the lowest loss is at the edge."
    if len(enclosed) >= 3:
        logs = np.log([[one.flops, one.parameters] for one in enclosed])
        slope = float(np.polynomial.Polynomial.fit(logs[:, 0], logs[:, 1], 1).convert().coef[1])
        note += f" The best sizes grow as compute to the {slope:.3f}, by the law to the {fit.law.exponent:.3f}."
    return Table("Runs of equal compute", ["FLOPs", "runs", "best size", "loss", "by the law"], rows, note)


def _held_table(fit: "Fit", held: list[ScalingRun], seed: int) -> tuple[Table, str]:
    """The runs that were kept out, beside what was expected of them."""
    rows: list[list[Any]] = []
    inside, farthest, widest = 0, 0.0, 0.0
    for run in held:
        expected = fit.predict(run.parameters, run.tokens, seed=seed)
        low, high = _ends(expected)
        kept = low <= run.loss <= high
        inside += kept
        off = run.loss / expected.value - 1
        farthest, widest = max(farthest, abs(off)), max(widest, (high - low) / expected.value)
        verdict = "confirms" if kept else "refutes"
        rows.append([run.name, run.parameters, run.tokens, expected.value, low, high, run.loss, f"{off:+.2%}", verdict])
    header = ["run", "parameters", "tokens", "expected", *_ENDS, "measured", "off by", "the law"]
    note = "Nothing of these runs was fitted. Of runs that keep to the law, 95% lie between the ends."
    return Table("Runs kept out of the fit", header, rows, note), (
        f"{inside} of {len(held)} runs that were kept out lie where the law expects them, at most {farthest:.1%} off, "
        f"in intervals of up to {widest:.0%} of the loss: the wider, the less is confirmed."
    )
