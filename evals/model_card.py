"""A model card for the Hugging Face Hub, with evaluation results that are what their names say.

The metadata name only results of lm-eval's own tasks, unmodified and whole: whoever compares them with another model's
compares the same thing. Everything else that was measured stands in the card's text, with what sets it apart.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import InputError
from ..data_tools.files import write_atomic
from .checkpoints import FINAL
from .report.board import BoardRow, Cell, Column, Figure, Leaderboard
from .report.format import Speller, metric_label
from .report.markdown import md
from .report.text import clean, detail_of, mapping, plain, text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

_PIPELINES = {"classify": "text-classification", "reward": "text-classification"}
_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.\-]*/[\w.\-]+$")
_NOT_MODELS = (".json", ".jsonl", ".yaml", ".py", ".txt", ".csv", ".parquet")
_MOST_RECIPE = 20_000  # characters


def write_card(run_folder: Path, output: Path | None = None, *, name: str | None = None) -> str:
    """Returns the card of a run's final model, and writes it where a path is given.

    Args:
        run_folder: A run folder with its scores.
        output: The file to write, such as the ``README.md`` to upload.
        name: What to call the model; the run's name by default.

    Raises:
        InputError: The folder is no run, or has no scores of a final model.
        PosttrainError: The file cannot be written.
    """
    from .report import build

    board = build([run_folder])
    mine = [row for row in board.rows if board.run_of(row).folder == run_folder.resolve().name]
    row = next((row for row in mine if FINAL in row.names and row.cells), None)
    if row is None:
        raise InputError(
            "no scores of a final model by a task",
            where=str(run_folder),
            hint="`posttrain score` it by a suite with tasks, then write its card",
        )
    run = board.run_of(row)
    results = [result for column in board.columns if (cell := row.cells.get(column.id)) for result in _results(cell)]
    called = plain(name or run.name, 96)
    facts = {"weights": row.weights_hash, "seed": run.seed}
    card = _card(run.record, called, run.stage, results=results, evaluation=_table(board, row), **facts)
    if output is not None:
        write_atomic(output, card)
    return card


def card_of_record(record: Mapping[str, Any], *, step: int | None, adapter: bool) -> str:
    """Returns the card of what a run has just saved, which nothing has scored yet.

    Args:
        record: The run's ``run.json``.
        step: The checkpoint's step; None for the final model.
        adapter: Whether it is an adapter, which PEFT loads.
    """
    name = plain(record.get("name") or "model", 96)
    called = name if step is None else f"{name}, step {step}"
    unscored = ["Not scored when this was written: `posttrain score` it, then `posttrain card`."]
    stage, seed = text(record.get("stage")), record.get("seed")
    return _card(record, called, stage, evaluation=unscored, library="peft" if adapter else "transformers", seed=seed)


def _card(
    record: Mapping[str, Any],
    called: str,
    stage: str | None,
    *,
    evaluation: list[str],
    results: "Sequence[EvalResult]" = (),
    library: str = "transformers",
    **facts: Any,
) -> str:
    """Returns a card: what the Hub reads, then the text."""
    from huggingface_hub import ModelCardData

    base = _base(record)
    known = {
        "library_name": library,
        "pipeline_tag": _PIPELINES.get(stage or "", "text-generation"),
        "tags": ["posttrain", *([plain(stage, 40)] if stage else [])],
        "base_model": base,
    }
    data = ModelCardData(
        model_name=called, eval_results=list(results) or None, **{key: value for key, value in known.items() if value}
    )
    origin = base or text(mapping(record.get("parent")).get("name"))
    trained = f" by a run of stage {md(stage, 40)}" if stage else ""
    start = f" from {md(origin)}" if origin else ""
    lines = [f"# {md(called, 96)}", "", f"Trained with posttrain{trained}{start}.", ""]
    lines += ["## Evaluation", "", *evaluation, "", *_provenance(record, facts)]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines).rstrip("\n") + "\n"


def why_not(cell: Cell) -> str | None:
    """Says what keeps a score out of the metadata; None for an lm-eval task that was run unmodified and whole."""
    detail = detail_of(cell.score)
    if cell.score.get("judge_version"):
        return "a judge's figure"
    if clean := mapping(cell.score.get("clean")):
        return f"without {len(clean['without'])} items that training data holds"
    if detail.get("kind") != "lm-eval":
        return "not a task of lm-eval, or scored before this was recorded"
    changes = detail.get("changes")
    if not isinstance(changes, list) or changes:
        return f"not lm-eval's own task as it stands: {', '.join(map(str, changes or ['unknown']))}"
    if cell.score.get("limit") is not None:
        return "a limit: not all items"
    notes = cell.score.get("notes")
    return f"not whole: {notes[0]}" if isinstance(notes, list) and notes else None


def _results(cell: Cell) -> list["EvalResult"]:
    """Returns the figures of a cell as the Hub knows them; none if anything sets it apart from the published task."""
    from huggingface_hub import EvalResult

    detail = detail_of(cell.score)
    dataset = mapping(detail.get("dataset"))
    path = text(dataset.get("path"))
    if why_not(cell) is not None or path is None:
        return []
    settings = {
        "num_few_shot": cell.score.get("num_fewshot"),
        "chat_template": cell.score.get("template_fingerprint"),
        "lm_eval": mapping(cell.score.get("versions")).get("lm-eval"),
    }
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=path,
            dataset_name=plain(cell.score.get("task"), 80),
            dataset_config=text(dataset.get("name")),
            dataset_split=text(dataset.get("split")),
            dataset_args={key: value for key, value in settings.items() if value is not None},
            metric_type=figure.metric,
            metric_name=figure.metric,
            metric_value=figure.value,
            metric_args=_spread(figure),
        )
        for figure in cell.figures
        if figure.value is not None and "/" not in figure.metric
    ]


def _spread(figure: Figure) -> dict[str, Any]:
    """Returns what says how far to trust a figure."""
    ends = figure.interval
    values = {"n": figure.n, "stderr": figure.stderr, "low_95": ends and ends.low, "high_95": ends and ends.high}
    return {key: value for key, value in values.items() if value is not None}


def _base(record: Mapping[str, Any]) -> str | None:
    """Returns the Hub id that a run started from, if it is one."""
    model = mapping(record.get("recipe")).get("model")
    name = text(mapping(model).get("name_or_path")) or text(model)
    if name is None or not _HUB_ID.match(name) or name.endswith(_NOT_MODELS) or Path(name).exists():
        return None
    return name


def _provenance(record: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Returns the way to the model."""
    known = {
        "weights": facts.get("weights"),
        "recipe": record.get("recipe_hash"),
        "training data": mapping(mapping(record.get("data")).get("train")).get("fingerprint"),
        "chat template": mapping(record.get("template")).get("name"),
        "seed": facts.get("seed"),
        "git revision": mapping(record.get("git")).get("revision"),
        "versions": ", ".join(f"{k} {v}" for k, v in sorted(mapping(record.get("versions")).items())),
    }
    lines = ["## How it was made", ""]
    lines += [f"- {fact}: {md(value, 400)}" for fact, value in known.items() if value not in (None, "")]
    lines += _block("", plain(record.get("command") or "", 2000))
    recipe = json.dumps(record.get("recipe"), indent=2, ensure_ascii=False, default=str)
    return lines + (_block("json", clean(recipe)[:_MOST_RECIPE]) if record.get("recipe") else [])


