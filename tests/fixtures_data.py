"""Real CIFAR-10 pickles for tests, where the machine has them."""

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
    packed = Path(
        os.environ.get("MULTIROBUST_SHARED_DATA", REPOSITORY.parent / "shared" / "data")
    ).resolve()
    if not (packed / "unpack.py").is_file():
        pytest.skip(
            "no real CIFAR-10: MULTIROBUST_SHARED_DATA names no folder with unpack.py, and there "
            "is none in ../shared/data beside the repository"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as fresh:
        arguments = ["cifar10", "--to", fresh, "--batches", "1", "test"]
        subprocess.run([sys.executable, str(packed / "unpack.py"), *arguments], check=True)
        for name in PICKLES:
            # Whole or not at all: another test run may be doing the same.
            os.replace(Path(fresh) / folder.name / name, folder / name)
    return root


def _complete(folder: Path) -> bool:
    files = {name: folder / name for name in PICKLES}
    return all(f.is_file() and f.stat().st_size == PICKLE_BYTES[n] for n, f in files.items())
