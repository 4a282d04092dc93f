"""Where clients change classifiers alone, these alone travel and are merged, to what whole exits would be merged to."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from persephonee.fl_app.errors import AppError
from persephonee.fl_app.server_side.aggregation import Contribution
from persephonee.fl_app.server_side.exit_sharing import ExitSharing
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.fl_app.wire.exit_arrays import ExitLayout
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.exit_weights import as_arrays, classifiers_of, classifiers_on, with_classifiers
from persephonee.multi_exit.storage import load_network
from tests.fl_app.whole_runs import changed, run, table

pytestmark = pytest.mark.usefixtures("draw_nothing")


@pytest.fixture
def sharing(settings):
    return changed(settings, share_exits=True, rounds=2, schedule="fast", rule="paper")


@pytest.fixture(scope="module")
def mobilenet():
    return build_network("mobilenet_v2", num_exits=6, num_classes=62, input_size=28, head="msdnet")


def whole_exits_travel(monkeypatch):
    """As in a former version, whatever the schedule."""
    honest = ExitLayout.of.__func__
    monkeypatch.setattr(
        ExitLayout, "of", classmethod(lambda cls, network, dtype, classifiers_alone=False: honest(cls, network, dtype))
    )


def personal(own, number):
    """What client `number` trains: all go the same way, the first client the straightest."""
    common, noise = np.random.default_rng(0), np.random.default_rng(number)
    moved = [
        matrix + 0.01 * common.normal(size=matrix.shape) + 0.003 * number * noise.normal(size=matrix.shape)
        for matrix in classifiers_of(own)
    ]
    return with_classifiers(own, [matrix.astype(np.float32) for matrix in moved])


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"])
@pytest.mark.parametrize("clip_fraction", [0.0, 0.02])
def test_classifiers_are_merged_to_what_whole_exits_are(mobilenet, strategy, clip_fraction):
    settings = SharingSettings(share_exits=True, strategy=strategy, clip_fraction=clip_fraction)
    own, merged = as_arrays(mobilenet.exit_state()), {}
    for alone in (True, False):
        layout = ExitLayout.of(mobilenet, "float32", classifiers_alone=alone)
        shared = [
            Contribution(client_id=f"u{i}", exits=layout.arrays(personal(own, i)), examples=10 + i) for i in range(1, 6)
        ]
        federation = ExitSharing(mobilenet, settings, PrivacySettings(), "", classifiers_alone=alone)
        for number in (1, 2):
            assert set(federation.merge(number, shared).values()) == {5}
        merged[alone] = federation.exit_state()
    # all else is the model's, bit for bit
    classifiers = classifiers_on(own, merged[True])
    assert classifiers is not None
    for name, array in classifiers.items():
        np.testing.assert_allclose(array, merged[False][name], rtol=1e-5, atol=1e-7)
        assert not np.array_equal(array, own[name])


def test_noise_at_the_server_lies_on_the_classifiers_alone(mobilenet):
    privacy, own = PrivacySettings(dp_noise_multiplier=1.0, dp_clipping_norm=0.5), as_arrays(mobilenet.exit_state())
    layout = ExitLayout.of(mobilenet, "float32", classifiers_alone=True)
    shared = [Contribution(client_id=f"u{i}", exits=layout.arrays(own), examples=10) for i in range(4)]
    settings = SharingSettings(share_exits=True)
    federation = ExitSharing(mobilenet, settings, privacy, "secret", classifiers_alone=True)
    federation.merge(1, shared)
    noisy = classifiers_on(own, federation.exit_state())
    noise = np.concatenate([(noisy[name] - own[name]).ravel() for name in noisy])
    assert noise.std() == pytest.approx(1.0 * 0.5 / 4, rel=0.02)


def test_a_shared_message_of_mobilenet_is_0_2_mb_in_place_of_6_2(mobilenet):
    sizes = {}
    for dtype in ("float32", "float16"):
        for alone in (True, False):
            layout = ExitLayout.of(mobilenet, dtype, classifiers_alone=alone)
            record = layout.to_record(layout.arrays(mobilenet.exit_state()))
            sizes[dtype, alone] = sum(len(array.data) for array in record.values())
            assert len(record) == (6 if alone else 12)
    headers = 6 * 128
    assert sizes["float32", True] == 47_988 * 4 + headers
    assert sizes["float16", True] == 47_988 * 2 + headers
    assert sizes["float32", False] == 1_556_340 * 4 + 2 * headers


def test_a_fast_run_sends_classifiers_both_ways_and_its_tables_are_those_of_whole_exits(
    sharing, simulated_nodes, make_grid, monkeypatch, tmp_path
):
    nodes = simulated_nodes(3)
    alone = run(make_grid(nodes, sharing), sharing)
    initial, _ = load_network(sharing.paths.model, sharing.sources)
    values = sum(parameter.numel() for head in initial.heads for parameter in head.classifier.parameters())
    for node in nodes:
        up, down = node.sent[-1]["exits"], node.received[-1].content["exits"]
        assert set(down) == {"0.classifier", "1.classifier"} >= set(up)
        assert sum(array.numpy().size for array in down.values()) == values
    own = as_arrays(initial.exit_state())
    merged = as_arrays(load_network(alone / "model", sharing.sources)[0].exit_state())
    assert classifiers_on(own, merged) is not None
    assert not all(np.array_equal(own[name], merged[name]) for name in own)

    whole_exits_travel(monkeypatch)
    former = changed(sharing, run_dir=str(tmp_path / "former"))
    whole = run(make_grid(simulated_nodes(3), former), former)
    for name in ("exits", "sharing"):
        assert (alone / f"{name}.parquet").read_bytes() == (whole / f"{name}.parquet").read_bytes()
    others = ("bytes_up", "bytes_down", "seconds_personalise")
    one, other = (table(folder, "clients", without=others) for folder in (alone, whole))
    assert one.equals(other)
    assert (table(alone, "clients").bytes_up < table(whole, "clients").bytes_up).all()


@pytest.mark.parametrize(("schedule", "words"), [("fast", "classifiers alone do"), ("paper", "whole exits do")])
def test_a_client_that_sends_another_part_of_an_exit_is_refused_in_a_sentence_that_names_the_setting(
    sharing, simulated_nodes, make_grid, schedule, words
):
    settings = changed(sharing, schedule=schedule, rounds=1, epochs=3)
    network, _ = load_network(settings.paths.model, settings.sources)
    layout = ExitLayout.of(network, "float32", classifiers_alone=schedule == "paper")
    other = {name: Array(array) for name, array in layout.arrays(network.exit_state()).items()}

    def send_another_part(message, reply):
        reply["exits"] = ArrayRecord(other)
        return reply

    nodes = simulated_nodes(3)
    nodes[2].reply_with = send_another_part
    outcomes = table(run(make_grid(nodes, settings), settings), "sharing").outcome
    (refused,) = (outcome for outcome in outcomes if outcome.startswith("refused"))
    assert next(iter(other)) in refused and words in refused and "schedule=fast" in refused
    assert (outcomes == "shared").sum() == 2


def test_a_checkpoint_of_whole_exits_is_refused_in_a_sentence_where_classifiers_are_merged(mobilenet):
    settings = SharingSettings(share_exits=True)
    former = ExitSharing(mobilenet, settings, PrivacySettings(), "")
    present = ExitSharing(mobilenet, settings, PrivacySettings(), "", classifiers_alone=True)
    with pytest.raises(AppError, match=r"other parts of the exits than 0\.classifier"):
        present.load_state(*former.state())
