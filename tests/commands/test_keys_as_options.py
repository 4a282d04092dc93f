"""Settings of `simulate` that are no options of their own, and options that version 0.1 called otherwise."""

import pytest

from persephonee.commands.run_settings import keys_among, settings_of_run
from tests.commands.command_line import refused


def test_a_key_with_a_value_means_what_set_means():
    assert keys_among(["--num-writers", "120", "--seed=3"]) == ["num-writers=120", "seed=3"]
    as_options = settings_of_run({}, keys_among(["--num-writers", "120", "--epochs", "5"]), None)
    assert as_options == settings_of_run({}, ["num-writers=120", "epochs=5"], None)
    assert (as_options.data.num_writers, as_options.personalisation.epochs) == (120, 5)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--wings", 2), "wings is no run-config key"),
        (("stray",), "stray belongs to no option"),
        (("--num-writers",), "write --set num-writers=VALUE"),
        (("--num-writers", "many"), "num-writers='many' is str; expected int"),
        (("--clients", 0), "--clients 0 is too small"),
    ],
)
def test_what_is_neither_an_option_nor_a_key_is_refused(words, says):
    assert says in refused("simulate", *words)


def test_names_of_version_0_1_are_taken_by_options_and_by_keys():
    data = ("--dataset", "imagefolder", "--data-path", "images", "--user", "a", "--store", "s", "--model", "m")
    assert "label_skew_width=0.0 is out of range" in refused("personalise", *data, "--class-width", 0)
    settings = settings_of_run({}, keys_among(["--min-reply-share", "0.25", "--class-width", "7"]), None)
    assert (settings.rounds.min_reply_fraction, settings.data.label_skew_width) == (0.25, 7.0)
