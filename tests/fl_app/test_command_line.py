import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from fl_app import simulation
from fl_app.command_line import app
from fl_app.errors import AppError
from multi_exit.storage import load_network
from server import pretraining_progress, report_page
from server.run_folder import RunFolder
from tests.tiny_cnn import NAME, SIDE, SOURCE, write_parquet

ROOT = Path(__file__).resolve().parents[2]
VERBS = ("pretrain", "inspect", "simulate", "personalise", "report")
NETWORK = ("--backbone", NAME, "--num-exits", "2", "--head", "pooled")


def call(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words: object) -> str:
    """Call a verb that must end with status 2 and one sentence; return the sentence."""
    result = call(*words)
    assert result.exit_code == 2, result.output
    # log lines begin with the time
    lines = [line for line in result.stderr.splitlines() if not line[:2].isdigit()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert lines[0].endswith((".", "?"))
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[object, ...]:
    path = write_parquet(tmp_path_factory.mktemp("data") / "train.parquet", users=12, samples=40)
    return ("--dataset", "parquet", "--data-path", path)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, data) -> Path:
    out = tmp_path_factory.mktemp("models") / "M"
    result = call("pretrain", *NETWORK, *data, "--out", out, "--epochs", 2, "--batch-size", 32)
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture
def with_model(pretrained, data) -> tuple[object, ...]:
    return ("--model", pretrained, *data, "--sources", SOURCE)


@pytest.fixture
def newcomer(pretrained, data) -> str:
    """A user whom the model was not trained on."""
    trained_on = load_network(pretrained, (SOURCE,))[1].trained_on
    return min({f"u{user:02d}" for user in range(12)} - set(trained_on))


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)])
def test_every_verb_explains_itself(words):
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert "Usage: persephonee" in result.output
    assert all(verb in result.output for verb in (VERBS if not words else ("--seed",)))


def test_pretrain_keeps_users_back_and_records_whom_it_used(pretrained):
    network, metadata = load_network(pretrained, (SOURCE,))
    # 12 users, a third of them kept back; one of the others validates
    assert len(metadata.trained_on) == 8
    assert len(metadata.settings["validated_on"]) == 1
    assert set(metadata.settings["validated_on"]) < set(metadata.trained_on)
    assert [record["epoch"] for record in metadata.history] == [1, 2]
    assert all(len(record["validation_accuracy"]) == network.num_exits + 1 for record in metadata.history)
    assert metadata.dataset == "parquet"
    assert sorted(path.name.split("-")[0] for path in pretrained.iterdir()) == ["network.json", "weights"]


@pytest.mark.parametrize(("option", "trained"), [("3", 9), ("0.5", 6), ("0", 12)])
def test_pretrain_keeps_back_as_many_users_as_it_is_told(tmp_path, data, option, trained):
    words = ("--epochs", 1, "--max-samples", 40, "--batch-size", 32, "--personal-users", option)
    assert call("pretrain", *NETWORK, *data, "--out", tmp_path / "M", *words).exit_code == 0
    assert len(load_network(tmp_path / "M", (SOURCE,))[1].trained_on) == trained


def test_pretrain_prints_the_accuracy_of_each_exit_and_a_line_per_epoch(tmp_path, data):
    words = ("--epochs", 1, "--max-writers", 4, "--batch-size", 32)
    result = call("pretrain", *NETWORK, *data, "--out", tmp_path / "M", *words)
    assert "accuracy" in result.stdout
    assert f"{tmp_path / 'M'}: {NAME}, 2 exits, trained on 120 samples" in result.stdout
    assert "epoch 1: loss" in result.stderr
    assert len(load_network(tmp_path / "M", (SOURCE,))[1].trained_on) == 4


def test_an_interrupted_pretrain_ends_with_130_and_resumes_to_the_same_model(tmp_path, data, monkeypatch):
    words = ("pretrain", *NETWORK, *data, "--epochs", 2, "--batch-size", 32, "--max-writers", 5)
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
    assert [row["stage"] for row in second["exits"]] == ["before"] * 3 + ["after"] * 3


