"""The losses of distillation, over tokens whose logits are made a few at a time."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

# From the student's logits [n, V] and the tokens they belong to, to the divergence of each token [n].
Divergence = Callable[[torch.Tensor, slice], torch.Tensor]


IGNORED = -100  # the label of a token without loss


def predicting(hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Picks the places whose next token carries loss.

    Args:
        hidden: [B, L, H].
        labels: [B, L], not shifted.

    Returns:
        Their hidden states [N, H] and next tokens [N].
    """
    following = labels[:, 1:]
    kept = following != IGNORED
    return hidden[:, :-1][kept], following[kept]


class Sums(NamedTuple):
    """Sums over tokens, each a scalar.

    Attributes:
        cross_entropy: -log p of the next token, in nats.
        divergence: KL(teacher || student) at the temperature, in nats, not yet times its square.
        correct: How often the likeliest token was the next one.
        by_source: The cross entropy of each source's tokens, without a gradient, [S]; None if they were not told apart.
    """

    cross_entropy: torch.Tensor
    divergence: torch.Tensor
    correct: torch.Tensor
    by_source: torch.Tensor | None = None


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(q || p) of the teacher's q = softmax(teacher / T) and the student's p = softmax(student / T).

    Hinton et al. 2015 (arXiv:1503.02531), section 2: soft targets at a temperature.

    Args:
        student: Logits [n, V].
        teacher: Logits [n, V].
        temperature: T.

    Returns:
        Nats, [n].
    """
    log_p = functional.log_softmax(student / temperature, dim=-1)
    log_q = functional.log_softmax(teacher / temperature, dim=-1)
    return functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)


def top_k(teacher: torch.Tensor, k: int, temperature: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns a teacher's k likeliest tokens, their log-probabilities, and that of all others together.

    Args:
        teacher: Logits [n, V].
        k: At most V.
        temperature: Divides the logits first.

    Returns:
        Ids [n, k], log q [n, k] and log of the remaining mass [n], which is -inf for k = V.
    """
    log_q = functional.log_softmax(teacher / temperature, dim=-1)
    values, ids = log_q.topk(k, dim=-1)
    return ids, values, log_q.scatter(-1, ids, -torch.inf).logsumexp(-1)


def top_k_divergence(
    student: torch.Tensor, ids: torch.Tensor, log_q: torch.Tensor, log_rest: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(q || p) over k + 1 outcomes: the teacher's k likeliest tokens, and all others as one.

    sum_i q_i (log q_i - log p_i) over the k tokens, plus r (log r - log s) with the rest of the mass r of the teacher
    and s of the student. Nothing is renormalised, so the student learns how much mass to leave to the other tokens, but
    not how to share it among them. By the log sum inequality this is at most the full divergence; for k = V it is
    equal.

    Args:
        student: Logits [n, V].
        ids: The k tokens [n, k].
        log_q: The teacher's log-probabilities of them at the temperature [n, k].
        log_rest: Log of r [n].
        temperature: Divides the student's logits.

    Returns:
        Nats, [n].
    """
    log_p = functional.log_softmax(student / temperature, dim=-1)
    kept = (log_q.exp() * (log_q - log_p.gather(-1, ids))).sum(-1)
    if ids.shape[-1] == student.shape[-1]:
        return kept
    # log(1 - sum p) would cancel digits where the k tokens hold almost all, so the rest is added up by itself.
    log_s = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1)
    rest = log_rest.exp() * (log_rest - log_s)
    return kept + torch.where(log_rest.isneginf(), 0.0, rest)  # 0 log 0 = 0


def summed(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    diverge: Divergence | None,
    *,
    chunk: int,
    chunks: int = 0,
    sources: torch.Tensor | None = None,
) -> Sums:
    """Adds up the losses of tokens, with the logits of no more than a chunk of them in memory.

    The backward pass makes each chunk's logits again.

    Args:
        hidden: The student's last hidden states at the places that predict [N, H].
        labels: The next tokens [N].
        head: From hidden states to logits.
        diverge: The divergence of a chunk; None to leave it out.
        chunk: Tokens at a time.
        chunks: At least so many calls of the head, the last ones empty: where weights are sharded over processes, all
            must gather them equally often.
        sources: Which tokens are of which source, [S, N]; None tells them not apart.
    """

    def one(part: slice) -> torch.Tensor:
        logits = head(hidden[part]).float()
        cross_entropy = functional.cross_entropy(logits, labels[part], reduction="sum")
        by_source = []
        if sources is not None:
            with torch.no_grad():
                each = functional.cross_entropy(logits, labels[part], reduction="none")
            by_source = [(sources[:, part] * each).sum(1)]
        kl = diverge(logits, part).sum() if diverge else torch.zeros_like(cross_entropy)
        correct = (logits.argmax(-1) == labels[part]).sum()
        return torch.cat([torch.stack([cross_entropy, kl, correct.to(kl.dtype)]), *by_source])

    # One call at least: where no token of a batch carries loss, the backward pass still needs a graph.
    count = max(1, chunks, -(-len(labels) // chunk))
    parts = [slice(number * chunk, (number + 1) * chunk) for number in range(count)]
    sums: list[torch.Tensor] = (
        [one(parts[0])] if count == 1 else [checkpoint(one, part, use_reentrant=False) for part in parts]  # type: ignore[misc]
    )
    total = sums[0] if count == 1 else torch.stack(sums).sum(0)
    return Sums(total[0], total[1], total[2], None if sources is None else total[3:].detach())


def cosine_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """1 - cos of the hidden states of each token; Sanh et al. 2019 (arXiv:1910.01108), section 2.

    Args:
        student: Last hidden states [n, H].
        teacher: Last hidden states [n, H].

    Returns:
        From 0 to 2, [n].
    """
    return 1 - functional.cosine_similarity(student.float(), teacher.float(), dim=-1)
