"""What judges said and what answers came to: win rates of each pair of players, rankings, audits, cost, usage."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..answers import Answer
from ..judging.audit import AuditRow, audit
from ..judging.families import families_of
from ..judging.judgments import NULL, Battle, Judgment, battles, one_way
from ..records import model_of
from ..sequences import grouped
from ..stats.bradley_terry import components, fit
from ..stats.compare import Difference, paired_difference
from ..stats.intervals import Estimate
from ..stats.win_rates import DRAWS, all_rates
from .board import BoardRow, JudgeCost, Judging, Leaderboard, Match, Notice, Player, RankedPlayer, Rate, Usage
from .columns import STAMP
from .read import RunFolder
from .samples import gather
from .text import Record, detail_of, mapping, plain, whole

_REFITS = 100  # pairs of players up to which each length-controlled win rate gets its interval

Tested = dict[tuple[str, ...], Difference]
"""What verdicts on two players are to rest on: for each match the candidate's win rate less a half, by ``("match",
judge, task, candidate, opponent)``, and for two of a ranking that never met the difference of their ratings, by
``("rating", judge, task, better, worse)``."""

_Answered = Sequence[tuple[BoardRow, Record, Sequence[Answer]]]  # the newest set of each row and prompt set


def with_judgings(
    board: Leaderboard, held: Mapping[str, RunFolder], judgments: Iterable[Judgment], rules: Iterable[str]
) -> tuple[Leaderboard, Tested]:
    """Adds judgings, usage and samples, and returns what the verdicts on the judgings are to rest on.

    Args:
        board: With its rows and columns.
        held: The folder of each run, by the run's id.
        judgments: All that may be shown.
        rules: Versions of judges that are rules, whose every figure is stamped.
    """
    players = board.players()
    answers = [(row, *pair) for row in board.rows for pair in _answers_of(row, held[row.run])]
    usage = (_usage(row, score, some) for row, score, some in answers if some)
    once: dict[str, Judgment] = {}  # two runs may hold the same weights, and the same judgments
    for judgment in judgments:
        if judgment.key not in once or once[judgment.key].status != "judged":
            once[judgment.key] = judgment
    said, notices = _of_newest_answers(list(once.values()), answers)
    audited: list[AuditRow] = []
    if said:
        models = dict.fromkeys(judgment.judge_model for judgment in said if judgment.backend != "human")
        audited = audit(said, families=families_of([folder.path for folder in held.values()], models))
    for row in audited:
        asked = dict.fromkeys(judgment.task for judgment in said if judgment.judge_version == row.judge_version)
        on = ", ".join(plain(task, 40) for task in asked)
        who = f"judge {plain(row.judge, 40)} ({plain(row.backend, 20)} {plain(row.judge_model)}) on {on}"
        warnings = row.warnings if row.is_sum else ()
        notices += [Notice("warning", f"{who}: {plain(warning, 300)}") for warning in warnings]
        if row.is_sum:
            notices += [Notice("warning", f"{who}: {text}") for text in _conflicts(row, audited)]
    summed, tested = judgings(said, players, dict.fromkeys(rules, STAMP), audited)
    board = replace(
        board,
        notices=(*board.notices, *notices),
        judgings=summed,
        usage=tuple(usage),
        samples=gather([(row.model_hash or "", str(score.get("task")), some) for row, score, some in answers], said),
    )
    return board, tested


def _conflicts(judge: AuditRow, audited: Iterable[AuditRow]) -> list[str]:
    """Words what a judge has in common with entries: each kinship once, with all whose it is."""
    kin: dict[str, dict[str, None]] = {}
    for row in audited:
        if row.judge_version == judge.judge_version:
            for name, said in row.kin:
                if said.startswith("the judge"):  # what an entry shares with its teacher is no matter of the judge
                    kin.setdefault(said, {})[plain(name, 60)] = None
    return [plain(f"{said}: {', '.join(names)}", 300) for said, names in kin.items()]


def _answers_of(row: BoardRow, folder: RunFolder) -> list[tuple[Record, Sequence[Answer]]]:
    """Returns the answer sets of a row's model, the newest of each prompt set."""
    sets = [
        (score, answers) for score, answers in folder.answers if row.model_hash and model_of(score) == row.model_hash
    ]
    return list({score.get("task"): (score, answers) for score, answers in sets}.values())


