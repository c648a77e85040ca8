"""Readers under a fuzzer that is guided by coverage (atheris): whatever the bytes, a volume or a refusal.

`python fuzz.py FORMAT FOLDER -max_total_time=60` fuzzes one reader from the whole files of its format. What
is found is left in the folder as `crash-*`. Needs `pip install atheris` (Python below 3.14, Linux).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

NAMES = {
    "nifti": "a.nii",
    "nifti damaged packing": "a.nii.gz",
    "nrrd": "a.nrrd",
    "mha": "a.mha",
    "dicom": "a.dcm",
}
MOST_BYTES = 1 << 12


def seeds(which: str, folder: Path) -> None:
    """Write whole files of a format, and damaged ones, to begin with."""
    from damaged_files import SERIES, series, write_damaged

    folder.mkdir(parents=True, exist_ok=True)
    if which in SERIES:
        for number, content in enumerate(series(folder / "work", "")):
            (folder / f"seed-{number}").write_bytes(content)
        return
    for number, (path, _) in enumerate(write_damaged(which, range(20), folder)):
        (folder / f"seed-{number}").write_bytes(path.read_bytes())


def main() -> None:
    import atheris

    which, folder = sys.argv[1], Path(sys.argv[2])
    with atheris.instrument_imports(include=["flare.core"]):
        from flare.core.checks import Checks, reading
        from flare.core.errors import CaseError
        from flare.core.volumes import read_image
    from damaged_files import SERIES, is_plain, series

    seeds(which, folder)
    file = place = Path(tempfile.mkdtemp()) / NAMES[which]
    if which in SERIES:  # a slice among others
        place = file.with_name("series")
        series(place, "")
        file = place / "001.dcm"

    def read(content: bytes) -> None:
        file.write_bytes(content)
        try:
            with reading(Checks(direction="warn")):
                volume = read_image(place, "a")
        except CaseError as error:
            if not is_plain(str(error)):
                raise AssertionError(f"not plain: {error}") from error
        else:
            assert volume.array.shape == volume.geometry.shape

    more = [f"-max_len={MOST_BYTES}", "-rss_limit_mb=1500", "-timeout=20", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], str(folder), *more, *sys.argv[3:]], read)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
