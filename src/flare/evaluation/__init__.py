"""Scores of a case and of a cohort, lesion-wise detection, statistics, and the paper's tables."""
