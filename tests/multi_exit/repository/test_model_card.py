import math

import pytest
from huggingface_hub import ModelCard

from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.repository.model_card import MEASURED, write_card
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE

EXIT = {"accuracy": {"mean": 0.5, "low": 0.25, "high": 0.75}, "ece": 0.123, "ece_calibrated": 0.045}
SETTINGS = {
    "validated_on": ["u03"],
    "calibrated_on": ["u04", "u05"],
    "best_epoch": 2,
    "num_train": 48,
    MEASURED: {"users": 7, "samples": 168, "exits": [EXIT] * 3},
}
POOL = {
    "rule": "controlled",
    "users": 30,
    "certificates": [
        {"tolerance": tolerance, "delta": delta, "strength": 5, "level": 0.01}
        for tolerance, delta in ((0.03, 0.1), (0.02, 0.1), (0.01, 0.2))
    ],
}


@pytest.fixture
def network():
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))


def save(network, folder, **changed):
    known = {
        "dataset": "parquet",
        "trained_on": ("u00", "u01", "u03", "u04", "u05"),
        "class_names": ("upright", "<script>"),
        "settings": SETTINGS,
        "risk_pools": {"fast-labels": POOL},
    }
    save_network(network, folder, ModelMetadata(**{**known, **changed}))
    return write_card(network, folder)


def test_hugging_face_reads_the_front_matter_with_the_accuracy_of_each_exit(network, tmp_path):
    data = ModelCard.load(save(network, tmp_path / "writers")).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("persephonee", "image-classification", None)
    assert [result.metric_value for result in data.eval_results] == [0.5] * 3
    assert data.model_name == "writers"


def test_the_card_says_who_trained_what_is_promised_and_what_each_exit_is_worth(network, tmp_path):
    text = save(network, tmp_path / "writers").read_text()
    assert "- 2 users with 48 samples trained the model." in text
    assert "- 1 user apart chose the best epoch (epoch 2)." in text
    assert "| fast-labels | 30 | 2 points |" in text
    rows = [line for line in text.splitlines() if "50.0 % (25.0–75.0) | 0.123 | 0.045 |" in line]
    assert len(rows) == 3
    assert f"| {network.costs.alone_macs(0) / 1e6:.2f} |" in rows[0]


def test_the_card_names_no_user_and_takes_no_markup_from_a_class(network, tmp_path):
    text = save(network, tmp_path / "writers").read_text()
    assert "u00" not in text
    assert "`script`" in text
    assert "<script>" not in text


def test_the_owners_licence_stays_when_the_card_is_written_again(network, tmp_path):
    card = save(network, tmp_path / "writers")
    assert "None is stated" in card.read_text()
    card.write_text(card.read_text().replace("---\n", "---\nlicense: apache-2.0\n", 1))
    again = write_card(network, tmp_path / "writers").read_text()
    assert ModelCard(again).data.license == "apache-2.0"
    assert "None is stated" not in again


@pytest.mark.parametrize("front", ["license: [1, 2", "license: !!python/object/apply:os.system ['true']", "- a"])
def test_a_front_matter_that_is_none_is_replaced(network, tmp_path, front):
    card = save(network, tmp_path / "writers")
    card.write_text(f"---\n{front}\n---\n")
    assert ModelCard.load(write_card(network, tmp_path / "writers")).data.license is None


def test_a_model_of_an_earlier_version_has_a_card_without_what_it_does_not_say(network, tmp_path):
    text = save(network, tmp_path / "old", dataset="", settings={}, risk_pools={}, class_names=()).read_text()
    assert "Data: not recorded" in text
    assert "Nothing: the model carries no curves" in text
    assert math.isclose(text.count("| – | – | – |"), 3)
