"""The page: one file, no network, every text escaped, usable without JavaScript.

The style sheet and the script are named by their hashes in the page's Content-Security-Policy, so that even markup
that got past the escaping could neither run nor load anything.
"""

import functools
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...data_tools.tool_report import page_templates
from ..judging.judgments import Judgment
from ..sequences import grouped
from ..stats.robustness import ROBUST
from . import format
from .board import (
    AnsweredPrompt,
    BoardRow,
    BoardRun,
    Cell,
    Column,
    ColumnMetric,
    Figure,
    Headline,
    Leaderboard,
    Notice,
    PlayerAnswer,
    last_row,
)
from .format import GLYPHS, Speller
from .sections import SHADES, Detail, Line, PageTable, TableCell, sections
from .svg import PALETTE
from .tables import to_value
from .text import Record, clean, detail_of, mapping, plain, source_hash, whole
from .verdicts import baseline_text

MOST_BYTES = 2_000_000
"""The page stays below this, so that it can be mailed; what is left out is named on it and stands in the JSON."""

_SHEETS = ("palette.css.jinja", "report.css.jinja", "report.sections.css.jinja")
_SCRIPTS = ("report.js.jinja", "report.sections.js.jinja")
_STEPS = (  # each is tried when the one above is too large
    Detail(),
    Detail(24),
    Detail(24, False),
    Detail(8, False),
    Detail(8, False, False),
    Detail(4, False, False, False),
    Detail(4, False, False, False, False),
    Detail(4, False, False, False, False, False),
    Detail(0, False, False, False, False, False),
)
_ROOMY = 450  # bytes of a figure with its interval and difference, at least
_DENSE = (12, 40)  # columns and rows from which on a page opens with one line a row


def to_html(board: Leaderboard) -> str:
    """Returns the page, below :data:`MOST_BYTES`.

    A leaderboard too large for that loses, in this order: most of the answers, the embedded data, the differences of
    rows other than the baseline, metrics other than the primary, the details of each row, and rows from the end. A
    notice on the page says so, and the heading of the answers how many are shown.
    """
    page = ""
    figures = sum(len(column.main) for row in board.rows for column in board.columns if column.id in row.cells)
    cells = sum(len(row.cells) for row in board.rows)
    for detail in _STEPS:
        least = _ROOMY * (figures if detail.every_metric else cells) if detail.roomy else 0
        if least >= MOST_BYTES:
            continue  # to draw it would take long and tell nothing
        page = _render(board, detail)
        if len(page.encode()) < MOST_BYTES:
            return page
    rows = len(board.rows)
    while rows > 1 and len(page.encode()) >= MOST_BYTES:
        rows //= 2
        page = _render(board, replace(_STEPS[-1], rows=rows))
    return page


def _render(board: Leaderboard, detail: Detail) -> str:
    environment, style, script = _templates()
    board = _cut(board, detail)
    spell = Speller(board)

    def metrics_of(column: Column) -> Sequence[ColumnMetric]:
        return column.main if detail.every_metric else column.main[:1]

    common_n = {column.id: _common_n(board, column) for column in board.columns}
    labels = {format.metric_label(metric) for column in board.columns for metric in metrics_of(column)}
    counts = set(common_n.values())
    mine = {run.id: [row for row in board.rows if row.run == run.id] for run in board.runs}
    answered = {given.player for sample in board.samples for given in sample.answers} if detail.samples else set()
    return environment.get_template("report.html.jinja").render(
        board=board,
        spell=spell,
        detail=detail,
        sections=sections(spell, detail),
        notices={
            level: [plain(n.text, 400) for n in board.notices if n.level == level] for level in ("error", "warning")
        },
        stages=list(dict.fromkeys(plain(run.stage or "unknown", 30) for run in board.runs)),
        firsts={rows[0].id for rows in mine.values() if rows},
        lasts={last_row(rows).id for rows in mine.values() if rows},
        answered=answered,
        metrics_of=metrics_of,
        summary=_summary(board),
        told=spell.headline(),
        shades=_shades(board),
        row_marks={row.id: _row_marks(row) for row in board.rows},
        one_label=labels.pop() if len(labels) == 1 and len(board.columns) > 1 else "",
        one_n=counts.pop() if len(counts) == 1 and len(board.columns) > 1 else None,
        dense=not detail.roomy or len(board.columns) >= _DENSE[0] or len(board.rows) >= _DENSE[1],
        lineage={row.id: place for place, row in enumerate(board.rows)},
        baseline_text=plain(baseline_text(board), 200) if board.differences else "",
        common_n=common_n,
        recipes={run.id: text for run in board.runs if detail.drawers and (text := _recipe_text(run))},
        pairs=_pairs(spell, detail),
        # These come from files of this package and hold no value from a record.
        style=style,
        script=script,
        style_hash=source_hash(style),
        script_hash=source_hash(script),
        data=safe_json(to_value(board)) if detail.data else "",
    )


