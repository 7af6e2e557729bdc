"""The page in headless Chromium: views, filters, keys, and texts that would be code elsewhere."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import chromium
from made_runs import HOSTILE, make_run

from lit_rft.viewer import make_page, read_run


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by playwright. Both are processes: this file has to be left out of `make test-fast`."""
    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(chromium())
        except SystemExit as missing:
            pytest.skip(str(missing))
        yield browser


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs = [make_run(folder / name, seed=seed, steps=30) for seed, name in enumerate(("luffy", "grpo"))]
    page = folder / "page.html"
    page.write_text(make_page([read_run(run) for run in runs]))
    return page


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator[Any]:
    """The opened page; a message on the console, an error or a request to anywhere fails the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 800})
    page, complaints = context.new_page(), []
    page.set_default_timeout(20_000)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector(".chart svg")
    yield page
    assert page.evaluate("window.broken") is None
    context.close()
    assert complaints == []


def rows(page: Any) -> list[list[str]]:
    return [[cell.inner_text() for cell in row.query_selector_all("span[role=gridcell]")]
            for row in page.query_selector_all(".body .row")]  # fmt: skip


def count(page: Any) -> str:
    return str(page.inner_text(".rollouts .count"))


def open_rollouts(page: Any) -> None:
    page.click("nav a[href='#rollouts']")
    page.wait_for_selector(".body .row")


def test_curves_are_overlaid_searched_and_smoothed(page: Any) -> None:
    assert page.locator(".chart:visible").count() == 7
    chart = page.locator(".chart", has_text="train/reward")
    assert chart.locator("path.line").count() == 2 and chart.locator("path.raw").count() == 2
    before = chart.locator("path.line").first.get_attribute("d")
    page.locator("input[type=range]").fill("0")
    page.wait_for_selector(".chart path.raw", state="detached")
    assert chart.locator("path.line").first.get_attribute("d") != before
    page.fill("input[type=search]", "train re")
    assert page.locator(".chart:visible h3").all_inner_texts() == ["train/reward"]
    assert page.inner_text(".count") == "1 of 7 curves"
    page.uncheck("#runs input >> nth=1")
    chart.locator("path.line").nth(1).wait_for(state="detached")


def test_the_axis_of_steps_is_named_below_each_curve(page: Any) -> None:
    chart = page.locator(".chart", has_text="train/loss")
    assert chart.locator(".tick.x").all_inner_texts() == ["1", "step", "30"]
    first, name, last = (mark.bounding_box() for mark in chart.locator(".tick.x").all())
    plot, edge = chart.locator(".plot").bounding_box(), chart.bounding_box()
    assert plot["y"] + plot["height"] <= name["y"] and name["y"] + name["height"] <= edge["y"] + edge["height"]
    assert first["x"] + first["width"] < name["x"] and name["x"] + name["width"] < last["x"]
    assert abs(name["x"] + name["width"] / 2 - plot["x"] - plot["width"] / 2) < 2  # in the middle


def test_a_constant_curve_is_drawn(page: Any) -> None:
    chart = page.locator(".chart", has_text="train/learning_rate")
    chart.scroll_into_view_if_needed()
    chart.locator("path.line").first.wait_for(state="attached")
    ticks = chart.locator(".tick.y").all_inner_texts()
    assert 2 <= len(ticks) <= 8 and "2.00e−4" in ticks


def test_a_curve_is_read_by_keys_and_leads_to_the_rollouts_of_its_step(page: Any) -> None:
    plot = page.locator(".chart", has_text="train/loss").locator(".plot")
    assert re.search(r"train/loss. luffy: 30 points, last", plot.get_attribute("aria-label"))
    plot.focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert "step 3" in page.locator(".chart", has_text="train/loss").inner_text()
    page.keyboard.press("Enter")
    page.wait_for_selector(".body .row")
    assert {row[1] for row in rows(page)} == {"2"} and count(page) == "22 of 660 rollouts"


def test_filters(page: Any) -> None:
    open_rollouts(page)
    assert count(page) == "660 rollouts"
    page.get_by_label("Task").select_option("walk")
    assert count(page) == "180 of 660 rollouts"
    page.get_by_label("Kind").select_option("1")
    assert count(page) == "60 of 660 rollouts" and all("trace" in row[7] for row in rows(page))
    page.get_by_text("Clear").click()
    page.get_by_label("Level").select_option("high")
    assert count(page) == "180 of 660 rollouts"
    page.get_by_text("Clear").click()
    page.get_by_label("Success").select_option("0")
    failed = int(count(page).split()[0])
    page.get_by_label("Success").select_option("")
    page.get_by_label("Highest reward").fill("0.5")
    assert 0 < failed == int(count(page).split()[0]) < 660
    page.get_by_text("Clear").click()
    page.get_by_label("Truncated").select_option("1")
    assert 0 < int(count(page).split()[0]) < 200
    page.get_by_text("Clear").click()
    page.get_by_label("Search rollouts").fill("SUM-7-1")
    assert count(page) == "8 of 660 rollouts" and {row[1] for row in rows(page)} == {"7"}
    page.uncheck("#runs input >> nth=0")
    assert count(page) == "4 of 660 rollouts"


def test_the_table_is_sorted_and_read_by_keys(page: Any) -> None:
    open_rollouts(page)
    assert len(rows(page)) < 50  # of 660: only those in view are elements
    page.click("[role=columnheader] button:has-text('Step')")
    page.focus("[role=columnheader] button:has-text('Step')")
    page.keyboard.press("Enter")
    assert page.get_attribute("[role=columnheader]:has-text('Step')", "aria-sort") == "descending"
    assert rows(page)[0][1] == "29"
    page.focus("[role=grid]")
    page.keyboard.press("End")
    page.wait_for_selector(".detail h2")
    active = page.get_attribute("[role=grid]", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true" and rows(page)[-1][1] == "0"
    page.keyboard.press("Home")
    page.wait_for_selector(".detail .title:has-text('step 29')")


def test_a_completion_with_its_tokens_and_its_group(page: Any) -> None:
    open_rollouts(page)
    page.click(".body .row >> nth=1")
    page.wait_for_selector(".tokens span")
    facts = page.inner_text(".detail .facts")
    assert re.search(r"reward\s+[01]\s+math\s+[01]\s+length", facts) and "reference answer" in facts
    assert page.locator(".tokens span.clipped").count() > 0
    colors = set()
    for name in ("probability", "ratio", "advantage", "none"):
        page.locator(".tools select").select_option(name)
        colors.add(page.locator(".tokens").evaluate("e => [...e.children].map(c => c.style.backgroundColor).join()"))
    assert len(colors) == 4
    page.focus(".tokens")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert re.search(r"token 2\s.*probability .*sampled log-prob .*ratio", page.inner_text(".info"), re.DOTALL)
    page.click("text=Group of 4")
    assert page.locator(".compare section").count() == 4 and page.locator(".compare .trace").count() == 1
    page.click(".members button:has-text('trace')")
    page.wait_for_selector(".members button[aria-current=true]:has-text('trace')")
    page.go_back()
    page.wait_for_selector(".members button[aria-current=true]:has-text('trace')", state="detached")


def test_an_episode_with_subgoals_and_hostile_texts(page: Any) -> None:
    open_rollouts(page)
    page.get_by_label("Task").select_option("walk")
    page.click(".body .row >> nth=1")
    page.wait_for_selector(".subgoal")
    assert page.locator(".step").count() == 4 and page.locator(".subgoal h3").count() > 0
    assert not page.locator(".info").is_visible()  # of tokens
    assert HOSTILE in page.inner_text(".detail .talk") and page.locator(".detail img, .detail script").count() == 0
    page.click("text=Conversation: low")
    page.locator(".tools select").select_option("entropy")
    assert page.locator(".turn.wrote").count() == 3
    page.click("text=Group of 3")
    assert page.locator(".compare section").count() == 3


def test_settings_and_environment(page: Any) -> None:
    page.click("nav a[href='#run']")
    about = page.locator(".about")
    assert "Settings that differ" in about.inner_text() and "3.11.7" in about.inner_text()
    assert page.locator("th", has_text="learning_rate").count() == 1
    page.get_by_label("Search configurations").fill("SEED")
    assert [mark.strip() for mark in page.locator("mark").all_inner_texts()] == [
        "seed_everything: 0",
        "seed_everything: 1",
    ]


def test_every_control_has_a_name(page: Any) -> None:
    for view in ("curves", "rollouts", "run"):
        page.click(f"nav a[href='#{view}']")
        if view == "rollouts":
            page.click(".body .row >> nth=0")
            page.wait_for_selector(".tokens span")
        nameless = page.evaluate("""() => [...document.querySelectorAll(
            'button, select, input, [role=grid], [role=img], [role=group]')].filter((e) => !(
            e.getAttribute('aria-label') ||
            [...e.labels ?? []].map((label) => label.textContent).join('') || e.textContent).trim()
          ).map((e) => e.outerHTML)""")
        assert nameless == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(browser: Any, file: Path, scheme: str) -> None:
    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector(".chart svg")
    script = """() => { const style = getComputedStyle(document.documentElement);
      const light = (name) => { const hex = style.getPropertyValue(name).trim();
        const [r, g, b] = [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16) / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05);
      return ['--ink', '--soft', '--good', '--bad', '--accent'].flatMap((ink) =>
        ['--paper', '--raised', '--hover'].map((paper) => [ink, paper, ratio(ink, paper)])); }"""
    low = [pair for pair in page.evaluate(script) if pair[2] < 4.5]  # WCAG 2, level AA
    context.close()
    assert low == []


@pytest.mark.slow  # 15 s on one core
def test_the_benchmark_of_the_page_runs(browser: Any, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "viewer.py"
    command = [sys.executable, str(script), "--steps", "4", "--rounds", "1", "--results", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads((tmp_path / "viewer.json").read_text())
    assert result["rollouts"] == 108 and 0 < result["page_mb"] < result["rollout_files_mb"]
    assert all(0 < times["median"] < 20_000 for times in result["milliseconds"].values())
    assert {"curves", "table", "filter: text", "completion", "scroll"} < result["milliseconds"].keys()
