"""Measure the structure of `src/flare` and draw it: `python docs/house.py [--draw]`.

Without `--draw` it prints the measures, and fails when one is out of its bound or when the picture in
`docs/architecture.svg` no longer shows the imports that the code has.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cache
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "flare"
PICTURE = ROOT / "docs" / "architecture.svg"
SATELLITES = ("phantom", "convert", "baselines", "sweeps")  # no room imports them

# what is measured -> highest value
BOUNDS = {
    "rooms": 16,
    "loose files at the root": 5,
    "room cycles": 0,
    "floors of files": 12,
    "arrows between rooms": 70,
    "file names used twice": 4,
    "modules": 110,
    "lines": 16_000,
    "function length, 95th percentile": 45,
    "longest function": 67,
    "public items without docstring": 0,
    "functions without types": 0,
    "imports of a satellite by a room": 0,
}

Graph = Mapping[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module by its dotted name below `flare`; a package has its own name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str, paths: Mapping[str, Path]) -> str:
    """The folder that a module lies in; a loose file is a room of its own."""
    return module.split(".")[0] if "." in module or paths[module].name == "__init__.py" else f"{module}.py"


def imports(paths: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which modules each module imports, wherever the statement stands."""
    graph: dict[str, set[str]] = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = []
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "flare":
                base = (node.module or "")[6:]
                targets = [f"{base}.{alias.name}".strip(".") for alias in node.names]
                targets = [t if t in paths else base for t in targets]
            elif isinstance(node, ast.Import):
                targets = [a.name[6:] for a in node.names if a.name.startswith("flare.")]
            graph[name] |= {t for t in targets if t in paths and t != name and t}
    return graph


def by_room(graph: Graph, paths: Mapping[str, Path]) -> dict[str, set[str]]:
    """Which rooms each room imports."""
    rooms: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        if name:
            rooms[room(name, paths)] |= {room(t, paths) for t in targets}
    return {name: targets - {name} for name, targets in sorted(rooms.items())}


def cycles(graph: Graph) -> list[list[str]]:
    """Groups of nodes that reach each other."""

    @cache
    def reached(node: str) -> frozenset[str]:
        seen: set[str] = set()
        todo = [node]
        while todo:
            for target in graph[todo.pop()]:
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        return frozenset(seen)

    groups = {frozenset({n, *(m for m in reached(n) if n in reached(m))}) for n in graph}
    return [sorted(g) for g in groups if len(g) > 1]


def floors(graph: Graph) -> dict[str, int]:
    """Floor of each node: one above the highest that it imports; a cycle shares a floor."""
    tied = {name: group[0] for group in cycles(graph) for name in group}
    level: dict[str, int] = {}

    def of(node: str) -> int:
        head = tied.get(node, node)
        if head not in level:
            members = [n for n in graph if tied.get(n, n) == head]
            below = {tied.get(t, t) for n in members for t in graph[n]} - {head}
            level[head] = 1 + max((of(t) for t in below), default=0)
        return level[head]

    return {name: of(name) for name in graph}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function and method, with the file and line where it stands."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(SOURCE)}:{node.lineno} {node.name}", node


def _undocumented() -> list[str]:
    """Public functions, classes and modules without a docstring."""
    missing = []
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        items = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
        named = [(n.name, n) for n in items if not n.name.startswith("_")]
        documented = [("module", tree), *named]
        missing += [f"{path.name}:{name}" for name, n in documented if not ast.get_docstring(n)]
    return missing


def _is_typed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function names the types of its arguments and of its result."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return function.returns is not None and all(a.annotation for a in named if a.arg not in ("self", "cls"))


