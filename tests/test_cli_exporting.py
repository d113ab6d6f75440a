"""The commands export and push, as the shell calls them."""

from __future__ import annotations

import sys
import types

import pytest
import torch

import multirobust as mr


def test_export_writes_a_folder_that_evaluate_takes_as_a_model(multirobust, run, tmp_path):
    out = tmp_path / "out"
    answer = multirobust("export", run.folder, "--output", out, "--license", "mit")
    assert answer.code == 0, answer.err
    assert answer.out == (
        f"Export: {out} (README.md, config.json, model.safetensors, recipe.toml); the card tells "
        "of 1 stored evaluation\n"
    )
    words = ("--data", "digits", "--limit", "8", "--output", tmp_path / "seen")
    steps = [f"evaluation.attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")]
    small = [part for step in steps for part in ("--set", step)]
    answer = multirobust("evaluate", "--model", out, *words, *small)
    assert answer.code == 0, answer.err
    assert "8 images" in answer.out


def test_export_without_output_goes_into_the_folder_of_the_run(multirobust, run):
    assert multirobust("export", run.folder).code == 0
    images = torch.zeros(1, 1, 8, 8)
    assert mr.from_pretrained(run.folder / "export")(images).shape == (1, 10)


@pytest.mark.parametrize("command", [("export",), ("push",)])
def test_several_runs_and_none_are_one_clear_error(multirobust, runs, tmp_path, command):
    rest = ("me/mine",) if command == ("push",) else ()
    answer = multirobust(*command, runs, *rest)
    assert answer.code == 2
    assert "holds several runs (adv_linf-s0, ant-s0, mng_ac-s0); name one of them" in answer.err
    answer = multirobust(*command, tmp_path / "nothing", *rest)
    assert answer.code == 2
    assert "holds no run" in answer.err


def test_a_foreign_output_is_refused(multirobust, run, tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "file").touch()
    answer = multirobust("export", run.folder, "--output", tmp_path / "foreign")
    assert answer.code == 1
    assert "holds other files and no export; choose another --output" in answer.err


def test_push_uploads_a_run_or_an_export(multirobust, run, monkeypatch):
    seen = []

    def upload_folder(**options):
        seen.append(options["repo_id"])
        return f"https://hub/{options['repo_id']}"

    hub = types.SimpleNamespace(create_repo=lambda *a, **k: None, upload_folder=upload_folder)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert multirobust("export", run.folder).code == 0
    for source in (run.folder, run.folder / "export"):
        answer = multirobust("push", source, "me/mine")
        assert answer.code == 0, answer.err
        assert answer.out == "Uploaded: https://hub/me/mine\n"
    assert seen == ["me/mine"] * 2
    answer = multirobust("push", run.folder / "export", "me/mine", "--license", "mit")
    assert answer.code == 2
    assert "--license" in answer.err
