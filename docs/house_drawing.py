"""Draw rooms on their floors as SVG, with as few crossing arrows as swapping neighbours finds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from itertools import combinations, pairwise
from random import Random

Rooms = Mapping[str, set[str]]
Floors = dict[int, list[str]]

BOX, PASS, GAP, RISE, EDGE = (
    216,
    26,
    26,
    52,
    20,
)  # a room, an arrow beside rooms, between them, floors, margin
SIDE = 264  # width of the column of satellites
LETTERS, SIDE_LETTERS = 24, 28  # of a line within a box
HEAD, ROW = 42, 18  # height of a box without text, and of a line
STARTS = 40


def _wrapped(text: str, length: int) -> list[str]:
    """Words in lines of a box."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def reached(rooms: Rooms, start: str) -> set[str]:
    """All that a node imports, directly or through others."""
    seen: set[str] = set()
    todo = [start]
    while todo:
        new = rooms.get(todo.pop(), set()) - seen
        seen |= new
        todo += new
    return seen


def _direct(rooms: Rooms) -> list[tuple[str, str]]:
    """Arrows that do not follow from others; within a cycle all stay."""
    far = {name: reached(rooms, name) for name in rooms}
    return [
        (a, b)
        for a in sorted(rooms)
        for b in sorted(rooms[a])
        if not any(b in far[c] and c not in far[b] and a not in far[c] for c in rooms[a] - {b})
    ]


def _chains(rooms: Rooms, level: Mapping[str, int]) -> tuple[Floors, list[list[str]]]:
    """Nodes of each floor, and each arrow as the nodes that it goes through: a place of its own a floor."""
    floors: Floors = {}
    for name in sorted(rooms):
        floors.setdefault(level[name], []).append(name)
    chains = []
    for a, b in _direct(rooms):
        between = [(f"{a}>{b}", floor) for floor in range(level[a] - 1, level[b], -1)]
        for name, floor in between:
            floors[floor].append(f"{name}@{floor}")
        chains.append([a, *(f"{name}@{floor}" for name, floor in between), b])
    return floors, chains


def _size(name: str) -> int:
    return PASS if ">" in name else BOX


def _width(names: list[str]) -> int:
    """Width of a floor."""
    return sum(map(_size, names)) + GAP * (len(names) - 1)


def _centres(floors: Floors) -> dict[str, float]:
    """Middle of each node, floors centred."""
    widest = max(map(_width, floors.values()))
    centres = {}
    for names in floors.values():
        x = EDGE + (widest - _width(names)) / 2
        for name in names:
            centres[name] = x + _size(name) / 2
            x += _size(name) + GAP
    return centres


def _tangle(floors: Floors, chains: Iterable[list[str]], level: Mapping[str, int]) -> float:
    """How hard a picture is to read: arrows that cross, then their length sideways."""
    centres = _centres(floors)
    gaps: dict[int, list[tuple[float, float]]] = {}
    for chain in chains:
        for step, (a, b) in enumerate(pairwise(chain)):
            gaps.setdefault(level[chain[0]] - step, []).append((centres[a], centres[b]))
    crossings = sum((a - c) * (b - d) < 0 for gap in gaps.values() for (a, b), (c, d) in combinations(gap, 2))
    return 1000 * crossings + sum(abs(a - b) for gap in gaps.values() for a, b in gap)


def _untangled(floors: Floors, chains: list[list[str]], level: Mapping[str, int]) -> Floors:
    """Swap nodes of a floor while the picture gets easier to read; the best of several starts."""
    draw = Random(0)
    found = []
    for _ in range(STARTS):
        floors = {floor: draw.sample(names, len(names)) for floor, names in floors.items()}
        best, before = _tangle(floors, chains, level), float("inf")
        while best < before:
            before = best
            for names in floors.values():
                for i, k in combinations(range(len(names)), 2):
                    names[i], names[k] = names[k], names[i]
                    now = _tangle(floors, chains, level)
                    if now < best:
                        best = now
                    else:
                        names[i], names[k] = names[k], names[i]
        found.append((best, sorted(floors.items())))
    return dict(min(found)[1])


def _box(x: float, y: float, width: float, height: float, fill: str, title: str, lines: list[str]) -> str:
    """A room: its name, and what it is."""
    texts = "".join(
        f'<text x="{x + 12:.0f}" y="{y + 47 + ROW * row:.0f}" font-size="15">{escape(line)}</text>'
        for row, line in enumerate(lines)
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="8" fill="{fill}" '
        f'stroke="#889"/><text x="{x + 12:.0f}" y="{y + 26:.0f}" font-size="19" font-weight="600">'
        f"{escape(title)}</text>{texts}"
    )


