"""`steadytune report`: the command, what it does not load, and the page in a browser."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By

from toystudy import SCRIPT, make_study

Run = Callable[[str], Any]

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PHONE, DESK = 390, 1200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    arms = {"plain": "baseline", "hype": "recipe"}
    return make_study(tmp_path_factory.mktemp("report") / "study", arms=arms, seeds=range(2))


def steadytune(*words: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The command in a process of its own, and what it loaded."""
    program = (
        "import sys; from steadytune.cli import main; code = main(); "
        "print(*(name for name in sys.modules if '.' not in name), file=sys.stderr); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
    return run, set(run.stderr.split())


@pytest.fixture(scope="module")
def page(folder: Path) -> Path:
    """The report, made by the command."""
    run, loaded = steadytune("report", str(folder))
    assert run.returncode == 0, run.stderr
    assert "torch" not in loaded
    assert str(folder / "report.html") in run.stdout
    return folder / "report.html"


def test_the_command_repeats_its_bytes(page: Path, run: Run) -> None:
    before = page.read_bytes()
    done = run(f"report {page.parent} --json")
    assert json.loads(done.out) == {"report": str(page), "tables": str(page.parent / "tables")}
    assert page.read_bytes() == before


def test_help_loads_neither_torch_nor_matplotlib() -> None:
    run, loaded = steadytune("--help")
    assert "report" in run.stdout
    assert not {"torch", "matplotlib", "jinja2", "sklearn"} & loaded


@pytest.mark.parametrize("where", ["nowhere", "."])
def test_a_folder_without_a_study_is_bad_input(where: str, run: Run, tmp_path: Path) -> None:
    done = run(f"report {tmp_path / where}")
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert "holds no study" in done.err


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("there is no Chromium with its driver here: install chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    switches = "headless=new no-sandbox disable-gpu disable-background-networking disable-component-update disable-sync"
    for switch in [*switches.split(), f"user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser: webdriver.Chrome, page: Path, *, width: int = DESK, dark: bool = False) -> None:
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width == PHONE}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": [scheme]})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(f"file://{page}")
    browser.execute_script("localStorage.clear()")
    browser.refresh()


def visible(browser: webdriver.Chrome) -> list[str]:
    return [
        one.get_attribute("id") or "" for one in browser.find_elements(By.TAG_NAME, "section") if one.is_displayed()
    ]


def brightness(browser: webdriver.Chrome) -> int:
    color = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))


def test_one_section_is_shown_at_a_time_with_its_figures(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    assert visible(browser) == ["verdict"]
    for tab in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        tab.click()
        section = browser.find_element(By.ID, (tab.get_attribute("aria-controls") or ""))
        assert visible(browser) == [section.get_attribute("id")]
        sizes = [svg.size for svg in section.find_elements(By.TAG_NAME, "svg")]
        assert all(min(size.values()) > 50 for size in sizes)
        assert bool(sizes) == (section.get_attribute("id") not in ("verdict", "data", "origin"))


def test_a_class_named_like_a_script_is_text_and_runs_nothing(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    browser.find_element(By.CSS_SELECTOR, "nav a[href='#data']").click()
    assert SCRIPT in browser.find_element(By.ID, "data").text
    browser.find_element(By.CSS_SELECTOR, "nav a[href='#errors']").click()
    shown = browser.find_elements(By.CSS_SELECTOR, "#errors svg text")
    assert any(text.text.startswith("<script>") for text in shown)
    with pytest.raises(NoAlertPresentException):
        _ = browser.switch_to.alert


def test_the_page_loads_nothing_and_complains_of_nothing(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []  # type: ignore[no-untyped-call]


def test_on_a_phone_the_page_does_not_scroll_sideways(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page, width=PHONE)
    for tab in browser.find_elements(By.CSS_SELECTOR, "nav a"):
        browser.execute_script("arguments[0].click()", tab)
        assert browser.execute_script("return document.documentElement.scrollWidth") == PHONE


def test_the_page_follows_the_scheme_and_its_button_overrules_it(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    assert brightness(browser) > 600
    opened(browser, page, dark=True)
    assert brightness(browser) < 150
    browser.find_element(By.ID, "theme").click()
    assert brightness(browser) > 600
    browser.refresh()
    assert brightness(browser) > 600  # remembered


def test_arrow_keys_walk_along_the_tabs(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    tab = browser.find_element(By.CSS_SELECTOR, "nav a")
    tab.send_keys("\ue014")  # right
    assert visible(browser) == ["seeds"]
    browser.switch_to.active_element.send_keys("\ue012")  # left
    assert visible(browser) == ["verdict"]


def test_print_shows_all_sections(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert len(visible(browser)) == 12


def test_without_scripts_the_page_is_one_long_one(browser: webdriver.Chrome, page: Path) -> None:
    opened(browser, page)
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.refresh()
        assert len(visible(browser)) == 12
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
