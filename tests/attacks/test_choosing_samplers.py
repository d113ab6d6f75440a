"""Which image gets which attack, what it then gets, what is learned from it and what it costs."""

from __future__ import annotations

import io
import itertools

import pytest
import torch
from torch import nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import (
    DLR,
    CrossEntropy,
    KLDivergence,
    LockstepAPGD,
    Margin,
    PassMeter,
    SpatialRandom,
)
from multirobust.attacks.choosing import (
    Cascade,
    DrawnSampler,
    EqualShares,
    ErrorShares,
    HedgeShares,
    Race,
    Router,
    ShapleyShares,
    UCBShares,
)
from multirobust.attacks.choosing.dealing import assigned
from multirobust.attacks.choosing.watch import Watch
from multirobust.errors import InputError
from multirobust.ranks import Part, parts
from multirobust.threats import L1, L2, Linf, linear_gain

SHAPE, T, B = (2, 4, 4), 4, 12
BALLS = (Linf(0.1), L2(0.5), L1(1.5))
ATTACKS = tuple(LockstepAPGD(threat=ball, steps=T) for ball in BALLS)
EQUAL = EqualShares(3)
SAMPLERS = {
    "batch": lambda seed=0: DrawnSampler(ATTACKS, EQUAL, mixing="batch", seed=seed),
    "independent": lambda seed=0: DrawnSampler(ATTACKS, EQUAL, mixing="independent", seed=seed),
    "error": lambda seed=0: DrawnSampler(ATTACKS, ErrorShares(3), seed=seed),
    "shapley": lambda seed=0: DrawnSampler(ATTACKS, ShapleyShares(3, every=2), seed=seed),
    "hedge": lambda seed=0: DrawnSampler(ATTACKS, HedgeShares(3), seed=seed),
    "ucb": lambda seed=0: DrawnSampler(ATTACKS, UCBShares(3), seed=seed),
    "router": lambda seed=0: Router(ATTACKS, ShapleyShares(3, every=3), seed=seed),
    "race": lambda seed=0: Race(ATTACKS, ShapleyShares(3, every=3), seed=seed),
    "cascade": lambda seed=0: Cascade(ATTACKS, ShapleyShares(3, every=3), seed=seed),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


class Rowwise(nn.Module):
    """A network whose logits of an image are the same bits in any batch."""

    def __init__(self, seed=1):
        super().__init__()
        self.inner = network(2, seed=seed).eval()

    def forward(self, x):
        return torch.cat([self.inner(row[None]) for row in x])


def batch(seed=5, count=B):
    return random_images(count, *SHAPE, seed=seed), torch.arange(count) % 4


def whole(count=B) -> Part:
    return Part(start=0, stop=count, total=count, fellows=count)


def step(sampler, model, seed=5):
    """Craft and hear, as a training step does."""
    x, y = batch(seed)
    chosen = sampler.craft(model, x, y)
    with torch.no_grad():
        logits = model(chosen.x_adv)
    sampler.hear(logits, y, chosen.allotment.index, chosen.weights, chosen.notes, whole())
    return chosen, logits


@every_sampler
def test_each_image_gets_what_its_attack_finds_for_it_alone(name):
    """But for a cascade's image that no attack breaks, which is the best of all."""
    model, sampler = Rowwise(), SAMPLERS[name]()
    x, y = batch()
    chosen = sampler.craft(model, x, y)
    for k, attack in enumerate(ATTACKS):
        rows = [i for i, group in enumerate(chosen.allotment.groups) if group == k]
        if rows:
            assert torch.equal(chosen.x_adv[rows], attack(model, x[rows], y[rows]))


@every_sampler
def test_a_saved_sampler_goes_on_bit_for_bit(name):
    model, sampler = network(2).eval(), SAMPLERS[name]()
    for seed in range(2):
        step(sampler, model, seed)
    file = io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    fresh = SAMPLERS[name](seed=9)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for seed in range(2, 5):
        (one, _), (other, _) = (step(s, model, seed) for s in (sampler, fresh))
        assert one.allotment == other.allotment
        assert torch.equal(one.x_adv, other.x_adv)
    states = [str(s.state_dict()) for s in (sampler, fresh)]
    assert states[0] == states[1]


@every_sampler
def test_counts_and_sums_are_those_of_the_images(name):
    model, sampler, seen = network(2).eval(), SAMPLERS[name](), torch.zeros(3)
    heard = []
    sampler.shares.observe = heard.append
    for seed in range(2):
        chosen, logits = step(sampler, model, seed)
        seen += torch.bincount(chosen.allotment.index, minlength=3)
        y = batch(seed)[1]
        loss, right = CrossEntropy().of(logits, y, y), logits.argmax(1) == y
        for k in range(3):
            own = chosen.allotment.index == k
            assert heard[-1].loss[k].item() == pytest.approx(loss[own].sum().item(), rel=1e-6)
            assert heard[-1].correct[k] == right[own].sum()
            assert heard[-1].weight[k].item() == pytest.approx(chosen.weights[own].sum().item())
    assert sampler.draws.tolist() == seen.tolist()


@pytest.mark.parametrize("name", ["batch", "independent", "error", "cascade"])
@pytest.mark.parametrize(("ranks", "rounds"), [(1, 3), (2, 1), (2, 2)])
def test_what_an_image_gets_depends_on_neither_ranks_nor_rounds(name, ranks, rounds):
    model, (x, y) = Rowwise(), batch()
    expected = SAMPLERS[name]().craft(model, x, y)
    for rank in range(ranks):
        sampler = SAMPLERS[name]()
        for place in parts(B, rank=rank, ranks=ranks, rounds=rounds):
            rows = slice(place.start, place.stop)
            chosen = sampler.craft(model, x[rows], y[rows], place=place)
            assert chosen.allotment == expected.allotment.rows(place.start, place.stop)
            assert torch.equal(chosen.x_adv, expected.x_adv[rows])


def test_a_probe_finds_the_shapley_values_of_all_attacks_and_counts_its_passes():
    model, (x, y) = Rowwise(), batch()
    sampler = DrawnSampler(ATTACKS, ShapleyShares(3, every=9, images=8, rate=1.0, floor=0.0))
    with PassMeter(model) as meter:
        chosen = sampler.craft(model, x, y)
    sampler.hear(
        model(chosen.x_adv), y, chosen.allotment.index, chosen.weights, chosen.notes, whole()
    )
    assert sampler.extra_passes == (3 * 8 * (T + 1), 3 * 8 * T)
    assert (meter.forwards, meter.backwards) == (B * (T + 1) + 24 * (T + 1), B * T + 24 * T)
    with torch.no_grad():
        broken = [model(a(model, x[:8], y[:8])).argmax(1) != y[:8] for a in ATTACKS]
    hits = torch.stack(broken, 1).double()
    values = (hits / hits.sum(1, keepdim=True).clamp(min=1)).sum(0)
    assert values.sum() > 0
    assert sampler.shares.probabilities() == pytest.approx((values / values.sum()).tolist())


def test_importance_weights_make_the_loss_the_mean_over_all_attacks():
    """Exactly, if every image is drawn for every attack: sum_k p_k l_k / (k p_k)."""
    sampler = DrawnSampler(ATTACKS, UCBShares(3, floor=0.3), mixing="independent", importance=True)
    sampler.shares.pulls.fill_(1.0)
    sampler.shares.reward.copy_(torch.tensor([0.0, 2.0, 1.0]))
    p = sampler.shares.probabilities()
    assert p == pytest.approx([0.1, 0.8, 0.1])
    chosen = sampler.craft(network(2).eval(), *batch())
    weights = {k: chosen.weights[i].item() for i, k in enumerate(chosen.allotment.groups)}
    assert weights == pytest.approx({k: 1 / (3 * p[k]) for k in weights})
    assert len(weights) > 1


def test_the_router_finds_the_greatest_promise_under_its_quotas():
    """On a linear model the promise is what each ball gains in the score, exactly."""
    model = HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1)
    x, y = batch()[0], torch.arange(B) % 2
    sampler = Router(ATTACKS, EQUAL, explore=0.0)
    sampler.ratio.copy_(torch.tensor([0.5, 1.0, 2.0]))
    sampler.known.fill_(1.0)
    chosen = sampler.craft(model, x, y)
    z = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(CrossEntropy().of(model(z), y, y).sum(), z)
    promised = torch.stack([linear_gain(ball, slope, x) for ball in BALLS], dim=1)
    values = promised.double() * torch.tensor([0.5, 1.0, 2.0])
    assert chosen.allotment.sizes == (4, 4, 4)
    assert list(chosen.allotment.groups) == assigned(values.tolist(), (4, 4, 4))
    gains = torch.stack([model.greatest_gain(ball, x, y) for ball in BALLS], dim=1)
    slopes = promised.double() / gains  # of the loss by the score: one for each image
    torch.testing.assert_close(slopes, slopes[:, :1].expand(-1, 3), rtol=1e-4, atol=0)


