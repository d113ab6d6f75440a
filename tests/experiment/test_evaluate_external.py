"""Any model on any images: the same outcomes as from Python, kept, read back, never replaced."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import multirobust as mr
from multirobust import evaluation
from multirobust.config import load_recipe
from multirobust.data import Split, digits, list_images
from multirobust.errors import DataError, InputError
from multirobust.evaluation import Outcomes, Shard, State, audit_model, load, merge
from multirobust.experiment.external import evaluate_external
from multirobust.models.external import load_external
from nearest_mean import STEPS, write_model

OVERRIDES = (*STEPS, "evaluation.limit=24")
RADII = ("threats.linf=0.15", "threats.l2=0.75", "threats.l1=2.5")


@pytest.fixture(scope="module")
def nearest(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def unaudited(monkeypatch):
    """Without the audit, which costs more than these attacks and is tested in test_audit.py."""
    monkeypatch.setattr("multirobust.evaluation.evaluate.audit_model", lambda *a, **o: ())


def evaluated(nearest, data="digits", overrides=OVERRIDES, **options) -> tuple[Outcomes, Path]:
    options = {"weights": nearest.weights, "overrides": overrides} | options
    return evaluate_external(nearest.spec, str(data), **options)


def facts(outcomes: Outcomes) -> list:
    columns = [
        (c.name, c.radius, c.states.tolist(), c.distances.tolist(), c.settings)
        for c in outcomes.columns
    ]
    return [outcomes.labels.tolist(), outcomes.predictions.tolist(), columns]


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder of 40 digits in folders called a to j, of two sizes."""
    folder = tmp_path / "mixed"
    split = digits().test.first(40)
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        place = folder / "abcdefghij"[int(label)]
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image[0].numpy())
        (picture.resize((16, 16), Image.Resampling.NEAREST) if i % 2 else picture).save(
            place / f"{i:03}.png"
        )
    return folder


@pytest.fixture
def never(monkeypatch):
    """From its call on, an attack is a failure."""

    def forbid():
        def fail(*arguments, **options):
            raise AssertionError("attacked")

        monkeypatch.setattr(evaluation, "evaluate_suite", fail)

    return forbid


def own_images(kind: str, folder: Path, split: Split) -> tuple[Path, Split]:
    """Write images as a user has them; return their path, and the split as it should be read."""
    if kind == "npz":
        pixels = split.images.squeeze(1).numpy()
        np.savez(folder / "mine.npz", images=pixels, labels=split.labels.numpy())
        return folder / "mine.npz", Split(split.images, split.labels)
    for i, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (folder / f"{label}").mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / f"{label}" / f"{i:03}.png")
    order = torch.tensor([int(path.stem) for path, _ in list_images(folder)])
    return folder, Split(split.images[order], split.labels[order])


@pytest.mark.parametrize("kind", ["digits", "npz", "folder"])
def test_the_outcomes_are_those_of_the_python_api(nearest, tmp_path, kind):
    split, overrides = digits().test, list(OVERRIDES)
    data: object = "digits"
    if kind != "digits":
        (tmp_path / "images").mkdir()
        first = Split(split.images[:40], split.labels[:40])
        data, split = own_images(kind, tmp_path / "images", first)
        overrides += RADII
    ours, folder = evaluated(nearest, data, overrides, output=tmp_path / "out", seed=3)
    recipe = load_recipe("digits" if kind == "digits" else "cifar10", overrides)
    model = load_external(nearest.spec, weights=nearest.weights)
    assert facts(ours) == facts(mr.evaluate(model, split, recipe=recipe, seed=3))
    assert facts(load(folder)) == facts(ours)
    right = ours.predictions == ours.labels
    broken = np.stack([column.states == State.BROKEN for column in ours.columns]).any(0) & right
    assert 0 < broken.sum() < right.sum()


