import math

import numpy as np
import pytest

from persephonee.fl_app.errors import RunConfigError
from persephonee.fl_app.server_side.aggregation import Contribution, Merger
from persephonee.fl_app.server_side.client_bounds import array_norms
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.settings.sharing_settings import PrivacySettings, SharingSettings
from persephonee.fl_app.wire.differential_privacy import clipped, epsilon_after, secret_noise, with_noise

START = {"0.parameters": np.zeros(4, dtype=np.float32), "1.parameters": np.ones(4, dtype=np.float32)}


def norm(change):
    return math.sqrt(sum(float((array**2).sum()) for array in change.values()))


def test_the_change_of_all_exits_together_is_clipped_to_the_norm():
    far = {name: array + 3.0 for name, array in START.items()}
    near = {name: array + 0.1 for name, array in START.items()}
    privacy = PrivacySettings(dp_noise_multiplier=1.0, dp_clipping_norm=2.0)
    change = {name: array - START[name] for name, array in clipped(far, START, privacy).items()}
    assert norm(change) == pytest.approx(2.0, rel=1e-5)
    assert change["0.parameters"] == pytest.approx(change["1.parameters"], rel=1e-5)
    unclipped = clipped(near, START, privacy)
    assert all(unclipped[name] == pytest.approx(near[name]) for name in near)
    assert all(np.array_equal(clipped(START, START, privacy)[name], START[name]) for name in START)


def test_the_server_adds_noise_of_z_c_over_n_to_an_average_with_equal_weights():
    size, clients = 20_000, 5
    current = {"0.parameters": np.zeros(size, dtype=np.float32)}
    privacy = PrivacySettings(dp_noise_multiplier=1.5, dp_clipping_norm=2.0)
    shared = [
        Contribution(
            client_id=f"u{i}", exits={"0.parameters": np.full(size, float(i + 1), dtype=np.float32)}, examples=i
        )
        for i in range(clients)
    ]
    merger = Merger(SharingSettings(share_exits=True), privacy, array_norms(current))
    merged, counts = merger.merge(1, current, shared, "secret")
    # every client's change is far above the norm: each contributes 2 / sqrt(size) to every value, whatever its examples
    noise = merged["0.parameters"] - 2.0 / math.sqrt(size)
    assert counts == {0: clients}
    assert noise.std() == pytest.approx(1.5 * 2.0 / clients, rel=0.03)
    assert abs(noise.mean()) < 4 * noise.std() / math.sqrt(size)
    again, _ = merger.merge(1, current, shared, "secret")
    other, _ = merger.merge(1, current, shared, "another secret")
    assert np.array_equal(merged["0.parameters"], again["0.parameters"])
    assert not np.array_equal(merged["0.parameters"], other["0.parameters"])


def test_a_client_that_sends_the_global_exits_back_counts_with_a_change_of_nothing():
    """Left out of the average, it would make n, and with it the noise, follow from a client's data."""
    privacy = PrivacySettings(dp_noise_multiplier=1e-6)
    merger = Merger(SharingSettings(share_exits=True), privacy, array_norms(START))
    moved = {name: array + 0.1 for name, array in START.items()}
    sent = [START, START, START, moved]
    merged, counts = merger.merge(
        1, START, [Contribution(client_id=f"u{i}", exits=e, examples=9) for i, e in enumerate(sent)], "s"
    )
    assert counts == {0: 4, 1: 4}
    assert all(merged[name] == pytest.approx(START[name] + 0.1 / 4, abs=1e-5) for name in START)


def multiplier_of(epsilon, delta):
    """Return the noise over the sensitivity at which one Gaussian mechanism spends epsilon, by its best Renyi order."""
    orders = np.linspace(1.01, 200, 20_000)

    def spent(multiplier):
        divergence = orders / (2 * multiplier**2)
        return (divergence + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)).min()

    low, high = 1e-2, 1e3
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > epsilon else (low, middle)
    return low


@pytest.mark.parametrize("clients", [2, 5])
def test_the_accountant_takes_the_noise_over_the_sensitivity_that_is_measured_at_the_server(clients):
    """The worst that replacing one client's data does to what is released, under the same noise."""
    size = 4
    current = {"0.parameters": np.zeros(size, dtype=np.float32)}
    privacy = PrivacySettings(dp_noise_multiplier=1.3, dp_clipping_norm=0.7)

    def released(first, secret="secret"):
        changes = [np.full(size, value, dtype=np.float32) for value in (first, *[1.0] * (clients - 1))]
        shared = [Contribution(client_id=f"u{i}", exits={"0.parameters": c}, examples=1) for i, c in enumerate(changes)]
        merger = Merger(SharingSettings(share_exits=True), privacy, array_norms(current))
        return merger.merge(1, current, shared, secret)[0]["0.parameters"].astype(float)

    sensitivity = np.linalg.norm(released(100.0) - released(-100.0))
    assert sensitivity == pytest.approx(2 * 0.7 / clients, rel=1e-4)
    deviation = np.std([released(1.0, f"secret {i}") for i in range(2_000)], axis=0).mean()
    assert multiplier_of(epsilon_after(privacy, 1), privacy.dp_delta) == pytest.approx(
        deviation / sensitivity, rel=0.05
    )


