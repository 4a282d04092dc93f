"""A Ray cluster that is there already, as the place of a simulation: `persephonee simulate --ray-address HOST:PORT`.

Its machines run the clients: they need this Python with the same packages under the same path, and see the model, the
data and the run folder under the same paths.
"""

import socket

from persephonee.fl_app.deployment.addresses import split_address
from persephonee.fl_app.errors import AppError

SECONDS = 5.0


def check_cluster(address: str) -> None:
    """Refuse an address at which nothing answers; Ray itself would try for minutes.

    Raises:
        AppError: it is no address, or nobody answers.
    """
    try:
        socket.create_connection(split_address(address), timeout=SECONDS).close()
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise AppError(
            f"No Ray cluster answers at {address} ({cause}): start one with `ray start --head`, or leave --ray-address "
            "out."
        ) from None
