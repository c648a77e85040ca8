"""What every value of a configuration may be, checked before any work."""

from flare.checking.values import check_values, given_paths

__all__ = ["check_values", "given_paths"]
