import math
import random

import numpy as np
import pytest
import torch

from persephonee.data_partitions.errors import DataSettingsError, NotEnoughUsersError, UserTooSmallError
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import choose_users, split_samples, split_users

USERS = [f"f{number:04d}" for number in range(3500)]


def user_of(labels: list[int], client_id: str = "f0001", fixed_test: torch.Tensor | None = None) -> UserSamples:
    # no two alike: identical images would share a part
    images = torch.randint(0, 256, (len(labels), 1, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return UserSamples(client_id=client_id, images=images, labels=torch.tensor(labels), fixed_test=fixed_test)


def random_labels(count: int, num_classes: int = 62, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(num_classes), k=count)


def test_the_paper_s_ratio_gives_250_of_3500_users():
    split = split_users(USERS, seed=0)
    assert (len(split.global_ids), len(split.personal_ids)) == (3250, 250)


def test_users_are_disjoint_and_complete():
    split = split_users(USERS, seed=3, personal_fraction=0.4)
    assert sorted(split.global_ids + split.personal_ids) == USERS


def test_the_order_of_the_users_does_not_matter():
    shuffled = random.Random(1).sample(USERS, len(USERS))
    assert split_users(shuffled, seed=5) == split_users(USERS, seed=5)


def test_another_seed_gives_another_split():
    assert split_users(USERS, seed=0) != split_users(USERS, seed=1)


def test_leaving_out_the_global_users_gives_the_same_personal_users():
    split = split_users(USERS, seed=0)
    again = split_users(USERS, seed=0, exclude=split.global_ids)
    assert again.personal_ids == split.personal_ids
    assert again.global_ids == ()


def test_excluded_users_are_on_neither_side():
    split = split_users(USERS, seed=0, exclude=USERS[:1000])
    assert not set(USERS[:1000]) & {*split.global_ids, *split.personal_ids}
    assert len(split.personal_ids) == 250


@pytest.mark.parametrize(("fraction", "personal"), [(0.0, 0), (1.0, 3), (0.01, 1), (0.99, 2)])
def test_a_fraction_strictly_between_leaves_someone_on_either_side(fraction: float, personal: int):
    assert len(split_users(["a", "b", "c"], seed=0, personal_fraction=fraction).personal_ids) == personal


@pytest.mark.parametrize("fraction", [-0.1, 1.1, math.nan])
def test_a_fraction_outside_0_and_1_is_refused(fraction: float):
    with pytest.raises(DataSettingsError, match=r"personal_fraction=.* \[0, 1\]"):
        split_users(USERS, seed=0, personal_fraction=fraction)
    for name in ("test_fraction", "calibration_fraction", "labels"):
        with pytest.raises(DataSettingsError, match=rf"{name}=.* \[0, 1\]"):
            SplitSettings(**{name: fraction})


def test_a_larger_choice_contains_a_smaller_one():
    few, many = choose_users(USERS, 10, seed=2), choose_users(USERS, 100, seed=2)
    assert set(few) < set(many)
    assert (len(few), len(many)) == (10, 100)


def test_chosen_users_are_not_excluded_ones():
    assert not set(choose_users(USERS, 500, seed=0, exclude=USERS[:2000])) & set(USERS[:2000])
    assert choose_users(USERS, None, seed=0, exclude=USERS[:2000]) == tuple(USERS[2000:])


def test_more_users_than_there_are_is_refused_with_both_numbers():
    with pytest.raises(NotEnoughUsersError, match="11 users were asked for and there are 10 beside the 3490"):
        choose_users(USERS, 11, seed=0, exclude=USERS[10:])


def test_it_is_said_when_no_user_is_left():
    with pytest.raises(NotEnoughUsersError, match="No user is left: all 3500"):
        choose_users(USERS, 1, seed=0, exclude=USERS)


def test_asking_for_no_user_is_refused():
    with pytest.raises(DataSettingsError, match="0 users"):
        choose_users(USERS, 0, seed=0)


@pytest.mark.parametrize(("total", "held_out"), [(20, 6), (100, 30), (159, 48), (160, 100), (400, 100)])
def test_100_samples_are_held_out_where_there_are_enough_and_a_fraction_otherwise(total: int, held_out: int):
    split = split_samples(user_of(random_labels(total)), SplitSettings(), seed=0)
    assert len(split.test) == held_out


@pytest.mark.parametrize("total", [20, 57, 227])
def test_the_three_parts_are_disjoint_and_complete(total: int):
    split = split_samples(user_of(random_labels(total)), SplitSettings(), seed=0)
    assert sorted(np.concatenate([split.train, split.calibration, split.test]).tolist()) == list(range(total))
    outside_test = total - len(split.test)
    assert len(split.calibration) == math.floor(0.25 * outside_test + 0.5)


@pytest.mark.parametrize("seed", range(20))
def test_every_class_has_its_fraction_of_the_test_part_to_within_one_sample(seed: int):
    labels = torch.tensor(random_labels(227, seed=seed))
    split = split_samples(user_of(labels.tolist()), SplitSettings(), seed=seed)
    for label in labels.unique():
        quota = 100 * int((labels == label).sum()) / 227
        assert abs(int((labels[split.test] == label).sum()) - quota) < 1


def test_a_lone_sample_of_a_class_is_held_out_as_often_as_any_other():
    labels = [0] * 39 + [1]
    settings = SplitSettings(test_fraction=0.3)
    held_out = [39 in split_samples(user_of(labels), settings, seed=seed).test for seed in range(1000)]
    # binomial(1000, 0.3): five standard deviations are 72
    assert abs(sum(held_out) - 300) < 72


def test_a_split_depends_on_seed_and_client_alone():
    labels = random_labels(120)
    first = split_samples(user_of(labels), SplitSettings(), seed=0)
    again = split_samples(user_of(labels), SplitSettings(), seed=0)
    assert all(np.array_equal(getattr(first, part), getattr(again, part)) for part in vars(first))
    assert not np.array_equal(first.test, split_samples(user_of(labels), SplitSettings(), seed=1).test)
    assert not np.array_equal(first.test, split_samples(user_of(labels, "f0002"), SplitSettings(), seed=0).test)


@pytest.mark.parametrize(("labels", "expected"), [(0.0, 0), (0.25, 32), (1.0, 127)])
def test_the_labelled_fraction_is_of_the_samples_outside_the_test_part(labels: float, expected: int):
    split = split_samples(user_of(random_labels(227)), SplitSettings(labels=labels), seed=0)
    assert int(split.labelled.sum()) == expected
    assert not split.labelled[split.test].any()


def test_a_larger_labelled_fraction_contains_a_smaller_one_and_moves_no_sample():
    samples = user_of(random_labels(227))
    few = split_samples(samples, SplitSettings(labels=0.25), seed=0)
    many = split_samples(samples, SplitSettings(labels=0.5), seed=0)
    assert bool((many.labelled | ~few.labelled).all())
    assert np.array_equal(few.train, many.train)


def test_a_fixed_test_part_is_taken_as_it_is():
    fixed = torch.zeros(60, dtype=torch.bool)
    fixed[50:] = True
    split = split_samples(user_of(random_labels(60), fixed_test=fixed), SplitSettings(), seed=0)
    assert split.test.tolist() == list(range(50, 60))
    assert (len(split.train), len(split.calibration)) == (37, 13)


def test_a_user_too_small_is_named_with_its_count():
    with pytest.raises(UserTooSmallError, match="User f0001 has 19 samples; at least 20 are needed") as caught:
        split_samples(user_of(random_labels(19)), SplitSettings(), seed=0)
    assert (caught.value.client_id, caught.value.num_samples) == ("f0001", 19)


def test_a_user_whose_samples_are_all_for_testing_is_too_small():
    fixed = torch.ones(30, dtype=torch.bool)
    with pytest.raises(UserTooSmallError, match="0 would train"):
        split_samples(user_of(random_labels(30), fixed_test=fixed), SplitSettings(), seed=0)
    with pytest.raises(UserTooSmallError, match="0 test"):
        split_samples(user_of(random_labels(30), fixed_test=~fixed), SplitSettings(), seed=0)


def test_a_user_with_one_sample_to_train_or_none_to_calibrate_is_too_small():
    fixed = torch.ones(20, dtype=torch.bool)
    fixed[:2] = False
    samples = user_of(random_labels(20), fixed_test=fixed)
    with pytest.raises(UserTooSmallError, match="1 would train, 1 calibrate and 18 test; 2 have to train"):
        split_samples(samples, SplitSettings(), seed=0)
    fixed[2] = False
    split = split_samples(user_of(random_labels(20), fixed_test=fixed), SplitSettings(), seed=0)
    assert (len(split.train), len(split.calibration), len(split.test)) == (2, 1, 17)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, math.nan])
def test_a_calibration_fraction_that_leaves_a_part_empty_is_refused(fraction):
    with pytest.raises(DataSettingsError, match=f"calibration_fraction={fraction}"):
        SplitSettings(calibration_fraction=fraction)


def test_settings_that_leave_nothing_to_train_on_are_refused():
    with pytest.raises(DataSettingsError, match="test_samples_from=100"):
        SplitSettings(test_samples_from=100)
    with pytest.raises(DataSettingsError, match="min_samples=-1"):
        SplitSettings(min_samples=-1)
