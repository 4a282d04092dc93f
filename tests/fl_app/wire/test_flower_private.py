"""What is used of Flower although it is not public is imported in one file, and does what that file says it does."""

import ast
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from persephonee.fl_app.wire import flower_private

ROOT = Path(__file__).resolve().parents[3]
PUBLIC = ("flwr.app", "flwr.clientapp", "flwr.serverapp")


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "flwr" and not name.startswith(PUBLIC)}


def test_only_one_file_imports_private_names_of_flower():
    paths = [path for folder in ("fl_app", "experiments", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    with_private = {str(path.relative_to(ROOT)) for path in paths if imports_of(path)}
    assert with_private == {"fl_app/wire/flower_private.py"}
    modules = {place.split(":")[0] for place in flower_private.REASONS}
    assert imports_of(ROOT / "fl_app/wire/flower_private.py") == modules


@pytest.mark.parametrize("place", flower_private.REASONS)
def test_every_private_name_is_where_it_is_looked_for(place):
    module, name = place.split(":")
    assert getattr(flower_private, name) is getattr(importlib.import_module(module), name)


def test_the_names_of_errors_are_those_that_replies_carry():
    known = {"LOAD_CLIENT_APP_EXCEPTION": 1, "CLIENT_APP_RAISED_EXCEPTION": 2, "NODE_UNAVAILABLE": 5}
    assert {name: int(getattr(flower_private.ErrorCode, name)) for name in known} == known


def test_a_record_takes_the_bytes_of_its_protocol_buffer():
    proto = flower_private.recorddict_to_proto(RecordDict({"head": ConfigRecord({"client-id": "ada"})}))
    assert proto.ByteSize() == len(proto.SerializeToString()) > len("client-idada")


def test_a_change_is_clipped_to_its_norm_and_noise_has_its_deviation():
    change = [np.array([3.0, 4.0])]
    flower_private.compute_clip_model_update(change, [np.zeros(2)], 1.0)
    np.testing.assert_allclose(change[0], [0.6, 0.8])
    noise = [np.zeros(200_000)]
    flower_private.add_gaussian_noise_inplace(noise, 2.0)
    assert noise[0].std() == pytest.approx(2.0, rel=0.02)


def test_a_grid_s_kind_and_a_task_s_identity_are_where_they_are_looked_for():
    assert {"send_and_receive", "get_node_ids", "push_messages"} <= set(dir(flower_private.InMemoryGrid))
    assert all(hasattr(flower_private.TaskIdentity, name) for name in ("task_id", "run_id", "node_id"))


def test_the_accountant_is_made_and_asked_as_before():
    assert "get_epsilon" in dir(flower_private.RdpAccountant)
    assert {"noise_multiplier"} <= set(inspect.signature(flower_private.GaussianPrivacyEvent).parameters)
