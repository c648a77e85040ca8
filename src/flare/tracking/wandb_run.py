"""Weights & Biases: one run a training, grouped by experiment, without a word about the machine's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from flare.labels import LabelSet
from flare.tracking.slices import Slice


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
    def log_slices(self, key: str, slices: Sequence[Slice], labels: LabelSet, step: int) -> None:
        """Show slices with their reference and segmentation as masks that can be switched on and off."""
        import wandb

        names = {0: "background"} | {c.id: c.name for c in labels.classes}
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
