"""What a report shows below its table, as a list of sections made of a few kinds of blocks.

A section is one function here, and each writer knows the kinds of blocks: a new section of tables and charts needs
nothing else.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..contamination import Touched
from ..judging.audit import AuditRow
from ..judging.judgments import WITHOUT_VERDICT
from .board import AnsweredPrompt, Column, Judging, Leaderboard, Match, RankedPlayer, Rate
from .charts import Chart, color_of, reward_charts, thinned, training_charts
from .format import GLYPHS, LEDGER, Name, Speller, metric_label, p_text, percent
from .samples import spread
from .svg import PALETTE
from .text import plain

SHADES = 8
"""Classes h0 to h8 of the style sheet."""
_PLAYERS = 16  # of the largest matrix that is drawn
_MEANS = "Means of an answer at the first and last point, of a long log averaged over neighbouring steps; KL in nats."
_TOUCHED = 100  # items in training data that a page shows
SAID_ONCE = ("In every line", "Not known")
"""What stands over a table of its columns that are the same in all lines."""
_PAIRS = 40  # of players that the audit's table names


@dataclass(frozen=True)
class Detail:
    """How much a page shows.

    Attributes:
        samples: Prompts of a set.
        data: Whether the page holds its own data.
        pairs: The differences between any two rows.
        every_metric: All metrics of a task, or only the first.
        drawers: What is known of each row.
        roomy: A cell's interval and difference as lines of their own, or as what a pointer shows.
        rows: At most so many rows.
    """

    samples: int = 60
    data: bool = True
    pairs: bool = True
    every_metric: bool = True
    drawers: bool = True
    roomy: bool = True
    rows: int | None = None


@dataclass(frozen=True)
class TableCell:
    """A cell that is more than the page's own words.

    Attributes:
        text: What it says; Markdown shows at most ``most`` characters.
        record: Whether that is a record's text alone, which may run from right to left.
        strong: Whether the page stresses it.
        glyph: A sign after it.
        unseen: What the sign and the colour say, for those who do not see them.
        below: Lines under it, smaller.
        css: Classes of the style sheet.
        title: What a pointer shows.
    """

    text: str
    record: bool = False
    strong: bool = False
    glyph: str = ""
    unseen: str = ""
    below: tuple[str, ...] = ()
    css: str = ""
    title: str = ""
    most: int = 200


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Attributes:
        cells: From the left.
        row: Id of the row that it is about.
        css: Classes of the style sheet.
        notes: Sentences under it, over the whole width; Markdown does not have them.
    """

    cells: tuple[str | Name | TableCell, ...]
    row: str = ""
    css: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class PageTable:
    """A table.

    Attributes:
        heads: What stands over each column.
        lines: From above.
        markdown: The heads in Markdown, None for a column that is not shown there; empty for a table that is not.
        css: Classes of the style sheet.
        caption: What stands over the table.
        head: The place of the cell that names its line, if there is one.
        words: How many of the first columns hold words; numbers stand to the right.
    """

    heads: tuple[str | Name | TableCell, ...]
    lines: tuple[Line, ...]
    markdown: tuple[str | TableCell | None, ...] = ()
    css: str = "plain"
    caption: str = ""
    head: int | None = 0
    words: int = 1
    kind = "table"


@dataclass(frozen=True)
class Note:
    """A paragraph that Markdown has and the page says in other places."""

    text: str
    kind = "note"


@dataclass(frozen=True)
class Legend:
    """What a colour of charts stands for; ``run`` where it is a run's, for a page that filters."""

    name: str
    color: int
    tag: str = ""
    hollow: bool = False
    run: str = ""


@dataclass(frozen=True)
class Charts:
    """Charts side by side, with their legend."""

    label: str
    legend: tuple[Legend, ...]
    hint: str
    charts: tuple[Chart, ...]
    kind = "charts"


@dataclass(frozen=True)
class JudgeSection:
    """What one judge said: ranking, win matrix, audit and cost, and its matches as a list."""

    judging: Judging
    ranking: PageTable | None
    matrix: PageTable | None
    matches: PageTable | None
    spent: PageTable | None
    audit: PageTable | None
    warnings: tuple[str, ...]
    left_out: str
    kind = "judge"


