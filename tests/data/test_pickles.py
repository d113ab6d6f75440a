"""Pickles are opened only after their checksum has matched, and make arrays only even then."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from multirobust.data import cifar10, cifar100
from multirobust.data.pickles import PickleArchive
from multirobust.errors import DataError


class Intruder:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def archive_of(path: Path) -> PickleArchive:
    """An archive whose checksum the file has."""
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    return PickleArchive(title="Toy", folder="toy", url="http://x", md5="", files={path.name: md5})


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_arrays_pickled_by_numpy_1_and_2_are_both_read(tmp_path, module):
    path, array = tmp_path / "batch", np.arange(12, dtype=np.uint8).reshape(3, 4)
    # Protocol 3 names modules as text, as does the protocol 2 of the official files.
    content = pickle.dumps({"data": array}, protocol=3)
    path.write_bytes(content.replace(b"numpy._core.multiarray", module.encode()))
    assert np.array_equal(archive_of(path).read(path)["data"], array)


@pytest.mark.parametrize(
    ("reader", "name"),
    [(cifar10, "data_batch_1"), (cifar100, "train")],
    ids=["cifar10", "cifar100"],
)
def test_a_pickle_with_another_checksum_is_never_opened(tmp_path, reader, name):
    mark = tmp_path / "mark"
    (tmp_path / name).write_bytes(pickle.dumps({"data": Intruder(mark)}))
    with pytest.raises(DataError, match=r"published MD5.*it was not opened"):
        reader(tmp_path, train_limit=10)
    assert not mark.exists()


def test_even_with_its_checksum_a_pickle_makes_arrays_only(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Intruder(mark)}))
    with pytest.raises(DataError, match=r"it names .*open"):
        archive_of(path).read(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())["data"].close()
    assert mark.exists()  # the pickle does what the test fears


def test_a_pickle_that_is_no_dictionary_is_one_clear_error(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="it holds a list"):
        archive_of(path).read(path)


def test_a_folder_in_the_place_of_a_file_is_one_clear_error(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(b"")
    archive = archive_of(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        archive.read(path)
