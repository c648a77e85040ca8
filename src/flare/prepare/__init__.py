"""From folders of CT scans to a cohort ready for training: index, analysis, integrity, cache."""
