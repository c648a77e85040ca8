"""Cases read, segmented, written, and measured where that is asked for; the body of `infer.py`."""

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from flare.core import cases, checks, class_files, volumes
from flare.core.classes import ClassList
from flare.core.errors import POSITIVE, FlareError, check_values, given_paths, several, some
from flare.core.files import PARTIAL, remove_partial, searched, sha256, stand_in, write_csv
from flare.core.geometry import Volume
from flare.core.paths import require_writable, settle_paths
from flare.core.preprocessing import Preprocessed, preprocess
from flare.core.series import is_there
from flare.inference.fitted import given_keys, with_plan
from flare.inference.measure import measured
from flare.inference.saving import Saving
from flare.inference.settings import InferenceSettings
from flare.runs import folders, locks
from flare.runs.journal import Inputs, Journal, require_own, resume_cases
from flare.runs.work import Executor, Outcome, around, build_executor, report_failures, under_checks

if TYPE_CHECKING:
    from flare.inference.predictor import Predictor
    from flare.runs.checkpoints import Checkpoint

Row = dict[str, Any]
Reading = tuple[Preprocessed, str, Row]
Tabulate = Callable[[Sequence[Row], Path], object]
NOTHING = Saving()
log = logging.getLogger(__name__)
_reader = ThreadPoolExecutor(1)
_ahead: dict[Path, Future[Reading | None]] = {}  # the next case of this process, by its image


def predict_case(
    case: str,
    image: Path,
    target: Path,
    checkpoint: Path,
    digest: str,
    settings: InferenceSettings,
    saving: Saving = NOTHING,
    following: tuple[str, Path] | None = None,
) -> Row:
    """Read, segment and write one case; read the `following` one meanwhile, which is this process's next.

    With `settings.measure` a process of its own does it, see `measured`. Gives what `inference.csv` says.
    """
    if settings.measure:
        plain = replace(settings, measure=False)
        job = {"case": case, "image": image, "target": target, "checkpoint": checkpoint, "digest": digest}
        job |= {"settings": plain, "saving": saving}
        gpu = choose_gpu(settings)
        return measured(around(predict_case, under_checks, checks.current_checks()), job, gpu=gpu)
    predictor = load_predictor(checkpoint, digest, settings)
    row = segment_case(case, image, target, predictor, (), saving=saving, following=following)[1]
    return {**row, "plan": settings.plan} if settings.plan else row


def read_case(case: str, image: Path, predictor: "Predictor", cached: Path | None = None) -> Reading:
    """Give a scan on the network's grid, what is doubtful about its values, and the seconds by stage."""
    started = time.perf_counter()
    found: Preprocessed | Volume | None = None
    doubt = ""
    if cached is not None:
        from flare.data.cache import read_preprocessed  # the store: only where there is one

        found = read_preprocessed(cached, predictor.spacing_mm, predictor.interpolation)
    if found is None:  # what is cached was judged as it was prepared
        found, doubt = volumes.read_scan(image, case)
    read = time.perf_counter()
    if isinstance(found, Volume):
        # the scan, which may be large, is needed no more
        found = preprocess(found, predictor.spacing_mm, predictor.interpolation)
    return found, doubt, {"read": read - started, "preprocess": time.perf_counter() - read}


def read_ahead(case: str, image: Path, predictor: "Predictor", room_mb: float) -> None:
    """Begin to read the next case in a thread, unless it takes more memory than there is room."""

    def read() -> Reading | None:
        # as a scan is resampled it is there in 16 bits, and its grid, which has fewer voxels, in 32
        takes_mb = 6 * math.prod(volumes.read_grid(image, case).shape) / 2**20
        return read_case(case, image, predictor) if takes_mb < room_mb else None

    _ahead[image] = _reader.submit(copy_context().run, read)  # under the checks of this thread


