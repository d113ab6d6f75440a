"""Square: its windows, its patterns, its schedule, and what a random search may promise."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import PassMeter
from multirobust.attacks.engine import State, run_rows
from multirobust.attacks.square import _MOVES, Square, _Window
from multirobust.attacks.streams import Stream
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf, Threat

THREATS = (Linf(0.1), L2(0.6), L1(3.0))
every_norm = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
pyramid_norms = pytest.mark.parametrize("threat", THREATS[1:], ids=lambda t: t.norm)
X = random_images(6, 3, 12, 12, seed=21)
Y = torch.arange(6) % 4


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(rows: int) -> Stream:
    return Stream(torch.arange(rows), torch.zeros(rows, dtype=torch.int64))


def begun(attack: Square, x: Tensor, y: Tensor) -> State:
    return attack.begin({"x": x, "y": y, "target": y}, seeded())


def searched(attack: Square, model: nn.Module, x: Tensor, y: Tensor) -> State:
    """The state after all iterations, without an engine that stops at the first success."""
    generator, state = seeded(), begun(attack, x, y)
    with torch.no_grad():
        for _ in range(attack.iterations):
            state = attack.advance(state, model(attack.query(state)), None, generator)
    return state


def assert_admissible(threat: Threat, x_adv: Tensor, x: Tensor) -> None:
    assert x_adv.isfinite().all()
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (threat.distance(x_adv.double(), x.double()) <= threat.radius * (1 + 1e-6)).all()


class Same(nn.Module):
    """Prefers class 0 everywhere: no image of that label can be broken."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1] * 0 + torch.tensor([2.0, 1.0, 0.0])


class Steps(nn.Module):
    """A linear model that sees pixels in sixteen steps: its gradient is zero wherever it exists."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((16 * x).round() / 16)


def pyramids_by_loops(side: int, order: int, decay: int) -> Tensor:
    """Two pyramids, one above the other, ring by ring as the paper's sum over rectangles."""
    patch = torch.zeros(side, side, dtype=torch.float64)
    half = side // 2
    for top, height, sign in ((0, half, 1), (half, side - half, -1)):
        part = torch.zeros(height, side, dtype=torch.float64)
        for ring in range(half + 1):
            rows = slice(max(height // 2 - ring, 0), height // 2 + ring + 1)
            columns = slice(max(half - ring, 0), half + ring + 1)
            part[rows, columns] += (ring + 1.0) ** -decay
        if height:
            patch[top : top + height] = sign * part / torch.linalg.vector_norm(part, order)
    return patch / torch.linalg.vector_norm(patch, order)


@pytest.mark.parametrize(("norm", "order", "decay"), [("l2", 2, 2), ("l1", 1, 4)])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 7, 12, 29])
def test_pattern_is_the_papers_two_pyramids(norm, order, decay, side):
    window = _Window.whole(torch.zeros(1, 1, side, side, dtype=torch.float64), side)
    expected = pyramids_by_loops(side, order, decay)
    torch.testing.assert_close(_MOVES[norm]._pyramids(window)[0, 0], expected)


@pyramid_norms
def test_pattern_moves_with_its_window_and_is_turned_in_half_of_the_rows(threat):
    x, side = torch.zeros(200, 1, 9, 11, dtype=torch.float64), torch.full((200,), 5)
    numbers = stream(200)
    window = _Window.draw(x, side, numbers).turned(numbers)
    patterns, inside = _MOVES[threat.norm]._pyramids(window)[:, 0], window.mask()[:, 0] > 0
    patches = torch.stack([p[i].reshape(5, 5) for p, i in zip(patterns, inside, strict=True)])
    upright = pyramids_by_loops(5, *((2, 2) if threat.norm == "l2" else (1, 4)))
    is_upright = (patches - upright).abs().amax((1, 2)) < 1e-9
    is_turned = (patches - upright.T).abs().amax((1, 2)) < 1e-9
    assert (is_upright ^ is_turned).all()
    assert 70 < is_upright.sum() < 130
    assert not patterns[~inside].any()


