"""Well-formed files of nonsense: JSON, specifications, settings, tables and stores, with thousands of seeded mutations.

No digest helps here: whoever makes such a file can make its digest too, and files of earlier versions have none.
"""

import copy
import json
import random
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from persephonee.clients.inference.exported_network import read_exported
from persephonee.clients.personalisation.exit_store import ExitStore
from persephonee.clients.personalisation.policy import ExitPolicy
from persephonee.clients.runtime.device_status import read_status
from persephonee.commands.errors import sentence_of
from persephonee.commands.run_settings import read_config
from persephonee.fl_app.client_side.client_node import ClientNode
from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation import resuming
from persephonee.multi_exit.checked_json import parse_json_object
from persephonee.multi_exit.network import NetworkSpec
from persephonee.multi_exit.storage import load_network
from persephonee.server.report import report_page
from persephonee.server.results.run_folder import RunFolder
from persephonee.server.results.table_schemas import SCHEMAS
from tests.commands.command_line import call
from tests.fl_app.test_damaged_files import FEW_EPOCHS
from tests.tiny_cnn import SOURCE

PIECES = [b"{", b"[", b'"', b"\\u", b"\xff", b"1e999", b"NaN", b"9" * 30, b",", b":", b"\x00", b"-"]
FEW, MANY = 150, 3_000
COUNTS = [pytest.param(FEW, id="few"), pytest.param(MANY, id="thousands", marks=pytest.mark.slow)]
FEW_FILES, MANY_FILES = 40, 1_000
FILES = [pytest.param(FEW_FILES, id="few"), pytest.param(MANY_FILES, id="thousands", marks=pytest.mark.slow)]

STRANGE = [
    None, True, False, 0, 1, -1, 2, 7, 2**31, 2**53, -(2**63), 1.5, 1e308, -1e-308, "", "x", "../x", "/", "a\x00b",
    "\x1b[31m", "[" * 50, "0" * 200, "é\ud800", [], {}, [[]], [None], [1, 1, 1], {"a": {}}, ["x"] * 40, [1e308] * 8,
]  # fmt: skip


def places_in(value, path=()):
    """Return the paths to everything in a JSON value."""
    found = [path]
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += places_in(value[key], (*path, key))
    return found