@functools.cache
def _templates() -> tuple[Any, str, str]:
    """Returns the templates, compiled once, the style sheet and the script."""
    environment = page_templates(Path(__file__).parent)
    environment.filters |= {
        "plain": plain,
        "clean": clean,
        "percent": format.percent,
        "metric_label": format.metric_label,
    }
    environment.globals |= {
        "METHODS": format.METHODS,
        "PALETTE": PALETTE,
        "few_shot": _few_shot,
        "answer_facts": _answer_facts,
        "verdicts_on": _verdicts_on,
        "commands": _commands,
        "facts": _facts,
        "how_scored": _how_scored,
        "notes_of": _notes_of,
        "classes_of": classes_of,
        "confusion_of": confusion_of,
    }
    style, script = ("".join(environment.get_template(n).render() for n in names) for names in (_SHEETS, _SCRIPTS))
    return environment, style, script


def _cut(board: Leaderboard, detail: Detail) -> Leaderboard:
    """Returns a leaderboard without what a page leaves out, and with a notice that says so."""
    lost = []
    if not detail.every_metric:
        lost.append("metrics other than each task's first")
    if not detail.drawers:
        lost.append("the details of each row")
    if not detail.roomy:
        lost.append("the size of differences from the baseline")
    if not detail.pairs and board.pairs:
        lost.append("the differences between rows other than the baseline")
        board = replace(board, pairs=())
    if not detail.samples and (board.samples or board.items):
        lost.append("all answers")
    if detail.rows is not None:
        lost.append(f"all but the first {detail.rows} of {len(board.rows)} rows")
        left = set(board.order[: detail.rows] or [row.id for row in board.rows[: detail.rows]])
        rows = tuple(row for row in board.rows if row.id in left)
        board = replace(
            board,
            rows=rows,
            order=tuple(identity for identity in board.order if identity in left),
            headline=_headline_among(board, left),
            baseline=board.baseline if board.baseline in left else None,
            differences=tuple(d for d in board.differences if {d.row, d.against} <= left),
            picks=tuple(pick for pick in board.picks if pick.row in left),
            ledger=tuple(entry for entry in board.ledger if {entry.before, entry.after} <= left),
            judgings=(),
            usage=(),
        )
    if not lost:
        return board
    text = f"left out to keep this page below 2 MB: {', '.join(lost)}; leaderboard.json has everything"
    return replace(board, notices=(*board.notices, Notice("warning", text)))


def _headline_among(board: Leaderboard, left: set[str]) -> Headline | None:
    """Returns what is said first, of rows that are left."""
    told = board.headline
    if told is None or told.row not in left:
        return None
    level = tuple(row for row in told.level if row in left)
    return replace(told, level=level, against=told.against if told.against in left else None)


