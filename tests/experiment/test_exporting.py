"""Exports: the folder and its card, loaded back bit for bit; hostile configs; ONNX; the hub."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import multirobust as mr
from multirobust import models
from multirobust.config import load_recipe
from multirobust.errors import InputError, RunError
from multirobust.evaluation import State, load, save
from multirobust.experiment import export_run, load_data, load_model, push, push_run
from multirobust.experiment.exporting import FILES
from multirobust.experiment.runs import identity
from multirobust.experiment.stored import stored_evaluations
from multirobust.models.external import load_external
from multirobust.models.onnx_export import export_onnx
from multirobust.models.pretrained import read_config


@pytest.fixture
def data(run):
    return load_data(run.recipe.data)


@pytest.fixture
def exported(run, data) -> Path:
    return export_run(run, data).folder


@pytest.fixture
def images(generator):
    return torch.rand((5, 1, 8, 8), generator=generator)


def head(card: str) -> dict:
    """The YAML head of a card, whose values are JSON."""
    lines = card.split("---\n")[1].splitlines()
    return {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}


def changed(folder: Path, **fields) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


# The folder


def test_an_export_gives_the_same_logits_bit_for_bit(run, data, exported, images):
    model = mr.from_pretrained(exported)
    assert not model.training
    assert torch.equal(model(images), load_model(run, data)(images))
    assert (exported / "model.safetensors").read_bytes() == (
        run.folder / "model.safetensors"
    ).read_bytes()


def test_evaluate_takes_an_export_as_a_model(exported, images):
    assert torch.equal(load_external(exported)(images), mr.from_pretrained(exported)(images))


def test_the_recipe_of_an_export_trains_the_same_run_and_names_no_folder(run, exported):
    recipe = load_recipe(exported / "recipe.toml")
    assert identity(recipe, run.defense, run.seed) == identity(run.recipe, run.defense, run.seed)
    assert "folder" not in (exported / "recipe.toml").read_text()


def test_the_config_tells_what_is_needed_to_use_the_model(exported, data):
    config = read_config(exported)
    assert config.class_names == tuple(str(digit) for digit in range(10))
    assert (config.classes, config.channels, config.image_size) == (10, 1, (8, 8))
    assert config.mean == tuple(torch.tensor(data.mean).tolist())
    assert config.threats == {"linf": 0.15, "l2": 0.75, "l1": 2.5}


def test_an_export_is_replaced_by_the_same_run_and_keeps_no_stale_file(run, data, exported):
    (exported / "model.onnx").write_bytes(b"of former weights")
    again = export_run(run, data)
    assert again.folder == exported
    assert {path.name for path in exported.iterdir()} == set(again.files)
    assert "model.onnx" not in again.files


def test_an_export_that_fails_at_the_last_step_leaves_the_earlier_one_whole(
    run, data, exported, monkeypatch
):
    (exported / ".git").mkdir()
    (exported / ".git" / "HEAD").write_text("ref")
    (exported / "model.onnx").write_bytes(b"of the earlier export")
    before = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    rename = os.rename

    def refuse(source, target):
        if Path(target) == exported and source.suffix == ".tmp":
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr("multirobust.files.os.rename", refuse)
    with pytest.raises(RunError, match="No space left on device"):
        export_run(run, data, license="mit")
    assert {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    export_run(run, data, license="mit")
    assert "mit" in (exported / "README.md").read_text()
    assert (exported / ".git" / "HEAD").read_text() == "ref"
    assert not (exported / "model.onnx").exists()
    assert [path for path in run.folder.iterdir() if path.name.startswith(".export")] == []


def test_a_foreign_folder_is_refused_and_stays_as_it_is(run, data, exported, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "README.md").write_text("mine")
    with pytest.raises(RunError, match="holds other files and no export"):
        export_run(run, data, foreign)
    assert [path.name for path in foreign.iterdir()] == ["README.md"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(RunError, match="is no folder"):
        export_run(run, data, file)
    with pytest.raises(RunError, match="export of another run"):
        export_run(replace(run, seed=1), data, exported)


def test_a_failure_leaves_nothing_behind(run, data, tmp_path, monkeypatch):
    def refuse(folder):
        raise InputError("no")

    monkeypatch.setattr("multirobust.experiment.exporting.load_export", refuse)
    with pytest.raises(InputError, match="no"):
        export_run(run, data, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_run_that_has_not_been_trained_is_one_clear_error(run, data, tmp_path):
    (run.folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match="has not finished training"):
        export_run(run, data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The card


def test_the_numbers_of_the_card_are_those_of_the_stored_outcomes(run, exported):
    card, (stored,) = (exported / "README.md").read_text(), stored_evaluations(run)
    outcomes = stored.outcomes
    views = {"clean": outcomes.clean(), "union": outcomes.union(), "average": outcomes.average()}
    views |= {"ℓ∞": outcomes.worst("linf"), "ℓ1": outcomes.worst("l1"), "ℓ2": outcomes.worst("l2")}
    rows = {row.split(" | ")[0][2:]: row for row in re.findall(r"^\| \S+ \|.*\]* \|$", card, re.M)}
    for name, view in views.items():
        number, interval = (
            f"{100 * view.value:.1f}",
            f"[{100 * view.low:.1f}, {100 * view.high:.1f}]",
        )
        assert f"| {number} | {interval} |" in rows[name]
    (result,) = head(card)["model-index"][0]["results"]
    told = {entry["name"].split(", ")[1]: entry["value"] for entry in result["metrics"]}
    assert told == {name: round(100 * view.value, 2) for name, view in views.items()}
    assert f"{len(outcomes)} images of the test split" in card
    assert "Not evaluated with `autoattack`" in card
    assert "Not evaluated with `quick`" not in card


def test_hugging_face_reads_the_head_of_the_card(exported):
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard((exported / "README.md").read_text())
    assert card.data.license == "unknown"
    assert card.data.library_name == "multirobust"
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy"}


def test_errors_of_attacks_are_a_range_in_the_card(run, data):
    folder = run.folder / "evaluation" / "quick"
    outcomes = load(folder)
    columns = []
    for column in outcomes.columns:
        states = np.where(column.states == State.SURVIVED, State.ERROR, column.states)
        columns.append(replace(column, states=states.astype(np.uint8)))
    save(replace(outcomes, columns=tuple(columns)), folder)
    view = load(folder).union()
    assert not view.exact
    card = (export_run(run, data).folder / "README.md").read_text()
    assert f"| [{100 * view.range_low:.1f}, {100 * view.range_high:.1f}] |" in card
    assert "attacks ended in errors" in card


def test_a_run_without_evaluations_has_a_card_without_numbers(run, data):
    shutil.rmtree(run.folder / "evaluation")
    made = export_run(run, data, license="mit")
    card = (made.folder / "README.md").read_text()
    assert made.evaluations == 0
    assert "Nothing has been measured" in card
    assert "model-index" not in head(card)
    assert head(card)["license"] == "mit"
    assert "interval" not in card


def test_evaluations_of_other_weights_and_shards_are_left_out_and_said(run, data):
    lines: list[str] = []
    folder = run.folder / "evaluation" / "quick"
    outcomes = load(folder)
    settings = {**outcomes.manifest["evaluation"], "shard": "1/2"}
    manifest = {**outcomes.manifest, "evaluation": settings}
    save(replace(outcomes, manifest=manifest), folder.with_name("part"))
    save(replace(outcomes, manifest={**manifest, "weights": "0"}), folder.with_name("old"))
    (folder / "outcomes.parquet").write_bytes(b"")
    assert stored_evaluations(run, lines.append) == []
    told = " ".join(lines)
    assert all(f"left out {name}" in told for name in ("part", "old", "quick"))


def test_a_license_is_an_identifier(run, data):
    with pytest.raises(InputError, match="license: must be an identifier"):
        export_run(run, data, license="mit\nmodel-index: []")


# Loading what is damaged, foreign or hostile


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": "other"}, "is not the config of a model of this package"),
        ({"version": 2}, "format version 2, this release reads 1"),
        ({"architecture": "os.system"}, "Unknown model: 'os.system'"),
        ({"architecture": "preact_resnet_18"}, "Unknown option of preact_resnet_18: 'widths'"),
        ({"options": {"seed": 1}}, "Unknown option of small_cnn: 'seed'"),
        ({"options": {"classes": 3}}, "Unknown option of small_cnn: 'classes'"),
        ({"options": {"widths": [4]}}, "describes another model than model.safetensors"),
        ({"options": {"widths": [10**6] * 3}}, "describes another model than model.safetensors"),
        ({"options": {"widths": [10**15, 10**15]}}, r"describes (no|another) model"),
        ({"options": {"widths": "__import__('os')"}}, "is damaged: options"),
        ({"options": {"seed": True}}, "is damaged: options"),
        ({"classes": 10**12, "class_names": ["x"]}, "class_names must hold"),
        ({"channels": 0}, "channels"),
        ({"mean": [float("nan")]}, "mean"),
        ({"mean": [0.5]}, "mean must be that of the weights"),
        ({"std": [0.0]}, "std"),
        ({"weights": "0" * 64}, "its SHA-256 is not the one in config.json"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "auto_map"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_hostile_or_foreign_config_is_one_clear_error(exported, fields, message):
    changed(exported, **fields)
    with pytest.raises(InputError, match=message):
        mr.from_pretrained(exported)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 10**6, b" " * (2 << 20), b"null"]
)
def test_a_config_that_is_no_object_is_one_clear_error(exported, content):
    (exported / "config.json").write_bytes(content)
    with pytest.raises(InputError, match="is no config of a model"):
        mr.from_pretrained(exported)


def test_all_mistakes_of_a_config_are_told_at_once(exported):
    changed(exported, seed=-1, classes="ten", data=None)
    with pytest.raises(InputError) as caught:
        mr.from_pretrained(exported)
    assert all(name in str(caught.value) for name in ("seed", "classes", "data"))


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\x80\x04"]
)
def test_damaged_weights_are_one_clear_error(exported, damage):
    path = exported / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match="no safetensors file, or damaged"):
        mr.from_pretrained(exported)


def test_a_folder_that_is_no_export_is_one_clear_error(run, tmp_path):
    for folder in (tmp_path, run.folder):
        with pytest.raises(InputError, match=r"config\.json: cannot be read"):
            mr.from_pretrained(folder)
    with pytest.raises(InputError, match=r"must be a folder .* or owner/name"):
        mr.from_pretrained("no such folder")


# ONNX


def test_onnx_gives_the_logits_of_the_model_for_any_number_of_images(run, data, exported, images):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    made = export_run(run, data, onnx=True)
    assert made.onnx is not None
    assert made.onnx.difference <= made.onnx.tolerance
    session = runtime.InferenceSession(
        str(exported / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    model = mr.from_pretrained(exported)
    for count in (1, 3, 5):
        x = images[:count]
        (logits,) = session.run(None, {"images": x.numpy()})
        assert np.allclose(logits, model(x).detach().numpy(), atol=made.onnx.tolerance)
    facts = session.get_modelmeta().custom_metadata_map
    assert "float32 (batch, 1, 8, 8), pixels in [0, 1]" in facts["multirobust.input"]
    assert json.loads(facts["multirobust.class_names"]) == [str(digit) for digit in range(10)]
    assert "opset 18" in (exported / "README.md").read_text()


def test_a_residual_network_is_exported_too():
    pytest.importorskip("onnxscript")
    model = models.preact_resnet_18(classes=4, channels=3, width=4).eval()
    found = export_onnx(model, (3, 16, 16))
    assert found.difference <= found.tolerance
    assert found.images == 74


def test_another_model_in_the_file_is_an_error(run, data, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    real = torch.onnx.export

    def other(model, *args, **options):
        model = copy.deepcopy(model)
        model.head.bias += 1
        return real(model, *args, **options)

    monkeypatch.setattr(torch.onnx, "export", other)
    with pytest.raises(RunError, match="gives other logits than the model"):
        export_run(run, data, tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()


def test_onnx_without_its_libraries_says_how_to_get_them(run, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"pip install 'multirobust\[onnx\]'"):
        export_run(run, data, onnx=True)


# The hub


class Hub:
    """A repository in memory, with the two calls of uploading and the one of downloading."""

    def __init__(self, place: Path):
        self.place, self.calls = place, []

    def create_repo(self, repository, **options):
        self.calls.append(("create", repository, options))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **options):
        self.place.mkdir()
        for path in Path(folder_path).iterdir():
            if path.name in allow_patterns:
                shutil.copy(path, self.place)
        return types.SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")

    def snapshot_download(self, repository, *, revision, allow_patterns):
        self.calls.append(("download", repository, revision, allow_patterns))
        return str(self.place)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    return made


def test_what_is_pushed_comes_back_bit_for_bit(exported, images, hub):
    (exported / "secret.txt").write_text("not to be uploaded")
    assert push(exported, "me/mine", private=True) == "https://hub/me/mine/commit/1"
    assert hub.calls[0][2]["private"] is True
    assert {path.name for path in hub.place.iterdir()} <= set(FILES)
    expected = mr.from_pretrained(exported)(images)
    assert torch.equal(mr.from_pretrained("me/mine", revision="v1")(images), expected)
    assert torch.equal(load_external("hf:me/mine")(images), expected)
    assert hub.calls[1] == ("download", "me/mine", "v1", ["config.json", "model.safetensors"])


def test_a_run_is_exported_before_it_is_pushed(run, data, images, hub):
    push_run(run, data, "me/mine")
    assert {path.name for path in hub.place.iterdir()} == set(FILES) - {"model.onnx"}
    assert not (run.folder / "export").exists()


def test_a_revision_of_a_folder_and_a_bad_id_are_one_clear_error(exported, hub):
    with pytest.raises(InputError, match=r"revision: .* is a folder"):
        mr.from_pretrained(exported, revision="v1")
    for repository in ("mine", "a/b/c", "a/b c", "../b"):
        with pytest.raises(InputError, match="repository must be written owner/name"):
            push(exported, repository)
    assert hub.calls == []


def test_a_damaged_export_is_not_pushed(exported, hub):
    changed(exported, weights="0" * 64)
    with pytest.raises(InputError, match="SHA-256"):
        push(exported, "me/mine")
    assert hub.calls == []


def test_a_refusal_of_the_hub_and_a_missing_library_are_one_clear_error(exported, hub, monkeypatch):
    def refuse(repository, **options):
        raise OSError("401 Unauthorized\nmany more lines")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(RunError, match=r"OSError: 401 Unauthorized\. Check the id"):
        push(exported, "me/mine")
    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(RunError, match="cannot be downloaded"):
        mr.from_pretrained("me/mine")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: push(exported, "me/mine"), lambda: mr.from_pretrained("me/mine")):
        with pytest.raises(InputError, match=r"pip install 'multirobust\[hub\]'"):
            call()
