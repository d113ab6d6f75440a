from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multirobust.analysis import per_norm_bars, union_against_cost
from multirobust.errors import InputError, RunError
from multirobust.report import (
    Figure,
    GalleryCell,
    GalleryRow,
    Section,
    amplified,
    findings,
    render_page,
    standard_figures,
    write_report,
)
from multirobust.report.gallery import png

EVIL = "<script>alert('x')</script>\"&"
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)


class Page(HTMLParser):
    """Collect what a browser would build: elements, attributes, visible text."""

    VOID = frozenset(("meta", "img", "br", "link"))

    def __init__(self, source):
        super().__init__()
        self.elements, self.words, self.open = [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def gallery(prediction="3"):
    cells = [
        GalleryCell("clean", IMAGE, "5", True, 0.987),
        GalleryCell("l∞", np.stack([IMAGE] * 3, -1), prediction, False, 0.541),
    ]
    return {"mng_ac": [GalleryRow("Test image 7, a 5", cells)]}


@pytest.fixture(scope="module")
def source(five):
    drawn = standard_figures(five, per_norm_bars, union_against_cost)
    return render_page(five, figures=drawn, gallery=gallery(), notes=["A note."])


def test_the_page_is_well_formed_and_says_everything(source):
    page = Page(source)
    assert page.open == []
    for part in (
        "mng_ac withstands the union", "A note.", "45.0", "[41.9, 48.1]", "7.0 min",
        "Accuracy under each threat", "Union accuracy against training time",
        "Test image 7, a 5", "✗ wrong", "3, 54.1 %", "✓ right", "5, 98.7 %",
        "pgd_l1", "PGD(l1)", "7.843 = 2000/255", "abc1234", "a CPU with 2 cores", "recipe.epochs",
    ):  # fmt: skip
        assert part in page.text, part


def test_the_page_asks_the_network_for_nothing(source):
    page = Page(source)
    addresses = [v for _, attrs in page.elements for k, v in attrs.items() if k in ("src", "href")]
    assert addresses
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "default-src 'none'" in source
    assert not re.search(r"url\(|@import|https?://", source)


def test_every_text_from_outside_is_escaped(run):
    results = [run(EVIL, linf=0.4)]
    rows = [GalleryRow(EVIL, [GalleryCell(EVIL, IMAGE, EVIL, False, 0.5)])]
    figure = Figure(EVIL, EVIL, "<svg/>")
    source = render_page(results, figures=[figure], gallery={EVIL: rows}, title=EVIL, notes=[EVIL])
    page = Page(source)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert page.open == []
    assert page.text.count(EVIL) >= 8
    assert any(attrs.get("alt", "").startswith(EVIL) for _, attrs in page.elements)


def test_names_in_a_drawing_are_escaped_too(run):
    drawn = standard_figures([run(EVIL, linf=0.4)], per_norm_bars, union_against_cost)
    assert len(drawn) == 3
    assert all("<script" not in figure.svg for figure in drawn)


def test_the_same_results_give_the_same_page(five, source):
    drawn = standard_figures(five, per_norm_bars, union_against_cost)
    assert source == render_page(five, figures=drawn, gallery=gallery(), notes=["A note."])


def test_the_policy_names_the_pages_own_style_and_script_and_nothing_else(source):
    policy = re.search(r'Security-Policy" content="([^"]*)"', source)[1]
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        ((content,),) = [re.findall(rf"<{tag}>(.*?)</{tag}>", source, re.S)]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{rule} 'sha256-{digest}'" in policy
    assert "unsafe" not in policy
    names = {name for _, attrs in Page(source).elements for name in attrs}
    assert "style" not in names
    assert not [name for name in names if name.startswith("on")]


def test_sections_stand_in_their_order_between_the_attacks_and_the_gallery(five):
    sections = [Section(f"Part {i}", "Why.", (Figure(f"F{i}", "How.", "<svg/>"),)) for i in (1, 2)]
    page = render_page(five, sections=sections, gallery=gallery())
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)[1:]
    assert titles == [
        "Comparison", "Each attack", "Part 1", "Part 2", "Gallery", "Protocol", "Runs",
    ]  # fmt: skip


@pytest.mark.parametrize("title", ["runs", "part 1!", "Main"])
def test_titles_that_would_share_an_address_are_refused(five, title):
    sections = [Section("Part 1", "", ()), Section(title, "", ())]
    with pytest.raises(InputError, match=r"must differ .* rename one"):
        render_page(five, sections=sections)


def test_where_the_data_lay_on_the_machine_is_not_told(run):
    result = run("sat", linf=0.4)
    manifest = {"recipe": {"data": {"name": "digits", "folder": "/home/someone"}}}
    told = dataclasses.replace(
        result, outcomes=dataclasses.replace(result.outcomes, manifest=manifest)
    )
    page = render_page([told])
    assert "recipe.data.name" in page
    assert "/home/someone" not in page


