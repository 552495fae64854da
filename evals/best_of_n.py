"""Best-of-n: what the best of n answers by one reward is worth by that reward, and by another that it never saw.

From ``n`` answers to each held-out prompt come unbiased estimates for every ``k <= n``: the mean over all subsets of
``k`` answers, in closed form (Nakano et al. 2021, arXiv:2112.09332, appendix I; used by Gao et al. 2023,
arXiv:2210.10760, section 2). With the answers sorted by the proxy reward, the ``i``-th of them (from 1) is the best of
``C(i - 1, k - 1)`` of the ``C(n, k)`` subsets, so

    E[best of k] = sum_{i=k}^{n} C(i - 1, k - 1) / C(n, k) * value_(i)

where the value is the proxy reward or the gold reward of that answer. Of answers with the same proxy reward each is
chosen equally often. The KL divergence of best-of-k from the policy is ``log k - (k - 1) / k`` (Stiennon et al. 2020,
arXiv:2009.01325, appendix G.3), exact for rewards without ties, else an upper bound (Beirami et al. 2024,
arXiv:2401.01879).
"""

import json
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..chat_templates.errors import InputError
from ..data_tools.ask import Log, Query, Take, ask
from ..data_tools.files import hash_json, write_atomic, write_json
from ..data_tools.generate import Sampling, draw
from ..data_tools.progress import Say
from .errors import EvalError
from .heldout import prepared_rows
from .models import LoadedModel
from .records import parquet

if TYPE_CHECKING:
    import numpy as np

    from ..data_tools.spec import SourceSpec

FILE = "best_of_n.json"
SAMPLES = "samples.parquet"
_DRAWN = ".drawn.jsonl"
Term = Callable[..., list[float]]
Row = dict[str, Any]


def read_prompts(source: "SourceSpec", loaded: LoadedModel, limit: int | None) -> list[Row]:
    """Reads held-out prompts with their other columns, in order.

    Raises:
        DataError: They cannot be read.
    """
    if limit is not None:
        source = source.model_copy(update={"limit": limit})
    return prepared_rows(source, loaded, "prompt", max_length=None)[0]


def sample(
    folder: Path,
    loaded: LoadedModel,
    rows: Sequence[Row],
    n: int,
    how: Sampling,
    *,
    key: str,
    say: Say = lambda line: None,
) -> list[list[list[int]]]:
    """Draws ``n`` answers to each prompt; what an earlier call has drawn is read, not drawn again.

    Prompts of one length are batched, so that nothing is padded.

    Args:
        folder: Where the answers of finished batches are kept.
        loaded: The policy.
        rows: Each with a ``prompt``.
        n: Answers to each prompt.
        how: How they are drawn, so many at a time, at least ``n``; the prompts themselves shape no draw.
        key: A hash of all that decides the answers; batches of another key are not taken.
        say: Takes a line now and then.

    Returns:
        The token ids of each answer, its end token included if it has one, ``[prompts][n][tokens]``.

    Raises:
        EvalError: The checkpoint is no language model.
    """
    from ..data_tools.encode import TextEncoder

    loaded.needs_language_model("best_of_n")
    tokens = TextEncoder.of(loaded.tokenizer).prompts([row["prompt"] for row in rows], where="best_of_n")
    order = sorted(range(len(tokens)), key=lambda i: (len(tokens[i]), i))
    alike = [list(group) for _, group in groupby(order, key=lambda i: len(tokens[i]))]
    size = max(1, how.batch_size // n)
    batches = [group[at : at + size] for group in alike for at in range(0, len(group), size)]

    def backend(queries: Sequence[Query], done: Collection[str], take: Take) -> None:
        for number, batch in enumerate(batches):
            if all(queries[i].key in done for i in batch):
                continue
            asked = [tokens[i] for i in batch for _ in range(n)]
            seeds = [hash_json([how.seed * 1_000_003 + number, place]) for place in range(len(asked))]
            drawn = draw(loaded.model, loaded.tokenizer, asked, how, [int(seed, 16) % 2**31 for seed in seeds])
            answers = [ids for ids, _ in drawn]
            take({queries[i].key: answers[at * n : (at + 1) * n] for at, i in enumerate(batch)})
            say(f"best_of_n: {number + 1} of {len(batches)} batches of prompts sampled")

    queries = [Query(str(number), row["prompt"]) for number, row in enumerate(rows)]
    log = Log(folder / _DRAWN, lambda line: line["ids"], lambda ids: {"ids": ids}, header={"key": key})
    answers = ask(queries, backend, log)
    return [answers[query.key] for query in queries]


def rewards(
    term: Term, rows: Sequence[Row], answers: Sequence[Sequence[Sequence[int]]], tokenizer: Any
) -> "np.ndarray":
    """Scores every answer as a trainer's reward would.

    Args:
        term: A reward as TRL calls it: ``f(prompts=…, completions=…, completion_ids=…, **columns)``.
        rows: The prompts with their columns.
        answers: The token ids of each answer, ``[prompts][n][tokens]``.
        tokenizer: The policy's.

    Returns:
        float64 ``[prompts, n]``.

    Raises:
        EvalError: The term does not give one finite number for each answer.
    """
    import numpy as np

    values: list[float] = []
    for row, ids in zip(rows, answers, strict=True):
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        chat = not isinstance(row["prompt"], str)
        columns = {name: [value] * len(ids) for name, value in row.items() if name != "prompt"}
        values += term(
            prompts=[row["prompt"]] * len(ids),
            completions=[[{"role": "assistant", "content": text}] for text in texts] if chat else texts,
            completion_ids=[list(item) for item in ids],
            **columns,
        )
    found = np.array(values, dtype=np.float64)
    if len(found) != sum(map(len, answers)) or not np.isfinite(found).all():
        raise EvalError("a reward did not give one finite number for each answer", where=getattr(term, "__name__", ""))
    return found.reshape(len(rows), -1)


def best_of(proxy: "np.ndarray", values: "np.ndarray", k: int) -> "np.ndarray":
    """Returns the expected value of the answer that the proxy prefers among ``k``, for each prompt.

    Args:
        proxy: What chooses, ``[prompts, n]``.
        values: What the chosen answer is worth, ``[prompts, n]``; the proxy itself, or gold.
        k: How many answers are chosen among, from 1 to ``n``.

    Returns:
        ``[prompts]``: the mean over all subsets of ``k`` of the ``n`` answers, and over the ways to break ties.
    """
    import numpy as np

    n = proxy.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"the best of {k} of {n} answers")
    weights = np.array([math.comb(i - 1, k - 1) / math.comb(n, k) for i in range(1, n + 1)])
    found = np.empty(len(proxy))
    for row in range(len(proxy)):
        ranked, place, count = np.unique(proxy[row], return_inverse=True, return_counts=True)
        shared = np.bincount(place, weights=values[row], minlength=len(ranked)) / count
        found[row] = weights @ np.repeat(shared, count)
    return found


