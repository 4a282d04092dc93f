import pytest

from persephonee.experiments.evidence.check import Headline, headlines


def test_each_headline_holds_in_its_reduced_version(tmp_path):
    found = headlines(tmp_path / "model")
    assert len(found) == 9
    assert not [one for one in found if not one.holds]


@pytest.mark.parametrize(
    ("found", "holds"), [(2.9, False), (3.0, True), (9.0, True), (9.1, False), (float("nan"), False)]
)
def test_a_headline_outside_its_band_does_not_hold(found, holds):
    assert Headline(claim="a gain", found=found, least=3, most=9).holds == holds
