import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

import persephonee.commands.pretrain as pretrain_verb
from persephonee.clients.personalisation.personalise import personalise
from persephonee.commands.application import app
from persephonee.commands.run_settings import DEFAULT_CLIENTS
from persephonee.fl_app.errors import AppError
from persephonee.fl_app.settings.app_settings import AppSettings, RoundSettings
from persephonee.fl_app.simulation import simulate as simulation
from persephonee.multi_exit.checked_json import without_digest
from persephonee.multi_exit.storage import load_network
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.training import pretraining_progress, remaining_time
from tests.commands.command_line import NETWORK, call, refused
from tests.tiny_cnn import NAME, SIDE, SOURCE

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("pretrain", "inspect", "simulate", "personalise", "report", "export", "figures")
GROUPED = (("device", "run"), ("device", "status"), ("device", "enrol"), ("device", "doctor"), ("server", "init"))


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS), *GROUPED])
def test_every_verb_explains_itself(words):
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert "Usage: persephonee" in result.output
    assert all(verb in result.output for verb in (VERBS if not words else ()))
    draws = words[:1] in [(verb,) for verb in ("pretrain", "inspect", "simulate", "personalise", "export", "figures")]
    assert ("--seed" in result.output) == (draws or words == ("device", "run"))


def test_the_version_is_that_of_the_package():
    assert call("--version").stdout == f"persephonee {version('persephonee')}\n"


def test_every_option_of_simulate_that_is_a_setting_has_its_name_and_its_default(monkeypatch):
    command = typer.main.get_command(app).commands["simulate"]
    defaults = {**AppSettings().to_run_config(), "clients": DEFAULT_CLIENTS}
    own = {"resume", "ray-address", "set", "config", "track"}
    options = {p.opts[0].removeprefix("--"): p for p in command.params if p.name not in ("help", "context")}
    assert len(options) <= 22
    for name, option in options.items():
        if name not in own:
            assert (option.default or "") == (defaults[name] or ""), name


