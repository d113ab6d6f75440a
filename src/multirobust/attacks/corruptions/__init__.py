"""Common corruptions: 15 and 4 extra ones at five severities, computed from any images."""

from multirobust.attacks.corruptions.corruption import (
    COMMON,
    CORRUPTIONS,
    EXTRA,
    SEVERITIES,
    Corruption,
)

__all__ = ["COMMON", "CORRUPTIONS", "EXTRA", "SEVERITIES", "Corruption"]
