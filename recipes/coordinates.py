"""The data tool ``mup``: whether the activations of a recipe, and its best learning rate, stay while it widens."""

import contextlib
import io
import itertools
import math
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from ..data_tools.progress import ProgressLine
from ..data_tools.tool import Tool
from ..data_tools.tool_report import PAGE, Table, ToolReport
from .errors import RecipeError
from .load import Loaded, load

if TYPE_CHECKING:
    from transformers import Trainer

    from .decisions import Ready

HELD = 0.35
"""A slope as small is none: where an exponent is wrong, sizes go as the square root of the width, or faster."""
PLACES = {"attention": "self_attn.o_proj", "MLP": "mlp.down_proj"}
"""What is measured in every layer: what the matrices give that write to the residual stream."""
_LOGITS = "logits"
_PROBED = 8  # rows
_TAIL = 0.2  # of a run of the sweep, over which its loss is the mean
_KINDS = {"muP": True, "standard": False}
_QUIET = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}


def _rising(values: list[Any]) -> list[Any]:
    if sorted(set(values)) != values:
        raise ValueError("each must be above the one before")
    return values


Count = Annotated[int, Field(ge=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


@dataclass(frozen=True)
class ShortRun:
    """One short training.

    Attributes:
        mup: Whether it is trained as the recipe says; otherwise without its ``mup_base``.
        times: How many times wider than the base it is.
        seed: Of its weights and rows.
        rate: Its learning rate.
    """

    mup: bool
    times: int
    seed: int
    rate: float


@dataclass(frozen=True)
class ActivationSize:
    """What a matrix gives after some updates.

    Attributes:
        size: The mean of its absolute values.
        update: The mean of what its own updates add to it, W x less the first W's.
    """

    size: float
    update: float


class Mup(Tool):
    """Trains a recipe with `model.mup_base` for some steps at several widths, with it and without.

    The coordinate check (Yang et al. 2022, arXiv:2203.03466, appendix D.1): after some updates neither the size of what
    attention, MLP and head give nor what their own updates add to it should depend on the width. A wrong weight decay
    does not show in it, so `--rates` sweeps the learning rate beside it. Without `mup_base`, `initializer_range` and
    learning rate are the same at all widths. Writes ``report.json`` and ``report.html``.
    """

    recipe: str
    """The recipe: a YAML file."""
    overrides: list[str] = Field([])
    """Keys of the recipe with other values."""
    references: dict[str, str] = Field({})
    """Folders that `@name` stands for in the recipe, as in `{tokenizer: runs/tokenizer}`."""
    widths: Annotated[list[Count], Field(min_length=2), AfterValidator(_rising)] = Field([1, 2, 4, 8])
    """How many times wider than the base: every field of `mup_base` is multiplied."""
    seeds: Seeds = Field([1, 2, 3])
    """Of weights and rows."""
    steps: Count = 5
    """Updates before activations are measured, at the recipe's learning rate. After one or two they say little: the
    logits of muP start smaller the wider the model is, and grow to one size."""
    rates: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2), AfterValidator(_rising)] | None = None
    """Learning rates to train each width at; none if not given."""
    sweep_steps: Count = 100
    """Steps of each run of the sweep, under the recipe's schedule."""
    sweep_seeds: Seeds = Field([1])
    """Of weights and rows in the sweep."""

    def run(self, output_dir: Path) -> str:
        """Trains and writes the report.

        Raises:
            PosttrainError: The recipe cannot be trained, or has no `mup_base`.
        """
        from .decisions import decide, trainer_config

        places = {name: Path(folder) for name, folder in self.references.items()}
        loaded = load(Path(self.recipe), self.overrides, places)
        if loaded.recipe.model.mup_base is None:
            raise RecipeError("has no model.mup_base", where=self.recipe, hint="say of which width the settings are")
        ready = decide(loaded, trainer_config(loaded))
        checked = _cells(self.widths, self.seeds, [ready.args.learning_rate])
        swept = _cells(self.widths, self.sweep_seeds, self.rates or [])
        line = ProgressLine("muP", len(checked) + len(swept))
        sizes: dict[ShortRun, dict[str, ActivationSize]] = {}
        losses: dict[ShortRun, float] = {}
        for number, cell in enumerate([*checked, *swept]):
            line.show(f"{number} of {len(checked) + len(swept)} trainings", number)
            if number < len(checked):
                sizes[cell] = _sizes(ready, cell, self.steps)
            else:
                losses[cell] = _loss(ready, cell, self.sweep_steps)
        line.hide()
        base = loaded.recipe.model.mup_base["hidden_size"]
        tables, summary = _check(sizes, self.widths, self.seeds, base)
        if self.rates:
            more, said = _sweep(losses, self.widths, self.rates, self.sweep_seeds, base)
            tables, summary = [*tables, *more], [*summary, *said]
        report = ToolReport("muP", self.model_dump(mode="json"), summary, tables, printed=tables)
        report.write(output_dir)
        return f"{report.as_text()}\n{output_dir / PAGE}"


