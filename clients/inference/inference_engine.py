"""The inference engine: personal inference that stops at the first confident exit, on PyTorch (Sec. 3.2).

`OnnxEngine` in `clients/inference/onnx_engine.py` has the same interface; both are
`persephonee.clients.inference.engine.Engine`s.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.inference.engine import (
    Exploration,
    Images,
    Predictions,
    StagedEngine,
    check_fits,
    merged_stages,
)
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.network import MultiExitNetwork


class InferenceEngine(StagedEngine[Tensor]):
    """Runs a multi-exit network stage by stage, on the network's own weights and device.

    Args:
        network: with the personal exits loaded (`load_exit_state`); put into eval() here.
        policy: the threshold and the exits in use.
        last_shift: what the user's class frequencies add to the last exit's logits, [K]; None adds nothing.
        explores: False lets go of the stages that the policy can never reach, and of their memory once the caller
            lets go of `network`; `explore` is then refused.

    Raises:
        ClientSettingsError: the policy is of a network with another number of exits.
    """

    def __init__(
        self,
        network: MultiExitNetwork,
        policy: ExitPolicy,
        *,
        last_shift: NDArray[np.float32] | Tensor | None = None,
        explores: bool = True,
    ) -> None:
        super().__init__(policy, network.input_shape, network.num_classes)
        check_fits(policy, network.num_exits)
        network.eval()
        self._device = next(network.parameters()).device
        loaded = len(self.steps) if explores else self.reachable_steps
        self._stages = [merge(network, span, last_shift) for span in merged_stages(policy)[:loaded]]
        self._heads = [network.heads[exit] for exit in policy.exits_in_use[:loaded]]

    def infer(self, images: Images) -> Predictions:
        """Return the policy's answers; see `StagedEngine.infer`."""
        with torch.inference_mode():
            return super().infer(images)

    def explore(self, images: Images) -> Exploration:
        """Return what all exits in use and the last exit answer; see `StagedEngine.explore`.

        Raises:
            ClientSettingsError: the engine was made with explores=False.
        """
        if len(self._stages) < len(self.steps):
            raise ClientSettingsError("this engine was made without its last stages: make it with explores=True.")
        with torch.inference_mode():
            return super().explore(images)

    def _start(self, images: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(images).to(self._device)

    def _advance(self, step: int, features: Tensor) -> tuple[Tensor, Tensor]:
        # past the wrapper that torch.fx puts around its own modules' calls, which does nothing but reword errors
        features = nn.Module.__call__(self._stages[step], features)
        return features, self._heads[step](features) if step < len(self._heads) else features

    def _keep(self, features: Tensor, rows: NDArray[np.int64]) -> Tensor:
        return features[torch.from_numpy(rows)]

    def _labels(self, logits: Tensor) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = logits.cpu().numpy().argmax(axis=1)
        return labels

    def _as_array(self, logits: Tensor) -> NDArray[np.float32]:
        array: NDArray[np.float32] = logits.cpu().numpy()
        return array

    def _confidences(self, logits: Tensor) -> NDArray[np.float64]:
        confidences = torch.softmax(logits, dim=1, dtype=torch.float64).amax(dim=1)
        array: NDArray[np.float64] = confidences.cpu().numpy()
        return array

    def _confidence(self, logits: Tensor) -> float:
        # two calls in place of NumPy's seven, between two stages that leave nothing of them in the caches
        return torch.softmax(logits, dim=1, dtype=torch.float64).max().item()


class _Shifted(nn.Module):
    """Logits with the shift of the user's class frequencies."""

    shift: Tensor

    def __init__(self, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the sum of logits [B, K] and the shift [K]."""
        return logits + self.shift


def merge(network: MultiExitNetwork, span: range, last_shift: NDArray[np.float32] | Tensor | None = None) -> nn.Module:
    """Return consecutive stages of the network as one module, which shares their weights.

    Args:
        network: whose stages these are.
        span: numbers of the stages.
        last_shift: what is added to the last exit's logits, [K], where it is among them.
    """
    stages = [network.stages[i] for i in span]
    if last_shift is not None and span[-1] == network.num_exits:
        stages.append(_Shifted(torch.as_tensor(last_shift).to(next(network.parameters()).device)))
    return stages[0] if len(stages) == 1 else nn.Sequential(*stages)
