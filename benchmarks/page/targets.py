"""The targets of speed and memory: what is wanted, how it is read from the results, and why one is missed.

`REASONS` is the one thing that a person writes, a sentence for a target's name; figures come from the results.
"""

from collections.abc import Callable
from dataclasses import dataclass

from persephonee.benchmarks.page.numbers import Results, flower_fractions, rate_of, ratio, way_cost
from persephonee.benchmarks.schedules import FAST, PAPER
from persephonee.benchmarks.simulation.baselines import FLOWER, OURS, PFL

RESNET, SIMULATION = "personalisation-resnet50-224", "simulation"
POPULATION = 3500
"""All writers but those few with too little to train on."""
ALL, FIRST = "all exits", "exit 0"

_OURS_ALONE = (
    "by then most of a user's time is the backbone's one pass over all images, which no schedule shortens; ours also "
    "calibrates, guards and reports"
)
REASONS: dict[str, str] = {
    "paper-way": "these exits had learned from 600 photographs, and the fast schedule, which keeps their convolutions, "
    "ends below the paper's: see accuracy. From 20,000 photographs at 96 px it ends 0.3 points below (8 users, "
    "`python -m persephonee.experiments.fast_schedule`)",
    "whole": "the same",
    "whole-exit-0": "the same",
    "fast-flower": _OURS_ALONE,
    "fast-pfl": _OURS_ALONE,
    "paper-flower": "the training of the heads, the same for all, is most of the round",
    "paper-pfl": "the training of the heads, the same for all, is most of the round",
    "pooled": "a user's 230 images take 5 GMAC in the backbone alone: at 112 GMAC/s, what two such cores reach in "
    "float32 matrix products, at most 22 users a second",
    "flower-share": "one repetition, on a machine whose runs lie 10% apart; two earlier runs gave 4.3 and 4.5%",
    "overhead": "at one exit, by less than its quartiles are apart",
    "device": "what PyTorch itself takes depends on its build, see below; a device takes the CPU build",
}
"""Why a target is missed, or what one has to know about it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target.

    Attributes:
        name: key of `REASONS`.
        text: what is measured.
        goal: the number to reach.
        at_least: whether more is better.
        unit: printed behind numbers; "%" prints shares as percentages.
        needs: the result that it is read from.
        measure: reads it; None where the run lacks a part of it.
    """

    name: str
    text: str
    goal: float
    at_least: bool
    unit: str
    needs: str
    measure: Callable[[Results], float | None]

    def wanted(self) -> str:
        """Return the goal in words."""
        return f"{'at least' if self.at_least else 'at most'} {self._shown(self.goal)}"

    def verdict(self, results: Results) -> tuple[str, str]:
        """Return what was measured, and whether that is enough, in words."""
        value = self.measure(results) if self.needs in results else None
        if value is None:
            return "not measured", "-"
        met = value >= self.goal if self.at_least else value <= self.goal
        short = self.goal / value - 1 if self.at_least and value > 0 else value / self.goal - 1
        return self._shown(value), "met" if met else f"missed by {short:.0%}"

    def _shown(self, value: float) -> str:
        if self.unit == "%":
            return f"{value:.1%}"
        return f"{value:,.0f}{self.unit}" if value >= 100 else f"{value:.3g}{self.unit}"


