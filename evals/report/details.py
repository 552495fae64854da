"""What the page tells of one row: where it came from, how it was measured, and its recipe."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from .board import Cell, Figure, Row, Run
from .sections import SHADES, Line, Table, TableCell
from .text import mapping, plain, whole

TEXT = 4000
"""Characters of a command or recipe that the page shows."""
_MOST = 20  # classes of the largest confusion matrix that is drawn whole
_MISTAKES = 12  # of a larger one, the most frequent
_BY_CLASS = ("precision", "recall", "f1")
# fmt: off
_HOW = (
    "suite", "suite_version", "judge_version", "task_hash", "num_fewshot", "template_fingerprint", "limit", "seconds",
    "created",
)
# fmt: on


def commands(row: Row, run: Run) -> str:
    """Returns the commands that make a row again: the training's as it was recorded, and the scoring's."""
    recorded = plain(run.record.get("command") or "", TEXT)
    suites = dict.fromkeys(cell.score.get("suite") for cell in row.cells.values())
    named = [plain(name, 200) for name in suites if isinstance(name, str) and name]
    scoring = [f"posttrain score {shlex.quote(plain(run.folder, 400))} --suite {shlex.quote(name)}" for name in named]
    return "\n".join([recorded, *scoring]) if recorded else ""


def facts(row: Row, run: Run) -> list[tuple[str, str]]:
    """Returns what is known of a row's origin, as name and text; what is unknown says so."""
    record = run.record
    template, git = mapping(record.get("template")), mapping(record.get("git"))
    train = mapping(mapping(record.get("data")).get("train"))
    counts = {key: whole(train.get(key)) for key in ("rows", "tokens", "loss_tokens")}
    dropped = [f"{why.replace('_', ' ')} {count}" for why, count in mapping(train.get("dropped")).items() if count]
    parts = [", ".join(f"{n:,} {key.replace('_', ' ')}" for key, n in counts.items() if n is not None)]
    parts += [f"dropped: {', '.join(dropped)}"] if dropped else []
    versions = sorted(mapping(record.get("versions")).items())
    dirty = " with uncommitted changes" if git.get("dirty") else ""
    facts = [
        ("weights", row.weights_hash),
        ("model", row.model_hash),
        ("folders", ", ".join(row.names)),
        ("run folder", run.folder),
        ("started from", row.parent or _absent(record, "parent")),
        ("recipe", record.get("recipe_hash")),
        ("data", " ".join(filter(None, (str(train.get("fingerprint") or ""), "; ".join(filter(None, parts)))))),
        ("chat template", " ".join(str(template[key]) for key in ("name", "fingerprint") if template.get(key))
         or _absent(record, "template")),
        ("seed", run.seed),
        ("git", f"{git['revision']}{dirty}" if git.get("revision") else None),
        ("processes", record.get("processes")),
        ("started", record.get("created")),
        ("finished", record.get("finished")),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions)),
    ]  # fmt: skip
    return [(name, plain(value, 600) if value not in (None, "") else "not recorded") for name, value in facts]


def _absent(record: dict[str, Any], key: str) -> str | None:
    """Returns ``none`` where a record says that there is none, and None where it says nothing."""
    return "none" if key in record and record[key] is None else None


def how_scored(cell: Cell) -> str:
    """Returns what a score record says of how it was measured."""
    known = [f"{key.replace('_', ' ')} {cell.score[key]}" for key in _HOW if cell.score.get(key) is not None]
    return plain(", ".join(known), 500)


def notes_of(cell: Cell) -> list[str]:
    """Returns what scoring noted of a score."""
    return [plain(note, 300) for note in cell.score.get("notes") or () if isinstance(note, str)]


def recipe_text(run: Run) -> str:
    """Returns a run's recipe, as far as the page shows it."""
    record = json.dumps(run.record.get("recipe"), indent=2, ensure_ascii=False, default=str)
    lines = [" " * (len(line) - len(line.lstrip())) + plain(line.strip(), 300) for line in record[:TEXT].split("\n")]
    lines += ["… (the rest is in leaderboard.json)"] if len(record) > TEXT else []
    return "\n".join(lines) if run.record.get("recipe") else ""


def classes_of(figures: Sequence[Figure]) -> Table | None:
    """Returns a line for each class: how many rows are of it, and precision, recall and F1."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in figures:
        kind, _, name = figure.metric.partition("/")
        if name and kind in _BY_CLASS:
            found.setdefault(name, {})[kind] = figure
    lines = []
    for name, mine in found.items():
        values = [figure.value if (figure := mine.get(kind)) else None for kind in _BY_CLASS]
        shares = ("" if value is None else f"{100 * value:.1f}" for value in values)
        n = mine["recall"].n if "recall" in mine else 0
        lines.append(Line((TableCell(plain(name, 60), record=True), str(n), *shares)))
    heads = ("class", "rows", "precision, %", "recall, %", "F1, %")
    return Table(heads, tuple(lines), css="mistakes", head=None) if lines else None


def confusion_of(score: dict[str, Any]) -> dict[str, Any] | Table | None:
    """Returns a score's confusion matrix, shaded by the share of the true class; of a large one, its worst mistakes.

    A matrix that is not square, or not of counts, is left out.
    """
    confusion = mapping(mapping(score.get("detail")).get("confusion"))
    labels, counts = confusion.get("labels"), confusion.get("counts")
    if not isinstance(labels, list) or not isinstance(counts, list) or len(labels) != len(counts) or not labels:
        return None
    rows = [[whole(count) for count in row] if isinstance(row, list) else [] for row in counts]
    if any(len(row) != len(labels) or None in row for row in rows):
        return None
    names = [plain(label, 40) for label in labels]
    known = [[count or 0 for count in row] for row in rows]
    if len(names) > _MOST:
        return _mistakes(names, known)
    shaded = [
        {"name": name, "n": total, "cells": [(n, round(SHADES * n / total) if total else 0) for n in row]}
        for name, row in zip(names, known, strict=True)
        for total in (sum(row),)
    ]
    return {"labels": names, "rows": shaded}


def _mistakes(names: Sequence[str], counts: Sequence[Sequence[int]]) -> Table:
    wrong = [(-n, i, k) for i, row in enumerate(counts) for k, n in enumerate(row) if i != k and n]
    cells = ((*(TableCell(names[i], record=True) for i in pair), str(-n)) for n, *pair in sorted(wrong)[:_MISTAKES])
    caption = f"The most frequent mistakes among {len(names)} classes; the whole matrix is in leaderboard.json"
    return Table(("true", "predicted", "rows"), tuple(map(Line, cells)), css="mistakes", caption=caption, head=None)
