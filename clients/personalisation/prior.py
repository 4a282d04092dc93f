"""The user's own class frequencies, without labels, and what they add to every exit's logits (not in the paper).

The last exit's calibrated probabilities of the user's samples are p(k | x) under the global class frequencies g.
Expectation maximisation finds the frequencies w that make the samples likeliest (Saerens et al. 2002; that the
probabilities have to be calibrated first is Alexandari et al. 2020). A Dirichlet prior of strength s pulls w towards g;
s is chosen by the likelihood of samples that took no part, with w = g ("no shift") as a candidate that the others have
to beat beyond doubt. Then log(w / g) is what the logits lack. NumPy alone, since a device need not have PyTorch.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from persephonee.clients.errors import ClientSettingsError
from persephonee.multi_exit.exit_calibration import LEAST_GAIN

Floats = NDArray[np.float64]

STRENGTHS = (300.0, 100.0, 30.0, 10.0, 3.0)
"""Pseudo-samples behind the global frequencies. The strongest pull comes first: each goes on from the one before."""
FOLDS = 5
ITERATIONS = 12
"""Of expectation maximisation for each strength; it goes on from the strength before, so a few suffice."""
CERTAINTY = 2.0
"""By how many standard errors the likelihood of held-out samples has to beat that of the global frequencies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassPrior:
    """A user's class frequencies; they never leave the device.

    Attributes:
        frequencies: w, shape [K], positive, of sum 1.
        shift: log(w / g), shape [K], which every exit adds to its logits; all zeros where no shift was found.
        strength: pseudo-samples of the pull that was chosen; infinite where no shift was found.
        gain: in the log-likelihood of samples that took no part, against the global frequencies, in nats a sample.
    """

    frequencies: Floats
    shift: Floats
    strength: float
    gain: float = 0.0

    @property
    def is_shifted(self) -> bool:
        """Whether the user's frequencies differ from the global ones beyond doubt."""
        return bool(np.isfinite(self.strength))


def calibrated_probabilities(logits: Floats, temperature: float, bias: Floats) -> Floats:
    """Return softmax(logits / T + bias), shape [N, K], as the server calibrated an exit on held-out users."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature + bias
    scaled = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    probabilities: Floats = scaled / scaled.sum(axis=1, keepdims=True)
    return probabilities


def estimate_class_prior(
    probabilities: Floats,
    global_frequencies: Floats,
    generator: np.random.Generator,
    labels: NDArray[np.int64],
    least_gain: float = LEAST_GAIN,
) -> ClassPrior:
    """Return the user's class frequencies, or the global ones where the samples do not show others beyond doubt.

    Args:
        probabilities: calibrated ones of the last exit, shape [N, K]; what they are of labelled samples plays no part.
        global_frequencies: g, shape [K], positive, of sum 1.
        generator: of the division of the samples into folds.
        labels: shape [N], -1 where there is none; a labelled sample counts for its class alone.
        least_gain: nats a sample that a shift has to be worth.

    Raises:
        ClientSettingsError: an argument is no probability, or of another shape.
    """
    _check(probabilities, global_frequencies, labels)
    # of each sample p(k | x) / g_k: its likelihood under frequencies w, against that under g, is the product with w
    ratios = probabilities / global_frequencies
    known = labels >= 0
    ratios[known] = 0
    ratios[known, labels[known]] = 1 / global_frequencies[labels[known]]
    no_shift = ClassPrior(
        frequencies=global_frequencies, shift=np.zeros(len(global_frequencies)), strength=float("inf")
    )
    if len(ratios) < 2 * FOLDS:
        return no_shift
    held_out = _held_out_gains(ratios, global_frequencies, generator)
    best = int(held_out.mean(axis=1).argmax())
    gains = held_out[best]
    if gains.mean() <= max(least_gain, CERTAINTY * gains.std(ddof=1) / np.sqrt(len(gains))):
        return no_shift
    frequencies = _fitted(ratios, global_frequencies)[best]
    return ClassPrior(
        frequencies=frequencies,
        shift=np.log(frequencies / global_frequencies),
        strength=STRENGTHS[best],
        gain=float(gains.mean()),
    )


def _held_out_gains(ratios: Floats, global_frequencies: Floats, generator: np.random.Generator) -> Floats:
    """Return log p(x | w) - log p(x | g) of each sample, w without its fold; shape [strengths, N]."""
    fold = generator.permutation(len(ratios)) % FOLDS
    gains = np.empty((len(STRENGTHS), len(ratios)))
    for number in range(FOLDS):
        out = fold == number
        gains[:, out] = np.log(_fitted(ratios[~out], global_frequencies) @ ratios[out].T)
    return gains


def _fitted(ratios: Floats, global_frequencies: Floats) -> Floats:
    """Return the likeliest frequencies for each strength of the pull, shape [strengths, K]."""
    found, frequencies = [], global_frequencies
    for strength in STRENGTHS:
        for _ in range(ITERATIONS):
            # both steps at once: the sum over samples of w_k r_k / (w r)
            counts = frequencies * ((1 / (ratios @ frequencies)) @ ratios)
            frequencies = (counts + strength * global_frequencies) / (len(ratios) + strength)
        found.append(frequencies)
    return np.stack(found)


def _check(probabilities: Floats, global_frequencies: Floats, labels: NDArray[np.int64]) -> None:
    classes = len(global_frequencies)
    if probabilities.ndim != 2 or probabilities.shape[1] != classes or labels.shape != probabilities.shape[:1]:
        raise ClientSettingsError(
            f"probabilities {probabilities.shape}, labels {labels.shape} and {classes} frequencies do not fit: "
            "expected [N, K], [N] and K."
        )
    if not (np.isfinite(global_frequencies).all() and (global_frequencies > 0).all()):
        raise ClientSettingsError("a global class frequency is not above 0: smooth them by one sample a class.")
    if not (np.isfinite(probabilities).all() and (probabilities >= 0).all()) or labels.max(initial=-1) >= classes:
        raise ClientSettingsError("a probability is negative or not finite, or a label is no class of the network.")
