from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.prepare.index import Index, build_index
from flare.prepare.settings import CohortFiles


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def build(root: Path, classes: ClassList, /, **data: Any) -> Index:
    return build_index(CohortFiles.from_config({"root": str(root), **data}, classes))


def test_the_challenge_layout_with_sub_folders(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "im/1-500/a_0000.nii.gz", "im/501-1000/deep/b_0000.nii.gz", "un/c_0000.nii.gz")
    touch(tmp_path, "la/x/a.nii.gz", "la/b.nii.gz", "val/d_0000.nii.gz", "val/e_0000.nii.gz", "vla/d.nii.gz")
    found = build(
        tmp_path,
        labels,
        labeled_images="im",
        labels="la",
        unlabeled_images="un",
        validation_images="val",
        validation_labels="vla",
    )
    assert found.problems == []
    assert [(e.id, e.split, e.label and e.label.name) for e in found.entries] == [
        ("a", "train", "a.nii.gz"),
        ("b", "train", "b.nii.gz"),
        ("c", "train", None),
        ("d", "validation", "d.nii.gz"),
        ("e", "validation", None),
    ]
    assert found.entries[1].image == tmp_path / "im/501-1000/deep/b_0000.nii.gz"


def test_lists_of_roots_inside_and_outside_the_root(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "data/one/a_0000.nrrd", "other/b_0000.mha", "data/la/a.nii", "other_labels/b.nii.gz")
    found = build(
        tmp_path / "data",
        labels,
        labeled_images=["one", str(tmp_path / "other")],
        labels=["la", "../other_labels"],
    )
    assert [e.id for e in found.entries] == ["a", "b"]
    assert found.problems == []


def test_a_file_below_two_roots_counts_once(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "un/deep/a_0000.nii.gz")
    found = build(tmp_path, labels, unlabeled_images=["un", "un/deep"])
    assert [e.id for e in found.entries] == ["a"]


@pytest.mark.parametrize("second", ["im/b/a_0000.nii.gz", "un/a.nii.gz", "test/a_0000.nii.gz"])
def test_cases_of_one_id_are_both_refused_with_both_paths(
    tmp_path: Path, labels: ClassList, second: str
) -> None:
    touch(tmp_path, "im/a_0000.nii.gz", second, "im/ok_0000.nii.gz", "la/a.nii.gz", "la/ok.nii.gz")
    (tmp_path / "un").mkdir(exist_ok=True)
    (tmp_path / "test").mkdir(exist_ok=True)
    found = build(
        tmp_path, labels, labeled_images="im", labels="la", unlabeled_images="un", test_images="test"
    )
    assert [e.id for e in found.entries] == ["ok"]
    assert {p.path for p in found.problems} == {tmp_path / "im/a_0000.nii.gz", tmp_path / second}
    for problem in found.problems:
        assert str(tmp_path / "im/a_0000.nii.gz") in problem.reason
        assert str(tmp_path / second) in problem.reason


def test_two_labels_of_one_id_are_refused_with_both_paths(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "im/a_0000.nii.gz", "la/a.nii.gz", "la/b/a.nii.gz")
    (problem,) = build(tmp_path, labels, labeled_images="im", labels="la").problems
    assert "la/a.nii.gz" in problem.reason
    assert "la/b/a.nii.gz" in problem.reason


def test_an_image_without_label_and_a_label_without_image_are_named(
    tmp_path: Path, labels: ClassList
) -> None:
    touch(tmp_path, "im/a_0000.nii.gz", "im/ok_0000.nii.gz", "la/b.nii.gz", "la/ok.nii.gz")
    found = build(tmp_path, labels, labeled_images="im", labels="la")
    assert [e.id for e in found.entries] == ["ok"]
    assert [(p.case, p.reason.split(" under")[0]) for p in found.problems] == [
        ("a", "image without a label"),
        ("b", "label without an image"),
    ]


def test_a_case_whose_id_ends_like_a_channel_keeps_its_label(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "im/x_0000_0000.nii.gz", "im/x_0001_0000.nii.gz", "la/x_0000.nii.gz", "la/x_0001.nii.gz")
    found = build(tmp_path, labels, labeled_images="im", labels="la")
    assert [(e.id, e.label) for e in found.entries] == [
        ("x_0000", tmp_path / "la/x_0000.nii.gz"),
        ("x_0001", tmp_path / "la/x_0001.nii.gz"),
    ]


