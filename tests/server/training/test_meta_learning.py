import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from persephonee.data_partitions.seeds import torch_generator
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from persephonee.server.errors import PretrainingError, TrainingDivergedError
from persephonee.server.training.meta_learning import OUTER_STEPS, adapt, meta_learn
from persephonee.server.training.meta_model import make_meta_learned_model
from persephonee.server.training.meta_settings import MetaSettings
from persephonee.server.training.meta_users import MetaUser, MetaUsers, batches_of
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers

SAMPLES = 12


def network_of(head: str = "pooled"):
    return build_network(
        NAME, num_exits=2, num_classes=2, input_size=SIDE, in_channels=1, head=head, allowed=(SOURCE,), seed=0
    )


def linear_heads() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(6, 3)) for _ in range(2))


def made_up_user(seed: int) -> MetaUser:
    generator = torch.Generator().manual_seed(seed)
    maps = tuple(torch.randn(SAMPLES, 6, 1, 1, generator=generator) for _ in range(2))
    labels = torch.randint(3, (SAMPLES,), generator=generator)
    return MetaUser(maps=maps, last_logits=torch.randn(SAMPLES, 3, generator=generator), labels=labels)


def gradient(weight: torch.Tensor, bias: torch.Tensor, user: MetaUser, exit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a linear classifier's mean cross-entropy, written out: (softmax - one-hot) x / n."""
    inputs = user.maps[exit].flatten(1)
    error = (torch.softmax(inputs @ weight.T + bias, dim=1) - functional.one_hot(user.labels, 3)) / len(user)
    return error.T @ inputs, error.sum(dim=0)


# with one step of plain SGD on all samples both methods have a closed form
ONE_STEP = {"inner_steps": 1, "inner_momentum": 0.0, "inner_rate": 0.1, "batch_size": 64}


def test_reptile_goes_a_fraction_of_the_way_to_the_mean_of_the_users_exits():
    heads, users = linear_heads(), [made_up_user(1), made_up_user(2)]
    before = copy.deepcopy(heads)
    settings = MetaSettings(method="reptile", rate=0.5, **ONE_STEP)
    OUTER_STEPS["reptile"](heads, users, 0.8, settings, torch.Generator())
    for exit, (old, new) in enumerate(zip(before, heads, strict=True)):
        weight, bias = old[1].weight.detach(), old[1].bias.detach()
        steps = [gradient(weight, bias, user, exit) for user in users]
        mean_weight, mean_bias = (sum(parts) / 2 for parts in zip(*steps, strict=True))
        torch.testing.assert_close(new[1].weight.detach(), weight - 0.5 * 0.8 * 0.1 * mean_weight)
        torch.testing.assert_close(new[1].bias.detach(), bias - 0.5 * 0.8 * 0.1 * mean_bias)


def test_fomaml_descends_along_the_gradient_after_the_inner_step_on_other_samples():
    heads, user = linear_heads(), made_up_user(3)
    before = copy.deepcopy(heads)
    settings = MetaSettings(method="fomaml", rate=0.3, **ONE_STEP)
    OUTER_STEPS["fomaml"](heads, [user], 1.0, settings, torch.Generator().manual_seed(5))
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(5))
    support, query = user.take(order[:6]), user.take(order[6:])
    for exit, (old, new) in enumerate(zip(before, heads, strict=True)):
        weight, bias = old[1].weight.detach(), old[1].bias.detach()
        for_weight, for_bias = gradient(weight, bias, support, exit)
        for_weight, for_bias = gradient(weight - 0.1 * for_weight, bias - 0.1 * for_bias, query, exit)
        torch.testing.assert_close(new[1].weight.detach(), weight - 0.3 * for_weight)
        torch.testing.assert_close(new[1].bias.detach(), bias - 0.3 * for_bias)


@pytest.mark.parametrize("method", ["reptile", "fomaml"])
def test_running_statistics_follow_the_users(method):
    heads = nn.ModuleList([nn.Sequential(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6, 3))])
    user = made_up_user(4)
    one = MetaUser(maps=user.maps[:1], last_logits=user.last_logits, labels=user.labels)
    one.maps[0].add_(10.0)
    settings = MetaSettings(method=method, rate=1.0, inner_steps=60, inner_rate=1e-6, batch_size=64)
    OUTER_STEPS[method](heads, [one], 1.0, settings, torch.Generator().manual_seed(0))
    # 60 batches with BatchNorm's momentum of 0.1 forget the initial mean of 0
    assert heads[0][0].running_mean.sub(10).abs().max() < 1
    assert heads[0][0].num_batches_tracked == 0


def test_batches_are_random_orders_of_all_samples_in_equal_parts():
    batches = batches_of(33, 32, 4, torch.Generator().manual_seed(0))
    assert [len(batch) for batch in batches] == [17, 16, 17, 16]
    for first, second in (batches[:2], batches[2:]):
        assert sorted(torch.cat([first, second]).tolist()) == list(range(33))


class ContraryUsers:
    """Every other user calls the classes the other way round: nobody can be right without the user's own samples."""

    def count(self, client_id: str) -> int:
        return 24

    def load(self, client_id: str) -> MetaUser:
        generator = torch.Generator().manual_seed(int(client_id))
        labels = torch.randint(2, (24,), generator=generator)
        side = (2.0 * labels - 1) * (-1) ** int(client_id)
        maps = side[:, None, None, None] + 0.1 * torch.randn(24, 2, 1, 1, generator=generator)
        return MetaUser(maps=(maps,), last_logits=torch.zeros(24, 2), labels=labels)

    def load_halves(self, client_ids) -> list[tuple[MetaUser, MetaUser]]:
        users = [self.load(client_id) for client_id in client_ids]
        return [(user.take(torch.arange(12)), user.take(torch.arange(12, 24))) for user in users]


