"""How a device personalises: the loss of Eq. (1), the training schedule, the tolerance of the calibration."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from persephonee.clients.errors import ClientSettingsError
from persephonee.multi_exit.settings import LossWeights

Cost = Literal["macs", "latency"]
Reference = Literal["last-exit", "original"]
Rule = Literal["auto", "paper", "controlled", "federated"]
Schedule = Literal["paper", "fast"]
Statistics = Literal["frozen", "batch"]
Scheme = Literal["auto", "supervised", "self-distillation", "self-supervision", "prior"]


def loss_weights(scheme: Scheme, labelled: float, temperature: float = 1.0) -> LossWeights:
    """Return the weights of Eq. (1) for one of the paper's schemes (Sec. 3.1.3).

    Args:
        scheme: "supervised" (alpha = 1), "self-distillation" (beta = 1), "self-supervision" (gamma = 1), "prior"
            (all 0: the user's class frequencies alone, and no training), or "auto": supervised where all samples have
            labels, self-distillation where none has, and both where some have.
        labelled: fraction of the user's samples that have labels, in [0, 1].
        temperature: T of the distillation, > 0.

    Raises:
        ClientSettingsError: the scheme is unknown.
    """
    if scheme not in get_args(Scheme):
        raise ClientSettingsError(f"scheme={scheme!r} is unknown: use one of {', '.join(get_args(Scheme))}.")
    if scheme == "prior":
        return LossWeights(temperature=temperature)
    if scheme == "self-supervision":
        return LossWeights(gamma=1.0, temperature=temperature)
    if scheme == "supervised" or (scheme == "auto" and labelled == 1):
        return LossWeights(alpha=1.0, temperature=temperature)
    if scheme == "self-distillation" or labelled == 0:
        return LossWeights(beta=1.0, temperature=temperature)
    return LossWeights(alpha=1.0, beta=1.0, temperature=temperature)


def parse_bytes(text: str) -> int:
    """Return the bytes that "800MB", "1GB", "1.5GB" or "750000000" mean; units are powers of 1,000.

    Raises:
        ClientSettingsError: it is no number above 0.
    """
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    number, unit = (text[:-2], units[text[-2:].upper()]) if text[-2:].upper() in units else (text, 1)
    try:
        found = int(float(number) * unit)
    except (ValueError, OverflowError):
        found = 0
    if found < 1:
        raise ClientSettingsError(f"memory_budget={text!r} is no amount: expected bytes, such as 800MB or 1GB.")
    return found


@dataclass(frozen=True, kw_only=True)
class PersonalisationSettings:
    """The settings of a personalisation round; the defaults are the paper's schedule (Sec. 4.1).

    Raises:
        ClientSettingsError: a setting is out of its range.
    """

    weights: LossWeights = field(default_factory=lambda: LossWeights(alpha=1.0))
    """alpha, beta, gamma and the temperature of Eq. (1)."""

    schedule: Schedule = "paper"
    """"paper": SGD on the whole heads, as the settings below say; "fast": some Newton-like steps on the heads'
    classifiers alone, at the accuracy of the first in a fraction of its time."""

    epochs: int = 10
    """Passes over the user's training samples, at least 1."""

    learning_rate: float = 0.01
    """Of SGD, > 0."""

    momentum: float = 0.9
    """Of SGD, in [0, 1); the paper does not state it."""

    batch_size: int = 32
    """At least 2: BatchNorm needs two samples."""

    max_gradient_norm: float = 1.0
    """The gradient of a head in the paper's schedule is scaled down to this norm, > 0: with frozen statistics the first
    steps of a deep network's heads would otherwise throw away what pretraining taught them, or end in NaN."""

    head_statistics: Statistics = "frozen"
    """What the heads' BatchNorm normalises by while they train: "frozen", the statistics of pretraining, or "batch",
    those of each batch, which a user's few samples shake."""

    rule: Rule = "auto"
    """Who chooses the policy: "controlled" keeps the tolerance with the curves of users that ship with the model,
    "federated" with those of the other clients, "paper" on the user's own samples and without a promise; "auto" is
    federated in a federation, and controlled elsewhere."""

    drop_tolerance: float = 0.01
    """How much accuracy the policy may lose against the last exit, in [0, 1]."""

    delta: float = 0.1
    """The chance at which the controlled rule may miss its promise, in (0, 1)."""

    use_prior: bool = True
    """Estimate the user's class frequencies, from labels where there are some and from the last exit's answers, and let
    every exit count on them; where the samples show none, nothing changes. The model has to carry a calibration."""

    adapt_last_exit: bool = True
    """The policy's last exit counts on the user's class frequencies too. Without it the policy falls back on the
    original network's own answers, and is compared with them."""

    drop_reference: Reference = "last-exit"
    """What the tolerance is counted against: "last-exit", which counts on the user's class frequencies where there are
    some, or "original", the network before personalisation: a policy that saves more and gains less."""

    unfamiliar_fraction: float = 0.02
    """An image that is unlike the user's own takes the last exit. Of these own images about this fraction does so too,
    in [0, 1); 0 makes no such check, and neither does the paper's rule."""

    cost: Cost = "macs"
    """What calibration and pruning save: "macs" of the cost table, or "latency", measured on this device, which no two
    runs measure alike."""

    memory_budget: str = ""
    """What a round may take beside the network and the images, such as "1GB" or bytes; empty sets no limit."""

    half_features: bool = False
    """A memory budget may round features to float16 before it turns to the disk."""

    proximal_mu: float = 0.0
    """mu of FedProx, 0 or more: pulls the exits towards the global ones by mu/2 ||w - w_global||^2; 0 does not."""

    def __post_init__(self) -> None:
        if self.memory_budget:
            parse_bytes(self.memory_budget)
        self._require("proximal_mu", 0 <= self.proximal_mu < math.inf, "a finite number >= 0")
        self._require("cost", self.cost in get_args(Cost), " or ".join(get_args(Cost)))
        known = get_args(Statistics)
        self._require("head_statistics", self.head_statistics in known, " or ".join(known))
        self._require("schedule", self.schedule in get_args(Schedule), " or ".join(get_args(Schedule)))
        plain = self.schedule == "paper" or self.proximal_mu == 0
        self._require("proximal_mu", plain, "0 with the fast schedule, whose exits are held by a pull of its own")
        self._require("epochs", self.epochs >= 1, "at least 1")
        self._require("learning_rate", 0 < self.learning_rate < math.inf, "a finite number > 0")
        self._require("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self._require("max_gradient_norm", self.max_gradient_norm > 0, "a number > 0")
        self._require("batch_size", self.batch_size >= 2, "at least 2")
        self._require("rule", self.rule in get_args(Rule), f"one of {', '.join(get_args(Rule))}")
        references = get_args(Reference)
        self._require("drop_reference", self.drop_reference in references, " or ".join(references))
        compares = self.drop_reference == "last-exit" or self.rule != "paper"
        self._require("drop_reference", compares, "last-exit, which the rule paper knows alone; choose another rule")
        self._require("drop_tolerance", 0 <= self.drop_tolerance <= 1, "a number in [0, 1]")
        self._require("unfamiliar_fraction", 0 <= self.unfamiliar_fraction < 1, "a number in [0, 1)")
        self._require("delta", 0 < self.delta < 1, "a number in (0, 1)")

    @property
    def learns_classifiers_alone(self) -> bool:
        """Whether a round leaves everything but the exits' classifiers as it is."""
        return self.schedule == "fast" or not self.weights.is_learning

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ClientSettingsError(f"{name}={getattr(self, name)} is out of range: expected {expected}.")
