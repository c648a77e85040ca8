"""Measure the structure of `src/flare` and draw it: `python docs/house.py [--draw]`.

Without `--draw` it prints the measures. It fails when one is out of its bound, or when
`docs/architecture.svg` does not show the imports that the code has.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from house_drawing import Rooms, draw, reached

DOCS = Path(__file__).parent
SATELLITES = ("phantom", "convert", "baselines", "sweeps", "plan")  # no room imports them

# what is measured -> highest value that the plan allows
BOUNDS = {
    "rooms": 16,
    "loose files at the root": 5,
    "room cycles": 0,
    "floors of rooms": 12,
    "floors of files": 12,
    "arrows between rooms": 70,
    "file names used twice": 4,
    "modules": 140,  # as planned: 110 and 16,000 lines (reached: 105 and 15,946), and what is added since
    "lines": 21_000,
    "function length, 95th percentile": 45,
    "longest function": 67,
    "public items without docstring": 0,
    "functions without types": 0,
    "imports of a satellite by a room": 0,
}

Function = ast.FunctionDef | ast.AsyncFunctionDef
Trees = Mapping[str, ast.Module]


def modules(source: Path) -> dict[str, Path]:
    """List a package's modules by dotted name, without the package's own; a folder is its `__init__`."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: path for name, path in found.items() if name}