def moved_by_loops(
    delta: Tensor, windows: Tensor, signs: Tensor, turned: bool, threat: Threat
) -> Tensor:
    """One image's perturbation after the published move, before clip and projection."""
    order, decay = (2, 2) if threat.norm == "l2" else (1, 4)
    channels, size = len(delta), int(windows[0].sum() ** 0.5)
    norm = lambda v: float((v.abs() ** order).sum() ** (1 / order))  # noqa: E731
    pattern = pyramids_by_loops(size, order, decay)
    pattern = pattern.T if turned else pattern
    unused = max(threat.radius**order - norm(delta) ** order, 0)
    after = delta.clone()
    for channel in range(channels):
        old = delta[channel]
        either = old[windows.any(0)]
        available = (norm(either) ** order + unused / channels) ** (1 / order)
        patch = old[windows[0]].reshape(size, size)
        patch = signs[channel] * pattern + (patch / norm(patch) if norm(patch) else 0)
        patch = patch / norm(patch) * available * (channels if order == 1 else 1)
        after[channel][windows[1]] = 0
        after[channel][windows[0]] = patch.flatten()
    return after


@pyramid_norms
@pytest.mark.parametrize("channels", [1, 3])
def test_proposal_is_the_published_move(threat, channels):
    x = random_images(20, channels, 9, 9, seed=2, dtype=torch.float64)
    best = threat.project(x + 0.2 * random_tensor(*x.shape, seed=4, dtype=torch.float64), x)
    best[:10] = threat.project(x[:10] + 0.01 * (best - x)[:10].sign(), x[:10])  # budget to spare
    share = torch.tensor([0.8, 0.2, 0.05, 0.001]).repeat(5)
    proposal = _MOVES[threat.norm].propose({"x": x, "best": best}, share, threat, stream(20))
    numbers, side = stream(20), torch.tensor([9, 5, 3, 3]).repeat(5)
    window, other = (_Window.draw(x, side, numbers) for _ in range(2))
    signs = numbers.signs(channels, 1, 1, like=x)
    turned = window.turned(numbers)
    for row in range(20):
        delta = moved_by_loops(
            best[row] - x[row],
            torch.stack((window.mask()[row, 0], other.mask()[row, 0])) > 0,
            signs[row].flatten(),
            not torch.equal(turned.rows[row, 0, :, :1], window.rows[row, 0]),
            threat,
        )
        expected = threat.project((x[row] + delta)[None], x[row][None])[0]
        torch.testing.assert_close(proposal[row], expected, rtol=0, atol=1e-6)


def test_windows_have_their_own_size_and_reach_every_place():
    x, side = torch.zeros(3000, 1, 6, 8), torch.tensor([1, 4, 6]).repeat(1000)
    mask = _Window.draw(x, side, stream(3000)).mask()[:, 0]
    assert torch.equal(mask.sum((1, 2)), side.float() ** 2)
    for size in (1, 4, 6):
        places, counts = mask[side == size].flatten(1).unique(dim=0, return_counts=True)
        rows, columns = 6 - size + 1, 8 - size + 1
        assert len(places) == rows * columns
        assert counts.min() > 0.3 * 1000 / len(places)


@pytest.mark.parametrize(("iterations", "stretch"), [(10_000, 1), (5000, 2), (1000, 10)])
def test_window_shares_follow_the_published_schedule_stretched_to_the_iterations(
    iterations, stretch
):
    attack = Square(threat=Linf(0.1), iterations=iterations, p_init=0.8)
    proposals = torch.arange(iterations)
    ends = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
    expected = [0.8 / 2 ** sum(i * stretch > end for end in ends) for i in range(iterations)]
    torch.testing.assert_close(attack._share(proposals), torch.tensor(expected))


def test_every_row_follows_its_own_schedule():
    attack = Square(threat=Linf(0.1), iterations=1000)
    x = torch.full((3, 1, 20, 20), 0.5)
    state = begun(attack, x, torch.zeros(3, dtype=torch.int64))
    state |= {"best": x, "query": x, "proposals": torch.tensor([0, 30, 900])}
    state = attack.advance(state, torch.zeros(3, 2), None, seeded())
    changed = (state["query"] != x).flatten(1).sum(1)
    assert changed.tolist() == [18**2, 6**2, 1]  # 0.8 / 2**(0, 3, 9) of 400 pixels
    assert state["proposals"].tolist() == [1, 31, 901]


def test_in_linf_every_query_is_as_far_as_ball_and_box_allow_and_starts_as_stripes():
    attack = Square(threat=Linf(0.1), iterations=50)
    generator, state = seeded(), begun(attack, X, Y)
    up, down = (X + 0.1).clamp(max=1), (X - 0.1).clamp(min=0)
    stripes = (state["query"] - up).abs() < 1e-6
    is_down = (state["query"] - down).abs() < 1e-6
    assert (stripes.all(2) | is_down.all(2)).all()
    for _ in range(attack.iterations):
        distance = torch.minimum((state["query"] - up).abs(), (state["query"] - down).abs())
        assert distance.max() < 1e-6
        state = attack.advance(state, torch.randn(6, 4, generator=seeded(1)), None, generator)


