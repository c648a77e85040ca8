"""A tiny cohort with a case for every row of the table of bad input, and good cases between them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bad_files import DIM, OFFSET, PIXDIM, SFORM_CODE, SROW, patch_bytes, truncate, write_array, write_series

SHAPE = (10, 16, 20)
SPACING_XYZ = (2.0, 2.0, 5.0)
TURNED = np.deg2rad(20)
OBLIQUE = (np.cos(TURNED), -np.sin(TURNED), 0, np.sin(TURNED), np.cos(TURNED), 0, 0, 0, 1)
LIVER, TUMOR = 1, 14


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-200, 300, shape).astype(np.int16)


def label() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[2:8, 3:12, 4:14] = LIVER
    array[4:6, 5:8, 6:9] = TUMOR
    return array


def put(path: Path, array: np.ndarray, **geometry: tuple) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_array(path, array, **{"spacing_xyz": SPACING_XYZ, **geometry})


def _text(path: Path) -> None:
    path.write_bytes(b"this is no image, whatever its name says" * 20)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _truncated(path: Path) -> None:
    truncate(put(path, image()), 0.6)


def _magic(path: Path) -> None:
    patch_bytes(put(path, image()), (344, "4s", [b"abcd"]))  # type: ignore[list-item]


def _flat(path: Path) -> None:
    write_array(path, image(shape=(16, 20)))


def _vectors(path: Path) -> None:
    write_array(path, np.zeros((10, 16, 20, 3), np.uint8), vector=True)


def _nan(path: Path) -> None:
    array = image().astype(np.float32)
    array[3, 4, 5] = np.nan
    put(path, array)


def _infinite(path: Path) -> None:
    array = image().astype(np.float32)
    array[3, 4, 5] = np.inf
    put(path, array)


def _no_spacing(path: Path) -> None:
    patch_bytes(put(path, image()), (PIXDIM + 12, "<f", [0.0]))


def _one_slice(path: Path) -> None:
    put(path, image(shape=(1, 16, 20)))


def _tilted(path: Path) -> None:
    sform = (-2, 0, 0.5, 0, 0, -2, 0, 0, 0, 0, 5, 0)
    patch_bytes(put(path, image()), (SFORM_CODE, "<h", [1]), (SROW, "<12f", sform))


def _uneven(path: Path) -> None:
    write_series(path, [(0, 0, z) for z in (0, 5, 10, 20)])


def _nan_offset(path: Path) -> None:
    patch_bytes(put(path, image()), (OFFSET, "<f", [float("nan")]))


def _offset_inside(path: Path) -> None:
    patch_bytes(put(path, image()), (OFFSET, "<f", [0.0]))


def _huge(path: Path) -> None:
    patch_bytes(put(path, image()), (DIM, "<4h", [3, 32767, 32767, 32767]))


def _huge_slices(path: Path) -> None:
    for slice_ in write_series(path, [(0, 0, z) for z in (0, 5, 10)]).iterdir():
        content = slice_.read_bytes()
        for tag, size in ((b"\x28\0\x10\0", 6), (b"\x28\0\x11\0", 8)):  # rows, columns; implicit
            known = tag + b"\2\0\0\0" + size.to_bytes(2, "little")
            assert known in content
            content = content.replace(known, known[:-2] + b"\xff\xff")
        slice_.write_bytes(content)


# unlabelled images that must be refused: file name -> how it is made, what is said of it
IMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "text_0000.nii.gz": (_text, "no NIfTI file"),
    "text_nrrd_0000.nrrd": (_text, "cannot be read"),
    "empty_0000.nii.gz": (_empty, "empty"),
    "truncated_0000.nii.gz": (_truncated, "truncated"),
    "truncated_plain_0000.nii": (_truncated, "truncated"),
    "magic_0000.nii": (_magic, "magic number"),
    "flat_0000.nii.gz": (_flat, "2 dimensions"),
    "vectors_0000.nii.gz": (_vectors, "components a voxel"),
    "nan_0000.nii.gz": (_nan, "NaN or infinite"),
    "infinite_0000.nii.gz": (_infinite, "NaN or infinite"),
    "no_spacing_0000.nii": (_no_spacing, "spacing"),
    "one_slice_0000.nii.gz": (_one_slice, "at least 2"),
    "tilted_0000.nii": (_tilted, "gantry tilt"),
    "nan_offset_0000.nii": (_nan_offset, "vox_offset nan"),
    "offset_inside_0000.nii": (_offset_inside, "vox_offset 0; expected"),
    "huge_0000.nii": (_huge, "expected at most"),
    "huge_slices": (_huge_slices, "claims 8589672450 bytes of voxels"),
    "uneven": (_uneven, "uneven slice gaps, 5 to 10 mm"),
}
# labelled cases that must be refused for their label: case -> what is said of it
LABELS = {
    "moved": "origin",
    "finer": "spacing",
    "unknown": r"label values \[77\]",
    "broken": r"not integers: \[0\.5\]",
    "label_cut": "truncated",
    "unlabelled": "without a label",
}
GOOD = {"plain": 0, "flipped": 1, "oblique": 2, "empty_label": 3, "nearly": 4, "permuted": 5}
REFUSED = {
    **{name.split(".")[0].removesuffix("_0000"): said for name, (_, said) in IMAGES.items()},
    **LABELS,
    "twice": "of th[ei]s? ?same id|of this id",
}


def write_images(folder: Path) -> None:
    """Every image that is bad by itself."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in IMAGES.items():
        make(folder / name)


