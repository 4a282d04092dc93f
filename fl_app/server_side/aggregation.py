"""Merge the exits that clients shared: Flower's strategies, one for each exit, over the clients that sent it.

Only their arithmetic is used (`aggregate_train`); whom to ask, and when a round ends, is strategy.py's business.
BatchNorm's running statistics are averaged where the strategy steps with momentum (fedadam, fedyogi): a step on a
variance has no meaning. The robust strategies treat them as they treat the weights. Whatever the strategy, what a
client may do is bounded first (client_bounds.py).
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    FedAdam,
    FedAvg,
    FedMedian,
    FedTrimmedAvg,
    FedYogi,
    Krum,
)
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray

from persephonee.fl_app.server_side.client_bounds import bounded_changes, bounded_weights
from persephonee.fl_app.server_side.own_strategy import own_strategy
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.fl_app.wire.differential_privacy import clipped, noisy_mean, secret_noise
from persephonee.fl_app.wire.exit_arrays import STATISTICS, ExitArrays, exit_of
from persephonee.fl_app.wire.flower_private import TaskIdentity

log = logging.getLogger("persephonee.server")

WEIGHT = "num-examples"
_MAKERS: Mapping[str, Callable[[SharingSettings], FedAvg]] = {
    "fedavg": lambda _: FedAvg(),
    "fedadam": lambda s: FedAdam(eta=s.server_learning_rate),
    "fedyogi": lambda s: FedYogi(eta=s.server_learning_rate),
    "fedmedian": lambda _: FedMedian(),
    "fedtrimmedavg": lambda s: FedTrimmedAvg(beta=s.trimmed_fraction),
    "krum": lambda s: Krum(num_malicious_nodes=s.malicious_clients),
}


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one client shared in a round."""

    client_id: str
    exits: ExitArrays
    """Arrays of whole exits, as exit_arrays.py names them; perhaps not of all exits."""
    examples: int
    """Training samples, the weight in an average."""


