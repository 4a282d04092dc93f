"""Images of another kind, and what a check makes of them, on users made by hand."""

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.familiar_images import FamiliarImages, image_statistics
from persephonee.data_partitions.samples import UserSamples
from persephonee.experiments.risk.checks import OWN, table_of
from persephonee.experiments.risk.exit_outputs import Answered
from persephonee.experiments.risk.experiment import _fraction
from persephonee.experiments.risk.fractions import stopped
from persephonee.experiments.risk.prepared import Judged
from persephonee.experiments.risk.unfamiliar import KINDS, NO_CLASS, unfamiliar_images


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 140, (50, 1, 8, 8), dtype=np.uint8)


def kinds_of(images: np.ndarray, letters: np.ndarray | None = None):
    labels = np.arange(len(images)) % 3
    stranger = UserSamples(client_id="other", images=images[::-1].copy(), labels=labels[::-1].copy())
    return unfamiliar_images(images, labels, stranger, letters), labels


def test_every_kind_has_images_of_the_same_shape_and_the_labels_that_hold_for_them(images):
    found, labels = kinds_of(images)
    assert tuple(found) == KINDS
    assert all(of.shape == images.shape and of.dtype == np.uint8 for of, _ in found.values())
    np.testing.assert_array_equal(found["inverted"][0], 255 - images)
    np.testing.assert_array_equal(found["noisy"][1], labels)
    halves, none = found["other_classes"]
    np.testing.assert_array_equal(halves[1, :, :, :4], images[1, :, :, :4])
    np.testing.assert_array_equal(halves[1, :, :, 4:], images[0, :, :, 4:])
    assert (none == NO_CLASS).all()
    assert len(kinds_of(images, letters=images[:7])[0]["other_classes"][1]) == 7


def test_no_early_exit_is_confident_of_an_image_that_the_check_stops_and_nobody_is_right_about_no_class(images):
    familiar = FamiliarImages.of(image_statistics(images), 0.02)
    shown = np.concatenate([images[:1], 255 - images[:1] // 4])
    logits = np.zeros((3, 2, 4), dtype=np.float32)
    logits[:, :, 1] = 9
    answered = Answered(logits=logits, labels=np.array([1, NO_CLASS]), statistics=image_statistics(shown))
    judged = Judged.of(answered, familiar)
    assert (judged.checked[:-1, 1] == 0).all() and judged.checked[-1, 1] > 0.9
    np.testing.assert_array_equal(judged.checked[:, 0], judged.confidences[:, 0])
    assert judged.correct[:, 0].all() and not judged.correct[:, 1].any()


def test_what_is_stopped_is_a_mean_over_users_and_the_worst_user_is_named(images):
    own = image_statistics(images)
    strange = image_statistics(255 - images // 4)
    users = [(own, {OWN: own, **dict.fromkeys(KINDS, strange)}), (own, {OWN: strange, **dict.fromkeys(KINDS, strange)})]
    means, worst = stopped(users, 0.02)
    assert worst == 1 and means["noisy"] == 1 and 0.5 <= means[OWN] < 0.6


def test_the_checks_are_compared_at_the_same_fraction_of_all_users_own_images():
    own = np.arange(100.0)
    user = {"made up": {OWN: own, **dict.fromkeys(KINDS, np.array([-1.0, 50.0]))}}
    other = {"made up": {OWN: own + 100, **dict.fromkeys(KINDS, np.array([-1.0, 50.0]))}}
    [(check, worst, share)] = table_of([user, other])
    # 2 % of 200 images lie below the bound, all of them of the first user
    assert (check, worst, share["noisy"]) == ("made up", 0.04, 0.5)


def test_labels_are_all_none_or_a_fraction():
    assert [_fraction(labels) for labels in ("all", "none", "0.25")] == [1.0, 0.0, 0.25]
    with pytest.raises(ClientSettingsError, match="all, none, or a number"):
        _fraction("some")
