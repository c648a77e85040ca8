"""By what pseudo labels are judged: teachers' teachers, and what a selection fits and counts over a round."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from flare.core.files import sha256, write_text
from flare.inference.components import fitted_classes
from flare.rounds.graph import Teacher, checkpoint_of
from flare.rounds.selection import built
from flare.rounds.settings import HYBRID, Labeller, RoundSettings
from flare.runs.folders import RoundFolder, round_of

COLUMNS = ["round", "teacher", "class", "threshold", "voxels", "kept", "cases", "weighed", "dropped"]


def lineage(settings: RoundSettings, teacher: Teacher) -> Iterator[Labeller]:
    """Give a teacher, its own teacher and so on, as far as their rounds have noted it."""
    path, name, seen = teacher.checkpoint, teacher.round, set[Path]()
    while path not in seen and (path.is_file() or not seen):
        seen.add(path)
        noted, digest = round_of(path).config, sha256(path)
        cfg = OmegaConf.load(noted) if noted.exists() else settings.config
        fitted: Sequence[int] = ()
        if settings.labels.inference.components == "fitted":
            fitted = fitted_classes(round_of(path).components, digest, settings.classes)
        knows = settings.classes.outputs(cfg.labels.targets)
        yield Labeller(path, digest, name, tuple(sorted(fitted)), knows)
        if cfg is settings.config or cfg.labels.source != HYBRID:
            return
        name = cfg.round.teacher
        path = Path(cfg.round.checkpoint or checkpoint_of(settings, name))


def further_maps(settings: RoundSettings, line: Sequence[Labeller]) -> dict[str, dict[str, Any]]:
    """What makes each further map of a case, in place of what makes its own: by what a selection calls it."""
    tumor, plain = settings.classes.tumor, replace(settings.labels.inference, confidence=False)
    organs = next((n for n, own in enumerate(line) if n and tumor not in own.knows), len(line))
    places = {"previous": 1, "earlier": 2, "unflipped": 0, "organs": organs}
    turned = replace(plain, tta="tta4" if plain.tta == "none" else "none")
    return {
        name: {
            "labeller": line[places[name]],
            "settings": replace(settings.labels, inference=turned if name == "unflipped" else plain),
            "folder": RoundFolder(settings.folder.root / "selection" / name),
        }
        for name in settings.labels.views
        if places[name] < len(line)
    }


def dropped_cases(settings: RoundSettings, values: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """The cases that a selection drops: by their weight, or as `Flare22` does by a rank among all."""
    told = {case: v.get("selection", {}).get("uncertainty") for case, v in values.items()}
    ranked = {case: value for case, value in told.items() if value is not None}
    out = built(settings.labels.select).dropped(ranked) if ranked else set()
    return out | {case for case, v in values.items() if v["weight"] == 0}


def write_selection(settings: RoundSettings, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `selection.csv`: by teacher and class the threshold, voxels kept, cases weighed and dropped.

    A threshold is a share from 0 to 1, and above 1 where nothing is kept.
    """
    from pandas import DataFrame

    rows, dropped = [], dropped_cases(settings, values)
    for case, value in values.items():
        told, is_out = value.get("selection", {"classes": {}}), case in dropped
        fate = (1, int(not is_out and value["weight"] != 1), int(is_out))
        rows += [(settings.name, told["teacher"], c, *found, *fate) for c, found in told["classes"].items()]
    table = DataFrame(rows, columns=COLUMNS).groupby(COLUMNS[:4], sort=False, dropna=False).sum()
    write_text(settings.folder.selection, table.reset_index().to_csv(index=False))
