"""What a case takes of this process's memory, predicted before the network runs."""

import math

from flare.core.geometry import Shape
from flare.core.preprocessing import Preprocessed

# what a pass takes for a voxel of a window: the medium network in float32 by torch, measured (ours)
PASS_BYTES = 1000


def expected_bytes(
    case: Preprocessed, patch: Shape, sums: int, kept: int, *, is_whole: bool = False, is_open: bool = False
) -> float:
    """Predict what a case adds at most to the process, but for the block of slices restored at a time.

    As the scan is resampled it is there, 16 bits a voxel, and the network's grid in float32. As the network
    runs, the grid is there as 16 and 32 bits, its body and coverage as a byte each, one pass of a window, the
    sums of two windows' depth, and what is given back.

    Args:
        case: The scan on the network's grid.
        patch: Voxels of a window along Z, Y, X.
        sums: Maps that are summed up in this process's memory, weights included; 0 if passes are on a GPU.
        kept: Bytes of what is given back for each voxel of the scan: 1 of labels, 2 of a probability.
        is_whole: Whether the sums of all of the grid are kept.
        is_open: Whether open decisions are asked for: 8 bytes a voxel, and maps of windows that are held.
    """
    scan = math.prod(case.geometry.shape)
    depth, *sides = (max(pair) for pair in zip(case.array.shape, patch, strict=True))
    plane, slices = math.prod(sides), depth if is_whole else min(depth, 2 * patch[0])
    passes = PASS_BYTES * math.prod(patch) if sums else 0
    predicting = 8 * plane * depth + 4 * sums * plane * slices + passes + kept * scan
    if is_open and sums:
        predicting += 8 * plane * depth + 4 * sums * plane * patch[0]
    return max(2 * scan + 4 * plane * depth, predicting)
