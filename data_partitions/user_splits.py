"""Who trains the global model and who personalises it, and a user's train, calibration and test parts.

The paper (Sec. 4.1) trains on 3,250 FEMNIST writers, personalises 250 others, and holds out 100 images of each.
"""

import logging
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.duplicates import first_of_same, near_duplicates
from persephonee.data_partitions.errors import DataSettingsError, NotEnoughUsersError, UserTooSmallError
from persephonee.data_partitions.known_parts import CALIBRATION, TEST, TRAIN, KnownParts
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.seeds import digest_of, numpy_generator
from persephonee.data_partitions.settings import PAPER_PERSONAL_FRACTION, SplitSettings, check_fraction

logger = logging.getLogger(__name__)

LEAST_TRAIN = 2
"""BatchNorm in training takes no batch of one sample."""


@dataclass(frozen=True, kw_only=True)
class UserSplit:
    """Disjoint users, each tuple sorted."""

    global_ids: tuple[str, ...]
    """Users whose data may train the global model."""

    personal_ids: tuple[str, ...]
    """Users who personalise it; the global model never sees their data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SampleSplit:
    """Which of a user's N samples serve what; train, calibration and test are disjoint and together all N."""

    train: NDArray[np.int64]
    """int64 indices, sorted."""

    calibration: NDArray[np.int64]
    """int64 indices, sorted."""

    test: NDArray[np.int64]
    """int64 indices, sorted."""

    labelled: NDArray[np.bool_]
    """bool, shape [N]: whose label the device may use; False in the test part, whose labels serve evaluation only."""

    def __post_init__(self) -> None:
        for name in ("train", "calibration", "test", "labelled"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))

    @property
    def judged(self) -> NDArray[np.int64]:
        """int64 indices of the samples on which exits are judged: the calibration part, and then the test part."""
        return np.concatenate([self.calibration, self.test])


def split_users(
    client_ids: Iterable[str],
    seed: int,
    personal_fraction: float = PAPER_PERSONAL_FRACTION,
    exclude: Collection[str] = (),
) -> UserSplit:
    """Divide users into global and personal ones, whatever order they come in.

    Args:
        client_ids: natural ids of all users.
        seed: another seed gives another division.
        personal_fraction: fraction of all users who personalise, in [0, 1]; 250/3500 in the paper.
        exclude: users who may be neither, such as those that a model was trained on. Their number does not
            change how many are personal, so leaving out the global users gives the same personal ones again.

    Returns:
        Disjoint users; where the fraction is neither 0 nor 1, one at least on either side if two are there.

    Raises:
        DataSettingsError: personal_fraction outside [0, 1].
    """
    check_fraction("personal_fraction", personal_fraction)
    everyone = set(client_ids)
    ranked = _ranked(everyone - set(exclude), seed, "split_users")
    wanted = math.floor(personal_fraction * len(everyone) + 0.5)
    if 0 < personal_fraction < 1 and len(everyone) > 1:
        wanted = min(max(wanted, 1), len(everyone) - 1)
    return UserSplit(global_ids=tuple(sorted(ranked[wanted:])), personal_ids=tuple(sorted(ranked[:wanted])))


def choose_users(
    client_ids: Iterable[str], count: int | None, seed: int, exclude: Collection[str] = ()
) -> tuple[str, ...]:
    """Choose users to personalise among those who are not excluded.

    Args:
        client_ids: natural ids of all users.
        count: how many to choose; None chooses everyone who is left.
        seed: another seed gives another choice; a larger count with the same seed adds to a smaller one's.
        exclude: users who may not be chosen, such as those that a model was trained on.

    Returns:
        Natural ids, sorted.

    Raises:
        DataSettingsError: count is below 1.
        NotEnoughUsersError: nobody, or fewer than count, are left.
    """
    everyone = set(client_ids)
    ranked = _ranked(everyone - set(exclude), seed, "choose_users")
    left_out = len(everyone) - len(ranked)
    if not ranked:
        raise NotEnoughUsersError(
            f"No user is left: all {len(everyone)} are among those that the model was trained on; "
            "take other data or a model that was trained on fewer users."
        )
    if count is None:
        return tuple(sorted(ranked))
    if count < 1:
        raise DataSettingsError(f"{count} users were asked for; ask for 1 or more.")
    if count > len(ranked):
        without = f" beside the {left_out} that the model was trained on" if left_out else ""
        raise NotEnoughUsersError(
            f"{count} users were asked for and there are {len(ranked)}{without}; ask for {len(ranked)} or fewer."
        )
    return tuple(sorted(ranked[:count]))


