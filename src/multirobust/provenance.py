"""Where a number comes from: versions, commit, machine and time."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

__all__ = ["device_name", "provenance"]


def provenance(device: Any = "cpu") -> dict[str, Any]:
    """Return what a result file says about its making, as plain JSON values.

    Args:
        device: The `torch.device` that did the work, or its name.
    """
    facts = {
        "versions": {
            "python": platform.python_version(),
            "torch": _version("torch"),
            "numba": _version("numba"),
            "multirobust": _version("multirobust"),
        },
        "commit": _commit(),
        "device": device_name(device),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if str(device).startswith("cuda"):
        import torch

        # On by default for convolutions: "float32" on such a device has 10 bits of mantissa.
        facts["tf32"] = {
            "convolutions": torch.backends.cudnn.allow_tf32,
            "matrix products": torch.backends.cuda.matmul.allow_tf32,
        }
    return facts


def device_name(device: Any) -> str:
    """Return what the device calls itself, such as "NVIDIA H100" or the processor's name."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else 0
    return f"{_processor()}" + (f", {threads} threads" if threads else "")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _commit() -> str | None:
    """Return the commit of the source tree, with "+" if it has changes, or None outside of one."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        if not git("ls-files", __file__):
            return None
        return git("rev-parse", "HEAD") + (
            "+" if git("status", "--porcelain", "--", str(folder)) else ""
        )
    except (OSError, subprocess.SubprocessError):
        return None
