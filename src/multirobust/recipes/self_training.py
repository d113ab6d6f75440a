"""Rows that train on pseudo-labeled images: where these come from."""

from __future__ import annotations

from pathlib import Path

from multirobust.errors import InputError
from multirobust.experiment import Run
from multirobust.experiment.pseudo_labeling import pseudo_label
from multirobust.recipes.progress import Progress
from multirobust.recipes.reproduction import RowOf
from multirobust.recipes.study import Study

__all__ = ["rows_of"]

TEACHER = RowOf(name="standard", defense="standard")
"""Trained without attacks on the labeled images; its first seed gives the pseudo-labels."""


def rows_of(study: Study, progress: Progress) -> list[tuple[RowOf, list[Run]]]:
    """Return the rows of a study with their runs.

    Where some rows need pseudo-labeled images and no file is given, most labels are held out, as
    `labeled` of the study or of the reproduction says; a standard model is trained on the rest and
    labels the images whose labels were held out. Their true labels are not used.

    Raises:
        InputError: If there is neither a file nor a number of labels to keep.
    """
    if not any(row.unlabeled for row in study.rows):
        return [(row, study.runs(row)) for row in study.rows]
    if study.unlabeled is not None:
        more = [f"data.unlabeled={str(study.unlabeled)!r}"]
        return [
            (row, study.runs(row, more, folder=study.unlabeled.stem))
            if row.unlabeled
            else (row, study.runs(row))
            for row in study.rows
        ]
    kept = study.labeled or study.reproduction.labeled.get(study.scale.data)
    if kept is None:
        raise InputError(
            f"--unlabeled: {study.reproduction.name} on {study.scale.data} needs a file of "
            "pseudo-labeled images, got none; give the published one, or make one with "
            "`multirobust pseudo-label RUN DATA`. Or hold out all labels but N with --labeled N."
        )
    fewer = [f"data.train_limit={kept}"]
    whole = study.scale.build(study.overrides).data.train_limit
    if whole is not None and whole <= kept:
        raise InputError(
            f"--labeled: must be below data.train_limit, {whole}, so that images are left to be "
            f"pseudo-labeled, got {kept}; choose fewer, or use more images."
        )
    folder = f"labeled-{kept}"
    file = _labeled_by_teacher(study, fewer, folder, progress)
    more = [*fewer, f"data.unlabeled={str(file)!r}"]
    return [
        (row, study.runs(row, more if row.unlabeled else fewer, folder=folder))
        for row in study.rows
    ]


def _labeled_by_teacher(study: Study, fewer: list[str], folder: str, progress: Progress) -> Path:
    """Return the file of pseudo-labels, made if it is missing."""
    teacher = study.runs(TEACHER, fewer, folder=folder)[0]
    file = teacher.folder.parent / "pseudo-labels.npz"
    study.train([teacher], progress)
    if not file.is_file():
        whole = study.scale.build(study.overrides).data.train_limit
        rest = None if whole is None else whole - len(study.data(teacher).train)
        found = pseudo_label(teacher, study.scale.data, file, limit=rest, report=progress.tell)
        accuracy = "" if found.accuracy is None else f", {100 * found.accuracy:.1f} % of them right"
        progress.tell(f"{found.count} images pseudo-labeled{accuracy}")
    return file
