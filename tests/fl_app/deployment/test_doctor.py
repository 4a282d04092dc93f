"""`device doctor`: each thing that can be wrong is found, and has a remedy."""

import contextlib
import json
import socket
import ssl
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime

import pytest

from persephonee.fl_app.deployment import doctor, doctor_link
from persephonee.fl_app.deployment.certificates import make_certificates
from persephonee.fl_app.deployment.doctor_device import check_backbones, check_duplicates, check_key, check_node_config
from persephonee.fl_app.deployment.doctor_link import check_link
from persephonee.fl_app.deployment.doctor_machine import (
    bits_finding,
    check_machine,
    disk_finding,
    flower_finding,
    memory_finding,
    python_finding,
    runtime_finding,
    torch_finding,
)
from persephonee.fl_app.deployment.findings import OK, WARNING, WRONG, ok
from persephonee.fl_app.errors import AppError
from tests.commands.command_line import call


def by_check(findings) -> dict:
    assert all(bool(finding.remedy) == (finding.level != OK) for finding in findings)
    return {finding.check: finding for finding in findings}


class Server:
    """A TLS server that tells the time, shifted by some seconds."""

    def __init__(self, folder, hosts=("localhost", "127.0.0.1"), shift_s=0.0) -> None:
        made = make_certificates(hosts, days=100)
        for name, content in (("ca.crt", made.ca_certificate), ("s.key", made.server_key)):
            (folder / name).write_bytes(content)
        (folder / "s.crt").write_bytes(made.server_certificate)
        self.root = folder / "ca.crt"
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "s.crt", folder / "s.key")
        self._shift_s = shift_s
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                return
            plain.settimeout(5)
            with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
                if connection.recv(4096):
                    date = format_datetime(datetime.fromtimestamp(time.time() + self._shift_s, UTC), usegmt=True)
                    connection.sendall(f"HTTP/1.1 200 OK\r\nDate: {date}\r\nContent-Length: 0\r\n\r\n".encode())

    def stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture
def serve(tmp_path):
    servers = []

    def start(**more) -> Server:
        folder = tmp_path / f"server-{len(servers)}"
        folder.mkdir()
        servers.append(Server(folder, **more))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def test_a_good_link_has_nothing_to_complain_of(serve):
    server = serve()
    found = by_check(check_link(f"127.0.0.1:{server.port}", server.root))
    assert {check: finding.level for check, finding in found.items()} == {
        "root certificate": OK,
        "reachability": OK,
        "certificate": OK,
        "clock": OK,
    }


def test_a_certificate_for_another_name_is_named_with_the_names_that_it_is_for(serve):
    server = serve(hosts=("fl.example.org", "10.8.0.1"))
    finding = by_check(check_link(f"127.0.0.1:{server.port}", server.root))["certificate"]
    assert (finding.level, finding.found) == (WRONG, "is for fl.example.org, 10.8.0.1, not for 127.0.0.1")
    assert "--host 127.0.0.1" in finding.remedy


def test_a_server_of_another_authority_is_not_trusted(serve):
    server, other = serve(), serve()
    finding = by_check(check_link(f"localhost:{server.port}", other.root))["certificate"]
    assert finding.level == WRONG
    assert "not from the authority" in finding.found


@pytest.mark.parametrize(
    ("shift_s", "level", "side"), [(-60, WRONG, "ahead"), (60, OK, "behind"), (400, WRONG, "behind")]
)
def test_a_clock_is_wrong_where_flower_would_refuse_its_signatures(serve, shift_s, level, side):
    server = serve(shift_s=shift_s)
    finding = by_check(check_link(f"127.0.0.1:{server.port}", server.root))["clock"]
    assert finding.level == level
    assert f"s {side}" in finding.found


def test_a_clock_before_the_certificates_or_after_them_is_found_without_a_network(serve):
    server = serve()
    address = f"127.0.0.1:{server.port}"
    # a Raspberry Pi without a battery wakes up in the past
    assert by_check(check_link(address, server.root, lambda: time.time() - 5 * 86400))["clock"].level == WRONG
    late = by_check(check_link(address, server.root, lambda: time.time() + 99 * 86400))
    assert late["root certificate"].level == WARNING
    gone = by_check(check_link(address, server.root, lambda: time.time() + 101 * 86400))
    assert gone["root certificate"].level == WRONG


