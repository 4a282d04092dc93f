"""Any labelled image set, divided among users by Flower's own partitioners (`--partitioner`).

The partitioner sees the labels and the numbers of the rows, and never an image: images are decoded when a user is
loaded.

    dirichlet     each class is divided by a draw from Dir(alpha) over the users (arXiv 1905.12022)
    shards        the rows sorted by class are cut into shards, and each user gets some of them (arXiv 1602.05629)
    natural-id    a column names the users
"""

from typing import Any

import numpy as np
import pyarrow as pa

from persephonee.data_partitions.errors import MissingDataError, NotEnoughUsersError
from persephonee.data_partitions.samples import UserSamples, check_index
from persephonee.data_partitions.sources.image_cells import refuse_too_many, stack
from persephonee.data_partitions.sources.image_rows import Rows, decode_rows
from persephonee.data_partitions.sources.image_sets import ImageSet
from persephonee.data_partitions.sources.image_users import ImageUserSettings
from persephonee.data_partitions.user_ids import check_ids


class FlowerPartitions:
    """Users of an image set as one of Flower's partitioners divides it; some of them train the global model.

    Raises:
        MissingDataError: flwr-datasets is not installed, or the images have no column of users.
        NotEnoughUsersError: the partitioner cannot divide the images among so many users.
        BrokenDataError: the first image does not decode, or a user's id is none.
    """

    name = "imagefolder"

    def __init__(self, images: ImageSet, settings: ImageUserSettings) -> None:
        self._images, self._settings = images, settings
        self.class_names: tuple[str, ...] | None = images.class_names
        self.num_classes = len(images.class_names)
        found = dict(sorted(_divided(images, settings).items()))
        self.client_ids, self._rows = tuple(found), list(found.values())
        check_ids(self.client_ids, f"--user-column {settings.user_column}")
        self.num_partitions = len(self._rows)
        self.counts = tuple(map(len, self._rows))
        self.image_shape: tuple[int, int, int] = decode_rows(images, self._rows[0][:1], settings.image_size)[0].shape
        self.division = settings.division()
        """What decides which images a user has, besides the image set itself."""

    def load_partition(self, index: int) -> UserSamples:
        """Decode the images of user `client_ids[index]`."""
        check_index(index, self.num_partitions)
        client_id, rows = self.client_ids[index], self._rows[index]
        refuse_too_many(len(rows), self.image_shape, client_id)
        pixels = decode_rows(self._images, rows, self._settings.image_size)
        images = stack(pixels, self.image_shape, client_id)
        return UserSamples(client_id=client_id, images=images, labels=self._images.labels[rows])


def _divided(images: ImageSet, settings: ImageUserSettings) -> dict[str, Rows]:
    """Return each user's rows, sorted, by id."""
    try:
        from datasets import Dataset
        from flwr_datasets import partitioner as flower
    except ImportError as error:
        raise MissingDataError(
            f"--partitioner {settings.partitioner} needs flwr-datasets, which is not installed; run "
            "`pip install 'persephonee[datasets]'`."
        ) from error
    columns: dict[str, Any] = {"label": images.labels, "row": np.arange(len(images.labels))}
    count, seed = settings.num_users, settings.seed
    if settings.partitioner == "dirichlet":
        # users whom the draw gives nothing are left out below
        found = flower.DirichletPartitioner(
            num_partitions=count, partition_by="label", alpha=settings.dirichlet_alpha, min_partition_size=0, seed=seed
        )
    elif settings.partitioner == "shards":
        found = flower.ShardPartitioner(
            num_partitions=count, partition_by="label", num_shards_per_partition=settings.shards_per_user, seed=seed
        )
    else:
        columns["user"] = [str(user) for user in images.column(settings.user_column)]
        found = flower.NaturalIdPartitioner(partition_by="user")
    try:
        found.dataset = Dataset(pa.table(columns))
        parts = [np.sort(np.asarray(found.load_partition(user)["row"])) for user in range(found.num_partitions)]
    # the partitioners raise ValueError and others whose text speaks of their own arguments
    except Exception as error:
        raise NotEnoughUsersError(
            f"Flower's partitioner cannot divide {len(images.labels)} images among {count} users "
            f"({str(error).split('. ')[0]}); give fewer --num-users, or fewer --shards-per-user."
        ) from error
    if settings.partitioner == "natural-id":
        names = found.partition_id_to_natural_id
        return {str(names[user]): rows for user, rows in enumerate(parts)}
    return {f"p{user:04d}": rows for user, rows in enumerate(parts) if len(rows)}
