"""What the page tells of one row: where it came from, how it was measured, and its recipe."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

from ..curves import PALETTE
from .classes import classes_view, confusion_view
from .columns import column_name
from .format import Scale, interval_text, metric_label, number
from .model import ColumnMetric, Figure, Leaderboard, Row, Run
from .text import mapping, plain, whole

TEXT = 4000
"""Characters of a command or recipe that the page shows."""


def commands(row: Row, run: Run) -> str:
    """Returns the commands that make a row again: the training's as it was recorded, and the scoring's."""
    suites = dict.fromkeys(cell.score.get("suite") for cell in row.cells.values())
    named = [plain(name, 200) for name in suites if isinstance(name, str) and name]
    scoring = [f"posttrain score {shlex.quote(plain(run.folder, 400))} --suite {shlex.quote(name)}" for name in named]
    recorded = plain(run.record.get("command") or "", TEXT)
    return "\n".join(filter(None, (recorded, *(scoring if recorded else ()))))


def facts(row: Row, run: Run) -> list[tuple[str, str]]:
    """Returns what is known of a row's origin, as name and text; what is unknown says so."""
    record = run.record
    template, git = mapping(record.get("template")), mapping(record.get("git"))
    train = mapping(mapping(record.get("data")).get("train"))
    versions = mapping(record.get("versions"))
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    facts = [
        ("weights", row.weights_hash),
        ("model", row.model_hash),
        ("folders", ", ".join(row.names)),
        ("run folder", run.folder),
        ("started from", row.parent or _absent(record, "parent")),
        ("recipe", record.get("recipe_hash")),
        ("data", " ".join(filter(None, (str(train.get("fingerprint") or ""), _data_counts(train))))),
        ("chat template", _named(template) or _absent(record, "template")),
        ("seed", run.seed),
        ("git", f"{git['revision']}{dirty}" if git.get("revision") else None),
        ("processes", record.get("processes")),
        ("started", record.get("created")),
        ("finished", record.get("finished")),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))),
    ]
    return [(name, plain(value, 600) if value not in (None, "") else "not recorded") for name, value in facts]


def _named(template: dict[str, Any]) -> str:
    return " ".join(str(template[key]) for key in ("name", "fingerprint") if template.get(key))


def _absent(record: dict[str, Any], key: str) -> str | None:
    """Returns ``none`` where a record says that there is none, and None where it says nothing."""
    return "none" if key in record and record[key] is None else None


def _data_counts(train: dict[str, Any]) -> str:
    found = {key: whole(train.get(key)) for key in ("rows", "tokens", "loss_tokens")}
    counts = [f"{count:,} {key.replace('_', ' ')}" for key, count in found.items() if count is not None]
    dropped = [f"{why.replace('_', ' ')} {count}" for why, count in mapping(train.get("dropped")).items() if count]
    return "; ".join(filter(None, (", ".join(counts), f"dropped: {', '.join(dropped)}" if dropped else "")))


def score_views(leaderboard: Leaderboard, row: Row, shown: Mapping[tuple[str, str], Scale]) -> list[dict[str, Any]]:
    """Returns a row's score records for its details: each metric, and how it was measured."""
    found = []
    for column in leaderboard.columns:
        cell = row.cells.get(column.id)
        if cell is None:
            continue
        metrics = {metric.name: metric for metric in column.metrics}
        how = [f"{key.replace('_', ' ')} {cell.score[key]}" for key in _HOW if cell.score.get(key) is not None]
        found.append(
            {
                "task": plain(column_name(column), 60),
                "how": plain(", ".join(how), 500),
                "figures": [
                    _measured(metrics[f.metric], f, shown[column.id, f.metric].places)
                    for f in cell.figures
                    if metrics[f.metric] in column.main
                ],
                "notes": [plain(note, 300) for note in cell.score.get("notes") or () if isinstance(note, str)],
                "classes": classes_view(cell.figures),
                "confusion": confusion_view(cell.score),
            }
        )
    return found


# fmt: off
_HOW = (
    "suite", "suite_version", "judge_version", "task_hash", "num_fewshot", "template_fingerprint", "limit", "seconds",
    "created",
)
# fmt: on


def _measured(metric: ColumnMetric, figure: Figure, places: int) -> dict[str, str]:
    return {
        "metric": metric_label(metric),
        "value": number(figure.value, places, metric.unit) if figure.value is not None else plain(figure.problem or ""),
        "interval": interval_text(figure, places, metric.unit),
        "method": figure.interval.method if figure.interval else "",
        "stderr": number(figure.stderr, places + 1, metric.unit) if figure.stderr is not None else "none",
        "n": str(figure.n) if figure.n is not None else "?",
    }


def run_view(run: Run, index: int, *, whole_recipe: bool) -> dict[str, Any]:
    """Returns a run's recipe, as far as the page shows it."""
    record = json.dumps(run.record.get("recipe"), indent=2, ensure_ascii=False, default=str)
    cut = len(record) > TEXT
    lines = [" " * (len(line) - len(line.lstrip())) + plain(line.strip(), 300) for line in record[:TEXT].split("\n")]
    if cut:
        lines.append("… (the rest is in leaderboard.json)")
    return {
        "id": run.id,
        "color": index % PALETTE,
        "name": plain(run.name, 60),
        "stage": plain(run.stage or "unknown", 30),
        "recipe": "\n".join(lines) if run.record.get("recipe") and whole_recipe else "",
    }
