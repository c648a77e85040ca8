"""A trained network from its checkpoint, which names a class but cannot run code."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from hydra.utils import get_class
from torch import nn

from flare.core.errors import FlareError
from flare.models.names import named_targets
from flare.models.zoo import build
from flare.runs.checkpoints import Checkpoint, load_checkpoint

NETWORKS = ("flare.models.", "monai.networks.nets.")


def build_network(checkpoint: Checkpoint, allow: Collection[str] = ()) -> nn.Module:
    """Build the checkpoint's network with its weights, in `eval()` mode.

    Its `model.net` may name our networks, MONAI's, and what `allow` lists.

    Raises:
        FlareError: If the config names anything else, or the weights do not fit.
    """
    where = f"checkpoint={checkpoint.path}"
    net = checkpoint.config["model"]["net"]
    for name in named_targets(net):
        if name not in allow:
            _check_network_class(str(name), where)
    if "${" in str(net):
        raise FlareError(f"{where}: its model.net has interpolations; expected plain values")
    try:
        network = build(net, classes=checkpoint.classes, targets=checkpoint.targets)
    except FlareError as error:
        raise FlareError(f"{where}: {error}") from None
    try:
        network.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise FlareError(f"{where}: weights do not fit its model.net: {reason}") from None
    return network.eval()


def _check_network_class(target: str, where: str) -> None:
    """Refuse what is no class of our networks or MONAI's, before it is imported."""
    try:
        found = get_class(target) if target.startswith(NETWORKS) else None
    except Exception as error:  # whatever an import may raise
        reason = " ".join(str(error).split())[:200]
        raise FlareError(f"{where}: cannot build {target!r}: {reason}") from None
    # a class that such a module imports from elsewhere has that name too
    if found is None or not issubclass(found, nn.Module) or not found.__module__.startswith(NETWORKS):
        raise FlareError(
            f"{where}: refuses to build {target!r}; expected a network of {NETWORKS}, "
            f"or allow=[{target}] if you trust it"
        )


def load_network(path: Path, allow: Collection[str] = ()) -> tuple[nn.Module, Checkpoint]:
    """Read a checkpoint and build its network, see `build_network`."""
    checkpoint = load_checkpoint(path)
    return build_network(checkpoint, allow), checkpoint
