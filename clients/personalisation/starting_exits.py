"""What a round starts from: the global exits, the user's own of the round before, or what a federation merged."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.evaluation import exit_logits
from persephonee.clients.personalisation.exit_shifts import no_shifts, shifted, without_shifts
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import FeatureCache
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
        own_shifts: what the user's class frequencies of that round add to their logits, [M+1, K]; zeros before it.
        are_merged: whether a federation has just merged the global heads, so that training starts from them.
        shifts: what the class frequencies of this round add to the logits that training starts from, [M+1, K].
    """

    global_heads: nn.ModuleList
    own_heads: nn.ModuleList | None
    own_shifts: Tensor
    are_merged: bool
    shifts: Tensor

    @property
    def start_is_global(self) -> bool:
        """Whether training starts from the global heads, with the user's shifts of this round."""
        return self.are_merged or self.own_heads is None

    @property
    def start_is_previous(self) -> bool:
        """Whether training starts from what is in force on the device, with this round's shifts in place of its own."""
        return not self.are_merged or self.own_heads is None

    @cached_property
    def start(self) -> nn.ModuleList:
        """M heads that training starts from."""
        if self.start_is_global:
            return shifted(self.global_heads, self.shifts)
        return shifted(self.previous, self.shifts - self.own_shifts)

    @cached_property
    def anchor(self) -> nn.ModuleList:
        """M heads that a proximal term pulls towards."""
        return shifted(self.global_heads, self.shifts)

    def logits_of_global(self, start_logits: Tensor, features: FeatureCache, judged: Tensor) -> Tensor:
        """Return the global heads' logits on the samples with indices `judged`, [M, n, K].

        Args:
            start_logits: of the heads that training started from, on the same samples.
            features: of the user's samples.
            judged: [n].
        """
        if not self.start_is_global:
            return exit_logits(self.global_heads, features, judged)
        return without_shifts(start_logits, self.shifts)

    def logits_of_previous(self, start_logits: Tensor, features: FeatureCache, judged: Tensor) -> Tensor:
        """Return the logits of the heads in force before the round; arguments as of `logits_of_global`."""
        if not self.start_is_previous:
            return exit_logits(self.previous, features, judged)
        return without_shifts(start_logits, self.shifts - self.own_shifts)

    def shifts_after(self, rolled_back: Sequence[int], *, adapt_last_exit: bool) -> Tensor | None:
        """Return the shifts in force after the round, [M+1, K]; None where all of them are 0.

        Args:
            rolled_back: exits that went back to what they were before the round.
            adapt_last_exit: whether the policy's last exit has its shift.
        """
        shifts = self.shifts.clone()
        shifts[list(rolled_back)] = self.own_shifts[list(rolled_back)]
        if not adapt_last_exit:
            shifts[-1] = 0
        return shifts if shifts.any() else None

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
    own_shifts = stored.shifts if stored else None
    if own_shifts is not None and own_shifts.shape != (network.num_exits + 1, network.num_classes):
        raise StoreError(f"the stored class frequencies do not fit the model: they have the shape {own_shifts.shape}.")
    return StartingExits(
        global_heads=merged or network.heads,
        own_heads=_heads_with(network, stored.exit_weights) if stored else None,
        own_shifts=no_shifts(network) if own_shifts is None else own_shifts,
        are_merged=merged is not None,
        shifts=no_shifts(network),
    )


def _heads_with(network: MultiExitNetwork, exit_weights: Mapping[str, Tensor]) -> nn.ModuleList:
    heads = copy.deepcopy(network.heads)
    try:
        load_exit_weights(heads, exit_weights)
    except ModelFileError as error:
        raise StoreError(f"exits do not fit the model: {error}") from None
    return heads
