"""Devices and precisions; what is imported when."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from training_runs import train

from multirobust.data import Batch
from multirobust.defenses import DEFENSES
from multirobust.errors import InputError
from multirobust.training import Runtime, choose_device


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
@pytest.mark.parametrize("defense", sorted(DEFENSES))
def test_every_defense_trains_in_every_precision(defense: str, precision: str):
    fit = train(defense, precision=precision, epochs=1)
    dtype = torch.float64 if precision == "64-true" else torch.float32
    for module in (fit.model, fit.defense):
        for tensor in (*module.parameters(), *module.buffers()):
            assert tensor.dtype == dtype or not tensor.is_floating_point()
            assert tensor.isfinite().all()
    assert torch.get_default_dtype() == torch.float32


def test_double_precision_and_single_precision_agree_on_a_short_training():
    single, double = (train("standard", precision=p) for p in ("32-true", "64-true"))
    for a, b in zip(single.model.parameters(), double.model.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=1e-3)


def test_images_enter_the_wrapped_model_unrounded_under_bfloat16():
    runtime = Runtime("cpu", "bf16-mixed")
    seen: list[torch.Tensor] = []
    with torch.random.fork_rng():
        model = nn.Linear(3, 2)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    wrapped, _ = runtime.set_up(model, torch.optim.SGD(model.parameters()))
    x = torch.tensor([[0.9985, 1 / 3, 1 / 255]])
    out = wrapped(x)
    assert seen[0].dtype == torch.float32
    assert seen[0].equal(x)
    assert out.dtype == torch.float32
    assert not out.equal(nn.functional.linear(x, model.weight, model.bias)), "no bfloat16 within"


def test_weights_stepped_inside_autocast_are_used_at_once():
    runtime = Runtime("cpu", "bf16-mixed")
    layer, x = nn.LazyLinear(4, bias=False), torch.ones(2, 4)
    with torch.random.fork_rng():
        layer(x)
    with runtime.autocast():
        before = layer(x)
        with torch.no_grad():
            layer.weight.mul_(2)
        assert layer(x).equal(2 * before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_an_input_error():
    with pytest.raises(InputError, match="'cuda' needs a CUDA device"):
        train("standard", device="cuda")
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")


def test_batches_get_the_dtype_of_the_parameters():
    batch = Batch(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), torch.tensor([4, 5]))
    assert Runtime("cpu").batch(batch) is batch
    double = Runtime("cpu", "64-true").batch(batch)
    assert double.x.dtype == torch.float64
    assert double.y is batch.y


def test_each_step_and_seed_has_its_own_random_numbers():
    runtime = Runtime("cpu")
    firsts = {
        (seed, step): torch.rand((), generator=runtime.generator(seed, step)).item()
        for seed in range(20)
        for step in range(100)
    }
    assert len(set(firsts.values())) > 1990
    assert firsts[3, 7] == torch.rand((), generator=runtime.generator(3, 7)).item()
    assert abs(math.fsum(firsts.values()) / 2000 - 0.5) < 0.03


def test_cudnn_is_held_to_one_algorithm_while_training_only():
    cudnn = torch.backends.cudnn
    cudnn.benchmark = True
    try:
        with Runtime("cpu").reproducible():
            assert (cudnn.deterministic, cudnn.benchmark) == (True, False)
        assert (cudnn.deterministic, cudnn.benchmark) == (False, True)
    finally:
        cudnn.benchmark = False


def test_heavy_packages_are_imported_when_training_starts_and_without_a_warning():
    script = (
        "import sys, multirobust.training as training\n"
        "heavy = {'lightning_fabric', 'tensorboard', 'rich', 'sklearn', 'pyarrow', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
        "training.Runtime('cpu', 'bf16-mixed')\n"
        "print('lightning_fabric' in sys.modules)\n"
    )
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=120
    )
    assert finished.stdout.split() == ["[]", "True"], finished.stderr
    assert finished.stderr == ""
