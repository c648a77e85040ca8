"""Trackers: one run a training, in which a resumed one goes on; no word about the machine's files."""

import logging
import math
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import rank_zero_experiment
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flare.core.classes import ClassList
from flare.core.errors import FlareError, build_part
from flare.core.geometry import Volume, reorient_to_ras
from flare.core.pictures import WINDOW_HU, find_view, paint
from flare.runs.checkpoints import read_weights_file

log = logging.getLogger(__name__)
SQLITE = "sqlite:///"
KEY = "run_ids"  # entry of a Lightning checkpoint: name in `logger` -> id


class Loggers(Callback):
    """Builds a training's loggers by name, and adds the ids of the trackers' runs to every checkpoint."""

    def __init__(self, parts: Mapping[str, Mapping[str, Any]], folder: Path, ckpt_path: Path | None) -> None:
        # the runs of what the training resumes from are continued
        known = {} if ckpt_path is None else read_weights_file(ckpt_path).get(KEY, {})
        self.loggers: dict[str, Logger] = {}
        for name, part in parts.items():
            own = {"run_id": known[name]} if name in known else {}
            self.loggers[name] = build_part(part, f"logger.{name}", save_dir=str(folder), **own)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Add the ids."""
        ids = {name: getattr(logger, "run_id", None) for name, logger in self.loggers.items()}
        checkpoint[KEY] = {name: str(run_id) for name, run_id in ids.items() if run_id is not None}


@dataclass(frozen=True)
class Slice:
    """A picture (soft-tissue window) and its labels, `(rows, columns)` uint8, the patient's right left."""

    case: str
    grey: np.ndarray
    reference: np.ndarray
    segmentation: np.ndarray


@runtime_checkable
class ShowsCases(Protocol):
    """A logger that shows more than numbers."""

    def log_slices(self, key: str, slices: Sequence[Slice], classes: ClassList, step: int) -> None:
        """Show slices with their labels over them."""

    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""


def cut_slice(case: str, segmented: Mapping[str, Any], classes: ClassList) -> Slice:
    """Cut a case (`module.Segmented`) where its tumor is largest, or else where most is labelled."""
    image = segmented["image"]
    arrays = (image.array, segmented["reference"], segmented["segmentation"])
    volumes = [reorient_to_ras(Volume(array, image.geometry))[0] for array in arrays]
    centre, box = find_view(volumes[1], volumes[2].array, classes)
    low, high = WINDOW_HU
    hu, reference, segmentation = (
        np.ascontiguousarray(np.flip(v.array[centre[0], box[1], box[2]])) for v in volumes
    )
    grey = np.clip((hu.astype(np.float32) - low) / (high - low), 0, 1) * 255
    return Slice(case, np.rint(grey).astype(np.uint8), reference, segmentation)


def showing(trainer: pl.Trainer) -> list[ShowsCases]:
    """The trainer's loggers that show more than numbers, in the process that logs."""
    logs = trainer.is_global_zero and not trainer.sanity_checking
    return [logger for logger in trainer.loggers if logs and isinstance(logger, ShowsCases)]


class Overlays(Callback):
    """Shows the same few validation cases with masks: first, last, and `every_n_epochs` or more apart."""

    def __init__(self, every_n_epochs: int, cases: int) -> None:
        self.every_n_epochs = every_n_epochs
        self.cases = cases
        self.shown: int | None = None
        self.slices: list[Slice] = []

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, *given: Any) -> None:
        """Keep a slice of a case that is to be shown."""
        if len(self.slices) < self.cases and self._is_due(trainer) and showing(trainer):
            self.slices.append(cut_slice(given[0].id, outputs, pl_module.classes))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show what was kept."""
        if not self.slices:
            return
        for logger in showing(trainer):
            logger.log_slices("val/overlays", self.slices, pl_module.classes, trainer.global_step)  # type: ignore[arg-type]
        self.slices = []
        self.shown = trainer.current_epoch

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """Whether this validation is to be shown."""
        every = trainer.check_val_every_n_epoch or 1  # None: by steps, and so in any epoch
        last = (trainer.max_epochs or 0) // every * every - 1
        due = -math.inf if self.shown is None else self.shown + self.every_n_epochs
        return trainer.current_epoch == last or trainer.current_epoch >= due

    def state_dict(self) -> dict[str, Any]:
        """What a resumed training must remember."""
        return {"shown": self.shown}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where the saved training was."""
        self.shown = state_dict["shown"]


class CaseTable(Callback):
    """Shows the scores of every validation case, class by class, after each validation."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the table."""
        scores: dict[str, dict[str, float]] = pl_module.scores  # type: ignore[assignment]
        keys = sorted({key for row in scores.values() for key in row})
        rows = [{"case": case} | {k: scores[case].get(k) for k in keys} for case in sorted(scores)]
        for logger in showing(trainer) if rows else []:
            logger.log_cases("val/cases", rows, trainer.global_step)


