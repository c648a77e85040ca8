"""The page of a run: complete, self-contained, made once, and shown by a real browser without a complaint."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, browser
from tiny_run import run_iterate

SECTIONS = ("run", "completeness", "learning", "scores", "classes", "pseudo", "cases", "viewer", "efficiency")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run of two rounds."""
    outputs = tmp_path_factory.mktemp("report")
    run_iterate(outputs, "rounds=[mo,mo1]")
    return outputs / "demo"


def test_the_page_has_every_section_and_the_table(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    assert [s for s in SECTIONS if f'id="{s}"' not in page] == []
    assert "phantoms, not patients" in page
    assert "Not a medical device" in page
    assert "86.7" in page  # the paper's organ means of MO and MO1, to one digit
    assert "87.9" in page


def test_the_page_needs_nothing_else_and_is_light(run: Path) -> None:
    page = run / "report.html"
    text = page.read_text(encoding="utf-8")
    assert page.stat().st_size < 25e6
    assert re.findall(r'<(?:script|img|link|iframe)[^>]+(?:src|href)="(?!data:|#)[^"]*"', text) == []
    assert str(run.parent) not in text  # no path of the machine


def test_an_unchanged_run_keeps_its_page(run: Path) -> None:
    before = (run / "report.html").stat().st_mtime_ns
    run_iterate(run.parent, "rounds=[mo,mo1]")
    assert (run / "report.html").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_it_without_a_complaint(run: Path, tmp_path: Path) -> None:
    with browser(tmp_path) as page:
        page.open(run / "report.html", 1300, 900)
        page.evaluate("document.querySelector('#viewer').scrollIntoView()")

        def drawn() -> bool:
            shot = Image.open(io.BytesIO(page.screenshot("#viewer-reference"))).convert("RGB")
            return float(np.asarray(shot, dtype=float).std()) > 3  # a blank canvas is one colour

        page.wait(drawn, seconds=90)
        assert page.messages == []
        assert [r for r in page.requests if not r.startswith("file:")] == []
