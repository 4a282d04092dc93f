from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from persephonee.multi_exit.errors import ModelFileError
from persephonee.multi_exit.network import NetworkSpec

IMAGES = torch.rand(6, 1, 64, 64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 4, 5])


def test_forward_is_the_heads_on_the_features(tiny_network):
    with torch.no_grad():
        maps, last_logits = tiny_network.features(IMAGES)
        logits = tiny_network(IMAGES)
    assert len(logits) == tiny_network.num_exits + 1 == 3
    assert [tuple(m.shape[1:]) for m in maps] == list(tiny_network.feature_shapes)
    for head, features, got in zip(tiny_network.heads, maps, logits[:-1], strict=True):
        assert torch.equal(head(features), got)
    assert torch.equal(last_logits, logits[-1])


def test_an_image_is_answered_alike_alone_and_in_a_batch(tiny_network):
    with torch.no_grad():
        together, alone = tiny_network(IMAGES), tiny_network(IMAGES[2:3])
    for batch, single in zip(together, alone, strict=True):
        torch.testing.assert_close(batch[2:3], single)


def test_a_frozen_backbone_moves_neither_parameters_nor_buffers(tiny_network):
    tiny_network.freeze_backbone().train()
    before = {name: tensor.clone() for name, tensor in tiny_network.stages.state_dict().items()}
    heads_before = tiny_network.exit_state()
    with torch.no_grad():
        last_before = tiny_network(IMAGES)[-1]

    optimiser = torch.optim.SGD(tiny_network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        sum(functional.cross_entropy(logits, LABELS) for logits in tiny_network.train()(IMAGES)).backward()
        optimiser.step()

    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_network.stages.state_dict().items())
    assert torch.equal(tiny_network(IMAGES)[-1], last_before), "the last exit moved"
    changed = {
        name for name, tensor in tiny_network.exit_state().items() if not torch.equal(tensor, heads_before[name])
    }
    assert changed == heads_before.keys(), "a head did not train"


def test_without_freezing_the_statistics_do_move(tiny_network):
    """The test above would prove nothing if the backbone stood still anyway."""
    before = tiny_network.backbone_fingerprint
    with torch.no_grad():
        tiny_network.train()(IMAGES)
    assert tiny_network.backbone_fingerprint != before


def test_a_frozen_network_still_switches_its_heads(tiny_network):
    tiny_network.freeze_backbone()
    assert tiny_network.train().heads.training
    assert not tiny_network.stages.training
    assert not tiny_network.eval().heads.training


def test_exit_state_is_a_copy_of_the_heads_and_nothing_else(tiny_network):
    state = tiny_network.exit_state()
    assert {name.split(".")[0] for name in state} == {"heads"}
    assert {name.split(".")[1] for name in state} == {"0", "1"}
    fingerprint = tiny_network.fingerprint
    for tensor in state.values():
        tensor.add_(1)
    assert tiny_network.fingerprint == fingerprint
    tiny_network.load_exit_state(state)
    assert tiny_network.fingerprint != fingerprint
    assert all(torch.equal(tensor, state[name]) for name, tensor in tiny_network.exit_state().items())


@pytest.mark.parametrize("how", ["missing", "unknown", "shape"])
def test_exits_of_another_network_are_refused_in_one_sentence(tiny_network, how, one_sentence):
    state, fingerprint = tiny_network.exit_state(), tiny_network.fingerprint
    name = next(iter(state))
    if how == "missing":
        del state[name]
    elif how == "unknown":
        state["heads.7.0.weight"] = torch.zeros(1)
    else:
        state[name] = torch.zeros(3)
    with pytest.raises(ModelFileError) as caught:
        tiny_network.load_exit_state(state)
    one_sentence(caught)
    assert tiny_network.fingerprint == fingerprint


def test_the_fingerprint_changes_with_any_weight_and_buffer(tiny_network):
    seen = {tiny_network.fingerprint}
    for tensor in tiny_network.state_dict().values():
        flat = tensor.view(-1)
        kept = flat[-1].clone()
        flat[-1] += 1
        seen.add(tiny_network.fingerprint)
        flat[-1] = kept
    assert len(seen) == 1 + len(tiny_network.state_dict())
    assert tiny_network.fingerprint in seen


def test_the_backbones_fingerprint_ignores_the_heads(tiny_network):
    before = tiny_network.backbone_fingerprint
    tiny_network.load_exit_state({name: tensor + 1 for name, tensor in tiny_network.exit_state().items()})
    assert tiny_network.backbone_fingerprint == before
    with torch.no_grad():
        next(tiny_network.stages.parameters()).add_(1)
    assert tiny_network.backbone_fingerprint != before


def test_the_fingerprint_changes_with_the_specification(tiny_network):
    before = tiny_network.fingerprint
    tiny_network.spec = replace(tiny_network.spec, mean=(0.5,), std=(1.0,))
    assert tiny_network.fingerprint != before


def test_a_specification_survives_its_json(tiny_network):
    spec = replace(tiny_network.spec, mean=(0.25,), std=(0.5,))
    assert NetworkSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"num_classes":10', '"num_classes":"10"'),
        ('"num_classes":10', '"num_classes":true'),
        ('"input_size":64', '"input_size":64.5'),
        ('"head":"msdnet"', '"head":3'),
        ('"backbone":', '"spine":'),
        ('"cuts":[', '"cuts":[7,'),
        ('"mean":[]', '"mean":["a"]'),
        ('"mean":[]', '"mean":null'),
        ("{", "[{"),
    ],
)
def test_a_damaged_specification_is_refused_in_one_sentence(tiny_network, old, new, one_sentence):
    text = tiny_network.spec.to_json()
    assert old in text
    with pytest.raises(ModelFileError) as caught:
        NetworkSpec.from_json(text.replace(old, new, 1))
    one_sentence(caught)
