from __future__ import annotations

import hashlib
import io
import logging
import os
import tarfile
from dataclasses import replace

import pytest

from local_server import CONTENT, server
from multirobust.data.cifar10 import CIFAR10
from multirobust.data.download import download, unpack
from multirobust.errors import DataError

MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    import pooch

    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pooch.get_logger(), "level", logging.WARNING)


def test_a_download_is_the_file(tmp_path):
    with server() as (url, asked, _):
        path = download(url, tmp_path / "new", md5=MD5)
        assert path.read_bytes() == CONTENT
        assert download(url, tmp_path / "new", md5=MD5) == path
    assert asked == [None]  # the second call found it
    assert os.listdir(tmp_path / "new") == ["file.bin"]


def test_an_interrupted_download_is_continued_where_it_stopped(tmp_path):
    with server(stop_after=123_456) as (url, asked, mend):
        with pytest.raises(DataError, match=r"broke after 123,456 of 512,000 bytes.*to continue"):
            download(url, tmp_path, md5=MD5)
        assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:123_456]
        mend()
        assert download(url, tmp_path, md5=MD5).read_bytes() == CONTENT
    assert asked == [None, "bytes=123456-"]
    assert os.listdir(tmp_path) == ["file.bin"]


def test_a_server_without_ranges_makes_the_download_begin_again(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"something else")
    with server(ranges=False) as (url, asked, _):
        assert download(url, tmp_path, md5=MD5).read_bytes() == CONTENT
    assert asked == ["bytes=14-"]


def test_a_part_that_is_already_whole_is_used(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    with server() as (url, asked, _):
        assert download(url, tmp_path, md5=MD5).read_bytes() == CONTENT
    assert asked == [f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_too_long_is_thrown_away(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT + b"more")
    with server() as (url, asked, _):
        assert download(url, tmp_path, md5=MD5).read_bytes() == CONTENT
    assert asked == [f"bytes={len(CONTENT) + 4}-", None]


def test_a_wrong_checksum_is_an_error_that_leaves_nothing(tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"not the beginning of it")
    with server() as (url, _, _):
        with pytest.raises(DataError, match=f"must have MD5 {MD5}"):
            download(url, tmp_path, md5=MD5)
        assert os.listdir(tmp_path) == []
        assert download(url, tmp_path, md5=MD5).read_bytes() == CONTENT


def test_a_server_that_is_not_there_is_one_clear_error(tmp_path):
    with server() as (url, _, _):
        pass
    with pytest.raises(DataError, match="the download failed"):
        download(url, tmp_path, md5=MD5)


def tar(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo("folder/linked")
            info.type, info.linkname = tarfile.SYMTYPE, link
            archive.addfile(info)
    return buffer.getvalue()


def test_unpacking_writes_the_named_files_and_nothing_else(tmp_path):
    members = {"folder/a": b"A", "../escaped": b"E", "/absolute/c": b"C", "b": b"B"}
    (tmp_path / "x.tar.gz").write_bytes(tar(members, link="/etc/passwd"))
    inner = tmp_path / "deep" / "inner"
    unpack(tmp_path / "x.tar.gz", inner, {"a", "b"})
    assert {p.name: p.read_bytes() for p in inner.iterdir()} == {"a": b"A", "b": b"B"}
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "deep", "inner", "x.tar.gz"]


@pytest.mark.parametrize(
    ("members", "link", "problem"),
    [
        ({"folder/a": b"A", "../b": b"B"}, None, "leads out of its folder"),
        ({"folder/a": b"A", "folder/../../b": b"B"}, None, "leads out of its folder"),
        ({"folder/a": b"A", "/absolute/b": b"B"}, None, "has an absolute path"),
        ({"folder/a": b"A", "other/a": b"B"}, None, "is there twice"),
        ({"folder/a": b"A"}, "/etc/passwd", "is a link or no file"),
    ],
    ids=["above", "above within", "absolute", "twice", "link"],
)
def test_a_hostile_member_is_refused_before_anything_is_written(tmp_path, members, link, problem):
    (tmp_path / "x.tar.gz").write_bytes(tar(members, link=link))
    inner = tmp_path / "deep" / "inner"
    with pytest.raises(DataError, match=f"{problem}, so this is not the published archive"):
        unpack(tmp_path / "x.tar.gz", inner, {"a", "b", "linked"})
    assert list(inner.iterdir()) == []
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["deep", "inner", "x.tar.gz"]


def test_a_broken_archive_is_one_clear_error_and_leaves_no_half_file(tmp_path):
    content = tar({"folder/a": os.urandom(100_000)})
    (tmp_path / "x.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"x\.tar\.gz: cannot be unpacked"):
        unpack(tmp_path / "x.tar.gz", tmp_path, {"a"})
    assert not (tmp_path / "a").exists()


def test_the_archive_is_downloaded_unpacked_and_deleted(tmp_path):
    content = tar({"cifar-10-batches-py/test_batch": b"T", "cifar-10-batches-py/readme.html": b"R"})
    folder = tmp_path / "pickles"
    with server(content, stop_after=50) as (url, asked, mend):
        archive = replace(CIFAR10, url=url, md5=hashlib.md5(content).hexdigest())
        with pytest.raises(DataError, match="download failed"):
            archive.get(folder, ["test_batch"])
        mend()
        archive.get(folder, ["test_batch"])
        archive.get(folder, ["test_batch"])
    assert asked == [None, "bytes=50-"]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {"test_batch": b"T"}
