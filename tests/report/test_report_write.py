"""The page of a run: whole, small, without a path or an address; made again only when something changed."""

import html
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flare.core.classes import ClassList
from flare.core.files import read_csv, write_csv, write_text
from flare.core.volumes import read_image, write_labels
from flare.report.examples import Shown, named_ranks, viewer_json
from flare.report.facts import Facts, ReportSettings, gather
from flare.report.page import NIIVUE, write_report
from flare.rounds.graph import plan_rounds, tell_starts
from flare.rounds.score import Results
from flare.runs.work import Outcome
from report_run import Made, make_run
from tiny_round import LIVER, TUMOR

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    made = make_run(tmp_path_factory.mktemp("report"))
    write_report(*made.arguments())
    return made


@pytest.fixture(scope="module")
def page(made: Made) -> str:
    return (made.run.root / "report.html").read_text(encoding="utf-8")


def without_niivue(page: str) -> str:
    return page.replace(NIIVUE.read_text(encoding="utf-8"), "")


def test_the_page_has_every_section_and_the_contents_name_them(page: str) -> None:
    sections = re.findall(r'<section id="([\w-]+)"', page)
    assert sections == [
        *("run", "completeness", "learning", "scores", "classes", "pseudo", "cases", "viewer"),
        *("efficiency", "terms"),
    ]
    assert re.findall(r'<a href="#([\w-]+)"', page) == sections


@pytest.mark.slow
def test_the_page_says_which_rounds_go_on_from_their_teachers_or_are_frozen_and_what_contradicts_a_source(
    tmp_path: Path,
) -> None:
    made = make_run(tmp_path)
    page = write_report(*made.arguments()).read_text(encoding="utf-8")
    scores = page[page.index('<section id="scores"') :].split("</section>")[0]
    assert {r.training.init for r in made.rounds} == {"fresh"}
    assert "from the teacher" not in scores
    assert "mean over 1 validation cases of" in scores
    assert "Frozen" not in scores
    assert ">! " not in page
    made.rounds = [replace(item, training=replace(item.training, init="teacher")) for item in made.rounds]
    made.rounds[0] = replace(made.rounds[0], is_frozen=True)
    sources = made.cohort.folder.label_sources
    rows = read_csv(sources)
    rows[13] |= {"declared": "yes", "contradiction": "declared, present in no case"}
    write_csv(sources, rows)
    plan = plan_rounds(made.rounds, made.cohort.cases)
    write_csv(made.run.root / "plan.csv", plan)
    warm = write_report(*made.arguments()).read_text(encoding="utf-8")
    scores = html.unescape(warm[warm.index('<section id="scores"') :].split("</section>")[0])
    assert tell_starts(plan)
    assert tell_starts(plan) in scores
    assert "Frozen (freeze): MOT, with the weights and labels of an earlier training" in scores
    assert re.search(
        r'<td>tumor</td><td class="n" title="declared, present in no case">! declared 3/3</td>', warm
    )


def test_the_label_analysis_is_shown_by_class_and_source(page: str) -> None:
    """Three training cases and one for validation, each with liver, spleen and tumor, declared nowhere."""
    section = page[page.index('<section id="completeness"') :].split("</section>")[0]
    assert re.findall(r'<th class="n">(.*?)</th>', section) == ["data.labels", "data.validation_labels"]
    rows = dict(re.findall(r"<tr><td>(.*?)</td>(.*?)</tr>", section))
    assert re.findall(r">([^<]+)</td>", rows["liver"]) == ["3/3", "1/1"]
    assert re.findall(r">([^<]+)</td>", rows["left kidney"]) == ["0/3", "0/1"]
    assert len(rows) == 14


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]+)"', without_niivue(page))
    assert addresses
    assert all(a.startswith(("data:", "#")) for a in addresses)
    assert "default-src 'none'" in page


def test_the_page_holds_no_path_of_the_machine(made: Made, page: str) -> None:
    assert str(made.cfg.data.root) not in page
    assert str(made.run.root) not in page


def test_every_scored_case_is_shown_beside_its_reference(page: str) -> None:
    assert page.count('alt="Prediction for held_out0') == 1
    assert page.count('alt="Reference labels of held_out0') == 1


