"""What every defense of the table promises."""

from __future__ import annotations

import copy
import io
import math

import pytest
import torch
from torch import nn

from linear_oracles import network, random_images
from multirobust.attacks import PassMeter, attacking
from multirobust.attacks.choosing import Chosen
from multirobust.config import AttackConfig, DefenseConfig, NormAttack, Recipe, ThreatConfig
from multirobust.data import Batch
from multirobust.defenses import DEFENSES, NEEDS_UNLABELED, ConsistencyViews, PairedViews, build
from multirobust.errors import InputError
from multirobust.threats import MixedThreat

T = 2
RECIPE = Recipe(
    threats=ThreatConfig(preset="digits", density=0.05),
    attack=AttackConfig(
        linf=NormAttack(steps=T, step_size=0.05),
        l2=NormAttack(steps=T, step_size=0.3),
        l1=NormAttack(steps=T, step_size=1.0),
    ),
    defense=DefenseConfig(
        msd_steps=T, msd_linf=0.05, msd_l2=0.3, msd_l1=1.0, apgd_steps=T, spatial_draws=3
    ),
)
OFFICIAL = RECIPE.model_copy(
    update={
        "defense": RECIPE.defense.model_copy(
            update={"conditioning": "noise", "generator_optimizer": "sgd"}
        )
    }
)
LR = 0.05
every_defense = pytest.mark.parametrize("name", DEFENSES)


def sampling(sampler: str, **more) -> Recipe:
    """The recipe with another choice of attacks; `apgd_steps` leaves room for a race."""
    settings = {"sampler": sampler, "apgd_steps": T + 1, "shapley_every": 2, **more}
    return RECIPE.model_copy(update={"defense": RECIPE.defense.model_copy(update=settings)})


SAMPLERS = ("uniform", "error", "shapley", "hedge", "ucb", "router", "race", "cascade")
MIXED = ("sat_mixed", "mng_ac_mixed")
RESUMED = [(name, RECIPE) for name in DEFENSES] + [("mng_ac", OFFICIAL)]
RESUMED += [("sat_mixed", sampling(sampler)) for sampler in SAMPLERS]
RESUMED += [("mng_ac_mixed", sampling("router", sampler_quotas="error"))]
RESUMED_IDS = [*DEFENSES, "mng_ac_official", *SAMPLERS, "mng_ac_mixed_router"]


