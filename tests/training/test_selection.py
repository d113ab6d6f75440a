"""Selection by the held-out union: what it measures, what it keeps, what it costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from training_runs import held_out_digits, short_attacks, train

from multirobust.attacks import PGD, Attack
from multirobust.config import TrainingConfig
from multirobust.data import Data, Split
from multirobust.errors import InputError
from multirobust.experiment import load_data, load_model, plan, train_run
from multirobust.threats import Linf
from multirobust.training import Runtime, load_checkpoint
from multirobust.training.selection import Selection
from tiny_runs import tiny_recipe

OPTIONS = {"data": held_out_digits(), "held_out_attacks": short_attacks()}


def selecting(model: nn.Module, data: Data, attacks: dict[str, Attack], **training) -> Selection:
    config = TrainingConfig(select="union", device="cpu", batch_size=5, **training)
    return Selection(model, data, attacks, config, Runtime("cpu"))


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above a level: robust as far as an image is from it."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        margin = x.flatten(1).mean(1) - self.level
        return torch.stack((-margin, margin), dim=1)


def gray(levels: list[int]) -> Data:
    """Images of one gray level each, of class 1 from level 128 on."""
    images = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2)
    split = Split(images.contiguous(), (torch.tensor(levels) >= 128).long())
    facts = {"class_names": ("dark", "light"), "mean": (0.5,), "std": (0.2,)}
    return Data("gray", split, split.first(1), validation=split, **facts)


def test_the_accuracies_are_those_of_the_closed_form():
    data = gray([0, 90, 110, 120, 126, 129, 133, 140, 180, 255])
    balls = {"near": Linf(4 / 255), "far": Linf(30 / 255)}
    attacks = {
        name: PGD(threat=ball, steps=2, step_size=ball.radius) for name, ball in balls.items()
    }
    model = Threshold()
    for level in (0.5, 0.52, 0.3):
        model.level.data.fill_(level)
        measured = selecting(model, data, attacks).judge(1)
        pixels, labels = data.train.floats()[:, 0, 0, 0], data.train.labels
        margins = (pixels - level) * (2 * labels - 1)
        assert measured["clean"] == (margins > 0).double().mean().item()
        for name, ball in balls.items():
            # An image at the edge of the box is moved toward the level like any other.
            assert measured[name] == (margins > ball.radius).double().mean().item()
        assert measured["union"] == measured["far"]


@dataclass(frozen=True)
class Flip(Attack):
    """Turns some images into their negative, which the model gets wrong."""

    rows: tuple[bool, ...]

    @property
    def threats(self):
        return (Linf(1.0),)

    def __call__(self, model, x, y, *, generator=None):
        rows = torch.tensor(self.rows)[: len(x), None, None, None]
        return torch.where(rows, 1 - x, x)


def test_an_image_counts_for_the_union_if_it_withstands_all():
    data = gray([0, 10, 250, 255])
    attacks = {"a": Flip((True, False, True, False)), "b": Flip((True, True, False, False))}
    measured = selecting(Threshold(), data, attacks).judge(1)
    assert measured == {"clean": 1.0, "a": 0.5, "b": 0.5, "union": 0.25}


@pytest.mark.parametrize(
    ("course", "epoch"),
    [
        ([(0.1, 0.9), (0.3, 0.5), (0.2, 0.9)], 2),
        ([(0.3, 0.5), (0.3, 0.5), (0.1, 0.9)], 1),  # equal in both: the earlier
        ([(0.3, 0.5), (0.3, 0.6), (0.3, 0.6)], 2),  # equal unions: the more accurate
        ([(0.0, 0.1), (0.0, 0.8), (0.0, 0.9)], 3),
    ],
)
def test_the_epoch_of_the_greatest_union_is_kept(course, epoch, monkeypatch):
    model = Threshold()
    selection = selecting(model, gray([0, 255]), {"a": Flip((False,))}, epochs=3)
    for number, (union, clean) in enumerate(course, start=1):
        model.level.data.fill_(float(number))
        answer = {"clean": clean, "union": union}
        monkeypatch.setattr(selection, "_accuracies", lambda answer=answer: answer)
        selection.judge(number)
    assert selection.epoch == epoch
    assert selection.best["level"] == epoch
    assert [line["epoch"] for line in selection.result().history] == [1, 2, 3]


def test_every_so_many_epochs_are_measured_and_the_last_always(tmp_path: Path):
    fit = train("standard", tmp_path, options=OPTIONS, select="union", select_epochs=2, epochs=5)
    assert [line["epoch"] for line in fit.selected.history] == [2, 4, 5]
    lines = [json.loads(s) for s in (tmp_path / "metrics.jsonl").read_text("utf-8").splitlines()]
    measured = [line for line in lines if "held_out_union" in line]
    assert [line["step"] for line in measured] == [6, 12, 15]
    for line, known in zip(measured, fit.selected.history, strict=True):
        assert {name: line[f"held_out_{name}"] for name in ("clean", "l1", "union")} == {
            name: known[name] for name in ("clean", "l1", "union")
        }


def test_selecting_changes_no_bit_of_the_training_and_is_counted_apart(tmp_path: Path):
    plain = train("sat", tmp_path / "plain", options={"data": held_out_digits()})
    fit = train("sat", tmp_path / "selected", options=OPTIONS, select="union")
    with_selection = load_checkpoint(tmp_path / "selected")
    for name, value in load_checkpoint(tmp_path / "plain")["model"].items():
        assert value.equal(with_selection["model"][name]), name
    assert (fit.forwards, fit.backwards) == (plain.forwards, plain.backwards)
    found = fit.selected
    right = sum(round(line["clean"] * found.images) for line in found.history)
    assert found.images == 12
    assert found.backwards == right * 3 * 2  # three norms, two steps
    assert found.forwards == found.backwards + 3 * found.images + right * 3
    assert found.seconds > 0


def test_the_kept_weights_are_those_of_the_selected_epoch(tmp_path: Path):
    rates = {"peak_lr": 0.05, "peak_at": 0.9}
    fit = train("standard", options=OPTIONS, select="union", epochs=6, **rates)
    images, labels = held_out_digits().validation.floats(), held_out_digits().validation.labels
    with torch.no_grad():
        clean = (fit.model(images).argmax(1) == labels).double().mean().item()
    kept = fit.selected.history[fit.selected.epoch - 1]
    assert clean == kept["clean"]
    best = max((line["union"], line["clean"]) for line in fit.selected.history)
    assert (kept["union"], kept["clean"]) == best


def test_test_images_have_no_part_in_it():
    data = held_out_digits()
    other = replace(data, test=Split(data.test.images.flip(3), data.test.labels.flip(0)))
    options = {**OPTIONS, "data": other}
    ours = train("standard", options=OPTIONS, select="union").selected
    theirs = train("standard", options=options, select="union").selected
    assert ours.history == theirs.history


def test_the_average_is_what_is_judged(tmp_path: Path):
    fit = train("standard", options=OPTIONS, select="union", ema=0.6, epochs=1)
    alone = train("standard", options={"data": held_out_digits()}, ema=0.6, epochs=1)
    judged = selecting(alone.model, held_out_digits(), short_attacks()).judge(1)
    assert fit.selected.history[0]["clean"] == judged["clean"]
    for name, value in alone.model.state_dict().items():
        assert value.equal(fit.model.state_dict()[name])


def test_without_held_out_images_or_attacks_it_is_an_input_error():
    with pytest.raises(InputError, match=r"training\.select: 'union' needs images.*data\.valid"):
        train("standard", select="union", options={"held_out_attacks": short_attacks()})
    with pytest.raises(InputError, match=r"held_out_attacks: .*attacks_from"):
        train("standard", select="union", options={"data": held_out_digits()})
    with pytest.raises(InputError, match=r"training\.select: 'union'.*data\.validation 0"):
        tiny_recipe("training.select=union")


def test_logits_that_are_not_finite_are_wrong():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), torch.nan)

    assert selecting(Broken(), gray([0, 255]), {"a": Flip((False,))}).judge(1)["clean"] == 0


def test_a_run_says_what_was_selected_and_at_what_cost(tmp_path: Path):
    changes = ("training.select=union", "data.validation=12", "training.epochs=3")
    (run,) = plan(tiny_recipe("defenses=['sat']", *changes), tmp_path)
    data = load_data(run.recipe.data)
    train_run(run, data)
    facts = json.loads((run.folder / "training.json").read_text("utf-8"))
    assert [line["epoch"] for line in facts["held_out"]] == [1, 2, 3]
    assert {"clean", "linf", "l2", "l1", "union"} <= set(facts["held_out"][0])
    assert set(facts["selection"]) == {"images", "seconds", "forwards", "backwards"}
    kept = facts["held_out"][facts["selected_epoch"] - 1]
    images, labels = data.validation.floats(), data.validation.labels
    with torch.no_grad():
        clean = (load_model(run, data)(images).argmax(1) == labels).double().mean().item()
    assert clean == kept["clean"]
