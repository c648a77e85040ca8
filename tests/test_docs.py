"""README and docs say what is true: commands compose; files, links, keys and choices exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from itertools import product
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import pages

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
COMMENTED = [path.relative_to(ROOT).as_posix() for path in sorted((CONF / "experiment").rglob("*.yaml"))]
SCRIPT = re.compile(r"(?:python|bin/python) (?:(\w+)\.py|-m flare\.(\w+))(?= |$|`)")
LISTED = ["logger=[csv,wandb,tensorboard,mlflow]", "data=phantom"]

Compose = Callable[..., DictConfig]


def lines(page: str) -> Iterator[str]:
    """Each line of code: of a block, of inline code, or of a configuration's comment; comments cut off."""
    text = (ROOT / page).read_text(encoding="utf-8")
    if page.endswith(".yaml"):
        yield from (line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("# "))
        return
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    yield from (line.partition(" #")[0].strip() for block in blocks for line in block.splitlines())
    yield from spans(page)


def spans(page: str) -> list[str]:
    """Inline code of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`]+)`", text)


def commands(page: str) -> list[str]:
    return [line for line in lines(page) if SCRIPT.search(line)]


def each(overrides: list[str]) -> Iterator[list[str]]:
    """What a sweep makes of its overrides."""
    parser = OverridesParser.create()
    values = []
    for text in overrides:
        override = parser.parse_override(text)
        if override.is_sweep_override() and not override.is_interval_sweep():
            values.append([f"{override.get_key_element()}={v}" for v in override.sweep_string_iterator()])
        else:
            values.append([text])
    return map(list, product(*values))


def test_the_commands_are_found() -> None:
    assert len(commands("README.md")) >= 4
    assert sum(len(commands(page)) for page in PAGES) >= 15
    found = "python -m flare.sweeps sweep=outputs/demo/multirun/<time>"
    assert found in lines("docs/ablations.md")
    assert [*each(["-a=1,2", "b=x"][1:]), *each(["round=mo,mt", "b=x"])] == [
        ["b=x"], ["round=mo", "b=x"], ["round=mt", "b=x"],
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, *COMMENTED])
def test_commands_compose(page: str, config: Compose, tmp_path: Path) -> None:
    pages.write_files(page, tmp_path)
    for line in commands(page):
        match = SCRIPT.search(line)
        assert match is not None
        script = match[1] or match[2]
        assert not match[1] or (ROOT / f"{script}.py").is_file(), line
        words = shlex.split(re.sub(r"<[^>]*>", "x", line[match.end() :]))
        if words[:1] == ["--config-dir"]:  # with files of the page's own
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose(script, [f"hydra.searchpath=[file://{tmp_path / words[1]}]", *words[2:]])
            OmegaConf.resolve(cfg)
            continue
        for overrides in each([word for word in words if word != "-m"]) if "-m" in words else [words]:
            cfg = config(script, *overrides)
            OmegaConf.resolve(cfg)


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_the_environment_is_active_before_the_first_command(page: str, tmp_path: Path) -> None:
    """`make` fills `.venv`, where a plain `python` finds nothing of it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    before = text[: re.search(r"^python ", text, re.MULTILINE).start()]  # type: ignore[union-attr]
    shown = re.findall(r"^\. \S+$", before, re.MULTILINE)
    assert shown == [". .venv/bin/activate"]
    if not (Path(sys.prefix) / "bin" / "activate").is_file():
        pytest.skip("these tests run in no environment of venv's")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    line = f"{shown[0]} && python -c 'import sys, flare; print(sys.prefix)'"
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).resolve() == Path(sys.prefix).resolve()


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        assert target.startswith("http") or (ROOT / page).parent.joinpath(target).exists(), target
    for word in (word for line in lines(page) for word in line.split()):
        if re.fullmatch(r"[\w./-]+\.py|(conf|tests|docs|src|benchmarks)/[\w./-]+", word):
            places = (ROOT / word, ROOT / "src" / "flare" / word)
            assert word in pages.files(page) or any(place.exists() for place in places), word


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page: str) -> None:
    for name in re.findall(r"\bflare(?:\.\w+)+", "\n".join(lines(page))):
        module, _, item = name.rpartition(".")
        if not (ROOT / "src" / Path(*name.split("."))).with_suffix(".py").exists():
            assert hasattr(import_module(module), item) or import_module(name), name


@cache
def defined(module: str) -> set[str]:
    """Names that a module of the package has, read without importing it."""
    path = ROOT / "src" / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    names = {inner.stem for inner in path.iterdir()} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


def test_benchmarks_import_what_the_package_has() -> None:
    found = 0
    for path in sorted((ROOT / "benchmarks").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flare"):
                missing = {alias.name for alias in node.names} - defined(str(node.module))
                assert not missing, f"{path.name}:{node.lineno}"
                found += 1
    assert found > 30


@pytest.mark.parametrize("page", PAGES)
def test_targets_of_make_and_extras_exist(page: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    for line in lines(page):
        for target in re.findall(r"(?:^|=\w+ )make ([a-z-]+)", line):
            assert f"\n{target}: " in makefile, line
        for extra in re.findall(r"flare\[(\w+)\]", line):
            assert f"\n{extra} = [" in project, line


@pytest.mark.parametrize("page", PAGES)
def test_choices_exist(page: str) -> None:
    for group, chosen in re.findall(r"(?:^|\s)(\w+)=([\w/,]+)(?=\s|$)", "\n".join(spans(page))):
        if (CONF / group).is_dir():
            for option in chosen.split(","):
                file = f"{group}/{option}.yaml"
                own = any(name.endswith(f"/{file}") for name in pages.files(page))
                assert own or (CONF / file).is_file(), f"{group}={option}"


@cache
def every_key() -> list[DictConfig]:
    """The configurations of all scripts and commands."""
    scripts = (
        "train",
        "infer",
        "merge_labels",
        "prepare",
        "evaluate",
        "iterate",
        "convert",
        "export",
        "plan",
        "plan_data",
        "sweeps",
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        others = compose("train", ["model=adapted", "executor=dask"])
        return [*(compose(s, LISTED if s != "sweeps" else []) for s in scripts), others]


@pytest.mark.parametrize("page", PAGES)
def test_keys_exist(page: str) -> None:
    known = {str(key) for cfg in every_key() for key in cfg} - {"input", "output"}
    for span in spans(page):
        for key in re.findall(r"(?:^|\s)(?:\+\+?)?(\w+(?:\.\w+)+)(?=[=:\s,]|$)", span):
            parts = key.split(".")
            if parts[0] in known and parts[-1] not in (
                "py",
                "csv",
                "json",
                "md",
                "tex",
                "png",
                "html",
                "ckpt",
            ):
                assert any(_has(cfg, parts) for cfg in every_key()), key


def _has(node: object, parts: list[str]) -> bool:
    """Whether a configuration has a key; what is null or missing may have any below it."""
    for part in parts:
        if node is None:
            return True
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = None if OmegaConf.is_missing(node, part) else node[part]
    return True
