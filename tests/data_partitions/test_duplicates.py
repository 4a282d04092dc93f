import logging

import numpy as np
import pytest
import torch

from persephonee.data_partitions.duplicates import first_of_same, near_duplicates
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 1, 16, 16), dtype=np.uint8)


def user(images: np.ndarray, **more) -> UserSamples:
    labels = np.random.default_rng(1).integers(0, 6, len(images))
    return UserSamples(client_id="ada", images=images, labels=labels, **more)


def parts_of(split) -> np.ndarray:
    parts = np.zeros(len(split.labelled), dtype=int)
    for number, part in enumerate((split.train, split.calibration, split.test)):
        parts[part] = number
    return parts


@pytest.mark.parametrize("seed", range(5))
def test_identical_images_share_a_part_and_the_parts_keep_their_sizes(seed):
    images = noise(60)
    order = np.random.default_rng(seed).permutation(240) % 60
    split = split_samples(user(images[order]), SplitSettings(), seed)
    parts = parts_of(split)
    assert all(len(set(parts[order == number])) == 1 for number in range(60))
    # 0.3 of 60 images test and a quarter of the other 42 calibrate, each four times
    assert [int((parts == part).sum()) for part in range(3)] == [4 * 31, 4 * 11, 4 * 18]


def test_a_nearest_neighbour_gains_nothing_from_copies_with_random_labels():
    """Noise with random labels cannot be learned: what remembers its training images is right by chance alone."""
    images = np.tile(noise(100), (4, 1, 1, 1))
    samples = user(images)
    split = split_samples(samples, SplitSettings(), 0)
    distances = torch.cdist(*(torch.from_numpy(images[part]).flatten(1).float() for part in (split.test, split.train)))
    answers = samples.labels[split.train][distances.argmin(dim=1).numpy()]
    # 120 tests with p = 1/6: three standard deviations are .1
    assert abs((answers == samples.labels[split.test]).mean() - 1 / 6) < 0.11


def test_a_copy_of_what_is_prescribed_for_testing_tests_too():
    images = noise(50)
    fixed = np.zeros(60, dtype=bool)
    fixed[:10] = True
    split = split_samples(user(np.concatenate([images, images[:10]]), fixed_test=fixed), SplitSettings(), 0)
    assert split.test.tolist() == [*range(10), *range(50, 60)]


def test_the_first_of_identical_images_stands_for_all():
    images = noise(3)[[0, 1, 0, 2, 1]]
    assert first_of_same(images).tolist() == [0, 1, 0, 3, 1]


def test_near_duplicates_across_parts_are_counted_and_named(caplog):
    images = noise(30)
    faint = np.minimum(images[:10].astype(int) + 1, 255).astype(np.uint8)
    everyone = np.concatenate([images, faint])
    tested, others = np.arange(30, 40), np.arange(30)
    assert near_duplicates(everyone, tested, others) == [(30 + index, index) for index in range(10)]
    assert near_duplicates(everyone, np.arange(20, 30), np.arange(20)) == []
    with caplog.at_level(logging.WARNING):
        split = split_samples(user(everyone), SplitSettings(), 0)
    parts = parts_of(split)
    pairs = [(index, index + 30) for index in range(10) if (parts[index] == 2) != (parts[index + 30] == 2)]
    assert pairs
    assert f"or calibrate: {len(pairs)} in all" in caplog.text
