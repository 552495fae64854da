"""Sorts score records into columns whose figures may be compared, and says where they may not.

Scores of answers are facts and no figures to rank; rules are no judge, and rank only where their suite says so.
"""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...data_tools.files import hash_json
from ..answers import KIND
from ..judging.judgments import Judgment
from ..stats.intervals import LOWER_IS_BETTER, interval, is_share, overlap, scale_of
from .board import BoardRow, Cell, Column, ColumnMetric, Figure, Notice, Standing
from .clean import group_members
from .lineage import ScoredRow
from .text import Record, detail_of, finite, mapping, plain, text, whole

STAMP = "rules, not a judge"
"""What stands at every figure that a rule, and no judge, has given."""

_NAMED = 7  # columns from which on a notice names only the first


@dataclass(frozen=True)
class RankedScores:
    """The scores that are ranked.

    Attributes:
        scored: Rows to be, with them.
        off: Versions of judges that are left off.
        rules: Versions of rules that are shown, and stamped.
        notices: What was left off.
    """

    scored: tuple[ScoredRow, ...]
    off: frozenset[str]
    rules: frozenset[str]
    notices: tuple[Notice, ...]


def select_ranked(scored: Sequence[ScoredRow], judgments: Iterable[Judgment]) -> RankedScores:
    """Takes facts out of what is ranked, and rules that do not ask for a place on the board."""
    names = {judgment.judge_version: judgment.judge for judgment in judgments if judgment.backend == "rules"}
    rules, shown, off = set(names), set(), set()
    for score in (score for item in scored for score in item.scores):
        version, detail = text(score.get("judge_version")), detail_of(score)
        if version is None:
            continue
        jury = detail.get("members")
        versions = [mapping(member).get("version") for member in jury] if isinstance(jury, list) else []
        members = {member for member in [*versions, version] if isinstance(member, str)}
        names.setdefault(version, text(detail.get("judge")) or text(score.get("task")) or "a judge")
        by_rules = "rules" in (text(detail.get("backend")) or "").split("/") or bool(members & rules)
        rules |= {version} if by_rules else set()
        wish = detail.get("leaderboard")
        (off if wish is False or (by_rules and wish is not True) else shown).update(members)
    off = (off | rules) - shown

    def is_ranked(score: Record) -> bool:
        return not is_fact(score) and score.get("judge_version") not in off

    kept = tuple(replace(item, scores=tuple(filter(is_ranked, item.scores))) for item in scored)
    named = ", ".join(sorted({plain(names[version], 60) for version in off if version in names}))
    what = f"left off the leaderboard: {named}; rules are no judge, and rank only where their suite says "
    notices = (Notice("warning", f"{what}`leaderboard: true`"),) if off else ()
    return RankedScores(kept, frozenset(off), frozenset(rules - off), notices)


def is_fact(score: Record) -> bool:
    """Says whether a score stands for answers, which are facts and no figures to rank."""
    return detail_of(score).get("kind") == KIND


_Measure = tuple[str, str, str, str, str]  # task, task hash, few-shot count, limit, whether over clean items alone
_Key = tuple[str, str, str, str, str, str]  # and the template where it must split


def tabulate(
    scored: Sequence[ScoredRow], rules: Collection[str]
) -> tuple[list[BoardRow], list[Column], dict[str, str], list[Notice]]:
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
    scored = [replace(item, scores=tuple(_limited(score, item.scores) for score in item.scores)) for item in scored]
    split = _tasks_with_several_templates(scored)
    cells: list[dict[_Key, Cell]] = []
    seen: dict[_Key, Record] = {}
    for item in scored:
        mine: dict[_Key, Cell] = {}
        for score in sorted(item.scores, key=lambda s: text(s.get("created")) or ""):
            cell = _cell(item.run_name, score, notices)
            if cell is not None:
                measure = _measure(score)
                key = (*measure, str(score.get("template_fingerprint") or "none") if measure in split else "")
                seen.setdefault(key, cell.score)
                if key in mine:
                    cell = replace(cell, earlier=(*mine[key].earlier, _whole_record(mine[key])))
                mine[key] = cell
        cells.append(mine)
    # As the tasks were first scored, with the variants of a task side by side, whole ones first.
    tasks = list(dict.fromkeys(str(score.get("task")) for item in scored for score in item.scores))
    first = {task: float(place) for place, task in enumerate(tasks)}
    for key in reversed(seen):  # the mean of a group stands before the first of its tasks
        first[key[0]] = min([first[key[0]], *(first[task] - 0.5 for task in _group(seen[key]) if task in first)])
    places = {key: place for place, key in enumerate(seen)}
    keys = sorted(seen, key=lambda key: (first[key[0]], key[3] != "", places[key]))
    columns = [_column(f"c{i}", key, keys, cells, seen[key], rules) for i, key in enumerate(keys, start=1)]
    footnotes: dict[str, str] = {}
    mixed: dict[str, list[str]] = {}
    rows = [item.row for item in scored]
    for key, column in zip(keys, columns, strict=True):
        filled = {i: replace(mine[key], column=column.id) for i, mine in enumerate(cells) if key in mine}
        filled = _mark(_stand(filled, column), column, footnotes, mixed)
        for i, cell in filled.items():
            rows[i] = replace(rows[i], cells={**rows[i].cells, column.id: cell})
    return rows, columns, footnotes, [*notices, *_notices(columns, mixed)]


