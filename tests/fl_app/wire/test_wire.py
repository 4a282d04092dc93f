import math

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from persephonee.clients.personalisation.reports import ExitMetrics, PersonalisationReport
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire import records as wire

M = 6


def exit_metrics(exit, stage):
    return ExitMetrics(
        exit=exit, stage=stage, accuracy=0.8 + exit / 100, loss=0.3, exit_rate=1 / 7, kept=exit != 2, macs=10**7 + exit,
        num_test=100,
    )  # fmt: skip


@pytest.fixture
def report():
    return PersonalisationReport(
        client_id="f3999_45", round=3, status="ok", num_train=150, num_calibration=50, num_test=100, labels="0.25",
        rule="controlled", threshold=0.65, accuracy_original=0.9, accuracy_before=0.87, accuracy_after=0.91,
        mean_macs=1.5e7, mean_macs_before=1.8e7, seconds_personalise=12.5, rolled_back_exits=(0, 4),
        original_macs=22_000_000,
        exit_metrics=tuple(exit_metrics(exit, stage) for stage in ("before", "after") for exit in range(M + 1)),
    )  # fmt: skip


@pytest.fixture
def reply(report):
    return wire.to_reply(report)


def test_a_report_arrives_as_it_was_sent(report, reply):
    wire.check_reply(reply)
    assert wire.from_reply(reply, M) == report


def test_a_pruned_exit_does_not_shorten_a_list(report):
    kept = tuple(e for e in report.exit_metrics if not (e.stage == "after" and e.exit == 2))
    pruned = PersonalisationReport(**{**vars(report), "exit_metrics": kept})
    reply = wire.to_reply(pruned)
    wire.check_reply(reply, M)
    lists = [value for value in reply.metric_records["metrics"].values() if isinstance(value, list)]
    assert {len(value) for value in lists} == {M + 1}
    arrived = wire.from_reply(reply, M).exit_metrics
    absent = next(e for e in arrived if e.stage == "after" and e.exit == 2)
    assert math.isnan(absent.accuracy)
    assert not absent.kept


def test_a_refusal_carries_no_figures():
    reply = wire.refusal("u1", "too small: User u1 has 5 samples;\nat least 20 are needed")
    wire.check_reply(reply)
    arrived = wire.from_reply(reply, M)
    assert arrived.status == "too small: User u1 has 5 samples; at least 20 are needed"
    assert math.isnan(arrived.accuracy_after)
    assert arrived.exit_metrics == ()


def with_metric(key, value):
    def change(reply):
        reply["metrics"][key] = value

    return change


def with_head(key, value):
    def change(reply):
        reply["report"][key] = value

    return change


def without(record, key):
    def change(reply):
        del reply[record][key]

    return change


def with_record(name, record):
    def change(reply):
        reply[name] = record

    return change


ARRAYS = ArrayRecord([np.zeros(3, dtype=np.float32)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_record("exits", ARRAYS), "'exits' may not travel"),
        (with_record("metrics", ARRAYS), "expected a MetricRecord, got ArrayRecord"),
        (with_record("samples", MetricRecord({"x": [0.1] * 784})), "'samples' may not travel"),
        (with_record("more", ConfigRecord({"image": b"\x00" * 784})), "'more' may not travel"),
        (with_metric("predictions", [1.0] * 100), "metrics/predictions may not travel"),
        (with_metric("after.accuracy", [0.5] * 100), "expected a list of 2 to 64 numbers"),
        (with_metric("after.accuracy", [0.5] * M), "the same number of"),
        (with_metric("after.accuracy", [1.5] * (M + 1)), "expected a number in [0, 1]"),
        (with_metric("after.accuracy", 0.5), "expected a list"),
        (with_metric("threshold", [0.5] * (M + 1)), "expected a number"),
        (with_metric("threshold", math.inf), "expected a number in [0, 1]"),
        (with_metric("num_train", -1), "expected a whole number"),
        (with_metric("num_train", 1.5), "expected a whole number"),
        (with_head("client-id", "x" * 129), "at most 128"),
        (with_head("client-id", "a\nb"), "printable"),
        (with_head("status", "ok" + "x" * 300), "at most 300"),
        (with_head("status", "fine"), "expected one of"),
        (with_head("status", "failed: no idea"), "metrics travel with the status 'ok' and no other"),
        (with_head("labels", b"all"), "expected a string"),
        (with_head("sharing", "gladly"), "report/sharing: expected one of shared, not permitted, held back"),
        (with_head("sharing", "shared"), "exits travel with 'shared' and 'ok' and nothing else"),
        (with_metric("num_test", 4), "figures over 4 samples, expected 5 or more"),
        (with_head("latencies", [1.0, 2.0]), "report/latencies may not travel"),
        (without("metrics", "threshold"), "metrics/threshold is missing"),
        (without("report", "status"), "report/status is missing"),
    ],
)
def test_nothing_but_the_allowed_keys_types_and_lengths_leaves_a_client(reply, change, words):
    change(reply)
    with pytest.raises(WireError, match=r".") as caught:
        wire.check_reply(reply)
    assert words in str(caught.value)


def test_the_server_refuses_lists_of_another_network(reply):
    with pytest.raises(WireError, match="lists of 5 numbers, got \\[7\\]"):
        wire.from_reply(reply, num_exits=4)


def test_a_request_holds_nothing_else_and_a_model_comes_with_its_specification():
    names = {"model": "a" * 64, "graphs": "d" * 64, "code": "b" * 64, "user": "u1", "run": "c" * 16}
    values = {**names, "personalise": True}
    request = wire.make_request(round_number=2, **values)
    assert wire.read_request(request) == {"round": 2, **values}
    request["model"] = ARRAYS
    with pytest.raises(WireError, match="specification"):
        wire.read_request(request)
    request["spec"] = ConfigRecord({"json": "{}"})
    wire.read_request(request)
    request["pickle"] = ConfigRecord({"code": b"x"})
    with pytest.raises(WireError, match="'pickle' may not travel"):
        wire.read_request(request)


def test_the_status_answer_is_checked_too():
    status = wire.make_status(client_id="pi-1", partition_id=-1, code="c" * 64, model_held=True, sharing_allowed=False)
    assert wire.check_status(status)["client-id"] == "pi-1"
    status["status"]["address"] = "home"
    with pytest.raises(WireError, match="status/address may not travel"):
        wire.check_status(status)


def test_counted_bytes_are_the_serialised_ones(reply):
    from flwr.common.serde import recorddict_to_proto

    assert wire.content_bytes(reply) == len(recorddict_to_proto(reply).SerializeToString())
