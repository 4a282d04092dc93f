import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch

from persephonee.clients.errors import ClientSettingsError, ImageError, NonFiniteOutputError
from persephonee.clients.inference.engine import Predictions, first_exit_always_answers, merged_stages, top_1_softmax
from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.personalisation.calibration import THRESHOLDS
from persephonee.clients.personalisation.evaluation import ExitOutputs
from persephonee.clients.personalisation.familiar_images import FamiliarImages, image_statistics
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.data_partitions.samples import to_float

SUBSETS = [subset for size in range(3) for subset in combinations(range(2), size)]
TIE = 1e-6
"""Batches of other sizes round differently in float32."""


@pytest.fixture
def images(draw_user) -> np.ndarray:
    return draw_user(n=60, tilt=1, seed=9).images


@pytest.fixture
def all_exits(toy_network, images) -> ExitOutputs:
    with torch.inference_mode():
        return ExitOutputs.of(torch.stack(toy_network(to_float(torch.from_numpy(images)))))


def policy_of(threshold: float, exits: tuple[int, ...]) -> ExitPolicy:
    return ExitPolicy(threshold=threshold, exits_in_use=exits, num_exits=2)


def assert_is_the_definition(predictions: Predictions, outputs: ExitOutputs, policy: ExitPolicy, rows: slice) -> None:
    confidences, classes = outputs.confidences[:, rows], outputs.predictions[:, rows]
    exits = policy.exit_of(confidences)
    used = [*policy.exits_in_use]
    sure = ~(np.abs(confidences[used] - policy.threshold) < TIE).any(axis=0)
    column = np.arange(len(exits))
    assert (predictions.exit_indices == exits)[sure].all()
    assert (predictions.labels == classes[exits, column])[sure].all()
    np.testing.assert_allclose(predictions.confidences[sure], confidences[exits, column][sure], atol=TIE)


def test_the_toy_networks_confidences_spread_so_that_the_tests_below_mean_something(all_exits):
    for confidences in all_exits.confidences[:2]:
        assert confidences.max() - confidences.min() > 0.3
    exit_indices = policy_of(0.8, (0, 1)).exit_of(all_exits.confidences)
    assert set(exit_indices.tolist()) == {0, 1, 2}


@pytest.mark.parametrize("exits", SUBSETS)
@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_answers_are_those_of_the_policy_applied_to_all_exits(toy_network, images, all_exits, exits, batch_size):
    between = np.sort(all_exits.confidences[:2].ravel())[::15] + 1e-5
    for threshold in (*THRESHOLDS, *between.clip(0, 1).tolist()):
        policy = policy_of(threshold, exits)
        engine = InferenceEngine(toy_network, policy)
        for start in range(0, 60 if batch_size > 1 else 12, batch_size):
            rows = slice(start, start + batch_size)
            assert_is_the_definition(engine.infer(images[rows]), all_exits, policy, rows)


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_unfamiliar_images_take_the_last_exit_however_sure_the_early_ones_are(
    toy_network, images, all_exits, batch_size
):
    images = images.copy()
    familiar = FamiliarImages.of(image_statistics(images), 0.02)
    unfamiliar = familiar.unfamiliar(images)
    strange = np.flatnonzero(all_exits.confidences[0] > 0.2)[:20]
    images[strange] = 255 - images[strange]
    expected = familiar.unfamiliar(images)
    assert expected[strange].all() and (expected == unfamiliar)[np.setdiff1d(np.arange(60), strange)].all()
    with torch.inference_mode():
        outputs = ExitOutputs.of(torch.stack(toy_network(to_float(torch.from_numpy(images)))))
    # at the threshold 0 any other image leaves at the first exit
    for threshold in (0.0, 0.5):
        policy = dataclasses.replace(policy_of(threshold, (0, 1)), familiar=familiar)
        engine = InferenceEngine(toy_network, policy)
        for start in range(0, 60, batch_size):
            rows = slice(start, start + batch_size)
            predictions = engine.infer(images[rows])
            assert_is_the_definition(predictions, outputs.with_unfamiliar(expected), policy, rows)
            assert (predictions.exit_indices == 2)[expected[rows]].all()
            exploration = engine.explore(images[rows])
            assert (exploration.unfamiliar == expected[rows]).all()
            assert (exploration.predictions.exit_indices == predictions.exit_indices).all()


