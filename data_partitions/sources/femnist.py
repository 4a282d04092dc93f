"""FEMNIST by writer, fetched from its hub with flwr-datasets (`--dataset femnist`).

Schema of `flwrlabs/femnist`, split `train`: image (28x28, white paper = 255), writer_id (str), hsf_id (int),
character (62 classes: 0-9, A-Z, a-z).
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from persephonee.data_partitions.errors import BrokenDataError, LabelRangeError, MissingDataError
from persephonee.data_partitions.samples import UserSamples, check_index
from persephonee.data_partitions.sources.image_cells import decode, refuse_too_many, stack
from persephonee.data_partitions.sources.published_sets import FEMNIST_CLASSES, FEMNIST_OF_THE_HUB
from persephonee.data_partitions.user_ids import check_ids

HUB_NAME = "flwrlabs/femnist"


class FemnistUsers:
    """Partitions of a flwr-datasets partitioner that divides by writer.

    Args:
        partitioner: a `NaturalIdPartitioner(partition_by="writer_id")` whose dataset is set.

    Raises:
        MissingDataError: the dataset lacks a column.
        BrokenDataError: an image that does not decode.
        LabelRangeError: a label outside [0, num_classes).
    """

    name = "femnist"

    def __init__(self, partitioner: Any) -> None:
        self._partitioner = partitioner
        columns = partitioner.dataset.column_names
        for column in ("image", "writer_id", "character"):
            if column not in columns:
                raise MissingDataError(f"The FEMNIST copy has no column '{column}'; its columns are {columns}.")
        names = getattr(partitioner.dataset.features["character"], "names", None)
        self.class_names: tuple[str, ...] | None = tuple(names) if names else FEMNIST_CLASSES
        self.num_classes = len(self.class_names)
        natural_ids = [partitioner.partition_id_to_natural_id[i] for i in range(partitioner.num_partitions)]
        order = sorted(range(len(natural_ids)), key=lambda i: str(natural_ids[i]))
        self._partition_of = order
        self.client_ids = tuple(str(natural_ids[i]) for i in order)
        check_ids(self.client_ids, "The FEMNIST copy")
        self.num_partitions = len(order)
        rows = Counter(partitioner.dataset["writer_id"])
        self.counts = tuple(rows[natural_ids[i]] for i in order)
        self.image_shape: tuple[int, int, int] = (1, 28, 28)

    def load_partition(self, index: int) -> UserSamples:
        """Return the samples of writer `client_ids[index]`."""
        check_index(index, self.num_partitions)
        client_id = self.client_ids[index]
        refuse_too_many(self.counts[index], self.image_shape, client_id)
        rows = self._partitioner.load_partition(self._partition_of[index])
        pixels = []
        for number, cell in enumerate(rows["image"]):
            try:
                pixels.append(decode(cell, 1, Path()))
            except ValueError as error:
                raise BrokenDataError(f"The image {number} of writer {client_id} cannot be used: {error}.") from error
        labels = np.asarray(rows["character"], dtype=np.int64)
        if labels.min() < 0 or labels.max() >= self.num_classes:
            span = f"from {labels.min()} to {labels.max()}"
            raise LabelRangeError(f"Writer {client_id} has labels {span}; expected [0, {self.num_classes}).")
        domains = set(rows["hsf_id"]) if "hsf_id" in rows.column_names else set()
        return UserSamples(
            client_id=client_id,
            images=stack(pixels, self.image_shape, client_id),
            labels=labels,
            domain=f"hsf_id={domains.pop()}" if len(domains) == 1 else None,
        )


def open_femnist(hub_name: str = HUB_NAME) -> FemnistUsers:
    """Fetch FEMNIST, or open the copy that an earlier fetch left in the Hugging Face cache.

    Raises:
        MissingDataError: flwr-datasets is not installed, or there is neither a network nor a cached copy.
    """
    try:
        from flwr_datasets import FederatedDataset
        from flwr_datasets.partitioner import NaturalIdPartitioner
    except ImportError as error:
        raise MissingDataError(
            "--dataset femnist needs flwr-datasets, which is not installed; run `pip install 'persephonee[datasets]'`."
        ) from error
    partitioner = NaturalIdPartitioner(partition_by="writer_id")
    federated = FederatedDataset(dataset=hub_name, partitioners={"train": partitioner})
    try:
        federated.load_partition(0, "train")
    # the hub's client raises OSError, httpx's, requests' and its own errors, which fraction no other base
    except Exception as error:
        raise MissingDataError(
            f"FEMNIST ({hub_name}) could not be fetched ({type(error).__name__}) and no copy is cached; connect to the "
            "network once, or use --dataset synthetic-writers, parquet or leaf."
        ) from error
    users = FemnistUsers(partitioner)
    if hub_name == HUB_NAME:
        FEMNIST_OF_THE_HUB.compare(users.counts, is_whole=True)
    return users
