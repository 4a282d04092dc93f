"""The users of one domain, such as QMNIST's census employees, for studies of a shift from one domain to another."""

from persephonee.data_partitions.errors import NotEnoughUsersError
from persephonee.data_partitions.samples import Partitions, UserSamples, check_index

CENSUS_EMPLOYEES = "hsf_id=0"
HIGH_SCHOOL_STUDENTS = "hsf_id=4"


class DomainUsers:
    """Those users of a source whose samples all come from one domain.

    Args:
        partitions: all users; each is loaded once to see where it comes from.
        domain: as `UserSamples.domain` says it.

    Raises:
        NotEnoughUsersError: nobody comes from there.
    """

    def __init__(self, partitions: Partitions, domain: str) -> None:
        everyone = range(partitions.num_partitions)
        self._source = partitions
        self._indices = [index for index in everyone if partitions.load_partition(index).domain == domain]
        if not self._indices:
            raise NotEnoughUsersError(f"No user of {partitions.name} is of the domain {domain}; name another.")
        self.name = partitions.name
        self.num_classes = partitions.num_classes
        self.class_names = partitions.class_names
        self.image_shape = partitions.image_shape
        self.num_partitions = len(self._indices)
        self.client_ids = tuple(partitions.client_ids[index] for index in self._indices)
        self.counts = tuple(partitions.counts[index] for index in self._indices)

    def load_partition(self, index: int) -> UserSamples:
        """Return all samples of user `client_ids[index]`."""
        check_index(index, self.num_partitions)
        return self._source.load_partition(self._indices[index])