def write_good(images: Path, labels: Path) -> None:
    """Cases that look odd and are handled."""
    turns = {
        "plain": {},
        "flipped": {},
        "oblique": {"direction": OBLIQUE},
        "empty_label": {},
        "nearly": {},
        "permuted": {"direction": (0, 0, 1, 1, 0, 0, 0, 1, 0)},
    }
    for case, geometry in turns.items():
        put(images / f"{case}_0000.nii", image(GOOD[case]), **geometry)
        put(labels / f"{case}.nii.gz", label() * (case != "empty_label"), **geometry)
    # the same label in another voxel order: x and z run backwards
    corner = (SPACING_XYZ[0] * (SHAPE[2] - 1), 0.0, SPACING_XYZ[2] * (SHAPE[0] - 1))
    flips = {"direction": (-1, 0, 0, 0, 1, 0, 0, 0, -1), "origin": corner}
    put(labels / "flipped.nii.gz", np.ascontiguousarray(label()[::-1, :, ::-1]), **flips)
    sform = (-2, 0.00006, 0, 0, 0, -2, 0, 0, 0, 0, 5, 0)
    for path in (images / "nearly_0000.nii",):
        patch_bytes(path, (SFORM_CODE, "<h", [1]), (SROW, "<12f", sform))


def write_bad_labels(images: Path, labels: Path) -> None:
    """Cases whose image is fine and whose label is not."""
    for number, case in enumerate(LABELS):
        put(images / f"{case}_0000.nii.gz", image(10 + number))
        if case != "unlabelled":
            put(labels / f"{case}.nii.gz", label())
    put(labels / "moved.nii.gz", label(), origin=(0.5, 0.0, 0.0))
    put(labels / "finer.nii.gz", label(), spacing_xyz=(2.0, 2.0, 4.9))
    put(labels / "unknown.nii.gz", np.where(label() == TUMOR, 77, label()).astype(np.uint8))
    put(labels / "broken.nii.gz", (label() * 0.5).astype(np.float32))
    truncate(labels / "label_cut.nii.gz", 0.5)


def write_cohort(root: Path) -> None:
    """`images`, `labels` and `unlabeled`, good and bad; one id in two of them."""
    write_good(root / "images", root / "labels")
    write_bad_labels(root / "images", root / "labels")
    write_images(root / "unlabeled")
    put(root / "images" / "twice_0000.nii.gz", image())
    put(root / "labels" / "twice.nii.gz", label())
    put(root / "unlabeled" / "twice.nii.gz", image())


def overrides(root: Path, outputs: Path, workers: int = 0) -> list[str]:
    """The command line that names the cohort."""
    return [
        "data=flare23",
        f"data.root={root}",
        "data.labeled_images=images",
        "data.labels=labels",
        "data.unlabeled_images=unlabeled",
        "data.validation_images=null",
        "data.validation_labels=null",
        "data.spacing_mm=[5,4,4]",
        f"executor.workers={workers}",
        f"paths.outputs={outputs}",
    ]
