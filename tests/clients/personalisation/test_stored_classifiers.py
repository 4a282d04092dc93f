"""Where a round changes classifiers alone, the store holds these alone, and nobody sees any other difference."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import torch

from persephonee.clients.errors import StoreError
from persephonee.clients.inference.engines import engine_for
from persephonee.clients.personalisation import exit_store
from persephonee.clients.personalisation.exit_store import ExitStore, StoredExits
from persephonee.clients.personalisation.personalise import personalise
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.personalisation.settings import PersonalisationSettings
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.checked_json import write_with_digest
from persephonee.multi_exit.exit_weights import as_arrays, classifiers_of, heads_fingerprint, with_classifiers
from persephonee.multi_exit.settings import LossWeights

FAST = PersonalisationSettings(schedule="fast", rule="paper", drop_tolerance=0.05)
PAPER = PersonalisationSettings(epochs=1, rule="paper", drop_tolerance=0.05)
CLASSIFIERS = {f"heads.{exit}.classifier.{leaf}" for exit in (0, 1) for leaf in ("weight", "bias")}


def names_in_file(folder) -> list[set[str]]:
    files = sorted(folder.glob("exits-*.safetensors"))
    return [set(safetensors.numpy.load_file(path)) - {"shifts"} for path in files]


def load(folder, network):
    return ExitStore(folder).load(network.backbone_fingerprint, network.exit_state(), None)


def assert_same_exits(one, other):
    assert one.keys() == other.keys()
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)


def timeless(report):
    return dataclasses.replace(report, seconds_personalise=0.0)


def test_rounds_report_the_same_bits_whether_classifiers_or_whole_heads_are_stored(
    toy_network, user, split, tmp_path, monkeypatch
):
    reports = {}
    for name in ("classifiers", "whole"):
        if name == "whole":
            monkeypatch.setattr(exit_store, "classifiers_on", lambda own, weights: None)
        store = ExitStore(tmp_path / name)
        done = [
            personalise(toy_network, user, split, FAST, store=store, round_number=number, run="A")
            for number in (1, 2, 3)
        ]
        reports[name] = [timeless(one.report) for one in done]
        assert_same_exits(load(tmp_path / name, toy_network).exit_weights, done[-1].exit_weights)
    assert reports["classifiers"] == reports["whole"]
    # a federated round keeps what it started from, in the same form
    assert names_in_file(tmp_path / "classifiers") == [CLASSIFIERS] * 2
    assert names_in_file(tmp_path / "whole") == [set(toy_network.exit_state())] * 2


def test_the_prior_alone_stores_classifiers_and_the_papers_schedule_whole_heads(toy_network, user, split, tmp_path):
    prior = dataclasses.replace(PAPER, weights=LossWeights())
    personalise(toy_network, user, split, prior, store=ExitStore(tmp_path / "prior"))
    personalise(toy_network, user, split, PAPER, store=ExitStore(tmp_path / "paper"))
    assert names_in_file(tmp_path / "prior") == [CLASSIFIERS]
    assert names_in_file(tmp_path / "paper") == [set(toy_network.exit_state())]


def test_a_fast_round_that_starts_from_trained_heads_stores_whole_heads(toy_network, user, split, tmp_path):
    """What it does not change is then not the model's; neither is it where the guard puts such a head back."""
    store = ExitStore(tmp_path)
    personalise(toy_network, user, split, PAPER, store=store, run="A")
    done = personalise(toy_network, user, split, FAST, store=store, round_number=2, run="A")
    assert names_in_file(tmp_path) == [set(toy_network.exit_state())] * 2
    assert_same_exits(load(tmp_path, toy_network).exit_weights, done.exit_weights)


def test_a_round_of_classifiers_keeps_the_whole_heads_that_it_started_from(toy_network, user, split, tmp_path):
    store, own = ExitStore(tmp_path), toy_network.exit_state()
    first = personalise(toy_network, user, split, PAPER, store=store, run="A")
    kept = ExitStore(tmp_path).load(toy_network.backbone_fingerprint, own, user.client_id)
    store.save(dataclasses.replace(kept, round=2, exit_weights=own), own)
    assert names_in_file(tmp_path) == [set(own), CLASSIFIERS]
    again = ExitStore(tmp_path).load(toy_network.backbone_fingerprint, own, None, repeating=("A", 2))
    assert_same_exits(again.exit_weights, first.exit_weights)


