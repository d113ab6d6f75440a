"""Compiled passes and replayed work give what the plain loop gives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from training_runs import StopAt, outcome, recipe, small_cnn, small_digits, train

from multirobust import catalog, defenses
from multirobust.attacks import PGD, PassMeter, WorstCase
from multirobust.config import load_recipe
from multirobust.errors import ConfigError, InputError, Interrupted
from multirobust.threats import L1, L2, Linf
from multirobust.training import fit
from multirobust.training.acceleration import Compiled, Replayed, observed, replay_attacks
from multirobust.training.replay import Replays, mapped

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def weights(fit) -> Iterator[torch.Tensor]:
    return iter(fit.model.state_dict().values())


def test_every_tensor_of_a_nested_value_is_changed_and_nothing_else():
    attack = PGD(threat=Linf(0.1), steps=1, step_size=0.1)
    value = (torch.ones(1), {"a": torch.ones(2), "b": None}, [attack, 3])
    doubled = mapped(value, lambda tensor: 2 * tensor)
    assert doubled[0].item() == 2
    assert doubled[1]["a"].tolist() == [2, 2]
    assert doubled[1]["b"] is None
    assert doubled[2][0] is attack
    assert doubled[2][1] == 3


def test_work_on_a_cpu_is_run_every_time():
    replays = Replays(torch.device("cpu"), PassMeter(nn.Flatten()))
    calls = []

    def work(x, *, generator):
        calls.append(1)
        return x + torch.rand((), generator=generator)

    generator = torch.Generator().manual_seed(1)
    drawn = {replays("key", work, (torch.zeros(1),), generator).item() for _ in range(4)}
    assert len(calls) == len(drawn) == 4


@pytest.mark.parametrize(
    "name", ["adv_linf", "adv_max", "adv_avg", "sat", "e_at", "mng_ac", "ramp"]
)
def test_all_attacks_of_a_defense_are_replayed_with_their_threats(name):
    defense = defenses.build(name, recipe(), channels=1)
    replays = Replays(torch.device("cpu"), PassMeter(nn.Flatten()))
    owners = [defense, getattr(defense, "sampler", None)]
    before = [
        (owner, key, getattr(owner, key, None)) for owner in owners for key in ("attack", "attacks")
    ]
    replay_attacks(defense, replays)
    held = [(getattr(owner, key), old) for owner, key, old in before if old is not None]
    assert held
    for new, old in held:
        news, olds = (new, old) if isinstance(old, tuple) else ((new,), (old,))
        for replayed, attack in zip(news, olds, strict=True):
            assert isinstance(replayed, Replayed)
            assert replayed.attack is attack
            assert replayed.threats == attack.threats


@pytest.mark.parametrize("name", ["sat_mixed", "mng_ac_mixed"])
def test_the_search_of_a_mixed_batch_is_replayed_as_a_whole(name):
    defense = defenses.build(name, recipe(), channels=1)
    replays = Replays(torch.device("cpu"), PassMeter(nn.Flatten()))
    before = defense.sampler.engine
    replay_attacks(defense, replays)
    assert defense.sampler.engine == before
    assert defense.sampler.engine.run is replays


def test_only_a_sampler_that_learns_is_told_apart():
    sat, e_at = (defenses.build(name, recipe(), channels=1) for name in ("sat", "e_at"))
    for defense in (sat, e_at):
        defense.sampler.draw()
    assert observed(sat) is None
    assert observed(e_at) == e_at.sampler.last


def test_where_compiling_fails_the_model_runs_and_says_so_once(monkeypatch):
    class NoCompilerError(Exception):
        __module__ = "torch._inductor.exc"

    def failing(x):
        raise NoCompilerError("no working compiler")

    monkeypatch.setattr(torch, "compile", lambda function, **_: failing)
    model = small_cnn().eval()
    fast, x = Compiled(model, 2), torch.full((2, 1, 8, 8), 0.5)
    with pytest.warns(UserWarning, match="no working compiler"):
        first = fast(x)
    assert torch.equal(first, model(x))
    assert torch.equal(fast(x), first)


def test_an_error_of_the_model_is_not_taken_for_one_of_the_compiler(monkeypatch):
    def failing(x):
        raise ValueError("the model's own")

    monkeypatch.setattr(torch, "compile", lambda function, **_: failing)
    with pytest.raises(ValueError, match="the model's own"):
        Compiled(small_cnn(), 2)(torch.zeros(2, 1, 8, 8))


def test_only_whole_batches_are_compiled(monkeypatch):
    sizes = []

    def compiled(function, **_):
        return lambda x: sizes.append(len(x)) or function(x)

    monkeypatch.setattr(torch, "compile", compiled)
    fast = Compiled(small_cnn().eval(), 4)
    for size in (4, 3, 12):
        fast(torch.zeros(size, 1, 8, 8))
    assert sizes == [4, 12]


def test_compiled_passes_train_alike_and_are_counted_alike(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    plain, compiled = train("mng_ac"), train("mng_ac", compile=True)
    assert (plain.forwards, plain.backwards) == (compiled.forwards, compiled.backwards)
    assert all(map(torch.equal, weights(plain), weights(compiled)))


def test_the_memory_format_changes_no_more_than_rounding():
    plain = train("sat", precision="64-true")
    last = train("sat", precision="64-true", memory_format="channels_last")
    assert any(p.is_contiguous(memory_format=torch.channels_last) for p in last.model.parameters())
    for ours, theirs in zip(weights(last), weights(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("name", [name for name in catalog.DEFENSES if "rst" not in name])
def test_replayed_training_gives_the_bits_of_plain_training(name):
    def trained(replay):
        whole = recipe(device="cuda", replay=replay, epochs=6)
        defense = defenses.build(name, whole, channels=1)
        return fit(small_cnn(), small_digits(), defense, config=whole.training)

    plain, replayed = trained(False), trained(True)
    assert (plain.forwards, plain.backwards) == (replayed.forwards, replayed.backwards)
    assert all(map(torch.equal, weights(plain), weights(replayed)))


@pytest.mark.gpu
@needs_cuda
def test_a_replay_goes_on_with_the_random_numbers_of_its_generator():
    attack = PGD(threat=L2(0.5), steps=2, step_size=0.2)
    model = small_cnn().cuda()
    replayed = Replayed(attack, Replays(torch.device("cuda"), PassMeter(model)))
    x, y = torch.rand(4, 1, 8, 8, device="cuda"), torch.arange(4, device="cuda")
    ours, theirs = (torch.Generator("cuda").manual_seed(7) for _ in range(2))
    for _ in range(5):
        assert torch.equal(
            replayed(model, x, y, generator=ours), attack(model, x, y, generator=theirs)
        )


@pytest.mark.gpu
@needs_cuda
def test_work_that_waits_for_the_device_goes_on_being_run():
    replays = Replays(torch.device("cuda"), PassMeter(nn.Flatten()))
    x = torch.ones(3, device="cuda")
    values = [replays("waits", lambda x, generator: x * x.sum().item(), (x,)) for _ in range(5)]
    assert all(value.tolist() == [3, 3, 3] for value in values)
    assert replays.failures
    assert torch.rand(1, device="cuda").item() < 1


@pytest.mark.gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_on_a_gpu_ends_near_the_plain_one():
    plain, compiled = (
        train("sat", device="cuda", precision="64-true", compile=value) for value in (False, True)
    )
    for ours, theirs in zip(weights(compiled), weights(plain), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_an_attack_waits_for_nothing_on_a_gpu():
    model = small_cnn().cuda()
    x, y = torch.rand(4, 1, 8, 8, device="cuda"), torch.arange(4, device="cuda")
    pgd = [PGD(threat=t, steps=2, step_size=0.1) for t in (Linf(0.1), L2(0.5), L1(3.0))]
    attack, generator = WorstCase(tuple(pgd)), torch.Generator("cuda").manual_seed(0)
    attack(model, x, y, generator=generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_adv = attack(model, x, y, generator=generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(x_adv.sum().item())


@pytest.mark.parametrize("defense", ["sat", "mng_ac", "adv_l2"])
def test_a_training_with_folded_attacks_is_the_training_up_to_rounding(defense):
    options = {"batch_norm": "running"}
    settings = {"precision": "64-true", "epochs": 2, "peak_lr": 0.01}
    plain, folded = (
        train(defense, options=options, fold_batch_norm=fold, **settings) for fold in (False, True)
    )
    pairs = list(zip(weights(plain), weights(folded), strict=True))
    assert not all(torch.equal(a, b) for a, b in pairs), "nothing was folded"
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert (folded.forwards, folded.backwards) == (plain.forwards, plain.backwards)


def test_a_training_with_folded_attacks_goes_on_where_it_stopped(tmp_path):
    options = {"batch_norm": "running"}
    train("sat", tmp_path / "undisturbed", options=options, fold_batch_norm=True)
    stopping = {**options, "stop": StopAt(4)}
    with pytest.raises(Interrupted):
        train("sat", tmp_path / "stopped", options=stopping, fold_batch_norm=True)
    train("sat", tmp_path / "stopped", options=options, fold_batch_norm=True)
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "undisturbed")


def test_statistics_of_a_batch_are_not_folded_and_nothing_is_folded_and_compiled(tmp_path):
    with pytest.raises(InputError, match="those of a batch cannot, got batch_norm 'batch'"):
        train(fold_batch_norm=True)
    with pytest.raises(InputError, match=r"must be false with training\.compile"):
        train(fold_batch_norm=True, compile=True, options={"batch_norm": "running"})
    with pytest.raises(ConfigError, match=r"got attack\.batch_norm 'batch'"):
        load_recipe("digits", ["training.fold_batch_norm=true", "attack.batch_norm=batch"])
