from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cohort_files import label_array, write
from flare.core.cases import Entry
from flare.core.classes import ClassList
from flare.core.errors import CaseError
from flare.core.files import read_csv
from flare.prepare.analysis import (
    SOURCE_COLUMNS,
    Analysis,
    analyse_labels,
    class_counts,
    kind_counts,
    kind_of,
    print_sources,
    write_label_analysis,
)
from flare.prepare.read import count_labels

ORGANS = tuple(range(1, 14))


@pytest.mark.parametrize(
    ("present", "annotated", "kind"),
    [
        (ORGANS, ORGANS, "organs_complete"),
        ((*ORGANS, 14), (*ORGANS, 14), "tumor"),
        ((14,), (14,), "tumor"),
        ((1, 2), (1, 2), "partial"),
        ((), (), "partial"),
        (ORGANS[1:], ORGANS, "organs_complete"),  # a removed organ, in a source that annotates it
        (ORGANS[1:], ORGANS[1:], "partial"),
        (ORGANS, (*ORGANS, 14), "organs_complete"),  # a source that would have annotated a tumor
    ],
)
def test_kinds(labels: ClassList, present: tuple, annotated: tuple, kind: str) -> None:
    assert kind_of(present, annotated, labels) == kind


def test_a_class_list_without_tumor_has_complete_cases() -> None:
    organ = {"role": "organ", "tolerance_mm": 1, "slice_range": False}
    two = ClassList.from_config(
        {"a": {"id": 3, "short": "A", **organ}, "b": {"id": 7, "short": "B", **organ}}
    )
    assert kind_of((3, 7), (3, 7), two) == "organs_complete"
    assert kind_of((3,), (3,), two) == "partial"


def test_counting_reads_ids_through_the_map_and_gives_volumes(tmp_path: Path, labels: ClassList) -> None:
    path = write(tmp_path / "a.nii.gz", label_array(5, 5, 52, 99), spacing=(2.0, 2.0, 5.0))
    found = count_labels("a", path, labels, {"5": 1, "52": 5, "rest": 0})
    assert found == {"voxels": {"1": 20, "5": 10}, "voxel_ml": 0.02, "warnings": []}


def test_an_id_outside_the_map_is_refused_with_the_id(tmp_path: Path, labels: ClassList) -> None:
    path = write(tmp_path / "a.nii.gz", label_array(5, 99))
    with pytest.raises(CaseError, match="99"):
        count_labels("a", path, labels, {"5": 1})


def analyse(labels: ClassList, *entries: Entry) -> Analysis:
    values = {e.id: count_labels(e.id, e.label, labels, None) if e.label else {} for e in entries}
    return analyse_labels(entries, values, labels)


def entry(tmp_path: Path, case: str, *class_ids: int, annotates: tuple[int, ...] | None = None) -> Entry:
    """A case with a label file and an image that does not exist."""
    label = write(tmp_path / f"{case}.nii.gz", label_array(*class_ids))
    return Entry(case, "train", tmp_path / "no_image.nii.gz", label, annotates)


def test_only_label_files_are_read(tmp_path: Path, labels: ClassList) -> None:
    unlabeled = Entry("u", "train", tmp_path / "no_image.nii.gz")
    found = analyse(labels, entry(tmp_path, "a", 1, 14), unlabeled)
    assert [(c.id, c.kind, c.present, c.annotated) for c in found.cases] == [
        ("a", "tumor", (1, 14), (1, 14)),
        ("u", "unlabeled", (), ()),
    ]


def test_a_source_says_that_an_absent_organ_was_looked_for(tmp_path: Path, labels: ClassList) -> None:
    no_gallbladder = tuple(i for i in ORGANS if i != 9)
    declared = entry(tmp_path, "a", *no_gallbladder, annotates=ORGANS)
    silent = entry(tmp_path, "b", *no_gallbladder)
    found = analyse(labels, declared, silent)
    assert [(c.kind, c.annotated) for c in found.cases] == [
        ("organs_complete", ORGANS),
        ("partial", no_gallbladder),
    ]


