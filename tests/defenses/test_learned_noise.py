"""MNG-AC against a brute-force meta-gradient, and ANT against the definition of its noise."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from linear_oracles import network, random_images, random_tensor
from multirobust.attacks import PGD, PassMeter, UniformSampler, WorstCase
from multirobust.data import Batch
from multirobust.defenses import ANT, MNGAC, ConsistencyViews
from multirobust.errors import InputError
from multirobust.models import NoiseGenerator
from multirobust.threats import BALL_MAPS, L1, L2, Linf, SmoothMap, Threat

THREATS = [Linf(0.3), L2(1.2), L1(6.0)]
every_threat = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
LR = 0.5


def seeded(seed: int = 4) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def defense_for(threat: Threat, **options) -> MNGAC:
    conditioning = options.pop("conditioning", "noise_and_image")
    noise = NoiseGenerator(1, conditioning=conditioning, width=3, seed=1)
    attack = PGD(threat=threat, steps=2, step_size=threat.radius / 2)
    return MNGAC(UniformSampler([attack]), noise, **options)


class Problem:
    """One batch, a tiny BatchNorm network, and its views, in float64."""

    def __init__(self, threat: Threat, dtype: torch.dtype = torch.float64):
        self.threat = threat
        self.model = network(1, seed=2, classes=3).to(dtype).train()
        x = random_images(6, 1, 5, 5, seed=1, dtype=dtype)
        self.batch = Batch(x, torch.arange(6) % 3, torch.arange(6))
        self.views = ConsistencyViews(random_images(6, 1, 5, 5, seed=2, dtype=dtype), x, threat)

    def adapt(self, defense: MNGAC, *, lr: float = LR, seed: int = 4) -> ConsistencyViews:
        return defense.adapt(self.model, self.batch, self.views, lr=lr, generator=seeded(seed))

    def augmented(self, noise: NoiseGenerator, seed: int = 4) -> Tensor:
        z = noise.draw(self.batch.x, seeded(seed))
        return self.threat.project(self.batch.x + noise(z, self.batch.x), self.batch.x)

    def loss_after_one_step(self, x_aug: Tensor, lr: float) -> Tensor:
        """Eq. 9 on a copy of the model, by hand; then the adversarial loss of Eq. 10."""
        model = copy.deepcopy(self.model).train()
        inner = F.cross_entropy(model(x_aug.detach()), self.batch.y)
        gradients = torch.autograd.grad(inner, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= lr * gradient
            return F.cross_entropy(model(self.views.x_adv), self.batch.y)


def vector(module: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def with_weights(noise: NoiseGenerator, weights: Tensor) -> NoiseGenerator:
    moved = copy.deepcopy(noise)
    nn.utils.vector_to_parameters(weights, moved.parameters())
    return moved


@every_threat
@pytest.mark.parametrize("conditioning", ["noise_and_image", "noise"])
def test_the_generator_steps_against_the_brute_force_meta_gradient(threat, conditioning):
    """Central differences of the outer loss over phi, one look-ahead step for each."""
    problem = Problem(threat)
    defense = defense_for(threat, conditioning=conditioning).double()
    before, start = copy.deepcopy(defense.noise), vector(defense.noise)
    x_aug = problem.augmented(before)
    distance = threat.distance(x_aug, problem.batch.x)
    assert (distance > 0.999 * threat.radius).all(), "the projection is not active"
    problem.adapt(defense)
    step = vector(defense.noise) - start
    assert step.norm() > 1e-5
    for seed in range(6):
        direction = random_tensor(len(start), seed=seed, dtype=torch.float64)
        if seed == 0:
            direction = step
        direction = direction / direction.norm()
        with torch.no_grad():
            up, down = (
                problem.augmented(with_weights(before, start + h * direction))
                for h in (1e-6, -1e-6)
            )
        slope = problem.loss_after_one_step(up, LR) - problem.loss_after_one_step(down, LR)
        expected = -LR * slope / 2e-6
        torch.testing.assert_close(step @ direction, expected, rtol=1e-4, atol=1e-8)


@every_threat
def test_every_meta_mode_takes_the_same_step(threat):
    problem, weights = Problem(threat), []
    for mode in ("mixed_vjp", "recomputed", "unrolled", "forward_over_reverse"):
        defense = defense_for(threat, meta_mode=mode).double()
        views = problem.adapt(defense)
        weights.append(vector(defense.noise))
        assert 0 < views.terms["live_gradient"] <= 1
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-10, atol=1e-13)


@every_threat
def test_the_step_lowers_the_adversarial_loss_after_the_look_ahead(threat):
    problem = Problem(threat)
    defense = defense_for(threat).double()
    before = problem.loss_after_one_step(problem.augmented(defense.noise), LR)
    problem.adapt(defense)
    after = problem.loss_after_one_step(problem.augmented(defense.noise), LR)
    assert after < before


def test_the_official_generator_follows_sgd_with_momentum_and_weight_decay():
    """Two steps by hand; the gradient comes from a plain step of a copy."""
    threat = L2(1.2)
    problem = Problem(threat)
    official = defense_for(threat, conditioning="noise", momentum=0.9, weight_decay=5e-4).double()
    velocity = torch.zeros_like(vector(official.noise))
    for seed, lr in ((4, 0.5), (5, 0.2)):
        phi = vector(official.noise)
        plain = defense_for(threat, conditioning="noise").double()
        plain.noise.load_state_dict(official.noise.state_dict())
        problem.adapt(plain, lr=lr, seed=seed)
        gradient = (phi - vector(plain.noise)) / lr + 5e-4 * phi
        velocity = gradient if seed == 4 else 0.9 * velocity + gradient
        problem.adapt(official, lr=lr, seed=seed)
        torch.testing.assert_close(
            vector(official.noise), phi - lr * velocity, rtol=1e-9, atol=1e-12
        )


@every_threat
def test_the_live_gradient_is_the_share_of_outputs_that_the_projection_lets_through(threat):
    """Recomputed from the Jacobian of the projection, with a gradient that is nowhere zero."""
    problem = Problem(threat)
    defense = defense_for(threat).double()
    x, z = problem.batch.x, defense.noise.draw(problem.batch.x, seeded())
    noise = defense.noise(z, x).detach().requires_grad_()
    weights = random_tensor(*x.shape, seed=6, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((threat.project(x + noise, x) * weights).sum(), noise)
    expected = (gradient != 0).double().mean().item()
    views = problem.adapt(defense)
    assert views.terms["live_gradient"].item() == pytest.approx(expected, abs=1e-6)


def test_in_linf_an_output_is_alive_exactly_where_neither_ball_nor_box_binds():
    problem = Problem(Linf(0.3))
    defense = defense_for(problem.threat).double()
    x = problem.batch.x
    noise = defense.noise(defense.noise.draw(x, seeded()), x).detach()
    free = (noise.abs() < 0.3) & (x + noise > 0) & (x + noise < 1)
    live = problem.adapt(defense).terms["live_gradient"].item()
    assert live == pytest.approx(free.double().mean().item(), abs=1e-6)


@every_threat
def test_the_new_images_come_from_the_new_generator_with_fresh_noise(threat):
    problem = Problem(threat)
    defense = defense_for(threat).double()
    x, old = problem.batch.x, copy.deepcopy(defense.noise)
    views = problem.adapt(defense)
    generator = seeded()
    first = defense.noise.draw(x, generator)
    second = defense.noise.draw(x, generator)
    with torch.no_grad():
        expected = threat.project(x + defense.noise(second, x), x)
        stale = [threat.project(x + g(z, x), x) for g, z in ((old, second), (defense.noise, first))]
    assert torch.equal(views.x_aug, expected)
    assert not any(torch.equal(views.x_aug, other) for other in stale)
    assert (threat.distance(views.x_aug, x) <= threat.radius * (1 + 1e-6)).all()
    assert torch.equal(views.x_adv, problem.views.x_adv)


def test_under_autocast_too_the_new_images_come_from_the_new_generator():
    """Autocast caches half-precision weights; the step must not leave the old ones in use."""
    problem = Problem(Linf(0.3), dtype=torch.float32)
    defense = defense_for(problem.threat)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = problem.adapt(defense, lr=20.0)
    generator = seeded()
    defense.noise.draw(problem.batch.x, generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = defense.augment(problem.batch.x, problem.threat, generator)
    assert torch.equal(views.x_aug, expected)


def test_a_learning_rate_of_zero_leaves_the_generator():
    problem = Problem(L2(1.2))
    for options in ({}, {"momentum": 0.9, "weight_decay": 5e-4}):
        defense = defense_for(problem.threat, **options).double()
        before = vector(defense.noise)
        problem.adapt(defense, lr=0.0)
        assert torch.equal(vector(defense.noise), before)


def test_the_look_ahead_uses_batch_statistics_in_either_mode():
    steps = []
    for training in (True, False):
        problem = Problem(L2(1.2))
        problem.model.train(training)
        defense = defense_for(problem.threat).double()
        problem.adapt(defense)
        steps.append(vector(defense.noise))
    assert torch.equal(*steps)


def test_an_attack_with_two_threats_is_one_clear_error():
    parts = tuple(PGD(threat=t, steps=1, step_size=0.1) for t in THREATS[:2])
    with pytest.raises(InputError, match=r"MNGAC: each attack of the sampler .* one threat"):
        MNGAC(UniformSampler([WorstCase(parts)]), NoiseGenerator(1))


@every_threat
@pytest.mark.parametrize("name", ["smooth", "straight_through_smooth"])
def test_the_meta_gradient_through_a_smooth_map_equals_central_differences(threat, name):
    """Straight-through steps along the gradient of the smooth map, taken at projected images."""
    problem = Problem(threat)
    defense = defense_for(threat, ball_map=BALL_MAPS[name]).double()
    before, start = copy.deepcopy(defense.noise), vector(defense.noise)
    x, z = problem.batch.x, defense.noise.draw(problem.batch.x, seeded())
    noise = before(z, x).detach()
    base = BALL_MAPS[name](threat, noise, x)
    problem.adapt(defense)
    step = vector(defense.noise) - start
    direction = step / step.norm()
    losses = []
    for h in (1e-6, -1e-6):
        moved = with_weights(before, start + h * direction)(z, x)
        shift = SmoothMap()(threat, moved, x) - SmoothMap()(threat, noise, x)
        losses.append(problem.loss_after_one_step(base + shift, LR))
    slope = (losses[0] - losses[1]) / 2e-6
    torch.testing.assert_close(step @ direction, -LR * slope, rtol=1e-4, atol=1e-8)


@every_threat
@pytest.mark.parametrize("name", [name for name in BALL_MAPS if name != "project"])
def test_every_output_is_alive_in_every_meta_mode(threat, name):
    problem, weights = Problem(threat), []
    for mode in ("mixed_vjp", "unrolled", "forward_over_reverse"):
        defense = defense_for(threat, ball_map=BALL_MAPS[name], meta_mode=mode).double()
        views = problem.adapt(defense)
        assert views.terms["live_gradient"] == 1
        assert (threat.distance(views.x_aug, problem.batch.x) <= threat.radius * (1 + 1e-6)).all()
        weights.append(vector(defense.noise))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-10, atol=1e-13)


def test_a_generator_that_never_steps_stays_and_costs_no_pass():
    problem = Problem(L2(1.2))
    frozen = defense_for(problem.threat, meta_every=0, momentum=0.9, weight_decay=5e-4).double()
    before = vector(frozen.noise)
    with PassMeter(problem.model) as meter:
        views = problem.adapt(frozen)
    assert (meter.forwards, meter.backwards) == (0, 0)
    assert torch.equal(vector(frozen.noise), before)
    with torch.no_grad():
        assert torch.equal(views.x_aug, problem.augmented(frozen.noise))
    assert views.terms == {}


def test_the_rate_multiplies_the_step_of_the_generator():
    problem, steps = Problem(L2(1.2)), []
    for rate in (1.0, 3.0):
        defense = defense_for(problem.threat, rate=rate).double()
        before = vector(defense.noise)
        problem.adapt(defense)
        steps.append(vector(defense.noise) - before)
    torch.testing.assert_close(steps[1], 3 * steps[0], rtol=1e-9, atol=1e-14)


@every_threat
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_report_is_the_loss_after_the_look_ahead_before_and_after_the_step(threat, share):
    problem = Problem(threat)
    defense = defense_for(threat, meta_report=True, meta_share=share).double()
    old = copy.deepcopy(defense.noise)
    terms = problem.adapt(defense).terms
    count = round(6 * share)
    part = Problem(threat)
    part.batch = Batch(
        problem.batch.x[:count], problem.batch.y[:count], problem.batch.index[:count]
    )
    part.views = ConsistencyViews(problem.views.x_adv[:count], part.batch.x, threat)
    for name, noise in (("before", old), ("after", defense.noise)):
        with torch.no_grad():
            x_aug = part.augmented(noise)
        expected = part.loss_after_one_step(x_aug, LR)
        torch.testing.assert_close(terms[f"meta_loss_{name}"], expected, rtol=1e-9, atol=0)
    assert terms["meta_loss_after"] < terms["meta_loss_before"]


def test_the_report_changes_no_number_and_costs_two_passes_forward_and_one_backward():
    found = []
    for report in (False, True):
        problem = Problem(L1(6.0))
        defense = defense_for(problem.threat, meta_report=report).double()
        with PassMeter(problem.model) as meter:
            views = problem.adapt(defense)
        found.append((meter.forwards / 6, meter.backwards / 6, vector(defense.noise), views))
    (forwards, backwards, weights, views), told = found
    assert (forwards + 2, backwards + 1) == told[:2]
    assert torch.equal(weights, told[2])
    assert torch.equal(views.x_aug, told[3].x_aug)
    assert told[3].terms.keys() - views.terms.keys() == {"meta_loss_before", "meta_loss_after"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"meta_every": -1}, r"MNGAC: meta_every must be a number of steps, got -1"),
        ({"rate": -0.5}, r"MNGAC: rate must be finite and at least 0, got -0\.5"),
        ({"rate": float("nan")}, r"MNGAC: rate must be finite and at least 0, got nan"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_error(options, message):
    with pytest.raises(InputError, match=message):
        defense_for(L2(1.2), **options)


class TestANT:
    """Adversarial noise training."""

    threat = L2(0.6)

    def setup(self, dtype: torch.dtype = torch.float64):
        x = torch.full((6, 1, 5, 5), 0.5, dtype=dtype)
        batch = Batch(x, torch.arange(6) % 3, torch.arange(6))
        defense = ANT(NoiseGenerator(1, width=3, seed=1), self.threat).to(dtype)
        return network(1, seed=2, classes=3).to(dtype).train(), batch, defense

    def test_the_noise_is_as_long_as_the_radius_where_the_box_does_not_bind(self):
        model, batch, defense = self.setup()
        views = defense.craft(model, batch, generator=seeded())
        assert views.detach().sub(0.5).abs().max() < 0.5
        distance = self.threat.distance(views.detach(), batch.x)
        torch.testing.assert_close(distance, torch.full_like(distance, 0.6), rtol=1e-6, atol=0)

    def test_the_noise_is_shorter_where_the_box_binds(self):
        model, batch, defense = self.setup()
        dark = Batch(torch.zeros_like(batch.x), batch.y, batch.index)
        views = defense.craft(model, dark, generator=seeded()).detach()
        assert (self.threat.distance(views, dark.x) < 0.6).all()
        assert views.min() == 0

    def test_a_silent_generator_gives_finite_images_and_gradients(self):
        model, batch, defense = self.setup()
        for parameter in defense.noise.parameters():
            nn.init.zeros_(parameter)
        defense.noise.draw = lambda x, generator: torch.zeros_like(x.new_empty(6, 1, 7, 7))
        views = defense.craft(model, batch, generator=seeded())
        assert torch.equal(defense.adapt(model, batch, views, lr=0.1), batch.x)
        assert vector(defense.noise).isfinite().all()

    def test_the_generator_climbs_the_loss_at_the_rate_of_its_squared_gradient(self):
        model, batch, defense = self.setup()
        lr, values = 1e-4, []
        start = vector(defense.noise)
        for _ in range(2):  # before and after the step, on the same noise
            views = defense.craft(model, batch, generator=seeded())
            values.append(F.cross_entropy(model(views), batch.y).item())
            if len(values) == 1:
                defense.adapt(model, batch, views, lr=lr)
        gradient = (vector(defense.noise) - start) / lr
        assert values[1] > values[0]
        expected = lr * gradient.square().sum().item()
        assert values[1] - values[0] == pytest.approx(expected, rel=0.01)

    @pytest.mark.parametrize(("share", "clean"), [(0.0, 0), (0.5, 3), (0.75, 4)])
    def test_a_share_of_the_batch_stays_clean(self, share, clean):
        model, batch, _ = self.setup()
        defense = ANT(NoiseGenerator(1), self.threat, clean_share=share).double()
        views = random_images(6, 1, 5, 5, seed=8, dtype=torch.float64)
        model.eval()
        expected = F.cross_entropy(model(torch.cat((batch.x[:clean], views[clean:]))), batch.y)
        torch.testing.assert_close(defense.loss(model, batch, views).total, expected)