@dataclass(frozen=True)
class AnsweredPrompts:
    """Prompts with all answers and what was said of them.

    Attributes:
        total: How many prompts the leaderboard has.
        items: How many of the samples, the last ones, are items of lm-eval's tasks.
        samples: What is shown.
        names: Of players, by model hash.
        stamps: What a reader must know of a judge, by its version.
        sets: The prompt sets, to choose from.
        categories: Likewise.
        players: Those with a row that gave an answer, likewise.
    """

    total: int
    items: int
    samples: tuple[AnsweredPrompt, ...]
    names: dict[str, Name]
    stamps: dict[str, str | None]
    sets: tuple[str, ...]
    categories: tuple[str, ...]
    players: tuple[Name, ...]
    kind = "answers"


@dataclass(frozen=True)
class PageSection:
    """A heading with blocks; ``name`` is what a list of links calls it, if it is to be there."""

    id: str
    name: str
    title: str
    blocks: Sequence[Any]
    lead: str = ""


def sections(spell: Speller, detail: Detail = Detail()) -> list[PageSection]:
    """Returns all sections that have something to show, in the order in which they stand."""
    found = [
        _ledger(spell),
        _training(spell, detail),
        _rewards(spell.board),
        _picks(spell),
        _contamination(spell.board),
        _parity(spell),
        PageSection(
            "judged", "Judges", "What judges said", [_judge(spell, judging) for judging in spell.board.judgings]
        ),
        _usage(spell),
        _answers(spell, detail.samples),
    ]
    return [
        replace(section, blocks=[_said_once(block) for block in section.blocks])
        for section in found
        if section and section.blocks
    ]


def _said_once(block: Any) -> Any:
    """Returns a table with its constant columns said once, over it; other blocks as they are."""
    if not isinstance(block, PageTable) or len(block.lines) < 3:
        return block
    kept, said, unknown = [], [], []
    for place, head in enumerate(block.heads):
        cell = block.lines[0].cells[place]
        same = all(line.cells[place] == cell for line in block.lines)
        if same and isinstance(head, str) and isinstance(cell, str) and place != block.head:
            if cell:
                (unknown if cell == "–" else said).append(head if cell == "–" else f"{head}: {cell}")
        else:
            kept.append(place)
    if len(kept) == len(block.heads):
        return block
    texts = [
        f"In every line: {'; '.join(said)}." if said else "",
        f"Not known: {'; '.join(unknown)}." if unknown else "",
    ]
    return replace(
        block,
        heads=tuple(block.heads[place] for place in kept),
        lines=tuple(replace(line, cells=tuple(line.cells[place] for place in kept)) for line in block.lines),
        markdown=tuple(block.markdown[place] for place in kept) if block.markdown else (),
        caption=" ".join(filter(None, (block.caption, *texts))),
        head=None if block.head is None else kept.index(block.head),
        words=sum(place < block.words for place in kept),
    )


def _picks(spell: Speller) -> PageSection:
    lines = []
    for pick in spell.board.picks:
        column = spell.columns[pick.column]
        chosen, value, whole = (spell.number(v, column) for v in (pick.chosen, pick.value, pick.whole))
        ends = "none"
        if pick.low is not None and pick.high is not None:
            ends = f"{spell.number(pick.low, column)} to {spell.number(pick.high, column)}"
        task = f"{plain(column.name)}, {metric_label(column.primary)}"
        cells = (str(pick.candidates), chosen, TableCell(value, strong=True), ends, whole, f"{pick.items:,}")
        lines.append(Line((TableCell(task), spell.name(pick.row), *cells)))
    heads = ("task", "chosen", "out of", "on the half that chose it", "on the other half", "95% interval")
    markdown = ("task", "chosen on one half", "out of", "there", "on the other half", "95% interval", "on all", None)
    lead = "The best of many rows looks better than it is on the items that it was best on. So each task's items are "
    lead += "halved: one half chooses, the other measures."
    blocks = [PageTable((*heads, "on all items", "items"), tuple(lines), markdown)] if lines else []
    return PageSection("best", "Best, re-measured", "The best, measured on items that did not choose it", blocks, lead)


