"""`docs/house.py`: what it measures, on a small tree made for it, and the picture that it draws."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import house
import pytest

pytestmark = pytest.mark.slow

FILES = {
    "__init__.py": '"""Toy."""\n',
    "cli.py": '"""Command."""\n',
    "core/__init__.py": '"""Ground floor. More is said here."""\n',
    "core/files.py": '"""Files."""\n',
    "core/shapes.py": '"""Shapes."""\nfrom toy.core.files import read\n',
    "low/__init__.py": '"""Lower room."""\n',
    "low/files.py": '"""Also files."""\nfrom toy.core import files, shapes\n',
    "high/__init__.py": '"""Upper room."""\nimport toy.low.files\n',
}


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    source = tmp_path / "toy"
    for name, text in FILES.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    return source


def add(source: Path, name: str, text: str) -> None:
    (source / name).write_text(FILES.get(name, "") + text)


def value(source: Path, name: str) -> int:
    return house.measure(source)[name][0]


def test_a_tree_without_faults(toy: Path) -> None:
    found = {name: count for name, (count, _) in house.measure(toy).items()}
    assert found == {
        "rooms": 3,
        "loose files at the root": 2,  # __init__ and cli
        "room cycles": 0,
        "floors of rooms": 3,  # core, low, high
        "floors of files": 4,  # files, shapes, low.files, high
        "arrows between rooms": 2,  # low -> core, high -> low
        "file names used twice": 1,
        "modules": 8,
        "lines": 11,
        "function length, 95th percentile": 0,
        "longest function": 0,
        "public items without docstring": 0,
        "functions without types": 0,
        "imports of a satellite by a room": 0,
    }


def test_a_file_name_of_two_rooms_is_named(toy: Path) -> None:
    assert house.measure(toy)["file names used twice"] == (1, ["core/files.py low/files.py"])


def test_the_longest_chain_of_imports_is_told(toy: Path) -> None:
    assert house.measure(toy)["floors of files"] == (4, ["high -> low.files -> core.shapes -> core.files"])
    add(toy, "core/files.py", "from toy.low import files\n")  # a cycle of three on the floor of the first
    assert house.measure(toy)["floors of files"] == (2, ["high -> core.files"])


def test_an_import_within_a_function_closes_a_cycle(toy: Path) -> None:
    add(toy, "low/files.py", "def f() -> None:\n    from toy.high import x\n")
    assert house.measure(toy)["room cycles"] == (1, ["high low"])
    assert value(toy, "arrows between rooms") == 3
    assert value(toy, "floors of files") == 3  # low.files and high share one


def test_an_import_for_types_alone_counts(toy: Path) -> None:
    add(
        toy,
        "core/files.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from toy.low.files import F\n",
    )
    assert house.measure(toy)["room cycles"] == (1, ["core low"])


def test_a_room_that_imports_a_satellite_is_named(toy: Path) -> None:
    (toy / "phantom").mkdir()
    add(toy, "phantom/__init__.py", '"""Satellite."""\nfrom toy.core import files\n')
    assert value(toy, "imports of a satellite by a room") == 0
    add(toy, "low/files.py", "from toy import phantom\n")
    assert house.measure(toy)["imports of a satellite by a room"] == (1, ["low -> phantom"])


def test_a_command_may_import_a_satellite(toy: Path) -> None:
    (toy / "phantom").mkdir()
    add(toy, "phantom/__init__.py", '"""Satellite."""\n')
    add(toy, "cli.py", "from toy import phantom\n")
    assert value(toy, "imports of a satellite by a room") == 0


def test_functions_are_measured_wherever_they_stand(toy: Path) -> None:
    body = "".join(f"        x = {i}\n" for i in range(8))
    add(toy, "core/shapes.py", f"class A:\n    '''A.'''\n    def long(self, y):\n{body}")
    assert house.measure(toy)["longest function"] == (9, ["core.shapes:5 long"])
    assert house.measure(toy)["functions without types"] == (1, ["core.shapes:5 long"])
    add(toy, "core/shapes.py", "class A:\n    '''A.'''\n    def typed(self, y: int) -> int: return y\n")
    assert value(toy, "functions without types") == 0


def test_public_items_need_a_docstring(toy: Path) -> None:
    add(toy, "core/shapes.py", "def f() -> None: ...\ndef _g() -> None: ...\nclass C: ...\n")
    add(toy, "low/files.py", "")
    (toy / "low" / "bare.py").write_text("x = 1\n")
    bare = house.measure(toy)["public items without docstring"][1]
    assert sorted(bare) == ["core.shapes:C", "core.shapes:f", "low.bare:module"]


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def boxes(svg: str) -> list[tuple[float, ...]]:
    """Left, top, right and bottom of each room."""
    found = [
        e.attrib for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect") if "rx" in e.attrib
    ]
    places = [[float(a[key]) for key in ("x", "y", "width", "height")] for a in found]
    return [(x, y, x + width, y + height) for x, y, width, height in places]


def test_picture_shows_each_room_with_its_first_sentence(toy: Path) -> None:
    (toy / "phantom").mkdir()
    add(toy, "phantom/__init__.py", '"""Satellite."""\nfrom toy.core import files\n')
    words = texts(house.picture(toy))
    assert {"core/", "low/", "high/", "cli.py", "phantom/", "Ground floor", "Imports core"} <= set(words)
    assert not any("More is said" in word for word in words)
    assert house.picture(toy).count("marker-end") == 2


def test_picture_of_a_cycle_is_drawn_in_red(toy: Path) -> None:
    assert "#c22" not in house.picture(toy)
    add(toy, "low/files.py", "from toy.high import x\n")
    drawn = house.picture(toy)
    assert drawn.count('stroke="#c22"') == 2
    assert drawn.count('stroke="#667"') == 1  # the cycle stands on core


def test_boxes_of_the_package_do_not_overlap() -> None:
    places = boxes(house.picture(house.DOCS.parent / "src" / "flare"))
    assert len(places) >= 15
    for number, (a, b, c, d) in enumerate(places):
        for left, top, right, bottom in places[:number]:
            assert a >= right or left >= c or b >= bottom or top >= d


def test_an_old_picture_and_a_measure_out_of_bounds_fail(
    toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    svg = toy.parent / "architecture.svg"
    assert house.main(toy, svg, is_drawn=False) == 1
    assert house.main(toy, svg, is_drawn=True) == 0
    assert house.main(toy, svg, is_drawn=False) == 0
    add(toy, "high/__init__.py", "import toy.core\n")  # follows from the others: the picture stays
    assert house.main(toy, svg, is_drawn=False) == 0
    add(toy, "core/__init__.py", "import toy.high\n")
    capsys.readouterr()
    assert house.main(toy, svg, is_drawn=False) == 1
    printed = capsys.readouterr().out
    assert "OUT  room cycles: 1 (at most 0)\n      core high low\n" in printed
    assert "architecture.svg does not show" in printed
