"""How a model is lent to an attack: modes, BatchNorm statistics, and what comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from linear_oracles import network, random_images
from multirobust.attacks import attacking
from multirobust.errors import InputError

X = random_images(5, 3, 4, 4, seed=4)


def batch_norm_only() -> nn.Sequential:
    layer = nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.5, -0.5, 2.0]))
        layer.bias.copy_(torch.tensor([0.1, 0.2, -0.3]))
        layer.running_mean.copy_(torch.tensor([0.2, 0.9, -0.4]))
        layer.running_var.copy_(torch.tensor([0.5, 2.0, 1.2]))
    return nn.Sequential(layer, nn.Flatten())


def by_hand(layer: nn.BatchNorm2d, statistics: str) -> torch.Tensor:
    if statistics == "running":
        mean, var = layer.running_mean, layer.running_var
        return F.batch_norm(X, mean, var, layer.weight, layer.bias).flatten(1)
    return F.batch_norm(X, None, None, layer.weight, layer.bias, training=True).flatten(1)


def state(model: nn.Module) -> tuple:
    """Everything that an attack might change, as values."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d)],
    )


def assert_same(model: nn.Module, before: tuple) -> None:
    after = state(model)
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1:] == before[1:]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    ("batch_norm", "in_train", "in_eval"),
    [("batch", "batch", "batch"), ("running", "running", "running"), (None, "batch", "running")],
)
def test_uses_the_statistics_that_are_asked_for(batch_norm, in_train, in_eval, mode):
    model = batch_norm_only().train(mode == "train")
    before = state(model)
    with attacking(model, batch_norm):
        logits = model(X)
    expected = by_hand(model[0], in_train if mode == "train" else in_eval)
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    assert_same(model, before)
    assert model[0].num_batches_tracked == 0


@pytest.mark.parametrize("batch_norm", ["batch", "running", None])
def test_restores_the_model_after_an_exception(batch_norm):
    model = network().train()
    before = state(model)

    def fail() -> None:
        with attacking(model, batch_norm):
            model(random_images(4, 3, 6, 6))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert_same(model, before)


def test_restores_modes_and_flags_that_differ_from_module_to_module():
    model = network().train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    norms[0].eval()
    norms[1].track_running_stats = False
    norms[0].weight.requires_grad_(False)
    before = state(model)
    for batch_norm in ("batch", "running", None):
        with attacking(model, batch_norm):
            model(random_images(4, 3, 6, 6))
            assert not any(parameter.requires_grad for parameter in model.parameters())
        assert_same(model, before)


def test_without_a_choice_a_frozen_batch_norm_stays_frozen():
    model = batch_norm_only().train()
    model[0].eval()
    with attacking(model):
        torch.testing.assert_close(model(X), by_hand(model[0], "running"), rtol=0, atol=0)


def test_nests_and_each_level_restores_the_one_around_it():
    model = batch_norm_only().train()
    before = state(model)
    with attacking(model, "batch"):
        outer = state(model)
        with attacking(model, "running"):
            torch.testing.assert_close(model(X), by_hand(model[0], "running"), rtol=0, atol=0)
            with attacking(model, "batch"):
                torch.testing.assert_close(model(X), by_hand(model[0], "batch"), rtol=0, atol=0)
        assert_same(model, outer)
        torch.testing.assert_close(model(X), by_hand(model[0], "batch"), rtol=0, atol=0)
    assert_same(model, before)


def test_training_goes_on_updating_the_running_statistics_afterwards():
    model = batch_norm_only().train()
    with attacking(model, "running"):
        model(X)
    model(X)
    assert model[0].num_batches_tracked == 1
    expected = 0.9 * torch.tensor([0.2, 0.9, -0.4]) + 0.1 * X.mean(dim=(0, 2, 3))
    torch.testing.assert_close(model[0].running_mean, expected)


def test_a_batch_norm_without_running_statistics_uses_the_batch():
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten()).eval()
    with attacking(model, "running"):
        expected = F.batch_norm(X, None, None, model[0].weight, model[0].bias, training=True)
        torch.testing.assert_close(model(X), expected.flatten(1), rtol=0, atol=0)


def test_an_unknown_choice_is_one_clear_error():
    with (
        pytest.raises(InputError, match=r"Unknown batch_norm: 'bach'\. Did you mean 'batch'"),
        attacking(batch_norm_only(), "bach"),
    ):
        pass
