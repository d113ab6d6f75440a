"""Both GPU scripts at toy size on the CPU: what they count, what they write, and how they go on."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"))

import cifar10
import passes
import slices
import step_time

from multirobust import catalog
from multirobust.training import load_checkpoint

TOY = ["--models", "small_cnn", "--set", "model.widths=[4, 8]", "--size", "8", "--batch", "4"]
TOY += ["--repeats", "1", "--passes", "1", "--device", "cpu"]

# Forward and backward passes per image: S steps of PGD cost S of each.
LINF, L2, L1, MSD, APGD, PLUS = 10, 3, 5, 4, 6, 3
TOY += ["--set", f"attack.linf.steps={LINF}", "--set", f"attack.l2.steps={L2}"]
TOY += ["--set", f"attack.l1.steps={L1}", "--set", f"defense.msd_steps={MSD}"]
TOY += ["--set", f"defense.apgd_steps={APGD}", "--set", f"defense.plus_steps={PLUS}"]
ALL_STEPS = LINF + L2 + L1
MEAN_STEPS = ALL_STEPS / 3
COUNTS = {
    "standard": (1, 1),
    "adv_linf": (11, 11),
    "adv_l2": (L2 + 1, L2 + 1),
    "adv_l1": (L1 + 1, L1 + 1),
    "trades": (1 + LINF + 2, LINF + 2),
    "adv_avg": (ALL_STEPS + 3, ALL_STEPS + 3),
    "adv_max": (ALL_STEPS + 3 + 1, ALL_STEPS + 1),
    "msd": (MSD * (1 + 3) + 1, MSD + 1),
    "ant": (2, 2),
    "sat": (MEAN_STEPS + 1, MEAN_STEPS + 1),
    "sat_ac": (MEAN_STEPS + 3, MEAN_STEPS + 3),
    "mng_ac": (MEAN_STEPS + 2 + 3, MEAN_STEPS + 3 + 3),
    # The untrained network errs at the first of the spatial draws, which is then the only one.
    "mng_ac_spatial": ((ALL_STEPS + 1) / 4 + 2 + 3, ALL_STEPS / 4 + 3 + 3),
    "rst_linf": (1 + LINF + 2, LINF + 2),
    "mng_ac_rst": (MEAN_STEPS + 2 + 3, MEAN_STEPS + 3 + 3),
    "e_at": (APGD + 1 + 1, APGD + 1),
    "ramp": (2 * (APGD + 1) + 3 + 1, 2 * APGD + 3 + 1),
    "sat_mixed": (APGD + 1 + 1, APGD + 1),
    "mng_ac_mixed": (APGD + 1 + 2 + 3, APGD + 3 + 3),
    "plus": (PLUS + 1 + 2, PLUS + 2),
}

SHORT = "{ steps = 2, step_size = 0.1 }"
DIGITS = ["--recipe", "digits", "--defense", "mng_ac", "--precision", "32-true", "--limit", "20"]
DIGITS += [
    f"--set={field}={value}"
    for field, value in {
        "model.widths": "[4, 8]",
        "data.train_limit": "70",
        "training.epochs": "2",
        "training.batch_size": "32",
        "training.device": "cpu",
        **{f"attack.{norm}": SHORT for norm in ("linf", "l2", "l1")},
        **{f"evaluation.attack.{norm}": SHORT for norm in ("linf", "l2", "l1")},
    }.items()
]


def toy_steps(output: Path, *arguments: str) -> int:
    return step_time.main([*TOY, "--output", str(output), *arguments])


@pytest.fixture(scope="module")
def all_cases(tmp_path_factory):
    output = tmp_path_factory.mktemp("steps") / "new" / "step_time.json"
    assert toy_steps(output, "--precisions", "float32", "tf32") == slices.DONE
    return output


def cases_of(output: Path) -> dict[str, dict]:
    return {case["defense"]: case for case in json.loads(output.read_text())["cases"]}


@pytest.mark.parametrize("defense", list(catalog.DEFENSES))
def test_a_step_takes_the_passes_of_its_closed_form(all_cases, defense):
    case = cases_of(all_cases)[defense]
    assert (case["forwards"], case["backwards"]) == pytest.approx(COUNTS[defense])


@pytest.mark.parametrize("defense", list(catalog.DEFENSES))
def test_the_ratio_is_that_of_the_step_to_its_counted_passes(all_cases, defense):
    case = cases_of(all_cases)[defense]
    bare, kinds = case["bare_seconds"], case["of_which"]
    limit = kinds["forward_only"] * bare["forward"] + kinds["training"] * bare["training"]
    limit += (kinds["input_gradient"] + 2 * kinds["second_order"]) * bare["input_gradient"]
    assert case["limit_seconds"] == pytest.approx(limit)
    assert case["ratio"] == pytest.approx(case["seconds"] / limit)
    assert math.isfinite(case["ratio"])
    assert case["ratio"] > 0
    assert case["images_per_second"] == pytest.approx(4 / case["seconds"])
    assert min(kinds.values()) >= 0


def test_passes_are_sorted_by_what_they_compute():
    needs = passes.Needs.of("mng_ac", 10 + 5, 10 + 6)
    assert (needs.training, needs.second_order) == (5, 1)
    assert (needs.input_gradients, needs.forwards_only) == (10, 0)
    assert needs.limit({"forward": 1.0, "input_gradient": 2.0, "training": 3.0}) == 15 + 24
    needs = passes.Needs.of("msd", 81, 21)
    assert (needs.training, needs.input_gradients, needs.forwards_only) == (1, 20, 60)


def test_a_drawn_attack_is_timed_in_every_norm(all_cases):
    cases = cases_of(all_cases)
    for name in ("sat", "sat_ac", "mng_ac"):
        by_attack = cases[name]["seconds_by_attack"]
        assert list(by_attack) == ["linf", "l2", "l1"]
        assert cases[name]["seconds"] == pytest.approx(sum(by_attack.values()) / 3)
    assert list(cases["mng_ac_spatial"]["seconds_by_attack"]) == [
        "linf",
        "l2",
        "l1",
        "l2 projected",
    ]
    assert list(cases["e_at"]["seconds_by_attack"]) == ["linf", "l1"]
    assert cases["adv_max"]["seconds_by_attack"] == {}


def test_the_file_says_where_its_numbers_come_from(all_cases):
    result = json.loads(all_cases.read_text())
    assert {case["precision"] for case in result["cases"]} == {"float32"}  # no TF32 on a CPU
    assert {case["peak_bytes"] for case in result["cases"]} == {None}
    assert {case["slice"] for case in result["cases"]} == {0}
    (made,) = result["slices"]
    assert made["versions"]["torch"]
    assert made["device"] == result["settings"]["device"]
    assert made["arguments"]["repeats"] == 1


def test_finished_cases_are_not_timed_again(all_cases, monkeypatch, capsys):
    monkeypatch.setattr(step_time, "_facts", lambda *_: pytest.fail("a case was timed"))
    before = all_cases.read_bytes()
    assert toy_steps(all_cases, "--precisions", "float32") == slices.DONE
    assert all_cases.read_bytes() == before
    assert "nothing is left" in capsys.readouterr().out


def test_missing_cases_are_added_to_the_finished_ones(tmp_path):
    output = tmp_path / "step_time.json"
    first = ("--precisions", "float32", "--defenses", "standard")
    both = ("--precisions", "float32", "bf16", "--defenses", "standard")
    assert toy_steps(output, *first, "--minutes", "0") == slices.AGAIN
    assert not output.exists()
    assert toy_steps(output, *first) == slices.DONE
    (case,) = json.loads(output.read_text())["cases"]
    assert toy_steps(output, *both) == slices.DONE
    result = json.loads(output.read_text())
    assert result["cases"][0] == case
    assert [case["precision"] for case in result["cases"]] == ["float32", "bf16"]
    assert [case["slice"] for case in result["cases"]] == [0, 1]


def test_numbers_of_other_settings_are_not_mixed(all_cases, capsys):
    before = all_cases.read_bytes()
    assert toy_steps(all_cases, "--batch", "8") == 1
    assert "choose another --output" in capsys.readouterr().err
    assert all_cases.read_bytes() == before


def test_a_case_out_of_memory_is_recorded_and_the_rest_goes_on(tmp_path, monkeypatch):
    made = step_time.loop_of

    def small_memory(case, options):
        if case.defense == "standard":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made(case, options)

    monkeypatch.setattr(step_time, "loop_of", small_memory)
    output = tmp_path / "step_time.json"
    arguments = ("--precisions", "float32", "--defenses", "standard", "ant")
    assert toy_steps(output, *arguments) == slices.DONE
    cases = cases_of(output)
    assert cases["standard"]["error"] == "out of memory"
    assert cases["ant"]["seconds"] > 0
    assert toy_steps(output, *arguments) == slices.DONE


def test_flags_of_the_backends_are_given_back(all_cases):
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    with passes.held(flags[0], allow_tf32=False), passes.held(flags[1], allow_tf32=True):
        assert [flag.allow_tf32 for flag in flags] == [False, True]
    assert [flag.allow_tf32 for flag in flags] == before


def test_a_deadline_leaves_room_for_the_longest_lap():
    now = 0.0
    deadline = slices.Deadline(1, clock=lambda: now)
    now = 20.0
    assert not deadline.lap()
    now = 39.0
    assert not deadline.lap()  # 39 + 20 < 60
    now = 41.0
    assert deadline.lap()
    assert deadline.left() == 19
    assert not slices.Deadline(None).lap()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    assert cifar10.main([*DIGITS, "--output", str(output)]) == slices.DONE
    return output


def test_a_run_cut_into_slices_ends_with_the_bits_of_an_undisturbed_one(
    undisturbed, tmp_path, capsys
):
    command = [*DIGITS, "--output", str(tmp_path)]
    folder = tmp_path / "mng_ac-s0"
    for step in (1, 2):
        assert cifar10.main([*command, "--minutes", "0"]) == slices.AGAIN
        content = load_checkpoint(folder)
        assert content is not None
        assert content["step"] == step
        assert "same command again" in capsys.readouterr().out
    assert not (tmp_path / "mng_ac-s0.json").exists()
    # Enough time to train, too little to evaluate: the next call does that.
    assert cifar10.main([*command, "--minutes", "9", "--evaluation-minutes", "9"]) == slices.AGAIN
    assert "is trained" in capsys.readouterr().out
    assert cifar10.main([*command, "--minutes", "9", "--evaluation-minutes", "9"]) == slices.DONE
    whole = undisturbed / "mng_ac-s0"
    for name in ("model.safetensors", "defense.safetensors", "metrics.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    results = [
        json.loads((path / "mng_ac-s0.json").read_text()) for path in (tmp_path, undisturbed)
    ]
    assert results[0]["accuracies"] == results[1]["accuracies"]


def test_the_result_of_a_run_holds_what_it_takes_to_judge_it(undisturbed):
    result = json.loads((undisturbed / "mng_ac-s0.json").read_text())
    assert (result["defense"], result["seed"], result["data"]["train"]) == ("mng_ac", 0, 70)
    assert result["recipe"]["training"]["precision"] == "32-true"
    assert result["recipe"]["defenses"] == ["mng_ac"]
    assert list(result["accuracies"]) == ["clean", "linf", "l2", "l1", "union", "avg"]
    for accuracy in result["accuracies"].values():
        assert 0 <= accuracy["low"] <= accuracy["value"] <= accuracy["high"] <= 1
        assert accuracy["images"] == 20
    training, evaluation = result["training"], result["evaluation"]
    assert training["seconds"] > 0
    assert training["steps"] == 2 * 3
    assert training["forwards"] >= 2 * (2 + 5)
    for part in (training, evaluation):
        assert part["device"]
        assert part["time"]
        assert "commit" in part
    assert [attack["threat"] for attack in evaluation["attacks"]] == ["linf", "l2", "l1"]
    assert all("steps=2" in attack["settings"] for attack in evaluation["attacks"])
    assert evaluation["errors"] == {}


def test_a_finished_run_is_left_as_it_is(undisturbed, monkeypatch):
    result = undisturbed / "mng_ac-s0.json"
    before = result.read_bytes()
    forbidden = "multirobust.evaluation.evaluate_suite", "multirobust.training.fit"
    for name in forbidden:
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("work was done again"))
    assert cifar10.main([*DIGITS, "--output", str(undisturbed), "--minutes", "0"]) == slices.DONE
    assert result.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "digits", "--defense", "mng"], "Did you mean 'mng_ac'"),
        (["--recipe", "digits", "--defense", "sat", "--data", "nowhere"], "have no folder"),
        (["--defense", "sat", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_run_is_said_before_a_folder_is_made(tmp_path, capsys, arguments, words):
    assert cifar10.main([*arguments, "--output", str(tmp_path)]) in (1, 2)
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
