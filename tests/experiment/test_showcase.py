from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from multirobust.attacks import threats_from
from multirobust.config import load_recipe
from multirobust.errors import InputError, RunError
from multirobust.experiment import (
    find_runs,
    gallery_of,
    landscapes,
    load_data,
    load_model,
    report_runs,
)
from multirobust.experiment.histories import history_of, training_section
from multirobust.experiment.robustness import robustness_section, stored_curves

ATTACKED = ["clean", "linf", "l2", "l1"]


@pytest.mark.parametrize(
    ("defense", "titles"),
    [
        ("adv_linf", ATTACKED),
        ("ant", [*ATTACKED, "learned noise"]),
        ("mng_ac", [*ATTACKED, "learned noise"]),
    ],
)
def test_a_gallery_shows_what_the_model_answers_to_each_version(finished, defense, titles):
    (run,) = find_runs([finished / f"{defense}-s0"])
    data = load_data(run.recipe.data)
    model = load_model(run, data)
    threats = threats_from(run.recipe.threats)
    rows = gallery_of(run, data, images=3)
    assert [row.label.split(", true class ")[1] for row in rows] == list(data.class_names[:3])
    for row in rows:
        assert [cell.title for cell in row.cells] == titles
        index = int(row.label.split(",")[0].removeprefix("test image "))
        clean = data.test.floats(index)
        label = data.class_names[int(data.test.labels[index])]
        stored = data.test.images[index].permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(row.cells[0].image, stored)
        for cell in row.cells:
            if cell.change is not None:
                change = (cell.change / 255.0 - 0.5) / cell.gain
                found = cell.image / 255.0 - row.cells[0].image / 255.0
                inside = np.abs(cell.gain * found) < 0.49  # beyond, the amplified change is cut
                np.testing.assert_allclose(change[inside], found[inside], atol=2.1 / 255)
            x = torch.from_numpy(cell.image).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                shares = model(x).softmax(dim=1)[0]
            # Shown pixels are rounded to 8 bits; the answer is to the exact ones.
            shown = shares[data.class_names.index(cell.prediction)]
            assert float(shown) == pytest.approx(cell.confidence, abs=0.02)
            assert cell.correct == (cell.prediction == label)
            if cell.title in threats:
                room = threats[cell.title].radius
                ours = float(threats[cell.title].distance(x, clean))
                rounding = {"linf": 1, "l2": 8, "l1": 64}[cell.title] / 510
                assert 0 < ours <= room + rounding


def test_a_gallery_goes_round_the_classes(finished):
    (run,) = find_runs([finished / "ant-s0"])
    data = load_data(run.recipe.data)
    rows = gallery_of(run, data, images=13)
    classes = [row.label.split(", true class ")[1] for row in rows]
    assert classes == [*data.class_names, *data.class_names[:3]]
    assert len({row.label for row in rows}) == 13


def test_a_report_holds_every_run_and_its_images(finished, tmp_path):
    runs = find_runs([finished])
    report_runs(runs, tmp_path / "r.html", data=load_data(runs[0].recipe.data), images=1)
    page = (tmp_path / "r.html").read_text("utf-8")
    for run in runs:
        assert run.defense in page
    versions, learned = 4, 2
    changed = len(runs) * (versions - 1) + learned
    assert page.count("data:image/png;base64,") == len(runs) + 2 * changed
    assert page.count("data:image/svg+xml;base64,") >= 2
    assert "learned noise" in page


