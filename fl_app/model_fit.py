"""Whether a model fits the data; without Flower, since a device without a server asks too."""

from data_partitions.samples import Partitions
from fl_app.errors import ModelFitError
from multi_exit.network import MultiExitNetwork


def check_fit(network: MultiExitNetwork, partitions: Partitions) -> None:
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