def _arrow(points: list[tuple[float, float]], colour: str) -> str:
    """A line from point to point: straight down beside a box, curved between floors."""
    path = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for number, ((a, b), (c, d)) in enumerate(pairwise(points)):
        middle = (b + d) / 2
        curve = f"C{a:.0f} {middle:.0f} {c:.0f} {middle:.0f} {c:.0f} {d:.0f}"
        path += f"L{c:.0f} {d:.0f}" if number % 2 else curve
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.5" marker-end="url(#tip)"/>'


def _ports(chains: list[list[str]], centres: Mapping[str, float]) -> dict[tuple[int, bool], float]:
    """Where each arrow leaves and enters its boxes, side by side in the order of where it goes."""
    ports = {}
    for is_end in (False, True):
        places: dict[str, list[tuple[float, int]]] = {}
        for number, chain in enumerate(chains):
            own, other = (chain[-1], chain[-2]) if is_end else (chain[0], chain[1])
            places.setdefault(own, []).append((centres[other], number))
        for own, arrows in places.items():
            for place, (_, number) in enumerate(sorted(arrows), start=1):
                ports[number, is_end] = centres[own] + BOX * (place / (len(arrows) + 1) - 0.5)
    return ports


def _main(rooms: Rooms, level: Mapping[str, int], about: Mapping[str, str]) -> tuple[list[str], float, float]:
    """The rooms that stand on each other, how far they reach to the right, and how far down."""
    floors, chains = _chains(rooms, level)
    floors = _untangled(floors, chains, level)
    centres = _centres(floors)
    lines = {name: _wrapped(about[name], LETTERS) for name in rooms}
    height = {f: HEAD + ROW * max(len(lines[n]) for n in names if n in lines) for f, names in floors.items()}
    tops, y = {}, float(EDGE)
    for floor in sorted(floors, reverse=True):
        tops[floor] = y
        y += height[floor] + RISE
    ports = _ports(chains, centres)
    parts = []
    for number, chain in enumerate(chains):
        a, b = level[chain[0]], level[chain[-1]]
        points = [(ports[number, False], tops[a] + height[a])]
        for step, name in enumerate(chain[1:-1], start=1):
            top = tops[a - step]
            points += [(centres[name], top), (centres[name], top + height[a - step])]
        points.append((ports[number, True], tops[b] - 2))
        parts.append(_arrow(points, "#667" if b < a else "#c22"))  # red: a cycle
    for name in sorted(rooms):
        floor = level[name]
        place = (centres[name] - BOX / 2, tops[floor], BOX, height[floor])
        parts.append(_box(*place, "#e6eff8", f"{name}/", lines[name]))
    return parts, EDGE + max(map(_width, floors.values())), y - RISE


def _beside(rooms: Rooms, about: Mapping[str, str], left: float) -> tuple[list[str], float]:
    """What no room imports, in a column with its imports in words, and how far down it reaches."""
    parts = [f'<text x="{left:.0f}" y="{EDGE + 14}" font-size="15" fill="#445">No room imports these:</text>']
    y = EDGE + 28.0
    for name, targets in rooms.items():
        lines = _wrapped(about[name], SIDE_LETTERS)
        lines += _wrapped("Imports " + ", ".join(sorted(targets)), SIDE_LETTERS) if targets else []
        title = name if name.endswith(".py") else f"{name}/"
        parts.append(_box(left, y, SIDE, HEAD + ROW * len(lines), "#f6efe2", title, lines))
        y += HEAD + ROW * len(lines) + 14
    return parts, y - 14


def draw(rooms: Rooms, level: Mapping[str, int], about: Mapping[str, str], *, satellites: Rooms) -> str:
    """Draw rooms on their floors, an arrow for each import that does not follow from others.

    Args:
        rooms: What each room imports.
        level: Floor of each room, from 1.
        about: What each room and satellite is.
        satellites: What is drawn apart, with its imports in words.

    Returns:
        The picture as SVG.
    """
    main, right, below = _main(rooms, level, about)
    left = right + 2 * EDGE
    side, end = _beside(satellites, about, left)
    width, height = left + SIDE + EDGE, max(below, end) + EDGE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
            'font-family="system-ui, sans-serif">',
            f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            'orient="auto"><path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
            f'<path d="M{left - EDGE:.0f} {EDGE}V{height - EDGE:.0f}" stroke="#bbc" stroke-dasharray="4 5"/>',
            *main,
            *side,
            "</svg>",
            "",
        ]
    )
