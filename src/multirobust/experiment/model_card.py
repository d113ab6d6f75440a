"""The model card of an exported run: what is stored of it in words, and no other number."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from multirobust.catalog import DEFENSES, SUITES
from multirobust.config import TrainingConfig
from multirobust.evaluation import Outcomes, State
from multirobust.evaluation.intervals import Estimate
from multirobust.experiment.runs import Run, training_facts
from multirobust.experiment.stored import StoredEvaluation
from multirobust.models.onnx_export import OnnxFile
from multirobust.report import duration
from multirobust.report.rendering import markdown_text
from multirobust.report.tables import PAPER_ORDER

__all__ = ["model_card"]

HEADINGS = {"linf": "ℓ∞", "l1": "ℓ1", "l2": "ℓ2"}


def model_card(
    run: Run,
    config: Mapping[str, Any],
    evaluations: Sequence[StoredEvaluation],
    *,
    license: str | None = None,
    onnx: OnnxFile | None = None,
) -> str:
    """Return the card as Markdown with the YAML head that Hugging Face reads.

    Args:
        run: The run; its `training.json` tells of its training.
        config: What `config.json` says.
        evaluations: All whose numbers the card shows.
        license: Identifier of the license; None says that none has been chosen.
        onnx: What was found when the ONNX file was compared.
    """
    parts = [
        _head(config, evaluations, license),
        _opening(config, license),
        _use(config, onnx),
        *_measured(evaluations, run.name),
        _training(run, config),
        _limits(config, evaluations),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _head(
    config: Mapping[str, Any], evaluations: Sequence[StoredEvaluation], license: str | None
) -> str:
    """Return the YAML head; values are written as JSON, which YAML contains."""
    fields: dict[str, Any] = {
        "license": license or "unknown",
        "library_name": "multirobust",
        "pipeline_tag": "image-classification",
        "tags": ["adversarial-robustness", config["defense"], config["architecture"]],
    }
    if evaluations:
        fields["metrics"] = ["accuracy"]
        name = f"{config['defense']}-s{config['seed']}"
        results = [_result(config["data"], stored) for stored in evaluations]
        fields["model-index"] = [{"name": name, "results": results}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---"])


def _result(data: str, stored: StoredEvaluation) -> dict[str, Any]:
    split = str(stored.settings.get("split", "test"))
    return {
        "task": {"type": "image-classification"},
        "dataset": {"type": data, "name": f"{data}, {stored.name}", "split": split},
        "metrics": [
            {
                "type": "accuracy",
                "name": f"accuracy in %, {name}",
                "value": round(100 * view.value, 2),
            }
            for name, _, view in _views(stored.outcomes)
        ],
    }


def _views(outcomes: Outcomes) -> Iterator[tuple[str, str, Estimate]]:
    """Yield name, radius in words and accuracy of all that was measured."""
    yield "clean", "", outcomes.clean()
    order = [*(t for t in PAPER_ORDER if t in outcomes.threats)]
    order += [t for t in outcomes.threats if t not in order]
    for threat in order:
        radii = sorted({c.radius for c in outcomes.columns if c.threat == threat})
        shown = " to ".join(f"{radius:.4g}" for radius in dict.fromkeys((radii[0], radii[-1])))
        yield HEADINGS.get(threat, threat), shown, outcomes.worst(threat)
    if order:
        yield "union", "", outcomes.union()
        yield "average", "", outcomes.average()


def _opening(config: Mapping[str, Any], license: str | None) -> str:
    height, width = config["image_size"]
    data = markdown_text(config["data"])
    defense = DEFENSES.get(config["defense"], "")
    chosen = (
        f"License: {license}, as stated by whoever exported it."
        if license
        else "License: none has been chosen yet. Whoever publishes these weights has to choose one."
    )
    return f"""# {config["defense"]}-s{config["seed"]}: {config["architecture"]} on {data}

A classifier of {height} x {width} images with {_channels(config)} into {config["classes"]} classes,
trained with the defense `{config["defense"]}`{f": {defense}" if defense else ""}.

{chosen}"""


def _channels(config: Mapping[str, Any]) -> str:
    count = config["channels"]
    return f"{count} channel{'s'[: count != 1]}"


def _use(config: Mapping[str, Any], onnx: OnnxFile | None) -> str:
    height, width = config["image_size"]
    text = f"""## Use

```python
import multirobust

model = multirobust.from_pretrained("owner/name")  # or the folder of this file
logits = model(images)
```

Images: float32 of shape (b, {config["channels"]}, {height}, {width}), pixels in [0, 1].
Normalization is inside the model. Classes, in the order of the logits:
{", ".join(map(markdown_text, config["class_names"]))}."""
    if onnx is None:
        return text
    return f"""{text}