def _notices(columns: Sequence[Column], mixed: dict[str, list[str]]) -> list[Notice]:
    limited = ", ".join(plain(column.name) for column in columns if column.limit is not None)
    texts = [f"LIMITED, so not full results, only the first items were scored: {limited}"] if limited else []
    for kind, names in mixed.items():
        few = names if len(names) < _NAMED else [*names[: _NAMED - 2], f"{len(names) - _NAMED + 2} more columns"]
        texts.append(f"rows differ in {kind} (see the letters): {', '.join(few)}")
    tasks = [column.task for column in columns if not column.clean]
    several = ", ".join(plain(task) for task in dict.fromkeys(tasks) if tasks.count(task) > 1)
    what = "measured in several ways, each with a column of its own, not to be compared across"
    return [Notice("warning", text) for text in [*texts, *([f"{what}: {several}"] if several else [])]]


def _cell(run: str, score: Record, notices: list[Notice]) -> Cell | None:
    where = f"{plain(run)} {plain(score.get('checkpoint') or '?')}"
    task, metrics = text(score.get("task")), score.get("metrics")
    entries = [m for m in metrics if isinstance(m, dict) and text(m.get("name"))] if isinstance(metrics, list) else []
    if task is None or not entries:
        what = "names no task" if task is None else f"of task {plain(task)} holds no metric"
        notices.append(Notice("error", f"{where}: a score record {what} and was left out"))
        return None
    given = "over prompts" if score.get("judge_version") else "bootstrap"
    figures = tuple(_figure(entry, given, detail_of(score)) for entry in entries)
    for figure in figures:
        if figure.problem:
            notices.append(Notice("error", f"{where}: {plain(task)} {plain(figure.metric)} {figure.problem}"))
    return Cell("", figures, score={key: value for key, value in score.items() if key != "metrics"})


def _whole_record(cell: Cell) -> dict[str, Any]:
    figures = [{"name": f.metric, "value": f.value, "stderr": f.stderr, "n": f.n} for f in cell.figures]
    return {**cell.score, "metrics": figures}


def _figure(entry: Record, given_by: str, detail: Record) -> Figure:
    name, raw, higher = str(entry["name"]), entry.get("value"), entry.get("higher_is_better")
    value, stderr, n = finite(raw), finite(entry.get("stderr")), whole(entry.get("n"))
    problem = None
    if value is None:
        problem = f"is {str(raw) if isinstance(raw, float) else json.dumps(raw)[:40]}, not a finite number"
    direction = higher if isinstance(higher, bool) else name not in LOWER_IS_BETTER
    given = (finite(entry.get("low")), finite(entry.get("high")), given_by)
    ends = interval(value, stderr, n, scale_of(name, detail), given)
    return Figure(name, value, stderr, n, direction, ends, None, problem)


def _measure(score: Record) -> _Measure:
    """Returns what makes two records the same measurement, as text so that records of any shape compare.

    All win rates on the same prompts against all others by one judge are one measurement: each of them has opponents of
    its own, and so a hash of its own.
    """
    detail, judge = detail_of(score), score.get("judge_version")
    opponents = detail.get("opponents")
    against_all = isinstance(opponents, list) and len(opponents) > 1 and judge
    task_hash = hash_json([judge, detail.get("prompts_hash")]) if against_all else score.get("task_hash")
    fields = (score.get("task"), task_hash, score.get("num_fewshot"), score.get("limit"))
    task, hashed, few, limit = ("" if value is None else str(value) for value in fields)
    return task, hashed, few, limit, "clean" if score.get("clean") else ""


def _tasks_with_several_templates(scored: Sequence[ScoredRow]) -> set[_Measure]:
    """Returns the measurements that one set of weights was given under more than one chat template."""
    found = set()
    for item in scored:
        templates: dict[_Measure, set[str]] = {}
        for score in item.scores:
            templates.setdefault(_measure(score), set()).add(str(score.get("template_fingerprint")))
        found |= {measure for measure, names in templates.items() if len(names) > 1}
    return found