def test_each_source_says_what_it_declares_and_its_labels_what_they_show(
    tmp_path: Path, labels: ClassList
) -> None:
    """Hospital b declares liver, spleen and aorta; the folder without a declaration contradicts nothing."""
    declared = (1, 3, 5)
    own = [
        ("b0", (1, 3), declared, "data.sources[0]"),
        ("b1", (1, 2), declared, "data.sources[0]"),
        ("b2", (1,), declared, "data.sources[0]"),
        ("c0", (1, 14), None, "data.labels"),
    ]
    entries = [
        replace(
            entry(tmp_path, case, *ids, annotates=told),
            source=source,
            split="test" if case == "b2" else "train",
        )
        for case, ids, told, source in own
    ]
    found = analyse(labels, *entries, Entry("u", "train", tmp_path / "u.nii.gz"))
    write_label_analysis(tmp_path / "label_analysis.csv", found, labels)
    rows = read_csv(tmp_path / "label_sources.csv")
    assert len(rows) == 2 * 14
    shown = {(r["source"], r["class"]): (r["declared"], r["present"], r["cases"]) for r in rows}
    assert shown["data.sources[0]", "liver"] == ("yes", "3", "3")
    assert shown["data.sources[0]", "spleen"] == ("yes", "1", "3")
    assert shown["data.sources[0]", "aorta"] == ("yes", "0", "3")
    assert shown["data.sources[0]", "right_kidney"] == ("no", "1", "3")
    assert shown["data.sources[0]", "tumor"] == ("no", "0", "3")
    assert shown["data.labels", "tumor"] == ("inferred", "1", "1")
    assert shown["data.labels", "aorta"] == ("inferred", "0", "1")
    assert {r["class"]: r["contradiction"] for r in rows if r["contradiction"]} == {
        "aorta": "declared, present in no case",
        "right_kidney": "not declared, present in b1",
    }
    assert found.doubts == [
        "data.sources[0]: does not declare right_kidney, present in 1 of its 3 cases: b1",
        "data.sources[0]: declares aorta, present in none of its 3 cases",
    ]
    cases = {r["case"]: (r["source"], r["contradiction"]) for r in read_csv(tmp_path / "label_analysis.csv")}
    assert cases["b0"] == ("data.sources[0]", "")
    assert cases["b1"] == (
        "data.sources[0]",
        "has classes that data.sources[0] does not declare: right_kidney",
    )
    assert cases["u"] == ("", "")


def test_the_console_shows_sources_beside_each_other_and_marks_what_contradicts(
    labels: ClassList, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(source: str, name: str, declared: str, present: int, doubt: str = "") -> dict[str, str]:
        return dict(zip(SOURCE_COLUMNS, (source, name, declared, "12", str(present), doubt), strict=True))

    first = [row("data.sources[0]", "liver", "yes", 12), row("data.sources[0]", "tumor", "yes", 0, "no case")]
    print_sources(
        [*first, row("data.labels", "liver", "inferred", 9), row("data.labels", "tumor", "inferred", 0)]
    )
    told = [" ".join(line.split()) for line in capsys.readouterr().err.splitlines()]
    assert "│ liver │ declared 12/12 │ 9/12 │" in told
    assert "│ tumor │ ! declared 0/12 │ 0/12 │" in told
    assert any("data.sources[0] ┃ data.labels" in line for line in told)


def test_a_class_beyond_the_source_is_kept_and_warned_of(tmp_path: Path, labels: ClassList) -> None:
    declared = replace(entry(tmp_path, "a", 1, 14, annotates=(1,)), source="data.sources[2]")
    found = analyse(labels, declared)
    assert found.cases[0].annotated == (1, 14)
    assert found.contradictions == {"a": "has classes that data.sources[2] does not declare: tumor"}


def test_an_empty_label_is_partial_with_a_warning_whatever_its_source(
    tmp_path: Path, labels: ClassList
) -> None:
    empty = entry(tmp_path, "a", annotates=ORGANS)
    found = analyse(labels, empty)
    assert (found.cases[0].kind, found.cases[0].annotated) == ("partial", ())
    assert empty.label is not None
    counted = count_labels("a", empty.label, labels, None)
    assert counted["warnings"] == ["label file without any foreground"]


def test_the_report_has_volumes_zeros_and_unknowns(tmp_path: Path, labels: ClassList) -> None:
    complete = entry(tmp_path, "a", 1, annotates=(1, 2))
    found = analyse(labels, complete, Entry("u", "train", tmp_path / "u.nii.gz"))
    write_label_analysis(tmp_path / "label_analysis.csv", found, labels)
    first, second = read_csv(tmp_path / "label_analysis.csv")
    assert (first["case"], first["split"], first["kind"]) == ("a", "train", "partial")
    assert (first["liver_ml"], first["right_kidney_ml"], first["tumor_ml"]) == ("0.2", "0.0", "")
    assert (second["kind"], second["liver_ml"]) == ("unlabeled", "")
    assert (tmp_path / "label_analysis.png").read_bytes().startswith(b"\x89PNG")


def test_an_unchanged_report_is_not_drawn_again(tmp_path: Path, labels: ClassList) -> None:
    found = analyse(labels, entry(tmp_path, "a", 1))
    plot = tmp_path / "label_analysis.png"
    write_label_analysis(plot.with_suffix(".csv"), found, labels)
    plot.write_bytes(b"kept")
    write_label_analysis(plot.with_suffix(".csv"), found, labels)
    assert plot.read_bytes() == b"kept"


def test_counts_by_class_and_kind(tmp_path: Path, labels: ClassList) -> None:
    found = analyse(labels, entry(tmp_path, "a", 1, 14), entry(tmp_path, "b", 1, 2))
    counts = class_counts(found.cases, labels)
    expected = np.zeros((14, 4), int)
    expected[0, 1] = expected[13, 1] = 1  # liver and tumor in the tumor case
    expected[0, 2] = expected[1, 2] = 1  # liver and right kidney in the partial case
    assert np.array_equal(counts, expected)
    assert kind_counts(found.cases) == {"organs_complete": 0, "tumor": 1, "partial": 1, "unlabeled": 0}
