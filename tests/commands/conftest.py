"""Users, and a model that the command line trained on some of them."""

from pathlib import Path

import pytest

from persephonee.multi_exit.storage import load_network
from tests.commands.command_line import NETWORK, call
from tests.tiny_cnn import SOURCE, write_parquet


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
