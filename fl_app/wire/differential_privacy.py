"""Differential privacy of shared exits: Flower's clipping and noise, and its accountant.

Two federations are neighbours when one client's data is replaced by other data (replace-one). A change clipped to C can
then move by 2 C, and the average over n clients by 2 C / n; that is the sensitivity which epsilon is stated for, so a
noise of z C protects like a multiplier of z / 2. Who takes part is public: n stands in the tables of the run. Noise at
the server protects against everybody who sees the merged exits; noise at the clients protects against the server too,
and costs far more accuracy.

Noise that others could compute again would protect nothing, and the run's seed is known to every client. So the noise
follows from a secret of the server's (or the operating system's randomness on a client), and two runs with noise and
the same seed differ; a run that is resumed goes on with the same secret.
"""

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from persephonee.data_partitions.seeds import digest_of
from persephonee.fl_app.settings.sharing_settings import PrivacySettings
from persephonee.fl_app.wire.exit_arrays import ExitArrays
from persephonee.fl_app.wire.flower_private import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    RdpAccountant,
    SamplingMethod,
    add_gaussian_noise_inplace,
    compute_clip_model_update,
)
from persephonee.multi_exit.checked_json import write_with_digest

PRIVACY_NAME = "privacy.json"


def clipped(arrays: ExitArrays, start: ExitArrays, privacy: PrivacySettings) -> ExitArrays:
    """Return `start` plus the change to `arrays`, clipped to the norm as a whole, all exits together."""
    if all(np.array_equal(arrays[name], start[name]) for name in arrays):
        # a change of nothing counts as one: Flower's clipping would divide by its norm
        return arrays
    values = [arrays[name] for name in arrays]
    compute_clip_model_update(values, [start[name] for name in arrays], privacy.dp_clipping_norm)
    return {name: value.astype(np.float32) for name, value in zip(arrays, values, strict=True)}


def with_noise(arrays: ExitArrays, privacy: PrivacySettings) -> ExitArrays:
    """Return the arrays with a client's own noise, of standard deviation z C."""
    values = [array.copy() for array in arrays.values()]
    with secret_noise(secrets.token_hex(16), 0):
        add_gaussian_noise_inplace(values, privacy.dp_noise_multiplier * privacy.dp_clipping_norm)
    return dict(zip(arrays, values, strict=True))


def noisy_mean(changed: Sequence[ExitArrays], privacy: PrivacySettings) -> ExitArrays:
    """Return the average with equal weights of n clients' clipped exits, with noise of standard deviation z C / n."""
    values = [np.asarray(np.mean([c[name] for c in changed], axis=0, dtype=np.float64)) for name in changed[0]]
    add_gaussian_noise_inplace(values, privacy.dp_noise_multiplier * privacy.dp_clipping_norm / len(changed))
    return {name: value.astype(np.float32) for name, value in zip(changed[0], values, strict=True)}


@contextlib.contextmanager
def secret_noise(secret: str, round_number: int) -> Iterator[None]:
    """Let numpy's global generator, which Flower draws from, follow from a secret and the round for a while."""
    before = np.random.get_state()
    np.random.seed(np.frombuffer(digest_of(secret, round_number, "noise"), dtype=np.uint32))
    try:
        yield
    finally:
        np.random.set_state(before)


def epsilon_after(privacy: PrivacySettings, rounds: int) -> float:
    """Return the epsilon at `dp_delta` that so many rounds have spent (Renyi accounting).

    No amplification by sampling: the same clients take part in every round. The accountant takes the noise over the
    sensitivity, wherever the noise is added: z C over 2 C at a client, and z C / n over 2 C / n at the server.
    """
    if rounds == 0:
        return 0.0
    config = PrivacyConfig(
        target_delta=privacy.dp_delta,
        population_size=1,
        neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=SamplingMethod.NO_AMPLIFICATION,
    )
    accountant = RdpAccountant(config)
    # the Gaussian mechanism's divergence depends on noise over sensitivity alone, so a sensitivity of one says it all
    event = GaussianPrivacyEvent(noise_multiplier=privacy.dp_noise_multiplier / 2, sample_size=1, population_size=1)
    accountant.compose(event, rounds)
    return float(accountant.get_privacy_spent().epsilon)


def write_spent(privacy: PrivacySettings, rounds: int, run: Path) -> str:
    """Write what so many rounds have spent as privacy.json into the run folder, and return it in a sentence."""
    epsilon = epsilon_after(privacy, rounds)
    against = "whoever sees the merged exits" if privacy.dp_noise_at == "server" else "the server"
    words = (
        f"Differential privacy of the shared exits against {against}: epsilon {epsilon:.2f} at delta "
        f"{privacy.dp_delta:g} after {rounds} rounds (noise {privacy.dp_noise_multiplier:g} times the clipping norm "
        f"{privacy.dp_clipping_norm:g}), for neighbours that differ in one client's data; the figures that clients "
        "report are not covered."
    )
    spent = {"epsilon": epsilon, "delta": privacy.dp_delta, "rounds": rounds, "words": words}
    write_with_digest(run / PRIVACY_NAME, spent)
    return words