def test_one_image_gets_bit_for_bit_the_confidence_of_all_exits_computed_one_by_one(toy_network, images):
    policy = policy_of(0.8, (0, 1))
    engine = InferenceEngine(toy_network, policy)
    for image in images:
        with torch.inference_mode():
            outputs = ExitOutputs.of(torch.stack(toy_network(to_float(torch.from_numpy(image[None])))))
        predictions = engine.infer(image[None])
        assert predictions.exit_indices == policy.exit_of(outputs.confidences)
        assert predictions.confidences[0] == outputs.confidences[predictions.exit_indices[0], 0]


def test_an_exit_exactly_as_confident_as_the_threshold_does_not_answer(toy_network, images):
    confidence = InferenceEngine(toy_network, policy_of(0.0, (0, 1))).infer(images[:1]).confidences[0]
    below = np.nextafter(confidence, 0)
    assert InferenceEngine(toy_network, policy_of(confidence, (0, 1))).infer(images[:1]).exit_indices[0] > 0
    assert InferenceEngine(toy_network, policy_of(below, (0, 1))).infer(images[:1]).exit_indices[0] == 0


def test_who_has_left_is_not_computed_any_further(toy_network, images, all_exits):
    policy = policy_of(0.8, (0, 1))
    seen = {name: [] for name in ("stage 0", "stage 1", "stage 2", "head 0", "head 1")}
    for kind, modules in (("stage", toy_network.stages), ("head", toy_network.heads)):
        for i, module in enumerate(modules):
            module.register_forward_hook(lambda _m, args, _o, name=f"{kind} {i}": seen[name].append(len(args[0])))
    InferenceEngine(toy_network, policy).infer(images)
    exit_indices = policy.exit_of(all_exits.confidences)
    after_0, after_1 = int((exit_indices > 0).sum()), int((exit_indices > 1).sum())
    assert seen == {
        "stage 0": [60],
        "head 0": [60],
        "stage 1": [after_0],
        "head 1": [after_0],
        "stage 2": [after_1],
    }
    early = int(np.flatnonzero(exit_indices == 0)[0])
    for sizes in seen.values():
        sizes.clear()
    InferenceEngine(toy_network, policy).infer(images[early : early + 1])
    assert seen == {"stage 0": [1], "head 0": [1], "stage 1": [], "head 1": [], "stage 2": []}


def test_pruned_exits_take_no_part_and_their_stages_are_merged(toy_network, images):
    heads_run = []
    for i, head in enumerate(toy_network.heads):
        head.register_forward_hook(lambda *_, i=i: heads_run.append(i))
    InferenceEngine(toy_network, policy_of(1.0, (1,))).infer(images)
    assert heads_run == [1]
    assert merged_stages(ExitPolicy(threshold=0.5, exits_in_use=(1, 4), num_exits=6)) == (
        range(0, 2),
        range(2, 5),
        range(5, 7),
    )
    assert merged_stages(ExitPolicy(threshold=0.5, exits_in_use=(), num_exits=6)) == (range(0, 7),)


def test_the_tail_is_unreachable_just_where_the_threshold_is_below_the_smallest_top_1_softmax():
    assert first_exit_always_answers(policy_of(0.0, (0,)), num_classes=62)
    assert first_exit_always_answers(policy_of(0.05, (0,)), num_classes=10)
    assert not first_exit_always_answers(policy_of(0.1, (0,)), num_classes=10)
    assert not first_exit_always_answers(policy_of(0.25, (0,)), num_classes=4)


def test_an_engine_that_does_not_explore_lets_go_of_what_it_cannot_reach(toy_network, images):
    engine = InferenceEngine(toy_network, policy_of(0.0, (0, 1)), explores=False)
    whole = InferenceEngine(toy_network, policy_of(0.0, (0, 1)))
    held = {id(module) for part in (*engine._stages, *engine._heads) for module in part.modules()}
    assert not held & {id(m) for part in (*toy_network.stages[1:], toy_network.heads[1]) for m in part.modules()}
    assert (engine.infer(images).labels == whole.infer(images).labels).all()
    assert (engine.infer(images[:1]).exit_indices == 0).all()
    with pytest.raises(ClientSettingsError, match="explores=True"):
        engine.explore(images)