def test_the_router_learns_what_an_attack_gains_for_what_it_promised():
    model, sampler = network(2).eval(), Router(ATTACKS, EQUAL, rate=0.5)
    (x, y), ratios = batch(), []
    for _ in range(2):
        chosen, logits = step(sampler, model)
        with torch.no_grad():
            gained = CrossEntropy().of(logits, y, y) - CrossEntropy().of(model(x), y, y)
        own = [chosen.allotment.index == k for k in range(3)]
        ratios.append([(gained[o].sum() / chosen.notes[o, 1].sum()).item() for o in own])
    expected = [(a / 4 + b / 2) / 0.75 for a, b in zip(*ratios, strict=True)]
    assert sampler._rates().tolist() == pytest.approx(expected, rel=1e-4)


def test_without_quotas_the_router_gives_all_to_a_ball_that_contains_the_others():
    attacks = [LockstepAPGD(threat=t, steps=1) for t in (Linf(0.5), L2(0.1), L1(0.1))]
    model = network(2).eval()
    free = Router(attacks, EQUAL, quotas=False, explore=0.0)
    assert free.craft(model, *batch()).allotment.sizes == (B, 0, 0)
    assert free.quotas == [1 / 3] * 3
    assert Router(attacks, EQUAL, explore=0.0).craft(model, *batch()).allotment.sizes == (4, 4, 4)


