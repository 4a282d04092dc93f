"""The errors that a user can cause, of all folders."""

import pickle

import pytest

from persephonee.clients.errors import ClientError
from persephonee.data_partitions.errors import DataError, UserTooSmallError
from persephonee.fl_app.errors import AppError
from persephonee.multi_exit.errors import MultiExitError
from persephonee.server.errors import ServerError


def with_all_below(family: type[Exception]) -> list[type[Exception]]:
    return [family, *(below for child in family.__subclasses__() for below in with_all_below(child))]


FAMILIES = (MultiExitError, DataError, ClientError, ServerError, AppError)
ARGUMENTS = {UserTooSmallError: ("ada", 3, "at least 20 are needed")}


@pytest.mark.parametrize("kind", [kind for family in FAMILIES for kind in with_all_below(family)])
def test_an_error_comes_back_from_a_worker_process_as_it_was(kind):
    error = kind(*ARGUMENTS.get(kind, ("a sentence.",)))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))
