"""Images and label maps from and to disk, every refusal named."""

import errno
import hashlib
import logging
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from flare.core.cases import CASE_RULES
from flare.core.checks import NEAR_INTEGER, current_checks
from flare.core.classes import IGNORE, ClassList
from flare.core.dicom import is_dicom, open_dicom
from flare.core.errors import AwayError, BadFileError, CaseError, FlareError, some
from flare.core.files import DAMAGED, EXTENSIONS, NOT_UTF8, atomic, printable, searched, stand_in
from flare.core.geometry import Geometry, Volume, orientation_to, reorient_to_ras
from flare.core.itk import Reader, itk_errors, open_nrrd
from flare.core.nifti import is_nifti, nifti_grid, read_nifti, write_nifti
from flare.core.series import Series, is_there, named_series, series_in, series_uid, without_scouts

log = logging.getLogger(__name__)
NAMED = 5  # paths that a message names
# images that are not read, so that they are named and not passed over; .img is the voxels of a .hdr
FOREIGN = (
    *(".nhdr", ".mhd", ".hdr", ".img", ".img.gz", ".mgz", ".mgh", ".mnc", ".gipl", ".gipl.gz", ".vti"),
    *(".nii.bz2", ".nii.xz", ".nii.zst", ".nii.zip", ".nrrd.gz", ".mha.gz", ".head", ".brik", ".brik.gz"),
)
LONGEST_FIRST = sorted((*EXTENSIONS, *FOREIGN), key=len, reverse=True)


def strip_extension(name: str) -> str:
    """A file name less its image extension."""
    lowered = name.lower()
    return next((name[: -len(e)] for e in LONGEST_FIRST if lowered.endswith(e)), name)


def case_id(path: Path, known: Collection[str] = (), *, rule: str = "leaf", root: Path | None = None) -> str:
    """Id of the case that a path holds, by one of `cases.CASE_RULES`, see `data.case_id` in docs/data.md.

    The path is a file, a DICOM folder, or the name of one of several series in it, which adds a digest of its
    UID. Of a label map a whole name that is a `known` id of an image is that id: the label map of a case
    called `x_0000` is none of `x`. What lies directly in the `root` that was searched has no `parent`.
    """
    place, uid = named_series(path) or (path, "")
    place = Path(os.path.abspath(place))  # `.` has a name as well
    whole = printable(strip_extension(place.name))
    if whole in known and not uid:
        return whole
    name = whole.removesuffix("_0000")
    top = Path(os.path.abspath(root)) if root and rule != "leaf" else None
    if rule == "dicom_series_uid" and (found := series_uid(path)):
        return found
    if rule == "parent" and top not in (place, place.parent):
        name = printable(place.parent.name)
    elif rule == "path" and top is not None and top in place.parents:
        name = "_".join([*map(printable, place.parent.relative_to(top).parts), name])
    if uid:  # a header's text must not be in an id
        return f"{name}_{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
    return name


def unique_cases(
    paths: Iterable[Path], *, known: Collection[str] = (), rule: str = "leaf", root: Path | None = None
) -> tuple[dict[str, Path], dict[str, str]]:
    """Name by `case_id` the cases that files hold; all files of one id, or one series, are refused.

    Returns case id to path, and case id to the reason of a refusal, which names a rule that tells them apart.
    """
    paths = list(paths)
    spread = spread_series(paths)
    refused = {case_id(path, known, rule=rule, root=root): reason for path, reason in spread.items()}
    whole = [path for path in paths if path not in spread]
    by_id = _by_id(whole, known, rule, root)
    doubles = {case: found for case, found in by_id.items() if len(found) > 1}
    if doubles:
        unique = (other for other in CASE_RULES if len(_by_id(whole, known, other, root)) == len(whole))
        hint = way_out(next(unique, None))
        refused |= {c: f"{len(f)} files of this id: {told_paths(f)}; {hint}" for c, f in doubles.items()}
    return {case: found[0] for case, found in by_id.items() if case not in refused}, refused


def _by_id(
    paths: Iterable[Path], known: Collection[str], rule: str, root: Path | None
) -> dict[str, list[Path]]:
    """Paths by what a rule calls them."""
    by_id: dict[str, list[Path]] = {}
    for path in paths:
        by_id.setdefault(case_id(path, known, rule=rule, root=root), []).append(path)
    return by_id


