"""The command that proposes spacing, patch, network and batch size for a cohort, by the rules of nnU-Net."""

import logging
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flare.core.class_files import own_classes
from flare.core.classes import ClassList
from flare.core.errors import CONF, FLAG, PACKAGED, POSITIVE, FlareError, check_values, given_paths
from flare.core.files import write_text
from flare.core.geometry import AXES
from flare.core.paths import require_writable, settle_paths
from flare.prepare import planning
from flare.prepare.cohort import read_headers
from flare.prepare.planning import Plan, plan_cohort
from flare.runs.work import report_failures

log = logging.getLogger(__name__)
# keys that are not repeated for the scripts that take a plan
OWN = ("gpu_memory_gb", "output", "overwrite", "round")
TEMPLATES = Path(__file__).with_name("templates")  # of the files, filled by `to_text`


def main(cfg: DictConfig) -> Plan:
    """Plan as `conf/plan_data.yaml` and the command line say; write the plan and say how to take it.

    A cohort with nothing to plan from and a plan over another are refused, and refused cases at the end.
    """
    settle_paths(cfg)
    check_values(cfg, {"gpu_memory_gb": POSITIVE, "overwrite": FLAG})
    (output,) = given_paths(cfg, "output")
    require_writable("output", output)
    cfg = own_classes(cfg)
    headers, failures = read_headers(cfg)
    if not headers:
        report_failures(failures, "no training case is left, so nothing can be planned")
        raise FlareError("data.labeled_images: no training case, so nothing can be planned")
    outputs = len(ClassList.from_config(cfg.classes).ids) + 1
    plan = plan_cohort(headers, outputs=outputs, memory_gb=cfg.gpu_memory_gb)
    cohort = re.sub(r"\W+", "_", str(cfg.data.name), flags=re.ASCII)  # needs no quotes on a command line
    write_plan(output, plan, cohort=cohort, memory_gb=cfg.gpu_memory_gb, overwrite=cfg.overwrite)
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    for script in ("train", "iterate"):
        log.info(command(script, output, cohort, overrides))
    report_failures(failures, "plan_data")
    return plan


def write_plan(output: Path, plan: Plan, *, cohort: str, memory_gb: float, overwrite: bool) -> None:
    """Write a plan as a preset of `experiment` and the `model` that it takes, and show what it says.

    Nothing is written where one of the files is another already and may not be overwritten: that is refused.
    """
    given = to_text(plan) | {"cohort": cohort, "memory_gb": memory_gb}
    texts = {}
    for group in ("model", "experiment"):
        template = (TEMPLATES / f"{group}.yaml").read_text(encoding="utf-8")
        texts[output / group / f"{cohort}_plan.yaml"] = template.format_map(given)
    for path, text in texts.items():
        if not overwrite and path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise FlareError(
                f"output: {path} is another plan, or was changed; overwrite=true replaces it, or choose "
                "another output=<folder>"
            )
    for path, text in texts.items():
        write_text(path, text)
        log.info("wrote %s", path)
    for line in texts[output / "experiment" / f"{cohort}_plan.yaml"].splitlines():
        if "   # " in line:
            log.info(line.strip())


def to_text(plan: Plan) -> dict[str, Any]:
    """What the files say of a plan, with where each number comes from."""
    topology, stages = plan.topology, len(plan.topology.strides)
    why = "the medians"
    if plan.coarse_axis is not None:
        axis = AXES[plan.coarse_axis]
        why += (
            f", and along {axis} the {planning.LOW_PERCENTILE}th percentile: {axis} is over "
            f"{planning.ANISOTROPY} times coarser and shorter than the others"
        )
    given = (plan.median_shape, topology.divisors, topology.patch_size, plan.spacing_mm)
    shape, divisors, patch, spacing = (" x ".join(f"{n:g}" for n in numbers) for numbers in given)
    batch = f"{planning.MOST_COVERED:.0%} of the cohort's voxels, {planning.MIN_BATCH} at least"
    if plan.batch_size == plan.by_memory:
        batch = "what the memory holds"
    return {
        "plan": plan,
        "planning": planning,  # its numbers
        "spacing": [round(step, 6) for step in plan.spacing_mm],
        "spacing_told": spacing,
        "why_spacing": why,
        "patch": list(topology.patch_size),
        "patch_told": patch,
        "why_patch": f"as much of the median case, {shape} voxels, as memory holds; multiples of {divisors}",
        "why_batch": batch,
        "in_plane": str(plan.in_plane).lower(),
        "features": list(topology.features),
        "strides": [list(stride) for stride in topology.strides],
        "kernels": [list(kernel) for kernel in topology.kernels],
        "upward": [list(kernel) for kernel in topology.kernels[: stages - 1]],
    }


def command(script: str, output: Path, cohort: str, overrides: Sequence[str]) -> str:
    """The command line of a script that takes a plan, for the cohort that `overrides` chose."""
    program = [f"flare-{script}"] if CONF == PACKAGED else ["python", f"{script}.py"]
    given = [o.lstrip("+~").partition("=") for o in overrides]
    earlier = [value.strip("[]") for key, _, value in given if key == "experiment" and value != "null"]
    presets = ",".join([*earlier, f"{cohort}_plan"])  # the last one counts
    chosen = f"experiment=[{presets}]" if earlier else f"experiment={presets}"
    own = [o for o, (key, *_) in zip(overrides, given, strict=True) if key not in (*OWN, "experiment")]
    return shlex.join([*program, "--config-dir", str(output), chosen, *own])
