"""Exported models on Hugging Face."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from multirobust.data import Data
from multirobust.errors import InputError, RunError
from multirobust.experiment.exporting import FILES, export_run
from multirobust.experiment.runs import Run
from multirobust.models.hub import hub_library, is_repository, refusal
from multirobust.models.pretrained import load_export

__all__ = ["push", "push_run"]


def push(folder: Path, repository: str, *, private: bool = False) -> str:
    """Upload an exported folder, after it has been loaded once; the repository is made if need be.

    Only the files of an export are uploaded, whatever else the folder holds.

    Args:
        folder: What `multirobust export` wrote.
        repository: "owner/name".
        private: Make a new repository private; one that exists stays as it is.

    Returns:
        The address of what was uploaded.

    Raises:
        InputError: If the folder is no export, the id is none, or huggingface_hub is missing.
        RunError: If Hugging Face refuses.
    """
    if not is_repository(repository):
        raise InputError(f"repository must be written owner/name, got {repository!r}.")
    load_export(folder)
    hub = hub_library(f"pushing to {repository!r}")
    try:
        hub.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=str(folder),
            allow_patterns=list(FILES),
            commit_message="Upload a model of multirobust",
        )
    except Exception as error:
        raise RunError(
            f"repository {repository!r} refused the upload: {refusal(error)}. Check the id and "
            "the connection, and log in with `hf auth login`."
        ) from error
    return str(getattr(commit, "commit_url", commit))


def push_run(
    run: Run,
    data: Data,
    repository: str,
    *,
    onnx: bool = False,
    license: str | None = None,
    private: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> str:
    """Export a run into a temporary folder and upload that; see `export_run` and `push`.

    Raises:
        InputError: As they do.
        RunError: As they do.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "export"
        export_run(run, data, folder, onnx=onnx, license=license, report=report)
        return push(folder, repository, private=private)