def mutated(value, draw):
    """Return a JSON object with one to three of its values replaced, taken out, doubled or swapped."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        places = [path for path in places_in(value) if path]
        if not places:
            return value
        path = draw.choice(places)
        at = value
        for key in path[:-1]:
            at = at[key]
        change, old = draw.randrange(4), at[path[-1]]
        if change == 0:
            del at[path[-1]]
        elif change == 1 and isinstance(at, list):
            at.insert(draw.randrange(len(at) + 1), copy.deepcopy(draw.choice([*at, *STRANGE])))
        elif change == 2 and isinstance(old, int | float):
            at[path[-1]] = old * draw.choice([-1, 0, 2, 1000])
        else:
            at[path[-1]] = copy.deepcopy(draw.choice(STRANGE))
    return value


def attempt(read):
    """Return whether it was read; a refusal is a sentence, and all else fails the test."""
    try:
        read()
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        assert "\n" not in sentence and "\x1b" not in sentence and len(sentence) < 3_000, sentence
        return False
    return True


def without_digest(path):
    value = json.loads(path.read_text())
    value.pop("sha256", None)
    return value


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_json(count):
    draw, good = random.Random(0), json.dumps({"a": [1, 2.5, None], "b": {"c": "text", "d": [[], {}]}}).encode()
    taken = 0
    for _ in range(count):
        content = bytearray(good)
        for _ in range(draw.randint(1, 5)):
            place = draw.randrange(len(content))
            content[place : place + draw.randint(0, 3)] = draw.choice(PIECES)
        try:
            value = parse_json_object(bytes(content))
        except ValueError:
            continue
        assert isinstance(value, dict)
        taken += 1
    assert taken < count / 2


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_specifications(model, count):
    draw, good = random.Random(1), without_digest(model / "network.json")
    spec = json.loads(json.dumps(good["spec"]))
    assert attempt(lambda: NetworkSpec.from_json(json.dumps(spec)))
    read = [attempt(lambda: NetworkSpec.from_json(json.dumps(mutated(spec, draw)))) for _ in range(count)]
    assert not all(read)


@pytest.mark.parametrize("count", FILES)
def test_mutated_models(model, count):
    draw, path = random.Random(2), model / "network.json"
    good = without_digest(path)
    for _ in range(count):
        path.write_text(json.dumps(mutated(good, draw)))
        attempt(lambda: load_network(model, (SOURCE,)))


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_settings_of_a_run_and_of_a_device(settings, device_node, tmp_path, count, monkeypatch):
    monkeypatch.setattr("persephonee.fl_app.client_side.client_node.in_simulation", lambda: False)
    draw, good, node = random.Random(3), settings.to_run_config(), device_node("u0", 1).node_config
    (tmp_path / "checkpoint").mkdir()
    for _ in range(count):
        odd = mutated(dict(good), draw)
        attempt(lambda odd=odd: AppSettings.from_run_config(odd))
        (tmp_path / "checkpoint" / "settings.json").write_text(json.dumps(odd))
        attempt(lambda: AppSettings.from_run_config(resuming.kept_config(tmp_path)))
        (tmp_path / "config.json").write_text(json.dumps(odd))
        attempt(lambda: AppSettings.from_run_config(read_config(tmp_path / "config.json")))
        attempt(lambda: ClientNode.of(mutated(dict(node), draw), AppSettings(), run_id=0))


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_policies(count):
    draw = random.Random(4)
    good = ExitPolicy(threshold=0.8, exits_in_use=(0, 2), num_exits=3).to_json()
    for _ in range(count):
        try:
            policy = ExitPolicy.from_json(mutated(good, draw))
        except (ValueError, TypeError, KeyError):
            continue
        assert 0 <= policy.threshold <= 1 and all(0 <= exit < policy.num_exits for exit in policy.exits_in_use)


@pytest.mark.parametrize("count", FILES)
def test_mutated_stores(model, data, tmp_path, count):
    words = ("--dataset", "parquet", "--data-path", data, "--user", "u0", "--store", tmp_path / "S", *FEW_EPOCHS)
    assert call("personalise", "--model", model, *words).exit_code == 0
    draw, path = random.Random(5), tmp_path / "S" / "state.json"
    good, network = without_digest(path), load_network(model, (SOURCE,))[0]
    backbone, own = network.backbone_fingerprint, network.exit_state()
    for _ in range(count):
        path.write_text(json.dumps(mutated(good, draw)))
        attempt(lambda: ExitStore(tmp_path / "S").load(backbone, own, "u0"))
        attempt(lambda: ExitStore(tmp_path / "S").known_parts())


@pytest.mark.parametrize("count", FILES)
def test_mutated_descriptions_of_an_export(tmp_path, count):
    draw = random.Random(6)
    step = {"exit": 0, "stage": f"stage-0-{'a' * 12}.onnx", "head": f"head-0-{'b' * 12}.onnx"}
    last = {"exit": 1, "stage": f"stage-1-{'c' * 12}.onnx", "head": None}
    policy = ExitPolicy(threshold=0.8, exits_in_use=(0,), num_exits=1).to_json()
    good = {"format": 1, "policy": policy, "input_shape": [1, 16, 16], "num_classes": 3, "class_names": [], "round": 1}
    good |= {"client_id": "u0", "backbone_fingerprint": "d" * 64, "steps": [step, last]}
    (tmp_path / "policy.json").write_text(json.dumps(good))
    assert read_exported(tmp_path).files
    for _ in range(count):
        (tmp_path / "policy.json").write_text(json.dumps(mutated(good, draw)))
        attempt(lambda: read_exported(tmp_path))


def strange_table(schema, draw):
    """Return a table of a few rows, with a column of another name, type or content."""
    columns = {}
    for field in schema:
        kinds = [pa.array(draw.choices([1, 0, -5, 2**31 - 1, None], k=3), pa.int64())]
        numbers, words = (
            [0.5, float("nan"), float("inf"), 1e308, None],
            ["ok", "", "\x1b[31m", "<b>", "after"],
        )
        kinds += [pa.array(draw.choices(numbers, k=3), pa.float64()), pa.array(draw.choices([*words, None], k=3))]
        kinds += [pa.array([[1], None, [2**31 - 1, None]], pa.list_(pa.int64())), pa.nulls(3)]
        fitting = [kind for kind in kinds if kind.type == field.type] or kinds[:1]
        columns[field.name if draw.random() > 0.02 else "x"] = draw.choice(fitting if draw.random() > 0.15 else kinds)
    return pa.table(columns)


@pytest.mark.parametrize("count", FILES)
def test_mutated_tables(tmp_path, monkeypatch, count):
    monkeypatch.setattr(report_page, "draw_figures", lambda *_: [])
    draw, run = random.Random(7), RunFolder.create(tmp_path / "run", {"seed": 0, "versions": {}}).path
    for _ in range(count):
        for name, schema in SCHEMAS.items():
            pq.write_table(strange_table(schema, draw), run / f"{name}.parquet")
        done = call("report", run)
        assert done.exit_code in (0, 2) and "\x1b" not in done.output, done.exception


@pytest.mark.parametrize("count", FILES)
def test_mutated_databases_of_devices(model, data, tmp_path, count):
    import sqlite3

    eager = ("--min-new-samples", 12, "--min-calibration", 2, "--power", "always", "--every", 60, *FEW_EPOCHS)
    words = ("--dataset", "parquet", "--data-path", data, "--user", "u0", "--store", tmp_path / "S", *eager)
    assert call("device", "run", "--model", model, *words).exit_code == 0
    draw = random.Random(8)
    for _ in range(count):
        shutil.rmtree(tmp_path / "T", ignore_errors=True)
        shutil.copytree(tmp_path / "S", tmp_path / "T")
        connection = sqlite3.connect(tmp_path / "T" / "device.sqlite")
        # as an earlier version left it: without digests
        for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            connection.execute(f"DROP TRIGGER {trigger}")
        connection.execute("DROP TABLE digests")
        connection.execute("PRAGMA user_version = 1")
        facts = dict(connection.execute("SELECT name, value FROM facts"))
        odd = mutated({name: json.loads(value) for name, value in facts.items()}, draw)
        connection.execute("DELETE FROM facts")
        connection.executemany("INSERT INTO facts VALUES (?, ?)", [(n, json.dumps(v)) for n, v in odd.items()])
        if draw.random() < 0.5:
            connection.execute("UPDATE events SET details = ?, wall = ?", (draw.choice(["[", "[]", "{}"]), 1e300))
        connection.commit()
        connection.close()
        attempt(lambda: read_status(tmp_path / "T").as_json())
