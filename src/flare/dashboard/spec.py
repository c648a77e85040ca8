"""What a dashboard shows, as plain values: the same whether W&B draws it or we do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

LINES, BARS, PICTURES, CASES = "lines", "bars", "pictures", "cases"


@dataclass(frozen=True)
class Panel:
    """One picture of a dashboard.

    Args:
        kind: `lines` over steps, `bars` of last values, `pictures` or a table of `cases`.
        title: What it shows.
        keys: Logged keys, see docs/logging.md.
    """

    kind: str
    title: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Section:
    """Panels that belong together."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """A dashboard of all runs of a group.

    Args:
        title: Its heading.
        project: The W&B project.
        group: The experiment whose runs it shows.
        sections: From top to bottom.
    """

    title: str
    project: str
    group: str
    sections: tuple[Section, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON file."""
        return asdict(self)


def ablation_dashboard(
    *, project: str, group: str, logged: Iterable[str], measures: Iterable[str] | None = None
) -> Dashboard:
    """Lay out the dashboard of an ablation.

    Args:
        project: The W&B project.
        group: The experiment.
        logged: Keys that its runs have; a class that no case has gets no panel.
        measures: Of jobs that trained nothing: all there is to show of them.
    """
    if measures is not None:
        measured = Section("Measures", tuple(Panel(BARS, key, (key,)) for key in measures))
        return Dashboard(f"Ablation: {group}", project, group, (measured,) if measured.panels else ())
    known = set(logged)
    scores = [("dsc", "Dice"), ("nsd", "normalised surface Dice")]
    means = [Panel(LINES, f"mean {name}", (f"val/{m}_mean",)) for m, name in scores]
    bars = [Panel(BARS, f"mean {name}, last", (f"val/{m}_mean",)) for m, name in scores]
    losses = [Panel(LINES, key, (key,)) for key in ("train/loss", "train/dice", "train/ce")]
    classes = [
        Panel(LINES, key.removeprefix("val/"), (key,))
        for m, _ in scores
        for key in sorted(k for k in known if k.startswith(f"val/{m}/"))
    ]
    machine = [Panel(LINES, key, (key,)) for key in ("lr", "patches_per_s", "gpu_memory_mb")]
    cases = [Panel(PICTURES, "validation cases", ("val/overlays",)), Panel(CASES, "cases", ("val/cases",))]
    sections = [
        Section("Validation", _logged([*means, *bars], known)),
        Section("Loss", _logged(losses, known)),
        Section("Classes", tuple(classes)),
        Section("Cases", tuple(cases)),
        Section("Learning rate, speed and memory", _logged(machine, known)),
    ]
    return Dashboard(f"Ablation: {group}", project, group, tuple(s for s in sections if s.panels))


def _logged(panels: Iterable[Panel], known: set[str]) -> tuple[Panel, ...]:
    return tuple(p for p in panels if known.issuperset(p.keys))
