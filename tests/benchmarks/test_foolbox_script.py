"""The benchmark against foolbox runs at toy size and compares the same images."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from linear_oracles import network, random_images
from multirobust.threats import L2

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "foolbox_batched.py"


def test_a_batch_is_compared_with_the_first_of_its_images_one_by_one():
    spec = importlib.util.spec_from_file_location("benchmark_foolbox", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model, x = network().eval(), random_images(4, 3, 6, 6)
    with torch.no_grad():
        y = model(x).argmax(1)
    attack, peer = module.ours("cw_l2", L2(0.6), 20), module.foolbox_attack("cw_l2", 20)
    row = module.row(model, attack, peer, x, y, single=2)
    assert (row["images"], row["single"]) == (4, 2)
    assert 0 < row["called_passes"] <= row["searched_passes"]
    assert row["searched_passes"] <= 2 * row["foolbox_passes"]
    assert row["searched_seconds"] > 0
    assert row["searched_speedup"] > 0