def _cells(widths: Sequence[int], seeds: Sequence[int], rates: Sequence[float]) -> list[ShortRun]:
    parts = itertools.product(_KINDS.values(), widths, seeds, rates)
    return [ShortRun(mup, times, seed, rate) for mup, times, seed, rate in parts]


def _variant(loaded: Loaded, cell: ShortRun, folder: str, fields: dict[str, Any]) -> Loaded:
    """Returns the recipe as a cell trains it."""
    model = loaded.recipe.model
    base = model.mup_base or {}
    config = {**(model.config or {}), **{key: size * cell.times for key, size in base.items()}}
    trainer = {**loaded.recipe.trainer, **_QUIET, **fields, "learning_rate": cell.rate, "seed": cell.seed}
    if fields.get("lr_scheduler_type") == "constant":  # the updates of the check are all at the recipe's rate
        trainer.pop("lr_scheduler_kwargs", None)
    changed = {
        "model": model.model_copy(update={"config": config, "mup_base": base if cell.mup else None}),
        "trainer": trainer,
        "score": None,
        "output_dir": folder,
    }
    return replace(loaded, recipe=loaded.recipe.model_copy(update=changed))


def _trained(
    ready: "Ready", cell: ShortRun, fields: dict[str, Any], around: Callable[["Trainer"], None] = lambda trainer: None
) -> "Trainer":
    """Trains a cell in a folder that is not kept; ``around`` is called before and after."""
    from .decisions import placed, trainer_config
    from .train import build

    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),  # what trainers print is for runs
        contextlib.redirect_stderr(io.StringIO()),
        placed(ready.job.loaded),
    ):
        loaded = _variant(ready.job.loaded, cell, folder, fields)
        trainer = build(replace(ready, job=replace(ready.job, loaded=loaded), args=trainer_config(loaded)))
        around(trainer)
        trainer.train()
        around(trainer)
    return trainer


def _sizes(ready: "Ready", cell: ShortRun, steps: int) -> dict[str, ActivationSize]:
    """Returns what each place gives after so many updates, to the first rows; of a layer's places over all layers."""
    import torch
    from torch.nn.functional import linear

    starts: dict[str, torch.Tensor] = {}
    found: dict[str, list[ActivationSize]] = {place: [] for place in (*PLACES, _LOGITS)}

    def look(trainer: "Trainer") -> None:
        model: Any = trainer.model
        head = model.get_output_embeddings()
        places = {
            name: place for name, _ in model.named_modules() for place, last in PLACES.items() if name.endswith(last)
        }
        parts = {name: (place, model.get_submodule(name)) for name, place in places.items()} | {"": (_LOGITS, head)}
        if not starts:
            starts.update({name: part.weight.detach().clone() for name, (_, part) in parts.items()})
            return

        def note(name: str, place: str) -> Any:
            scale = getattr(model.config, "logits_scaling", 1) if place == _LOGITS else 1

            def hook(module: Any, inputs: Any, output: Any) -> None:
                added = linear(inputs[0], module.weight - starts[name])
                found[place].append(ActivationSize(*((one / scale).abs().mean().item() for one in (output, added))))

            return hook

        hooks = [part.register_forward_hook(note(name, place)) for name, (place, part) in parts.items()]
        rows = [trainer.train_dataset[row] for row in range(min(_PROBED, len(trainer.train_dataset)))]  # type: ignore[index]
        with torch.no_grad():
            model(input_ids=trainer.data_collator(rows)["input_ids"].to(model.device))
        for hook in hooks:
            hook.remove()

    _trained(ready, cell, {"lr_scheduler_type": "constant", "max_steps": steps}, look)
    return {
        place: ActivationSize(*(statistics.mean(getattr(one, what) for one in sizes) for what in ("size", "update")))
        for place, sizes in found.items()
    }


