from __future__ import annotations

import shutil
import sys

import numpy as np
import pytest
import torch

from multirobust import cli
from multirobust.data import digits
from multirobust.data.pseudo_labels import pseudo_labeled, read_provenance
from multirobust.experiment import find_runs, load_data, load_model
from multirobust.experiment.building import weights_digest
from multirobust.models.weights import state_digest
from tiny_runs import SETTINGS


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one model, trained on 64 digits and their labels; not to be changed."""
    folder = tmp_path_factory.mktemp("few")
    arguments = ["multirobust", "train", "digits", *SETTINGS, "--output", str(folder)]
    arguments += ["--defense", "standard"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ending:
            cli.main()
    assert not ending.value.code
    return folder / "standard-s0"


@pytest.fixture
def images(tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, x=digits().test.images[:20, 0].numpy())
    return path


def test_the_rest_of_the_data_set_is_labeled_by_the_model_and_not_by_its_labels(
    multirobust, trained, tmp_path
):
    path = tmp_path / "made" / "rest.npz"
    answer = multirobust("pseudo-label", trained, "digits", "--output", path)
    assert answer.code == 0, answer.err
    (run,), whole = find_runs([trained]), digits().train
    split = pseudo_labeled(path)
    assert torch.equal(split.images, whole.images[64:])
    model = load_model(run, load_data(run.recipe.data))
    with torch.no_grad():
        expected = model(whole.floats(slice(64, None))).argmax(1)
    assert torch.equal(split.labels, expected)
    accuracy = 100 * float((expected == whole.labels[64:]).double().mean())
    assert "1,233 images of digits labeled by standard-s0." in answer.out
    assert f"For information: {accuracy:.1f} %" in answer.out
    assert "not used and not in the file" in answer.out
    facts = read_provenance(path)
    assert facts is not None
    assert facts["model"]["weights"] == weights_digest(run)
    assert (facts["count"], facts["data"]["source"]) == (1233, "digits")
    assert facts["versions"]["multirobust"]


def test_a_limit_and_a_confidence_keep_fewer_images(multirobust, trained, tmp_path):
    few, sure = tmp_path / "few.npz", tmp_path / "sure.npz"
    assert multirobust("pseudo-label", trained, "digits", "--limit", 50, "--output", few).code == 0
    (run,), whole = find_runs([trained]), digits().train
    with torch.no_grad():
        logits = load_model(run, load_data(run.recipe.data))(whole.floats(slice(64, 114)))
    certainty = logits.softmax(1).amax(1)
    middle = float(certainty.median())
    options = ("--limit", 50, "--confidence", middle, "--output", sure)
    answer = multirobust("pseudo-label", trained, "digits", *options)
    assert answer.code == 0, answer.err
    kept = certainty >= middle
    assert torch.equal(pseudo_labeled(few).images, whole.images[64:114])
    assert torch.equal(pseudo_labeled(sure).images, whole.images[64:114][kept])
    assert f"{50 - int(kept.sum())} less certain ones left out" in answer.out


def test_images_of_ones_own_are_labeled_from_a_file_or_a_folder(
    multirobust, trained, images, tmp_path
):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "pictures" / "below"
    folder.mkdir(parents=True)
    for i, picture in enumerate(np.load(images)["x"]):
        image.fromarray(picture).save(folder / f"{i:02}.png")
    made = []
    for name, source in (("a.npz", images), ("b.npz", tmp_path / "pictures")):
        answer = multirobust("pseudo-label", trained, source, "--output", tmp_path / name)
        assert answer.code == 0, answer.err
        assert "For information" not in answer.out
        made.append(pseudo_labeled(tmp_path / name))
    assert torch.equal(made[0].images, digits().test.images[:20])
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].labels, made[1].labels)


def test_a_file_of_ours_is_replaced_and_any_other_is_not(multirobust, trained, images, tmp_path):
    path = tmp_path / "x.npz"
    for limit in (20, 10):
        options = ("--limit", limit, "--output", path)
        assert multirobust("pseudo-label", trained, images, *options).code == 0
    assert len(pseudo_labeled(path)) == 10
    before = images.read_bytes()
    answer = multirobust("pseudo-label", trained, "digits", "--output", images)
    assert (answer.code, images.read_bytes()) == (2, before)
    assert "not replaced" in answer.err
    answer = multirobust("pseudo-label", trained, path, "--output", path)
    assert answer.code == 2


def colors(path):
    np.savez(path, images=np.zeros((4, 8, 8, 3), np.uint8))


def floats(path):
    np.savez(path, images=np.zeros((4, 8, 8, 1)))


def labels_only(path):
    np.savez(path, label=np.zeros(4, np.int64))


@pytest.mark.parametrize(
    ("make", "code", "problem"),
    [
        (colors, 2, "must have images of shape (1, 8, 8)"),
        (floats, 1, "images must be uint8"),
        (labels_only, 1, "must hold one array of images"),
        (lambda path: path.write_bytes(b"PK"), 1, "damaged"),
        (lambda path: None, 1, "is missing"),
    ],
    ids=["colors", "floats", "labels", "damaged", "missing"],
)
def test_images_that_cannot_be_labeled_are_one_error(
    make, code, problem, multirobust, trained, tmp_path
):
    path = tmp_path / "x.npz"
    make(path)
    answer = multirobust("pseudo-label", trained, path, "--output", tmp_path / "y.npz")
    assert answer.code == code
    assert problem in answer.err
    assert not (tmp_path / "y.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("digit",), "Did you mean 'digits'?"),
        (("digits", "--output", "x.txt"), "must end in .npz"),
        (("digits", "--confidence", "1.5"), "confidence"),
        (("digits", "--confidence", "0"), "confidence must be above 0"),
        (("digits", "--confidence", "1"), "choose a lower one"),
    ],
)
def test_bad_usage_is_one_message(arguments, problem, multirobust, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = multirobust("pseudo-label", trained, *arguments)
    assert answer.code == 2
    assert problem in answer.err
    assert not list(tmp_path.glob("*.npz"))


def test_several_runs_or_an_unfinished_one_label_nothing(multirobust, trained, tmp_path):
    for name in ("standard-s0", "standard-s1"):
        shutil.copytree(trained, tmp_path / "runs" / name)
    output = tmp_path / "x.npz"
    answer = multirobust("pseudo-label", tmp_path / "runs", "digits", "--output", output)
    assert (answer.code, "name one" in answer.err) == (2, True)
    (tmp_path / "runs/standard-s0/model.safetensors").unlink()
    one = tmp_path / "runs/standard-s0"
    answer = multirobust("pseudo-label", one, "digits", "--output", output)
    assert (answer.code, "has not finished training" in answer.err) == (1, True)
    assert not output.exists()


def test_what_was_labeled_is_trained_on(multirobust, trained, tmp_path):
    path = tmp_path / "rest.npz"
    assert multirobust("pseudo-label", trained, "digits", "--output", path).code == 0
    options = ("--set", f"data.unlabeled={path}", "--defense", "standard")
    answer = multirobust("train", "digits", *SETTINGS, *options, "--output", tmp_path / "with")
    assert answer.code == 0, answer.err
    (run,) = find_runs([tmp_path / "with"])
    assert run.recipe.data.unlabeled == str(path)
    # 64 labeled images, 16 in each batch of 32.
    assert "4 steps" in answer.err


NETS = """
import torch
from torch import nn

