"""Networks: ours, and those of others (MONAI's, the user's) adapted like them; fresh or from a checkpoint."""

import copy
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from flare.core.classes import TARGETS, ClassList
from flare.core.errors import FlareError, build_part
from flare.models.names import named_targets
from flare.models.unet import UNet, check_patch_size
from flare.runs.checkpoints import Checkpoint, load_checkpoint

Config = Mapping[str, Any]
OWN = "flare.models."
NORMS = [getattr(torch.ops.aten, f"native_{kind}_norm") for kind in ("batch", "group", "layer")]
NETWORKS = (OWN, "monai.networks.nets.")  # that a checkpoint may name


class Adapted(nn.Module):
    """A network that is told its number of outputs; they are background, then the trained classes.

    `eval()` gives the logits alone, `train()` a list of them, highest resolution first, as `UNet` does. The
    network itself may give a tensor, a list or tuple of them, or in training a stack `(B, N, C, Z, Y, X)`
    (MONAI's DynUNet); what is no network is refused.

    `network` is its configuration, `_target_` and arguments; classes and targets are as in `UNet`. Of those
    arguments `outputs_as` takes the number of outputs; None if others fix it, for example `classes`.
    """

    def __init__(
        self, classes: Mapping[str, Config], targets: str, *, network: Config, outputs_as: str | None
    ) -> None:
        super().__init__()
        self.classes = ClassList.from_config(classes)
        self.targets = targets
        self.settings = dict(network)
        self.outputs_as = outputs_as
        self.network = self._make(len(self.classes.outputs(targets)), targets)

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment a batch of patches `(B, 1, Z, Y, X)`, see the class."""
        outputs = _as_list(self.network(image))
        return outputs if self.training else outputs[0]

    def head_axes(self) -> dict[str, int]:
        """Find the weights that have a row for each class: those that another number of classes resizes.

        One is refused of which that number resizes an axis that is not one row a class.
        """
        count = self._count(self.targets)
        other = next((t for t in TARGETS if self._count(t) not in (0, count)), self.targets)
        with torch.device("meta"):
            resized = self._make(count + 1, other).state_dict()
        axes = {}
        for key, weights in self.network.state_dict().items():
            pairs = zip(weights.shape, resized[key].shape, strict=True)
            changed = [axis for axis, (here, there) in enumerate(pairs) if here != there]
            if changed:
                axes[f"network.{key}"] = changed[0]
                if len(changed) > 1 or weights.shape[changed[0]] != count:
                    raise FlareError(f"round.init=teacher: rows of {key} are not the classes; expected fresh")
        return axes

    def _count(self, targets: str) -> int:
        """Number of outputs, 0 if the class list has none of these classes."""
        try:
            return len(self.classes.outputs(targets))
        except FlareError:
            return 0

    def _make(self, count: int, targets: str) -> nn.Module:
        """Make the network with `count` outputs, or for these targets if it counts them itself."""
        own = {"targets": targets} if "targets" in self.settings else {}
        given: dict[str, Any] = own if self.outputs_as is None else {self.outputs_as: count}
        try:
            return make(self.settings, **given)
        except FlareError:
            if torch.get_default_device().type != "meta":
                raise
        with torch.device("cpu"):  # some networks compute with values while they are made
            return make(self.settings, **given).to("meta")


def make(net: Config, **given: Any) -> nn.Module:
    """Instantiate a network from its configuration and further arguments; refuse what is none."""
    network = build_part(net, "model.net", _convert_="all", **given)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise FlareError(f"model.net._target_={net['_target_']}: gives a {kind}, expected a network")
    return network


def build(net: Config, *, classes: Mapping[str, Config], targets: str) -> nn.Module:
    """Build a round's network (`model.net`) with fresh weights; one that is not ours is adapted."""
    if str(net.get("_target_")).startswith(OWN):
        return make(net, classes=classes, targets=targets)
    return Adapted(classes, targets, network=net, outputs_as=None)


