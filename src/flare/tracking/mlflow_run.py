"""MLflow: the same numbers, in a store that needs no server."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only


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
