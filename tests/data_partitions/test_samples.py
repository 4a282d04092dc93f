import pytest
import torch

from persephonee.data_partitions.errors import BrokenDataError
from persephonee.data_partitions.samples import UserSamples, to_float


def test_to_float_maps_paper_to_1_and_ink_to_0():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    assert torch.allclose(to_float(images).flatten(), torch.tensor([0.0, 0.2, 1.0]))
    assert to_float(images).dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "labels", "fixed"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), None),
        (torch.zeros(3, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), None),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), None),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2), None),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), torch.zeros(3).bool()),
    ],
)
def test_samples_that_do_not_fit_together_are_refused_by_user(images, labels, fixed):
    with pytest.raises(BrokenDataError, match="User f7: expected"):
        UserSamples(client_id="f7", images=images, labels=labels, fixed_test=fixed)
