"""What a user can get wrong, at the front doors: one clear error, no traceback, nothing lost."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import multirobust as mr
from multirobust import files
from multirobust.errors import InputError
from multirobust.experiment import load_data
from tiny_runs import SETTINGS, tiny_recipe

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def split(images: object = PIXELS, labels: object = LABELS, **options: object) -> mr.data.Split:
    return mr.data.Split.from_arrays(images, labels, **options)


def data(**changes: object) -> mr.data.Data:
    names, train = ("a", "b", "c"), split()
    fields = {"train": train, "test": train, "class_names": names, "mean": (0.5,), "std": (0.2,)}
    return mr.data.Data("mine", **fields | changes)


FLOATS = PIXELS.astype(np.float32) / 255


def spoiled(value: float) -> np.ndarray:
    images = FLOATS.copy()
    images[2, 0, 3, 3] = value
    return images


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"images": FLOATS}, "must be uint8 in 0..255, got torch.float32.*quantize=True"),
        ({"images": spoiled(1.5), "quantize": True}, "got values from 0 to 1.5; clamp it"),
        ({"images": spoiled(-1.0), "quantize": True}, "looks normalized: pass plain pixels"),
        ({"images": FLOATS * 255, "quantize": True}, "looks like 0..255: divide by 255"),
        ({"images": spoiled(np.nan), "quantize": True}, "got NaN or infinite pixels in 1 of 6"),
        ({"images": PIXELS.astype(np.int64)}, "uint8 tensor of shape .*, got torch.int64"),
        ({"images": PIXELS[:, 0]}, r"got shape \(6, 8, 8\); add the channel axis"),
        ({"images": np.zeros((6, 2, 8, 8), np.uint8)}, "layout must be given .* neither is"),
        ({"images": PIXELS[:0], "labels": []}, "and hold at least one, got shape"),
        ({"labels": [[1, 0]] * 6}, r"if it is one-hot, pass labels\.argmax\(dim=1\)"),
        ({"labels": [0, 1]}, "got 2 labels for 6 images"),
        ({"labels": [-1, 0, 1, 2, 0, 1]}, "0 or more, got values from -1 to 2; drop or relabel"),
        ({"labels": [0.0] * 6}, "an int64 tensor of shape .*, got torch.float"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_images_and_labels_that_break_a_rule(arguments, told):
    with pytest.raises(InputError, match=told):
        split(**arguments)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class_names": ("a",)}, "class_names must name two classes or more"),
        ({"train": split(labels=[1] * 6)}, "train must hold images of two classes or more, all 6"),
        ({"class_names": ("a", "b")}, r"in 0\.\.1, got values from 0 to 2; number the classes"),
        ({"test": split(PIXELS[:, :, :4])}, r"shape of the training images, \(1, 8, 8\), got"),
        ({"mean": (0.5, 0.5)}, "mean must be one number in .* each of the 1 channels"),
    ],
    ids=["one class", "one class used", "labels", "size", "mean"],
)
def test_a_data_set_that_breaks_a_rule(changes, told):
    with pytest.raises(InputError, match=told):
        data(**changes)


def test_a_model_of_other_channels_is_told_at_training_and_at_evaluation():
    model = mr.models.small_cnn(classes=3, channels=3, widths=(4,))
    for call in (
        lambda: mr.train(model, data(), "sat", recipe=tiny_recipe()),
        lambda: mr.evaluate(model.eval(), data(), recipe=tiny_recipe()),
    ):
        with pytest.raises(InputError, match=r"x must be images of shape \(b, 3, h, w\)"):
            call()


def test_a_model_of_too_few_classes_is_told_before_training():
    model = mr.models.small_cnn(classes=2, channels=1, widths=(4,))
    with pytest.raises(InputError, match="got 2 logits where the labels go up to 2"):
        mr.train(model, data(), "sat", recipe=tiny_recipe())


def test_one_image_left_over_joins_the_batch_before_so_that_batch_norm_works():
    model = mr.models.small_cnn(classes=3, channels=1, widths=(4,))
    odd = split(PIXELS[:5], LABELS[:5])
    recipe = tiny_recipe("training.batch_size=2")
    assert mr.train(model, data(train=odd), "sat", recipe=recipe).steps == 2
    assert len(mr.evaluate(model, data(), recipe=recipe, limit=1)) == 1


def test_a_batch_size_of_one_and_a_single_image_are_told():
    with pytest.raises(InputError, match=r"training\.batch_size: input should be greater than"):
        tiny_recipe("training.batch_size=1")
    with pytest.raises(InputError, match="train must hold images of two classes or more"):
        data(train=split(PIXELS[:1], [0]))


def test_a_training_that_does_not_fit_into_numbers_is_told(tmp_path):
    model = mr.models.small_cnn(classes=3, channels=1, widths=(4,))
    recipe = tiny_recipe("training.peak_lr=1e30", "training.epochs=9", "training.batch_size=2")
    with pytest.raises(mr.errors.TrainingError, match=r"became (nan|inf).*Lower training\.peak_lr"):
        mr.train(model, data(), "sat", recipe=recipe, folder=tmp_path)


class Softmaxed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = mr.models.small_cnn(classes=3, channels=1, widths=(4,))

    def forward(self, x):
        return self.inner(x).softmax(dim=1)


def test_a_model_that_returns_probabilities_is_told_at_both_doors():
    with pytest.raises(InputError, match="rows of probabilities"):
        mr.train(Softmaxed(), data(), "sat", recipe=tiny_recipe())
    with pytest.raises(InputError, match="audit: probabilities"):
        mr.evaluate(Softmaxed().eval(), data(), recipe=tiny_recipe(), strict=True)


@pytest.mark.parametrize("radius", [0, -1, float("nan"), float("inf")])
def test_a_radius_that_is_not_positive_is_told(as_installed, radius):
    with pytest.raises(InputError, match="radius must be a positive finite number"):
        mr.threats.Linf(radius)
    with pytest.raises(InputError, match=r"threats\.linf: input should be"):
        tiny_recipe(f"threats.linf={radius}")


@pytest.mark.parametrize("steps", [0, -1])
def test_an_attack_without_steps_is_told(steps):
    with pytest.raises(InputError, match="steps must be at least 1"):
        mr.attacks.PGD(threat=mr.threats.Linf(0.1), steps=steps, step_size=0.1)
    with pytest.raises(InputError, match=r"attack\.linf\.steps: input should be greater"):
        tiny_recipe(f"attack.linf.steps={steps}")


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: mr.models.build("wrn2810", classes=3), "Unknown model: 'wrn2810'. Did you"),
        (lambda: mr.data.build("cifar"), "Unknown data set: 'cifar'. Did you mean 'cifar10'"),
        (lambda: mr.threats.threats_for("digit"), "Unknown threat preset: 'digit'. Did you"),
        (lambda: mr.load_recipe("cifar_10"), "Unknown recipe: 'cifar_10'. Did you mean 'cifar10'"),
    ],
    ids=["model", "data", "threats", "recipe"],
)
def test_an_unknown_name_is_told_with_the_closest(call, told):
    with pytest.raises(InputError, match=told):
        call()


def test_numbers_are_not_taken_from_booleans_and_texts():
    for override in ("training.epochs=true", "training.epochs='3'", "threats.l2='0.5'"):
        with pytest.raises(InputError, match=r"input should be a valid (integer|number)"):
            tiny_recipe(override)


def test_an_attack_during_an_evaluation_cannot_use_batch_statistics():
    with pytest.raises(InputError, match=r"evaluation\.attack\.batch_norm: must be 'running'"):
        tiny_recipe("evaluation.attack.batch_norm=batch")


# The command line


def test_missing_data_say_how_to_get_them_and_leave_no_folder(multirobust, tmp_path, monkeypatch):
    monkeypatch.delenv("MULTIROBUST_DATA", raising=False)
    out = tmp_path / "out"
    for settings in ((), ("--set", f"data.folder={tmp_path / 'empty'}")):
        answer = multirobust("train", "cifar10_small", *settings, "--output", out)
        assert answer.code in (1, 2)
        assert "folder" in answer.err
        assert "download" in answer.err
        assert "Traceback" not in answer.err
        assert not out.exists()


TRAIN = ("train", "digits", *SETTINGS, "--defense", "sat")


@pytest.mark.parametrize("where", ["file/out", "/proc/out"])
def test_an_output_that_cannot_be_written(multirobust, tmp_path, where):
    (tmp_path / "file").write_text("mine", "utf-8")
    answer = multirobust(*TRAIN, "--output", tmp_path / where)
    assert answer.code == 1
    assert "cannot be written" in answer.err
    assert "choose another --output" in answer.err
    assert (tmp_path / "file").read_text("utf-8") == "mine"


def test_an_output_that_holds_another_run_is_left_as_it_was(multirobust, runs):
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    command = ("train", "digits", *SETTINGS, "--defense", "adv_linf", "--output", runs)
    answer = multirobust(*command, "--set", "training.epochs=7")
    assert answer.code == 1
    assert "holds another run (training.epochs 1 there, 7 here)" in answer.err
    assert {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()} == before


def test_an_output_that_holds_other_files_is_left_as_it_was(multirobust, tmp_path):
    (tmp_path / "sat-s0").mkdir()
    (tmp_path / "sat-s0" / "mine.txt").write_text("mine", "utf-8")
    answer = multirobust(*TRAIN, "--output", tmp_path)
    assert answer.code == 1
    assert "holds other files" in answer.err
    assert [path.name for path in (tmp_path / "sat-s0").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("command", ["evaluate", "compare", "report", "breakdown", "curve"])
@pytest.mark.parametrize("name", ["", "nope"])
def test_a_folder_without_runs_is_bad_usage(multirobust, tmp_path, command, name):
    answer = multirobust(command, tmp_path / name)
    assert answer.code == 2
    assert "holds no run" in answer.err


@pytest.mark.parametrize("command", ["evaluate", "compare", "report"])
@pytest.mark.parametrize("name", ["run.json", "recipe.toml", "model.safetensors"])
def test_a_damaged_run_is_one_message(multirobust, runs, command, name):
    path = runs / "ant-s0" / name
    path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2])
    answer = multirobust(
        command, runs / "ant-s0", *(("--limit", 3) if command == "evaluate" else ())
    )
    assert answer.code == 1
    assert answer.err.startswith("Error: ")
    assert "Traceback" not in answer.err


@pytest.fixture
def full_disk(monkeypatch):
    """Make the disk full as soon as a file of this name is half written."""

    def fill(name: str) -> None:
        original = files._write_through

        def half(temporary: Path, content: files.Content) -> None:
            if f".{name}." not in temporary.name:
                return original(temporary, content)
            temporary.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files, "_write_through", half)

    return fill


TRAINED = [
    "recipe.toml",
    "run.json",
    "checkpoint.next.pt",
    "model.safetensors",
    "defense.safetensors",
    "training.json",
]
FOUND = ["outcomes.parquet", "outcomes.json", "report.html"]


@pytest.mark.parametrize("name", TRAINED + FOUND)
def test_a_full_disk_is_one_message_and_the_same_command_goes_on(
    multirobust, runs, full_disk, monkeypatch, name
):
    weights = (runs / "adv_linf-s0" / "model.safetensors").read_bytes()
    shutil.rmtree(runs / "adv_linf-s0" / ("evaluation" if name in FOUND else ""))
    (runs / "report.html").unlink()
    what = ("run" if name in FOUND else "train", "digits", *SETTINGS, "--defense", "adv_linf")
    full_disk(name)
    answer = multirobust(*what, "--output", runs)
    monkeypatch.undo()
    assert answer.code == 1
    assert answer.err.splitlines()[-1].startswith("Error: ")
    assert "No space left on device" in answer.err
    assert "Traceback" not in answer.err
    assert not list(runs.rglob("*.tmp"))
    assert multirobust(*what, "--output", runs).code == 0
    assert (runs / "adv_linf-s0" / "model.safetensors").read_bytes() == weights
    assert (runs / "report.html").exists() == (name in FOUND)


def test_a_full_disk_leaves_the_former_outcomes(multirobust, runs, full_disk):
    folder = runs / "ant-s0" / "evaluation" / "quick"
    before = {path.name: path.read_bytes() for path in folder.glob("outcomes.*")}
    recipe = runs / "ant-s0" / "recipe.toml"
    recipe.write_text(recipe.read_text("utf-8").replace("limit = 16", "limit = 9"), "utf-8")
    full_disk("outcomes.json")
    answer = multirobust("evaluate", runs / "ant-s0")
    assert answer.code == 1
    assert "What was there before is unchanged" in answer.err
    assert {path.name: path.read_bytes() for path in folder.glob("outcomes.*")} == before
    assert list((folder / "partial").glob("*.npz")), "the attacks need not be made again"


def test_a_folder_in_which_another_process_trains_is_left_to_it(multirobust, tmp_path):
    pytest.importorskip("fcntl")
    from multirobust.training.run_folder import exclusive

    multirobust(*TRAIN, "--set", "training.epochs=2", "--output", tmp_path)
    (tmp_path / "sat-s0" / "training.json").unlink()
    with exclusive(tmp_path / "sat-s0"):
        answer = multirobust(*TRAIN, "--set", "training.epochs=2", "--output", tmp_path)
    assert answer.code == 1
    assert "another process trains in this folder" in answer.err


def test_the_training_data_of_the_embedded_set_are_limited_to_what_there_is():
    with pytest.raises(InputError, match="train_limit"):
        load_data(tiny_recipe("data.train_limit=5000").data)
    with pytest.raises(InputError, match="validation"):
        load_data(tiny_recipe("data.validation=64").data)
