"""Whose curves the command `curve` measures: those of runs, or of any classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final

from multirobust.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from multirobust.config import Recipe
    from multirobust.data import Split
    from multirobust.experiment import Run

__all__ = ["ModelSource", "RunSource", "Source", "run_sources"]

OVERRIDABLE = ("evaluation.", "threats.", "data.folder", "data.test_limit", "training.device")


class Source(Protocol):
    """A model with its images and the radii that count for it."""

    @property
    def name(self) -> str:
        """What the figure calls it."""
        ...

    @property
    def other_name(self) -> str:
        """What the figure calls it where another one has that name."""
        ...

    def recipe(self) -> Recipe:
        """Return how it is attacked."""
        ...

    def facts(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what its curves say of it; "data", "weights" and "evaluation" identify them."""
        ...

    def folder(self, digest: str) -> Path:
        """Return where its curves with settings of this digest are kept."""
        ...

    def load(self) -> tuple[nn.Module, Split]:
        """Return the model, on the CPU, and the images."""
        ...


@final
@dataclass(frozen=True)
class RunSource:
    """The model of a run.

    Args:
        run: A run that has been trained.
        chosen: Its recipe with the changes of the command line.
    """

    run: Run
    chosen: Recipe

    @property
    def name(self) -> str:
        """See `Source`."""
        return self.run.name

    @property
    def other_name(self) -> str:
        """See `Source`."""
        return str(self.run.folder)

    def recipe(self) -> Recipe:
        """See `Source`."""
        return self.chosen

    def facts(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Source`."""
        from multirobust.experiment.building import weights_digest

        run = self.run
        return {
            "run": {"defense": run.defense, "training_seed": run.seed, "name": run.recipe.name},
            "data": self.chosen.data.name,
            "weights": weights_digest(run),
            "evaluation": settings,
            "recipe": run.recipe.model_dump(mode="json", exclude_none=True),
        }

    def folder(self, digest: str) -> Path:
        """See `Source`."""
        return self.run.folder / "evaluation" / "curves" / digest

    def load(self) -> tuple[nn.Module, Split]:
        """See `Source`."""
        from multirobust.experiment import load_data, load_model

        data = load_data(self.chosen.data)
        return load_model(self.run, data), data.test


@final
@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Any classifier and images, both named by a line of text; see `evaluate_external`.

    Args:
        model: See `models.load_external`.
        weights: File of the weights, if the model does not bring them.
        options: Keyword arguments of the function that makes the model.
        data: See `data.load_split`.
        data_folder: Where the files of a data set of ours lie.
        size: Of a folder of images: scale and crop them to so many pixels.
        class_names: Of a folder of images: the classes in the order of the model's logits.
        overrides: Changes of the recipe of the data set.
        output: The curves are kept below it.
    """

    model: str
    weights: str | None
    options: Mapping[str, Any]
    data: str
    data_folder: str | None
    size: int | None
    class_names: tuple[str, ...] | None
    overrides: tuple[str, ...]
    output: Path
    loaded: list[tuple[nn.Module, Split]] = field(default_factory=list, repr=False)

    @property
    def name(self) -> str:
        """See `Source`."""
        from multirobust.experiment.external import short_name

        return short_name(self.model)

    @property
    def other_name(self) -> str:
        """See `Source`."""
        return self.model

    def recipe(self) -> Recipe:
        """See `Source`."""
        from multirobust.experiment.external import recipe_of_images

        return recipe_of_images(self.data, self.overrides)

    def facts(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Source`. The images count by their pixels and labels, whatever files they are."""
        from multirobust.evaluation.course import split_digest
        from multirobust.models.weights import weights_digest

        model, images = self.load()
        return {
            "name": self.name,
            "model": self.model,
            "options": dict(self.options),
            "data": self.data,
            "weights": weights_digest(model),
            "evaluation": settings | {"images": split_digest(images), "options": {**self.options}},
        }

    def folder(self, digest: str) -> Path:
        """See `Source`."""
        return self.output / "kept" / f"{self.name}-{digest}"

    def load(self) -> tuple[nn.Module, Split]:
        """See `Source`."""
        from multirobust.experiment import ExternalSubject

        if not self.loaded:
            recipe = self.recipe()
            subject = ExternalSubject(
                model=self.model,
                weights=self.weights,
                options=self.options,
                data=self.data,
                data_folder=self.data_folder or recipe.data.folder,
                limit=recipe.evaluation.limit,
                download=recipe.data.download,
                size=self.size,
                class_names=self.class_names,
            )
            self.loaded.append(subject.load())
        return self.loaded[0]


def run_sources(
    paths: Sequence[Path], extra: Sequence[str], overrides: Sequence[str]
) -> list[RunSource]:
    """Return the runs at these paths, each with how it is to be attacked.

    Raises:
        InputError: If there is none, they differ in data or radii, or an override is not about the
            evaluation.
    """
    from multirobust.experiment import find_runs

    _check_overrides(overrides)
    pairs = _with_recipes(find_runs(paths), [*extra, *overrides])
    return [RunSource(run, recipe) for run, recipe in pairs]


def _check_overrides(overrides: Sequence[str]) -> None:
    foreign = [text for text in overrides if not text.strip().startswith(OVERRIDABLE)]
    if foreign:
        raise InputError(
            f"--set {foreign[0]}: may change {', '.join(f'{name}*' for name in OVERRIDABLE)} only; "
            "the rest decided how the runs were trained."
        )


def _with_recipes(runs: Sequence[Run], overrides: Sequence[str]) -> list[tuple[Run, Recipe]]:
    """Return each run with how it is to be attacked, the same way for all."""
    from multirobust.attacks import threats_from
    from multirobust.config import load_recipe
    from multirobust.experiment.runs import RECIPE

    pairs = [
        (run, load_recipe(run.folder / RECIPE, overrides) if overrides else run.recipe)
        for run in runs
    ]
    first, *others = [(recipe.data.name, threats_from(recipe.threats)) for _, recipe in pairs]
    for (run, _), kind in zip(pairs[1:], others, strict=True):
        if kind != first:
            raise InputError(
                f"{run.folder} has other data or radii than {runs[0].folder}: one figure shows "
                "models on the same images at the same benchmark radii; give those runs alone, or "
                "set the radii with --set threats.preset=NAME."
            )
    return pairs