def _ledger(spell: Speller) -> PageSection:
    board = spell.board
    known = {d.column for entry in board.ledger for d in entry.differences}
    columns = [column for column in board.columns if column.id in known]
    lines = []
    for entry in board.ledger:
        run = next(run for run in board.runs if run.id == entry.run)
        cells = {d.column: _gain(spell.difference(d)) for d in entry.differences}
        # Neither a mean nor the clean items of a task are a task more that was gained or lost.
        tasks = [c.id for c in columns if not c.group and not c.clean]
        verdicts = [d.verdict for d in entry.differences if d.column in tasks]
        counts = {word: verdicts.count(verdict) for verdict, word in LEDGER.items()}
        sums = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
        stage = TableCell(plain(run.stage or "unknown", 30), strong=True, below=(sums,))
        mine = (cells.get(column.id, "–") for column in columns)
        lines.append(Line((stage, spell.name(entry.before), spell.name(entry.after), *mine)))
    heads = ("stage", "from", "to", *(_head(column) for column in columns))
    lead = "A run's last row less the row of its parent that it started from, with the difference's 95% interval."
    title = "What each stage gained and lost"
    blocks = [PageTable(heads, tuple(lines), heads, "plain ledger", words=3)] if lines else []
    return PageSection("ledger", "Stages", title, blocks, lead)


def _head(column: Column) -> TableCell:
    return TableCell(plain(column.name), below=(metric_label(column.primary),))


def _gain(found: dict[str, Any]) -> TableCell:
    """Returns a difference as a cell of the ledger."""
    below = (found["interval"], f"{found['glyph']} {found['ledger']}, {found['p']}")
    return TableCell(found["value"], below=below, css=found["kind"])


def _contamination(board: Leaderboard) -> PageSection | None:
    """Returns which test items are in the training data of which run, and where; unseen data is said once a run."""
    names = {run.id: plain(run.name) for run in board.runs}
    blind = [run for run in names if not any(entry.rows for entry in board.contamination if entry.run == run)]
    lines = []
    evidence: dict[tuple[str, str, str], tuple[dict[str, None], Touched]] = {}
    for entry in board.contamination:
        clauses = [*entry.unseen, *(f"looked through before: {clause}" for clause in entry.seen_before)]
        unseen = TableCell("; ".join(plain(clause, 300) for clause in clauses) or "nothing", most=900)
        task, counts = plain(entry.task), (len(entry.touched), entry.items, entry.lost, entry.rows)
        shown = tuple(f"{count:,}" for count in counts)
        if entry.run in blind:  # the same of each task
            task, shown = "each", ("unknown", "", "", "0")
        lines.append(Line((TableCell(names[entry.run]), TableCell(task), *shown, unseen)))
        for item in entry.touched:  # one question of several tasks stands once
            tasks, _ = evidence.setdefault((_letters(item.question), item.run, item.row), ({}, item))
            tasks[plain(entry.task)] = None
    if not lines:
        return None
    heads = (
        "run",
        "task",
        "items in its training data",
        "of",
        "too short to be found",
        "rows looked through",
        "not seen",
    )
    caption = "An item is in the training data where 70% of its 8-grams are (PaLM's rule), case, punctuation and line "
    caption += "breaks aside; a shorter one where a row has all of it with its answer. Ancestors' data counts."
    caption += _left_out(board)
    blocks = [PageTable(heads, tuple(dict.fromkeys(lines)), heads, caption=caption, words=2)]
    shown = list(evidence.values())[:_TOUCHED]
    if shown:
        found = tuple(
            Line((TableCell(", ".join(tasks)), TableCell(plain(item.question, 300), record=True),
                  TableCell(plain(item.words, 300), record=True), TableCell(f"{plain(item.run)}: {plain(item.row)}")))
            for tasks, item in shown
        )  # fmt: skip
        more = f" The first {_TOUCHED} of {len(evidence):,}; " if len(evidence) > _TOUCHED else " "
        more = f"The items.{more}Each run's contamination.jsonl has all."
        columns = ("task", "item", "its words in training data", "run and row")
        blocks.append(PageTable(columns, found, columns, caption=more, words=4))
    lead = "Columns named clean hold each row's score on the items that its training data does not touch."
    return PageSection("contamination", "Test items", "Test items in training data", blocks, lead if shown else "")


