import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional

from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.losses import joint_loss, joint_weights
from persephonee.multi_exit.settings import ComputeSettings
from persephonee.server.errors import PretrainingError, TrainingDivergedError
from persephonee.server.training import pretraining_trainer
from persephonee.server.training.pretraining import pretrain
from persephonee.server.training.pretraining_progress import PretrainProgress
from persephonee.server.training.pretraining_settings import PretrainSettings
from persephonee.server.training.pretraining_trainer import evaluate_exits
from persephonee.server.training.training_samples import SampleTable, gather_samples
from tests.devices import DEVICES
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers

USERS = TinyUsers()
TRAIN, VALIDATION = USERS.client_ids[:8], USERS.client_ids[8:10]
SETTINGS = PretrainSettings(epochs=4, patience=4, batch_size=32, learning_rate=0.05)


def network(seed: int = 0, head: str = "pooled"):
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head=head, allowed=(SOURCE,), seed=seed)


def run(folder, settings=SETTINGS, resume=False, net=None):
    net = net or network()
    return net, pretrain(net, USERS, TRAIN, VALIDATION, settings, folder / "c.safetensors", resume=resume)


class Interruption(Exception):
    pass


class StopsAfter(PretrainProgress):
    """Stops in the middle of the epoch that follows `epochs` whole ones."""

    def __init__(self, epochs: int) -> None:
        self.left = epochs

    def epoch_done(self, record):
        self.left -= 1

    def batch_done(self, loss):
        if self.left == 0:
            raise Interruption


def same(one, other) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_joint_training_learns_to_tell_the_classes_apart_on_held_out_users(tmp_path):
    net, result = run(tmp_path, replace(SETTINGS, epochs=6, patience=6))
    assert result.history[-1].train_loss < 0.5 * result.history[0].train_loss
    assert result.accuracies[-1] > 0.9
    assert (result.num_train, result.num_validation) == (8 * 24, 2 * 24)
    assert not net.training


def test_the_reported_accuracies_are_those_of_the_network_that_comes_back(tmp_path):
    net, result = run(tmp_path)
    table = gather_samples(USERS, VALIDATION)
    with torch.no_grad():
        logits = net(to_float(table.images))
    by_hand = tuple((exit.argmax(1) == table.labels).double().mean().item() for exit in logits)
    assert by_hand == pytest.approx(result.accuracies)
    assert evaluate_exits(net, table) == result.accuracies
    assert result.accuracies[-1] == max(record.validation_accuracy[-1] for record in result.history)


def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path):
    uninterrupted, expected = run(tmp_path / "a")
    checkpoint = tmp_path / "b" / "c.safetensors"
    for epochs in (1, 2):
        with pytest.raises(Interruption):
            pretrain(
                network(), USERS, TRAIN, VALIDATION, SETTINGS, checkpoint, resume=True, progress=StopsAfter(epochs)
            )
    resumed, result = run(tmp_path / "b", resume=True)
    assert result == expected
    assert same(resumed, uninterrupted)


def test_a_finished_run_resumes_to_its_result_without_training(tmp_path):
    first, expected = run(tmp_path)
    again = network()
    result = pretrain(
        again, USERS, TRAIN, VALIDATION, SETTINGS, tmp_path / "c.safetensors", resume=True, progress=StopsAfter(0)
    )
    assert result == expected
    assert same(first, again)


def test_another_seed_gives_another_network_and_the_global_generator_is_left_alone(tmp_path):
    state = torch.get_rng_state()
    one = run(tmp_path / "a")[0]
    assert torch.equal(state, torch.get_rng_state())
    assert not same(one, run(tmp_path / "b", replace(SETTINGS, seed=1))[0])


def test_exits_only_leaves_every_tensor_of_the_backbone_as_it_was(tmp_path):
    net = network()
    backbone = {name: tensor.clone() for name, tensor in net.stages.state_dict().items()}
    heads = {name: tensor.clone() for name, tensor in net.heads.state_dict().items()}
    _, result = run(tmp_path, replace(SETTINGS, mode="exits"), net=net)
    assert any("running_mean" in name for name in backbone)
    assert all(torch.equal(tensor, backbone[name]) for name, tensor in net.stages.state_dict().items())
    assert not any(torch.equal(t, heads[n]) for n, t in net.heads.state_dict().items() if n.endswith("weight"))
    assert len({record.validation_accuracy[-1] for record in result.history}) == 1


def one_batch() -> SampleTable:
    # one batch of everything and no augmentation: the reported loss is that of the untrained network
    return gather_samples(USERS, TRAIN)


