"""Users who trained nothing, for the tests of what ships with a model."""

from persephonee.data_partitions.samples import UserSamples
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.network import MultiExitNetwork
from tests.tiny_cnn import NAME, SIDE, SOURCE, user_images


class HeldOutWriters:
    """Users of unlike sizes, one of them with too few samples."""

    sizes = (110, 90, 100, 6, 95)
    client_ids = tuple(f"u{number}" for number in range(len(sizes)))

    def load_partition(self, partition_id: int) -> UserSamples:
        images, labels = user_images(partition_id, self.sizes[partition_id])
        return UserSamples(client_id=self.client_ids[partition_id], images=images[:, None], labels=labels)


def untrained_network() -> MultiExitNetwork:
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))