@pyramid_norms
def test_where_the_box_does_not_bind_two_windows_move_and_the_budget_is_spent(threat):
    attack = Square(threat=type(threat)(0.2), iterations=1000, p_init=0.1)
    x, y = torch.full((8, 1, 16, 16), 0.5, dtype=torch.float64), torch.zeros(8, dtype=torch.int64)
    generator, state = seeded(), begun(attack, x, y)
    torch.testing.assert_close(
        attack.threat.distance(state["query"], x), x.new_full((8,), 0.2), rtol=1e-5, atol=0
    )
    state = attack.advance(state, torch.zeros(8, 2), None, generator)
    changed = ((state["query"] - state["best"]).abs() > 1e-6).flatten(1).sum(1)
    assert (changed > 0).all()
    assert (changed <= 2 * 5**2).all()  # a tenth of 256 pixels: sides of 5
    distance = attack.threat.distance(state["query"], x)
    torch.testing.assert_close(distance, torch.full_like(distance, 0.2), rtol=1e-5, atol=0)


@every_norm
def test_margin_never_falls_and_is_that_of_the_best_image(threat):
    attack, model = Square(threat=threat, iterations=40), network().eval()
    generator, state = seeded(), begun(attack, X, Y)
    for _ in range(attack.iterations):
        with torch.no_grad():
            logits = model(attack.query(state))
        after = attack.advance(state, logits, None, generator)
        assert (after["margin"] >= state["margin"]).all()
        state = after
    with torch.no_grad():
        logits = model(state["best"])
    others = logits.scatter(1, Y[:, None], -torch.inf).amax(1)
    torch.testing.assert_close(state["margin"], others - logits.gather(1, Y[:, None])[:, 0])
    assert_admissible(threat, state["best"], X)


@every_norm
def test_a_query_answered_by_nan_is_never_the_best(threat):
    attack = Square(threat=threat, iterations=10)
    state = begun(attack, X, Y)
    logits = torch.zeros(6, 4)
    logits[::2] = torch.nan
    after = attack.advance(state, logits, None, seeded())
    assert torch.equal(after["best"][::2], X[::2])
    assert torch.equal(after["best"][1::2], state["query"][1::2])
    assert_admissible(threat, after["query"], X)


def test_in_linf_the_search_attains_the_optimum_of_a_linear_model():
    model = HalfSpace(random_tensor(2, 4, 4, seed=3, dtype=torch.float64), bias=0.1)
    x, y = random_images(12, 2, 4, 4, seed=5, dtype=torch.float64), torch.arange(12) % 2
    attack = Square(threat=Linf(0.2), iterations=900)
    gain = model.gain(searched(attack, model, x, y)["best"], x, y)
    torch.testing.assert_close(gain, model.greatest_gain(attack.threat, x, y), rtol=0, atol=1e-6)


@pyramid_norms
def test_in_l2_and_l1_the_search_comes_near_the_optimum_and_never_above(threat):
    model = HalfSpace(random_tensor(1, 4, 4, seed=3, dtype=torch.float64), bias=0.1)
    x, y = random_images(12, 1, 4, 4, seed=5, dtype=torch.float64), torch.arange(12) % 2
    attack = Square(threat=threat, iterations=200)
    best = searched(attack, model, x, y)["best"]
    share = model.gain(best, x, y) / model.greatest_gain(threat, x, y)
    assert (share <= 1 + 1e-6).all()
    assert share.min() > 0.5
    assert share.mean() > 0.7


def test_breaks_in_linf_exactly_the_images_that_the_closed_form_says():
    model = HalfSpace(random_tensor(1, 4, 4, seed=3, dtype=torch.float64), bias=0.1)
    x = random_images(60, 1, 4, 4, seed=6, dtype=torch.float64)
    with torch.no_grad():
        score, y = model.score(x), model(x).argmax(1)
    attack = Square(threat=Linf(0.1), iterations=400)
    breakable = model.greatest_gain(attack.threat, x, y) > score.abs()
    x_adv = attack(model, x, y, generator=seeded())
    assert 10 < breakable.sum() < 50
    assert torch.equal(model(x_adv).argmax(1) != y, breakable)
    assert torch.equal(x_adv[~breakable], x[~breakable])


