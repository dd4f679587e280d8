"""The page in a browser: no error, no request, a tree that opens, charts that draw, words shown literally.

Needs chromium and chromedriver (Debian: `apt-get install chromium chromium-driver`). Without them the tests are
skipped, but in CI they fail.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from frostline.report import write_page

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip
DRAWN = """
return [...document.querySelectorAll(".chart")].map(chart => ({
    svg: chart.querySelectorAll("svg.main-svg").length,
    drawn: chart.querySelectorAll(
        ".scatterlayer .js-line, .scatterlayer .point, .barlayer .point path, .heatmaplayer image").length,
}));
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    found = shutil.which("chromium"), shutil.which("chromedriver")
    if None in found:
        message = "chromium and chromedriver are not installed: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(message)
    from selenium.webdriver import Chrome
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}", "--window-size=1200,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(found[1]))
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture(params=["recorded", "trained", "explained"])
def page(request: pytest.FixtureRequest, browser: Any, tmp_path: Path) -> Any:
    """The browser with the page of a run folder open, and nothing in its logs from before."""
    path = write_page(request.getfixturevalue(request.param), tmp_path / "page.html")
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(path.as_uri())
    return browser


def until(driver: Any, holds: Callable[[Any], bool]) -> None:
    """Wait until `holds`; fail after ten seconds."""
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 10).until(holds)


def requests(driver: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [
        message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"
    ]


def test_it_loads_without_an_error_and_asks_for_nothing_but_itself(page: Any) -> None:
    drawn = page.execute_script(DRAWN)
    assert page.get_log("browser") == []
    asked = requests(page)
    assert page.current_url in asked
    assert [url for url in asked if url != page.current_url and not url.startswith(("data:", "blob:"))] == []
    assert len(drawn) >= 4


def test_every_chart_is_drawn(page: Any) -> None:
    drawn = page.execute_script(DRAWN)
    assert all(chart["svg"] and chart["drawn"] for chart in drawn)
    assert page.get_log("browser") == []


def test_modules_open_and_close_on_a_click(page: Any) -> None:
    from selenium.webdriver.common.by import By

    module = page.find_element(By.CSS_SELECTOR, ".tree details")
    tensor = module.find_element(By.CSS_SELECTOR, ".tensor")
    summary = module.find_element(By.CSS_SELECTOR, "summary")
    before = module.get_attribute("open") is not None
    assert tensor.is_displayed() == before
    for is_open in (not before, before):
        summary.click()
        assert tensor.is_displayed() == is_open


def test_the_charts_follow_the_system_from_light_to_dark(page: Any) -> None:
    ink = 'return getComputedStyle(document.querySelector(".chart .xtick text, .chart .ytick text")).fill'
    for scheme, colour in (("light", "rgb(29, 39, 48)"), ("dark", "rgb(228, 233, 237)")):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        until(page, lambda driver, colour=colour: driver.execute_script(ink) == colour)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_it_fits_a_telephone(page: Any) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    until(page, lambda driver: driver.execute_script("return document.documentElement.scrollWidth") <= 390)
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("page", ["recorded"], indirect=True)
def test_hostile_words_are_shown_letter_by_letter(page: Any) -> None:
    ticks = page.execute_script('return [...document.querySelectorAll(".ytick text")].map(tick => tick.textContent)')
    for word in (
        "<script>alert(1)</scrip…",
        "</script><b>bold</b>",
        "&amp;",
        "a\"b'c",
        "$x$",
        "%{x}",
        "two lines",
        "caf?",
    ):
        assert word in ticks
    assert page.execute_script('return document.querySelector("h1").textContent') == "Some <words> & a bias"