class WandbRun(WandbLogger):
    """Lightning's logger of W&B, which ends its run with the training: the next round is another run.

    Console output, file names, command line and repository stay on the machine. `conf/logger/wandb.yaml` says
    what is what; a `job_type` of null is called `all`, tags of null are left out, `run_id` is continued.
    """

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        group: str,
        job_type: str | None,
        tags: Sequence[str | None],
        offline: bool,
        save_dir: str,
        run_id: str | None = None,
    ) -> None:
        import wandb

        job = job_type or "all"
        settings = wandb.Settings(console="off", disable_git=True, x_disable_meta=True, save_code=False)
        mode: dict[str, Any] = {"mode": "offline"} if offline else {}  # else WANDB_MODE may say
        self.is_online = not offline and os.environ.get("WANDB_MODE", "online") == "online"
        super().__init__(
            project=project,
            entity=entity,
            group=group,
            job_type=job,
            name=f"{group}-{job}",
            tags=[str(tag) for tag in tags if tag],
            save_dir=save_dir,
            version=run_id,
            settings=settings,
            **mode,
        )

    def require_login(self) -> None:
        """Refuse, before any work, a run that W&B would not take: nobody logged in, or it is out of reach."""
        import wandb

        if not self.is_online:
            return
        reason = "nobody is logged in here"
        try:
            is_taken = wandb.login(verify=True, prompt=False)
        except Exception as error:  # whatever its client raises
            is_taken, reason = False, " ".join(str(error).split())
        if not is_taken:
            raise FlareError(
                f"logger.wandb: W&B takes no run: {reason}; expected `wandb login`, or "
                "logger.wandb.offline=true for files that `wandb sync` uploads later"
            )

    @property
    def run_id(self) -> str | None:
        """Id of the run, once it has begun or if it continues one."""
        return self.version

    @property
    def experiment(self) -> Any:
        """The run, begun when it is first asked for."""
        if self._experiment is None:
            Path(str(self.save_dir)).mkdir(parents=True, exist_ok=True)  # W&B goes elsewhere without it
        return super().experiment

    @rank_zero_only
    def log_slices(self, key: str, slices: Sequence[Slice], classes: ClassList, step: int) -> None:
        """Show slices with their reference and segmentation as masks that can be switched on and off."""
        names = {0: "background"} | {c.id: c.name for c in classes.entries}
        maps = [{"reference": s.reference, "segmentation": s.segmentation} for s in slices]
        masks = [{k: {"mask_data": ids, "class_labels": names} for k, ids in m.items()} for m in maps]
        self.log_image(key, [s.grey for s in slices], step, caption=[s.case for s in slices], masks=masks)

    @rank_zero_only
    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""
        self.log_table(key, list(rows[0]), [list(row.values()) for row in rows], step=step)

    @rank_zero_only
    def log_files(
        self, name: str, kind: str, files: Sequence[Path], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep files as an artifact, with their content as a table that can be looked at."""
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for path in files:
            artifact.add_file(str(path), name=path.name)
        table = wandb.Table(columns=list(rows[0]), data=[[row[c] for c in rows[0]] for row in rows])
        artifact.add(table, "table")
        self.experiment.log_artifact(artifact)
        self.experiment.log({name: table})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._experiment is not None:
            run_id = self.run_id
            self._experiment.finish(exit_code=int(status != "success"))
            self._experiment, self._id = None, run_id


class MlflowRun(MLFlowLogger):
    """Lightning's logger of MLflow that can go on in a run, and begins its store with its first run.

    `tracking_uri` is a server, a database (`sqlite:///<file>`, which `mlflow ui` opens), or `file:<folder>`.
    A `run_name` of null is called `all`. Beside a database lie its artifacts.
    """

    def __init__(self, *, tracking_uri: str, run_name: str | None, **arguments: Any) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers of each run
        if tracking_uri.startswith("file:"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3 refuses folders unless told
        if tracking_uri.startswith(SQLITE):
            beside = Path(tracking_uri.removeprefix(SQLITE)).parent / "artifacts"
            arguments.setdefault("artifact_location", str(beside))
            for maker in ("alembic", "mlflow.store.db.utils"):  # a line for each table that they make
                logging.getLogger(maker).setLevel(logging.WARNING)
        arguments["tags"] = {"mlflow.source.name": "flare", **(arguments.get("tags") or {})}  # no path
        # a client makes its store at once: Lightning's is of a server that nobody asks
        super().__init__(tracking_uri="http://localhost", run_name=run_name or "all", **arguments)
        self._tracking_uri = tracking_uri

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """MLflow's client; asked for, the run begins or goes on. One that the store lacks begins anew."""
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        if not self._initialized:
            self._mlflow_client = MlflowClient(self._tracking_uri)
            try:
                return super().experiment
            except MlflowException as error:
                if self._run_id is None or error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                log.warning("logger.mlflow: the store has no run %s, so another begins", self._run_id)
                self._run_id = None
        return super().experiment

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Log the configuration of a new run; MLflow refuses to change that of a continued one."""
        if not self.experiment.get_run(self.run_id).data.params:
            super().log_hyperparams(params)


class TensorBoardRun(TensorBoardLogger):
    """Lightning's logger of TensorBoard that shows cases as well."""

    @rank_zero_only
    def log_slices(self, key: str, slices: Sequence[Slice], classes: ClassList, step: int) -> None:
        """Show slices with the reference (left) and the segmentation (right) painted over."""
        for s in slices:
            hu = s.grey.astype(np.float32) / 255 * 400 - 160
            sides = [paint(hu, labels, (1.0, 1.0), classes) for labels in (s.reference, s.segmentation)]
            picture = np.concatenate(sides, axis=1)
            self.experiment.add_image(f"{key}/{s.case}", picture, step, dataformats="HWC")

    @rank_zero_only
    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        cells = [["" if cell is None else str(cell) for cell in line] for line in lines]
        self.experiment.add_text(key, "\n".join(f"| {' | '.join(line)} |" for line in cells), step)
