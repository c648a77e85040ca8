"""Hybrid labels: ground truth and a teacher's pseudo labels merged into one map a case, with provenance."""
