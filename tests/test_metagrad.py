from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multirobust.errors import InputError
from multirobust.metagrad import call_with, look_ahead_loss, meta_gradient
from multirobust.models import NoiseGenerator
from multirobust.threats import L1, L2, Linf

MODES = ["mixed_vjp", "recomputed", "unrolled", "forward_over_reverse"]
every_mode = pytest.mark.parametrize("mode", MODES)


@dataclass
class Bowl:
    """inner = |theta - A phi|^2 / 2 and outer = |theta - b|^2 / 2, with both gradients known."""

    lr: float = 0.3
    seed: int = 0
    theta: dict[str, Tensor] = field(init=False)
    phi: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self):
        generator = torch.Generator().manual_seed(self.seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.matrices = {"u": (draw(5, 3), draw(5, 4)), "v": (draw(2, 3), draw(2, 4))}
        self.target = {"u": draw(5), "v": draw(2)}
        self.theta = {"u": draw(5), "v": draw(2)}
        self.phi = (draw(3).requires_grad_(), draw(4).requires_grad_())

    def pull(self, name: str, phi: tuple[Tensor, ...]) -> Tensor:
        return sum(matrix @ p for matrix, p in zip(self.matrices[name], phi, strict=True))

    def inner(self, theta: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        return sum((theta[n] - self.pull(n, phi)).square().sum() / 2 for n in theta)

    def outer(self, theta: dict[str, Tensor]) -> Tensor:
        return sum((theta[n] - self.target[n]).square().sum() / 2 for n in theta)

    def theta_hat(self) -> dict[str, Tensor]:
        return {
            n: (1 - self.lr) * t + self.lr * self.pull(n, self.phi) for n, t in self.theta.items()
        }

    def solution(self) -> tuple[Tensor, ...]:
        moved = self.theta_hat()
        return tuple(
            self.lr * sum(self.matrices[n][i].T @ (moved[n] - self.target[n]) for n in moved)
            for i in range(2)
        )


class Problem:
    """A convolution-BatchNorm-ReLU network that learns from images which depend on phi."""

    def __init__(self, *, dtype: torch.dtype, source: str, training: bool = True):
        generator = torch.Generator().manual_seed(1)
        self.model = _network(generator).to(dtype).train(training)
        self.theta = dict(self.model.named_parameters())
        self.x = torch.rand(8, 3, 8, 8, generator=generator, dtype=dtype)
        self.x_adv = torch.rand(8, 3, 8, 8, generator=generator, dtype=dtype)
        self.y = torch.arange(8) % 4
        self.source = source
        if source == "images":
            self.phi = (torch.randn(self.x.shape, generator=generator, dtype=dtype) * 0.2,)
            self.phi[0].requires_grad_()
        else:
            self.noise = NoiseGenerator(3, conditioning="noise_and_image", width=4).to(dtype)
            self.z = self.noise.draw(self.x, generator)
            self.phi = tuple(self.noise.parameters())

    def augmented(self, phi: tuple[Tensor, ...]) -> Tensor:
        if self.source == "images":
            noise = phi[0]
        else:
            names = [name for name, _ in self.noise.named_parameters()]
            weights = dict(zip(names, phi, strict=True))
            noise = torch.func.functional_call(self.noise, weights, (self.z, self.x))
        return self.constrain(noise)

    def constrain(self, noise: Tensor) -> Tensor:
        return (self.x + noise.clamp(-0.3, 0.3)).clamp(0, 1)

    def inner(self, theta: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        return F.cross_entropy(call_with(self.model, theta, self.augmented(phi)), self.y)

    def outer(self, theta: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(call_with(self.model, theta, self.x_adv), self.y)

    def gradients(self, mode: str, lr: float = 0.1) -> Tensor:
        result = meta_gradient(self.inner, self.outer, self.theta, self.phi, lr=lr, mode=mode)
        return torch.cat([g.flatten() for g in result.gradients])


def _network(generator: torch.Generator) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        model = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    for module in model:
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, generator=generator)
            nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
    return model


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


@every_mode
@pytest.mark.parametrize("lr", [1e-3, 0.3, 1.0, 2.5])
def test_equals_the_closed_form_on_a_quadratic_bowl(mode, lr):
    bowl = Bowl(lr=lr)
    result = meta_gradient(bowl.inner, bowl.outer, bowl.theta, bowl.phi, lr=lr, mode=mode)
    for actual, expected in zip(result.gradients, bowl.solution(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@every_mode
def test_reports_both_losses_detached(mode):
    bowl = Bowl()
    result = meta_gradient(bowl.inner, bowl.outer, bowl.theta, bowl.phi, lr=bowl.lr, mode=mode)
    torch.testing.assert_close(result.inner_loss, bowl.inner(bowl.theta, bowl.phi).detach())
    torch.testing.assert_close(result.outer_loss, bowl.outer(bowl.theta_hat()).detach())
    assert not any(t.requires_grad for t in (*result.gradients, *result[1:]))


@pytest.mark.parametrize("source", ["images", "generator"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_the_modes_agree_on_a_network_with_batch_norm(source, training, dtype, tolerance):
    problem = Problem(dtype=dtype, source=source, training=training)
    expected = problem.gradients("mixed_vjp")
    assert expected.norm() > 1e-4
    for mode in MODES[1:]:
        assert relative_error(problem.gradients(mode), expected) < tolerance


@pytest.mark.parametrize("threat", [Linf(0.3), L2(1.0), L1(8.0)], ids=lambda threat: threat.norm)
def test_the_modes_agree_through_the_projection_of_each_threat(threat):
    problem = Problem(dtype=torch.float32, source="generator")
    problem.constrain = lambda noise: threat.project(problem.x + noise, problem.x)
    expected = problem.gradients("mixed_vjp")
    assert expected.norm() > 1e-5
    for mode in MODES[1:]:
        assert relative_error(problem.gradients(mode), expected) < 1e-5


@every_mode
@pytest.mark.parametrize("source", ["images", "generator"])
@pytest.mark.parametrize("training", [True, False])
def test_equals_central_differences_in_float64(mode, source, training):
    problem = Problem(dtype=torch.float64, source=source, training=training)
    lr, step = 0.1, 1e-6
    direction = torch.Generator().manual_seed(5)
    along = tuple(
        torch.randn(p.shape, generator=direction, dtype=p.dtype) / p.numel() ** 0.5
        for p in problem.phi
    )

    def value(t: float) -> Tensor:
        phi = tuple((p + t * d).detach() for p, d in zip(problem.phi, along, strict=True))
        theta = {n: p.detach().requires_grad_() for n, p in problem.theta.items()}
        g = torch.autograd.grad(problem.inner(theta, phi), list(theta.values()))
        moved = {n: p - lr * gi for (n, p), gi in zip(theta.items(), g, strict=True)}
        return problem.outer(moved).detach()

    numerical = (value(step) - value(-step)) / (2 * step)
    analytical = problem.gradients(mode, lr) @ torch.cat([d.flatten() for d in along])
    assert analytical.abs() > 1e-6
    torch.testing.assert_close(analytical, numerical, rtol=1e-5, atol=1e-9)


@every_mode
@pytest.mark.parametrize("training", [True, False])
def test_leaves_the_caller_and_the_model_as_they_were(mode, training):
    problem = Problem(dtype=torch.float32, source="generator", training=training)
    frozen = problem.theta["0.weight"].requires_grad_(False)
    problem.phi[0].grad = torch.ones_like(problem.phi[0])
    state = {name: value.clone() for name, value in problem.model.state_dict().items()}
    values = [p.detach().clone() for p in problem.phi]
    flags = [p.requires_grad for p in (*problem.theta.values(), *problem.phi)]

    problem.gradients(mode)

    torch.testing.assert_close(dict(problem.model.state_dict()), state, rtol=0, atol=0)
    torch.testing.assert_close([p.detach() for p in problem.phi], values, rtol=0, atol=0)
    assert [p.requires_grad for p in (*problem.theta.values(), *problem.phi)] == flags
    assert frozen.grad is None
    assert all(p.grad is None for p in (*problem.theta.values(), *problem.phi[1:]))
    assert torch.equal(problem.phi[0].grad, torch.ones_like(problem.phi[0]))
    assert all(module.training == training for module in problem.model.modules())


@every_mode
def test_a_zero_step_size_has_zero_gradient(mode):
    problem = Problem(dtype=torch.float32, source="generator")
    assert torch.count_nonzero(problem.gradients(mode, lr=0.0)) == 0


@every_mode
def test_is_zero_where_phi_is_not_used(mode):
    bowl = Bowl()
    spare = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    used, unused = meta_gradient(
        lambda theta, phi: bowl.inner(theta, (phi[0], bowl.phi[1])),
        bowl.outer,
        bowl.theta,
        (bowl.phi[0], spare),
        lr=bowl.lr,
        mode=mode,
    ).gradients
    torch.testing.assert_close(used, bowl.solution()[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(unused, torch.zeros_like(spare))


@every_mode
@pytest.mark.parametrize("kind", ["linear in phi alone", "constant"])
def test_is_zero_where_the_inner_gradient_does_not_depend_on_phi(mode, kind):
    bowl = Bowl()

    def inner(theta: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        terms = phi if kind == "linear in phi alone" else theta.values()
        return sum(term.sum() for term in terms)

    result = meta_gradient(inner, bowl.outer, bowl.theta, bowl.phi, lr=0.1, mode=mode)
    assert all(torch.count_nonzero(g) == 0 for g in result.gradients)


@every_mode
def test_parameters_that_the_inner_loss_does_not_use_stay_where_they_are(mode):
    bowl = Bowl()

    def inner(theta: dict[str, Tensor], phi: tuple[Tensor, ...]) -> Tensor:
        return (theta["u"] - bowl.pull("u", phi)).square().sum() / 2

    result = meta_gradient(inner, bowl.outer, bowl.theta, bowl.phi, lr=bowl.lr, mode=mode)
    moved = bowl.theta_hat()["u"]
    residual = moved - bowl.target["u"]
    expected = [bowl.lr * bowl.matrices["u"][i].T @ residual for i in range(2)]
    torch.testing.assert_close(list(result.gradients), [e.detach() for e in expected])
    torch.testing.assert_close(
        result.outer_loss, bowl.outer({"u": moved, "v": bowl.theta["v"]}).detach()
    )


@every_mode
def test_a_phi_that_the_inner_loss_closes_over_counts(mode):
    bowl = Bowl()
    result = meta_gradient(
        lambda theta, _: bowl.inner(theta, bowl.phi),
        bowl.outer,
        bowl.theta,
        bowl.phi,
        lr=bowl.lr,
        mode=mode,
    )
    torch.testing.assert_close(list(result.gradients), [s.detach() for s in bowl.solution()])


@every_mode
def test_phi_need_not_be_a_leaf_nor_grad_mode_be_on_and_lr_may_be_a_tensor(mode):
    bowl = Bowl()
    phi = tuple(p * 1 for p in bowl.phi)
    lr = torch.tensor(bowl.lr, dtype=torch.float64)
    with torch.no_grad():
        result = meta_gradient(bowl.inner, bowl.outer, bowl.theta, phi, lr=lr, mode=mode)
    torch.testing.assert_close(list(result.gradients), [s.detach() for s in bowl.solution()])


@pytest.mark.parametrize("grad_mode", [True, False])
def test_the_loss_after_the_look_ahead_is_the_closed_form_and_needs_no_gradient_by_phi(grad_mode):
    bowl = Bowl()
    phi = tuple(p.detach() for p in bowl.phi)
    with torch.set_grad_enabled(grad_mode):
        loss = look_ahead_loss(bowl.inner, bowl.outer, bowl.theta, phi, lr=bowl.lr)
    expected = bowl.outer(bowl.theta_hat()).detach()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    assert not loss.requires_grad
    assert not any(value.requires_grad for value in bowl.theta.values())


def test_the_default_mode_is_mixed_vjp():
    problem = Problem(dtype=torch.float32, source="images")
    default = meta_gradient(problem.inner, problem.outer, problem.theta, problem.phi, lr=0.1)
    assert torch.equal(default.gradients[0].flatten(), problem.gradients("mixed_vjp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mode": "first_order"},
            "Unknown mode: 'first_order'.*Known: forward_over_reverse, mixed",
        ),
        ({"lr": -0.1}, "lr must be finite and at least 0, got -0.1"),
        ({"lr": float("nan")}, "lr must be finite"),
        ({"lr": torch.zeros(2)}, r"lr must be a number or a 0-d tensor, got shape \(2,\)"),
        ({"phi": ()}, "theta and phi must each hold at least one tensor, got 2 and 0"),
        ({"theta": {}}, "got 0 and 2"),
        ({"phi": (torch.zeros(3), torch.zeros(4))}, r"phi\[0\] must require a gradient"),
        ({"inner": lambda theta, phi: theta["u"]}, r"inner must return a scalar .* shape \(5,\)"),
        ({"outer": lambda theta: theta["u"]}, r"outer must return a scalar .* shape \(5,\)"),
    ],
)
def test_bad_input_is_one_clear_error(changes, message):
    bowl = Bowl()
    arguments = {"inner": bowl.inner, "outer": bowl.outer, "theta": bowl.theta, "phi": bowl.phi}
    arguments |= {"lr": 0.1} | changes
    with pytest.raises(InputError, match=message):
        meta_gradient(**arguments)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("track", [True, False])
def test_call_with_equals_the_model_that_has_these_parameters(training, track):
    problem = Problem(dtype=torch.float64, source="images", training=training)
    for module in problem.model:
        if isinstance(module, nn.BatchNorm2d) and training:
            module.track_running_stats = track
    other = {name: p.detach() * 1.1 for name, p in problem.theta.items()}
    called = call_with(problem.model, other, problem.x)
    problem.model.load_state_dict(other, strict=False)
    assert torch.equal(called, problem.model(problem.x))


@pytest.mark.parametrize("training", [True, False])
def test_call_with_works_under_the_transforms_of_torch_func(training):
    problem = Problem(dtype=torch.float64, source="images", training=training)
    theta = {name: p.detach() for name, p in problem.theta.items()}
    direction = {name: torch.ones_like(p) for name, p in theta.items()}
    state = {name: value.clone() for name, value in problem.model.state_dict().items()}
    _, tangent = torch.func.jvp(problem.outer, (theta,), (direction,))
    gradient = torch.func.grad(problem.outer)(theta)
    torch.testing.assert_close(tangent, sum(g.sum() for g in gradient.values()))
    torch.testing.assert_close(dict(problem.model.state_dict()), state, rtol=0, atol=0)
