"""Users, and a model that the command line trained on some of them."""

import sys
from pathlib import Path

import pytest

from persephonee.multi_exit.storage import load_network
from tests.commands.command_line import NETWORK, call
from tests.tiny_cnn import SOURCE, write_parquet


@pytest.fixture(scope="session", autouse=True)
def without_graphs():
    """Leave the graphs out, which take seconds to trace; `export --model` writes them for the tests that need them."""
    with pytest.MonkeyPatch.context() as patch:
        for verb in ("pretrain", "meta"):
            patch.setattr(sys.modules[f"persephonee.commands.{verb}"], "write_graphs_if_possible", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def data_text(tmp_path_factory) -> tuple[object, ...]:
    """How the command line is told of twelve users with 40 samples each, u00 to u11."""
    path = write_parquet(tmp_path_factory.mktemp("data") / "train.parquet", users=12, samples=40)
    return ("--dataset", "parquet", "--data-path", path)


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory, data_text) -> Path:
    """A model that `pretrain` made of some of them."""
    out = tmp_path_factory.mktemp("models") / "M"
    result = call("pretrain", *NETWORK, *data_text, "--out", out, "--epochs", 2, "--batch-size", 32)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def with_model(pretrained, data_text) -> tuple[object, ...]:
    return ("--model", pretrained, *data_text, "--sources", SOURCE)


@pytest.fixture
def newcomer(pretrained) -> str:
    """A user whom the model was not trained on."""
    trained_on = load_network(pretrained, (SOURCE,))[1].trained_on
    return min({f"u{user:02d}" for user in range(12)} - set(trained_on))