class Merger:
    """Merges round after round.

    Args:
        settings: the strategy by name, how many clients it needs, and what one of them may do at most.
        privacy: whether the server adds noise.
        norms: for each array the L2 norm that limits a client's change of it, of the exits that the run began with.
        allowed: the modules from which a strategy of one's own may come.
    """

    def __init__(
        self,
        settings: SharingSettings,
        privacy: PrivacySettings,
        norms: Mapping[str, float],
        allowed: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings
        self._privacy = privacy
        self._norms = norms
        self._strategies: dict[str, Any] = {}
        self._allowed = allowed

    def merge(
        self, round_number: int, current: ExitArrays, shared: Sequence[Contribution], secret: str
    ) -> tuple[ExitArrays, dict[int, int]]:
        """Return the new global exits, and for each exit how many clients it was merged over, 0 where it stayed.

        Args:
            round_number: from 1.
            current: the global exits that the round began with.
            shared: what clients sent, in the order of their ids, which makes sums repeatable.
            secret: that noise follows from.
        """
        with _quiet():
            if self._privacy.is_on and self._privacy.dp_noise_at == "server":
                with secret_noise(secret, round_number):
                    return self._merge_with_noise(current, shared)
            merged, counts = dict(current), {}
            for exit in sorted({exit_of(name) for name in current}):
                names = [name for name in current if exit_of(name) == exit]
                senders = [c for c in shared if names[0] in c.exits]
                exits = self._merge_exit(round_number, names, current, senders)
                merged.update(exits)
                counts[exit] = len(senders) if exits else 0
            return merged, counts

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Return the strategies' moments, by name."""
        state: dict[str, NDArray[np.float32]] = {}
        for name, strategy in sorted(self._strategies.items()):
            if self._settings.has_own_strategy:
                continue
            if isinstance(strategy, FedOpt) and strategy.m_t and strategy.v_t:
                state[f"{name}.m"], state[f"{name}.v"] = strategy.m_t[name], strategy.v_t[name]
        return state

    def load_state(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Go on with the moments that `state` returned."""
        for name in {key.removesuffix(".m") for key in state if key.endswith(".m")}:
            strategy = self._strategy(name)
            if isinstance(strategy, FedOpt):
                strategy.m_t, strategy.v_t = {name: state[f"{name}.m"]}, {name: state[f"{name}.v"]}

    def _merge_exit(
        self, round_number: int, names: Sequence[str], current: ExitArrays, senders: Sequence[Contribution]
    ) -> ExitArrays:
        """Return the merged arrays of one exit, none where it stays as it was."""
        if len(senders) < self._settings.needed:
            return {}
        sent = [{name: client.exits[name] for name in names} for client in senders]
        sent = bounded_changes(sent, current, self._norms, self._settings.clip_fraction)
        weights = bounded_weights([client.examples for client in senders], self._settings.weight_cap)
        # one strategy for a whole exit, so that Krum chooses one client's weights and statistics; momentum apart
        with_momentum = self._settings.strategy in ("fedadam", "fedyogi")
        groups = [[name] for name in names] if with_momentum else [list(names)]
        merged: ExitArrays = {}
        for group in groups:
            strategy = self._strategy(group[0])
            if isinstance(strategy, FedOpt):
                strategy.current_arrays = {name: current[name] for name in group}
            messages = [_message(arrays, group, weight) for arrays, weight in zip(sent, weights, strict=True)]
            try:
                merged.update(_aggregate(strategy, round_number, messages))
            except Exception as error:
                # a library's arithmetic on what clients sent must not end the run
                log.warning("%s stays as it was in round %d: merging raised %r.", group[0], round_number, error)
                return {}
        # a mean of equal numbers need not be the number: what nobody changed stays the same bits
        merged.update({n: current[n] for n in names if all(np.array_equal(one[n], current[n]) for one in sent)})
        fits = merged.keys() == set(names) and all(merged[name].shape == current[name].shape for name in names)
        if not fits or not all(np.isfinite(array).all() for array in merged.values()):
            log.warning(
                "%s stays as it was in round %d: merging gave what is not finite or of another shape.",
                names[0],
                round_number,
            )
            return {}
        return merged

    def _merge_with_noise(
        self, current: ExitArrays, shared: Sequence[Contribution]
    ) -> tuple[ExitArrays, dict[int, int]]:
        """Clip each client's change of all exits together, average with equal weights, and add noise."""
        whole = [c for c in shared if c.exits.keys() == current.keys()]
        exits = sorted({exit_of(name) for name in current})
        if len(whole) < self._settings.needed:
            return dict(current), dict.fromkeys(exits, 0)
        changed = [clipped(client.exits, current, self._privacy) for client in whole]
        return noisy_mean(changed, self._privacy), dict.fromkeys(exits, len(whole))

    def _strategy(self, name: str) -> Any:
        if name not in self._strategies:
            self._strategies[name] = self._new_strategy(name)
        return self._strategies[name]

    def _new_strategy(self, name: str) -> Any:
        if self._settings.has_own_strategy:
            return own_strategy(self._settings.strategy, self._allowed)
        is_average = name.endswith(STATISTICS) and self._settings.strategy in ("fedadam", "fedyogi")
        return FedAvg() if is_average else _MAKERS[self._settings.strategy](self._settings)


def allow_messages_outside_a_run() -> None:
    """Let a study merge: the strategies take messages, which Flower makes only inside a run."""
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def _aggregate(strategy: Any, round_number: int, messages: Sequence[Message]) -> ExitArrays:
    arrays, _ = strategy.aggregate_train(round_number, messages)
    return {name: array.numpy().astype(np.float32) for name, array in arrays.items()}


def _message(arrays: ExitArrays, names: Sequence[str], weight: int) -> Message:
    exits = _record({name: arrays[name] for name in names})
    content = RecordDict({"exits": exits, "metrics": MetricRecord({WEIGHT: weight})})
    return Message(content, dst_node_id=0, message_type="train")


def _record(arrays: ExitArrays) -> ArrayRecord:
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


@contextmanager
def _quiet() -> Any:
    """Keep the strategies' lines, several for each exit and client, out of the run's log."""
    flower = logging.getLogger("flwr")
    level = flower.level
    flower.setLevel(logging.ERROR)
    try:
        yield
    finally:
        flower.setLevel(level)
