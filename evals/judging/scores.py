"""From the judgments of one entry on one candidate to its line in ``scores.jsonl``."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..answers import AnswerSet
from ..judges import JudgingSpec
from ..records import Metric, Result, parquet
from ..stats.intervals import Estimate, mean_estimate
from ..stats.win_rates import counts, win_rate
from .battles import Battle, battles
from .bench import Bench
from .judgments import Judgment

KIND = "judged"
"""The value of ``Score.detail["kind"]`` that marks the score of a judge's entry."""


@dataclass(frozen=True)
class Judged:
    """What was judged of one candidate in one entry.

    Attributes:
        entry: The suite's entry.
        benches: The judge, or the members of its jury.
        candidate: Whose row it is.
        opponents: Whom it was compared with; empty for ratings.
        judgments: Of the candidate, its own and those where it was the opponent.
    """

    entry: JudgingSpec
    benches: Sequence[Bench]
    candidate: AnswerSet
    opponents: Sequence[AnswerSet]
    judgments: Sequence[Judgment]


def result(judged: Judged, notes: Sequence[str] = ()) -> Result | None:
    """Returns the figures of a candidate; None if no judgment gave a verdict.

    Args:
        judged: What was said.
        notes: What a reader must know besides.
    """
    rating = judged.benches[0].judge.settings.kind == "rating"
    found = _rated(judged) if rating else _compared(judged)
    if found is None:
        return None
    metrics, table, more = found
    return Result(metrics, parquet(table), None, (*notes, *_notes(judged)), {**_detail(judged), **more})


def _compared(judged: Judged) -> tuple[tuple[Metric, ...], dict[str, Any], dict[str, Any]] | None:
    fought = [_seen_from(judged.candidate.model_hash, battle) for battle in battles(judged.judgments)]
    joint = _joint(fought, judged.benches[0].judge.settings.vote) if len(judged.benches) > 1 else fought
    preferences = [(battle.prompt_key, battle.preference) for battle in joint if battle.preference is not None]
    if not preferences:
        return None
    values = [preference for _, preference in preferences]
    # The length-controlled rate depends on who else was judged: the report has it, and this line stands for good.
    won, counted = win_rate(values, [prompt for prompt, _ in preferences]), counts(values)
    missing, total = len(joint) - len(values), math.fsum(values)
    flips = [battle.flipped for battle in fought if battle.flipped is not None]
    detail = {
        "bounds": {"low": total / len(joint), "high": (total + missing) / len(joint)},
        "flip_rate": sum(flips) / len(flips) if flips else None,
        "wins": counted.wins,
        "losses": counted.losses,
        "ties": counted.draws,
        "missing": missing,
    }
    return (_metric("win_rate", won),), _battle_table(joint), detail


def _seen_from(candidate: str, battle: Battle) -> Battle:
    """Turns a battle so that the candidate stands on its own side."""
    if battle.candidate == candidate:
        return battle
    return replace(
        battle,
        candidate=battle.opponent,
        opponent=battle.candidate,
        candidate_length=battle.opponent_length,
        opponent_length=battle.candidate_length,
        preference=None if battle.preference is None else 1 - battle.preference,
        net=None if battle.net is None else -battle.net,
    )


def _joint(fought: Sequence[Battle], vote: str) -> list[Battle]:
    """Joins the battles of a jury's members: the mean of their preferences, or the side that more of them take.

    A member without a verdict abstains; the jury has none if all of them do.
    """
    groups: dict[tuple[str, str, int], list[Battle]] = {}
    for battle in fought:
        groups.setdefault((battle.opponent, battle.prompt_key, battle.sample), []).append(battle)
    joined = []
    for group in groups.values():
        given = [battle.preference for battle in group if battle.preference is not None]
        if vote == "majority" and given:
            balance = sum((value > 0.5) - (value < 0.5) for value in given)
            verdict = 0.5 + 0.5 * (balance > 0) - 0.5 * (balance < 0)
        else:
            verdict = math.fsum(given) / len(given) if given else None
        counted = {"judged": sum(b.judged for b in group), "asked": sum(b.asked for b in group)}
        joined.append(replace(group[0], judge="jury", preference=verdict, flipped=None, net=None, **counted))
    return joined