@pytest.mark.parametrize("mode", ["joint", "exits"])
def test_the_first_loss_is_that_of_the_formula(tmp_path, mode):
    settings = replace(SETTINGS, mode=mode, epochs=1, batch_size=1000, augmentation="none")
    net, table = network(), one_batch()
    # dropout is random, so it is taken out of both
    for module in net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = network()
    if mode == "exits":
        reference.freeze_backbone()
    reference.train()
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    logits = reference(to_float(table.images))
    shares = [cost.share for cost in net.costs.exit_costs[:-1]]
    expected = {
        "joint": joint_loss(logits, table.labels, shares, epoch=1, epochs=1),
        "exits": sum(functional.cross_entropy(exit, table.labels) for exit in logits[:-1]),
    }[mode]
    _, result = run(tmp_path, settings, net=net)
    assert result.history[0].train_loss == pytest.approx(expected.item(), rel=1e-4)


def test_in_joint_training_the_backbone_steps_by_kayas_loss_and_each_head_by_its_whole_own(tmp_path):
    settings = replace(
        SETTINGS, epochs=1, batch_size=1000, augmentation="none", momentum=0.0, weight_decay=0.0, warmup=0.0
    )
    net, reference = network(), network()
    for module in (*net.modules(), *reference.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    table = one_batch()
    shares = [cost.share for cost in net.costs.exit_costs[:-1]]
    joint_loss(reference.train()(to_float(table.images)), table.labels, shares, epoch=1, epochs=1).backward()
    run(tmp_path, settings, net=net)
    trained, weights = dict(net.named_parameters()), joint_weights(shares, 1, 1)
    for name, before in reference.named_parameters():
        part, exit = name.split(".")[:2]
        factor = 1 / weights[int(exit)] if part == "heads" else 1.0
        expected = before - settings.learning_rate * factor * before.grad
        torch.testing.assert_close(
            trained[name], expected, atol=1e-4, rtol=1e-2, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_training_stops_when_held_out_users_gain_nothing_and_the_best_epoch_stays(tmp_path, monkeypatch):
    accuracies = iter([(0.1, 0.1, 0.6), (0.2, 0.2, 0.8), (0.3, 0.3, 0.7), (0.9, 0.9, 0.8), (0.0, 0.0, 0.1)])
    states = []

    def scripted(net, table):
        states.append({name: tensor.clone() for name, tensor in net.state_dict().items()})
        return next(accuracies)

    monkeypatch.setattr(pretraining_trainer, "evaluate_exits", scripted)
    # the fourth epoch has the last exit of the second and better early ones; the fifth is the first without a gain
    net, result = run(tmp_path, replace(SETTINGS, epochs=9, patience=1))
    assert (len(result.history), result.best_epoch) == (3, 2)
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in net.state_dict().items())


def test_early_exits_decide_between_epochs_with_the_same_last_exit(tmp_path, monkeypatch):
    accuracies = iter([(0.2, 0.2, 0.8), (0.9, 0.9, 0.8), (0.9, 0.9, 0.7)])
    monkeypatch.setattr(pretraining_trainer, "evaluate_exits", lambda net, table: next(accuracies))
    assert run(tmp_path, replace(SETTINGS, epochs=3))[1].best_epoch == 2


def test_a_loss_that_is_no_number_ends_the_training_and_keeps_the_checkpoint(tmp_path):
    def poison(net):
        with torch.no_grad():
            next(net.parameters()).fill_(math.nan)

    class Poison(PretrainProgress):
        def epoch_done(self, record):
            poison(net)

    net, checkpoint = network(), tmp_path / "c.safetensors"
    with pytest.raises(TrainingDivergedError, match=r"became nan in epoch 1, batch 1: .* nothing is saved\.$"):
        poison(net)
        pretrain(net, USERS, TRAIN, VALIDATION, SETTINGS, checkpoint)
    assert not checkpoint.exists()

    net, poisoned = network(), Poison()
    with pytest.raises(
        TrainingDivergedError,
        match=r"became nan in epoch 2, .* the checkpoint of the epoch before stands in .*c\.safetensor",
    ):
        pretrain(net, USERS, TRAIN, VALIDATION, SETTINGS, checkpoint, progress=poisoned)
    with safe_open(str(checkpoint), framework="pt") as file:
        assert len(json.loads(file.metadata()["state"])["history"]) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda s: replace(s, epochs=5), r"its epochs is 4, here it is 5"),
        (lambda s: replace(s, learning_rate=0.1), r"its learning_rate is 0\.05"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, change, named):
    run(tmp_path)
    with pytest.raises(PretrainingError, match=named):
        run(tmp_path, change(SETTINGS), resume=True)