`model.onnx` (opset {onnx.opset}) takes the same images as `images`, any number at once, and returns
`logits`. Run by onnxruntime on {onnx.images} random images, its logits differed from those of
PyTorch by at most {onnx.difference:.2g}; up to {onnx.tolerance:.2g} was accepted."""


def _measured(evaluations: Sequence[StoredEvaluation], run: str) -> Iterator[str]:
    yield "## What it withstands"
    if not evaluations:
        yield (
            "**Nothing has been measured.** The run holds no evaluation of these weights, so this "
            "card has no accuracy, clean or robust. `multirobust evaluate` makes one."
        )
        return
    yield (
        "Accuracy in percent: for each threat the images that survive all its attacks, for the "
        "union those that survive every attack of all threats, and the mean over the threats. "
        "The interval is Wilson's at 95 % over the images; it knows nothing of other training "
        "seeds."
    )
    for stored in evaluations:
        yield _evaluation(stored, run)


def _evaluation(stored: StoredEvaluation, run: str) -> str:
    settings, manifest = stored.settings, stored.outcomes.manifest
    suite = str(settings.get("suite", stored.name))
    facts = [
        f"suite `{suite}`",
        f"{len(stored.outcomes):,} images of the {settings.get('split', 'test')} split",
        f"seed {settings.get('seed', manifest.get('seed'))}",
    ]
    rows = [
        f"| {markdown_text(name)} | {radius or '–'} | {_accuracy(view)} | "
        f"[{100 * view.low:.1f}, {100 * view.high:.1f}] |"
        for name, radius, view in _views(stored.outcomes)
    ]
    shown = {name: value for name, value in settings.items() if name != "corruptions"}
    table = ["| attacked by | radius | accuracy | 95 % interval |", "|---|---:|---:|---:|", *rows]
    lines = [f"### {stored.name}", "", f"{', '.join(facts)}.", "", *table, ""]
    lines += [*_cautions(stored.outcomes), f"Made by `{_command(run, suite, settings)}`"]
    lines += [f"{_origin(manifest)}. All settings:", "", f"    {json.dumps(shown)}"]
    return "\n".join(lines)


def _command(run: str, suite: str, settings: Mapping[str, Any]) -> str:
    """Return the command, without what only --set changes: the settings are shown beside it."""
    words = ["multirobust", "evaluate", run, "--suite", suite]
    usual = {"mode": "auto", "limit": None, "split": "test", "seed": 0}
    for name, value in usual.items():
        if settings.get(name, value) != value:
            words += [f"--{name}", str(settings[name])]
    return shlex.join(words)


def _accuracy(view: Estimate) -> str:
    if view.exact:
        return f"{100 * view.value:.1f}"
    return f"[{100 * view.range_low:.1f}, {100 * view.range_high:.1f}]"


def _cautions(outcomes: Outcomes) -> Iterator[str]:
    states = {int(state) for column in outcomes.columns for state in column.states}
    if State.ERROR in states:
        yield (
            "[low, high] in place of an accuracy: attacks ended in errors on some images, which "
            "are neither robust nor broken.\n"
        )
    if State.SKIPPED in states:
        yield (
            "Images that one attack broke were spared later ones; [low, high] in place of an "
            "accuracy shows what was therefore not measured.\n"
        )
    for found in outcomes.manifest.get("audit") or []:
        what = markdown_text(f"{found.get('code')}: {found.get('message')}")
        yield f"Caution: the audit found {what}\n"


def _origin(facts: Mapping[str, Any]) -> str:
    parts = [f"commit {facts['commit']}"] if facts.get("commit") else []
    parts += [str(facts[key]) for key in ("device", "time") if facts.get(key)]
    return f"({markdown_text(', '.join(parts))})" if parts else "(where is not stored)"


def _training(run: Run, config: Mapping[str, Any]) -> str:
    facts, training = training_facts(run), run.recipe.training
    command = shlex.join(
        ["multirobust", "train", "recipe.toml", "--defense", run.defense, "--seed", str(run.seed)]
    )
    versions = facts.get("versions") or {}
    rows = {
        "recipe": f"{run.recipe.name}, whole in recipe.toml",
        "seed": run.seed,
        "images": facts.get("train_images", "not stored"),
        **_length(training),
        "batch size": training.batch_size,
        "peak learning rate": training.peak_lr,
        "radii": ", ".join(f"{HEADINGS[n]} {r:.4g}" for n, r in config["threats"].items()),
        "forward passes an image": f"{facts['forwards']:.4g}",
        "backward passes an image": f"{facts['backwards']:.4g}",
        "time": f"{duration(facts['seconds'])} on {facts['device']}",
        "commit": facts.get("commit") or "not stored",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "date": facts.get("time", "not stored"),
    }
    table = "\n".join(f"| {name} | {markdown_text(str(value))} |" for name, value in rows.items())
    return f"## Training\n\n| | |\n|---|---|\n{table}\n\nMade by `{command}`."


def _length(training: TrainingConfig) -> dict[str, str | int]:
    if training.passes is None:
        return {"epochs": training.epochs}
    return {"length": f"{training.passes:g} forward-backward passes an image"}


def _limits(config: Mapping[str, Any], evaluations: Sequence[StoredEvaluation]) -> str:
    run = {str(stored.settings.get("suite", stored.name)) for stored in evaluations}
    lines = [
        f"- Not evaluated with `{name}`: {text}."
        for name, text in SUITES.items()
        if name not in {*run, "autoattack_rand"}
    ]
    lines.append(
        "- Not evaluated against attacks made for this very model, attacks carried over from other "
        "models, patches, or anything outside of the suites above."
    )
    if not evaluations:
        return "\n".join(["## Limits", "", *lines])
    lines += [
        "- Every accuracy under attack is an upper bound: a stronger attack may break more images. "
        "None is a proof.",
        f"- The numbers hold for {markdown_text(config['data'])}, the images counted and the radii "
        "shown, and for this one training seed.",
    ]
    return "\n".join(["## Limits", "", *lines])
