"""One user's samples, and the interface through which every source of data gives them.

NumPy alone: a device need not have PyTorch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from persephonee.data_partitions.errors import BrokenDataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class UserSamples:
    """All samples of one user. PyTorch's tensors are taken too, as the arrays that lie behind them.

    Raises:
        BrokenDataError: shapes, types or lengths do not fit together.
    """

    client_id: str
    """The user's natural id (a writer, a person); stable over files, seeds and runs."""

    images: NDArray[np.uint8]
    """uint8, shape [N, C, H, W]; for handwriting white paper is 255."""

    labels: NDArray[np.int64]
    """int64, shape [N], in [0, num_classes)."""

    domain: str | None = None
    """Where the user comes from (FEMNIST: `hsf_id=4` are high-school students), None where nothing says so."""

    fixed_test: NDArray[np.bool_] | None = None
    """bool, shape [N]: the test part that the data set itself prescribes (LEAF), None where it prescribes none."""

    def __post_init__(self) -> None:
        for name in ("images", "labels", "fixed_test"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, np.asarray(getattr(self, name)))
        count = len(self.labels)
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or len(self.images) != count:
            raise BrokenDataError(
                f"User {self.client_id}: expected uint8 images [{count}, C, H, W], "
                f"got {self.images.dtype} {list(self.images.shape)}."
            )
        if self.labels.dtype != np.int64 or self.labels.ndim != 1:
            raise BrokenDataError(f"User {self.client_id}: expected int64 labels [N], got {self.labels.dtype}.")
        fixed = self.fixed_test
        if fixed is not None and (fixed.dtype != np.bool_ or fixed.shape != self.labels.shape):
            raise BrokenDataError(f"User {self.client_id}: expected a bool mask [{count}] for the fixed test part.")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class ModelClasses:
    """The classes of a model that is there already: a device's own data rarely holds all of them."""

    count: int
    """K."""

    names: tuple[str, ...] = ()
    """K names, or empty where the model has none."""


class Partitions(Protocol):
    """Who has which samples; partition i belongs to `client_ids[i]`, in the sorted order of the natural ids."""

    @property
    def name(self) -> str:
        """The name of the source, as in `--dataset`."""

    @property
    def num_classes(self) -> int:
        """Number of classes K; labels are in [0, K)."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """K names, or None where the data has none."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image, H and W in pixels."""

    @property
    def client_ids(self) -> tuple[str, ...]:
        """Natural ids, sorted."""

    @property
    def num_partitions(self) -> int:
        """Number of users."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples per partition, known without loading any."""

    def load_partition(self, index: int) -> UserSamples:
        """Return all samples of user `client_ids[index]`, index in [0, num_partitions)."""


def check_index(index: int, num_partitions: int) -> None:
    """Refuse an index outside [0, num_partitions); negative ones too, which Python would take from the end."""
    if not 0 <= index < num_partitions:
        raise IndexError(f"Partition {index} is not in [0, {num_partitions}).")


def to_float(images: "NDArray[np.uint8] | Tensor") -> "Tensor":
    """Return uint8 images as a tensor of float32 in [0, 1], same shape, on their device."""
    import torch

    return torch.as_tensor(images).to(torch.float32) / 255.0