def imports(trees: Trees, package: str) -> dict[str, set[str]]:
    """Say which modules each module imports, wherever in it the statement stands."""
    graph: dict[str, set[str]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            named = []
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                named = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                named = [alias.name for alias in node.names]
            inner = [n.removeprefix(f"{package}.") for n in named if n.startswith(f"{package}.")]
            # what is imported is a module, or stands in one
            inner = [n if n in trees else n.rpartition(".")[0] for n in inner]
            graph[name] |= {n for n in inner if n in trees and n != name}
    return graph


def by_room(graph: Rooms, paths: Mapping[str, Path]) -> dict[str, set[str]]:
    """Say which rooms each room imports; a loose file is named with its `.py`."""

    def room(module: str) -> str:
        loose = "." not in module and paths[module].name != "__init__.py"
        return f"{module}.py" if loose else module.split(".")[0]

    rooms: dict[str, set[str]] = defaultdict(set)
    for name, targets in graph.items():
        rooms[room(name)] |= {room(target) for target in targets}
    return {name: targets - {name} for name, targets in sorted(rooms.items())}


def cycles(graph: Rooms) -> list[list[str]]:
    """Find the groups of nodes that reach each other."""
    far = {name: reached(graph, name) for name in graph}
    groups = {frozenset({n, *(m for m in far[n] if n in far[m])}) for n in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def floors(graph: Rooms) -> dict[str, int]:
    """Number each node's floor: one above the highest that it imports; a cycle shares a floor."""
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


def _longest_chain(graph: Rooms, level: Mapping[str, int]) -> list[str]:
    """Imports from the highest floor down to the lowest, one node a floor."""
    top = max(level.values())
    chain = [min(n for n in graph if level[n] == top)]
    for floor in range(top - 1, 0, -1):
        chain.append(min(n for n in reached(graph, chain[-1]) if level[n] == floor))
    return chain


def _undocumented(trees: Trees) -> list[str]:
    """Public functions, classes and modules without a docstring."""
    missing = []
    for module, tree in trees.items():
        items = [n for n in tree.body if isinstance(n, Function | ast.ClassDef)]
        documented = [("module", tree), *((n.name, n) for n in items if not n.name.startswith("_"))]
        missing += [f"{module}:{name}" for name, node in documented if not ast.get_docstring(node)]
    return missing


def _is_typed(function: Function) -> bool:
    """Whether a function names the types of its arguments and of its result."""
    named = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return function.returns is not None and all(a.annotation for a in named if a.arg not in ("self", "cls"))


def measure(source: Path) -> dict[str, tuple[int, list[str]]]:
    """Give each measure of `BOUNDS`, and what stands behind it."""
    paths = modules(source)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    graph = imports(trees, source.name)
    rooms = by_room(graph, paths)
    folders = [name for name in rooms if not name.endswith(".py")]
    loose = [path.name for path in source.glob("*.py")]
    stems: dict[str, list[str]] = defaultdict(list)
    for path in paths.values():
        stems[path.stem].append(path.relative_to(source).as_posix())
    twice = [" ".join(p) for stem, p in stems.items() if len(p) > 1 and not stem.startswith("__")]
    functions = [
        (f"{module}:{node.lineno} {node.name}", node)
        for module, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    lengths = sorted(((n.end_lineno or 0) - n.lineno + 1, place) for place, n in functions) or [(0, "")]
    level, storey = floors(graph), floors(rooms)
    circles = [" ".join(group) for group in cycles(rooms)]
    to_satellites = [f"{a} -> {b}" for a in folders for b in sorted(rooms[a] & set(SATELLITES))]
    untyped = [place for place, node in functions if not _is_typed(node)]
    bare = _undocumented(trees)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in source.rglob("*.py"))
    return {
        "rooms": (len(folders), folders),
        "loose files at the root": (len(loose), loose),
        "room cycles": (len(circles), circles),
        "floors of rooms": (max(storey.values()), [" -> ".join(_longest_chain(rooms, storey))]),
        "floors of files": (max(level.values()), [" -> ".join(_longest_chain(graph, level))]),
        "arrows between rooms": (sum(map(len, rooms.values())), []),
        "file names used twice": (len(twice), twice),
        "modules": (len(list(source.rglob("*.py"))), []),
        "lines": (lines, []),
        "function length, 95th percentile": (lengths[int(0.95 * len(lengths))][0], []),
        "longest function": (lengths[-1][0], [lengths[-1][1]]),
        "public items without docstring": (len(bare), bare),
        "functions without types": (len(untyped), untyped),
        "imports of a satellite by a room": (len(to_satellites), to_satellites),
    }


def picture(source: Path) -> str:
    """Draw a package's rooms as SVG, each with its first sentence; commands and satellites apart."""
    paths = modules(source)
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in paths.items()}
    rooms = by_room(imports(trees, source.name), paths)
    texts = {name: ast.get_docstring(trees[name.removesuffix(".py")]) or "" for name in rooms}
    about = {
        name: text.replace("\n", " ").replace("`", "").partition(". ")[0].rstrip(".")
        for name, text in texts.items()
    }
    apart = [*(name for name in rooms if name.endswith(".py")), *SATELLITES]
    main = {name: targets - set(apart) for name, targets in rooms.items() if name not in apart}
    return draw(main, floors(main), about, satellites={name: rooms[name] for name in apart if name in rooms})


def main(source: Path, svg: Path, *, is_drawn: bool) -> int:
    """Print the measures and compare the picture, or draw it anew.

    Returns:
        Exit code: 1 if a measure is out of its bound or the picture is an old one.
    """
    if is_drawn:
        svg.write_text(picture(source), encoding="utf-8")
        return 0
    failed = False
    for name, (value, behind) in measure(source).items():
        is_out = value > BOUNDS[name]
        failed |= is_out
        print(f"{'OUT' if is_out else 'ok'}  {name}: {value} (at most {BOUNDS[name]})")
        if is_out and behind:
            print("      " + "; ".join(behind))
    if not svg.exists() or svg.read_text(encoding="utf-8") != picture(source):
        failed = True
        print(f"OUT docs/{svg.name} does not show the code's imports: run `python docs/house.py --draw`")
    return int(failed)


if __name__ == "__main__":
    sys.exit(
        main(DOCS.parent / "src" / "flare", DOCS / "architecture.svg", is_drawn="--draw" in sys.argv[1:])
    )
