"""One self-contained HTML page a run: what was run, what it learned, and what it looks like."""

from flare.report.write import write_report

__all__ = ["write_report"]
