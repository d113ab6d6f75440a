from __future__ import annotations

from dataclasses import replace

import pytest

from multirobust.errors import InputError
from multirobust.threats import L1, L2, THREAT_PRESETS, Linf, Threat, check_scale

COLOR, TINY, LARGE, GRAY, SMALL = (3, 32, 32), (3, 64, 64), (3, 224, 224), (1, 28, 28), (1, 8, 8)
SHAPES = dict.fromkeys(("cifar10", "svhn", "e_at", "e_at_hard"), COLOR)
SHAPES |= {"tinyimagenet": TINY, "digits": SMALL}


@pytest.mark.parametrize(
    ("threat", "shape", "source"),
    [
        (L2(8.0), COLOR, ""),
        (L2(8.0), COLOR, "cifar10"),
        (L1(2000.0), COLOR, ""),
        (L1(2000.0), COLOR, "cifar10"),
        (L1(2000.0), TINY, "tinyimagenet"),
        (L2(80.0), TINY, "tinyimagenet"),
        (L2(128.0), COLOR, "svhn"),
        (L2(128.0), LARGE, ""),
        (L1(640.0), SMALL, "digits"),
    ],
    ids=str,
)
def test_a_radius_in_0_to_255_is_told_with_itself_divided(threat, shape, source):
    r = threat.radius
    with pytest.raises(InputError) as caught:
        check_scale(f"threats.{threat.norm}", threat, shape, source=source)
    told = str(caught.value)
    assert told.startswith(f"threats.{threat.norm}: radius must be on the [0, 1] pixel scale, got")
    assert f"write {r:g} / 255, which is {r / 255:.4g}, in place of {r:g}" in told


PRESETS = [
    (ball, SHAPES[name], source)
    for name, balls in THREAT_PRESETS.items()
    for ball in balls
    for source in (name, "")
]


@pytest.mark.parametrize(
    ("threat", "shape", "source"),
    [
        *PRESETS,
        (L1(12.0), COLOR, "cifar10"),
        (L1(12.0), COLOR, ""),
        (L2(3.0), COLOR, "cifar10"),
        (L2(3.0), COLOR, ""),
        (L2(3.0), LARGE, ""),  # ImageNet, with l1 255 of E-AT
        (L1(255.0), LARGE, ""),
        (L2(2.0), LARGE, ""),
        (Linf(0.3), GRAY, ""),  # MNIST
        (L2(2.0), GRAY, ""),
        (L1(10.0), GRAY, ""),
        (L2(2560 / 255), COLOR, "cifar10"),  # the largest of Kang et al.
        (L1(24960 / 255), COLOR, "cifar10"),
        (L2(1.0), SMALL, ""),
        (L2(3.0), SMALL, "digits"),
        (Linf(1.0), COLOR, "cifar10"),
    ],
    ids=str,
)
def test_radii_that_are_in_use_pass(threat: Threat, shape, source):
    check_scale(threat.norm, threat, shape, source=source)


def test_four_times_each_benchmark_radius_passes():
    for name, balls in THREAT_PRESETS.items():
        for ball in balls:
            check_scale(ball.norm, replace(ball, radius=4 * ball.radius), SHAPES[name], source=name)


def test_who_means_a_large_ball_writes_what_the_message_says():
    with pytest.raises(InputError, match=r"write a number that is not whole, such as 8\.01"):
        check_scale("l2", L2(8.0), COLOR)
    check_scale("l2", L2(8.01), COLOR)
