"""How the page shows what judges said: ranking, win matrix, audit, what it all took, and the answers."""

import math
from collections.abc import Sequence
from typing import Any

from ..curves import interval_bar
from ..judging.audit import AuditRow
from ..judging.judgments import WITHOUT_VERDICT
from .judged_model import Given, Judging, Match, Player, Ranked, Said, Sample, Share
from .model import Leaderboard
from .samples import of, spread
from .sections import GLYPHS, SHADES, p_text, row_view
from .text import clean, plain

TEXT = 1600
"""Characters of an answer's turn that the page shows."""
_PROMPT = 1200
_REASON = 400
_PLAYERS = 16  # of the largest matrix that is drawn
_PAIRS = 40  # of players that the audit's table names


def judging_view(leaderboard: Leaderboard, judging: Judging) -> dict[str, Any]:
    """Returns one judge's part of the page."""
    names = {player.id: _player(leaderboard, player) for player in judging.players}
    return {
        "judge": plain(judging.judge, 60),
        "task": plain(judging.task, 60),
        "model": plain(judging.model, 80),
        "backend": plain(judging.backend, 20),
        "version": plain(judging.version[:8], 8),
        "stamp": judging.stamp,
        "prompts": judging.prompts,
        "players": list(names.values()),
        "matrix": _matrix(judging, names) if len(judging.players) <= _PLAYERS else None,
        "left_out": _left_out(judging),
        "ranking": _ranking(judging, names),
        "ranking_note": plain(judging.ranking_note, 600) if judging.ranking_note else "",
        "audit": [_audit(row) for row in judging.audit[: _PAIRS + 1]],
        "spent": [_spent(item, names[item.candidate]) for item in judging.spent],
    }


def _left_out(judging: Judging) -> str:
    """Says what of a judge with many players is not on the page."""
    parts = []
    if len(judging.players) > _PLAYERS:
        parts.append(f"the win rates of {len(judging.matches)} pairs of {len(judging.players)} players")
    if len(judging.audit) > _PAIRS + 1:
        parts.append(f"the audit of {len(judging.audit) - _PAIRS - 1} pairs")
    return f"In leaderboard.json alone: {'; '.join(parts)}." if parts else ""


def _player(leaderboard: Leaderboard, player: Player) -> dict[str, Any]:
    if player.row is None:
        return {"id": "", "label": plain(player.name, 80), "color": None}
    return row_view(leaderboard, leaderboard.row(player.row))


