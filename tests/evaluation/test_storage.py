from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import time

import numpy as np
import pytest

from multirobust.errors import DataError, InputError, RunError
from multirobust.evaluation import AttackColumn, Outcomes, load, save
from multirobust.files import atomic_write, atomic_write_together


def example(seed=0, n=50, names=("pgd.linf", "PGD(threat=L1(7.8), steps=50)")):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, n)
    columns = tuple(
        AttackColumn(
            name,
            threat,
            radius,
            rng.integers(1, 3, n),
            rng.random(n, np.float32),
            seconds=1.5,
            forwards=50.0,
            backwards=49.5,
            settings=f"PGD({threat})",
        )
        for name, (threat, radius) in zip(
            names, [("linf", 8 / 255), ("l1", 2000 / 255)], strict=True
        )
    )
    manifest = {"seeds": [seed], "device": "cpu", "classes": ["ä", "<b>"], "time": None}
    return Outcomes(rng.permutation(n), labels, labels, columns, manifest)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_load_returns_what_save_wrote(tmp_path):
    save(example(), tmp_path / "new" / "folder")
    assert load(tmp_path / "new" / "folder") == example()
    assert listing(tmp_path / "new" / "folder") == ["outcomes.json", "outcomes.parquet"]


def test_outcomes_without_attacks_are_stored_too(tmp_path):
    clean = Outcomes(np.arange(3), np.arange(3), np.array([0, 1, -1]))
    save(clean, tmp_path)
    assert load(tmp_path) == clean


def test_any_parquet_reader_finds_one_row_per_image_and_two_columns_per_attack(tmp_path):
    from pyarrow import parquet

    save(example(), tmp_path)
    table = parquet.read_table(tmp_path / "outcomes.parquet")
    assert table.num_rows == 50
    assert table.column_names[:5] == [
        "index", "label", "prediction", "pgd.linf.state", "pgd.linf.distance",
    ]  # fmt: skip
    assert str(table.schema.field("pgd.linf.state").type) == "uint8"
    assert str(table.schema.field("pgd.linf.distance").type) == "float"


def test_the_same_outcomes_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save(example(), tmp_path / name)
    for file in ("outcomes.json", "outcomes.parquet"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize("file", ["outcomes.json", "outcomes.parquet"])
def test_a_missing_file_is_named(tmp_path, file):
    save(example(), tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(DataError, match=rf"{file}: cannot be read.*evaluate this one"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
@pytest.mark.parametrize("file", ["outcomes.json", "outcomes.parquet"])
def test_a_truncated_file_is_refused_at_any_length(tmp_path, file, keep):
    save(example(), tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[:keep])
    with pytest.raises(DataError, match=rf"{file}.*Evaluate the run again"):
        load(tmp_path)


def test_files_of_two_evaluations_do_not_pass_as_one(tmp_path):
    save(example(0), tmp_path / "a")
    save(example(1), tmp_path / "b")
    os.replace(tmp_path / "a" / "outcomes.parquet", tmp_path / "b" / "outcomes.parquet")
    with pytest.raises(DataError, match="from another evaluation"):
        load(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "is not a manifest of outcomes"),
        ({"version": 99}, "format version 99"),
        ({"sha256": None}, "holds no checksum"),
        ({"attacks": [{"name": "x"}]}, "does not describe"),
        ({"attacks": 3}, "does not describe"),
        ({"manifest": []}, "does not describe"),
    ],
)
def test_a_foreign_or_edited_manifest_is_one_clear_error(tmp_path, change, message):
    save(example(), tmp_path)
    path = tmp_path / "outcomes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("value", [object(), float("nan"), np.float32(1)])
def test_a_manifest_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    bad = Outcomes(np.arange(2), np.arange(2), np.arange(2), manifest={"x": value})
    with pytest.raises(InputError, match="JSON values only"):
        save(bad, tmp_path)
    assert listing(tmp_path) == []


def test_a_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="cannot be used as a folder"):
        save(example(), tmp_path / "run")


@contextlib.contextmanager
def small_disk():
    """Let the system refuse to write more than 1,000 bytes to any file, as a full disk does.

    Only around one call: pytest's own output may go to a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_outcomes_survive_a_disk_that_fills_while_newer_ones_are_saved(tmp_path):
    save(example(0), tmp_path)
    with pytest.raises(RunError, match=r"outcomes\.parquet: cannot be written"), small_disk():
        save(example(1), tmp_path)
    assert load(tmp_path) == example(0)
    assert listing(tmp_path) == ["outcomes.json", "outcomes.parquet"]


def no_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_at_any_stage_leaves_the_earlier_file_and_nothing_else(
    tmp_path, monkeypatch, call
):
    path = tmp_path / "file"
    atomic_write(path, b"earlier")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, no_space)
        with pytest.raises(RunError, match=r"file: cannot be written: No space left on device"):
            atomic_write(path, b"later")
    assert path.read_bytes() == b"earlier"
    assert listing(tmp_path) == ["file"]


def test_no_file_of_a_set_takes_its_name_when_the_last_one_does_not_fit(tmp_path):
    def full(_):
        no_space()

    atomic_write(tmp_path / "a", b"earlier")
    with pytest.raises(RunError, match="b: cannot be written"):
        atomic_write_together([(tmp_path / "a", b"later"), (tmp_path / "b", full)])
    assert (tmp_path / "a").read_bytes() == b"earlier"
    assert listing(tmp_path) == ["a"]


def test_a_writer_that_hides_a_full_disk_behind_its_own_error_is_understood(tmp_path):
    """As torch.save does: RuntimeError, raised while an OSError was being handled."""

    def writer(_):
        try:
            no_space()
        except OSError:
            raise RuntimeError("unexpected pos 704 vs 598")  # noqa: B904

    with pytest.raises(RunError, match="No space left on device"):
        atomic_write(tmp_path / "file", writer)


def test_a_full_disk_under_torch_save_is_one_clear_error(tmp_path):
    import torch

    with pytest.raises(RunError, match="cannot be written"), small_disk():
        atomic_write(tmp_path / "file", lambda stream: torch.save(torch.zeros(100_000), stream))
    assert listing(tmp_path) == []


def test_the_writers_own_mistake_passes_through_and_leaves_nothing(tmp_path):
    def writer(stream):
        stream.write(b"half")
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        atomic_write(tmp_path / "file", writer)
    assert listing(tmp_path) == []


def test_a_missing_folder_is_one_clear_error(tmp_path):
    with pytest.raises(RunError, match=r"no/file: cannot be written: No such file"):
        atomic_write(tmp_path / "no" / "file", b"")


def test_a_written_file_has_ordinary_permissions(tmp_path):
    atomic_write(tmp_path / "file", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_old_leftovers_of_a_killed_writer_are_removed_and_fresh_ones_kept(tmp_path):
    old, fresh = tmp_path / ".file.aa.tmp", tmp_path / ".file.bb.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    atomic_write(tmp_path / "file", b"x")
    assert listing(tmp_path) == [".file.bb.tmp", "file"]
