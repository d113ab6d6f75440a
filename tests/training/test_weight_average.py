"""The moving average of the weights, against its closed form and against PyTorch's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from training_runs import recipe, small_cnn, small_digits, train

from multirobust.data import Loader
from multirobust.training import Triangular, WeightAverage, load_checkpoint


def walk(model: nn.Module, steps: int) -> Iterator[torch.Tensor]:
    """Move the weights at random, and say where they are after each step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator))
        yield next(iter(model.parameters())).detach().double().clone()


@pytest.mark.parametrize("decay", [0.3, 0.9, 0.995])
def test_the_average_is_the_weighted_sum_of_the_sequence(decay: float):
    model = nn.Sequential(nn.BatchNorm1d(5))
    sequence = [model[0].weight.detach().double().clone()]
    average = WeightAverage(model, decay)
    for weights in walk(model, 40):
        sequence.append(weights)
        average.update(model)
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(40)]
    shares = [math.prod(decays)]
    shares += [(1 - decays[n]) * math.prod(decays[n + 1 :]) for n in range(40)]
    assert math.fsum(shares) == pytest.approx(1)
    expected = sum(share * weights for share, weights in zip(shares, sequence, strict=True))
    torch.testing.assert_close(average.values["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_where_the_warm_up_ends_at_once_it_is_the_average_of_pytorch():
    model = small_cnn()
    ours = WeightAverage(model, 0.1)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.1))
    theirs.update_parameters(model)
    for _ in walk(model, 7):
        ours.update(model)
        theirs.update_parameters(model)
    for name, value in theirs.module.named_parameters():
        torch.testing.assert_close(ours.values[name], value.detach())


def test_weights_that_stand_still_stay_bit_for_bit():
    model = small_cnn()
    average = WeightAverage(model, 0.995)
    for _ in range(50):
        average.update(model)
    for name, value in model.state_dict().items():
        assert average.values[name].equal(value), name


def test_statistics_are_averaged_and_counts_are_copied():
    model = nn.BatchNorm2d(2)
    average = WeightAverage(model, 0.5)
    model.running_mean.fill_(4.0)
    model.num_batches_tracked.fill_(7)
    average.update(model)
    assert average.values["running_mean"].tolist() == pytest.approx([0.9 * 4] * 2)
    assert average.values["num_batches_tracked"] == 7


def test_a_model_gets_its_own_weights_back_bit_for_bit_also_after_an_error():
    model = small_cnn()
    average = WeightAverage(model, 0.9)
    list(walk(model, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def fail_with_the_average() -> None:
        with average.lent_to(model):
            for name, value in model.state_dict().items():
                assert value.equal(average.values[name])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_with_the_average()
    for name, value in model.state_dict().items():
        assert value.equal(before[name])


def test_the_model_is_the_average_and_the_checkpoint_keeps_the_raw_weights(tmp_path: Path):
    raw = train("standard", tmp_path / "raw", options={"seed": 3})
    fit = train("standard", tmp_path / "averaged", options={"seed": 3}, ema=0.7)
    content = load_checkpoint(tmp_path / "averaged")
    for name, value in raw.model.state_dict().items():
        assert content["model"][name].equal(value), name
    model = small_cnn()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.21, momentum=0.9, weight_decay=5e-4)
    averages = {name: value.double() for name, value in model.state_dict().items()}
    step = 0
    for epoch in range(recipe().training.epochs):
        for batch in Loader(small_digits().train, batch_size=32, seed=3).epoch(epoch):
            Triangular(0.21).apply(optimizer, (step + 1) / 9)
            optimizer.zero_grad()
            F.cross_entropy(model(batch.x), batch.y).backward()
            optimizer.step()
            keep = min(0.7, (1 + step) / (10 + step))
            for name, value in model.state_dict().items():
                averages[name] = keep * averages[name] + (1 - keep) * value.double()
            step += 1
    for name, value in fit.model.state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), averages[name], rtol=1e-5, atol=1e-6)
        else:
            assert value == 9


def test_a_finished_run_returns_the_average_again(tmp_path: Path):
    first, second = (train("standard", tmp_path, ema=0.7).model.state_dict() for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)