def net(classes=10, final=False):
    layers = [nn.Flatten(), nn.Linear(64, classes)]
    return nn.Sequential(*layers, *([nn.Softmax(1)] if final else []))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A file of networks and weights for one, in the working folder; returns that network."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    with torch.random.fork_rng():
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    with torch.no_grad():
        grid = torch.arange(640).reshape(10, 64)
        model[1].weight.copy_((grid * 7919 % 101) / 101)
        model[1].bias.copy_(torch.arange(10) / 10)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    return model


def test_any_classifier_labels_all_images_of_a_data_set(multirobust, nets, tmp_path):
    arguments = ("nets.py:net", "digits", "--weights", "net.pt", "--output", "made.npz")
    answer = multirobust("pseudo-label", *arguments, "--model-arg", "classes=10")
    assert answer.code == 0, answer.err
    made, whole = pseudo_labeled(tmp_path / "made.npz"), digits().train
    assert torch.equal(made.images, whole.images)
    with torch.no_grad():
        expected = nets(whole.floats()).argmax(1)
    assert torch.equal(made.labels, expected)
    assert len(expected.unique()) > 1
    right = 100 * float((expected == whole.labels).double().mean())
    assert "1,297 images of digits labeled by nets.py:net." in answer.out
    assert f"For information: {right:.1f} %" in answer.out
    facts = read_provenance(tmp_path / "made.npz")
    assert facts is not None
    assert facts["model"] == {
        "model": "nets.py:net",
        "weights_file": "net.pt",
        "options": {"classes": 10},
        "weights": state_digest(nets.state_dict()),
    }


def test_an_export_and_plain_weights_label_as_the_run_that_they_are_of(
    multirobust, trained, images, tmp_path
):
    export = tmp_path / "export"
    assert multirobust("export", trained, "--output", export).code == 0
    weights = ("--weights", trained / "model.safetensors", "--model-arg", "widths=[4, 8]")
    labels = []
    for i, words in enumerate([(trained,), (export,), ("small_cnn", *weights)]):
        model, *options = words
        output = tmp_path / f"{i}.npz"
        answer = multirobust("pseudo-label", model, images, *options, "--output", output)
        assert answer.code == 0, answer.err
        labels.append(pseudo_labeled(output).labels)
    assert torch.equal(labels[0], labels[1])
    assert torch.equal(labels[0], labels[2])


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("nets.py:net", "digits", "--model-arg", "classes=9"), "got 9 logits where the labels"),
        (
            ("nets.py:net", "digits", "--model-arg", "classes=12"),
            "digits has 10 classes, the model",
        ),
        (("nets.py:net", "digits", "--model-arg", "final=true"), "must return logits"),
        (("nets.py:net", "colors.npz"), "model cannot take images of shape (3, 8, 8)"),
        (("small_cnn", "digits"), "knows nothing without weights"),
        (("small_cn", "digits"), "Did you mean 'small_cnn'?"),
        (("TRAINED", "digits", "--weights", "net.pt"), "bring their own weights"),
    ],
)
def test_a_classifier_that_does_not_fit_is_one_message(
    arguments, problem, multirobust, trained, nets, tmp_path
):
    colors(tmp_path / "colors.npz")
    arguments = [trained if word == "TRAINED" else word for word in arguments]
    answer = multirobust("pseudo-label", *arguments, "--output", "made.npz")
    assert answer.code == 2
    assert problem in answer.err
    assert not (tmp_path / "made.npz").exists()
