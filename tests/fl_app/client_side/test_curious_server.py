"""A server that wants to know more than the figures: it sends crafted exits and models, and asks again and again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from persephonee.clients.errors import StoreError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.client_side import client_app
from persephonee.fl_app.client_side.asked import ANSWERS_PER_DAY, ANSWERS_PER_ROUND, AskedFile
from persephonee.fl_app.client_side.coarse_report import LARGEST_LOSS, STEPS, coarse_report, step_for
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.code_fingerprint import code_fingerprint
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.fl_app.wire.model_store import model_records
from persephonee.multi_exit.storage import load_network

pytestmark = pytest.mark.usefixtures("on_real_devices")

USER = "u2"


class CuriousServer:
    """Sends one device whatever it likes, and keeps what comes back."""

    def __init__(self, node, settings):
        self.network, _ = load_network(settings.paths.model, settings.sources)
        self.layout = ExitLayout.of(self.network, "float32")
        self.context = Context(1, node.node_id, node.node_config, RecordDict(), settings.to_run_config())
        self.asked = 0

    def ask(self, kind, exits=None, network=None, **more):
        network = network or self.network
        self.asked += 1
        request = {"round_number": 1, "code": code_fingerprint(), "run": f"run {self.asked}", **more}
        content = wire.make_request(model=network.fingerprint, **request)
        content.update(model_records(network))
        if exits is not None:
            content["exits"] = ArrayRecord({name: Array(array) for name, array in exits.items()})
        message = Message(content, 1, kind)
        message.metadata.__dict__.update(_run_id=1, _src_node_id=1, _message_id=f"m{self.asked}")
        reply = client_app.app(message, self.context).content
        return str(reply["report"]["status"]), reply.metric_records.get("metrics")

    def constant(self, network, scale):
        """Make exits whose answer does not depend on the image: exit i says class i, with logits of this size."""
        state = {name: torch.zeros_like(tensor) for name, tensor in network.exit_state().items()}
        for name, tensor in state.items():
            if name.endswith("bias") and tensor.shape == (network.num_classes,):
                tensor[int(name.split(".")[1])] = scale
        return state


def truth(settings, store):
    """The labels and images of the test part, which no server has."""
    partitions = open_partitions(settings.data)
    samples = partitions.load_partition(partitions.client_ids.index(USER))
    seed = json.loads((store / "asked.json").read_text())["seed"]
    test = split_samples(samples, SplitSettings(), seed).test
    return samples.labels[test], samples.images[test].astype(np.float32).reshape(len(test), -1)


@pytest.mark.parametrize("kind", [wire.TRAIN, wire.EVALUATE])
def test_crafted_exits_are_not_measured_on_a_device_that_shares_none(settings, device_node, kind):
    server = CuriousServer(device_node(USER, 1), settings)
    exits = server.layout.arrays(server.constant(server.network, 50.0))
    for _ in range(3):
        status, metrics = server.ask(kind, exits)
        assert status.startswith("refused: this device takes no exits in from others")
        assert metrics is None


def test_crafted_models_are_not_measured_one_after_the_other(settings, device_node):
    """What exits may not do a model could: the same exits in a model of their own, with a fingerprint that is right."""
    server = CuriousServer(device_node(USER, 1), settings)
    assert server.ask(wire.EVALUATE)[0] == "ok"
    for scale in range(1, 21):
        server.network.load_exit_state(server.constant(server.network, float(scale)))
        status, metrics = server.ask(wire.EVALUATE)
        assert status.startswith("refused: this device answers for the model")
        assert metrics is None


def test_an_owner_may_name_the_models_that_a_device_answers_for(settings, device_node):
    network, _ = load_network(settings.paths.model, settings.sources)
    server = CuriousServer(device_node(USER, 1, models=f"{'0' * 64}, {network.fingerprint}"), settings)
    assert server.ask(wire.EVALUATE)[0] == "ok"
    other = CuriousServer(device_node(USER, 2, models="0" * 64), settings)
    assert other.ask(wire.EVALUATE)[0].startswith("refused: this device answers for the model 000000000000")


def test_labels_and_features_cannot_be_read_out_of_the_first_model_either(settings, device_node):
    """The exits spell out, in the digits of their losses, how many test samples each class has, and a pixel of one."""
    node = device_node(USER, 1)
    server = CuriousServer(node, settings)
    network = server.network
    network.load_exit_state(server.constant(network, 3.0))
    status, metrics = server.ask(wire.EVALUATE)
    assert status == "ok"
    store = settings.paths.run_dir.parent / "device-1"
    labels, _ = truth(settings, store)
    counts = np.bincount(labels, minlength=3)
    step = step_for(len(labels))
    for exit in range(2):
        # in full, this accuracy is the fraction of a class, and this loss a linear function of it
        reported = metrics["before.accuracy"][exit]
        assert reported / step == pytest.approx(round(reported / step))
        fits = [round(c / len(labels) / step) * step == pytest.approx(reported) for c in range(len(labels) + 1)]
        possible = np.flatnonzero(fits)
        assert counts[exit] in possible and len(possible) >= 2
        assert metrics["before.loss"][exit] * 10 == pytest.approx(round(metrics["before.loss"][exit] * 10))
        assert metrics["before.loss"][exit] <= LARGEST_LOSS
    # asked again, under other runs, seeds and divisions, it says the same and no more
    again = [server.ask(wire.EVALUATE, round_number=i)[1] for i in range(2, 12)]
    assert all(m["before.accuracy"] == metrics["before.accuracy"] for m in again)
    assert all(m["before.loss"] == metrics["before.loss"] for m in again)


def test_the_seed_and_the_division_are_the_devices_own(settings, device_node):
    node = device_node(USER, 1)
    seen = []
    for number, more in enumerate(
        ({}, {"seed": 7}, {"test-samples": 5, "test-samples-from": 6}, {"test-fraction": 0.9})
    ):
        config = type(settings).from_run_config({**settings.to_run_config(), **more})
        seen.append(CuriousServer(node, config).ask(wire.EVALUATE, run=f"r{number}")[1])
    assert all(metrics["num_test"] == seen[0]["num_test"] for metrics in seen)
    assert all(metrics["before.loss"] == seen[0]["before.loss"] for metrics in seen)


def test_answers_are_counted_and_limited_and_the_count_survives_a_restart(tmp_path):
    now = [1_700_000_000.0]

    def admit(*asked):
        return AskedFile(tmp_path, (), any_model=True, clock=lambda: now[0]).admit(*asked)

    seeds = {admit("train", "r", 1, "m") for _ in range(ANSWERS_PER_ROUND)}
    assert len(seeds) == 1
    with pytest.raises(WireError, match="answered this 3 times"):
        admit("train", "r", 1, "m")
    for number in range(ANSWERS_PER_DAY - ANSWERS_PER_ROUND):
        admit("train", f"another {number}", 1, "m")
    with pytest.raises(WireError, match="answered 200 times today"):
        admit("evaluate", "yet another", 1, "m")
    now[0] += 86_400
    assert {admit("evaluate", "yet another", 1, "m")} == seeds


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"seed": "x"}', '{"answers": 3}', '{"other": 1}', "[" * 100_000]
)
def test_a_damaged_memory_is_named(tmp_path, text):
    (tmp_path / "asked.json").write_text(text)
    with pytest.raises(StoreError, match=r"asked.json is damaged"):
        AskedFile(tmp_path, (), any_model=True).admit("train", "r", 1, "m")


@pytest.mark.parametrize(
    ("samples", "step"), [(5, 0.5), (6, 0.5), (12, 0.2), (25, 0.1), (40, 0.05), (99, 0.05), (100, 0.02)]
)
def test_two_samples_are_lost_in_a_step_from_ten_samples_on(samples, step):
    assert step_for(samples) == step
    assert step * samples >= 2
    assert step in STEPS


def test_a_coarse_report_of_a_report_by_hand():
    report = wire.no_report("u", wire.OK)
    full = replace(report, num_test=100, accuracy_after=0.8749, accuracy_before=float("nan"), mean_macs=1234.0)
    coarse = coarse_report(replace(full, original_macs=10_000, seconds_personalise=12.6))
    assert (coarse.accuracy_after, coarse.mean_macs, coarse.seconds_personalise) == (0.88, 1200.0, 13.0)
    assert np.isnan(coarse.accuracy_before)
