"""The tournament: what it may spend, what it may not miss, and whom it does not trust."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from linear_oracles import HalfSpace, network, random_images, random_tensor
from multirobust.attacks import APGD, PassMeter, Square, attacking
from multirobust.attacks.contest import Contest
from multirobust.attacks.tournament import Round, Tournament
from multirobust.errors import InputError
from multirobust.threats import L1, L2, Linf, Threat

THREATS = (Linf(0.1), L2(0.6), L1(3.0))
every_norm = pytest.mark.parametrize("threat", THREATS, ids=lambda t: t.norm)
ROUNDS = (
    Round(iterations=4, targets=9),
    Round(iterations=6, targets=2, resumes=True),
    Round(iterations=8, targets=2),
)
X = random_images(12, 3, 6, 6, seed=21)


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small(threat: Threat, **settings) -> Tournament:
    default = {"opening": 4, "rounds": ROUNDS, "probe": 5, "square": 0, "fab": 0}
    return Tournament(threat=threat, **default | settings)


def labelled(model: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(1)


def standing(model: nn.Module, x_adv: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x_adv).argmax(1) == y


class Fixed(nn.Module):
    """Prefers class 0 by a margin that no image changes, and has gradients all the same."""

    def forward(self, x: Tensor) -> Tensor:
        slope = x.flatten(1).mean(1, keepdim=True) * torch.tensor([0.0, 0.1, 0.2, 0.3])
        return slope + torch.tensor([9.0, 0.0, 0.0, 0.0])


class Steps(nn.Module):
    """A model that sees pixels in steps: its gradient is zero wherever it exists."""

    def __init__(self, model: nn.Module, levels: int = 16):
        super().__init__()
        self.model, self.levels = model, levels

    def forward(self, x: Tensor) -> Tensor:
        return self.model((self.levels * x).round() / self.levels + 0 * x)


class Trap(nn.Module):
    """A half-space whose gradient points the wrong way."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(2 * x.detach() - x)


def half_space(threat: Threat, classes: int, share: float, x: Tensor = X) -> HalfSpace:
    """A linear model whose images of label 0 can all gain 1 / share of what they need."""
    weight = random_tensor(x[0].numel(), seed=5)
    score = x.flatten(1) @ weight
    slack = HalfSpace(weight).greatest_gain(threat, x, torch.zeros(len(x))).min() * share
    return HalfSpace(weight, float(-score.max() - slack), classes=classes)


@every_norm
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_images_lie_in_ball_and_box_and_only_the_broken_ones_differ(threat, batch_size):
    model = network().eval()
    y = labelled(model)
    x_adv = small(threat).run(model, X, y, batch_size=batch_size, generator=seeded())
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert (threat.distance(x_adv.double(), X.double()) <= threat.radius * (1 + 1e-6)).all()
    left = standing(model, x_adv, y)
    assert torch.equal(x_adv[left], X[left])
    assert not left.all()


@every_norm
@pytest.mark.parametrize("classes", [2, 3, 6])
def test_a_linear_model_of_any_number_of_classes_falls_exactly_where_it_can(threat, classes):
    x = X[:1].expand(8, -1, -1, -1)
    y = torch.zeros(8, dtype=torch.int64)
    attack = dataclasses.replace(small(threat), opening=20)
    weak, strong = (half_space(threat, classes, share, x) for share in (0.9, 1.05))
    assert not standing(weak, attack(weak, x, y), y).any()
    assert standing(strong, attack(strong, x, y), y).all()


@every_norm
def test_no_image_costs_more_than_the_stated_bound(threat):
    model, y = Fixed(), torch.zeros(len(X), dtype=torch.int64)
    attack = small(threat, reach=1e9, slack=1e9)
    with PassMeter(model) as meter:
        attack.run(model, X, y, batch_size=7, generator=seeded())
    assert meter.forwards + meter.backwards <= attack.most_passes * len(X)
    # 3 wrong classes in the first round, 2 later, and no pass for what the rules leave out
    runs = 4 + 3 * 4 + 2 * 6 + 2 * 8
    assert meter.forwards == len(X) * (runs + 1 + 5)
    assert meter.backwards == len(X) * runs