def test_what_has_no_number_has_no_value_to_sort_by(run):
    page = render_page([run("a", linf=0.4, seconds=None), run("b", linf=0.3, errors=10)])
    assert '<td data-value="29.0"><u>29.0–30.0' in page
    assert "<td>–" in page
    assert 'data-value="nan"' not in page


def test_a_change_is_amplified_as_far_as_it_fits_and_gray_is_none():
    clean = np.full((2, 2), 0.5)
    change, gain = amplified(clean + np.array([[0.0, 0.04], [-0.04, 0.03]]), clean)
    assert gain == 10.0
    assert change.tolist() == [[128, 230], [26, 204]]
    change, gain = amplified(np.array([1.0]), np.array([0.0]))
    assert (change.tolist(), gain) == ([255], 1.0)
    assert amplified(clean, clean)[0].tolist() == [[128, 128], [128, 128]]


def test_the_page_adapts_to_phones_and_to_dark_mode(source):
    assert "width=device-width" in source
    assert "prefers-color-scheme: dark" in source
    assert "image-rendering: pixelated" in source


def test_unknown_costs_drop_their_figures_and_a_single_run_has_a_page(run):
    result = run("sat", linf=0.4, seconds=None)
    drawn = standard_figures([result], per_norm_bars, union_against_cost)
    assert [figure.title for figure in drawn] == [
        "Accuracy under each threat",
        "Union accuracy against training passes",
    ]
    assert "second-best" not in Page(render_page([result], figures=drawn)).text


def test_a_run_without_attacks_has_a_page_that_says_so(run):
    drawn = standard_figures([run("sat")], per_norm_bars, union_against_cost)
    assert "No attack was run" in Page(render_page([run("sat")], figures=drawn)).text


def test_the_report_is_written_whole_into_a_new_folder(tmp_path, five):
    write_report(five, tmp_path / "new" / "report.html")
    assert Page((tmp_path / "new" / "report.html").read_text("utf-8")).open == []
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]


def test_a_folder_in_place_of_the_file_is_one_clear_error(tmp_path, five):
    with pytest.raises(RunError, match=r"is a folder. Give the name of a file"):
        write_report(five, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be used as a folder"):
        write_report(five, tmp_path / "file" / "report.html")


def test_a_gallery_of_an_unknown_run_is_refused_with_the_known_names(five):
    with pytest.raises(InputError, match=r"'mng_a'. Did you mean 'mng_ac'\?"):
        render_page(five, gallery={"mng_a": []})


@given(
    st.one_of(
        hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))),
        hnp.arrays(
            np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
        ),
    )
)
def test_png_is_decoded_to_the_same_pixels_by_pillow(image):
    from PIL import Image

    decoded = np.asarray(Image.open(io.BytesIO(png(image))))
    assert np.array_equal(decoded.reshape(image.shape), image)


def test_gallery_images_reach_the_page_unchanged(source):
    assert base64.b64encode(png(IMAGE)).decode() in source


@pytest.mark.parametrize(
    "image", [IMAGE / 255, np.zeros((3, 8, 8), np.uint8), np.zeros((0, 4), np.uint8)]
)
def test_images_of_another_kind_are_refused_with_the_way_out(image):
    with pytest.raises(InputError, match=r"must be uint8 of shape .* put the channels last"):
        GalleryCell("clean", image, "1", True, 0.5)


@pytest.mark.parametrize("confidence", [float("nan"), -0.1, 1.5])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(InputError, match="pass the softmax"):
        GalleryCell("clean", IMAGE, "1", True, confidence)


def test_findings_name_the_best_the_gap_and_the_price(five):
    said = findings(five)
    assert said[0].startswith("mng_ac withstands the union of ℓ∞, ℓ₁ and ℓ₂ on 41.0 %")
    assert "not certain: its interval overlaps with that of adv_max" in said[1]
    assert "adv_linf keeps 50.0 % under ℓ₂ and 20.0 % under ℓ₁" in said[2]
    assert "14.0 points of clean accuracy less than standard" in said[3]
    assert "14.0 times the training time of standard" in said[3]


def test_findings_claim_no_difference_that_the_intervals_do_not_show(run):
    said = findings([run("a", linf=0.40, l1=0.41), run("b", linf=0.42, l1=0.43, clean=0.91)])
    assert "not certain" in said[1]
    assert len(said) == 2


def test_findings_say_when_nothing_withstands_the_union(run):
    assert findings([run("a", linf=0.0)])[0].startswith("No defense withstands the union of ℓ∞")


@pytest.mark.parametrize("name", ["outcomes.md", "report.md"])
def test_the_examples_of_the_documentation_run_and_print_what_they_say(
    name, tmp_path, monkeypatch, capsys
):
    source = (Path(__file__).parents[2] / "docs" / name).read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", source, flags=re.S)
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in blocks:
        exec(block, scope)
    promised = re.findall(r"print\(.*\)\s+# (.*)", source)
    assert capsys.readouterr().out.splitlines()[: len(promised)] == promised
    assert (tmp_path / "report.html").is_file()
