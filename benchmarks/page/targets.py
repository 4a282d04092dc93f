"""The targets of speed and memory: what is wanted, and how it is read from the results."""

from collections.abc import Callable
from dataclasses import dataclass

from persephonee.benchmarks.page.numbers import Results, flower_fractions, rate_of, ratio, way_cost
from persephonee.benchmarks.schedules import FAST, PAPER
from persephonee.benchmarks.simulation.baselines import FLOWER, OURS, PFL

RESNET, SIMULATION = "personalisation-resnet50-224", "simulation"
POPULATION = 3500
"""All writers but those few with too little to train on."""
ALL, FIRST = "all exits", "exit 0"


@dataclass(frozen=True, kw_only=True)
class Target:
    """One target.

    Attributes:
        name: names the target in tests and in code.
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
        factor = self.goal / value if self.at_least and value > 0 else value / self.goal
        return self._shown(value), "met" if met else f"missed by a factor of {factor:.2f}"

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
