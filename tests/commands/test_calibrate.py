"""`persephonee calibrate`: an older model learns what policies lose, and stays the model that it was."""

import json
import shutil
from dataclasses import replace

import pytest

from persephonee.multi_exit.storage import load_network, save_network
from tests.commands.command_line import call, refused
from tests.tiny_cnn import SOURCE


@pytest.fixture(scope="module")
def older(pretrained, tmp_path_factory):
    """A model as an earlier version wrote it: neither its exits are calibrated nor its policies measured."""
    folder = shutil.copytree(pretrained, tmp_path_factory.mktemp("older") / "M")
    network, metadata = load_network(folder, (SOURCE,))
    # as if a pretraining on few of its users had left some to calibrate on
    settings = {**metadata.settings, "personal_users": 2}
    save_network(network, folder, replace(metadata, settings=settings, calibration=None, risk_pools={}))
    return folder


@pytest.fixture(scope="module")
def calibrated(older, data_text):
    """The same model after `calibrate`, and what that printed."""
    folder = shutil.copytree(older, older.parent / "calibrated")
    result = call("calibrate", "--model", folder, *data_text, "--sources", SOURCE)
    assert result.exit_code == 0, result.output
    return folder, result.stdout


def test_an_older_model_gets_its_calibration_and_its_pools_and_keeps_its_fingerprint(older, calibrated):
    before = load_network(older, (SOURCE,))
    folder, printed = calibrated
    network, metadata = load_network(folder, (SOURCE,))
    assert network.fingerprint == before[0].fingerprint
    assert network.calibration is not None
    # before and after two schedules, with labels and without, and after them against the original too
    assert len(network.risk_pools) == 10
    # 12 users, 8 of them seen: one validated, and 2 are kept back, so that 2 more calibrate
    assert {pool["users"] for pool in network.risk_pools.values()} == {3}
    others = set(metadata.settings["calibrated_on"])
    assert len(others) == 2 and not others & set(before[1].trained_on)
    assert set(metadata.trained_on) == set(before[1].trained_on) | others
    assert "measured on 3 users" in " ".join(printed.split())


def test_calibrating_again_gives_the_same_bytes(calibrated, data_text):
    folder, _ = calibrated
    first = (folder / "network.json").read_bytes()
    assert call("calibrate", "--model", folder, *data_text, "--sources", SOURCE).exit_code == 0
    assert (folder / "network.json").read_bytes() == first


def test_a_folder_without_a_model_is_refused_in_a_sentence(tmp_path, data_text):
    assert "is no model folder" in refused("calibrate", "--model", tmp_path, *data_text)


def test_a_device_says_which_rule_chose_its_policy(with_model, newcomer, tmp_path):
    words = ("personalise", *with_model, "--user", newcomer, "--schedule", "fast")
    result = call(*words, "--store", tmp_path / "a", "--json")
    assert json.loads(result.stdout)["rule"].startswith("original: ")
    shown = " ".join(call(*words, "--store", tmp_path / "b").stdout.split())
    assert "no loss, since the original network answers" in shown
    shown = " ".join(call(*words, "--store", tmp_path / "c", "--rule", "paper").stdout.split())
    assert "no promise: the threshold fits this user's calibration samples" in shown
