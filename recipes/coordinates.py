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

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat

from ..data_tools.progress import ProgressLine
from ..data_tools.spec import Count
from ..data_tools.tool_report import PAGE, Table, ToolReport
from .errors import RecipeError
from .load import Loaded, RecipeTool

if TYPE_CHECKING:
    from transformers import Trainer

    from .decisions import Ready

HELD = 0.35
"""A slope as small is none: where an exponent is wrong, sizes go as the square root of the width, or faster."""
PLACES = {"attention": "self_attn.o_proj", "MLP": "mlp.down_proj"}
"""What is measured in every layer: what the matrices give that write to the residual stream."""
_LOGITS = "logits"
_TAIL = 0.2  # of a run of the sweep, over which its loss is the mean
_KINDS = {"muP": True, "standard": False}
_QUIET = {"save_strategy": "no", "eval_strategy": "no", "report_to": "none", "disable_tqdm": True, "logging_steps": 1}


def _rising(values: list[Any]) -> list[Any]:
    if sorted(set(values)) != values:
        raise ValueError("each must be above the one before")
    return values


Seeds = Annotated[list[NonNegativeInt], Field(min_length=1)]


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
    """How far the outputs of a matrix W went from the first ones, in standard deviations over all coordinates.

    Attributes:
        change: Of W x less the first W's of the first x.
        update: Of what W's own updates add, W x less the first W's of the same x.
    """

    change: float
    update: float


class Mup(RecipeTool):
    """Trains a recipe with `model.mup_base` for some steps at several widths, with it and without.

    The coordinate check (Yang et al. 2022, arXiv:2203.03466, figure 5 and appendix D.1): neither how far attention,
    MLP and head go from what they gave at first, nor what their own updates add to it, should depend on the width. It
    trains on one short text and looks at that text, as microsoft/mup does: an update is a sum of outer products, one of
    each token, whose effect on one of these tokens grows as the width, and on others by chance, as its square root. A
    wrong weight decay does not show in it, so `--rates` sweeps the learning rate beside it. Without `mup_base`,
    `initializer_range` and learning rate are the same at all widths. Writes ``report.json`` and ``report.html``.
    """

    widths: Annotated[list[Count], Field(min_length=2), AfterValidator(_rising)] = Field([1, 2, 4, 8])
    """How many times wider than the base: every field of `mup_base` is multiplied."""
    seeds: Seeds = Field([1, 2, 3])
    """Of weights and text."""
    steps: Count = 5
    """Updates of the check, at the recipe's learning rate; what is computed is measured after each. Of muP the last
    counts: its logits start smaller the wider the model is, and grow to one size. What blows up does so at the first,
    and less when the loss has nothing more to fall."""
    tokens: Annotated[int, Field(ge=2)] = 16
    """Of the text of the check; fewer than the narrowest model is wide."""
    rates: Annotated[list[PositiveFloat], Field(min_length=2), AfterValidator(_rising)] | None = None
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

        loaded = self.load()
        if loaded.recipe.model.mup_base is None:
            raise RecipeError("has no model.mup_base", where=self.recipe, hint="say of which width the settings are")
        ready = decide(loaded, trainer_config(loaded))
        checked = _cells(self.widths, self.seeds, [ready.args.learning_rate])
        swept = _cells(self.widths, self.sweep_seeds, self.rates or [])
        line = ProgressLine("muP", len(checked) + len(swept))
        sizes: dict[ShortRun, dict[str, list[ActivationSize]]] = {}
        losses: dict[ShortRun, float] = {}
        for number, cell in enumerate([*checked, *swept]):
            line.show(f"{number} of {len(checked) + len(swept)} trainings", number)
            if number < len(checked):
                sizes[cell] = _sizes(ready, cell, self.steps, self.tokens)
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
        trainer = {key: value for key, value in trainer.items() if key not in ("lr_scheduler_kwargs", "warmup_steps")}
    changed = {
        "model": model.model_copy(update={"config": config, "mup_base": base if cell.mup else None}),
        "trainer": trainer,
        "score": None,
        "output_dir": folder,
    }
    return replace(loaded, recipe=loaded.recipe.model_copy(update=changed))


def _trained(
    ready: "Ready", cell: ShortRun, fields: dict[str, Any], before: Callable[["Trainer"], None] = lambda trainer: None
) -> "Trainer":
    """Trains a cell in a folder that is not kept; ``before`` is called with the trainer."""
    from .decisions import placed, trainer_config
    from .train import build
    from .watchdog import Watchdog

    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(io.StringIO()),  # what trainers print is for runs
        contextlib.redirect_stderr(io.StringIO()),
        placed(ready.job.loaded),
    ):
        loaded = _variant(ready.job.loaded, cell, folder, fields)
        trainer = build(replace(ready, job=replace(ready.job, loaded=loaded), args=trainer_config(loaded)))
        trainer.remove_callback(Watchdog)  # it ends what blows up, which is what is looked for
        before(trainer)
        trainer.train()
    return trainer


