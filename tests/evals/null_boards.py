"""Leaderboards of models that are equally good, and what a reader finds on their pages."""

import csv
import io
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
from posttrain.evals.judging.judgments import Judgment
from posttrain.evals.report import Leaderboard
from posttrain.evals.report.board import BoardRow, BoardRun, Cell, Column, ColumnMetric, Figure, Player
from posttrain.evals.report.html import to_html
from posttrain.evals.report.items import Items, group_items
from posttrain.evals.report.judged import judgings
from posttrain.evals.report.markdown import to_markdown
from posttrain.evals.report.tables import to_csv, to_json
from posttrain.evals.report.verdicts import find_baseline, with_verdicts

from .judged_fixtures import VERSION, answer, pair

ITEMS, PROMPTS = 120, 30


def board(
    rng: np.random.Generator,
    runs: int,
    steps: int,
    tasks: int,
    judged: str = "",
    lead: float = 0.0,
    kin: bool = False,
) -> Leaderboard:
    """Returns runs, each the first one's child, on tasks of 0/1 items and, where asked for, before a judge.

    Args:
        rng: What decides who is right where.
        runs: How many; the first is the parent of all others.
        steps: Checkpoints of each that are scored.
        tasks: Of items whose difficulty varies; 0 leaves a board of judges alone, which has no baseline.
        judged: Whom the final models meet: ``all`` others, or the first ``one``.
        lead: How much better the last run is than all others, in standard deviations of what models differ by.
        kin: Whether each task has two more columns that are no news: asked again with other words, where some items are
            answered anew, and without the items that a run's training data touches; and all tasks two means, likewise.
    """
    finals = [Player(f"{run}-weights", f"run{run}", f"r{(run + 1) * steps}") for run in range(runs)]
    values: dict[tuple[str, str], np.ndarray] = {}
    hardness: list[np.ndarray] = []
    for task in range(tasks):
        hardness.append(hard := rng.normal(size=ITEMS))
        for place in range(runs * steps):
            skill = lead if place >= (runs - 1) * steps else 0.0
            values[f"r{place + 1}", f"c{task + 1}"] = _right(rng, hard + skill)
    columns = [Column(f"c{task + 1}", f"task{task}", "", (ColumnMetric("acc", True, "%"),)) for task in range(tasks)]
    places: dict[tuple[str, str], np.ndarray] = {}
    for column, hard in zip(columns[: tasks if kin else 0], hardness, strict=False):
        columns += [
            replace(column, id=f"{column.id}r", variant="rephrased"),
            replace(column, id=f"{column.id}k", variant="clean", clean=True),
        ]
        touched = [rng.random(ITEMS) < 0.15 for _ in range(runs)]
        for place in range(runs * steps):
            row = f"r{place + 1}"
            asked = values[row, column.id]
            skill = lead if place >= (runs - 1) * steps else 0.0
            anew = (
                rng.random(ITEMS) < 0.2
            )  # item by item: answers moved from one item to another would not be independent
            values[row, f"{column.id}r"] = np.where(anew, _right(rng, hard + skill), asked)
            places[row, f"{column.id}k"] = np.flatnonzero(~touched[place // steps])
            values[row, f"{column.id}k"] = asked[places[row, f"{column.id}k"]]
    keys = {len(found): tuple(map(str, range(len(found)))) for found in values.values()}
    held = {
        key: Items(tuple(map(str, places[key])) if key in places else keys[len(found)], found, None)
        for key, found in values.items()
    }
    if kin:
        group = tuple(f"task{task}" for task in range(tasks))
        mean = Column("cg", "mean", "", (ColumnMetric("acc_macro", True, "%"),), group=group)
        columns += [mean, replace(mean, id="cgk", variant="clean", clean=True)]
        detail = {"mean": "macro", "tasks": dict.fromkeys(group)}
        for row in (f"r{place + 1}" for place in range(runs * steps)):
            for suffix in ("", "k"):
                parts = {name: held[row, f"c{task + 1}{suffix}"] for task, name in enumerate(group)}
                found = group_items(detail, parts)
                assert found is not None
                held[row, f"cg{suffix}"], values[row, f"cg{suffix}"] = found, found.values
    said: list[Judgment] = []
    if judged:
        said, rates = _judge(rng, finals, judged, lead)
        if judged == "one" and tasks:
            columns.append(Column("cj", "chat", "", (ColumnMetric("win_rate", True, "%"),), opponent=finals[0].id))
            values |= {(row, "cj"): rate for row, rate in rates.items()}
            held |= {(row, "cj"): Items(tuple(map(str, range(len(rate)))), rate) for row, rate in rates.items()}
    rows, made = [], []
    for run in range(runs):
        origin = {"parent": "run1", "fork": f"r{steps}", "offset": steps} if run else {}
        made.append(BoardRun(f"run{run + 1}", f"run{run}", f"run{run}", "sft", **origin))
        for step in range(1, steps + 1):
            identity, last = f"r{run * steps + step}", step == steps
            cells = {c.id: _cell(c, values[identity, c.id]) for c in columns if (identity, c.id) in values}
            names, weights = ("final",) if last else (), f"{run}-weights" if last else identity
            position = step + (steps if run else 0)
            rows.append(BoardRow(identity, made[-1].id, names, step, position, None, weights, cells, (), weights))
    summed, tested = judgings(said, {player.id: player for player in finals}, {}, [])
    baseline = find_baseline(made, rows, None)
    bare = Leaderboard("null", tuple(made), tuple(rows), tuple(columns), baseline=baseline, judgings=summed)

    def items(row: BoardRow, column: Column) -> Items | None:
        return held.get((row.id, column.id))

    return with_verdicts(bare, items, tested)


def _right(rng: np.random.Generator, skill: np.ndarray) -> np.ndarray:
    """Returns which items a model gets right, from its skill at each in standard deviations."""
    return (skill + rng.normal(size=len(skill)) > 0).astype(float)


def _cell(column: Column, values: np.ndarray) -> Cell:
    stderr = float(values.std(ddof=1)) / len(values) ** 0.5
    figure = Figure(column.metrics[0].name, float(values.mean()), stderr, len(values), True)
    return Cell(column.id, (figure,), score={"judge_version": VERSION} if column.opponent else {})


def _judge(
    rng: np.random.Generator, finals: list[Player], judged: str, lead: float
) -> tuple[list[Judgment], dict[str, np.ndarray]]:
    """Returns a judge's verdicts, and by row the preferences for those that met the first."""
    answers = {player.id: [answer(i, f"{player.id} {i}") for i in range(PROMPTS)] for player in finals}
    said, rates = [], {}
    pairs = [(one, other) for j, one in enumerate(finals) for other in finals[: j if judged == "all" else min(j, 1)]]
    for one, other in pairs:
        edge = (lead if one is finals[-1] else 0.0) + rng.normal(size=PROMPTS)
        outcomes = np.where(edge > 0.3, 1.0, np.where(edge < -0.3, 0.0, 0.5))
        for n, outcome in enumerate(outcomes.tolist()):
            mine, theirs = ((player.id, player.name, answers[player.id][n]) for player in (one, other))
            said += pair(mine, theirs, outcome)
        rates[one.row or ""] = outcomes
    return said, rates


def page_claims(page: str) -> set[str]:
    """Returns whatever a page says of one row beside another, as its words and marks stand there."""
    told = re.search(r'<p class="told">(.*?)</p>', page, re.DOTALL)
    body = page[page.index("<main>") : page.index('id="reading"')]
    body = re.sub(r'<section id="samples".*?</section>', "", body, flags=re.DOTALL)  # verdicts on single answers
    body = re.sub(r'<(p|caption|h2)( class="lead"| id="[a-z-]*")?>.*?</\1>', "", body, flags=re.DOTALL)  # legends
    found = set(re.findall(r'class="verdict (better|worse)"', body)) | set(re.findall(r"[▲▼]", body))
    found |= {f"{word} than" for word in re.findall(r"\b(better|worse) on\b", told[1] if told else "")}
    found |= set(re.findall(r"\b(better than|worse than|gained|lost|won)\b", re.sub(r"<[^>]+>", " ", body)))
    tiers = re.findall(r'tier </span>(\d+)|<tr[^>]*><td>(\d+)</td><td>[\d to]+</td><th scope="row"', body)
    found |= {f"tier {number}" for pair_ in tiers for number in pair_ if number and number != "1"}
    data = re.search(r'id="pairs">(.*?)</script>', page, re.DOTALL)
    pairs = json.loads(data[1])["pairs"] if data else {}
    return found | {f"pair {entry[3]}" for entries in pairs.values() for entry in entries if entry[3] != "no verdict"}


def all_claims(board: Leaderboard) -> dict[str, set[str]]:
    """Returns the same of each of the four files."""
    text = "\n".join(line for line in to_markdown(board).splitlines() if not line.startswith(("Baseline:", "#")))
    words = set(re.findall(r"[▲▼]|\bgained\b|\blost\b|tier [2-9]", text))
    words |= {f"tier {n}" for n in re.findall(r"^\| (\d+) \| [\d to]+ \|", text, re.MULTILINE) if n != "1"}
    rows = list(csv.DictReader(io.StringIO(to_csv(board))))
    table = {row["verdict"] for row in rows} | {f"tier {row['tier']}" for row in rows}
    return {
        "html": page_claims(to_html(board)),
        "md": words,
        "csv": table - {"", "no verdict", "tier ", "tier 1"},
        "json": set(_json_claims(json.loads(to_json(board)))),
    }


def _json_claims(value: Any) -> list[str]:
    if isinstance(value, list):
        return [claim for item in value for claim in _json_claims(item)]
    if not isinstance(value, dict):
        return []
    mine = [value["verdict"]] if value.get("verdict") in ("better", "worse") else []
    mine += [f"tier {value['tier']}"] if value.get("tier") not in (None, 1) else []
    return mine + [claim for item in value.values() for claim in _json_claims(item)]
