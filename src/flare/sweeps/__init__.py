"""Sweeps: what became of each job, a table that compares them, and failed jobs run again alone."""
