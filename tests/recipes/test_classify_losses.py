"""Losses, weights, labels and the order of rows of classifiers, against closed forms."""

import math
import statistics

import pytest
import torch
from posttrain.data_tools.errors import DataError
from posttrain.recipes.classification.labels import class_weights, encode, find_classes
from posttrain.recipes.classification.losses import hard_losses, row_weights, soft_losses
from posttrain.recipes.errors import RecipeError
from posttrain.recipes.trainers.step_mean import STAND_IN, StepSampler

SINGLE, MULTI, REGRESSION = "single_label", "multi_label", "regression"


def test_a_classifier_that_knows_nothing_loses_the_log_of_its_choices() -> None:
    labels = torch.tensor([0, 3])
    assert hard_losses(SINGLE, torch.zeros(2, 5), labels).tolist() == pytest.approx([math.log(5)] * 2)
    assert hard_losses(SINGLE, torch.zeros(2, 5), labels, smoothing=0.3).tolist() == pytest.approx([math.log(5)] * 2)
    zeros_and_ones = torch.tensor([[1.0, 0.0, 1.0]])
    assert hard_losses(MULTI, torch.zeros(1, 3), zeros_and_ones).tolist() == pytest.approx([math.log(2)])
    assert hard_losses(REGRESSION, torch.tensor([[1.5]]), torch.tensor([4.0])).tolist() == [6.25]


def test_smoothing_mixes_the_label_with_the_uniform_distribution() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = logits.log_softmax(-1)[0]
    expected = -(0.7 * log_p[1] + 0.3 * log_p.mean())
    assert hard_losses(SINGLE, logits, torch.tensor([1]), smoothing=0.3).item() == pytest.approx(expected.item())


def test_a_weighted_mean_of_rows_is_torchs_weighted_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, labels, weights = torch.randn(20, 4), torch.randint(4, (20,)), torch.rand(4) + 0.1
    rows = row_weights(SINGLE, labels, weights)
    ours = (hard_losses(SINGLE, logits, labels) * rows).sum() / rows.sum()
    assert ours.item() == pytest.approx(torch.nn.functional.cross_entropy(logits, labels, weights).item(), rel=1e-6)


