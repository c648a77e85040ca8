"""Compressed MetaImage files: whole, cut, damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from bad_files import truncate, write_array
from flare.errors import CaseError
from flare.metaimage import check_compression, is_metaimage

ARRAY = np.random.default_rng(0).integers(-1000, 1000, (8, 9, 10)).astype(np.int16)


def test_whole_files_pass(tmp_path: Path) -> None:
    check_compression(write_array(tmp_path / "a.mha", ARRAY), "a")
    sitk.WriteImage(sitk.GetImageFromArray(ARRAY), str(tmp_path / "b.mha"), useCompression=False)
    check_compression(tmp_path / "b.mha", "b")


@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_cut(tmp_path: Path, share: float) -> None:
    with pytest.raises(CaseError, match=r"case a: .*truncated"):
        check_compression(truncate(write_array(tmp_path / "a.mha", ARRAY), share), "a")


def test_damaged(tmp_path: Path) -> None:
    path = write_array(tmp_path / "a.mha", ARRAY)
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CaseError, match="decompressing"):
        check_compression(path, "a")


def test_names() -> None:
    assert is_metaimage(Path("a.MHA"))
    assert not is_metaimage(Path("a.nrrd"))
