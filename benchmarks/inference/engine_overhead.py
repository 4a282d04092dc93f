"""What the inference engine adds at batch 1 to the same stages and heads called by hand, at each exit."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from persephonee.benchmarks.interleaved import time_pairs
from persephonee.clients.inference.inference_engine import InferenceEngine
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.multi_exit.network import MultiExitNetwork

REPEATS = 300
Images = np.ndarray[Any, np.dtype[np.float32]]
Row = dict[str, Any]


def overhead_rows(network: MultiExitNetwork, images: Images) -> list[Row]:
    """Time the engine against the same calls by hand, for an image that leaves at exit e with exits 0 to e in use."""
    confidences = (
        InferenceEngine(network, policy_of(network, 1.0, range(network.num_exits))).explore(images).confidences
    )
    rows = []
    for exit in range(network.num_exits + 1):
        before = confidences[:exit].max(axis=0, initial=0.0)
        image = int((confidences[exit] - before).argmax())
        if exit == network.num_exits:
            policy = policy_of(network, 1.0, range(exit))
        elif confidences[exit, image] > before[image] + 1e-3:
            policy = policy_of(network, float(confidences[exit, image] + before[image]) / 2, range(exit + 1))
        else:
            # no image leaves here later than elsewhere: this exit alone is in use
            policy = policy_of(network, 0.0, [exit])
        rows.append(_overhead_row(network, policy, images[image : image + 1], exit))
    return rows


def _overhead_row(network: MultiExitNetwork, policy: ExitPolicy, image: Images, exit: int) -> Row:
    engine = InferenceEngine(network, policy)
    if engine.infer(image).exit_indices[0] != exit:
        raise RuntimeError(f"the image does not leave at exit {exit}")
    stages, heads, tensor = list(network.stages)[: exit + 1], network.heads, torch.from_numpy(image)

    def by_hand() -> torch.Tensor:
        with torch.inference_mode():
            features, logits = tensor, tensor
            for i, stage in enumerate(stages):
                features = logits = stage(features)
                if i in policy.exits_in_use:
                    logits = heads[i](features)
        return logits

    times = time_pairs([(by_hand, lambda: engine.infer(image))], REPEATS, warm_up=20)
    low, high = times.ratio_quartiles
    return {
        "exit": exit,
        "heads_run": len([e for e in policy.exits_in_use if e <= exit]),
        "by_hand_ms": float(np.median(times.first)),
        "engine_ms": float(np.median(times.second)),
        "overhead": times.ratio - 1,
        "overhead_q25": low - 1,
        "overhead_q75": high - 1,
    }


def policy_of(network: MultiExitNetwork, threshold: float, exits: Iterable[int]) -> ExitPolicy:
    """Return a policy with these exits in use."""
    return ExitPolicy(threshold=threshold, exits_in_use=tuple(exits), num_exits=network.num_exits)
