"""What the trained rounds must beat: an untrained network, HU thresholds, and an aligned-atlas vote."""
