"""What the trained rounds must beat: an untrained network, HU thresholds, and an aligned-atlas vote."""

from flare.baselines.cohort import BASELINES, check_baselines, predict_baseline

__all__ = ["BASELINES", "check_baselines", "predict_baseline"]
