import hashlib

import numpy as np
import torch

from persephonee.data_partitions.seeds import digest_of, numpy_generator, torch_generator, uniform_draw


def test_the_digest_is_sha_256_of_the_parts_in_their_order():
    assert digest_of(3, "ada", 2, "exit training") == hashlib.sha256(b"3/ada/2/exit training").digest()


def test_another_client_round_or_purpose_draws_something_else_and_the_same_draws_the_same():
    purposes = [("ada", 1, "noise"), ("ada", 2, "noise"), ("bob", 1, "noise"), ("ada", 1, "order")]
    drawn = [torch.rand(4, generator=torch_generator(7, *purpose)).tolist() for purpose in purposes]
    again = [torch.rand(4, generator=torch_generator(7, *purpose)).tolist() for purpose in purposes]
    assert drawn == again
    assert len({tuple(values) for values in drawn}) == len(purposes)
    assert numpy_generator(7, "ada").random() == numpy_generator(7, "ada").random()


def test_single_draws_are_uniform():
    drawn = np.array([uniform_draw(0, index, "draw") for index in range(4000)])
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    # nine degrees of freedom: chi square above 27.9 has probability 0.001
    assert ((counts - 400) ** 2 / 400).sum() < 27.9
