"""Sorts score records into columns whose figures may be compared, and says where they may not."""

import json
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

from ..stats.intervals import interval, overlap, scale_of
from .facts import STAMP
from .lineage import Scored
from .model import Cell, Column, ColumnMetric, Figure, Notice, Row, Standing
from .text import mapping, plain, text, whole

_LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity", "loss")
_Key = tuple[str, str, str, str, str]  # task, task hash, few-shot count, limit, template where it must split


def tabulate(
    scored: Sequence[Scored], rules: Collection[str] = ()
) -> tuple[list[Row], list[Column], dict[str, str], list[Notice]]:
    """Fills rows with cells and finds each column's best.

    A task whose records differ in task hash, few-shot count or limit gets a column for each: those are different
    measurements. Records that differ only in chat template, suite version or item count share a column, are
    marked with footnotes and named in a notice.

    Args:
        scored: Rows to be, with their scores.
        rules: Versions of judges that are rules, whose columns are stamped.

    Returns:
        Rows, columns, footnotes by letter, notices.
    """
    notices: list[Notice] = []
    split = _tasks_with_several_templates(scored)
    cells: list[dict[_Key, Cell]] = []
    seen: dict[_Key, dict[str, Any]] = {}
    for item in scored:
        mine: dict[_Key, Cell] = {}
        for score in sorted(item.scores, key=lambda s: text(s.get("created")) or ""):
            cell = _cell(item.run_name, score, notices)
            if cell is not None:
                key = _key(cell.score, split)
                seen.setdefault(key, cell.score)
                if key in mine:
                    cell = replace(cell, earlier=(*mine[key].earlier, _whole_record(mine[key])))
                mine[key] = cell
        cells.append(mine)
    keys = _column_order(seen, scored)
    columns = [_column(f"c{i}", key, keys, cells, seen[key], rules) for i, key in enumerate(keys, start=1)]
    notes = _Notes()
    mixed: dict[str, list[str]] = {}
    rows = [item.row for item in scored]
    for key, column in zip(keys, columns, strict=True):
        filled = {i: replace(mine[key], column=column.id) for i, mine in enumerate(cells) if key in mine}
        filled = _mark(_stand(filled, column), column, notes, mixed)
        for i, cell in filled.items():
            rows[i] = replace(rows[i], cells={**rows[i].cells, column.id: cell})
    notices.extend(_limits(columns))
    notices.extend(Notice("warning", f"rows differ in {k} (see the marks): {', '.join(v)}") for k, v in mixed.items())
    notices.extend(_variants(columns))
    return rows, columns, notes.texts, notices


def _cell(run: str, score: dict[str, Any], notices: list[Notice]) -> Cell | None:
    where = f"{plain(run)} {plain(score.get('checkpoint') or '?')}"
    task, metrics = text(score.get("task")), score.get("metrics")
    entries = [m for m in metrics if isinstance(m, dict) and text(m.get("name"))] if isinstance(metrics, list) else []
    if task is None or not entries:
        what = "names no task" if task is None else f"of task {plain(task)} holds no metric"
        notices.append(Notice("error", f"{where}: a score record {what} and was left out"))
        return None
    given = "over prompts" if score.get("judge_version") else "bootstrap"
    figures = tuple(_figure(entry, given, mapping(score.get("detail"))) for entry in entries)
    for figure in figures:
        if figure.problem:
            notices.append(Notice("error", f"{where}: {plain(task)} {plain(figure.metric)} {figure.problem}"))
    return Cell("", figures, score={key: value for key, value in score.items() if key != "metrics"})


def _whole_record(cell: Cell) -> dict[str, Any]:
    figures = [{"name": f.metric, "value": f.value, "stderr": f.stderr, "n": f.n} for f in cell.figures]
    return {**cell.score, "metrics": figures}


