"""Our calls of huggingface_hub, bound to the signatures of the package that is installed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from multirobust.errors import RunError
from multirobust.experiment import publishing
from multirobust.experiment.exporting import FILES
from multirobust.experiment.publishing import push
from multirobust.models.external import fetch_run
from multirobust.models.hub import snapshot

hub = pytest.importorskip("huggingface_hub")
CALLS = ("create_repo", "upload_folder", "snapshot_download")


@pytest.fixture
def calls(tmp_path, monkeypatch) -> dict[str, dict[str, Any]]:
    """Arguments by the name that the real function gives them, of each call that fits it."""
    made: dict[str, dict[str, Any]] = {}

    def bound(name: str, signature: inspect.Signature) -> Callable[..., str]:
        def call(*arguments: object, **options: object) -> str:
            made[name] = signature.bind(*arguments, **options).arguments
            return str(tmp_path)

        return call

    for name in CALLS:
        signature = inspect.signature(getattr(hub, name))
        monkeypatch.setattr(hub, name, bound(name, signature))
    monkeypatch.setattr(publishing, "load_export", lambda folder: None)
    return made


@pytest.mark.parametrize("name", CALLS)
def test_no_function_that_we_call_takes_arguments_of_any_name(name):
    kinds = {each.kind for each in inspect.signature(getattr(hub, name)).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def test_an_upload_fits_the_installed_functions(calls, tmp_path):
    assert push(tmp_path, "me/mine", private=True) == str(tmp_path)
    assert calls == {
        "create_repo": {
            "repo_id": "me/mine",
            "repo_type": "model",
            "private": True,
            "exist_ok": True,
        },
        "upload_folder": {
            "repo_id": "me/mine",
            "repo_type": "model",
            "folder_path": str(tmp_path),
            "allow_patterns": list(FILES),
            "commit_message": "Upload a model of multirobust",
        },
    }


def test_a_download_fits_the_installed_function(calls, tmp_path):
    assert snapshot("me/mine", "v1", ["config.json"], what="model") == Path(tmp_path)
    wanted = {"repo_id": "me/mine", "revision": "v1", "allow_patterns": ["config.json"]}
    assert calls == {"snapshot_download": wanted}
    with pytest.raises(RunError, match="holds no trained run"):
        fetch_run("hf:me/one@v2")  # the answered folder is empty
    download = calls["snapshot_download"]
    assert (download["repo_id"], download["revision"]) == ("me/one", "v2")


def test_a_renamed_argument_of_the_package_is_found(monkeypatch):
    def renamed(repo_id: str, *, version: str | None = None, allow_patterns: object = None) -> str:
        raise AssertionError("the call must not fit")

    monkeypatch.setattr(hub, "snapshot_download", renamed)
    with pytest.raises(RunError, match="unexpected keyword argument 'revision'"):
        snapshot("me/mine", "v1", ["config.json"], what="model")
