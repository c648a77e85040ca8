from pathlib import Path

import pytest

from flare.core.cases import read_label_map, read_sources, source_of
from flare.core.classes import ClassList
from flare.core.errors import FlareError

PATHS = (Path("/data/imagesTr/msd/liver_7_0000.nii.gz"), Path("/data/labelsTr/liver_7.nii.gz"))


@pytest.mark.parametrize(
    "match", ["liver_*", "liver_7", "*/msd/*", "msd/*", "labelsTr/liver_?.nii.gz", "/data/imagesTr/*"]
)
def test_a_glob_matches_the_case_or_the_end_of_a_path(labels: ClassList, match: str) -> None:
    sources = read_sources([{"match": match, "annotates": ["spleen", "liver"]}], labels)
    assert source_of(sources, "liver_7", PATHS).annotates == (1, 3)


@pytest.mark.parametrize("match", ["liver", "kits/*", "sd/*"])
def test_a_glob_matches_whole_names_only(labels: ClassList, match: str) -> None:
    sources = read_sources([{"match": match, "annotates": ["liver"]}], labels)
    assert source_of(sources, "liver_7", PATHS).annotates is None


def test_the_first_source_that_matches_counts(labels: ClassList) -> None:
    given = [{"match": "liver_7", "annotates": ["tumor"]}, {"match": "*", "annotates": ["liver"]}]
    sources = read_sources(given, labels)
    assert source_of(sources, "liver_7", PATHS).annotates == (14,)
    assert source_of(sources, "liver_8", (Path("x.nii.gz"), None)).annotates == (1,)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"match": "*", "annotates": ["livver"]}, r"data\.sources\[0\]\.annotates: .*'livver'"),
        ({"match": "*"}, r"data\.sources\[0\]: expected the keys match and annotates"),
    ],
)
def test_a_bad_source_is_refused(labels: ClassList, item: dict, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        read_sources([item], labels)


def test_a_label_map_takes_ids_as_numbers_or_text_and_classes_by_id_or_name(labels: ClassList) -> None:
    assert read_label_map({5: "liver", "2": 2, "rest": 0}, labels) == {"5": 1, "2": 2, "rest": 0}
    assert read_label_map(None, labels) is None
    assert read_label_map({}, labels) is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"liver": 1}, r"data\.label_map: expected whole numbers or `rest`"),
        ({5: 77}, r"data\.label_map\.5: expected one of"),
        ({5: "livver"}, "livver"),
    ],
)
def test_a_bad_label_map_is_refused(labels: ClassList, given: dict, message: str) -> None:
    with pytest.raises(FlareError, match=message):
        read_label_map(given, labels)


def test_a_source_that_annotates_all_does_so_for_any_class_list(labels: ClassList) -> None:
    given = [{"match": "*", "annotates": "all"}]
    assert read_sources(given, labels)[0].annotates == tuple(range(1, 15))
    two = ClassList(labels.entries[2:4])
    assert read_sources(given, two)[0].annotates == (3, 4)
