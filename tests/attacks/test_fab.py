"""FAB: its steps against programming solvers, and its distances against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, linprog, minimize
from torch import Tensor, nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import PGD, PassMeter, attacking
from multirobust.attacks.engine import run_rows
from multirobust.attacks.fab import FAB, step_to_hyperplane
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf, Threat

NORMS = {"linf": torch.inf, "l2": 2, "l1": 1}
SHAPE = (2, 4, 4)
BALLS = (Linf(0.1), L2(0.4), L1(1.0))

every_norm = pytest.mark.parametrize("norm", NORMS)
every_ball = pytest.mark.parametrize("threat", BALLS, ids=lambda t: t.norm)


# ---- the step to a plane within the box


def planes(count: int, size: int, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points with pixels at 0 and 1, normals with zeros, and values of both signs and all sizes."""
    x = random_images(count, 1, 1, size, seed=seed, dtype=torch.float64).flatten(1)
    normal = random_tensor(count, size, seed=seed + 1, dtype=torch.float64)
    normal = normal * (random_tensor(count, size, seed=seed + 2) > -0.8)
    value = random_tensor(count, seed=seed + 3, dtype=torch.float64) * size**0.5
    return x, normal, value


def smallest_step(norm: str, x: np.ndarray, normal: np.ndarray, value: float) -> float:
    """Return the least norm of a step to the plane within the box, by programming."""
    n = len(x)
    box = list(zip(-x, 1 - x, strict=True))
    if norm == "linf":  # least t with |d| <= t
        eye, one = np.eye(n), np.ones((n, 1))
        answer = linprog(
            np.eye(n + 1)[n],
            A_ub=np.block([[eye, -one], [-eye, -one]]),
            b_ub=np.zeros(2 * n),
            A_eq=np.append(normal, 0)[None],
            b_eq=[-value],
            bounds=[*box, (0, None)],
        )
        return answer.fun
    if norm == "l1":  # d = up - down
        answer = linprog(
            np.ones(2 * n),
            A_eq=np.concatenate((normal, -normal))[None],
            b_eq=[-value],
            bounds=[(0, high) for _, high in box] + [(0, -low) for low, _ in box],
        )
        return answer.fun

    def moved(mu: float) -> np.ndarray:  # stationary: d = mu * normal within the box
        return np.clip(mu * normal, -x, 1 - x)

    mu = brentq(lambda mu: normal @ moved(mu) + value, -1e6, 1e6, xtol=1e-14)
    return float(np.linalg.norm(moved(mu)))


def crosses(x: Tensor, normal: Tensor, value: Tensor) -> Tensor:
    """Tell for each plane whether any point of the box lies on it."""
    least = value + torch.minimum(-normal * x, normal * (1 - x)).sum(1)
    most = value + torch.maximum(-normal * x, normal * (1 - x)).sum(1)
    return (least < 0) & (most > 0)


@every_norm
@pytest.mark.parametrize("size", [1, 2, 5, 12])
def test_the_step_is_the_smallest_to_the_plane_within_the_box(norm, size):
    x, normal, value = planes(40, size)
    step = step_to_hyperplane(norm, x, normal, value)
    reachable = crosses(x, normal, value)
    assert 5 < reachable.sum() < 40
    on_plane = value + (normal * step).sum(1)
    assert on_plane[reachable].abs().max() < 1e-12
    assert (x + step).min() >= 0
    assert (x + step).max() <= 1
    length = torch.linalg.vector_norm(step, NORMS[norm], dim=1)
    for row in reachable.nonzero().flatten().tolist():
        best = smallest_step(norm, x[row].numpy(), normal[row].numpy(), value[row].item())
        assert length[row].item() == pytest.approx(best, rel=1e-7, abs=1e-9)