def _loss(ready: "Ready", cell: ShortRun, steps: int) -> float:
    """Returns the training loss at the end of a run; infinite where it is no number."""
    trainer = _trained(ready, cell, {"max_steps": steps})
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    last = statistics.mean(losses[-max(1, round(_TAIL * len(losses))) :])
    return last if math.isfinite(last) else math.inf


def slope(widths: Sequence[float], sizes: Sequence[float]) -> float:
    """Returns the power of the width that sizes grow by: least squares of their logs; infinite if one is no number."""
    if not all(0 < size < math.inf for size in sizes):
        return math.inf
    logs = [[math.log(value) for value in values] for values in (widths, sizes)]
    return statistics.linear_regression(*logs).slope


def _check(
    sizes: dict[ShortRun, dict[str, ActivationSize]], widths: Sequence[int], seeds: Sequence[int], base: int
) -> tuple[list[Table], list[str]]:
    """The coordinate check's table, and what follows from it."""
    rows: list[list[Any]] = []
    summary = []
    for kind, mup in _KINDS.items():
        cells = {(cell.times, cell.seed): found for cell, found in sizes.items() if cell.mup == mup}
        means: dict[str, float] = {}
        for place in (*PLACES, _LOGITS):
            for what in ("size", "update"):
                table = [[getattr(cells[times, seed][place], what) for times in widths] for seed in seeds]
                slopes = [slope(widths, values) for values in table]
                means[f"the {what} of {place}"] = mean = statistics.mean(slopes)
                shown = [f"{value:+.2f}" for value in (mean, min(slopes), max(slopes))]
                rows.append([kind, place, what, *shown, *map(statistics.mean, zip(*table, strict=True))])
        steepest = max(means, key=lambda name: abs(means[name]))
        verdict = "does not depend on the width" if abs(means[steepest]) < HELD else "depends on the width"
        summary.append(f"{kind}: what is computed {verdict}; the steepest slope is {means[steepest]:+.2f}, {steepest}.")
    header = ["parametrisation", "output of", "mean", "slope", "least", "most"]
    note = (
        f"Slopes of log means against log width, of {len(seeds)} seeds. One below {HELD} either way is none: a wrong "
        "exponent is so by a half or more. Size: of the outputs; update: of what the last matrix's own updates add."
    )
    return [Table("Coordinate check", [*header, *[f"width {base * times}" for times in widths]], rows, note)], summary


def _sweep(
    losses: dict[ShortRun, float], widths: Sequence[int], rates: Sequence[float], seeds: Sequence[int], base: int
) -> tuple[list[Table], list[str]]:
    """The losses at each rate, and how far the best rate moves."""
    rows: list[list[Any]] = []
    summary = []
    for kind, mup in _KINDS.items():
        table = [
            [statistics.mean(losses[ShortRun(mup, times, seed, rate)] for seed in seeds) for times in widths]
            for rate in rates
        ]
        best = [min(range(len(rates)), key=lambda row, at=at: table[row][at]) for at in range(len(widths))]
        for row, rate in enumerate(rates):
            shown = [f"{loss:.3f}{' *' if best[at] == row else ''}" for at, loss in enumerate(table[row])]
            rows.append([kind, f"{rate:g}", *shown])
        moved = max(best) - min(best)
        said = f"{kind}: the best learning rate goes from {rates[best[0]]:g} to {rates[best[-1]]:g}"
        edge = "; one lies at the edge of the grid" if {0, len(rates) - 1} & set(best) else ""
        summary.append(f"{said}, {moved} steps of the grid apart at most{edge}.")
    header = ["parametrisation", "learning rate", *[f"width {base * times}" for times in widths]]
    note = (
        f"Training loss over the last {_TAIL:.0%} of the steps, the mean of {len(seeds)} seeds; * the best of a width."
    )
    return [Table("Learning rates", header, rows, note)], summary
