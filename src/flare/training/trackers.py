"""Weights & Biases: one run a training, grouped by experiment, without a word about the machine's files."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flare.core.classes import ClassList
from flare.core.pictures import paint
from flare.training.loggers import Slice


class WandbRun(WandbLogger):
    """Lightning's logger of W&B, which ends its run with the training: the next round is another run.

    Console output, file names, command line and repository stay on the machine.

    Args:
        project: The W&B project.
        entity: Team or user; null is the account's default.
        group: The experiment.
        job_type: The round; null is called `all`.
        tags: Words to find the run by; nulls are left out.
        offline: Write files only, for a later `wandb sync`.
        save_dir: Folder below which W&B writes.
        run_id: The run to continue.
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
        import wandb

        names = {0: "background"} | {c.id: c.name for c in classes.entries}
        images = [
            wandb.Image(
                s.grey,
                caption=s.case,
                masks={
                    "reference": {"mask_data": s.reference, "class_labels": names},
                    "segmentation": {"mask_data": s.segmentation, "class_labels": names},
                },
            )
            for s in slices
        ]
        self.log_metrics({key: images}, step)  # type: ignore[dict-item]

    @rank_zero_only
    def log_cases(self, key: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Show a table, one row a case."""
        columns = list(rows[0])
        self.log_table(key, columns=columns, data=[[row[c] for c in columns] for row in rows], step=step)

    @rank_zero_only
    def log_files(
        self, name: str, kind: str, files: Sequence[Path], rows: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep files as an artifact, with their content as a table that can be looked at."""
        import wandb

        artifact = wandb.Artifact(name, type=kind)
        for path in files:
            artifact.add_file(str(path), name=path.name)
        columns = list(rows[0])
        table = wandb.Table(columns=columns, data=[[row[c] for c in columns] for row in rows])
        artifact.add(table, "table")
        self.experiment.log_artifact(artifact)
        self.experiment.log({name: table})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """End the run."""
        if self._experiment is not None:
            run_id = self.run_id
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment, self._id = None, run_id

    @contextmanager
    def running(self) -> Iterator[WandbRun]:
        """End the run with the block."""
        status = "failed"
        try:
            yield self
            status = "success"
        finally:
            self.finalize(status)


class MlflowRun(MLFlowLogger):
    """Lightning's logger of MLflow that can go on in a run, and that writes plain files where no server is.

    Args:
        tracking_uri: A server, a database, or `file:<folder>`.
        run_name: The round; null is called `all`.
        **arguments: As Lightning's.
    """

    def __init__(self, *, tracking_uri: str, run_name: str | None, **arguments: Any) -> None:
        if tracking_uri.startswith("file:"):
            # MLflow 3 refuses folders unless told; its databases need SQLAlchemy, which mlflow-skinny lacks
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        super().__init__(tracking_uri=tracking_uri, run_name=run_name or "all", **arguments)

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
        text = "\n".join(
            "| " + " | ".join("" if c is None else str(c) for c in line) + " |" for line in lines
        )
        self.experiment.add_text(key, text, step)
