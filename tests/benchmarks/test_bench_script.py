"""The table of `make bench` and the growth of cost at toy size: what they count and write."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"))

import bench
import comparison
import cost_growth
import meta_memory
import step_cost

from multirobust.metagrad import call_with, meta_gradient
from multirobust.models import build

WIDTHS = ["--set", "model.widths=[4, 8]"]
SHORT = [f"--set=attack.{norm}.steps=2" for norm in ("linf", "l2", "l1")]
TOY = ["--models", "small_cnn", *WIDTHS, *SHORT, "--set=defense.msd_steps=2", "--size=8"]
TOY += ["--batch=8", "--memory-batch=8", "--projection-batches=1", "--rounds=1"]
TOY += ["--attack-steps=2"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    threads = torch.get_num_threads()
    output = tmp_path_factory.mktemp("bench") / "bench.json"
    try:
        result = bench.main([*TOY, "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    assert json.loads(output.read_text("utf-8")) == json.loads(json.dumps(result))
    return result


def rows_of(table: dict, part: str) -> dict[str, dict]:
    return {row["case"]: row for row in table["parts"][part]["rows"]}


def test_every_part_has_rows_beside_a_reference_and_a_limit(table):
    assert list(table["parts"]) == list(bench.PARTS)
    for row in (row for part in table["parts"].values() for row in part["rows"]):
        assert row["ours"] > 0
        for name in ("reference", "limit"):
            assert row[f"{name}_name"]
            ratios = row[f"of_{name}_by_round"]
            assert row[f"of_{name}"] == pytest.approx(statistics.median(ratios), abs=1e-4)
            if len(ratios) == 1:
                assert row[f"of_{name}"] == pytest.approx(row["ours"] / row[name])


def test_the_file_says_where_when_and_how_it_was_measured(table):
    for part in table["parts"].values():
        about = part["about"]
        assert about["versions"]["torch"]
        assert about["clock"] == "processor time"
        assert (about["settings"]["seed"], about["settings"]["threads"]) == (0, 1)
        for name in ("commit", "device", "time", "load_before", "load_at_end", "seconds"):
            assert name in about


def test_a_part_is_measured_again_and_the_others_stay(tmp_path):
    output, threads = tmp_path / "bench.json", torch.get_num_threads()
    output.write_text(json.dumps({"parts": {"step": "kept", "projection": "old"}}), "utf-8")
    try:
        bench.main([*TOY, "projection", "--output", str(output)])
    finally:
        torch.set_num_threads(threads)
    parts = json.loads(output.read_text("utf-8"))["parts"]
    assert parts["step"] == "kept"
    assert len(parts["projection"]["rows"]) == 8


def test_each_attack_stands_beside_its_passes_and_foolbox(table):
    cases = rows_of(table, "attack")
    kinds = [f"{kind} {norm}" for kind in ("pgd", "training apgd") for norm in ("linf", "l2", "l1")]
    assert list(cases) == [f"{kind}, 2 steps" for kind in kinds]


def test_every_defense_stands_beside_the_step_of_sat(table):
    cases = rows_of(table, "step")
    assert list(cases) == list(step_cost.STEPS)
    assert cases["sat"]["of_reference"] == 1
    assert {case["reference"] for case in cases.values()} == {cases["sat"]["ours"]}


@pytest.mark.parametrize("share", [1, 1 / 4, 1 / 12])
def test_a_cheaper_meta_step_needs_its_share_of_the_passes(share):
    """Two training passes and a second-order one for the share of images that it sees."""
    names = {1: "mng_ac", 1 / 4: "mng_ac, a quarter of the batch"}
    defense, changes, *_ = step_cost.STEPS[names.get(share, "mng_ac, a quarter, every third step")]
    options = bench.parse([*TOY, "--batch=8"])
    run = step_cost._measured("small_cnn", defense, changes, options)
    for _ in range(2):
        run.round(step_cost.Clock(torch.device("cpu")))
        needs = run.needs(run.times)
        assert needs.second_order == pytest.approx(share)
        assert needs.training == pytest.approx(3 + 2 * share)
        assert needs.input_gradients == pytest.approx(2)  # the steps of the attack
        assert needs.forwards_only == pytest.approx(0)


def test_a_goal_is_of_the_median_of_the_ratios_of_the_rounds():
    row = comparison.Row(
        part="step", model="net", case="case", unit="s", ours=(2.0, 3.0, 12.0),
        reference_name="a", reference=(1.0, 1.0, 10.0), limit_name="b", limit=(1.0, 3.0, 4.0),
        goal=1.9, goal_of="limit",
    )  # fmt: skip
    assert row.ratio("reference") == 2
    assert row.ratio("limit") == 2
    assert row.reached() is False
    assert "missed" in row.line()
    assert row.plain()["of_limit_by_round"] == [2, 1, 3]


def test_the_peak_is_the_most_that_was_held_at_one_time():
    size = 1 << 20

    def task() -> None:
        first = torch.ones(size)  # 4 MB
        second = first + 1
        del first
        third = second + 1
        del second, third
        torch.ones(size // 4)

    assert meta_memory.peak_bytes(task) == pytest.approx(8 * size, rel=1e-3)


def test_a_pass_keeps_each_of_its_tensors_once():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False))
    x, y = torch.ones(5, 3), torch.zeros(5, dtype=torch.int64)
    # The output of the ReLU, which it and the second layer keep; the log-softmax; a weight of it.
    assert meta_memory.saved_bytes(model, x, y) == 4 * (5 * 4 + 5 * 2 + 1)


def test_memory_is_compared_in_every_mode(table):
    cases = rows_of(table, "memory")
    assert [f"meta step, {mode}" for mode in meta_memory.MODES] == list(cases)[:-2]
    part, whole = cases["meta step, a quarter of the batch"], cases["meta step, mixed_vjp"]
    assert part["ours"] < whole["ours"]


def test_to_recompute_takes_less_memory_than_to_keep():
    model = build("preact_resnet_18", classes=10, width=4).train()
    x, y = torch.zeros(16, 3, 16, 16, requires_grad=True), torch.arange(16) % 10

    def loss(theta: dict[str, torch.Tensor], phi: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return nn.functional.cross_entropy(call_with(model, theta, phi[0]), y)

    def look_ahead(mode: str) -> None:
        theta = dict(model.named_parameters())
        outer = lambda theta: loss(theta, (1 - x.detach(),))  # noqa: E731
        meta_gradient(loss, outer, theta, (x,), lr=0.1, mode=mode)

    recomputed, kept = (
        meta_memory.peak_bytes(lambda mode=mode: look_ahead(mode))
        for mode in ("recomputed", "mixed_vjp")
    )
    assert recomputed < 0.9 * kept


STEPS = 2
PASSES = {
    "sat": lambda k: (STEPS + 1, STEPS + 1),
    "mng_ac": lambda k: (STEPS + 5, STEPS + 6),
    "adv_max": lambda k: (k * (STEPS + 1) + 1, k * STEPS + 1),
    "adv_avg": lambda k: (k * (STEPS + 1), k * (STEPS + 1)),
}


@pytest.fixture(scope="module")
def growth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("growth")
    arguments = [*WIDTHS, "--size=8", "--batch=4", "--batches", "4", "8", "--sizes", "8", "16"]
    arguments += ["--threats", "1", "4", "--steps", str(STEPS), "--rounds=1"]
    places = ["--output", str(folder / "rows.json"), "--figure", str(folder / "figure.svg")]
    threads = torch.get_num_threads()
    try:
        return folder, cost_growth.main([*arguments, *places])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("defense", list(PASSES))
def test_passes_grow_with_the_threats_as_their_closed_form(growth, defense):
    rows = [row for row in growth[1]["rows"] if row["defense"] == defense]
    assert len(rows) == 6
    for row in rows:
        threats = row["value"] if row["axis"] == "threats" else 3
        assert (row["forwards"], row["backwards"]) == pytest.approx(PASSES[defense](threats))
        assert row["seconds"] > 0


@pytest.mark.parametrize("defense", list(PASSES))
def test_memory_grows_with_the_batch_and_the_image(growth, defense):
    for axis in ("batch", "size"):
        peaks = [
            row["peak_mb"]
            for row in growth[1]["rows"]
            if (row["axis"], row["defense"]) == (axis, defense)
        ]
        assert peaks[0] < peaks[1]


def test_the_figure_is_drawn_from_the_file_alone(growth):
    folder, result = growth
    assert json.loads((folder / "rows.json").read_text("utf-8"))["rows"] == result["rows"]
    again = folder / "again.svg"
    cost_growth.main(["--draw", str(folder / "rows.json"), "--figure", str(again)])
    assert again.read_bytes() == (folder / "figure.svg").read_bytes()
    root = ElementTree.parse(again).getroot()
    text = "".join(root.itertext())
    assert all(name in text for name in PASSES)