def segment_case(
    case: str,
    image: Path,
    target: Path,
    predictor: "Predictor",
    components: tuple[int, ...],
    cached: Path | None = None,
    confidence: Path | None = None,
    saving: Saving = NOTHING,
    following: tuple[str, Path] | None = None,
) -> tuple[Volume, Row]:
    """Read an image, a file or DICOM folder, segment it and write, and say how long each took.

    Of the classes in `components` only the largest component is kept. What lies in the cache is read instead
    of the image where it is what the predictor would make of it; a network of another grid or interpolation
    starts from the image. `confidence` names a file for that, where the predictor gives it; `saving` says
    what else is kept, and of which classes. The `following` case is read while the network runs. Gives the
    segmentation, and what `inference.csv` says of the case.
    """
    cpu = time.process_time()  # with what reads the next case meanwhile
    ahead = _ahead.pop(image, None)
    known = None if ahead is None or ahead.exception() else ahead.result()
    found, doubt, seconds = known or read_case(case, image, predictor, cached)
    geometry = found.geometry
    if following is not None:
        read_ahead(*following, predictor, predictor.room_mb(found))
    prediction = predictor.predict(found, components=components, **saving.asked())
    segmentation = saving.of_chosen(prediction.segmentation)
    written = time.perf_counter()
    more: Row = {}
    if saving.kinds:
        names = {i: predictor.classes.name_of(i) if i else "background" for i in predictor.outputs}
        more = saving.write(prediction, target, names)
    volumes.write_labels(target, segmentation, geometry)
    if confidence is not None and prediction.confidence is not None:
        volumes.write_labels(confidence, prediction.confidence, geometry)
    # by stage, in their order; what was read came resampled
    seconds = {**seconds, **prediction.seconds, **seconds, "write": time.perf_counter() - written}
    row = {
        "case": case,
        "size": "x".join(str(size) for size in reversed(geometry.shape)),
        "windows": prediction.windows,
        "network_vox": prediction.network_vox,
        "body_found": prediction.body_found,
        "uncovered_body_vox": prediction.uncovered_body_vox,
        "doubt": doubt,
        "seconds": round(sum(seconds.values()), 3),
        "cpu_s": round(time.process_time() - cpu, 3),
        **{f"{stage}_s": round(value, 3) for stage, value in seconds.items()},
    }
    return Volume(segmentation, geometry), row | more


@lru_cache(maxsize=1)
def load_predictor(checkpoint: Path, digest: str, settings: InferenceSettings) -> "Predictor":
    """Load a network once per process; a file with another hash counts as another."""
    from flare.inference.predictor import Predictor

    return Predictor.from_checkpoint(checkpoint, settings)


@dataclass
class Predicted:
    """What became of a set of cases: a row of `inference.csv` per segmented one, by case id; the failed."""

    rows: list[Row] = field(default_factory=list)
    failures: list[Outcome] = field(default_factory=list)


def segmentation_path(output: Path, case: str) -> Path:
    """Say where a case's segmentation lies."""
    return output / f"{case}.nii.gz"


def made_from(
    image: Path, digest: str, settings: InferenceSettings, components: Sequence[int]
) -> tuple[Inputs, Row]:
    """What a segmentation is made from, and what else decides it, as journals have it."""
    inputs: Inputs = {"image": image, "checkpoint": digest}
    return inputs, {"settings": settings.identity(), "components": sorted(components)}


def predict_cases(
    checkpoint: Path,
    images: Mapping[str, Path],
    output: Path,
    *,
    settings: InferenceSettings,
    executor: Executor,
    journal: Journal,
    classes: ClassList,
    saving: Saving = NOTHING,
) -> Predicted:
    """Segment cases, id to image, into `<case>.nii.gz`, in each image's own geometry.

    The class list, which is the checkpoint's, lies beside. A case whose image, checkpoint and settings are
    unchanged is left alone, unless its efficiency is asked for and was not measured. A missing checkpoint is
    refused. Of a refused image no segmentation is left.
    """
    if not checkpoint.is_file():
        raise FlareError(f"checkpoint={checkpoint}: no such file")
    digest = sha256(checkpoint)
    shared = {"checkpoint": checkpoint, "digest": digest, "settings": settings, "saving": saving}
    targets = {case: segmentation_path(output, case) for case in images}
    jobs = {case: {"case": case, "image": images[case], "target": targets[case], **shared} for case in images}

    def begin(todo: Collection[str]) -> None:
        remove_partial(output)
        if not settings.measure and (executor.workers == 0 or one_by_one(settings)):
            for case, after in pairwise(todo):
                jobs[case]["following"] = after, images[after]

    inputs = {case: made_from(image, digest, settings, ())[0] for case, image in images.items()}
    known = [case for case in images if settings.measure and case in journal]
    unmeasured = [case for case in known if "time_s" not in journal.values(case)]
    class_files.write_classes(output, classes)
    try:
        done = resume_cases(
            predict_case,
            jobs,
            inputs=inputs,
            config=made_from(checkpoint, digest, settings, ())[1] | saving.identity(),
            outputs=lambda case: {"segmentation": targets[case], **saving.paths(targets[case])},
            journal=journal,
            executor=executor,
            description="predict",
            again=dict.fromkeys(unmeasured, "what it costs was not measured"),
            alone=lambda count: count == 1 or one_by_one(settings),
            before=begin,
        )
    finally:
        _ahead.clear()  # where an error ended the step, of files that may change
    rows = [done.values[case] for case in sorted(done.values)]
    report_coverage(rows)
    return Predicted(rows, done.failures)


def one_by_one(settings: InferenceSettings) -> bool:
    """Whether cases must not run side by side: on a GPU, and to measure."""
    return settings.measure or choose_gpu(settings) is not None


