"""The course of an evaluation: modes, shards, interruption, memory, saved images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from linear_oracles import HalfSpace
from multirobust.attacks import APGD, PGD, Attack, Margin, Restarts, StoredImages
from multirobust.data import Split
from multirobust.errors import InputError
from multirobust.evaluation import (
    MODES,
    NamedAttack,
    Shard,
    State,
    Suite,
    merge,
)
from multirobust.evaluation import evaluate_suite as evaluate_and_audit
from multirobust.threats import L2, Linf, Threat, Transformation

evaluate_suite = partial(evaluate_and_audit, audit=False)  # tested in test_audit.py
LINF, TWO = Linf(0.06), L2(0.3)


def images(n: int = 40) -> Split:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (n, 1, 8, 8), generator=generator)
    return Split(pixels.to(torch.uint8), _labels(pixels.float() / 255))


def model() -> nn.Module:
    weight = torch.randn(64, generator=torch.Generator().manual_seed(0))
    return HalfSpace(weight, -float(weight.sum()) / 2).eval()


@torch.no_grad()
def _labels(x: torch.Tensor) -> torch.Tensor:
    """What the model says, but for every seventh image."""
    labels = model()(x).argmax(1)
    labels[::7] = 1 - labels[::7]
    return labels


def pgd(threat: Threat, steps: int = 3) -> Attack:
    return Restarts(PGD(threat=threat, steps=steps, step_size=threat.radius / 2), 2, Margin())


def suite() -> Suite:
    attacks = {
        "pgd_linf": pgd(LINF),
        "apgd_linf": APGD(threat=LINF, iterations=8),
        "pgd_l2": pgd(TWO),
        "apgd_l2": APGD(threat=TWO, iterations=8),
    }
    return Suite("test", tuple(NamedAttack(n, a) for n, a in attacks.items()), mode="per_threat")


def facts(outcomes) -> list[np.ndarray]:
    return [outcomes.index, outcomes.predictions] + [
        array for column in outcomes.columns for array in (column.states, column.distances)
    ]


def assert_same(one, other) -> None:
    for a, b in zip(facts(one), facts(other), strict=True):
        np.testing.assert_array_equal(a, b)


def run(**options):
    return evaluate_suite(model(), images(), suite(), block_size=10, batch_size=8, **options)


def test_breakdown_attacks_every_image_that_the_model_gets_right():
    outcomes = run(mode="breakdown")
    right = outcomes.predictions == outcomes.labels
    for column in outcomes.columns:
        assert np.isin(column.states[right], (State.SURVIVED, State.BROKEN)).all()
    assert 0 < outcomes.union().value < outcomes.clean().value


def test_per_threat_spares_what_its_threat_broke_and_keeps_every_worst_case_exact():
    outcomes = run()
    assert outcomes.manifest["mode"] == "per_threat"
    first, second = outcomes.columns[:2]
    np.testing.assert_array_equal(
        second.states == State.SKIPPED, (first.states == State.BROKEN) & _right(outcomes)
    )
    assert (outcomes.columns[2].states != State.SKIPPED).all()
    for threat in ("linf", "l2"):
        assert outcomes.worst(threat).exact
    assert outcomes.union().exact
    assert not outcomes.attack("apgd_linf").exact


def test_cascade_spares_what_any_attack_broke_and_keeps_the_union_exact():
    outcomes = run(mode="cascade")
    broken = np.zeros(len(outcomes), dtype=bool)
    for column in outcomes.columns:
        np.testing.assert_array_equal(column.states == State.SKIPPED, broken & _right(outcomes))
        broken |= column.states == State.BROKEN
    assert outcomes.union().exact
    assert outcomes.union().value == pytest.approx(1 - broken.mean())
    l2 = outcomes.worst("l2")
    assert l2.range_low == outcomes.union().value
    assert l2.range_high > l2.range_low


def _right(outcomes) -> np.ndarray:
    return outcomes.predictions == outcomes.labels


def test_the_modes_cost_ever_less():
    def passes(mode: str) -> float:
        return sum(column.forwards + column.backwards for column in run(mode=mode).columns)

    costs = [passes(mode) for mode in MODES]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[2]


def test_the_shards_of_an_evaluation_give_what_it_gives_at_once():
    whole = run()
    shards = [run(shard=Shard(part, 3)) for part in (2, 3, 1)]
    assert sorted(len(shard) for shard in shards) == [10, 10, 20]
    joined = merge(shards)
    assert_same(joined, whole)
    assert joined.manifest["shard"] == "1/1"
    for a, b in zip(joined.columns, whole.columns, strict=True):
        assert a.forwards == pytest.approx(b.forwards)
        assert a.backwards == pytest.approx(b.backwards)
        assert a.settings == b.settings


def test_shards_that_do_not_belong_together_are_told_apart():
    one, two = run(shard=Shard(1, 2)), run(shard=Shard(2, 2))
    with pytest.raises(InputError, match=r"each of the 2 shards once; missing: \[2\]"):
        merge([one])
    with pytest.raises(InputError, match=r"missing: \[2\], there more than once: \[1\]"):
        merge([one, one])
    with pytest.raises(InputError, match="shards of one number, got 1/2, 1/1"):
        merge([one, run()])
    for key, value in (("seed", 5), ("model_digest", "x"), ("split_digest", "x"), ("suite", "y")):
        other = replace(two, manifest=two.manifest | {key: value})
        with pytest.raises(InputError, match=f"shard 2/2 is not of the same evaluation: its {key}"):
            merge([one, other])
    columns = (replace(two.columns[0], settings="other"), *two.columns[1:])
    with pytest.raises(InputError, match="shard 2/2 was attacked differently"):
        merge([one, replace(two, columns=columns)])
    with pytest.raises(InputError, match="needs the shards"):
        merge([])


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "-1/2", "1/0"])
def test_a_shard_that_is_none_is_told(text):
    with pytest.raises(InputError, match="shard: must be i/n"):
        Shard.parse(text)


def test_more_shards_than_blocks_are_told_with_the_way_out():
    with pytest.raises(InputError, match=r"4 blocks of 10, too few for 5 shards; .*block_size=8"):
        run(shard=Shard(1, 5))


@dataclass(frozen=True)
class Dies(Attack):
    """As another attack, but the process is stopped at the n-th call."""

    inner: Attack
    left: list[int] = field(compare=False, repr=False)

    @property
    def threats(self):
        return self.inner.threats

    def __call__(self, model, x, y, *, generator=None):
        self.left[0] -= 1
        if self.left[0] == 0:
            raise KeyboardInterrupt
        return self.inner(model, x, y, generator=generator)


@pytest.mark.parametrize("mode", MODES)
def test_killed_anywhere_the_same_call_goes_on_and_gives_the_same(tmp_path: Path, mode):
    def dying(left: list[int]) -> Suite:
        attacks = (NamedAttack("a", Dies(pgd(LINF), left)), NamedAttack("b", Dies(pgd(TWO), left)))
        return Suite("dying", attacks)

    def call(left: list[int], partial: Path | None = None):
        options = {"block_size": 10, "batch_size": 5, "mode": mode, "partial": partial}
        return evaluate_suite(model(), images(), dying(left), **options)

    counted = [10**6]
    whole = call(counted)
    needed = 10**6 - counted[0]
    assert needed > 8
    left = [3]
    calls = 0
    for _ in range(20):
        left[0] = 5
        try:
            outcomes = call(left, tmp_path / "partial")
            break
        except KeyboardInterrupt:
            calls += 5
            assert any((tmp_path / "partial").glob("*.npz"))
    assert calls > 0
    assert calls + 5 - left[0] < 2 * needed, "what is done is not done again"
    assert_same(outcomes, whole)
    assert outcomes.manifest["errors"] == whole.manifest["errors"]
    assert [c.forwards for c in outcomes.columns] == [c.forwards for c in whole.columns]
    assert not (tmp_path / "partial").exists()


def test_what_another_evaluation_left_is_not_taken_up(tmp_path: Path):
    left = tmp_path / "partial"
    left.mkdir()
    (left / "identity.json").write_text("{}")
    (left / "pgd_linf.0.npz").write_bytes(b"not of this evaluation")
    assert_same(run(partial=left), run())


@dataclass(frozen=True)
class Hungry(Attack):
    """Needs more memory than there is for more than three images."""

    inner: Attack

    @property
    def threats(self):
        return self.inner.threats

    def __call__(self, model, x, y, *, generator=None):
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.inner(model, x, y, generator=generator)


def test_where_memory_runs_out_the_batch_is_halved_and_this_is_said_once_each():
    lines: list[str] = []
    attack = PGD(threat=LINF, steps=2, step_size=0.02, random_start=False)
    attacks = (NamedAttack("a", Hungry(attack)), NamedAttack("b", Hungry(attack)))
    options = {"batch_size": 12, "report": lines.append}
    outcomes = evaluate_suite(model(), images(), Suite("s", attacks), **options)
    expected = evaluate_suite(model(), images(), Suite("s", (NamedAttack("a", attack),)))
    np.testing.assert_array_equal(outcomes.columns[0].states, expected.columns[0].states)
    assert outcomes.manifest["errors"] == {}
    told = [line for line in lines if "out of memory" in line]
    assert told == [f"out of memory: going on with batches of {n} images" for n in (6, 3)]


def test_too_little_memory_for_a_single_image_is_an_error_of_that_image():
    @dataclass(frozen=True)
    class Starving(Hungry):
        def __call__(self, model, x, y, *, generator=None):
            raise MemoryError("no memory")

    attacks = (NamedAttack("a", Starving(pgd(LINF))),)
    outcomes = evaluate_suite(model(), images(), Suite("s", attacks), batch_size=4)
    assert (outcomes.columns[0].states[_right(outcomes)] == State.ERROR).all()
    assert outcomes.manifest["errors"]["a"] == ["MemoryError: no memory"]


def test_the_adversarial_images_that_are_kept_break_the_model(tmp_path: Path):
    outcomes = run(images=tmp_path / "adversarial", mode="per_threat")
    split = images()
    for column in outcomes.columns:
        kept = load_file(tmp_path / "adversarial" / f"{column.name}.safetensors")
        index = kept["index"]
        broken = _right(outcomes) & (column.states == State.BROKEN)
        np.testing.assert_array_equal(index.numpy(), outcomes.index[broken])
        x, y = split.floats(index), split.labels[index]
        with torch.no_grad():
            assert (model()(kept["images"]).argmax(1) != y).all()
        threat = LINF if column.threat == "linf" else TWO
        distance = threat.distance(kept["images"], x)
        assert (distance <= threat.radius * (1 + 1e-6)).all()
        np.testing.assert_allclose(distance.numpy(), column.distances[broken], rtol=1e-6)


def test_an_unknown_mode_is_told():
    with pytest.raises(InputError, match=r"Unknown mode: 'casade'\. Did you mean 'cascade'"):
        run(mode="casade")


def test_stored_images_are_looked_up_by_their_position():
    split = images(30)
    inverted = 255 - split.images
    attack = StoredImages(Transformation("inverted", 1.0), inverted)
    named = NamedAttack("inverted", attack)
    outcomes = evaluate_suite(model(), split, Suite("s", (named,)), block_size=7, batch_size=4)
    with torch.no_grad():
        expected = model()(inverted.float() / 255).argmax(1).numpy() != outcomes.labels
    right = _right(outcomes)
    np.testing.assert_array_equal(outcomes.columns[0].states[right] == 1, expected[right])


def test_strict_makes_a_finding_an_error():
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = HalfSpace(torch.ones(64), -32.0)

        def forward(self, x):
            return self.inner(x).softmax(1)

    split = Split(images().images, torch.arange(40) % 2)
    attacks = (NamedAttack("a", pgd(LINF)),)
    outcomes = evaluate_and_audit(Softmax().eval(), split, Suite("s", attacks))
    assert "probabilities" in [found["code"] for found in outcomes.manifest["audit"]]
    assert "audit: probabilities" in str(outcomes)
    with pytest.raises(InputError, match=r"audit: probabilities: .* Mend it, or go on without"):
        evaluate_and_audit(Softmax().eval(), split, Suite("s", attacks), strict=True)