def test_a_server_that_is_not_there_or_speaks_no_tls_is_told_apart(serve, monkeypatch):
    server = serve()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        monkeypatch.setattr(doctor_link, "TIMEOUT_S", 0.5)
        assert by_check(check_link(f"127.0.0.1:{port}", server.root))["TLS"].level == WRONG
    refused = by_check(check_link(f"127.0.0.1:{port}", server.root))["reachability"]
    assert (refused.level, refused.found) == (WRONG, f"nothing listens on 127.0.0.1:{port}")


def test_what_is_no_certificate_is_no_root(serve, tmp_path):
    server = serve()
    (tmp_path / "text").write_text("hello")
    (finding,) = check_link(f"127.0.0.1:{server.port}", tmp_path / "text")
    assert (finding.check, finding.level) == ("root certificate", WRONG)


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (python_finding((3, 10, 12)), WRONG),
        (python_finding((3, 11, 0)), OK),
        (bits_finding(32, "armv7l"), WRONG),
        # a 32-bit system on a 64-bit kernel
        (bits_finding(32, "aarch64"), WRONG),
        (bits_finding(64, "aarch64"), OK),
    ],
)
def test_python_and_its_word_size_are_judged(finding, level):
    assert by_check([finding])[finding.check].level == level


@pytest.mark.parametrize(
    ("total", "available", "swap", "level"),
    [(512, 400, 4096, WRONG), (1024, 200, 0, WARNING), (1024, 700, 512, WARNING), (4096, 3000, 0, OK)],
)
def test_memory_is_judged_with_swap(tmp_path, total, available, swap, level):
    lines = (f"{key}: {mib * 1024} kB" for key, mib in
             (("MemTotal", total), ("MemAvailable", available), ("SwapFree", swap)))  # fmt: skip
    (tmp_path / "meminfo").write_text("\n".join(lines))
    assert by_check([memory_finding(tmp_path / "meminfo")])["memory"].level == level


def test_without_torch_a_board_of_half_a_gigabyte_will_do_and_models_need_their_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr("persephonee.fl_app.deployment.doctor_machine.has_torch", lambda: False)
    found = by_check(check_machine(tmp_path))
    assert list(found) == ["Python", "64-bit", "memory", "disk", "ONNX Runtime", "Flower"]
    assert "CPU" in found["ONNX Runtime"].found and "models need their graphs" in found["ONNX Runtime"].found
    (tmp_path / "meminfo").write_text("MemTotal: 500000 kB\nMemAvailable: 450000 kB\nSwapFree: 0 kB")
    assert by_check([memory_finding(tmp_path / "meminfo", with_torch=False)])["memory"].level == WARNING
    monkeypatch.setattr("persephonee.fl_app.deployment.doctor_machine._RUNTIME", "import os; os.kill(os.getpid(), 4)")
    assert runtime_finding().level == WRONG


def test_a_disk_is_judged_where_the_store_will_be(tmp_path, monkeypatch):
    store = tmp_path / "not" / "yet"
    assert f"free in {tmp_path}" in disk_finding(store).found
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100 * 2**20}))
    assert disk_finding(store).level == WRONG
    monkeypatch.setattr("os.access", lambda path, how: False)
    assert "cannot be written" in disk_finding(store).found


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("raise RuntimeError('operator torchvision::nms does not exist')", "torchvision::nms"),
        ("import os; os.kill(os.getpid(), 4)", "signal 4"),
    ],
)
def test_a_torch_that_does_not_load_is_found_even_where_it_ends_python(monkeypatch, script, text):
    monkeypatch.setattr("persephonee.fl_app.deployment.doctor_machine._TORCH", script)
    finding = by_check([torch_finding()])["torch"]
    assert finding.level == WRONG
    assert text in finding.found


def test_the_version_of_flower_is_judged(monkeypatch):
    assert flower_finding().level == OK
    monkeypatch.setattr("persephonee.fl_app.deployment.doctor_machine.version", lambda name: "1.39.2")
    assert by_check([flower_finding()])["Flower"].level == WRONG


def test_a_machine_has_a_finding_for_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("persephonee.fl_app.deployment.doctor_machine.torch_finding", lambda: ok("torch", "there"))
    assert list(by_check(check_machine(tmp_path))) == [
        "Python",
        "64-bit",
        "memory",
        "disk",
        "ONNX Runtime",
        "torch",
        "Flower",
    ]


def test_a_source_of_backbones_that_is_not_installed_is_named():
    assert by_check(check_backbones(("torchvision",)))["backbones"].level == OK
    missing = by_check(check_backbones(("torchvision", "no_such_module_of_mine")))["backbones"]
    assert (missing.level, "no_such_module_of_mine" in missing.remedy) == (WRONG, True)


