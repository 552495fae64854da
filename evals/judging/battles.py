"""From single judgments to battles: both orders and all repeats of one question make one verdict."""

from collections.abc import Iterable

from ..stats.win_rates import Battle
from .judgments import Judgment

_TIE = 1e-9  # how far from .5 a preference still is a tie


def battles(judgments: Iterable[Judgment]) -> list[Battle]:
    """Joins pairwise judgments of the same two answers by the same judge; ratings are left aside."""
    groups: dict[tuple[str | int, ...], list[Judgment]] = {}
    for judgment in judgments:
        if judgment.opponent is not None and judgment.opponent_answer is not None:
            parts = (judgment.judge_version, judgment.task, judgment.candidate, judgment.opponent)
            key = (*parts, judgment.prompt_key, judgment.sample, judgment.candidate_answer, judgment.opponent_answer)
            groups.setdefault(key, []).append(judgment)
    return [_battle(group) for group in groups.values()]


def _battle(group: list[Judgment]) -> Battle:
    orders: dict[str, list[float]] = {}
    for judgment in group:
        verdicts = orders.setdefault(judgment.order, [])
        if judgment.preference is not None:
            verdicts.append(judgment.preference)
    means = [sum(verdicts) / len(verdicts) for verdicts in orders.values() if verdicts]
    whole = len(means) == len(orders)
    flipped = (means[0] - 0.5) * (means[1] - 0.5) < -_TIE if whole and len(means) == 2 else None
    hard = whole and all(len({*verdicts}) == 1 and verdicts[0] in (0.0, 0.5, 1.0) for verdicts in orders.values())
    preference = sum(means) / len(means) if whole else None
    net = None if preference is None else (preference > 0.5 + _TIE) - (preference < 0.5 - _TIE)
    # A hard verdict in one order and a tie in the other disagree as well: .75 would be half a win that nobody gave.
    if hard and preference is not None and len({*means}) > 1:
        preference = 0.5
    first = group[0]
    assert first.opponent is not None, "only pairs are joined"
    assert first.opponent_length is not None, "an opponent has an answer"
    return Battle(
        judge=first.judge,
        judge_version=first.judge_version,
        task=first.task,
        prompt_key=first.prompt_key,
        prompt_id=first.prompt_id,
        category=first.category,
        sample=first.sample,
        candidate=first.candidate,
        opponent=first.opponent,
        candidate_length=first.candidate_length,
        opponent_length=first.opponent_length,
        preference=preference,
        flipped=flipped,
        judged=sum(judgment.preference is not None for judgment in group),
        asked=len(group),
        net=net,
    )