def batch(channels: int = 3, seed: int = 0) -> Batch:
    return Batch(random_images(8, channels, 6, 6, seed=seed), torch.arange(8) % 4, torch.arange(8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepare(defense, model, data, seed=0, lr=LR):
    """Craft and adapt as the training loop does."""
    generator = seeded(seed)
    with attacking(model, "batch"):
        views = defense.craft(model, data, generator=generator)
    return defense.adapt(model, data, views, lr=lr, generator=generator)


class Training:
    """A model, a defense and an optimizer: one step of the training loop at a time."""

    def __init__(self, name: str, recipe: Recipe = RECIPE, *, channels: int = 3, seed: int = 0):
        self.model = network(channels, seed=seed).train()
        self.defense = build(name, recipe, channels=channels, seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=0.9)

    def step(self, data: Batch, seed: int):
        views = prepare(self.defense, self.model, data, seed)
        loss = self.defense.loss(self.model, data, views)
        self.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        self.optimizer.step()
        return loss

    def state(self) -> dict:
        parts = ("model", "defense", "optimizer")
        return {part: getattr(self, part).state_dict() for part in parts}

    def load(self, state: dict) -> None:
        for part, content in state.items():
            getattr(self, part).load_state_dict(content)


def assert_bits(actual, expected) -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_bits(actual[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_bits(one, other)
    else:
        assert actual == expected


@every_defense
@pytest.mark.parametrize("channels", [1, 3])
def test_one_step_is_finite_and_reaches_every_weight(name, channels):
    training = Training(name, channels=channels)
    loss = training.step(batch(channels), seed=0)
    assert loss.total.shape == ()
    assert loss.total.isfinite()
    assert loss.terms
    for term in loss.terms.values():
        assert term.shape == ()
        assert term.isfinite()
        assert not term.requires_grad
    for parameter in training.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@every_defense
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_craft_and_adapt_leave_the_model_and_the_batch_alone(name, training):
    model = network().train(training)
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    data, kept = batch(), batch()
    prepare(build(name, RECIPE, channels=3), model, data)
    assert_bits(dict(model.state_dict()), dict(before))
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(data.x, kept.x)
    assert torch.equal(data.y, kept.y)


@every_defense
def test_the_loss_leaves_no_gradient_in_what_the_defense_learns(name):
    training = Training(name)
    training.step(batch(), seed=0)
    assert all(parameter.grad is None for parameter in training.defense.parameters())


@every_defense
def test_the_loss_on_one_batch_falls(name):
    training, data = Training(name), batch()
    losses = [training.step(data, seed).total.item() for seed in range(15)]
    # Sampled defenses meet another attack at every step: compare averages.
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5]), losses


@pytest.mark.parametrize(("name", "recipe"), RESUMED, ids=RESUMED_IDS)
def test_a_saved_training_goes_on_bit_for_bit(name, recipe):
    training = Training(name, recipe)
    for seed in range(2):
        training.step(batch(seed=seed), seed)
    file = io.BytesIO()
    torch.save(training.state(), file)
    for seed in (2, 3, 4):
        training.step(batch(seed=seed), seed)
    file.seek(0)
    resumed = Training(name, recipe, seed=5)
    resumed.load(torch.load(file, weights_only=True))
    for seed in (2, 3, 4):
        resumed.step(batch(seed=seed), seed)
    assert_bits(resumed.state(), training.state())


@every_defense
def test_the_same_generator_gives_the_same_views_and_loss(name):
    losses = [Training(name).step(batch(), seed=1).total for _ in range(2)]
    assert torch.equal(*losses)


def images_and_threats(name, defense, views):
    """Every image besides the clean ones that the defense trains on, with its threats."""
    if name == "standard":
        return []
    if isinstance(views, ConsistencyViews):
        made = (views.x_adv, views.x_aug)
        return [(images, (views.threat,)) for images in made if images is not None]
    if name == "adv_avg":
        return [(view, attack.threats) for view, attack in zip(views, defense.attacks, strict=True)]
    if isinstance(views, Chosen):
        return [(views.x_adv, (MixedThreat(defense.sampler.engine.threats, views.allotment),))]
    if isinstance(views, PairedViews):
        images = (views.key, views.other)
        return [(v, attack.threats) for v, attack in zip(images, defense.attacks, strict=True)]
    if name in ("trades", "rst_linf"):
        return [(views, defense.attack.threats)]
    if name == "ant":
        return [(views, (defense.threat,))]
    drawn = defense.sampler.attacks[defense.sampler.draws.index(1)]
    return [(views, drawn.threats)]


@every_defense
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_images_that_are_trained_on_lie_in_their_threat(name, seed):
    defense, data = build(name, RECIPE, channels=3, seed=seed), batch(seed=seed)
    views = prepare(defense, network().train(), data, seed)
    for images, threats in images_and_threats(name, defense, views):
        assert not images.requires_grad
        assert images.min() >= 0
        assert images.max() <= 1
        shares = [t.distance(images.double(), data.x.double()) / t.radius for t in threats]
        assert (torch.stack(shares).amin(0) <= 1 + 1e-6).all()
        assert not torch.equal(images, data.x)


PASSES = {  # forward and backward passes of one step, in images of the batch
    "standard": (1, 1),
    "adv_linf": (T + 1, T + 1),
    "adv_l2": (T + 1, T + 1),
    "adv_l1": (T + 1, T + 1),
    "trades": (T + 1 + 2, T + 2),
    "adv_avg": (3 * T + 3, 3 * T + 3),
    "adv_max": (3 * T + 3 + 1, 3 * T + 1),
    "msd": (T * 4 + 1, T + 1),
    "ant": (2, 2),
    "sat": (T + 1, T + 1),
    "sat_ac": (T + 3, T + 3),
    "mng_ac": (T + 2 + 3, T + 3 + 3),
    "mng_ac_spatial": (T + 2 + 3, T + 3 + 3),
    "rst_linf": (T + 1 + 2, T + 2),
    "mng_ac_rst": (T + 2 + 3, T + 3 + 3),
    "e_at": (T + 1 + 1, T + 1),
    "ramp": (2 * (T + 1) + 3 + 1, 2 * T + 3 + 1),
    "sat_mixed": (T + 1 + 1, T + 1),
    "mng_ac_mixed": (T + 1 + 2 + 3, T + 3 + 3),
    "plus": (RECIPE.defense.plus_steps + 1 + 2, RECIPE.defense.plus_steps + 2),
}


@every_defense
def test_a_step_costs_the_passes_that_the_documentation_tells(name):
    # Of mng_ac_spatial seed 0 draws the spatial attack, whose passes depend on the model.
    training, data = Training(name, seed=1 if name == "mng_ac_spatial" else 0), batch()
    with PassMeter(training.model) as meter:
        training.step(data, seed=0)
    assert (meter.forwards / len(data), meter.backwards / len(data)) == PASSES[name]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_image_lies_in_the_threat_that_was_chosen_for_it(name, sampler, seed):
    defense = build(name, sampling(sampler), channels=3, seed=seed)
    data = batch(seed=seed)
    views = prepare(defense, network().train(), data, seed)
    for images, (threat,) in images_and_threats(name, defense, views):
        share = threat.distance(images.double(), data.x.double()) / threat.radius
        assert (share <= 1 + 1e-6).all()
        assert not torch.equal(images, data.x)


EXTRA = {  # forward and backward passes of an image besides those of a drawn attack of T + 1 steps
    "uniform": (0, 0),
    "error": (0, 0),
    "hedge": (0, 0),
    "ucb": (0, 0),
    "shapley": (3 * (T + 2), 3 * (T + 1)),
    "router": (3 * (T + 2), 3 * (T + 1)),
    "race": (3 * (T + 2) + 2, 3 * (T + 1) + 2),
}


@pytest.mark.parametrize("sampler", EXTRA)
def test_a_step_of_a_sampler_costs_what_the_documentation_tells(sampler):
    """In the first step all attacks are tried on all images, to learn their quotas."""
    training, data = Training("sat_mixed", sampling(sampler)), batch()
    extra = []
    for seed in range(2):
        with PassMeter(training.model) as meter:
            training.step(data, seed)
        forwards, backwards = meter.forwards / len(data), meter.backwards / len(data)
        extra.append((forwards - (T + 3), backwards - (T + 2)))
    laps = (2, 2) if sampler == "race" else (0, 0)
    assert extra == [EXTRA[sampler], laps]
    probed = tuple((a - b) * len(data) for a, b in zip(EXTRA[sampler], laps, strict=True))
    assert training.defense.sampler.extra_passes == probed


def test_a_drawn_spatial_attack_costs_no_backward_pass_and_at_most_its_draws():
    training, data = Training("mng_ac_spatial"), batch()
    sampler = training.defense.sampler
    sampler.attacks = sampler.attacks[-1:]
    sampler.draws = [0]
    with PassMeter(training.model) as meter, pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(sampler), "probabilities", lambda _: [1.0])
        training.step(data, seed=0)
    assert 1 + 5 <= meter.forwards / len(data) <= RECIPE.defense.spatial_draws + 5
    assert meter.backwards / len(data) == 6


def test_only_gradient_projection_changes_the_weights_at_the_end_of_an_epoch():
    for name in DEFENSES:
        training = Training(name)
        training.step(batch(), seed=0)
        before = copy.deepcopy(training.model.state_dict())
        training.defense.after_epoch(training.model)
        pairs = zip(training.model.state_dict().values(), before.values(), strict=True)
        changed = any(not torch.equal(one, other) for one, other in pairs)
        assert changed == (name == "ramp"), name


def test_the_defenses_that_need_unlabeled_images_are_names_of_the_table():
    assert NEEDS_UNLABELED.issubset(DEFENSES)


def test_restarts_repeat_every_training_attack():
    attack = RECIPE.attack.model_copy(update={"restarts": 2})
    recipe = RECIPE.model_copy(update={"attack": attack})
    training, data = Training("sat", recipe), batch()
    with PassMeter(training.model) as meter:
        training.step(data, seed=0)
    assert meter.forwards / len(data) == 2 * (T + 1) + 1


@every_defense
def test_double_precision_is_kept_to_the_loss(name):
    model, defense = network().double().train(), build(name, RECIPE, channels=3).double()
    data = batch()
    data = Batch(data.x.double(), data.y, data.index)
    loss = defense.loss(model, data, prepare(defense, model, data))
    assert loss.total.dtype == torch.float64


@every_defense
def test_half_precision_is_raised_to_the_loss(name):
    model, defense = network().train(), build(name, RECIPE, channels=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = defense.loss(model, batch(), prepare(defense, model, batch()))
    assert loss.total.dtype == torch.float32
    assert math.isfinite(loss.total.item())


def test_an_unknown_name_is_one_clear_error():
    with pytest.raises(InputError, match=r"Unknown defense: 'mngac'\. Did you mean 'mng_ac'"):
        build("mngac", RECIPE, channels=3)


def test_the_seed_decides_the_generator_and_the_draws():
    one, same, other = (build("mng_ac", RECIPE, channels=3, seed=s) for s in (1, 1, 2))
    weights = [nn.utils.parameters_to_vector(d.noise.parameters()) for d in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
