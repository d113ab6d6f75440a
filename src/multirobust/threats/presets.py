"""The benchmark radii of each data set, all on the [0, 1] pixel scale.

`cifar10`, `svhn`, `tinyimagenet`: Section 4.1 and Table 1 of Madaan, Shin and Hwang, Learning to
Generate Noise for Multi-Attack Robustness, ICML 2021.

`e_at`: the CIFAR-10 radii of Croce and Hein, Adversarial robustness against multiple and single
l_p-threat models via quick fine-tuning of robust classifiers, ICML 2022, with the larger l1 ball.

`e_at_hard`: the same with an l2 ball of 1.5, in which no two norms stand for all three: E-AT, which
trains on linf and l1, falls there to 25.5 % where MAX keeps 35.6 %. Table 1 of Jiang and Singh,
RAMP: Boosting adversarial robustness against multiple lp perturbations for universal robustness,
NeurIPS 2024.

`digits`: ours, for 8x8 images of 17 gray levels. The radii are large enough that an undefended
network falls to each norm (4.6 % of the test images survive all three), and balanced so that no
norm implies another: adversarial training against linf alone keeps 9.8 % (l1 is its hole), l2
alone 31.0 %, l1 alone 36.8 %, against the worst of the three 48.0 %. Measured with a
three-convolution network, 20 epochs, PGD of 60 steps with two starts, 500 test images; one
standard error is 2.2 points.
"""

from __future__ import annotations

from multirobust.errors import lookup_error
from multirobust.threats.balls import L1, L2, Linf
from multirobust.threats.base import Threat

__all__ = ["THREAT_PRESETS", "threats_for"]

THREAT_PRESETS: dict[str, tuple[Threat, ...]] = {
    "cifar10": (Linf(8 / 255), L2(128 / 255), L1(2000 / 255)),
    "svhn": (Linf(8 / 255), L2(128 / 255), L1(2000 / 255)),
    "tinyimagenet": (Linf(4 / 255), L2(80 / 255), L1(2000 / 255)),
    "e_at": (Linf(8 / 255), L2(0.5), L1(12.0)),
    "e_at_hard": (Linf(8 / 255), L2(1.5), L1(12.0)),
    "digits": (Linf(0.15), L2(0.75), L1(2.5)),
}
"""Name of a data set or a published benchmark, to its threats in the order linf, l2, l1."""


def threats_for(preset: str) -> dict[str, Threat]:
    """Return the threats of a preset by the name of their norm, in the order linf, l2, l1.

    Args:
        preset: A key of `THREAT_PRESETS`.

    Raises:
        InputError: If there is no such preset; the message lists all.

    >>> list(threats_for("tinyimagenet"))
    ['linf', 'l2', 'l1']
    """
    if preset not in THREAT_PRESETS:
        raise lookup_error("threat preset", preset, THREAT_PRESETS)
    return {threat.norm: threat for threat in THREAT_PRESETS[preset]}
