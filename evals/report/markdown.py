"""The leaderboard as Markdown for a README."""

import re
from collections.abc import Sequence
from typing import Any

from .curves import thinned
from .format import (
    checkpoint_label,
    column_label,
    curve_summary,
    figure_of,
    interval_text,
    metric_label,
    number,
    scales,
)
from .judged_view import judging_view, match_view, usage_view
from .model import Column, Leaderboard, Row
from .sections import ledger_view, picks_view, verdict_views
from .text import plain
from .verdicts import baseline_text

STANDINGS = (
    "**Bold**: best of its column. ○: the 95% interval overlaps that of the best, so these intervals alone do not "
    "tell the two apart."
)


def to_markdown(leaderboard: Leaderboard) -> str:
    """Returns a GitHub table of the primary metrics with intervals, notices above and footnotes below."""
    lines = [f"# {md(leaderboard.title)}", ""]
    for notice in leaderboard.notices:
        lines += [f"> **{'Error' if notice.level == 'error' else 'Warning'}:** {md(notice.text, 400)}", ""]
    if leaderboard.columns:
        lines += [
            *_table(leaderboard),
            "",
            f"95% intervals and n below each figure. {STANDINGS}",
            "",
            *_against(leaderboard),
        ]
    else:
        lines += ["No scores yet: the tasks of a suite give them.", ""]
    lines += [f"- <sup>{letter}</sup> {md(note, 400)}" for letter, note in leaderboard.footnotes.items()]
    lines += [f"- {md(checkpoint_label(leaderboard, r), 200)}: {md(f, 400)}" for r in leaderboard.rows for f in r.flags]
    lines += (
        _picks(leaderboard) + _ledger(leaderboard) + _judged(leaderboard) + _usage(leaderboard) + _curves(leaderboard)
    )
    return "\n".join(lines).rstrip("\n") + "\n"


def _curves(leaderboard: Leaderboard) -> list[str]:
    """Returns a table of the curves against KL: both rewards at either end, and gold at its best."""
    if not leaderboard.curves:
        return []
    lines = ["", "## Rewards against KL", "", "| run | points | KL at the end | reward | gold | best gold |"]
    lines.append("|:---|:---|---:|---:|---:|---:|")
    for curve in leaderboard.curves:
        row = curve_summary(thinned(curve))
        cells = [md(row["name"]), row["kind"], row["kl"], row["reward"], row["gold"], row["best"]]
        lines.append("| " + " | ".join(cells) + " |")
    return [
        *lines,
        "",
        "Means of an answer at the first and last point, of a long log averaged over neighbouring steps; KL in nats.",
    ]


def _table(leaderboard: Leaderboard) -> list[str]:
    heads = [
        "<br>".join(filter(None, (md(column_label(c)), md(metric_label(c.metrics[0])), md(c.stamp or ""))))
        for c in leaderboard.columns
    ]
    lines = [
        "| " + " | ".join(["checkpoint", "stage", *heads]) + " |",
        "|" + "|".join([":---", ":---", *["---:"] * len(heads)]) + "|",
    ]
    places = {key: scale.places for key, scale in scales(leaderboard).items()}
    verdicts = verdict_views(leaderboard)
    for row in leaderboard.rows:
        stage = md(leaderboard.run_of(row).stage or "?")
        cells = [
            _md_cell(leaderboard, row, column, places[column.id, column.metrics[0].name])
            + _stand(row, verdicts.get((row.id, column.id)), column)
            for column in leaderboard.columns
        ]
        lines.append("| " + " | ".join([md(checkpoint_label(leaderboard, row), 200), stage, *cells]) + " |")
    return lines


def _md_cell(leaderboard: Leaderboard, row: Row, column: Column, places: int) -> str:
    metric = column.metrics[0]
    cell = row.cells.get(column.id)
    figure = figure_of(cell, metric.name)
    if cell is None or figure is None:
        return "–" if leaderboard.possible(row, column) else ""
    if figure.value is None:
        return md(figure.problem or "?")
    value = number(figure.value, places, metric.unit)
    shown = {"best": f"**{value}**", "overlaps": f"{value} ○", None: value}[figure.standing]
    marks = f"<sup>{','.join(cell.marks)}</sup>" if cell.marks else ""
    n = f", n {figure.n}" if figure.n is not None else ""
    return f"{shown}{marks}<br><sub>{interval_text(figure, places, metric.unit)}{n}</sub>"


def _stand(row: Row, view: dict[str, Any] | None, column: Column) -> str:
    """Returns a cell's verdict and tier."""
    cell = row.cells.get(column.id)
    parts = [f"{view['glyph']} {view['value']}"] if view else []
    parts += [f"tier {cell.tier}"] if cell and cell.tier else []
    return f"<br><sub>{', '.join(parts)}</sub>" if parts else ""


