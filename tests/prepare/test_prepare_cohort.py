import errno
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig

from bad_files import truncate, write_series
from cohort_files import image_array, label_array, write, write_case, write_dicom
from flare.core import volumes
from flare.core.cases import Case, read_index, select_cases
from flare.core.classes import ClassList
from flare.core.errors import FlareError
from flare.core.files import read_csv, stat_key
from flare.core.geometry import Geometry
from flare.data import cache
from flare.data.cache import Stored
from flare.prepare.cohort import analyse, prepare, prepare_cohort
from flare.runs.folders import prepared_folder
from flare.runs.locks import lock
from flare.runs.work import Executor

Build = Callable[..., DictConfig]
ORGANS = tuple(range(1, 14))

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_drawing")]


def test_a_cohort_of_all_kinds_and_splits(tmp_path: Path, build: Build) -> None:
    write(tmp_path / "images/full_0000.nii.gz", image_array(0, (14, 8, 10)))
    write(tmp_path / "labels/full.nii.gz", label_array(*ORGANS, shape=(14, 8, 10)))
    write_case(tmp_path, "lesion", 1, 14, seed=1)
    write_case(tmp_path, "some", 2, seed=2)
    write(tmp_path / "more/none_0000.nii.gz", image_array(3))
    write(tmp_path / "vi/v_0000.nii.gz", image_array(4))
    write(tmp_path / "vl/v.nii.gz", label_array(1))
    write(tmp_path / "ti/t_0000.nii.gz", image_array(5))
    cfg = build(
        "data.unlabeled_images=more",
        "data.validation_images=vi",
        "data.validation_labels=vl",
        "data.test_images=ti",
    )
    cohort = prepare(cfg)
    assert {c.id: (c.split, c.kind) for c in cohort.cases} == {
        "full": ("train", "organs_complete"),
        "lesion": ("train", "tumor"),
        "some": ("train", "partial"),
        "none": ("train", "unlabeled"),
        "v": ("validation", "partial"),
        "t": ("test", "unlabeled"),
    }
    assert read_index(cohort.folder.index) == cohort.cases
    cached = {p.relative_to(cohort.folder.arrays).as_posix() for p in cohort.folder.arrays.rglob("*.b2nd")}
    assert cached == {
        *(f"images/{c}.b2nd" for c in ("full", "lesion", "some", "none")),
        *(f"labels/{c}.b2nd" for c in ("full", "lesion", "some")),
    }
    assert [r["status"] for r in read_csv(cohort.folder.integrity)] == ["ok"] * 6


def test_arrays_and_statistics_are_those_of_the_files(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 1, 14, seed=1)
    write_case(tmp_path, "b", 2, seed=2)
    write(tmp_path / "vi/v_0000.nii.gz", image_array(4) + 2000)
    write(tmp_path / "vl/v.nii.gz", label_array(1))
    cohort = prepare(build("data.validation_images=vi", "data.validation_labels=vl"))
    image = Stored(cohort.folder.image("a"))[:]
    # written with identity direction (LPS): RAS order flips y and x; the spacing is the files' own
    assert np.array_equal(image, image_array(1)[:, ::-1, ::-1])
    assert np.array_equal(Stored(cohort.folder.labels("a"))[:], label_array(1, 14)[:, ::-1, ::-1])
    pooled = np.concatenate(
        [image_array(1)[label_array(1, 14) > 0], image_array(2)[label_array(2) > 0]]
    ).astype(float)
    assert cohort.intensity is not None
    assert cohort.intensity.to_dict() == pytest.approx(
        {
            "lower": np.percentile(pooled, 0.5),
            "upper": np.percentile(pooled, 99.5),
            "mean": pooled.mean(),
            "std": pooled.std(),
        }
    )
    stored = json.loads(cohort.folder.statistics.read_text())
    assert (stored["cases"], stored["voxels"]) == (2, 30)


