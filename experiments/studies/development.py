"""The development users: those on whom constants are chosen, such as a pull or a temperature, and no figure is made."""

from collections.abc import Collection, Sequence

from persephonee.data_partitions.user_splits import choose_users

FIGURES_USERS = 250
"""The most users whom a figure shows, of those whom a model has not seen."""

SEED = 1
"""Of the choice among those who are left; the figures' is 0."""


def development_users(client_ids: Sequence[str], trained_on: Collection[str], count: int) -> tuple[str, ...]:
    """Return users whom neither the model nor the figures on it have seen.

    Args:
        client_ids: of all users.
        trained_on: whom the model's training saw.
        count: how many to return.

    Raises:
        NotEnoughUsersError: fewer are left.
    """
    new = len(set(client_ids) - set(trained_on))
    shown = choose_users(client_ids, min(FIGURES_USERS, new // 2), 0, exclude=trained_on)
    return choose_users(client_ids, count, SEED, exclude={*trained_on, *shown})
