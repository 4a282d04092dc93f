"""The federated rule: curves go up, their pool comes down, and a policy that was promised is in force."""

import numpy as np
import pandas as pd
import pytest
from flwr.app import MetricRecord, RecordDict

from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.risk.risk_curves import FEWEST_SAMPLES, UNIT, RiskCurve, candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import Certificate, RiskPool
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.server_side.risk_pooling import pools_of
from persephonee.fl_app.server_side.run_status import StatusFile
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire import risk_records
from persephonee.fl_app.wire.risk_records import curve_of, curve_record, pool_of, pool_record
from persephonee.multi_exit.storage import load_network
from tests.fl_app.whole_runs import changed, run, table, with_status

CURVE_KEYS = {"excess", "samples", "costs"}


@pytest.fixture
def settings(settings):
    """With six users a tolerance of 5 points can be certified, and half of what is left of 40 samples calibrates."""
    return changed(settings, schedule="fast", drop_tolerance=0.05, calibration_fraction=0.5)


def sent(nodes, name="curve"):
    return [content[name] for node in nodes for content in node.sent if name in content]


def test_each_client_sends_its_curve_gets_the_pool_and_reports_the_policy_that_it_chose_with_it(
    settings, simulated_nodes, make_grid, draw_nothing
):
    nodes = simulated_nodes(6)
    folder = run(make_grid(nodes, settings), settings)
    clients = table(folder, "clients")
    assert set(clients.rule) == {"federated"}
    assert (clients.accuracy_after >= clients.accuracy_original - 0.5).all()
    assert len(sent(nodes)) == 6 and all(set(curve) == CURVE_KEYS for curve in sent(nodes))
    asked = [m for node in nodes for m in node.received if m.metadata.message_type == wire.POLICY]
    assert len(asked) == 6
    assert len({str(dict(message.content["pool"])) for message in asked}) == 1
    # the policy that the report speaks of is the one in force on the device
    exits = table(folder, "exits")
    network, _ = load_network(settings.paths.model, settings.sources)
    for client_id in clients.client_id:
        store = ExitStore(folder / "clients" / client_id)
        stored = store.load(network.backbone_fingerprint, network.exit_state(), client_id)
        row = clients[clients.client_id == client_id].iloc[0]
        after = exits[(exits.client_id == client_id) & (exits.stage == "after") & exits.kept]
        assert stored.policy.threshold == row.threshold
        assert tuple(after.exit[:-1]) == stored.policy.exits_in_use


def test_runs_of_the_same_seed_pool_the_same_bytes_in_whatever_order_the_nodes_come(
    settings, simulated_nodes, make_grid, draw_nothing, tmp_path
):
    tables = []
    for name, ids in (("a", None), ("b", [7, 3, 9, 1, 8, 5])):
        own = changed(settings, run_dir=str(tmp_path / name))
        folder = run(make_grid(simulated_nodes(6, ids), own), own)
        tables.append(table(folder, "clients", without=("seconds_personalise",)))
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize("rule", ["paper", "controlled"])
def test_under_another_rule_no_curve_leaves_a_client(settings, simulated_nodes, make_grid, draw_nothing, rule):
    nodes = simulated_nodes(4)
    folder = run(make_grid(nodes, changed(settings, rule=rule)), changed(settings, rule=rule))
    assert not sent(nodes)
    assert not any(m.metadata.message_type == wire.POLICY for node in nodes for m in node.received)
    assert table(folder, "clients").rule.str.startswith({"paper": "paper", "controlled": "original: "}[rule]).all()


def test_a_device_sends_its_curve_only_if_its_owner_permits_it(
    settings, device_node, make_grid, on_real_devices, draw_nothing, monkeypatch
):
    # a device divides its samples by sizes of its own, and 7 of 40 calibrate
    monkeypatch.setattr(risk_records, "FEWEST_SAMPLES", 3)
    nodes = [device_node(f"u{i}", i + 1, **({"share-curve": True} if i else {})) for i in range(6)]
    folder = run(make_grid(nodes, settings), settings)
    assert not sent(nodes[:1]) and len(sent(nodes)) == 5
    rules = table(folder, "clients").set_index("client_id").rule
    assert rules["u0"].startswith("original: ") and set(rules.drop("u0")) == {"federated"}


def test_impossible_counts_are_refused_and_the_client_is_named(settings, simulated_nodes, make_grid, draw_nothing):
    nodes = simulated_nodes(6)

    def lie(_, reply):
        reply["curve"]["excess"] = [UNIT * 100] * len(reply["curve"]["excess"])
        return reply

    nodes[2].reply_with = lie
    folder = run(make_grid(nodes, settings), settings)
    statuses = with_status(folder)
    (liar,) = [name for name, status in statuses.items() if status != "ok"]
    assert "curve: a risk curve with a loss of 1000 tenths is impossible" in statuses[liar]
    assert len([m for m in nodes[2].received if m.metadata.message_type == wire.POLICY]) == 0


