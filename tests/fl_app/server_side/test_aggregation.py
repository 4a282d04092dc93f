"""Each strategy against its formula, on a few numbers."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from persephonee.fl_app.errors import RunConfigError
from persephonee.fl_app.server_side import aggregation
from persephonee.fl_app.server_side.aggregation import Contribution, Merger
from persephonee.fl_app.server_side.client_bounds import array_norms
from persephonee.fl_app.server_side.own_strategy import own_strategy
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings

CURRENT = {"0.parameters": np.array([1.0, 2.0, 3.0]), "0.statistics": np.array([0.5]), "1.parameters": np.array([9.0])}
CURRENT = {name: array.astype(np.float32) for name, array in CURRENT.items()}


def merger(strategy, **more):
    """Without bounds on what a client may do, unless they are asked for: the strategy's own arithmetic."""
    settings = {"clip_fraction": 0.0, "weight_cap": 0.0, **more}
    return Merger(
        SharingSettings(share_exits=True, strategy=strategy, **settings), PrivacySettings(), array_norms(CURRENT)
    )


def shares(*parameters, examples=None):
    """Exit 0 of one client after the other; nobody sends exit 1."""
    return [
        Contribution(
            client_id=f"u{i}",
            exits={
                "0.parameters": np.array(values, dtype=np.float32),
                "0.statistics": np.array([float(i)], dtype=np.float32),
            },
            examples=(examples or [10] * len(parameters))[i],
        )
        for i, values in enumerate(parameters)
    ]


A, B, C, D, E = ([0.0, 0.0, 0.0], [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 6.0, 10.0], [900.0, -900.0, 0.0])


