"""Two real processes train what one trains: the same weights, one error, one interrupted run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from training_runs import all_options, leaves, small_digits, train

from multirobust.attacks import PGD, ErrorSampler, PassMeter
from multirobust.attacks.choosing import mixed_attacks, sampler_from
from multirobust.config import DefenseConfig
from multirobust.data import Batch
from multirobust.defenses import AdversarialTraining, MixedTraining
from multirobust.errors import InputError, Interrupted, TrainingError
from multirobust.processes import Launch, launched
from multirobust.ranks import Part, PartGenerator, drawn, parts
from multirobust.threats import L1, L2, Linf, threats_for
from multirobust.training import load_checkpoint
from multirobust.training.global_statistics import GlobalStatistics
from multirobust.training.team import Share, Team, digest
from multirobust.training.views import joined, rows

DEFENSES = ("sat", "mng_ac", "e_at", "trades", "adv_max", "ramp")
CASES: dict[str, dict[str, Any]] = {
    **{
        f"{name} plain": {"defense": name, "plain": True}
        for name in (*DEFENSES, "ant", "adv_avg", "mng_ac_spatial", "sat_ac")
    },
    **{f"{name} global": {"defense": name, "batch_statistics": "global"} for name in DEFENSES},
    "mng_ac unrolled": {"defense": "mng_ac", "batch_statistics": "global", "mode": "unrolled"},
    "mng_ac forward": {
        "defense": "mng_ac",
        "batch_statistics": "global",
        "mode": "forward_over_reverse",
    },
    "mng_ac with all options": {
        "defense": "mng_ac",
        "batch_statistics": "global",
        "everything": True,
    },
    "images on the host": {"defense": "sat", "plain": True, "placement": "host"},
    "tiny last batch": {"defense": "mng_ac", "batch_statistics": "global", "batch_size": 23},
    **{
        f"{name} accumulated": {"defense": name, "plain": True, "accumulate": 3}
        for name in ("mng_ac", "ant", "sat_ac", "e_at_rate")
    },
    "mixed by errors accumulated": {"defense": "error", "plain": True, "accumulate": 2},
    "mixed by probes": {"defense": "router", "batch_statistics": "global"},
    "mixed survivors": {"defense": "cascade", "plain": True},
    "mng_ac_mixed": {"defense": "mng_ac_mixed", "plain": True, "accumulate": 3},
    "sat by passes": {"defense": "sat", "plain": True, "passes": 13.0},
    "cascade by passes": {"defense": "cascade", "plain": True, "passes": 13.0},
}
"""What is trained on one and on two processes. "plain" is a network without BatchNorm."""


def plain_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Conv2d(1, 6, 3, 2), nn.Softplus(), nn.Flatten(), nn.Linear(54, 10))


def one(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train one case for an epoch in float64; return all it learned and counted."""
    settings = {"epochs": 1, "precision": "64-true", "log_steps": 1} | case
    options: dict[str, Any] = {}
    if settings.pop("everything", False):
        more = all_options(folder / "start.pt")
        options = more.pop("options")
        settings |= more
    if settings.pop("plain", False):
        options["model"] = plain_net()
    if "placement" in settings:
        options["data"] = replace(small_digits(), placement=settings.pop("placement"))
    defense: Any = settings.pop("defense")
    mode = settings.pop("mode", None)
    if defense == "e_at_rate":
        attacks = [
            PGD(threat=threat, steps=2, step_size=0.1) for threat in (Linf(0.2), L2(1.0), L1(5.0))
        ]
        defense = AdversarialTraining(ErrorSampler(attacks, rate=0.3))
    if defense in ("error", "router", "cascade"):
        chosen = DefenseConfig(sampler=defense, apgd_steps=2, shapley_every=2)
        attacks = mixed_attacks(chosen, threats_for("digits"))
        defense = MixedTraining(sampler_from(chosen, attacks))
    if mode:
        from training_runs import recipe

        from multirobust import defenses

        defense = defenses.build(defense, recipe(), channels=1)
        defense.meta_mode = mode
    fit = train(defense, options=options, **settings)
    return {
        "model": fit.model.state_dict(),
        "defense": fit.defense.state_dict(),
        "counts": [fit.forwards, fit.backwards, fit.seen, fit.steps],
        "held out": list(fit.selected.history) if fit.selected else None,
    }


WORKER = """
import sys, torch
torch.set_num_threads(1)
sys.path[:0] = sys.argv[1:3]
import test_many_devices as tests
tests.{what}(*sys.argv[3:])
"""


