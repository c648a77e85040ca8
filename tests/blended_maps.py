"""Blended maps as plain arrays."""

import numpy as np

from flare.inference.blend import Blended


def full_values(blended: Blended) -> np.ndarray:
    """The maps of the whole volume, `(C, Z, Y, X)` float32, 0 without a window."""
    full = np.zeros((len(blended.values), *blended.shape), dtype=np.float32)
    z, y, x = (slice(*interval) for interval in blended.box)
    full[:, z, y, x] = blended.values.cpu().numpy()
    return full
