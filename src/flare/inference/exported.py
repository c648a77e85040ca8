"""Exported networks: the files of three formats, what they carry for inference, and what runs them.

Beside the network a file holds one JSON document named `flare`: the entries of a checkpoint, `outputs` (class
id of each channel), `activation`, the hash of the checkpoint, and how far its numbers are from torch's. ONNX
has it in `metadata_props`, OpenVINO in `rt_info`, TorchScript among its extra files.
"""

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from flare.core.errors import FlareError
from flare.core.files import sha256
from flare.inference import runtimes
from flare.inference.engines import Engine, torch_engine
from flare.inference.fitted import stored_plan
from flare.inference.runtimes import choose_engine, require_engine, run_onnx, to_onnx
from flare.inference.settings import InferenceSettings
from flare.models.names import activation_of
from flare.runs.checkpoints import CARRIED, KEY, Checkpoint, checkpoint_of

TRUST = "torchscript"  # what `allow` names to run such files
WEIGHTS = "weights_sha256"  # of the second file of an OpenVINO model


def carried_by(checkpoint: Checkpoint) -> dict[str, Any]:
    """Give what an exported file carries, plain values; of the run's configuration what inference reads.

    The plan that was fitted to the checkpoint is part of it.
    """
    loss = {"partial": (checkpoint.config.get("loss") or {}).get("partial", "none")}
    found = {key: getattr(checkpoint, key) for key in CARRIED} | {"config": {"loss": loss}}
    own = {"outputs": checkpoint.outputs, "activation": activation_of(checkpoint.config)}
    fitted = {} if (plan := stored_plan(checkpoint)) is None else {"plan": plan}
    return {**found, **own, **fitted, "exported_from": checkpoint.sha256}


def _save_onnx(model: bytes, path: Path, carried: Mapping[str, Any]) -> None:
    import onnx

    content = onnx.load_from_string(model)
    onnx.helper.set_model_props(content, {KEY: json.dumps(carried)})
    onnx.save(content, str(path))


def _read_onnx(path: Path) -> str:
    import onnx

    content = onnx.load(str(path), load_external_data=False)
    return {entry.key: entry.value for entry in content.metadata_props}[KEY]


def _save_openvino(model: Any, path: Path, carried: Mapping[str, Any]) -> None:
    import openvino

    openvino.save_model(model, path, compress_to_fp16=False)
    # the weights lie in a second file: one of another network must not pass for it
    with_hash = {**carried, WEIGHTS: sha256(path.with_suffix(".bin"))}
    model.set_rt_info(json.dumps(with_hash), KEY)
    openvino.save_model(model, path, compress_to_fp16=False)


def _read_openvino(path: Path) -> str:
    text = str(runtimes.openvino_core().read_model(path).get_rt_info(KEY).value)
    weights = path.with_suffix(".bin")
    if json.loads(text).get(WEIGHTS) != sha256(weights):
        raise FlareError(f"checkpoint={path}: {weights.name} is of another network; copy both again")
    return text


def _to_torchscript(network: nn.Module, patches: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its age, and that shapes become constants
        return torch.jit.trace(network, patches)


def _save_torchscript(model: Any, path: Path, carried: Mapping[str, Any]) -> None:
    torch.jit.save(model, str(path), _extra_files={KEY: json.dumps(carried)})


def _read_torchscript(path: Path) -> str:
    with zipfile.ZipFile(path) as archive:  # `torch.jit.load` would load the code with it
        (name,) = [name for name in archive.namelist() if name.endswith(f"/extra/{KEY}")]
        return archive.read(name).decode()


class Format(NamedTuple):
    """How a format is written and read, and which engines run it, the usual one first."""

    suffix: str
    convert: Callable[[nn.Module, torch.Tensor], Any]
    save: Callable[[Any, Path, Mapping[str, Any]], None]
    read: Callable[[Path], str]
    engines: tuple[str, ...]


FORMATS = {
    "onnx": Format(".onnx", to_onnx, _save_onnx, _read_onnx, ("onnxruntime", "openvino", "tensorrt")),
    "openvino": Format(".xml", runtimes.to_openvino, _save_openvino, _read_openvino, ("openvino",)),
    "torchscript": Format(".pt", _to_torchscript, _save_torchscript, _read_torchscript, ("torch",)),
}


def format_of(path: Path) -> Format | None:
    """Tell by its name which format a file has; None for a checkpoint."""
    return next((kind for kind in FORMATS.values() if kind.suffix == path.suffix), None)


def read_exported(path: Path, kind: Format) -> Checkpoint:
    """Read what a file of ours carries, without the weights; others, and a missing package, are refused."""
    if not path.is_file():
        raise FlareError(f"checkpoint={path}: no such file")
    try:
        return checkpoint_of(path, json.loads(kind.read(path)), {})
    except FlareError:
        raise
    except ModuleNotFoundError as error:
        extra = runtimes.RUNTIMES[kind.engines[0]].extra
        raise FlareError(f"checkpoint={path}: needs {error.name}: pip install 'flare[{extra}]'") from None
    except Exception as error:  # each library raises its own
        said = " ".join(str(error).split())[:200]
        raise FlareError(f"checkpoint={path}: was not written by `python -m flare.export`: {said}") from None


def engine_for(path: Path, kind: Format, settings: InferenceSettings, device: torch.device) -> str:
    """Choose what runs an exported file: the engine asked for, or else what suits file, device and CPU.

    `torch`, the default, asks for nothing where the file is not torch's. Refused are an engine that does not
    run this file or not here, windows of another size than the patch, and a file whose code nobody allows.
    """
    name = settings.engine
    if settings.window not in (None, (1, 1, 1)):
        one = f"{path.name} takes patches of one size, that of the training"
        raise FlareError(f"inference.window={list(settings.window)}: {one}; expected null")
    if name not in (*kind.engines, "torch", "auto"):
        expected = " or ".join(kind.engines)
        raise FlareError(f"engine={name}: does not run {path.name}; expected {expected}")
    if name not in kind.engines:
        fast = choose_engine("auto", device)
        name = fast if fast in kind.engines else kind.engines[0]
    if name == "torch" and TRUST not in settings.networks:
        told = f"TorchScript is code, which would be run; allow=[{TRUST}] if you trust its origin"
        raise FlareError(f"checkpoint={path}: {told}")
    require_engine(name, settings.precision, device)
    return name


def open_exported(path: Path, kind: Format, settings: InferenceSettings, device: torch.device) -> Engine:
    """Make the engine of an exported file, see `engine_for`."""
    name = engine_for(path, kind, settings, device)
    if name != "torch":
        return run_onnx(path, name, device, settings.precision)
    network = torch.jit.load(str(path), map_location=device)
    return torch_engine(network, device=device, precision=settings.precision)
