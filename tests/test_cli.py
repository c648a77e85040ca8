"""Console commands: the same scripts in the checkout and in the wheel, and how they refuse."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from flare import cli

pytestmark = pytest.mark.slow

ROOT = cli.CONF.parent
COMMANDS = {f"flare-{script.replace('_', '-')}": script for script in cli.WORK}


def command(script: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a console command as its entry point does."""
    code = f"import sys; from flare.cli import {script}; sys.argv[0] = 'flare-{script}'; {script}()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


def test_every_script_is_a_command() -> None:
    found = {e.name: e for e in entry_points(group="console_scripts") if e.name in COMMANDS}
    assert set(found) == set(COMMANDS)
    for name, script in COMMANDS.items():
        assert found[name].load() is getattr(cli, script)
        assert (cli.CONF / f"{script}.yaml").is_file()


@pytest.mark.parametrize("script", list(cli.WORK))
def test_scripts_and_commands_do_the_same_work(script: str) -> None:
    module, function = cli.WORK[script]
    text = (ROOT / f"{script}.py").read_text()
    assert f"from {module} import {function}\n" in text
    assert f'config_name="{script}"' in text
    assert len(text.splitlines()) <= 60
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", list(cli.MODULES))
def test_a_module_has_a_configuration_and_leaves_no_folder(name: str) -> None:
    module, function = cli.MODULES[name]
    assert callable(getattr(importlib.import_module(module), function))
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        hydra = compose(name, return_hydra_config=True).hydra
    assert (hydra.run.dir, hydra.output_subdir) == (".", None)
    assert "file" not in hydra.job_logging.handlers


def test_a_command_works_in_any_folder(tmp_path: Path) -> None:
    arguments = ["round=mo1", "name=trial", "--cfg", "job", "--resolve"]
    found = command("train", *arguments, cwd=tmp_path)
    script = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert "run: outputs/trial" in found.stdout
    assert found.stdout == script.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("round=mo9", ["mo9", "mot3"]),
        ("model=huge", ["huge", "medium"]),
        ("sed=1", ["sed"]),
        ("inference.overlapp=0.5", ["overlapp"]),
    ],
)
def test_an_unknown_override_is_refused_with_the_choices(
    tmp_path: Path, override: str, shown: list[str]
) -> None:
    done = command("train", override, cwd=tmp_path)
    assert done.returncode == 1
    assert all(text in done.stderr for text in shown)
    assert "Traceback" not in done.stderr


def test_a_refusal_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = command("iterate", "rounds=[mot]", "name=trial", cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "teacher" in line]
    assert "`python train.py round=mo2 name=trial`" in line


@pytest.mark.slow
def test_the_wheel_brings_configuration_and_maps(tmp_path: Path) -> None:
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed: the wheel cannot be built offline")
    build = ["wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path), str(ROOT)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path / "site")
    conf = {f"flare/conf/{p.relative_to(cli.CONF)}" for p in cli.CONF.rglob("*.yaml")}
    maps = {f"flare/phantom/maps/{p.name}" for p in (ROOT / "src/flare/phantom/maps").glob("*.nii.gz")}
    assert len(conf) > 40
    assert len(maps) == 2
    files = [p for p in (ROOT / "src").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert conf | maps | {p.relative_to(ROOT / "src").as_posix() for p in files} <= names
    assert any(name.endswith("licenses/NOTICE") for name in names)
    assert not any(name.startswith("tests/") for name in names)
    # installed, it finds its own conf and nothing of the checkout
    done = command("train", "--info", "searchpath", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert str(tmp_path / "site" / "flare" / "conf") in done.stdout
    done = command("train", "round=mot3", "--cfg", "job", cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert "teacher: mot2" in done.stdout, done.stderr
