import pytest
import torch

from flare.inference.engines import average_over_flips, flips


def test_each_variant_has_exactly_its_maps():
    assert flips("none", (0, 1, 2)) == ((),)
    assert flips("tta4", (0, 1, 2)) == ((), (0,), (1,), (2,))
    assert flips("tta8", (0, 1, 2)) == ((), (0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2))


def test_axes_that_were_not_mirrored_in_training_are_left_out():
    assert flips("tta4", (2, 1)) == ((), (1,), (2,))
    assert flips("tta8", (1, 2)) == ((), (1,), (2,), (1, 2))
    assert flips("tta8", ()) == flips("tta4", ()) == ((),)


@pytest.mark.parametrize("variant", ["none", "tta4", "tta8"])
def test_an_identity_network_gives_the_patch_back_and_keeps_it(variant):
    patch = torch.arange(24.0).reshape(1, 1, 2, 3, 4)
    before = patch.clone()
    averaged = average_over_flips(lambda flipped: flipped, patch, flips(variant, (0, 1, 2)))
    assert torch.equal(averaged, before)
    assert torch.equal(patch, before)


def test_four_maps_are_divided_by_four():
    patch = torch.zeros(1, 1, 2, 2, 2)
    patch[0, 0, 0, 0, 0] = 1

    def corner(flipped):
        """Answers 1 in the first voxel of what it is shown, whatever that is."""
        return torch.zeros_like(flipped).index_fill_(2, torch.tensor([0]), 1.0)

    averaged = average_over_flips(corner, patch, flips("tta4", (0, 1, 2)))
    # the identity and the flips of y and x answer in the first slice, the flip of z in the last
    assert torch.equal(averaged[0, 0, 0], torch.full((2, 2), 0.75))
    assert torch.equal(averaged[0, 0, 1], torch.full((2, 2), 0.25))