def work(folder: str) -> None:
    """Run in each of two processes, one thing after the other; at last, rank 1 kills itself."""
    place, rank = Path(folder), os.environ["RANK"]
    found: dict[str, Any] = {name: one(case, place) for name, case in CASES.items()}
    found["device"] = one({"defense": "sat"}, place)
    found["apart"] = come_apart(place / "apart")
    found["stopped"] = stop_on_one(place / "stopped")
    torch.save(found, place / f"rank-{rank}.pt")
    train_then_lose_one(place / "lost")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(what: str, *arguments: object, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start processes as torchrun would."""
    here = Path(__file__).parent
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    code = [sys.executable, "-c", WORKER.format(what=what), str(here), str(here.parent)]
    return [
        subprocess.Popen(
            [*code, *map(str, arguments)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and what was told."""
    try:
        told = process.communicate(timeout=200)[1]
    finally:
        process.kill()
    return process.returncode, told


class Trained(NamedTuple):
    """What one process learned, what each of two did, and how these two ended."""

    alone: dict[str, Any]
    ranks: list[dict[str, Any]]
    endings: list[tuple[int, str]]
    folder: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("many")
    all_options(folder / "start.pt")  # writes the weights to start from
    processes = start("work", folder)
    alone = {name: one(case, folder) for name, case in CASES.items()}
    endings = [ended(process) for process in processes]
    found = [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in (0, 1)]
    return Trained(alone, found, endings, folder)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_learns(case: str, trained):
    alone, (two, other) = trained.alone[case], (found[case] for found in trained.ranks)
    for part in ("model", "defense"):
        assert_close(alone[part], two[part])
        assert digest(two[part]) == digest(other[part])
    assert alone["counts"] == two["counts"] == other["counts"]
    assert alone["held out"] == two["held out"] == other["held out"]


def assert_close(a: Any, b: Any) -> None:
    """Floats within 1e-10, everything else equal."""
    if isinstance(a, torch.Tensor) and a.is_floating_point():
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_close(a[name], b[name])
    elif isinstance(a, (list, tuple)):
        for left, right in zip(a, b, strict=True):
            assert_close(left, right)
    else:
        assert leaves(a) == leaves(b)


def test_accumulated_gradients_are_those_of_the_whole_batch_on_one_process_too(trained):
    for name in ("mng_ac", "ant", "sat_ac"):
        whole, divided = trained.alone[f"{name} plain"], trained.alone[f"{name} accumulated"]
        assert_close(whole["model"], divided["model"])
        assert whole["counts"] == divided["counts"]


def test_statistics_of_each_device_make_another_model_than_global_ones(trained):
    alone, (zero, first) = trained.alone["sat global"], (f["device"] for f in trained.ranks)
    assert digest(zero["model"]) == digest(first["model"])
    name = next(name for name in alone["model"] if "running_mean" in name)
    ours, theirs = alone["model"][name], zero["model"][name]
    assert not torch.allclose(ours, theirs, atol=1e-10, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def train_then_lose_one(folder: Path) -> None:
    """Rank 1 kills itself after seven of nine steps."""
    steps = 0

    def stop() -> bool:
        nonlocal steps
        steps += 1
        if steps == 7 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    train("mng_ac", folder, options={"stop": stop}, **LOST)


LOST = {"precision": "64-true", "batch_statistics": "global"}


def test_a_lost_process_ends_the_others_and_one_process_goes_on_from_there(trained):
    (code, message), (killed, _) = trained.endings
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "TrainingError: Rank 0 of 2 has lost another one" in message
    assert "run the same command again to go on, on any number of devices" in message
    folder = trained.folder / "lost"
    saved = load_checkpoint(folder)
    assert saved is not None
    assert saved["step"] == 6
    resumed, undisturbed = train("mng_ac", folder, **LOST), train("mng_ac", **LOST)
    assert resumed.steps == 9
    assert_close(undisturbed.model.state_dict(), resumed.model.state_dict())
    assert_close(undisturbed.defense.state_dict(), resumed.defense.state_dict())
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3, 5, 6, 8, 9]


def come_apart(folder: Path) -> str:
    """Rank 1 changes a weight by hand; return the error."""
    model: Any = plain_net()

    def stop() -> bool:
        if os.environ["RANK"] == "1":
            with torch.no_grad():
                model[0].weight[0, 0, 0, 0] += 1e-6
        return False

    try:
        train("standard", folder, options={"stop": stop, "model": model})
    except TrainingError as error:
        return str(error)
    return "none"


def test_processes_that_come_apart_are_found_out_at_the_end_of_the_epoch(trained):
    for found in trained.ranks:
        assert "The state of the model must be the same on every device" in found["apart"]
        assert "rank 1 of 2" in found["apart"]
    assert load_checkpoint(trained.folder / "apart") is None


def stop_on_one(folder: Path) -> str:
    """Rank 1 alone is asked to stop; return how it ended."""
    try:
        train("sat", folder, options={"stop": lambda: os.environ["RANK"] == "1"})
    except Interrupted as error:
        return str(error)
    return "none"


def test_all_processes_stop_at_the_same_step_when_one_is_asked_to(trained):
    for found in trained.ranks:
        assert "Interrupted at step 3 of 9" in found["stopped"]
    saved = load_checkpoint(trained.folder / "stopped")
    assert saved is not None
    assert saved["step"] == 3


@pytest.mark.parametrize("total", [2, 3, 5, 8, 70, 129])
@pytest.mark.parametrize(("ranks", "rounds"), [(1, 1), (2, 1), (2, 3), (3, 4), (8, 2)])
def test_parts_cover_a_batch_once_and_their_shares_add_up_to_one(total, ranks, rounds):
    found = [parts(total, rank=rank, ranks=ranks, rounds=rounds) for rank in range(ranks)]
    assert len({len(own) for own in found}) == 1, "messages would not fit each other"
    if total < 2 * ranks:
        assert all(own == found[0] for own in found)
        found = found[:1]
    covered = sorted(row for own in found for part in own for row in range(part.start, part.stop))
    assert covered == list(range(total))
    assert sum(part.share for own in found for part in own) == pytest.approx(1)
    for fellows in zip(*found, strict=True):
        assert [part.fellows for part in fellows] == [sum(p.rows for p in fellows)] * len(fellows)
        assert [p.offset for p in fellows] == [
            sum(q.rows for q in fellows[:i]) for i in range(len(fellows))
        ]
        assert all(part.rows >= 2 for part in fellows)


@pytest.mark.parametrize("threat", [Linf(0.3), L2(1.0), L1(6.0)])
def test_random_starts_of_a_part_are_the_rows_of_those_of_the_batch(threat):
    x = torch.full((11, 1, 4, 4), 0.5)
    source = torch.Generator().manual_seed(5)
    whole = threat.sample(x, torch.Generator().manual_seed(5))
    found, states = [], []
    for rank in range(3):
        (part,) = parts(11, rank=rank, ranks=3)
        generator = PartGenerator.of(part, source)
        found.append(threat.sample(x[part.start : part.stop], generator))
        states.append(generator.get_state())
    assert torch.cat(found).equal(whole)
    assert all(state.equal(states[0]) for state in states)


def test_a_shape_of_other_rows_than_the_part_is_drawn_as_it_is():
    part = Part(start=2, stop=4, total=9, fellows=9)
    generator = PartGenerator.of(part, torch.Generator().manual_seed(1))
    plain = torch.rand((3, 2), generator=torch.Generator().manual_seed(1))
    assert drawn(torch.rand, (3, 2), generator=generator).equal(plain)


def test_views_are_put_together_and_taken_apart_again():
    from multirobust.defenses import ConsistencyViews

    x = torch.arange(12.0).reshape(6, 2)
    threat = Linf(0.1)
    for views in (None, x, (x, x + 1), ConsistencyViews(x, x + 1, threat, {"a": torch.ones(())})):
        cut = [rows(views, 0, 2, 6), rows(views, 2, 6, 6)]
        again = joined(cut)
        if isinstance(views, ConsistencyViews):
            assert again.x_adv.equal(x)
            assert again.x_aug.equal(x + 1)
            assert again.threat == threat
            assert cut[1].x_adv.equal(x[2:])
        elif views is not None:
            assert torch.equal(torch.stack(tuple(again)), torch.stack(tuple(views)))
        else:
            assert again is None


def test_a_model_gets_its_batchnorm_back():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.BatchNorm2d(2))
    before = vars(model[0]).copy()
    with GlobalStatistics(model, "global"):
        x = torch.arange(16.0).reshape(2, 2, 2, 2)
        assert model(x).equal(nn.BatchNorm2d(2)(x)), "alone, it is what it was"
    assert vars(model[0]).keys() == before.keys()


