"""The site of docs/: generated pages are up to date, it builds without a warning, and its pages fetch nothing."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import recipe_page
import verb_pages

ROOT = Path(__file__).resolve().parents[1]
# What a specialist searches for.
TERMS = "retention; KV cache; forget gate; write strength; prefill; decode; document boundaries; packed sequences; MFU"
TERMS += "; minimum detectable effect; few-shot; strict extraction; throughput; backend; checkpoint; conversion report"
# Attributes by which a page makes a browser fetch something; a link to follow is none.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}


def test_pages_of_verbs_are_those_of_the_command_line():
    """If this fails, the command line has changed: `python scripts/verb_pages.py` writes the pages anew."""
    there = {path: path.read_text(encoding="utf-8") for path in verb_pages.FOLDER.glob("*.md")}
    assert there == verb_pages.pages()


def test_the_page_of_recipes_has_every_setting():
    """If this fails, a setting has changed: `python scripts/recipe_page.py` writes the tables anew."""
    page = recipe_page.PAGE.read_text(encoding="utf-8")
    assert page == recipe_page.filled(page)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # Strict: a page in no list, a link or anchor that leads nowhere, anything that mkdocs warns of ends it.
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


class Fetches(HTMLParser):
    """What a browser fetches to show a page."""

    def __init__(self, page: str):
        super().__init__()
        self.addresses: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        address = dict(attrs).get(FETCHED.get(tag))
        if address is not None:
            self.addresses.append(address)


def test_every_page_is_built(site):
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert {path.relative_to(site).with_suffix("") for path in site.rglob("*.html")} == pages | {Path("404")}


def test_pages_fetch_nothing_from_elsewhere(site):
    """No font, script or picture of another host: a reader without a network sees the same."""
    for path in site.rglob("*.html"):
        fetched = Fetches(path.read_text(encoding="utf-8")).addresses
        assert any(address.endswith(".css") for address in fetched), path
        # Relative to the page, or, of the page for what is not found, to the site's root.
        assert [address for address in fetched if re.match(r"(\w+:)?//", address)] == [], path
    for path in site.rglob("*.css"):
        assert re.findall(r"url\(['\"]?(?:\w+:)?//[^)]*", path.read_text(encoding="utf-8")) == [], path


def test_search_knows_the_words_of_the_field(site):
    """In the index that pages opened from a folder read, too."""
    script = (site / "search/search_index.js").read_text(encoding="utf-8")
    assert json.loads(script.removeprefix("var __index = ")) == json.loads(
        (site / "search/search_index.json").read_text()
    )
    found = " ".join(each["text"] + each["title"] for each in json.loads(script.removeprefix("var __index = "))["docs"])
    assert [term for term in TERMS.split("; ") if term.lower() not in found.lower()] == []
