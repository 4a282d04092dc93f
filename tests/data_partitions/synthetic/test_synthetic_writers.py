import numpy as np
import pytest
import torch

from persephonee.data_partitions.errors import DataSettingsError
from persephonee.data_partitions.synthetic.glyphs import CLASS_NAMES, FAMILIES, choose_forms, forms_of
from persephonee.data_partitions.synthetic.rasteriser import draw
from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters, write


def test_a_writer_depends_on_seed_and_number_alone():
    few, many = SyntheticWriters(num_writers=3, seed=1), SyntheticWriters(num_writers=30, seed=1)
    many.load_partition(20)
    first, again = few.load_partition(2), many.load_partition(2)
    assert first.client_id == again.client_id
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    other = SyntheticWriters(num_writers=3, seed=2).load_partition(2)
    assert other.client_id != first.client_id
    assert not np.array_equal(other.images[:10], first.images[:10])


def test_sample_counts_follow_leaf_s():
    counts = np.asarray(SyntheticWriters().counts)
    assert len(counts) == 3550
    # five standard errors of the mean of 3,550 writers are 7.5
    assert abs(counts.mean() - 226.8) < 7.5
    assert abs(counts.std() - 88.9) < 5
    histogram = np.histogram(counts, bins=np.arange(0, 500, 20))[0]
    assert histogram[8] > 2 * histogram[13] < 2 * histogram[17] / 2


def test_half_of_the_samples_are_digits_and_every_class_occurs():
    writers = SyntheticWriters(num_writers=20)
    labels = np.concatenate([writers.load_partition(index).labels for index in range(20)])
    assert abs(float((labels < 10).mean()) - 0.5) < 0.05
    assert len(np.unique(labels)) == 62


def test_paper_is_white_and_characters_stay_on_it():
    images = SyntheticWriters(num_writers=5).load_partition(0).images
    assert images.dtype == np.uint8
    edge = np.concatenate([images[:, 0, 0], images[:, 0, -1], images[:, 0, :, 0], images[:, 0, :, -1]], axis=1)
    assert (edge == 255).mean() > 0.98
    assert (images.min(axis=(1, 2, 3)) < 100).all()
    assert 0.02 < float((images < 128).mean()) < 0.3


def test_the_same_writer_s_sample_is_the_nearest_far_more_often_than_chance():
    writers, labels = SyntheticWriters(num_writers=12), np.repeat(np.arange(62), 2)
    drawn = [write(writers.hand(index), labels, np.random.default_rng(index)) for index in range(12)]
    samples = torch.from_numpy(np.stack(drawn)).float().reshape(12, 62, 2, -1)
    # for each character, distances between the writers' first samples and their second ones
    distances = torch.cdist(samples[:, :, 0].transpose(0, 1), samples[:, :, 1].transpose(0, 1))
    found = (distances.argmin(dim=2) == torch.arange(12)).float().mean()
    assert found > 4 / 12


def test_look_alikes_of_one_hand_take_one_of_the_listed_combinations():
    for seed in range(50):
        forms = choose_forms(np.random.default_rng(seed))
        for family in FAMILIES:
            combinations = [dict(entry.split(":") for entry in combination.split()) for combination in family]
            assert any(all(forms[c] in names.split("/") for c, names in one.items()) for one in combinations), family


def test_no_hand_writes_the_same_bare_stroke_for_two_of_1_i_and_l():
    for seed in range(100):
        forms = choose_forms(np.random.default_rng(seed))
        assert [forms[character] for character in "1Il"].count("bare") <= 1


def test_a_shape_stands_for_different_characters_in_different_hands():
    bare = {
        character
        for seed in range(60)
        for character in "1Il"
        if choose_forms(np.random.default_rng(seed))[character] == "bare"
    }
    assert bare == {"1", "I", "l"}


def test_every_family_names_forms_that_exist():
    for combination in (entry for family in FAMILIES for one in family for entry in one.split()):
        character, names = combination.split(":")
        assert set(names.split("/")) <= set(forms_of(character))


def test_every_character_has_forms_whose_curves_join_up():
    for character in CLASS_NAMES:
        for form in forms_of(character).values():
            assert form.pieces.min() >= 0
            assert form.pieces.max() < len(form.points)
            assert (form.pieces[:, 2] == form.pieces[:, 1] + 1).all()


def test_another_hand_is_the_same_person_writing_differently():
    writers = SyntheticWriters(num_writers=2)
    usual, changed = writers.load_partition(1), writers.writer_changes_hand(1, hand=1)
    assert (usual.client_id, usual.domain) == (changed.client_id, None)
    assert changed.domain == "hand=1"
    assert writers.hand(1, 1) != writers.hand(1, 0)
    assert np.array_equal(writers.writer_changes_hand(1, hand=0).images, usual.images)
    assert len(writers.writer_changes_hand(1, hand=1, count=7)) == 7
    assert len(writers.writer_changes_hand(1, hand=1, count=0)) == 0


def test_a_stroke_is_as_wide_as_its_radius_says():
    points = np.asarray([[4.5, 14.5], [24.5, 14.5]], dtype=np.float32)
    pieces, zero = np.asarray([[0, 0, 1, 1]]), np.zeros((1, 3), dtype=np.float32)
    for radius in (0.5, 1.0, 2.25):
        image = draw(points, pieces, np.zeros(1, dtype=np.int64), np.asarray([radius], np.float32), 0.5, zero)[0]
        # dabs lie 0.45 px apart, so that a thin line's edge is scalloped by up to a tenth of a pixel on either side
        assert abs(image[:, 8:20].sum(axis=0).mean() - 2 * radius) < 0.15


def test_points_beyond_the_paper_leave_no_ink():
    points = np.asarray([[100.0, 100.0], [200.0, -300.0]], dtype=np.float32)
    image = draw(
        points,
        np.asarray([[0, 0, 1, 1]]),
        np.zeros(1, np.int64),
        np.ones(1, np.float32),
        0.5,
        np.zeros((1, 3), np.float32),
    )
    assert image.shape == (1, 28, 28)
    assert image.sum() == 0


@pytest.mark.parametrize("settings", [{"num_writers": 0}, {"num_writers": 3551}, {"seed": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(DataSettingsError):
        SyntheticWriters(**settings)
