import dataclasses

import numpy as np
import pytest
import torch

from persephonee.data_partitions import known_parts
from persephonee.data_partitions.errors import UserTooSmallError
from persephonee.data_partitions.known_parts import KnownParts
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import SampleSplit, split_samples

PARTS = ("train", "calibration", "test")


def user_of(first: int, stop: int, copies: int = 1) -> UserSamples:
    """Return a user whose images are the numbers from `first` to `stop`, each of them in so many copies."""
    numbers = torch.arange(first, stop).repeat_interleave(copies)
    pixels = torch.stack([numbers // 256, numbers % 256], dim=1).to(torch.uint8)
    return UserSamples(client_id="ada", images=pixels.view(-1, 1, 1, 2), labels=numbers % 7)


def numbers(samples: UserSamples, split: SampleSplit, part: str) -> set[int]:
    return {256 * int(high) + int(low) for high, low in samples.images[getattr(split, part)].reshape(-1, 2)}


def after(samples: UserSamples, split: SampleSplit, known: KnownParts | None = None) -> KnownParts:
    found = (known or KnownParts()).after(samples.images, split.train, split.calibration, split.test)
    return KnownParts.from_text(found.to_text())


@pytest.mark.parametrize(
    ("samples", "settings", "seed"),
    [
        (user_of(0, 200), SplitSettings(), 1),
        (user_of(0, 201), SplitSettings(), 0),
        (user_of(0, 400), SplitSettings(), 0),
        (user_of(100, 300), SplitSettings(), 0),
        (user_of(0, 200), SplitSettings(test_samples=50, calibration_fraction=0.5), 0),
    ],
    ids=["another seed", "a sample more", "twice as many", "half of them new", "other sizes"],
)
def test_a_later_round_leaves_each_known_sample_in_its_part(samples, settings, seed):
    early = user_of(0, 200)
    first = split_samples(early, SplitSettings(), seed=0)
    # without the memory the parts would mix, or this tests nothing
    forgetful = split_samples(samples, settings, seed)
    assert numbers(samples, forgetful, "test") & numbers(early, first, "train")
    second = split_samples(samples, settings, seed, after(early, first))
    there = {n for part in PARTS for n in numbers(samples, second, part)}
    for part in PARTS:
        assert numbers(early, first, part) & there <= numbers(samples, second, part)
    assert sorted(np.concatenate([second.train, second.calibration, second.test]).tolist()) == list(range(len(samples)))
    assert not second.labelled[second.test].any()
    assert int(second.labelled.sum()) == len(samples) - len(second.test)


def test_new_samples_are_drawn_as_in_a_first_round():
    early, later = user_of(0, 200), user_of(0, 400)
    second = split_samples(later, SplitSettings(), 0, after(early, split_samples(early, SplitSettings(), 0)))
    drawn = split_samples(later, SplitSettings(), 0)
    for part in PARTS:
        new, expected = (numbers(later, split, part) - set(range(200)) for split in (second, drawn))
        assert new == expected and new


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("labels", [1.0, 0.4])
def test_the_same_round_again_is_the_same_split_also_with_copies_of_images(copies, labels):
    samples, settings = user_of(0, 100, copies), SplitSettings(labels=labels)
    first = split_samples(samples, settings, 3)
    again = split_samples(samples, settings, 3, after(samples, first))
    for part in (*PARTS, "labelled"):
        assert np.array_equal(getattr(first, part), getattr(again, part))
    assert not numbers(samples, first, "train") & numbers(samples, first, "test")


def test_copies_that_an_older_version_put_into_two_parts_no_longer_test():
    samples = user_of(0, 100, copies=2)
    first = np.arange(0, 200, 2)
    # each image trained by its first copy, and half of them tested by their second
    known = KnownParts().after(samples.images, first, np.array([1]), first[50:] + 1)
    later = user_of(0, 120, copies=2)
    assert not numbers(later, split_samples(later, SplitSettings(), 0, known), "test") & set(range(100))


def test_copies_of_an_image_that_trained_are_not_tested_on_when_a_user_is_divided_anew():
    samples = user_of(0, 100, copies=2)
    first = split_samples(samples, SplitSettings(), 0)
    second = split_samples(samples, SplitSettings(), 1, after(samples, first))
    assert numbers(samples, first, "train") <= numbers(samples, second, "train")
    assert not numbers(samples, second, "test") & (
        numbers(samples, first, "train") | numbers(samples, first, "calibration")
    )


def test_what_a_data_set_prescribes_for_testing_is_not_tested_on_once_it_trained():
    samples = user_of(0, 100)
    first = split_samples(samples, SplitSettings(), 0)
    fixed = torch.zeros(100, dtype=torch.bool)
    fixed[:50] = True
    prescribed = dataclasses.replace(samples, fixed_test=fixed)
    second = split_samples(prescribed, SplitSettings(), 0, after(samples, first))
    assert numbers(samples, second, "test") == numbers(samples, first, "test")


def test_a_round_that_is_left_without_a_part_is_refused_as_a_user_too_small():
    early = user_of(0, 100)
    known = after(early, split_samples(early, SplitSettings(), 0))
    train = sorted(numbers(early, split_samples(early, SplitSettings(), 0), "train"))
    left = dataclasses.replace(early, images=early.images[train], labels=early.labels[train])
    with pytest.raises(UserTooSmallError, match="52 would train, 0 calibrate and 0 test; 2 have to train, and no part"):
        split_samples(left, SplitSettings(), 0, known)


def test_what_came_before_stays_known_and_only_the_oldest_is_forgotten(monkeypatch):
    first, second = user_of(0, 40), user_of(40, 80)
    known = after(first, split_samples(first, SplitSettings(), 0))
    both = after(second, split_samples(second, SplitSettings(), 0), known)
    assert len(known.to_text()) < 40 * 11 and len(both) == 80
    again = split_samples(first, SplitSettings(), 1, both)
    assert numbers(first, again, "test") == numbers(first, split_samples(first, SplitSettings(), 0), "test")
    monkeypatch.setattr(known_parts, "MOST_REMEMBERED", 60)
    assert len(after(second, split_samples(second, SplitSettings(), 0), known)) == 60
    monkeypatch.setattr(known_parts, "MOST_REMEMBERED", 30)
    # what a round is about is remembered whole
    assert len(after(second, split_samples(second, SplitSettings(), 0), known)) == 40


@pytest.mark.parametrize("text", ["no base64!", "QUJD"])
def test_a_damaged_memory_is_refused(text):
    with pytest.raises(ValueError, match=r"base64|multiple"):
        KnownParts.from_text(text)
