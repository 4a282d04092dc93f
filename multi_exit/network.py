"""The multi-exit network: stages of a frozen or trainable backbone, and an exit head behind each but the last."""

from collections.abc import Mapping
from typing import Any, Self

from numpy.typing import NDArray
from torch import Tensor, nn

from persephonee.multi_exit.costs import CostTable
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.exit_weights import exit_weights_of, load_exit_weights
from persephonee.multi_exit.settings import NetworkSpec as NetworkSpec
from persephonee.multi_exit.settings import SpecifiedNetwork, fingerprint_of


class MultiExitNetwork(SpecifiedNetwork, nn.Module):
    """A CNN cut into M+1 stages, with an exit head behind each of the first M (Sec. 3.1.2).

    Exits are numbered from 0; the last exit, number M, is the original classifier, the end of the last stage.
    Build one with `multi_exit.build_network` or `multi_exit.load_network`.

    Attributes:
        stages: M+1 modules; chained they are the backbone. `stages[i]` takes the output of `stages[i-1]`.
        heads: M modules; `heads[i]` takes the output of `stages[i]`.
        spec: how to build the network again.
        costs: the cost table, M+1 rows.
        feature_shapes: (C, H, W) of the maps that the heads take.
        calibration: of the M+1 exits, where the server has fitted one; it is no part of the fingerprints.
        risk_pools: of users who trained nothing, by name; JSON of clients/personalisation/risk/risk_pools.py.
        classifier_is_new: published weights had another number of classes, so that the last exit is untrained.
    """

    def __init__(
        self,
        stages: list[nn.Module],
        heads: list[nn.Module],
        spec: NetworkSpec,
        costs: CostTable,
        feature_shapes: tuple[tuple[int, int, int], ...],
    ) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.heads = nn.ModuleList(heads)
        self.spec = spec
        self.costs = costs
        self.feature_shapes = feature_shapes
        self.calibration: ExitCalibration | None = None
        self.risk_pools: dict[str, Any] = {}
        self.classifier_is_new = False
        self._backbone_is_frozen = False

    def features(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return what the M heads take, and the last exit's logits.

        Args:
            images: shape [B, C, H, W], float, in [0, 1].

        Returns:
            M feature maps [B, C_i, H_i, W_i], and logits [B, K].
        """
        maps, current = [], images
        for stage in self.stages[:-1]:
            current = stage(current)
            maps.append(current)
        return maps, self.stages[-1](current)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the logits of all M+1 exits, each [B, K], of images [B, C, H, W] in [0, 1]."""
        maps, last_logits = self.features(images)
        return [*(head(m) for head, m in zip(self.heads, maps, strict=True)), last_logits]

    def freeze_backbone(self) -> Self:
        """Take the gradients from the backbone and keep it in eval(), whatever train() is called with later.

        Without the second BatchNorm's running statistics would move and the last exit with them.
        """
        self.stages.requires_grad_(False)
        self._backbone_is_frozen = True
        self.stages.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; a frozen backbone stays in eval()."""
        super().train(mode)
        if self._backbone_is_frozen:
            self.stages.eval()
        return self

    def exit_state(self) -> dict[str, Tensor]:
        """Return copies of all tensors of the exit heads, as a flat dictionary."""
        return exit_weights_of(self.heads)

    def load_exit_state(self, state: Mapping[str, Tensor] | Mapping[str, NDArray[Any]]) -> None:
        """Load tensors that `exit_state` returned, or their arrays.

        Raises:
            ModelFileError: a tensor is missing, unknown, or of another shape.
        """
        load_exit_weights(self.heads, state)

    @property
    def backbone_fingerprint(self) -> str:
        """SHA-256 over the specification and the backbone's tensors; personal exits belong to it."""
        return self._fingerprint(self.stages.state_dict())

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the specification and all tensors."""
        return self._fingerprint(self.state_dict())

    def _fingerprint(self, state: dict[str, Tensor]) -> str:
        return fingerprint_of(self.spec, ((name, state[name].detach().cpu().numpy()) for name in sorted(state)))
