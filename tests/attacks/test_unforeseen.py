"""The unforeseen attacks: what all of them promise, whatever they draw."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from linear_oracles import network, random_images
from multirobust.attacks.unforeseen import (
    JPEGL1,
    JPEGL2,
    Elastic,
    Fog,
    Gabor,
    JPEGLinf,
    Snow,
    Unforeseen,
)
from multirobust.data import digits
from multirobust.errors import InputError
from multirobust.threats import Transformation

CLASSES = (Elastic, Fog, Gabor, JPEGL1, JPEGL2, JPEGLinf, Snow)
every_class = pytest.mark.parametrize("kind", CLASSES, ids=[kind.name for kind in CLASSES])
SIZES = [(3, 8, 8), (1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 13, 21), (1, 9, 8), (3, 64, 64)]


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def middle(kind: type[Unforeseen], steps: int = 200) -> Unforeseen:
    return kind(radius=kind.severities[2], steps=steps)


def excess(attack: Unforeseen, parameters: dict[str, Tensor]) -> float:
    """By how much the parameters leave their set; at most 0 within it."""
    match attack.name:
        case "elastic":
            return parameters["flow"].abs().max().item() - attack.radius
        case "fog":
            return max((level - 0.5).abs().max().item() for level in parameters.values()) - 0.5
        case "gabor":
            outside = parameters["weights"] * (1 - parameters["places"])
            return max(parameters["weights"].abs().max().item() - 1, outside.abs().max().item())
        case "snow":
            flakes = parameters["flakes"]
            corners = (flakes[..., :8, :8], flakes[..., -8:, -8:])
            means = max(corner.mean((2, 3)).max().item() for corner in corners)
            return max(means - 0.2, flakes.max().item() - 1, -flakes.min().item())
    coefficients = parameters["coefficients"].double()
    norm = {"jpeg_linf": torch.inf, "jpeg_l2": 2, "jpeg_l1": 1}[attack.name]
    size = torch.linalg.vector_norm(coefficients, norm, dim=1).max().item()
    cap = math.inf if attack.name == "jpeg_linf" else 2
    return max(size / attack.radius - 1, coefficients.abs().max().item() - cap)


@every_class
def test_six_published_radii_from_the_weakest_on(kind):
    assert len(kind.severities) == 6
    assert list(kind.severities) == sorted(set(kind.severities))
    attack = kind(radius=kind.severities[-1])
    assert attack.steps == 200
    assert attack.threats == (Transformation(kind.name, kind.severities[-1]),)
    moves_with_radius = kind not in (Fog, Gabor, Snow)
    published = attack.radius / math.sqrt(200) if moves_with_radius else 0.002236
    assert attack.step_size == pytest.approx(published, abs=1e-6)


@every_class
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_every_size_gives_finite_images_in_the_box(kind, shape):
    x = random_images(2, *shape, seed=5)
    attack = middle(kind)
    images = attack.render(x, attack.start(x, seeded()))
    assert images.shape == x.shape
    assert images.dtype == x.dtype
    assert images.isfinite().all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert not torch.equal(images, x)


@every_class
@pytest.mark.parametrize("severity", [0, 5])
def test_parameters_stay_within_the_radius_over_the_steps(kind, severity):
    attack = kind(radius=kind.severities[severity], steps=4)
    x, generator = random_images(3, 3, 64, 64, seed=8), seeded()
    parameters = attack.start(x, generator)
    assert excess(attack, parameters) <= 1e-6
    for step in range(6):
        gradients = {n: torch.randn(p.shape, generator=generator) for n, p in parameters.items()}
        parameters = attack.ascend(parameters, gradients, step)
        assert excess(attack, parameters) <= 1e-6


@every_class
def test_a_zero_gradient_keeps_the_parameters_finite(kind):
    attack, x = middle(kind), random_images(2, 3, 8, 8, seed=8)
    parameters = attack.start(x, seeded())
    zero = {name: torch.zeros_like(value) for name, value in parameters.items()}
    after = attack.ascend(parameters, zero, 0)
    assert all(value.isfinite().all() for value in after.values())
    assert excess(attack, after) <= 1e-6


EXACT = [kind for kind in CLASSES if kind is not Gabor]  # see the test of its gradient


@pytest.mark.parametrize("kind", EXACT, ids=[kind.name for kind in EXACT])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_gradient_of_the_rendering_is_that_of_finite_differences(kind, channels):
    x = 0.3 + 0.4 * random_images(2, channels, 6, 5, seed=9, dtype=torch.float64)
    attack = kind(radius=0.01 if kind is Snow else 0.1)
    parameters = attack.start(x, seeded())
    moving = [name for name in parameters if name != "streaks"]

    def render(*values: Tensor) -> Tensor:
        return attack.render(x, parameters | dict(zip(moving, values, strict=True)))

    values = [parameters[name].requires_grad_() for name in moving]
    assert torch.autograd.gradcheck(render, values, fast_mode=True)


class Recorded(nn.Module):
    """A network that remembers the logits of its first batch."""

    def __init__(self):
        super().__init__()
        self.network = network().double().eval()
        self.first: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        self.first = logits.detach() if self.first is None else self.first
        return logits


@every_class
def test_the_result_has_at_least_the_margin_of_the_start_and_leaves_the_rest_alone(kind):
    x, y = random_images(4, 3, 8, 8, seed=4, dtype=torch.float64), torch.arange(4)
    model, before, given = Recorded(), network().double().state_dict(), x.clone()
    images = middle(kind, steps=5)(model, x, y, generator=seeded())
    assert model.first is not None

    def margin(logits: Tensor) -> Tensor:
        own = torch.nn.functional.one_hot(y, 4).bool()
        return logits.masked_fill(own, -torch.inf).amax(1) - logits[own]

    assert (margin(model.network(images)) >= margin(model.first) - 1e-9).all()
    assert images.dtype == x.dtype
    assert images.shape == x.shape
    assert not images.requires_grad
    assert torch.equal(x, given)
    torch.testing.assert_close(model.network.state_dict(), before, rtol=0, atol=0)


@every_class
def test_the_same_generator_gives_the_same_bits_and_another_another_start(kind):
    x, y, model = random_images(3, 3, 8, 8, seed=4), torch.arange(3), network().eval()
    attack = middle(kind, steps=3)
    one, again, other = (attack(model, x, y, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert torch.equal(attack(model, x, y), attack(model, x, y, generator=seeded(0)))


@every_class
def test_an_image_does_not_depend_on_the_others_of_its_batch(kind):
    x = random_images(3, 3, 8, 8, seed=4, dtype=torch.float64)
    attack = middle(kind)
    parameters = attack.start(x, seeded())
    together = attack.render(x, parameters)
    alone = [
        attack.render(x[i : i + 1], {n: p[i : i + 1] for n, p in parameters.items()})
        for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [JPEGL1, JPEGL2, JPEGLinf, Snow], ids=lambda kind: kind.name)
def test_two_channels_are_an_error_that_says_what_is_needed(kind):
    x = random_images(2, 2, 8, 8, seed=4)
    with pytest.raises(InputError, match=r"1 channel .* or 3"):
        middle(kind).start(x, seeded())


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network that knows the digits, and 60 test images that it gets right."""
    data, generator = digits(), seeded()
    index = torch.arange(len(data.train))
    x, y = data.train.floats(index), data.train.labels
    layers = (nn.Conv2d(x.shape[1], 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    model = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))
    for parameter in model.parameters():
        bound = 1 / math.sqrt(parameter[0].numel())
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    for _ in range(200):
        batch = torch.randint(len(x), (64,), generator=generator)
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    x, y = data.test.floats(torch.arange(len(data.test))), data.test.labels
    right = (model(x).argmax(1) == y).nonzero()[:60, 0]
    assert len(right) == 60
    return model.eval(), x[right], y[right]


@every_class
def test_steps_break_what_the_start_breaks_and_more(kind, trained):
    model, x, y = trained
    attack = kind(radius=kind.severities[3], steps=10)
    started = model(attack.render(x, attack.start(x, seeded()))).argmax(1) != y
    broken = model(attack(model, x, y, generator=seeded())).argmax(1) != y
    assert broken[started].all()
    assert broken.sum() > started.sum() or started.all()


@every_class
def test_a_greater_severity_breaks_as_many_or_more(kind, trained):
    model, x, y = trained
    attacks = [kind(radius=kind.severities[i], steps=8) for i in (0, 2, 5)]
    left = [(model(a(model, x, y, generator=seeded())).argmax(1) == y).sum() for a in attacks]
    assert left[0] >= left[1] >= left[2]
    assert left[0] > left[2]
