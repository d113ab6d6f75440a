"""The fast suite against the autoattack suite: accuracy, verdicts, passes and seconds.

    python benchmarks/fast_suite.py runs/digits --development sat --json results/fast_suite.json

For every run and norm, the attacks of AutoAttack at their published budgets and `Tournament` on the
first images of the test split, each on what the model gets right, with the same batch size. The
verdicts of the longer of the two are kept in a folder (--verdicts) and read from there again. A row
is written as soon as it is measured, and one that the JSON file holds already is not measured anew.

--masked adds models that hide their gradients behind each run: "steps" sees pixels in 16 levels,
"scaled" multiplies its logits by 10,000.

--searches N asks instead how far random search agrees with itself: N seeds of Square alone, with
--queries an image, on the models that --masked names; the list "searches" holds what each left.

Passes are forward plus backward, of all images. A row with few images left says little in percent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from multirobust.attacks import Attack, PassMeter, Square
from multirobust.attacks.tournament import Tournament
from multirobust.evaluation.suites_in_norms import standard_attacks
from multirobust.experiment import find_runs, load_data, load_model
from multirobust.provenance import provenance
from multirobust.threats import threats_for


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure what the file does not hold, print and save it, and return the whole."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    result = earlier(options.json)
    known = {(row["model"], row["norm"], row["images"]) for row in result["rows"]}
    for case in cases(options):
        for norm in options.norms:
            if options.searches:
                if "masked" in case["part"]:
                    keep(options, result, searched(case, norm, options))
                continue
            if (case["model"], norm, len(case["x"])) in known:
                continue
            row = compare(case, norm, options)
            result["rows"].append(row)
            print("  ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
            result |= {"about": about(options), "union": unions(result["rows"])}
            if options.json:
                text = json.dumps(result, indent=1) + "\n"
                options.json.write_text(text, encoding="utf-8")
    return result


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="run folders, or folders of them")
    parser.add_argument("--data", type=Path, help="folder of the data set, if not the run's")
    parser.add_argument("--development", nargs="*", default=[], help="models that took part")
    parser.add_argument("--masked", nargs="*", default=[], choices=MASKS)
    parser.add_argument("--searches", type=int, default=0, metavar="N")
    parser.add_argument("--queries", type=int, default=5000, help="an image, with --searches")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2", "l1"])
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--verdicts", type=Path, help="folder of the longer suite's verdicts")
    parser.add_argument("--json", type=Path, help="save the rows here, and skip those it holds")
    return parser.parse_args(arguments)


def earlier(path: Path | None) -> dict[str, Any]:
    """Return what was measured before."""
    if path is not None and path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"about": {}, "rows": [], "union": []}


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Describe the machine, the rule and the run."""
    rule = repr(Tournament(threat=threats_for("cifar10")["linf"]))
    return {
        **provenance(options.device),
        "rule": rule,
        "batch": options.batch,
        "goal": "accuracy within 0.5 points at no more than 20 percent of the passes",
    }


def shown(value: object) -> str:
    """Return a cell of the printed rows."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Steps(nn.Module):
    """Sees every pixel in 16 levels, so that its gradient is zero."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the rounded image."""
        return self.model((x * 15).round() / 15)


class Scaled(nn.Module):
    """Multiplies its logits, so that cross-entropy saturates."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return ten thousand times the logits."""
        return 1e4 * self.model(x)


MASKS: dict[str, type[nn.Module]] = {"steps": Steps, "scaled": Scaled}


