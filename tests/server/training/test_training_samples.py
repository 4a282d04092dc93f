import numpy as np
import pytest
import torch

from persephonee.server.errors import PretrainingError
from persephonee.server.training.training_samples import (
    SampleTable,
    augment,
    gather_samples,
    num_batches,
    training_batches,
)
from tests.tiny_cnn import TinyUsers


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_table_holds_the_users_samples_in_their_order():
    users = TinyUsers(users=5, samples=7)
    table = gather_samples(users, ["u03", "u01"])
    assert table.images.dtype == torch.uint8
    assert np.array_equal(table.images[:7], users.load_partition(3).images)
    assert np.array_equal(table.labels[7:], users.load_partition(1).labels)
    assert table.memory_bytes == 14 * (12 * 12 + 8)


def test_a_bounded_table_is_a_seeded_choice_of_the_samples():
    users = TinyUsers(users=5, samples=20)
    table = gather_samples(users, users.client_ids, max_samples=30, seed=1)
    again = gather_samples(users, users.client_ids, max_samples=30, seed=1)
    other = gather_samples(users, users.client_ids, max_samples=30, seed=2)
    assert len(table) == 30
    assert table.digest == again.digest != other.digest


def test_users_that_are_not_there_are_named():
    with pytest.raises(PretrainingError, match="tiny has no user u99"):
        gather_samples(TinyUsers(), ["u01", "u99"])
    with pytest.raises(PretrainingError, match="No user of tiny is left"):
        gather_samples(TinyUsers(), [])


def test_an_epoch_shows_no_sample_twice_and_only_whole_batches():
    table = SampleTable(
        images=torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 1, 4, 4).contiguous(),
        labels=torch.arange(10),
    )
    batches = list(training_batches(table, 4, "none", generator()))
    seen = torch.cat([labels for _, labels in batches])
    assert [len(labels) for _, labels in batches] == [4, 4] == [4] * num_batches(table, 4)
    assert len(seen.unique()) == 8
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images[:, 0, 0, 0], seen / 255)


def test_a_table_smaller_than_a_batch_is_one_batch():
    table = SampleTable(images=torch.zeros(3, 1, 4, 4, dtype=torch.uint8), labels=torch.arange(3))
    assert [len(labels) for _, labels in training_batches(table, 8, "none", generator())] == [3]


@pytest.mark.parametrize("kind", ["shift", "affine"])
def test_augmentation_keeps_the_paper_white_and_moves_the_ink(kind):
    images = torch.ones(16, 1, 28, 28)
    images[:, :, 10:18, 12:16] = 0
    moved = augment(images, kind, generator())
    assert moved.shape == images.shape
    assert torch.allclose(moved[:, :, 0], torch.ones(()), atol=1e-5)
    ink, ink_before = (1 - moved).sum(dim=(1, 2, 3)), (1 - images).sum(dim=(1, 2, 3))
    # an area changes by at most twice the scaling, and by the interpolation
    assert ((ink / ink_before - 1).abs() < 0.3).all()
    assert (moved != images).flatten(1).any(dim=1).all()
    assert torch.equal(moved, augment(images, kind, generator()))


def test_a_shift_moves_no_further_than_two_pixels_of_28():
    images = torch.ones(64, 1, 28, 28)
    images[:, :, 13:15, 13:15] = 0
    ink = 1 - augment(images, "shift", generator())
    rows = (ink.sum(dim=(1, 3)) * torch.arange(28)).sum(dim=1) / ink.sum(dim=(1, 2, 3))
    assert 0.5 < (rows - 13.5).abs().max() <= 2.0


def test_without_augmentation_images_stay_what_they_are():
    images = torch.rand(2, 1, 5, 5)
    assert augment(images, "none", generator()) is images
