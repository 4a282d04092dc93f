import json
from dataclasses import asdict, replace

import pytest

from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.exit_calibration import ExitCalibration

GOOD = ExitCalibration(temperatures=(1.5, 0.5), biases=((0.1, -0.1, 0.0), (0.0, 0.2, 0.0)), frequencies=(0.5, 0.3, 0.2))


def test_a_calibration_is_the_same_after_a_way_through_json():
    assert ExitCalibration.from_dict(json.loads(json.dumps(asdict(GOOD)))) == GOOD


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"temperatures": (1.0, 0.0)}, "temperature is not above 0"),
        ({"temperatures": (1.0,)}, "different lengths"),
        ({"biases": ((0.0, 0.0), (0.0, 0.0))}, "different lengths"),
        ({"biases": ((0.0, 0.0, float("nan")), (0.0, 0.0, 0.0))}, "not finite"),
        ({"frequencies": (0.5, 0.3, 0.3)}, "sum 1"),
        ({"frequencies": (1.0, 0.2, -0.2)}, "sum 1"),
        ({"temperatures": (), "biases": (), "frequencies": ()}, "not above 0"),
        ({"temperatures": (1.0, True)}, "not finite"),
    ],
)
def test_a_calibration_that_is_none_is_refused(changed, reason):
    with pytest.raises(ModelFileError, match=reason):
        replace(GOOD, **changed)


@pytest.mark.parametrize(
    "values",
    [7, [], {"temperatures": [1.0]}, {**asdict(GOOD), "more": 1}, {**asdict(GOOD), "biases": [1, 2]}],
)
def test_what_is_no_calibration_at_all_is_refused(values):
    with pytest.raises(ModelFileError, match="expected"):
        ExitCalibration.from_dict(values)


def test_a_calibration_of_another_network_is_refused():
    GOOD.require_fit(num_exits=1, num_classes=3)
    with pytest.raises(ModelFileError, match="2 exits and 3 classes, expected 3 and 3"):
        GOOD.require_fit(num_exits=2, num_classes=3)
