"""Every file of `conf/` composes on every script, and what it names can be built."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import Logger

from flare.cli import CONF
from flare.runs.work import build_executor

SCRIPTS = ["train", "infer", "merge_labels", "prepare", "evaluate", "iterate"]
GROUPS = sorted(
    p.name for p in CONF.iterdir() if p.is_dir() and p.name not in ("round", "experiment", "debug")
)
ROUNDS = ["mo", "mo1", "mo2", "mt", "mot", "mot1", "mot2", "mot3"]


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def is_abstract(group: str, option: str) -> bool:
    """Whether a file leaves values open for those that inherit from it."""
    text = (CONF / group / f"{option}.yaml").read_text()
    return "name: ???" in text


def choices(script: str) -> Iterator[list[str]]:
    """Choices that together take every file of every group at least once."""
    groups = {g: [o for o in options(g) if not is_abstract(g, o)] for g in GROUPS}
    groups["experiment"] = options("experiment")
    if script != "iterate":
        groups["round"] = options("round")
    for number in range(max(len(found) for found in groups.values())):
        yield [f"{g}={found[number % len(found)]}" for g, found in groups.items()]


def targets(value: Any) -> Iterator[str]:
    """All `_target_`s in plain values."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from targets(inner)


# --- composition


def test_the_rounds_are_the_papers_and_ours() -> None:
    assert sorted(["all", *ROUNDS, "partial", "partial1", "partial2"]) == options("round")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_file_composes_on_every_script(script: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for chosen in choices(script):
            cfg = compose(script, [*chosen, "data.root=/x"])
            plain = OmegaConf.to_container(cfg, resolve=True)  # every interpolation resolves
            assert set(GROUPS) - {"select"} <= set(plain)
            assert "select" in plain["labels"]  # what is chosen by `select` is a part of it
            for target in targets(plain):
                assert callable(get_object(target)), target


# what each ablation is for, and what it sweeps over
ABLATIONS = {
    "rounds": (["iterate"], {}),
    "tasks": (["iterate"], {}),
    "models": (["train"], {"round": "mo", "model": "small,medium,large"}),
    "tta": (["infer", "evaluate"], {"tta": "none,tta4,tta8"}),
    "windows": (["infer", "evaluate"], {"inference": "paper,flare22,dense,fast"}),
    "restore": (["infer", "evaluate"], {"restore": "nearest,nnunet,trilinear"}),
    "search": (["train"], None),
}


@pytest.mark.slow
@pytest.mark.parametrize("option", options("experiment/ablation"))
def test_ablations(option: str) -> None:
    """Each composes beside another experiment, and every value that it sweeps over is one."""
    if option == "search":
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    scripts, params = ABLATIONS[option]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for script in scripts:
            chosen = f"experiment=[demo,ablation/{option}]"
            cfg = compose(script, [chosen], return_hydra_config=True)
            assert cfg.name == f"ablation_{option}"
            swept = dict(cfg.hydra.sweeper.params or {})
            assert params is None or swept == params
            if script == "iterate":
                assert set(cfg.rounds) <= set(ROUNDS)
            for key, values in swept.items() if params else ():
                for value in values.split(","):
                    job = compose(script, [chosen, f"{key}={value}"])
                    assert script == "train" or str(job.predictions).endswith(f"/{value}")
                    assert script == "train" or job.output == job.predictions


@pytest.mark.parametrize("option", options("debug"))
def test_debug_files_compose(config: Callable[..., DictConfig], option: str) -> None:
    assert config("train", f"+debug={option}", "experiment=demo").trainer.check_val_every_n_epoch is not None


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_has_what_all_share(config: Callable[..., DictConfig], script: str) -> None:
    cfg = config(script)
    assert {"name", "seed", "round", "tta", "restore", "engine"} <= set(cfg)
    assert (cfg.tta, cfg.restore, cfg.engine, cfg.inference.name) == ("tta4", "trilinear", "torch", "paper")
    assert (cfg.round.name, cfg.round.init) == (None, "fresh")


@pytest.mark.parametrize(
    ("overrides", "features", "lr"),
    [
        (["round=mot3"], 6, 0.01),
        (["round=mot3", "experiment=demo"], 4, 0.1),  # tiny
        (["experiment=demo", "round=mot3"], 4, 0.1),
        (["round=mot3", "model=tiny"], 4, 0.01),
        (["round=mot3", "experiment=demo", "model=large"], 6, 0.1),  # the command line wins
        (["round=mo", "experiment=flare23", "data.root=/x", "model=large"], 6, 0.01),
        ([], 5, 0.01),
    ],
)
def test_which_choice_wins(
    config: Callable[..., DictConfig], overrides: list[str], features: int, lr: float
) -> None:
    cfg = config("train", *overrides)
    assert len(cfg.model.net.features) == features
    assert cfg.optimizer.lr == lr


def test_an_experiment_keeps_what_its_round_is(config: Callable[..., DictConfig]) -> None:
    cfg = config("train", "round=mot1", "experiment=demo")
    assert (cfg.round.name, cfg.round.teacher, cfg.round.init) == ("mot1", "mot", "teacher")
    assert (cfg.labels.source, cfg.labels.cases, cfg.name) == ("hybrid", "labeled", "demo")


def test_no_round_is_all_labelled_cases_as_they_are(config: Callable[..., DictConfig]) -> None:
    labels = config("train").labels
    assert (labels.source, labels.cases, labels.targets) == ("ground_truth", "labeled", "organs_tumor")


@pytest.mark.parametrize("script", [script for script in SCRIPTS if script != "iterate"])
def test_round_all_is_no_round(config: Callable[..., DictConfig], script: str) -> None:
    assert config(script, "round=all") == config(script)
    assert config(script, "round=all", "model=small").model.name == "small"


# --- building


def build_net(cfg: DictConfig) -> torch.nn.Module:
    with torch.device("meta"):  # shapes without memory
        return instantiate(cfg.model.net)


@pytest.mark.parametrize(
    ("model", "parameters"), [("medium", 22_560_704), ("large", 84_935_424), ("small", None), ("tiny", None)]
)
def test_networks(config: Callable[..., DictConfig], model: str, parameters: int | None) -> None:
    """Parameters at 15 outputs: measured on the authors' class; paper, Tables 2 and 3: 22M and 85M."""
    network = build_net(config("train", f"model={model}"))
    assert network.heads[-1].out_channels == 15
    if parameters is not None:
        assert sum(p.numel() for p in network.parameters()) == parameters


OUTPUTS = {"mo": 14, "mo1": 14, "mo2": 14, "mt": 2, "mot": 15, "mot1": 15, "mot2": 15, "mot3": 15}


@pytest.mark.parametrize(
    ("experiment", "name"),
    [*(("flare23", name) for name in ROUNDS), ("demo", "mo"), ("demo", "mt"), ("demo", "mot3")],
)
def test_rounds_build(config: Callable[..., DictConfig], experiment: str, name: str) -> None:
    cfg = config("train", f"round={name}", f"experiment={experiment}", "data.root=/x")
    network = build_net(cfg)
    assert network.heads[-1].out_channels == OUTPUTS[name]
    assert all(n % d == 0 for n, d in zip(cfg.data.patch_size, network.divisors, strict=True))
    optimizer = instantiate(cfg.optimizer)(network.parameters())
    scheduler = instantiate(cfg.scheduler)(optimizer)
    assert isinstance(optimizer, torch.optim.SGD)
    assert scheduler.get_last_lr() == [cfg.optimizer.lr]
    loss = instantiate(cfg.loss, classes=cfg.classes, targets=cfg.labels.targets)
    assert isinstance(loss, torch.nn.Module)


@pytest.mark.parametrize("option", options("trainer"))
def test_trainers(config: Callable[..., DictConfig], option: str, tmp_path: Path) -> None:
    if option == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    cfg = config("train", f"trainer={option}", "trainer.precision=32")
    trainer = instantiate(cfg.trainer, default_root_dir=str(tmp_path), logger=False)
    assert trainer.gradient_clip_val == 12
    assert trainer.max_epochs == cfg.trainer.max_epochs


def test_callbacks_and_executors(config: Callable[..., DictConfig]) -> None:
    for option in options("callbacks"):
        for settings in config("train", f"callbacks={option}").callbacks.values():
            assert instantiate(settings) is not None
    for option in options("executor"):
        assert build_executor(config("train", f"executor={option}")) is not None


@pytest.mark.parametrize("option", options("logger"))
def test_loggers(config: Callable[..., DictConfig], option: str, tmp_path: Path) -> None:
    offline = ["logger.wandb.offline=true"] * (option == "wandb")
    cfg = config("train", f"logger={option}", "round=mo", f"paths.outputs={tmp_path}", *offline)
    for settings in cfg.logger.values():
        assert isinstance(instantiate(settings, save_dir=str(tmp_path)), Logger)


@pytest.mark.slow
def test_conf_needs_nothing_of_flare_imported_before() -> None:
    code = f"""
import sys
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
with initialize_config_dir({str(CONF)!r}, version_base="1.3"):
    cfg = compose("train", ["model=tiny"])
    for script in {SCRIPTS}:
        compose(script, ["experiment=demo"])
assert not [m for m in sys.modules if m.split(".")[0] in ("flare", "torch")]
print(type(instantiate(cfg.model.net)).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "UNet\n", done.stderr


def test_scripts_answer_without_heavy_imports() -> None:
    """`--cfg`, `--help` and a finished `make demo` end in seconds."""
    code = (
        "import sys\n"
        "import flare.cli, flare.core.cases, flare.rounds.graph, flare.runs.folders\n"
        "import flare.runs.journal, flare.runs.work\n"
        "print([m for m in ('torch', 'monai', 'torchio', 'matplotlib', 'pytorch_lightning', 'scipy') "
        "if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train", "iterate"])
def test_a_wrong_value_is_told_before_torch_is_imported(script: str) -> None:
    code = (
        "import atexit, sys\n"
        f"sys.argv = ['{script}', 'optimizer.lr=-1']\n"
        "heavy = ('torch', 'pytorch_lightning', 'monai', 'torchio', 'matplotlib')\n"
        "atexit.register(lambda: print([m for m in heavy if m in sys.modules]))\n"
        f"from flare.cli import {script}; {script}()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "[]\n"), done.stderr
    assert done.stderr.strip() == "optimizer.lr=-1: expected a number, 0 or more"


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in GROUPS for o in options(g)])
def test_files_say_what_they_are(group: str, option: str) -> None:
    """No resolver that computes, one level of inheritance at most."""
    text = (CONF / group / f"{option}.yaml").read_text()
    for word in ("eval", "now:"):
        assert f"${{{word}" not in text
    assert text.count("${oc.decode") == text.count("${oc.decode:${oc.env:")  # a number of the environment
    parents = OmegaConf.create(text).get("defaults", [])
    for parent in (p for p in parents if p != "_self_"):
        assert "defaults" not in OmegaConf.load(CONF / group / f"{parent}.yaml")
