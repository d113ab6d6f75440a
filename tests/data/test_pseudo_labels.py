from __future__ import annotations

import contextlib
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multirobust.data import pseudo_labels, untrusted
from multirobust.data.pseudo_labels import pseudo_labeled, read_provenance, save_pseudo_labels
from multirobust.errors import DataError, InputError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(12) % 10


def npz(folder: Path, **arrays) -> Path:
    path = folder / "images.npz"
    np.savez(path, **{"image": IMAGES, "label": LABELS, **arrays})
    return path


def published(folder: Path, protocol: int = 4, **values) -> Path:
    path = folder / "ti.pickle"
    content = {"data": IMAGES, "extrapolated_targets": LABELS, **values}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def ours(folder: Path, **facts) -> Path:
    path = folder / "ours.npz"
    images, labels = torch.from_numpy(IMAGES).permute(0, 3, 1, 2), torch.from_numpy(LABELS)
    save_pseudo_labels(path, images, labels, {"count": 12, "model": {}, **facts})
    return path


@pytest.mark.parametrize("make", [npz, published, ours])
def test_each_format_gives_its_images_and_labels(make, tmp_path):
    split = pseudo_labeled(make(tmp_path))
    assert np.array_equal(split.images.permute(0, 2, 3, 1).numpy(), IMAGES)
    assert split.labels.tolist() == LABELS.tolist()
    assert split.images.is_contiguous()


@pytest.mark.parametrize("make", [npz, published, ours])
def test_a_limit_takes_the_first_images(make, tmp_path):
    split, whole = pseudo_labeled(make(tmp_path), limit=5), pseudo_labeled(make(tmp_path))
    assert torch.equal(split.images, whole.images[:5])
    assert split.labels.tolist() == LABELS[:5].tolist()
    with pytest.raises(InputError, match=r"unlabeled_limit must be a whole number in 1..12"):
        pseudo_labeled(make(tmp_path), limit=13)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("labels", [LABELS, LABELS.tolist(), LABELS.astype(np.uint8)])
def test_a_pickle_may_be_of_any_binary_protocol_and_its_labels_a_list(protocol, labels, tmp_path):
    path = published(tmp_path, protocol, extrapolated_targets=labels, origin="a model")
    assert pseudo_labeled(path).labels.tolist() == LABELS.tolist()


def test_compressed_files_and_labels_in_a_column_are_read(tmp_path):
    path = tmp_path / "x.npz"
    np.savez_compressed(path, image=IMAGES, label=LABELS[:, None].astype(np.int32))
    assert pseudo_labeled(path, limit=7).labels.tolist() == LABELS[:7].tolist()


def test_a_file_is_found_in_the_folder_of_the_data(tmp_path, monkeypatch):
    npz(tmp_path)
    assert len(pseudo_labeled("images.npz", folder=tmp_path)) == 12
    monkeypatch.setenv("MULTIROBUST_DATA", str(tmp_path))
    assert len(pseudo_labeled("images.npz")) == 12


def test_our_files_say_where_they_come_from_and_others_nothing(tmp_path):
    facts = read_provenance(ours(tmp_path))
    assert facts is not None
    assert (facts["format"], facts["version"], facts["count"]) == (
        "multirobust pseudo-labels",
        1,
        12,
    )
    assert read_provenance(npz(tmp_path)) is None