def _sizes(ready: "Ready", cell: ShortRun, steps: int, tokens: int) -> dict[str, list[ActivationSize]]:
    """Returns how far each place has gone after each update, on the tokens that it trains on; over all layers."""
    import torch
    from torch.nn.functional import linear
    from transformers import TrainerCallback

    found: dict[str, list[ActivationSize]] = {place: [] for place in (*PLACES, _LOGITS)}

    def watch(trainer: "Trainer") -> None:
        model: Any = trainer.model
        collate: Any = trainer.data_collator
        texts: Any = trainer.train_dataset
        whole = collate([texts[cell.seed % len(texts)]])
        batch = {name: value[:1, :tokens] for name, value in whole.items() if value.dim() == 2}
        if not (batch["labels"][:, 1:] >= 0).any():
            raise RecipeError(f"the first {tokens} tokens carry no loss", hint="take a recipe of stage pretrain")
        trainer.data_collator = lambda rows: {name: value.clone() for name, value in batch.items()}
        parts: dict[str, tuple[str, Any]] = {
            name: (place, model.get_submodule(name))
            for name, _ in model.named_modules()
            for place, last in PLACES.items()
            if name.endswith(last)
        } | {"": (_LOGITS, model.get_output_embeddings())}
        weights = {name: part.weight.detach().clone() for name, (_, part) in parts.items()}

        def outputs() -> dict[str, tuple[Any, Any]]:
            """What each place gives, and what its first weight would give of the same."""
            given: dict[str, tuple[Any, Any]] = {}

            def note(name: str) -> Any:
                return lambda part, inputs, output: given.update({name: (output, linear(inputs[0], weights[name]))})

            hooks = [part.register_forward_hook(note(name)) for name, (_, part) in parts.items()]
            with torch.no_grad():
                model(input_ids=batch["input_ids"].to(model.device))
            for hook in hooks:
                hook.remove()
            return given

        first = outputs()

        class Look(TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                gone: dict[str, list[ActivationSize]] = {place: [] for place in found}
                for name, (output, unmoved) in outputs().items():
                    place = parts[name][0]
                    scale = getattr(model.config, "logits_scaling", 1) if place == _LOGITS else 1
                    both = (output - first[name][0], output - unmoved)
                    gone[place].append(ActivationSize(*(one.std().item() / scale for one in both)))
                for place, sizes in gone.items():
                    means = (statistics.mean(getattr(one, what) for one in sizes) for what in ("change", "update"))
                    found[place].append(ActivationSize(*means))

        trainer.add_callback(Look())

    _trained(ready, cell, {"lr_scheduler_type": "constant", "max_steps": steps, "dataloader_num_workers": 0}, watch)
    return found


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
    sizes: dict[ShortRun, dict[str, list[ActivationSize]]], widths: Sequence[int], seeds: Sequence[int], base: int
) -> tuple[list[Table], list[str]]:
    """The coordinate check's table, and what follows from it."""
    rows: list[list[Any]] = []
    summary = []
    steps = min(len(found[_LOGITS]) for found in sizes.values())
    for kind, mup in _KINDS.items():
        cells = {(cell.times, cell.seed): found for cell, found in sizes.items() if cell.mup == mup}
        last: dict[str, float] = {}
        for place in (*PLACES, _LOGITS):
            for what in ("change", "update"):
                gone = [
                    [[getattr(cells[times, seed][place][step], what) for times in widths] for seed in seeds]
                    for step in range(steps)
                ]
                slopes = [[slope(widths, values) for values in table] for table in gone]
                if what == "change":  # the figure's; the update's part of it says where it comes from
                    last[place] = statistics.mean(slopes[-1])
                ends = (f" [{min(step):+.2f}, {max(step):+.2f}]" if len(seeds) > 1 else "" for step in slopes)
                shown = [f"{statistics.mean(step):+.2f}{end}" for step, end in zip(slopes, ends, strict=True)]
                rows.append([kind, place, what, *shown, *map(statistics.mean, zip(*gone[-1], strict=True))])
        steepest = max(last, key=lambda name: abs(last[name]))
        verdict = "does not depend on the width" if abs(last[steepest]) < HELD else "depends on the width"
        summary.append(
            f"{kind}: what is computed {verdict}; the steepest slope is {last[steepest]:+.2f}, of {steepest}."
        )
    header = ["parametrisation", "output of", "what", *[f"slope after {step + 1}" for step in range(steps)]]
    note = (
        f"Slopes of log standard deviations against log width after each update: the mean of {len(seeds)} seeds, the "
        f"least and the most. After the last, one below {HELD} either way is none: a wrong exponent is so by a half or "
        "more. Change: from the first outputs; update: what the last matrix's own updates add. Sizes: after the last."
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