def test_the_oracle_of_l2_agrees_with_quadratic_programming():
    x, normal, value = (tensor.numpy() for tensor in planes(12, 4, seed=9))
    for row in crosses(*planes(12, 4, seed=9)).nonzero().flatten().tolist():
        answer = minimize(
            lambda d: d @ d,
            np.zeros(4),
            jac=lambda d: 2 * d,
            method="SLSQP",
            bounds=list(zip(-x[row], 1 - x[row], strict=True)),
            constraints={"type": "eq", "fun": lambda d, r=row: normal[r] @ d + value[r]},
            options={"ftol": 1e-14},
        )
        expected = smallest_step("l2", x[row], normal[row], value[row])
        assert answer.fun**0.5 == pytest.approx(expected, abs=1e-6)


@every_norm
def test_without_a_point_on_the_plane_the_step_ends_at_the_closest_corner(norm):
    x, normal, value = planes(40, 5)
    step = step_to_hyperplane(norm, x, normal, value)
    toward = -value.sign()[:, None] * normal
    corner = torch.where(toward > 0, 1 - x, -x) * (normal != 0)
    beyond = ~crosses(x, normal, value)
    assert beyond.sum() > 5
    torch.testing.assert_close(step[beyond], corner[beyond])


@every_norm
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e6, 1e30])
def test_the_step_does_not_depend_on_the_scale_of_the_function(norm, scale):
    x, normal, value = (tensor.float() for tensor in planes(20, 12))
    expected = step_to_hyperplane(norm, x, normal, value)
    step = step_to_hyperplane(norm, x, normal * scale, value * scale)
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-5)


@every_norm
@pytest.mark.parametrize("value", [0.0, 1.0, -1e30, float("inf")])
def test_no_slope_is_no_step(norm, value):
    x = random_images(3, 1, 2, 2).flatten(1)
    step = step_to_hyperplane(norm, x, torch.zeros(3, 4), torch.full((3,), value))
    assert torch.equal(step, torch.zeros(3, 4))


@every_norm
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-38, 1e38, float("inf"), -float("inf")])
def test_extreme_values_and_slopes_over_many_decades_stay_finite_and_in_the_box(norm, value):
    x = random_images(6, 1, 8, 8).flatten(1)
    normal = random_tensor(6, 64, seed=2) * 10.0 ** (10 * random_tensor(6, 64, seed=3))
    step = step_to_hyperplane(norm, x, normal, torch.full((6,), value))
    assert step.isfinite().all()
    assert (x + step).min() >= -1e-6
    assert (x + step).max() <= 1 + 1e-6
    if value == 0:
        assert step.abs().max() == 0


# ---- the attack


def closest_boundary(model: HalfSpace, norm: str, x: Tensor) -> Tensor:
    """Return the distance of each image to score = 0 within the box, float64."""
    weight = model.weight.detach().double().numpy()
    scores = model.score(x).detach().double().tolist()
    rows = x.flatten(1).double().numpy()
    distances = [smallest_step(norm, r, weight, s) for r, s in zip(rows, scores, strict=True)]
    return torch.tensor(distances, dtype=torch.float64)


def rows(x: Tensor, y: Tensor, target: Tensor, restart: int = 0) -> dict[str, Tensor]:
    """What the engine tells the attack about new rows."""
    return {"x": x, "y": y, "target": target, "restart": torch.full_like(y, restart)}