def watched(shares, batches, patience=100, watch=None) -> Watch:
    watch = watch or Watch(3, patience=patience)
    for _ in range(batches):
        watch.look("Router", ("linf", "l2", "l1"), [0.5, 0.25, 0.25])
        watch.note(torch.tensor(shares).double())
    return watch


def test_an_attack_far_below_its_quota_for_long_is_told_of_once():
    """A share of 1/3 falls by 0.98 a batch, to 4.5 % after 99; seen at 50 and 100."""
    watch = watched([12, 0, 12], 99)
    with pytest.warns(UserWarning, match=r"Router has all but left out .* 100 .* l2 has 4\.5%"):
        watch.look("Router", ("linf", "l2", "l1"), [0.5, 0.25, 0.25])
    watched([12, 0, 12], 300, watch=watch)  # a second warning would be an error


def test_a_share_above_half_of_the_quota_or_below_it_for_a_while_is_nothing_to_tell():
    watched([8, 2, 2], 400)
    watch = watched([12, 0, 0], 60)
    assert watch.below == [0, 50, 50]
    watched([4, 4, 4], 400, watch=watch)
    assert watch.below == [0, 0, 0]


def test_what_is_watched_is_saved():
    watch = watched([12, 0, 0], 70)
    fresh = Watch(3, patience=100)
    fresh.load_state_dict(watch.state_dict())
    with pytest.warns(UserWarning, match="left out"):
        watched([12, 0, 0], 30, watch=fresh)
    with pytest.raises(ValueError, match="whole numbers, one for each attack"):
        fresh.set_extra_state({"below": [0], "batches": 1, "warned": False})