def choose_gpu(settings: InferenceSettings) -> int | None:
    """The number of the CUDA device that segments; None without one."""
    from flare.inference.engines import choose_device  # torch: only once there is work

    device = choose_device(settings.device)
    return (device.index or 0) if device.type == "cuda" else None


def report_coverage(rows: list[Row]) -> None:
    """Say which values are doubtful, where no body was found, and where some of it was not looked at."""
    for row in rows:
        if row.get("doubt"):
            log.warning("case %s: %s", row["case"], row["doubt"])
        if not row["body_found"]:
            counts = "all of the volume counts as body" if row["windows"] else "all of it becomes background"
            log.warning("case %s: no body found, %s", row["case"], counts)
    uncovered = [row["case"] for row in rows if row["uncovered_body_vox"]]
    if uncovered:
        told = ", ".join(uncovered[:10]) + (", ..." if len(uncovered) > 10 else "")
        text = "%d of %d cases have body outside all windows, which becomes background: %s"
        log.warning(text, len(uncovered), len(rows), told)


@dataclass(frozen=True)
class Request:
    """What `infer.py` is asked for: one file, a DICOM folder, or a folder to search; `is_one` into a file."""

    source: Path
    output: Path
    checkpoint: Path
    settings: InferenceSettings
    classes: ClassList
    saving: Saving = NOTHING
    is_one: bool = False
    case_id: str = "leaf"

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "Request":
        """Read the configuration of `infer`.

        Refused are values that mean nothing, missing paths, an output that would overwrite the input or holds
        segmentations of other classes, and a checkpoint that does not fit.
        """
        settle_paths(cfg)
        cfg = class_files.own_classes(cfg)
        check_values(cfg, {"data.spacing_mm": several(3, POSITIVE)})
        settings = InferenceSettings.from_config(cfg)
        source, output = (path.resolve() for path in given_paths(cfg, "input", "output"))
        if not (is_there(source) or source.is_dir()) and searched(source)[1] in ([], [source]):
            raise FlareError(f"input={cfg.input}: no such file or folder")
        if source.is_file() and not volumes.is_readable(source):
            unread = "is of a format that is not read; expected .nii, .nii.gz, .nrrd, .mha or DICOM"
            raise FlareError(f"input={cfg.input}: {stand_in(source) or unread}")
        is_one = output.name.endswith(".nii.gz") and not output.is_dir()
        if output.exists() and not output.is_dir():
            expected = "another name: no file is overwritten" if is_one else "a folder, or a name in .nii.gz"
            raise FlareError(f"output={cfg.output}: is a file; expected {expected}")
        require_writable("output", output.parent if is_one else output)
        if output in (source, source.parent if source.is_file() else source):
            raise FlareError(f"output={cfg.output}: is where the input lies; expected another folder")
        checkpoint = find_checkpoint(cfg)
        wanted = {"round": cfg.round.name, "data.spacing_mm": tuple(map(float, cfg.data.spacing_mm))}
        if cfg.round.name is None:
            wanted = {}  # a checkpoint brings its own
        chosen = ClassList.from_config(cfg.classes) if class_files.are_chosen(cfg) else None
        found = _check_checkpoint(checkpoint, settings, chosen, wanted)
        classes = found.class_list
        if not is_one and (carried := class_files.carried_classes("output", output)):
            class_files.require_agreement("output", carried, classes, f"checkpoint={checkpoint}")
        settings = with_plan(settings, found, given_keys())
        saving = Saving.from_config(cfg, found)
        if is_one and saving.kinds:
            raise FlareError(f"save={','.join(saving.kinds)}: expected output=<folder>, given {output.name}")
        settings.tell_flips(found.mirror_axes)
        rule = cases.case_rule(cfg.data.case_id)
        return cls(source, output, checkpoint, settings, classes, saving, is_one, rule)


def find_checkpoint(cfg: DictConfig) -> Path:
    """The file that `checkpoint` names, or the `kind` of the round whose folder it, or `round`, names.

    A command that names neither is refused, and so is a file that is not there.
    """
    if cfg.checkpoint is None and cfg.round.name is None:
        expected = "checkpoint=<file.ckpt>, or round=<name> of this run"
        raise FlareError(f"checkpoint: not given; expected {expected}")
    kind, given = cfg.kind, Path(cfg.checkpoint or folders.named_run(cfg).round(cfg.round.name).root)
    if cfg.checkpoint and not given.is_dir():
        if kind != "last":
            raise FlareError(f"kind={kind}: checkpoint={given} is no folder; expected that of a round")
        return given
    place = given / "checkpoints" if cfg.checkpoint is None or (given / "checkpoints").is_dir() else given
    if not (found := place / f"{kind}.ckpt").is_file():
        key = f"checkpoint={given}" if cfg.checkpoint else f"round={cfg.round.name}"
        first = "" if cfg.checkpoint else f"; run `python train.py name={cfg.name} {key}` first"
        told = folders.tell_kinds(place, kind)
        raise FlareError(f"{key}: {found} is not there (kind={kind}; {told}){first}")
    return found


