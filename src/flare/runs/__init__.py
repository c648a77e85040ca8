"""Keeping a run: its folders, what is done, work spread over cases, checkpoints, records."""
