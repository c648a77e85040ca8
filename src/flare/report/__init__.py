"""One self-contained HTML page a run: what was run, what it learned, and what it looks like."""