def test_breaks_a_model_through_which_no_gradient_leads():
    model = Steps(HalfSpace(random_tensor(1, 6, 6, seed=3)))
    x = random_images(20, 1, 6, 6, seed=5)
    y = model(x).argmax(1)
    for threat in (Linf(0.3), L2(1.5), L1(6.0)):
        x_adv = Square(threat=threat, iterations=150)(model, x, y, generator=seeded())
        assert (model(x_adv).argmax(1) != y).float().mean() > 0.3
        assert_admissible(threat, x_adv, x)


@every_norm
@pytest.mark.parametrize("restarts", [1, 2])
def test_an_image_that_stands_costs_its_iterations_in_forward_passes_only(threat, restarts):
    model, x = Same(), X[:4]
    with PassMeter(model) as meter:
        attack = Square(threat=threat, iterations=7, restarts=restarts)
        x_adv = attack(model, x, torch.zeros(4, dtype=torch.int64))
    assert (meter.forwards, meter.backwards) == (4 * 7 * restarts, 0)
    assert torch.equal(x_adv, x)


@every_norm
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (1, 4, 7), (2, 18, 18), (1, 9, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_queries_are_admissible_on_images_of_any_size(threat, shape, dtype):
    x = random_images(3, *shape, seed=9, dtype=dtype)
    y = torch.zeros(3, dtype=torch.int64)
    attack = Square(threat=threat, iterations=12)
    generator, state = seeded(), begun(attack, x, y)
    for i in range(attack.iterations):
        assert state["query"].dtype == dtype
        assert_admissible(threat, state["query"], x)
        logits = torch.randn(3, 2, generator=seeded(i))
        state = attack.advance(state, logits, None, generator)


@every_norm
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_images_at_the_corners_of_the_box_stay_within_it(threat, value):
    attack, x = Square(threat=threat, iterations=15), torch.full_like(X, value)
    best = searched(attack, network().eval(), x, Y)["best"]
    assert_admissible(threat, best, x)
    assert (best != x).flatten(1).any(1).all()


@every_norm
@pytest.mark.parametrize("classes", [2, 3])
def test_works_with_few_classes_one_image_and_a_batch_smaller_than_the_images(threat, classes):
    model = network(classes=classes).eval()
    y, attack = torch.arange(6) % classes, Square(threat=threat, iterations=9, restarts=2)
    alone = attack(model, X[:1], y[:1], generator=seeded())
    x_adv = run_rows(attack, model, X, y, batch_size=2, generator=seeded())
    assert_admissible(threat, alone, X[:1])
    assert_admissible(threat, x_adv, X)
    assert torch.equal(x_adv, run_rows(attack, model, X, y, batch_size=2, generator=seeded()))


@every_norm
def test_another_seed_searches_elsewhere(threat):
    attack = Square(threat=threat, iterations=5)
    begin = {"x": X, "y": Y, "target": Y}
    one, other = (attack.begin(begin, seeded(seed))["query"] for seed in (1, 2))
    assert not torch.equal(one, other)


@every_norm
def test_with_a_seed_an_image_is_searched_alike_in_any_batch(threat):
    model = network().eval()
    attack = Square(threat=threat, iterations=25, restarts=2).seeded(3)
    together = run_rows(attack, model, X, Y, batch_size=4, generator=seeded(1))
    for row in range(6):
        alone = attack(model, X[row : row + 1], Y[row : row + 1], generator=seeded(2))
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)
    keys = attack._keys({"x": X, "restart": torch.zeros(6, dtype=torch.int64)}, seeded())
    again = attack._keys({"x": X, "restart": torch.ones(6, dtype=torch.int64)}, seeded())
    assert (
        len(
            {
                *keys.tolist(),
                *again.tolist(),
                *attack.seeded(4)
                ._keys({"x": X, "restart": torch.zeros(6, dtype=torch.int64)}, seeded())
                .tolist(),
            }
        )
        == 18
    )


def test_its_repr_is_its_identity():
    attack = Square(threat=Linf(0.1))
    fields = "threat=Linf(radius=0.1), iterations=5000, restarts=1, eot=1, p_init=0.8"
    assert repr(attack) == f"Square({fields})"
    assert attack == dataclasses.replace(attack)


@pytest.mark.parametrize("p_init", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_outside_its_range_is_one_error(p_init):
    with pytest.raises(InputError, match=r"p_init must be .* got"):
        Square(threat=Linf(0.1), p_init=p_init)


def test_a_norm_without_moves_is_one_error():
    @dataclasses.dataclass(frozen=True)
    class L0(Threat):
        norm = "l0"
        distance = project = ascent_direction = sample = Linf.project

    with pytest.raises(InputError, match=r"norm of Square's threat.*'l0'.*l1, l2, linf"):
        Square(threat=L0(3))
