"""The page in a browser: the viewer draws both label maps, and the console shows no error."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser import CHROMIUM, Page, browser
from flare.report.page import write_report
from report_run import make_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(*make_run(tmp_path_factory.mktemp("report"), held_out_cases=2).arguments())


@pytest.fixture(scope="module")
def page(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        opened.open(path, 1280, 800)
        opened.evaluate("document.documentElement.style.scrollBehavior = 'auto'")
        opened.evaluate("document.getElementById('viewer').scrollIntoView()")
        wait_ready(opened)
        yield opened


def wait_ready(page: Page) -> None:
    page.wait(lambda: page.evaluate("document.getElementById('viewer').dataset.state") == "ready")


def pixels(page: Page, selector: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(page.screenshot(selector))).convert("RGB")).astype(int)


def near(image: np.ndarray, colour: tuple[int, int, int], distance: int = 90) -> float:
    """Share of pixels whose colour is near."""
    return float((np.abs(image - colour).sum(axis=-1) < distance).mean())


@pytest.mark.parametrize("name", ["reference", "prediction"])
def test_the_canvas_shows_organs_on_white(page: Page, name: str) -> None:
    image = pixels(page, f"#viewer-{name}")
    assert near(image, (255, 255, 255)) > 0.3
    assert near(image, (0, 150, 150), 150) > 0.02  # liver, shaded


def test_slices_show_the_image_under_the_colours(page: Page) -> None:
    page.evaluate("document.querySelector('input[value=slices]').click()")
    try:
        image = pixels(page, "#viewer-reference")
        spread = image.max(axis=-1) - image.min(axis=-1)
        grey = (spread < 12) & (image.max(axis=-1) > 40) & (image.max(axis=-1) < 235)
        assert grey.mean() > 0.02
        assert (spread > 60).mean() > 0.01
    finally:
        page.evaluate("document.querySelector('input[value=render]').click()")


def test_a_class_can_be_hidden(page: Page) -> None:
    liver = "[...document.querySelectorAll('#viewer-classes button')].find(b => b.textContent === 'liver')"
    before = near(pixels(page, "#viewer-reference"), (255, 255, 255), 30)
    page.evaluate(f"{liver}.click()")
    try:
        assert near(pixels(page, "#viewer-reference"), (255, 255, 255), 30) > before + 0.01
    finally:
        page.evaluate(f"{liver}.click()")


@pytest.mark.long
def test_of_a_hidden_class_nothing_is_left(page: Page) -> None:
    """Neither its surface nor a rim of its colour on the tumor within."""
    liver = "[...document.querySelectorAll('#viewer-classes button')].find(b => b.textContent === 'liver')"

    def teal() -> list[int]:
        shots = [pixels(page, f"#viewer-{name}") for name in ("reference", "prediction")]
        return [int(((s[..., 1] - s[..., 0] > 15) & (s[..., 2] - s[..., 0] > 15)).sum()) for s in shots]

    before = teal()
    assert min(before) > 500
    page.evaluate(f"{liver}.click()")
    try:
        assert teal() == [0, 0]
    finally:
        page.evaluate(f"{liver}.click()")
    assert teal() == before


def choose(page: Page, *cases: int) -> None:
    """Choose cases one right after the other, and wait for the last."""
    chooser = "const chooser = document.getElementById('viewer-case'); "
    choices = "".join(f"chooser.value = {c}; chooser.dispatchEvent(new Event('change')); " for c in cases)
    page.evaluate(f"{{ {chooser}{choices} }}")
    wait_ready(page)


def test_a_quick_change_of_case_ends_at_the_last_choice(page: Page) -> None:
    def shown(*choices: int) -> np.ndarray:
        choose(page, *choices)
        return pixels(page, "#viewer-canvases")

    page.evaluate("document.querySelector('input[value=slices]').click()")  # drawn faster than 3D
    try:
        second, first = shown(1), shown(0)
        assert not np.array_equal(first, second)
        assert np.array_equal(shown(1, 0, 1), second)
    finally:
        page.evaluate("document.querySelector('input[value=render]').click()")


def test_controls_wait_until_a_case_is_shown(page: Page) -> None:
    disabled = "document.getElementById('viewer-mode').disabled"
    button = "document.querySelector('#viewer-classes button').disabled"
    change = "document.getElementById('viewer-case').dispatchEvent(new Event('change'))"
    assert page.evaluate(f"({change}, {disabled} && {button})") is True
    wait_ready(page)
    assert page.evaluate(f"{disabled} || {button}") is False


def test_every_picture_is_decoded(page: Page) -> None:
    broken = "[...document.images].filter(i => !(i.complete && i.naturalWidth)).length"
    assert page.evaluate(broken) == 0


@pytest.mark.parametrize("width", [800, 1024, 1280, 1440])
def test_the_page_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # what is wider than the page scrolls in a box of its own, which shows that it does
    boxed = "[...document.querySelectorAll('table')].every(t => t.parentElement.className === 'scroll')"
    assert page.evaluate(boxed)
    wide = "[...document.querySelectorAll('.scroll')].filter(b => b.scrollWidth > b.clientWidth)"
    shown = f"{wide}.every(b => getComputedStyle(b).backgroundImage.includes('radial-gradient'))"
    assert page.evaluate(f"{wide}.length > 0 && {shown}" if width == 800 else shown)


def test_the_console_is_silent_and_the_network_unused(page: Page, path: Path) -> None:
    assert page.messages == []
    assert page.requests == [path.absolute().as_uri()]
