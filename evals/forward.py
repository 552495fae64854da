"""A model run over many rows of tokens: longest first, in batches padded on the right, answers in the caller's order.

Perplexity, log-probabilities of answers and of labels, outputs of heads: whatever needs no text to be generated.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import EvalError
from .models import has_virtual_tokens, under_adapter
from .team import divided

if TYPE_CHECKING:
    import numpy as np
    import torch

T = TypeVar("T")
Rows = Sequence[Sequence[int]]

_LOGITS = 1 << 29  # logits of a batch at most, a GiB or two, if one row does not have more
_LOGIT_CHUNK = 1 << 25  # logits held in float32 at a time: 128 MiB


def run(
    model: Any,
    rows: Rows,
    batch_size: int,
    read: "Callable[[int, torch.Tensor], T]",
    *,
    first: Sequence[int] | None = None,
    columns: Mapping[str, Rows] | None = None,
    states: bool = False,
) -> list[T]:
    """Runs a model over rows, longest first, so that a batch that does not fit into memory fails at once.

    Several processes that score together share the batches out.

    Args:
        model: A causal language model or, where ``first`` is None and no states are asked for, a sequence classifier.
        rows: Token ids, ``[rows][tokens]``.
        batch_size: Rows at a time; fewer where their logits would be too many, one where a classifier has no pad token.
        read: Takes the number of a row and its logits, ``[tokens from first, vocabulary]`` or ``[outputs]``, or its
            last hidden states, ``[tokens, hidden]``.
        first: The place of the first token of each row whose prediction of the next is read.
        columns: Further inputs, a value for each token, such as ``token_type_ids``.
        states: Whether the last hidden states of a causal language model are read, and no logits made.

    Returns:
        What ``read`` made of each row, in the order of the rows.
    """
    import torch

    config = model.config.get_text_config()
    headed = first is None and not states
    body = _body(model) if states else model
    pad = config.pad_token_id if headed else 0
    keep = not headed and _takes_logits_to_keep(model)
    starts = [0] * len(rows) if first is None or not keep else first
    most = math.inf if headed or states else _LOGITS // getattr(config, "vocab_size", 1)
    cut = list(batches(rows, starts, 1 if pad is None else batch_size, most))

    def run_batch(batch: Sequence[int]) -> dict[int, T]:
        inputs = {"input_ids": _padded([rows[i] for i in batch], pad or 0)}
        inputs |= {name: _padded([values[i] for i in batch], 0) for name, values in (columns or {}).items()}
        options: dict[str, Any] = {}
        skipped = 0
        if headed:
            inputs["attention_mask"] = _padded([[1] * len(rows[i]) for i in batch], 0)
        else:
            # Right padding needs no mask: under causal attention no token sees what comes after it.
            options["use_cache"] = False
            skipped = min(starts[i] for i in batch)
        if skipped:
            options["logits_to_keep"] = inputs["input_ids"].shape[1] - skipped
        with torch.inference_mode():
            made = body(**{name: tensor.to(model.device) for name, tensor in inputs.items()}, **options)
            logits = made.last_hidden_state if states else made.logits
        found = {}
        for place, i in enumerate(batch):
            start = 0 if first is None else first[i] - skipped
            found[i] = read(i, logits[place] if headed else logits[place, start : len(rows[i]) - skipped])
        return found

    found: dict[int, T] = {}
    for part in divided([sum(len(rows[i]) for i in batch) for batch in cut], lambda number: run_batch(cut[number])):
        found |= part
    return [found[i] for i in range(len(rows))]


def _body(model: Any) -> Any:
    """Returns what makes the hidden states that a model's head reads, its adapters with it."""
    if has_virtual_tokens(model):  # which only the whole model puts before a text
        return lambda **inputs: _States(model(**inputs, output_hidden_states=True).hidden_states[-1])
    return under_adapter(model).base_model


@dataclass(frozen=True)
class _States:
    last_hidden_state: "torch.Tensor"


def batches(rows: Rows, starts: Sequence[int], size: int, most: float = math.inf) -> Iterator[list[int]]:
    """Cuts rows, longest first, into batches.

    Args:
        rows: Token ids, ``[rows][tokens]``.
        starts: The first place of each row that counts.
        size: Rows of a batch at most.
        most: Places of a batch at most, padding included, behind the first start of its rows; a row may have more.

    Yields:
        The numbers of a batch's rows.
    """
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), starts[i])):
        places = len(rows[batch[0]]) - min(starts[k] for k in (*batch, i)) if batch else 0
        if batch and (len(batch) == size or places * (len(batch) + 1) > most):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _padded(rows: Rows, fill: int) -> "torch.Tensor":
    import torch

    made = torch.full((len(rows), max(map(len, rows))), fill)
    for place, row in enumerate(rows):
        made[place, : len(row)] = torch.as_tensor(row)
    return made


def _takes_logits_to_keep(model: Any) -> bool:
    """Says whether a model can be told to compute the last logits only."""
    import inspect

    return "logits_to_keep" in inspect.signature(under_adapter(model).forward).parameters