def _figure(entry: dict[str, Any], given_by: str, detail: dict[str, Any]) -> Figure:
    name, raw = str(entry["name"]), entry.get("value")
    value, stderr, n = _finite(raw), _finite(entry.get("stderr")), whole(entry.get("n"))
    problem = None if value is not None else f"is {_spell(raw)}, not a finite number"
    higher = entry.get("higher_is_better")
    direction = higher if isinstance(higher, bool) else name not in _LOWER_IS_BETTER
    given = (_finite(entry.get("low")), _finite(entry.get("high")), given_by)
    return Figure(
        name, value, stderr, n, direction, interval(value, stderr, n, scale_of(name, detail), given), None, problem
    )


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _spell(value: Any) -> str:
    return json.dumps(value)[:40] if not isinstance(value, float) else str(value)


def _measure(score: dict[str, Any]) -> tuple[str, str, str, str]:
    """Returns what makes two records the same measurement, as text so that records of any shape compare."""
    fields = (score.get("task"), _task_hash(score), score.get("num_fewshot"), score.get("limit"))
    first, *rest = ("" if value is None else str(value) for value in fields)
    return (first, rest[0], rest[1], rest[2])


def _task_hash(score: dict[str, Any]) -> Any:
    """Returns a score's task hash; all win rates against all others by one judge are one measurement.

    Each of them has opponents of its own, and so a hash of its own.
    """
    opponents = mapping(score.get("detail")).get("opponents")
    several = isinstance(opponents, list) and len(opponents) > 1
    return f"all {score.get('judge_version')}" if several and score.get("judge_version") else score.get("task_hash")


def _key(score: dict[str, Any], split: set[tuple[str, str, str, str]]) -> _Key:
    measure = _measure(score)
    return (*measure, str(score.get("template_fingerprint") or "none") if measure in split else "")


def _tasks_with_several_templates(scored: Sequence[Scored]) -> set[tuple[str, str, str, str]]:
    """Returns the measurements that one set of weights was given under more than one chat template."""
    found = set()
    for item in scored:
        templates: dict[tuple[str, str, str, str], set[str]] = {}
        for score in item.scores:
            templates.setdefault(_measure(score), set()).add(str(score.get("template_fingerprint")))
        found |= {measure for measure, names in templates.items() if len(names) > 1}
    return found


def _column_order(seen: dict[_Key, dict[str, Any]], scored: Sequence[Scored]) -> list[_Key]:
    """Orders columns as the tasks were first scored, with the variants of a task side by side, whole ones first."""
    tasks = list(dict.fromkeys(str(score.get("task")) for item in scored for score in item.scores))
    return sorted(seen, key=lambda key: (tasks.index(key[0]), key[3] != "", list(seen).index(key)))


def _column(
    identity: str,
    key: _Key,
    keys: Sequence[_Key],
    cells: Iterable[dict],
    score: dict[str, Any],
    rules: Collection[str],
) -> Column:
    siblings = [other for other in keys if other[0] == key[0]]
    parts = []
    if len({other[2] for other in siblings}) > 1:
        parts.append(f"{key[2] or '?'}-shot")
    if key[3]:
        parts.append(f"limit {key[3]}")
    if len({other[1] for other in siblings}) > 1:
        parts.append(f"task {key[1][:8] or '?'}")
    if len({other[4] for other in siblings}) > 1:
        parts.append(f"template {key[4][:8]}" if key[4] not in ("", "none") else "no template")
    figures = [figure for mine in cells if key in mine for figure in mine[key].figures]
    metrics = []
    for name in dict.fromkeys(figure.metric for figure in figures):
        mine = [figure for figure in figures if figure.metric == name]
        share = name.startswith("win_rate") or any(f.interval and f.interval.method == "wilson" for f in mine)
        metrics.append(ColumnMetric(name, mine[0].higher_is_better, "%" if share else ""))
    limit = _finite(score.get("limit"))
    few = whole(score.get("num_fewshot"))
    version, detail = text(score.get("judge_version")), mapping(score.get("detail"))
    judge = " ".join(filter(None, (text(detail.get("judge")), version[:8]))) if version else None
    return Column(
        identity,
        key[0],
        ", ".join(parts),
        tuple(metrics),
        text(score.get("task_hash")),
        few,
        limit,
        judge,
        _opponent(detail) if version else None,
        STAMP if version in rules else None,
    )


