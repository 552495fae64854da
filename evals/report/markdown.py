"""The leaderboard as Markdown for a README."""

import re
from collections.abc import Iterable

from .board import BoardRow, Column, Leaderboard
from .format import Name, Speller, metric_label
from .sections import SAID_ONCE, JudgeSection, Note, PageSection, PageTable, TableCell, sections
from .text import plain
from .verdicts import baseline_text

STANDINGS = (
    "**Bold**: best of its column. ○: the 95% interval overlaps that of the best, so these intervals alone do not "
    "tell the two apart."
)


def to_markdown(board: Leaderboard) -> str:
    """Returns a GitHub table of the primary metrics with intervals, notices above and footnotes below."""
    spell = Speller(board)
    lines = [f"# {md(board.title)}", "", *_headline(spell)]
    for notice in board.notices:
        lines += [f"> **{'Error' if notice.level == 'error' else 'Warning'}:** {md(notice.text, 400)}", ""]
    if board.columns:
        lines += [*_board(spell), "", f"95% intervals and n below each figure. {STANDINGS}", ""]
    else:
        lines += ["No scores yet: the tasks of a suite give them.", ""]
    if board.differences:
        words = "▲ better than the baseline, ▼ worse, ≈ no verdict (paired where single items are known; one family"
        words += f" of all {board.compared:,} comparisons of the page, by Holm's method)"
        against = f"Baseline: {md(baseline_text(board), 200)}. {words}. Rows of a tier cannot be told from its best."
        lines += [against, ""]
    lines += [f"- <sup>{letter}</sup> {md(note, 400)}" for letter, note in board.footnotes.items()]
    lines += [f"- {md(board.label(row), 200)}: {md(flag, 400)}" for row in board.rows for flag in row.flags]
    lines += [
        f"- {md(board.label(row), 200)}: **{md(badge.text)}** {md(badge.detail, 600)}".rstrip()
        for row in board.rows
        for badge in row.badges
    ]
    for section in sections(spell):
        lines += _section(section)
    return "\n".join(lines).rstrip("\n") + "\n"


def _headline(spell: Speller) -> list[str]:
    told = spell.headline()
    if told is None:
        return []
    best = (
        f"Best on {md(told['task'])}: **{md(told['best'].label, 200)}** with **{md(told['value'])}**{told['interval']}."
    )
    against = (
        f"{'the baseline ' if told['baseline'] else ''}{md(told['against'].label, 200)}" if told["against"] else ""
    )
    stands = f"Against {against}: {md(told['stands'], 400)}." if against else ""
    return [" ".join(filter(None, (best, told["level"].strip(), stands))), ""]


def _board(spell: Speller) -> list[str]:
    board = spell.board
    heads = [
        "<br>".join(filter(None, (md(column.name), md(metric_label(column.primary)), md(column.stamp or ""))))
        for column in board.columns
    ]
    checked = board.checks_parity
    last, rule = (["parity"], ":---|") if checked else ([], "")
    lines = [_line(["checkpoint", "stage", *heads, *last]), "|:---|:---|" + "---:|" * len(heads) + rule]
    for row in board.ranked:
        cells = (_figure(spell, row, column) + _standing(spell, row, column) for column in board.columns)
        said = [row.one_model] if checked else []
        lines.append(_line([md(board.label(row), 200), md(board.run_of(row).stage or "?"), *cells, *said]))
    return lines


def _figure(spell: Speller, row: BoardRow, column: Column) -> str:
    figure = row.figure(column)
    if figure is None:
        return "–" if spell.board.possible(row, column) else ""
    if figure.value is None:
        return md(figure.problem or "?")
    value, marks = spell.number(figure.value, column), row.cells[column.id].marks
    shown = {"best": f"**{value}**", "overlaps": f"{value} ○", None: value}[figure.standing]
    letters = f"<sup>{','.join(marks)}</sup>" if marks else ""
    n = f", n {figure.n}" if figure.n is not None else ""
    return f"{shown}{letters}<br><sub>{spell.interval(figure, column)}{n}</sub>"


def _standing(spell: Speller, row: BoardRow, column: Column) -> str:
    """Returns a cell's verdict and tier."""
    verdict, cell = spell.verdicts.get((row.id, column.id)), row.cells.get(column.id)
    parts = [f"{verdict['glyph']} {verdict['value']}"] if verdict else []
    parts += [f"tier {cell.tier}"] if cell and cell.tier else []
    return f"<br><sub>{', '.join(parts)}</sub>" if parts else ""


def _section(section: PageSection) -> list[str]:
    """Returns a section's heading and those of its blocks that Markdown can show; nothing without any."""
    lines: list[str] = []
    for block in section.blocks:
        if isinstance(block, JudgeSection):
            lines += _judge(block)
        elif isinstance(block, PageTable) and block.markdown:
            lines += ["", *_table(block)]
        elif isinstance(block, Note):
            lines += ["", block.text]
    titled = lines and not isinstance(section.blocks[0], JudgeSection)
    return ["", f"## {section.title}", *lines] if titled else lines


def _table(table: PageTable) -> list[str]:
    shown = [place for place, head in enumerate(table.markdown) if head is not None]
    rule = "|" + "|".join(":---" if place < table.words else "---:" for place in shown) + "|"
    lines = [_line([_cell(table.markdown[place] or "") for place in shown]), rule]
    lines += [_line([_cell(line.cells[place]) for place in shown]) for line in table.lines]
    said_once = any(f"{what}:" in table.caption for what in SAID_ONCE)
    return [md(table.caption, 600), "", *lines] if said_once else lines


def _cell(cell: str | Name | TableCell) -> str:
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Name):
        return md(cell.label, 200)
    below = f"<br><sub>{', '.join(md(line, 200) for line in cell.below)}</sub>" if cell.below else ""
    return md(cell.text, cell.most) + below


def _judge(report: JudgeSection) -> list[str]:
    """Returns a judge's ranking, win rates and warnings."""
    judging = report.judging
    stamp = f" ({judging.stamp})" if judging.stamp else ""
    by = f"{md(plain(judging.backend, 20))} {md(plain(judging.model))}"
    lines = ["", f"## Judge {md(plain(judging.judge, 60))} on {md(plain(judging.task, 60))}{stamp}", ""]
    lines += [f"{judging.prompts} prompts, {by}, version {md(plain(judging.version[:8], 8))}.", ""]
    if report.ranking:
        lines += [*_table(report.ranking), ""]
    if judging.ranking_note:
        why = "" if report.ranking else "No ranking: "
        lines += [f"{why}{md(plain(judging.ranking_note, 600), 600)}.", ""]
    lines += _table(report.matches) if report.matches else []
    warnings = [f"- {md(warning, 400)}" for warning in report.warnings]
    return lines + (["", *warnings] if warnings else [])


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def md(text: object, length: int = 80) -> str:
    """Escapes text for a Markdown table cell: nothing in it can become markup, a link, or another column."""
    shown = plain(text, length).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    shown = re.sub(r"([\\`*\[\]~|!#]|(?<!\w)_|_(?!\w))", r"\\\1", shown)
    return re.sub(r"(?<![A-Za-z0-9])@|(?<=http)(?=s?:)|(?<=www)(?=\.)", lambda m: m[0] + "&#8203;", shown)
