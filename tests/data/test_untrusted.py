"""Reading arrays of foreign files: what is an error of the file, and what is not."""

from __future__ import annotations

import struct
import zipfile

import numpy as np
import pytest

from multirobust.data import untrusted
from multirobust.errors import DataError, InputError

VALUES = np.arange(4000, dtype=np.uint8).reshape(40, 100)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "arrays.npz"
    np.savez(file, values=VALUES, text=np.array("a text"), one=np.array(3))
    return file


@pytest.mark.parametrize("raised", [KeyboardInterrupt, InputError, ValueError, OSError, KeyError])
def test_what_is_raised_while_an_array_is_used_passes_through(path, raised):
    error = raised("of the user of the array")
    with pytest.raises(raised) as caught, untrusted._opened(path, "values"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("raised", [KeyboardInterrupt, MemoryError])
def test_what_no_file_is_to_blame_for_passes_through_while_it_is_read(path, raised, monkeypatch):
    def interrupted(stream, size):
        raise raised

    monkeypatch.setattr(untrusted, "_exactly", interrupted)
    with pytest.raises(raised):
        untrusted.read_array(path, "values")
    with pytest.raises(raised):
        untrusted.read_text(path, "text")


def test_a_mistake_of_ours_behind_the_reading_is_not_told_as_damage(path, monkeypatch):
    monkeypatch.setattr(untrusted, "_exactly", lambda stream, size: bytearray(size - 1))
    with pytest.raises(ValueError, match="reshape"):
        untrusted.read_array(path, "values")


@pytest.mark.parametrize("failure", [OSError("disk"), EOFError("end"), RuntimeError("encrypted")])
def test_what_the_reader_raises_is_one_error_that_names_the_file(path, failure, monkeypatch):
    def broken(self, name, *arguments, **options):
        raise failure

    monkeypatch.setattr(zipfile.ZipFile, "open", broken)
    with pytest.raises(DataError, match=rf"arrays\.npz is no \.npz file, or damaged \({failure}\)"):
        untrusted.read_array(path, "values")


@pytest.mark.parametrize("at", [0.2, 0.4, 0.8])
def test_changed_bytes_of_an_array_are_one_error_when_it_is_read(path, at):
    content = bytearray(path.read_bytes())
    content[int(at * VALUES.size)] ^= 255
    path.write_bytes(bytes(content))
    assert untrusted.array_shape(path, "values") == VALUES.shape  # the header is whole
    with pytest.raises(DataError, match=r"damaged \(Bad CRC-32"):
        untrusted.read_array(path, "values")


def test_an_array_of_another_kind_or_name_is_one_error(path):
    with pytest.raises(DataError, match="one is a single value"):
        untrusted.read_array(path, "one")
    with pytest.raises(DataError, match="values is no text, or too long"):
        untrusted.read_text(path, "values")
    with pytest.raises(DataError, match="nothing"):
        untrusted.read_array(path, "nothing")
    with pytest.raises(DataError, match=r"other\.npz is missing"):
        untrusted.read_array(path.with_name("other.npz"), "values")


def stored(path, text: str, content: bytes = b""):
    """Write a file whose one array has this header, whatever it says."""
    line = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        head = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(line)) + line
        archive.writestr("values.npy", head + content)


@pytest.mark.parametrize(
    ("kind", "shape", "rule"),
    [
        ("|u1", f"({2**70}, 0)", "a shape that no array has"),
        ("|u1", f"(0, {2**40}, {2**40})", "a shape that no array has"),
        ("|u1", f"({'1, ' * 40})", "a shape that no array has"),
        ("|S0", "(1000000000000,)", "values of no bytes"),
        ("|u1", "-" * 9000 + "1", "a header that is none"),
        ("|u1", "(1000000000, 8, 8, 3)", "should have 192,000,000,000 bytes, 0 are there"),
    ],
)
def test_a_header_that_no_array_has_is_one_error(tmp_path, kind, shape, rule):
    path = tmp_path / "odd.npz"
    stored(path, f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}")
    for read in (untrusted.read_array, untrusted.array_shape, untrusted.array_bytes):
        with pytest.raises(DataError, match=rf"odd\.npz is no .*values (has|holds)?.*{rule}"):
            read(path, "values")


def test_an_array_that_is_stored_by_columns_is_the_same_array(tmp_path):
    np.savez(tmp_path / "turned.npz", values=np.asfortranarray(VALUES))
    for rows in (None, 7):
        read = untrusted.read_array(tmp_path / "turned.npz", "values", rows=rows)
        assert np.array_equal(read, VALUES[:rows])
    assert untrusted.array_bytes(tmp_path / "turned.npz", "values") == VALUES.nbytes


def test_whole_files_give_their_arrays(path):
    assert untrusted.array_names(path) == ("values", "text", "one")
    assert np.array_equal(untrusted.read_array(path, "values", rows=7), VALUES[:7])
    assert untrusted.read_text(path, "text") == "a text"
