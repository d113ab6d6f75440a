"""An evaluation done in parts finds, image by image, what one that is done as a whole finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linear_oracles import HalfSpace
from multirobust.attacks import APGD, PGD
from multirobust.config import load_recipe
from multirobust.data import Split
from multirobust.errors import InputError, RunError
from multirobust.evaluation import Course, NamedAttack, Part, Shard, State, Suite, evaluate_suite
from multirobust.experiment import evaluate_run, load_data
from multirobust.experiment.attacking import PartialWork
from multirobust.experiment.runs import RECIPE
from multirobust.sweep import Ended, LocalEngine, evaluating_on
from multirobust.threats import L2, Linf


@pytest.fixture(autouse=True)
def unaudited(monkeypatch):
    """Without the audit, which costs more than these attacks and is tested in test_audit.py."""
    monkeypatch.setattr("multirobust.evaluation.evaluate.audit_model", lambda *a, **o: ())


def evaluated(run, *overrides: str, **options):
    """Evaluate 16 images in blocks of 6."""
    settings = ["evaluation.block_size=6", *overrides]
    recipe = load_recipe(run.folder / RECIPE, settings)
    return evaluate_run(run, load_data(recipe.data), recipe=recipe, **options)


def facts(outcomes) -> list:
    columns = [
        (c.name, c.states.tolist(), c.distances.tolist(), c.forwards, c.backwards, c.settings)
        for c in outcomes.columns
    ]
    return [outcomes.index.tolist(), outcomes.predictions.tolist(), columns]


class Recording:
    """A local engine that writes down its tasks, in reverse order, and may stop after some."""

    def __init__(self, most: int = 1000):
        self.names: list[str] = []
        self.most = most

    def run(self, tasks, session, ended):
        chosen = list(tasks)[::-1]
        self.names = [task.name for task in chosen[: self.most]]
        done = LocalEngine(retries=0).run(chosen[: self.most], session, ended)
        return [*done, *(Ended(name=t.name, attempts=1, error="x") for t in chosen[self.most :])]


def half_space() -> tuple[HalfSpace, Split]:
    """A linear model, and images of which it gets all but every seventh right."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (16, 1, 8, 8), generator=generator)
    weight = torch.randn(64, generator=generator)
    model = HalfSpace(weight, -float(weight.sum()) / 2).eval()
    with torch.no_grad():
        labels = model(pixels / 255).argmax(1)
    labels[::7] = 1 - labels[::7]
    return model, Split(pixels.to(torch.uint8), labels)


def two_attacks_a_norm() -> Suite:
    attacks = []
    for norm, ball in (("linf", Linf(0.02)), ("l2", L2(0.1))):
        pgd = PGD(threat=ball, steps=2, step_size=ball.radius / 4)
        attacks.append(NamedAttack(f"pgd_{norm}", pgd))
        attacks.append(NamedAttack(f"apgd_{norm}", APGD(threat=ball, iterations=5)))
    return Suite("test", tuple(attacks))


@pytest.mark.parametrize(
    ("mode", "parts", "first"),
    [
        ("breakdown", 4 * 3, "pgd_linf on images 0 to 5"),
        ("per_threat", 2 * 3, "pgd_linf to apgd_linf on images 0 to 5"),
        ("cascade", 3, "pgd_linf to apgd_l2 on images 0 to 5"),
    ],
)
def test_parts_in_any_order_find_what_the_whole_finds(tmp_path, mode, parts, first):
    (model, split), suite = half_space(), two_attacks_a_norm()
    options = {"mode": mode, "block_size": 6, "seed": 3, "partial": tmp_path / "partial"}
    whole = evaluate_suite(model, split, suite, **options)
    assert any((column.states == State.SURVIVED).any() for column in whole.columns)
    skipped = any((column.states == State.SKIPPED).any() for column in whole.columns)
    assert skipped == (mode != "breakdown")
    names: list[str] = []

    def ahead(found, folder):
        # Its own objects, as another process has.
        theirs, images = half_space()
        course = Course(
            model=theirs,
            split=images,
            suite=two_attacks_a_norm(),
            mode=mode,
            batch_size=256,
            block_size=6,
            shard=Shard(),
            seed=3,
            device=torch.device("cpu"),
            keep_images=False,
        )
        for part in reversed(found):
            names.append(str(part))
            course.attack(part, folder)

    divided = evaluate_suite(model, split, suite, ahead=ahead, **options)
    assert facts(divided) == facts(whole)
    assert len(names) == parts
    assert names[-1] == first
    assert not (tmp_path / "partial").exists()


