"""The kinds of tables and figures: from trained and attacked models to a product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from multirobust.analysis import accuracy_against, seed_interval
from multirobust.errors import InputError
from multirobust.experiment import Run
from multirobust.recipes.choices import check_choice
from multirobust.recipes.equal_passes import asked, planned, ranked
from multirobust.recipes.pictures import boundary, noise, surfaces
from multirobust.recipes.products import Product
from multirobust.recipes.progress import Progress
from multirobust.recipes.reproduction import Reproduction, RowOf
from multirobust.recipes.self_training import rows_of
from multirobust.recipes.study import Study
from multirobust.recipes.tables import (
    agreement,
    attacks_table,
    beside_the_paper,
    comparison_table,
    levels_table,
)
from multirobust.report import RunResult, Table
from multirobust.report.tables import estimate, grouped

__all__ = ["KINDS", "remade", "reproduce"]

_STANDS_IN = {"digits": "cifar10"}
"""Whose published numbers stand beside data sets that the paper has not."""

_CALLED = {"cifar10": "CIFAR-10", "svhn": "SVHN", "tinyimagenet": "Tiny-ImageNet"}


def reproduce(study: Study, progress: Progress | None = None) -> Product:
    """Make a table or figure: train, attack, and put together what has not been made.

    Interrupted at any point, the same call goes on where it stopped.

    Raises:
        InputError: If no row is left, a row needs data that the study does not name, or it cannot
            be made so, such as at these radii.
        Interrupted: If `progress.stop` said so; what was done is saved.
    """
    check_choice(study)
    return KINDS[study.reproduction.kind](study, progress or Progress())


def remade(
    reproduction: Reproduction, data: str, results: Sequence[RunResult], *, split: str = "test"
) -> Product:
    """Make a table or figure from results alone, such as those of its stored record.

    Args:
        reproduction: One whose models are attacked.
        data: The data set, by name: it decides which of the paper's numbers stand beside ours.
        results: In the order of the rows.
        split: Which images were attacked, see `Study`.

    Raises:
        InputError: If it is made from the models themselves.
    """
    if reproduction.kind not in _FROM_RESULTS:
        raise InputError(
            f"{reproduction.name}: is made from models, not from results; use `reproduce`."
        )
    product = _FROM_RESULTS[reproduction.kind](reproduction, data, results)
    if split == "test":
        return product
    where = "The images are held-out training images: for choices, which are judged on test images."
    return replace(product, sentences=(*product.sentences, where))


def _from_results(study: Study, progress: Progress) -> Product:
    results = _evaluated(study, rows_of(study, progress), progress)
    return remade(study.reproduction, study.scale.data, results)


def _against_beta(study: Study, progress: Progress) -> Product:
    (row,) = study.rows
    usual = study.scale.build().defense.beta
    rows = [
        (
            row.model_copy(update={"name": f"beta {beta:g}"}),
            study.runs(row, [] if beta == usual else [f"defense.beta={beta}"]),
        )
        for beta in study.reproduction.betas
    ]
    results = _evaluated(study, rows, progress)
    return remade(study.reproduction, study.scale.data, results)


def _at_equal_passes(study: Study, progress: Progress) -> Product:
    rows = planned(study)
    _evaluated(study, [rows[name] for name in asked(study)], progress)
    results = [result for row, runs in rows.values() for result in study.made(row, runs)]
    return remade(study.reproduction, study.scale.data, results, split=study.split)


def _evaluated(
    study: Study, rows: Sequence[tuple[RowOf, list[Run]]], progress: Progress
) -> list[RunResult]:
    """Train and attack the runs of rows, seed after seed, and return their results by row."""
    in_turn = [run for of_seed in zip(*(runs for _, runs in rows), strict=True) for run in of_seed]
    study.train(in_turn, progress)
    study.evaluate(in_turn, progress)
    return [result for row, runs in rows for result in study.results(row, runs)]


def _compared(reproduction: Reproduction, data: str, results: Sequence[RunResult]) -> Product:
    ours = comparison_table(reproduction, results)
    source = _STANDS_IN.get(data, data)
    published = reproduction.published.get(source)
    key = "union" if reproduction.columns is None else reproduction.columns[1]
    sentence = agreement(ours, published, key)
    return Product(
        title=reproduction.title,
        table=beside_the_paper(ours, published, _CALLED.get(source, source)),
        results=results,
        sentences=(sentence,) if sentence else (),
    )


def _plain(reproduction: Reproduction, table: Table, results: Sequence[RunResult]) -> Product:
    reading = reproduction.reading
    return Product(
        title=reproduction.title,
        table=table,
        results=results,
        sentences=(reading,) if reading else (),
    )


def _drawn_against_beta(
    reproduction: Reproduction, data: str, results: Sequence[RunResult]
) -> Product:
    """Draw union and clean accuracy against the weight of the consistency loss (Figures 2, 4)."""
    groups, betas = list(grouped(results).values()), reproduction.betas
    keys = ("union", "clean")
    ends = np.array(
        [
            [seed_interval(_shares(runs, key), len(runs[0].outcomes)) for runs in groups]
            for key in keys
        ]
    )
    svg = accuracy_against(betas, keys, ends[..., 0], ends[..., 1], ends[..., 2])
    rise, fall = 100 * (ends[:, -1, 0] - ends[:, 0, 0])
    sentence = (
        f"Ours, from beta {betas[0]:g} to {betas[-1]:g}: union {rise:+.1f} points, clean accuracy "
        f"{fall:+.1f}. The bars are 95 % intervals of the mean over seeds."
    )
    product = _plain(reproduction, comparison_table(reproduction, results), results)
    return replace(product, svg=svg, sentences=(*product.sentences, sentence))


def _shares(runs: Sequence[RunResult], key: str) -> list[float]:
    return [view.value for run in runs if (view := estimate(run.outcomes, key)) is not None]


_FROM_RESULTS: dict[str, Callable[[Reproduction, str, Sequence[RunResult]], Product]] = {
    "comparison": _compared,
    "attacks": lambda made, _, results: _plain(made, attacks_table(made, results), results),
    "levels": lambda made, _, results: _plain(made, levels_table(made, results), results),
    "against_beta": _drawn_against_beta,
    "at_equal_passes": lambda made, _, results: ranked(made, results),
}

KINDS: dict[str, Callable[[Study, Progress], Product]] = {
    "comparison": _from_results,
    "attacks": _from_results,
    "levels": _from_results,
    "surfaces": surfaces,
    "boundary": boundary,
    "noise": noise,
    "against_beta": _against_beta,
    "at_equal_passes": _at_equal_passes,
}
