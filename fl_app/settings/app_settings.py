"""All settings of a run, in one object, and their flat form: the run-config keys of `flwr run`.

`persephonee simulate` and the Flower app build the same `AppSettings`. A key is the name of a field with hyphens, such
as `drop-tolerance`; an empty string stands for None, which a run configuration does not know.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from persephonee.clients.personalisation.settings import PersonalisationSettings, Scheme, loss_weights
from persephonee.data_partitions.settings import DataSettings, SplitSettings
from persephonee.fl_app.errors import RunConfigError
from persephonee.fl_app.settings.run_config import Value, from_flat, key_of, keys_below, to_flat
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.multi_exit.settings import DEFAULT_SOURCES, ComputeSettings, LossWeights
from persephonee.server.training.global_model_settings import GlobalModelSettings

SMALL_RUN: dict[str, Value] = {
    "pretrain-epochs": 3,
    "pretrain-max-users": 40,
    "pretrain-calibration-users": 40,
    # few samples make few steps: smaller batches make more of them
    "pretrain-batch-size": 64,
    "pretrain-learning-rate": 0.05,
}
"""How `simulate` and `flwr run` make a model where none is named: in minutes, not hours."""

PATH_KEYS = frozenset({"data-path", "model", "run-dir", "client-store", "model-store", "weights"})


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """Who takes part, for how long, and how many must answer.

    Raises:
        RunConfigError: a number out of its range.
    """

    rounds: int = 1
    """Personalisation rounds, 1 or more."""

    clients: int = 0
    """How many clients take part; 0 takes every node that is there."""

    held_out_fraction: float = 0.0
    """Fraction of these clients that never takes part, in [0, 1): the merged exits are measured on them."""

    min_reply_fraction: float = 0.5
    """The run fails when a smaller fraction of the clients asked sends a valid reply, in [0, 1]; one must in any
    case."""

    enough_fraction: float = 1.0
    """A round ends once this fraction of the clients asked sent a valid reply, in (0, 1]; who is late is dropped."""

    round_deadline: float = 3600.0
    """Seconds after which a round ends with the replies that are there."""

    node_wait: float = 300.0
    """Seconds to wait for nodes to appear and to say who they are."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise RunConfigError(f"rounds={self.rounds} is below 1; ask for 1 or more.")
        if self.clients < 0:
            raise RunConfigError(f"clients={self.clients} is negative; give a number of clients, or 0 for all nodes.")
        if not 0 <= self.held_out_fraction < 1:
            raise RunConfigError(
                f"held-out-fraction={self.held_out_fraction} is out of range; give a number in [0, 1)."
            )
        if not 0 <= self.min_reply_fraction <= 1:
            raise RunConfigError(
                f"min-reply-fraction={self.min_reply_fraction} is not a fraction; give a number in [0, 1]."
            )
        if not self.min_reply_fraction <= self.enough_fraction or not 0 < self.enough_fraction <= 1:
            raise RunConfigError(
                f"enough-fraction={self.enough_fraction} is out of range; give a number in (0, 1], and no less than "
                f"min-reply-fraction={self.min_reply_fraction:g}."
            )
        for name in ("round_deadline", "node_wait"):
            if not 0 < getattr(self, name) < float("inf"):
                raise RunConfigError(f"{key_of(name)}={getattr(self, name)} is no time; give seconds, above 0.")

    def num_held_out(self, clients: int) -> int:
        """Return how many of so many clients never take part: one at least on either side where there are two."""
        return min(max(round(self.held_out_fraction * clients), 1), clients - 1) if self.held_out_fraction else 0


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What the exits learn from, Eq. (1): one of the paper's schemes, or weights of one's own."""

    scheme: Scheme = "auto"
    """What the exits learn from (Sec. 3.1.3); auto follows what is labelled."""

    alpha: float | None = None
    """Weight of the labels; any weight that is given takes the scheme's place, and those left out are 0."""

    beta: float | None = None
    """Weight of the last exit's soft answers."""

    gamma: float | None = None
    """Weight of the last exit's hard answers; excludes alpha."""

    temperature: float = 1.0
    """T of the soft answers, above 0."""

    def weights(self, labelled: float) -> LossWeights:
        """Return the weights for a user of whose samples the fraction `labelled` has labels.

        Raises:
            ValueError: the scheme is unknown, or the weights exclude each other or are out of range.
        """
        own = (self.alpha, self.beta, self.gamma)
        if own == (None, None, None):
            return loss_weights(self.scheme, labelled, self.temperature)
        if self.scheme != "auto":
            raise RunConfigError(f"scheme={self.scheme} and own weights exclude each other; leave one of them out.")
        alpha, beta, gamma = (weight or 0.0 for weight in own)
        return LossWeights(alpha=alpha, beta=beta, gamma=gamma, temperature=self.temperature)