def curve(count=210, samples=(20, 20), most=False):
    rng = np.random.default_rng(0)
    high = UNIT * np.array(samples)[:, None]
    excess = np.broadcast_to(-high, (2, count)).copy() if most else rng.integers(-9, 30, (2, count))
    return RiskCurve(excess=excess, samples=samples, costs=rng.integers(200, 1200, count))


@pytest.mark.parametrize("num_exits", [2, 6, 7])
def test_a_curve_and_a_pool_take_at_most_2_kb_each_way_whatever_they_hold(num_exits):
    count = len(candidate_policies(num_exits))
    up = wire.content_bytes(RecordDict({"curve": curve_record(curve(count, (400, 400), most=True))}))
    pool = RiskPool(
        rule="federated",
        risks=np.full(count, -8000),
        costs=np.full(count, 9000),
        users=3550,
        certificates=(Certificate(tolerance=0.01, delta=0.1, strength=40, level=-0.0025),),
    )
    down = wire.content_bytes(RecordDict({"pool": pool_record(pool)}))
    assert up <= 2000 and down <= 2000


def test_the_second_message_of_a_round_adds_little_more_than_the_pool(
    settings, simulated_nodes, make_grid, draw_nothing, tmp_path
):
    traffic = {}
    for rule in ("paper", "federated"):
        own = changed(settings, rule=rule, run_dir=str(tmp_path / rule))
        clients = table(run(make_grid(simulated_nodes(6), own), own), "clients")
        traffic[rule] = clients[["bytes_up", "bytes_down"]].mean()
    more = traffic["federated"] - traffic["paper"]
    # the curve and a second report of some 900 B; the pool and a second request
    assert 0 < more.bytes_up < 2000 and 0 < more.bytes_down < 2000


def test_a_curve_and_a_pool_arrive_as_they_were_sent():
    found = curve_of(curve_record(curve(30)), 2)
    np.testing.assert_array_equal(found.excess, curve(30).excess)
    np.testing.assert_array_equal(found.costs, curve(30).costs)
    ((pool, members),) = pools_of({f"u{i}": (True, curve(30)) for i in range(20)}, (1.0, 0.1))
    assert members == {f"u{i}" for i in range(20)}
    assert pool_of(pool_record(pool), 2).to_json() == pool.to_json()


def test_curves_with_labels_and_without_make_a_pool_each_and_one_alone_makes_none():
    curves = {f"u{i}": (i % 3 == 0, curve(30)) for i in range(20)}
    assert [len(members) for _, members in pools_of(curves, (1.0, 0.1))] == [7, 13]
    assert pools_of({"u0": (True, curve(30)), "u1": (False, curve(30))}, (1.0, 0.1)) == []
    assert pools_of(curves, None) == []


def test_a_half_of_fewer_samples_than_may_leave_keeps_the_curve_on_the_device():
    assert curve_record(curve(30, (FEWEST_SAMPLES, FEWEST_SAMPLES - 1))) is None
    assert curve_record(curve(30, (FEWEST_SAMPLES, FEWEST_SAMPLES))) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"excess": [0] * 3}, "curve/excess: expected 60 whole numbers, got 3"),
        ({"excess": [0.5] * 60}, "curve/excess: expected whole numbers"),
        ({"excess": [2**60] * 60}, "curve/excess: expected whole numbers"),
        ({"samples": [4, 20]}, "sums over 4 samples, expected 5 or more"),
        ({"samples": [20, 20, 20]}, "curve/samples: expected 2"),
        ({"costs": [-1] * 30}, "a cost of -1 is impossible"),
        ({"labels": [1]}, "curve/labels is missing or may not travel"),
    ],
)
def test_a_curve_of_something_else_is_refused_in_a_sentence(change, words):
    record = MetricRecord({**curve_record(curve(30)), **change})
    with pytest.raises(WireError, match=words):
        curve_of(record, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"risks": [0] * 29}, "pool/risks: expected 30 numbers, got 29"),
        ({"risks": [2**39] * 30}, "a mean loss or cost out of range"),
        ({"users": 1}, "1 users is impossible"),
        ({"level": 7.0}, "a certificate of"),
        ({"level": float("nan")}, "a certificate of"),
        ({"strength": 2.5}, "a certificate of"),
    ],
)
def test_a_pool_of_something_else_is_refused_in_a_sentence(change, words):
    ((pool, _),) = pools_of({f"u{i}": (True, curve(30)) for i in range(20)}, (1.0, 0.1))
    with pytest.raises(WireError, match=words):
        pool_of(MetricRecord({**pool_record(pool), **change}), 2)


def test_the_status_says_when_clients_choose_their_policies_and_no_longer_train(
    settings, simulated_nodes, make_grid, draw_nothing, monkeypatch
):
    said = []
    monkeypatch.setattr(StatusFile, "write", lambda self, status, often=False: said.append(status))
    run(make_grid(simulated_nodes(6), settings), settings)
    doing = [(status.doing, status.done) for status in said if status.round == 1]
    assert ("personalising", 6) in doing
    assert doing.index(("choosing policies", 1)) > doing.index(("personalising", 6))
    assert ("choosing policies", 6) in doing
