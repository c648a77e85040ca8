"""The embedded cohort: CT-like volumes on real anatomy, to try the whole method on any machine."""
