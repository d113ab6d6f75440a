"""The published radii, and the error for a name that does not exist."""

from __future__ import annotations

import pytest

from multirobust.errors import InputError
from multirobust.threats import THREAT_PRESETS, threats_for

RADII = {
    "cifar10": (8 / 255, 128 / 255, 2000 / 255),
    "svhn": (8 / 255, 128 / 255, 2000 / 255),
    "tinyimagenet": (4 / 255, 80 / 255, 2000 / 255),
    "e_at": (8 / 255, 0.5, 12.0),
    "e_at_hard": (8 / 255, 1.5, 12.0),
    "digits": (0.15, 0.75, 2.5),
}


def test_every_preset_has_the_three_norms_in_order_with_the_published_radii():
    assert set(THREAT_PRESETS) == set(RADII)
    for name, radii in RADII.items():
        threats = threats_for(name)
        assert list(threats) == ["linf", "l2", "l1"]
        assert tuple(threat.radius for threat in threats.values()) == radii
        assert all(threat.norm == norm for norm, threat in threats.items())


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(InputError, match="Did you mean 'cifar10'"):
        threats_for("cifar")