def _opponent(detail: dict[str, Any]) -> str | None:
    opponents = detail.get("opponents")
    return text(opponents[0]) if isinstance(opponents, list) and len(opponents) == 1 else None


def _stand(cells: dict[int, Cell], column: Column) -> dict[int, Cell]:
    """Marks the best figure of each metric, and those whose interval overlaps its interval."""
    if len(cells) < 2:
        return cells
    for metric in column.metrics:
        found = {i: next((f for f in cell.figures if f.metric == metric.name), None) for i, cell in cells.items()}
        at = {i: figure for i, figure in found.items() if figure and figure.value is not None}
        if len(at) < 2:
            continue
        sign = 1 if metric.higher_is_better else -1
        best = max(at.values(), key=lambda figure: sign * (figure.value or 0.0))
        for i, figure in at.items():
            standing = _standing(figure, best)
            figures = tuple(replace(f, standing=standing) if f is figure else f for f in cells[i].figures)
            cells[i] = replace(cells[i], figures=figures)
    return cells


def _standing(figure: Figure, best: Figure) -> Standing | None:
    if figure.value == best.value:
        return "best"
    if figure.interval and best.interval and overlap(figure.interval, best.interval):
        return "overlaps"
    return None


def column_name(column: Column) -> str:
    """Returns the task, with the variant that tells it from others of the same name."""
    return f"{column.task} ({column.variant})" if column.variant else column.task


class _Notes:
    """Hands out footnote letters, one for each text."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def letter(self, note: str) -> str:
        for letter, known in self.texts.items():
            if known == note:
                return letter
        count = len(self.texts)
        letter = chr(ord("a") + count % 26) * (count // 26 + 1)
        self.texts[letter] = note
        return letter


def _mark(cells: dict[int, Cell], column: Column, notes: _Notes, mixed: dict[str, list[str]]) -> dict[int, Cell]:
    """Gives every cell of a mixed column a footnote that says which kind it is, and notes the column as mixed."""
    for kind, describe in _CONDITIONS.items():
        values = {i: describe(cell) for i, cell in cells.items()}
        if len(set(values.values())) > 1:
            mixed.setdefault(kind, []).append(plain(column_name(column)))
            for i, value in values.items():
                cells[i] = replace(cells[i], marks=(*cells[i].marks, notes.letter(value)))
    for i, cell in cells.items():
        if cell.earlier:
            count = len(cell.earlier) + 1
            note = f"scored {count} times; the newest record is shown, the others are in leaderboard.json"
            cells[i] = replace(cell, marks=(*cell.marks, notes.letter(note)))
    return cells


def _template(cell: Cell) -> str:
    fingerprint = cell.score.get("template_fingerprint")
    return f"chat template {str(fingerprint)[:12]}" if fingerprint else "no chat template"


def _suite(cell: Cell) -> str:
    return f"suite {cell.score.get('suite') or '?'} {str(cell.score.get('suite_version') or '?')[:12]}"


def _items(cell: Cell) -> str:
    n = cell.figures[0].n
    return f"n = {n}" if n is not None else "n not recorded"


def _judge(cell: Cell) -> str:
    version = mapping(cell.score).get("judge_version")
    return f"judge {version}" if version else "no judge"


_CONDITIONS = {"chat template": _template, "suite version": _suite, "judge": _judge, "number of items": _items}


def _limits(columns: Sequence[Column]) -> list[Notice]:
    limited = [plain(column_name(column)) for column in columns if column.limit is not None]
    if not limited:
        return []
    return [Notice("warning", f"LIMITED, so not full results, only the first items were scored: {', '.join(limited)}")]


def _variants(columns: Sequence[Column]) -> list[Notice]:
    tasks = [column.task for column in columns]
    several: list[str] = [task for task in dict.fromkeys(tasks) if tasks.count(task) > 1]
    what = "measured in several ways, each with a column of its own, not to be compared across"
    return [Notice("warning", f"{what}: {', '.join(map(plain, several))}")] if several else []
