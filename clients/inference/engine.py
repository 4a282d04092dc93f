"""What every inference engine does: stop computing at the first exit in use that is confident (Sec. 3.2).

Needs NumPy only, so that a device with ONNX Runtime and without PyTorch can use it.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError, ImageError, NonFiniteOutputError
from persephonee.clients.personalisation.policy import ExitPolicy

Images = NDArray[np.uint8] | NDArray[np.float32]
"""Shape [B, C, H, W]: uint8 from 0 to 255, or floating point from 0 to 1."""

Array = TypeVar("Array")
"""What a subclass computes with: features [B, ...] and logits [B, K]."""

_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What the policy answers on B images.

    Attributes:
        labels: class, shape [B].
        confidences: top-1 softmax of the exit that answered, shape [B], in [0, 1].
        exit_indices: number of the exit that answered, shape [B]; M is the last exit.
    """

    labels: NDArray[np.int64]
    confidences: NDArray[np.float64]
    exit_indices: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Exploration:
    """What all exits in use and the last exit answer on B images, E = len(exits).

    Attributes:
        predictions: what the policy makes of it; `infer` gives the same.
        exits: numbers of the exits in use, increasing, and the last exit's as the last entry.
        logits: shape [E, B, K], float32.
        labels: shape [E, B].
        confidences: top-1 softmax, shape [E, B], in [0, 1].
        unfamiliar: whether the policy takes each image for unfamiliar, so that the last exit answers, shape [B].
    """

    predictions: Predictions
    exits: tuple[int, ...]
    logits: NDArray[np.float32]
    labels: NDArray[np.int64]
    confidences: NDArray[np.float64]
    unfamiliar: NDArray[np.bool_]