def _column(
    identity: str,
    key: _Key,
    keys: Sequence[_Key],
    cells: Sequence[dict[_Key, Cell]],
    score: Record,
    rules: Collection[str],
) -> Column:
    task, task_hash, few, limit, clean, template = key
    siblings = [other for other in keys if other[0] == task]
    several = [len(set(values)) > 1 for values in zip(*siblings, strict=True)]
    version, detail = text(score.get("judge_version")), detail_of(score)
    coverage = text(detail.get("coverage"))
    parts = [f"{few or '?'}-shot"] if several[2] else []
    parts += [coverage] if coverage else []
    parts += [f"limit {limit}"] if limit else []
    engine = text(detail.get("version")) if detail.get("backend") == "vllm" else None  # of tasks
    parts += [f"vLLM {engine}"] if engine else []
    parts += [f"task {task_hash[:8] or '?'}"] if several[1] else []
    parts += ["no template" if template in ("", "none") else f"template {template[:8]}"] if several[5] else []
    parts += [clean] if clean else []
    metrics = []
    figures = [figure for mine in cells if key in mine for figure in mine[key].figures]
    for name in dict.fromkeys(figure.metric for figure in figures):
        mine = [figure for figure in figures if figure.metric == name]
        inside = all(f.value is None or 0 <= f.value <= 1 for f in mine)
        share = (is_share(name) and inside) or any(f.interval and f.interval.method == "wilson" for f in mine)
        metrics.append(ColumnMetric(name, mine[0].higher_is_better, "%" if share else ""))
    opponents = detail.get("opponents")
    alone = text(opponents[0]) if isinstance(opponents, list) and len(opponents) == 1 else None
    return Column(
        identity,
        task,
        ", ".join(parts),
        tuple(metrics),
        text(score.get("task_hash")),
        whole(score.get("num_fewshot")),
        finite(score.get("limit")),
        " ".join(filter(None, (text(detail.get("judge")), version[:8]))) if version else None,
        alone if version else None,
        STAMP if version in rules else None,
        bool(clean),
        _group(score),
    )


def _group(score: Record) -> tuple[str, ...]:
    """Returns the tasks that a score is the mean of; none of a task's own score."""
    detail = detail_of(score)
    return tuple(mapping(detail.get("tasks"))) if detail.get("kind") == "group" else ()


def _limited(score: Record, scores: Sequence[Record]) -> Record:
    """Gives a mean the greatest limit of its tasks: where one has only its first items, the mean is no full result.

    Its own line has a limit only where all of its tasks are given that one, be it more than the items that they have.
    """
    group = _group(score)
    limits = [whole(member.get("limit")) for member in group_members(score, scores)] if group else []
    most = max((limit for limit in limits if limit is not None), default=None)
    are_known = bool(group) and len(limits) == len(group)
    return {**score, "limit": most} if are_known or most is not None else score


def _stand(cells: dict[int, Cell], column: Column) -> dict[int, Cell]:
    """Marks the best figure of each metric, and those whose interval overlaps its interval."""
    for metric in column.metrics:
        found = {i: cell.figure(metric.name) for i, cell in cells.items()}
        # What another harness says of items that nobody sees is never the best.
        at = {i: f for i, f in found.items() if f and f.value is not None and not cells[i].is_unseen}
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


def _mark(
    cells: dict[int, Cell], column: Column, footnotes: dict[str, str], mixed: dict[str, list[str]]
) -> dict[int, Cell]:
    """Gives every cell of a mixed column a footnote that says which kind it is, and notes the column as mixed."""
    for kind, describe in _CONDITIONS.items():
        if column.clean and kind == "number of items":
            continue  # each row leaves out what its own training data touches
        theirs = {i for i, cell in cells.items() if kind == "suite version" and "foreign" in cell.score}  # have none
        values = {i: describe(cell) for i, cell in cells.items() if i not in theirs}
        if len(set(values.values())) > 1:
            mixed.setdefault(kind, []).append(plain(column.name))
            for i, value in values.items():
                cells[i] = replace(cells[i], marks=(*cells[i].marks, _letter(value, footnotes)))
    for i, cell in cells.items():
        if cell.earlier:
            count = len(cell.earlier) + 1
            note = f"scored {count} times; the newest record is shown, the others are in leaderboard.json"
            cells[i] = replace(cell, marks=(*cell.marks, _letter(note, footnotes)))
    return cells


def _letter(note: str, footnotes: dict[str, str]) -> str:
    """Returns the letter of a footnote, the next free one for a new text."""
    for letter, known in footnotes.items():
        if known == note:
            return letter
    letter = chr(ord("a") + len(footnotes) % 26) * (len(footnotes) // 26 + 1)
    footnotes[letter] = note
    return letter


def _template(cell: Cell) -> str:
    fingerprint = cell.score.get("template_fingerprint")
    return f"chat template {str(fingerprint)[:12]}" if fingerprint else "no chat template"


def _items(cell: Cell) -> str:
    n = cell.figures[0].n
    return f"n = {n}" if n is not None else "n not recorded"


def _unseen(cell: Cell) -> str:
    clauses = mapping(cell.score.get("clean")).get("unseen")
    return f"clean as far as known: {'; '.join(map(str, clauses))}" if clauses else "all training data looked through"


_CONDITIONS: dict[str, Callable[[Cell], str]] = {
    "chat template": _template,
    "suite version": lambda cell: (
        f"suite {cell.score.get('suite') or '?'} {str(cell.score.get('suite_version') or '?')[:12]}"
    ),
    "judge": lambda cell: f"judge {version}" if (version := cell.score.get("judge_version")) else "no judge",
    "number of items": _items,
    "known training data": _unseen,
    "harness": lambda cell: f"scored by {mapping(cell.score.get('foreign')).get('harness') or 'posttrain'}",
}