def test_the_explored_images_of_a_router_are_random_and_the_quotas_still_hold():
    sampler = Router(ATTACKS, EQUAL, explore=1.0)
    model, seen = network(2).eval(), set()
    for _ in range(4):
        chosen, _ = step(sampler, model)
        assert chosen.allotment.sizes == (4, 4, 4)
        seen.add(chosen.allotment.groups)
    assert len(seen) > 2


@pytest.mark.parametrize("laps", [1, 2, 3])
def test_a_race_goes_on_with_the_attack_of_greatest_loss_so_far(laps):
    model, (x, y) = Rowwise(), batch()
    sampler = Race(ATTACKS, EQUAL, quotas=False, laps=laps)
    with PassMeter(model) as meter:
        chosen = sampler.craft(model, x, y)
    passes = T + 2 * laps
    assert (meter.forwards, meter.backwards) == (B * (passes + 1), B * passes)
    # An attack of `laps` steps reviews elsewhere; its first step is that of a longer one.
    if laps == 1:
        so_far = [LockstepAPGD(threat=ball, steps=1)(model, x, y) for ball in BALLS]
        with torch.no_grad():
            losses = torch.stack([CrossEntropy().of(model(z), y, y) for z in so_far])
        assert chosen.allotment.index.tolist() == losses.argmax(0).tolist()


def test_a_race_of_two_objectives_costs_one_first_pass_each_and_compares_cross_entropies():
    model, (x, y) = Rowwise(), batch()
    attacks = (*ATTACKS[:2], LockstepAPGD(threat=Linf(0.1), steps=T, objective=DLR()))
    with PassMeter(model) as meter:
        chosen = Race(attacks, EQUAL).craft(model, x, y)
    assert (meter.forwards, meter.backwards) == (B * (T + 2 + 1 + 1), B * (T + 2 + 1))
    for k, attack in enumerate(attacks):
        rows = [i for i, group in enumerate(chosen.allotment.groups) if group == k]
        assert torch.equal(chosen.x_adv[rows], attack(model, x[rows], y[rows]))


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_a_cascade_breaks_what_any_attack_breaks_and_pays_for_survivors_only(margin):
    model, (x, y) = Rowwise(), batch(count=24)
    with torch.no_grad():
        found = [attack(model, x, y) for attack in ATTACKS]
        margins = torch.stack([Margin().of(model(z), y, y) for z in found], dim=1)
        broken = margins > margin
        losses = torch.stack([CrossEntropy().of(model(z), y, y) for z in found], dim=1)
    sampler = Cascade(ATTACKS, EQUAL, margin=margin)
    with PassMeter(model) as meter:
        chosen = sampler.craft(model, x, y)
    with torch.no_grad():
        assert torch.equal(Margin().of(model(chosen.x_adv), y, y) > margin, broken.any(1))
    assert bool(((margins > 0) & ~broken).any()) == (margin > 0)
    asked = 0
    for i, order in enumerate(sampler._orders):
        hits = [k for k in order if broken[i, k]]
        asked += order.index(hits[0]) + 1 if hits else 3
        best = hits[0] if hits else int(losses[i].argmax())
        assert chosen.allotment.groups[i] == best
    assert (meter.forwards, meter.backwards) == (asked * (T + 1), asked * T)
    assert 24 < asked < 72


@pytest.mark.parametrize("margin", [-0.1, float("inf"), float("nan")])
def test_the_margin_of_a_cascade_is_a_difference_of_logits(margin):
    with pytest.raises(InputError, match="margin must be finite and not below 0"):
        Cascade(ATTACKS, EQUAL, margin=margin)