def test_multi_label_weights_weigh_the_classes_of_each_row() -> None:
    logits, labels = torch.tensor([[1.0, -2.0]]), torch.tensor([[1.0, 1.0]])
    first, second = math.log(1 + math.exp(-1)), math.log(1 + math.exp(2))
    loss = hard_losses(MULTI, logits, labels, class_weights=torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((3 * first + second) / 4, rel=1e-6)


@pytest.mark.parametrize("problem", [SINGLE, MULTI, REGRESSION])
def test_a_student_equal_to_its_teacher_loses_nothing_and_is_left_alone(problem: str) -> None:
    torch.manual_seed(0)
    teacher = torch.randn(6, 1 if problem == REGRESSION else 4)
    student = teacher.clone().requires_grad_()
    losses = soft_losses(problem, student, teacher, temperature=3.0)  # type: ignore[arg-type]
    losses.sum().backward()
    assert losses.detach().abs().max() < 1e-5
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-5


def test_at_high_temperature_distillation_matches_logits() -> None:
    """Hinton et al. 2015, equation 4: the gradient tends to (z - v) / (N T^2) for logits of zero mean, times T^2."""
    torch.manual_seed(0)
    student, teacher = (torch.randn(3, 5, dtype=torch.float64) for _ in range(2))
    student, teacher = student - student.mean(-1, keepdim=True), teacher - teacher.mean(-1, keepdim=True)
    student.requires_grad_()
    soft_losses(SINGLE, student, teacher, temperature=1e4).sum().backward()
    torch.testing.assert_close(student.grad, (student.detach() - teacher) / 5, atol=1e-3, rtol=1e-3)


def test_multi_label_distillation_pulls_as_cross_entropy_on_the_teachers_probabilities_does() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    ours = torch.autograd.grad(soft_losses(MULTI, student, teacher).sum(), student)[0]
    cross = torch.nn.functional.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none")
    torch.testing.assert_close(ours, torch.autograd.grad(cross.mean(-1).sum(), student)[0])


def test_classes_are_sorted_as_numbers_where_all_are_numbers() -> None:
    assert find_classes([10, 9, "2", 9.0], None) == ("2", "9", "10")
    assert find_classes(["spam", "10", "ham"], None) == ("10", "ham", "spam")
    assert find_classes([["b", "a"], [], ["c"]], None) == ("a", "b", "c")
    assert find_classes(["ham", "spam"], ["spam", "ham", "other"]) == ("spam", "ham", "other")


@pytest.mark.parametrize(
    ("labels", "problem", "given", "says"),
    [
        (["a", "a"], SINGLE, None, "only one class, 'a'"),
        ([[], []], MULTI, None, "no class"),
        ([["a"], ["b"]], SINGLE, None, "the head gives one class"),
        ([[0, 1, 0], [1, 0, 0]], MULTI, None, "not a zero or one for each class"),
        (["ham", "spqm"], SINGLE, ["ham", "spam"], "did you mean 'spam'"),
        (["ham", "spam", "Ham"], SINGLE, None, "'ham' differs from 'Ham' only in how it is written"),
        (["1", "0", "1.0"], SINGLE, None, "differs from '1' only"),
        ([0, 1, -1], SINGLE, None, "'-1' is below 0"),
        ([0, 1, 1.5], SINGLE, None, "'1.5' is a fraction; say classify.problem: regression"),
        (["0", "1", "NA"], SINGLE, None, "'NA' looks like a missing one"),
        ([[0, 1], [1, 0]], MULTI, None, "yes and no for each"),
        ([[0, 1], [1, 0]], MULTI, ["a", "b", "c"], "yes and no for each"),
        ([1.0, 1e300], REGRESSION, ["score"], "is not a number"),
        (["1", "1_0"], REGRESSION, ["score"], "is not a number"),
    ],
)
def test_labels_that_make_no_classes_are_refused(labels: list, problem: str, given: list | None, says: str) -> None:
    with pytest.raises(DataError, match=says):
        encode(labels, find_classes(labels, given), problem, "data.train")  # type: ignore[arg-type]


def test_labels_become_what_the_losses_take() -> None:
    assert encode(["b", "a"], ("a", "b"), SINGLE, "x").tolist() == [1, 0]
    assert encode([["b"], [], "a"], ("a", "b"), MULTI, "x").tolist() == [[0, 1], [0, 0], [1, 0]]
    assert encode(["3.5", 2], (), REGRESSION, "x").tolist() == [3.5, 2.0]
    with pytest.raises(DataError, match=r"data.eval: .*no class 'c' \(2 rows\)"):
        encode(["a", "c", "c"], ("a", "b"), SINGLE, "data.eval")
    for label in ("good", "nan", [1.0]):
        with pytest.raises(DataError, match="is not a number"):
            encode([1.0, label], (), REGRESSION, "data.train")


def test_balanced_weights_give_every_class_the_same_say() -> None:
    labels = encode(["a"] * 6 + ["b"] * 2, ("a", "b"), SINGLE, "x")
    weights = class_weights("balanced", ("a", "b"), labels)
    assert weights is not None
    assert weights.tolist() == pytest.approx([8 / 12, 8 / 4])
    rows = row_weights(SINGLE, labels, weights)
    assert rows[:6].sum().item() == pytest.approx(rows[6:].sum().item())
    named = class_weights({"b": 3.0}, ("a", "b"), labels)
    assert named is not None
    assert (named[1] / named[0]).item() == pytest.approx(3.0)
    assert row_weights(SINGLE, labels, named).mean().item() == pytest.approx(1.0)


def test_weights_for_classes_that_are_not_there_are_refused() -> None:
    labels = encode(["spam", "ham"], ("ham", "spam"), SINGLE, "x")
    with pytest.raises(RecipeError, match="did you mean 'spam'"):
        class_weights({"spqm": 2.0}, ("ham", "spam"), labels)
    with pytest.raises(DataError, match="class 'other' has no training row"):
        class_weights("balanced", ("ham", "spam", "other"), labels)


@pytest.mark.parametrize("rows", [1, 7, 64, 203])
def test_an_epoch_holds_every_row_once_and_stand_ins_last(rows: int) -> None:
    lengths = [(37 * row) % 50 + 1 for row in range(rows)]
    sampler = StepSampler(lengths, rows=rows, step_rows=8, multiple=4, seed=0, epoch=lambda: 0)
    order = list(sampler)
    assert len(order) == len(sampler) == -(-rows // 4) * 4
    assert sorted(order[:rows]) == list(range(rows))
    assert set(order[rows:]) <= {STAND_IN}


def test_the_order_changes_with_the_epoch_alone_and_steps_hold_rows_of_like_lengths() -> None:
    lengths = [(37 * row) % 50 + 1 for row in range(400)]
    epoch = 0

    def order(multiple: int) -> list[int]:
        return list(StepSampler(lengths, rows=400, step_rows=8, multiple=multiple, seed=3, epoch=lambda: epoch))

    first = order(1)
    assert order(1) == first == order(8)
    steps = [[lengths[row] for row in first[at : at + 8]] for at in range(0, 400, 8)]
    assert statistics.mean(max(step) - min(step) for step in steps) < 5, "of 49, and 39 for rows in any order"
    assert max(lengths[row] for row in first[:8]) == 50
    epoch = 1
    assert order(1) != first