def test_cases_that_no_name_rule_can_pair_are_listed(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "scan/ct.nii.gz", "scan/segmentation.nii.gz")
    cases = {"patient": {"image": "scan/ct.nii.gz", "label": "scan/segmentation.nii.gz", "split": "test"}}
    (entry,) = build(tmp_path, labels, cases=cases).entries
    assert (entry.id, entry.split, entry.label) == ("patient", "test", tmp_path / "scan/segmentation.nii.gz")


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"image": "none.nii.gz"}, r"data\.cases\.p\.image: there is no"),
        (
            {"image": "ct.nii.gz", "split": "tset"},
            r"data\.cases\.p\.split: expected train, validation or test",
        ),
        ({"label": "ct.nii.gz"}, r"data\.cases\.p\.image: missing"),
    ],
)
def test_listed_cases_are_checked(tmp_path: Path, labels: ClassList, case: dict, message: str) -> None:
    touch(tmp_path, "ct.nii.gz")
    with pytest.raises(FlareError, match=message):
        build(tmp_path, labels, cases={"p": case})


def test_a_missing_folder_of_labels_is_refused_and_one_of_validation_is_not(
    tmp_path: Path, labels: ClassList, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "im/a_0000.nii.gz", "la/a.nii.gz")
    with pytest.raises(FlareError, match=r"data\.labels: no folder"):
        build(tmp_path, labels, labeled_images="im", labels="lables")
    found = build(tmp_path, labels, labeled_images="im", labels="la", validation_images="imagesVal")
    assert [e.id for e in found.entries] == ["a"]
    assert "data.validation_images" in caplog.text
    assert str(tmp_path) not in caplog.text


def test_entries_know_what_their_source_annotates(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, "im/kits/a_0000.nii.gz", "im/b_0000.nii.gz", "la/a.nii.gz", "la/b.nii.gz")
    sources = [{"match": "kits/*", "annotates": ["tumor", "right_kidney"]}]
    found = build(tmp_path, labels, labeled_images="im", labels="la", sources=sources)
    assert [(e.id, e.annotates) for e in found.entries] == [("a", (2, 14)), ("b", None)]


def test_paths_are_absolute_so_that_the_index_holds_from_anywhere(
    tmp_path: Path, labels: ClassList, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "un/a_0000.nii.gz")
    monkeypatch.chdir(tmp_path)
    for root in (".", None):
        files = CohortFiles.from_config({"root": root, "unlabeled_images": "un"}, labels)
        (entry,) = build_index(files).entries
        assert entry.image == tmp_path / "un/a_0000.nii.gz"


# --- what names a case


@pytest.mark.parametrize(
    ("rule", "images", "labels_"),
    [
        ("parent", "s{n}/ct.nii.gz", "s{n}/segmentation.nii.gz"),
        ("parent", "s{n}/ct.nii.gz", "s{n}.nii.gz"),
        ("path", "p{n}/study/ct.nii.gz", "p{n}/study/ct.nii.gz"),
        ("path", "p{n}/study/ct.nii.gz", "p{n}_study_ct.nii.gz"),
    ],
)
def test_doubles_name_the_rule_by_which_images_and_labels_pair(
    tmp_path: Path, labels: ClassList, rule: str, images: str, labels_: str
) -> None:
    touch(
        tmp_path,
        *(f"im/{images.format(n=n)}" for n in (1, 2)),
        *(f"la/{labels_.format(n=n)}" for n in (1, 2)),
    )
    given = {"labeled_images": "im", "labels": "la"}
    problems = build(tmp_path, labels, **given).problems
    doubles = [p.reason for p in problems if "of the same id" in p.reason]
    assert doubles
    assert all(reason.endswith(f"; data.case_id={rule} tells them apart") for reason in doubles)
    found = build(tmp_path, labels, **given, case_id=rule)
    assert found.problems == []
    assert [e.label and e.label.name for e in found.entries] == [
        Path(labels_.format(n=n)).name for n in (1, 2)
    ]
    assert [f"/{images.format(n=n)}" in str(e.image) for n, e in enumerate(found.entries, 1)] == [True, True]


