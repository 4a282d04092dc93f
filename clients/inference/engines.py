"""The inference engine that suits a network: PyTorch's, or that of a model's graphs (Sec. 3.2)."""

from typing import TYPE_CHECKING

from persephonee.clients.inference.engine import Engine
from persephonee.clients.personalisation.features import Logits, runs_on_graphs
from persephonee.clients.personalisation.policy import ExitPolicy

if TYPE_CHECKING:
    from persephonee.clients.personalisation.features import Network


def engine_for(network: "Network", policy: ExitPolicy, *, last_shift: Logits | None = None) -> Engine:
    """Return an engine on whatever the network runs on.

    Args:
        network: with the personal exits loaded (`load_exit_state`).
        policy: the threshold and the exits in use.
        last_shift: what the user's class frequencies add to the last exit's logits, [K]; None adds nothing.

    Raises:
        ClientSettingsError: the policy is of a network with another number of exits.
    """
    if runs_on_graphs(network):
        from persephonee.clients.inference.graph_engine import GraphEngine

        return GraphEngine(network, policy, last_shift=last_shift)
    from persephonee.clients.inference.inference_engine import InferenceEngine

    return InferenceEngine(network, policy, last_shift=last_shift)
