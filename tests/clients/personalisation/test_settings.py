import pytest

from persephonee.clients.errors import ClientError
from persephonee.clients.personalisation.settings import PersonalisationSettings, loss_weights
from persephonee.multi_exit.settings import LossWeights


@pytest.mark.parametrize(
    ("scheme", "labelled", "expected"),
    [
        ("supervised", 1.0, LossWeights(alpha=1.0)),
        ("self-distillation", 1.0, LossWeights(beta=1.0)),
        ("self-supervision", 0.0, LossWeights(gamma=1.0)),
        ("auto", 1.0, LossWeights(alpha=1.0)),
        ("auto", 0.0, LossWeights(beta=1.0)),
        ("auto", 0.3, LossWeights(alpha=1.0, beta=1.0)),
    ],
)
def test_schemes_weigh_equation_one_as_in_the_paper(scheme, labelled, expected):
    assert loss_weights(scheme, labelled) == expected


def test_an_unknown_scheme_is_named():
    with pytest.raises(ClientError, match="'magic' is unknown"):
        loss_weights("magic", 1.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("momentum", 1.0),
        ("batch_size", 1),
        ("drop_tolerance", 1.01),
        ("drop_tolerance", -0.01),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(name, value):
    with pytest.raises(ClientError, match=f"{name}={value}".replace(".", r"\.")):
        PersonalisationSettings(**{name: value})