def closest_found(attack: FAB, model: nn.Module, x: Tensor, y: Tensor, restart: int = 0) -> Tensor:
    """Return the least distance of a wrong query, for one row an image; the ball is moot."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        target = model(x).scatter(1, y[:, None], -torch.inf).argmax(1)
    state = attack.begin(rows(x, y, target, restart), generator)
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    for _ in range(attack.iterations):
        query = attack.query(state).detach().requires_grad_()
        logits = model(query)
        (gradient,) = torch.autograd.grad(attack.loss(state, logits).sum(), query)
        distance = attack.threat.distance(query.detach().double(), x.double())
        wrong = logits.argmax(1) != y
        best = torch.where(wrong, torch.minimum(best, distance), best)
        with torch.no_grad():
            state = attack.advance(state, logits.detach(), gradient, generator)
    return best


def predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


@every_ball
@pytest.mark.parametrize(
    ("options", "excess"),
    [
        ({"iterations": 12}, 0.004),
        ({"iterations": 12, "search": 0}, 0.01),
        ({"iterations": 12, "restarts": 2}, 0.004),
        ({"iterations": 30, "restarts": 2, "restart": 1}, 0.02),
    ],
    ids=str,
)
def test_on_a_linear_model_it_finds_the_closest_image_of_the_other_class(threat, options, excess):
    model = HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1)
    x = random_images(12, *SHAPE, seed=5)
    settings, restart = dict(options), options.get("restart", 0)
    settings.pop("restart", None)
    found = closest_found(FAB(threat=threat, **settings), model, x, predicted(model, x), restart)
    least = closest_boundary(model, threat.norm, x)
    assert (found >= least * (1 - 1e-5)).all(), "the oracle is wrong"
    assert (found <= least * (1 + excess)).all(), (found / least).max()


@every_norm
@pytest.mark.parametrize("batch_size", [3, 12])
def test_on_a_linear_model_it_breaks_what_can_be_broken_and_nothing_else(norm, batch_size):
    model = HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1)
    x = random_images(12, *SHAPE, seed=5)
    y, distance = predicted(model, x), closest_boundary(model, norm, x)
    ball = {"linf": Linf, "l2": L2, "l1": L1}[norm](distance.median().item() * 1.004)
    x_adv = run_rows(FAB(threat=ball, iterations=12), model, x, y, batch_size=batch_size)
    assert torch.equal(predicted(model, x_adv) != y, distance < ball.radius)


@every_ball
def test_the_first_start_is_the_image_and_the_others_lie_within_half_the_radius(threat):
    x = random_images(40, *SHAPE, seed=5)
    y, attack = torch.zeros(40).long(), FAB(threat=threat, restarts=3)
    starts = [
        attack.query(attack.begin(rows(x, y, y + 1, restart), torch.Generator().manual_seed(1)))
        for restart in range(2)
    ]
    assert torch.equal(starts[0], x)
    distance = threat.distance(starts[1], x)
    assert (distance > 0).all()
    assert (distance <= threat.radius / 2 * (1 + 1e-6)).all()
    mixed = rows(x, y, y + 1) | {"restart": torch.arange(40) % 2}
    query = attack.query(attack.begin(mixed, torch.Generator().manual_seed(1)))
    assert torch.equal(
        query, torch.where(mixed["restart"].bool()[:, None, None, None], *starts[::-1])
    )


@every_ball
def test_the_search_comes_closer_than_the_walk_alone(threat):
    model, x = network().eval(), random_images(12, 3, 6, 6)
    y = predicted(model, x)
    searched = closest_found(FAB(threat=threat, iterations=15), model, x, y)
    without = closest_found(FAB(threat=threat, iterations=12, search=0), model, x, y)
    assert without.isfinite().all()
    assert (searched <= without).all()
    assert (searched < without * 0.9995).double().mean() > 0.5


@every_ball
def test_it_keeps_the_closest_wrong_image_it_asked_about(threat):
    model, x = network().eval(), random_images(8, 3, 6, 6)
    y = predicted(model, x)
    attack = FAB(threat=threat, iterations=12, search=0)
    generator = torch.Generator()
    state = attack.begin(rows(x, y, (y + 1) % 4), generator)
    for _ in range(12):
        query = attack.query(state).detach().requires_grad_()
        logits = model(query)
        (gradient,) = torch.autograd.grad(attack.loss(state, logits).sum(), query)
        with torch.no_grad():
            state = attack.advance(state, logits.detach(), gradient, generator)
            known = state["distance"].isfinite()
            assert (model(state["best"]).argmax(1) != y)[known].all()
            distance = threat.distance(state["best"], x)
            torch.testing.assert_close(state["distance"][known], distance[known])
    assert known.any()


@every_ball
def test_no_weaker_than_pgd_on_an_unprotected_network(threat):
    model, x = network().eval(), random_images(8, 3, 6, 6, seed=4)
    y = predicted(model, x)
    pgd = PGD(threat=threat, steps=50, step_size=threat.radius / 8, keep="best")
    by_pgd = (predicted(model, pgd(model, x, y)) != y).sum().item()
    by_fab = (predicted(model, FAB(threat=threat, iterations=20)(model, x, y)) != y).sum().item()
    assert by_pgd > 0
    assert by_fab >= by_pgd - 1


@every_ball
def test_images_found_lie_in_ball_and_box_and_others_are_clean(threat):
    model, x = network().eval(), random_images(10, 3, 6, 6, seed=6)
    y = predicted(model, x)
    small = type(threat)(threat.radius / 3)
    x_adv = FAB(threat=small, iterations=12)(model, x, y)
    assert (small.distance(x_adv.double(), x.double()) <= small.radius).all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    stands = predicted(model, x_adv) == y
    assert 0 < stands.sum() < 10
    assert torch.equal(x_adv[stands], x[stands])
    assert (x_adv != x).flatten(1).any(1)[~stands].all()


@every_ball
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_all_gone_for(threat, classes):
    model = HalfSpace(random_tensor(*SHAPE, seed=3), bias=0.1, classes=classes)
    x = random_images(4, *SHAPE, seed=5)
    y = torch.arange(4) % classes
    with PassMeter(model) as meter, attacking(model):
        x_adv = FAB(threat=type(threat)(1e-4), iterations=5, search=1)(model, x, y)
    standing = int((model(x).argmax(1) == y).sum())
    assert meter.backwards >= 5 * standing * (classes - 1)
    assert x_adv.shape == x.shape


@every_ball
def test_a_misclassified_image_is_returned_as_it_is(threat):
    model, x = network().eval(), random_images(4, 3, 6, 6)
    y = (predicted(model, x) + 1) % 4
    assert torch.equal(FAB(threat=threat, iterations=4)(model, x, y), x)


class Broken(nn.Module):
    """Linear logits that are NaN or infinite far from the middle of the box."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.flatten(1)
        logits = pixels[:, :4] - pixels[:, 4:8]
        return torch.where(pixels[:, :1] > 0.55, self.value, logits)