def test_an_average_weighs_by_examples_and_leaves_an_exit_that_nobody_sent():
    merged, counts = merger("fedavg").merge(1, CURRENT, shares(A, B, examples=[30, 10]), "")
    np.testing.assert_allclose(merged["0.parameters"], [0.25, 0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(merged["0.statistics"], [0.25], rtol=1e-6)
    assert merged["1.parameters"] is CURRENT["1.parameters"]
    assert counts == {0: 2, 1: 0}


def test_the_median_and_the_trimmed_mean_ignore_a_client_far_away():
    columns = np.array([A, B, C, D, E])
    merged, _ = merger("fedmedian").merge(1, CURRENT, shares(A, B, C, D, E), "")
    np.testing.assert_allclose(merged["0.parameters"], np.median(columns, axis=0), rtol=1e-6)
    merged, _ = merger("fedtrimmedavg", trimmed_fraction=0.2).merge(1, CURRENT, shares(A, B, C, D, E), "")
    np.testing.assert_allclose(merged["0.parameters"], np.sort(columns, axis=0)[1:-1].mean(axis=0), rtol=1e-6)


def test_krum_takes_the_weights_and_the_statistics_of_one_client():
    merged, counts = merger("krum", malicious_clients=1).merge(1, CURRENT, shares(A, B, C, D, E), "")
    # by hand: the two nearest of B are A and C, at 14 each; of A they are B and C at 14 + 56, of C B and D at 14 + 21
    np.testing.assert_array_equal(merged["0.parameters"], B)
    assert merged["0.statistics"] == 1.0
    assert counts[0] == 5


def test_fewer_clients_than_a_strategy_needs_leave_the_exit_as_it_was():
    merged, counts = merger("krum", malicious_clients=1).merge(1, CURRENT, shares(A, B, C, D), "")
    assert counts == {0: 0, 1: 0}
    np.testing.assert_array_equal(merged["0.parameters"], CURRENT["0.parameters"])


@pytest.mark.parametrize("strategy", ["fedadam", "fedyogi"])
def test_momentum_steps_as_its_formula_says_and_goes_on_after_a_restart(strategy):
    rate, beta1, beta2, tau = 0.01, 0.9, 0.99, 1e-3
    first, second = shares(B, C), shares(A, D)
    ours = merger(strategy, server_learning_rate=rate)
    one, _ = ours.merge(1, CURRENT, first, "")
    restarted = merger(strategy, server_learning_rate=rate)
    restarted.load_state(ours.state())
    two, _ = ours.merge(2, one, second, "")
    again, _ = restarted.merge(2, one, second, "")

    weights, m, v = CURRENT["0.parameters"].astype(float), np.zeros(3), np.zeros(3)
    for number, sent, got in ((1, (B, C), one), (2, (A, D), two)):
        delta = np.mean(sent, axis=0) - weights
        m = beta1 * m + (1 - beta1) * delta
        squared = delta**2
        moved = squared if strategy == "fedadam" else squared * np.sign(squared - v)
        v = beta2 * v + (1 - beta2) * squared if strategy == "fedadam" else v + (1 - beta2) * moved
        step = rate
        if strategy == "fedadam":
            step *= np.sqrt(1 - beta2 ** (number + 1)) / (1 - beta1 ** (number + 1))
        weights = weights + step * m / (np.sqrt(v) + tau)
        np.testing.assert_allclose(got["0.parameters"], weights, rtol=1e-5)
        # a step on a variance has no meaning: statistics are averaged
        np.testing.assert_allclose(got["0.statistics"], [0.5])
    np.testing.assert_array_equal(two["0.parameters"], again["0.parameters"])


def test_the_order_of_arrival_plays_no_part(model, settings):
    from persephonee.fl_app.server_side.exit_sharing import ExitSharing
    from persephonee.multi_exit.storage import load_network

    network, _ = load_network(model, settings.sources)
    generator = np.random.default_rng(0)
    sharings = [ExitSharing(network, SharingSettings(share_exits=True), PrivacySettings(), "") for _ in range(2)]
    start, _ = sharings[0].state()
    sent = [
        Contribution(
            client_id=f"u{i}",
            exits={
                k.removeprefix("exits/"): v + generator.normal(size=v.shape).astype(np.float32)
                for k, v in start.items()
            },
            examples=3 + i,
        )
        for i in range(4)
    ]
    sharings[0].merge(1, sent)
    sharings[1].merge(1, sent[::-1])
    one, other = (sharing.state()[0] for sharing in sharings)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def with_bounds(strategy, **more):
    return merger(strategy, clip_fraction=0.2, weight_cap=1.0, **more)


HONEST = [[1.1, 2.1, 3.1], [1.12, 2.08, 3.1], [1.08, 2.12, 3.1], [1.1, 2.1, 3.08], [1.1, 2.1, 3.12]]


def shares_near(*parameters, examples):
    """As `shares`, with statistics that all agree on."""
    sent = shares(*parameters, examples=examples)
    for client in sent:
        client.exits["0.statistics"] = np.array([0.5], dtype=np.float32)
    return sent


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi", "fedmedian", "fedtrimmedavg", "krum"])
@pytest.mark.parametrize("value", [1e6, -1e6, 1e30, 3.4e38])
def test_one_client_of_six_with_huge_values_moves_the_result_by_no_more_than_an_honest_one(strategy, value):
    sent = shares_near(*HONEST, [value] * 3, examples=[10] * 6)
    merged, counts = with_bounds(strategy).merge(1, CURRENT, sent, "")
    assert counts[0] == 6
    honest_norm = max(np.linalg.norm(np.array(row) - CURRENT["0.parameters"]) for row in HONEST)
    assert np.linalg.norm(merged["0.parameters"] - CURRENT["0.parameters"]) <= honest_norm * 1.001
    assert merged["0.statistics"] == pytest.approx([0.5], abs=0.02)


def test_a_change_is_clipped_to_a_fraction_of_the_exits_norm_and_to_the_median_of_the_round():
    start = np.linalg.norm(CURRENT["0.parameters"].astype(float))
    merged, _ = with_bounds("fedavg").merge(
        1, CURRENT, shares_near([101.0, 2.0, 3.0], [101.0, 2.0, 3.0], examples=[1, 1]), ""
    )
    assert merged["0.parameters"] == pytest.approx([1 + 0.2 * start, 2.0, 3.0], rel=1e-5)
    far, near = [101.0, 2.0, 3.0], [1.1, 2.0, 3.0]
    merged, _ = with_bounds("fedavg").merge(1, CURRENT, shares_near(near, near, far, examples=[1, 1, 1]), "")
    assert merged["0.parameters"] == pytest.approx(near, rel=1e-5)


@pytest.mark.parametrize("claimed", [2**53, 10**15])
def test_a_false_number_of_samples_weighs_no_more_than_the_median(claimed):
    sent = shares_near(*HONEST, [0.9, 1.9, 2.9], examples=[10, 20, 30, 40, 50, claimed])
    merged, _ = merger("fedavg", weight_cap=1.0).merge(1, CURRENT, sent, "")
    weights = np.array([10, 20, 30, 30, 30, 30])
    rows = np.array([*HONEST, [0.9, 1.9, 2.9]])
    assert merged["0.parameters"] == pytest.approx((rows * weights[:, None]).sum(0) / weights.sum(), rel=1e-5)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedyogi"])
def test_sharers_that_all_report_no_samples_weigh_the_same(strategy):
    none, some = (with_bounds(strategy).merge(1, CURRENT, shares(B, C, examples=e), "")[0] for e in ([0, 0], [7, 7]))
    assert np.array_equal(none["0.parameters"], some["0.parameters"])


def test_an_exit_whose_merging_fails_stays_as_it_was_and_is_named(monkeypatch, caplog):
    def fails(*arguments):
        raise OverflowError("too large")

    monkeypatch.setattr(aggregation, "_aggregate", fails)
    with caplog.at_level("WARNING", logger="persephonee.server"):
        merged, counts = with_bounds("fedavg").merge(1, CURRENT, shares(A, B), "")
    assert counts == {0: 0, 1: 0}
    assert all(np.array_equal(merged[name], CURRENT[name]) for name in CURRENT)
    assert "0.parameters stays as it was in round 1" in caplog.text


def pessimist():
    """A strategy of one's own: the smallest of each number."""

    class Smallest:
        def aggregate_train(self, server_round, replies):
            records = [next(iter(reply.content.array_records.values())) for reply in replies]
            smallest = {n: np.min([record[n].numpy() for record in records], axis=0) for n in records[0]}
            return ArrayRecord({name: Array(array) for name, array in smallest.items()}), None

    return Smallest()


def wrong_shape():
    class Wrong:
        def aggregate_train(self, server_round, replies):
            return ArrayRecord({"0.parameters": Array(np.zeros(7, dtype=np.float32))}), None

    return Wrong()


def no_strategy():
    return "fedavg"


def own_merger(function):
    settings = SharingSettings(
        share_exits=True, strategy=f"{__name__}:{function}", clip_fraction=0.0, weight_cap=0.0
    )  # fmt: skip
    return Merger(settings, PrivacySettings(), array_norms(CURRENT), (__name__,))


def test_a_strategy_of_ones_own_merges_each_exit():
    merged, counts = own_merger("pessimist").merge(1, CURRENT, shares(B, A, C), "")
    np.testing.assert_array_equal(merged["0.parameters"], A)
    assert merged["0.statistics"] == 0.0 and counts[0] == 3


def test_a_strategy_of_ones_own_that_gives_something_else_leaves_the_exit_as_it_was(caplog):
    merged, counts = own_merger("wrong_shape").merge(1, CURRENT, shares(A, B), "")
    assert merged["0.parameters"] is CURRENT["0.parameters"] and counts[0] == 0
    assert "of another shape" in caplog.text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("os:getcwd", "comes from 'os', but only"),
        (f"{__name__}:missing", "cannot be imported"),
        (f"{__name__}:no_strategy", "returned str, which has no aggregate_train"),
        (f"{__name__}:own_merger", "it takes no argument"),
    ],
)
def test_what_is_no_strategy_is_refused_in_a_sentence(name, words):
    with pytest.raises(RunConfigError, match=words):
        own_strategy(name, ("torchvision", __name__))


def test_a_strategy_is_one_of_flowers_or_the_name_of_a_function():
    with pytest.raises(RunConfigError, match="strategy"):
        SharingSettings(share_exits=True, strategy="fedprox")
    assert SharingSettings(share_exits=True, strategy="my.module:make").has_own_strategy
