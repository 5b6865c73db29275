"""Figures are the same bytes each time, follow the theme of the page, and show every name as text."""

import re
from collections.abc import Callable
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from steadytune.reports import figures
from steadytune.reports.calibration import reliability
from steadytune.reports.figures import Curve, Dots, Priced, Span
from steadytune.reports.statistics import Interval
from steadytune.reports.svg import MARKERS, PALETTE, Look, class_look, short

EVIL = "<script>alert(1)</script>"
NAMES = [EVIL, "_$\\frac{1}$ 日本語 \x00"]
LOOK = Look(1, 1)
SHARES = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]])
STEPS, ONES, GAP = np.arange(1.0, 4.0), np.ones(3), np.full(3, np.nan)
POINTS = np.arange(10.0).reshape(5, 2)

DRAW: dict[str, Callable[[str], str]] = {
    "seeds": lambda name: figures.seed_figure([Dots(name, LOOK, {0: 1.0, 1: 2.0})], name, key="k", title=name),
    "no seeds": lambda name: figures.seed_figure([Dots(name, LOOK, {})], name, key="k", title=name),
    "differences": lambda name: figures.difference_figure(
        [Span(name, LOOK, 1.0, Interval(-1.0, 3.0)), Span(name, LOOK, 1.0, None)], name, key="k", title=name
    ),
    "cost": lambda name: figures.cost_figure(
        [Priced(LOOK, 300.0, 50.0, 1.0), Priced(LOOK, 400.0, 50.0, None)], name, key="k", title=name
    ),
    "curves": lambda name: figures.curve_figure([Curve(LOOK, STEPS, ONES, ONES)], "step", key="k", title=name),
    "one seed": lambda name: figures.curve_figure([Curve(LOOK, STEPS, ONES, GAP)], "step", key="k", title=name),
    "confusions": lambda name: figures.confusion_figure(np.eye(2, dtype=int) * 5, [name, "b"], key="k", title=name),
    "reliability": lambda name: figures.reliability_figure(
        reliability(SHARES, np.array([0, 1, 1])), (), LOOK, key="k", title=name
    ),
    "vectors": lambda name: figures.vector_figure(POINTS, np.array([0, 1, 0, 1, 9]), key="k", title=name),
    "agreement": lambda name: figures.agreement_figure(STEPS, ONES, LOOK, key="k", title=name),
    "attention": lambda name: figures.attention_figure(np.eye(2), [name, "b"], np.eye(2), key="k", title=name),
}


@pytest.mark.parametrize("kind", DRAW)
def test_a_figure_repeats_byte_for_byte(kind: str) -> None:
    assert DRAW[kind]("name") == DRAW[kind]("name")


@pytest.mark.parametrize("kind", DRAW)
@pytest.mark.parametrize("name", NAMES)
def test_any_name_stays_text(kind: str, name: str) -> None:
    root = ElementTree.fromstring(DRAW[kind](name))
    assert {element.tag for element in root.iter()} <= {
        *("svg", "g", "path", "use", "defs", "clipPath", "rect", "text", "title", "desc")
    }
    assert root.findtext("title") == short(name, 1000)


@pytest.mark.parametrize("kind", DRAW)
def test_no_color_is_fixed(kind: str) -> None:
    assert re.findall(r"#[0-9a-f]{6}\b", DRAW[kind]("name")) == []


@pytest.mark.parametrize("kind", DRAW)
def test_a_screen_reader_finds_title_and_description(kind: str) -> None:
    root = ElementTree.fromstring(DRAW[kind]("name"))
    said = [element.text for element in root if element.get("id") in root.attrib["aria-labelledby"].split()]
    assert len(said) == 2
    assert all(said)


def test_ids_of_two_figures_differ() -> None:
    found = [
        set(re.findall(r' id="([^"]+)"', figures.agreement_figure(STEPS, ONES, LOOK, key=key, title="t")))
        for key in ("one", "two")
    ]
    assert found[0]
    assert not found[0] & found[1]


def test_every_reference_of_a_figure_leads_to_one_of_its_ids() -> None:
    svg = DRAW["seeds"]("name")
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= set(re.findall(r' id="([^"]+)"', svg))


def test_a_users_matplotlib_settings_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = DRAW["cost"]("name")
    monkeypatch.setitem(matplotlib.rcParams, "lines.linewidth", 9.0)
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20.0)
    assert DRAW["cost"]("name") == before


def test_a_confusion_matrix_of_60_classes_stays_below_300_kilobytes() -> None:
    counts = np.random.default_rng(0).integers(0, 3, size=(60, 60))
    svg = figures.confusion_figure(counts, [f"class {index}" for index in range(60)], key="k", title="t")
    assert len(svg) < 300_000


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    many = np.arange(1000.0)
    svg = figures.curve_figure([Curve(LOOK, many, many, many * np.nan)], "step", key="k", title="t")
    few = figures.curve_figure([Curve(LOOK, many[[0, -1]], many[[0, -1]], GAP[:2])], "step", key="k", title="t")
    assert len(svg) < len(few) + 3000
    assert re.findall(r">(\d+)</text>", svg) == re.findall(r">(\d+)</text>", few)  # the same ticks


def test_the_first_64_classes_look_different() -> None:
    assert len({class_look(index) for index in range(64)}) == 64 == len(PALETTE) * len(MARKERS)


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb", "a b"), ("", "?"), ("a" * 30, "a" * 23 + "…"), ("a" * 24, "a" * 24)]
)
def test_a_name_fits_on_one_line(name: str, shown: str) -> None:
    assert short(name) == shown