def test_ours_and_the_papers_scores_stand_in_one_row(made: Made, page: str) -> None:
    ours = next(r for r in made.results.table if r["round"] == "mot1")
    row = re.search(r"<td>MOT1</td>.*?</tr>", page[page.index("<h3>DSC in percent") :], re.DOTALL)
    assert row is not None
    assert f"{ours['Liver_DSC']:.1f}<small>97.4</small>" in row[0]  # the paper's Table 5, MOT1, liver


def test_a_picture_for_a_readme_is_left(made: Made) -> None:
    assert (made.run.root / "figures" / "overview.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_is_made_again_only_when_what_it_shows_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_run(tmp_path, names=("mot",))
    built = []

    def build(*_: object, page: Path, overview: Path) -> None:
        built.append(page)
        write_text(page, "page")
        write_text(overview, "picture")

    monkeypatch.setattr("flare.report.page.build_report", build)
    write_report(*made.arguments())
    write_report(*made.arguments())
    assert len(built) == 1
    write_csv(made.run.round("mot").training_csv, [{"epoch": 0, "train/loss": 0.5}])
    write_report(*made.arguments())
    assert len(built) == 2
    made.results.failures.append(Outcome("case0", error="unreadable"))
    write_report(*made.arguments())
    assert len(built) == 3
    (made.run.root / "report.html").unlink()
    write_report(*made.arguments())
    assert len(built) == 4


def test_a_name_cannot_leave_the_viewers_data(labels: ClassList) -> None:
    name = "</script><!--<script>"
    settings = ReportSettings("run", "phantom", "test", "present", labels, None, None, {})
    facts = Facts(settings, [], [], [], Results([], []))
    told = viewer_json(facts, [Shown(name, "best", True, {}, 0.5, {}, 2, {"image": "AA=="})])
    assert told is not None
    assert "<" not in told
    assert json.loads(told)["cases"][0]["name"] == name
    assert json.loads(told)["cases"][0]["told"] == "best, 2 missed tumors"


@pytest.mark.slow
def test_a_run_without_scored_cases_has_a_page_too(tmp_path: Path) -> None:
    made = make_run(tmp_path, held_out_cases=0)
    page = write_report(*made.arguments()).read_text(encoding="utf-8")
    assert 'id="pseudo"' in page
    assert 'id="cases"' not in page
    assert "niivue" not in page


@pytest.mark.slow
def test_many_cases_are_small_but_for_best_median_and_worst(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flare.report.examples.ALL_LARGE", 2)
    made = make_run(tmp_path, names=("mot",), held_out_cases=4)
    page = write_report(*made.arguments()).read_text(encoding="utf-8")
    assert page.count("axial, coronal, sagittal") >= 6
    assert page.count('alt="Prediction for held_out') == 4
    assert len(re.findall(r'alt="Prediction for held_out\d, axial"', page)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("last", ["mot", "mo"])
def test_the_worst_case_and_every_missed_tumor_are_in_the_viewer(tmp_path: Path, last: str) -> None:
    made = make_run(tmp_path, names=(last,), held_out_cases=6)
    order = list(gather(*made.arguments()).ranked)
    ranks = named_ranks(order)
    missed = next(case for case in reversed(order) if case not in ranks)
    path = made.run.round(last).root / "validation" / "predictions" / f"{missed}.nii.gz"
    volume = read_image(path)
    write_labels(path, np.where(volume.array == TUMOR, LIVER, volume.array), volume.geometry)
    page = write_report(*made.arguments()).read_text(encoding="utf-8")
    found = re.search(r'id="viewer-data">(.*?)</script>', page)
    assert found is not None
    cases = {case["name"]: case["told"] for case in json.loads(found[1])["cases"]}
    # a round that learns organs alone misses no tumor
    assert cases == ranks | ({missed: "1 missed tumor"} if last == "mot" else {})
    assert ("1 missed tumor</b>" in page) is (last == "mot")


def test_the_page_says_what_the_paper_is_and_claims_no_comparison_impossible_that_it_makes(page: str) -> None:
    text = " ".join(re.sub(r"<[^>]+>", "", without_niivue(page)).split())
    assert '<dt id="paper">' in page
    assert "Multi-task Learning with Iterative Training in Hybrid Labeling Dataset" in text
    assert "cannot be compared" not in text