def _parity(spell: Speller) -> PageSection | None:
    """Returns what was compared with what and what came of it; nothing where no model was compared."""
    lines = []
    for row in spell.board.rows:
        for one in row.parity:
            css = {"same": "good", "differs": "bad", "out of date": ""}[one.verdict]
            shown = TableCell(one.verdict, strong=one.verdict != "same", css=css)
            of = TableCell(plain(one.detail, 600) or ", ".join(one.compared), most=600)
            forms = plain(one.form), plain(one.against), shown
            hidden = ", ".join(one.hidden) or "–"
            lines.append(Line((spell.name(row.id), *forms, of, hidden, plain(one.created[:10])), row.id))
    if not lines:
        return None
    heads = ("checkpoint", "form", "against", "verdict", "compared, or what differs", "not compared", "date")
    lead = "Whether a model is the same as adapter, merged, as GGUF and served; what posttrain parity compared."
    return PageSection(
        "parity", "Parity", "The same model in every form", [PageTable(heads, tuple(lines), heads, words=7)], lead
    )


def _left_out(board: Leaderboard) -> str:
    """Says for which columns items were not looked for, and which have no score on clean ones though some are not."""
    looked = {(entry.task, entry.task_hash) for entry in board.contamination}
    touched = {(entry.task, entry.task_hash) for entry in board.contamination if entry.touched}
    clean = {(column.task, column.task_hash) for column in board.columns if column.clean}
    tasks = {(column.task, column.task_hash): plain(column.name) for column in board.columns if not column.group}
    never = [name for task, name in tasks.items() if task not in looked]
    without = [name for task, name in tasks.items() if task in touched - clean]
    leaky = {task for task, _ in touched}
    groups = [column for column in board.columns if column.group and not column.clean and leaky & set(column.group)]
    without += [plain(column.name) for column in groups if (column.task, column.task_hash) not in clean]
    said = f" Not looked for: the items of {', '.join(never)}." if never else ""
    what = "single items are not known, or none is left"
    return said + (f" Without a clean score, since {what}: {', '.join(without)}." if without else "")


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.lower()))


def _judge(spell: Speller, judging: Judging) -> JudgeSection:
    names = {player.id: spell.player(player) for player in judging.players}
    hidden = []
    audit = judging.audit[: _PAIRS + 1]
    if len(judging.players) > _PLAYERS:
        hidden.append(f"the win rates of {len(judging.matches)} pairs of {len(judging.players)} players")
    if len(judging.audit) > _PAIRS + 1:
        hidden.append(f"the audit of {len(judging.audit) - _PAIRS - 1} pairs")
    return JudgeSection(
        judging,
        _ranking(judging, names),
        _matrix(judging, names) if len(judging.players) <= _PLAYERS else None,
        _matches(judging),
        _spent(judging, names),
        _said_once(_audit(audit)) if audit else None,
        tuple(warning for row in audit if row.is_sum for warning in row.warnings),
        f"In leaderboard.json alone: {'; '.join(hidden)}." if hidden else "",
    )


def _ranking(judging: Judging, names: dict[str, Name]) -> PageTable | None:
    lines = []
    for place, row in enumerate(judging.ranking):
        ranks = str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}"
        rating = TableCell(f"{row.rating:.0f}" if math.isfinite(row.rating) else "beyond any", strong=True)
        css = "next-tier" if place and row.tier != judging.ranking[place - 1].tier else ""
        lines.append(Line((str(row.tier), ranks, names[row.player], rating, _bounds(row)), css=css))
    heads = ("tier", "rank", "model", "rating", "95% interval")
    caption = "Bradley-Terry ratings with 95% intervals by resampling prompts. Players of a tier cannot be told from "
    caption += "its first; tiers and ranks follow from the verdicts of this page: of a match where two met, else of "
    caption += "their ratings."
    return PageTable(heads, tuple(lines), heads, "plain ranking", caption, head=2) if lines else None