def _of_newest_answers(judgments: Sequence[Judgment], answers: _Answered) -> tuple[list[Judgment], list[Notice]]:
    """Leaves out what was said of answers that have since been made anew, for other prompts or with other settings.

    An answer that came out the same is not judged again, so its judgment may name the older settings: the answers tell,
    not the hash. Of a player whose answers are not here the latest judgment of each question holds.
    """
    newest: dict[str, Record] = {}
    for _, score, _ in answers:
        task = str(score.get("task"))
        if task not in newest or str(score.get("created")) >= str(newest[task].get("created")):
            newest[task] = score
    known: dict[tuple[str, str | None], set[str]] = {}
    for row, score, some in answers:
        task = str(score.get("task"))
        keys = known.setdefault((task, row.model_hash), set())
        if score.get("task_hash") == newest[task].get("task_hash"):
            keys.update(key for answer in some for key in (answer.key, answer.ended_key))
    latest: dict[tuple[Any, ...], Judgment] = {}
    for said in judgments:
        sides = ((said.candidate, said.candidate_answer), (said.opponent, said.opponent_answer))
        if all((said.task, player) not in known or answer in known[said.task, player] for player, answer in sides):
            where = (said.judge_version, said.task, said.prompt_key, said.sample, said.order, said.repeat)
            place = (*where, said.candidate, said.opponent)
            if place not in latest or said.created >= latest[place].created:
                latest[place] = said
    older = len(judgments) - len(latest)
    text = f"{older} judgments left out: of answers that have since been made anew, with other prompts or settings"
    return list(latest.values()), [Notice("warning", text)] if older else []


def _usage(row: BoardRow, score: Record, answers: Sequence[Answer]) -> Usage:
    """Sums up a row's answers to a prompt set."""
    tokens = [t for answer in answers if (t := whole(answer.completion_tokens)) is not None]
    seconds = [answer.seconds for answer in answers if isinstance(answer.seconds, int | float)]
    finish = [turn for answer in answers for turn in answer.finish]
    detail = detail_of(score)
    given = {**mapping(detail.get("sampling")), **mapping(detail.get("settings")), **detail}
    names = ("max_new_tokens", "temperature", "top_p", "samples", "seed", "system")
    return Usage(
        row=row.id,
        task=str(score.get("task")),
        answers=len(answers),
        characters=sum(answer.characters for answer in answers) / len(answers),
        tokens=sum(tokens) / len(tokens) if tokens else None,
        stopped=finish.count("stop") / len(finish) if finish else 0.0,
        empty=sum(not "".join(answer.texts).strip() for answer in answers),
        seconds=sum(seconds) / len(seconds) if seconds else None,
        settings=", ".join(f"{name.replace('_', ' ')} {given[name]}" for name in names if given.get(name) is not None),
    )


def judgings(
    judgments: Sequence[Judgment],
    players: Mapping[str, Player],
    stamps: Mapping[str, str],
    audited: Sequence[AuditRow],
) -> tuple[tuple[Judging, ...], Tested]:
    """Sums up every judge's verdicts on every prompt set, still without a verdict of the page's.

    Args:
        judgments: All that may be shown.
        players: Those with a row, by weights hash, in the order of the rows.
        stamps: What a reader must know of a judge, by its version.
        audited: The audit of the same judgments.
    """
    groups = grouped(judgments, lambda judgment: (judgment.judge_version, judgment.task))
    tested: Tested = {}
    return tuple(_judging(group, players, stamps, audited, tested) for group in groups.values()), tested


def _judging(
    group: Sequence[Judgment],
    players: Mapping[str, Player],
    stamps: Mapping[str, str],
    audited: Sequence[AuditRow],
    tested: Tested,
) -> Judging:
    first = group[0]
    found = [battle for battle in battles(one_way(group)) if NULL not in (battle.candidate, battle.opponent)]
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
    mine = (row for row in audited if row.judge_version == first.judge_version)
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
        audit=tuple(row for row in mine if row.is_sum or row.task == first.task),
        spent=_spent(group, present),
        prompts=len({judgment.prompt_key for judgment in group}),
    )


