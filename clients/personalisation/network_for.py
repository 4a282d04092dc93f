"""The network for one user: cut out of a plain CNN where it has no exits yet, refused where it takes other samples."""

from typing import TYPE_CHECKING

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.features import is_multi_exit
from persephonee.data_partitions.samples import UserSamples

if TYPE_CHECKING:
    from torch import nn

    from persephonee.clients.personalisation.features import Network
    from persephonee.multi_exit.network import MultiExitNetwork


def network_for(model: "Network | nn.Module", samples: UserSamples) -> "Network":
    """Return a network that takes the user's samples: the given one, or the one that a plain CNN is cut into.

    Raises:
        ClientSettingsError: the images or the labels are not those that the network takes.
        BackboneError: the CNN cannot be cut, or does not take such images.
    """
    network = model if is_multi_exit(model) else _built_of(model, samples)
    given, taken = samples.images.shape[1:], network.input_shape
    if given != taken:
        shown, wanted = ("x".join(map(str, shape)) for shape in (given, taken))
        raise ClientSettingsError(
            f"user {samples.client_id} has images of {shown} px, and the network takes {wanted}: scale or convert them."
        )
    largest = int(samples.labels.max(initial=0))
    if largest >= network.num_classes:
        raise ClientSettingsError(
            f"user {samples.client_id} has the label {largest}, and the network {network.num_classes} classes: "
            f"number the labels from 0 to {network.num_classes - 1}."
        )
    return network


def _built_of(model: "nn.Module", samples: UserSamples) -> "MultiExitNetwork":
    """Return the multi-exit network of a trained CNN, with the paper's six exits or as many as fit."""
    from persephonee.multi_exit.building import build_network

    _, channels, height, width = samples.images.shape
    if height != width:
        raise ClientSettingsError(f"the images are {width}x{height} px: expected squares, so crop or pad them first.")
    return build_network(model, num_exits=None, in_channels=channels, input_size=height)
