"""Real images for tests, where the machine has them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PICKLES = ("data_batch_1", "test_batch", "batches.meta")
PICKLE_BYTES = {"data_batch_1": 31_035_704, "test_batch": 31_035_526, "batches.meta": 158}
WAYS_TO_GET = (
    "option `folder`",
    "--set data.folder=PATH",
    "MULTIROBUST_DATA",
    "download=True",
    "--set data.download=true",
)
"""What an error about missing files names, in Python and as a command."""


@pytest.fixture(scope="session")
def cifar10_folder() -> Path:
    """A folder with the official `data_batch_1`, `test_batch` and `batches.meta` of CIFAR-10.

    They are unpacked once into the ignored folder `.data` of the repository, from the packed data
    that MULTIROBUST_SHARED_DATA names or that lie beside the repository; without these the test is
    skipped.
    """
    root = REPOSITORY / ".data"
    folder = root / "cifar-10-batches-py"
    if _complete(folder):
        return root
    packed = _packed("CIFAR-10")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as fresh:
        arguments = ["cifar10", "--to", fresh, "--batches", "1", "test"]
        subprocess.run([sys.executable, str(packed / "unpack.py"), *arguments], check=True)
        for name in PICKLES:
            # Whole or not at all: another test run may be doing the same.
            os.replace(Path(fresh) / folder.name / name, folder / name)
    return root


@pytest.fixture(scope="session")
def tinyimagenet_folder() -> Path:
    """A folder with 5,000 training and all test images of Tiny-ImageNet in the official layout."""
    return _unpacked("tinyimagenet", "tiny-imagenet-200", "words.txt")


@pytest.fixture(scope="session")
def svhn_folder() -> Path:
    """A folder with the first 1,083 images of SVHN's `train_32x32.mat`, in that file's format."""
    return _unpacked("svhn", "svhn", "train_32x32.mat")


def _unpacked(name: str, folder: str, last: str) -> Path:
    """Unpack a data set once into the ignored folder `.data`; `last` is written at its end."""
    root = REPOSITORY / ".data"
    if not (root / folder / last).is_file():
        packed = _packed(name)
        root.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as fresh:
            arguments = [name, "--to", fresh]
            subprocess.run([sys.executable, str(packed / "unpack.py"), *arguments], check=True)
            if not (root / folder).exists():
                # Whole or not at all: another test run may be doing the same.
                os.rename(Path(fresh) / folder, root / folder)
    return root


def _packed(name: str) -> Path:
    packed = Path(
        os.environ.get("MULTIROBUST_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    ).resolve()
    if not (packed / "unpack.py").is_file():
        pytest.skip(
            f"no real {name}: MULTIROBUST_SHARED_DATA names no folder with unpack.py, and there "
            "is none in ../shared/data beside the repository"
        )
    return packed


def _complete(folder: Path) -> bool:
    files = {name: folder / name for name in PICKLES}
    return all(f.is_file() and f.stat().st_size == PICKLE_BYTES[n] for n, f in files.items())