def told_paths(paths: Sequence[Path]) -> str:
    """A few of many paths."""
    names = [str(path) for path in paths]
    return " and ".join(names) if len(names) <= NAMED else some(names, NAMED)


def way_out(rule: str | None) -> str:
    """What to do about cases of one id, where a rule tells them apart or none."""
    return f"data.case_id={rule} tells them apart" if rule else "give them different names"


def spread_series(paths: Iterable[Path]) -> dict[Path, str]:
    """Say why folders cannot be cases: the slices of one DICOM series lie in several of them."""
    by_uid: dict[str, list[Path]] = {}
    for path in paths:
        if not path.is_file():
            by_uid.setdefault(series_uid(path), []).append(path)
    return {
        path: f"one DICOM series in {len(found)} folders: {told_paths(found)}; expected it in one"
        for uid, found in by_uid.items()
        if uid and len(found) > 1
        for path in found
    }


def find_images(root: Path) -> list[Path]:
    """All images below a path, see `find_scans`."""
    return find_scans(root)[0]


def find_scans(root: Path) -> tuple[list[Path], dict[Path, str]]:
    """All images below a path, or the one file: by extension, and folders that hold a DICOM series; sorted.

    `*` and `?` in the path stand for any names. Of several series in a folder each counts, by its name, see
    `named_series`. Images of formats that are not read are among them, to be refused by name, unless the same
    image lies beside in one that is. Links are followed; what is reached twice, or by a loop of links, counts
    once. Folders whose name begins with a dot are passed over. Beside the paths come those of localizers and
    scouts, which are none, with the reason.
    """
    root = Path(root)
    if root.is_file() or named_series(root):
        return [root], {}
    skipped: dict[Path, str] = {}
    if (places := searched(root)[1]) != [root]:
        parts = [find_scans(place) for place in places]
        for _, of_part in parts:
            skipped |= of_part
        return [path for paths, _ in parts for path in paths], skipped
    found = list(_walk(root, skipped))
    scans, scouts = without_scouts([item for item in found if isinstance(item, Series)])
    return sorted([p for p in found if isinstance(p, Path)] + [s.path for s in scans]), skipped | scouts


def _walk(root: Path, skipped: dict[Path, str]) -> Iterator[Path | Series]:
    seen: set[str] = set()
    for folder, inner, names in os.walk(root, onerror=_refuse_folder, followlinks=True):
        place = os.path.realpath(folder)
        if place in seen:
            inner.clear()
            continue
        seen.add(place)
        inner[:] = sorted(d for d in inner if not d.startswith("."))  # snapshots, trash, what is half written
        paths = [Path(folder) / name for name in sorted(names) if not name.startswith(".")]  # ._x.nii is none
        images = {path for path in paths if path.name.lower().endswith(EXTENSIONS)}
        yield from images
        others = [path for path in paths if path not in images]  # a mask may lie beside the slices
        if any(path.suffix.lower() == ".dcm" or is_dicom(path) for path in others):
            series, others_of_it = series_in(Path(folder))
            skipped |= others_of_it
            yield from series
        yield from _foreign(others, {strip_extension(path.name) for path in images})


def _foreign(paths: Sequence[Path], readable: Collection[str]) -> Iterator[Path]:
    """Images of formats that are not read, once each: voxels beside their header are no other image."""
    found: dict[str, Path] = {}
    for path in paths:  # sorted: .hdr comes before .img
        name = strip_extension(path.name)
        if path.name.lower().endswith(FOREIGN) and name not in readable and not is_dicom(path):
            found.setdefault(name, path)
    yield from found.values()


def is_readable(path: Path) -> bool:
    """Whether a file is of a format that is read, by its name or, for DICOM, its content."""
    return path.name.lower().endswith(EXTENSIONS) or is_dicom(path)


def _refuse_folder(error: OSError) -> None:
    """Stop at a folder that cannot be listed: the scans in it would be left out without a word."""
    if error.errno != errno.ENOENT:
        raise FlareError(f"the folder {error.filename} cannot be searched for images: {error.strerror}")


