"""The loop against a hand-written one, what it writes down, and what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_runs import STEPS_AN_EPOCH, outcome, recipe, small_cnn, small_digits, train

from multirobust import defenses, models
from multirobust.attacks import PGD
from multirobust.data import Batch, Loader, digits
from multirobust.defenses import AdversarialTraining, Defense, Loss, Standard
from multirobust.errors import InputError, Interrupted, TrainingError
from multirobust.threats import Linf
from multirobust.training import Cosine, Silent, Status, Triangular, load_checkpoint


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(s) for s in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


@pytest.mark.parametrize(
    ("settings", "schedule"),
    [({}, Triangular(0.21)), ({"nesterov": True, "schedule": "cosine"}, Cosine(0.21))],
    ids=["triangular", "cosine and nesterov"],
)
def test_standard_training_is_the_hand_written_loop_bit_for_bit(settings, schedule, tmp_path: Path):
    fit = train("standard", tmp_path, options={"seed": 3}, log_steps=1, **settings)
    model, config = small_cnn(), recipe().training
    momentum = {"momentum": 0.9, "nesterov": settings.get("nesterov", False)}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.21, weight_decay=5e-4, **momentum)
    loader = Loader(small_digits().train, batch_size=32, seed=3)
    losses = []
    for epoch in range(config.epochs):
        for batch in loader.epoch(epoch):
            schedule.apply(optimizer, (len(losses) + 1) / 9)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch.x), batch.y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    for name, tensor in model.state_dict().items():
        assert tensor.equal(fit.model.state_dict()[name]), name
    assert [line["loss"] for line in metrics(tmp_path)] == losses


def test_training_learns_the_digits():
    fit = train("standard", options={"data": digits(train_limit=600)}, epochs=12, peak_lr=0.1)
    test = digits().test
    with torch.no_grad():
        accuracy = (fit.model(test.floats()).argmax(1) == test.labels).double().mean()
    assert accuracy > 0.8


def test_metrics_hold_step_epoch_rate_means_and_passes_and_no_time(tmp_path: Path):
    train("sat", tmp_path, log_steps=2)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 5, 6, 8, 9]
    assert [line["epoch"] for line in lines] == [1, 1, 2, 2, 3, 3]
    assert [line["lr"] for line in lines] == [Triangular(0.21).at(s["step"] / 9) for s in lines]
    names = {"step", "epoch", "lr", "loss", "cross_entropy", "forwards", "backwards"}
    assert all(set(line) == names for line in lines)
    timing = [json.loads(s) for s in (tmp_path / "timing.jsonl").read_text("utf-8").splitlines()]
    assert [set(line) for line in timing] == [{"step", "seconds", "images_per_second"}] * 6
    seconds = [line["seconds"] for line in timing]
    assert seconds == sorted(seconds)


def test_a_line_is_the_mean_of_the_steps_since_the_last(tmp_path: Path):
    train("mng_ac", tmp_path / "each", log_steps=1)
    train("mng_ac", tmp_path / "epoch", log_steps=100)
    each, epochs = metrics(tmp_path / "each"), metrics(tmp_path / "epoch")
    assert {"loss", "cross_entropy", "consistency", "live_gradient"} <= set(each[0])
    for name in ("loss", "cross_entropy", "consistency", "live_gradient"):
        means = [math.fsum(s[name] for s in each[i : i + 3]) / 3 for i in (0, 3, 6)]
        assert [line[name] for line in epochs] == pytest.approx(means, rel=1e-12)


def test_passes_an_image_are_what_the_drawn_attacks_cost(tmp_path: Path):
    steps = {"linf": 1, "l2": 2, "l1": 5}
    whole = recipe(epochs=10)
    schedule = {norm: {"steps": n, "step_size": 0.1} for norm, n in steps.items()}
    whole = whole.model_validate({**whole.model_dump(), "attack": schedule})
    images = small_digits().train.first(64)
    fit = train(
        defenses.build("sat", whole, channels=1),
        tmp_path,
        options={"data": replace(small_digits(), train=images)},
        epochs=10,
    )
    draws = dict(zip(steps, fit.defense.sampler.draws, strict=True))
    assert sum(draws.values()) == fit.steps == 20
    expected = 1 + sum(draws[norm] * n for norm, n in steps.items()) / 20
    assert fit.backwards == fit.forwards == expected
    assert metrics(tmp_path)[-1]["backwards"] == expected


def test_standard_passes_each_image_once():
    fit = train("standard")
    assert (fit.forwards, fit.backwards) == (1.0, 1.0)


def test_tensorboard_reads_the_events_also_of_a_resumed_run(tmp_path: Path):
    with pytest.raises(Interrupted):
        train("sat", tmp_path, log_steps=1, options={"stop": iter([0, 0, 0, 1]).__next__})
    train("sat", tmp_path, log_steps=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"loss", "lr", "backwards", "images_per_second"} <= set(events.Tags()["scalars"])
    losses = {event.step: event.value for event in events.Scalars("loss")}
    expected = {line["step"]: line["loss"] for line in metrics(tmp_path)}
    assert losses == pytest.approx(expected, rel=1e-6)
    assert len(expected) == 9


class Breaking(Defense[None]):
    """Standard training in which something becomes NaN or infinite at a step."""

    def __init__(self, step: int, what: str):
        super().__init__()
        self.step, self.what, self.calls = step, what, 0
        self.own = nn.Parameter(torch.zeros(2))

    def craft(self, model, batch: Batch, *, generator=None) -> None:
        self.calls += 1
        if self.calls == self.step and self.what == "defense":
            self.own.data[1] = math.nan

    def loss(self, model: nn.Module, batch: Batch, views: None) -> Loss:
        total = F.cross_entropy(model(batch.x), batch.y)
        terms = {}
        if self.calls == self.step and self.what == "loss":
            total = total * math.nan
        if self.calls == self.step and self.what == "term":
            terms["term"] = torch.tensor(-math.inf)
        if self.calls == self.step and self.what == "gradient":
            total = total + Poison.apply(next(iter(model.parameters())))
        return Loss(total, terms)


class Poison(torch.autograd.Function):
    """Zero, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.full_like(ctx.saved_tensors[0], math.inf)


