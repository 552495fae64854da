"""What the judges said: win rates of each pair of players, their ranking, the audit, and what it cost."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..judging.audit import AuditRow
from ..judging.judgments import NULL, Battle, Judgment, battles
from ..stats.compare import Difference, paired_difference
from ..stats.win_rates import DRAWS, all_rates
from .judged_model import Judging, Match, Player, Ranked, Share, Spent
from .text import plain

if TYPE_CHECKING:
    from ..stats.intervals import Estimate

_REFITS = 100  # pairs of players up to which each length-controlled win rate gets its interval


def judgings(
    judgments: Sequence[Judgment],
    players: Mapping[str, Player],
    stamps: Mapping[str, str],
    audited: Sequence[AuditRow],
) -> tuple[tuple[Judging, ...], dict[tuple[str, ...], Difference]]:
    """Sums up every judge's verdicts on every prompt set.

    Returns:
        The sums, still without a verdict, and what the verdicts are to rest on: for each match the candidate's win
        rate less a half, by ``("match", judge, task, candidate, opponent)``, and for two of a ranking that
        never met the difference of their ratings, by ``("rating", judge, task, better, worse)``.

    Args:
        judgments: All that may be shown.
        players: Those with a row, by weights hash, in the order of the rows.
        stamps: What a reader must know of a judge, by its version.
        audited: The audit of the same judgments.
    """
    groups: dict[tuple[str, str], list[Judgment]] = {}
    for judgment in judgments:
        groups.setdefault((judgment.judge_version, judgment.task), []).append(judgment)
    tested: dict[tuple[str, ...], Difference] = {}
    return tuple(_judging(group, players, stamps, audited, tested) for group in groups.values()), tested


def _judging(
    group: Sequence[Judgment],
    players: Mapping[str, Player],
    stamps: Mapping[str, str],
    audited: Sequence[AuditRow],
    tested: dict[tuple[str, ...], Difference],
) -> Judging:
    first = group[0]
    found = [battle for battle in battles(group) if NULL not in (battle.candidate, battle.opponent)]
    present = _players(group, players)
    ranking, note, apart = _ranking(found, present)
    about = (first.judge_version, first.task)
    met = _leads(found)
    tested |= {("match", *about, *pair): difference for pair, difference in met.items()}
    # Of two that met, their match tells; a rating besides would be a second answer to the same question.
    unmet = {pair: difference for pair, difference in apart.items() if pair not in met and pair[::-1] not in met}
    tested |= {("rating", *about, *pair): difference for pair, difference in unmet.items()}
    models = dict.fromkeys(judgment.judge_model for judgment in group)
    voters = f"{len(models)} voter{'s' if len(models) > 1 else ''}"
    return Judging(
        judge=first.judge,
        version=first.judge_version,
        backend=first.backend,
        model=voters if first.backend == "human" else ", ".join(models),
        task=first.task,
        stamp=stamps.get(first.judge_version),
        players=present,
        matches=_matches(found, present),
        ranking=ranking,
        ranking_note=note,
        audit=tuple(
            row
            for row in audited
            if row.judge_version == first.judge_version and (row.is_sum or row.task == first.task)
        ),
        spent=_spent(group, present),
        prompts=len({judgment.prompt_key for judgment in group}),
    )


def _players(group: Iterable[Judgment], known: Mapping[str, Player]) -> tuple[Player, ...]:
    """Returns who took part: those with rows in their order, then others in the order in which they appear."""
    names: dict[str, str] = {}
    for judgment in group:
        if judgment.candidate == NULL:
            continue  # the answer that says nothing is the audit's
        names.setdefault(judgment.candidate, judgment.candidate_name)
        if judgment.opponent is not None:
            names.setdefault(judgment.opponent, judgment.opponent_name or judgment.opponent)
    order = list(known)
    rest = sorted((weights for weights in names if weights not in known), key=lambda weights: (names[weights], weights))
    return tuple(
        known.get(weights, Player(weights, names[weights]))
        for weights in [*(weights for weights in order if weights in names), *rest]
    )


def _matches(found: Sequence[Battle], players: Sequence[Player]) -> tuple[Match, ...]:
    """Returns every pair's win rates; prompts are as hard as the opponent's other candidates found them."""
    place = {player.id: i for i, player in enumerate(players)}
    groups: dict[str, list[Battle]] = {}
    for battle in found:
        groups.setdefault(battle.opponent, []).append(battle)
    pairs = {(battle.candidate, battle.opponent) for battle in found}
    draws = DRAWS if len(pairs) <= _REFITS else 0
    matches = [
        Match(
            candidate,
            opponent,
            _share(rates.raw),
            _share(rates.controlled) if rates.controlled else None,
            rates.note,
            rates.counts.total,
            rates.counts.draws,
            rates.missing,
            rates.worst,
            rates.best,
        )
        for opponent, group in groups.items()
        for candidate, rates in all_rates(group, draws=draws).items()
    ]
    return tuple(sorted(matches, key=lambda match: (place[match.candidate], place[match.opponent])))


def _leads(found: Sequence[Battle]) -> dict[tuple[str, str], Difference]:
    """Returns the candidate's win rate less a half of each pair; battles of one prompt are no independent ones."""
    groups: dict[tuple[str, str], list[Battle]] = {}
    for battle in found:
        if battle.preference is not None:
            groups.setdefault((battle.candidate, battle.opponent), []).append(battle)
    leads = {}
    for pair, group in groups.items():
        lead = np.array([float(battle.preference or 0.0) for battle in group]) - 0.5
        leads[pair] = paired_difference(lead, 0 * lead, [battle.prompt_key for battle in group])
    return leads


