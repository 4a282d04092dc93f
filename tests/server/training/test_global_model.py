from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from persephonee.data_partitions.sources.image_users import ImageUserSettings
from persephonee.data_partitions.sources.personalised_imagenet import PersonalisedImageNet
from persephonee.multi_exit.storage import load_network
from persephonee.server.errors import PretrainingError
from persephonee.server.training import global_model
from persephonee.server.training.global_model import (
    CHECKPOINT_NAME,
    check_folder,
    choose_training_users,
    make_global_model,
    prepare_folder,
    untrained_network,
)
from persephonee.server.training.global_model_settings import GlobalModelSettings, UserFractions
from persephonee.server.training.pretraining_settings import PretrainSettings
from tests.tiny_cnn import NAME, SOURCE, TinyUsers

EVERYONE = tuple(f"user {number}" for number in range(736))
SETTINGS = GlobalModelSettings(
    backbone=NAME,
    num_exits=2,
    head="pooled",
    sources=(SOURCE,),
    training=PretrainSettings(epochs=1, batch_size=32),
    users=UserFractions(validation_fraction=0.2),
)


@pytest.mark.parametrize(
    ("users", "kept_back"),
    # the paper's 250 in 3,500; 100 where that is more; but a third of all at most
    [(3500, 250), (3550, 254), (1400, 100), (736, 100), (300, 100), (299, 99), (30, 10), (2, 0)],
)
def test_the_papers_ratio_of_users_is_kept_back_but_a_hundred_where_there_are_enough(users, kept_back):
    assert UserFractions().num_personal(users) == kept_back


@pytest.mark.parametrize(("given", "kept_back"), [(0, 0), (1, 1), (40, 40), (0.25, 184)])
def test_a_number_or_a_fraction_of_users_is_kept_back(given, kept_back):
    shares = UserFractions(personal_users=given)
    train, validation = choose_training_users(EVERYONE, shares, seed=0)
    assert len(train) + len(validation) == 736 - kept_back


def colours(users: int):
    """Two classes, of 10 images for each of so many users of the global pool and as many personal ones."""

    class Colours:
        labels = np.arange(20 * users) % 2
        class_names = ("dark", "light")

        def cells(self, rows):
            return [np.full((12, 12, 3), 40 + 150 * self.labels[row] + row % 40, dtype=np.uint8) for row in rows]

        def folder_of(self, row):
            return Path()

    return Colours()


@pytest.mark.parametrize(("given", "used"), [(None, 12), (0.25, 9)])
def test_nobody_is_kept_back_of_a_pool_whose_users_can_never_personalise(tmp_path, given, used):
    pool = PersonalisedImageNet(colours(12), ImageUserSettings(num_users=2, samples_per_user=10), "global")
    assert pool.num_partitions == 12
    settings = replace(SETTINGS, users=replace(SETTINGS.users, personal_users=given))
    make_global_model(settings, pool, tmp_path / "M")
    metadata = load_network(tmp_path / "M", (SOURCE,))[1]
    assert len(metadata.trained_on) == used
    assert metadata.settings["personal_users"] == (given or 0)


def test_users_train_or_validate_or_are_kept_back():
    train, validation = choose_training_users(EVERYONE, UserFractions(), seed=0)
    assert not set(train) & set(validation)
    assert (len(train), len(validation)) == (572, 64)
    assert choose_training_users(EVERYONE[::-1], UserFractions(), seed=0) == (train, validation)
    assert choose_training_users(EVERYONE, UserFractions(), seed=1) != (train, validation)


def test_fewer_users_are_some_of_the_same():
    train, validation = choose_training_users(EVERYONE, UserFractions(), seed=0)
    few = choose_training_users(EVERYONE, UserFractions(max_users=50), seed=0)
    assert [len(users) for users in few] == [45, 5]
    assert {*few[0], *few[1]} < {*train, *validation}


def test_users_that_would_all_be_kept_back_are_refused():
    with pytest.raises(PretrainingError, match=r"735 of 736 users .* --personal-users\."):
        choose_training_users(EVERYONE, UserFractions(personal_users=735), seed=0)


