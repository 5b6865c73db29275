"""The report of a study: one page that needs nothing else, and its tables as files."""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

from steadytune.records.store import written_aside
from steadytune.reports.page import Section
from steadytune.reports.sections.origin import data_section, origin_section
from steadytune.reports.sections.robustness import robustness_section
from steadytune.reports.sections.rows import calibration_section, errors_section
from steadytune.reports.sections.scores import cost_section, differences_section, seed_sheet, seeds_section
from steadytune.reports.sections.training import curves_section, layers_section, telemetry_section, vectors_section
from steadytune.reports.sections.verdict import verdict_section
from steadytune.reports.study import Study, read_study
from steadytune.reports.tables import comma_separated, joined, latex, markdown

_FORMS = {"md": markdown, "tex": latex, "csv": comma_separated}
_TABLES = (
    "calibration",
    "confusions",
    "cost",
    "failures",
    "fingerprints",
    "flips",
    "gain",
    "groups",
    "lost",
    "overview",
    "right",
    "robustness",
    "seeds",
    "software",
    "trials",
    "verdict",
)


def write_report(folder: Path, *, publish: bool = False) -> Path:
    """Make the page and the tables of a study from its folder alone; the same folder gives the same bytes.

    Args:
        folder: of the study.
        publish: leave out every text and token of the data, which may not be passed on, and the folders of paths.
    Returns:
        Where the page lies: `report.html`, or `published.html`.
    Raises:
        StoreError: there is no study in the folder, or a file of it cannot be read.
    """
    study = read_study(folder).published() if publish else read_study(folder)
    sections = report_sections(study, publish=publish)
    sheets = joined([*(sheet for section in sections for sheet in section.sheets()), seed_sheet(study)])
    tables = folder / "tables"
    tables.mkdir(exist_ok=True)
    for name in _TABLES:
        for form, text in _FORMS.items():
            path = tables / f"{name}.{form}"
            if name in sheets and sheets[name].rows:
                _write(path, text(sheets[name]))
            else:
                path.unlink(missing_ok=True)  # of an earlier report: what it said is no longer so
    page = folder / ("published.html" if publish else "report.html")
    _write(page, rendered("report.html.j2", study=study, sections=sections, publish=publish))
    return page


def report_sections(study: Study, *, publish: bool = False) -> list[Section]:
    """The tabs of a report.

    Args:
        study: what to read.
        publish: see `write_report`.
    """
    layers, robustness = layers_section(study, publish=publish), robustness_section(study)
    return [
        verdict_section(study),
        seeds_section(study),
        differences_section(study),
        *([] if robustness is None else [robustness]),
        cost_section(study),
        curves_section(study),
        telemetry_section(study),
        errors_section(study, publish=publish),
        calibration_section(study),
        vectors_section(study),
        *([] if layers is None else [layers]),
        data_section(study),
        origin_section(study),
    ]


def rendered(template: str, **values: object) -> str:
    """A page.

    Args:
        template: its name.
        values: what the template asks for.
    """
    room = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    room.filters["drawn"] = Markup  # figures escape their own text
    room.filters["fingerprint"] = lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return room.get_template(template).render(**values)


def _write(path: Path, text: str) -> None:
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")
