from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch

from linear_oracles import HalfSpace
from multirobust.attacks import PGD, Attack
from multirobust.data import Split, digits
from multirobust.errors import DataError, InputError
from multirobust.evaluation import AttackColumn, Outcomes, State
from multirobust.evaluation import save as save_outcomes
from multirobust.evaluation.curve_attacks import CurveAttacks, Shortened
from multirobust.evaluation.curve_run import MULTIPLES, robustness_curve
from multirobust.evaluation.curves import Curves, at_radius, load_curves, save_curves
from multirobust.models.external import load_external
from multirobust.threats import L1, L2, Linf, Threat, threats_for
from nearest_mean import write_model

BALLS = {"linf": Linf(0.06), "l2": L2(0.25), "l1": L1(0.8, density=0.05)}
MARGIN = 1e-4
"""Relative room for float32 in a comparison of distances."""
SHORT = {"linf": 0.02, "l2": 0.02, "l1": 0.15}
"""How far beyond the least radius a dozen passes may first succeed, relative to it."""


def half_space() -> HalfSpace:
    weight = torch.randn(16, generator=torch.Generator().manual_seed(0))
    return HalfSpace(weight, -float(weight.sum()) / 2).eval()


def images(n: int = 24) -> Split:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (n, 1, 4, 4), generator=generator)
    return Split(pixels.to(torch.uint8), torch.randint(0, 2, (n,), generator=generator))


RADII = {name: [share * ball.radius for share in (0.5, 1, 2, 3)] for name, ball in BALLS.items()}

quick = partial(robustness_curve, attack=CurveAttacks(iterations=12, targets=0))


@pytest.fixture(scope="module")
def curves() -> Curves:
    return quick(half_space(), images(), BALLS, radii=RADII)


def closed_form(norm: str) -> np.ndarray:
    """The least radius at which the best image of the ball crosses the plane, by bisection."""
    model, split = half_space(), images()
    x, y = split.floats(), split.labels
    with torch.no_grad():
        score = model.score(x).double()
    margin = torch.where(y == 1, score, -score)
    low, high = torch.zeros_like(margin), torch.full_like(margin, 1.0 if norm == "linf" else 16.0)
    for _ in range(24):
        middle = (low + high) / 2
        reached = torch.stack([_gain(model, norm, *row) for row in zip(middle, x, y, strict=True)])
        low, high = (
            torch.where(reached < margin, middle, low),
            torch.where(reached < margin, high, middle),
        )
    return torch.where(margin <= 0, 0, high).numpy()


def _gain(model: HalfSpace, norm: str, radius: torch.Tensor, x: torch.Tensor, y: torch.Tensor):
    threat = replace(BALLS[norm], radius=float(radius))
    return model.greatest_gain(threat, x[None], y[None])[0]


@pytest.mark.parametrize("norm", BALLS)
def test_the_distances_on_a_linear_model_lie_between_the_closed_form_and_its_next_radius(
    curves, norm
):
    exact, found = closed_form(norm), curves.distances(norm)
    grid = np.array(curves.radii(norm))
    assert 0 < (exact == 0).sum() < len(exact)
    np.testing.assert_array_equal(found == 0, exact == 0)
    assert (found >= exact * (1 - MARGIN)).all()
    reach = np.append(grid, np.inf)[np.searchsorted(grid, exact * (1 + SHORT[norm]))]
    attacked = exact > 0
    assert (found[attacked] <= reach[attacked]).all()
    assert np.isfinite(found[attacked]).sum() > 3
    within = attacked & np.isfinite(found)
    assert (found[within] < 0.98 * reach[within]).any(), "nothing was shortened"


@pytest.mark.parametrize("norm", BALLS)
def test_accuracy_starts_clean_and_never_rises_with_the_radius(curves, norm):
    assert curves.accuracy(norm, 0) == curves.clean()
    radii = np.linspace(0, curves.radii(norm)[-1], 50)
    values = [curves.accuracy(norm, radius).value for radius in radii]
    assert (np.diff(values) <= 0).all()
    assert values[-1] < values[0]


