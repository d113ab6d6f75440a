"""StAdv: the flow field, its roughness and bound, and the ascent that all fields share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from linear_oracles import network, random_images, random_tensor
from multirobust.attacks import CrossEntropy, Margin, PassMeter
from multirobust.attacks.stadv import StAdv, roughness_gradient
from multirobust.data import digits
from multirobust.errors import InputError
from multirobust.models import build
from multirobust.threats import Transformation

X = random_images(4, 3, 9, 9, seed=5)
Y = torch.arange(4)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow(x: Tensor, right: float = 0, down: float = 0) -> Tensor:
    """The same displacement everywhere, in radii."""
    return x.new_tensor((right, down))[:, None, None].expand(len(x), 2, *x.shape[2:])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14), (3, 64, 64)])
def test_no_flow_gives_the_image(shape):
    x = random_images(2, *shape, seed=1)
    x_adv = StAdv(radius=0.1, steps=1).render(x, {"field": flow(x)})
    torch.testing.assert_close(x_adv, x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("side", [8, 32])
def test_the_radius_is_a_displacement_in_half_sides(side):
    x = random_images(2, 3, side, side, seed=1, dtype=torch.float64)
    attack = StAdv(radius=2 * 2 / side, steps=1)  # two pixels
    x_adv = attack.render(x, {"field": flow(x, right=1, down=-0.5)})
    expected = F.pad(x, (0, 2, 1, 0), mode="replicate")[..., :side, 2:]
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


def test_each_axis_of_an_oblong_image_has_its_own_side():
    x = random_images(2, 1, 8, 16, seed=1, dtype=torch.float64)
    attack = StAdv(radius=0.25, steps=1)  # one pixel of 8, two of 16
    x_adv = attack.render(x, {"field": flow(x, right=1, down=1)})
    expected = F.pad(x, (0, 2, 0, 1), mode="replicate")[..., 1:, 2:]
    torch.testing.assert_close(x_adv, expected, rtol=0, atol=1e-12)


def test_derivatives_by_the_flow():
    x = random_images(2, 2, 5, 6, seed=4, dtype=torch.float64) * 0.8 + 0.1
    field = torch.rand(2, 2, 5, 6, generator=seeded(), dtype=torch.float64) * 0.8 + 0.1
    attack = StAdv(radius=0.1, steps=1)
    assert torch.autograd.gradcheck(
        lambda f: attack.render(x, {"field": f}), (field.requires_grad_(),)
    )


@pytest.mark.parametrize("shape", [(2, 1, 7), (2, 2, 4, 5), (2, 3, 3, 4, 5)])
def test_roughness_gradient_is_that_of_the_distances_between_all_neighbors(shape):
    field = random_tensor(*shape, seed=2, dtype=torch.float64).requires_grad_()
    roughness = torch.zeros((), dtype=torch.float64)
    for axis in range(2, field.dim()):
        for one, other in ((1, 0), (0, 1)):
            size = field.shape[axis] - 1
            gap = field.narrow(axis, one, size) - field.narrow(axis, other, size)
            roughness = roughness + gap.norm(dim=1).sum()
    (expected,) = torch.autograd.grad(roughness, field)
    torch.testing.assert_close(roughness_gradient(field.detach()), expected, rtol=0, atol=1e-5)


def test_roughness_has_no_gradient_where_the_field_is_constant():
    assert not roughness_gradient(torch.full((2, 2, 4, 4), 0.7)).any()


def test_steps_are_those_of_adam():
    attack = StAdv(radius=0.05, steps=6, step_size=0.01, smoothness=0.0)
    parameters = attack.start(X, seeded())
    leaf = parameters["field"].clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.01, betas=(0.9, 0.9), maximize=True)
    for step in range(attack.steps):
        leaf.grad = random_tensor(*leaf.shape, seed=step)
        parameters = attack.ascend(parameters, {"field": leaf.grad}, step)
        adam.step()
        torch.testing.assert_close(parameters["field"], leaf.detach())


def test_the_smoothness_pulls_in_the_first_half_of_the_steps_only():
    rough = random_tensor(4, 2, 9, 9, seed=3).clamp(-1, 1)
    zero = torch.zeros_like(rough)
    attack = StAdv(radius=0.05, steps=10, step_size=0.01, smoothness=1.0)
    parameters = {"field": rough, "mean": zero, "square": zero}
    pulled = attack.ascend(parameters, {"field": zero}, 0)["field"]
    assert ((pulled - rough) * roughness_gradient(rough)).sum() < 0
    assert torch.equal(attack.ascend(parameters, {"field": zero}, 5)["field"], rough)


@given(
    radius=st.floats(1e-3, 0.9),
    step_size=st.floats(1e-3, 1),
    smoothness=st.sampled_from([0.0, 0.0025, 1e3]),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e15]),
    random_start=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_the_flow_stays_within_the_radius_through_the_ascent(
    radius, step_size, smoothness, scale, random_start
):
    attack = StAdv(
        radius=radius,
        steps=6,
        step_size=step_size,
        smoothness=smoothness,
        random_start=random_start,
    )
    parameters = attack.start(X, seeded())
    for step in range(attack.steps):
        assert parameters["field"].abs().max() <= 1
        x_adv = attack.render(X, parameters)
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        gradient = random_tensor(*parameters["field"].shape, seed=step) * scale
        parameters = attack.ascend(parameters, {"field": gradient}, step)
    assert parameters["field"].isfinite().all()


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network fitted to the digits, and 80 test images that it gets right."""
    data = digits()
    x, y = data.train.floats(), data.train.labels
    model = build("small_cnn", classes=10, channels=1, widths=(4, 8), seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    x, y = data.test.floats(), data.test.labels
    right = (model(x).argmax(1) == y).nonzero()[:80, 0]
    return model, x[right], y[right]


def test_a_greater_severity_breaks_as_many_or_more(trained):
    model, x, y = trained
    attacks = [StAdv(radius=radius, steps=8) for radius in StAdv.severities[1::6]]
    standing = [int((model(a(model, x, y)).argmax(1) == y).sum()) for a in attacks]
    assert standing == sorted(standing, reverse=True)
    assert standing[0] > standing[-1]


def test_the_ascent_beats_random_flows_of_the_same_radius(trained):
    model, x, y = trained
    attack, generator = StAdv(radius=0.1, steps=8, random_start=True), seeded()
    sampled = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(9):
        drawn = attack.render(x, attack.start(x, generator))
        sampled |= model(drawn).argmax(1) != y
    assert (model(attack(model, x, y)).argmax(1) != y).sum() > sampled.sum() + 10


def test_severities_are_the_twenty_published_ones():
    assert StAdv.severities[::19] == (0.005, 0.1)
    assert len(StAdv.severities) == 20
    assert StAdv.severities[9] == 0.05


@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_what_every_attack_promises(random_start, training):
    model, x = network().train(training), X.clone()
    attack = StAdv(radius=0.1, steps=4, random_start=random_start)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with PassMeter(model) as meter:
        x_adv = attack(model, x, Y, generator=seeded())
    assert (meter.forwards, meter.backwards) == (5 * len(x), 4 * len(x))
    assert torch.equal(x, X)
    assert (x_adv.shape, x_adv.dtype, x_adv.requires_grad) == (x.shape, x.dtype, False)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert model.training is training
    assert attack.threats == (Transformation("stadv", 0.1),)
    assert torch.equal(x_adv, attack(model, x, Y, generator=seeded()))
    assert torch.equal(x_adv, attack(model, x, Y, generator=seeded(4))) is not random_start


@pytest.mark.parametrize("objective", [Margin(), CrossEntropy()])
def test_a_batch_is_its_images_one_by_one(objective):
    model, x = network().double().eval(), X.double()
    attack = StAdv(radius=0.1, steps=5, objective=objective)
    alone = torch.cat([attack(model, x[i : i + 1], Y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(attack(model, x, Y), alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"radius": 0.0}, "positive"),
        ({"radius": 1.6}, "below 1, got 1.6; the published one is 0.05"),
        ({"step_size": 0.0}, "step_size must be a share of the radius"),
        ({"step_size": 1.5}, "step_size must be a share of the radius"),
        ({"smoothness": -1.0}, "smoothness must be a finite number from 0, got -1.0"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_wrong_settings_are_errors_that_say_what_is_right(settings, message):
    with pytest.raises(InputError, match=message):
        StAdv(**{"radius": 0.05, "steps": 5, **settings})
