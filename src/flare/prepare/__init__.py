"""From folders of CT scans to a cohort ready for training: index, analysis, integrity, cache."""

from flare.prepare.cohort import Cohort, analyse, prepare, prepare_cohort

__all__ = ["Cohort", "analyse", "prepare", "prepare_cohort"]