def test_an_image_and_its_label_in_one_folder(tmp_path: Path, labels: ClassList) -> None:
    """As KiTS has them."""
    touch(tmp_path, *(f"case_{n}/{kind}.nii.gz" for n in (1, 2) for kind in ("imaging", "segmentation")))
    given = {"labeled_images": "case_*/imaging.nii.gz", "labels": "case_*/segmentation.nii.gz"}
    found = build(tmp_path, labels, **given, case_id="parent")
    assert found.problems == []
    assert [(e.id, e.image.name, e.label and e.label.name) for e in found.entries] == [
        (f"case_{n}", "imaging.nii.gz", "segmentation.nii.gz") for n in (1, 2)
    ]
    with pytest.raises(FlareError, match=r"data\.labels: no folder .*seg\*\.nii\.gz"):
        build(tmp_path, labels, labeled_images="case_*/imaging.nii.gz", labels="nowhere/seg*.nii.gz")


def test_a_thousand_doubles_are_named_in_short(tmp_path: Path, labels: ClassList) -> None:
    touch(tmp_path, *(f"un/s{n:04d}/ct.nii.gz" for n in range(300)))
    problems = build(tmp_path, labels, unlabeled_images="un").problems
    assert len({p.path for p in problems}) == 300
    assert max(len(p.reason) for p in problems) < 10 * len(str(tmp_path)) + 400


@pytest.mark.parametrize("case", [7, 8.5, True, None, "", "a/b", ".."])
def test_an_id_that_is_no_text_or_no_name_is_refused(tmp_path: Path, labels: ClassList, case: Any) -> None:
    """YAML reads 007 as 7, and yes as true."""
    touch(tmp_path, "ct.nii.gz")
    given = {"root": str(tmp_path), "cases": {case: {"image": "ct.nii.gz"}}}
    with pytest.raises(
        FlareError, match=r"^data\.cases: .*(needs quotes|expected what a file can be called)"
    ):
        CohortFiles.from_config(given, labels)


def test_ids_of_a_command_line(tmp_path: Path, labels: ClassList, config: Any) -> None:
    touch(tmp_path, "im/007_0000.nii.gz", "im/8_0000.nii.gz", "la/007.nii.gz", "la/8.nii.gz")

    def split(line: str) -> dict[str, str]:
        given = OmegaConf.to_container(config("prepare", line).data.split)
        found = build(tmp_path, labels, labeled_images="im", labels="la", split=given)
        return {e.id: e.split for e in found.entries}

    for quoted in ('["007"]', "[007]"):  # Hydra's own reading of 007 is text
        assert split(f"data.split.validation={quoted}") == {"007": "validation", "8": "train"}
    assert split('data.split.validation=["8"]') == {"007": "train", "8": "validation"}
    with pytest.raises(FlareError, match=r"data\.split\.validation: 8 is no text"):
        split("data.split.validation=[8]")


def test_ids_of_a_yaml_file(tmp_path: Path, labels: ClassList) -> None:
    touch(
        tmp_path, "im/007_0000.nii.gz", "im/7_0000.nii.gz", "im/a_0000.nii.gz", "la/007.nii.gz", "la/7.nii.gz"
    )
    touch(tmp_path, "la/a.nii.gz")

    def split(text: str) -> dict[str, str]:
        given = OmegaConf.to_container(OmegaConf.create(f"split: {{validation: {text}}}"))
        found = build(tmp_path, labels, labeled_images="im", labels="la", **given)
        return {e.id: e.split for e in found.entries}

    assert split('["007"]') == {"007": "validation", "7": "train", "a": "train"}
    for text in ("[007]", "[7]", "[yes]", "[1e3]"):
        with pytest.raises(FlareError, match=r"^data\.split\.validation: .* is no text.*needs quotes"):
            split(text)
    given = OmegaConf.to_container(OmegaConf.create('cases: {"007": {image: im/a_0000.nii.gz}}'))
    assert [e.id for e in build(tmp_path, labels, **given).entries] == ["007"]
    with pytest.raises(FlareError, match=r"^data\.sources\[0\]\.match: 7 is no text; it needs quotes"):
        build(tmp_path, labels, sources=[{"match": 7, "annotates": ["liver"]}])