def kl(k: int) -> float:
    """Returns the KL divergence of best-of-``k`` from the policy, in nats: ``log k - (k - 1) / k``."""
    return math.log(k) - (k - 1) / k


def points(proxy: "np.ndarray", gold: "np.ndarray | None") -> list[dict[str, Any]]:
    """Returns the curve over ``k`` = 1, 2, 4, …, ``n``, with standard errors over prompts.

    Args:
        proxy: The reward that chooses, ``[prompts, n]``.
        gold: The reward that does not, of the same shape, or None.
    """
    prompts, n = proxy.shape
    found = []
    for k in sorted({n, *(2**power for power in range(n.bit_length()) if 2**power <= n)}):
        point: dict[str, Any] = {"n": k, "kl": kl(k)}
        for name, values in (("reward", proxy), ("gold", gold)):
            means = None if values is None else best_of(proxy, values, k)
            point[name] = None if means is None else float(means.mean())
            spread = None if means is None or prompts < 2 else float(means.std(ddof=1) / math.sqrt(prompts))
            point[f"{name}_stderr"] = spread
        found.append(point | {"prompts": prompts})
    return found


def run(
    folder: Path,
    loaded: LoadedModel,
    rows: Sequence[Row],
    n: int,
    how: Sampling,
    *,
    reward: Term,
    gold: Term | None,
    names: dict[str, Any],
    say: Say = lambda line: None,
) -> None:
    """Samples, scores and writes ``samples.parquet`` and ``best_of_n.json``; a killed call goes on where it was.

    Args:
        folder: Where they go.
        loaded: The policy.
        rows: Held-out prompts with their other columns.
        n: Answers to each prompt.
        how: How they are drawn; the KL is from the policy at this temperature.
        reward: What chooses among answers.
        gold: What does not, or None.
        names: ``policy``, ``reward`` and ``gold`` as the file names them, and the policy's hash as ``policy_model``.
        say: Takes a line now and then.

    Raises:
        InputError: ``n`` or the temperature makes no sense.
        EvalError: The policy is no language model, or a reward is no number.
    """
    if n < 2 or how.temperature <= 0:
        raise InputError(f"best_of_n with n {n} and temperature {how.temperature}", hint="n from 2, above 0")
    sampling = {"n": n} | {name: value for name, value in asdict(how).items() if name != "top_p"}
    key = hash_json([names.get("policy_model"), sampling, [row["prompt"] for row in rows]])
    answers = sample(folder, loaded, rows, n, how, key=key, say=say)
    proxy = rewards(reward, rows, answers, loaded.tokenizer)
    checked = None if gold is None else rewards(gold, rows, answers, loaded.tokenizer)
    flat = [(number, ids) for number, drawn in enumerate(answers) for ids in drawn]
    table: dict[str, Any] = {
        "prompt": [json.dumps(rows[number]["prompt"], ensure_ascii=False) for number, _ in flat],
        "answer": loaded.tokenizer.batch_decode([ids for _, ids in flat], skip_special_tokens=True),
        "tokens": [len(ids) for _, ids in flat],
        "reward": proxy.ravel(),
    }
    write_atomic(folder / SAMPLES, parquet(table if checked is None else {**table, "gold": checked.ravel()}))
    write_json(folder / FILE, {"schema": 1, **names, "sampling": sampling, "points": points(proxy, checked)})
    (folder / _DRAWN).unlink(missing_ok=True)
