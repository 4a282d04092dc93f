"""Prints by how many bytes a round within a budget made this process grow: ResNet-18 at 128 px, 400 samples."""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import torch

from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import SplitSettings
from persephonee.data_partitions.user_splits import split_samples
from persephonee.multi_exit.building import build_network


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


schedule, budget = sys.argv[1:3]
network = build_network("resnet18", num_exits=4, num_classes=5, in_channels=3, input_size=128)
generator = torch.Generator().manual_seed(0)
images = torch.randint(0, 256, (400, 3, 128, 128), dtype=torch.uint8, generator=generator)
samples = UserSamples(client_id="one", images=images, labels=torch.arange(400) % 5)
small = UserSamples(client_id="small", images=images[:24, :, ::8, ::8], labels=samples.labels[:24])
# what PyTorch loads when it is used for the first time is not the round's
tiny = build_network("resnet18", num_exits=1, num_classes=5, in_channels=3, input_size=16)
personalise(tiny, small, split_samples(small, SplitSettings(), 0), PersonalisationSettings(epochs=1))
before = peak()
settings = PersonalisationSettings(schedule=schedule, epochs=1, memory_budget=budget)
personalise(network, samples, split_samples(samples, SplitSettings(), 0), settings)
print(peak() - before)
