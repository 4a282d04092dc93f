"""Whole federations in one process whose clients share exits."""

import json

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from persephonee.clients.personalisation.personalise import personalise
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import to_float
from persephonee.data_partitions.user_splits import split_samples
from persephonee.fl_app.client_side import client_app
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.wire import records as wire
from persephonee.multi_exit.storage import load_network
from tests.fl_app.whole_runs import changed, run, table

pytestmark = pytest.mark.usefixtures("draw_nothing")


@pytest.fixture
def sharing(settings) -> AppSettings:
    # the toy model is untrained, so that its exits need more than an epoch until none of them is worse than before
    return changed(settings, share_exits=True, rounds=2, epochs=3)


def merged_model(run_dir, settings):
    return load_network(run_dir / "model", settings.sources)


def initial_model(settings):
    return load_network(settings.paths.model, settings.sources)[0]


def test_without_asking_nothing_is_shared_and_no_model_is_saved(settings, simulated_nodes, make_grid):
    run_dir = run(make_grid(simulated_nodes(3), settings), settings)
    assert not (run_dir / "sharing.parquet").exists()
    assert not (run_dir / "model").exists()


def test_one_round_merges_what_the_same_calls_average_to(sharing, simulated_nodes, make_grid):
    # without the bounds on what a client may do, which have tests of their own
    one = changed(sharing, rounds=1, clip_fraction=0.0, weight_cap=0.0)
    run_dir = run(make_grid(simulated_nodes(3), one), one)
    network, partitions = initial_model(one), open_partitions(one.data)
    sums, weight, counts = {}, {}, {0: 0, 1: 0}
    for client in table(run_dir, "clients").client_id:
        samples = partitions.load_partition(partitions.client_ids.index(client))
        split = split_samples(samples, one.split, one.seed)
        done = personalise(network, samples, split, one.personalisation, seed=one.seed)
        for name, tensor in done.trained.items():
            exit = int(name.split(".")[1])
            if exit not in done.worse:
                sums[name] = sums.get(name, 0) + tensor.astype(np.float64) * len(split.train)
                weight[name] = weight.get(name, 0) + len(split.train)
        for exit in counts:
            counts[exit] += exit not in done.worse
    merged, metadata = merged_model(run_dir, one)
    state = merged.exit_state()
    enough = {exit for exit, count in counts.items() if count >= one.sharing.needed}
    assert enough == {0, 1}
    for name, total in sums.items():
        if int(name.split(".")[1]) in enough:
            np.testing.assert_allclose(state[name].double(), total / weight[name], rtol=0, atol=1e-6)
    shared = table(run_dir, "sharing")
    assert list(shared.outcome) == ["shared"] * 3
    assert {exit: sum(exit in exits for exits in shared.exits) for exit in (0, 1)} == counts
    assert metadata.trained_on == tuple(sorted(shared.client_id))


def test_the_backbone_stays_the_same_bits_over_rounds_of_sharing(sharing, simulated_nodes, make_grid):
    run_dir = run(make_grid(simulated_nodes(4), sharing), sharing)
    before, after = initial_model(sharing), merged_model(run_dir, sharing)[0]
    assert after.backbone_fingerprint == before.backbone_fingerprint
    now = after.stages.state_dict()
    assert all(torch.equal(tensor, now[name]) for name, tensor in before.stages.state_dict().items())
    assert not all(torch.equal(before.exit_state()[k], t) for k, t in after.exit_state().items())


def test_the_next_round_begins_with_the_merged_exits(sharing, simulated_nodes, make_grid, tmp_path):
    two = run(make_grid(simulated_nodes(3), sharing), sharing)
    one_round = changed(sharing, rounds=1, run_dir=str(tmp_path / "one"))
    merged = merged_model(run(make_grid(simulated_nodes(3), one_round), one_round), sharing)[0]
    partitions = open_partitions(sharing.data)
    exits = table(two, "exits")
    client = exits.client_id.iloc[0]
    samples = partitions.load_partition(partitions.client_ids.index(client))
    test = split_samples(samples, sharing.split, sharing.seed).test
    with torch.no_grad():
        logits = merged(to_float(samples.images[test]))
    expected = [float((exit.argmax(1) == samples.labels[test]).float().mean()) for exit in logits]
    found = exits[(exits.client_id == client) & (exits["round"] == 2) & (exits.stage == "before")]
    assert found.sort_values("exit").accuracy.tolist() == pytest.approx(expected)


