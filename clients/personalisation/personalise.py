"""One personalisation round on the device, from a user's samples to the report (PersEPhonEE, Sec. 3.1).

Start reading here: `personalise` is the way of a user's samples, a step a line, and each step is a file beside this.
"""

from torch import Tensor

from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.exit_training import train_exits
from persephonee.clients.personalisation.fast_training import embed, fit_classifiers
from persephonee.clients.personalisation.feature_plan import FeaturePlan, plan_features
from persephonee.clients.personalisation.features import FeatureCache, compute_features
from persephonee.clients.personalisation.personalisation_round import Personalisation, PersonalisationRound
from persephonee.clients.personalisation.settings import PersonalisationSettings, parse_bytes
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.user_splits import SampleSplit
from persephonee.multi_exit.network import MultiExitNetwork

__all__ = ["Personalisation", "personalise"]


def personalise(
    network: MultiExitNetwork,
    samples: UserSamples,
    split: SampleSplit,
    settings: PersonalisationSettings,
    *,
    store: ExitStore | None = None,
    round_number: int = 1,
    seed: int = 0,
    features: FeatureCache | None = None,
    global_exit_weights: dict[str, Tensor] | None = None,
    run: str = "",
) -> Personalisation:
    """Retrain the early exits on one user's samples, choose the threshold, prune, and report.

    Args:
        network: the global model; its backbone is frozen here, and its weights are left as they are.
        samples: the user's N samples.
        split: which of them train, calibrate and test, and whose label the device may use.
        settings: the loss, the schedule and the drop tolerance.
        store: where personal exits live between rounds; a round starts from those of the round before.
        round_number: from 1.
        seed: with client id and round it determines the result.
        features: of these samples and this network, where they have been computed already; None computes them.
        global_exit_weights: what a federation merged. The round then starts from them, and the guard still compares
            with the user's own; None takes the network's for comparison and starts from the user's own.
        run: of a federation; a round of the same run and number starts from what it started from before.

    Returns:
        The report, the policy and the personal exits. They are in the store, if one was given.

    Raises:
        LabelsRequiredError: settings.weights.alpha is the only weight, and no training sample has a label.
        NonFiniteLossError: the training diverged; the store is untouched.
        ClientSettingsError: settings.memory_budget is below what one image takes.
        StoreError: the store is damaged, or belongs to another model.
        OSError: the store cannot be written; the previous round stays in force.
    """
    user = PersonalisationRound(
        network,
        samples,
        split,
        settings,
        store=store,
        round_number=round_number,
        seed=seed,
        global_exit_weights=global_exit_weights,
        run=run,
    )
    # 1 features: one pass through the frozen backbone serves training, calibration and test
    if features is None:
        features = compute_features(network, samples.images, _plan(network, len(samples), settings))
    # 2 exit training
    if settings.schedule == "fast":
        embedded = embed(user.start, features)
        train = split.train
        rows = [one[train] for one in embedded]
        fit_classifiers(user.heads, rows, features.last_logits[train], user.labels[train], settings.weights)
        return user.finish(features, embedded)
    train_exits(user.heads, features, user.labels, split.train, settings, user.generator, anchor=user.global_heads)
    # 3 to 6 guard, profile, calibrate, prune, store, report
    return user.finish(features)


def _plan(network: MultiExitNetwork, num_samples: int, settings: PersonalisationSettings) -> FeaturePlan | None:
    if not settings.memory_budget:
        return None
    budget = parse_bytes(settings.memory_budget)
    return plan_features(network, num_samples, budget, batch_size=settings.batch_size, half=settings.half_features)
