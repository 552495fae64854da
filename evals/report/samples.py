"""The sample browser: which prompts the page shows, and the Parquet file beside it that holds them all."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from ..answers import Answer
from ..judging.judgments import Judgment
from ..records import parquet
from .judged_model import Given, Player, Said, Sample

FILE = "leaderboard-samples.parquet"


def gather(
    answers: Iterable[tuple[str, str, Sequence[Answer]]],
    judgments: Sequence[Judgment],
    players: Mapping[str, Player],
    stamps: Mapping[str, str],
) -> tuple[Sample, ...]:
    """Joins the answers of all players to each prompt with what was said of them.

    Args:
        answers: Weights hash, prompt set and answers of each row, in the order of the rows.
        judgments: All that may be shown.
        players: Those with a row, by weights hash.
        stamps: What a reader must know of a judge, by its version.
    """
    samples: dict[tuple[str, str], Sample] = {}
    given: dict[tuple[str, str], list[Given]] = {}
    for weights, task, some in answers:
        for answer in some:
            key = (task, answer.prompt_key)
            if key not in samples:
                samples[key] = _prompt(task, answer)
            mine = given.setdefault(key, [])
            if weights in players and not any((a.player, a.key) == (weights, answer.key) for a in mine):
                mine.append(_given(weights, answer))
    said: dict[tuple[str, str], list[Said]] = {}
    for judgment in judgments:
        said.setdefault((judgment.task, judgment.prompt_key), []).append(_said(judgment, stamps))
    return tuple(
        replace(sample, answers=tuple(given.get(key, ())), said=tuple(said.get(key, ())))
        for key, sample in samples.items()
    )


def _prompt(task: str, answer: Answer) -> Sample:
    return Sample(task, answer.prompt_id, answer.prompt_key, answer.category, answer.turns, answer.references, (), ())


def _given(weights: str, answer: Answer) -> Given:
    return Given(
        weights,
        answer.sample,
        answer.key,
        answer.texts,
        answer.raw,
        answer.finish,
        answer.completion_tokens,
        answer.seconds,
    )


def _said(judgment: Judgment, stamps: Mapping[str, str]) -> Said:
    return Said(
        judgment.judge,
        judgment.judge_version,
        stamps.get(judgment.judge_version),
        judgment.candidate,
        judgment.opponent,
        judgment.sample,
        judgment.order,
        judgment.repeat,
        judgment.status,
        judgment.preference,
        judgment.rating,
        judgment.reason,
    )


def spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Returns at most ``most`` prompts of each set, evenly spread over it, whatever was answered."""
    found = []
    for task in dict.fromkeys(sample.task for sample in samples):
        mine = [sample for sample in samples if sample.task == task]
        count = min(most, len(mine))
        found += [mine[i * len(mine) // count] for i in range(count)]
    return found


def to_parquet(samples: Sequence[Sample], names: Mapping[str, str]) -> bytes:
    """Packs every answer as a row, with its prompt and, as JSON, what was said of it as the candidate.

    Args:
        samples: All prompts.
        names: Of players, by weights hash.
    """
    rows = [(sample, answer) for sample in samples for answer in sample.answers]
    return parquet(
        {
            "prompt_set": [sample.task for sample, _ in rows],
            "prompt_id": [sample.prompt_id for sample, _ in rows],
            "prompt_key": [sample.prompt_key for sample, _ in rows],
            "category": [sample.category for sample, _ in rows],
            "turns": [list(sample.turns) for sample, _ in rows],
            "references": [None if s.references is None else list(s.references) for s, _ in rows],
            "model": [names.get(answer.player, answer.player) for _, answer in rows],
            "model_hash": [answer.player for _, answer in rows],
            "sample": [answer.sample for _, answer in rows],
            "answers": [list(answer.texts) for _, answer in rows],
            "raw": [list(answer.raw) for _, answer in rows],
            "finish": [list(answer.finish) for _, answer in rows],
            "tokens": [answer.tokens for _, answer in rows],
            "seconds": [answer.seconds for _, answer in rows],
            "judgments": [
                json.dumps([asdict(said) for said in of(sample, answer)], ensure_ascii=False) for sample, answer in rows
            ],
        }
    )


def of(sample: Sample, answer: Given) -> list[Said]:
    """Returns what was said of an answer as the candidate's."""
    return [said for said in sample.said if (said.candidate, said.sample) == (answer.player, answer.sample)]