def test_only_exits_travel_down_and_only_once_some_were_merged(sharing, device_node, make_grid):
    nodes = [device_node(f"u{i}", i + 1, **{"share-exits": True}) for i in range(3)]
    run_dir = run(make_grid(nodes, sharing), sharing)
    for node in nodes:
        records = [sorted(message.content) for message in node.received]
        assert records == [["request"], ["model", "request", "spec"], ["exits", "request"]]
    clients = table(run_dir, "clients")
    exits = nodes[0].received[-1].content["exits"]
    down = set(clients[clients["round"] == 2].bytes_down)
    request = wire.content_bytes(nodes[0].received[-1].content) - exits.count_bytes()
    assert down == {exits.count_bytes() + request}
    assert set(exits) == {"0.parameters", "1.parameters"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_of_a_shared_round_are_the_exits_and_little_else(sharing, simulated_nodes, make_grid, dtype):
    one = changed(sharing, rounds=1, share_dtype=dtype)
    nodes = simulated_nodes(3)
    run_dir = run(make_grid(nodes, one), one)
    heads = initial_model(one).heads
    values = sum(t.numel() for t in heads.state_dict().values() if t.is_floating_point())
    clients = table(run_dir, "clients")
    shared = table(run_dir, "sharing")
    whole = shared[shared.exits.map(len) == 2].client_id
    sent = clients[clients.client_id.isin(whole)].bytes_up
    assert len(sent) == 3
    assert (sent - values * np.dtype(dtype).itemsize).between(0, 4_096).all()


def test_a_device_whose_owner_permits_nothing_sends_figures_only(sharing, device_node, make_grid):
    nodes = [device_node(f"u{i}", i + 1, **{"share-exits": i != 1}) for i in range(3)]
    run_dir = run(make_grid(nodes, sharing), sharing)
    assert all("exits" not in content for content in nodes[1].sent)
    outcomes = table(run_dir, "sharing").groupby("client_id").outcome.unique()
    assert list(outcomes["u1"]) == ["not permitted"]
    assert table(run_dir, "clients").status.eq("ok").all()
    assert merged_model(run_dir, sharing)[1].trained_on == ("u0", "u2")


def test_a_client_app_that_forgets_the_permission_is_held_back(sharing, device_node, make_grid, monkeypatch):
    honest = client_app.attach_exits
    monkeypatch.setattr(client_app, "attach_exits", lambda *a: honest(*a[:4], True, a[5]))
    nodes = [device_node(f"u{i}", i + 1, **{"share-exits": i != 1}) for i in range(3)]
    run_dir = run(make_grid(nodes, sharing), sharing)
    assert all("exits" not in content for content in nodes[1].sent)
    status = table(run_dir, "clients").set_index("client_id").status
    assert set(status["u1"]) == {"refused: the reply held something that may not travel"}


def test_a_simulations_users_permit_in_the_fraction_that_was_set(sharing, simulated_nodes, make_grid):
    half = changed(sharing, sharing_fraction=0.5, rounds=1)
    outcomes = table(run(make_grid(simulated_nodes(6), half), half), "sharing").outcome
    assert {"shared", "not permitted"} == set(outcomes)


def test_bad_arrays_are_refused_and_counted_and_not_averaged(sharing, simulated_nodes, make_grid, tmp_path):
    def spoil(message, reply):
        arrays = {name: array.numpy().copy() for name, array in reply["exits"].items()}
        next(iter(arrays.values()))[0] = np.nan
        reply["exits"] = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        return reply

    def silence(message, reply):
        del reply["exits"]
        reply["report"]["sharing"] = wire.NOT_PERMITTED
        return reply

    runs = []
    for name, reply_with in (("spoilt", spoil), ("silent", silence)):
        one = changed(sharing, rounds=1, min_sharers=1, run_dir=str(tmp_path / name))
        nodes = simulated_nodes(3)
        nodes[2].reply_with = reply_with
        runs.append(run(make_grid(nodes, one), one))
    spoilt, silent = (table(run_dir, "sharing").set_index("client_id").outcome for run_dir in runs)
    assert sorted(spoilt)[0].startswith("refused: exits/0.parameters: a value is not finite")
    assert (spoilt == "shared").sum() == (silent == "shared").sum() == 2
    assert table(runs[0], "clients").status.eq("ok").all()
    assert merged_model(runs[0], sharing)[0].fingerprint == merged_model(runs[1], sharing)[0].fingerprint


def test_an_exit_that_too_few_sent_stays_as_it_was(sharing, simulated_nodes, make_grid):
    many = changed(sharing, min_sharers=3, sharing_fraction=0.3, rounds=1)
    run_dir = run(make_grid(simulated_nodes(4), many), many)
    assert (table(run_dir, "sharing").outcome == "shared").sum() < 3
    assert merged_model(run_dir, many)[0].fingerprint == initial_model(many).fingerprint


def test_held_out_users_are_measured_after_each_round_and_never_take_part(sharing, simulated_nodes, make_grid):
    apart = changed(sharing, held_out_fraction=0.34)
    run_dir = run(make_grid(simulated_nodes(6), apart), apart)
    held_out, clients = table(run_dir, "held_out"), table(run_dir, "clients")
    assert held_out.client_id.nunique() == 2
    assert not set(held_out.client_id) & set(clients.client_id)
    assert not any((run_dir / "clients" / name).exists() for name in held_out.client_id)
    stages = held_out.groupby("round").stage.unique().map(sorted).to_dict()
    assert stages == {0: ["after", "before"], 1: ["before"], 2: ["after", "before"]}

    # against the models themselves
    partitions = open_partitions(apart.data)
    for number, network in ((0, initial_model(apart)), (2, merged_model(run_dir, apart)[0])):
        for client in held_out.client_id.unique():
            samples = partitions.load_partition(partitions.client_ids.index(client))
            test = split_samples(samples, apart.split, apart.seed).test
            with torch.no_grad():
                logits = network(to_float(samples.images[test]))
            expected = [float((exit.argmax(1) == samples.labels[test]).float().mean()) for exit in logits]
            rows = held_out[
                (held_out["round"] == number) & (held_out.client_id == client) & (held_out.stage == "before")
            ]
            assert rows.sort_values("exit").accuracy.tolist() == pytest.approx(expected)


def test_an_held_out_user_that_is_too_small_is_named(sharing, simulated_nodes, make_grid):
    for seed in range(30):
        apart = changed(sharing, held_out_fraction=0.2, rounds=1, seed=seed)
        names = open_partitions(apart.data).client_ids
        from persephonee.data_partitions.user_splits import choose_users

        if choose_users(names, 1, seed) == ("u6",):
            break
    run_dir = run(make_grid(simulated_nodes(7), apart), apart)
    assert "too small" in " ".join(table(run_dir, "held_out").status)


def test_noise_at_the_server_and_at_the_clients_changes_the_model_and_is_accounted(
    sharing, simulated_nodes, make_grid, tmp_path
):
    quiet = run(make_grid(simulated_nodes(4), sharing), sharing)
    for place in ("server", "clients"):
        noisy = changed(sharing, dp_noise_multiplier=0.1, dp_noise_at=place, run_dir=str(tmp_path / place))
        run_dir = run(make_grid(simulated_nodes(4), noisy), noisy)
        spent = json.loads((run_dir / "privacy.json").read_text())
        assert spent["rounds"] == 2 and spent["epsilon"] > 1
        other = merged_model(run_dir, noisy)[0]
        assert other.fingerprint != merged_model(quiet, sharing)[0].fingerprint
        assert all(torch.isfinite(t).all() for t in other.exit_state().values())
