"""Sweeps: what became of each job, a table that compares them, and failed jobs run again alone."""

from flare.sweeps.callback import SweepTable

__all__ = ["SweepTable"]