def read_image(path: Path, case: str | None = None) -> Volume:
    """Read a CT, a file or DICOM series, in HU: int16 if integers fit, else float32; or refuse the case."""
    path = Path(path)
    case = case or case_id(path)
    with _one_file(path, case):
        if path.is_file() and is_nifti(path):
            array, geometry = read_nifti(path, case)
        else:
            reader, geometry = _open(path, case)
            with itk_errors():
                array = sitk.GetArrayFromImage(reader.Execute())
    if tuple(array.shape) != geometry.shape:
        raise CaseError(case, f"{path} holds {array.shape} voxels, its header says {geometry.shape}")
    if np.issubdtype(array.dtype, np.integer):
        fits = int(array.min()) >= -(2**15) and int(array.max()) < 2**15
        return Volume(array.astype(np.int16 if fits else np.float32, copy=False), geometry)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        raise CaseError(case, f"{path} has NaN or infinite values; expected finite HU")
    return Volume(array, geometry)


def read_grid(path: Path, case: str) -> Geometry:
    """Read the grid of a CT from its header, of NIfTI nothing else; refuses what `read_scan` does."""
    with _one_file(path, case):
        is_one = path.is_file() and is_nifti(path)
        grid = nifti_grid(path, case) if is_one else _open(path, case)[1]
        current_checks().require_size(grid.shape[::-1], grid.spacing_mm[::-1], case)
    return grid


def _open(path: Path, case: str) -> tuple[Reader, Geometry]:
    """A reader of the voxels, and the grid, of what is no NIfTI file."""
    return (open_nrrd if path.is_file() and not is_dicom(path) else open_dicom)(path, case)


@contextmanager
def _one_file(path: Path, case: str) -> Iterator[None]:
    """Refuse a case whose file is absent, empty, or bad by what the block finds while it reads it."""
    if printable(path) != str(path):
        raise CaseError(case, f"{printable(path)} {NOT_UTF8}")
    if not is_there(path) and not path.is_dir():
        raise AwayError(case, f"{path} does not exist")
    if path.is_file() and path.stat().st_size == 0:
        raise CaseError(case, f"{path} is empty")
    try:
        with np.errstate(all="ignore"):  # what a damaged number gives is refused where it is not finite
            yield
    except BadFileError as error:
        raise CaseError(case, f"{path} {stand_in(path) or error}") from error
    except (OSError, zlib.error) as error:
        if getattr(error, "errno", None) is not None:
            raise  # the system's: access, a path that is gone, a device; what the file holds has no number
        raise CaseError(case, f"{path} {DAMAGED}") from error


def read_scan(path: Path, case: str) -> tuple[Volume, str]:
    """Read a CT that is learned from or segmented, and hold its size and values against the checks.

    Gives and refuses what `read_image` does, and tells what is doubtful about its values, or refuses it for
    that, as the checks say; the text is empty if nothing is.
    """
    volume = read_image(path, case)
    checks, grid = current_checks(), volume.geometry
    with _one_file(path, case):
        checks.require_size(grid.shape[::-1], grid.spacing_mm[::-1], case)
    return volume, checks.doubt(volume.array, case)


def read_labels(
    path: Path, classes: ClassList, label_map: Mapping[Any, int] | None = None, case: str | None = None
) -> Volume:
    """Read a label map, from what `read_image` reads, as uint8 class ids.

    Where it has `classes.ignore` the result has `IGNORE`. `data.label_map` renumbers it: value in the file ->
    class id, and `rest` -> id of all others but 0 and `classes.ignore`, which stay what they are unless the
    map names them. The case is refused if the file is bad, if values are further than 1e-3 from integers (or
    at all, where the checks refuse that), or not in the class list.
    """
    path = Path(path)
    case = case or case_id(path)
    volume = read_image(path, case)
    volume = _whole_numbers(volume, path, case)
    found = _values(volume.array)
    table = _lookup(found.astype(int).tolist(), classes, label_map, path, case)
    if volume.array.dtype == np.int16:
        full = np.zeros(1 << 16, np.uint8)
        full[list(table)] = list(table.values())  # negative values index from the end, as in int16
        return Volume(full[volume.array], volume.geometry)
    array = np.zeros(volume.array.shape, np.uint8)
    for value, wanted in table.items():
        array[volume.array == value] = wanted
    return Volume(array, volume.geometry)


