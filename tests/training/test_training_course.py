"""A training that ends by passes: where it ends, its learning rates, and its exact resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from training_runs import StopAt, all_options, outcome, recipe, small_digits, train

from multirobust import defenses
from multirobust.attacks import PassMeter
from multirobust.config import TrainingConfig
from multirobust.data import Unlabeled
from multirobust.defenses import Loss, Standard
from multirobust.defenses.base import Defense
from multirobust.errors import CheckpointError, Interrupted, TrainingError
from multirobust.training import Fit, Triangular, load_checkpoint
from multirobust.training.course import Course

SAMPLERS = (
    *("uniform", "stratified", "error", "shapley", "hedge", "ucb"),
    *("router", "race", "cascade"),
)
SEEN = (32, 64, 70)
"""Images seen after each step of an epoch."""


def course(*, batches: int = 3, images: int = 70, **training: Any) -> Course:
    config = TrainingConfig(**training)
    return Course(config, batches=batches, images=images, meter=PassMeter(nn.Identity()))


def built(name: str) -> Defense[Any]:
    """A defense of the table, or `sat_mixed` or `mng_ac_mixed` with a sampler."""
    name, _, sampler = name.partition(" ")
    whole = recipe()
    changes: dict[str, Any] = {"apgd_steps": 3, "shapley_every": 2}
    changes |= {"sampler": sampler} if sampler else {}
    chosen = whole.model_copy(update={"defense": whole.defense.model_copy(update=changes)})
    return defenses.build(name, chosen, channels=1)


def spent(folder: Path) -> list[int]:
    """Forward and backward passes after each step, all in all, by a log of every step."""
    text = (folder / "metrics.jsonl").read_text("utf-8")
    counts = []
    for line in map(json.loads, text.splitlines()):
        epoch, step = divmod(line["step"] - 1, 3)
        counts.append(round((line["forwards"] + line["backwards"]) * (70 * epoch + SEEN[step])))
    return counts


def rates(folder: Path) -> list[float]:
    text = (folder / "metrics.jsonl").read_text("utf-8")
    return [json.loads(line)["lr"] for line in text.splitlines()]


@pytest.mark.parametrize(
    "name",
    [
        *("sat", "adv_max", "msd", "e_at", "ramp", "mng_ac"),
        *(f"sat_mixed {sampler}" for sampler in SAMPLERS),
        *("mng_ac_mixed cascade", "mng_ac_mixed router"),
    ],
)
def test_every_defense_ends_with_the_step_that_spends_its_passes(name: str, tmp_path: Path):
    passes = 17.3
    fit = train(built(name), tmp_path, passes=passes, log_steps=1)
    counts, budget = spent(tmp_path), 2 * passes * 70
    assert counts[-1] >= budget > counts[-2]
    assert (fit.forwards + fit.backwards) * fit.seen == pytest.approx(counts[-1])
    assert len(counts) == fit.steps > 3
    found = rates(tmp_path)
    for step, before in enumerate(counts[:-1], start=1):
        seen = 70 * ((step - 1) // 3) + SEEN[(step - 1) % 3]
        done = min((before + before / seen * (6 if step % 3 == 2 else 32)) / budget, 1)
        assert found[step] == pytest.approx(np.interp(done, [0, 0.4, 1], [0, 0.21, 0]), abs=1e-12)
    dearest = max(b - a for a, b in pairwise([0, *counts])) / budget
    assert 0 <= found[-1] <= dearest * 0.21 / 0.6


def test_equal_steps_of_equal_cost_have_the_rates_of_a_training_by_epochs(tmp_path: Path):
    data = replace(small_digits(), train=small_digits().train.first(64))
    by_epochs = train("adv_max", tmp_path / "epochs", options={"data": data}, log_steps=1, epochs=4)
    cost = (by_epochs.forwards + by_epochs.backwards) / 2
    by_passes = train(
        "adv_max", tmp_path / "passes", options={"data": data}, log_steps=1, passes=4 * cost
    )
    assert by_passes.steps == by_epochs.steps == 8
    ours, theirs = rates(tmp_path / "passes"), rates(tmp_path / "epochs")
    assert ours[1:] == pytest.approx(theirs[1:], abs=1e-12)
    assert 0 < ours[0] < theirs[0]  # nothing is known before the first step but that it has a loss


@given(epochs=st.integers(1, 50), batches=st.integers(1, 300), data=st.data())
def test_by_epochs_the_share_is_that_of_the_steps_to_the_bit(epochs, batches, data):
    step = data.draw(st.integers(0, epochs * batches - 1))
    place = course(batches=batches, epochs=epochs)
    place.step = step
    assert place.share(7) == (step + 1) / (epochs * batches)
    assert place.steps == epochs * batches
    assert not place.over
    place.step = epochs * batches
    assert place.over


@given(costs=st.lists(st.integers(0, 400), min_size=2, max_size=60), passes=st.floats(0.01, 50))
def test_the_share_is_never_above_one_whatever_the_steps_cost(costs, passes):
    place = course(passes=passes)
    for cost in [5, *costs]:
        if place.over:
            break
        share = place.share(32)
        assert 0 < share <= 1
        assert Triangular(1.0).at(share) >= 0
        assert place.steps > place.step or place.step == 0
        place.meter.forwards += cost
        place.advance(32)
    assert place.over == (place.meter.forwards >= 140 * passes)


def test_a_run_by_passes_is_resumed_to_the_bit_wherever_it_was_stopped(tmp_path: Path):
    for name in ("sat", "ramp", "mng_ac", "sat_mixed cascade", "mng_ac_mixed shapley"):
        train(built(name), tmp_path / name / "undisturbed", passes=17.3)
        for steps in (1, 2):
            with pytest.raises(Interrupted, match=r"at step \d of about \d+; saved"):
                train(
                    built(name),
                    tmp_path / name / "stopped",
                    passes=17.3,
                    options={"stop": StopAt(steps)},
                )
        train(built(name), tmp_path / name / "stopped", passes=17.3)
        assert outcome(tmp_path / name / "stopped") == outcome(tmp_path / name / "undisturbed")


def test_with_all_options_it_is_resumed_to_the_bit_too(tmp_path: Path):
    keywords: dict[str, Any] = {**all_options(tmp_path / "start.pt"), "passes": 30.0}
    options: dict[str, Any] = keywords.pop("options")
    train("mng_ac", tmp_path / "undisturbed", options=options, **keywords)
    for steps in (2, 1, 2):
        stopping = options | {"stop": StopAt(steps)}
        with pytest.raises(Interrupted):
            train("mng_ac", tmp_path / "stopped", options=stopping, **keywords)
    train("mng_ac", tmp_path / "stopped", options=options, **keywords)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")


def test_a_run_that_has_ended_takes_no_further_step(tmp_path: Path):
    first = train("sat", tmp_path, passes=9.0)
    second = train("sat", tmp_path, passes=9.0)
    assert (second.steps, second.seen, second.forwards) == (first.steps, first.seen, first.forwards)


def test_the_part_of_an_epoch_that_the_passes_reach_is_measured_as_the_last(tmp_path: Path):
    options = all_options(tmp_path / "start.pt")["options"]
    # Standard training: one pass an image. 3.4 epochs end in the second step of the fourth.
    settings = {"select": "union", "select_epochs": 2, "passes": 3.4}
    fit = train("standard", tmp_path / "run", options=options, **settings)
    assert fit.steps == 3 * 3 + 1
    assert fit.selected is not None
    assert [line["epoch"] for line in fit.selected.history] == [2, 4]
    text = (tmp_path / "run" / "metrics.jsonl").read_text("utf-8")
    measured = [line for line in map(json.loads, text.splitlines()) if "held_out_union" in line]
    assert [line["step"] for line in measured] == [6, 10]


class Noted(Defense[torch.Tensor]):
    """Standard training that notes the ends of its epochs."""

    def __init__(self):
        super().__init__()
        self.steps, self.ends = 0, []

    def craft(self, model, batch, *, generator=None):
        """See `Defense.craft`."""
        self.steps += 1
        return batch.x

    def loss(self, model, batch, views):
        """See `Defense.loss`."""
        return Standard().loss(model, batch, None)

    def after_epoch(self, model):
        """See `Defense.after_epoch`."""
        self.ends.append(self.steps)


def test_an_epoch_that_is_cut_short_ends_for_the_defense_too():
    noted = Noted()
    assert train(noted, passes=2.5).steps == 8
    assert noted.ends == [3, 6, 8]
    noted = Noted()
    assert train(noted, passes=2.0).steps == 6
    assert noted.ends == [3, 6]


def test_passes_are_counted_for_each_labeled_image():
    data = small_digits()
    more = Unlabeled(data.train.first(40), share=0.5, epoch="labeled")
    fit = train("standard", options={"data": replace(data, unlabeled=more)}, passes=4.0)
    assert isinstance(fit, Fit)
    assert 4.0 * 70 <= fit.forwards * fit.seen < 4.0 * 70 + 32
    assert fit.seen == fit.forwards * fit.seen  # each of them once, of either kind


class Unseen(Noted):
    """Its loss is not that of the model that it is given."""

    def loss(self, model, batch, views):
        """See `Defense.loss`."""
        logits = batch.x.flatten(1)[:, :10] * next(model.parameters()).sum()
        total = F.cross_entropy(logits, batch.y)
        return Loss(total, {"cross_entropy": total.detach()})


def test_a_training_whose_passes_nobody_can_count_is_an_error_and_not_endless():
    with pytest.raises(TrainingError, match=r"training\.passes: 3 passes can never be reached"):
        train(Unseen(), passes=3.0)


def test_a_run_of_another_budget_is_not_continued(tmp_path: Path):
    train("standard", tmp_path, passes=1.5)
    with pytest.raises(CheckpointError, match=r"training\.passes: 1\.5 there, 2\.5 here"):
        train("standard", tmp_path, passes=2.5)
    with pytest.raises(CheckpointError, match=r"training\.passes: 1\.5 there, None here"):
        train("standard", tmp_path)


def test_a_run_by_epochs_is_not_continued_by_passes(tmp_path: Path):
    train("standard", tmp_path)
    content = load_checkpoint(tmp_path)
    assert content is not None
    assert content["identity"]["training"]["passes"] is None
    with pytest.raises(CheckpointError, match=r"training\.passes: None there, 2\.5 here"):
        train("standard", tmp_path, passes=2.5)