class Engine(Protocol):
    """Personal inference, whatever it runs on."""

    @property
    def policy(self) -> ExitPolicy:
        """The threshold and the exits in use."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""

    @property
    def num_classes(self) -> int:
        """K."""

    def infer(self, images: Images) -> Predictions:
        """Return the policy's answers; what lies behind the exit that answers is not computed.

        Raises:
            ImageError: the images have another shape or type than the network takes, or are not finite.
            NonFiniteOutputError: the logits are not finite.
        """

    def explore(self, images: Images) -> Exploration:
        """Return what all exits in use and the last exit answer.

        Raises:
            ImageError: the images have another shape or type than the network takes.
        """


def merged_stages(policy: ExitPolicy) -> tuple[range, ...]:
    """Return the stages up to each exit in use and to the last one: those without an exit between them go together."""
    ends = (*policy.exits_in_use, policy.num_exits)
    starts = (0, *(exit + 1 for exit in policy.exits_in_use))
    return tuple(range(start, end + 1) for start, end in zip(starts, ends, strict=True))


def first_exit_always_answers(policy: ExitPolicy, num_classes: int) -> bool:
    """Return whether no sample can pass the first exit in use: a top-1 softmax is never below 1/K."""
    # with a margin, since sums of exponentials are rounded
    return policy.familiar is None and policy.threshold * num_classes < 1 - 1e-9


def to_unit_range(images: Images, input_shape: tuple[int, int, int]) -> NDArray[np.float32]:
    """Return images as float32 in [0, 1], contiguous and writeable, rounded as
    `persephonee.data_partitions.samples.to_float` does.

    Raises:
        ImageError: they have another shape or type than the network takes.
    """
    if isinstance(images, np.ndarray) and images.shape[1:] == input_shape:
        if images.dtype == np.uint8:
            return images.astype(_FLOAT32, order="C") / np.float32(255)
        if images.dtype.kind == "f":
            if not np.isfinite(images).all():
                raise ImageError("a pixel is not a finite number: give images in [0, 1].")
            is_ready = images.dtype == _FLOAT32 and images.flags.carray
            return images if is_ready else np.array(images, dtype=_FLOAT32, order="C")  # type: ignore[return-value]
    kind = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else type(images).__name__
    raise ImageError(
        f"the images are {kind}, expected a NumPy array of uint8 or float [B, {', '.join(map(str, input_shape))}]: "
        "convert them to the network's colours and size."
    )


class StagedEngine(ABC, Generic[Array]):
    """An engine of merged stages; a subclass defines how one stage is run.

    Attributes:
        policy: the threshold and the exits in use.
        input_shape: (C, H, W) of an image.
        num_classes: K.
        steps: the exits in use and the last exit; step i runs one merged stage and its head.
        reachable_steps: how many of the steps `infer` can ever run; 1 where the first exit always answers.
    """

    def __init__(self, policy: ExitPolicy, input_shape: tuple[int, int, int], num_classes: int) -> None:
        self.policy = policy
        self.input_shape = input_shape
        self.num_classes = num_classes
        self.steps = (*policy.exits_in_use, policy.num_exits)
        self.reachable_steps = 1 if first_exit_always_answers(policy, num_classes) else len(self.steps)

    @abstractmethod
    def _start(self, images: NDArray[np.float32]) -> Array:
        """Return the images as the first stage takes them."""

    @abstractmethod
    def _advance(self, step: int, features: Array) -> tuple[Array, Array]:
        """Run a merged stage and its head on what the step before returned; return features and logits."""

    @abstractmethod
    def _keep(self, features: Array, rows: NDArray[np.int64]) -> Array:
        """Return the features of some of the samples."""

    @abstractmethod
    def _labels(self, logits: Array) -> NDArray[np.int64]:
        """Return the classes [B]."""

    @abstractmethod
    def _confidences(self, logits: Array) -> NDArray[np.float64]:
        """Return the top-1 softmax [B], computed in float64."""

    def _as_array(self, logits: Array) -> NDArray[np.float32]:
        """Return the logits [B, K]."""
        return np.asarray(logits)

    def _confidence(self, logits: Array) -> float:
        """Return the top-1 softmax of one image's logits [1, K]."""
        return float(self._confidences(logits)[0])

    def infer(self, images: Images) -> Predictions:
        """Return the policy's answers; what lies behind the exit that answers is not computed.

        The answers are those of `ExitPolicy.exit_of` on the confidences of all exits. A batch that shrinks may
        round differently, so a confidence within some 1e-6 of the threshold may fall on its other side.

        Raises:
            ImageError: the images have another shape or type than the network takes.
        """
        ready = to_unit_range(images, self.input_shape)
        unfamiliar = self._unfamiliar(ready)
        features = self._start(ready)
        if len(images) == 1:
            return self._infer_one(features, bool(unfamiliar[0]))
        return self._infer_batch(features, unfamiliar)

    def explore(self, images: Images) -> Exploration:
        """Return what all exits in use and the last exit answer; nothing is skipped.

        Raises:
            ImageError: the images have another shape or type than the network takes.
        """
        ready = to_unit_range(images, self.input_shape)
        unfamiliar = self._unfamiliar(ready)
        features = self._start(ready)
        logits = []
        for step in range(len(self.steps)):
            features, of_step = self._advance(step, features)
            logits.append(of_step)
        labels = np.stack([self._labels(of_step) for of_step in logits])
        confidences = np.stack([self._confidences(of_step) for of_step in logits])
        _check_finite(bool(np.isfinite(confidences).all()))
        return Exploration(
            predictions=self._apply_policy(labels, confidences, unfamiliar),
            exits=self.steps,
            logits=np.stack([self._as_array(of_step) for of_step in logits]),
            labels=labels,
            confidences=confidences,
            unfamiliar=unfamiliar,
        )

    def _unfamiliar(self, images: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return whether each image has to take the last exit; nobody asks where there is no other."""
        familiar = self.policy.familiar
        if familiar is None or len(self.steps) == 1:
            return np.zeros(len(images), dtype=np.bool_)
        return familiar.unfamiliar(images)

    def _infer_one(self, features: Array, unfamiliar: bool) -> Predictions:
        # one image at a time is what a device mostly does: no bookkeeping of who has left
        for step in range(self.reachable_steps):
            features, logits = self._advance(step, features)
            confidence = self._confidence(logits)
            # NaN in one logit is NaN in all of a softmax, as infinity is
            _check_finite(math.isfinite(confidence))
            if confidence > self.policy.threshold and not unfamiliar:
                break
        return Predictions(
            labels=self._labels(logits), confidences=np.array([confidence]), exit_indices=np.array([self.steps[step]])
        )

    def _infer_batch(self, features: Array, unfamiliar: NDArray[np.bool_]) -> Predictions:
        num_images = len(unfamiliar)
        predictions = Predictions(
            labels=np.empty(num_images, dtype=np.int64),
            confidences=np.empty(num_images, dtype=np.float64),
            exit_indices=np.empty(num_images, dtype=np.int64),
        )
        waiting = np.arange(num_images)
        for step in range(self.reachable_steps if num_images else 0):
            features, logits = self._advance(step, features)
            confidences = self._confidences(logits)
            _check_finite(bool(np.isfinite(confidences).all()))
            is_last = step == self.reachable_steps - 1
            leaves = (confidences > self.policy.threshold) & ~unfamiliar[waiting]
            exit_indices = np.full(len(waiting), True) if is_last else leaves
            gone = waiting[exit_indices]
            predictions.labels[gone] = self._labels(logits)[exit_indices]
            predictions.confidences[gone] = confidences[exit_indices]
            predictions.exit_indices[gone] = self.steps[step]
            if len(gone) == len(waiting):
                break
            if len(gone):
                waiting = waiting[~exit_indices]
                features = self._keep(features, np.flatnonzero(~exit_indices))
        return predictions

    def _apply_policy(
        self, labels: NDArray[np.int64], confidences: NDArray[np.float64], unfamiliar: NDArray[np.bool_]
    ) -> Predictions:
        everywhere = np.zeros((self.policy.num_exits + 1, labels.shape[1]))
        everywhere[list(self.steps)] = confidences
        everywhere[:-1, unfamiliar] = 0
        exits = self.policy.exit_of(everywhere)
        row, column = np.searchsorted(self.steps, exits), np.arange(labels.shape[1])
        return Predictions(labels=labels[row, column], confidences=confidences[row, column], exit_indices=exits)


def _check_finite(is_finite: bool) -> None:
    if not is_finite:
        raise NonFiniteOutputError(
            "the network's logits are not finite numbers, so there is no answer: load the model and the exits again."
        )


def check_fits(policy: ExitPolicy, num_exits: int) -> None:
    """Refuse a policy of a network with another number of exits.

    Raises:
        ClientSettingsError: it does not fit.
    """
    if policy.num_exits != num_exits:
        raise ClientSettingsError(
            f"the policy is for {policy.num_exits} early exits and the network has {num_exits}: "
            "use the policy that was calibrated with this network."
        )


def top_1_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the top-1 softmax, in [0, 1], of logits [B, K], computed in float64."""
    precise = logits.astype(np.float64)
    confidences: NDArray[np.float64] = 1 / np.exp(precise - precise.max(axis=1, keepdims=True)).sum(axis=1)
    return confidences
