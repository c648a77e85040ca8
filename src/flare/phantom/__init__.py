"""The embedded cohort: CT-like volumes on real anatomy, to try the whole method on any machine."""

from flare.phantom.cohort import generate_cohort, planned_cases
from flare.phantom.plan import plan_cohort

__all__ = ["generate_cohort", "plan_cohort", "planned_cases"]
