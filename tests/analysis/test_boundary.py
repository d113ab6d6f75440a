from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from drawings import check_drawing, description, texts
from linear_oracles import network, random_images
from multirobust.analysis import decision_boundaries, decision_boundary
from multirobust.analysis.boundary import TwoClasses, _smooth
from multirobust.attacks import PGD
from multirobust.errors import InputError
from multirobust.threats import L2, Linf

ATTACKS = {
    "linf": PGD(threat=Linf(0.1), steps=3, step_size=0.05),
    "l2": PGD(threat=L2(0.5), steps=3, step_size=0.25),
}


def images(count: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes 0, 1 and 2, of which 0 is dark and 2 is bright."""
    labels = torch.arange(count) % 3
    level = 0.3 * labels[:, None, None, None]
    return 0.4 * random_images(count, 1, 4, 4) + level, labels


@pytest.fixture(scope="module")
def boundary():
    x, y = images()
    return decision_boundary(
        network(1).eval(), x, y, ATTACKS, classes=(0, 2), perplexity=5, resolution=12
    )


def test_errors_are_those_of_the_two_logits_under_the_attacks_on_them(boundary):
    model = network(1).eval()
    x, y = images()
    chosen = y != 1
    x, y = x[chosen], (y[chosen] == 2).long()
    pair = TwoClasses(model, (0, 2))
    wanted = {"clean": float((pair(x).argmax(1) != y).double().mean())}
    for name, attack in ATTACKS.items():
        wanted[name] = float((pair(attack(pair, x, y)).argmax(1) != y).double().mean())
    assert boundary.errors == pytest.approx(wanted)
    assert boundary.labels.tolist() == y.tolist()


def test_the_same_seed_gives_the_same_plane_and_another_leaves_the_errors(boundary):
    x, y = images()
    model = network(1).eval()
    options = {"classes": (0, 2), "perplexity": 5, "resolution": 12}
    again = decision_boundary(model, x, y, ATTACKS, **options)
    for name in ("points", "field", "x", "y"):
        np.testing.assert_array_equal(getattr(again, name), getattr(boundary, name))
    assert decision_boundary(model, x, y, ATTACKS, seed=7, **options).errors == boundary.errors


def test_everything_has_its_shape_and_the_grid_holds_all_points(boundary):
    assert boundary.versions == ("clean", "linf", "l2")
    assert boundary.points.shape == (3, 16, 2)
    assert boundary.decisions.shape == (3, 16)
    assert boundary.field.shape == (12, 12)
    assert np.abs(boundary.field).max() <= 1
    for axis, places in ((0, boundary.x), (1, boundary.y)):
        assert places[0] < boundary.points[..., axis].min()
        assert places[-1] > boundary.points[..., axis].max()


def test_the_field_of_two_far_clusters_is_theirs_and_symmetric_between_them():
    points = np.concatenate([np.random.default_rng(0).normal(size=(20, 2))] * 2)
    points[20:, 0] *= -1
    points[:, 0] += np.repeat([9.0, -9.0], 20)
    values = np.repeat([0.8, -0.6], 20)
    places = np.array([[9.0, 0.0], [-9.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(_smooth(points, values, places), [0.8, -0.6, 0.1], atol=1e-6)


def test_well_separated_features_are_told_apart_by_the_field():
    class Bright(nn.Module):
        """The mean brightness is the feature, and beyond one half it is class 1."""

        def __init__(self):
            super().__init__()
            with torch.random.fork_rng(devices=[]):
                self.head = nn.Linear(2, 2)
            self.head.weight.data = torch.tensor([[-9.0, 0.0], [9.0, 0.0]])
            self.head.bias.data = torch.tensor([4.5, -4.5])

        def features(self, x):
            flat = x.flatten(1)
            return torch.stack([flat.mean(1), flat.std(1)], 1)

        def forward(self, x):
            return self.head(self.features(x))

    y = torch.arange(40) % 2
    x = 0.2 * random_images(40, 1, 4, 4) + 0.8 * y[:, None, None, None]
    found = decision_boundary(Bright(), x, y, {}, classes=(0, 1), perplexity=8)
    assert found.errors == {"clean": 0.0}
    assert found.fidelity == 1.0


def test_what_cannot_be_embedded_is_an_input_error():
    x, y = images()
    model = network(1).eval()
    with pytest.raises(InputError, match="none of 3"):
        decision_boundary(model, x, y, {}, classes=(0, 3))
    for classes in ((0, 0), (0, 4), (-1, 2)):
        with pytest.raises(InputError, match="two different classes of 4"):
            decision_boundary(model, x, y, {}, classes=classes)
    with pytest.raises(InputError, match="'clean'"):
        decision_boundary(model, x, y, {"clean": ATTACKS["l2"]}, classes=(0, 1))
    with pytest.raises(InputError, match="resolution"):
        decision_boundary(model, x, y, {}, classes=(0, 1), resolution=1)
    with pytest.raises(InputError, match="features"):
        decision_boundary(nn.Flatten(), x, y, {}, classes=(0, 1))
    with pytest.raises(InputError, match="that differ"):
        decision_boundary(model, 0 * x, y, {}, classes=(0, 1))


def test_a_drawing_shows_defenses_versions_errors_and_fidelity(boundary):
    rows = {"sat": boundary, "mng_ac": replace(boundary, fidelity=0.5)}
    svg = check_drawing(lambda: decision_boundaries(rows, names=("cat", "dog", "fox")))
    shown = texts(svg)
    for name, version in (("clean", "clean"), ("ℓ∞", "linf"), ("ℓ₂", "l2")):
        assert shown.count(f"{name}: error {100 * boundary.errors[version]:.1f} %") == 2
    assert {"sat", "mng_ac", "fidelity 50 %", "class cat, wrong", "decided for fox"} <= set(shown)
    assert f"l2 {100 * boundary.errors['l2']:.1f} %; fidelity 50 %" in description(svg)


def test_a_field_with_one_side_only_is_drawn(boundary):
    for sign in (-1, 1):
        one_sided = replace(boundary, field=sign * (np.abs(boundary.field) + 0.1).clip(0, 1))
        assert "sat" in texts(decision_boundaries({"sat": one_sided}))


def test_boundaries_of_different_versions_are_refused(boundary):
    with pytest.raises(InputError, match="same versions"):
        decision_boundaries({"a": boundary, "b": replace(boundary, versions=("x", "y", "z"))})
    with pytest.raises(InputError, match="one defense"):
        decision_boundaries({})