def test_what_was_evaluated_is_read_back_and_nothing_is_attacked_twice(nearest, tmp_path, never):
    first, folder = evaluated(nearest, output=tmp_path / "out")
    never()
    lines: list[str] = []
    again, _ = evaluated(nearest, output=tmp_path / "out", report=lines.append)
    assert again == first
    assert lines == [f"already evaluated with these settings in {folder}"]
    preset = load_recipe("digits").threats.preset
    same, _ = evaluated(
        nearest, overrides=[*OVERRIDES, f"threats.preset={preset}"], output=tmp_path / "out"
    )
    assert same == first


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("weights", "of another weights than now"),
        ({"options": {"scale": 2.0}}, "of another options than now"),
        ({"overrides": (*STEPS, "evaluation.limit=25")}, "of another pixels than now"),
        ({"seed": 1}, r"other settings \(seed 0 there, 1 here\)"),
        ({"overrides": (*OVERRIDES, "evaluation.mode=cascade")}, "'auto' there, 'cascade' here"),
        ({"overrides": (*OVERRIDES, "threats.l2=0.5")}, r"L2\(radius=0.75\).*L2\(radius=0.5\)"),
    ],
    ids=["weights", "options", "images", "seed", "mode", "radius"],
)
def test_a_folder_of_another_evaluation_is_refused_and_stays(
    nearest, tmp_path, never, change, told
):
    first, folder = evaluated(nearest, output=tmp_path / "out")
    if change == "weights":
        means = load_file(nearest.weights)["means"]
        save_file({"means": means.flip(0).contiguous()}, tmp_path / "other.safetensors")
        change = {"weights": str(tmp_path / "other.safetensors")}
    never()
    with pytest.raises(InputError, match=f"{told}.*choose another --output"):
        evaluated(nearest, **{"output": folder, **change})
    assert load(folder) == first


def test_the_form_of_a_folder_belongs_to_the_evaluation(nearest, mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = (*STEPS, "threats.preset=digits")
    with pytest.raises(DataError, match=r"one size, got 2: .* --image-size 32 with --data"):
        evaluated(nearest, mixed, overrides)
    assert not (tmp_path / "evaluations").exists()
    first, folder = evaluated(nearest, mixed, overrides, size=8)
    names = tuple("abcdefghij")
    again, other = evaluated(nearest, mixed, overrides, size=8, class_names=names)
    assert facts(again) == facts(first)
    assert first.clean().value > 0.8
    assert folder != other
    turned, third = evaluated(nearest, mixed, overrides, size=8, class_names=names[::-1])
    np.testing.assert_array_equal(turned.labels, 9 - first.labels)
    assert turned.clean().value < 0.3
    assert third not in (folder, other)
    assert evaluated(nearest, mixed, overrides, size=8)[0] == first
    with pytest.raises(InputError, match="class_names"):
        evaluated(nearest, mixed, overrides, size=8, class_names=names, output=folder)


def test_settings_without_a_form_are_what_they_were(nearest, tmp_path):
    outcomes, _ = evaluated(nearest, output=tmp_path / "out")
    assert not {"image_size", "class_names"} & set(outcomes.manifest["evaluation"])


def test_without_an_output_other_settings_get_another_folder(nearest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = (*STEPS, "evaluation.limit=8")
    _, first = evaluated(nearest, overrides=small)
    _, second = evaluated(nearest, overrides=(*small, "threats.l2=0.5"))
    assert first != second
    assert {path.name for path in Path("evaluations").iterdir()} == {first.name, second.name}
    assert all(folder.name.startswith("make-quick-") for folder in (first, second))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), r"not known \(threats\.linf, threats\.l2, threats\.l1\)"),
        (("threats.density=0.1",), r"not known \(threats\.linf, threats\.l2, threats\.l1\)"),
        (RADII[:1], r"not known \(threats\.l2, threats\.l1\)"),
        (("evaluation.suite=autoattack", *RADII[1:]), r"not known \(threats\.linf\)"),
    ],
    ids=["none", "density", "one", "autoattack"],
)
def test_the_radii_for_images_of_ones_own_must_be_given(nearest, tmp_path, overrides, told):
    data, _ = own_images("npz", tmp_path, digits().test.first(4))
    with pytest.raises(InputError, match=f"{told}; give a preset"):
        evaluated(nearest, data, overrides, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "overrides", [("threats.preset=digits",), ("evaluation.suite=spatial",)], ids=["preset", "none"]
)
def test_a_preset_or_a_suite_of_no_norm_is_enough_for_images_of_ones_own(
    nearest, tmp_path, overrides
):
    data, _ = own_images("npz", tmp_path, digits().test.first(4))
    outcomes, _ = evaluated(nearest, data, (*STEPS, *overrides), output=tmp_path / "out")
    radii = {column.threat: column.radius for column in outcomes.columns}
    if overrides[0].endswith("digits"):
        assert radii == {"linf": 0.15, "l2": 0.75, "l1": 2.5}
    else:
        assert set(radii) == {"spatial@3"}


