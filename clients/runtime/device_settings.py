"""How a device lives, what it is shown and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.clients.runtime.settings import OrchestratorSettings, SampleStoreSettings
from persephonee.multi_exit.settings import LossWeights


def automatic_weights(labelled: float) -> LossWeights:
    """Return the weights of Eq. (1) that suit the fraction of samples with labels, in [0, 1]."""
    return loss_weights("auto", labelled)


@dataclass(frozen=True, kw_only=True)
class DeviceSettings:
    """How a device lives."""

    client_id: str
    """Whose device it is."""

    orchestrator: OrchestratorSettings = field(default_factory=OrchestratorSettings)
    """Exploration, drift, and when a round may begin."""

    samples: SampleStoreSettings = field(default_factory=SampleStoreSettings)
    """Bounds of the sample store."""

    personalisation: PersonalisationSettings = field(default_factory=PersonalisationSettings)
    """Of the rounds."""

    weights: Callable[[float], LossWeights] = field(default=automatic_weights)
    """Of Eq. (1), given the fraction of a round's samples that have labels."""

    round_samples: int = 400
    """A round uses so many of the newest samples at most."""

    samples_after_drift: int = 160
    """The same of a round that drift or a collapse asked for: older samples are from before the shift."""

    seed: int = 0
    """Decides which frames are explored, and the order of the training samples."""

    def __post_init__(self) -> None:
        for name in ("round_samples", "samples_after_drift"):
            if getattr(self, name) < 10:
                raise ClientSettingsError(f"{name}={getattr(self, name)} is out of range: expected at least 10.")


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """What the device is to answer.

    Attributes:
        key: its own name.
        image: uint8 [C, H, W]; a tensor is taken too.
        label: the class, where the user has said it.
    """

    key: str
    image: NDArray[np.uint8]
    label: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", np.asarray(self.image))


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The device's prediction for one frame.

    Attributes:
        key: the name of the frame.
        label: index of the predicted class.
        confidence: top-1 softmax, in [0, 1].
        exit: index of the exit that answered; M is the last exit.
        latency_ms: duration of the inference; where `explored` is true, it includes the last exit.
        explored: whether the last exit was also computed, to check the early exits.
        stored: whether the sample was new enough to be stored; if true, it survives a crash.
    """

    key: str
    label: int
    confidence: float
    exit: int
    latency_ms: float
    explored: bool
    stored: bool