def safe_json(value: Any) -> str:
    """Returns JSON that cannot end its script element or be read as markup."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"})


def _pairs(spell: Speller, detail: Detail) -> str:
    """Returns what tells any two rows apart as JSON for the page's script, spelt as it is to be shown.

    That is their differences, and the keys in which the recipes of their runs differ.
    """
    board = spell.board
    place = {column.id: i for i, column in enumerate(board.columns)}
    found: dict[str, list[list[Any]]] = {}
    hows: dict[str, int] = {}
    for item in (board.pairs or board.differences) if detail.roomy else ():
        view = spell.difference(item)
        entry = [place[item.column], view["value"], view["interval"], item.verdict, view["p"], view["smallest"]]
        found.setdefault(f"{item.row} {item.against}", []).append([*entry, hows.setdefault(view["how"], len(hows))])
    columns = [{"label": plain(c.name), "metric": format.metric_label(c.primary)} for c in board.columns]
    every = "all" if board.pairs or len(board.rows) < 2 else "baseline" if detail.roomy else "none"
    told = {"columns": columns, "told": every, "hows": list(hows), "glyphs": GLYPHS, "pairs": found}
    return safe_json(told | {"recipes": _recipes_apart(board)})


def _recipes_apart(board: Leaderboard) -> dict[str, dict[str, str]]:
    """Returns each run's values of the keys of recipes that are not the same in all runs, by the run's id."""
    flat = {run.id: dict(_leaves(mapping(run.record.get("recipe")))) for run in board.runs}
    keys = dict.fromkeys(key for values in flat.values() for key in values)
    apart = [key for key in keys if len({values.get(key) for values in flat.values()}) > 1]
    return {
        run: {plain(key, 80): plain(values.get(key, "not set"), 160) for key in apart[:_KEYS]}
        for run, values in flat.items()
    }


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Walks through a recipe: each value as JSON, with its dotted key; those of lists with their place."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if inner is None or not value:
        yield key, json.dumps(value, ensure_ascii=False, default=str)
        return
    for name, below in inner:
        yield from _leaves(below, f"{key}.{name}" if key else str(name))


def _summary(board: Leaderboard) -> str:
    groups = [column for column in board.columns if column.group]
    tasks = {task for column in board.columns for task in column.group or (column.task,)}
    tasks -= {column.task for column in groups}  # a group may be of groups
    for column in groups:
        if column.primary.name == ROBUST:  # one task, asked in several ways
            tasks = tasks - {*column.group} | {column.task}
    counts = ((len(board.rows), "checkpoint"), (len(board.runs), "run"), (len(tasks), "task"))
    rows, runs, scored = (f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts)
    named = (cell.score.get("suite") for row in board.rows for cell in row.cells.values())
    suites = sorted({plain(name, 40) for name in named if name})
    by = f"suite{'' if len(suites) == 1 else 's'} {', '.join(suites[:4])}" if suites else "not scored yet"
    return f"{rows} of {runs} on {scored}, {by}"


def _common_n(board: Leaderboard, column: Column) -> int | None:
    """Returns the item count of a column if all it shows share one: then its head says it once for all."""
    cells = [cell for row in board.rows if (cell := row.cells.get(column.id))]
    counts = {figure.n for cell in cells for m in column.main if (figure := cell.figure(m.name))}
    return counts.pop() if len(counts) == 1 else None


def _shades(board: Leaderboard) -> dict[tuple[str, str], int]:
    """Returns where each primary figure lies between the worst (0) and the best of its column, by row and column."""
    found = {}
    for column in board.columns:
        figures = ((row.id, row.figure(column)) for row in board.rows)
        values = {name: figure.value for name, figure in figures if figure and figure.value is not None}
        low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
        worst, best = (low, high) if column.primary.higher_is_better else (high, low)
        for name, value in values.items():
            place = (value - worst) / (best - worst) if best != worst else 0.5
            found[name, column.id] = round(SHADES * place)
    return found


def _row_marks(row: BoardRow) -> tuple[str, ...]:
    """Returns the footnotes that all of a row's marked figures share: they are said once, at its name."""
    marks = [cell.marks for cell in row.cells.values() if cell.marks]
    return tuple(mark for mark in marks[0] if all(mark in other for other in marks)) if len(marks) > 1 else ()


def _few_shot(column: Column) -> str:
    """Returns a column's few-shot number with what else tells it from others of its task."""
    few = f"{column.num_fewshot}-shot" if column.num_fewshot else ""
    return column.variant if few and few in column.variant else ", ".join(filter(None, (few, column.variant)))


def _answer_facts(given: PlayerAnswer) -> str:
    answer = given.answer
    found = [given.mark or f"{answer.characters:,} characters"]
    found += [f"{answer.completion_tokens:,} tokens"] if answer.completion_tokens is not None else []
    found += ["cut off at its length limit"] if "length" in answer.finish else []
    found += [f"draw {answer.sample + 1}"] if answer.sample else []
    return ", ".join(found)


_ORDERS = {"candidate-first": "shown first", "candidate-second": "shown second", "alone": "alone"}


def _verdicts_on(sample: AnsweredPrompt, given: PlayerAnswer) -> list[dict[str, Any]]:
    """Returns one entry for each judge and opponent, with each order's verdict and reason under it."""
    groups = grouped(sample.judgments_of(given), lambda judgment: (judgment.judge_version, judgment.opponent))
    return [
        {
            "judge": group[0].judge,
            "version": version,
            "opponent": opponent,
            "outcome": _outcome(group),
            "parts": [(_ORDERS[said.order], _verdict(said), said.reason) for said in group],
        }
        for (version, opponent), group in groups.items()
    ]


def _verdict(said: Judgment) -> str:
    if said.rating is not None:
        return f"{said.rating:g}"
    if said.preference is None:
        return said.status
    return {1.0: "won", 0.0: "lost", 0.5: "tied"}.get(said.preference, f"preferred {said.preference:.2f}")