def _players(group: Iterable[Judgment], known: Mapping[str, Player]) -> tuple[Player, ...]:
    """Returns who took part: those with rows in their order, then others by name."""
    names: dict[str, str] = {}
    for judgment in group:
        if judgment.candidate == NULL:
            continue  # the answer that says nothing is the audit's
        names.setdefault(judgment.candidate, judgment.candidate_name)
        if judgment.opponent is not None:
            names.setdefault(judgment.opponent, judgment.opponent_name or judgment.opponent)
    others = sorted((name, weights) for weights, name in names.items() if weights not in known)
    mine = [player for weights, player in known.items() if weights in names]
    return (*mine, *(Player(weights, name) for name, weights in others))


def _matches(found: Sequence[Battle], players: Sequence[Player]) -> tuple[Match, ...]:
    """Returns every pair's win rates; prompts are as hard as the opponent's other candidates found them."""
    pairs = {(battle.candidate, battle.opponent) for battle in found}
    draws = DRAWS if len(pairs) <= _REFITS else 0
    matches = [
        Match(
            candidate,
            opponent,
            _rate(rates.raw),
            _rate(rates.controlled) if rates.controlled else None,
            rates.note,
            rates.counts.total,
            rates.counts.draws,
            rates.missing,
            rates.worst,
            rates.best,
        )
        for opponent, group in grouped(found, lambda battle: battle.opponent).items()
        for candidate, rates in all_rates(group, draws=draws).items()
    ]
    place = {player.id: i for i, player in enumerate(players)}
    return tuple(sorted(matches, key=lambda match: (place[match.candidate], place[match.opponent])))


def _rate(estimate: Estimate) -> Rate:
    return Rate(estimate.value, estimate.low, estimate.high, estimate.n)


def _leads(found: Sequence[Battle]) -> dict[tuple[str, str], Difference]:
    """Returns the candidate's win rate less a half of each pair; battles of one prompt are no independent ones."""
    decided = (battle for battle in found if battle.preference is not None)
    leads = {}
    for pair, group in grouped(decided, lambda battle: (battle.candidate, battle.opponent)).items():
        lead = np.array([float(battle.preference or 0.0) for battle in group]) - 0.5
        leads[pair] = paired_difference(lead, 0 * lead, [battle.prompt_key for battle in group])
    return leads


def _ranking(
    found: Sequence[Battle], players: Sequence[Player]
) -> tuple[tuple[RankedPlayer, ...], str | None, dict[tuple[str, str], Difference]]:
    """Ranks players by Bradley-Terry; two players need no ranking, and players that never met have none."""
    decided = [battle for battle in found if battle.preference is not None]
    candidates, opponents = ([getattr(battle, side) for battle in decided] for side in ("candidate", "opponent"))
    if len({*candidates, *opponents}) < 3:
        return (), None, {}
    if len(components(candidates, opponents)) > 1:
        return (), "the battles fall into groups that never met, so no ranking joins them", {}
    preferences = [float(battle.preference or 0.0) for battle in decided]
    try:
        ranking = fit(candidates, opponents, preferences, [battle.prompt_key for battle in decided])
    except ValueError as error:
        return (), plain(error, 200), {}
    notes = "; ".join(ranking.notices)
    for player in players:  # the notices know players by their weights hashes
        notes = notes.replace(player.id, player.name)
    rows = map(RankedPlayer, ranking.names, ranking.rating, ranking.low, ranking.high)
    return tuple(rows), notes or None, ranking.differences


def _spent(group: Sequence[Judgment], players: Sequence[Player]) -> tuple[JudgeCost, ...]:
    found = []
    for player in players:
        mine = [judgment for judgment in group if judgment.candidate == player.id]
        sums: dict[str, Any] = {}
        for name in ("prompt_tokens", "completion_tokens", "cost", "seconds"):
            counted = [value for judgment in mine if (value := getattr(judgment, name)) is not None]
            sums[name] = sum(counted) if counted else None
        if mine:
            found.append(JudgeCost(player.id, len(mine), **sums))
    return tuple(found)