def _bounds(row: RankedPlayer) -> str:
    if row.low is None and row.high is None:
        return "no interval"
    if row.low is None:
        return f"at most {row.high:.0f}"
    return f"at least {row.low:.0f}" if row.high is None else f"{row.low:.0f} to {row.high:.0f}"


def _matrix(judging: Judging, names: dict[str, Name]) -> PageTable | None:
    """Returns the matrix of win rates, each match in both its places; None where nobody met anybody."""
    known = {(match.opponent, match.candidate): match_text(match, turned=True) for match in judging.matches}
    known |= {(match.candidate, match.opponent): match_text(match) for match in judging.matches}
    players = [player.id for player in judging.players if any(player.id in pair for pair in known)]
    lines = tuple(Line((names[one], *(_met(known.get((one, other))) for other in players))) for one in players)
    caption = f"{judging.stamp}. " if judging.stamp else ""
    caption += "Win rate of the row against the column, %, ties half; 95% interval over prompts"
    caption += "; a pair stands in both its places. " if len(players) > 2 else ". "
    caption += (
        "LC: at equal length. ▲ won, ▼ lost: a verdict of this page, so an interval may leave out 50 without one."
    )
    heads = ("candidate", *(names[name] for name in players))
    return PageTable(heads, lines, css="plain matrix", caption=caption) if players else None


def _met(match: dict[str, Any] | None) -> str | TableCell:
    """Returns a match as a cell of the matrix."""
    if match is None:
        return "–"
    below = [match["interval"], f"n = {match['n']}" + (f", {match['ties']} tied" if match["ties"] else "")]
    if match["controlled"]:
        below.append(f"LC {match['controlled']}")
    elif match["note"] and not match["turned"]:
        below.append("LC unknown")
    below += [f"{match['missing']} without a verdict: {match['bounds']}"] if match["missing"] else []
    unseen = f"{match['side']}, {match['p']}" if match["glyph"] else ""
    css = f"{match['side']} m{match['shade']}{' turned' if match['turned'] else ''}"
    title = match["note"] if "LC unknown" in below else ""
    return TableCell(match["rate"], True, True, match["glyph"], unseen, tuple(below), css, title)


def match_text(match: Match, *, turned: bool = False) -> dict[str, Any]:
    """Returns a match as text, from the side of the candidate or, turned, of the opponent."""
    low, high = (1 - match.high, 1 - match.low) if turned else (match.low, match.high)
    wins = _turn(match.wins) if turned else match.wins
    controlled = match.controlled and (_turn(match.controlled) if turned else match.controlled)
    side = {"better": "lost" if turned else "won", "worse": "won" if turned else "lost"}.get(match.verdict, "even")
    return {
        "rate": percent(wins.value),
        "interval": _rate_ends(wins),
        "n": match.battles,
        "ties": match.ties,
        "controlled": f"{percent(controlled.value)} ({_rate_ends(controlled)})" if controlled else "",
        "note": plain(match.note, 160) if match.note else "",
        "bounds": f"{percent(low)} to {percent(high)}",
        "missing": match.missing,
        "side": side,
        "glyph": {"won": GLYPHS["better"], "lost": GLYPHS["worse"]}.get(side, ""),
        "p": p_text(match.p),
        "shade": 0 if side == "even" else min(SHADES, round(SHADES * 2 * abs(wins.value - 0.5))),
        "turned": turned,
    }


def _turn(rate: Rate) -> Rate:
    low, high = (None if end is None else 1 - end for end in (rate.high, rate.low))
    return Rate(1 - rate.value, low, high, rate.n)


def _rate_ends(rate: Rate) -> str:
    known = rate.low is not None and rate.high is not None
    return f"{percent(rate.low or 0.0)}–{percent(rate.high or 0.0)}" if known else "no interval"