def split_samples(
    samples: UserSamples,
    settings: SplitSettings,
    seed: int,
    known: KnownParts | None = None,
    *,
    names_near_duplicates: bool = True,
) -> SampleSplit:
    """Divide one user's samples, stratified by class where the counts allow.

    Every sample is as likely as any other to be held out, and each class's fraction of a part is its fraction of the
    whole to within one sample. The test part that a data set prescribes (LEAF) is taken as it is. Where an earlier
    round is known, its samples keep their parts, whatever the seed, the settings and the samples that came since.
    Identical images share a part, that of the first of them, or the test part where one of them is prescribed for it:
    a copy of a training image would test nothing. Images that are nearly the same are counted, and a warning names two.

    Args:
        samples: the user's N samples.
        settings: sizes of the parts and the labelled fraction.
        seed: with the client id it determines the result; a larger labelled fraction contains a smaller one.
        known: the parts of earlier rounds, from the exit store that the exits go on from.
        names_near_duplicates: whether to look for test images that are nearly the same as others, and to warn.

    Raises:
        UserTooSmallError: fewer than settings.min_samples, fewer than two to train, or another part that would be
            empty.
    """
    total = len(samples)
    if total < settings.min_samples:
        raise UserTooSmallError(samples.client_id, total, f"at least {settings.min_samples} are needed")
    labels = samples.labels
    first = first_of_same(samples.images)
    originals = np.unique(first)
    if samples.fixed_test is None:
        num_tests = _test_count(len(originals), settings)
        test = _stratified(originals, labels, num_tests, _generator(seed, samples, "test"))
    else:
        test = np.unique(first[samples.fixed_test])
    rest = np.setdiff1d(originals, test)
    num_calibration = _share(settings.calibration_fraction, len(rest))
    calibration = _stratified(rest, labels, num_calibration, _generator(seed, samples, "calibration"))
    parts = np.full(total, TRAIN, dtype=np.uint8)
    parts[calibration], parts[test] = CALIBRATION, TEST
    parts = parts[first]
    if known is not None:
        parts = known.keep(samples.images, parts)
    train, calibration, test = (np.flatnonzero(parts == part) for part in (TRAIN, CALIBRATION, TEST))
    rest = np.flatnonzero(parts != TEST)
    if len(train) < LEAST_TRAIN or not len(calibration) or (not len(test) and settings.test_fraction > 0):
        sizes = f"{len(train)} would train, {len(calibration)} calibrate and {len(test)} test"
        raise UserTooSmallError(
            samples.client_id, total, f"{sizes}; {LEAST_TRAIN} have to train, and no part may be empty"
        )
    shuffled = _generator(seed, samples, "labelled").permutation(rest)
    labelled = np.zeros(total, dtype=bool)
    labelled[shuffled[: math.floor(settings.labels * len(rest) + 0.5)]] = True
    if names_near_duplicates:
        _name_near_duplicates(samples, test, rest)
    return SampleSplit(train=train, calibration=calibration, test=test, labelled=labelled)


def _name_near_duplicates(samples: UserSamples, test: NDArray[np.int64], rest: NDArray[np.int64]) -> None:
    pairs = near_duplicates(samples.images, test, rest)
    if pairs:
        tested, used = pairs[0]
        logger.warning(
            "User %s has test images that are nearly the same as images that train or calibrate: %d in all, such as "
            "samples %d and %d",
            *(samples.client_id, len(pairs), tested, used),
        )


def _ranked(ids: Iterable[str], seed: int, purpose: str) -> list[str]:
    """Sort ids by a keyed hash: a random order in which the order of arrival and other users play no part."""
    return sorted(ids, key=lambda client_id: (digest_of(_one_purpose(seed, purpose, client_id)), client_id))


def _one_purpose(seed: int, purpose: str, client_id: str) -> str:
    # a natural id may hold the slash that divides purposes elsewhere, so these parts are divided by NUL
    return "\0".join((str(seed), purpose, client_id))


def _generator(seed: int, samples: UserSamples, purpose: str) -> np.random.Generator:
    return numpy_generator(_one_purpose(seed, purpose, samples.client_id))


def _test_count(total: int, settings: SplitSettings) -> int:
    if total >= settings.test_samples_from:
        return settings.test_samples
    return _share(settings.test_fraction, total)


def _share(fraction: float, total: int) -> int:
    """Round fraction * total, but to nothing only where the fraction is 0."""
    return min(total, max(math.floor(fraction * total + 0.5), 1 if fraction > 0 else 0))


def _stratified(
    indices: NDArray[np.int64], labels: NDArray[np.int64], count: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draw `count` of `indices` by systematic sampling: shuffle, sort by class, take every (n / count)-th.

    A per-class quota by rounding would keep most classes of one sample out of the test part, which flatters the
    result on users with one or two samples of a letter; systematic sampling draws everyone equally often.
    """
    if not count:
        return np.empty(0, dtype=np.int64)
    shuffled = generator.permutation(indices)
    class_order = generator.permutation(int(labels.max()) + 1)
    ordered = shuffled[np.argsort(class_order[labels[shuffled]], kind="stable")]
    steps = (np.arange(count) + generator.random()) * (len(ordered) / count)
    return np.sort(ordered[np.minimum(steps.astype(np.int64), len(ordered) - 1)])