@pytest.mark.parametrize(("method", "rate"), [("reptile", 1.0), ("fomaml", 0.5)])
def test_exits_learn_to_learn_what_differs_between_users(method, rate):
    head = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    # certain that everybody is like the even users
    head[1].load_state_dict({"weight": torch.tensor([[-2.0, -2.0], [2.0, 2.0]]), "bias": torch.zeros(2)})
    network = SimpleNamespace(heads=nn.ModuleList([head]))
    settings = MetaSettings(method=method, epochs=15, rate=rate, inner_steps=4, inner_rate=0.3, inner_momentum=0.0)
    ids = [str(number) for number in range(12)]
    result = meta_learn(network, ContraryUsers(), ids[:8], ids[8:], settings)
    assert result.history[0].validation_accuracy[0] == pytest.approx(0.5, abs=0.1)
    assert result.history[result.best_epoch].validation_accuracy[0] == 1.0


@pytest.mark.parametrize("method", ["reptile", "fomaml"])
def test_the_same_seed_gives_the_same_exits_and_the_backbone_stays(method):
    partitions, histories = TinyUsers(users=6), []
    for seed, cache_mb in ((0, 1024), (0, 0), (1, 1024)):
        network = network_of("msdnet")
        backbone = network.backbone_fingerprint
        settings = MetaSettings(method=method, epochs=1, inner_steps=2, seed=seed, cache_mb=cache_mb, rate=0.5)
        users = MetaUsers(network, partitions, settings)
        result = meta_learn(network, users, partitions.client_ids[:4], partitions.client_ids[4:], settings)
        assert network.backbone_fingerprint == backbone
        histories.append(result.history)
    assert histories[0] == histories[1] != histories[2]


def test_exits_that_gained_nothing_stay_the_same_bits():
    network, partitions = network_of(), TinyUsers(users=4)
    before = network.fingerprint
    settings = MetaSettings(epochs=1, inner_steps=1, rate=1e-12, inner_rate=1e-12)
    users = MetaUsers(network, partitions, settings)
    result = meta_learn(network, users, partitions.client_ids[:2], partitions.client_ids[2:], settings)
    assert result.best_epoch == 0
    assert network.fingerprint == before


def test_inner_steps_that_diverge_are_refused_in_a_sentence():
    with pytest.raises(TrainingDivergedError, match="inner rate"):
        adapt(linear_heads(), made_up_user(1), MetaSettings(inner_rate=1e38), torch_generator(0))


@pytest.mark.parametrize(
    "wrong",
    [{"method": "maml"}, {"epochs": 0}, {"rate": 0.0}, {"rate": 1.5}, {"inner_momentum": 1.0}, {"batch_size": 1}],
)
def test_settings_out_of_their_range_are_refused_by_name(wrong):
    with pytest.raises(PretrainingError, match=next(iter(wrong))):
        MetaSettings(**wrong)


class Watched(TinyUsers):
    def __init__(self) -> None:
        super().__init__(users=8)
        self.seen: set[str] = set()

    def load_partition(self, index):
        self.seen.add(self.client_ids[index])
        return super().load_partition(index)


def test_the_new_model_has_seen_nobody_whom_the_old_one_had_not(tmp_path):
    metadata = ModelMetadata(trained_on=("u00", "u01", "u02", "u03"), settings={"validated_on": ["u03"], "epochs": 6})
    save_network(network_of(), tmp_path / "old", metadata)
    partitions = Watched()
    settings = MetaSettings(epochs=1, inner_steps=2)
    _, result = make_meta_learned_model(
        tmp_path / "old", settings, partitions, tmp_path / "new", max_users=2, sources=(SOURCE,)
    )
    assert partitions.seen <= set(metadata.trained_on)
    assert (result.num_train, result.num_validation) == (2, 1)
    (old, _), (new, described) = (load_network(tmp_path / name, (SOURCE,)) for name in ("old", "new"))
    assert new.backbone_fingerprint == old.backbone_fingerprint
    assert described.trained_on == metadata.trained_on
    assert described.settings["epochs"] == 6
    assert described.settings["meta_learning"]["method"] == "reptile"
    assert [record["epoch"] for record in described.history] == [0, 1]


def test_a_model_of_other_users_or_without_any_is_no_start(tmp_path):
    def learn(name: str, metadata: ModelMetadata, out: str = "new"):
        save_network(network_of(), tmp_path / name, metadata)
        make_meta_learned_model(tmp_path / name, MetaSettings(), TinyUsers(), tmp_path / out, sources=(SOURCE,))

    with pytest.raises(PretrainingError, match="does not name its users"):
        learn("nobody", ModelMetadata())
    with pytest.raises(PretrainingError, match="x9, who is not in tiny"):
        learn("others", ModelMetadata(trained_on=("u00", "x9"), settings={"validated_on": ["u00"]}))
    with pytest.raises(PretrainingError, match="is the model to start from"):
        learn("same", ModelMetadata(trained_on=("u00", "u01"), settings={"validated_on": ["u00"]}), "same")
    assert not (tmp_path / "new").exists()
