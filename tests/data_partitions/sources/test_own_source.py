import sys

import numpy as np
import pytest

from persephonee.data_partitions.errors import BrokenDataError, DataSettingsError, LabelRangeError, MissingDataError
from persephonee.data_partitions.opening import open_partitions
from persephonee.data_partitions.samples import UserSamples
from persephonee.data_partitions.settings import DataSettings
from persephonee.multi_exit.storage import read_description, read_spec
from tests.commands.command_line import call, refused
from tests.tiny_cnn import NAME, SOURCE

FILE = """
import numpy as np
from persephonee.data_partitions.samples import UserSamples
from tests.tiny_cnn import user_images

class Users:
    name, num_classes, class_names, image_shape = "mine", 2, ("upright", "level"), (1, 12, 12)
    def __init__(self, settings):
        self.client_ids = tuple(f"u{user:02d}" for user in range(12))
        self.num_partitions, self.counts = 12, (24,) * 12
        self.path = settings.data_path
    def load_partition(self, index):
        images, labels = user_images(index, 24)
        return UserSamples(client_id=self.client_ids[index], images=images[:, None], labels=labels)

def fails(settings):
    raise KeyError("no such table")

def no_source(settings):
    return {}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_users.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_users"
    sys.modules.pop("my_users", None)


def opened(name, allowed=("my_users",)):
    return open_partitions(DataSettings(dataset=name), allowed=allowed)


def test_a_source_of_ones_own_is_opened_with_the_settings_and_gives_users(module, tmp_path):
    users = open_partitions(DataSettings(dataset="my_users:Users", data_path=tmp_path), allowed=("my_users",))
    assert (users.name, users.num_partitions, users.num_classes) == ("my_users:Users", 12, 2)
    assert users.load_partition(3).client_id == "u03"
    assert users.load_partition(3).images.shape == (24, 1, 12, 12)


def test_a_module_that_the_owner_did_not_allow_is_not_even_imported(module):
    with pytest.raises(DataSettingsError, match="the module my_users, which is not allowed here"):
        opened("my_users:Users", allowed=("torchvision", "timm"))
    assert "my_users" not in sys.modules


def test_what_a_source_of_ones_own_does_wrong_is_told_in_a_sentence(module):
    with pytest.raises(MissingDataError, match=r"cannot be imported \(AttributeError"):
        opened("my_users:Nobody")
    with pytest.raises(BrokenDataError, match=r"fails when it is opened \(KeyError: 'no such table'\)"):
        opened("my_users:fails")
    with pytest.raises(BrokenDataError, match="is no source of data"):
        opened("my_users:no_source")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("client_ids", ("b", "a") * 6, "two users with the id|sorted ids"),
        ("client_ids", (), "wrong client_ids"),
        ("client_ids", tuple("lkjihgfedcba"), "wrong client_ids; expected sorted ids"),
        ("counts", (24,), "wrong counts; expected 12 numbers"),
        ("num_classes", 1, "wrong num_classes"),
        ("class_names", ("one",), "wrong class_names"),
        ("image_shape", (4, 12, 12), "wrong image_shape"),
    ],
)
def test_its_numbers_are_checked_when_it_is_opened(module, monkeypatch, attribute, value, message):
    import my_users

    made = my_users.Users(DataSettings())
    setattr(made, attribute, value)
    monkeypatch.setattr(my_users, "Users", lambda settings: made)
    with pytest.raises(BrokenDataError, match=message):
        opened("my_users:Users")


def test_each_users_samples_are_checked_when_they_are_loaded(module, monkeypatch):
    import my_users

    users = opened("my_users:Users")
    images, labels = np.zeros((24, 1, 12, 12), np.uint8), np.zeros(24, np.int64)
    for client_id, own_images, own_labels, error in (
        ("u01", images, labels, BrokenDataError),
        ("u00", images[:9], labels[:9], BrokenDataError),
        ("u00", images[..., :8], labels, BrokenDataError),
        ("u00", images, labels + 2, LabelRangeError),
    ):
        wrong = UserSamples(client_id=client_id, images=own_images, labels=own_labels)
        monkeypatch.setattr(my_users.Users, "load_partition", lambda self, index, wrong=wrong: wrong)
        with pytest.raises(error):
            users.load_partition(0)


def test_the_command_line_pretrains_and_personalises_with_it_where_it_is_allowed(module, tmp_path):
    model, own = tmp_path / "model", ["--dataset", "my_users:Users"]
    options = ["--personal-users", "4", "--epochs", "1", "--calibration-users", "0", "--num-exits", "1"]
    done = call("pretrain", "--backbone", NAME, *options, *own, "--out", model)
    assert done.exit_code == 0, done.output
    trained_on = read_spec(model, read_description(model))[1].trained_on
    user = next(name for name in (f"u{number:02d}" for number in range(12)) if name not in trained_on)
    who = ["--model", model, *own, "--user", user, "--store", tmp_path / "store", "--runtime", "torch"]
    assert "not allowed here" in refused("personalise", *who, "--sources", SOURCE)
    done = call("personalise", *who, "--sources", f"{SOURCE},my_users", "--min-samples", "5")
    assert done.exit_code == 0, done.output