def _ranking(judging: Judging, names: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rated = [row.rating for row in judging.ranking if math.isfinite(row.rating)]
    ends = [end for row in judging.ranking for end in (row.low, row.high) if end is not None] + rated or [0.0]
    start, end = min(ends), max(ends)
    return [
        {
            "player": names[row.player],
            "tier": row.tier,
            "ranks": str(row.rank_low) if row.rank_low == row.rank_high else f"{row.rank_low} to {row.rank_high}",
            "rating": f"{row.rating:.0f}" if math.isfinite(row.rating) else "beyond any",
            "interval": _bounds(row),
            "bar": _rating_bar(row, start, end),
        }
        for row in judging.ranking
    ]


def _rating_bar(row: Ranked, start: float, end: float) -> str:
    """Draws a rating; where nothing bounds it, its bar reaches the edge."""
    if not math.isfinite(row.rating):
        return ""
    low, high = (start if row.low is None else row.low, end if row.high is None else row.high)
    known = row.low is not None or row.high is not None
    return interval_bar(row.rating, low if known else None, high if known else None, start, end)


def _bounds(row: Ranked) -> str:
    if row.low is None and row.high is None:
        return "no interval"
    if row.low is None:
        return f"at most {row.high:.0f}"
    return f"at least {row.low:.0f}" if row.high is None else f"{row.low:.0f} to {row.high:.0f}"


def _matrix(judging: Judging, names: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Returns the matrix of win rates, each match in both its places; None where nobody met anybody."""
    met = {name for match in judging.matches for name in (match.candidate, match.opponent)}
    players = [player.id for player in judging.players if player.id in met]
    if not players:
        return None
    known = {(match.candidate, match.opponent): match for match in judging.matches}
    columns = [name for name in players if any(name in (m.opponent, m.candidate) for m in judging.matches)]
    lines = []
    for name in players:
        cells = []
        for other in columns:
            match, turned = known.get((name, other)), known.get((other, name))
            cells.append(match_view(match) if match else match_view(turned, turned=True) if turned else None)
        lines.append({"player": names[name], "cells": cells, "id": name})
    return {"columns": [names[name] for name in columns], "lines": lines}


def match_view(match: Match, *, turned: bool = False) -> dict[str, Any]:
    """Returns a match as text, from the side of the candidate or, turned, of the opponent."""
    low, high = (1 - match.high, 1 - match.low) if turned else (match.low, match.high)
    wins = _turn(match.wins) if turned else match.wins
    controlled = match.controlled and (_turn(match.controlled) if turned else match.controlled)
    side = {"better": "lost" if turned else "won", "worse": "won" if turned else "lost"}.get(match.verdict, "even")
    return {
        "rate": percent(wins.value),
        "interval": _interval(wins),
        "n": match.battles,
        "ties": match.ties,
        "controlled": f"{percent(controlled.value)} ({_interval(controlled)})" if controlled else "",
        "note": plain(match.note, 160) if match.note else "",
        "bounds": f"{percent(low)} to {percent(high)}" if match.missing else "",
        "missing": match.missing,
        "side": side,
        "glyph": {"won": GLYPHS["better"], "lost": GLYPHS["worse"]}.get(side, ""),
        "p": p_text(match.p),
        "shade": 0 if side == "even" else min(SHADES, round(SHADES * 2 * abs(wins.value - 0.5))),
        "turned": turned,
    }


def _turn(share: Share) -> Share:
    low = None if share.high is None else 1 - share.high
    high = None if share.low is None else 1 - share.low
    return Share(1 - share.value, low, high, share.n)


def percent(value: float) -> str:
    """Returns a share times 100 with one decimal."""
    return f"{100 * value:.1f}"


def _interval(share: Share) -> str:
    if share.low is None or share.high is None:
        return "no interval"
    return f"{percent(share.low)}–{percent(share.high)}"


def _audit(row: AuditRow) -> dict[str, Any]:
    flips, slope, first, nulls = row.flip_rate, row.length_slope, row.first_wins, row.null_wins
    kinds = {kind: getattr(row, kind) for kind in WITHOUT_VERDICT}
    agreements = [
        {
            "other": plain(other.other, 40),
            "kappa": f"{other.kappa.value:.2f}",
            "interval": _ends(other.kappa, "{:.2f}"),
            "n": other.n,
            "contradictions": other.contradictions,
            "observed": percent(other.observed),
            "chance": percent(other.chance),
        }
        for other in row.agreements
    ]
    return {
        "sum": row.is_sum,
        "candidate": plain(row.candidate_name, 60),
        "opponent": plain(row.opponent_name, 60),
        "n": row.n,
        "prompts": row.prompts,
        "flips": f"{percent(flips.value)} ({percent(flips.low)}–{percent(flips.high)}) of {flips.n}" if flips else "",
        "first": f"{percent(first.value)} ({_ends(first, '{:.1f}', 100)})" if first else "",
        "missing": f"{row.missing.count} of {row.missing.n}",
        "kinds": ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count),
        "bounds": f"{percent(row.bounds[0])} to {percent(row.bounds[1])}" if row.bounds and row.missing.count else "",
        "slope": f"{slope.value:+.2f} ({_ends(slope, '{:+.2f}')})".replace("-", "−") if slope else "",
        "nulls": f"{percent(nulls.value)} of {nulls.n}" if nulls else "",
        "agreements": agreements,
        "warnings": [plain(warning, 400) for warning in row.warnings],
    }


def _ends(estimate: Any, form: str, scale: float = 1) -> str:
    if estimate.low is None or estimate.high is None:
        return "no interval"
    return f"{form.format(scale * estimate.low)} to {form.format(scale * estimate.high)}"


def _spent(spent: Any, player: dict[str, Any]) -> dict[str, Any]:
    tokens = [None if count is None else f"{count:,}" for count in (spent.prompt_tokens, spent.completion_tokens)]
    return {
        "player": player,
        "calls": f"{spent.calls:,}",
        "read": tokens[0] or "not counted",
        "written": tokens[1] or "not counted",
        "cost": "no prices" if spent.cost is None else f"{spent.cost:.4g}",
        "seconds": "not timed" if spent.seconds is None else f"{spent.seconds / spent.calls:.2f}",
    }


def usage_view(leaderboard: Leaderboard) -> list[dict[str, Any]]:
    """Returns what each row's answers came to."""
    return [
        {
            "row": row_view(leaderboard, leaderboard.row(item.row)),
            "task": plain(item.task, 60),
            "answers": item.answers,
            "characters": f"{item.characters:,.0f}",
            "tokens": "not counted" if item.tokens is None else f"{item.tokens:,.0f}",
            "stopped": percent(item.stopped),
            "empty": item.empty,
            "seconds": "not timed" if item.seconds is None else f"{item.seconds:.3g}",
            "settings": plain(item.settings, 200) or "not recorded",
        }
        for item in leaderboard.usage
    ]


def samples_view(leaderboard: Leaderboard, most: int) -> dict[str, Any]:
    """Returns some prompts of each set with all answers and what was said of them.

    Args:
        leaderboard: Whose samples to show.
        most: Prompts of a set.
    """
    prompts = spread(leaderboard.samples, most)
    items = leaderboard.items if most else ()
    shown = [*prompts, *items]
    names: dict[str, dict[str, Any]] = {}
    for player in (player for judging in leaderboard.judgings for player in judging.players):
        names[player.id] = _player(leaderboard, player)
    for row in leaderboard.rows:
        if row.model_hash:
            names.setdefault(row.model_hash, row_view(leaderboard, row))
    return {
        "total": len(leaderboard.samples),
        "shown": len(prompts),
        "items": len(items),
        "sets": list(dict.fromkeys(plain(sample.task, 60) for sample in shown)),
        "categories": sorted({plain(sample.category, 40) for sample in shown if sample.category}),
        "players": [
            view
            for weights, view in names.items()
            if view["id"] and any(answer.player == weights for sample in shown for answer in sample.answers)
        ],
        "prompts": [_sample(sample, i, names) for i, sample in enumerate(shown)],
    }


def _sample(sample: Sample, place: int, names: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": f"s{place + 1}",
        "task": plain(sample.task, 60),
        "prompt_id": plain(sample.prompt_id, 60),
        "category": plain(sample.category or "", 40),
        "head": plain(sample.turns[0] if sample.turns else "", 140),
        "turns": [_cut(turn, _PROMPT) for turn in sample.turns],
        "references": [_cut(text, _PROMPT) for text in sample.references or ()],
        "answers": [_answer(sample, answer, names) for answer in sample.answers],
    }


def _answer(sample: Sample, answer: Given, names: dict[str, dict[str, Any]]) -> dict[str, Any]:
    characters = sum(len(text) for text in answer.texts)
    facts = [answer.mark or f"{characters:,} characters"]
    facts += [f"{answer.tokens:,} tokens"] if answer.tokens is not None else []
    facts += ["cut off at its length limit"] if "length" in answer.finish else []
    facts += [f"draw {answer.sample + 1}"] if answer.sample else []
    return {
        "player": names[answer.player],
        "texts": [_cut(text, TEXT) for text in answer.texts],
        "thought": answer.raw != answer.texts,
        "facts": ", ".join(facts),
        "said": _said(of(sample, answer), names),
    }


def _cut(text: str, length: int) -> dict[str, Any]:
    """Cuts a text for display, keeping its lines."""
    return {"text": clean(text[:length]), "left": max(0, len(text) - length)}


def _said(said: Sequence[Said], names: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns one line for each judge and opponent, with each order's verdict and reason under it."""
    groups: dict[tuple[str, str | None], list[Said]] = {}
    for item in said:
        groups.setdefault((item.version, item.opponent), []).append(item)
    return [
        {
            "judge": plain(group[0].judge, 40),
            "stamp": group[0].stamp,
            "opponent": names.get(opponent or ""),
            "outcome": _outcome(group),
            "parts": [
                {"order": _ORDERS[item.order], "verdict": _verdict(item), "reason": plain(item.reason, _REASON)}
                for item in group
            ],
        }
        for (_, opponent), group in groups.items()
    ]


_ORDERS = {"candidate-first": "shown first", "candidate-second": "shown second", "alone": "alone"}


def _verdict(said: Said) -> str:
    if said.rating is not None:
        return f"{said.rating:g}"
    if said.preference is None:
        return said.status
    return {1.0: "won", 0.0: "lost", 0.5: "tied"}.get(said.preference, f"preferred {said.preference:.2f}")


def _outcome(group: Sequence[Said]) -> str:
    """Returns what both orders come to together."""
    ratings = [item.rating for item in group if item.rating is not None]
    if ratings:
        return f"{sum(ratings) / len(ratings):g}"
    known = [item.preference for item in group if item.preference is not None]
    if not known:
        return "no verdict"
    sides = {(preference > 0.5) - (preference < 0.5) for preference in known}
    if sides >= {1, -1}:
        return "turned with the order: a tie"
    return "won" if 1 in sides and 0 not in sides else "lost" if -1 in sides and 0 not in sides else "tied"