def processed_after(build: Build, *overrides: str) -> list[str]:
    return prepare_cohort(build(*overrides)).processed


def test_only_what_is_new_or_changed_is_read(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 1)
    write_case(tmp_path, "b", 2)
    assert processed_after(build) == ["a", "b"]
    kept = stat_key(prepared_folder(build()).image("a"))
    statistics = prepared_folder(build()).statistics.read_text()
    assert processed_after(build) == []

    write_case(tmp_path, "c", 14, seed=7)  # added in mid-project
    assert processed_after(build) == ["c"]
    assert prepared_folder(build()).statistics.read_text() != statistics

    write(tmp_path / "labels/b.nii.gz", label_array(2, 3, 14))  # an annotation was corrected
    assert processed_after(build) == ["b"]
    assert {c.id: c.present for c in read_index(prepared_folder(build()).index)}["b"] == (2, 3, 14)

    write(tmp_path / "images/c_0000.nii.gz", image_array(8))  # an image was replaced
    assert processed_after(build) == ["c"]

    prepared_folder(build()).labels("b").unlink()  # an own output was lost
    assert processed_after(build) == ["b"]
    assert stat_key(prepared_folder(build()).image("a")) == kept


def test_every_file_is_unpacked_once(tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are counted where they are checked and cached; a plan counts only what nobody counted yet."""
    write_case(tmp_path, "a", 1, 14)
    write(tmp_path / "vi/v_0000.nii.gz", image_array(4))
    write(tmp_path / "vl/v.nii.gz", label_array(2))
    cfg = build("data.validation_images=vi", "data.validation_labels=vl")
    read, unpatched = Counter[str](), volumes.read_nifti

    def counted(path: Path, case: str) -> tuple[np.ndarray, Geometry]:
        read[str(path.relative_to(tmp_path))] += 1
        return unpatched(path, case)

    monkeypatch.setattr(volumes, "read_nifti", counted)
    cases = prepare(cfg).cases
    images = ["images/a_0000.nii.gz", "vi/v_0000.nii.gz"]
    assert read == dict.fromkeys([*images, "labels/a.nii.gz", "vl/v.nii.gz"], 1)
    read.clear()
    assert analyse(cfg).cases == cases
    assert read == {}
    write(tmp_path / "labels/a.nii.gz", label_array(1, 2, 3))
    assert [c.kind for c in analyse(cfg).cases] == ["partial", "partial"]
    assert read == {"labels/a.nii.gz": 1}


@pytest.mark.parametrize("kept", [0, 0.5])
def test_a_damaged_array_is_made_again(tmp_path: Path, build: Build, kept: float) -> None:
    write_case(tmp_path, "a", 1, 14)
    write_case(tmp_path, "b", 1, seed=1)
    image = prepare(build()).folder.image("a")
    whole = image.read_bytes()
    truncate(image, kept)
    assert prepare(build()).processed == ["a"]
    assert image.read_bytes() == whole


def test_settings_that_change_the_arrays_redo_them(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 1)
    write(tmp_path / "vi/v_0000.nii.gz", image_array(4))
    held_out = "data.validation_images=vi"
    assert processed_after(build, held_out) == ["a", "v"]
    assert processed_after(build, held_out, "data.interpolation=cubic") == ["a"]
    assert processed_after(build, held_out, "data.interpolation=cubic", "data.spacing_mm=[4,1,1]") == ["a"]
    assert processed_after(build, held_out, "data.percentiles=[1,99]", "data.interpolation=cubic") == []


def test_what_a_source_declares_is_read_anew_without_reading_images(tmp_path: Path, build: Build) -> None:
    write(tmp_path / "images/a_0000.nii.gz", image_array(0, (14, 8, 10)))
    write(tmp_path / "labels/a.nii.gz", label_array(*ORGANS[:-1], shape=(14, 8, 10)))
    assert [c.kind for c in prepare(build()).cases] == ["partial"]
    names = (
        "[liver,right_kidney,spleen,pancreas,aorta,inferior_vena_cava,right_adrenal_gland,left_adrenal_gland"
    )
    names += ",gallbladder,esophagus,stomach,duodenum,left_kidney]"
    cohort = prepare(build(f"data.sources=[{{match: a, annotates: {names}}}]"))
    assert [(c.kind, c.annotated, c.present) for c in cohort.cases] == [
        ("organs_complete", ORGANS, ORGANS[:-1])
    ]
    assert cohort.processed == []


@pytest.mark.parametrize("step", [prepare, analyse])
@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ("[{match: 'labels/*', annotates: [liver, spleen]}]", []),
        (
            "[{match: hospital_b, annotates: [spleen]}, {match: '*', annotates: [liver, spleen]}, "
            "{match: b, annotates: []}]",
            [
                "data.sources[0].match, data.sources[2].match: matches no case (of several that match a case "
                "the first counts)"
            ],
        ),
        (
            "[{match: a, annotates: [liver]}, {match: '*', annotates: [liver, spleen]}]",
            ["data.sources[0]: does not declare spleen, present in 1 of its 1 cases: a"],
        ),
        (
            "[{match: '*', annotates: [liver, spleen, aorta, tumor]}]",
            [
                "data.sources[0]: declares aorta, present in none of its 2 cases",
                "data.sources[0]: declares tumor, present in none of its 2 cases",
            ],
        ),
    ],
)
def test_sources_that_contradict_the_cohort_are_said_once(
    tmp_path: Path,
    build: Build,
    caplog: pytest.LogCaptureFixture,
    step: Callable[[DictConfig], object],
    sources: str,
    told: list[str],
) -> None:
    write_case(tmp_path, "a", 1, 3)
    write_case(tmp_path, "b", 1, 3)
    step(build(f"data.sources={sources}"))
    assert [r.getMessage() for r in caplog.records if "data.sources" in r.getMessage()] == told


def test_foreign_ids_are_renumbered(tmp_path: Path, build: Build) -> None:
    write(tmp_path / "images/a_0000.nii.gz", image_array(0))
    write(tmp_path / "labels/a.nii.gz", label_array(5, 52, 99))
    with pytest.raises(FlareError, match=r"a: .*99.* outside the class list"):
        prepare(build("data.label_map={5: liver, 52: 5}"))
    cohort = prepare(build("data.label_map={5: liver, 52: 5, rest: 0}"))
    assert [c.present for c in cohort.cases] == [(1, 5)]
    assert np.unique(Stored(cohort.folder.labels("a"))[:]).tolist() == [0, 1, 5]


def test_a_class_list_of_ones_own(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 7, 40)
    organ = {"role": "organ", "tolerance_mm": 2, "slice_range": False}
    cfg = build()
    cfg.classes = {
        "lung": {"id": 7, "short": "Lung", **organ},
        "heart": {"id": 40, "short": "Heart", **organ},
    }
    cohort = prepare(cfg)
    assert [(c.kind, c.present) for c in cohort.cases] == [("organs_complete", (7, 40))]
    assert "heart_ml" in cohort.folder.label_analysis.read_text()


def test_a_dicom_folder_is_a_case(tmp_path: Path, build: Build) -> None:
    array = image_array(0)
    write_dicom(tmp_path / "images/deep/patient1", array, [5.0 * z for z in range(6)])
    write(
        tmp_path / "labels/patient1.nii.gz",
        label_array(1)[:, ::-1].copy(),
        direction=(1.0, 0, 0, 0, -1, 0, 0, 0, 1),
        origin=(0.0, 14.0, 0.0),
    )
    cohort = prepare(build())
    assert [(c.id, c.kind) for c in cohort.cases] == [("patient1", "partial")]
    assert np.array_equal(Stored(cohort.folder.image("patient1"))[:], array[:, ::-1, ::-1])
    # the label grid is flipped in y against the series: the same points in space
    assert np.array_equal(Stored(cohort.folder.labels("patient1"))[:], label_array(1)[:, ::-1, ::-1])


def test_an_export_of_patients_studies_and_series(
    tmp_path: Path, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    """Two labelled patients, whose studies have one name; others in one folder; a localizer and a bolus."""
    grid = {"shape": (8, 10), "spacing_xy": (2.0, 2.0)}
    stack = [(0, 0, 5 * z) for z in range(6)]
    for number, patient in enumerate(("p1", "p2")):
        write_series(tmp_path / "images" / patient / "study" / "ct", stack, uid=f"1.2.{number}", **grid)
        write(tmp_path / "labels" / patient / "study" / "ct.nii.gz", label_array(1, 14))
        write_series(tmp_path / "un" / "flat", stack, uid=f"1.3.{number}", prefix=patient, **grid)
    topogram = {"t0008_0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}
    write_series(tmp_path / "images" / "p1" / "study" / "topo", stack[:2], uid="1.2.8", **topogram)
    write_series(tmp_path / "images" / "p2" / "study" / "bolus", [stack[2]] * 4, uid="1.2.9", **grid)
    folders = ("data.unlabeled_images=un", "data.intensity_check=off")
    with pytest.raises(FlareError, match=r"ct: 2 .* of the same id: .*; data\.case_id=path tells them apart"):
        prepare(build(*folders))
    caplog.clear()
    cohort = prepare(build(*folders, "data.case_id=path", "data.split.validation=[p2_study_ct]"))
    ids = [c.id for c in cohort.cases]
    assert ids[-1] == "p2_study_ct"
    assert sorted(i for i in ids if not i.startswith("flat_")) == ["p1_study_ct", "p2_study_ct"]
    assert len(set(ids)) == 4
    rows = {r["case"]: (r["status"], r["reason"]) for r in read_csv(cohort.folder.integrity)}
    assert rows["p1_study_topo"] == ("skipped", "2 localizers (ImageType)")
    assert rows["p2_study_bolus"] == ("skipped", "slices in 1 places, beside a scan of the same study")
    told = [r.getMessage() for r in caplog.records if "localizers and scouts" in r.getMessage()]
    assert told == ["localizers and scouts are left out, see integrity.csv: p1_study_topo, p2_study_bolus"]
    assert not prepare(build(*folders, "data.case_id=path", "data.split.validation=[p2_study_ct]")).processed
    write_series(tmp_path / "un" / "flat", [*stack, (0, 0, 30)], uid="1.3.1", prefix="p2", **grid)
    again = prepare(build(*folders, "data.case_id=path", "data.split.validation=[p2_study_ct]"))
    assert len(again.processed) == 1  # of the series that has another slice


@pytest.mark.slow
def test_worker_processes_give_what_one_process_gives(tmp_path: Path, build: Build) -> None:
    for seed in range(4):
        write_case(tmp_path, f"c{seed}", 1, 14, seed=seed)
    alone = prepare(build())
    together = prepare(build(f"data.cache={tmp_path / 'other'}", "executor.workers=2"))
    assert together.cases == alone.cases
    assert together.intensity == alone.intensity
    for case in alone.cases:
        for path in ("image", "labels", "histogram"):
            first, second = getattr(alone.folder, path)(case.id), getattr(together.folder, path)(case.id)
            assert first.read_bytes() == second.read_bytes()


def test_analysis_needs_no_readable_image_and_writes_nothing(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 1, 14)
    (tmp_path / "images/a_0000.nii.gz").write_bytes(b"")
    cases = analyse(build()).cases
    assert [(c.id, c.kind) for c in cases] == [("a", "tumor")]
    assert len(select_cases(cases, "tumor")) == 1
    assert not (tmp_path / "cache").exists()


def test_a_cohort_without_labels_has_no_statistics(tmp_path: Path, build: Build) -> None:
    write(tmp_path / "more/none_0000.nii.gz", image_array(3))
    cohort = prepare(build("data.labeled_images=null", "data.labels=null", "data.unlabeled_images=more"))
    assert cohort.intensity is None
    assert not cohort.folder.statistics.exists()
    assert cohort.processed == ["none"]


def test_an_empty_cohort_is_refused(tmp_path: Path, build: Build) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    with pytest.raises(FlareError, match=r"data\.root: no image"):
        prepare(build())


def test_a_case_that_the_machine_failed_at_is_told_from_a_refused_one(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, case in enumerate(("good", "sound", "bad")):
        write_case(tmp_path, case, 1, seed=number)
    prepare(build())
    folder = prepared_folder(build())
    statistics, kept = folder.statistics.read_text(), folder.image("sound").read_bytes()
    (tmp_path / "images/bad_0000.nii.gz").write_bytes(b"")

    unpatched = cache.cache_image

    def cache_image(*arguments: object, **settings: object) -> None:
        if settings["case_id"] == "sound":
            raise OSError(errno.EIO, "the share is away")
        unpatched(*arguments, **settings)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("flare.data.cache.cache_image", cache_image)
        with pytest.raises(FlareError, match=r"caching: 1 of 3 cases .* the share is away .*\(case sound\)"):
            prepare_cohort(build("data.interpolation=cubic"))
    assert {c.id for c in read_index(folder.index)} == {"good", "sound", "bad"}
    assert folder.statistics.read_text() == statistics
    assert {r["case"]: r["status"] for r in read_csv(folder.integrity)} == {
        "bad": "refused",
        "sound": "failed",
        "good": "ok",
    }
    assert folder.image("sound").read_bytes() == kept
    assert not folder.image("bad").exists()
    assert processed_after(build, "data.interpolation=cubic") == ["bad", "sound"]  # mended


def test_a_typing_error_costs_nothing_of_the_cache(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 1)
    prepare(build())
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    for override in ("data.interpolation=liner", "data.percentiles=[99,1]"):
        with pytest.raises(FlareError, match=r"^data\.\w+=.*: expected"):
            prepare(build(override))
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}


def test_what_another_start_prepared_while_this_one_waited_is_not_done_again(
    tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_case(tmp_path, "a", 1)

    @contextmanager
    def late(folder: Path, *, wait: bool) -> Iterator[None]:
        assert wait
        monkeypatch.setattr("flare.prepare.cohort.lock", lock)
        assert prepare(build()).processed == ["a"]
        yield

    monkeypatch.setattr("flare.prepare.cohort.lock", late)
    assert prepare(build()).processed == []


def test_what_a_killed_preparation_left_is_removed_and_the_rest_kept(tmp_path: Path, build: Build) -> None:
    write_case(tmp_path, "a", 1)
    write_case(tmp_path, "b", 1)
    cohort = prepare(build())
    half = cohort.folder.image("a").parent / ".partial-x"
    half.mkdir()
    (half / "b.b2nd").write_bytes(b"half")
    cohort.folder.image("b").unlink()
    journal = next((cohort.folder.root / "journal").glob("cache*"))
    journal.write_text(journal.read_text() + '{"case": "b", "inp')
    assert prepare(build()).processed == ["b"]
    assert not half.exists()
    assert prepare(build()).processed == []


@pytest.mark.long
@pytest.mark.slow
def test_four_thousand_cases_are_analysed_in_a_minute(tmp_path: Path, config: Build) -> None:
    """The challenge's counts, from label files alone; the images are empty files."""
    kinds = {222: ORGANS, 1497: (1, 14), 481: (2,)}
    number = 0
    for count, classes in kinds.items():
        template = write(tmp_path / "template.nii.gz", label_array(*classes, shape=(14, 4, 4))).read_bytes()
        for _ in range(count):
            for path in (
                f"imagesTr2200/{number // 500}/c{number}_0000.nii.gz",
                f"labelsTr2200/c{number}.nii.gz",
            ):
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / path).write_bytes(template if "labels" in path else b"")
            number += 1
    (tmp_path / "unlabelTr1800").mkdir()
    for _ in range(1800):
        (tmp_path / f"unlabelTr1800/c{number}_0000.nii.gz").write_bytes(b"")
        number += 1
    cases = analyse(
        config("prepare", "data=flare23", f"data.root={tmp_path}", f"data.cache={tmp_path / 'cache'}")
    ).cases
    counts = [len(select_cases(cases, which)) for which in ("organs_complete", "labeled", "tumor", "all")]
    assert counts == [222, 2200, 1497, 4000]


