"""How well a cheaper step of the noise generator points the way of the full one.

    python benchmarks/cheap_meta.py digits --json results/cheap_meta.json
    python benchmarks/cheap_meta.py cifar10_small --data DATA --epochs 2 --json ...

MNG-AC is trained by its recipe. At some of its steps the full meta-gradient (Eq. 10, the whole
batch) is compared by its cosine with that of a share of the batch, of the same noise, and with the
full ones of the batches before it, of their own noise: `meta_every = k` moves the generator once in
k steps, and so lets go of k - 1 of these. The threat is the one that was drawn for the batch, and
cosines are told apart by it. A cosine near zero between the full gradients of two batches says that
a single one is mostly noise of the batch.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multirobust import defenses, training
from multirobust.config import Recipe, load_recipe
from multirobust.data import Batch
from multirobust.defenses import MNGAC, ConsistencyViews, Loss
from multirobust.defenses.base import Defense
from multirobust.experiment import build_model, load_data
from multirobust.files import atomic_write
from multirobust.provenance import provenance


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train, compare, print a row for each share and lag, and return (and save) all rows."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"rows": []}
    if options.json and options.json.is_file():
        result = json.loads(options.json.read_text(encoding="utf-8"))
    rows = []
    for seed in options.seeds:
        rows.extend(compared(options, seed))
    about = provenance("cpu") | {"seeds": options.seeds, "set": options.set}
    fresh = [row | {"recipe": options.recipe, "about": about} for row in summed_up(rows)]
    result["rows"] = [row for row in result["rows"] if row["recipe"] != options.recipe] + fresh
    for row in fresh:
        shown = {name: value for name, value in row.items() if name not in ("about", "recipe")}
        print("  ".join(f"{name} {value}" for name, value in shown.items()), flush=True)
    if options.json:
        atomic_write(options.json, (json.dumps(result, indent=1) + "\n").encode())
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("--data", help="folder of the data set, if the recipe needs one")
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe, key=value")
    parser.add_argument("--epochs", type=int, help="of the training, if not the recipe's")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25, 0.125])
    parser.add_argument("--lags", type=int, nargs="+", default=[1, 2, 7])
    parser.add_argument("--every", type=int, default=10, help="steps between two comparisons")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="keep the rows here")
    return parser.parse_args(arguments)


class Watched(Defense[ConsistencyViews]):
    """MNG-AC that, before some of its steps, compares meta-gradients and changes nothing.

    Args:
        defense: The defense that is trained.
        shares: Of the batch.
        lags: How many steps back the full gradients lie that are compared.
        every: Steps between two comparisons.
    """

    def __init__(self, defense: MNGAC, shares: list[float], lags: list[int], every: int):
        super().__init__()
        self.defense, self.shares, self.lags, self.every = defense, shares, lags, every
        self.before: list[Tensor] = []
        self.found: list[dict[str, Any]] = []
        self.steps = 0

    def craft(
        self, model: nn.Module, batch: Batch, *, generator: torch.Generator | None = None
    ) -> ConsistencyViews:
        """See `Defense.craft`."""
        return self.defense.craft(model, batch, generator=generator)

    def adapt(
        self,
        model: nn.Module,
        batch: Batch,
        views: ConsistencyViews,
        *,
        lr: float,
        generator: torch.Generator | None = None,
    ) -> ConsistencyViews:
        """Compare, then let the defense adapt. See `Defense.adapt`."""
        phase = self.steps % self.every
        if lr and phase >= self.every - 1 - max(self.lags):
            full = self._gradient(model, batch, views, lr, 1.0)
            if phase == self.every - 1:
                self._compare(model, batch, views, lr, full)
            self.before = [full, *self.before][: max(self.lags)]
        self.steps += 1
        return self.defense.adapt(model, batch, views, lr=lr, generator=generator)

    def loss(self, model: nn.Module, batch: Batch, views: ConsistencyViews) -> Loss:
        """See `Defense.loss`."""
        return self.defense.loss(model, batch, views)

    def _compare(
        self, model: nn.Module, batch: Batch, views: ConsistencyViews, lr: float, full: Tensor
    ) -> None:
        norm = views.threat.norm
        for share in self.shares:
            cosine = similarity(full, self._gradient(model, batch, views, lr, share))
            self.found.append({"norm": norm, "kind": "share", "of": share, "cosine": cosine})
        for lag in self.lags:
            if lag <= len(self.before):
                cosine = similarity(full, self.before[lag - 1])
                self.found.append({"norm": norm, "kind": "lag", "of": lag, "cosine": cosine})

    def _gradient(
        self, model: nn.Module, batch: Batch, views: ConsistencyViews, lr: float, share: float
    ) -> Tensor:
        """Return the meta-gradient of the first images of a batch, of the noise of this step."""
        count = max(round(share * len(batch.x)), 2)
        noise = torch.Generator(batch.x.device).manual_seed(self.steps)
        rate = torch.full((), lr, dtype=batch.x.dtype, device=batch.x.device)
        rows = (batch.x[:count], batch.y[:count], views.x_adv[:count], rate)
        gradients, *_ = self.defense._gradients(
            model, views.threat, batch.place, *rows, generator=noise
        )
        return torch.cat([gradient.flatten() for gradient in gradients])


def similarity(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two vectors."""
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def compared(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train once and return every comparison."""
    changes = list(options.set)
    changes += [f"data.folder={options.data}"] if options.data else []
    changes += [f"training.epochs={options.epochs}"] if options.epochs else []
    recipe: Recipe = load_recipe(options.recipe, changes)
    data = load_data(recipe.data)
    defense = defenses.build("mng_ac", recipe, channels=data.channels, seed=seed)
    assert isinstance(defense, MNGAC)
    watched = Watched(defense, options.shares, options.lags, options.every)
    training.fit(
        build_model(recipe, data, seed),
        data,
        watched,
        recipe.training,
        seed=seed,
        batch_norm=recipe.attack.batch_norm,
    )
    return watched.found


def summed_up(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean cosine and its standard error for each norm and each share or lag."""
    groups: dict[tuple[str, float, str], list[float]] = defaultdict(list)
    for each in found:
        groups[each["kind"], each["of"], each["norm"]].append(each["cosine"])
    rows = []
    for (kind, of, norm), cosines in sorted(groups.items()):
        error = statistics.stdev(cosines) / len(cosines) ** 0.5 if len(cosines) > 1 else None
        rows.append(
            {"kind": kind, "of": of, "norm": norm, "comparisons": len(cosines)}
            | {"cosine": round(statistics.fmean(cosines), 3)}
            | {"error": error and round(error, 3)}
        )
    return rows


if __name__ == "__main__":
    main()