def _block(language: str, content: str) -> list[str]:
    """Returns a fenced block whose fence the content cannot close."""
    if not content:
        return []
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return ["", f"{fence}{language}", content, fence]


def _table(board: Leaderboard, row: BoardRow) -> list[str]:
    spell = Speller(board)
    lines = ["| task | metric | value | 95% interval | n | |", "|:---|:---|---:|---:|---:|:---|"]
    for column in board.columns:
        cell = row.cells.get(column.id)
        if cell is not None:
            lines += _lines(spell, column, cell)
    return [*lines, "", "Results without a remark are lm-eval's own tasks, unmodified and whole."]


def _lines(spell: Speller, column: Column, cell: Cell) -> list[str]:
    few = f" ({column.num_fewshot}-shot)" if column.num_fewshot else ""
    remark = "; ".join(filter(None, (column.stamp, why_not(cell))))
    lines = []
    for figure in cell.figures:
        if figure.value is None or "/" in figure.metric:
            continue
        metric = column.metric(figure.metric)
        value, ends = spell.number(figure.value, column, metric), spell.interval(figure, column, metric)
        cells = (f"{md(column.name)}{few}", md(metric_label(metric)), value, ends, str(figure.n or "?"))
        lines.append(f"| {' | '.join(cells)} | {md(remark, 200)} |")
    return lines