def test_a_report_escapes_what_a_recipe_says(runs, tmp_path):
    from multirobust.experiment import evaluate_run

    (run,) = find_runs([runs / "ant-s0"])
    path = run.folder / "recipe.toml"
    text = path.read_text("utf-8").replace('name = "digits"', 'name = "<script>alert(1)"', 1)
    path.write_text(text, "utf-8")
    (run,) = find_runs([run.folder])
    assert run.recipe.name == "<script>alert(1)"
    for outcomes in (run.folder / "evaluation" / "quick").iterdir():
        outcomes.unlink()
    evaluate_run(run, load_data(run.recipe.data))
    report_runs([run], tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_images_of_two_data_sets_do_not_go_into_one_report(finished, tmp_path):
    from dataclasses import replace

    runs = find_runs([finished])
    other = replace(runs[1], recipe=load_recipe("cifar10_small"))
    data = load_data(runs[0].recipe.data)
    with pytest.raises(InputError, match=r"these have cifar10, digits; report each alone"):
        report_runs([runs[0], other], tmp_path / "r.html", data=data)


def test_a_report_that_cannot_be_written_leaves_the_former_one(finished, tmp_path):
    (tmp_path / "file").write_text("former", "utf-8")
    with pytest.raises(RunError, match="cannot be used as a folder"):
        report_runs(find_runs([finished]), tmp_path / "file" / "r.html")
    assert (tmp_path / "file").read_text("utf-8") == "former"


def test_a_report_shows_the_curves_and_the_metrics_that_the_runs_keep(multirobust, runs, tmp_path):
    arguments = ("--limit", 4, "--iterations", 6, "--targets", 0, "--output", tmp_path / "curves")
    assert multirobust("curve", runs / "adv_linf-s0", *arguments).code == 0
    report_runs(find_runs([runs]), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert "Accuracy on 4 images at every radius" in page
    assert "No curves with the same settings: ant, mng_ac." in page
    assert 'id="training-curves"' in page
    assert "consistency</span>" in page


def test_curves_of_former_weights_and_damaged_ones_are_left_out(multirobust, runs, tmp_path):
    arguments = ("--limit", 4, "--iterations", 6, "--targets", 0, "--output", tmp_path / "curves")
    assert multirobust("curve", runs / "ant-s0", runs / "adv_linf-s0", *arguments).code == 0
    (marker,) = (runs / "ant-s0" / "evaluation" / "curves").glob("*/outcomes.json")
    marker.write_text("{", "utf-8")
    (marker,) = (runs / "adv_linf-s0" / "evaluation" / "curves").glob("*/outcomes.json")
    assert [*stored_curves(find_runs([runs]))] == ["adv_linf"]
    found = json.loads(marker.read_text("utf-8"))
    found["manifest"]["weights"] = "others"
    marker.write_text(json.dumps(found), "utf-8")
    assert robustness_section(find_runs([runs])) is None


def test_metrics_are_means_over_epochs_and_damaged_ones_are_left_out(run):
    lines = [
        {"step": 1, "epoch": 1, "lr": 0.1, "loss": 4.0, "forwards": 1.0},
        {"step": 4, "epoch": 1, "lr": 0.2, "loss": 2.0, "forwards": 1.0},
        {"step": 8, "epoch": 2, "lr": 0.3, "loss": float("nan"), "held_out_union": 0.5},
    ]
    path = run.folder / "metrics.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
    found = {"lr": [(4, 0.2), (8, 0.3)], "loss": [(4, 2.5)], "held_out_union": [(8, 0.5)]}
    assert history_of(run) == found
    section = training_section([run])
    assert "never sees" in section.text
    assert section.figures[0].table.rows[0].cells[0].value == 2.5
    for damaged in ("{", "[]", '{"step": 1, "epoch": "x"}', '{"lr": 1}'):
        path.write_text(damaged, "utf-8")
        assert history_of(run) == {}
        assert training_section([run]) is None


def test_analyses_show_the_loss_around_images_and_the_boundary_of_two_classes(run, monkeypatch):
    monkeypatch.setattr(landscapes, "IMAGES", 4)
    monkeypatch.setattr(landscapes, "POINTS", 3)
    monkeypatch.setattr(landscapes, "OF_EACH_CLASS", 3)
    data = load_data(run.recipe.data)
    surfaces, boundary = landscapes.landscape_sections([run], data)
    x, y = data.test.floats(slice(0, 4)), data.test.labels[:4]
    loss = torch.nn.functional.cross_entropy(load_model(run, data)(x), y).detach()
    cells = surfaces.figures[0].table.rows[0].cells
    assert cells[0].value == pytest.approx(float(loss), rel=1e-5)
    assert len(cells) == 9
    assert [column.key for column in boundary.figures[0].table.columns] == ATTACKED
    assert boundary.text.split("between ")[1][:6].count(" and ") == 1