def test_a_store_of_a_former_version_is_read_and_the_next_round_goes_on_from_it(
    toy_network, user, split, tmp_path, monkeypatch
):
    with monkeypatch.context() as former:
        former.setattr(exit_store, "classifiers_on", lambda own, weights: None)
        for name in ("former", "present"):
            personalise(toy_network, user, split, FAST, store=ExitStore(tmp_path / name))
    path = tmp_path / "former" / "state.json"
    state = json.loads(path.read_text())
    del state["classifiers_on"], state["sha256"]
    write_with_digest(path, {**state, "format": 2}, private=True)
    reports = [
        timeless(personalise(toy_network, user, split, FAST, store=ExitStore(tmp_path / name), round_number=2).report)
        for name in ("former", "present")
    ]
    assert reports[0] == reports[1]
    assert names_in_file(tmp_path / "former") == [CLASSIFIERS]
    assert json.loads(path.read_text())["format"] == 3


def test_classifiers_on_the_exits_of_another_model_are_refused_in_a_sentence(toy_network, user, split, tmp_path):
    personalise(toy_network, user, split, FAST, store=ExitStore(tmp_path))
    other = copy.deepcopy(toy_network)
    other.heads[1].blend.data.add_(0.5)
    assert other.backbone_fingerprint == toy_network.backbone_fingerprint
    with pytest.raises(StoreError, match="were fitted on the exits of another model") as refused:
        load(tmp_path, other)
    assert heads_fingerprint(as_arrays(toy_network.exit_state()))[:12] in str(refused.value)
    assert "use that model, or another folder." in str(refused.value)
    # another classifier under the same convolutions is no other model's: stored ones take its place
    same = copy.deepcopy(toy_network)
    same.heads[1].classifier.weight.data.add_(0.5)
    assert_same_exits(load(tmp_path, same).exit_weights, load(tmp_path, toy_network).exit_weights)


def test_zeros_of_another_sign_are_no_classifiers_alone(toy_network, user, split, tmp_path):
    toy_network.heads[0].blend.data.zero_()
    own = toy_network.exit_state()
    done = personalise(toy_network, user, split, FAST, store=ExitStore(tmp_path))
    stored = load(tmp_path, toy_network)
    store = ExitStore(tmp_path / "negative")
    negative = {**done.exit_weights, "heads.0.blend": np.array(-0.0, dtype=np.float32)}
    store.save(dataclasses.replace(stored, exit_weights=negative), own)
    assert names_in_file(tmp_path / "negative") == [set(own)]
    assert np.signbit(load(tmp_path / "negative", toy_network).exit_weights["heads.0.blend"])


def test_a_file_that_holds_other_tensors_than_the_state_says_is_damaged(toy_network, user, split, tmp_path):
    personalise(toy_network, user, split, PAPER, store=ExitStore(tmp_path))
    path = tmp_path / "state.json"
    state = json.loads(path.read_text())
    assert state["classifiers_on"] == ""
    del state["sha256"]
    on = heads_fingerprint(as_arrays(toy_network.exit_state()))
    for claimed in (on, 7):
        path.write_text(json.dumps({**state, "classifiers_on": claimed}))
        with pytest.raises(StoreError, match="is damaged"):
            load(tmp_path, toy_network)


def test_a_user_of_mobilenet_takes_less_than_300_kb_and_answers_as_with_whole_heads(tmp_path):
    network = build_network("mobilenet_v2", num_exits=6, num_classes=62, input_size=28, head="msdnet").eval()
    own = as_arrays(network.exit_state())
    generator = np.random.default_rng(0)
    personal = with_classifiers(
        own, [generator.normal(size=matrix.shape).astype(np.float32) for matrix in classifiers_of(own)]
    )
    stored = StoredExits(
        client_id="s0w0001",
        round=1,
        backbone_fingerprint=network.backbone_fingerprint,
        policy=ExitPolicy(threshold=0.5, exits_in_use=(0, 3), num_exits=6),
        exit_weights=personal,
    )
    sizes = []
    for name, exits in (("classifiers", own), ("whole", {})):
        ExitStore(tmp_path / name).save(stored, exits)
        sizes.append(sum(path.stat().st_size for path in (tmp_path / name).iterdir()))
    # 6 classifiers of 62 x 128 weights and 62 biases, in float32, and what JSON says of them
    assert 6 * (62 * 128 + 62) * 4 < sizes[0] < 300_000
    assert sizes[1] > sum(array.nbytes for array in own.values()) > 6_000_000
    answers = []
    for name in ("classifiers", "whole"):
        opened = copy.deepcopy(network)
        opened.load_exit_state(load(tmp_path / name, network).exit_weights)
        images = torch.randint(0, 256, (8, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        answers.append(engine_for(opened, stored.policy).explore(images.numpy()).logits)
    np.testing.assert_array_equal(*answers)
