"""From the judgments of one entry on one candidate to its line in ``scores.jsonl``."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from statistics import fmean
from typing import Any

from ..answers import AnswerSet
from ..records import Metric, Result, Score, now, parquet, versions
from ..sequences import grouped
from ..stats.intervals import Estimate, mean_estimate
from ..stats.win_rates import Battle, bounds, counts, win_rate
from .judgments import Judgment, battles, seen_from
from .plan import JudgingPlan

KIND = "judged"
"""The value of ``Score.detail["kind"]`` that marks the score of a judge's entry."""
_Found = tuple[Metric, dict[str, Any], dict[str, Any]]  # the figure, the table of samples, details


def figures(plan: JudgingPlan, candidate: AnswerSet, judgments: Sequence[Judgment]) -> Result | None:
    """Returns the figures of a candidate; None if no judgment gave a verdict.

    Args:
        plan: The entry and its judges.
        candidate: Whose row it is.
        judgments: Of the candidate, its own and those where it was the opponent.
    """
    found = _rated(plan, judgments) if plan.rating else _compared(plan, candidate, judgments)
    if found is None:
        return None
    metric, table, more = found
    notes = (*plan.notes, *_notes(plan, candidate, judgments))
    return Result((metric,), parquet(table), None, notes, _detail(plan, candidate, judgments) | more)


def record_of(plan: JudgingPlan, candidate: AnswerSet, judgments: Sequence[Judgment], result: Result) -> Score:
    """Returns a candidate's line: of the answers' own but for what the judges decide."""
    return replace(
        plan.answered(candidate),
        task=plan.entry.title,
        task_hash=plan.score_hash(candidate),
        num_fewshot=None,
        metrics=result.metrics,
        judge_version=plan.judge_version,
        versions=versions(),
        seconds=round(sum(judgment.seconds or 0.0 for judgment in judgments), 3),
        created=now(),
        notes=result.notes,
        detail=result.detail,
    )


def _compared(plan: JudgingPlan, candidate: AnswerSet, judgments: Sequence[Judgment]) -> _Found | None:
    fought = battles(seen_from(candidate.model_hash, judgment) for judgment in judgments)
    joint = _joint(fought, plan.judges[0].settings.vote) if len(plan.judges) > 1 else fought
    preferences = [(battle.prompt_key, battle.preference) for battle in joint if battle.preference is not None]
    if not preferences:
        return None
    values = [preference for _, preference in preferences]
    # The length-controlled rate depends on who else was judged: the report has it, and this line stands for good.
    won, counted = win_rate(values, [prompt for prompt, _ in preferences]), counts(values)
    missing = len(joint) - len(values)
    worst, best = bounds(values, missing)
    flips = [battle.flipped for battle in fought if battle.flipped is not None]
    detail = {
        "bounds": {"low": worst, "high": best},
        "flip_rate": sum(flips) / len(flips) if flips else None,
        "wins": counted.wins,
        "losses": counted.losses,
        "ties": counted.draws,
        "missing": missing,
    }
    names = ("prompt_id", "prompt_key", "category", "sample", "opponent", "preference", "flipped")
    names += ("candidate_length", "opponent_length", "judged", "asked")
    return _metric("win_rate", won), {name: [getattr(battle, name) for battle in joint] for name in names}, detail


def _joint(fought: Sequence[Battle], vote: str) -> list[Battle]:
    """Joins the battles of a jury's members: the mean of their preferences, or the side that more of them take.

    A member without a verdict abstains; the jury has none if all of them do.
    """
    joined = []
    for group in grouped(fought, lambda battle: (battle.opponent, battle.prompt_key, battle.sample)).values():
        given = [battle.preference for battle in group if battle.preference is not None]
        if vote == "majority" and given:
            balance = sum((value > 0.5) - (value < 0.5) for value in given)
            verdict = 0.5 + 0.5 * (balance > 0) - 0.5 * (balance < 0)
        else:
            verdict = math.fsum(given) / len(given) if given else None
        counted = {"judged": sum(b.judged for b in group), "asked": sum(b.asked for b in group)}
        joined.append(replace(group[0], judge="jury", preference=verdict, flipped=None, net=None, **counted))
    return joined


