"""One training: the Lightning module and trainer, what is built from a configuration, resuming, loggers."""
