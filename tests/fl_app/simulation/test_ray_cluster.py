import socket
from dataclasses import replace

import pandas as pd
import pytest

from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation import simulate as simulation
from persephonee.fl_app.simulation.ray_cluster import check_cluster
from persephonee.fl_app.simulation.scratch import scratch_folder
from persephonee.fl_app.simulation.surroundings import environment_of_flower
from persephonee.multi_exit.building import build_network
from persephonee.multi_exit.storage import ModelMetadata, save_network


def test_a_cluster_that_does_not_answer_is_refused_in_a_sentence():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(AppError, match=f"No Ray cluster answers at {nobody} .*refused.*: start one"):
            check_cluster(nobody)
        probe.listen()
        check_cluster(nobody)
    with pytest.raises(AppError, match="is no address"):
        check_cluster("ray://somewhere")


def test_a_cluster_finds_the_app_beside_the_run_folder_and_not_in_this_machines_own_temporary_folder(tmp_path):
    with scratch_folder(tmp_path / "runs") as folder:
        assert folder.parent == tmp_path / "runs"
        environment = environment_of_flower(folder / "home", folder / "ray", "10.8.0.1:6379")
        assert environment["RAY_ADDRESS"] == "10.8.0.1:6379"
        assert "RAY_TMPDIR" not in environment
    assert not folder.exists()


@pytest.fixture
def cluster():
    """Two Ray nodes of one CPU each: raylets of their own, as on two machines."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.mark.slow
def test_a_simulation_on_two_ray_nodes_gives_the_tables_of_one_machine(cluster, tmp_path):
    import ray
    from ray._private.state import actors

    network = build_network("squeezenet1_1", num_exits=2, num_classes=62, input_size=28, head="pooled")
    save_network(network, tmp_path / "model", ModelMetadata())
    config = {"num-writers": 5, "clients": 4, "epochs": 1, "model": str(tmp_path / "model")}
    settings = AppSettings.from_run_config({**config, "run-dir": str(tmp_path / "cluster")})
    run_dir = simulation.simulate(settings, ray_address=cluster.address)

    ray.init(address=cluster.address)
    try:
        # Flower starts as many actors as the cluster has CPUs: one on each node
        nodes = {actor["Address"]["NodeID"] for actor in actors().values()}
    finally:
        ray.shutdown()
    assert len(nodes) == 2

    alone = simulation.simulate(replace(settings, paths=replace(settings.paths, run_dir=tmp_path / "alone")))
    assert (run_dir / "exits.parquet").read_bytes() == (alone / "exits.parquet").read_bytes()
    tables = [
        pd.read_parquet(folder / "clients.parquet").drop(columns="seconds_personalise") for folder in (run_dir, alone)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert list(tables[0].status) == ["ok"] * 4
    assert sorted(path.name for path in (run_dir / "clients").iterdir()) == list(tables[0].client_id)
    # what the cluster's machines read is gone again
    assert {path.name for path in tmp_path.iterdir()} == {"model", "cluster", "alone"}