def test_a_checkpoint_of_another_network_or_data_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(PretrainingError, match="initial network"):
        run(tmp_path, resume=True, net=network(seed=5))
    with pytest.raises(PretrainingError, match="training data"):
        pretrain(network(), USERS, TRAIN[:5], VALIDATION, SETTINGS, tmp_path / "c.safetensors", resume=True)


@pytest.mark.parametrize("content", [b"", b"no tensors", None])
def test_a_checkpoint_that_is_cut_off_is_refused_in_a_sentence(tmp_path, content):
    run(tmp_path, replace(SETTINGS, epochs=1))
    path = tmp_path / "c.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(PretrainingError, match=r"cannot be read .* --overwrite\."):
        run(tmp_path, replace(SETTINGS, epochs=1), resume=True)


def test_data_that_does_not_fit_the_network_is_refused(tmp_path):
    def expect_refusal(net, message, train=TRAIN, settings=SETTINGS):
        with pytest.raises(PretrainingError, match=message):
            pretrain(net, USERS, train, VALIDATION, settings, tmp_path / "c.safetensors")

    build = {"num_exits": 2, "allowed": (SOURCE,)}
    expect_refusal(build_network(NAME, num_classes=3, input_size=SIDE, **build), "tells 3 classes apart and tiny has 2")
    expect_refusal(build_network(NAME, num_classes=2, input_size=16, **build), r"takes images of shape \(1, 16, 16\)")
    expect_refusal(network(), "User u08 would both train and validate", train=(*TRAIN, "u08"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("mode", "both"),
        ("augmentation", "flip"),
        ("precision", "float16"),
        ("epochs", 0),
        ("patience", 0),
        ("batch_size", 1),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("warmup", 1.0),
        ("momentum", -0.1),
        ("weight_decay", math.inf),
        ("max_samples", 0),
        ("seed", -1),
    ],
)
def test_settings_out_of_their_range_are_refused_by_name(name, value):
    with pytest.raises(PretrainingError, match=name):
        PretrainSettings(**{name: value})


def test_the_learning_rate_rises_to_its_largest_and_falls_to_nothing():
    settings = PretrainSettings(epochs=10, learning_rate=0.4, warmup=0.2)
    assert settings.learning_rate_at(0) == pytest.approx(0.02)
    assert settings.learning_rate_at(2) == pytest.approx(0.4)
    assert settings.learning_rate_at(6) == pytest.approx(0.2)
    assert settings.learning_rate_at(10) == pytest.approx(0.0)


def on(device: str):
    # the gradients of adaptive pooling have no repeatable form on a GPU, of which torch warns
    return network(head="msdnet").to(ComputeSettings(device=device).torch_device())


@pytest.mark.parametrize("device", DEVICES)
def test_a_training_repeats_bit_for_bit_on_one_kind_of_device_and_resumes(tmp_path, device):
    settings = replace(SETTINGS, epochs=2)
    one, result = run(tmp_path / "a", settings, net=on(device))
    checkpoint = tmp_path / "b" / "c.safetensors"
    with pytest.raises(Interruption):
        pretrain(on(device), USERS, TRAIN, VALIDATION, settings, checkpoint, progress=StopsAfter(1))
    two, again = run(tmp_path / "b", settings, resume=True, net=on(device))
    assert again == result
    assert same(one, two)


@pytest.mark.parametrize("device", DEVICES)
def test_mixed_precision_computes_in_bfloat16_and_keeps_weights_losses_and_accuracy(tmp_path, device):
    settings = replace(SETTINGS, epochs=6, patience=6, precision="bfloat16")
    seen = set()
    net = on(device)
    net.heads[0].register_forward_hook(lambda head, inputs, output: seen.add((head.training, output.dtype)))
    _, result = run(tmp_path, settings, net=net)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(t.dtype in (torch.float32, torch.int64) for t in net.state_dict().values())
    assert result.accuracies[-1] > 0.9


def test_mixed_precision_is_left_to_gpus_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    mixed = pretraining_trainer.computes_in_bfloat16
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert [mixed(SETTINGS, device) for device in (gpu, cpu)] == [True, False]
    assert [mixed(replace(SETTINGS, precision="bfloat16"), d) for d in (gpu, cpu)] == [True, True]
    assert not mixed(replace(SETTINGS, precision="float32"), gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert not mixed(SETTINGS, gpu)
