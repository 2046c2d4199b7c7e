"""The page and the files beside it, written as one folder."""

import base64
import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from pathlib import Path

import jinja2
from markupsafe import Markup

from gendistill import __version__
from gendistill.errors import UserError
from gendistill.files import SUMS, damage_of, folder_in_one_piece, make_folder, seal, write_atomically
from gendistill.report.page.drawing import in_page
from gendistill.report.page.formats import FORMATS, is_name
from gendistill.report.page.parts import Column, Figure, Interval, Page, Part, Section, Table, Value, known, shown
from gendistill.visible import visible

PAGE = "report.html"
TABLES, PLOTS = "tables", "plots"
SHOWN_FORMATS = {"csv": "CSV", "json": "JSON", "md": "Markdown", "tex": "LaTeX"}
PIXELS_A_POINT = 4 / 3


def write_page(page: Page, folder: Path) -> Path:
    """Writes report.html, tables/ and plots/ into a folder, whole at once; returns the page's path.

    Raises:
        UserError: the folder holds what is no earlier report, or cannot be written.
    """
    folder = folder.resolve()
    check_folder(folder)
    with folder_in_one_piece(folder) as partial:
        # Values as they were measured, beside what the page shows of them.
        for table in page.of(Table):
            for ending, to_text in FORMATS.items():
                _write(partial / TABLES / f"{table.name}.{ending}", to_text(table))
        for figure in page.of(Figure):
            _write(partial / PLOTS / f"{figure.name}.svg", figure.svg)
        # Each folder by itself: a seal is of the files that lie in a folder, not of those below.
        for below in (TABLES, PLOTS):
            make_folder(partial / below)
            seal(partial / below)
        write_atomically(partial / PAGE, to_html(page))
        shutil.rmtree(folder, ignore_errors=True)  # an earlier report, now that its successor is there
    return folder / PAGE


def _write(path: Path, text: str) -> None:
    """A file of a folder that is sealed as a whole, and so put on the disk there."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Raises UserError if something would be lost there: only an earlier report, as it was written, is replaced."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder to write with --output")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    # Somebody's own folder, in which files of many names would be lost.
    if not (folder / PAGE).is_file() or not (folder / SUMS).is_file():
        raise UserError(f"{folder} is not empty and holds no earlier report. Give another --output.")
    # What a person put there or changed, notes on a table say, is no earlier report's any more.
    parts = {folder: {PAGE, TABLES, PLOTS}, folder / TABLES: None, folder / PLOTS: None}
    for each, expected in parts.items():
        if changed := _changed(each, expected):
            raise UserError(f"{each}: {changed}, which a new report would overwrite. Give another --output.")


def _changed(folder: Path, expected: set[str] | None) -> str | None:
    """What in a folder of an earlier report is somebody's work, in words; None if nothing is."""
    if (damage := damage_of(folder)) is not None:
        return damage
    sealed = {line.split("  ", 1)[1] for line in (folder / SUMS).read_text(encoding="utf-8").splitlines()}
    added = sorted({path.name for path in folder.iterdir()} - sealed - {SUMS} - (expected or set()))
    return f"{', '.join(added)} added since written" if added else None


def to_html(page: Page) -> str:
    """The page as one file that loads nothing."""
    # Files of the package, so that each can be read and edited as what it is.
    css, script, template = (
        (files("gendistill.report.page") / name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js", "page.html")
    )
    # A name that the template has and nobody gave is an error, never an empty place.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_finalize
    )
    numbers = {figure.name: number for number, figure in enumerate(page.of(Figure))}
    return environment.from_string(template).render(
        page=page,
        version=__version__,
        css=Markup(css),  # our own, and no text of anybody's: put in as it is
        script=Markup(script),
        policy=policy(f"\n{script}\n"),  # byte by byte what stands between the tags
        formats=SHOWN_FORMATS,
        blocks=blocks,
        is_name=is_name,
        sort_key=sort_key,
        main_part=main_part,
        ends=ends,
        width=width,
        svg=lambda figure: Markup(in_page(figure.svg, escape(visible(figure.alt)), numbers[figure.name])),
    )


def policy(script: str) -> str:
    """What the browser is to let the page do: run this one script, and load nothing, whatever the replies hold."""
    # Styles need no hash: plots have them in attributes, and nothing can be fetched by them.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def _finalize(value: object) -> object:
    """Every text that is put into the page: what is no markup of our own has no character that reorders or hides."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def blocks(section: Section) -> Iterator[tuple[str, Sequence[Part]]]:
    """Neighbours of one kind together: plots stand side by side."""
    # By the class's name, which the template asks for.
    for kind, parts in groupby(section.parts, key=lambda part: type(part).__name__):
        yield kind, list(parts)


def sort_key(value: Value) -> Markup:
    """What the script sorts a cell by: the number as measured; a name sorts as it is shown."""
    if value is None:
        return Markup(" data-empty")
    number = known(value.value if isinstance(value, Interval) else value)
    if number is None:
        return Markup(" data-empty")
    # As Python writes it, with all digits: two that look equal still have an order.
    return Markup(f' data-value="{number!r}"') if isinstance(number, int | float) else Markup("")


def main_part(column: Column, value: Value) -> str:
    """A cell without its interval."""
    return shown(column, Interval(value.value) if isinstance(value, Interval) else value)


def ends(column: Column, value: Value) -> str:
    """The interval of a cell; empty where there is none."""
    if not isinstance(value, Interval) or value.low is None:
        return ""
    return f"{column.show(value.low)} to {column.show(value.high)}"


def width(figure: Figure) -> int:
    """In pixels, at which its letters have the size they were drawn for."""
    # In points; a browser's pixel is three quarters of one.
    points = re.search(r'viewBox="0 0 ([\d.]+) ', figure.svg)
    assert points is not None, figure.name
    return round(float(points[1]) * PIXELS_A_POINT)