def test_options_come_before_set_and_set_before_a_file(monkeypatch, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('epochs = 7\nclients = 9\nlabels = "none"\n')
    words = ("--config", file, "--set", "epochs=6", "--set", "clients=8", "--clients", 7)
    settings = settings_of_simulate(monkeypatch, *words)
    assert (settings.split.labels, settings.personalisation.epochs, settings.rounds.clients) == (0.0, 6, 7)


def test_the_config_of_an_earlier_run_is_a_file_of_settings_even_under_former_names(monkeypatch, tmp_path):
    config = {"num-server-rounds": 4, "max-users": 30, "epochs": 3, "model": "ab12", "versions": {"torch": "2"}}
    config |= {"sources": "evil", "run-dir": "/elsewhere", "overwrite": True, "client-store": "/elsewhere"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    settings = settings_of_simulate(monkeypatch, "--config", tmp_path / "config.json")
    assert (settings.rounds.rounds, settings.pretraining.users.max_users, settings.paths.model) == (4, 30, None)
    # what a stranger's record must not choose
    assert settings.sources == ("torchvision", "timm")
    assert (settings.paths.run_dir, settings.paths.overwrite, settings.paths.client_store) == (None, False, None)


def test_pretrain_keeps_users_back_and_records_whom_it_used(pretrained):
    network, metadata = load_network(pretrained, (SOURCE,))
    # 12 users, a third of them kept back; one of the others validates, and none is left to calibrate beside it
    assert len(metadata.trained_on) == 8
    assert len(metadata.settings["validated_on"]) == 1
    assert set(metadata.settings["validated_on"]) < set(metadata.trained_on)
    assert [record["epoch"] for record in metadata.history] == [1, 2]
    assert all(len(record["validation_accuracy"]) == network.num_exits + 1 for record in metadata.history)
    assert metadata.dataset == "parquet"
    assert sorted(path.name.split("-")[0] for path in pretrained.iterdir()) == ["README.md", "network.json", "weights"]


@pytest.mark.parametrize(("option", "trained"), [("3", 9), ("0.5", 6), ("0", 12)])
def test_pretrain_keeps_back_as_many_users_as_it_is_told(tmp_path, data_text, option, trained):
    words = ("--epochs", 1, "--max-samples", 40, "--batch-size", 32, "--personal-users", option)
    assert call("pretrain", *NETWORK, *data_text, "--out", tmp_path / "M", *words).exit_code == 0
    assert len(load_network(tmp_path / "M", (SOURCE,))[1].trained_on) == trained


def test_pretrain_prints_the_accuracy_of_each_exit_and_a_line_per_epoch(tmp_path, data_text):
    words = ("--epochs", 1, "--max-users", 4, "--batch-size", 32)
    result = call("pretrain", *NETWORK, *data_text, "--out", tmp_path / "M", *words)
    assert "accuracy" in result.stdout
    assert f"{tmp_path / 'M'}: {NAME}, 2 exits, trained on 120 samples" in result.stdout
    assert "epoch 1: loss" in result.stderr
    # 12 users, of whom four are kept back and four calibrate
    metadata = load_network(tmp_path / "M", (SOURCE,))[1]
    assert (len(metadata.trained_on), len(metadata.settings["calibrated_on"])) == (8, 4)
    assert "was measured on 5 users who trained nothing" in " ".join(result.stdout.split())
    pools = {f"{a}-{b}" for a in ("before", "fast", "paper") for b in ("labels", "none")}
    # and after a round against the original network too
    assert set(metadata.risk_pools) == pools | {f"{name}-original" for name in pools if "before" not in name}


def test_an_interrupted_pretrain_ends_with_130_and_resumes_to_the_same_model(tmp_path, data_text, monkeypatch):
    words = ("pretrain", *NETWORK, *data_text, "--epochs", 2, "--batch-size", 32, "--max-users", 5)
    assert call(*words, "--out", tmp_path / "whole").exit_code == 0

    with monkeypatch.context() as patch:
        patch.setattr(pretraining_progress.LogProgress, "epoch_started", interrupt_in(2))
        result = call(*words, "--out", tmp_path / "parts")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (130, "Interrupted.")
    assert "--resume" in refused(*words, "--out", tmp_path / "parts")
    assert call(*words, "--out", tmp_path / "parts", "--resume").exit_code == 0
    whole, parts = (load_network(tmp_path / name, (SOURCE,)) for name in ("whole", "parts"))
    assert whole[0].fingerprint == parts[0].fingerprint
    assert whole[1] == parts[1]


def interrupt_in(number: int):
    def epoch_started(self, epoch, epochs, batches):
        if epoch == number:
            raise KeyboardInterrupt
        self._started = 0.0

    return epoch_started


def test_inspect_prints_the_agreed_json(pretrained):
    result = call("inspect", pretrained, "--json", "--sources", SOURCE)
    table = json.loads(result.stdout)
    assert list(table) == ["backbone", "macs", "params", "exits"]
    columns = {"exit", "share", "macs", "params", "head_macs", "head_params", "at"}
    assert all(set(row) == columns for row in table["exits"])
    assert [row["exit"] for row in table["exits"]] == [0, 1, 2]
    last = table["exits"][-1]
    assert (last["share"], last["macs"], last["params"]) == (1.0, table["macs"], table["params"])
    assert all(row["share"] == pytest.approx(row["macs"] / table["macs"]) for row in table["exits"])


def test_inspect_shows_what_a_cnn_would_become_as_it_shows_the_model(pretrained):
    words = ("--input-size", SIDE, "--num-classes", 2, "--json")
    assert call("inspect", *NETWORK, *words).stdout == call("inspect", pretrained, "--sources", SOURCE, "--json").stdout
    table = call("inspect", *NETWORK, *words[:-1]).stdout
    assert "last" in table and "100.0%" in table


def test_inspect_takes_colour_for_large_images(pretrained):
    small, large = (json.loads(call("inspect", *NETWORK, "--input-size", side, "--json").stdout) for side in (48, 49))
    assert large["params"] - small["params"] == 2 * 8 * 9


def test_personalise_serves_one_user_and_goes_on_from_the_last_round(tmp_path, with_model, newcomer):
    words = ("personalise", *with_model, "--user", newcomer, "--store", tmp_path / "S", "--epochs", 1)
    first = call(*words)
    assert first.exit_code == 0, first.output
    assert f"User {newcomer}, round 1, 12 test samples" in first.stdout
    second = json.loads(call(*words, "--json").stdout)
    assert (second["client_id"], second["round"], second["status"]) == (newcomer, 2, "ok")
    assert [row["stage"] for row in second["exit_metrics"]] == ["before"] * 3 + ["after"] * 3


def test_personalise_says_before_a_long_round_how_long_it_takes(tmp_path, with_model, newcomer, monkeypatch):
    words = ("personalise", *with_model, "--user", newcomer, "--store")
    assert "the round takes" not in call(*words, tmp_path / "short").stderr
    monkeypatch.setattr(remaining_time, "LONG_SECONDS", -1.0)
    assert "the round takes about" in call(*words, tmp_path / "long").stderr


def test_personalise_is_the_same_again_with_the_same_seed(tmp_path, with_model, newcomer):
    def report(store: str, seed: int) -> dict:
        words = ("--user", newcomer, "--store", tmp_path / store, "--epochs", 1, "--seed", seed, "--json")
        values = json.loads(call("personalise", *with_model, *words).stdout)
        return {name: value for name, value in values.items() if not name.startswith("seconds")}

    assert report("a", 3) == report("b", 3)
    assert report("c", 4) != report("a2", 3)


@pytest.fixture
def rounds(monkeypatch) -> list[dict[str, set[bytes]]]:
    """Of each round of `personalise`: the images of each part."""
    done = []

    def noted(network, samples, split, *rest, **more):
        parts = {part: getattr(split, part).tolist() for part in ("train", "calibration", "test")}
        done.append({part: {samples.images[i].tobytes() for i in chosen} for part, chosen in parts.items()})
        return personalise(network, samples, split, *rest, **more)

    monkeypatch.setattr("persephonee.clients.personalisation.personalise.personalise", noted)
    return done


@pytest.mark.parametrize("change", ["another seed", "a sample more", "a larger test part"])
def test_no_later_round_of_personalise_tests_on_what_trained_an_earlier_one(
    tmp_path, with_model, data_text, newcomer, rounds, change
):
    words = ("personalise", *with_model, "--user", newcomer, "--store", tmp_path / "S", "--epochs", 1)
    assert call(*words).exit_code == 0
    more = {"another seed": ("--seed", 1), "a larger test part": ("--test-fraction", 0.5)}.get(change, ())
    if change == "a sample more":
        table = pq.read_table(data_text[-1])
        new = {"image": [np.full((SIDE, SIDE), 7, dtype=np.uint8).tolist()], "writer_id": [newcomer], "character": [0]}
        pq.write_table(pa.concat_tables([table, pa.table(new, schema=table.schema)]), tmp_path / "grown.parquet")
        more = ("--data-path", tmp_path / "grown.parquet")
    again = call(*words, *more)
    assert again.exit_code == 0, again.output
    first, second = rounds
    assert not second["test"] & (first["train"] | first["calibration"])
    assert not second["calibration"] & first["train"]


def test_a_second_round_with_the_same_seed_is_as_it_is_where_no_part_is_remembered(tmp_path, with_model, newcomer):
    words = ("personalise", *with_model, "--user", newcomer, "--epochs", 1, "--json", "--store")
    assert call(*words, tmp_path / "S").exit_code == 0
    forgetful = shutil.copytree(tmp_path / "S", tmp_path / "T") / "state.json"
    # nor a digest of what state.json holds
    state = without_digest(json.loads(forgetful.read_text()))
    # at most 40 different images of 8 bytes in base64; stores of earlier versions have none
    assert 0 < len(state.pop("parts")) <= 428
    forgetful.write_text(json.dumps(state))
    reports = [json.loads(call(*words, tmp_path / store).stdout) for store in ("S", "T")]
    assert reports[0]["round"] == 2
    assert {**reports[0], "seconds_personalise": 0} == {**reports[1], "seconds_personalise": 0}
    assert len({path.name for store in ("S", "T") for path in (tmp_path / store).glob("exits-*")}) == 1


def test_personalise_works_where_flower_ray_and_matplotlib_are_missing(tmp_path, with_model, newcomer):
    words = ["personalise", *with_model, "--user", newcomer, "--store", tmp_path / "S", "--epochs", 1]
    script = (
        "import sys\n"
        "for name in ('flwr', 'ray', 'matplotlib', 'jinja2'): sys.modules[name] = None\n"
        "import tests.tiny_cnn\n"
        "from persephonee.commands.application import main\n"
        "main()"
    )
    command = [sys.executable, "-c", script, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "round 1" in done.stdout


def settings_of_simulate(monkeypatch, *words: object):
    """Return what `simulate` would run."""
    caught = []

    def stop(settings, *more):
        caught.append(settings)
        raise AppError("that is all.")

    monkeypatch.setattr(simulation, "simulate", stop)
    assert refused("simulate", *words) == "Error: that is all."
    return caught[0]


def test_simulate_passes_its_options_on(monkeypatch, with_model):
    words = "--clients 7 --rounds 3 --run-dir R --labels 0.25 --drop-tolerance 0.02 --seed 5 --set epochs=2 --overwrite"
    settings = settings_of_simulate(monkeypatch, *with_model, *words.split())
    assert (settings.rounds.clients, settings.rounds.rounds, settings.seed) == (7, 3, 5)
    assert (settings.paths.run_dir, settings.paths.overwrite, settings.paths.resume) == (Path("R"), True, False)
    assert settings.paths.model == with_model[1]
    assert settings.data.dataset == "parquet"
    assert settings.split.labels == 0.25
    assert (settings.personalisation.drop_tolerance, settings.personalisation.epochs) == (0.02, 2)
    assert (settings.personalisation.weights.alpha, settings.personalisation.weights.beta) == (1.0, 1.0)


def test_simulate_waits_as_long_as_it_is_told_and_else_as_long_as_a_run_configuration_says(monkeypatch):
    told = settings_of_simulate(monkeypatch, "--set", "round-deadline=90", "--set", "node-wait=7.5").rounds
    assert (told.round_deadline, told.node_wait) == (90.0, 7.5)
    rounds, defaults = settings_of_simulate(monkeypatch).rounds, RoundSettings()
    assert (rounds.round_deadline, rounds.node_wait) == (defaults.round_deadline, defaults.node_wait)


def test_simulate_passes_the_options_of_sharing_on(monkeypatch):
    words = "--share-exits --set share-dtype=float16 --set strategy=krum --set malicious-clients=1 --clients 8"
    more = "--set held-out-fraction=0.25 --set proximal-mu=0.1 --set dp-noise-multiplier=0.5 --set dp-noise-at=clients"
    more += " --set sharing-fraction=0.9"
    settings = settings_of_simulate(monkeypatch, *words.split(), *more.split())
    sharing, privacy = settings.sharing, settings.privacy
    assert (sharing.share_exits, sharing.share_dtype, sharing.strategy) == (True, "float16", "krum")
    assert (sharing.malicious_clients, sharing.sharing_fraction, settings.rounds.held_out_fraction) == (1, 0.9, 0.25)
    assert (privacy.dp_noise_multiplier, privacy.dp_noise_at) == (0.5, "clients")
    assert settings.personalisation.proximal_mu == 0.1


def test_noise_over_figures_alone_is_refused():
    assert "covers shared exits, and none are shared" in refused("simulate", "--set", "dp-noise-multiplier=1")


def test_simulate_resumes_the_run_that_it_is_pointed_to(monkeypatch):
    paths = settings_of_simulate(monkeypatch, "--resume", "R").paths
    assert (paths.run_dir, paths.resume, paths.overwrite) == (Path("R"), True, False)


def test_simulate_without_labels_distils(monkeypatch):
    weights = settings_of_simulate(monkeypatch, "--labels", "none").personalisation.weights
    assert (weights.alpha, weights.beta, weights.gamma) == (0.0, 1.0, 0.0)


def test_simulate_without_a_model_makes_a_small_one(monkeypatch):
    network = settings_of_simulate(
        monkeypatch, "--set", "pretrain-max-users=9", "--set", "pretrain-epochs=2"
    ).pretraining
    assert (network.users.max_users, network.training.epochs, network.weights) == (9, 2, None)


@pytest.fixture
def run(tmp_path, with_model, newcomer) -> Path:
    """A run folder with one round of one user."""
    words = ("--user", newcomer, "--store", tmp_path / "S", "--epochs", 1, "--json")
    report = json.loads(call("personalise", *with_model, *words).stdout)
    folder = RunFolder.create(tmp_path / "run", {"dataset": "parquet"})
    exits = [{**row, "round": 1, "client_id": newcomer} for row in report.pop("exit_metrics")]
    report.pop("mean_macs_before", None)
    client = {**report, "bytes_up": 100, "bytes_down": 50}
    folder.append_round(exits, [client], {"round": 1, "replies": 1, "failures": 0, "seconds": 1.0})
    return tmp_path / "run"


def test_report_draws_the_page_again_from_the_tables(run):
    result = call("report", run)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"Report: {run / 'report.html'}"
    page = (run / "report.html").read_bytes()
    (run / "report.html").unlink()
    assert call("report", run).exit_code == 0
    assert (run / "report.html").read_bytes() == page


def test_pretrain_takes_few_users_unless_told_and_says_so(tmp_path, data_text, monkeypatch):
    monkeypatch.setattr(pretrain_verb, "FEW_USERS", 4)
    words = ("--epochs", 1, "--batch-size", 32, "--max-samples", 40, "--personal-users", 2, "--calibration-users", 0)
    few = call("pretrain", *NETWORK, *data_text, "--out", tmp_path / "few", *words)
    assert "Training on 4 of 12 users at most; --max-users 0 takes all." in few.stderr
    assert len(load_network(tmp_path / "few", (SOURCE,))[1].trained_on) == 4
    every = call("pretrain", *NETWORK, *data_text, "--out", tmp_path / "all", *words, "--max-users", 0)
    assert every.exit_code == 0 and "Training on" not in every.stderr
    assert len(load_network(tmp_path / "all", (SOURCE,))[1].trained_on) == 10