def _against(leaderboard: Leaderboard) -> list[str]:
    if not leaderboard.differences:
        return []
    words = "▲ better than the baseline, ▼ worse, ≈ no verdict (paired where single items are known; one family"
    words += f" of all {leaderboard.compared:,} comparisons of the page, by Holm's method)"
    return [
        f"Baseline: {md(baseline_text(leaderboard), 200)}. {words}. Rows of a tier cannot be told from its best.",
        "",
    ]


def _picks(leaderboard: Leaderboard) -> list[str]:
    """Returns the best row of each task, measured on items that did not choose it."""
    if not leaderboard.picks:
        return []
    heads = ["task", "chosen on one half", "out of", "there", "on the other half", "95% interval", "on all"]
    lines = ["", "## The best, measured on items that did not choose it", "", *_head(heads)]
    for pick in picks_view(leaderboard):
        task = f"{md(pick['column']['label'])}, {md(pick['column']['metric'])}"
        texts = (str(pick["candidates"]), pick["chosen"], pick["value"], pick["interval"], pick["whole"])
        lines.append(_line([task, md(pick["row"]["label"], 200), *texts]))
    return lines


def _ledger(leaderboard: Leaderboard) -> list[str]:
    """Returns what each stage gained and lost, a row for each stage."""
    view = ledger_view(leaderboard)
    if not view["lines"]:
        return []
    heads = ["stage", "from → to", *(f"{md(c['label'])}<br>{md(c['metric'])}" for c in view["columns"])]
    lines = ["", "## What each stage gained and lost", "", *_head(heads)]
    for line in view["lines"]:
        cells = [
            f"{c['value']}<br><sub>{c['interval']}, {c['glyph']} {c['ledger']}</sub>" if c else "–"
            for c in line["cells"]
        ]
        way = f"{md(line['before']['label'], 200)} → {md(line['after']['label'], 200)}"
        lines.append(_line([md(line["stage"]), way, *cells]))
    return lines


def _judged(leaderboard: Leaderboard) -> list[str]:
    """Returns each judge's ranking, win rates and warnings."""
    lines: list[str] = []
    for judging in leaderboard.judgings:
        view = judging_view(leaderboard, judging)
        title = f"{md(view['judge'])} on {md(view['task'])}" + (f" ({view['stamp']})" if view["stamp"] else "")
        what = f"{view['prompts']} prompts, {md(view['backend'])} {md(view['model'])}, version {md(view['version'])}."
        lines += ["", f"## Judge {title}", "", what, ""]
        if view["ranking"]:
            lines += _head(["tier", "rank", "model", "rating", "95% interval"])
            lines += [
                _line([str(r["tier"]), r["ranks"], md(r["player"]["label"], 200), r["rating"], r["interval"]])
                for r in view["ranking"]
            ] + [""]
        if view["ranking_note"]:
            lines += [f"{'' if view['ranking'] else 'No ranking: '}{md(view['ranking_note'], 600)}.", ""]
        names = {player.id: player.name for player in judging.players}
        if judging.matches:
            lines += _head(["candidate", "opponent", "win rate, %", "at equal length, %", "n", "without a verdict"])
        for match in judging.matches:
            cell = match_view(match)
            who = [md(names[identity], 200) for identity in (match.candidate, match.opponent)]
            rate = f"{cell['rate']} ({cell['interval']}) {cell['glyph']}".rstrip()
            lines.append(_line([*who, rate, cell["controlled"] or "unknown", str(match.battles), str(match.missing)]))
        warnings = [f"- {md(warning, 400)}" for row in view["audit"] if row["sum"] for warning in row["warnings"]]
        lines += ["", *warnings] if warnings else []
    return lines


def _usage(leaderboard: Leaderboard) -> list[str]:
    if not leaderboard.usage:
        return []
    heads = ["checkpoint", "prompt set", "answers", "characters", "tokens", "ended by themselves, %", "seconds"]
    lines = ["", "## Length, finish and latency of answers", "", *_head(heads)]
    for item in usage_view(leaderboard):
        facts = [str(item["answers"]), item["characters"], item["tokens"], item["stopped"], item["seconds"]]
        lines.append(_line([md(item["row"]["label"], 200), md(item["task"]), *facts]))
    return lines


def _head(names: Sequence[str]) -> list[str]:
    return [_line(names), "|" + "|".join([":---", *["---:"] * (len(names) - 1)]) + "|"]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def md(text: object, length: int = 80) -> str:
    """Escapes text for a Markdown table cell: nothing in it can become markup, a link, or another column."""
    shown = plain(text, length).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*\[\]~|!#]|(?<!\w)_|_(?!\w))", r"\\\1", shown)
    return re.sub(r"(?<![A-Za-z0-9])@|(?<=http)(?=s?:)|(?<=www)(?=\.)", lambda m: m[0] + "&#8203;", shown)