def outputs(model: Any, rows: Sequence[Mapping[str, Sequence[int]]], batch_size: int, *, where: str) -> "np.ndarray":
    """Runs a headed model over rows.

    Args:
        model: A sequence classifier.
        rows: ``input_ids``, and ``token_type_ids`` for models that tell two texts apart by them.
        batch_size: Rows at a time.
        where: The task, for errors.

    Returns:
        Logits, float64 ``[rows, outputs]``.

    Raises:
        EvalError: A logit is not finite.
    """
    import numpy as np

    typed = bool(rows) and "token_type_ids" in rows[0]
    columns = {"token_type_ids": [row["token_type_ids"] for row in rows]} if typed else None
    ids = [row["input_ids"] for row in rows]
    values = np.stack(run(model, ids, batch_size, lambda _, logits: logits.double().cpu().numpy(), columns=columns))
    return _finite(values, "the outputs are", where)


def token_sums(model: Any, rows: Rows, first: Sequence[int], batch_size: int) -> tuple["np.ndarray", "np.ndarray"]:
    """Scores the tokens of each row from one on, which is never the first, given those before.

    Args:
        model: A causal language model.
        rows: Token ids, ``[rows][tokens]``.
        first: The place of the first token of each row that is scored.
        batch_size: Rows at a time.

    Returns:
        For each row the sum over its scored tokens of the negative log-likelihood, and of the entropy of the model's
        prediction, in nats, float64 ``[rows]``.

    Raises:
        EvalError: A sum is not finite.
    """
    found = _token_sums(model, rows, first, batch_size, entropy=True)
    return found[:, 0], found[:, 1]


def negative_log_likelihoods(model: Any, rows: Rows, first: Sequence[int], batch_size: int) -> "np.ndarray":
    """Scores tokens as :func:`token_sums` does, in half the time, without the entropy.

    Returns:
        For each row the sum over its scored tokens of the negative log-likelihood in nats, float64 ``[rows]``.
    """
    return _token_sums(model, rows, first, batch_size, entropy=False)[:, 0]


def _token_sums(model: Any, rows: Rows, first: Sequence[int], batch_size: int, *, entropy: bool) -> "np.ndarray":
    import numpy as np
    import torch

    def read(i: int, logits: "torch.Tensor") -> tuple[float, float]:
        targets = torch.as_tensor(rows[i][first[i] :], device=logits.device)
        return _sums(logits[:-1], targets, entropy=entropy)

    found = np.array(run(model, rows, batch_size, read, first=[place - 1 for place in first]), dtype=np.float64)
    return _finite(found, "the log-likelihood is").reshape(-1, 2)


def _finite(values: "np.ndarray", what: str, where: str | None = None) -> "np.ndarray":
    """Returns the values; raises an EvalError where NaN or infinity would pass for an answer."""
    import numpy as np

    if not np.isfinite(values).all():
        raise EvalError(f"{what} not finite", where=where, hint="do the weights hold NaN?")
    return values


def weighted_means(model: Any, rows: Rows, batch_size: int) -> "np.ndarray":
    """Embeds rows as the mean of their last hidden states, each weighted by its place.

    The i-th of n tokens weighs i / (1 + ... + n) (SGPT, Muennighoff 2022, arXiv:2202.08904), so that
    later tokens, which have seen more, count more. Padding has no part in it.

    Args:
        model: A causal language model.
        rows: Token ids, ``[rows][tokens]``.
        batch_size: Rows at a time.

    Returns:
        Unit vectors, float32 ``[rows, hidden]``.

    Raises:
        EvalError: One is not finite.
    """
    import numpy as np
    import torch

    def read(_: int, states: "torch.Tensor") -> "np.ndarray":
        weights = torch.arange(1, len(states) + 1, device=states.device, dtype=torch.float64)
        mean = (states.double() * (weights / weights.sum())[:, None]).sum(0)
        return (mean / mean.norm().clamp(min=1e-30)).float().cpu().numpy()

    return _finite(np.stack(run(model, rows, batch_size, read, states=True)), "the hidden states are")


def _sums(logits: "torch.Tensor", targets: "torch.Tensor", *, entropy: bool) -> tuple[float, float]:
    """Sums negative log-likelihood and entropy over ``[tokens, vocabulary]`` logits, in nats, a part at a time."""
    nll = uncertainty = 0.0
    rows = max(1, _LOGIT_CHUNK // logits.shape[-1])
    for at in range(0, len(targets), rows):
        part, wanted = logits[at : at + rows].float(), targets[at : at + rows, None]
        if not entropy:
            nll += (part.logsumexp(-1) - part.gather(-1, wanted)[:, 0]).double().sum().item()
            continue
        log_p = part.log_softmax(-1)
        nll -= log_p.gather(-1, wanted).double().sum().item()
        p = log_p.exp()
        uncertainty -= (p * log_p.masked_fill(p == 0, 0.0)).sum(-1).double().sum().item()  # 0 log 0 = 0
    return nll, uncertainty