def _matches(judging: Judging) -> PageTable | None:
    names = {player.id: player.name for player in judging.players}
    lines = []
    for match in judging.matches:
        shown = match_text(match)
        rate = f"{shown['rate']} ({shown['interval']}) {shown['glyph']}".rstrip()
        who = (Name("", names[player], None) for player in (match.candidate, match.opponent))
        lines.append(Line((*who, rate, shown["controlled"] or "unknown", str(match.battles), str(match.missing))))
    heads = ("candidate", "opponent", "win rate, %", "at equal length, %", "n", "without a verdict")
    return PageTable(heads, tuple(lines), heads) if lines else None


def _audit(rows: Sequence[AuditRow]) -> PageTable:
    """Returns what a judge's verdicts depend on besides the answers: the judge as a whole, then pair by pair."""
    heads = ("pair", "n", "flips with the order, %", "shown first wins, %", "without a verdict", "slope on length")
    lines = tuple(map(_audited, rows))
    return PageTable((*heads, "agreement, kappa", "null answer wins, %"), lines, css="plain audit")


def _audited(row: AuditRow) -> Line:
    pair = f"{plain(row.candidate_name, 60)}{f' against {plain(row.opponent_name, 60)}' if row.opponent_name else ''}"
    kinds = ", ".join(f"{count} {kind}" for kind in WITHOUT_VERDICT if (count := getattr(row, kind)))
    bounds = (
        f"win rate {percent(row.bounds[0])} to {percent(row.bounds[1])}" if row.bounds and row.missing.count else ""
    )
    flips, first, slope, nulls = row.flip_rate, row.first_wins, row.length_slope, row.null_wins
    agreements = []
    for other in row.agreements:
        agreements.append(f"{_ends(other.kappa, '{:.2f}')} with {plain(other.other, 80)}")
        rates = f"agree on {percent(other.observed)}% of {other.n}, by chance {percent(other.chance)}%"
        turned = f"; {other.contradictions} of them turn with the order" if other.contradictions else ""
        agreements.append(rates + turned)
    cells = (
        "all it was asked" if row.is_sum else TableCell(pair, record=True),
        str(row.n),
        f"{percent(flips.value)} ({percent(flips.low)}–{percent(flips.high)}) of {flips.n}" if flips else "–",
        _ends(first, "{:.1f}", 100) if first else "–",
        TableCell(f"{row.missing.count} of {row.missing.n}", below=tuple(filter(None, (kinds, bounds)))),
        _ends(slope, "{:+.2f}").replace("-", "−") if slope else "–",
        TableCell(agreements[0], below=tuple(agreements[1:])) if agreements else "–",
        f"{percent(nulls.value)} of {nulls.n}" if nulls else "–",
    )
    return Line(cells, css="sum" if row.is_sum else "", notes=tuple(plain(text, 400) for text in row.warnings))


def _ends(estimate: Any, form: str, scale: float = 1) -> str:
    """Returns an estimate with its interval."""
    ends = "no interval"
    if estimate.low is not None and estimate.high is not None:
        ends = f"{form.format(scale * estimate.low)} to {form.format(scale * estimate.high)}"
    return f"{form.format(scale * estimate.value)} ({ends})"


def _spent(judging: Judging, names: dict[str, Name]) -> PageTable | None:
    lines = []
    for spent in judging.spent:
        tokens = ("not counted" if t is None else f"{t:,}" for t in (spent.prompt_tokens, spent.completion_tokens))
        cost = "no prices" if spent.cost is None else f"{spent.cost:.4g}"
        seconds = "not timed" if spent.seconds is None else f"{spent.seconds / spent.calls:.2f}"
        lines.append(Line((names[spent.candidate], f"{spent.calls:,}", *tokens, cost, seconds)))
    heads = ("candidate", "calls", "tokens read", "tokens written", "cost", "seconds a call")
    return PageTable(heads, tuple(lines)) if lines else None