def test_personalise_is_the_same_again_with_the_same_seed(tmp_path, with_model, newcomer):
    def report(store: str, seed: int) -> dict:
        words = ("--user", newcomer, "--store", tmp_path / store, "--epochs", 1, "--seed", seed, "--json")
        values = json.loads(call("personalise", *with_model, *words).stdout)
        return {name: value for name, value in values.items() if not name.startswith("seconds")}

    assert report("a", 3) == report("b", 3)
    assert report("c", 4) != report("a2", 3)


def test_personalise_works_where_flower_ray_and_matplotlib_are_missing(tmp_path, with_model, newcomer):
    words = ["personalise", *with_model, "--user", newcomer, "--store", tmp_path / "S", "--epochs", 1]
    script = (
        "import sys\n"
        "for name in ('flwr', 'ray', 'matplotlib', 'jinja2'): sys.modules[name] = None\n"
        "import tests.tiny_cnn\n"
        "from fl_app.command_line import main\n"
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
    words = "--clients 7 --rounds 3 --run-dir R --labels 0.25 --drop-tolerance 0.02 --seed 5 --epochs 2 --overwrite"
    settings = settings_of_simulate(monkeypatch, *with_model, *words.split())
    assert (settings.rounds.clients, settings.rounds.num_server_rounds, settings.seed) == (7, 3, 5)
    assert (settings.places.run_dir, settings.places.overwrite, settings.places.resume) == (Path("R"), True, False)
    assert settings.places.model == with_model[1]
    assert settings.data.dataset == "parquet"
    assert settings.split.labels == 0.25
    assert (settings.personalisation.drop_tolerance, settings.personalisation.epochs) == (0.02, 2)
    assert (settings.personalisation.weights.alpha, settings.personalisation.weights.beta) == (1.0, 1.0)


def test_simulate_passes_the_options_of_sharing_on(monkeypatch):
    words = "--share-exits --share-dtype float16 --strategy krum --malicious-clients 1 --unseen-share 0.25 --clients 8"
    more = "--proximal-mu 0.1 --dp-noise-multiplier 0.5 --dp-noise-at clients --sharing-share 0.9"
    settings = settings_of_simulate(monkeypatch, *words.split(), *more.split())
    sharing, privacy = settings.sharing, settings.privacy
    assert (sharing.share_exits, sharing.share_dtype, sharing.strategy) == (True, "float16", "krum")
    assert (sharing.malicious_clients, sharing.sharing_share, settings.rounds.unseen_share) == (1, 0.9, 0.25)
    assert (privacy.dp_noise_multiplier, privacy.dp_noise_at) == (0.5, "clients")
    assert settings.personalisation.proximal_mu == 0.1


def test_noise_over_figures_alone_is_refused():
    assert "covers shared exits, and none are shared" in refused("simulate", "--dp-noise-multiplier", 1)


def test_simulate_resumes_the_run_that_it_is_pointed_to(monkeypatch):
    places = settings_of_simulate(monkeypatch, "--resume", "R").places
    assert (places.run_dir, places.resume, places.overwrite) == (Path("R"), True, False)


def test_simulate_without_labels_distils(monkeypatch):
    weights = settings_of_simulate(monkeypatch, "--labels", "none").personalisation.weights
    assert (weights.alpha, weights.beta, weights.gamma) == (0.0, 1.0, 0.0)


def test_simulate_without_a_model_makes_a_small_one(monkeypatch):
    network = settings_of_simulate(monkeypatch, "--pretrain-writers", 9, "--pretrain-epochs", 2).pretraining
    assert (network.users.max_users, network.training.epochs, network.weights) == (9, 2, None)


@pytest.fixture
def run(tmp_path, with_model, newcomer) -> Path:
    """A run folder with one round of one user."""
    words = ("--user", newcomer, "--store", tmp_path / "S", "--epochs", 1, "--json")
    report = json.loads(call("personalise", *with_model, *words).stdout)
    folder = RunFolder.create(tmp_path / "run", {"dataset": "parquet"})
    exits = [{**row, "round": 1, "client_id": newcomer} for row in report.pop("exits")]
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


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("", "expected a verb"),
        ("fly", "No such command 'fly'"),
        ("inspect --wings 2", "No such option '--wings'"),
        ("inspect", "either the folder of a model or --backbone"),
        ("inspect --backbone resnet5000", "resnet5000"),
        ("inspect --backbone vit_b_16 --input-size 224", "vit_b_16 has no places"),
        ("inspect --backbone mobilenet_v2 --num-exits 99", "num_exits=99"),
        ("inspect --backbone mobilenet_v2 --num-exits 0", "num_exits=0"),
        ("inspect --backbone mobilenet_v2 --num-classes 1", "num_classes=1"),
        ("inspect --backbone mobilenet_v2 --input-size 2", "input_size=2"),
        ("inspect --backbone mobilenet_v2 --in-channels 2", "in_channels=2"),
        ("inspect --backbone mobilenet_v2 --head deep", "head='deep'"),
        ("inspect nowhere", "nowhere is no model folder"),
        ("report nowhere", "nowhere is no folder"),
        ("personalise --user 1 --store S", "Missing option '--model'"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6", "Missing option '--out'"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --epochs 0", "epochs=0"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --learning-rate -1", "learning_rate=-1"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --validation-fraction 1.5", "validation_fraction=1.5"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --personal-users 2.5", "personal_users=2.5"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --mean 1,x", "--mean 1,x"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --dataset stars", "stars"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --dataset parquet", "needs --data-path"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --dataset parquet --data-path nowhere", "nowhere"),
        ("pretrain --backbone mobilenet_v2 --num-exits 6 --out M --num-writers 1", "two are needed"),
        ("simulate --clients x", "'x' is not a valid integer"),
        ("simulate --clients 0", "--clients 0"),
        ("simulate --rounds 0", "num-server-rounds=0"),
        ("simulate --drop-tolerance 1.5", "drop_tolerance=1.5"),
        ("simulate --drop-tolerance nan", "drop_tolerance=nan"),
        ("simulate --cost joules", "cost=joules"),
        ("simulate --test-fraction -0.1", "test_fraction=-0.1"),
        ("simulate --labels most", "labels='most'"),
        ("simulate --labels 1.5", "labels='1.5'"),
        ("simulate --alpha 1 --gamma 1", "alpha=1.0 and gamma=1.0 exclude each other"),
        ("simulate --scheme guess", "scheme='guess'"),
        ("simulate --scheme supervised --labels none", "--labels none leaves no label"),
        ("simulate --alpha 1 --labels 0", "--labels 0 leaves no label"),
        ("simulate --resume R --overwrite", "--resume DIR"),
        ("simulate --seed -1", "seed=-1"),
    ],
)
def test_bad_input_ends_in_one_sentence_that_names_it(tmp_path, monkeypatch, words, named):
    monkeypatch.chdir(tmp_path)
    sentence = refused(*words.split()) if words else call().stderr
    assert named in sentence
    assert not list(tmp_path.iterdir())