def _rated(plan: JudgingPlan, judgments: Sequence[Judgment]) -> _Found | None:
    rows = []
    for (prompt, sample), group in sorted(grouped(judgments, lambda said: (said.prompt_key, said.sample)).items()):
        given = ((judgment.judge_version, judgment.rating) for judgment in group if judgment.rating is not None)
        # Of a jury each member counts alike, however often it repeats itself.
        means = [fmean(rating for _, rating in its) for its in grouped(given, itemgetter(0)).values()]
        rows.append((prompt, sample, group[0], fmean(means) if means else None))
    known = [(prompt, value) for prompt, _, _, value in rows if value is not None]
    if not known:
        return None
    low, high = plan.judges[0].settings.scale
    ordered = plan.judges[0].spec.ordered  # a rule's values and rewards have no scale
    values, prompts = [value for _, value in known], [prompt for prompt, _ in known]
    mean = mean_estimate(values, prompts, scale=(low, high) if ordered else None)
    missing = len(rows) - len(known)
    detail: dict[str, Any] = {"scale": [low, high], "missing": missing}
    if ordered:
        worst, best = bounds(values, missing, low, high)
        detail["bounds"] = {"low": worst, "high": best}
    table = {
        "prompt_id": [first.prompt_id for _, _, first, _ in rows],
        "prompt_key": [prompt for prompt, _, _, _ in rows],
        "category": [first.category for _, _, first, _ in rows],
        "sample": [sample for _, sample, _, _ in rows],
        "rating": [value for *_, value in rows],
    }
    return _metric("rating", mean), table, detail


def _metric(name: str, estimate: Estimate) -> Metric:
    return Metric(name, estimate.value, estimate.stderr, estimate.n, True, estimate.low, estimate.high)


def _detail(plan: JudgingPlan, candidate: AnswerSet, judgments: Sequence[Judgment]) -> dict[str, Any]:
    opponents = plan.opponents(candidate)
    costs = [judgment.cost for judgment in judgments if judgment.cost is not None]
    return {
        "kind": KIND,
        "judge": plan.judges[0].spec.name if len(plan.judges) == 1 else plan.entry.title,
        "backend": "/".join(sorted({judge.settings.backend for judge in plan.judges})),
        "members": [
            {"judge": judge.spec.name, "version": judge.version, "model": judge.model_name, "by": judge.way}
            for judge in plan.judges
        ],
        "prompts": plan.entry.prompts,
        "prompts_hash": plan.job.task_hash,
        "baseline": opponents[0].name if plan.entry.pairs == "baseline" and opponents else None,
        "opponents": [other.model_hash for other in opponents],
        "leaderboard": all(judge.spec.leaderboard for judge in plan.judges),
        "judgments": len(judgments),
        "statuses": dict(Counter(judgment.status for judgment in judgments)),
        "cost": math.fsum(costs) if costs else None,
    }


def _notes(plan: JudgingPlan, candidate: AnswerSet, judgments: Sequence[Judgment]) -> list[str]:
    notes = []
    if any(judge.settings.backend == "rules" for judge in plan.judges):
        notes.append("judged by rules, not by a judge")
    statuses = Counter(judgment.status for judgment in judgments)
    words = {
        "unparsed": "replies without a readable verdict",
        "refused": "refusals",
        "truncated": "replies or prompts too long",
        "rejected": "questions that the server rejected",
        "failed": "failures",
    }
    notes += [f"{statuses[status]} {text}" for status, text in words.items() if statuses[status]]
    limit = min(judge.settings.max_characters for judge in plan.judges)
    prompted = any(judge.spec.ordered for judge in plan.judges)
    cut = sum(len(text) > limit for answer in candidate.answers for text in answer.texts) if prompted else 0
    notes += [f"{cut} of the answers' turns were longer than the {limit} characters that the judge sees"] if cut else []
    lost = {answer.prompt_key for answer in candidate.answers} - {judgment.prompt_key for judgment in judgments}
    whole = plan.entry.baseline is not None and isinstance(plan.entry.pairs, str)
    notes += [f"{len(lost)} prompts without an answer of the other"] if lost and whole else []
    return notes