def _check_checkpoint(
    path: Path, settings: InferenceSettings, chosen: ClassList | None, wanted: Mapping[str, Any]
) -> "Checkpoint":
    """Refuse a checkpoint of other classes than the chosen, of another round or spacing, or not run here."""
    # torch: only once there is work
    from flare.inference.engines import choose_device
    from flare.inference.exported import engine_for, format_of, read_exported
    from flare.runs.checkpoints import load_checkpoint

    kind = format_of(path)
    found = read_exported(path, kind) if kind else load_checkpoint(path)
    if kind:
        engine_for(path, kind, settings, choose_device(settings.device))
    classes = found.class_list
    if chosen is not None and not classes.agrees(chosen):
        told = f"its classes are {classes.told}; the configuration (classes=) has {chosen.told}"
        raise FlareError(f"checkpoint={path}: {told}")
    carried = {"round": found.round, "data.spacing_mm": found.spacing_mm}
    for key, value in wanted.items():
        if carried[key] != value:
            raise FlareError(f"checkpoint={path}: has {key}={carried[key]}; expected {value}")
    return found


def infer(cfg: DictConfig, tabulate: Tabulate | None = None) -> dict[str, Any]:
    """Segment what `input` names into the folder `output`, or a single image into the file of that name.

    Cases already done with the same input, checkpoint and settings are left alone. `inference.csv` beside the
    segmentations says how each came about; with `inference.measure=true` also what it cost. Then `tabulate`
    gets the rows and the folder, which is still locked. Gives `output` and one row per case.

    Raises:
        FlareError: If the configuration is refused, before any work; or, after all else, if a case failed.
    """
    request = Request.from_config(cfg)
    if not request.is_one:
        return _infer(request, cfg, tabulate)
    request.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=request.output.parent) as beside:
        found = _infer(replace(request, output=Path(beside)), cfg, tabulate)
        os.replace(segmentation_path(Path(beside), found["cases"][0]["case"]), request.output)
    return found | {"output": str(request.output)}


def _infer(request: Request, cfg: DictConfig, tabulate: Tabulate | None) -> dict[str, Any]:
    """Segment into a folder, as `infer`."""
    output, settings = request.output, request.settings
    found, skipped = volumes.find_scans(request.source)
    own = {output, *(path.parent for path in request.saving.paths(output / "any").values())}
    paths = [path for path in found if not own & set(path.resolve().parents)]
    root = searched(request.source)[0]
    # a single scan has its folder's name, wherever the search began
    of = None if len(paths) == 1 and request.case_id == "parent" else root
    images, refused = volumes.unique_cases(paths, rule=request.case_id, root=of)
    scouts = some(sorted({volumes.case_id(path, rule=request.case_id, root=root) for path in skipped}), 10)
    if not images and not refused:
        beside = f", but localizers and scouts: {scouts}" if skipped else ""
        told = "holds no image (.nii, .nii.gz, .nrrd, .mha) and no DICOM series"
        raise FlareError(f"input={request.source}: {told}{beside}")
    if skipped:
        log.warning("localizers and scouts are left out: %s", scouts)
    if request.is_one and len(images) != 1:
        raise FlareError(f"output: expected a folder for the {len(paths)} images of input, given a file")
    log.info("%d cases to segment", len(images))
    journal = Journal(output / "journal" / "inference.jsonl")
    require_own(journal, {case: {"": segmentation_path(output, case)} for case in images})
    # workers that are still there when Python ends can make it end with an error
    with locks.lock(output), closing(build_executor(cfg)) as executor:
        remove_partial(output)
        done = predict_cases(
            request.checkpoint,
            images,
            output,
            settings=settings,
            executor=executor,
            journal=journal,
            classes=request.classes,
            saving=request.saving,
        )
        if done.rows:
            # measured cases have columns of their own
            columns = list(dict.fromkeys(key for row in done.rows for key in row if key != "volumes_ml"))
            volumes_ml = [{"case": r["case"], **r["volumes_ml"]} for r in done.rows if "volumes_ml" in r]
            if volumes_ml:
                write_csv(output / "volumes.csv", volumes_ml)
            write_csv(output / "inference.csv", done.rows, columns)
        if settings.measure and tabulate is not None:
            tabulate(done.rows, output)
    twice = [Outcome(case, error=reason) for case, reason in refused.items()]
    report_failures([*twice, *done.failures], "infer")
    return {"output": str(output), "cases": done.rows}
