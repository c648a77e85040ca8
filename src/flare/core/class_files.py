"""Class lists beside segmentations: our `classes.json`, nnU-Net's `dataset.json`, and which one counts."""

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from flare.core.classes import IGNORE, ClassList, LabelClass
from flare.core.errors import CONF, FlareError
from flare.core.files import EXTENSIONS, read_json, stand_in, write_text

log = logging.getLogger(__name__)
CLASSES, DATASET = "classes.json", "dataset.json"
TOLERANCE_MM = 3.0  # ours, where only nnU-Net's names are known
TUMOR = ("tumor", "tumour", "lesion", "cancer", "metastas")  # in a name: the class has the role tumor


def write_classes(folder: Path, classes: ClassList) -> None:
    """Write the class list of a folder of segmentations; what is unchanged is not written again."""
    path, text = folder / CLASSES, json.dumps(classes.to_config(), indent=1) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != text:
        write_text(path, text)


def read_dataset(path: Path) -> tuple[ClassList, dict[str, dict[str, str]]]:
    """Read nnU-Net's `dataset.json` of a cohort, of version 1 (also the Decathlon's) or 2.

    Classes have its names in lower case with `_` for spaces. A class whose name speaks of tumors has the role
    tumor where there is one such; tolerances are ours. With the classes come `data.cases` of what it lists,
    empty where folders tell. A file that is missing, not nnU-Net's, or not of one CT channel is refused.
    """
    if not path.is_file():
        raise FlareError(f"data.dataset: no file {path}; set data.root to the folder that holds it")
    content = read_mapping(path)
    channels = content.get("channel_names") or content.get("modality") or {"0": "CT"}
    if len(channels) != 1:
        raise FlareError(f"{path}: has {len(channels)} channels; expected one, of CT")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in EXTENSIONS:
        raise FlareError(f"{path}: file_ending {ending!r}; expected one of {', '.join(EXTENSIONS)}")
    cases = {}
    for case, files in (content.get("dataset") or {}).items():
        match files:
            case {"images": [image], "label": label}:
                cases[case] = {"image": str(image), "label": str(label), "split": "train"}
            case _:
                raise FlareError(f"{path}: dataset.{case}: expected one image and its label, given {files}")
    return _dataset_classes(path, content), cases


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds a mapping, or refuse it."""
    try:
        content = read_json(path)
    except OSError as error:
        raise FlareError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise FlareError(f"{path}: {stand_in(path) or f'is no JSON: {error}'}") from None
    if not isinstance(content, dict):
        raise FlareError(f"{path}: expected a mapping")
    return content


def _dataset_classes(path: Path, content: Mapping[str, Any]) -> ClassList:
    """The class list of nnU-Net's `labels`, which are name -> id, or in version 1 id -> name."""
    given = content.get("labels")
    if not isinstance(given, Mapping):
        raise FlareError(f"{path}: has no labels; expected nnU-Net's name -> id")
    is_first = all(str(key).isdigit() for key in given)
    names = {str(name): k for k, name in given.items()} if is_first else dict(given)
    ids, ignore = {}, {}
    for name, value in names.items():
        if not str(value).isdigit():
            raise FlareError(
                f"{path}: label {name!r} is the region {value}; expected one id a class: give classes= and "
                "data.label_map"
            )
        if name == "ignore":
            ignore[name] = int(value)
        elif int(value):
            ids[name] = int(value)
    tumors = [name for name in ids if any(word in name.lower() for word in TUMOR)]
    roles = {tumors[0]: "tumor"} if len(tumors) == 1 else {}
    entries = [
        LabelClass(
            id=number,
            name=re.sub(r"\W+", "_", name.strip()).lower(),
            short=name.strip(),
            role=roles.get(name, "organ"),
            tolerance_mm=TOLERANCE_MM,
            slice_range=False,
        )
        for name, number in ids.items()
    ]
    if len({c.name for c in entries}) < len(entries):
        raise FlareError(f"{path}: has names that differ by case or spaces alone: {', '.join(ids)}")
    return _sound(path, {c.name: vars(c) for c in entries} | ignore)


def _sound(path: Path, content: Mapping[str, Any]) -> ClassList:
    """A class list that a file gives; what it cannot be is refused with the file."""
    try:
        found = ClassList.from_config(content)
    except (TypeError, ValueError) as error:
        raise FlareError(f"{path}: {error}") from None
    if not found.entries:
        raise FlareError(f"{path}: has no class beside the background")
    return found


def classes_at(folder: Path) -> tuple[Path, ClassList] | None:
    """The class list that lies in a folder, or beside nnU-Net's folder of labels, and its file."""
    own, theirs = folder / CLASSES, [folder / DATASET]
    if folder.name.startswith("labels"):
        theirs.append(folder.parent / DATASET)
    if own.is_file():
        return own, _sound(own, read_mapping(own))
    for path in theirs:
        if path.is_file() and "labels" in (content := read_mapping(path)):
            return path, _dataset_classes(path, content)
    return None


