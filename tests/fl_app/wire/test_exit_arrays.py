import copy

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord

from persephonee.fl_app.errors import WireError
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import load_network


@pytest.fixture
def network(model, settings):
    """With BatchNorm in its heads, whose statistics are no parameters."""
    pooled, _ = load_network(model, settings.sources)
    spec = pooled.spec
    return build_network(
        spec.backbone, num_exits=2, num_classes=3, input_size=16, head="msdnet", allowed=settings.sources
    )


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0.0), ("float16", 1e-3)])
def test_exits_come_back_as_they_were_within_the_type(network, dtype, atol):
    layout = ExitLayout.of(network, dtype)
    state = network.exit_state()
    record = layout.to_record(layout.arrays(state))
    assert sorted(record) == ["0.parameters", "0.statistics", "1.parameters", "1.statistics"]
    base = {name: torch.full_like(tensor, 7) for name, tensor in state.items()}
    back = layout.state(layout.from_record(record), base)
    for name, tensor in state.items():
        if tensor.is_floating_point():
            np.testing.assert_allclose(back[name], tensor, rtol=0, atol=atol)
        else:
            # counters do not travel
            assert name.endswith("num_batches_tracked") and bool((back[name] == 7).all())
    values = sum(t.numel() for t in state.values() if t.is_floating_point())
    assert sum(array.numpy().size for array in record.values()) == values


def test_the_statistics_are_the_buffers_and_a_variance_never_goes_below_nothing(network):
    layout = ExitLayout.of(network, "float32")
    head = network.heads[0]
    buffers = sum(b.numel() for b in head.buffers() if b.is_floating_point())
    assert layout.size("0.statistics") == buffers
    assert layout.size("0.parameters") == sum(p.numel() for p in head.parameters())
    arrays = {name: array - 100 for name, array in layout.arrays(network.exit_state()).items()}
    state = layout.state(arrays, network.exit_state())
    assert all(bool((t == 0).all()) for name, t in state.items() if name.endswith("running_var"))
    assert all(bool((t < 0).all()) for name, t in state.items() if name.endswith("running_mean"))
    other = copy.deepcopy(network)
    other.load_exit_state(state)


def with_array(name, change):
    def spoil(arrays):
        arrays[name] = change(arrays.get(name, np.zeros(3, dtype=np.float32)))

    return spoil


def test_what_is_no_whole_exit_of_this_network_is_refused(network):
    layout = ExitLayout.of(network, "float32")
    good = layout.arrays(network.exit_state())
    assert set(layout.from_record(ArrayRecord({n: Array(good[n]) for n in layout.names({1})}))) == {
        "1.parameters",
        "1.statistics",
    }
    nan = good["0.parameters"].copy()
    nan[3] = np.nan
    cases = [
        ({**good, "0.parameters": nan}, "exits/0.parameters: a value is not finite"),
        ({**good, "0.parameters": np.full_like(nan, np.inf)}, "not finite"),
        ({**good, "0.parameters": good["0.parameters"][:-1]}, "expected float32 values, .* of shape"),
        ({**good, "0.parameters": np.tile(good["0.parameters"], 100)}, "expected .* values of float32, got"),
        ({**good, "0.parameters": good["0.parameters"].astype(np.float64)}, "expected .* values of float32, got"),
        ({**good, "0.parameters": good["0.parameters"].view(np.int32)}, "float32 values"),
        ({**good, "0.parameters": good["0.parameters"].reshape(1, -1)}, "float32 values"),
        ({**good, "2.parameters": nan}, "exits/2.parameters may not travel"),
        ({**good, "stages.0.weight": nan}, "exits/stages.0.weight may not travel"),
        ({"0.parameters": good["0.parameters"]}, "0.statistics is missing"),
        ({}, "an exit is missing"),
    ]
    for arrays, words in cases:
        with pytest.raises(WireError, match=words):
            layout.from_record(ArrayRecord({name: Array(array) for name, array in arrays.items()}))
    with pytest.raises(WireError, match="expected an ArrayRecord"):
        layout.from_record(ConfigRecord())


def test_bytes_that_are_no_array_or_a_pickle_are_refused(network):
    layout = ExitLayout.of(network, "float32")
    good = {name: Array(array) for name, array in layout.arrays(network.exit_state()).items()}
    size = len(good["0.parameters"].data)
    objects = np.array([print] * 3, dtype=object)
    import pickle

    for data in (b"\x00" * size, b"\x93NUMPY" + b"\xff" * (size - 6), pickle.dumps(objects).ljust(size, b"\x00")):
        shape = good["0.parameters"].shape
        good["0.parameters"] = Array(dtype="float32", shape=shape, stype="numpy.ndarray", data=data)
        with pytest.raises(WireError, match="the bytes are no array"):
            layout.from_record(ArrayRecord(good))


def test_a_header_that_claims_more_than_there_is_makes_no_room_for_it(network):
    layout = ExitLayout.of(network, "float32")
    good = {name: Array(array) for name, array in layout.arrays(network.exit_state()).items()}
    name = "0.parameters"
    values = layout.size(name)
    claimed = str(values) + "0" * 9
    data = good[name].data.replace(f"({values},), }}".encode(), f"({claimed},), }}".encode(), 1)
    assert data != good[name].data
    data = data.replace(b" " * 9 + b"\n", b"\n", 1)
    good[name] = Array(dtype="float32", shape=(values,), stype="numpy.ndarray", data=data)
    with pytest.raises(WireError, match="got float32 of shape"):
        layout.from_record(ArrayRecord(good))


def test_a_value_that_float16_cannot_hold_does_not_leave(network):
    layout = ExitLayout.of(network, "float16")
    arrays = layout.arrays(network.exit_state())
    arrays["1.statistics"][0] = 1e6
    with pytest.raises(WireError, match=r"exits/1.statistics: a value is not finite as float16"):
        layout.to_record(arrays)