def test_an_image_broken_at_a_radius_is_broken_from_its_distance_on_and_attacked_no_more(curves):
    columns = [column for column in curves.outcomes.columns if column.threat.startswith("linf")]
    states = np.stack([column.states for column in columns])
    seen = np.isin(states, (State.SURVIVED, State.BROKEN)) & (curves.distances("linf") > 0)
    first = np.argmax(states == State.BROKEN, axis=0)
    for image in np.flatnonzero(seen.any(0) & (states == State.BROKEN).any(0)):
        assert not seen[first[image] + 1 :, image].any()
    distances = curves.distances("linf")
    for radius in (*curves.radii("linf"), 0.0333):
        assert curves.accuracy("linf", radius).value == (distances > radius).mean()


def test_the_points_are_the_accuracies_at_every_step(curves):
    radius, value, low, high = curves.points("l2")
    assert radius[0] == 0
    assert radius[-1] == curves.radii("l2")[-1]
    assert (np.diff(radius) > 0).all()
    for r, v, a, b in zip(radius, value, low, high, strict=True):
        estimate = curves.accuracy("l2", float(r))
        assert (estimate.value, estimate.low, estimate.high) == (v, a, b)
    between = (radius[:-1] + radius[1:]) / 2
    assert [curves.accuracy("l2", r).value for r in between] == list(value[:-1])


def test_beyond_the_largest_radius_what_stands_is_unknown(curves):
    end = curves.radii("linf")[-1]
    last, beyond = curves.accuracy("linf", end), curves.accuracy("linf", 1.01 * end)
    assert last.exact
    assert (beyond.range_low, beyond.range_high) == (0, last.value)


@dataclass(frozen=True)
class FailsFrom(Attack):
    """PGD that raises at radii from one on, where an image of the batch has a bright pixel."""

    inner: PGD
    radius: float

    @property
    def threats(self) -> tuple[Threat, ...]:
        return self.inner.threats

    def __call__(self, model, x, y, *, generator=None):
        if self.inner.threat.radius >= self.radius and (x[:, 0, 0, 0] > 0.9).any():
            raise RuntimeError("no luck")
        return self.inner(model, x, y, generator=generator)


def test_an_image_whose_attack_fails_is_unknown_beyond_the_radius_before():
    split = images(40)
    threats = {"linf": Linf(0.06)}

    def attack(threat: Threat) -> dict[str, Attack]:
        pgd = PGD(threat=threat, steps=4, step_size=threat.radius / 2)
        return {"pgd": FailsFrom(pgd, 0.03)}

    curves = robustness_curve(
        half_space(), split, threats, radii={"linf": [0.02, 0.03, 0.04]}, attack=attack
    )
    bright = (split.floats()[:, 0, 0, 0] > 0.9).numpy() & (curves.distances("linf") > 0.02)
    assert 0 < bright.sum() < 8
    np.testing.assert_array_equal(curves.known_up_to("linf") == 0.02, bright)
    assert curves.accuracy("linf", 0.02).exact
    for radius in (0.0201, 0.03, 0.04):
        estimate = curves.accuracy("linf", radius)
        assert estimate.range_high - estimate.range_low == pytest.approx(bright.mean())
    radius, value, _, high = curves.points("linf")
    at = np.searchsorted(radius, 0.02, side="right")
    assert value[at] == pytest.approx(curves.accuracy("linf", 0.0201).range_low)
    assert high[at] >= curves.accuracy("linf", 0.0201).range_high
    assert curves.manifest["errors"] == {
        f"pgd_linf@{radius}": ["RuntimeError: no luck"] for radius in (0.03, 0.04)
    }


