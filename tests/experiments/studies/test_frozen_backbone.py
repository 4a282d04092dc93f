from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from persephonee.data_partitions.samples import to_float
from persephonee.experiments.studies.domain_users import DomainUsers
from persephonee.experiments.studies.frozen_backbone import (
    PoolFeatures,
    evaluate_heads,
    learn_exits,
    make_frozen_model,
    tune_classifier,
)
from persephonee.multi_exit.settings import LossWeights
from persephonee.multi_exit.storage import load_network
from persephonee.server.training.global_model import choose_training_users
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining_settings import PretrainSettings
from tests.tiny_cnn import NAME, SOURCE, TinyUsers

SETTINGS = GlobalModelSettings(
    backbone=NAME,
    num_exits=2,
    users=UserFractions(personal_users=0),
    training=PretrainSettings(mode="exits", epochs=3, batch_size=16, learning_rate=0.05, augmentation="none"),
    sources=(SOURCE,),
)


def test_exits_learn_on_the_features_of_the_frozen_network_and_a_second_call_takes_the_cache(tmp_path):
    users = TinyUsers(users=12, samples=24)
    make_frozen_model(SETTINGS, users, tmp_path / "model", tmp_path / "cache", tuned_classifier=True)
    network, metadata = load_network(tmp_path / "model", (SOURCE,))
    assert metadata.trained_on == users.client_ids
    tuned = metadata.settings
    assert tuned["original_fine_tuned"] >= tuned["original_as_cut"]

    # what the history says of the validating users, the saved network does on their images
    _, validation = choose_training_users(users.client_ids, SETTINGS.users, SETTINGS.training.seed)
    samples = [users.load_partition(users.client_ids.index(user)) for user in validation]
    images, labels = (
        torch.from_numpy(np.concatenate([getattr(one, name) for one in samples])) for name in ("images", "labels")
    )
    with torch.no_grad():
        *early, last = network(to_float(images))
    best = [max(epoch["validation_accuracy"][exit] for epoch in metadata.history) for exit in range(2)]
    # float16 may turn a near tie over
    slack = 2 / len(labels)
    for logits, accuracy in zip((*early, last), (*best, tuned["original_fine_tuned"]), strict=True):
        assert (logits.argmax(dim=1) == labels).float().mean().item() == pytest.approx(accuracy, abs=slack)

    cached = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    pooled = replace(SETTINGS, head="pooled")
    make_frozen_model(pooled, users, tmp_path / "pooled", tmp_path / "cache", tuned_classifier=True)
    assert cached == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    other, _ = load_network(tmp_path / "pooled", (SOURCE,))
    assert other.spec.head == "pooled"
    # one backbone, one fine-tuned classifier, other heads
    for name, tensor in network.stages.state_dict().items():
        assert torch.equal(tensor, other.stages.state_dict()[name]), name


def test_each_exit_keeps_its_own_best_epoch_and_learns_what_can_be_learnt():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(90, 4, 3, 3, generator=generator)
    labels = (maps[:, 0].mean(dim=(1, 2)) > 0).long()
    features = PoolFeatures(maps=(maps.half().numpy(),), pooled=maps.mean(dim=(2, 3)), labels=labels, num_train=60)
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(36, 2))])
    settings = PretrainSettings(mode="exits", epochs=20, learning_rate=0.1, augmentation="none")
    history = learn_exits(heads, features, settings, teacher=torch.zeros(90, 2))
    assert evaluate_heads(heads, features)[0] == max(epoch["validation_accuracy"][0] for epoch in history) > 0.8


def test_the_originals_distribution_teaches_where_it_has_weight():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(90, 4, 3, 3, generator=generator)
    truth = (maps[:, 0].mean(dim=(1, 2)) > 0).long()
    # labels of chance teach nothing, the original's answers do
    labels = torch.randint(0, 2, (90,), generator=generator)
    labels[60:] = truth[60:]
    features = PoolFeatures(maps=(maps.half().numpy(),), pooled=maps.mean(dim=(2, 3)), labels=labels, num_train=60)
    settings = PretrainSettings(mode="exits", epochs=20, learning_rate=0.1, augmentation="none")
    reached = {}
    for name, weights in (("labels", LossWeights(alpha=1.0)), ("original", LossWeights(beta=1.0))):
        torch.manual_seed(0)
        heads = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(36, 2))])
        learn_exits(heads, features, settings, teacher=10 * functional.one_hot(truth, 2).float(), weights=weights)
        reached[name] = evaluate_heads(heads, features)[0]
    assert reached["original"] > 0.8 > reached["labels"]


def test_the_tuned_classifier_is_never_worse_than_the_cut_one():
    network = nn.Module()
    network.stages = nn.ModuleList([nn.Linear(3, 2)])
    pooled = functional.one_hot(torch.arange(30) % 3, 3).float()
    # the cut classifier is right already, and training labels lie
    with torch.no_grad():
        network.stages[0].weight.copy_(torch.tensor([[9.0, 0, 0], [0, 9.0, 9.0]]))
        network.stages[0].bias.zero_()
    truth = (torch.arange(30) % 3 > 0).long()
    labels = torch.cat([1 - truth[:20], truth[20:]])
    features = PoolFeatures(maps=(), pooled=pooled, labels=labels, num_train=20)
    before = network.stages[0].weight.clone()
    assert tune_classifier(network, features, 0) == {"original_as_cut": 1.0, "original_fine_tuned": 1.0}
    assert torch.equal(network.stages[0].weight, before)


class TwoDomains(TinyUsers):
    def load_partition(self, index):
        return replace(super().load_partition(index), domain=f"hsf_id={index % 2}")


def test_users_of_a_domain_keep_their_ids_and_samples():
    everyone = TwoDomains(users=5, samples=8)
    some = DomainUsers(everyone, "hsf_id=1")
    assert some.client_ids == ("u01", "u03")
    assert np.array_equal(some.load_partition(1).images, everyone.load_partition(3).images)
    with pytest.raises(ValueError, match="No user of tiny is of the domain hsf_id=7"):
        DomainUsers(everyone, "hsf_id=7")
