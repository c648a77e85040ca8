"""What a start would do of each round, step by step, and why: nothing is done, written or loaded for it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from flare.core.cases import Case
from flare.core.files import is_same_file
from flare.prepare.cohort import Foreseen
from flare.rounds.graph import Teacher, teachers_of
from flare.rounds.label import by_teacher, label_jobs, makes_labels, training_set
from flare.rounds.score import explain_scores
from flare.rounds.settings import RoundSettings
from flare.runs.changes import cases_told, joined
from flare.runs.journal import Journal
from flare.runs.work import console
from flare.training import resuming

# states of a step: done; never done or not to its end; done and to do again; again if something comes out new
DONE, TODO, AGAIN, PERHAPS, FROZEN = "done", "to do", "again", "perhaps", "frozen"
OPEN = (TODO, AGAIN)


@dataclass(frozen=True)
class Step:
    """A step of a round (`infer`, `merge`, `train`, `evaluate`) or of the run (`prepare`, `report`)."""

    round: str
    name: str
    state: str
    why: str = ""


@dataclass(frozen=True)
class Outlook:
    """The steps of a round, by name, and what else of it may change the labels that it makes."""

    steps: dict[str, Step]
    news: str = ""


def explain_run(
    rounds: Sequence[RoundSettings],
    cohort: Foreseen,
    frozen: Mapping[str, RoundSettings],
    finish: Callable[[], str] = str,
) -> list[Step]:
    """Explain the rounds of a run in turn, as they are configured; `frozen` are some as they are kept.

    `finish` says why the report of a run whose rounds all stand is made again.
    """
    pending = {**cohort.pending, **dict.fromkeys(cohort.tried, "refused at the last start, tried again")}
    told = [*cohort.members, *([cases_told(pending, len(cohort.cases))] if pending else [])]
    has_before = rounds[0].prepared.index.exists()
    steps = [Step("", "prepare", DONE if not told else AGAIN if has_before else TODO, joined(told))]
    known: dict[str, Outlook] = {}
    for item in rounds:
        name = str(item.name)
        known[name] = explain_round(item, cohort, known, frozen.get(name))
        steps += known[name].steps.values()
    found, why = {step.state for step in steps[1:]}, "what is done above"
    state = next((s for s in (AGAIN, TODO, PERHAPS) if s in found), DONE)
    if state == DONE and (why := finish()):
        state = AGAIN
    return [*steps, Step("", "report", state, why)]


def explain_round(
    item: RoundSettings, cohort: Foreseen, known: Mapping[str, Outlook], frozen: RoundSettings | None = None
) -> Outlook:
    """Explain one round; `known` are those before it, `frozen` is the round as it is kept, if it is."""
    name, chosen = str(item.name), item.train_cases(cohort.cases)
    before = resuming.whole_training(item.folder)
    if not chosen and frozen is None:
        why = f"no training case is {item.labels.cases!r} (labels.cases): refused"
        return Outlook({"train": Step(name, "train", TODO, why)})
    steps, news = {}, ""
    if makes_labels(item):
        steps = _labels(item, chosen, cohort, known)
    steps["train"] = _training(item, chosen, cohort, known, steps)
    if frozen is not None:
        steps = {step.name: _kept(step) for step in steps.values()}
    if steps["train"].state in OPEN:
        steps["evaluate"] = Step(name, "evaluate", steps["train"].state, "its training")
    else:
        checkpoint = item.folder.last if before is None else before.last
        scores, fit = explain_scores(frozen or item, cohort.cases, checkpoint)
        news = f"its fit of largest components is made anew ({fit})" if fit else ""
        told = [text for text in (scores, news) if text]
        noted = item.folder.journal("predict-validation").exists()
        state = (AGAIN if noted else TODO) if told else steps["train"].state
        if state == PERHAPS:
            told = ["its training"]
        steps["evaluate"] = Step(name, "evaluate", DONE if state == FROZEN else state, joined(told))
    if frozen is not None and before is not None and not is_same_file(item.folder.last, before.last):
        news = "an earlier training of it, the complete one, is taken"
    return Outlook(steps, news)


def _kept(step: Step) -> Step:
    """A step of a frozen round."""
    would = {
        AGAIN: "would be done again because",
        PERHAPS: "might be done again because",
        TODO: "would be done:",
    }
    why = f"{would[step.state]} {step.why}".strip() if step.state in would else ""
    return Step(step.round, step.name, FROZEN, why)


def _upstream(teacher: Teacher | None, known: Mapping[str, Outlook]) -> tuple[str, str]:
    """What of a round's teacher is surely made before, and what perhaps comes out new."""
    outlook = None if teacher is None else known.get(str(teacher.round))
    if teacher is None or outlook is None:
        return "", ""
    state, name = outlook.steps["train"].state, f"round {teacher.round}"
    if state in OPEN:
        return f"{name} is trained {'again' if state == AGAIN else 'before'}", ""
    if state == PERHAPS:
        return "", f"{name} is perhaps trained again"
    return "", f"{name}: {outlook.news}" if outlook.news else ""