@pytest.mark.slow
def test_the_real_scans(real_data: Path, tmp_path: Path, config: Build, labels: ClassList) -> None:
    """Left and right by anatomy: RAS order has X run to the patient's right, where the liver is."""
    cfg = config(
        "prepare",
        "data=totalsegmentator_abdomen",
        f"data.root={real_data}",
        f"data.cache={tmp_path}",
        "data.unlabeled_images=torso_512",
        "executor.workers=0",
    )
    cohort = prepare(cfg)
    assert {c.id: (c.split, c.kind) for c in cohort.cases} == {
        "abdomen": ("train", "partial"),
        "torso": ("train", "unlabeled"),
        "slab": ("test", "partial"),
    }
    assert cohort.cases[0].annotated == tuple(i for i in ORGANS if labels.name_of(i) != "esophagus")
    volumes = read_csv(cohort.folder.label_analysis)[0]
    expected = {"liver": 1126, "right_kidney": 193, "spleen": 261, "left_kidney": 137, "gallbladder": 36}
    for name, ml in expected.items():
        assert float(volumes[f"{name}_ml"]) == pytest.approx(ml, abs=0.6)
    arrays = {c: Stored(cohort.folder.image(c)) for c in ("abdomen", "torso")}
    assert arrays["abdomen"].shape == (84, 252, 305)
    assert arrays["torso"].shape == (50, 333, 333)
    target = Stored(cohort.folder.labels("abdomen"))[:]
    centre = {
        name: np.argwhere(target == labels.id_of(name)).mean(axis=0)
        for name in labels.names[:3] + labels.names[12:13]
    }
    assert centre["liver"][2] > target.shape[2] / 2 > centre["spleen"][2]
    assert centre["right_kidney"][2] > centre["left_kidney"][2]
    assert centre["liver"][0] > centre["right_kidney"][0]  # Z runs to the head
    assert arrays["abdomen"][:][target == labels.id_of("liver")].mean() == pytest.approx(41.4, abs=0.5)


