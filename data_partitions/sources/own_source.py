"""A data source of one's own: `--dataset package.module:function`, from a module that the machine's owner allows.

The function takes the `DataSettings` and returns what `Partitions` describes. Its word is not taken for it: ids, counts
and shapes are checked when it is opened, and each user's samples when they are loaded.
"""

import importlib
import re
from typing import Any

from persephonee.data_partitions.errors import BrokenDataError, DataSettingsError, LabelRangeError, MissingDataError
from persephonee.data_partitions.samples import Partitions, UserSamples, check_index
from persephonee.data_partitions.settings import DataSettings
from persephonee.data_partitions.user_ids import check_ids


class OwnSource:
    """The partitions of a source of one's own, checked.

    Raises:
        BrokenDataError: the source lacks an attribute, or its numbers disagree.
    """

    def __init__(self, name: str, partitions: Partitions) -> None:
        self.name = name
        self._partitions = partitions
        try:
            self.client_ids = tuple(partitions.client_ids)
            self.counts = tuple(int(count) for count in partitions.counts)
            self.num_classes = int(partitions.num_classes)
            names = partitions.class_names
            self.class_names = None if names is None else tuple(map(str, names))
            channels, height, width = (int(side) for side in partitions.image_shape)
        except (AttributeError, TypeError, ValueError) as error:
            raise BrokenDataError(
                f"{name} is no source of data ({error}): give an object with the attributes of Partitions in "
                "data_partitions/samples.py."
            ) from error
        self.image_shape = (channels, height, width)
        self.num_partitions = len(self.client_ids)
        self._check()

    def load_partition(self, index: int) -> UserSamples:
        """Return the samples of user `client_ids[index]`.

        Raises:
            BrokenDataError: they are another user's, or have other shapes than the source says.
            LabelRangeError: a label outside [0, num_classes).
        """
        check_index(index, self.num_partitions)
        samples = self._partitions.load_partition(index)
        expected = f"expected {self.counts[index]} images {list(self.image_shape)} of {self.client_ids[index]}"
        if not isinstance(samples, UserSamples):
            raise BrokenDataError(f"{self.name} returned {type(samples).__name__} in place of UserSamples; {expected}.")
        found = (samples.client_id, len(samples), samples.images.shape[1:])
        if found != (self.client_ids[index], self.counts[index], self.image_shape):
            raise BrokenDataError(f"{self.name}: {found[1]} images {list(found[2])} of {found[0]}; {expected}.")
        if len(samples) and not (samples.labels.min() >= 0 and samples.labels.max() < self.num_classes):
            raise LabelRangeError(
                f"{self.name}: user {samples.client_id} has labels from {samples.labels.min()} to "
                f"{samples.labels.max()}; expected [0, {self.num_classes})."
            )
        return samples

    def _check(self) -> None:
        check_ids(self.client_ids, self.name)
        users, names = self.num_partitions, self.class_names
        in_order = list(self.client_ids) == sorted(self.client_ids)
        self._require("client_ids", users > 0 and in_order, "sorted ids")
        self._require("counts", len(self.counts) == users, f"{users} numbers, one a user")
        self._require("num_classes", self.num_classes >= 2, "2 or more")
        fits = names is None or len(names) == self.num_classes
        self._require("class_names", fits, f"None or {self.num_classes} names")
        self._require("image_shape", self.image_shape[0] in (1, 3) and min(self.image_shape) > 0, "(1 or 3, H, W)")

    def _require(self, attribute: str, holds: bool, expected: str) -> None:
        if not holds:
            raise BrokenDataError(f"{self.name} has a wrong {attribute}; expected {expected}.")


def open_own_source(settings: DataSettings, allowed: tuple[str, ...]) -> OwnSource:
    """Import the function that `--dataset` names, if its module is allowed, and open what it returns.

    Raises:
        DataSettingsError: the module is not allowed.
        MissingDataError: the function cannot be imported.
        BrokenDataError: the function fails, or returns no source.
    """
    name = settings.dataset
    module, function = name.split(":")
    if module not in allowed:
        raise DataSettingsError(
            f"--dataset {name} comes from the module {module}, which is not allowed here; add it to this machine's own "
            f"--sources if you trust it."
        )
    try:
        make: Any = getattr(importlib.import_module(module), function)
    except Exception as error:  # the import runs the user's own code, which may raise anything
        raise MissingDataError(
            f"--dataset {name} cannot be imported ({_reason(error)}); check the name, the module and PYTHONPATH."
        ) from error
    try:
        made = make(settings)
    except Exception as error:
        raise BrokenDataError(
            f"--dataset {name} fails when it is opened ({_reason(error)}); it is called with the DataSettings alone."
        ) from error
    return OwnSource(name, made)


def _reason(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