def test_the_accountant_takes_the_noise_over_the_sensitivity_that_is_measured_at_a_client():
    start = {"0.parameters": np.zeros(20_000, dtype=np.float32)}
    privacy = PrivacySettings(dp_noise_multiplier=1.3, dp_clipping_norm=0.7, dp_noise_at="clients")
    one, other = (clipped({"0.parameters": start["0.parameters"] + v}, start, privacy) for v in (1.0, -1.0))
    sensitivity = norm({"0": one["0.parameters"] - other["0.parameters"]})
    assert sensitivity == pytest.approx(2 * 0.7, rel=1e-4)
    deviation = with_noise(start, privacy)["0.parameters"].std()
    assert multiplier_of(epsilon_after(privacy, 1), privacy.dp_delta) == pytest.approx(
        deviation / sensitivity, rel=0.05
    )


def test_the_figure_that_was_wrong_is_right():
    """At a noise multiplier of 1 and 10 rounds 19.05 was printed; with the sensitivity of 2 C / n it is 48.80."""
    assert epsilon_after(PrivacySettings(dp_noise_multiplier=1.0), 10) == pytest.approx(48.80, abs=0.05)


def test_a_clients_own_noise_is_z_c_and_never_the_same():
    arrays = {"0.parameters": np.zeros(20_000, dtype=np.float32)}
    privacy = PrivacySettings(dp_noise_multiplier=0.5, dp_clipping_norm=3.0, dp_noise_at="clients")
    one, other = (with_noise(arrays, privacy)["0.parameters"] for _ in range(2))
    assert one.std() == pytest.approx(1.5, rel=0.03)
    assert not np.array_equal(one, other)
    assert not arrays["0.parameters"].any()


def test_noise_leaves_the_global_generator_as_it_was():
    np.random.seed(3)
    expected = np.random.random(2)
    np.random.seed(3)
    first = np.random.random()
    with secret_noise("x", 1):
        np.random.random(10)
    assert [first, np.random.random()] == list(expected)


@pytest.mark.parametrize(("multiplier", "rounds"), [(1.0, 1), (2.0, 10), (0.7, 3)])
def test_epsilon_is_that_of_gaussian_mechanisms_composed(multiplier, rounds):
    """Against the best order of the Renyi divergence, turned into epsilon as in Canonne et al. 2020, Prop. 12."""
    privacy = PrivacySettings(dp_noise_multiplier=multiplier)
    orders = np.linspace(1.01, 200, 200_000)
    # one client's data replaced by other data: twice the clipping norm
    divergence = rounds * orders / (2 * (multiplier / 2) ** 2)
    epsilons = divergence + np.log1p(-1 / orders) - (math.log(privacy.dp_delta) + np.log(orders)) / (orders - 1)
    assert epsilon_after(privacy, rounds) == pytest.approx(epsilons.min(), rel=0.02)
    assert epsilon_after(privacy, 0) == 0


def test_the_same_multiplier_says_the_same_wherever_the_noise_is_added():
    at_clients = PrivacySettings(dp_noise_multiplier=2.0, dp_noise_at="clients")
    at_server = PrivacySettings(dp_noise_multiplier=2.0)
    assert epsilon_after(at_clients, 4) == pytest.approx(epsilon_after(at_server, 4))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"dp-noise-multiplier": 1.0}, "covers shared exits, and none are shared"),
        ({"dp-noise-multiplier": 1.0, "share-exits": True, "strategy": "krum"}, "accounted for averages only"),
        ({"dp-noise-multiplier": -1.0}, "dp-noise-multiplier=-1.0"),
        ({"dp-clipping-norm": 0.0}, "dp-clipping-norm=0.0"),
        ({"dp-delta": 1.0}, "dp-delta=1.0"),
        ({"dp-noise-at": "cloud"}, "dp-noise-at=cloud"),
        ({"strategy": "fedsgd"}, "strategy=fedsgd is out of range: expected one of fedavg"),
        ({"strategy": "krum"}, "merges exits, and none are shared"),
        ({"share-exits": True, "strategy": "krum", "malicious-clients": 2, "clients": 6}, "7 clients or more"),
        ({"share-exits": True, "clients": 2, "held-out-fraction": 0.5}, "2 clients or more have sent, and 1 take part"),
        ({"share-exits": True, "malicious-clients": 1}, "malicious-clients concerns krum"),
        ({"share-dtype": "bfloat16"}, "share-dtype=bfloat16"),
        ({"sharing-fraction": 1.5}, "sharing-fraction=1.5"),
        ({"trimmed-fraction": 0.5}, "trimmed-fraction=0.5"),
        ({"server-learning-rate": 0.0}, "server-learning-rate=0.0"),
        ({"clip-fraction": -0.1}, "clip-fraction=-0.1"),
        ({"weight-cap": math.nan}, "weight-cap=nan"),
        ({"min-sharers": 0}, "min-sharers=0"),
        ({"held-out-fraction": 1.0}, "held-out-fraction=1.0"),
        ({"proximal-mu": -0.1}, "proximal_mu=-0.1"),
    ],
)
def test_settings_that_would_do_nothing_or_too_much_are_refused_in_one_sentence(config, words):
    with pytest.raises(RunConfigError) as caught:
        AppSettings.from_run_config(config)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_noise_without_an_accountant_is_refused_before_anything_starts(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunConfigError, match=r"needs dp-accounting, .* pip install 'persephonee\[privacy\]'"):
        PrivacySettings(dp_noise_multiplier=1.0).check_accountant()
    PrivacySettings().check_accountant()
