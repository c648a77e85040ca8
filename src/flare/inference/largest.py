"""Keep the largest component of an organ alone."""

import cc3d
import numpy as np


def keep_largest(segmentation: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Remove all but the largest face-connected component of each of the classes, in a copy.

    Equally large ones all stay. Removed voxels become background.

    Reference: nnU-Net's post-processing.
    """
    treated = np.isin(np.arange(256), classes)[segmentation]
    if not treated.any():
        return segmentation.copy()
    components = cc3d.connected_components(np.where(treated, segmentation, 0), connectivity=6)
    sizes = np.bincount(components.ravel())
    owner = np.zeros(len(sizes), dtype=np.int64)
    owner[components[treated]] = segmentation[treated]
    largest = np.zeros(256, dtype=np.int64)
    np.maximum.at(largest, owner[1:], sizes[1:])
    stays = sizes == largest[owner]
    stays[0] = True
    return np.where(stays[components], segmentation, 0).astype(segmentation.dtype)