def test_the_orders_of_a_cascade_are_drawn_without_replacement():
    """First k with p_k, then j with p_j / (1 - p_k)."""
    shares = UCBShares(3, floor=0.6)
    shares.pulls.fill_(1.0)
    shares.reward.copy_(torch.tensor([1.0, 0.0, 0.0]))  # p = .6, .2, .2
    sampler = Cascade(ATTACKS, shares)
    sampler.begin(whole(3000))
    orders = [tuple(order) for order in sampler._orders]
    assert all(sorted(order) == [0, 1, 2] for order in orders)
    p = [0.6, 0.2, 0.2]
    for order in itertools.permutations(range(3)):
        expected = p[order[0]] * p[order[1]] / (1 - p[order[0]])
        assert orders.count(order) / 3000 == pytest.approx(expected, abs=0.025)
    shares.reward.copy_(torch.tensor([0.0, 1.0, 0.0]))
    strict = Cascade(ATTACKS, shares, order="sorted")
    strict.begin(whole(2))
    assert strict._orders == [[1, 0, 2]] * 2


@pytest.mark.parametrize("kind", [DrawnSampler, Router, Race, Cascade])
def test_losses_and_rotations_are_attacks_to_choose_like_others(kind):
    attacks = (
        *ATTACKS,
        LockstepAPGD(threat=Linf(0.1), steps=T, objective=DLR()),
        SpatialRandom(radius=30.0, draws=3),
    )
    sampler = kind(attacks, EqualShares(5))
    assert sampler.names == ["linf", "l2", "l1", "linf_dlr", "spatial"]
    model = network(2).eval()
    for seed in range(2):
        chosen, logits = step(sampler, model, seed)
        assert logits.isfinite().all()
    assert kind is Cascade or min(sampler.draws.tolist()) > 0
    start = chosen.x_adv
    x, y = batch(2)
    again = sampler.craft(model, x, y, start=start)
    assert again.x_adv.shape == x.shape


@every_sampler
def test_a_start_at_the_last_images_is_at_least_as_strong_in_a_cascade_and_legal_in_all(name):
    model, sampler, (x, y) = Rowwise(), SAMPLERS[name](), batch()
    first = sampler.craft(model, x, y)
    again = sampler.craft(model, x, y, start=first.x_adv)
    with torch.no_grad():
        margins = [Margin().of(model(c.x_adv), y, y) for c in (first, again)]
    if name == "cascade":
        assert ((margins[0] <= 0) | (margins[1] > 0)).float().mean() > 0.8
    for k, ball in enumerate(BALLS):
        own = again.allotment.index == k
        share = ball.distance(again.x_adv[own], x[own]) / ball.radius
        assert (share <= 1 + 1e-5).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DrawnSampler(ATTACKS, EqualShares(2)), "shares must be for 3 attacks, got 2"),
        (lambda: DrawnSampler(ATTACKS, EQUAL, mixing="some"), "Unknown mixing: 'some'"),
        (lambda: Router((SpatialRandom(radius=9.0),), EqualShares(1)), "at least one of Lockstep"),
        (lambda: Router(ATTACKS, EQUAL, explore=2.0), r"explore must be a share in \[0, 1\]"),
        (lambda: Router(ATTACKS, EQUAL, rate=0.0), r"rate must be a share in \(0, 1\]"),
        (lambda: Race(ATTACKS, EQUAL, laps=T), "at least 1 and below the 4 steps"),
        (lambda: Race(ATTACKS, EQUAL, laps=0), "at least 1 and below the 4 steps"),
        (
            lambda: Race(
                (LockstepAPGD(threat=BALLS[0], steps=3, objective=KLDivergence()),), EqualShares(1)
            ),
            "only under an objective of their logits",
        ),
        (lambda: Cascade(ATTACKS, EQUAL, order="any"), "Unknown order: 'any'"),
    ],
)
def test_a_setting_out_of_range_is_an_error(make, message):
    with pytest.raises(InputError, match=message):
        make()