def build_network(checkpoint: Checkpoint, allow: Collection[str] = ()) -> nn.Module:
    """Build the checkpoint's network with its weights, in `eval()` mode.

    Refused are names other than our networks', MONAI's and those in `allow`, and weights that do not fit.
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
        network.load_state_dict(checkpoint.state_dict)
    except FlareError as error:
        raise FlareError(f"{where}: {error}") from None
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
        expected = f"a network of {NETWORKS}, or allow=[{target}] if you trust it"
        raise FlareError(f"{where}: refuses to build {target!r}; expected {expected}")


def load_network(path: Path, allow: Collection[str] = ()) -> tuple[nn.Module, Checkpoint]:
    """Read a checkpoint and build its network, see `build_network`."""
    checkpoint = load_checkpoint(path)
    return build_network(checkpoint, allow), checkpoint


def check_network(network: nn.Module, *, batch_size: int, patch_size: Sequence[int], outputs: int) -> None:
    """Refuse a network that does not give logits of `outputs` classes for a patch of this size, with the key.

    It may be on the meta device; values of its weights are not used.
    """
    if isinstance(network, UNet):
        check_patch_size(patch_size, network.divisors)
        return
    shape = (batch_size, 1, *patch_size)
    try:
        trained, _ = _try(network, shape, "meta")
    except FlareError:
        raise
    except Exception:  # some networks compute with values and cannot run on the meta device
        try:
            trained, _ = _try(network, shape, "cpu")
        except Exception as error:
            reason = f"{tuple(patch_size)} does not fit model.net: {' '.join(str(error).split())[:200]}"
            raise FlareError(f"data.patch_size: {reason}") from None
    expected = (batch_size, outputs, *patch_size)
    sizes = [tuple(logits.shape) for logits in trained]
    if sizes[0] != expected or any(size[:2] != expected[:2] for size in sizes):
        told = f"gives {sizes}, expected {expected} first and as many classes in each"
        hint = "told by model.net.outputs_as, see conf/model/adapted.yaml"
        raise FlareError(f"model.net: {told}; a network that takes their number is {hint}")


def count_network(make: Callable[[], nn.Module], patch_size: Sequence[int]) -> dict[str, float]:
    """Count, on the meta device, parameters (M) and operations (G) of a patch `(1, 1, Z, Y, X)`, all heads.

    Multiply-adds are of convolutions and matrix products. The paper's figures (Tables 2 and 3) have five more
    for each normalised element, as fvcore counts. What cannot run there is not counted.
    """
    kinds = [*NORMS, *(kind.default for kind in NORMS)]  # which keeps them from being taken apart
    norms = dict.fromkeys(kinds, lambda shape, *_, **__: 2 * 5 * math.prod(shape))  # torch counts two a pair
    counter = FlopCounterMode(display=False, custom_mapping=norms)
    with suppress(Exception), torch.device("meta"), counter:  # networks of others may need values
        network = make().train()
        network(torch.empty(1, 1, *patch_size))
        whole, by_kind = counter.get_total_flops(), counter.get_flop_counts()["Global"]
        counts = {"parameters_m": sum(p.numel() for p in network.parameters()) / 1e6}
        counts["multiply_adds_g"] = (whole - sum(by_kind.get(kind, 0) for kind in NORMS)) / 2e9
        return {k: round(n, 2) for k, n in counts.items()} | {"with_norms_g": round(whole / 2e9, 2)}
    return {}


def head_axes(network: nn.Module) -> dict[str, int]:
    """Find the entries of a network's state that have a row for each class, and the axis of the rows."""
    if isinstance(network, Adapted):
        return network.head_axes()
    return {key: 0 for key in network.state_dict() if key.startswith("heads.")}


def unsupervised(
    network: nn.Module, patch_size: Sequence[int], weights: Callable[[int], Sequence[float]]
) -> list[nn.Parameter]:
    """Find the parameters that no loss reaches, such as heads of resolutions of weight 0.

    `weights` are those of so many resolutions, highest first. None is found if it cannot run without values.
    """
    try:
        outputs, followed = _try(network, (2, 1, *patch_size), "meta")
        counted = zip(outputs, weights(len(outputs)), strict=True)
        sum(logits.sum() for logits, weight in counted if weight > 0).backward()  # type: ignore[union-attr]
    except FlareError:
        raise
    except Exception:  # whatever a network of others may raise on the meta device
        return []
    pairs = zip(network.parameters(), followed.parameters(), strict=True)
    return [parameter for parameter, twin in pairs if twin.grad is None]


def depths_under_kernel(network: nn.Module, patch_size: Sequence[int], *, kernel: int) -> frozenset[int]:
    """Find the depths, in slices, of all feature maps that a convolution of `kernel` slices reads.

    The forward pass in `train()` mode computes shapes only. It meets every convolution: encoder, decoder,
    heads, transposed ones, and those that are called as functions.
    """
    with _Convolutions(kernel) as seen:
        _try(network, (2, 1, *patch_size), "meta")
    return frozenset(seen.depths)


class _Convolutions(TorchDispatchMode):
    """Notes the depth of the input of each 3D convolution of a given size along Z."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.kernel, self.depths = kernel, set[int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten.convolution.default:
            image, weight = args[:2]
            if image.ndim == 5 and weight.shape[2] == self.kernel:
                self.depths.add(int(image.shape[2]))
        return func(*args, **(kwargs or {}))


def _try(network: nn.Module, shape: Sequence[int], device: str) -> tuple[list[Tensor], nn.Module]:
    """Run a copy of a network, in `train()` mode and with empty weights, on an empty batch."""
    twins: dict[int, Any] = {id(b): torch.zeros_like(b, device=device) for b in network.buffers()}
    for p in network.parameters():
        twins[id(p)] = nn.Parameter(torch.zeros_like(p, device=device), requires_grad=p.requires_grad)
    twin = copy.deepcopy(network, twins).train()
    with torch.random.fork_rng(devices=[]):
        return _as_list(twin(torch.zeros(tuple(shape), device=device))), twin


def _as_list(outputs: Any) -> list[Tensor]:
    """List the logits of each resolution, highest first, from any form in which networks give them."""
    if isinstance(outputs, Tensor):
        return list(outputs.unbind(1)) if outputs.ndim == 6 else [outputs]
    if isinstance(outputs, list | tuple) and outputs and all(isinstance(o, Tensor) for o in outputs):
        return list(outputs)
    raise FlareError(f"model.net: gives a {type(outputs).__name__}, expected logits or a list of them")