def _methods(first: tuple[str, str], second: tuple[str, str], column: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        result = results[RESNET]
        return ratio(way_cost(result, *first, column), way_cost(result, *second, column))

    return measure


def _faster(schedule: str, opponent: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        result = results[SIMULATION]
        return ratio(rate_of(result, OURS, schedule), rate_of(result, opponent, PAPER))

    return measure


def _flower_fraction(results: Results) -> float | None:
    shares = flower_fractions(results[SIMULATION])
    found = shares[shares["schedule"] == PAPER]
    return None if found.empty else float(found.share.iloc[0])


def _overhead(results: Results) -> float:
    return float(results["inference"].tables["overhead"].overhead.max())


def _speed_up(runtime: str) -> Callable[[Results], float | None]:
    def measure(results: Results) -> float | None:
        table = results["inference"].tables["speed"]
        found = table[(table.runtime == runtime) & (table.labels == "all") & (table.batch == 1)]
        return None if found.empty else float(found.speed_up.median())

    return measure


def _device_bytes(results: Results) -> float:
    return float(results["device"].tables["devices"].peak_bytes.max()) / 1e6


def _own_megabytes(results: Results) -> float | None:
    value = way_cost(results[RESNET], FAST, ALL, "own_bytes")
    return None if value is None else value / 1e6


def _population(results: Results) -> float | None:
    table = results["gpu"].tables["population"]
    found = table[(table.users >= POPULATION) & (table.device == "cuda")]
    return None if found.empty else float(found.seconds.median())


def _target(
    name: str, text: str, goal: float, unit: str, needs: str, measure: Callable[[Results], float | None]
) -> Target:
    return Target(name=name, text=text, goal=goal, at_least=unit == "x", unit=unit, needs=needs, measure=measure)


TARGETS = (
    _target(
        "paper-way",
        "ResNet-50, 224 px, all exits: the paper's way over ours, in time",
        5,
        "x",
        RESNET,
        _methods(("paper", ALL), (FAST, ALL), "seconds"),
    ),
    _target(
        "whole",
        "ResNet-50, 224 px, all exits: full fine-tuning over ours, in time",
        20,
        "x",
        RESNET,
        _methods(("whole", ALL), (FAST, ALL), "seconds"),
    ),
    _target(
        "whole-exit-0",
        "ResNet-50, 224 px, exit 0 alone: full fine-tuning over ours, in time",
        60,
        "x",
        RESNET,
        _methods(("whole", ALL), (FAST, FIRST), "seconds"),
    ),
    _target(
        "memory-ratio",
        "ResNet-50, 224 px, all exits: full fine-tuning over ours, in memory beyond the loaded model and data",
        4,
        "x",
        RESNET,
        _methods(("whole", ALL), (FAST, ALL), "own_bytes"),
    ),
    _target(
        "memory-budget",
        "ResNet-50, 224 px, all exits: memory beyond the loaded model and data",
        1000,
        " MB",
        RESNET,
        _own_megabytes,
    ),
    _target("fast-flower", "Clients a second over the plain Flower app's", 10, "x", SIMULATION, _faster(FAST, FLOWER)),
    _target("fast-pfl", "Clients a second over pfl-research's", 6, "x", SIMULATION, _faster(FAST, PFL)),
    _target(
        "paper-flower",
        "The same over the plain Flower app's, with the paper's schedule",
        3,
        "x",
        SIMULATION,
        _faster(PAPER, FLOWER),
    ),
    _target(
        "paper-pfl",
        "The same over pfl-research's, with the paper's schedule",
        2,
        "x",
        SIMULATION,
        _faster(PAPER, PFL),
    ),
    Target(
        name="pooled",
        text="Clients a second with `pooled` heads",
        goal=68,
        at_least=True,
        unit=" a second",
        needs=SIMULATION,
        measure=lambda results: rate_of(results[SIMULATION], OURS, FAST, "pooled"),
    ),
    _target("flower-share", "Flower's and Ray's fraction of a round", 0.1, "%", SIMULATION, _flower_fraction),
    _target("population", "All 3,550 built-in writers on one GPU, all six exits", 60, " s", "gpu", _population),
    _target("overhead", "The engine's overhead over calls by hand, worst exit", 0.05, "%", "inference", _overhead),
    _target(
        "speed-up",
        "Latency of the original over the policy's, hard labels, batch 1, PyTorch",
        2,
        "x",
        "inference",
        _speed_up("PyTorch"),
    ),
    _target("speed-up-onnx", "The same on ONNX Runtime", 2, "x", "inference", _speed_up("ONNX Runtime")),
    _target("device", "Peak resident memory of `persephonee device run`", 600, " MB", "device", _device_bytes),
)
