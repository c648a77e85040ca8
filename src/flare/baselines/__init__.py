"""What the trained rounds must beat: an untrained network, HU thresholds, and an aligned-atlas vote."""

from flare.baselines.cohort import BASELINES, predict_baseline

__all__ = ["BASELINES", "predict_baseline"]