def _rated(judged: Judged) -> tuple[tuple[Metric, ...], dict[str, Any], dict[str, Any]] | None:
    groups: dict[tuple[str, int], list[Judgment]] = {}
    for judgment in judged.judgments:
        groups.setdefault((judgment.prompt_key, judgment.sample), []).append(judgment)
    rows = []
    for (prompt, sample), group in sorted(groups.items()):
        given = [judgment.rating for judgment in group if judgment.rating is not None]
        rows.append((prompt, sample, group[0], math.fsum(given) / len(given) if given else None))
    known = [(prompt, value) for prompt, _, _, value in rows if value is not None]
    if not known:
        return None
    low, high = judged.benches[0].judge.settings.scale
    ordered = judged.benches[0].judge.ordered  # a rule's values and rewards have no scale
    values, prompts = [value for _, value in known], [prompt for prompt, _ in known]
    mean = mean_estimate(values, prompts, scale=(low, high) if ordered else None)
    missing = len(rows) - len(known)
    total = math.fsum(value for _, value in known)
    detail: dict[str, Any] = {"scale": [low, high], "missing": missing}
    if ordered:
        ends = [(total + missing * end) / len(rows) for end in (low, high)]
        detail["bounds"] = {"low": ends[0], "high": ends[1]}
    table = {
        "prompt_id": [first.prompt_id for _, _, first, _ in rows],
        "prompt_key": [prompt for prompt, _, _, _ in rows],
        "category": [first.category for _, _, first, _ in rows],
        "sample": [sample for _, sample, _, _ in rows],
        "rating": [value for *_, value in rows],
    }
    return (_metric("rating", mean),), table, detail


def _metric(name: str, estimate: Estimate) -> Metric:
    return Metric(name, estimate.value, estimate.stderr, estimate.n, True, estimate.low, estimate.high)


def _battle_table(fought: Sequence[Battle]) -> dict[str, Any]:
    names = ("prompt_id", "prompt_key", "category", "sample", "opponent", "preference", "flipped")
    names += ("candidate_length", "opponent_length", "judged", "asked")
    return {name: [getattr(battle, name) for battle in fought] for name in names}


def _detail(judged: Judged) -> dict[str, Any]:
    judges = [bench.judge for bench in judged.benches]
    costs = [judgment.cost for judgment in judged.judgments if judgment.cost is not None]
    statuses = Counter(judgment.status for judgment in judged.judgments)
    return {
        "kind": KIND,
        "judge": judges[0].name if len(judges) == 1 else judged.entry.title,
        "backend": "/".join(sorted({judge.settings.backend for judge in judges})),
        "members": [
            {"judge": bench.judge.name, "version": bench.version, "model": bench.model_name, "by": bench.way}
            for bench in judged.benches
        ],
        "prompts": judged.entry.prompts,
        "baseline": judged.opponents[0].name if judged.entry.pairs == "baseline" and judged.opponents else None,
        "opponents": [other.model_hash for other in judged.opponents],
        "leaderboard": all(judge.leaderboard for judge in judges),
        "judgments": len(judged.judgments),
        "statuses": dict(statuses),
        "cost": math.fsum(costs) if costs else None,
    }


def _notes(judged: Judged) -> tuple[str, ...]:
    notes = []
    if any(bench.judge.settings.backend == "rules" for bench in judged.benches):
        notes.append("judged by rules, not by a judge")
    statuses = Counter(judgment.status for judgment in judged.judgments)
    words = {
        "unparsed": "replies without a readable verdict",
        "refused": "refusals",
        "truncated": "replies or prompts too long",
        "rejected": "questions that the server rejected",
        "failed": "failures",
    }
    notes += [f"{statuses[status]} {text}" for status, text in words.items() if statuses[status]]
    limit = min(bench.judge.settings.max_characters for bench in judged.benches)
    prompted = any(bench.judge.ordered for bench in judged.benches)
    cut = sum(len(text) > limit for answer in judged.candidate.answers for text in answer.texts) if prompted else 0
    notes += [f"{cut} of the answers' turns were longer than the {limit} characters that the judge sees"] if cut else []
    judged_answers = {judgment.prompt_key for judgment in judged.judgments}
    lost = len({answer.prompt_key for answer in judged.candidate.answers} - judged_answers)
    whole = not (judged.entry.baseline is None or not isinstance(judged.entry.pairs, str))
    notes += [f"{lost} prompts without an answer of the other"] if lost and whole else []
    return tuple(notes)
