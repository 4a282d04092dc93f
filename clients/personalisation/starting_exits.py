"""What a round starts from: the global exits, the user's own of the round before, or what a federation merged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import StoreError
from persephonee.clients.personalisation.exit_shifts import no_shifts, shifted, without_shifts
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.features import Features, Indices, Logits, backbone_fingerprint, runs_on_graphs
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_weights import ExitWeights, as_arrays, require_fit

if TYPE_CHECKING:
    from torch import Tensor

    from persephonee.clients.personalisation.features import Network


@dataclass(frozen=True, kw_only=True, eq=False)
class StartingExits:
    """The exits that there are before a round.

    Attributes:
        global_exits: weights of the M exits that all users have in common, for comparison and as an anchor.
        own_exits: those of the user's round before; None before the first round.
        own_shifts: what the user's class frequencies of that round add to their logits, [M+1, K]; zeros before it.
        are_merged: whether a federation has just merged the global exits, so that training starts from them.
        shifts: what the class frequencies of this round add to the logits that training starts from, [M+1, K].
    """

    global_exits: ExitWeights
    own_exits: ExitWeights | None
    own_shifts: NDArray[np.float32]
    are_merged: bool
    shifts: NDArray[np.float32]

    @property
    def start_is_global(self) -> bool:
        """Whether training starts from the global exits, with the user's shifts of this round."""
        return self.are_merged or self.own_exits is None

    @property
    def start_is_previous(self) -> bool:
        """Whether training starts from what is in force on the device, with this round's shifts in place of its own."""
        return not self.are_merged or self.own_exits is None

    @cached_property
    def start(self) -> ExitWeights:
        """Weights of the M exits that training starts from."""
        if self.start_is_global:
            return shifted(self.global_exits, self.shifts)
        return shifted(self.previous, self.shifts - self.own_shifts)

    @cached_property
    def anchor(self) -> ExitWeights:
        """Weights that a proximal term pulls towards."""
        return shifted(self.global_exits, self.shifts)

    def logits_of_global(self, start_logits: Logits, features: Features, judged: Indices) -> Logits:
        """Return the global exits' logits on the samples with indices `judged`, [M, n, K].

        Args:
            start_logits: of the exits that training started from, on the same samples.
            features: of the user's samples.
            judged: [n].
        """
        if not self.start_is_global:
            return features.exit_logits(self.global_exits, judged)
        return without_shifts(start_logits, self.shifts)

    def logits_of_previous(self, start_logits: Logits, features: Features, judged: Indices) -> Logits:
        """Return the logits of the exits in force before the round; arguments as of `logits_of_global`."""
        if not self.start_is_previous:
            return features.exit_logits(self.previous, judged)
        return without_shifts(start_logits, self.shifts - self.own_shifts)

    def shifts_after(self, rolled_back: Sequence[int], *, adapt_last_exit: bool) -> Logits | None:
        """Return the shifts in force after the round, [M+1, K]; None where all of them are 0.

        Args:
            rolled_back: exits that went back to what they were before the round.
            adapt_last_exit: whether the policy's last exit has its shift.
        """
        shifts = self.shifts.copy()
        shifts[list(rolled_back)] = self.own_shifts[list(rolled_back)]
        if not adapt_last_exit:
            shifts[-1] = 0
        return shifts if shifts.any() else None

    @property
    def previous(self) -> ExitWeights:
        """Weights in force before the round, to which the guard goes back."""
        return self.global_exits if self.own_exits is None else self.own_exits


def starting_exits(
    network: "Network",
    client_id: str,
    store: ExitStore | None,
    *,
    global_exit_weights: "Mapping[str, Tensor] | Mapping[str, NDArray[Any]] | None" = None,
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
    own = as_arrays(network.exit_state())
    merged = None if global_exit_weights is None else _fitting(network, own, global_exit_weights)
    stored = store and store.load(
        backbone_fingerprint(network), own, client_id, repeating, graphs=network.graphs_fingerprint
    )
    own_shifts = stored.shifts if stored else None
    if own_shifts is not None and own_shifts.shape != (network.num_exits + 1, network.num_classes):
        raise StoreError(f"the stored class frequencies do not fit the model: they have the shape {own_shifts.shape}.")
    return StartingExits(
        global_exits=own if merged is None else merged,
        own_exits=_fitting(network, own, stored.exit_weights) if stored else None,
        own_shifts=no_shifts(network) if own_shifts is None else own_shifts,
        are_merged=merged is not None,
        shifts=no_shifts(network),
    )


def _fitting(
    network: "Network", own: ExitWeights, exit_weights: "Mapping[str, Tensor] | Mapping[str, NDArray[Any]]"
) -> ExitWeights:
    weights = as_arrays(exit_weights)
    try:
        if runs_on_graphs(network):
            network.require_fit(weights)
        else:
            require_fit(own, weights)
    except ModelFileError as error:
        raise StoreError(f"exits do not fit the model: {error}") from None
    return weights