def _labels(
    item: RoundSettings, chosen: Sequence[Case], cohort: Foreseen, known: Mapping[str, Outlook]
) -> dict[str, Step]:
    """Explain the labels of a round: predictions of its teachers, and what is merged with them."""
    infer: dict[str, str] = {}
    merge: dict[str, str] = {}
    maybe = []
    journal = Journal(item.folder.journal("label"))
    for teacher, own in by_teacher(item, chosen):
        surely, perhaps = _upstream(teacher, known)
        maybe += [perhaps] * bool(perhaps)
        if teacher is not None and not surely and not teacher.checkpoint.is_file():  # of a frozen round
            surely = f"{teacher.checkpoint.name} of its teacher is not there"
        if surely:
            infer |= dict.fromkeys([case.id for case in own], surely)
            continue
        for case, job in label_jobs(item, own).items():
            read = cohort.pending.get(case, "")
            if job.labeller and (why := job.why_network()):
                infer[case] = read or why
            if why := read or journal.why(case, job.inputs, job.config):
                merge[case] = why
    merge = {**dict.fromkeys(infer, "predicted anew"), **merge}
    steps, name = {}, str(item.name)
    for step, reasons in (("infer", infer), ("merge", merge)):
        is_again = any(case in journal for case in reasons)
        state = AGAIN if is_again else TODO if reasons else PERHAPS if maybe else DONE
        why = cases_told(reasons, len(chosen)) or joined(maybe)
        if step == "merge" or item.is_hybrid:
            steps[step] = Step(name, step, state, why)
    return steps


def _training(
    item: RoundSettings,
    chosen: Sequence[Case],
    cohort: Foreseen,
    known: Mapping[str, Outlook],
    labels: Mapping[str, Step],
) -> Step:
    """Explain the training of a round, whose labels are explained."""
    name, before = str(item.name), resuming.whole_training(item.folder)
    warm = next(iter(teachers_of(item)), None) if item.training.init == "teacher" else None
    surely, maybe = _upstream(warm, known)
    pending = {case.id: cohort.pending[case.id] for case in chosen if case.id in cohort.pending}
    merge = labels.get("merge")
    told = [surely] * bool(surely)
    if merge is not None and merge.state in OPEN:
        told.append(f"its labels: {merge.why}")
    elif merge is None and pending:
        told.append(cases_told(pending, len(chosen)))
    if told or not item.prepared.statistics.exists():
        if before is None:
            return Step(name, "train", TODO, joined(told))
        keys = resuming.keys_told(before, item.training)
        # cases that were never labelled failed before or are new: they are tried, and the rest may stand
        is_tried = merge is not None and merge.state == TODO and not (surely or pending or keys)
        return Step(name, "train", PERHAPS if is_tried else AGAIN, joined(keys + told))
    journal = Journal(item.folder.journal("label"))
    values = None if merge is None else {case.id: journal.values(case.id) for case in chosen}
    training = training_set(item, chosen, values, [])
    found = resuming.find_training(item.folder, resuming.training_key(item.training, training.key))
    if found is None or not resuming.is_trained(found):
        if before is None:
            return Step(name, "train", TODO, "goes on where it stopped" if found else "")
        why = resuming.why_again(before, item.training, training.parts)
        return Step(name, "train", AGAIN, f"{why}{'; goes on where it stopped' if found else ''}")
    perhaps = [f"intensity statistics are made anew: {cohort.statistics}"] * bool(cohort.statistics)
    perhaps += [maybe] * bool(maybe)
    perhaps += [merge.why] if merge is not None and merge.state == PERHAPS else []
    return Step(name, "train", PERHAPS if perhaps else DONE, joined(perhaps))


def print_steps(steps: Sequence[Step]) -> None:
    """Show what is done, and what will be done and why."""
    table = Table("round", "step", "state", "why", title="what a start does, and why", title_justify="left")
    for number, step in enumerate(steps):
        is_new = number == 0 or steps[number - 1].round != step.round
        table.add_row(step.round if is_new else "", step.name, step.state, step.why.replace("[", "\\["))
    console.print(table)
