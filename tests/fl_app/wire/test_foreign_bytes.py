"""Bytes and records that nobody of ours made: each is taken as what it is, or refused in one sentence."""

import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_curves import candidate_policies
from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire import records as wire
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.fl_app.wire.foreign_bytes import read_array, refusing
from persephonee.fl_app.wire.limits import MAX_VALUE
from persephonee.fl_app.wire.model_store import ModelStore, model_records
from persephonee.fl_app.wire.record_keys import METRICS
from persephonee.fl_app.wire.value_kinds import Number, PerExit
from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_calibration import ExitCalibration
from persephonee.multi_exit.storage import load_network

VALUES = np.arange(12, dtype=np.float32)
BYTES = VALUES.tobytes()
FEW, MANY = 400, 5_000
COUNTS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="thousands", marks=pytest.mark.slow)]

HEADERS = [
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (12,), }",
    b"  {'descr'",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (12,",
    b"\t\n  x = 1\n",
    b"(" * 100,
    b"[" * 120 + b"]" * 120,
    b"{'descr': '', 'fortran_order': False, 'shape': (12,)}",
    b"{'descr': ('<f4',), 'fortran_order': False, 'shape': (12,)}",
    b"{'descr': [('a',)], 'fortran_order': False, 'shape': (12,)}",
    b"{'descr': {'a': 1}, 'fortran_order': False, 'shape': (12,)}",
    b"{'descr': '<f4', 'fortran_order': 1, 'shape': (12,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-12,)}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': 12}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (9999999999999999999999,)}",
    b"{'descr': '|O', 'fortran_order': False, 'shape': (12,)}",
    b"{1: 2, 'descr': 3}",
    b"{{}: 1}",
    b"12L",
    b"\xff\xfe\x00",
    b"'\\N{x}'",
    b"",
]


def npy_bytes(header, version=b"\x01\x00", data=BYTES):
    return npy.MAGIC_PREFIX + version + len(header).to_bytes(2, "little") + header + data


def as_array(data):
    return Array(dtype="float32", shape=(12,), stype="numpy.ndarray", data=data)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"])
def test_a_hostile_header_is_refused_or_read_as_what_it_says(header, version):
    try:
        values = read_array(as_array(npy_bytes(header, version)), "float32", (12,), "exits/x")
    except WireError as error:
        assert str(error).startswith("exits/x: ")
    else:
        assert np.array_equal(values, VALUES)
        assert (header, version) == (HEADERS[0], b"\x01\x00")


def mutated(data, generator):
    """Return bytes with a few of them changed, taken out, put in or doubled."""
    content = bytearray(data)
    for _ in range(generator.randint(1, 6)):
        where = generator.randrange(max(1, min(len(content), 90)))
        change = generator.randrange(4)
        if change == 0:
            content[where] = generator.randrange(256)
        elif change == 1:
            del content[where : where + generator.randint(1, 8)]
        elif change == 2:
            content[where:where] = generator.choice([b"(", b"[", b"'", b"\n ", b"{", b"-", b"9" * 12, b"\x00", b"L"])
        else:
            content[where:where] = content[where : where + 20]
    return bytes(content)


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_arrays_are_refused_or_whole(count):
    generator = random.Random(0)
    good = Array(VALUES).data
    taken = 0
    for _ in range(count):
        try:
            values = read_array(as_array(mutated(good, generator)), "float32", (12,), "exits/x")
        except WireError:
            continue
        assert values.shape == (12,) and values.dtype == np.float32
        taken += 1
    assert taken < count / 2


STRANGE = [
    None, "", "x" * 10_000, "ok", "\x1b[31m", "<script>", "=1+1", -1, 0, 2**63 - 1, 10**15, True, 1e308, -1e308,
    float("nan"), float("inf"), b"bytes", [], [1.0], [float("nan")] * 3, [0.5] * 3, [1e308] * 3, [1] * 3, ["a"] * 3,
    [0.0] * 100_000,
]  # fmt: skip


def spoilt(reply, generator):
    """Return a copy of a reply with a few keys or records changed, taken out or put in."""
    copy = RecordDict({name: type(record)(dict(record)) for name, record in reply.items()})
    for _ in range(generator.randint(1, 4)):
        name = generator.choice([*copy, "model", "exits"])
        change = generator.randrange(4)
        if change == 0 and name in copy:
            del copy[name]
        elif change == 1:
            copy[name] = generator.choice([ConfigRecord(), MetricRecord(), ArrayRecord()])
        elif name in copy and not isinstance(copy[name], ArrayRecord):
            record = copy[name]
            key = generator.choice([*record, "another"])
            try:
                record[key] = generator.choice(STRANGE)
            except (TypeError, ValueError):
                # Flower's own records take no such value
                continue
    return copy


def a_report():
    lists = {key: [0.5, 0.5, 0.5] for key, kind in METRICS.items() if isinstance(kind, PerExit)}
    scalars = {k: 0.5 if isinstance(v, Number) else 50 for k, v in METRICS.items() if k not in lists}
    head = ConfigRecord({"client-id": "u1", "status": "ok", "labels": "all", "rule": "paper", "sharing": ""})
    return RecordDict({"report": head, "metrics": MetricRecord({**lists, **scalars})})


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_replies_and_status_answers_are_refused_or_whole(count):
    generator = random.Random(1)
    status = wire.make_status(client_id="u1", partition_id=-1, code="c", model_held=True, sharing_allowed=False)
    wire.from_reply(a_report(), 2, is_personalised=True)
    for _ in range(count):
        for good, read in ((a_report(), lambda r: wire.from_reply(r, 2, True, True)), (status, wire.check_status)):
            try:
                read(spoilt(good, generator))
            except WireError as error:
                assert "\n" not in str(error) and "\x1b" not in str(error)