def _share(estimate: "Estimate") -> Share:
    return Share(estimate.value, estimate.low, estimate.high, estimate.n)


def _ranking(
    found: Sequence[Battle], players: Sequence[Player]
) -> tuple[tuple[Ranked, ...], str | None, dict[tuple[str, str], Difference]]:
    """Ranks players by Bradley-Terry; two players need no ranking, and players that never met have none."""
    from ..stats.bradley_terry import components, fit

    decided = [battle for battle in found if battle.preference is not None]
    met = {name for battle in decided for name in (battle.candidate, battle.opponent)}
    if len(met) < 3:
        return (), None, {}
    candidates, opponents = ([getattr(battle, side) for battle in decided] for side in ("candidate", "opponent"))
    if len(components(candidates, opponents)) > 1:
        return (), "the battles fall into groups that never met, so no ranking joins them", {}
    try:
        ranking = fit(
            candidates,
            opponents,
            [float(battle.preference or 0.0) for battle in decided],
            [battle.prompt_key for battle in decided],
        )
    except ValueError as error:
        return (), plain(error, 200), {}
    names = {player.id: player.name for player in players}
    rows = tuple(
        Ranked(name, ranking.rating[i], ranking.low[i], ranking.high[i]) for i, name in enumerate(ranking.names)
    )
    notes = [_named(notice, names) for notice in ranking.notices]
    return rows, "; ".join(notes) or None, ranking.differences


def _named(notice: str, names: Mapping[str, str]) -> str:
    """Puts names in place of the weights hashes that players go by."""
    for identity, name in names.items():
        notice = notice.replace(identity, name)
    return notice


def _spent(group: Sequence[Judgment], players: Sequence[Player]) -> tuple[Spent, ...]:
    found = []
    for player in players:
        mine = [judgment for judgment in group if judgment.candidate == player.id]
        if mine:
            columns = ("prompt_tokens", "completion_tokens", "cost", "seconds")
            sums = {name: _sum([getattr(judgment, name) for judgment in mine]) for name in columns}
            tokens = [None if sums[name] is None else round(sums[name] or 0) for name in columns[:2]]
            found.append(Spent(player.id, len(mine), tokens[0], tokens[1], sums["cost"], sums["seconds"]))
    return tuple(found)


def _sum(values: Iterable[float | None]) -> float | None:
    """Adds up what was counted; None where nothing was."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
