"""`--dataset NAME` and its options become a source of partitions."""

from persephonee.data_partitions.samples import ModelClasses, Partitions
from persephonee.data_partitions.settings import DEFAULT_LABEL_COLUMN, DataSettings

IMAGE_SET_LABEL_COLUMN = "label"
"""What the hub's image sets call their classes; `imagefolder` takes it where no other column is named."""


def open_partitions(
    settings: DataSettings,
    for_pretraining: bool = False,
    model: ModelClasses | None = None,
    allowed: tuple[str, ...] = (),
) -> Partitions:
    """Open the data; no image is decoded yet beyond the first user's.

    Args:
        settings: which data.
        for_pretraining: open what the global model learns from. Only `imagefolder` keeps it apart from the users who
            personalise, unless one of Flower's partitioners divides it; elsewhere users are divided afterwards
            (`persephonee.data_partitions.user_splits`).
        model: the classes of the model that is to take the data; parquet and leaf that do not say how many classes
            there are have as many as it.
        allowed: the modules from which this machine's owner lets a source of one's own be imported.

    Raises:
        DataError: what is missing or broken, in one sentence.
    """
    if settings.is_own:
        from persephonee.data_partitions.sources.own_source import open_own_source

        return open_own_source(settings, allowed)
    if settings.dataset == "parquet" and settings.data_path is not None:
        from persephonee.data_partitions.sources.parquet_users import ParquetUsers

        return ParquetUsers(
            settings.data_path,
            user_column=settings.user_column,
            label_column=settings.label_column,
            image_column=settings.image_column,
            num_classes=settings.num_classes,
            model=model,
        )
    if settings.dataset == "leaf" and settings.data_path is not None:
        from persephonee.data_partitions.sources.leaf import LeafUsers

        return LeafUsers(settings.data_path, num_classes=settings.num_classes or (model.count if model else None))
    if settings.dataset == "imagefolder":
        return _open_image_users(settings, "global" if for_pretraining else "personal")
    if settings.dataset == "femnist":
        from persephonee.data_partitions.sources.femnist import open_femnist

        return open_femnist()
    from persephonee.data_partitions.synthetic.synthetic_writers import SyntheticWriters

    return SyntheticWriters(num_writers=settings.num_writers, seed=settings.seed)


def _open_image_users(settings: DataSettings, pool: str) -> Partitions:
    from persephonee.data_partitions.sources.image_sets import ImageSet, open_hub, open_image_set
    from persephonee.data_partitions.sources.personalised_imagenet import PersonalisedImageNet

    named = settings.label_column != DEFAULT_LABEL_COLUMN
    label_column = settings.label_column if named else IMAGE_SET_LABEL_COLUMN
    images: ImageSet
    if settings.data_path is None:
        images = open_hub(settings.hub_name, label_column=label_column, image_column=settings.image_column)
    else:
        images = open_image_set(settings.data_path, label_column=label_column, image_column=settings.image_column)
    if settings.partitioner == "gaussian":
        return PersonalisedImageNet(images, settings.image_users(), pool)
    from persephonee.data_partitions.sources.flower_partitions import FlowerPartitions

    return FlowerPartitions(images, settings.image_users())
