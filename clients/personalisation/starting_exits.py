"""What a round starts from: the global exits, the user's own of the round before, or what a federation merged."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.frozen_backbone import frozen_backbone
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_weights import load_exit_weights
from persephonee.multi_exit.network import MultiExitNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class StartingExits:
    """The exits that there are before a round.

    Attributes:
        global_heads: M heads that all users have in common, for comparison and as an anchor.
        own_heads: M heads of the user's round before; None before the first round.
        are_merged: whether a federation has just merged the global heads, so that training starts from them.
    """

    global_heads: nn.ModuleList
    own_heads: nn.ModuleList | None
    are_merged: bool

    @property
    def start_is_global(self) -> bool:
        """Whether training starts from the global heads."""
        return self.are_merged or self.own_heads is None

    @property
    def start_is_previous(self) -> bool:
        """Whether training starts from what is in force on the device."""
        return not self.are_merged or self.own_heads is None

    @property
    def start(self) -> nn.ModuleList:
        """M heads that training starts from."""
        return self.global_heads if self.start_is_global else self.previous

    @property
    def previous(self) -> nn.ModuleList:
        """M heads in force before the round, to which the guard goes back."""
        return self.global_heads if self.own_heads is None else self.own_heads


def starting_exits(
    network: MultiExitNetwork,
    client_id: str,
    store: ExitStore | None,
    *,
    global_exit_weights: Mapping[str, Tensor] | None = None,
    repeating: tuple[str, int] | None = None,
) -> StartingExits:
    """Return the exits that there are before a round.

    Args:
        network: with the global exits.
        client_id: the user in question.
        store: of the user's own exits.
        global_exit_weights: what a federation merged; None takes the network's.
        repeating: as `ExitStore.load` takes it.

    Raises:
        StoreError: the store is damaged, or belongs to another model; or the merged exits do.
    """
    merged = None if global_exit_weights is None else _heads_with(network, global_exit_weights)
    stored = store and store.load(frozen_backbone(network).fingerprint, client_id, repeating)
    return StartingExits(
        global_heads=merged or network.heads,
        own_heads=_heads_with(network, stored.exit_weights) if stored else None,
        are_merged=merged is not None,
    )


def _heads_with(network: MultiExitNetwork, exit_weights: Mapping[str, Tensor]) -> nn.ModuleList:
    heads = copy.deepcopy(network.heads)
    try:
        load_exit_weights(heads, exit_weights)
    except ModelFileError as error:
        raise StoreError(f"exits do not fit the model: {error}") from None
    return heads