@dataclass(frozen=True, kw_only=True)
class PathSettings:
    """Where things lie: on the server, and on simulated clients; a device's places stand in its node configuration."""

    model: Path | None = None
    """Folder of the global model, as persephonee pretrain writes it; by default one is pretrained, beside the run
    folder."""

    run_dir: Path | None = None
    """Folder of the run; by default a new one below runs/."""

    client_store: Path | None = None
    """Simulated clients' own stores, one folder each; None puts them into the run folder."""

    model_store: Path | None = None
    """Folder of models by fingerprint, for simulated clients that do not see `model`; None keeps them in memory."""

    sources: str = ",".join(DEFAULT_SOURCES)
    """Where backbones may come from, with commas: torchvision, timm, or the module of a network of one's own."""

    resume: bool = False
    """Go on with the run that lies in `run_dir`."""

    overwrite: bool = False
    """Replace the run that lies in the run folder."""


@dataclass(frozen=True, kw_only=True)
class AppSettings:
    """Everything that a run can be told.

    Raises:
        RunConfigError: seed is negative, or settings exclude each other.
    """

    data: DataSettings = field(default_factory=DataSettings)
    split: SplitSettings = field(default_factory=SplitSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    personalisation: PersonalisationSettings = field(default_factory=PersonalisationSettings)
    """The schedule; its weights follow from `loss`."""
    pretraining: GlobalModelSettings = field(default_factory=GlobalModelSettings)
    """How to make a model where none is named; its seed and sources are those of the run."""
    rounds: RoundSettings = field(default_factory=RoundSettings)
    sharing: SharingSettings = field(default_factory=SharingSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    paths: PathSettings = field(default_factory=PathSettings)
    compute: ComputeSettings = field(default_factory=ComputeSettings)
    """Of the server, and of simulated clients; a device's own node configuration says where it computes."""
    seed: int = 0
    """All randomness follows from it, together with the client, the round and the purpose."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise RunConfigError(f"seed={self.seed} is out of range; give a whole number in [0, 2**63).")
        self.privacy.check_sharing(self.sharing)
        if clients := self.rounds.clients:
            self.sharing.check_participants(clients - self.rounds.num_held_out(clients))
        weights = self.loss.weights(self.split.labels)
        training = replace(self.pretraining.training, seed=self.seed)
        for name, given, default, derived, source in (
            (
                "personalisation.weights",
                self.personalisation.weights,
                PersonalisationSettings().weights,
                weights,
                "loss",
            ),
            ("pretraining.training.seed", self.pretraining.training.seed, 0, self.seed, "seed"),
            ("pretraining.sources", self.pretraining.sources, DEFAULT_SOURCES, self.sources, "paths.sources"),
        ):
            if given not in (default, derived):
                raise RunConfigError(f"{name}={given} contradicts {source}, which decides it: set {source} instead.")
        object.__setattr__(self, "personalisation", replace(self.personalisation, weights=weights))
        object.__setattr__(self, "pretraining", replace(self.pretraining, training=training, sources=self.sources))

    @classmethod
    def from_run_config(cls, config: Mapping[str, Value]) -> "AppSettings":
        """Build the settings from run-config keys; those that are missing keep their defaults.

        Raises:
            RunConfigError: an unknown key, a wrong type, or a value out of range; one sentence.
        """
        return from_flat(cls, config)

    def to_run_config(self) -> dict[str, Value]:
        """Return all settings under their run-config keys."""
        return to_flat(self)

    def with_absolute_paths(self) -> "AppSettings":
        """Return the same settings with every path absolute, as processes in other folders need them."""
        flat = {
            key: str(Path(str(value)).expanduser().absolute()) if key in PATH_KEYS and value else value
            for key, value in self.to_run_config().items()
        }
        return type(self).from_run_config(flat)

    def run_folder(self, run_id: int) -> Path:
        """Return the folder of the run: the one that was named, or one for this run id below runs/ where we stand."""
        return self.paths.run_dir or Path.cwd() / "runs" / f"flwr-{run_id}"

    def model_folder(self, run_id: int) -> Path:
        """Return the folder of the global model: the one that was named, or one that belongs to these settings."""
        made_by = [self.to_run_config()[key] for key in sorted(keys_below(type(self), "data", "pretraining"))]
        digest = hashlib.sha256(json.dumps([self.seed, *made_by]).encode()).hexdigest()[:8]
        name = f"{self.pretraining.backbone}-{self.data.dataset}-{digest}"
        return self.paths.model or self.run_folder(run_id).parent / "models" / re.sub(r"[^\w.-]", "-", name)

    @property
    def pools_curves(self) -> bool:
        """Whether the clients' risk curves are pooled: the federated rule, which is a federation's default."""
        return self.personalisation.rule in ("auto", "federated")

    @property
    def sources(self) -> tuple[str, ...]:
        """Where a simulation's backbones may come from."""
        return tuple(name.strip() for name in self.paths.sources.split(","))
