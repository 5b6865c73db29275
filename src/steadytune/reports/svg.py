"""Figures as SVG that stands in a page: same input, same bytes; colors follow the theme of the page."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK = "#010203"  # becomes the color of the text around the figure
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#a6468a", "#b27c00", "#3a9ad1", "#8c2d04", "#6b6b6b")
GRAY = len(PALETTE) - 1
MARKERS = "os^Dv*PX"
MARKS = "●■▲◆▼★✚✖"  # the same in a legend
LINES = ("-", "--", ":", "-.")
LONGEST = 24  # characters of a name in a figure

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 9,
    "figure.facecolor": "none",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "steadytune",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"
_SCALE = 1.25  # CSS pixels per point at the natural size


class Look(NamedTuple):
    """How one recipe or class is drawn wherever it appears: color, marker and line, all three different."""

    color: int
    marker: int = 0
    line: int = 0

    @property
    def ink(self) -> str:
        """Its color, for drawing."""
        return PALETTE[self.color]

    @property
    def mark(self) -> str:
        """Its marker as a character."""
        return MARKS[self.marker]


def class_look(index: int) -> Look:
    """The look of a class; the first 64 differ.

    Args:
        index: of the class.
    """
    around, color = divmod(index, len(PALETTE))
    return Look(color, (color + around) % len(MARKERS))  # markers help those who tell few colors apart


def short(name: str, longest: int = LONGEST) -> str:
    """A name that fits into a figure: one line, without control characters, cut at the end.

    Args:
        name: any text.
        longest: in characters.
    """
    line = "".join(mark if mark.isprintable() else " " for mark in name)
    line = " ".join(line.split()) or "?"
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def drawn(
    draw: Callable[[Sequence[Axes]], None],
    *,
    key: str,
    title: str,
    description: str,
    width: float = 4.4,
    height: float = 2.8,
    panels: int = 1,
) -> str:
    """A figure as an SVG element.

    Args:
        draw: fills the axes.
        key: names the figure within its page; letters, digits and hyphens.
        title: read aloud where a screen reader stops at the figure.
        description: read after it.
        width: in inches.
        height: in inches.
        panels: axes side by side.
    Returns:
        SVG without declaration or name spaces, for use in an HTML page.
    """
    defaults: dict[Any, Any] = {**matplotlib.rcParamsDefault}  # not what a file of the user says
    settings = {name: value for name, value in {**defaults, **_STYLE}.items() if "backend" not in name}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained")
        draw([figure.add_subplot(1, panels, index + 1) for index in range(panels)])
        out = io.StringIO()
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        FigureCanvasSVG(figure).print_svg(out, metadata=nothing)  # type: ignore[no-untyped-call]
    return _inline(out.getvalue(), key, title, description)


def _inline(text: str, key: str, title: str, description: str) -> str:
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{_SVG}style":
                parent.remove(child)
    used = set(re.findall(r'(?:url\(|href=")#([^")]+)', text))
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.text = element.text if element.tag == "text" else None
        element.tail = None
        if (target := element.attrib.pop(_HREF, None)) is not None:
            element.set("href", target)
        if element.get("id") not in used:
            element.attrib.pop("id", None)
        for name, value in element.attrib.items():
            element.set(name, _attribute(name, value, key))
    size = [float(number) for number in root.attrib["viewBox"].split()[2:]]
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{size[0] * _SCALE:.0f}",
        "role": "img",
        "aria-labelledby": f"{key}-title {key}-text",
    }
    for index, (tag, said, name) in enumerate((("title", title, "title"), ("desc", description, "text"))):
        element = ElementTree.Element(tag, {"id": f"{key}-{name}"})
        element.text = short(said, 1000)
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name in ("href", "clip-path"):
        return value.replace("#", f"#{key}-")
    if name == "style":
        value = re.sub(r"font-family: [^;]*", "font-family: inherit", value)
        value = value.replace("; ", ";").replace(": ", ":").replace(INK, "currentColor")
        return re.sub("|".join(PALETTE), lambda found: f"var(--c{PALETTE.index(found[0])})", value)
    if name in ("d", "x", "y", "width", "height", "transform", "points"):
        value = " ".join(value.split())
        return re.sub(r"\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
    return value