def measure() -> dict[str, tuple[int, list[str]]]:
    """Each measure, and what stands behind it."""
    paths = modules()
    graph = {name: targets for name, targets in imports(paths).items() if name}
    rooms = by_room(graph, paths)
    folders = [name for name in rooms if not name.endswith(".py")]
    loose = [p.name for p in sorted(SOURCE.glob("*.py"))]
    stems: dict[str, list[str]] = defaultdict(list)
    for path in paths.values():
        if path.stem not in ("__init__", "__main__"):
            stems[path.stem].append(str(path.relative_to(SOURCE)))
    lengths = sorted((n.end_lineno - n.lineno + 1, place) for place, n in functions())  # type: ignore[operator]
    lines = {m: len(p.read_text(encoding="utf-8").splitlines()) for m, p in paths.items()}
    level = floors(graph)
    up = [f"{a} -> {b}" for a in folders if a not in SATELLITES for b in rooms[a] if b in SATELLITES]
    twice = [" ".join(places) for places in stems.values() if len(places) > 1]
    circles = [" ".join(group) for group in cycles(rooms)]
    untyped = [place for place, n in functions() if not _is_typed(n)]
    bare = _undocumented()
    return {
        "rooms": (len(folders), folders),
        "loose files at the root": (len(loose), loose),
        "room cycles": (len(circles), circles),
        "floors of files": (max(level.values()), [m for m in level if level[m] == max(level.values())]),
        "arrows between rooms": (sum(map(len, rooms.values())), []),
        "file names used twice": (len(twice), twice),
        "modules": (len(paths), []),
        "lines": (sum(lines.values()), []),
        "function length, 95th percentile": (lengths[int(0.95 * len(lengths))][0], []),
        "longest function": (lengths[-1][0], [lengths[-1][1]]),
        "public items without docstring": (len(bare), bare),
        "functions without types": (len(untyped), untyped),
        "imports of a satellite by a room": (len(up), up),
    }


WIDTH, BOX, GAP, HEIGHT, RISE = 1200, 200, 24, 92, 150


def _sentence(path: Path) -> str:
    """The first sentence of a room's docstring, up to its colon."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].split(":")[0].rstrip(".")


def _wrapped(text: str, length: int = 34, most: int = 3) -> list[str]:
    """Words in lines of a box."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) + 1 > length:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:most]


def _direct(rooms: Graph) -> dict[str, set[str]]:
    """Arrows that do not follow from others."""

    def reach(node: str) -> set[str]:
        return rooms[node] | {far for near in rooms[node] for far in reach(near)}

    return {a: {b for b in rooms[a] if not any(b in reach(c) for c in rooms[a] - {b})} for a in rooms}


def draw() -> str:
    """Give the rooms on their floors as SVG, an arrow for each direct import."""
    paths = modules()
    rooms = by_room({n: t for n, t in imports(paths).items() if n}, paths)
    rooms = {name: targets for name, targets in rooms.items() if not name.endswith(".py")}
    level = floors(rooms)
    top = max(level.values())
    place: dict[str, tuple[float, float]] = {}
    for floor in range(1, top + 1):
        names = [n for n in rooms if level[n] == floor]
        left = (WIDTH - len(names) * BOX - (len(names) - 1) * GAP) / 2
        for number, name in enumerate(names):
            place[name] = (left + number * (BOX + GAP), 20 + (top - floor) * RISE)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top * RISE}" '
        'font-family="system-ui, sans-serif">',
        f'<rect width="{WIDTH}" height="{top * RISE}" fill="white"/>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#667"/></marker></defs>',
    ]
    for name, targets in sorted(_direct(rooms).items()):
        for target in sorted(targets):
            (x, y), (u, v) = place[name], place[target]
            start, end = f"{x + BOX / 2:.0f} {y + HEIGHT}", f"{u + BOX / 2:.0f} {v - 2}"
            middle = (y + HEIGHT + v) / 2
            path = f"M{start}C{x + BOX / 2:.0f} {middle:.0f} {u + BOX / 2:.0f} {middle:.0f} {end}"
            parts.append(f'<path d="{path}" fill="none" stroke="#667" marker-end="url(#tip)"/>')
    for name, (x, y) in sorted(place.items()):
        fill = "#f6efe2" if name in SATELLITES else "#e6eff8"
        left = f"{x + 12:.0f}"
        size = f'width="{BOX}" height="{HEIGHT}"'
        parts.append(f'<rect x="{x:.0f}" y="{y}" {size} rx="8" fill="{fill}" stroke="#889"/>')
        parts.append(f'<text x="{left}" y="{y + 24}" font-size="16" font-weight="600">{name}/</text>')
        for row, line in enumerate(_wrapped(_sentence(paths[name]))):
            parts.append(f'<text x="{left}" y="{y + 46 + 16 * row}" font-size="11.5">{escape(line)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Print the measures and compare the picture, or draw it anew."""
    if "--draw" in sys.argv[1:]:
        PICTURE.write_text(draw(), encoding="utf-8")
        return 0
    failed = False
    for name, (value, behind) in measure().items():
        is_out = value > BOUNDS[name]
        failed |= is_out
        print(f"{'OUT ' if is_out else 'ok  '}{name}: {value} (at most {BOUNDS[name]})")
        if is_out and behind:
            print("      " + "; ".join(behind))
    if not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != draw():
        failed = True
        print("OUT docs/architecture.svg does not show the code's imports: run `python docs/house.py --draw`")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