def _whole_numbers(volume: Volume, path: Path, case: str) -> Volume:
    """Round label values that are integers but for rounding, as scaled ones are; refuse others."""
    if volume.array.dtype.kind != "f":
        return volume
    found = np.unique(volume.array)
    off = np.abs(found - np.rint(found))
    broken = found[off > NEAR_INTEGER] if off.max() > NEAR_INTEGER else found[off > 0]
    if off.max() > NEAR_INTEGER or (len(broken) and current_checks().labels == "refuse"):
        raise CaseError(case, f"{path} has label values that are not integers: {broken[:5].tolist()}")
    if len(broken):
        text = "case %s: label values %s are off integers by up to %.2g, rounded"
        log.warning(text, case, broken[:5].tolist(), off.max())
    return Volume(np.rint(volume.array), volume.geometry)


def _values(array: np.ndarray) -> np.ndarray:
    """Distinct values, fast for the common integer case."""
    if array.dtype == np.int16:
        return np.flatnonzero(np.bincount(array.ravel().astype(np.int32) + 32768, minlength=1 << 16)) - 32768
    return np.unique(array)


def _lookup(
    found: list[int], classes: ClassList, label_map: Mapping[Any, int] | None, path: Path, case: str
) -> dict[int, int]:
    """Class id of each value found, or a refusal naming the values."""
    known = {0, *classes.ids} | ({classes.ignore} if classes.ignore else set())
    given = {str(k): int(v) for k, v in (label_map or {}).items()}
    table: dict[int, int] = {}
    for value in found:
        # background stays background, and what is ignored ignored, unless the map names it
        is_fixed = value in (0, classes.ignore)
        unnamed = value if is_fixed else given.get("rest", -1 if given else value)
        table[value] = given.get(str(value), unnamed)
    bad = sorted(v for v, wanted in table.items() if wanted not in known)
    if bad:
        raise CaseError(
            case,
            f"{path} has label values {bad[:20]} outside the class list {sorted(known)}; "
            "renumber them with data.label_map; classes.ignore=<value> leaves voxels of a value out",
        )
    return {value: IGNORE if wanted == classes.ignore else wanted for value, wanted in table.items()}


def match_grid(labels: Volume, image: Volume | Geometry, case: str, names: str = "image and label") -> Volume:
    """Bring a label map to the voxel order of its image, losslessly, and give it the image's geometry.

    The case is refused, with both values, if corner voxels are further apart than `data.checks` tolerates.
    """
    geometry = image if isinstance(image, Geometry) else image.geometry
    # to the image's directions, not to RAS: nearest axes are no matter of rounding at 45 degrees
    orientation = orientation_to(labels.geometry, geometry.matrix)
    tolerance_mm = current_checks().tolerance_mm
    different = geometry.differences(orientation.apply_geometry(labels.geometry), tolerance_mm)
    if different:
        raise CaseError(case, f"{names} (in its voxel order) differ: {'; '.join(different)}")
    return Volume(np.ascontiguousarray(orientation.apply(labels.array)), geometry)


def read_compared(
    case: str, files: tuple[Path, Path, Path], classes: ClassList, label_map: Mapping[Any, int] | None
) -> tuple[Volume, Volume, Volume]:
    """Read a CT, its renumbered annotation and a prediction, on its grid in RAS order, or refuse the case."""
    image, reference, prediction = files
    ct = read_image(image, case)
    truth = match_grid(read_labels(reference, classes, label_map, case), ct, case)
    ours = match_grid(read_labels(prediction, classes, case=case), ct, case)
    return reorient_to_ras(ct)[0], reorient_to_ras(truth)[0], reorient_to_ras(ours)[0]


def write_labels(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write a label map, `(Z, Y, X)` class ids of a grid, as compressed uint8 NIfTI, atomically."""
    write_image(path, array.astype(np.uint8, copy=False), geometry)


def write_image(path: Path, array: np.ndarray, geometry: Geometry) -> None:
    """Write any array of a grid, atomically; the format goes by the extension."""
    with atomic(Path(path)) as temporary:
        if is_nifti(path):
            return write_nifti(temporary, array, geometry)
        image = sitk.GetImageFromArray(np.ascontiguousarray(array))
        image.SetSpacing(tuple(float(s) for s in geometry.spacing_mm[::-1]))
        image.SetOrigin(geometry.origin_mm)
        image.SetDirection(geometry.direction)
        sitk.WriteImage(image, str(temporary), useCompression=str(path).endswith(("nrrd", "mha")))
