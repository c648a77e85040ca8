"""The merging rules a second time: voxel by voxel in plain Python, from the text alone, for comparison."""

from __future__ import annotations

import itertools
import math

import numpy as np

from flare.core.classes import IGNORE, ClassList

Voxel = tuple[int, int, int]


def label_set(organs: int = 4, *, tumor: int | None = 9) -> ClassList:
    """Organs 1..n and a tumor."""
    classes = {
        f"organ_{i}": {"id": i, "short": f"O{i}", "role": "organ", "tolerance_mm": 1, "slice_range": False}
        for i in range(1, organs + 1)
    }
    if tumor is not None:
        classes["tumor"] = {
            "id": tumor,
            "short": "Lesion",
            "role": "tumor",
            "tolerance_mm": 2,
            "slice_range": False,
        }
    return ClassList.from_config(classes)


def random_maps(rng: np.random.Generator, shape: Voxel, ids: list[int], tumor: int) -> np.ndarray:
    """Boxes of organs painted over each other, some noise, some tumor."""
    volume = np.zeros(shape, dtype=np.uint8)
    for class_id in rng.choice(ids, size=rng.integers(1, 5)):
        low = [rng.integers(0, n) for n in shape]
        high = [rng.integers(a + 1, n + 1) for a, n in zip(low, shape, strict=True)]
        volume[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = class_id
    noisy = rng.random(shape) < rng.choice([0.0, 0.05, 0.3])
    volume[noisy] = rng.choice([0, *ids], size=int(noisy.sum()))
    spots = rng.random(shape) < rng.choice([0.0, 0.01, 0.05, 0.2])
    volume[spots] = tumor
    if rng.random() < 0.5:
        corner = [rng.integers(0, n) for n in shape]
        volume[tuple(slice(c, c + rng.integers(1, 4)) for c in corner)] = tumor
    return volume


def merge(
    truth: np.ndarray | None,
    pseudo: np.ndarray,
    *,
    classes: ClassList,
    spacing_mm: tuple[float, float, float],
    annotated: tuple[int, ...] | None,
    targets: str,
    rule: str,
    dilation_mm: float,
    tumor_inside_fraction: float,
    constrain_unlabeled: bool,
    tumor_inside: str,
    organs: np.ndarray | None,
) -> np.ndarray:
    """The merged map of one case."""
    if truth is None and not constrain_unlabeled:
        return pseudo
    if truth is not None and targets == "tumor":
        return truth
    every = list(itertools.product(*(range(n) for n in pseudo.shape)))
    p = {v: int(pseudo[v]) for v in every}
    g = dict.fromkeys(every, 0) if truth is None else {v: int(truth[v]) for v in every}
    known = set(g.values()) - {0, IGNORE} if annotated is None or truth is None else set(annotated)
    ignored = {v for v in every if g[v] == IGNORE}
    organ_map = organs
    organs, tumor = set(classes.organs), classes.tumor
    g_tumor = {v for v in every if g[v] == tumor}
    tumor_known = bool(g_tumor) or tumor in known

    if rule == "gt_first" and truth is not None:
        known |= set(g.values()) - {0, IGNORE}
        out = dict(g)
        for v in every:
            if v in ignored:
                out[v] = p[v] if p[v] in organs else 0
            elif g[v] == 0 and p[v] in organs and p[v] not in known:
                out[v] = p[v]
            if targets == "organs" and v in g_tumor:
                out[v] = p[v] if p[v] in organs else 0
        if targets == "organs":
            _absorb(out, g_tumor, organs)
        elif not tumor_known:
            for v in every:
                if p[v] == tumor and (out[v] != 0 or v in ignored):
                    out[v] = tumor
        return _array(_with_ignored(out, p, ignored, tumor), pseudo)

    near = {v for v in every if any(_distance(v, t, spacing_mm) <= dilation_mm for t in g_tumor)}
    bearing = {p[v] for v in near} | {g[v] for v in near}
    trusted = {c for c in organs if c in known and c not in bearing}

    def step_two(organ_map: dict[Voxel, int]) -> dict[Voxel, int]:
        result = {}
        for v in every:
            if g[v] in trusted:
                result[v] = g[v]
            elif organ_map[v] in trusted and v not in ignored:
                result[v] = 0
            else:
                result[v] = organ_map[v]
        return result

    without = {v: (p[v] if p[v] in organs else 0) for v in every}
    plain = step_two(without)
    p_tumor = {v for v in every if p[v] == tumor}
    kept: set[Voxel] = set()
    for component in _components(p_tumor):
        shell = [plain[v] for v in _touching(component, plain) if v not in p_tumor | g_tumor]
        share = sum(c in organs for c in shell) / len(shell) if shell else 0
        stays = component if share >= tumor_inside_fraction else set()
        if tumor_inside == "voxel" and organ_map is not None:
            stays = {v for v in component if int(organ_map[v]) in organs}
        elif tumor_inside == "voxel":
            stays = {v for v in component if any(_encloses(p, c, v) for c in organs)}
        if targets == "organs" or tumor_known:
            stays = set()
        kept |= stays
        for v in component - stays:
            without[v] = _filling(shell, organs)
    out = step_two(without)
    for v in kept:
        out[v] = tumor
    if targets == "organs":
        _absorb(out, g_tumor, organs)
    else:
        for v in g_tumor:
            out[v] = tumor
    return _array(_with_ignored(out, p, ignored, tumor), pseudo)


def _with_ignored(
    out: dict[Voxel, int], p: dict[Voxel, int], ignored: set[Voxel], tumor: int | None
) -> dict[Voxel, int]:
    """An ignored voxel where the teacher sees a tumor that is not taken stays ignored."""
    return {
        v: IGNORE if v in ignored and p[v] == tumor and found != tumor else found for v, found in out.items()
    }


def _absorb(out: dict[Voxel, int], g_tumor: set[Voxel], organs: set[int]) -> None:
    for component in _components(g_tumor):
        filling = _filling([out[v] for v in _touching(component, out) if v not in g_tumor], organs)
        for v in component:
            if out[v] == 0:
                out[v] = filling


def _filling(shell: list[int], organs: set[int]) -> int:
    inside = [c for c in shell if c in organs]
    if not inside or 2 * len(inside) < len(shell):
        return 0
    return max(sorted(set(inside)), key=inside.count)


def _encloses(volume: dict[Voxel, int], organ: int, start: Voxel) -> bool:
    """Whether no walk within some plane through `start`, by faces and around the organ, leaves the grid."""
    for axis in range(3):
        steps = [s for s in itertools.product((-1, 0, 1), repeat=3) if sum(map(abs, s)) == 1 and not s[axis]]
        front, seen, is_out = [start], {start}, False
        while front:
            v = front.pop()
            for step in steps:
                n = (v[0] + step[0], v[1] + step[1], v[2] + step[2])
                is_out |= n not in volume
                if n in volume and volume[n] != organ and n not in seen:
                    seen.add(n)
                    front.append(n)
        if not is_out:
            return True
    return False


def _distance(a: Voxel, b: Voxel, spacing_mm: tuple[float, float, float]) -> float:
    return math.sqrt(sum(((i - j) * s) ** 2 for i, j, s in zip(a, b, spacing_mm, strict=True)))


def _around(v: Voxel) -> list[Voxel]:
    steps = itertools.product((-1, 0, 1), repeat=3)
    return [(v[0] + a, v[1] + b, v[2] + c) for a, b, c in steps if (a, b, c) != (0, 0, 0)]


def _components(voxels: set[Voxel]) -> list[set[Voxel]]:
    left, found = set(voxels), []
    while left:
        front = [left.pop()]
        component = set(front)
        while front:
            for n in _around(front.pop()):
                if n in left:
                    left.remove(n)
                    component.add(n)
                    front.append(n)
        found.append(component)
    return found


def _touching(component: set[Voxel], volume: dict[Voxel, int]) -> set[Voxel]:
    return {n for v in component for n in _around(v) if n in volume and n not in component}


def _array(volume: dict[Voxel, int], like: np.ndarray) -> np.ndarray:
    out = np.zeros_like(like)
    for v, value in volume.items():
        out[v] = value
    return out