def cases(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield every model with its images, labels, name and part."""
    for run in find_runs(options.runs):
        config = run.recipe.data
        if options.data is not None and "folder" in type(config).model_fields:
            config = config.model_copy(update={"folder": str(options.data)})
        data = load_data(config)
        model = load_model(run, data).to(options.device).eval()
        split = data.test.first(min(options.limit, len(data.test)))
        name = f"{config.name.removesuffix('10')}_{run.name.removesuffix('-s0')}"
        case = {
            "x": split.floats().to(options.device),
            "y": split.labels.to(options.device),
            "threats": threats_for(run.recipe.threats.preset),
        }
        part = "development" if name in options.development else "held out"
        yield case | {"model": name, "net": model, "part": part}
        for mask in options.masked:
            net = MASKS[mask](model).eval()
            part = "development" if f"{name}_{mask}" in options.development else "held out"
            yield case | {"model": f"{name}_{mask}", "net": net, "part": f"{part}, masked"}


def compare(case: dict[str, Any], norm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return accuracy and cost of both suites, and in how many verdicts they differ."""
    threat, images = case["threats"][norm], len(case["x"])
    full = kept(case, norm, options)
    fast = measure(case, {"fast": Tournament(threat=threat)}, options.batch)
    stages = list(full["stages"].values())
    reference, ours = stages[-1]["survived"], fast["stages"]["fast"]["survived"]
    pairs = list(zip(reference, ours, strict=True))
    cost = {
        name: sum(stage["f"] + stage["b"] for stage in suite["stages"].values())
        for name, suite in (("full", full), ("fast", fast))
    }
    return {
        "model": case["model"],
        "part": case["part"],
        "norm": norm,
        "images": images,
        "clean": 100 * sum(full["clean"]) / images,
        "autoattack": 100 * sum(reference) / images,
        "fast": 100 * sum(ours) / images,
        "difference": 100 * (sum(ours) - sum(reference)) / images,
        "verdicts_differ": 100 * sum(a != b for a, b in pairs) / images,
        "only_fast_missed": sum(b > a for a, b in pairs),
        "only_autoattack_missed": sum(a > b for a, b in pairs),
        "autoattack_passes": cost["full"] / images,
        "fast_passes": cost["fast"] / images,
        "share_of_passes": cost["fast"] / cost["full"],
        "autoattack_seconds": sum(stage["s"] for stage in stages),
        "fast_seconds": fast["stages"]["fast"]["s"],
        "survived": {"autoattack": flags(reference), "fast": flags(ours)},
    }


def searched(case: dict[str, Any], norm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what each seed of Square leaves of the images that the model gets right."""
    model, threat, images = case["net"], case["threats"][norm], len(case["x"])
    right = verdicts(model, case["x"], case["y"], options.batch)
    x, y = case["x"][right], case["y"][right]
    left = []
    for seed in range(options.searches):
        draw = torch.Generator(x.device).manual_seed(seed)
        attack = Square(threat=threat, iterations=options.queries)
        x_adv = attack.run(model, x, y, batch_size=options.batch, generator=draw)
        left.append(verdicts(model, x_adv, y, options.batch))
    differ = [int((one != other).sum()) for one, other in itertools.combinations(left, 2)]
    return {
        "model": case["model"],
        "norm": norm,
        "images": images,
        "queries": options.queries,
        "least": 100 * min(int(each.sum()) for each in left) / images,
        "most": 100 * max(int(each.sum()) for each in left) / images,
        "most_verdicts_differ": 100 * max(differ, default=0) / images,
        "survived": [flags(each.int().tolist()) for each in left],
        "about": provenance(options.device),
    }


def keep(options: argparse.Namespace, result: dict[str, Any], row: dict[str, Any]) -> None:
    """Print a row of searches and save it in place of an earlier one."""
    name = ("model", "norm", "images")
    others = [r for r in result.get("searches", []) if any(r[key] != row[key] for key in name)]
    result["searches"] = [*others, row]
    print("  ".join(f"{key} {row[key]}" for key in (*name, "least", "most")), flush=True)
    if options.json:
        text = json.dumps(result, indent=1) + "\n"
        options.json.write_text(text, encoding="utf-8")


def flags(survived: Iterable[int]) -> str:
    """Return one digit an image."""
    return "".join(str(int(value)) for value in survived)


def kept(case: dict[str, Any], norm: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the verdicts of the longer suite, from the folder if they are there."""
    path = None
    if options.verdicts is not None:
        path = options.verdicts / f"{case['model']}-{norm}-{len(case['x'])}.json"
        if path.is_file():
            return json.loads(path.read_text(encoding="utf-8"))
    result = measure(case, standard_attacks(case["threats"][norm]), options.batch)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result), encoding="utf-8")
    return result


def measure(case: dict[str, Any], attacks: dict[str, Attack], batch: int) -> dict[str, Any]:
    """Run attacks one after the other on what stands, and note what each of them leaves."""
    model, x, y = case["net"], case["x"], case["y"]
    standing = verdicts(model, x, y, batch)
    result: dict[str, Any] = {"clean": standing.tolist(), "stages": {}}
    for name, attack in attacks.items():
        index = standing.nonzero().squeeze(1)
        started = time.perf_counter()
        with PassMeter(model) as meter:
            # the random search of an image is the same in both, as in `multirobust evaluate`
            x_adv = attack.seeded(0).run(model, x[index], y[index], batch_size=batch)
        seconds = time.perf_counter() - started
        (threat,) = attack.threats
        distance = threat.distance(x_adv.double(), x[index].double())
        assert (distance <= threat.radius * (1 + 1e-5)).all(), (case["model"], name)
        assert ((x_adv >= 0) & (x_adv <= 1)).all(), (case["model"], name)
        standing[index] = verdicts(model, x_adv, y[index], batch)
        result["stages"][name] = {
            "f": meter.forwards,
            "b": meter.backwards,
            "s": seconds,
            "survived": standing.int().tolist(),
        }
    return result


@torch.no_grad()
def verdicts(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> Tensor:
    """Return which images the model gets right, (n,) bool."""
    parts = [model(part).argmax(1) for part in x.split(batch)] or [y[:0]]
    return torch.cat(parts) == y


def unions(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return, for every model whose norms are all there, the accuracy under their union."""
    table = []
    for model, n in dict.fromkeys((row["model"], row["images"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["images"]) == (model, n)]
        if len({row["norm"] for row in mine}) < 3:
            continue
        left = {
            suite: [all(x == "1" for x in each) for each in zip(*strings, strict=True)]
            for suite in ("autoattack", "fast")
            for strings in [[row["survived"][suite] for row in mine]]
        }
        share = {suite: 100 * sum(flags) / n for suite, flags in left.items()}
        pairs = zip(*left.values(), strict=True)
        passes = [sum(row[f"{s}_passes"] for row in mine) for s in ("fast", "autoattack")]
        table.append(
            {"model": model, "part": mine[0]["part"], "images": n, **share}
            | {"difference": share["fast"] - share["autoattack"]}
            | {"verdicts_differ": 100 * sum(a != b for a, b in pairs) / n}
            | {"share_of_passes": passes[0] / passes[1]}
        )
    return table


if __name__ == "__main__":
    main()