@pytest.mark.slow
def test_the_flipped_labels_of_the_real_slab_lie_on_its_organs(
    real_data: Path, tmp_path: Path, config: Build, labels: ClassList
) -> None:
    cfg = config(
        "prepare",
        "data=totalsegmentator_abdomen",
        f"data.root={real_data}",
        f"data.cache={tmp_path}",
        "data.cases.slab.split=train",
        "~data.cases.abdomen",
        "executor.workers=0",
    )
    cohort = prepare(cfg)
    image, target = (Stored(p("slab"))[:] for p in (cohort.folder.image, cohort.folder.labels))
    liver = image[target == labels.id_of("liver")]
    aorta = image[target == labels.id_of("aorta")]
    assert np.percentile(liver, [5, 95]) == pytest.approx([55, 113], abs=2)  # parenchyma only, no fat or lung
    assert aorta.mean() > 150  # contrast in the arteries


def test_analysis_names_what_it_leaves_out(
    tmp_path: Path, build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path, "a", 1)
    write_case(tmp_path, "b", 1, 77)
    write(tmp_path / "images/c_0000.nii.gz", image_array())
    assert [c.id for c in analyse(build()).cases] == ["a"]
    told = " ".join(capsys.readouterr().err.split())
    assert "case b is left out" in told
    assert "case c is left out: image without a label" in told