@every_ball
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e38])
def test_logits_that_are_not_finite_leave_the_images_finite(threat, value):
    x = random_images(6, *SHAPE, seed=8) / 4 + 0.4
    x_adv = FAB(threat=threat, iterations=10)(Broken(value), x, torch.arange(6) % 4)
    assert x_adv.isfinite().all()
    assert (threat.distance(x_adv.double(), x.double()) <= threat.radius).all()


@every_ball
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_images_of_other_dtypes_are_attacked_at_least_in_float32(threat, dtype):
    model, x, y = network().to(torch.float64).eval(), random_images(3, 3, 6, 6), torch.arange(3)

    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.double())

    x_adv = FAB(threat=threat, iterations=6)(Cast(), x.to(dtype), y)
    assert x_adv.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    "wrong",
    [
        {"targets": 0},
        {"alpha_max": 1.1},
        {"alpha_max": -0.1},
        {"eta": 0.9},
        {"eta": float("nan")},
        {"beta": 0.0},
        {"beta": 1.2},
        {"search": -1},
        {"iterations": 0},
        {"restarts": 0},
    ],
    ids=str,
)
def test_a_setting_outside_its_range_is_named(wrong):
    (name,) = wrong
    with pytest.raises(InputError, match=f"FAB: {name} must be .*got"):
        FAB(threat=Linf(0.1), **wrong)


def test_the_defaults_are_the_published_ones():
    assert repr(FAB(threat=Linf(0.1))) == (
        "FAB(threat=Linf(radius=0.1), iterations=100, targets=9, restarts=1, eot=1, "
        "alpha_max=0.1, eta=1.05, beta=0.9, search=3)"
    )


def test_a_threat_of_another_norm_is_an_error():
    class Other(Threat):
        norm = "l7"
        distance = project = ascent_direction = sample = Linf.distance

    with pytest.raises(InputError, match="'l7'"):
        FAB(threat=Other(0.1))
