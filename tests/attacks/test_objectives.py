from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, kl_divergence

from linear_oracles import random_tensor
from multirobust.attacks import DLR, CrossEntropy, KLDivergence, Margin, TargetedDLR

LOGITS = 3 * random_tensor(7, 5, seed=1, dtype=torch.float64)
CLEAN = 3 * random_tensor(7, 5, seed=2, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 4, 0, 1])
X = torch.zeros(7, 1, 2, 2, dtype=torch.float64)
OBJECTIVES = [CrossEntropy(), KLDivergence(), Margin(), DLR(), TargetedDLR()]
TARGET = (Y + 2) % 5


class Fixed(nn.Module):
    """Returns the same logits whatever the images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return CLEAN.to(x.dtype)


def bound(objective, dtype=torch.float64):
    return objective.bind(Fixed(), X.to(dtype), Y)


def test_cross_entropy_is_minus_the_log_probability_of_the_label():
    expected = -Categorical(logits=LOGITS).log_prob(Y)
    torch.testing.assert_close(bound(CrossEntropy())(LOGITS), expected, rtol=1e-13, atol=0)


def test_kl_divergence_is_that_of_the_clean_prediction_from_the_adversarial_one():
    expected = kl_divergence(Categorical(logits=CLEAN), Categorical(logits=LOGITS))
    torch.testing.assert_close(bound(KLDivergence())(LOGITS), expected, rtol=1e-12, atol=1e-14)


def test_kl_divergence_is_zero_with_zero_gradient_at_the_clean_prediction():
    logits = CLEAN.clone().requires_grad_()
    loss = bound(KLDivergence())(logits)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.abs().max() < 1e-14
    assert gradient.abs().max() < 1e-14


def test_margin_is_positive_exactly_where_argmax_errs():
    logits = random_tensor(2000, 4, seed=9)
    y = torch.arange(2000) % 4
    margin = Margin().bind(Fixed(), torch.zeros(2000, 1, 1, 1), y)(logits)
    assert torch.equal(margin > 0, logits.argmax(dim=1) != y)


def test_margin_is_the_greatest_wrong_logit_minus_the_true_one():
    expected = [
        max(row[j] for j in range(5) if j != label) - row[label]
        for row, label in zip(LOGITS.tolist(), Y.tolist(), strict=True)
    ]
    assert bound(Margin())(LOGITS).tolist() == expected


def test_a_tie_has_margin_zero():
    margin = Margin().bind(Fixed(), X[:1], torch.tensor([0]))
    assert margin(torch.tensor([[1.0, 1.0, 0.0]])).item() == 0


def test_dlr_is_the_margin_over_the_gap_from_first_to_third_logit():
    expected = []
    for row, label in zip(LOGITS.tolist(), Y.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        wrong = max(row[j] for j in range(5) if j != label)
        expected.append((wrong - row[label]) / (ranked[0] - ranked[2]))
    torch.testing.assert_close(bound(DLR())(LOGITS), torch.tensor(expected).double())


def test_targeted_dlr_is_target_minus_true_logit_over_its_gap():
    expected = []
    for row, label, target in zip(LOGITS.tolist(), Y.tolist(), TARGET.tolist(), strict=True):
        ranked = sorted(row, reverse=True)
        gap = ranked[0] - (ranked[2] + ranked[3]) / 2
        expected.append((row[target] - row[label]) / gap)
    loss = TargetedDLR().of(LOGITS, Y, TARGET)
    torch.testing.assert_close(loss, torch.tensor(expected).double())


def test_a_targeted_loss_is_bound_to_the_greatest_wrong_logit_of_the_clean_image():
    target = CLEAN.scatter(1, Y[:, None], -torch.inf).argmax(1)
    assert torch.equal(bound(TargetedDLR())(LOGITS), TargetedDLR().of(LOGITS, Y, target))


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()], ids=repr)
@pytest.mark.parametrize("classes", [3, 4, 5])
def test_a_ratio_of_logits_is_blind_to_their_scale_and_shift(objective, classes):
    logits, y, target = LOGITS[:, :classes], Y % classes, (Y + 1) % classes
    expected = objective.of(logits, y, target)
    torch.testing.assert_close(objective.of(1e3 * logits + 7, y, target), expected)


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()], ids=repr)
def test_with_three_classes_the_gap_is_from_first_to_third_logit(objective):
    logits, y = torch.tensor([[3.0, 1.0, -1.0]]), torch.tensor([0])
    assert objective.of(logits, y, torch.tensor([1])).item() == (1 - 3) / (3 + 1)


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()], ids=repr)
def test_with_two_classes_the_loss_is_the_margin(objective):
    logits, y = LOGITS[:, :2].clone().requires_grad_(), Y % 2
    loss = objective.of(logits, y, 1 - y)
    torch.testing.assert_close(loss, Margin().of(logits, y, y))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert (gradient.abs() == 1).all()


@pytest.mark.parametrize("objective", [DLR(), TargetedDLR()], ids=repr)
def test_equal_logits_have_loss_zero_and_a_finite_gradient(objective):
    logits = torch.full((1, 6), 2.0, requires_grad=True)
    loss = objective.of(logits, torch.tensor([0]), torch.tensor([1]))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.item() == 0
    assert gradient.isfinite().all()


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_dlr_is_positive_exactly_where_argmax_errs(classes):
    logits = random_tensor(500, classes, seed=9)
    y = torch.arange(500) % classes
    assert torch.equal(DLR().of(logits, y, y) > 0, logits.argmax(dim=1) != y)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize(
    ("dtype", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_is_computed_at_least_in_float32(objective, dtype, computed):
    loss = bound(objective, dtype)(LOGITS.to(dtype))
    assert loss.dtype == computed
    exact = bound(objective)(LOGITS.to(dtype).double())
    if dtype != torch.bfloat16:  # the clean prediction is rounded there as well
        torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_gradient_equals_central_differences(objective):
    assert torch.autograd.gradcheck(bound(objective), LOGITS.clone().requires_grad_())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_is_finite_with_a_finite_gradient_at_extreme_logits(objective):
    logits = (LOGITS.float().sign() * 1e4).requires_grad_()
    loss = bound(objective, torch.float32)(logits)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()
