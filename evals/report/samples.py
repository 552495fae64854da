"""The sample browser: prompts with all answers, items of tasks on which rows differ, and the Parquet file of all."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..answers import Answer
from ..checkpoints import FINAL
from ..judging.judgments import Judgment
from ..records import parquet
from ..sequences import grouped
from .board import AnsweredPrompt, BoardRow, Column, Leaderboard, PlayerAnswer
from .items import Items, ItemsOf, samples_path
from .text import Record

FILE = "leaderboard-samples.parquet"
MOST = 6
"""Items of a task that the page shows."""
_ROWS = 8  # rows whose answers to items are read
_PROMPT = 900  # characters of an item's end, where the question is
_COLUMNS = ("prompt", "target", "options", "filtered", "doc_id", "doc_hash", "filter")


def gather(
    answers: Iterable[tuple[str, str, Sequence[Answer]]], judgments: Sequence[Judgment]
) -> tuple[AnsweredPrompt, ...]:
    """Joins the answers of all players to each prompt with what was said of them.

    Args:
        answers: Model hash, prompt set and answers of each row, in the order of the rows.
        judgments: All that may be shown.
    """
    given: dict[tuple[str, str], dict[tuple[str, str], PlayerAnswer]] = {}
    for player, task, some in answers:
        for answer in some:
            mine = given.setdefault((task, answer.prompt_key), {})
            mine.setdefault((player, answer.key), PlayerAnswer(player, answer))
    said = grouped(judgments, lambda judgment: (judgment.task, judgment.prompt_key))
    return tuple(AnsweredPrompt(key[0], tuple(mine.values()), tuple(said.get(key, ()))) for key, mine in given.items())


def spread(samples: Sequence[AnsweredPrompt], most: int) -> list[AnsweredPrompt]:
    """Returns at most ``most`` prompts of each set, evenly spread over it, whatever was answered."""
    found = []
    for task in dict.fromkeys(sample.task for sample in samples):
        mine = [sample for sample in samples if sample.task == task]
        count = min(most, len(mine))
        found += [mine[i * len(mine) // count] for i in range(count)]
    return found


def to_parquet(board: Leaderboard) -> bytes:
    """Packs every answer as a row, with its prompt and, as JSON, what was said of it as the candidate."""
    judged = {player.id: player.name for judging in board.judgings for player in judging.players}
    names = judged | {model: player.name for model, player in board.players().items()}
    stamps = {judging.version: judging.stamp for judging in board.judgings}
    rows = []
    for sample in board.samples:
        for given in sample.answers:
            answer = given.answer
            said = [_verdict(judgment, stamps) for judgment in sample.judgments_of(given)]
            rows.append(
                {
                    "prompt_set": sample.task,
                    "prompt_id": answer.prompt_id,
                    "prompt_key": answer.prompt_key,
                    "category": answer.category,
                    "turns": list(answer.turns),
                    "references": None if answer.references is None else list(answer.references),
                    "model": names.get(given.player, given.player),
                    "model_hash": given.player,
                    "sample": answer.sample,
                    "answers": list(answer.texts),
                    "raw": list(answer.raw),
                    "finish": list(answer.finish),
                    "tokens": answer.completion_tokens,
                    "seconds": answer.seconds,
                    "judgments": json.dumps(said, ensure_ascii=False),
                }
            )
    return parquet({name: [row[name] for row in rows] for name in rows[0]})


def _verdict(judgment: Judgment, stamps: Mapping[str, str | None]) -> dict[str, Any]:
    names = ("candidate", "opponent", "sample", "order", "repeat", "status", "preference", "rating", "reason")
    version = judgment.judge_version
    said = {"judge": judgment.judge, "version": version, "stamp": stamps.get(version)}
    return said | {name: getattr(judgment, name) for name in names}


# --- items of lm-eval's tasks: those on which rows differ most, since those tell them apart ---


def task_items(board: Leaderboard, items: ItemsOf, folders: Mapping[str, Path]) -> tuple[AnsweredPrompt, ...]:
    """Returns, for each task with samples of lm-eval, a few items with what the last row of each run made of them.

    An item that several tasks share stands under the one with the fewest items, which says most of what it is.

    Args:
        board: With its rows and columns.
        items: The items behind a figure.
        folders: Of the runs, by the run's id.
    """
    rows = _rows_shown(board)
    figures = {column.id: [f for row in rows if (f := row.figure(column))] for column in board.columns}
    sizes = {column: max((figure.n or 0 for figure in mine), default=0) for column, mine in figures.items()}
    found: dict[tuple[str, ...], tuple[int, AnsweredPrompt]] = {}
    for place, column in enumerate(board.columns):
        if column.judge is None and not column.clean and not column.group:
            for sample in _of_column(column, rows, items, folders):
                found.setdefault(sample.prompt.turns, (place, sample))
                if sizes[column.id] < sizes[board.columns[found[sample.prompt.turns][0]].id]:
                    found[sample.prompt.turns] = (place, sample)
    return tuple(sample for _, sample in sorted(found.values(), key=lambda pair: pair[0]))


def _rows_shown(board: Leaderboard) -> list[BoardRow]:
    """Returns the baseline and the last row of each run, each model once."""
    last = {}
    for row in board.rows:
        if row.cells and row.model_hash and (row.run not in last or FINAL not in last[row.run].names):
            last[row.run] = row
    wanted = {row.id for row in last.values()} | {board.baseline}
    once: dict[str, BoardRow] = {}
    for row in board.rows:
        if row.id in wanted and row.model_hash:
            once.setdefault(row.model_hash, row)
    return list(once.values())[:_ROWS]


def _of_column(
    column: Column, rows: Sequence[BoardRow], items: ItemsOf, folders: Mapping[str, Path]
) -> list[AnsweredPrompt]:
    known = [(row, held) for row in rows if (held := items(row, column)) is not None]
    same = [(row, held) for row, held in known if held.keys == known[0][1].keys]
    if not same:
        return []
    differ = np.stack([held.values for _, held in same]).std(axis=0)
    chosen = sorted(place for place in np.argsort(-differ, kind="stable")[:MOST].tolist() if differ[place] > 0)
    samples: dict[str, AnsweredPrompt] = {}
    for row, held in same:
        path = samples_path(folders[row.run], row.cells[column.id].score)
        for place, record in _records(path, held, chosen, column) if path and chosen else ():
            key = held.keys[place]
            sample = samples.get(key, AnsweredPrompt(column.task, ()))
            mark = f"{column.primary.name} {float(held.values[place]):g}"
            given = PlayerAnswer(row.model_hash or "", _answer(key, record, column), mark)
            samples[key] = replace(sample, answers=(*sample.answers, given))
    return list(samples.values())


def _records(path: Path, held: Items, chosen: Sequence[int], column: Column) -> list[tuple[int, Record]]:
    """Reads the chosen items of one row; nothing where the file is of another kind."""
    import pyarrow
    import pyarrow.parquet

    try:
        if not set(_COLUMNS) <= set(pyarrow.parquet.read_schema(path).names):
            return []
        table = pyarrow.parquet.read_table(path, columns=list(_COLUMNS))
        ids, hashes, filters = (table.column(name).to_pylist() for name in ("doc_id", "doc_hash", "filter"))
        wanted = column.primary.name.partition(",")[2]
        places = {f"{ids[i]}:{hashes[i]}": i for i, used in enumerate(filters) if used == wanted or not wanted}
        rows = table.take([places[held.keys[place]] for place in chosen]).to_pylist()
    except (OSError, pyarrow.ArrowException, ValueError, TypeError, KeyError):
        return []
    return list(zip(chosen, rows, strict=True))


def _answer(key: str, record: Record, column: Column) -> Answer:
    """Returns an item as a prompt, with what a row answered."""
    prompt, text = str(record["prompt"]), _text(record, column.primary.name)
    shown = f"… {prompt[-_PROMPT:].lstrip()}" if len(prompt) > _PROMPT else prompt
    # The right answer is the target, or the option of which it is the number.
    target, options = str(record["target"]).strip(), record["options"] or []
    right = str(options[int(target)]).strip() if target.isdecimal() and int(target) < len(options) else target
    identity, references = key.partition(":")[0], (right,) if right else None
    return Answer(identity, key, None, (shown,), references, 0, (text,), (text,), (), None, None, None)


def _text(record: Record, metric: str) -> str:
    """Returns what a row answered: the option that the metric takes for it, or the text that the metrics saw."""
    options = [str(option) for option in record["options"] or []]
    try:
        seen = json.loads(record["filtered"])
    except (ValueError, TypeError):
        return str(record["filtered"])
    if options and isinstance(seen, list) and len(seen) == len(options):
        firsts = [part[0] if isinstance(part, list) and part else part for part in seen]
        scores = [float(score) for score in firsts if isinstance(score, int | float)]
        if len(scores) == len(options):
            return _likeliest(options, scores, metric)
    if isinstance(seen, list) and len(seen) == 1:
        seen = seen[0]
    return seen if isinstance(seen, str) else json.dumps(seen, ensure_ascii=False)


def _likeliest(options: Sequence[str], scores: Sequence[float], metric: str) -> str:
    """Returns the option of the highest log-likelihood, for ``acc_norm`` by character; of one option its own."""
    if len(options) == 1:
        return f"log-likelihood of the reference: {scores[0]:.4g}"
    texts = [option.strip() for option in options]
    if metric.startswith("acc_norm"):
        scores = [score / max(1, len(text)) for score, text in zip(scores, texts, strict=True)]
    return texts[scores.index(max(scores))]