def test_an_image_whose_clean_prediction_is_an_error_is_unknown_everywhere():
    column = AttackColumn(
        "a", at_radius("l2", 0.5), 0.5, states=np.array([0, 2]), distances=np.zeros(2)
    )
    outcomes = Outcomes(
        np.arange(2), np.zeros(2), np.array([0, -1]), (column,), {"curves": {"l2": 0.5}}
    )
    estimate = Curves(outcomes).accuracy("l2", 0)
    assert (estimate.range_low, estimate.range_high) == (0.5, 1)


def test_curves_are_read_as_they_were_written(curves, tmp_path):
    save_curves(curves, tmp_path / "a" / "b")
    assert load_curves(tmp_path / "a" / "b") == curves


@pytest.mark.parametrize("name", ["outcomes.parquet", "outcomes.json"])
def test_a_truncated_file_is_one_clear_error(curves, tmp_path, name):
    save_curves(curves, tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated"):
        load_curves(tmp_path)


def test_outcomes_of_a_suite_are_no_curves(tmp_path):
    column = AttackColumn("a", "l2", 0.5, states=np.zeros(2), distances=np.zeros(2))
    outcomes = Outcomes(np.arange(2), np.zeros(2), np.zeros(2), (column,))
    with pytest.raises(InputError, match="robustness_curve"):
        Curves(outcomes)
    save_outcomes(outcomes, tmp_path)
    with pytest.raises(DataError, match="no robustness curves"):
        load_curves(tmp_path)


def one_step(threat: Threat) -> dict[str, Attack]:
    return {"pgd": PGD(threat=threat, steps=1, step_size=threat.radius)}


def test_the_same_call_gives_the_same_curves_also_after_an_interruption(tmp_path):
    call = partial(
        robustness_curve,
        half_space(),
        images(),
        {"l2": BALLS["l2"]},
        radii={"l2": RADII["l2"]},
        attack=one_step,
        block_size=10,
    )
    whole = call()
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if len(lines) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(partial=tmp_path / "p", report=stop)
    assert len(list((tmp_path / "p").glob("*.npz"))) == 3 * 3
    again = call(partial=tmp_path / "p")
    assert not (tmp_path / "p").exists()
    for a, b in zip(whole.outcomes.columns, again.outcomes.columns, strict=True):
        np.testing.assert_array_equal(a.states, b.states)
        np.testing.assert_array_equal(a.distances, b.distances)


def test_by_default_the_multiples_of_the_benchmark_radius_that_make_a_ball_are_attacked():
    threats = {"linf": Linf(0.3), "l2": L2(0.25)}
    curves = robustness_curve(half_space(), images(4), threats, attack=one_step)
    assert curves.norms == ("linf", "l2")
    assert curves.benchmark("linf") == 0.3
    assert curves.radii("linf") == tuple(share * 0.3 for share in MULTIPLES if share * 0.3 <= 1)
    assert curves.radii("l2") == tuple(share * 0.25 for share in MULTIPLES)


def test_both_attacks_see_what_is_left_and_their_settings_are_kept():
    curves = quick(
        half_space(),
        images(),
        {"l2": BALLS["l2"]},
        radii={"l2": [0.2]},
        attack=CurveAttacks(iterations=6, targets=1),
    )
    first, second = curves.outcomes.columns
    assert [first.name, second.name] == ["apgd_ce_l2@0.2", "apgd_t_l2@0.2"]
    broken = (first.states == State.BROKEN) & (first.distances > 0)
    assert (second.states[broken] == State.SKIPPED).all()
    assert "iterations=6, targets=1" in curves.manifest["attack"]
    assert "TargetedDLR" in second.settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threats": {}}, "at least one norm"),
        ({"radii": {"l3": [1.0]}}, "l3"),
        ({"radii": {"l2": [0.0]}}, "at least one above 0"),
        ({"radii": {"l2": [-1.0, 1.0]}}, "0 or more"),
        ({"radii": {"l2": [float("inf")]}}, "finite"),
    ],
)
def test_a_bad_grid_is_an_input_error(options, message):
    options = {"threats": BALLS} | options
    with pytest.raises(InputError, match=message):
        robustness_curve(half_space(), images(), **options)


