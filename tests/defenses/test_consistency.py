from __future__ import annotations

import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from linear_oracles import network, random_images, random_tensor
from multirobust.attacks import PGD, UniformSampler, WorstCase
from multirobust.data import Batch
from multirobust.defenses import (
    AdversarialTraining,
    ConsistencyTraining,
    ConsistencyViews,
    consistency_loss,
    jensen_shannon,
)
from multirobust.errors import InputError
from multirobust.threats import L2, Linf

LINF = PGD(threat=Linf(0.1), steps=2, step_size=0.05)
TWO = PGD(threat=L2(0.6), steps=2, step_size=0.3)


def logits(count: int, *, scale: float = 2.0, seed: int = 0) -> list[torch.Tensor]:
    return list(scale * random_tensor(count, 6, 5, seed=seed, dtype=torch.float64))


def views_and_batch(seed: int = 0) -> tuple[Batch, ConsistencyViews]:
    x, x_adv, x_aug = (random_images(8, 3, 6, 6, seed=seed + k) for k in range(3))
    return Batch(x, torch.arange(8) % 4, torch.arange(8)), ConsistencyViews(x_adv, x_aug, Linf(0.1))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_equals_the_definition_in_float64(count):
    """Eq. 8: the mean of KL(p_i || mixture), written with probabilities."""
    predictions = logits(count)
    p = torch.stack([view.softmax(1) for view in predictions])
    mixture = p.mean(0)
    expected = (p * (p / mixture).log()).sum(2).mean()
    torch.testing.assert_close(jensen_shannon(predictions), expected, rtol=1e-12, atol=0)


def test_two_views_equal_the_squared_distance_of_scipy():
    a, b = logits(2)
    distances = jensenshannon(a.softmax(1).numpy(), b.softmax(1).numpy(), axis=1)
    assert jensen_shannon([a, b]).item() == pytest.approx((distances**2).mean(), rel=1e-10)


def test_does_not_depend_on_the_order_of_the_views():
    a, b, c = logits(3)
    for order in ([b, a, c], [c, b, a]):
        torch.testing.assert_close(jensen_shannon(order), jensen_shannon([a, b, c]))


def test_is_zero_exactly_for_equal_predictions():
    a, b, _ = logits(3)
    shifted = a + random_tensor(6, 1, seed=4, dtype=torch.float64)  # the same probabilities
    assert jensen_shannon([a, a, shifted]).abs() < 1e-15
    assert jensen_shannon([a, a, b]) > 1e-3


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0, 1e4])
def test_lies_between_zero_and_the_logarithm_of_the_number_of_views(count, scale):
    for seed in range(5):
        value = jensen_shannon([v.float() for v in logits(count, scale=scale, seed=seed)]).item()
        assert -1e-6 <= value <= math.log(count) + 1e-6


def test_attains_its_bound_for_certain_and_different_predictions():
    views = [1e4 * torch.eye(3)[[k]] for k in range(3)]
    assert jensen_shannon(views).item() == pytest.approx(math.log(3), rel=1e-6)


def test_its_gradient_is_finite_at_extreme_logits():
    views = [(1e4 * view.sign()).float().requires_grad_() for view in logits(3)]
    value = jensen_shannon(views)
    gradients = torch.autograd.grad(value, views)
    assert value.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_its_gradient_equals_central_differences():
    views = [view[:2].clone().requires_grad_() for view in logits(3)]
    with torch.random.fork_rng(devices=[]):  # gradgradcheck draws its directions there
        assert torch.autograd.gradcheck(lambda *v: jensen_shannon(v), views)
        assert torch.autograd.gradgradcheck(lambda *v: jensen_shannon(v), views)


def test_half_precision_logits_are_raised_before_the_softmax():
    rounded = [view.bfloat16() for view in logits(3)]
    exact = jensen_shannon([view.double() for view in rounded])
    torch.testing.assert_close(jensen_shannon(rounded).double(), exact, rtol=1e-5, atol=1e-7)


def test_one_pass_equals_three_where_batch_norm_sees_no_batch():
    (batch, views), model = views_and_batch(), network().eval()
    separate, together = (
        consistency_loss(model, batch, views, beta=5.0, forward=forward)
        for forward in ("separate", "concatenated")
    )
    torch.testing.assert_close(separate.total, together.total)
    assert separate.terms.keys() == together.terms.keys()


def test_one_pass_shares_the_batch_statistics_and_three_do_not():
    batch, views = views_and_batch()
    joined = torch.cat((batch.x, views.x_aug, views.x_adv))
    model = network().train()
    clean, augmented, adversarial = model(joined).chunk(3)
    expected = jensen_shannon((clean, augmented, adversarial))
    loss = consistency_loss(model, batch, views, beta=5.0, forward="concatenated")
    torch.testing.assert_close(loss.terms["consistency"], expected.detach())
    three = consistency_loss(model, batch, views, beta=5.0, forward="separate")
    assert not torch.isclose(three.terms["consistency"], expected)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_the_total_is_eq_7(beta):
    (batch, views), model = views_and_batch(), network().eval()
    loss = consistency_loss(model, batch, views, beta=beta, forward="separate")
    p = torch.stack([model(x).double().softmax(1) for x in (batch.x, views.x_adv, views.x_aug)])
    classification = -p[1][torch.arange(8), batch.y].log().mean()
    divergence = (p * (p / p.mean(0)).log()).sum(2).sum(0).mean() / 3
    expected = classification + beta * divergence
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.terms["cross_entropy"].item() == pytest.approx(classification.item(), rel=1e-5)


def test_without_weight_it_is_the_loss_of_stochastic_adversarial_training():
    (batch, views), model = views_and_batch(), network().eval()
    sat = AdversarialTraining(UniformSampler([LINF]))
    expected = sat.loss(model, batch, views.x_adv).total
    loss = consistency_loss(model, batch, views, beta=0.0, forward="separate").total
    assert torch.equal(loss, expected)


def test_the_gaussian_views_are_fresh_and_independent_of_the_attack():
    batch, _ = views_and_batch()
    defense = ConsistencyTraining(UniformSampler([TWO]))
    model = network().eval()
    generator = torch.Generator().manual_seed(2)
    one, two = (defense.craft(model, batch, generator=generator) for _ in range(2))
    assert not torch.equal(one.x_aug, two.x_aug)
    assert one.threat == TWO.threat
    delta = (one.x_aug - batch.x).flatten(1)
    assert torch.allclose(delta.norm(dim=1), torch.tensor(0.6), rtol=1e-4)


def test_an_attack_with_two_threats_is_one_clear_error():
    with pytest.raises(InputError, match=r"ConsistencyTraining: each attack .* one threat"):
        ConsistencyTraining(UniformSampler([LINF, WorstCase((LINF, TWO))]))


def test_an_unknown_forward_mode_is_one_clear_error():
    with pytest.raises(
        InputError, match=r"Unknown forward: 'concat'\. Did you mean 'concatenated'"
    ):
        ConsistencyTraining(UniformSampler([LINF]), forward="concat")
