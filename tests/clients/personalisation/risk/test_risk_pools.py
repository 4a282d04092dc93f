"""Pools of risk curves: what comes back from JSON, and what is refused."""

import json

import numpy as np
import pytest

from persephonee.clients.errors import ClientSettingsError
from persephonee.clients.personalisation.risk.risk_curves import candidate_policies
from persephonee.clients.personalisation.risk.risk_pools import Certificate, RiskPool, pool_name, shipped_pool

COUNT = len(candidate_policies(2))


def pool():
    return RiskPool(
        rule="controlled",
        risks=np.arange(COUNT) - 3,
        costs=np.full(COUNT, 500),
        users=60,
        certificates=(Certificate(tolerance=0.01, delta=0.1, strength=40, level=0.005),),
    )


def test_a_pool_comes_back_from_json_as_it_was():
    text = json.dumps({pool_name("fast", labelled=True): pool().to_json()})
    found = shipped_pool(json.loads(text), "fast", True, 2)
    assert found.to_json() == pool().to_json()
    assert shipped_pool(json.loads(text), "fast", False, 2) is None
    assert shipped_pool(json.loads(text), "paper", True, 2) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"risks": [0]}, f"other risks than {COUNT} whole numbers"),
        ({"risks": [0.5] * COUNT}, f"other risks than {COUNT} whole numbers"),
        ({"risks": [2**70] * COUNT}, "a mean loss or cost out of range"),
        ({"costs": [-1] * COUNT}, "a mean loss or cost out of range"),
        ({"users": 1}, "1 users"),
        ({"users": True}, "True users"),
        ({"rule": "paper"}, "the rule 'paper'"),
        ({"more": 1}, "other keys"),
        ({"certificates": {}}, "other certificates"),
        ({"certificates": [{}] * 65}, "other certificates"),
        ({"certificates": [{"tolerance": 0.01}]}, "a certificate of other keys"),
        ({"certificates": [{"tolerance": 0.01, "delta": 0.1, "strength": 0, "level": 0}]}, "a strength of 0"),
        ({"certificates": [{"tolerance": 2, "delta": 0.1, "strength": 9, "level": 0}]}, "a certificate of tolerance 2"),
        ({"certificates": [{"tolerance": "a", "delta": 0.1, "strength": 9, "level": 0}]}, "tolerance 'a'"),
    ],
)
def test_an_impossible_pool_is_refused_in_a_sentence(change, words):
    with pytest.raises(ClientSettingsError, match=words):
        RiskPool.from_json({**pool().to_json(), **change}, 2)


def test_the_pool_of_another_network_is_refused():
    with pytest.raises(ClientSettingsError, match="calibrate the model again"):
        RiskPool.from_json(pool().to_json(), 3)