class Runs:
    """A pickle of it would make a file when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("key", ["data", "extrapolated_targets", "more"])
def test_a_pickle_that_tries_to_run_code_does_not(key, tmp_path):
    path, mark = published(tmp_path, **{key: Runs(tmp_path / "ran")}), tmp_path / "ran"
    with pytest.raises(DataError, match=r"it names .*Nothing in it was run"):
        pseudo_labeled(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the pickle of this test is harmless"


@pytest.mark.parametrize(
    "code",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        # Makes an array of a length that no byte stands for.
        b"cnumpy\nndarray\n((J\xff\xff\xff\x7ftI00\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftS'b'\ntR.",
        # Asks for memory for four billion places.
        b"\x80\x02}r\xff\xff\xff\xff.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"",
        b"no pickle",
    ],
    ids=[
        "system",
        "eval",
        "load",
        "fromfile",
        "ndarray",
        "reconstruct",
        "places",
        "bytes",
        "0",
        "t",
    ],
)
def test_a_pickle_that_names_or_asks_for_anything_else_is_refused(code, tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(code)
    with pytest.raises(DataError, match="no pickle of plain arrays, or damaged"):
        pseudo_labeled(path)


def test_python_objects_in_an_npz_file_are_not_loaded(tmp_path):
    mark = tmp_path / "ran"
    objects = np.array([Runs(mark)] * 12, dtype=object)
    with pytest.raises(DataError, match="label holds Python objects"):
        pseudo_labeled(npz(tmp_path, label=objects))
    assert not mark.exists()


@pytest.mark.parametrize("make", [npz, published, ours])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(share=st.floats(0, 0.999))
def test_a_truncated_file_is_one_error(make, share, tmp_path):
    path = make(tmp_path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match="damaged"):
        pseudo_labeled(path)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(places=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=9))
@pytest.mark.parametrize("make", [published, ours])
def test_a_file_with_changed_bytes_is_read_or_one_error(make, places, tmp_path):
    path = make(tmp_path)
    content = bytearray(path.read_bytes())
    for share, value in places:
        content[int(share * len(content))] = value
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        pseudo_labeled(path)


WRONG = {
    "floats": {"image": IMAGES / np.float32(255)},
    "channels first": {"image": IMAGES.transpose(0, 3, 1, 2).copy()},
    "three dimensions": {"image": IMAGES[..., 0].copy()},
    "fewer labels": {"label": LABELS[:11]},
    "fewer images": {"image": IMAGES[:11]},
    "float labels": {"label": LABELS / 2},
    "one-hot": {"label": np.eye(10)[LABELS].astype(np.int64)},
    "negative": {"label": LABELS - 1},
    "no image": {"image": IMAGES[:0], "label": LABELS[:0]},
    "a single value": {"label": np.int64(3)},
}


@pytest.mark.parametrize("case", WRONG)
def test_an_npz_file_of_another_form_is_one_error(case, tmp_path):
    with pytest.raises(DataError, match=r"images\.npz"):
        pseudo_labeled(npz(tmp_path, **WRONG[case]))


@pytest.mark.parametrize("case", [name for name in WRONG if name != "one-hot"])
def test_a_pickle_of_another_form_is_one_error(case, tmp_path):
    names = {"image": "data", "label": "extrapolated_targets"}
    values = {names[key]: value for key, value in WRONG[case].items()}
    with pytest.raises(DataError, match=r"ti\.pickle"):
        pseudo_labeled(published(tmp_path, **values))


@pytest.mark.parametrize("labels", [["cat"] * 12, [2**70] * 12, [True] * 12, None, "x" * 12])
def test_labels_of_a_pickle_that_are_no_class_indices_are_refused(labels, tmp_path):
    with pytest.raises(DataError, match="extrapolated_targets must be"):
        pseudo_labeled(published(tmp_path, extrapolated_targets=labels))


def test_a_pickle_of_labels_alone_or_of_no_dictionary_is_refused(tmp_path):
    path = tmp_path / "x.pickle"
    path.write_bytes(pickle.dumps({"extrapolated_targets": LABELS}, protocol=4))
    with pytest.raises(DataError, match="must hold `data` and `extrapolated_targets`"):
        pseudo_labeled(path)
    path.write_bytes(pickle.dumps([1, 2], protocol=4))
    with pytest.raises(DataError, match="must hold a dictionary"):
        pseudo_labeled(path)


def test_truly_labeled_images_are_not_taken_silently(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, images=IMAGES, labels=LABELS)
    with pytest.raises(DataError, match="true ones, they are not for self-training"):
        pseudo_labeled(path)
    for spec in ("svhn_extra", "digits:true_labels"):
        with pytest.raises(InputError, match="multirobust pseudo-label RUN DATA"):
            pseudo_labeled(spec)


def test_true_labels_of_svhn_extra_are_taken_only_where_that_is_said(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        pseudo_labels, "svhn_extra", lambda folder, limit: asked.append((folder, limit))
    )
    pseudo_labeled("svhn_extra:true_labels", folder=tmp_path, limit=3)
    assert asked == [(tmp_path, 3)]


def test_a_missing_or_foreign_file_says_how_to_get_one(tmp_path):
    with pytest.raises(DataError, match=r"is missing.*pseudo-label.*semisup-adv"):
        pseudo_labeled(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"must be an \.npz or \.pickle file"):
        pseudo_labeled("digits")


@pytest.mark.parametrize("make", [npz, published])
def test_a_file_that_needs_more_than_the_memory_is_refused_before_it_is_read(
    make, tmp_path, monkeypatch
):
    path = make(tmp_path)
    monkeypatch.setattr(untrusted, "memory_limit", lambda: IMAGES.nbytes // 2)
    with pytest.raises(DataError, match="GiB of memory"):
        pseudo_labeled(path)


def test_with_a_limit_memory_is_taken_for_those_images_only(tmp_path, monkeypatch):
    path = npz(tmp_path)
    monkeypatch.setattr(untrusted, "memory_limit", lambda: IMAGES.nbytes // 2)
    assert len(pseudo_labeled(path, limit=6)) == 6


def header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(
    "shape", ["(1000000000, 32, 32, 3)", "(-1, 8, 8, 3)", "(True,)", "12", "x"]
)
def test_a_header_that_does_not_fit_its_bytes_takes_no_memory(shape, tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header(shape) + bytes(1 << 20))
        archive.writestr("label.npy", header("(12,)", "<i8") + LABELS.tobytes())
    with pytest.raises(DataError, match="damaged"):
        pseudo_labeled(path)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.array("{"), "is no JSON"),
        (np.array("[" * 100_000), "is no JSON"),
        (np.array("[]"), "does not say"),
        (np.array(json.dumps({"format": "another"})), "does not say"),
        (np.array(json.dumps({"format": "multirobust pseudo-labels", "version": 2})), "of version"),
        (
            np.array(json.dumps({"format": "multirobust pseudo-labels", "version": 1})),
            "counts None",
        ),
        (np.zeros(3), "is no text"),
    ],
)
def test_a_provenance_that_is_not_ours_is_one_error(value, problem, tmp_path):
    with pytest.raises(DataError, match=problem):
        pseudo_labeled(npz(tmp_path, provenance=value))