@pytest.mark.parametrize(
    "wrong",
    [{"personal_users": -1}, {"personal_users": 1.5}, {"validation_fraction": 0.0}, {"max_users": 1}],
)
def test_shares_out_of_their_range_are_refused_by_name(wrong):
    with pytest.raises(PretrainingError, match=next(iter(wrong))):
        UserFractions(**wrong)


def test_the_model_folder_holds_the_trained_network_and_no_checkpoint(tmp_path):
    network, result = make_global_model(SETTINGS, TinyUsers(), tmp_path / "M")
    loaded, metadata = load_network(tmp_path / "M", (SOURCE,))
    assert loaded.fingerprint == network.fingerprint
    # as it is loaded, so that its ONNX graphs are those of a loaded one
    strides = {name: tensor.stride() for name, tensor in loaded.state_dict().items()}
    assert {name: tensor.stride() for name, tensor in network.state_dict().items()} == strides
    assert not (tmp_path / "M" / CHECKPOINT_NAME).exists()
    assert metadata.history[0]["validation_accuracy"] == list(result.accuracies)
    assert metadata.settings["num_train"] == result.num_train == 6 * 24
    # a shared model tells nothing about the machine that it was made on
    assert str(tmp_path) not in (tmp_path / "M" / "network.json").read_text()


def test_an_overwritten_model_stays_until_the_new_one_is_there(tmp_path, monkeypatch):
    make_global_model(SETTINGS, TinyUsers(), tmp_path / "M")
    before = load_network(tmp_path / "M", (SOURCE,))[0].fingerprint

    def failing(*args, **options):
        raise OSError(28, "No space left on device", "M")

    with monkeypatch.context() as patch:
        patch.setattr(global_model, "pretrain", failing)
        with pytest.raises(OSError, match="No space"):
            make_global_model(SETTINGS, TinyUsers(), tmp_path / "M", overwrite=True)
    assert load_network(tmp_path / "M", (SOURCE,))[0].fingerprint == before


def test_a_checkpoint_is_neither_lost_nor_used_unless_it_is_said(tmp_path):
    checkpoint = tmp_path / CHECKPOINT_NAME
    checkpoint.write_bytes(b"half of it")
    with pytest.raises(PretrainingError, match="say --resume to go on with it or --overwrite"):
        check_folder(tmp_path)
    for resume, overwrite in ((True, False), (False, True)):
        check_folder(tmp_path, resume=resume, overwrite=overwrite)
    assert checkpoint.read_bytes() == b"half of it"
    network = untrained_network(SETTINGS, TinyUsers())
    assert prepare_folder(tmp_path, network, resume=True, overwrite=False).read_bytes() == b"half of it"
    assert not prepare_folder(tmp_path, network, resume=False, overwrite=True).exists()


def test_a_disk_without_room_for_the_checkpoints_is_refused_before_the_training(tmp_path, monkeypatch):
    weights = sum(tensor.nbytes for tensor in untrained_network(SETTINGS, TinyUsers()).state_dict().values())
    monkeypatch.setattr(global_model, "pretrain", lambda *rest: pytest.fail("it was trained"))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=6 * weights - 1))
    with pytest.raises(OSError, match="make room, or name another disk"):
        make_global_model(SETTINGS, TinyUsers(), tmp_path / "M")
    assert not (tmp_path / "M").exists()


@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (True, False), (False, True)])
def test_what_a_kill_in_the_first_write_left_is_cleaned_up(tmp_path, resume, overwrite):
    (tmp_path / ".checkpoint.safetensors.abcdefgh.persephonee.tmp").write_bytes(b"half")
    prepare_folder(tmp_path, untrained_network(SETTINGS, TinyUsers()), resume=resume, overwrite=overwrite)
    assert not list(tmp_path.iterdir())


def test_a_stem_is_altered_where_the_settings_ask_for_it(tmp_path):
    for stem, expected in (("auto", "original"), ("stride-1", "stride-1")):
        make_global_model(replace(SETTINGS, stem=stem), TinyUsers(), tmp_path / stem)
        network, _ = load_network(tmp_path / stem, (SOURCE,))
        assert network.spec.stem == expected