def test_a_missing_column_a_label_out_of_range_and_a_broken_image_are_named(tmp_path, data):
    pretrain = ("pretrain", *NETWORK, *data, "--out", tmp_path / "M")
    assert "'author'" in refused(*pretrain, "--user-column", "author")
    assert "'kind'" in refused(*pretrain, "--label-column", "kind")
    table = pq.read_table(data[-1])
    wrong = tmp_path / "wrong.parquet"
    pretrain = ("pretrain", *NETWORK, "--dataset", "parquet", "--data-path", wrong, "--out", tmp_path / "M")
    pq.write_table(table.set_column(2, "character", pa.array([-1] * len(table))), wrong)
    assert "the label -1 in row 0" in refused(*pretrain)
    pq.write_table(table.set_column(0, "image", pa.array([b"no picture"] * len(table))), wrong)
    assert "image in row 0" in refused(*pretrain)
    wrong.write_bytes(data[-1].read_bytes()[:-50])
    assert "wrong.parquet" in refused(*pretrain)
    assert not (tmp_path / "M").exists()


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, data, pretrained):
    pretrain = ("pretrain", *NETWORK, *data, "--epochs", 1)
    (tmp_path / "diary.txt").write_text("dear diary")
    assert "something other than a model" in refused(*pretrain, "--out", tmp_path)
    assert "is a file" in refused(*pretrain, "--out", tmp_path / "diary.txt")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in pretrained.iterdir())
    assert "holds a model already" in refused(*pretrain, "--out", pretrained)
    assert "holds a model already" in refused(*pretrain, "--out", pretrained, "--resume")
    assert sorted((path.name, path.stat().st_mtime_ns) for path in pretrained.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["diary.txt"]


def test_a_model_that_is_cut_off_is_named(tmp_path, pretrained):
    copy = shutil.copytree(pretrained, tmp_path / "M")
    weights = next(copy.glob("weights-*"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert weights.name in refused("inspect", copy, "--sources", SOURCE)
    (copy / "network.json").write_text('{"format": ')
    assert "network.json is damaged" in refused("inspect", copy, "--sources", SOURCE)


def test_a_network_of_ones_own_is_built_only_where_it_is_allowed(pretrained):
    assert f"allow '{SOURCE}'" in refused("inspect", pretrained)


def test_a_model_of_other_data_is_refused(tmp_path, with_model, pretrained, newcomer):
    other = ("--model", pretrained, "--sources", SOURCE, "--num-writers", 5)
    sentence = refused("personalise", *other, "--user", "s0w0000", "--store", tmp_path / "S")
    assert "2 classes" in sentence and "62" in sentence


def test_users_whom_the_model_knows_or_who_are_not_there_are_refused(tmp_path, with_model, pretrained, newcomer):
    known = load_network(pretrained, (SOURCE,))[1].trained_on[0]
    words = ("personalise", *with_model, "--store", tmp_path / "S")
    assert f"was trained on user {known}" in refused(*words, "--user", known)
    assert f"no user nobody: take another, such as {newcomer}" in refused(*words, "--user", "nobody")
    assert not (tmp_path / "S").exists()


def test_a_user_with_too_few_samples_is_named(tmp_path, with_model, newcomer):
    words = ("--user", newcomer, "--store", tmp_path / "S", "--min-samples", 41)
    assert f"User {newcomer} has 40 samples" in refused("personalise", *with_model, *words)


def test_a_loss_that_is_no_number_ends_in_a_sentence(tmp_path, data):
    pretrain = ("pretrain", *NETWORK, *data, "--out", tmp_path / "M", "--batch-size", 32)
    assert "The training loss became" in refused(*pretrain, "--learning-rate", "1e30")
    assert not (tmp_path / "M" / "network.json").exists()


def raising(error: Exception):
    def report(**options):
        raise error

    return report


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ModuleNotFoundError("no", name="flwr.app"), 'pip install "persephonee[flower]"'),
        (ModuleNotFoundError("no", name="matplotlib"), 'pip install "persephonee[report]"'),
        (ModuleNotFoundError("no", name="numpy"), "pip install numpy"),
        (RuntimeError("operator torchvision::nms does not exist"), "torch and torchvision do not belong together"),
        (PermissionError(13, "Permission denied", "/somewhere"), "/somewhere: Permission denied."),
        (OSError(28, "No space left on device", "weights"), "weights: No space left on device."),
    ],
)
def test_what_the_machine_lacks_is_said_in_a_sentence(monkeypatch, error, named):
    monkeypatch.setattr(report_page, "draw_report", lambda run: raising(error)())
    assert named in refused("report", "somewhere")


def test_mistakes_of_the_program_show_their_traceback(monkeypatch):
    monkeypatch.setattr(report_page, "draw_report", lambda run: 1 / 0)
    result = call("report", "somewhere")
    assert isinstance(result.exception, ZeroDivisionError)


def test_the_installed_command_says_the_same(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).parent / "persephonee", "report", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and done.stderr.endswith("such as runs/NAME.\n")
    assert done.stderr.count("\n") == 1