def test_runs_without_hope_end_after_the_first_round():
    model, y = Fixed(), torch.zeros(len(X), dtype=torch.int64)
    with PassMeter(model) as meter:
        small(THREATS[0]).run(model, X, y, batch_size=7, generator=seeded())
    assert meter.backwards == len(X) * (4 + 3 * 4)


def test_a_batch_never_holds_more_rows_than_asked():
    model, sizes = network().eval(), []
    y = labelled(model)
    model.register_forward_hook(lambda module, inputs, _: sizes.append(len(inputs[0])))
    small(THREATS[1], square=9, fab=4, masked_share=0.0).run(model, X, y, batch_size=5)
    assert max(sizes) == 5


@every_norm
def test_it_breaks_what_its_opening_breaks(threat):
    model = network().eval()
    y = labelled(model)
    threat = dataclasses.replace(threat, radius=threat.radius / 4)
    opening = APGD(threat=threat, iterations=4, wide=threat.norm == "l1")
    first = standing(model, opening(model, X, y, generator=seeded()), y)
    whole = standing(model, small(threat)(model, X, y, generator=seeded()), y)
    assert not (whole & ~first).any()


@every_norm
def test_the_same_generator_gives_the_same_bits(threat):
    model = network().eval()
    y = labelled(model)
    attack = small(threat, square=20, fab=5)
    one, other = (attack.run(model, X, y, batch_size=5, generator=seeded()) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(attack(model, X, y), attack(model, X, y, generator=seeded(0)))


@pytest.mark.parametrize("mask", [Steps, Trap])
@every_norm
def test_the_fallback_breaks_images_of_a_model_with_masked_gradients(threat, mask):
    x = random_images(1, 1, 4, 4, seed=8).expand(6, -1, -1, -1)
    y = torch.zeros(6, dtype=torch.int64)
    wide = dataclasses.replace(threat, radius=threat.radius * (2 if threat.norm == "linf" else 1))
    model = mask(half_space(wide, 2, 0.6, x))
    blind = standing(model, small(wide)(model, x, y, generator=seeded()), y)
    seeing = small(wide, square=400, probe=20)
    x_adv = seeing(model, x, y, generator=seeded())
    assert int(standing(model, x_adv, y).sum()) < int(blind.sum())
    assert (wide.distance(x_adv.double(), x.double()) <= wide.radius * (1 + 1e-6)).all()


@pytest.mark.parametrize(("slack", "queries"), [(0.15, 6), (0.99, 6), (1.01, 81)])
def test_hopeless_images_without_gradient_cost_three_queries_a_run_and_a_twelfth_of_square(
    slack, queries
):
    model = Steps(Fixed())
    y = torch.zeros(len(X), dtype=torch.int64)
    attack = small(Linf(0.1), opening=40, square=80, fab=100, fallback_slack=slack)
    with PassMeter(model) as meter:
        attack.run(model, X, y, batch_size=36)
    opening, first_round = 2 * 3, 1 + 3 * 2 * 3  # three wrong classes
    assert meter.forwards + meter.backwards == len(X) * (opening + first_round + queries)


def test_an_image_whose_margin_rises_keeps_the_fallbacks_search():
    class Rising(nn.Module):
        asked = 0

        def forward(self, x: Tensor) -> Tensor:
            Rising.asked += 1
            return torch.tensor([[100.0 - Rising.asked, 0.0]]).expand(len(x), -1) + 0 * x.sum()

    y = torch.zeros(len(X), dtype=torch.int64)
    contest = Contest(Rising(), X, y, 12, seeded())
    contest.clean.fill_(-100.0)
    with attacking(contest.model), torch.no_grad():
        contest.climb(
            Square(threat=Linf(0.1), iterations=80), next(contest.untargeted()), slack=0.0
        )
    assert Rising.asked == 6  # 94 to go; three quarters of 3 in the last 3, 3.7 times, is 8.4
    Rising.asked = 86
    with attacking(contest.model), torch.no_grad():
        contest.climb(
            Square(threat=Linf(0.1), iterations=80), next(contest.untargeted()), slack=0.0
        )
    assert not contest.standing.any()  # 8 to go after 6 queries


def test_a_sound_gradient_needs_no_fallback():
    threat = Linf(0.1)
    model = half_space(threat, 4, 1.3)
    y = torch.zeros(len(X), dtype=torch.int64)
    attack = small(threat, square=5000, fab=100)
    with PassMeter(model) as meter:
        attack.run(model, X, y, batch_size=12)
    assert meter.forwards + meter.backwards <= attack.most_passes * len(X)


def test_masking_of_many_images_is_taken_for_that_of_the_model():
    y = torch.zeros(len(X), dtype=torch.int64)
    contest = Contest(Fixed(), X, y, 12, seeded())
    with attacking(contest.model), torch.no_grad():
        contest.margin.fill_(1.0)  # no search beats that
        contest.flat[:3] = True
        masked = small(THREATS[0], masked_share=0.5)._masked(contest)
        assert masked.tolist() == contest.flat.tolist()
        assert small(THREATS[0], masked_share=0.1)._masked(contest).all()


@every_norm
def test_of_a_seed_its_fallback_is_the_search_of_square_image_by_image(threat):
    model = Steps(network()).eval()
    y, search = labelled(model), Square(threat=threat, iterations=61).seeded(8)
    attack = small(threat, square=60, fallback_slack=float("inf")).seeded(8)
    found = attack.run(model, X, y, batch_size=5, generator=seeded(1))
    alone = search.run(model, X, y, batch_size=12, generator=seeded(2))
    broken = ~standing(model, alone, y)
    assert 0 < broken.sum() < 12
    assert not standing(model, found, y)[broken].any()
    searched = ((found - alone).abs() < 1e-6).flatten(1).all(1)  # others fell before
    assert searched[broken].any()
    assert small(threat).seeded(8) != small(threat).seeded(9)


@every_norm
def test_a_run_reports_the_greatest_margin_of_its_queries_in_the_ball(threat):
    model = network().eval()
    y = labelled(model)
    contest = Contest(model, X, y, len(X), seeded())
    contest.y = (y + 1) % 4  # every query is wrong: a row leaves after its first in the ball
    attack = APGD(threat=threat, iterations=5, wide=threat.norm == "l1")
    with attacking(model), torch.no_grad():
        rows = contest.climb(attack, next(contest.untargeted()))
        logits = model(rows["point"])
    index = torch.arange(len(X))
    true = logits[index, contest.y].clone()
    logits[index, contest.y] = -torch.inf
    torch.testing.assert_close(rows["best"], logits.amax(1) - true)
    torch.testing.assert_close(rows["half"], rows["best"])
    assert torch.equal(contest.found, rows["point"])
    assert not contest.standing.any()


def test_a_row_with_nan_among_its_logits_is_returned():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * torch.nan

    x_adv = small(THREATS[0])(Broken(), X, torch.zeros(len(X), dtype=torch.int64))
    assert (x_adv != X).flatten(1).any(1).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"opening": 2}, "opening must be at least 3"),
        ({"rounds": ()}, "rounds must be at least one"),
        ({"rounds": (Round(iterations=3, targets=1, resumes=True),)}, "resumes=False"),
        ({"reach": -1.0}, "reach must be at least 0"),
        ({"slack": float("nan")}, "slack must be at least 0"),
        ({"masked_share": 1.5}, "masked_share must be in"),
        ({"probe": 0}, "probe must be at least 1"),
        ({"fallback_slack": -0.1}, "fallback_slack must be at least 0"),
    ],
)
def test_settings_out_of_range_say_what_is_allowed(settings, told):
    with pytest.raises(InputError, match=told):
        Tournament(threat=Linf(0.1), **settings)


def test_a_round_needs_iterations_and_targets():
    with pytest.raises(InputError, match="iterations must be at least 3, got 2"):
        Round(iterations=2, targets=1)
    with pytest.raises(InputError, match="targets must be at least 1, got 0"):
        Round(iterations=3, targets=0)


def test_a_batch_needs_a_row():
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        small(THREATS[0]).run(network(), X, torch.zeros(12, dtype=torch.int64), batch_size=0)


def test_the_published_budgets_are_the_default_of_the_fallback():
    attack = Tournament(threat=Linf(0.1))
    assert (attack.square, attack.fab) == (Square(threat=Linf(0.1)).iterations, 100)
    assert attack.most_passes == 2 * (40 + 180 + 250 + 300 + 300) + 1 + 100
