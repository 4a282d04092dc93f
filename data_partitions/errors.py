"""What can be wrong with data: one sentence each, for a person to read.

DataError
 ├─ DataSettingsError      a setting outside its range, or a dataset that is not known
 ├─ MissingDataError       a path, a column or a download that is not there
 ├─ BrokenDataError        a file or an image that cannot be read, or parts that disagree
 ├─ LabelRangeError        a label outside [0, num_classes)
 ├─ NotEnoughUsersError    more users asked for than there are
 └─ UserTooSmallError      a user with too few samples to split
"""


class DataError(ValueError):
    """Base of all errors about data; its text is one sentence."""


class DataSettingsError(DataError):
    """A setting is outside its range, or names a dataset that is not known."""


class MissingDataError(DataError):
    """A path, a column or a download is not there."""


class BrokenDataError(DataError):
    """A file or an image cannot be read, or its parts disagree."""


class LabelRangeError(DataError):
    """A label is outside [0, num_classes)."""


class NotEnoughUsersError(DataError):
    """More users were asked for than there are."""


class UserTooSmallError(DataError):
    """A user has too few samples to split into train, calibration and test."""

    def __init__(self, client_id: str, num_samples: int, needed: str) -> None:
        super().__init__(f"User {client_id} has {num_samples} samples; {needed}.")
        self.client_id = client_id
        self.num_samples = num_samples
        self.needed = needed

    def __reduce__(self) -> tuple[type["UserTooSmallError"], tuple[str, int, str]]:
        """Return how to build it again: by default it would be its text alone, which a worker process cannot send."""
        return type(self), (self.client_id, self.num_samples, self.needed)