def test_the_label_analysis_names_the_source_or_folder_of_each_label(tmp_path: Path, build: Build) -> None:
    for case in "abc":
        write_case(tmp_path, case, 1)
    (tmp_path / "more").mkdir()
    (tmp_path / "labels" / "b.nii.gz").rename(tmp_path / "more" / "b.nii.gz")
    cohort = prepare(build("data.labels=[labels,more]", "data.sources=[{match: a, annotates: [liver]}]"))
    rows = read_csv(cohort.folder.label_analysis)
    assert [row["source"] for row in rows] == ["data.sources[0]", "data.labels[1]", "data.labels[0]"]
    shown = {
        (r["source"], r["declared"]): r["present"]
        for r in read_csv(cohort.folder.label_sources)
        if r["class"] == "liver"
    }
    assert shown == {
        ("data.labels[0]", "inferred"): "1",
        ("data.labels[1]", "inferred"): "1",
        ("data.sources[0]", "yes"): "1",
    }


def test_what_a_start_will_read_again_is_known_before_and_nothing_is_written(
    tmp_path: Path, build: Build, caplog: pytest.LogCaptureFixture
) -> None:
    for case in "ab":
        write_case(tmp_path, case, 1)
    write_case(tmp_path, "bad", 77)
    with pytest.raises(FlareError, match="bad"):
        prepare(build())
    found = analyse(build())
    assert (found.pending, found.members, found.tried, found.statistics) == ({}, [], ["bad"], "")
    write_case(tmp_path, "c", 1)
    os.utime(tmp_path / "images/a_0000.nii.gz", ns=(1, 1))
    for path in ("images/b_0000.nii.gz", "labels/b.nii.gz"):
        (tmp_path / path).unlink()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    with pytest.raises(
        FlareError, match=r"2 files that the last start saw are gone.*data\.accept_removed=true"
    ):
        analyse(build())
    removed = build("data.accept_removed=true")
    found = analyse(removed)
    assert [case.id for case in found.cases] == ["a", "c"]
    assert found.pending == {"a": "its image changed", "c": "added to the cohort"}
    assert found.members == ["b removed", "c added"]
    assert found.statistics == "b removed; c added; a: its image changed"
    other = analyse(build("data.accept_removed=true", "data.interpolation=cubic"))
    assert other.pending["a"] == "data.interpolation: linear -> cubic; its image changed"
    assert files == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}
    caplog.set_level("INFO")
    with pytest.raises(FlareError, match="bad"):
        prepare(removed)
    assert [m for m in caplog.messages if "cohort:" in m] == [
        "cohort: b removed since the last start",
        "cohort: c added since the last start",
    ]
    (told,) = (m for m in caplog.messages if m.startswith("check and cache again: "))
    assert "(a): its image changed" in told


class Maker:
    """A generator of somebody's own: of so many cases."""

    def __init__(self, root: str, cases: int) -> None:
        self.root, self.names = Path(root), [f"made{number}" for number in range(cases)]

    def make(self, executor: Executor) -> None:
        for name in self.names:
            write_case(self.root, name, 1)

    def planned_cases(self) -> list[Case]:
        return [Case(name, self.root / name, None, "train", "partial", (), ()) for name in self.names]


def test_a_generator_makes_the_cohort_before_it_is_listed_and_plans_it_without(
    tmp_path: Path, build: Build
) -> None:
    given = {"_target_": f"{__name__}.Maker", "root": str(tmp_path), "cases": 2}
    cfg = build()
    cfg.data.generator = given
    assert [c.id for c in analyse(cfg).cases] == ["made0", "made1"]
    assert list(tmp_path.iterdir()) == []
    assert [c.id for c in prepare(cfg).cases] == ["made0", "made1"]
    cfg.data.generator = {**given, "size": 3}
    with pytest.raises(FlareError, match=r"^data\.generator: .* does not take size"):
        prepare(cfg)
