from dataclasses import replace
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from flare.core.classes import ClassList
from flare.core.geometry import Geometry, Orientation, Volume
from flare.core.preprocessing import Intensity, normalise
from flare.data.cache import cache_image, read_preprocessed
from flare.inference.predictor import Predictor
from flare.inference.windows import find_body
from small_predictor import DENSE, PATCH, SPACING, predictor

RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)  # x to the right and y to the front, in LPS


def one_hot(patch):
    """Logits that say: the class is the intensity."""
    ids = torch.arange(15.0).reshape(1, 15, 1, 1, 1)
    return -((patch - ids) ** 2)


def volume(array, spacing_mm=SPACING, direction=RAS):
    return Volume(array, Geometry(array.shape, spacing_mm, (10.0, -20.0, 30.0), direction))


def average_maps(ours, array):
    """The averaged maps `(C, Z, Y, X)` of a normalised array on the network's grid, all of which is body."""
    blended = ours.average(ours.plan(array, None), array.shape).whole()
    return blended.of_volume(blended.values)


def classes(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 15, shape).astype(np.int16)


@pytest.mark.parametrize("shape", [(8, 16, 16), (3, 5, 7), (9, 40, 33), (21, 17, 50), (1, 16, 100)])
@pytest.mark.parametrize("tta", ["none", "tta4", "tta8"])
def test_an_identity_network_gives_the_volume_back(labels, shape, tta):
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    identity = predictor(lambda patch: patch, labels, replace(DENSE, tta=tta))
    np.testing.assert_allclose(average_maps(identity, array)[0], array, atol=2e-6)
    plus_one = predictor(lambda patch: patch + 1, labels, replace(DENSE, tta=tta))
    np.testing.assert_allclose(average_maps(plus_one, array)[0], array + 1, atol=2e-6)


@pytest.mark.parametrize("shape", [(8, 16, 16), (3, 5, 7), (9, 40, 33)])
@pytest.mark.parametrize("average", ["probabilities", "logits"])
@pytest.mark.parametrize("restore", ["trilinear", "nnunet", "nearest"])
def test_a_one_hot_network_gives_the_classes_back_exactly(labels, shape, average, restore):
    truth = classes(shape)
    settings = replace(DENSE, average=average, restore=restore, tta="tta4")
    prediction = predictor(one_hot, labels, settings, tuple(range(15))).predict(volume(truth))
    np.testing.assert_array_equal(prediction.segmentation, truth)
    assert prediction.segmentation.dtype == np.uint8


@pytest.mark.parametrize(("components", "islands"), [("none", 2), ("fitted", 2), ("organs", 1)])
def test_the_largest_component_of_each_organ_alone_is_kept_if_asked_for(labels, components, islands):
    truth = np.zeros((8, 16, 16), dtype=np.int16)
    truth[2:5, 2:6, 2:6], truth[2, 12, 12] = 1, 1
    truth[6, 2:4, 2], truth[6, 12, 12] = 14, 14  # tumors are never cleaned
    settings = replace(DENSE, components=components)
    found = predictor(one_hot, labels, settings, tuple(range(15))).predict(volume(truth)).segmentation
    assert found[2, 12, 12] == islands - 1
    assert ((found == 14) == (truth == 14)).all()