def test_a_bad_setting_or_question_is_an_input_error(curves):
    for options in ({"iterations": 2}, {"targets": -1}, {"halvings": 0.5}):
        with pytest.raises(InputError, match="whole number"):
            CurveAttacks(**options)
    with pytest.raises(InputError, match="radius must be 0 or more"):
        curves.accuracy("l2", -1)
    with pytest.raises(InputError, match="l4"):
        curves.distances("l4")


def test_shortening_halves_the_way_to_the_plane_and_keeps_what_does_not_fool():
    model, split = half_space(), images()
    x, y = split.floats(), split.labels
    attack = PGD(threat=Linf(0.2), steps=5, step_size=0.1)
    long = attack(model, x, y)
    short = Shortened(attack, 8)(model, x, y)
    fooled, right = model(long).argmax(1) != y, model(x).argmax(1) == y
    assert (fooled & right).sum() > 0
    assert (~fooled).any()
    assert torch.equal(model(short).argmax(1) != y, fooled)
    assert torch.equal(short[~fooled], long[~fooled])
    rows = fooled & right
    start, end, now = (model.score(images)[rows].detach().double() for images in (x, long, short))
    share, plane = (now - start) / (end - start), -start / (end - start)
    assert (share >= plane - 1e-4).all()
    assert (share <= plane + 2**-8 + 1e-4).all()


def test_the_command_draws_a_run_and_reads_back_what_it_computed(runs, tmp_path, capsys):
    from multirobust.cli.curves import curve

    folders, output = [runs / "adv_linf-s0"], tmp_path / "out"
    curve(folders, limit=2, iterations=6, targets=0, output=output)
    first, written = capsys.readouterr(), (output / "curves.json").read_bytes()
    assert "already" not in first.err
    assert first.out.count("adv_linf-s0") == 3
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")
    models = json.loads(written)["models"]
    assert [*models] == ["adv_linf-s0"]
    assert models["adv_linf-s0"]["norms"]["l1"]["radius"][0] == 0
    curve(folders, limit=2, iterations=6, targets=0, output=output)
    again = capsys.readouterr()
    assert again.out == first.out
    assert again.err.count("already computed with these settings") == 1
    assert (output / "curves.json").read_bytes() == written
    with pytest.raises(InputError, match=r"threats\.\*"):
        curve(folders, output=output, overrides=["training.epochs=3"])


def test_the_command_takes_any_model_and_reads_back_what_it_computed(tmp_path, multirobust):
    nearest, output = write_model(tmp_path), tmp_path / "out"
    command = ["curve", "--model", nearest.spec, "--weights", nearest.weights, "--data", "digits"]
    command += ["--limit", 12, "--iterations", 6, "--targets", 0, "--output", output]
    first = multirobust(*command)
    assert first.code == 0, first.err
    written = (output / "curves.json").read_bytes()
    (found,) = json.loads(written)["models"].values()
    known = robustness_curve(
        load_external(nearest.spec, weights=nearest.weights),
        digits().test,
        threats_for("digits"),
        attack=CurveAttacks(iterations=6, targets=0),
        limit=12,
    )
    for norm in known.norms:
        radius, accuracy, _, _ = known.points(norm)
        assert found["norms"][norm]["radius"] == radius.tolist()
        assert found["norms"][norm]["accuracy"] == accuracy.tolist()
    again = multirobust(*command)
    assert again.out == first.out
    assert "already computed with these settings" in again.err
    other = multirobust(*command, "--model-arg", "scale=2.0")
    assert "already computed" not in other.err
    refused = multirobust("curve", output, *command[1:])
    assert refused.code == 2
    assert "RUN and --model exclude each other" in refused.err
