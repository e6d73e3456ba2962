"""The page, as a browser has it: offline, sorted by clicks, drawn without an error."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.written_runs import write_run
from tta.compare import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FOG = {"fog": 0.5, "snow": 0.7}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for seed in (0, 1):
        write_run(folder / f"a{seed}", "source", seed, FOG)
        write_run(folder / f"b{seed}", "t3a", seed, {"fog": 0.9, "snow": 0.1})
        for lr in (0.01, 0.1):
            write_run(folder / f"c{lr}-{seed}", "tent", seed, {"fog": 0.6 + lr, "snow": 0.8}, lr=lr)
    choices = {"method": "<script>alert(1)</script>", "objective": "em"}
    strange = {"fog</script>": 0.5, "snow": 0.7}
    write_run(folder / "d", "tent", 0, strange, choices=choices, weights="others</script>")
    main([str(folder), "--html"])
    return folder / "comparison.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The page in a browser without a network; fails if it asks for anything, or anything goes wrong."""
    context = browser.new_context(offline=True, viewport={"width": 1400, "height": 900})
    page = context.new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    page.locator(".plot .main-svg").first.wait_for()
    yield page
    assert requests == [file.as_uri()]
    assert errors == []
    context.close()


def test_assets__name_no_other_file() -> None:
    css, js = (Path(main.__code__.co_filename).with_name(f"page.{kind}").read_text() for kind in ("css", "js"))
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest", css + js)


def test_page__words_of_runs_are_no_markup(file: Path) -> None:
    text = file.read_text()
    assert "<script>alert(1)" not in text
    assert "others</script>" not in text
    assert "fog</script>" not in text
    before = text[: text.index("<script>")]
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", before)


def test_page__cells_values_and_warnings(file: Path) -> None:
    text = file.read_text()
    before = text[: text.index("<script>")]
    (first, *_) = re.findall(r'<table class="sortable">.*?</table>', before, re.DOTALL)
    found = {
        re.findall(r"<th scope=\"row\">(.*?)</th>", line)[0]: re.findall(r"<td(.*?)>(.*?)</td>", line)
        for line in first.splitlines()
        if line.startswith("<tr>")
    }
    assert list(found) == ["t3a", "source", "tent + em (lr 0.01)", "tent + em (lr 0.1)"]
    attributes, mean = found["tent + em (lr 0.1)"][0]
    assert mean == "75.00 ±0.00"
    assert 'class="best"' in attributes
    assert 'data-value="75"' in attributes
    assert 'class="second"' in found["tent + em (lr 0.01)"][0][0]
    warnings = re.findall(r'<p class="warning">(.*?)</p>', before)
    assert any("table 1: weights w" in warning and "table 2: weights others" in warning for warning in warnings)


def test_page__plots_hold_the_figures(file: Path) -> None:
    found = re.search(r'<script type="application/json" id="plots">(.*?)</script>', file.read_text(), re.DOTALL)
    assert found is not None
    plots = json.loads(found[1])
    assert len(plots) == 5 + 4  # one table sweeps the learning rate
    assert [trace["name"] for trace in plots["figure-0-0"]["data"]] == ["t3a", "source", "tent + em (lr 0.1)"]
    bars = plots["figure-0-1"]["data"][0]
    assert bars["x"] == ["fog", "snow", "mean"]
    assert bars["y"] == pytest.approx([90, 10, 50])


def rows(page: Any, table: int = 0) -> list[str]:
    return page.locator("table.sortable").nth(table).locator("tbody th").all_inner_texts()


@pytest.mark.slow
def test_browser__tables_sort_by_any_column_and_back(page: Any) -> None:
    first = page.locator("table.sortable").first
    worst_first = ["t3a", "source", "tent + em (lr 0.01)", "tent + em (lr 0.1)"]
    assert rows(page) == worst_first
    mean = first.locator("thead th", has_text="mean")
    mean.locator("button").click()
    assert rows(page) == worst_first[::-1]
    assert mean.get_attribute("aria-sort") == "descending"
    mean.locator("button").click()
    assert rows(page) == worst_first
    first.locator("thead button", has_text="fog").click()
    assert rows(page) == ["t3a", "tent + em (lr 0.1)", "tent + em (lr 0.01)", "source"]
    first.locator("thead button", has_text="method").focus()
    page.keyboard.press("Enter")
    assert rows(page) == ["source", "t3a", "tent + em (lr 0.01)", "tent + em (lr 0.1)"]
    first.locator("thead th").nth(3).locator("button").click()  # p: the baseline has none, and stays last
    assert rows(page)[-1] == "source"
    assert first.locator("thead th[aria-sort]").count() == 1


@pytest.mark.slow
def test_browser__best_and_second_look_it(page: Any) -> None:
    first = page.locator("table.sortable").first

    def style(mark: str, name: str) -> str:
        return first.locator(f"td.{mark}").first.evaluate(f"cell => getComputedStyle(cell).{name}")

    assert style("best", "fontWeight") == "700"
    assert "underline" in style("second", "textDecorationLine")


@pytest.mark.slow
def test_browser__figures_are_drawn_and_react(page: Any) -> None:
    plots = page.locator(".plot")
    assert plots.count() == 5 + 4  # one table sweeps the learning rate
    for place in range(plots.count()):
        plot = plots.nth(place)
        assert plot.locator(".trace, .point").count() > 0
        assert plot.locator(".xtitle").text_content() != ""
    buttons = plots.first.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert "Zoom" in buttons
    assert not any("hare" in title or "loud" in title for title in buttons)  # nothing that uploads
    legend = plots.first.locator(".legendtext").all_text_contents()
    assert legend == ["t3a", "source", "tent + em (lr 0.1)"]
    plots.first.locator(".nsewdrag").hover()
    bars = plots.nth(1)
    bars.scroll_into_view_if_needed()
    box = bars.locator(".point").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator(".hoverlayer .hovertext").first.wait_for()
    if folder := os.environ.get("TTA_SCREENSHOTS"):  # to look at
        page.screenshot(path=Path(folder) / "page.png", full_page=True)
