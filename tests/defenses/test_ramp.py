"""RAMP: its pairing and its update against their formulas, natural training against SGD."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from linear_oracles import network, random_images, random_tensor
from multirobust.attacks import LockstepAPGD, attacking
from multirobust.data import Batch
from multirobust.defenses import RAMP, PairedViews, logit_pairing, mixed_update
from multirobust.errors import InputError
from multirobust.threats import L1, Linf

ATTACKS = (LockstepAPGD(threat=Linf(0.1), steps=2), LockstepAPGD(threat=L1(3.0), steps=2))
LR = 0.05


def batch(seed: int = 0) -> Batch:
    return Batch(random_images(8, 3, 6, 6, seed=seed), torch.arange(8) % 4, torch.arange(8))


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_pairing_is_the_divergence_over_what_the_key_attack_leaves_right():
    key, other = (2 * random_tensor(9, 5, seed=s, dtype=torch.float64) for s in (0, 1))
    y = torch.cat((key[:5].argmax(1), (key[5:].argmax(1) + 1) % 5))
    p, q = key[:5].softmax(1), other[:5].softmax(1)
    expected = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(logit_pairing(key, other, y), expected, rtol=1e-12, atol=0)


def test_pairing_is_zero_where_the_key_attack_leaves_nothing_right():
    key = random_tensor(4, 5, seed=0).requires_grad_()
    pairing = logit_pairing(key, random_tensor(4, 5, seed=1), (key.argmax(1) + 1) % 5)
    pairing.backward()
    assert pairing == 0
    assert not key.grad.any()


def test_pairing_moves_both_predictions():
    y = torch.arange(4)
    key = (torch.eye(4, 5) * 3 + random_tensor(4, 5, seed=0)).double().requires_grad_()
    other = random_tensor(4, 5, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: logit_pairing(a, b, y), (key, other))
    logit_pairing(key, other, y).backward()
    assert key.grad.any()
    assert other.grad.any()


def test_update_takes_of_the_natural_move_its_share_times_the_cosine():
    """a = (3, 4), n = (4, 3): cos = 24 / 25."""
    start = numbers(1, 1)
    moved = mixed_update(start, start + numbers(3, 4), start + numbers(4, 3), 0.5)
    expected = start + 0.5 * 0.96 * numbers(4, 3) + 0.5 * numbers(3, 4)
    torch.testing.assert_close(moved, expected, rtol=1e-14, atol=0)


def test_update_takes_nothing_of_a_natural_move_against_the_adversarial_one():
    start = numbers(1, 1)
    moved = mixed_update(start, start + numbers(3, 4), start + numbers(-4, 1), 0.5)
    torch.testing.assert_close(moved, start + 0.5 * numbers(3, 4), rtol=1e-14, atol=0)


@pytest.mark.parametrize("still", ["adversarial", "natural"])
def test_update_is_finite_where_one_training_stands_still(still):
    moves = {"adversarial": numbers(3, 4), "natural": numbers(4, 3)} | {still: numbers(0, 0)}
    moved = mixed_update(numbers(0, 0), **moves, share=0.5)
    torch.testing.assert_close(moved, moves["adversarial"] / 2, rtol=1e-14, atol=0)


def test_each_layer_has_a_cosine_of_its_own():
    """Two layers of one weight and one bias each: the second moves against the natural one."""
    layers = (
        nn.utils.skip_init(nn.Linear, *sides, dtype=torch.float64) for sides in ((1, 2), (2, 2))
    )
    model = nn.Sequential(nn.Flatten(), *layers)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    natural = RAMP(ATTACKS)._natural
    natural.start = {name: p.detach().clone() for name, p in model.named_parameters()}
    natural.weights = {name: p + 1.0 for name, p in natural.start.items()}
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += 0.5 if name.startswith("1") else -0.5
    natural.merge(model, 0.5)
    for name, parameter in model.named_parameters():
        gain = 0.5 * 1.0 + 0.5 * 0.5 if name.startswith("1") else 0.5 * -0.5
        torch.testing.assert_close(parameter.detach(), before[name] + gain, rtol=1e-12, atol=1e-12)
    assert not natural.start


def step(defense: RAMP, model: nn.Module, data: Batch, optimizer) -> None:
    with attacking(model, "batch"):
        views = defense.craft(model, data)
    views = defense.adapt(model, data, views, lr=LR)
    optimizer.zero_grad()
    defense.loss(model, data, views).total.backward()
    optimizer.step()


def test_natural_training_is_sgd_on_the_clean_batches_and_starts_anew_each_epoch():
    """Beside a classifier that stands still, twice two steps; the peer keeps its momentum."""
    model, peer = network().train(), network().train()
    sgd = torch.optim.SGD(peer.parameters(), lr=LR, momentum=0.9, weight_decay=5e-4)
    defense = RAMP(ATTACKS, projection=1.0)
    for seeds in ((0, 1), (2, 3)):
        peer.load_state_dict(model.state_dict())
        for seed in seeds:
            defense.adapt(model, batch(seed), PairedViews(*[batch(seed).x] * 2), lr=LR)
            loss = nn.functional.cross_entropy(peer(batch(seed).x), batch(seed).y)
            sgd.zero_grad()
            loss.backward()
            sgd.step()
        for name, value in {**dict(peer.named_parameters()), **dict(peer.named_buffers())}.items():
            torch.testing.assert_close(defense._natural.weights[name], value.detach())
        defense.after_epoch(model)


def test_after_an_epoch_every_tensor_moves_by_the_formula():
    model, defense = network().train(), RAMP(ATTACKS, projection=0.3)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    start = copy.deepcopy(model.state_dict())
    for seed in (0, 1):
        step(defense, model, batch(seed), optimizer)
    natural = {name: value.clone() for name, value in defense._natural.weights.items()}
    adversarial = copy.deepcopy(model.state_dict())
    defense.after_epoch(model)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            expected = mixed_update(start[name], adversarial[name], natural[name], 0.3)
        else:
            expected = adversarial[name]
        assert torch.equal(value, expected), name
    variances = [value for name, value in model.state_dict().items() if "running_var" in name]
    assert variances
    assert all((value > 0).all() for value in variances)


def test_without_a_projection_there_is_no_natural_training():
    model, defense = network().train(), RAMP(ATTACKS, projection=0.0)
    step(defense, model, batch(), torch.optim.SGD(model.parameters(), lr=LR))
    before = copy.deepcopy(model.state_dict())
    defense.after_epoch(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not defense.get_extra_state()["weights"]


def test_a_frozen_weight_stays_where_it_was():
    model, defense = network().train(), RAMP(ATTACKS)
    first = next(model.parameters()).requires_grad_(False)
    before = first.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=LR)
    step(defense, model, batch(), optimizer)
    defense.after_epoch(model)
    assert torch.equal(first, before)


@pytest.mark.parametrize("pairing", [0.0, 5.0])
def test_the_loss_is_its_formula(pairing):
    model, data = network().eval(), batch()
    views = PairedViews(batch(1).x, batch(2).x)
    with torch.no_grad():
        key, other = (model(view).double() for view in (views.key, views.other))
    losses = [nn.functional.cross_entropy(z, data.y, reduction="none") for z in (key, other)]
    worst = torch.stack(losses).amax(0).mean()
    loss = RAMP(ATTACKS, pairing=pairing).loss(model, data, views)
    expected = worst + pairing * logit_pairing(key, other, data.y)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.terms["cross_entropy"].item() == pytest.approx(worst.item(), rel=1e-5)


@pytest.mark.parametrize("projection", [-0.1, 1.1])
def test_a_projection_that_is_no_share_is_an_error(projection):
    with pytest.raises(InputError, match=r"projection must be a share in \[0, 1\]"):
        RAMP(ATTACKS, projection=projection)