def node_config(tmp_path, **more) -> dict:
    return {"client-id": "s0w0000", "store": str(tmp_path), "dataset": "synthetic-writers", "num-writers": 3, **more}


def test_a_node_configuration_is_read_as_the_client_would(tmp_path):
    good = by_check(check_node_config(node_config(tmp_path)))
    assert [finding.level for finding in good.values()] == [OK] * 3
    assert "stay on it" in good["node configuration"].found
    assert "samples of s0w0000" in good["data"].found
    stranger = by_check(check_node_config(node_config(tmp_path, **{"client-id": "ada"})))
    assert stranger["data"].level == WRONG
    typo = by_check(check_node_config(node_config(tmp_path, **{"share-exit": True})))
    assert "share-exit" in typo["node configuration"].found
    gone = node_config(tmp_path, dataset="parquet", **{"data-path": str(tmp_path / "gone.parquet")})
    assert by_check(check_node_config(gone))["data"].level == WRONG


def write_config(path, client_id, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = {"client-id": client_id, **more}
    path.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items()))
    return path


def test_two_devices_with_one_id_are_found_and_a_copy_of_ones_own_is_none(tmp_path):
    own = write_config(tmp_path / "own" / "node.toml", "ada", store="/a")
    all_of_them = tmp_path / "all"
    write_config(all_of_them / "1.toml", "ada", store="/a")
    write_config(all_of_them / "2.toml", "ben", store="/a")
    assert check_duplicates([all_of_them])[0].level == OK
    assert check_duplicates([all_of_them], own)[0].level == OK
    write_config(all_of_them / "3.toml", "ada", store="/b")
    (finding,) = check_duplicates([all_of_them], own)
    assert finding.level == WRONG
    assert "'ada'" in finding.found
    # a cloned SD card
    write_config(all_of_them / "3.toml", "ben", store="/a")
    assert "'ben'" in check_duplicates([all_of_them])[0].found
    (tmp_path / "none").mkdir()
    with pytest.raises(AppError, match="holds no node configuration"):
        check_duplicates([tmp_path / "none"])


@pytest.fixture
def device(tmp_path, serve, monkeypatch):
    """A device's folder whose server is there."""
    monkeypatch.setattr("persephonee.fl_app.deployment.doctor_machine.torch_finding", lambda: ok("torch", "there"))
    server = serve()
    own = ("--client-id", "s0w0000", "--store", tmp_path / "store", "--out", tmp_path / "device")
    link = ("--superlink", f"127.0.0.1:{server.port}", "--root-certificate", server.root)
    result = call("device", "enrol", *own, *link, "--num-writers", 3, "--sources", "torchvision")
    assert result.exit_code == 0, result.output
    return tmp_path / "device"


def test_a_whole_device_passes_and_prints_all_findings_as_json(device):
    result = call("device", "doctor", device, "--json")
    assert result.exit_code == 0, result.output
    findings = json.loads(result.stdout)
    assert {finding["level"] for finding in findings} == {OK}
    assert {"Python", "key", "node configuration", "backbones", "data", "certificate", "clock"} <= {
        finding["check"] for finding in findings
    }
    assert set(findings[0]) == {"check", "level", "found", "remedy"}


def test_something_wrong_ends_with_1_and_a_table_with_the_remedy(device):
    (device / "device.key").chmod(0o644)
    result = call("device", "doctor", device)
    assert result.exit_code == 1
    assert "wrong" in result.stdout
    assert "chmod 600" in " ".join(result.stdout.split())


def test_a_key_that_flower_cannot_read_is_found(device):
    assert check_key(device / "device.key").level == OK
    (device / "device.key").write_text("nothing")
    assert check_key(device / "device.key").level == WRONG
    (device / "device.key").unlink()
    assert check_key(device / "device.key").level == WRONG


def test_a_folder_that_is_no_devices_is_refused_in_one_sentence(tmp_path):
    result = call("device", "doctor", tmp_path)
    assert result.exit_code == 2
    assert "has no node.toml" in result.stderr


def test_a_machine_without_flower_hears_so_before_anything_else_fails(device, monkeypatch):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None if name == "flwr" else find(name))
    checks = [finding.check for finding in doctor.examine(device, [])]
    assert checks == ["Python", "64-bit", "memory", "disk", "ONNX Runtime", "torch", "Flower"]