@pytest.mark.parametrize("exits", SUBSETS)
def test_exploring_gives_the_same_answers_and_all_exits_in_use(toy_network, images, all_exits, exits):
    policy = policy_of(0.8, exits)
    engine = InferenceEngine(toy_network, policy)
    exploration, predictions = engine.explore(images), engine.infer(images)
    assert exploration.exits == (*exits, 2)
    np.testing.assert_allclose(exploration.logits, all_exits.logits[[*exits, 2]], atol=1e-5)
    np.testing.assert_allclose(exploration.confidences, all_exits.confidences[[*exits, 2]], atol=TIE)
    assert (exploration.labels == all_exits.predictions[[*exits, 2]]).all()
    for field in dataclasses.fields(Predictions):
        got, expected = getattr(exploration.predictions, field.name), getattr(predictions, field.name)
        np.testing.assert_allclose(got, expected, atol=TIE)


def test_bytes_and_floats_of_any_layout_give_the_same_answers(toy_network, images):
    engine = InferenceEngine(toy_network, policy_of(0.8, (0, 1)))
    expected = engine.infer(images).confidences
    every_byte = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    as_torch = to_float(torch.from_numpy(every_byte)).numpy()
    read_only = as_torch.copy()
    read_only.flags.writeable = False
    assert engine.infer(read_only).confidences == engine.infer(every_byte).confidences
    channels_last = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    assert (engine.infer(channels_last).confidences == expected).all()
    flipped_twice = np.ascontiguousarray(images[..., ::-1])[..., ::-1]
    assert (engine.infer(flipped_twice.astype(np.float64) / 255).confidences.round(6) == expected.round(6)).all()


def test_no_images_give_no_answers(toy_network, images):
    engine = InferenceEngine(toy_network, policy_of(0.8, (0, 1)))
    predictions = engine.infer(images[:0])
    assert predictions.labels.shape == predictions.confidences.shape == predictions.exit_indices.shape == (0,)
    assert engine.explore(images[:0]).logits.shape == (3, 0, 4)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((1, 3, 16, 16), dtype=np.uint8),
        np.zeros((1, 16, 16), dtype=np.uint8),
        np.zeros((1, 1, 16, 16), dtype=np.int64),
        torch.zeros(1, 1, 16, 16),
    ],
)
def test_images_of_another_shape_or_type_are_refused_in_a_sentence(toy_network, wrong):
    engine = InferenceEngine(toy_network, policy_of(0.8, (0, 1)))
    with pytest.raises(ImageError, match=r"expected a NumPy array of uint8 or float \[B, 1, 16, 16\]"):
        engine.infer(wrong)


def test_a_policy_of_another_network_is_refused(toy_network):
    with pytest.raises(ClientSettingsError, match="6 early exits and the network has 2"):
        InferenceEngine(toy_network, ExitPolicy(threshold=0.5, exits_in_use=(5,), num_exits=6))


def test_confidence_is_the_softmax_in_double_precision_on_either_runtime():
    logits = np.random.default_rng(0).normal(scale=6, size=(200, 62)).astype(np.float32)
    expected = torch.softmax(torch.from_numpy(logits).double(), dim=1).amax(dim=1).numpy()
    np.testing.assert_allclose(top_1_softmax(logits), expected, rtol=1e-14)
    # in float32 this one would round to 1 and leave at no threshold below
    sure = top_1_softmax(np.array([[20.0, 0.0]], dtype=np.float32))[0]
    assert sure == pytest.approx(1 - np.exp(-20), rel=1e-15)
    assert sure < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_or_an_image_that_is_not_finite_gives_an_error_and_no_answer(toy_network, value):
    policy = ExitPolicy(threshold=0.5, exits_in_use=(0, 1), num_exits=2)
    images = np.zeros((3, 1, 16, 16), dtype=np.float32)
    engine = InferenceEngine(toy_network, policy)
    spoilt = images.copy()
    spoilt[1, 0, 4, 4] = value
    for call in (engine.infer, engine.explore):
        with pytest.raises(ImageError, match="finite"):
            call(spoilt)
    with torch.no_grad():
        next(toy_network.heads[0].parameters()).fill_(float("nan"))
    for call, batch in ((engine.infer, images), (engine.infer, images[:1]), (engine.explore, images)):
        with pytest.raises(NonFiniteOutputError):
            call(batch)
