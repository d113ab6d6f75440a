"""What every attack promises, whatever it does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from linear_oracles import network, random_images
from multirobust import catalog
from multirobust.attacks import (
    APGD,
    DLR,
    FAB,
    JPEGL1,
    JPEGL2,
    MSD,
    PGD,
    Attack,
    Elastic,
    Fog,
    Gabor,
    JPEGLinf,
    KLDivergence,
    LockstepAPGD,
    Margin,
    Projected,
    ReColor,
    Restarts,
    Round,
    Snow,
    SpatialGradient,
    SpatialGrid,
    SpatialRandom,
    Square,
    StAdv,
    TargetedDLR,
    Tournament,
    WorstCase,
    attacking,
)
from multirobust.threats import L1, L2, Linf, Threat

LINF, TWO, ONE = Linf(0.1), L2(0.6), L1(3.0, density=0.04)


def pgd(threat: Threat, **options) -> PGD:
    return PGD(threat=threat, steps=3, step_size=threat.radius / 2, **options)


THREE = tuple(pgd(threat) for threat in (LINF, TWO, ONE))
SHORT = {
    "opening": 4,
    "rounds": (Round(iterations=4, targets=2),),
    "probe": 3,
    "square": 5,
    "fab": 3,
}
ATTACKS: dict[str, Attack] = {
    "pgd_linf": pgd(LINF),
    "pgd_l2": pgd(TWO),
    "pgd_l1": pgd(ONE),
    "pgd_linf_best": pgd(LINF, keep="best"),
    "pgd_l2_best": pgd(TWO, keep="best"),
    "pgd_l1_best": pgd(ONE, keep="best"),
    "pgd_clean_start": pgd(TWO, random_start=False),
    "pgd_margin": pgd(LINF, objective=Margin()),
    "pgd_kl": pgd(LINF, objective=KLDivergence()),
    "apgd_linf": APGD(threat=LINF, iterations=9),
    "apgd_l2": APGD(threat=TWO, iterations=9, objective=DLR()),
    "apgd_l1": APGD(threat=ONE, iterations=9, restarts=2),
    "apgd_wide": APGD(threat=ONE, iterations=9, wide=True),
    "apgd_targeted": APGD(threat=TWO, iterations=9, objective=TargetedDLR(), targets=9),
    "lockstep_apgd_linf": LockstepAPGD(threat=LINF, steps=6),
    "lockstep_apgd_l2": LockstepAPGD(threat=TWO, steps=6),
    "lockstep_apgd_l1": LockstepAPGD(threat=ONE, steps=6),
    "fab_linf": FAB(threat=LINF, iterations=9),
    "fab_l2": FAB(threat=TWO, iterations=9, targets=1),
    "fab_l1": FAB(threat=ONE, iterations=9, restarts=2),
    "square_linf": Square(threat=LINF, iterations=9),
    "square_l2": Square(threat=L2(0.3), iterations=9),
    "square_l1": Square(threat=ONE, iterations=9, restarts=2),
    "tournament": Tournament(threat=LINF, **SHORT),
    "tournament_l1": Tournament(threat=ONE, **SHORT),
    "restarts": Restarts(pgd(ONE), 2),
    "worst_case": WorstCase(THREE),
    "worst_case_of_restarts": WorstCase((Restarts(pgd(LINF), 2), pgd(TWO)), Margin()),
    "msd": MSD(balls=(LINF, TWO, ONE), step_sizes=(0.05, 0.3, 1.5), steps=3),
    "spatial_grid": SpatialGrid(radius=30.0, angles=5, translations=3),
    "spatial_random": SpatialRandom(radius=30.0),
    "spatial_gradient": SpatialGradient(radius=30.0, steps=4),
    "projected": Projected(pgd(LINF), TWO),
    "stadv": StAdv(radius=0.1, steps=4),
    "recolor": ReColor(radius=0.1, steps=3, grid=(3, 4, 5)),
    **{
        kind.name: kind(radius=kind.severities[3], steps=5)
        for kind in (Elastic, JPEGLinf, JPEGL2, JPEGL1, Fog, Snow, Gabor)
    },
}
GRADIENT_FREE = (Square, SpatialGrid, SpatialRandom)
DETERMINISTIC = {
    "pgd_linf": pgd(LINF, random_start=False),
    "pgd_l2": pgd(TWO, random_start=False),
    "pgd_l1": pgd(ONE, random_start=False),
    "pgd_best": pgd(TWO, random_start=False, keep="best"),
    "fab_linf": ATTACKS["fab_linf"],
    "fab_l2": ATTACKS["fab_l2"],
    "fab_l1": FAB(threat=ONE, iterations=9),
    "lockstep_apgd_linf": ATTACKS["lockstep_apgd_linf"],
    "lockstep_apgd_l2": ATTACKS["lockstep_apgd_l2"],
    "lockstep_apgd_l1": ATTACKS["lockstep_apgd_l1"],
    "msd": ATTACKS["msd"],
    "worst_case": WorstCase((pgd(LINF, random_start=False), pgd(TWO, random_start=False))),
}
CLEAN_START = (
    "fab_l1",
    "fab_l2",
    "fab_linf",
    "lockstep_apgd_l1",
    "lockstep_apgd_l2",
    "lockstep_apgd_linf",
    "msd",
    "pgd_clean_start",
    "recolor",
    "spatial_grid",
    "stadv",
)
ELSEWHERE = {
    "brendel_bethge": "tests/attacks/test_minimum_norm.py",
    "carlini_wagner": "tests/attacks/test_minimum_norm.py",
    "elastic_net": "tests/attacks/test_minimum_norm.py",
    "salt_and_pepper": "tests/attacks/test_minimum_norm.py",
    "corruption": "tests/attacks/test_corruptions.py",
    "stored_images": "tests/attacks/test_stored.py",
}
"""Attacks that rest on an optional library or do not ask the model, and where they are tested."""
every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
X = random_images(6, 3, 6, 6, seed=21)
Y = torch.arange(6) % 4


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_admissible(attack: Attack, x_adv: Tensor, x: Tensor) -> None:
    assert x_adv.isfinite().all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    balls = [threat for threat in attack.threats if isinstance(threat, Threat)]
    shares = [ball.distance(x_adv.double(), x.double()) / ball.radius for ball in balls]
    assert not shares or (torch.stack(shares).amin(0) <= 1 + 1e-6).all()


def test_every_attack_of_the_catalog_is_tested():
    kinds = {
        "apgd": APGD,
        "fab": FAB,
        "lockstep_apgd": LockstepAPGD,
        "pgd": PGD,
        "msd": MSD,
        "worst_case": WorstCase,
        "restarts": Restarts,
        "projected": Projected,
        "square": Square,
        "tournament": Tournament,
        "spatial_grid": SpatialGrid,
        "spatial_random": SpatialRandom,
        "spatial_gradient": SpatialGradient,
        "stadv": StAdv,
        "recolor": ReColor,
        **{k.name: k for k in (Elastic, JPEGLinf, JPEGL2, JPEGL1, Fog, Snow, Gabor)},
    }
    assert kinds.keys() | ELSEWHERE.keys() == catalog.ATTACKS.keys()
    root = Path(__file__).parents[2]
    assert all((root / file).is_file() for file in ELSEWHERE.values())
    assert {type(attack) for attack in ATTACKS.values()} == set(kinds.values())


@every_attack
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_images_are_finite_within_threat_and_box_and_raise_their_objective(attack, training):
    model = network().train(training)
    x_adv = attack(model, X, Y, generator=seeded())
    assert x_adv.shape == X.shape
    assert x_adv.dtype == X.dtype
    assert not x_adv.requires_grad
    assert_admissible(attack, x_adv, X)
    if isinstance(attack, (Square, Tournament)):
        return  # its first query is random, and the last where the model errs already
    with torch.no_grad(), attacking(model):
        loss = getattr(attack, "objective", Margin()).bind(model, X, Y)
        assert loss(model(x_adv)).mean() > loss(model(X)).mean()


def mixed_modes(model: nn.Module) -> nn.Module:
    norms = [module for module in model.train().modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()
    norms[0].weight.requires_grad_(False)
    return model


def snapshot(model: nn.Module) -> tuple:
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [module.__dict__.get("track_running_stats") for module in model.modules()],
        [parameter.grad for parameter in model.parameters()],
    )


def assert_untouched(model: nn.Module, before: tuple) -> None:
    after = snapshot(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]
    assert all(gradient is None for gradient in after[4])


MODES = {"train": nn.Module.train, "eval": nn.Module.eval, "mixed": mixed_modes}


@every_attack
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_images_labels_and_model_are_left_as_they_were(attack, mode):
    model = mode(network())
    x, y = X.clone().requires_grad_(), Y.clone()
    before = snapshot(model)
    attack(model, x, y, generator=seeded())
    assert_untouched(model, before)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert x.requires_grad
    assert x.grad is None


class Failing(nn.Module):
    """A network that fails in the middle of an attack."""

    def __init__(self, failing_pass: int):
        super().__init__()
        self.network = network()
        self.left = failing_pass

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return logits


@every_attack
@pytest.mark.parametrize("failing_pass", [1, 3])
def test_the_model_is_left_as_it_was_when_it_raises(attack, failing_pass):
    if isinstance(attack, (SpatialGrid, SpatialRandom, Square)):
        failing_pass = 1  # these stop asking about images that the model gets wrong
    model = Failing(failing_pass)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        attack(model, X, Y, generator=seeded())
    assert_untouched(model, before)


@every_attack
def test_the_same_generator_gives_the_same_bits(attack):
    model = network().eval()
    assert torch.equal(
        attack(model, X, Y, generator=seeded()), attack(model, X, Y, generator=seeded())
    )
    assert torch.equal(attack(model, X, Y), attack(model, X, Y, generator=seeded(0)))


@pytest.mark.parametrize("name", [n for n in ATTACKS if n not in CLEAN_START])
def test_another_seed_gives_another_start(name):
    model = network().eval()
    one, other = (ATTACKS[name](model, X, Y, generator=seeded(s)) for s in (1, 2))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("attack", DETERMINISTIC.values(), ids=DETERMINISTIC)
def test_a_batch_is_its_images_one_by_one(attack):
    model, x = network().double().eval(), X.double()
    together = attack(model, x, Y)
    alone = torch.cat([attack(model, x[i : i + 1], Y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


@every_attack
def test_works_without_gradients_around_it_and_gives_the_same_bits(attack):
    model = network().eval()
    expected = attack(model, X, Y, generator=seeded())
    with torch.no_grad():
        assert torch.equal(attack(model, X, Y, generator=seeded()), expected)


@every_attack
def test_works_on_one_image(attack):
    model = network().eval()
    assert_admissible(attack, attack(model, X[:1], Y[:1], generator=seeded()), X[:1])


class _Scale(torch.autograd.Function):
    """x * weight, that records for which inputs a gradient is asked."""

    asked: list[tuple[bool, ...]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        _Scale.asked.append(ctx.needs_input_grad)
        return gradient * weight, (gradient * x).sum()


class Recorded(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(1.3))
        self.network = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(_Scale.apply(x, self.weight))


@every_attack
def test_weight_gradients_are_never_formed(attack):
    model = Recorded()
    _Scale.asked.clear()
    attack(model, X, Y, generator=seeded())
    assert isinstance(attack, GRADIENT_FREE) or len(_Scale.asked) >= 3
    assert set(_Scale.asked) <= {(True, False)}
    assert model.weight.requires_grad


class Flat(nn.Module):
    """Logits with the same slope everywhere."""

    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x.flatten(1)[:, :4]


@every_attack
def test_a_zero_gradient_gives_finite_images_within_the_threat(attack):
    assert_admissible(attack, attack(Flat(0.0), X, Y, generator=seeded()), X)


@every_attack
def test_saturated_logits_give_finite_images_within_the_threat(attack):
    assert_admissible(attack, attack(Flat(1e6), X, Y, generator=seeded()), X)


@every_attack
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_at_the_corners_of_the_box_stay_within_it(attack, value):
    x = torch.full_like(X, value)
    assert_admissible(attack, attack(network().eval(), x, Y, generator=seeded()), x)
