"""The losses of a classifier, one value a row, so that the caller decides what a step's mean is taken over."""

import torch
from torch.nn import functional

from ...evals.stats.classification import Problem


def hard_losses(
    problem: Problem,
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    smoothing: float = 0.0,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Computes the loss of each row against its label.

    - Single label: the cross entropy of the softmax. Smoothing e mixes the label with the uniform distribution,
      ``(1 - e) one_hot + e / C`` (Szegedy et al. 2016, arXiv:1512.00567, section 7). Class weights are weights of rows
      and thus not applied here: see ``row_weights``.
    - Multi-label: the mean over classes of the binary cross entropy of each sigmoid, weighted by class.
    - Regression: the squared error.

    Args:
        problem: Which of the three.
        logits: The model's outputs, float ``[B, C]``; C is 1 for regression.
        labels: Class numbers, int64 ``[B]``; zeros and ones, float ``[B, C]``; or numbers, float ``[B]``.
        smoothing: The e above; single label only.
        class_weights: Weights of the classes, float ``[C]``; used for multi-label only.

    Returns:
        In nats, or squared units of the label, float ``[B]``.
    """
    if problem == "single_label":
        return functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    if problem == "multi_label":
        each = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return each.mean(-1) if class_weights is None else (each * class_weights).sum(-1) / class_weights.sum()
    return (logits.squeeze(-1) - labels).square()


def soft_losses(
    problem: Problem,
    logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Computes the loss of each row against a teacher's outputs for it.

    - Single label: ``T^2 KL(teacher || student)`` of the softmax at temperature T (Hinton et al. 2015,
      arXiv:1503.02531, section 2: gradients of soft targets scale as 1/T^2, hence the factor).
    - Multi-label: the same for the Bernoulli distribution of each sigmoid, averaged over classes. It differs from the
      binary cross entropy on the teacher's probabilities by the teacher's entropy, which no gradient sees, and is 0
      where the two agree.
    - Regression: the squared difference; a temperature means nothing there.

    Args:
        problem: Which of the three.
        logits: The student's outputs, float ``[B, C]``.
        teacher_logits: The teacher's, float ``[B, C]``.
        temperature: The T above.

    Returns:
        In nats, or squared units of the label, float ``[B]``.
    """
    if problem == "regression":
        return (logits - teacher_logits).squeeze(-1).square()
    student, teacher = logits / temperature, teacher_logits / temperature
    if problem == "single_label":
        log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
        return temperature**2 * functional.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
    # KL = cross entropy - entropy of each Bernoulli, both from logits: the logarithm of a sigmoid may be infinite.
    wanted = teacher.sigmoid()
    cross = functional.binary_cross_entropy_with_logits(student, wanted, reduction="none")
    entropy = functional.binary_cross_entropy_with_logits(teacher, wanted, reduction="none")
    return temperature**2 * (cross - entropy).mean(-1)


def row_weights(problem: Problem, labels: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
    """Returns the weight of each row in the mean over a step, float ``[B]``: with one label a row, its class's."""
    if problem == "single_label" and class_weights is not None:
        return class_weights[labels]
    return torch.ones(len(labels), dtype=torch.float32, device=labels.device)