@pytest.mark.parametrize("shape", [(8, 16, 16), (5, 40, 33), (21, 17, 50)])
def test_dense_with_all_flips_is_nnunets_weighted_mean_of_logits(labels, shape):
    rng = np.random.default_rng(4)
    array = rng.normal(size=shape).astype(np.float32)
    weights = torch.tensor(rng.normal(size=(3, 1, 3, 3, 3)), dtype=torch.float32)

    def network(patch):
        return torch.nn.functional.conv3d(patch, weights, padding=1)

    widths = [max(0, width - size) for size, width in zip(shape, PATCH, strict=True)]
    padded = np.pad(array, [(width // 2, width - width // 2) for width in widths])
    impulse = np.zeros(PATCH)
    impulse[4, 8, 8] = 1
    gaussian = gaussian_filter(impulse, [1, 2, 2], mode="constant")
    gaussian[gaussian == 0] = gaussian[gaussian > 0].min()
    total, weight = np.zeros((3, *padded.shape)), np.zeros(padded.shape)
    steps = []
    for size, width in zip(padded.shape, PATCH, strict=True):
        count = int(np.ceil((size - width) / (width / 2))) + 1
        steps.append([int(np.round((size - width) / max(count - 1, 1) * i)) for i in range(count)])
    for z, y, x in product(*steps):
        window = (slice(z, z + 8), slice(y, y + 16), slice(x, x + 16))
        logits = np.zeros((3, *PATCH))
        for flipped in product((False, True), repeat=3):
            axes = [axis for axis in range(3) if flipped[axis]]
            patch = torch.from_numpy(np.flip(padded[window], axes).copy())[None, None]
            logits += np.flip(network(patch)[0].numpy(), [axis + 1 for axis in axes]) / 8
        total[(slice(None), *window)] += logits * gaussian
        weight[window] += gaussian
    inside = tuple(slice(width // 2, width // 2 + size) for size, width in zip(shape, widths, strict=True))
    ours = average_maps(predictor(network, labels, replace(DENSE, tta="tta8"), (0, 1, 2)), array)
    np.testing.assert_allclose(ours, (total / weight)[(slice(None), *inside)], atol=1e-5)


def test_probabilities_are_averaged_not_logits(labels):
    array = np.zeros((8, 16, 16), dtype=np.float32)
    answers = iter([torch.tensor([0.0, 4.0]), torch.tensor([0.0, -1.0])] * 2)

    def network(patch):
        return next(answers).reshape(1, 2, 1, 1, 1).expand(1, 2, *PATCH).clone()

    settings = replace(DENSE, tta="tta4")
    logits = average_maps(predictor(network, labels, settings, (0, 1), (0,)), array)
    assert logits[1].max() == pytest.approx((4 - 1) / 2)
    settings = replace(settings, average="probabilities")
    chances = average_maps(predictor(network, labels, settings, (0, 1), (0,)), array)
    assert chances[1].max() == pytest.approx((1 / (1 + np.exp(-4)) + 1 / (1 + np.exp(1))) / 2)


def test_output_channels_become_class_ids(labels):
    truth = np.zeros((8, 16, 16), dtype=np.int16)
    truth[2:5, 3:9, 4:12] = 1
    prediction = predictor(
        lambda patch: torch.cat([0.5 - patch, patch - 0.5], 1), labels, outputs=(0, 14)
    ).predict(volume(truth))
    np.testing.assert_array_equal(prediction.segmentation, truth * 14)


def test_padding_is_zero_after_normalisation(labels):
    seen = []

    def network(patch):
        seen.append(patch.clone())
        return patch

    intensity = Intensity(lower=-1000, upper=1000, mean=100, std=50)
    array = np.full((3, 5, 7), 200, dtype=np.int16)
    predictor(network, labels, intensity=intensity).predict(volume(array))
    expected = torch.zeros(1, 1, *PATCH)
    expected[:, :, 2:5, 5:10, 4:11] = 2  # (8 - 3) // 2, (16 - 5) // 2, (16 - 7) // 2
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("permutation", list(permutations(range(3))))
@pytest.mark.parametrize("flipped", [(False, False, True), (True, True, False)])
def test_any_voxel_order_gives_the_same_labels(labels, permutation, flipped):
    rng = np.random.default_rng(2)
    base = volume(rng.integers(0, 15, (11, 30, 26)).astype(np.int16), (3.0, 0.9, 1.1))
    order = Orientation(permutation, flipped)
    other = Volume(np.ascontiguousarray(order.apply(base.array)), order.apply_geometry(base.geometry))
    weights = torch.tensor(rng.normal(size=(4, 1, 3, 3, 3)), dtype=torch.float32)

    def network(patch):
        """Looks different from each side."""
        return torch.nn.functional.conv3d(patch, weights, padding=1)

    for restore in ("trilinear", "nnunet", "nearest"):
        settings = replace(DENSE, restore=restore, average="probabilities", tta="tta4")
        ours = predictor(network, labels, settings, (0, 1, 2, 3))
        expected = ours.predict(base).segmentation
        assert len(np.unique(expected)) > 1
        np.testing.assert_array_equal(ours.predict(other).segmentation, order.apply(expected))


@pytest.mark.parametrize("restore", ["trilinear", "nnunet", "nearest"])
def test_a_cached_case_is_segmented_as_its_file_to_the_bit(labels, tmp_path, restore):
    rng = np.random.default_rng(3)
    weights = torch.tensor(rng.normal(size=(4, 1, 3, 3, 3)), dtype=torch.float32)
    image = volume(rng.integers(-200, 300, (11, 26, 30)).astype(np.int16), (3.0, 0.9, 1.1))
    turned = Orientation((2, 0, 1), (True, False, True))
    image = Volume(np.ascontiguousarray(turned.apply(image.array)), turned.apply_geometry(image.geometry))
    cache_image(image, tmp_path / "a.b2nd", spacing_mm=SPACING, interpolation="linear", case_id="a")
    cached = read_preprocessed(tmp_path / "a.b2nd", SPACING, "linear")
    ours = predictor(
        lambda patch: torch.nn.functional.conv3d(patch, weights, padding=1),
        labels,
        replace(DENSE, restore=restore, tta="tta4"),
        (0, 1, 2, 3),
        intensity=Intensity(-150, 250, 20, 80),
    )
    expected, found = ours.predict(image, components=(1,)), ours.predict(cached, components=(1,))
    assert len(np.unique(expected.segmentation)) > 1
    np.testing.assert_array_equal(found.segmentation, expected.segmentation)
    assert found.segmentation.shape == image.array.shape
    assert list(found.seconds) == list(expected.seconds)
    assert (found.windows, found.uncovered_body_vox) == (expected.windows, expected.uncovered_body_vox)


@pytest.mark.parametrize(("chosen", "used"), [(None, "nnunet"), ("linear", "linear"), ("cubic", "cubic")])
def test_images_are_resampled_as_for_the_training_or_as_chosen(labels, chosen, used):
    carried = {
        "classes": labels.to_config(), "targets": "organs", "spacing_mm": SPACING, "interpolation": "nnunet",
        "intensity": Intensity(-150, 250, 20, 80).to_dict(), "patch_size": PATCH, "mirror_axes": (),
    }  # fmt: skip
    found = Predictor.from_carried(one_hot, carried, replace(DENSE, interpolation=chosen))
    assert found.interpolation == used
    assert found.settings.identity()["interpolation"] == chosen


def test_bands_outside_the_papers_windows_are_background_and_counted(labels):
    truth = np.ones((8, 16, 60), dtype=np.int16)  # x: 30 - 16 = 14 .. 46 is seen
    settings = replace(DENSE, name="paper", tta="none")
    prediction = predictor(one_hot, labels, settings, tuple(range(15))).predict(volume(truth))
    expected = np.zeros_like(truth)
    expected[:, :, 14:46] = 1
    np.testing.assert_array_equal(prediction.segmentation, expected)
    assert prediction.body_found
    assert prediction.windows == 3
    assert prediction.uncovered_body_vox == 8 * 16 * (60 - 32)
    everywhere = predictor(one_hot, labels, replace(settings, extend=True), tuple(range(15)))
    assert everywhere.predict(volume(truth)).uncovered_body_vox == 0


def test_fast_without_a_body_covers_all_and_says_so(labels):
    air = np.full((8, 40, 60), -1000, dtype=np.int16)
    settings = replace(DENSE, name="fast", centre="body", extend=True)
    ours = predictor(lambda patch: patch, labels, settings)
    shown = average_maps(ours, air.astype(np.float32))
    np.testing.assert_allclose(shown[0], -1000, rtol=1e-6)
    prediction = ours.predict(volume(air))
    assert not prediction.body_found
    assert prediction.uncovered_body_vox == 0


def test_fast_looks_at_fewer_windows_and_changes_no_body_voxel(labels):
    array = np.full((16, 80, 80), -1000, dtype=np.int16)
    array[:, 24:56, 30:62] = classes((16, 32, 32))
    outputs = tuple(range(15))
    dense = predictor(one_hot, labels, DENSE, outputs).predict(volume(array))
    settings = replace(DENSE, name="fast", centre="body", extend=True)
    fast = predictor(one_hot, labels, settings, outputs).predict(volume(array))
    assert fast.windows < dense.windows / 3
    np.testing.assert_array_equal(fast.segmentation, np.maximum(array, 0))
    assert fast.uncovered_body_vox == 0


def test_flare22_reports_what_it_left_out(labels):
    settings = replace(DENSE, name="flare22")
    truth = np.zeros((16, 16, 16), dtype=np.int16)
    truth[9:] = 1  # z starts 0, 4, 8: the first is empty, the second skipped with it, the third counts
    prediction = predictor(one_hot, labels, settings, tuple(range(15))).predict(volume(truth))
    assert prediction.windows == 2
    assert prediction.uncovered_body_vox == 8 * 16 * 16
    np.testing.assert_array_equal(prediction.segmentation, truth)


def test_flare22_knows_the_long_vessels_by_the_class_list(labels):
    settings = replace(DENSE, name="flare22")
    truth = np.zeros((8, 16, 32), dtype=np.int16)
    for organ, windows in (("aorta", 1), ("esophagus", 1), ("liver", 3)):
        truth[:] = labels.id_of(organ)
        assert (
            predictor(one_hot, labels, settings, tuple(range(15))).predict(volume(truth)).windows == windows
        )


def test_flare22_asks_for_tubes_and_not_for_how_classes_are_scored(labels, caplog):
    """Liver scored over a slice range is no tube; aorta scored as a whole is one."""
    settings = replace(DENSE, name="flare22")
    turned = ClassList(tuple(replace(c, slice_range=not c.slice_range) for c in labels.entries))
    for organ, windows in (("aorta", 1), ("liver", 3)):
        truth = np.full((8, 16, 32), labels.id_of(organ), dtype=np.int16)
        assert (
            predictor(one_hot, turned, settings, tuple(range(15))).predict(volume(truth)).windows == windows
        )
    assert not caplog.records
    # a list of before names no tube: every window is looked at, and a line says so
    plain = ClassList.from_config(
        {n: {k: v for k, v in c.items() if k != "tube"} for n, c in labels.to_config().items()}
    )
    truth = np.full((8, 16, 32), labels.id_of("aorta"), dtype=np.int16)
    assert predictor(one_hot, plain, settings, tuple(range(15))).predict(volume(truth)).windows == 3
    assert "none has tube=true" in caplog.text


def test_only_the_largest_component_of_the_named_classes_stays(labels):
    truth = np.zeros((8, 16, 16), dtype=np.int16)
    truth[:, :6, :6] = 1
    truth[:, 12:, 12:] = 1
    truth[0, 0, 15] = truth[3, 8, 8] = 2
    prediction = predictor(one_hot, labels, DENSE, tuple(range(15))).predict(volume(truth), components=(1,))
    truth[:, 12:, 12:] = 0
    np.testing.assert_array_equal(prediction.segmentation, truth)


def test_a_real_scan_in_any_voxel_order_gives_the_same_labels(labels, real_data):
    from flare.core.volumes import read_image

    scan = read_image(real_data / "abdomen_3mm" / "abdomen_0000.nii.gz")
    order = Orientation((1, 2, 0), (True, False, True))
    other = Volume(np.ascontiguousarray(order.apply(scan.array)), order.apply_geometry(scan.geometry))

    def network(patch):
        return torch.cat([-patch, patch, patch.roll(1, 2) - 0.3], 1)

    settings = replace(DENSE, name="fast", centre="body", extend=True, average="probabilities")
    intensity = Intensity(lower=-160, upper=240, mean=40, std=60)
    ours = predictor(network, labels, settings, (0, 1, 2), intensity=intensity, spacing_mm=(6.0, 4.0, 4.0))
    expected = ours.predict(scan)
    assert expected.body_found
    assert expected.segmentation.shape == scan.array.shape
    np.testing.assert_array_equal(ours.predict(other).segmentation, order.apply(expected.segmentation))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_labels(labels):
    truth = classes((9, 40, 33))
    prediction = predictor(one_hot, labels, replace(DENSE, precision="auto"), tuple(range(15))).predict(
        volume(truth)
    )
    np.testing.assert_array_equal(prediction.segmentation, truth)


def test_normalised_input_is_what_the_network_sees(labels):
    intensity = Intensity(lower=-100, upper=200, mean=50, std=25)
    array = np.random.default_rng(3).integers(-1000, 1000, PATCH).astype(np.int16)
    seen = []
    ours = predictor(lambda patch: seen.append(patch.clone()) or patch, labels, intensity=intensity)
    ours.predict(volume(array))
    np.testing.assert_array_equal(seen[0][0, 0].numpy(), normalise(array, intensity))


def sigmoid_network(patch):
    """Three classes by intensity, about a half in places; the background's output is nonsense."""
    first = patch / 40
    return torch.cat((torch.full_like(patch, 9), first, -first - 0.2, torch.full_like(patch, -0.1)), 1)


def test_sigmoid_outputs_are_cut_at_a_half_and_averaged_as_probabilities(labels):
    """Whatever is averaged over flips and windows; of two classes above it the larger counts."""
    values = np.random.default_rng(5).integers(-90, 91, (11, 30, 26)).astype(np.int16)
    image = volume(values)
    for average, tta in product(("probabilities", "logits"), ("none", "tta4")):
        settings = replace(DENSE, average=average, tta=tta)
        ours = replace(predictor(sigmoid_network, labels, settings, (0, 1, 2, 3)), activation="sigmoid")
        found = ours.predict(image, probabilities=True)
        p = np.stack(
            [1 / (1 + np.exp(-of)) for of in (values / 40, -values / 40 - 0.2, np.full(values.shape, -0.1))]
        )
        expected = np.where(p.max(0) > 0.5, 1 + p.argmax(0), 0)
        assert set(np.unique(expected)) == {0, 1, 2}
        np.testing.assert_array_equal(found.segmentation, expected)
        np.testing.assert_allclose(found.probabilities[1:], p, atol=1e-3)
        np.testing.assert_allclose(found.probabilities[0], 1 - p.max(0), atol=1e-3)


def test_a_checkpoint_says_of_what_its_outputs_are_logits(labels):
    carried = {
        "classes": labels.to_config(), "targets": "organs", "spacing_mm": SPACING, "interpolation": "linear",
        "intensity": Intensity(-150, 250, 20, 80).to_dict(), "patch_size": PATCH, "mirror_axes": (),
    }  # fmt: skip
    said = {None: "softmax", "none": "softmax", "marginal": "softmax", "masked": "sigmoid"}
    for value, activation in said.items():
        loss = {} if value is None else {"partial": value}
        found = Predictor.from_carried(one_hot, {**carried, "config": {"loss": loss}}, DENSE)
        assert found.activation == activation


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_confidence_lies_on_the_scans_own_grid_and_only_if_asked_for(labels, average):
    def network(patch):
        """The class is 3 with a probability that the intensity says."""
        logits = torch.zeros(1, 2, *patch.shape[2:])
        logits[:, 1] = patch[:, 0]
        return logits

    array = np.random.default_rng(0).choice([-3.0, -1.0, 1.0, 2.0], (8, 16, 16)).astype(np.float32)
    turned = np.ascontiguousarray(array[:, ::-1])
    scan = volume(turned, direction=(1, 0, 0, 0, -1, 0, 0, 0, 1))
    plain = replace(DENSE, average=average)
    build = partial(predictor, network, labels, outputs=(0, 3))
    found = build(settings=replace(plain, confidence=True)).predict(scan)
    np.testing.assert_array_equal(found.segmentation, np.where(turned > 0, 3, 0))
    np.testing.assert_allclose(found.confidence, 255 / (1 + np.exp(-np.abs(turned))), atol=1.0)
    without = build(settings=plain).predict(scan)
    assert without.confidence is None
    np.testing.assert_array_equal(without.segmentation, found.segmentation)
    air = volume(np.full((8, 16, 16), -1000, np.float32))
    assert (build(settings=replace(plain, confidence=True)).predict(air).confidence == 255).all()


def test_fast_sees_the_bodys_box_alone_and_a_window_at_least(labels, monkeypatch):
    """What lies beyond is neither normalised nor looked at, along z as well."""
    import flare.inference.predictor as module

    array = np.full((60, 50, 70), -1000, dtype=np.int16)
    array[20:45, 4:14, 30:66] = np.random.default_rng(1).integers(0, 200, (25, 10, 36))
    shapes = []
    monkeypatch.setattr(
        module, "normalise", lambda part, by: shapes.append(part.shape) or normalise(part, by)
    )

    def network(patch):
        return torch.cat([50 - patch, patch - 50], 1)

    settings = replace(DENSE, name="fast", centre="body", extend=True)
    found = predictor(network, labels, settings, (0, 1)).predict(volume(array))
    assert shapes == [(25, 16, 36)]
    # windows of 8 at steps of 4 at most: six along z; along x at 30, 32, 40, 48 and 50
    assert found.windows == 6 * 1 * 5
    np.testing.assert_array_equal(found.segmentation, array > 50)
    assert found.uncovered_body_vox == 0
    wide = np.zeros((6, 50, 70), np.int16)  # thinner than a window
    predictor(network, labels, settings, (0, 1)).predict(volume(wide))
    assert shapes[1:] == [wide.shape]


def test_dense_searches_for_a_body_only_where_there_may_be_none(labels, monkeypatch):
    import flare.inference.predictor as module

    calls = []
    monkeypatch.setattr(module, "find_body", lambda *given: calls.append(1) or find_body(*given))
    full, air = np.zeros((8, 16, 16), np.int16), np.full((8, 16, 16), -1000, np.int16)
    ours = predictor(one_hot, labels, DENSE, tuple(range(15)))
    assert ours.predict(volume(full)).body_found
    assert not calls
    found = ours.predict(volume(air), probabilities=(0, 3), low_resolution=True)
    assert (found.windows, found.body_found, len(calls)) == (0, False, 1)
    assert not found.segmentation.any()
    assert not found.low_resolution.array.any()
    assert (found.probabilities[0] == 1).all()
    assert not found.probabilities[1].any()
    predictor(one_hot, labels, replace(DENSE, name="paper"), tuple(range(15))).predict(volume(full))
    assert len(calls) == 2
