import importlib
import json
import subprocess
import sys
import time
import tomllib

import pytest
import yaml

from persephonee.data_partitions.sources.parquet_users import ParquetUsers
from persephonee.fl_app.client_side.client_node import ClientNode
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation.scratch import scratch_folder
from persephonee.fl_app.simulation.superlink import SuperLink
from persephonee.fl_app.template.new_app import write_new_app
from persephonee.multi_exit.building import build_network


@pytest.fixture
def app(tmp_path, monkeypatch):
    folder, package = write_new_app(tmp_path / "my-shapes")
    assert package == "my_shapes"
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def test_the_settings_of_a_new_app_are_run_config_keys_and_fit(app):
    config = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
    settings = AppSettings.from_run_config(config)
    assert settings.sources == ("my_shapes.cnn",)
    assert settings.data.data_path == app / "users.parquet"


def test_its_cnn_can_be_cut_for_its_users(app):
    users = importlib.import_module("my_shapes.users")
    data = ParquetUsers(users.write(app / "users.parquet"), user_column="user", label_column="label")
    assert list(data.client_ids) == users.USERS
    assert set(data.class_names) == set(users.CLASSES)
    network = build_network(
        "my_shapes.cnn:build",
        num_exits=2,
        num_classes=data.num_classes,
        in_channels=data.image_shape[0],
        input_size=data.image_shape[1],
        allowed=("my_shapes.cnn",),
    )
    assert network.input_shape == data.image_shape


def test_its_components_are_persephonees_own_apps(app):
    for side, place in (("server", "server_side.server_app"), ("client", "client_side.client_app")):
        ours = importlib.import_module(f"persephonee.fl_app.{place}").app
        assert importlib.import_module(f"my_shapes.{side}_app").app is ours


def test_the_compose_file_is_yaml_of_a_superlink_and_two_supernodes_with_tls(app):
    services = yaml.safe_load((app / "deploy" / "compose.yaml").read_text())["services"]
    assert services.keys() == {"superlink", "supernode-1", "supernode-2"}
    link = services["superlink"]["command"]
    assert {"--ssl-certfile=/federation/server.crt", "--enable-supernode-auth"} <= set(link)
    assert "--insecure" not in link
    for number, user in ((1, "user-05"), (2, "user-07")):
        command = services[f"supernode-{number}"]["command"]
        assert "--root-certificates=/federation/ca.crt" in command
        words = command[command.index("--node-config") + 1].split()
        config = {key: value.strip('"') for key, value in (word.split("=", 1) for word in words)}
        node = ClientNode.of(config, AppSettings(), run_id=1)
        assert (node.client_id, node.sources) == (user, ("my_shapes.cnn",))
        # each file that a command names lies in a volume
        mounted = {volume.split(":")[1] for volume in services[f"supernode-{number}"]["volumes"]}
        assert {"/federation/ca.crt", f"/keys/{user}", f"/users/{user}.parquet"} < mounted


@pytest.mark.parametrize("name", ["My App", "1st", "persephonee", "json", "a--b", "class", "x" * 41])
def test_a_name_that_no_app_can_have_is_refused(tmp_path, name):
    with pytest.raises(AppError, match="take"):
        write_new_app(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(AppError, match="not empty"):
        write_new_app(tmp_path / "mine")


@pytest.mark.slow
def test_flower_runs_a_new_app_from_its_folder(app):
    subprocess.run([sys.executable, "-m", "my_shapes.users"], cwd=app, check=True)
    status = app / "runs" / "first" / "status.json"
    with scratch_folder(None) as scratch, SuperLink(scratch, app / "log.txt") as superlink:
        run = superlink.start_run(app, 4)
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline and not superlink.ending_of(run):
            time.sleep(2)
    assert json.loads(status.read_text())["state"] == "finished", (app / "log.txt").read_text()[-3000:]
    assert (app / "runs" / "first" / "report.html").is_file()
