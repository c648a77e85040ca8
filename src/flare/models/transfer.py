"""Start a round from its teacher's weights: the same architecture, head rows by class."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flare.checkpoints import Checkpoint
from flare.errors import FlareError
from flare.labels import LabelSet
from flare.models.zoo import head_axes


def start_from_teacher(network: nn.Module, teacher: Checkpoint, *, labels: LabelSet, targets: str) -> None:
    """Copy a teacher's weights into a network of the same architecture, in place.

    A head has one row a class; the rows of classes that the teacher does not know keep their fresh
    initialisation.

    Args:
        network: Freshly initialised.
        teacher: Checkpoint of the round's teacher.
        labels: The class list of the new round.
        targets: What the new round trains.

    Raises:
        FlareError: If architecture or class list are others.
    """
    check_teacher(network, teacher, labels=labels, targets=targets)
    outputs = labels.outputs(targets)
    pairs = [(outputs.index(c), teacher.outputs.index(c)) for c in outputs if c in teacher.outputs]
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    axes = head_axes(network)
    with torch.no_grad():
        for key, weights in network.state_dict().items():
            if key in axes:
                rows = teacher.state_dict[key].movedim(axes[key], 0)[theirs]
                weights.movedim(axes[key], 0)[ours] = rows.to(weights)
            else:
                weights.copy_(teacher.state_dict[key])


def check_teacher(network: nn.Module, teacher: Checkpoint, *, labels: LabelSet, targets: str) -> None:
    """Refuse a teacher whose weights cannot be copied; heads may differ in their number of classes.

    Args:
        network: Of the new round; its weights are not looked at and may be on the meta device.
        teacher: Checkpoint of the round's teacher.
        labels: The class list of the new round.
        targets: What the new round trains.

    Raises:
        FlareError: If it has other layers, or another name for an id that both train.
    """
    check_architecture(network, teacher.state_dict, str(teacher.path))
    for class_id in set(labels.outputs(targets)[1:]) & set(teacher.outputs):
        name, theirs_name = labels.name_of(class_id), teacher.labels.name_of(class_id)
        if name != theirs_name:
            raise FlareError(
                f"round.init=teacher: class {class_id} is {theirs_name} in {teacher.path}, {name} in classes"
            )


def check_architecture(network: nn.Module, state: dict[str, Tensor], teacher: str) -> None:
    """Refuse weights of other layers; heads may differ in their number of classes.

    Args:
        network: Of the new round.
        state: The teacher's weights; they, too, may be on the meta device.
        teacher: What the teacher is called.

    Raises:
        FlareError: Naming the first layer that differs.
    """
    axes = head_axes(network)
    ours, theirs = _shapes(network.state_dict(), axes), _shapes(state, axes)
    different = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if different:
        key = different[0]
        raise FlareError(
            f"round.init=teacher: {teacher} has another architecture ({key} is {theirs.get(key)}, the "
            f"model's is {ours.get(key)}); choose the teacher's model or round.init=fresh"
        )


def _shapes(state: dict[str, Tensor], axes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, of a head without its classes."""
    return {k: tuple(n for axis, n in enumerate(w.shape) if axis != axes.get(k)) for k, w in state.items()}
