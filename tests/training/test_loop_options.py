"""Gradient clipping and label smoothing; and a resumed training with everything turned on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from training_runs import (
    StopAt,
    all_options,
    leaves,
    outcome,
    recipe,
    small_cnn,
    small_digits,
    train,
)

from multirobust import defenses
from multirobust.attacks import attacking
from multirobust.data import Batch, Loader
from multirobust.defenses.base import cross_entropy, smoothed_labels
from multirobust.errors import CheckpointError, Interrupted
from multirobust.training import Triangular, load_checkpoint
from multirobust.training.selection import Selection


def metrics(folder: Path) -> list[dict]:
    return [json.loads(s) for s in (folder / "metrics.jsonl").read_text("utf-8").splitlines()]


def hand_written(clip: float | None, smoothing: float) -> tuple[nn.Module, list[float]]:
    """The plain loop of PyTorch, and the norms of its gradients."""
    model, norms = small_cnn(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.21, momentum=0.9, weight_decay=5e-4)
    for epoch in range(recipe().training.epochs):
        for batch in Loader(small_digits().train, batch_size=32, seed=0).epoch(epoch):
            Triangular(0.21).apply(optimizer, (len(norms) + 1) / 9)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.x), batch.y, label_smoothing=smoothing).backward()
            gradients = [p.grad for p in model.parameters()]
            norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return model, norms


@pytest.mark.parametrize(("clip", "smoothing"), [(0.3, 0.0), (None, 0.2), (0.5, 0.1)])
def test_clipping_and_smoothing_are_those_of_pytorch_bit_for_bit(clip, smoothing, tmp_path: Path):
    fit = train("standard", tmp_path, log_steps=1, gradient_clip=clip, label_smoothing=smoothing)
    model, norms = hand_written(clip, smoothing)
    for name, tensor in model.state_dict().items():
        assert tensor.equal(fit.model.state_dict()[name]), name
    lines = metrics(tmp_path)
    if clip is None:
        assert all("gradient_norm" not in line for line in lines)
    else:
        assert max(norms) > clip
        assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-5)


def test_a_bound_that_is_never_reached_changes_no_bit(tmp_path: Path):
    plain = train("sat").model.state_dict()
    for name, tensor in train("sat", gradient_clip=1e6).model.state_dict().items():
        assert tensor.equal(plain[name])


@pytest.mark.parametrize("share", [0.0, 0.1, 0.7])
def test_smoothed_cross_entropy_has_its_closed_form(share: float):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 5, (6,), generator=generator)
    target = (1 - share) * F.one_hot(y, 5) + share / 5
    expected = -(target * torch.log_softmax(logits, 1)).sum(1)
    with smoothed_labels(share):
        torch.testing.assert_close(cross_entropy(logits, y), expected.mean())
        torch.testing.assert_close(cross_entropy(logits, y, reduction="none"), expected)
    assert cross_entropy(logits, y).equal(F.cross_entropy(logits, y))


def test_smoothing_ends_with_its_block_also_after_an_error():
    logits, y = torch.tensor([[3.0, 0.0]]), torch.tensor([0])
    with pytest.raises(ZeroDivisionError), smoothed_labels(0.5):
        raise ZeroDivisionError
    assert cross_entropy(logits, y).equal(F.cross_entropy(logits, y))


@pytest.mark.parametrize("name", ["standard", "trades", "adv_avg", "sat_ac", "mng_ac", "ant"])
def test_smoothing_reaches_the_loss_of_a_defense_and_leaves_its_images_alone(name: str):
    def first(share: float) -> tuple[Tensor, dict]:
        """Loss of the first step of training, and what the defense has then learned."""
        defense = defenses.build(name, recipe(), channels=1)
        model, heard = small_cnn(), []
        original = defense.loss

        def listening(model: nn.Module, batch: Batch, views) -> defenses.Loss:
            loss = original(model, batch, views)
            images = views if isinstance(views, Tensor) else getattr(views, "x_adv", None)
            heard.append((loss.total.detach(), images))
            return loss

        defense.loss = listening
        options = {"model": model, "data": small_digits()}
        train(defense, epochs=1, label_smoothing=share, options=options, batch_size=128)
        return (*heard[0], leaves(defense.state_dict()))

    (plain, x, learned), (smooth, x_smooth, learned_too) = first(0.0), first(0.3)
    assert plain != smooth
    assert learned == learned_too
    assert x is None or x.equal(x_smooth)


def test_attacks_raise_the_loss_of_the_true_labels():
    batch = next(iter(Loader(small_digits().train, batch_size=32, seed=0).epoch(0)))
    defense, model = defenses.build("adv_linf", recipe(), channels=1), small_cnn()
    with attacking(model, "batch"):
        plain = defense.craft(model, batch)
        with smoothed_labels(0.5):
            smooth = defense.craft(model, batch)
    assert plain.equal(smooth)


@pytest.mark.parametrize("steps", [(1, 3), (2, 4), (8,)])
def test_with_every_option_a_stopped_training_ends_as_if_undisturbed(steps, tmp_path: Path):
    settings = all_options(tmp_path / "start.pt")
    options = settings.pop("options")
    whole = train("mng_ac", tmp_path / "undisturbed", options=options, **settings)
    for count in steps:
        stopping = options | {"stop": StopAt(count)}
        with pytest.raises(Interrupted):
            train("mng_ac", tmp_path / "stopped", options=stopping, **settings)
    fit = train("mng_ac", tmp_path / "stopped", options=options, **settings)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")
    assert leaves(fit.model.state_dict()) == leaves(whole.model.state_dict())
    assert fit.selected.history == whole.selected.history
    assert (fit.selected.forwards, fit.selected.backwards) == (
        whole.selected.forwards,
        whole.selected.backwards,
    )


def test_a_measurement_that_breaks_off_is_made_again(tmp_path: Path, monkeypatch):
    settings = all_options(tmp_path / "start.pt")
    train("sat", tmp_path / "undisturbed", **settings)
    calls, original = [], Selection._accuracies

    def breaking(selection: Selection) -> dict[str, float]:
        calls.append(original(selection))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    with monkeypatch.context() as patch:
        patch.setattr(Selection, "_accuracies", breaking)
        with pytest.raises(KeyboardInterrupt):
            train("sat", tmp_path / "broken", **settings)
    train("sat", tmp_path / "broken", **settings)
    assert outcome(tmp_path / "broken") == outcome(tmp_path / "undisturbed")


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_every_option_works_in_every_precision(precision: str, tmp_path: Path):
    settings = all_options(tmp_path / "start.pt")
    fit = train("sat", tmp_path / "run", precision=precision, **settings)
    assert len(fit.selected.history) == 3
    assert all(value.isfinite().all() for value in fit.model.state_dict().values())


def test_what_is_turned_off_leaves_no_trace_in_a_checkpoint(tmp_path: Path):
    train("standard", tmp_path)
    assert {"ema", "selection"}.isdisjoint(load_checkpoint(tmp_path))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ema": 0.5}, "training.ema: 0.0 there, 0.5 here"),
        ({"gradient_clip": 2.0}, "training.gradient_clip: None there, 2.0 here"),
        ({"label_smoothing": 0.1}, "training.label_smoothing: 0.0 there, 0.1 here"),
    ],
)
def test_an_option_is_part_of_the_identity(change, named, tmp_path: Path):
    train("standard", tmp_path)
    with pytest.raises(CheckpointError, match=named):
        train("standard", tmp_path, **change)