@pytest.mark.parametrize("save", [{"checkpoint_seconds": 0}, {}], ids=["each step", "each epoch"])
@pytest.mark.parametrize("what", ["loss", "term", "gradient", "defense"])
def test_nothing_infinite_is_saved_and_the_last_good_checkpoint_stays(
    what: str, save: dict, tmp_path: Path
):
    with pytest.raises(TrainingError, match=r"became.*last good checkpoint stays.*peak_lr"):
        train(Breaking(5, what), tmp_path, **save)
    content = load_checkpoint(tmp_path)
    assert content is not None
    assert content["step"] == (4 if save else STEPS_AN_EPOCH)
    for part in ("model", "defense"):
        assert all(t.isfinite().all() for t in content[part].values())
    train(Breaking(0, what), tmp_path)
    train(Breaking(0, what), tmp_path / "good")
    assert outcome(tmp_path) == outcome(tmp_path / "good")


def test_an_infinite_loss_without_a_folder_is_the_same_error():
    with pytest.raises(TrainingError, match=r"'loss' became nan by step 2 of 9 \(lr 0.1167\)"):
        train(Breaking(1, "loss"))


def test_a_term_that_some_steps_lack_is_averaged_over_those_that_have_it(tmp_path: Path):
    class Sometimes(Defense[None]):
        calls = 0

        def craft(self, model, batch, *, generator=None) -> None:
            self.calls += 1

        def loss(self, model, batch, views) -> Loss:
            total = F.cross_entropy(model(batch.x), batch.y)
            return Loss(total, {"rare": torch.tensor(6.0)} if self.calls == 2 else {})

    train(Sometimes(), tmp_path, epochs=1, log_steps=3)
    assert metrics(tmp_path)[0]["rare"] == 6.0


@pytest.mark.parametrize("images", [2, 5, 33])
def test_any_number_of_images_from_two_on_trains_in_batches_of_any_size(images: int):
    data = digits(train_limit=max(images, 10))
    order = data.train.labels.argsort(stable=True).flip(0)  # so that two images differ in class
    first = torch.cat((order[:1], order[-images + 1 :]))
    data = replace(data, train=data.train.subset(first))
    fit = train("sat_ac", options={"data": data}, epochs=2)
    assert fit.steps == 2
    assert all(tensor.isfinite().all() for tensor in fit.model.state_dict().values())


def test_fewer_than_two_images_are_an_input_error():
    data = digits(train_limit=10)
    one = data.train.first(1)
    object.__setattr__(data, "train", one)
    with pytest.raises(InputError, match=r"at least 2 images.*got 1"):
        train("standard", options={"data": data})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (models.build("small_cnn", classes=10, channels=3, widths=(4,)), "must be images of shape"),
        (models.build("small_cnn", classes=7, channels=1, widths=(4,)), "one logit for each class"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)), "probabilities"),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, 10)), "cannot take images"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_an_input_error(model, message, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        train("standard", tmp_path / "run", options={"model": model})
    assert not (tmp_path / "run").exists()


def test_the_display_hears_of_the_start_every_report_and_the_end():
    class Heard:
        def __init__(self) -> None:
            self.statuses: list[Status] = []
            self.said: list[str] = []

        def start(self, title: str, status: Status) -> None:
            self.said.append(title)
            self.statuses.append(status)

        def update(self, status: Status) -> None:
            self.statuses.append(status)

        def finish(self, text: str) -> None:
            self.said.append(text)

    heard = Heard()
    options = {"display": heard, "title": "sat-s0"}
    train("standard", options=options)
    assert [s.step for s in heard.statuses] == [0, 2, 3, 5, 6, 8, 9]
    assert [s.epoch for s in heard.statuses] == [1, 1, 1, 2, 2, 3, 3]
    assert heard.statuses[-1].seconds_left == 0
    assert all(s.images_per_second > 0 and s.seconds_left >= 0 for s in heard.statuses[1:])
    assert heard.said[0] == "sat-s0"
    assert heard.said[1].startswith("trained in")
    with pytest.raises(TrainingError):
        train(Breaking(1, "loss"), options=options)
    assert heard.said[-1] == "stopped by an error"
    with pytest.raises(Interrupted, match="nothing is kept"):
        train("standard", options=options | {"stop": lambda: True})
    assert heard.said[-1] == "interrupted"


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_attacks_see_the_named_statistics_and_training_the_batch(batch_norm: str):
    modes: dict[str, set[bool]] = {"craft": set(), "loss": set()}

    class Spy(Defense[Tensor]):
        attack = AdversarialTraining(PGD(threat=Linf(0.1), steps=1, step_size=0.1))

        def craft(self, model, batch, *, generator=None) -> Tensor:
            modes["craft"].add(model.training)
            return self.attack.craft(model, batch, generator=generator)

        def loss(self, model, batch, views) -> Loss:
            modes["loss"].add(model.training)
            return Standard().loss(model, batch, None)

    train(Spy(), epochs=1, options={"batch_norm": batch_norm, "display": Silent()})
    assert modes == {"craft": {batch_norm == "batch"}, "loss": {True}}
