"""The choice of a policy by the rule of the settings: nothing is chosen that promises nothing."""

from dataclasses import replace

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.risk import policy_choice as choice
from persephonee.clients.personalisation.risk import risk_pools
from persephonee.clients.personalisation.risk.risk_curves import FLOOR, candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import Certificate, RiskPool
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.multi_exit.settings import LossWeights

SETTINGS = PersonalisationSettings(schedule="fast", unfamiliar_fraction=0.0)
POLICIES = candidate_policies(2)
FAVOURITE = next(i for i, p in enumerate(POLICIES) if p.exits_in_use == (1,) and p.threshold == 0.7)


def pool(rule="controlled", favourite=FAVOURITE, tolerance=0.01):
    """Return a pool in which one candidate costs least and loses nothing, and counts for more than any user's own."""
    costs = np.full(len(POLICIES), 900)
    costs[favourite] = 300
    certificate = Certificate(tolerance=tolerance, delta=0.1, strength=10**6, level=0.001)
    return RiskPool(rule=rule, risks=np.zeros_like(costs), costs=costs, users=80, certificates=(certificate,))


def shipping(network, **pools):
    network.risk_pools = {name.replace("_", "-"): one.to_json() for name, one in pools.items()}
    return network


def test_without_curves_of_other_users_the_original_network_stays_in_force_and_the_report_says_so(
    toy_network, user, split
):
    done = personalise(toy_network, user, split, SETTINGS)
    assert done.policy.exits_in_use == ()
    assert done.report.rule == choice.NO_POOL
    assert done.report.mean_macs == done.report.original_macs
    assert done.report.accuracy_after == done.report.accuracy_original
    # a curve is there all the same, for whoever pools it
    assert done.choice.curve.num_samples == len(split.calibration)


def test_the_papers_rule_promises_nothing_and_is_taken_where_it_is_asked_for(toy_network, user, split):
    done = personalise(toy_network, user, split, replace(SETTINGS, rule="paper", drop_tolerance=0.2))
    assert done.report.rule == choice.PAPER
    assert done.policy.exits_in_use


def test_the_pool_that_ships_with_the_model_chooses_with_labels_and_without(toy_network, user, split):
    other = next(i for i, p in enumerate(POLICIES) if p.exits_in_use == (0,) and p.threshold == 0.9)
    shipping(toy_network, fast_labels=pool(), fast_none=pool(favourite=other))
    done = personalise(toy_network, user, split, SETTINGS)
    assert (done.policy, done.report.rule) == (POLICIES[FAVOURITE], choice.CONTROLLED)
    blind = replace(split, labelled=split.labelled & False)
    done = personalise(toy_network, user, blind, replace(SETTINGS, weights=LossWeights(beta=1.0)))
    assert done.policy == POLICIES[other]
    # the other schedule trains other exits, of which the model knows nothing
    assert personalise(toy_network, user, split, replace(SETTINGS, schedule="paper")).report.rule == choice.NO_POOL


def test_a_tolerance_that_nothing_certifies_keeps_the_original_network(toy_network, user, split):
    shipping(toy_network, fast_labels=pool())
    done = personalise(toy_network, user, split, replace(SETTINGS, drop_tolerance=0.005))
    assert (done.policy.exits_in_use, done.report.rule) == ((), choice.NOT_CERTIFIED)
    done = personalise(toy_network, user, split, replace(SETTINGS, delta=0.05))
    assert (done.policy.exits_in_use, done.report.rule) == ((), choice.NOT_CERTIFIED)


def test_too_few_calibration_samples_keep_the_original_network(toy_network, user, split):
    shipping(toy_network, fast_labels=pool())
    few = replace(split, calibration=split.calibration[:4])
    done = personalise(toy_network, user, few, SETTINGS)
    assert (done.policy.exits_in_use, done.report.rule, done.choice.curve) == ((), choice.TOO_FEW, None)


def test_against_the_original_network_another_pool_of_the_model_counts(toy_network, user, split):
    cheaper = next(i for i, p in enumerate(POLICIES) if p.exits_in_use == (0,) and p.threshold == 0.9)
    network = shipping(toy_network, fast_labels=pool(), fast_labels_original=pool(favourite=cheaper))
    done = personalise(network, user, split, replace(SETTINGS, drop_reference="original"))
    assert (done.policy, done.report.rule) == (POLICIES[cheaper], choice.CONTROLLED)
    # nobody who has not personalised has another last exit than the original
    assert risk_pools.pool_name(risk_pools.BEFORE, True, "original") == risk_pools.pool_name(risk_pools.BEFORE, True)
    assert "original network" in choice.promise_in_words(choice.CONTROLLED, 0.01, 0.1, "original")


def test_the_original_network_is_a_reference_that_the_papers_rule_does_not_know():
    with pytest.raises(ClientSettingsError, match="drop_reference=original is out of range: expected last-exit"):
        PersonalisationSettings(rule="paper", drop_reference="original")
    with pytest.raises(ClientSettingsError, match="expected last-exit or original"):
        PersonalisationSettings(drop_reference="mine")


def test_the_pool_of_a_federation_goes_before_the_models_unless_it_certifies_nothing(toy_network, user, split):
    shipping(toy_network, fast_labels=pool())
    other = next(i for i, p in enumerate(POLICIES) if p.exits_in_use == (0, 1) and p.threshold == 0.8)
    done = personalise(toy_network, user, split, SETTINGS, pool=pool("federated", other))
    assert (done.policy, done.report.rule) == (POLICIES[other], choice.FEDERATED)
    done = personalise(toy_network, user, split, SETTINGS, pool=pool("federated", other, tolerance=0.02))
    assert (done.policy, done.report.rule) == (POLICIES[FAVOURITE], choice.CONTROLLED)


def test_no_rule_but_the_papers_lets_an_exit_answer_without_an_even_chance_of_being_right(toy_network, user, split):
    shipping(toy_network, fast_labels=pool(favourite=0), before_labels=pool(favourite=0))
    done = personalise(toy_network, user, split, SETTINGS)
    assert done.policy.threshold >= FLOOR


@pytest.mark.parametrize("chosen_by", choice.OUTCOMES)
def test_every_outcome_says_what_it_promises(chosen_by):
    words = choice.promise_in_words(chosen_by, 0.01, 0.1)
    assert ("1 point of accuracy" in words) == (chosen_by in (choice.CONTROLLED, choice.FEDERATED))
    assert ("no promise" in words) == (chosen_by == choice.PAPER)
