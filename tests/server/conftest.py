"""A made-up run: no network, no training; only the shapes and the ranges of a real one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from persephonee.server.report.example_user_section import Example, ExampleUser
from persephonee.server.results.run_folder import RunFolder

NUM_EXITS = 6
ORIGINAL_MACS = 22_300_000
HEAD_MACS = 900_000
CONFIG = {
    "dataset": "synthetic-writers",
    "model": "mobilenet_v2, 6 exits, msdnet heads",
    "model_fingerprint": "9f2c41d07a6be835",
    "seed": 7,
    "clients": 46,
    "rounds": 1,
    "drop_tolerance": 0.01,
    "labels": "all",
    "personalisation": {"epochs": 10, "learning_rate": 0.01, "alpha": 0.5, "beta": 0.5, "temperature": 1.0},
    "versions": {"python": "3.11", "torch": "2.15.0"},
}


def exit_macs() -> list[int]:
    """Backbone up to each exit and its own head; the last exit last."""
    early = [ORIGINAL_MACS * (i + 1) // (NUM_EXITS + 1) + HEAD_MACS for i in range(NUM_EXITS)]
    return [*early, ORIGINAL_MACS]


def made_up_user(rng: np.random.Generator, client_id: str, round_number: int) -> tuple[list[dict], dict]:
    """Return the rows of exits.parquet and the row of clients.parquet of one user."""
    num_test = 100
    skill = rng.normal(0, 0.03)
    early = np.arange(NUM_EXITS)
    before = rng.binomial(num_test, np.clip(0.95 - 0.42 * np.exp(-0.62 * early) + skill, 0.02, 1)) / num_test
    limit = 0.972 + 0.3 * skill + 0.004 * min(round_number, 4)
    after = rng.binomial(num_test, np.clip(limit - 0.11 * np.exp(-0.9 * early), 0.02, 1)) / num_test
    last = rng.binomial(num_test, np.clip(0.947 + skill, 0, 1)) / num_test
    rolled_back = [int(i) for i in early if after[i] < before[i]]
    after = np.maximum(after, before - 0.01)
    kept = rng.random(NUM_EXITS) < np.array([0.95, 0.9, 0.6, 0.35, 0.2, 0.1])
    threshold = float(rng.choice([0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95], p=[0.05, 0.1, 0.2, 0.3, 0.2, 0.1, 0.05]))
    rates = {
        "before": rng.dirichlet([4, 4, 3.5, 3, 2, 2, 5]),
        "after": rng.dirichlet(np.append(np.where(kept, [14, 5, 3, 2, 1, 1], 1e-9), 1.6)),
    }
    accuracies = {"before": [*before, last], "after": [*after, last]}
    # the confident samples leave first and are the easier ones; what is left for the last exit is harder
    ease = np.array([0.75] * NUM_EXITS + [-1.5])
    policy = {
        stage: float(np.dot(rates[stage], [a + e * (1 - a) for a, e in zip(accuracies[stage], ease, strict=True)]))
        for stage in rates
    }
    passed = {"before": np.arange(NUM_EXITS + 1), "after": np.cumsum([0, *kept])}  # heads on the way
    macs = {stage: float(rates[stage] @ (np.array(exit_macs()) + HEAD_MACS * passed[stage])) for stage in rates}
    exits = [
        {
            "round": round_number,
            "client_id": client_id,
            "exit": number,
            "stage": stage,
            "accuracy": float(accuracies[stage][number]),
            "loss": float(-np.log(max(accuracies[stage][number], 0.01))),
            "exit_rate": float(rates[stage][number]),
            "kept": bool(stage == "before" or number == NUM_EXITS or kept[number]),
            "macs": exit_macs()[number],
            "num_test": num_test,
        }
        for number in range(NUM_EXITS + 1)
        for stage in ("before", "after")
    ]
    client = {
        "round": round_number,
        "client_id": client_id,
        "status": "ok",
        "num_train": int(rng.integers(40, 210)),
        "num_calibration": int(rng.integers(15, 60)),
        "num_test": num_test,
        "labels": "all",
        "threshold": threshold,
        "accuracy_original": float(last),
        "accuracy_before": policy["before"],
        "accuracy_after": policy["after"],
        "mean_macs": macs["after"],
        "mean_macs_before": macs["before"],
        "original_macs": ORIGINAL_MACS,
        "bytes_up": int(rng.integers(1500, 2300)),
        "bytes_down": 640 if round_number > 1 else 8_600_000,
        "seconds_personalise": float(rng.uniform(3, 9)),
        "rolled_back_exits": rolled_back,
    }
    return exits, client


def made_up_round(round_number: int, users: int = 40, seed: int = 0) -> dict[str, Any]:
    """Return the arguments of RunFolder.append_round: `users` valid ones, and six that were left out."""
    rng = np.random.default_rng([seed, round_number])
    made = [made_up_user(rng, f"f{100 + i:04d}_{i % 37:02d}", round_number) for i in range(users)]
    left_out = {
        "f3001_11": "too small: 8 samples, 20 are needed",
        "f3002_05": "too small: 14 samples, 20 are needed",
        "f3003_29": "too small: 19 samples, 20 are needed",
        "f3004_40": "refused: the training loss became NaN in epoch 3; the earlier exits stay",
        "f3005_17": "failed: the client ended without an answer (error code 8)",
    }
    clients = [client for _, client in made]
    clients += [{"round": round_number, "client_id": name, "status": why} for name, why in left_out.items()]
    row = {"round": round_number, "replies": users + 3, "failures": 3, "seconds": 61.5}
    return {"exits": [row for exits, _ in made for row in exits], "clients": clients, "round_row": row}


def made_up_example_user() -> ExampleUser:
    """Return twelve drawn characters, ten of which changed from wrong to right."""
    triples = [*zip("OlSZcCo1Iz", "0152Cc0l12", "OlSZcCo1Iz", strict=True), ("5", "5", "S"), ("k", "h", "K")]
    examples = []
    for label, before, after in triples:
        page = Image.new("L", (28, 28), 255)
        ImageDraw.Draw(page).text((8, 3), label, fill=20, font_size=20)
        examples.append(Example(image=np.asarray(page)[None], label=label, before=before, after=after))
    return ExampleUser(client_id="f0103_03", examples=tuple(examples), exit=0, corrected=23, worsened=1)


@pytest.fixture(scope="session")
def fake_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Return a function that makes a run folder of made-up rounds."""

    def make(rounds: int = 1, users: int = 40, name: str = "demo") -> RunFolder:
        run = RunFolder.create(tmp_path_factory.mktemp("runs") / name, CONFIG)
        for number in range(1, rounds + 1):
            run.append_round(**made_up_round(number, users))
        return run

    return make


@pytest.fixture(scope="session")
def example_user() -> ExampleUser:
    return made_up_example_user()