def test_a_radius_of_the_wrong_scale_is_an_error_before_a_folder_is_made(nearest, tmp_path):
    for norm, radius in (("linf", 16), ("l2", 128), ("l1", 2000)):
        with pytest.raises(InputError, match=f"write {radius} / 255, which is"):
            evaluated(nearest, overrides=[f"threats.{norm}={radius}"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_kept_images_lie_in_their_balls_and_break_the_model(nearest, tmp_path):
    before, folder = evaluated(nearest, output=tmp_path / "out")
    assert not (folder / "adversarial").exists()
    outcomes, _ = evaluated(nearest, output=folder, save_images=True)
    assert facts(outcomes) == facts(before)
    model = load_external(nearest.spec, weights=nearest.weights)
    split, order = digits().test, {"linf": torch.inf, "l2": 2.0, "l1": 1.0}
    for column in outcomes.columns:
        kept = load_file(folder / "adversarial" / f"{column.name}.safetensors")
        right = outcomes.predictions == outcomes.labels
        broken = outcomes.index[(column.states == State.BROKEN) & right]
        assert kept["index"].tolist() == broken.tolist() != []
        delta = (kept["images"] - split.floats(kept["index"])).flatten(1)
        distance = torch.linalg.vector_norm(delta, ord=order[column.threat], dim=1)
        assert (distance <= column.radius * (1 + 1e-5)).all()
        with torch.no_grad():
            assert (model(kept["images"]).argmax(1) != split.labels[kept["index"]]).all()


def test_a_finding_is_kept_and_with_strict_an_error_at_once_or_read_back(
    nearest, tmp_path, monkeypatch
):
    monkeypatch.setattr("multirobust.evaluation.evaluate.audit_model", audit_model)
    options = {"options": {"probabilities": True}, "output": tmp_path / "out"}
    with pytest.raises(InputError, match="audit: probabilities:"):
        evaluated(nearest, **options, strict=True)
    assert not (tmp_path / "out" / "outcomes.json").exists()
    outcomes, folder = evaluated(nearest, **options)
    assert "probabilities" in {found["code"] for found in load(folder).manifest["audit"]}
    assert "audit: probabilities" in str(outcomes)
    with pytest.raises(InputError, match=r"audit: probabilities:.*go on without strict"):
        evaluated(nearest, **options, strict=True)


def test_merged_shards_are_the_whole_and_are_read_back_as_such(nearest, tmp_path, never):
    overrides = (*OVERRIDES, "evaluation.block_size=8")
    whole, _ = evaluated(nearest, overrides=overrides, output=tmp_path / "whole")
    shards = [
        evaluated(nearest, overrides=overrides, shard=Shard(part, 2), output=tmp_path / f"{part}")[
            0
        ]
        for part in (1, 2)
    ]
    assert [len(shard) for shard in shards] == [16, 8]
    joined = merge(shards)
    assert facts(joined) == facts(whole)
    evaluation.save(joined, tmp_path / "joined")
    never()
    again, _ = evaluated(nearest, overrides=overrides, output=tmp_path / "joined")
    assert again == joined


@pytest.mark.parametrize(
    ("data", "override", "asked"),
    [
        ("cifar10", "data.download=true", True),
        ("cifar10", "data.download=false", False),
        ("digits", "data.download=true", False),
    ],
)
def test_a_data_set_is_downloaded_if_the_recipe_says_so(
    nearest, monkeypatch, data, override, asked
):
    said = []

    def load_split(spec, *, download, **options):
        said.append(download)
        raise DataError("not there")

    monkeypatch.setattr("multirobust.data.load_split", load_split)
    with pytest.raises(DataError, match="not there"):
        evaluated(nearest, data, (override,))
    assert said == [asked]