def test_an_interrupted_evaluation_goes_on_with_what_is_left(run):
    told: list[str] = []
    some = Recording(most=5)
    with pytest.raises(RunError, match=r"4 of 9 parts failed in the end, such as pgd_\w+ on"):
        evaluated(run, seed=3, elsewhere=evaluating_on(some, tell=told.append))
    rest = Recording()
    divided = evaluated(run, seed=3, elsewhere=evaluating_on(rest))
    assert (len(some.names), len(rest.names)) == (5, 4)
    assert not set(some.names) & set(rest.names)
    assert told[-1] == "5 of 9 parts of the evaluation have ended"
    again = evaluated(run, "evaluation.block_size=6", seed=3)
    assert facts(again) == facts(divided)


def test_a_worker_with_other_weights_or_another_device_is_refused(run):
    works: list[tuple[PartialWork, Part]] = []

    def elsewhere(work, parts, folder):
        works.append((work, parts[0]))
        changed = load_recipe(run.folder / RECIPE, ["evaluation.block_size=6", "data.test_limit=8"])
        subject = type(work.subject)(
            folder=work.subject.folder,
            recipe=changed,
            split="test",
            weights=work.subject.weights,
        )
        fields = {name: getattr(work, name) for name in work.__dataclass_fields__}
        with pytest.raises(RunError, match="of an evaluation with other images, split_digest"):
            PartialWork(**fields | {"subject": subject}).attack(parts[0], folder)
        with pytest.raises(InputError, match=r"computes on cpu, the one that leads .* on cuda"):
            PartialWork(**fields | {"device": "cuda"}).attack(parts[0], folder)
        with pytest.raises(RunError, match="must lie at the same path on every machine"):
            work.attack(parts[0], folder / "nowhere")

    evaluated(run, seed=3, elsewhere=elsewhere)
    assert len(works) == 1


def test_adversarial_images_of_the_parts_are_kept_by_the_whole(run):
    from safetensors.torch import load_file

    evaluated(run, seed=3, save_images=True)
    (folder,) = run.folder.glob("evaluation/quick-*")
    whole = {path.name: load_file(path) for path in (folder / "adversarial").iterdir()}
    (folder / "outcomes.json").unlink()
    evaluated(run, seed=3, save_images=True, elsewhere=evaluating_on(Recording()))
    assert set(whole) == {"pgd_linf.safetensors", "pgd_l2.safetensors", "pgd_l1.safetensors"}
    for name, tensors in whole.items():
        divided = load_file(folder / "adversarial" / name)
        for key, tensor in tensors.items():
            assert np.array_equal(divided[key].numpy(), tensor.numpy())


def test_a_result_for_other_images_than_are_seen_here_is_made_anew(run):
    whole = evaluated(run, seed=3)
    (folder,) = run.folder.glob("evaluation/quick-*")
    (folder / "outcomes.json").unlink()

    def with_a_flaw(work, parts, partial):
        for part in parts:
            work.attack(part, partial)
        path = partial / "pgd_linf.0.npz"
        with np.load(path) as stored:
            fields = dict(stored)
        fields["states"], fields["distances"] = fields["states"][:-1], fields["distances"][:-1]
        np.savez(path, **fields)

    with pytest.warns(UserWarning, match="attacked again"):
        assert facts(evaluated(run, seed=3, elsewhere=with_a_flaw)) == facts(whole)
