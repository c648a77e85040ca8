"""The table of bad input: one cohort with a case of each sort, and a good one that goes on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from cohort_files import MAGIC, PIXDIM, image_array, label_array, patch, shear, write, write_case, write_dicom
from flare.core.cases import read_index
from flare.core.errors import FlareError
from flare.core.files import read_csv
from flare.prepare.cohort import prepare
from flare.prepare.read import collected_warnings

# case -> what its reason must say
REFUSED = {
    "garbage": "no NIfTI file",
    "truncated": "truncated",
    "empty": "is empty",
    "magic": "magic number",
    "plane": "2 dimensions",
    "movie": "4 dimensions",
    "colour": "3 components",
    "nan": "NaN or infinite",
    "infinite": "NaN or infinite",
    "flat": "spacing",
    "one_slice": "at least 2",
    "shifted": r"origin \(0, 0, 0\).* and .*\(0, 0, 3\)|origin .*3",
    "spaced": "spacing",
    "sized": r"size \(6, 8, 10\) and \(6, 8, 9\)",
    "foreign": r"\[77\]",
    "fractional": r"integers: \[0\.5\]",
    "tilted": "not orthonormal",
    "gaps": "uneven slice gaps",
    "bad_label": r"labels/bad_label\.nii\.gz is no NIfTI file",
    "no_label": "image without a label",
    "no_image": "label without an image",
    "twice": "2 cases of the same id",
    "bad_unlabeled": r"more/bad_unlabeled_0000\.nii\.gz",
    "bad_validation": "NaN or infinite",
}
USED = {"good": "ok", "nothing": "warning", "within": "ok", "oblique": "ok"}


def image_file(
    root: Path, case: str, array: np.ndarray | None = None, suffix: str = ".nii", **geometry: tuple
) -> Path:
    """An image, with a good label."""
    write(root / f"labels/{case}.nii.gz", label_array(1))
    return write(root / f"images/{case}_0000{suffix}", image_array() if array is None else array, **geometry)


def write_bad_images(root: Path) -> None:
    image_file(root, "garbage").write_bytes(b"no image at all" * 100)
    packed = image_file(root, "truncated", image_array(0, (40, 40, 40)), ".nii.gz")
    packed.write_bytes(packed.read_bytes()[:20_000])
    image_file(root, "empty").write_bytes(b"")
    patch(image_file(root, "magic"), MAGIC, "4s", b"nope")
    image_file(root, "plane", image_array(0, (8, 10)))
    image_file(root, "movie", image_array(0, (2, 6, 8, 10)))
    image_file(root, "nan", np.full((6, 8, 10), np.nan, np.float32))
    image_file(root, "infinite", np.full((6, 8, 10), np.inf, np.float32))
    patch(image_file(root, "flat"), PIXDIM + 4, "f", 0.0)
    image_file(root, "one_slice", image_array(0, (1, 8, 10)))
    shear(image_file(root, "tilted"))
    colour = np.zeros((6, 8, 10, 3), np.uint8)
    write_colour(image_file(root, "colour"), colour)
    write(root / "labels/gaps.nii.gz", label_array(1))
    write_dicom(root / "images/gaps", image_array(), [0, 5, 10, 20, 25, 30])


def write_colour(path: Path, array: np.ndarray) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(path))


def write_bad_labels(root: Path) -> None:
    for case in (
        "shifted",
        "spaced",
        "sized",
        "foreign",
        "fractional",
        "bad_label",
        "no_label",
        "nothing",
        "within",
    ):
        write(root / f"images/{case}_0000.nii.gz", image_array())
    labels = root / "labels"
    write(labels / "shifted.nii.gz", label_array(1), origin=(0.0, 0.0, 3.0))
    write(labels / "within.nii.gz", label_array(1), origin=(0.0, 0.0, 5e-4))
    write(labels / "spaced.nii.gz", label_array(1), spacing=(2.0, 2.0, 4.0))
    write(labels / "sized.nii.gz", label_array(1, shape=(6, 8, 9)))
    write(labels / "foreign.nii.gz", label_array(1, 77))
    write(labels / "fractional.nii.gz", label_array(1).astype(np.float32) / 2)
    (labels / "bad_label.nii.gz").write_bytes(b"no label")
    write(labels / "nothing.nii.gz", label_array())
    write(labels / "no_image.nii.gz", label_array(1))


@dataclass
class Prepared:
    cfg: DictConfig
    message: str
    rows: dict[str, list[dict[str, str]]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, config: Callable[..., DictConfig]) -> Prepared:
    root = tmp_path_factory.mktemp("cohort")
    write_case(root, "good", 1, 14)
    write_bad_images(root)
    write_bad_labels(root)
    for folder in ("one", "two"):
        write(root / f"images/{folder}/twice_0000.nii.gz", image_array())
    turn = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
    write(root / "images/oblique_0000.nii.gz", image_array(), direction=turn)
    write(root / "labels/oblique.nii.gz", label_array(1), direction=turn)
    write(root / "more/bad_unlabeled_0000.nii.gz", image_array()).write_bytes(b"\x1f\x8bnot gzip")
    write(root / "vi/bad_validation_0000.nii.gz", np.full((6, 8, 10), np.nan, np.float32))
    overrides = ["data=default", "data.name=bad", f"data.root={root}", f"data.cache={root / 'cache'}"]
    overrides += ["data.labeled_images=images", "data.labels=labels", "data.unlabeled_images=more"]
    overrides += ["data.validation_images=vi", "executor.workers=0"]
    cfg = config("prepare", *overrides)
    with pytest.raises(FlareError) as error:
        prepare(cfg)
    rows: dict[str, list[dict[str, str]]] = {}
    for row in read_csv(root / "cache/integrity.csv"):
        rows.setdefault(row["case"], []).append(row)
    return Prepared(cfg, str(error.value), rows)


@pytest.mark.parametrize(("case", "reason"), REFUSED.items(), ids=list(REFUSED))
def test_a_bad_case_is_refused_named_and_leaves_nothing(prepared: Prepared, case: str, reason: str) -> None:
    import re

    assert {r["status"] for r in prepared.rows[case]} == {"refused"}
    for row in prepared.rows[case]:
        assert re.search(reason, row["reason"]), row["reason"]
    (line,) = [text for text in prepared.message.splitlines() if text.startswith(f"  {case}: ")]
    assert re.search(reason, line)
    cache = Path(prepared.cfg.data.cache)
    assert [p for p in cache.rglob("*") if p.name.startswith(f"{case}.")] == []
    assert case not in [c.id for c in read_index(cache / "index.csv")]


@pytest.mark.parametrize(("case", "status"), USED.items(), ids=list(USED))
def test_the_rest_of_the_cohort_goes_on(prepared: Prepared, case: str, status: str) -> None:
    assert [r["status"] for r in prepared.rows[case]] == [status]
    cache = Path(prepared.cfg.data.cache)
    assert {p.parent.name for p in cache.rglob(f"{case}.*")} == {"images", "labels", "histograms"}
    assert case in [c.id for c in read_index(cache / "index.csv")]


def test_nothing_else_is_reported(prepared: Prepared) -> None:
    assert set(prepared.rows) == set(REFUSED) | set(USED)
    assert f"{len(REFUSED)} failed" in prepared.message


def test_both_paths_of_a_double_case_are_rows(prepared: Prepared) -> None:
    paths = {Path(r["path"]).parent.name for r in prepared.rows["twice"]}
    assert paths == {"one", "two"}
    for row in prepared.rows["twice"]:
        assert "one/twice_0000.nii.gz" in row["reason"]
        assert "two/twice_0000.nii.gz" in row["reason"]


def test_an_empty_label_is_told(prepared: Prepared) -> None:
    assert prepared.rows["nothing"][0]["reason"] == "label file without any foreground"


@pytest.mark.slow
def test_a_repaired_case_joins_and_a_broken_one_leaves(
    tmp_path: Path, build: Callable[..., DictConfig]
) -> None:
    write_case(tmp_path, "a", 1)
    write_case(tmp_path, "b", 1)
    image = tmp_path / "images/b_0000.nii.gz"
    whole = image.read_bytes()
    image.write_bytes(whole[:40])
    with pytest.raises(FlareError, match="b: "):
        prepare(build())
    image.write_bytes(whole)
    cohort = prepare(build())
    assert cohort.processed == ["b"]
    assert cohort.folder.image("b").exists()
    image.write_bytes(whole[:40])
    with pytest.raises(FlareError, match="b: "):
        prepare(build())
    assert [c.id for c in read_index(cohort.folder.index)] == ["a"]
    assert not cohort.folder.image("b").exists()


def test_warnings_of_a_block_are_collected_and_no_others() -> None:
    import logging

    log = logging.getLogger("flare.core.volumes")
    log.warning("before")
    with collected_warnings() as messages:
        log.warning("case %s: snapped", "a")
        log.info("not this")
    log.warning("after")
    assert messages == ["case a: snapped"]
