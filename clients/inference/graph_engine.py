"""The inference engine of a device without PyTorch: the model's own graphs, and the personal classifiers (Sec. 3.2)."""

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.inference.engine import StagedEngine, check_fits, merged_stages, top_1_softmax
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.exit_weights import classifiers_of
from persephonee.multi_exit.graphs.network import Floats, GraphNetwork


class GraphEngine(StagedEngine[Floats]):
    """Runs a model's graphs stage by stage; a stage that the policy never reaches is not loaded until `explore`.

    Args:
        network: with the personal exits loaded (`load_exit_state`).
        policy: the threshold and the exits in use.
        last_shift: what the user's class frequencies add to the last exit's logits, [K]; None adds nothing.

    Raises:
        ClientSettingsError: the policy is of a network with another number of exits.
    """

    def __init__(self, network: GraphNetwork, policy: ExitPolicy, *, last_shift: Floats | None = None) -> None:
        super().__init__(policy, network.input_shape, network.num_classes)
        check_fits(policy, network.num_exits)
        self._network = network
        self._spans = merged_stages(policy)
        self._classifiers = classifiers_of(network.exit_state())
        self._last_shift = last_shift

    def _start(self, images: NDArray[np.float32]) -> Floats:
        return images

    def _advance(self, step: int, features: Floats) -> tuple[Floats, Floats]:
        *passed, exit = self._spans[step]
        for stage in passed:
            features = self._network.pass_stage(stage, features)
        if exit == self._network.num_exits:
            logits = self._network.run_last(features)
            return logits, logits if self._last_shift is None else logits + self._last_shift
        features, embedding = self._network.run_stage(exit, features)
        classifier = self._classifiers[exit]
        return features, embedding @ classifier[:, :-1].T + classifier[:, -1]

    def _keep(self, features: Floats, rows: NDArray[np.int64]) -> Floats:
        return features[rows]

    def _labels(self, logits: Floats) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = logits.argmax(axis=1)
        return labels

    def _confidences(self, logits: Floats) -> NDArray[np.float64]:
        return top_1_softmax(logits)