def test_one_process_settles_nothing():
    team = Team(nn.BatchNorm2d(2))
    terms = {"loss": torch.ones(())}
    batch = Batch(torch.zeros(5, 1, 2, 2), torch.arange(5), torch.arange(5))
    share = Share(batch, rounds=1, generator=torch.Generator())
    assert share.batch is share.rounds[0] is batch
    assert team.settle(terms, share, PassMeter(team.model), (0, 0)) == terms
    assert team.stopping(True)
    assert not team.stopping(False)


def test_a_batch_knows_its_place():
    batch = Batch(torch.zeros(5, 1, 2, 2), torch.arange(5), torch.arange(5))
    assert batch.place.share == 1
    (part,) = parts(5, rank=1, ranks=2)
    own = batch.take(part)
    assert own.y.tolist() == [2, 3, 4]
    assert own.place.weighted(torch.tensor(1.0)).item() == pytest.approx(3 / 5)


def test_processes_that_were_asked_for_and_not_started_are_an_input_error():
    with pytest.raises(InputError, match=r"training\.devices: 2 processes were asked for"):
        train("standard", devices=2)


def test_the_number_of_processes_is_read_from_torchrun_and_from_slurm():
    torchrun = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert launched(torchrun) == Launch(by="torchrun", rank=3, ranks=8, local=4)
    assert launched(torchrun).machines == 2
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "16", "SLURM_NNODES": "4"}
    assert launched(slurm) == Launch(by="slurm", rank=5, ranks=16, local=4)
    assert (
        launched({**slurm, "SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_PROCID": "0"}) is None
    )
    batch_script = {name: value for name, value in slurm.items() if name != "SLURM_STEP_ID"}
    assert launched(batch_script) is None
    assert launched({}) is None
    with pytest.raises(InputError, match="LOCAL_WORLD_SIZE must be a whole number"):
        launched({"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(InputError, match="the same number of tasks"):
        launched({**slurm, "SLURM_NTASKS": "15"})