def test_whatever_a_parser_raises_is_one_refusal():
    for raised in (IndentationError("x"), RecursionError(), MemoryError(), KeyError("k"), IndexError()):
        with (
            pytest.raises(WireError, match=f"^the reply cannot be read .{type(raised).__name__}"),
            refusing("the reply"),
        ):
            raise raised
    with pytest.raises(WireError, match="own words"), refusing("the reply"):
        raise WireError("own words")
    with pytest.raises(KeyboardInterrupt), refusing("the reply"):
        raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["accuracy_after", "mean_macs", "after.loss"])
def test_a_client_that_was_asked_to_personalise_reports_every_number(name):
    reply = a_report()
    value = reply["metrics"][name]
    reply["metrics"][name] = [float("nan"), *value[1:]] if isinstance(value, list) else float("nan")
    with pytest.raises(WireError, match=f"metrics/{name}: expected a number"):
        wire.from_reply(reply, 2, is_personalised=True)
    wire.from_reply(reply, 2)


def test_values_that_no_exit_has_are_refused_on_arrival_and_do_not_leave(model, settings):
    network, _ = load_network(model, settings.sources)
    layout = ExitLayout.of(network, "float32")
    for value in (3.4e38, -1e30, 2 * MAX_VALUE):
        arrays = layout.arrays(network.exit_state())
        arrays["1.parameters"][0] = value
        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        for refused in (lambda r=record: layout.from_record(r), lambda a=arrays: layout.to_record(a)):
            with pytest.raises(WireError, match=r"exits/1.parameters: a value is larger than 1e\+06"):
                refused()


@pytest.mark.parametrize("size", [10**12, 7])
def test_a_model_whose_arrays_claim_another_shape_is_refused_before_room_is_made(model, settings, size):
    network, _ = load_network(model, settings.sources)
    content = RecordDict(model_records(network))
    name = next(iter(content["model"]))
    header = str({"descr": "<f4", "fortran_order": False, "shape": (size,)}).encode()
    old = content["model"][name]
    content["model"][name] = Array(
        dtype="float32", shape=old.shape, stype="numpy.ndarray", data=npy_bytes(header, data=old.data[128:])
    )
    with pytest.raises(WireError, match=f"model/{name}: expected"):
        ModelStore(None, sources=settings.sources).receive(network.fingerprint, content)


@pytest.mark.parametrize("names", ["[" * 100_000, '["a", "b", "\\u001b[31m"]', "{}", '["a", "b", 3]', "nope"])
def test_class_names_that_are_no_printable_list_are_refused(model, settings, names):
    network, _ = load_network(model, settings.sources)
    content = RecordDict(model_records(network))
    content["classes"] = ConfigRecord({"names": names})
    with pytest.raises(WireError, match="classes/names"):
        ModelStore(None, sources=settings.sources).receive(network.fingerprint, content)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "{}", "nope", '{"temperatures": [1], "biases": [[0]], "frequencies": [1]}']
)
def test_a_calibration_that_does_not_fit_the_model_is_refused(model, settings, text):
    network, _ = load_network(model, settings.sources)
    content = RecordDict(model_records(network))
    content["calibration"] = ConfigRecord({"json": text})
    with pytest.raises((WireError, ModelFileError), match="calibration"):
        ModelStore(None, sources=settings.sources).receive(network.fingerprint, content)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "nope", '{"fast-labels": {"rule": "paper"}}', '{"a": []}'])
def test_pools_of_risk_curves_that_do_not_fit_the_model_are_refused(model, settings, text):
    network, _ = load_network(model, settings.sources)
    content = RecordDict(model_records(network))
    content["risk-pools"] = ConfigRecord({"json": text})
    with pytest.raises((WireError, ClientSettingsError), match=r"risk-pools|pool of risk curves"):
        ModelStore(None, sources=settings.sources).receive(network.fingerprint, content)


def test_the_calibration_of_a_model_and_its_pools_travel_with_it(model, settings, tmp_path):
    network, _ = load_network(model, settings.sources)
    exits, classes = network.num_exits + 1, network.num_classes
    network.calibration = ExitCalibration(
        temperatures=(2.0,) * exits, biases=((0.5,) * classes,) * exits, frequencies=(1 / classes,) * classes
    )
    candidates = len(candidate_policies(network.num_exits))
    pool = {"rule": "controlled", "risks": [1] * candidates, "costs": [500] * candidates, "users": 60}
    network.risk_pools = {"fast-labels": {**pool, "certificates": []}}
    request = wire.make_request(round_number=1, model=network.fingerprint, code="0" * 64)
    request.update(model_records(network))
    wire.read_request(request)
    received, metadata = ModelStore(tmp_path, sources=settings.sources).receive(network.fingerprint, request)
    assert received.calibration == metadata.calibration == network.calibration
    stored = load_network(tmp_path / network.fingerprint, settings.sources)[0]
    assert stored.calibration == network.calibration
    assert stored.risk_pools == received.risk_pools == metadata.risk_pools == network.risk_pools
