from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from flare.core.errors import FlareError
from flare.core.files import read_csv, write_json
from flare.core.geometry import Geometry, Volume
from flare.merging.merge import merge_maps, tell_merged
from flare.merging.provenance import provenance_row, summarise
from flare.merging.settings import MergeRules, MergeSettings, PseudoSource
from merging_reference import label_set

LABELS = label_set(organs=3, tumor=9)
T = 9
RULES = MergeRules("organs_tumor", "paper", 1.0, 0.5, False)
TEACHER = PseudoSource("mot", "0123456789abcdef" * 4)


def told(truth: list[int] | None, pseudo: list[int], case: str = "a") -> dict:
    grid = Geometry((1, 1, len(pseudo)), (1, 1, 1), (0, 0, 0), tuple(np.eye(3).ravel()))
    maps = (None if m is None else Volume(np.array([[m]], dtype=np.uint8), grid) for m in (truth, pseudo))
    settings = MergeSettings(LABELS, None, RULES)
    return merge_maps(case, *maps, settings, declared=None, source=TEACHER)[1]


def test_a_sidecar_names_source_counts_and_tumor_bearing_organs() -> None:
    # organ 1 bears the tumor, organ 3 is trusted, organ 2 is the teacher's; its tumor is superseded
    found = told([3, 0, 1, T, 0, 0], [3, 3, 1, 1, 2, T])
    assert found["sources"] == {
        "ground_truth": {"kind": "ground_truth"},
        "mot@0123456789ab": {
            "kind": "teacher",
            "round": "mot",
            "checkpoint_sha256": TEACHER.checkpoint_sha256,
        },
    }
    assert (found["trusted"], found["tumor_bearing"]) == (["organ_3"], ["organ_1", "organ_2"])
    classes = found["classes"]
    assert [classes[n]["source"] for n in LABELS.names] == [
        *["mot@0123456789ab"] * 2,
        *["ground_truth"] * 2,
    ]
    assert classes["organ_1"]["before"] == {"ground_truth": 1, "mot@0123456789ab": 2}
    assert classes["organ_1"]["merged"] == 1
    assert (classes["organ_2"]["merged"], classes["organ_2"]["filled"]) == (2, 1)
    assert found["tumors"] == [
        {
            "found_in": "mot@0123456789ab",
            "fate": "superseded",
            "voxels": 1,
            "shell_voxels": 1,
            "shell_organ_fraction": 1.0,
            "filled_with": "organ_2",
        }
    ]
    assert found["rules"]["dilation_mm"] == 1.0


def test_the_row_and_the_summary_count_what_a_kept_tumor_took() -> None:
    sidecars = [told([1, 1, 1, 0, 0], [1, T, 1, 0, T], "a"), told(None, [2, 2, 2, 2, 0], "b")]
    first, second = (provenance_row(s, LABELS) for s in sidecars)
    assert (first["tumors_kept"], first["tumors_dropped"], first["overwritten"]) == (1, 1, 1)
    assert (first["O1_source"], first["O1_ground_truth"], first["O1_merged"]) == ("ground_truth", 3, 2)
    assert (first["Lesion_source"], first["Lesion_pseudo"], first["Lesion_merged"]) == (
        "mot@0123456789ab",
        2,
        1,
    )
    assert second["sources"] == "mot@0123456789ab"
    assert (second["O2_ground_truth"], second["O2_pseudo"], second["O2_merged"]) == (None, 4, 4)
    lines = summarise(sidecars, LABELS).splitlines()
    assert lines[0].startswith("2 cases")
    assert "| organ_1 | 1 | 0 | 3 | 2 | 2 | 0 | 1 |" in lines
    assert "| organ_2 | 0 | 1 | 0 | 4 | 4 | 0 | 0 |" in lines
    assert lines[-1] == "tumor components: 1 kept, 1 dropped"


def test_the_table_lies_beside_the_labels(tmp_path: Path) -> None:
    sidecar = told([1, 1], [1, 0])
    write_json(tmp_path / "a.json", sidecar)
    tell_merged(tmp_path, ["a"], LABELS)
    (row,) = read_csv(tmp_path / "provenance.csv")
    assert (row["case"], row["trusted"], row["O1_merged"]) == ("a", "organ_1", "2")
    assert (tmp_path / "provenance.md").read_text() == summarise([sidecar], LABELS)


def test_a_teacher_is_named_by_round_and_checkpoint() -> None:
    assert PseudoSource().name == "pseudo"
    assert PseudoSource("mo", None).name == "mo"
    assert PseudoSource(None, "ab" * 32).name == "checkpoint@abababababab"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "vote"}, r"labels\.rule=vote: expected one of paper, gt_first"),
        ({"targets": "bones"}, r"labels\.targets"),
        ({"dilation_mm": -1.0}, r"labels\.dilation_mm=-1.0: expected a number, 0 or more"),
        ({"dilation_mm": float("nan")}, r"labels\.dilation_mm"),
        ({"tumor_inside_fraction": 1.5}, r"labels\.tumor_inside_fraction=1.5: expected a number from 0 to 1"),
    ],
)
def test_choices_that_cannot_be_are_refused_with_their_key(change: dict, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        MergeRules(**(asdict(RULES) | change))