def carried_classes(key: str, root: Path) -> tuple[Path, ClassList] | None:
    """The class list that folders at or below `root` carry, and its file; refuse several lists of a key."""
    top = root.parent if root.is_file() else root  # one that is not there carries none
    folders = [Path(folder) for folder, _, _ in os.walk(top)]
    shown = [f for f in folders if not any(part.startswith(".") for part in f.relative_to(top).parts)]
    found = [here for folder in shown if (here := classes_at(folder))]
    for here in found[1:]:
        require_agreement(key, here, found[0][1], str(found[0][0]))
    return found[0] if found else None


def require_agreement(key: str, carried: tuple[Path, ClassList], classes: ClassList, where: str) -> None:
    """Refuse a list that a folder carries if ids or names are others than those of `where`."""
    path, theirs = carried
    if not theirs.agrees(classes):
        raise FlareError(
            f"{key}: {path} has the classes {theirs.told}; {where} has {classes.told}. Choose the right list "
            "by classes=, or renumber annotations by data.label_map"
        )


def are_chosen(cfg: DictConfig) -> bool:
    """Whether somebody chose the class list, more than its `ignore`: on the command line or as the caller."""
    if HydraConfig.initialized():
        keys = (re.split("[=@]", o.lstrip("+~"))[0] for o in HydraConfig.get().overrides.task)
        if any(key.split(".")[0] == "classes" and key != "classes.ignore" for key in keys):
            return True
    groups = OmegaConf.load(CONF / "base.yaml").defaults
    name = next(group["classes"] for group in groups if "classes" in group)
    default = ClassList.from_config(OmegaConf.load(CONF / "classes" / f"{name}.yaml"))  # type: ignore[arg-type]
    return replace(ClassList.from_config(cfg.classes), ignore=None) != default


def with_classes(cfg: DictConfig, classes: ClassList, **data: Any) -> DictConfig:
    """A copy of a configuration with a class list, and values of `data`.

    Where ids and names are the configuration's, its roles and tolerances count; so does its `ignore`.
    """
    cfg, own = cfg.copy(), ClassList.from_config(cfg.classes)
    with open_dict(cfg):
        if not classes.agrees(own):
            cfg.classes = classes.to_config()
        if ignore := own.ignore or classes.ignore:
            cfg.classes.ignore = ignore
        cfg.data.update(data)
    return cfg


def own_classes(cfg: DictConfig) -> DictConfig:
    """The configuration with what nnU-Net's `dataset.json` says of a cohort (`data.dataset`).

    That is its classes, the cases that it lists, and the folder's name as `data.name`. With a `label_map` and
    no list that somebody chose, the classes are those of its ids and names that the map leads to; the value
    that it ignores stays so unless the map names it. Bad files are refused, and without a map other classes.
    """
    data = cfg.data
    if not data.get("dataset"):
        return cfg
    # `???` of a preset does not replace the null that it inherits
    if OmegaConf.is_missing(data, "root") or data.root is None:
        raise FlareError(f"data.root: not given; expected the folder that holds data.dataset={data.dataset}")
    root = Path(str(data.root)).expanduser().absolute()
    path = root / str(data.dataset)
    listed, cases = read_dataset(path)
    classes, configured = listed, ClassList.from_config(cfg.classes)
    given: dict[str, Any] = {"name": data.name or root.name}
    if data.label_map:
        targets = {str(target) for target in data.label_map.values()}
        left = [c for c in classes.entries if {str(c.id), c.name} & targets]
        classes = configured if are_chosen(cfg) else ClassList(tuple(left))
        if ignore := listed.ignore:
            classes = replace(classes, ignore=configured.ignore or IGNORE)
            given["label_map"] = {str(ignore): "ignore", **data.label_map}
    elif are_chosen(cfg):
        require_agreement("data.dataset", (path, classes), configured, "the configuration (classes=)")
    if cases:
        given |= {"cases": cases, "labeled_images": None, "labels": None}
    return with_classes(cfg, classes, **given)


def agreed_classes(
    cfg: DictConfig, folders: Mapping[str, Path], renumbered: Sequence[str] = ()
) -> DictConfig:
    """The configuration with the class list that folders of segmentations, by key, carry.

    Lists that contradict each other, or what somebody chose, are refused. Where no folder carries a list, the
    configuration's counts. With a `data.label_map` a folder of `renumbered` has another list's ids.
    """
    cfg = own_classes(cfg)
    read = {k: f for k, f in folders.items() if not (k in renumbered and cfg.data.label_map)}
    found = [(key, here) for key, folder in read.items() if (here := carried_classes(key, folder))]
    found.sort(key=lambda item: item[1][0].name)  # ours first: it knows roles and tolerances
    classes, where = ClassList.from_config(cfg.classes), "the configuration (classes=)"
    if found and not are_chosen(cfg):
        where, classes = str(found[0][1][0]), found[0][1][1]
        log.info("classes: those that %s carries: %s", found[0][0], classes.told)
    elif not found and read:
        log.info("classes: %s carry no list, the configuration's counts: %s", ", ".join(read), classes.told)
    for key, here in found:
        require_agreement(key, here, classes, where)
    ignored = (carried.ignore for _, (_, carried) in found if carried.ignore)
    return with_classes(cfg, replace(classes, ignore=next(ignored, None)))
