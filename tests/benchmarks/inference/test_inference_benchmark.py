import numpy as np
import pandas as pd
import pytest
import torch

from persephonee.benchmarks.inference import benchmark as inference
from persephonee.benchmarks.inference import engine_overhead
from persephonee.benchmarks.inference.report import inference_section
from persephonee.benchmarks.interleaved import Pair, time_pairs
from persephonee.benchmarks.result_tables import Result
from persephonee.data_partitions.samples import to_float
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network
from tests.tiny_cnn import NAME, SIDE, SOURCE, TinyUsers, write_parquet


@pytest.fixture
def network():
    return build_network(NAME, num_exits=2, num_classes=2, input_size=SIDE, head="pooled", allowed=(SOURCE,))


def test_pairs_are_called_in_turn_and_the_warm_up_is_not_timed():
    calls: list[str] = []
    times = time_pairs([(lambda: calls.append("a"), lambda: calls.append("b"))], repeats=3, warm_up=1)
    assert "".join(calls) in ("abbaabba", "baabbaab")
    assert times.first.shape == times.second.shape == (3, 1)


def test_a_ratio_is_the_second_over_the_first_from_medians():
    first, second = np.array([[1.0, 3.0], [1.0, 3.0], [9.0, 3.0]]), np.array([[2.0, 6.0], [2.0, 6.0], [2.0, 60.0]])
    pair = Pair(first, second)
    assert pair.ratio == 2.0
    assert pair.ratio_quartiles == (2.0, np.quantile([2, 2, 62 / 12], 0.75))


def test_overhead_is_measured_at_every_exit(network, monkeypatch):
    monkeypatch.setattr(engine_overhead, "REPEATS", 3)
    images = to_float(TinyUsers().load_partition(0).images).numpy()
    rows = engine_overhead.overhead_rows(network, images)
    assert [row["exit"] for row in rows] == [0, 1, 2]
    assert rows[-1]["heads_run"] == 2
    assert all(row["by_hand_ms"] > 0 for row in rows)


def test_the_section_names_the_medians_over_users():
    overhead = [{"exit": e, "heads_run": 1, "by_hand_ms": 1.0, "engine_ms": 1.02} for e in range(2)]
    quartiles = {"overhead": 0.02, "overhead_q25": 0.01, "overhead_q75": 0.03}
    of_user = {"labels": "all", "runtime": "PyTorch", "batch": 1, "left_early": 0.5, "original_ms": 4.0}
    accuracies = {"accuracy": 0.8, "accuracy_original": 0.7}
    speed = [{**of_user, **accuracies, "policy_ms": 4 / ratio, "speed_up": ratio} for ratio in (1.0, 2.5, 4.0)]
    latency = [{"exit": e, "mmac": e + 1.0, "latency_ms": 2 * e + 1.0, "latency_p95_ms": 9.0} for e in range(2)]
    tables = {
        "overhead": pd.DataFrame([{**row, **quartiles} for row in overhead]),
        "speed": pd.DataFrame(speed),
        "latency": pd.DataFrame(latency),
    }
    about = {"backbone": "tiny", "input_size": 12, "dataset": "users", "onnxruntime": "1", "repeats": 7}
    machine = {"processor": "A processor", "cores": 2, "threads": 1, "torch": "2"}
    section = inference_section(Result({**about, "overhead_repeats": 300, "machine": machine}, tables), "latency.svg")
    assert "| all | PyTorch | 1 | 4.000 | 1.600 | **2.50x** | 1.00 to 4.00 | 70.0% | 80.0% | 50% | 3 |" in section
    assert "| last | 1 | 1.000 | 1.020 | +2.0% | +1.0% to +3.0% |" in section
    assert "A processor, 2 cores, 1 thread, PyTorch 2" in section
    assert "r = 1.000" in section


@pytest.mark.slow
def test_the_whole_benchmark_runs_on_a_tiny_network(network, tmp_path, monkeypatch):
    monkeypatch.setattr(engine_overhead, "REPEATS", 3)
    save_network(network, tmp_path / "model", ModelMetadata(trained_on=("u00",)))
    write_parquet(tmp_path / "users.parquet", samples=40)
    threads = torch.get_num_threads()
    options = {name: p.default for name, p in inference.main.__signature__.parameters.items()}
    given = {"model": tmp_path / "model", "out": tmp_path / "out", "users": 1, "repeats": 2, "sources": SOURCE}
    where = {"dataset": "parquet", "data_path": tmp_path / "users.parquet"}
    inference.main(**{**options, **given, **where})
    torch.set_num_threads(threads)
    speed = pd.read_parquet(tmp_path / "out" / "inference" / "speed.parquet")
    assert set(speed["labels"]) == {"all", "none"}
    assert set(speed["runtime"]) == {"PyTorch", "ONNX Runtime"}
    assert set(speed["batch"]) == {1, 32}
    by_runtime = speed.pivot_table(index=["labels", "batch"], columns="runtime", values="accuracy")
    assert (by_runtime["PyTorch"] == by_runtime["ONNX Runtime"]).all()