def _answers(spell: Speller, most: int) -> PageSection:
    """Shows some prompts of each set, and all items that were chosen."""
    board = spell.board
    prompts = spread(board.samples, most)
    items = board.items if most else ()
    names = {p.id: spell.player(p) for judging in board.judgings for p in judging.players}
    names |= {model: spell.player(player) for model, player in board.players().items() if model not in names}
    tasks = list(dict.fromkeys(sample.task for sample in (*prompts, *items)))
    shown = tuple(sorted((*prompts, *items), key=lambda sample: tasks.index(sample.task)))
    answered = {given.player for sample in shown for given in sample.answers}
    block = AnsweredPrompts(
        len(board.samples),
        len(items),
        shown,
        names,
        {judging.version: judging.stamp for judging in board.judgings},
        tuple(dict.fromkeys(plain(sample.task, 60) for sample in shown)),
        tuple(sorted({plain(name, 40) for sample in shown if (name := sample.prompt.category)})),
        tuple(name for model, name in names.items() if name.id and model in answered),
    )
    return PageSection("samples", "Answers", "Answers", [block] if shown else [])


def _usage(spell: Speller) -> PageSection:
    lines = []
    for used in spell.board.usage:
        name = spell.name(used.row)
        tokens = "not counted" if used.tokens is None else f"{used.tokens:,.0f}"
        seconds = "not timed" if used.seconds is None else f"{used.seconds:.3g}"
        facts = (str(used.answers), f"{used.characters:,.0f}", tokens, percent(used.stopped), str(used.empty), seconds)
        task, settings = TableCell(plain(used.task, 60), record=True), plain(used.settings, 200) or "not recorded"
        lines.append(Line((name, task, *facts, settings), name.id))
    heads = ("checkpoint", "prompt set", "answers", "mean characters", "mean tokens", "ended by themselves, %")
    markdown = ("checkpoint", "prompt set", "answers", "characters", "tokens", "ended by themselves, %", None)
    table = PageTable((*heads, "empty", "seconds an answer", "drawn with"), tuple(lines), (*markdown, "seconds", None))
    title = "Length, finish and latency of answers"
    return PageSection("usage", "Length and latency", title, [table] if lines else [], "Facts, not figures to rank by.")


def _rewards(board: Leaderboard) -> PageSection | None:
    if not board.curves:
        return None
    legend, lines = [], []
    for place, curve in enumerate(board.curves):
        color = color_of(board, curve, place) % PALETTE
        legend.append(Legend(curve.name, color, curve.kind, hollow=curve.run is None))
        points = thinned(curve).points
        first, last, known = points[0], points[-1], [point for point in points if point.gold is not None]
        top = max(known, key=lambda point: point.gold or 0.0, default=None)
        gold = f"{known[0].gold:.3g} → {known[-1].gold:.3g}" if known else ""
        best = f"{top.gold:.3g} at KL {top.kl:.2f}" if top else ""
        cells = (curve.kind, f"{last.kl:.2f}", f"{first.reward:.3g} → {last.reward:.3g}", gold, best)
        lines.append(Line((TableCell(curve.name, record=True, most=80), *cells)))
    hint = "dashed: best of n answers; whisker: 95% interval over prompts. Where the first rises and the second falls, "
    hint += "the reward is over-optimised."
    heads = ("run", "points", "KL at the end", "reward, first → last", "gold, first → last", "best gold")
    markdown = ("run", "points", "KL at the end", "reward", "gold", "best gold")
    blocks = (
        Charts("Curves", tuple(legend), hint, tuple(reward_charts(board))),
        PageTable(heads, tuple(lines), markdown, "mistakes", head=None, words=2),
        Note(_MEANS),
    )
    return PageSection("rewards", "Rewards", "Rewards against KL", blocks)


def _training(spell: Speller, detail: Detail) -> PageSection:
    legend = (Legend(plain(r.name, 60), i % PALETTE, run=r.id) for i, r in enumerate(spell.board.runs))
    charts = training_charts(spell, every_metric=detail.every_metric, lines_only=not detail.roomy)
    hint = "band and whisker: 95% interval; dotted: from the parent's checkpoint" if detail.roomy else ""
    blocks = [Charts("Runs", tuple(legend), hint, tuple(charts))] if charts else []
    return PageSection("training", "Curves", "Over training", blocks)
