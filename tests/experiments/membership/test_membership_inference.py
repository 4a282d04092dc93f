import numpy as np
import pandas as pd
import pytest
from scipy import stats

from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.settings import DataSettings
from persephonee.experiments.membership.attacks import (
    advantage,
    area_under_curve,
    calibrated_scores,
    likelihood_ratio_scores,
    logit_confidence,
    loss_scores,
    true_positive_rate,
)
from persephonee.experiments.membership.experiment import (
    METRICS_ONLY,
    ROUNDED,
    SHARED,
    Victim,
    attack_user,
    halves,
    protected,
    rounded_figures,
)
from persephonee.experiments.membership.figure import draw_attacks, markdown, summarise
from persephonee.experiments.membership.labels import infer_labels, label_markdown
from persephonee.experiments.meta_learning.experiment import held_out_users
from persephonee.fl_app.client_side.coarse_report import step_for
from persephonee.fl_app.settings.sharing_settings import PrivacySettings
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.exit_weights import as_arrays

RANDOM = np.random.default_rng(0)
SCORES = RANDOM.normal(size=300).round(1)  # rounded: with ties
MEMBERS = RANDOM.random(300) < 0.4


def test_the_area_under_the_curve_is_mann_and_whitneys_statistic():
    u = stats.mannwhitneyu(SCORES[MEMBERS], SCORES[~MEMBERS]).statistic
    assert area_under_curve(SCORES, MEMBERS) == pytest.approx(u / (MEMBERS.sum() * (~MEMBERS).sum()))
    assert area_under_curve(MEMBERS.astype(float), MEMBERS) == 1.0
    assert np.isnan(area_under_curve(SCORES, np.ones(300, dtype=bool)))


def test_the_advantage_and_the_rate_are_those_of_trying_every_threshold():
    rates = [((SCORES[MEMBERS] >= t).mean(), (SCORES[~MEMBERS] >= t).mean()) for t in (*np.unique(SCORES), np.inf)]
    assert advantage(SCORES, MEMBERS) == pytest.approx(max(true - false for true, false in rates))
    assert true_positive_rate(SCORES, MEMBERS, 0.1) == pytest.approx(max(t for t, f in rates if f <= 0.1))


def test_losses_score_members_as_the_papers_say():
    losses, general = np.array([[0.1, 2.0], [0.3, 1.0]]), np.array([[0.1, 3.0], [0.1, 3.0]])
    assert loss_scores(losses).tolist() == pytest.approx([-0.2, -1.5])
    assert calibrated_scores(losses, general).tolist() == pytest.approx([-0.1, 1.5])
    assert logit_confidence(np.log([0.5, 0.9])).tolist() == pytest.approx([0.0, np.log(9)])


@pytest.mark.parametrize("same_for_all", [False, True])
def test_the_likelihood_ratio_is_that_of_two_fitted_gaussians(same_for_all):
    members = halves(6, 3, np.random.default_rng(1))
    shadows = RANDOM.normal(size=(6, 2, 1 if same_for_all else 6))
    target = RANDOM.normal(size=(2, 1 if same_for_all else 6))
    wide, aim = np.broadcast_to(shadows, (6, 2, 6)), np.broadcast_to(target, (2, 6))
    expected = np.zeros(6)
    for exit in range(2):
        fits = [[wide[members[:, n] == kind, exit, n].mean() for kind in (True, False)] for n in range(6)]
        squares = [(wide[s, exit, n] - fits[n][0 if members[s, n] else 1]) ** 2 for s in range(6) for n in range(6)]
        deviation = np.sqrt(sum(squares) / (36 - 12))
        for n, (inside, outside) in enumerate(fits):
            ratio = [stats.norm.logpdf(aim[exit, n], mean, deviation) for mean in (inside, outside)]
            expected[n] += ratio[0] - ratio[1]
    assert likelihood_ratio_scores(target, shadows, members) == pytest.approx(expected)


def test_every_sample_is_in_half_of_the_shadows():
    members = halves(11, 4, np.random.default_rng(0))
    assert members.shape == (8, 11)
    assert (members.sum(axis=0) == 4).all()
    assert members[0].sum() == 5


@pytest.fixture(scope="module")
def victim() -> Victim:
    network = build_network(
        "squeezenet1_1", num_exits=1, num_classes=62, input_size=28, head="pooled"
    ).freeze_backbone()
    (user,) = held_out_users(open_partitions(DataSettings(num_writers=3)), set(), 1)
    return Victim(network.freeze_backbone(), *user, epochs=10)


def test_what_is_sent_is_clipped_and_then_gets_the_noise_that_was_asked_for(victim):
    start = as_arrays(victim.network.exit_state())
    exits = {name: tensor + 0.1 for name, tensor in start.items()}

    def change(z: float) -> np.ndarray:
        privacy = PrivacySettings(dp_noise_multiplier=z, dp_clipping_norm=2.0, dp_noise_at="clients")
        sent = protected(exits, victim.network, privacy, np.random.default_rng(0))
        return np.concatenate([(sent[name] - start[name]).ravel() for name in start])

    assert np.linalg.norm(change(0.0)) == pytest.approx(2.0, rel=1e-3)
    noise = change(0.5) - change(0.0)
    assert noise.std() == pytest.approx(0.5 * 2.0, rel=0.02)


def test_exits_give_members_away_and_a_report_or_noise_does_not(victim):
    noise = PrivacySettings(dp_noise_multiplier=10.0, dp_noise_at="clients")
    rows = pd.DataFrame(attack_user(victim, "somebody", 3, [noise], np.random.default_rng(0)))
    table = summarise(rows).set_index(["release", "attack"])
    # a random backbone's exits learn their few samples by heart
    assert table.auc[SHARED, "LiRA"] > 0.8
    assert table.auc[SHARED, "calibrated"] > 0.7
    for release in (METRICS_ONLY, ROUNDED, "exits, z = 10"):
        assert abs(table.auc[release, "LiRA"] - 0.5) < 0.2
    assert (table.samples == len(victim.pool)).all()
    assert draw_attacks(table.reset_index(), "test").axes
    assert f"1 users, {len(victim.pool)} samples" in markdown(table.reset_index())


def test_a_crafted_model_tells_as_many_frequencies_as_it_has_exits_and_an_honest_one_none():
    network = build_network("squeezenet1_1", num_exits=1, num_classes=62, input_size=28, head="pooled")
    users = held_out_users(open_partitions(DataSettings(num_writers=5)), set(), 4)
    truth = np.array([float((samples.labels[split.test] == 0).mean()) for samples, split in users])
    told = []

    def figures(outputs, labels, costs):
        told.append(rounded_figures(outputs, labels, costs))
        return told[-1]

    table = infer_labels(network.freeze_backbone(), users, figures).set_index("guess")
    # of each user the honest figures and the crafted ones, whose first is the accuracy of exit 0
    crafted = np.array([values[0] for values in told[1::2]])
    steps = np.array([step_for(len(split.test)) for _, split in users])
    assert (np.abs(crafted - truth) <= steps / 2 + 1e-9).all()
    assert (table.users == 4).all() and table.error.between(0, 1).all()
    assert "4 users; error: total variation" in label_markdown(table.reset_index())
