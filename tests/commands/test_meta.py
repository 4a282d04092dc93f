from pathlib import Path

import pytest

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, load_network, save_network
from tests.commands.command_line import call
from tests.tiny_cnn import NAME, SIDE, SOURCE, write_parquet


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[object, ...]:
    folder = tmp_path_factory.mktemp("start")
    network = build_network(
        NAME, num_exits=2, num_classes=2, input_size=SIDE, in_channels=1, head="pooled", allowed=(SOURCE,)
    )
    metadata = ModelMetadata(trained_on=("u00", "u01", "u02", "u03"), settings={"validated_on": ["u03"]})
    save_network(network, folder / "M", metadata)
    data = ("--dataset", "parquet", "--data-path", write_parquet(folder / "train.parquet", users=6, samples=30))
    return ("pretrain", "--from", folder / "M", *data, "--sources", SOURCE)


@pytest.mark.parametrize("method", ["reptile", "fomaml"])
def test_exits_are_meta_learned_from_the_command_line(start, tmp_path, method):
    result = call(*start, "--meta", method, "--meta-epochs", 1, "--inner-steps", 2, "--out", tmp_path / "new")
    assert result.exit_code == 0, result.output
    assert "exits meta-learned on 3 users; after 2 steps" in result.stdout
    assert "at the start, accuracy" in result.stderr
    assert "epoch 1: loss" in result.stderr
    (old, _), (new, metadata) = (load_network(Path(folder), (SOURCE,)) for folder in (start[2], tmp_path / "new"))
    assert new.backbone_fingerprint == old.backbone_fingerprint
    assert metadata.settings["meta_learning"]["method"] == method


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "--from takes a model whose exits are to be meta-learned; add --meta reptile."),
        (("--meta", "maml"), "'maml' is not one of 'reptile', 'fomaml'"),
        (("--meta", "reptile", "--learning-rate", "0.1"), "--learning-rate does nothing beside --from; leave it out."),
        (("--meta", "reptile", "--resume"), "--resume does nothing beside --from; leave it out."),
    ],
)
def test_what_does_not_go_with_a_start_is_refused_in_a_sentence(start, tmp_path, words, says):
    result = call(*start, *words, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert says in result.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--meta", "reptile"), "--meta does nothing without --from MODEL; leave it out."),
        ((), "--backbone is missing; name it, or a trained model with --from."),
        (("--backbone", NAME), "--num-exits is missing; name it, or a trained model with --from."),
    ],
)
def test_what_needs_a_start_is_refused_without_one(tmp_path, words, says):
    result = call("pretrain", *words, "--out", tmp_path / "new")
    assert result.exit_code == 2
    assert says in result.stderr
