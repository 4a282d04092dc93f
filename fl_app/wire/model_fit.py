"""Whether a model fits the data; without Flower, since a device without a server asks too."""

from typing import Any, Protocol

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import ModelClasses, Partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.fl_app.errors import ModelFitError
from persephonee.multi_exit.storage import ModelMetadata


class Takes(Protocol):
    """A network, or what is known of one that was saved."""

    @property
    def num_classes(self) -> int:
        """K, the number of logits of each exit."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""


def open_fitting(
    data: DataSettings,
    network: Takes,
    metadata: ModelMetadata,
    allowed: tuple[str, ...] = (),
    *,
    for_pretraining: bool = False,
) -> Partitions:
    """Open the data that a model is to take, with its labels numbered as the model numbers its classes.

    Args:
        data: which.
        network: the model, or what is known of it.
        metadata: of the model.
        allowed: the modules from which this machine's owner lets a source of one's own be imported.
        for_pretraining: open what the global model learns from, as `open_partitions` has it.

    Raises:
        DataError: what is missing or broken, in one sentence.
        ModelFitError: the model was made for other data.
    """
    classes = classes_of(network, metadata)
    partitions = open_partitions(data, for_pretraining, model=classes, allowed=allowed)
    check_fit(network, partitions)
    check_division(metadata, partitions)
    return partitions


def classes_of(network: Takes, metadata: ModelMetadata) -> ModelClasses:
    """Return the classes of a model, with their names where it has them."""
    return ModelClasses(count=network.num_classes, names=metadata.class_names)


def check_division(metadata: ModelMetadata, partitions: Partitions) -> None:
    """Refuse users of an image set who may hold images that trained the model; older models remember no division.

    Raises:
        ModelFitError: the images are divided in another way than at pretraining.
    """
    trained = metadata.settings.get("division")
    # only image sets that are divided among users have one
    division: dict[str, Any] | None = getattr(partitions, "division", None)
    if trained is None or division is None:
        return
    for name, value in division.items():
        if trained.get(name, value) != value:
            option = {"seed": "data-seed"}.get(name, name)
            raise ModelFitError(
                f"The model learned from images that are apart from the users' with {option}={trained[name]}, and with "
                f"{option}={value} users would be tested on some of them; take {option}={trained[name]}."
            )


def check_fit(network: Takes, partitions: Partitions) -> None:
    """Refuse a model that was made for other data.

    Raises:
        ModelFitError: another number of classes, or images of another shape.
    """
    if network.num_classes != partitions.num_classes:
        raise ModelFitError(
            f"The model knows {network.num_classes} classes and {partitions.name} has {partitions.num_classes}; "
            "take a model that was trained on this data."
        )
    if network.input_shape != partitions.image_shape:
        model, data = ("x".join(map(str, shape)) for shape in (network.input_shape, partitions.image_shape))
        raise ModelFitError(
            f"The model takes images of {model} and those of {partitions.name} are {data} (channels, height, width); "
            "take a model that was trained on this data."
        )
