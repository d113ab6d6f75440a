"""The page in a real browser: what it asks for, how it sorts, and who can read it."""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import shutil

import numpy as np
import pytest

from multirobust.analysis import (
    CurveLine,
    CurvePanel,
    curves_figure,
    per_norm_bars,
    union_against_cost,
)
from multirobust.experiment import landscapes
from multirobust.report import (
    Figure,
    GalleryCell,
    GalleryRow,
    Section,
    number_table,
    render_page,
    standard_figures,
)

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
REQUIRED = bool(os.environ.get("MULTIROBUST_BROWSER"))
"""Whether a missing browser is a failure: where the report must be seen, set the variable."""
IMAGE = np.arange(64, dtype=np.uint8).reshape(8, 8)
LONG = "a_defense_with_a_name_that_is_longer_than_any_phone_is_wide_" * 2
FIGURES_OF_RUNS = [
    "Accuracy under each threat",
    "Union accuracy against training time",
    "Union accuracy against training passes",
    "Accuracy against radius",
    "Training curves",
    "Loss around the images",
    "Features of two classes",
]

CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return { rgb: [r, g, b], a };
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const { rgb, a } = parse(getComputedStyle(at).backgroundColor);
      if (a === 1) return rgb;
      if (a !== 0) throw new Error("half transparent");
    }
    return [255, 255, 255];
  };
  document.querySelectorAll("details").forEach((part) => { part.open = true; });
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const { textContent, parentElement } = walker.currentNode;
    if (!textContent.trim() || parentElement.tagName === "SCRIPT") continue;
    const [front, back] = [parse(getComputedStyle(parentElement).color).rgb, behind(parentElement)];
    const [x, y] = [light(front), light(back)].sort((a, b) => b - a);
    found.push([(x + 0.05) / (y + 0.05), textContent.trim().slice(0, 40)]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser():
    missing = [] if CHROMIUM else ["Chromium (looked for chromium, google-chrome and chrome)"]
    missing += [] if importlib.util.find_spec("playwright") else ["playwright"]
    if missing:
        absent = pytest.fail if REQUIRED else pytest.skip
        absent(f"not installed: {' and '.join(missing)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(five, run, tmp_path_factory):
    """A page with everything that a page can have."""
    spared = run("spared", clean=0.7, linf=0.1, errors=10)
    results = [*five, spared, run(LONG, clean=0.9, linf=0.05, l1=0.3, l2=0.3, seconds=None)]
    radius, shares = np.array([0.0, 0.1, 0.2]), np.array([0.9, 0.5, 0.1])
    line = CurveLine("sat", radius, shares, shares - 0.05, shares + 0.05)
    svg = curves_figure([CurvePanel("linf", 0.1, (line,))]).decode()
    table = number_table(["sat", "mng_ac"], ["linf", "l1"], np.array([[0.5, math.nan], [0.4, 0.3]]))
    section = Section("Robustness curves", "A text.", (Figure("Curves", "How.", svg, table),))
    cells = [
        GalleryCell("clean", IMAGE, "5", True, 0.987),
        *(GalleryCell(n, IMAGE, "3", False, 0.5, IMAGE, 2.0) for n in ("linf", "l1", "l2", "n")),
    ]
    page = render_page(
        results,
        figures=standard_figures(results[:-1], per_norm_bars, union_against_cost),
        sections=[section],
        gallery={"sat": [GalleryRow("test image 7, 5", cells)], LONG: []},
        notes=["A note."],
    )
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, "utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def contexts(browser):
    """One window of the browser for each way to open it."""
    made = {}

    def of(**options):
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = browser.new_context(**options)
        return made[key]

    yield of
    for context in made.values():
        context.close()


@pytest.fixture
def open_page(contexts, address):
    """Open the page, watching what it asks for and what it complains of."""
    opened = []

    def build(width=1280, address=address, **options):
        page = contexts(**options).new_page()
        opened.append(page)
        page.set_viewport_size({"width": width, "height": 900})
        page.asked, page.failed, page.complaints = [], {}, []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("requestfailed", lambda request: page.failed.update({request.url: request.failure}))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        return page

    yield build
    for page in opened:
        page.close()


def column(page, place):
    """Return the shown texts of a column of the comparison, from top to bottom."""
    cells = page.locator("#comparison ~ .scroll table").first.locator(
        f"tbody tr > :nth-child({place + 1})"
    )
    return [text.split("\n")[0].strip() for text in cells.all_inner_texts()]


def heading(page, place):
    return page.locator("#comparison ~ .scroll table").first.locator("thead th").nth(place)


def unfolded(page):
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    return page


def test_the_page_loads_without_complaint_and_asks_for_nothing_else(open_page, address):
    page = unfolded(open_page())
    heading(page, 2).get_by_role("button").click()
    assert page.complaints == []
    assert {url for url in page.asked if not url.startswith("data:image/")} == {address}


def test_the_policy_of_the_page_refuses_any_other_script_style_and_request(open_page):
    page = open_page()
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.ran = true";
          document.body.append(script);
          document.body.setAttribute("onclick", "window.ran = true");
          document.body.click();
          document.body.insertAdjacentHTML("beforeend", '<p id="p" style="color: red">x</p>');
          document.body.append(Object.assign(new Image(), { src: "https://example.org/x.png" }));
          return fetch("https://example.org/").catch(() => null);
        }"""
    )
    assert page.evaluate("window.ran") is None
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    beyond = {url for url in page.asked if url.startswith("http")}
    assert all(page.failed[url] == "csp" for url in beyond)
    assert len(page.complaints) >= 4


def test_a_click_sorts_by_the_number_and_what_has_none_stays_last(open_page):
    page = open_page()
    before = column(page, 0)
    expected = {  # of l1: spared has none
        "descending": ["65.0", "60.0", "55.0", "30.0", "20.0", "5.0", "–"],
        "ascending": ["5.0", "20.0", "30.0", "55.0", "60.0", "65.0", "–"],
    }
    for direction, texts in expected.items():
        heading(page, 3).get_by_role("button").click()
        assert heading(page, 3).get_attribute("aria-sort") == direction
        assert column(page, 3) == texts
        assert page.get_by_role("status").inner_text() == f"Sorted by ℓ₁, {direction}."
    heading(page, 3).get_by_role("button").click()
    assert heading(page, 3).get_attribute("aria-sort") is None
    assert column(page, 0) == before


def test_times_sort_by_seconds_and_ranges_by_their_lower_end(open_page):
    page = open_page()
    heading(page, 7).get_by_role("button").click()
    times = ["30 s", "1.0 min", "5.0 min", "5.2 min", "7.0 min", "15 min", "–"]
    assert column(page, 7) == times
    heading(page, 2).get_by_role("button").click()
    assert heading(page, 7).get_attribute("aria-sort") is None
    assert column(page, 2) == ["45.0", "41.0", "40.0", "35.0", "9.0–10.0", "5.0", "0.0"]


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_the_keyboard_reaches_and_presses_every_heading(open_page, key):
    page = open_page()
    count = page.locator("#comparison ~ .scroll table").first.locator("thead th").count()
    reached = []
    page.locator("#comparison ~ .scroll").first.focus()
    for _ in range(count):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent"))
        page.keyboard.press(key)
        sorts = "document.activeElement.parentElement.getAttribute('aria-sort')"
        assert page.evaluate(sorts) in ("ascending", "descending")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    assert len(set(reached)) == count == 8
    assert len(page.locator("[aria-sort]").all()) == 1


def test_totals_stay_below_what_they_sum_up(open_page):
    page = open_page()
    table = page.locator("#each-attack ~ .scroll table").first
    table.get_by_role("button").nth(1).click()
    assert table.locator("tr").last.inner_text().startswith("all (union)")
    assert table.locator("tbody tr").count() == 3


def test_without_scripts_the_tables_are_plain_and_whole(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("button").count() == 0
    assert column(page, 0)[:2] == ["standard", "adv_linf"]
    assert page.complaints == []


def test_every_picture_is_drawn_and_has_a_text(open_page):
    page = unfolded(open_page())
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    images = page.evaluate("[...document.images].map((i) => [i.naturalWidth, i.alt])")
    assert len(images) == 3 + 1 + 5 + 4
    assert all(width > 0 and alt for width, alt in images)


def test_each_figure_has_a_name_a_table_and_a_drawing_to_take_away(open_page):
    page = open_page()
    figures = page.locator("main figure").all()
    assert len(figures) == 4
    for figure in figures:
        name = figure.locator("h3").inner_text()
        assert figure.get_attribute("aria-labelledby") == figure.locator("h3").get_attribute("id")
        assert page.get_by_role("figure", name=name, exact=True).count() == 1
        assert figure.locator("details table tbody tr").count() >= 2
        with page.expect_download() as download:
            figure.get_by_role("link").click()
        assert download.value.suggested_filename.endswith(".svg")
        with open(download.value.path(), encoding="utf-8") as stream:
            assert "<svg" in stream.read()
    assert page.complaints == []


def test_the_page_never_scrolls_sideways(open_page):
    page = unfolded(open_page())
    for width in (320, 360, 768, 1250, 1600):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_every_text_has_the_contrast_that_the_guidelines_ask_for(open_page):
    page = open_page()
    heading(page, 2).get_by_role("button").click()
    for scheme, paper in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(21, 24, 28)")):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == paper
        found = page.evaluate(CONTRASTS)
        assert len(found) > 200
        assert [pair for pair in found if pair[0] < 4.5] == []


def test_headings_are_in_order_and_landmarks_are_there(open_page):
    page = unfolded(open_page())
    levels = [int(tag[1]) for tag in page.evaluate(
        "[...document.querySelectorAll('h1, h2, h3, h4')].map((h) => h.tagName)"
    )]  # fmt: skip
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    for landmark in ("banner", "navigation", "main"):
        assert page.get_by_role(landmark).count() == 1


def test_the_contents_lead_to_every_part_and_the_first_tab_skips_them(open_page):
    page = open_page()
    links = page.locator("nav a").all()
    sections = page.locator("main > section > h2").all_inner_texts()
    assert [link.inner_text() for link in links] == sections
    for link in links:
        assert page.locator(link.get_attribute("href")).count() == 1
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_ids_are_unique_and_every_table_says_what_its_headings_head(open_page):
    page = open_page()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(set(ids)) == len(ids)
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1
        assert table.locator("th:not([scope])").count() == 0
        assert table.locator("tbody tr > :first-child:not(th[scope=row])").count() == 0
    scrolling = "[...document.querySelectorAll('[tabindex=\"0\"]')]"
    assert page.evaluate(f"{scrolling}.every((e) => e.ariaLabel && e.role === 'group')")


def test_paper_shows_what_is_folded_and_no_buttons_to_press(open_page):
    page = open_page()
    page.emulate_media(media="print")
    assert page.locator("nav").is_hidden()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 1


def test_a_reader_who_wants_no_motion_gets_none(open_page):
    page = open_page()
    for choice, scroll in (("reduce", "auto"), ("no-preference", "smooth")):
        page.emulate_media(reduced_motion=choice)
        how = page.evaluate("getComputedStyle(document.documentElement).scrollBehavior")
        assert how == scroll
        assert page.evaluate("document.getAnimations().length") == 0


def test_the_page_of_real_runs_draws_every_figure(
    open_page, multirobust, runs, tmp_path, monkeypatch
):
    for name, count in (("IMAGES", 4), ("POINTS", 3), ("OF_EACH_CLASS", 4)):
        monkeypatch.setattr(landscapes, name, count)
    few = ("--limit", 4, "--iterations", 6, "--targets", 0, "--output", tmp_path / "curves")
    assert multirobust("curve", runs / "adv_linf-s0", *few).code == 0
    path = tmp_path / "report.html"
    made = multirobust("report", runs, "--analyses", "--images", 1, "--output", path)
    assert made.code == 0, made.err
    page = unfolded(open_page(address=path.as_uri()))
    assert page.locator("main figure h3").all_inner_texts() == FIGURES_OF_RUNS
    page.evaluate("Promise.all([...document.images].map((image) => image.decode()))")
    images = page.evaluate("[...document.images].map((i) => [i.naturalWidth, i.alt])")
    changed = 3 * 3 + 2  # three norms of three models, and two that learned noise
    assert len(images) == len(FIGURES_OF_RUNS) + 3 + 2 * changed
    assert all(width > 0 and alt for width, alt in images)
    assert page.locator("#each-attack ~ .scroll table").count() >= 1
    assert column(page, 0) == ["adv_linf", "ant", "mng_ac"]
    while heading(page, 0).get_attribute("aria-sort") != "descending":
        heading(page, 0).get_by_role("button").click()
    assert column(page, 0) == ["mng_ac", "ant", "adv_linf"]
    assert page.complaints == []
    assert {url for url in page.asked if not url.startswith("data:image/")} == {path.as_uri()}
