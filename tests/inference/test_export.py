"""Exported networks: `infer.py` takes them as it takes the checkpoint, and what is refused."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from flare.core.errors import FlareError
from flare.core.files import sha256
from flare.core.volumes import read_image
from flare.inference import export as exporter
from flare.inference import exported
from flare.inference.export import artificial, compare, main, write_exported
from flare.inference.exported import FORMATS, read_exported
from flare.inference.predict import infer
from flare.inference.predictor import Predictor
from flare.models.zoo import load_network
from flare.runs.checkpoints import CARRIED, load_checkpoint
from tiny_round import write_case

pytestmark = pytest.mark.slow

CHECKPOINT = Path(__file__).parents[1] / "data" / "checkpoint_0_1.ckpt"
NEEDED = {"onnx": "onnxruntime", "openvino": "openvino", "torchscript": "torch"}
AGAINST = {"tta": "none", "precision": "32", "device": "cpu", "networks": (exported.TRUST,)}


@pytest.fixture(scope="module", params=list(FORMATS))
def made(request, tmp_path_factory) -> tuple[str, Path]:
    """The checkpoint in each format, written by the command."""
    from composed import composed

    pytest.importorskip(NEEDED[request.param])
    path = tmp_path_factory.mktemp(request.param) / f"net{FORMATS[request.param].suffix}"
    given = [f"checkpoint={CHECKPOINT}", f"format={request.param}", f"output={path}"]
    main(composed("export", *given))
    return request.param, path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    write_case(tmp_path, "held_out", 9, split="Val")
    return tmp_path / "imagesVal" / "held_out_0000.nii.gz"


def test_what_inference_needs_is_inside_and_nothing_of_the_training(made) -> None:
    kind, path = made
    carried = json.loads(FORMATS[kind].read(path))
    checkpoint = load_checkpoint(CHECKPOINT)
    for key in set(CARRIED) - {"config"}:
        assert carried[key] == json.loads(json.dumps(getattr(checkpoint, key))), key
    assert carried["config"] == {"loss": {"partial": "none"}}
    assert tuple(carried["outputs"]) == checkpoint.outputs
    assert (carried["activation"], carried["exported_from"]) == ("softmax", sha256(CHECKPOINT))
    assert 0 <= carried["check"]["max_difference"] <= 0.01
    assert carried["check"]["same_class"] > 0.999
    files = sorted(p.name for p in path.parent.iterdir())
    assert files == (["net.bin", "net.xml"] if kind == "openvino" else [path.name])
    assert read_exported(path, exported.format_of(path)).class_list == checkpoint.class_list
    assert read_exported(path, exported.format_of(path)).state_dict == {}


def test_infer_takes_it_as_the_checkpoint(made, config, scan: Path, tmp_path: Path) -> None:
    kind, path = made
    given = [f"input={scan}", "executor.workers=0", "inference.precision=32", "tta=none"]
    trust = ["allow=[torchscript]"] if kind == "torchscript" else []
    for name, checkpoint in (("ours", CHECKPOINT), ("theirs", path)):
        infer(config("infer", *given, *trust, f"output={tmp_path / name}", f"checkpoint={checkpoint}"))
    ours, theirs = (read_image(tmp_path / name / "held_out.nii.gz").array for name in ("ours", "theirs"))
    assert (ours != 0).sum() > 500
    assert np.mean(ours == theirs) > 0.9999
    classes = [(tmp_path / name / "classes.json").read_text() for name in ("ours", "theirs")]
    assert classes[0] == classes[1]


def test_other_engines_run_a_file_too(made, scan: Path) -> None:
    kind, path = made
    wanted = Predictor.from_checkpoint(CHECKPOINT, **AGAINST).predict(read_image(scan)).segmentation
    for engine in FORMATS[kind].engines:
        if engine == "tensorrt" or (engine == "openvino" and find_spec("openvino") is None):
            continue
        found = Predictor.from_checkpoint(path, **AGAINST, engine=engine).predict(read_image(scan))
        assert np.mean(found.segmentation == wanted) > 0.9999, engine
    with pytest.raises(
        FlareError, match=rf"^engine=outside.bright_engine: does not run {path.name}; expected"
    ):
        Predictor.from_checkpoint(path, **AGAINST, engine="outside.bright_engine")


def test_torchscript_is_not_run_unasked(config, scan: Path, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "net.pt"
    network, checkpoint = load_network(CHECKPOINT)
    write_exported(network, checkpoint, path, FORMATS["torchscript"], artificial(checkpoint), tolerance=0.01)

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch.jit, "load", loaded)
    given = [f"input={scan}", f"output={tmp_path / 'out'}", f"checkpoint={path}"]
    with pytest.raises(FlareError, match=r"TorchScript is code, .* allow=\[torchscript\] if you trust"):
        infer(config("infer", *given))
    assert not (tmp_path / "out").exists()
    with pytest.raises(FlareError, match="TorchScript is code"):
        Predictor.from_checkpoint(path)


class Shifted(torch.nn.Module):
    """What a wrong conversion gives: one logit off in one voxel."""

    def __init__(self, network: torch.nn.Module, by: float) -> None:
        super().__init__()
        self.network, self.by = network, by

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits = self.network(image)
        logits[0, 3, 1, 2, 3] += self.by
        return logits


@pytest.mark.parametrize("by", [0.5, float("nan")])
def test_a_network_that_converts_to_other_numbers_is_not_written(tmp_path: Path, monkeypatch, by) -> None:
    network, checkpoint = load_network(CHECKPOINT)
    patches = artificial(checkpoint)
    found = compare(network, Shifted(network, 0.5), patches[:1])
    assert found["max_difference"] == pytest.approx(0.5, abs=1e-4)
    assert found["same_class"] >= 1 - 1 / patches[0].numel()
    kind = FORMATS["torchscript"]
    wrong = kind._replace(convert=lambda net, patch: kind.convert(Shifted(net, by), patch))
    with pytest.raises(
        FlareError, match=r"^tolerance=0.01: logits differ from torch's by (0.5|nan) .* is written$"
    ):
        write_exported(network, checkpoint, tmp_path / "net.pt", wrong, patches, tolerance=0.01)
    assert list(tmp_path.iterdir()) == []


def test_patches_of_scans_are_what_the_network_would_see(scan: Path, monkeypatch) -> None:
    checkpoint = load_checkpoint(CHECKPOINT)
    found = exporter.patches_of(checkpoint, scan.parent)
    assert 1 <= len(found) <= exporter.SCANS * exporter.PATCHES
    seen: list[torch.Tensor] = []

    def engine(patches: torch.Tensor) -> torch.Tensor:
        seen.append(patches.clone())
        return torch.zeros(1, len(checkpoint.outputs), *patches.shape[2:])

    how = exporter.InferenceSettings(name="fast", centre="body", extend=True, tta="none", device="cpu")
    Predictor.from_carried(engine, vars(checkpoint), how).predict(read_image(scan))
    assert all(any(torch.equal(patch, window) for window in seen) for patch in found)
    monkeypatch.setattr(exporter, "PATCHES", 1)
    assert [torch.equal(patch, seen[0]) for patch in exporter.patches_of(checkpoint, scan.parent)] == [True]
    assert len({patch.numpy().tobytes() for patch in found}) == len(found)
    with pytest.raises(FlareError, match="holds no scan"):
        exporter.patches_of(checkpoint, CHECKPOINT.parent)


def test_artificial_patches_span_the_intensities_of_training() -> None:
    checkpoint = load_checkpoint(CHECKPOINT)
    patches = torch.cat(artificial(checkpoint))
    assert tuple(patches.shape[1:]) == (1, *checkpoint.patch_size)
    hu = patches * checkpoint.intensity["std"] + checkpoint.intensity["mean"]
    low, high = checkpoint.intensity["lower"], checkpoint.intensity["upper"]
    assert hu.min() >= low - 0.01
    assert hu.max() <= high + 0.01
    assert hu.max() - hu.min() > 0.8 * (high - low)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["format=coreml"], "^format=coreml: expected one of onnx, openvino, torchscript$"),
        (["format=onnx", "output=x.xml"], "expected a name in .onnx for format=onnx$"),
        (["int8=true"], "^int8=true: expected format=openvino, and scans="),
        (["int8=true", "format=onnx", "output=x.onnx", "scans=a"], "^int8=true: expected format=openvino"),
        (["tolerance=0"], "^tolerance=0: expected"),
        (["checkpoint=null"], "^checkpoint: not given"),
    ],
)
def test_a_bad_export_is_refused(config, tmp_path: Path, monkeypatch, overrides, message) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FlareError, match=message):
        main(config("export", f"checkpoint={CHECKPOINT}", "output=x.xml", *overrides))
    assert list(tmp_path.iterdir()) == []


def test_a_package_that_is_missing_is_named(config, tmp_path: Path, monkeypatch) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("no", name="openvino")

    kind = FORMATS["openvino"]._replace(convert=missing, read=missing)
    monkeypatch.setitem(FORMATS, "openvino", kind)
    path = tmp_path / "x.xml"
    with pytest.raises(FlareError, match=r"needs openvino: pip install 'flare\[openvino,onnx\]'"):
        main(config("export", f"checkpoint={CHECKPOINT}", f"output={path}"))
    path.write_text("<net/>")
    with pytest.raises(FlareError, match=r"x.xml: needs openvino: pip install 'flare\[openvino\]'"):
        read_exported(path, exported.format_of(path))


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path, kind: str) -> None:
    pytest.importorskip(NEEDED[kind])
    path = tmp_path / f"net{FORMATS[kind].suffix}"
    with pytest.raises(FlareError, match="no such file"):
        read_exported(path, exported.format_of(path))
    shutil.copy(CHECKPOINT, path)
    with pytest.raises(
        FlareError, match=f"^checkpoint={path}: was not written by `python -m flare.export`: "
    ):
        read_exported(path, exported.format_of(path))


def test_weights_of_another_network_beside_the_graph_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    network, checkpoint = load_network(CHECKPOINT)
    kind, patches = FORMATS["openvino"], artificial(checkpoint)
    for name in ("a", "b"):
        write_exported(network, checkpoint, tmp_path / f"{name}.xml", kind, patches, tolerance=0.01)
        with torch.no_grad():
            for weights in network.parameters():
                weights.mul_(1.01)
    read_exported(tmp_path / "a.xml", exported.format_of(tmp_path / "a.xml"))
    shutil.copy(tmp_path / "b.bin", tmp_path / "a.bin")
    with pytest.raises(FlareError, match=r"a.xml: a.bin is of another network"):
        read_exported(tmp_path / "a.xml", exported.format_of(tmp_path / "a.xml"))
    (tmp_path / "a.bin").unlink()
    with pytest.raises(FlareError, match=r"a.xml: "):
        read_exported(tmp_path / "a.xml", exported.format_of(tmp_path / "a.xml"))


def test_int8_is_calibrated_on_scans_and_says_what_it_loses(config, scan: Path, tmp_path: Path) -> None:
    pytest.importorskip("nncf")
    given = [f"checkpoint={CHECKPOINT}", f"scans={scan.parent}", "int8=true"]
    with pytest.raises(FlareError, match=r"^tolerance=0.0001: logits"):
        main(config("export", *given, f"output={tmp_path / 'no.xml'}", "tolerance=0.0001"))
    path = tmp_path / "small.xml"
    found = main(config("export", *given, f"output={path}", "tolerance=100"))
    assert found["max_difference"] > 0.0001
    assert json.loads(FORMATS["openvino"].read(path))["check"] == found | {"int8": True}
    assert "FakeQuantize" in path.read_text()
    predicted = Predictor.from_checkpoint(path, **AGAINST).predict(read_image(scan)).segmentation
    wanted = Predictor.from_checkpoint(CHECKPOINT, **AGAINST).predict(read_image(scan)).segmentation
    assert np.mean(predicted == wanted) > 0.95
