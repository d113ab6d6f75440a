"""The unforeseen attacks of Kang et al.: elastic, JPEG in three norms, fog, snow and Gabor noise.

References: Kang, Sun, Hendrycks, Brown and Steinhardt, Testing robustness against unforeseen
adversaries, arXiv:1908.08016, 2019, with the constants of its code (ddkang/advex-uar).
"""

from __future__ import annotations

from multirobust.attacks.unforeseen.base import Unforeseen
from multirobust.attacks.unforeseen.elastic import Elastic
from multirobust.attacks.unforeseen.fog import Fog
from multirobust.attacks.unforeseen.gabor import Gabor
from multirobust.attacks.unforeseen.jpeg import JPEGL1, JPEGL2, JPEGLinf
from multirobust.attacks.unforeseen.snow import Snow

__all__ = ["JPEGL1", "JPEGL2", "Elastic", "Fog", "Gabor", "JPEGLinf", "Snow", "Unforeseen"]
