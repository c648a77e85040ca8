"""How to store preprocessed images: blosc2 against zarr, at the paper's patch, on one real CT.

    pip install zarr
    python benchmarks/cache.py ../shared/data/torso_512/torso_0000.nii.gz

zarr is a candidate only, and so no dependency of the project.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import numpy as np

from flare.core.preprocessing import preprocess
from flare.core.volumes import read_image
from flare.data.cache import cache_image

PATCH = (32, 128, 192)  # paper, Tables 2 and 3
SPACING_MM = (4.0, 1.2, 1.2)
PATCHES = 40
REPEATS = 7  # of which the fastest counts, since other work on the machine only ever adds time

Write = Callable[[Path, np.ndarray], None]
Open = Callable[[Path], Any]


def blosc2_store(codec: blosc2.Codec, level: int, chunks: tuple[int, ...], blocks: tuple[int, ...]) -> Write:
    """A writer of one compressed file."""

    def write(path: Path, array: np.ndarray) -> None:
        cparams = {"codec": codec, "clevel": level, "nthreads": 1}
        fitting = tuple(map(min, chunks, array.shape))
        blosc2.asarray(array, urlpath=str(path), mode="w", chunks=fitting, blocks=blocks, cparams=cparams)

    return write


def zarr_store(chunks: tuple[int, ...], *, sharded: bool) -> Write:
    """A writer of a folder of chunks, or of one shard of them; the same codec as blosc2's."""
    import zarr
    from zarr.codecs import BloscCodec

    def write(path: Path, array: np.ndarray) -> None:
        shard = tuple(-(-n // c) * c for n, c in zip(array.shape, chunks, strict=True)) if sharded else None
        codec = BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
        stored = zarr.create_array(
            store=str(path),
            shape=array.shape,
            dtype=array.dtype,
            chunks=chunks,
            shards=shard,
            compressors=codec,
        )
        stored[:] = array

    return write


def write_npy(path: Path, array: np.ndarray) -> None:
    with path.open("wb") as stream:
        np.save(stream, array)


def open_blosc2(path: Path) -> Any:
    return blosc2.open(str(path), mode="r", dparams={"nthreads": 1})


def open_zarr(path: Path) -> Any:
    import zarr

    return zarr.open_array(str(path), mode="r")


def candidates() -> dict[str, tuple[Write, Open]]:
    """What is compared: name -> (write, open)."""
    zstd, lz4 = blosc2.Codec.ZSTD, blosc2.Codec.LZ4
    return {
        "blosc2 zstd-1, chunk 16x128x128, block 8x32x32": (
            blosc2_store(zstd, 1, (16, 128, 128), (8, 32, 32)),
            open_blosc2,
        ),
        "blosc2 zstd-5, same": (blosc2_store(zstd, 5, (16, 128, 128), (8, 32, 32)), open_blosc2),
        "blosc2 lz4-5, same": (blosc2_store(lz4, 5, (16, 128, 128), (8, 32, 32)), open_blosc2),
        "blosc2 zstd-1, chunk 32x64x64, block 16x32x32": (
            blosc2_store(zstd, 1, (32, 64, 64), (16, 32, 32)),
            open_blosc2,
        ),
        "zarr zstd-1, chunk 32x64x96": (zarr_store((32, 64, 96), sharded=False), open_zarr),
        "zarr zstd-1, chunk 16x64x64": (zarr_store((16, 64, 64), sharded=False), open_zarr),
        "zarr zstd-1, chunk 16x64x64, one shard": (zarr_store((16, 64, 64), sharded=True), open_zarr),
        "npy, memory-mapped, uncompressed": (write_npy, lambda path: np.load(path, mmap_mode="r")),
    }


def measure(
    array: np.ndarray, write: Write, open_array: Open, folder: Path
) -> tuple[float, float, float, float]:
    """Write time (ms), size (MB), and of opening and reading a patch the median and 95th percentile (ms)."""
    written = []
    for trial in range(REPEATS):
        path = folder / f"trial{trial}"
        start = time.perf_counter()
        write(path, array)
        written.append(time.perf_counter() - start)
    size = sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())
    generator, taken = np.random.default_rng(0), []
    for _ in range(PATCHES):
        first = [
            int(generator.integers(0, max(0, n - p) + 1)) for n, p in zip(array.shape, PATCH, strict=True)
        ]
        piece = tuple(slice(f, f + p) for f, p in zip(first, PATCH, strict=True))
        trials = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            patch = np.array(open_array(path)[piece])
            trials.append(time.perf_counter() - start)
        taken.append(min(trials))
        if not np.array_equal(patch, array[piece]):
            raise ValueError("what was read is not what was written")
    return (
        min(written) * 1e3,
        size / 1e6,
        float(np.median(taken)) * 1e3,
        float(np.percentile(taken, 95)) * 1e3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", type=Path, help="a CT scan")
    image = parser.parse_args().image
    preprocess(read_image(image), SPACING_MM, "linear")  # libraries loaded, file in memory
    start = time.perf_counter()
    volume = read_image(image)
    read = time.perf_counter()
    array = preprocess(volume, SPACING_MM, "linear").array
    resampled = time.perf_counter()
    rate = (resampled - start) / volume.array.size * 1e6
    print(f"{image.name}: {volume.array.shape} voxels, cached as {array.shape}, {array.nbytes / 1e6:.1f} MB")
    print(f"read {read - start:.2f} s, resampled {resampled - read:.2f} s: {rate:.3f} s a megavoxel\n")
    print("| store | write ms | size MB | patch ms | 95 % |\n|---|---|---|---|---|")
    for name, (write, open_array) in candidates().items():
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(array, write, open_array, Path(folder))
        print(f"| {name} | {figures[0]:.0f} | {figures[1]:.2f} | {figures[2]:.2f} | {figures[3]:.2f} |")
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        cache_image(
            volume, Path(folder) / "case.b2nd", spacing_mm=SPACING_MM, interpolation="linear", case_id="case"
        )
        print(f"\ncache_image, resampling included: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