def _outcome(group: Sequence[Judgment]) -> str:
    """Returns what both orders come to together."""
    ratings = [said.rating for said in group if said.rating is not None]
    if ratings:
        return f"{sum(ratings) / len(ratings):g}"
    sides = {(p > 0.5) - (p < 0.5) for said in group if (p := said.preference) is not None}
    if not sides:
        return "no verdict"
    if sides >= {1, -1}:
        return "turned with the order: a tie"
    return "won" if sides == {1} else "lost" if sides == {-1} else "tied"


# --- What the page tells of one row: where it came from, how it was measured, and its recipe ---

_TEXT = 4000  # characters of a command or recipe that the page shows
_KEYS = 200  # of recipes that differ
_MOST = 20  # classes of the largest confusion matrix that is drawn whole
_MISTAKES = 12  # of a larger one, the most frequent
_BY_CLASS = ("precision", "recall", "f1")
# fmt: off
_HOW = (
    "suite", "suite_version", "judge_version", "task_hash", "num_fewshot", "template_fingerprint", "limit", "seconds",
    "created",
)
# fmt: on


def _commands(row: BoardRow, run: BoardRun) -> str:
    """Returns the commands that make a row again: the training's as it was recorded, and the scoring's."""
    recorded = plain(run.record.get("command") or "", _TEXT)
    suites = dict.fromkeys(cell.score.get("suite") for cell in row.cells.values())
    named = [plain(name, 200) for name in suites if isinstance(name, str) and name]
    scoring = [f"posttrain score {shlex.quote(plain(run.folder, 400))} --suite {shlex.quote(name)}" for name in named]
    return "\n".join([recorded, *scoring]) if recorded else ""


def _facts(row: BoardRow, run: BoardRun) -> list[tuple[str, str]]:
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


def _absent(record: Record, key: str) -> str | None:
    """Returns ``none`` where a record says that there is none, and None where it says nothing."""
    return "none" if key in record and record[key] is None else None


def _how_scored(cell: Cell) -> str:
    """Returns what a score record says of how it was measured."""
    known = [f"{key.replace('_', ' ')} {cell.score[key]}" for key in _HOW if cell.score.get(key) is not None]
    return plain(", ".join(known), 500)


def _notes_of(cell: Cell) -> list[str]:
    """Returns what scoring noted of a score."""
    return [plain(note, 300) for note in cell.score.get("notes") or () if isinstance(note, str)]


def _recipe_text(run: BoardRun) -> str:
    """Returns a run's recipe, as far as the page shows it."""
    record = json.dumps(run.record.get("recipe"), indent=2, ensure_ascii=False, default=str)
    lines = [" " * (len(line) - len(line.lstrip())) + plain(line.strip(), 300) for line in record[:_TEXT].split("\n")]
    lines += ["… (the rest is in leaderboard.json)"] if len(record) > _TEXT else []
    return "\n".join(lines) if run.record.get("recipe") else ""


def classes_of(figures: Sequence[Figure]) -> PageTable | None:
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
    return PageTable(heads, tuple(lines), css="mistakes", head=None) if lines else None


def confusion_of(score: Record) -> PageTable | None:
    """Returns a score's confusion matrix, shaded by the share of the true class; of a large one, its worst mistakes.

    A matrix that is not square, or not of counts, is left out.
    """
    confusion = mapping(detail_of(score).get("confusion"))
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
    lines = []
    for name, row in zip(names, known, strict=True):
        total = sum(row)
        cells = (TableCell(str(n), css=f"h{round(SHADES * n / total) if total else 0}") for n in row)
        lines.append(Line((TableCell(name, record=True), *cells, str(total))))
    heads = ("true ↓ predicted →", *(TableCell(name, record=True) for name in names), "rows")
    caption = "Confusion matrix: a row for each true class, a column for each predicted one. Shade: share of the row."
    return PageTable(heads, tuple(lines), css="confusion", caption=caption)


def _mistakes(names: Sequence[str], counts: Sequence[Sequence[int]]) -> PageTable:
    wrong = [(-n, i, k) for i, row in enumerate(counts) for k, n in enumerate(row) if i != k and n]
    cells = ((*(TableCell(names[i], record=True) for i in pair), str(-n)) for n, *pair in sorted(wrong)[:_MISTAKES])
    caption = f"The most frequent mistakes among {len(names)} classes; the whole matrix is in leaderboard.json"
    return PageTable(("true", "predicted", "rows"), tuple(map(Line, cells)), css="mistakes", caption=caption, head=None)
