"""`server init` and `device enrol`: what they write, what they refuse, and that Flower reads it."""

import ipaddress
import shlex
import shutil
import stat
import subprocess
import tomllib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.common.config import parse_config_args

from persephonee.fl_app.client_side.client_node import ClientNode
from persephonee.fl_app.deployment.systemd_units import quoted
from persephonee.fl_app.settings.app_settings import AppSettings
from tests.commands.command_line import call, refused


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def value_of(unit: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in unit.splitlines() if line.startswith(f"{key}=")]


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "a server"
    hosts = ("--host", "fl.example.org", "--host", "10.8.0.1", "--host", "fd00::1")
    result = call("server", "init", *hosts, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder


@pytest.fixture
def enrol(tmp_path, server):
    def enrolled(*more: object, client_id="ada", out=None):
        own = ("--client-id", client_id, "--store", tmp_path / "the store", "--out", out or tmp_path / "device")
        link = ("--superlink", "fl.example.org:8443", "--root-certificate", server / "ca.crt")
        return ("device", "enrol", *own, *link, *more)

    return enrolled


def test_the_server_certificate_is_for_every_host_and_for_this_machine(server):
    certificate = x509.load_pem_x509_certificate((server / "server.crt").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fl.example.org", "localhost"]
    addresses = [ipaddress.ip_address(text) for text in ("10.8.0.1", "fd00::1", "127.0.0.1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_accepts_the_chain_by_the_strict_rules(server):
    words = ("-x509_strict", "-verify_hostname", "fl.example.org", "-purpose", "sslserver")
    done = subprocess.run(
        ["openssl", "verify", *words, "-CAfile", server / "ca.crt", server / "server.crt"], check=False
    )
    assert done.returncode == 0


def test_keys_are_for_their_owner_only(server, enrol, tmp_path):
    assert call(*enrol()).exit_code == 0
    private = (server / "ca.key", server / "server.key", tmp_path / "device" / "device.key")
    assert [mode(path) for path in private] == [0o600] * 3
    folders = (server, tmp_path / "device", tmp_path / "the store")
    assert [mode(path) for path in folders] == [0o700] * 3


def test_flwr_finds_the_server_under_the_name_devices(server):
    config = tomllib.loads((server / "flwr" / "config.toml").read_text())
    expected = {"address": "fl.example.org:8443", "root-certificates": str(server / "ca.crt")}
    assert config == {"superlink": {"default": "devices", "devices": expected}}


def test_the_units_start_flower_with_the_right_words_and_always_again(server, enrol, tmp_path):
    assert call(*enrol("--port", 9100)).exit_code == 0
    superlink = (server / "persephonee-server.service").read_text()
    (command,) = map(shlex.split, value_of(superlink, "ExecStart"))
    assert command[0].endswith("/flower-superlink")
    assert "--enable-supernode-auth" in command
    assert command[command.index("--ssl-keyfile") + 1] == str(server / "server.key")
    device = (tmp_path / "device" / "persephonee-device.service").read_text()
    (command,) = map(shlex.split, value_of(device, "ExecStart"))
    assert command[0].endswith("/flower-supernode")
    assert command[command.index("--superlink") + 1] == "fl.example.org:8443"
    assert command[command.index("--port") + 1] == "9100"
    for unit in (superlink, device):
        assert (value_of(unit, "Restart"), value_of(unit, "RestartSec")) == (["always"], ["15"])
    (writable,) = map(shlex.split, value_of(device, "ReadWritePaths"))
    assert writable == [str(tmp_path / "the store"), str(tmp_path / "device" / "flower")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_has_nothing_against_the_units(server, enrol, tmp_path):
    assert call(*enrol()).exit_code == 0
    units = (server / "persephonee-server.service", tmp_path / "device" / "persephonee-device.service")
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert "persephonee" not in done.stderr


def test_a_word_of_a_unit_is_quoted_where_it_has_to_be():
    assert quoted("plain/path") == "plain/path"
    assert quoted('50 % of "it"') == '"50 %% of \\"it\\""'
    with pytest.raises(ValueError, match="control character"):
        quoted("a\nb")


def test_the_key_pair_is_one_that_flower_takes(enrol, tmp_path):
    result = call(*enrol())
    key = load_ssh_private_key((tmp_path / "device" / "device.key").read_bytes(), None)
    assert isinstance(key.curve, ec.SECP384R1)
    public = (tmp_path / "device" / "device.key.pub").read_text()
    assert load_ssh_public_key(public.encode()) == key.public_key()
    assert public.split()[2] == "ada"
    assert public.strip() in result.stdout


@pytest.mark.parametrize("client_id", ["ada", 'Ada\'s "own" \\ ünit = 1', "a b=c"])
def test_the_client_app_reads_what_was_enrolled_through_flowers_own_parser(enrol, tmp_path, client_id):
    data = ("--dataset", "parquet", "--data-path", tmp_path / "mine.parquet", "--user-column", "who")
    assert call(*enrol(*data, "--share-exits", "--sources", "torchvision", client_id=client_id)).exit_code == 0
    config = parse_config_args([str(tmp_path / "device" / "node.toml")])
    node = ClientNode.of(config, AppSettings(), run_id=0)
    assert (node.client_id, node.stores, node.sharing_allowed) == (client_id, tmp_path / "the store", True)
    assert (node.data.dataset, node.data.user_column) == ("parquet", "who")
    assert node.data.data_path == tmp_path / "mine.parquet"
    assert node.sources == ("torchvision",)
    assert not node.is_simulated


def test_exits_stay_on_a_device_whose_owner_says_nothing(enrol, tmp_path):
    assert call(*enrol()).exit_code == 0
    assert tomllib.loads((tmp_path / "device" / "node.toml").read_text())["share-exits"] is False


def test_nothing_is_overwritten(server, enrol):
    before = {path: path.read_bytes() for path in server.rglob("*") if path.is_file()}
    assert "not empty" in refused("server", "init", "--host", "other.example.org", "--out", server)
    assert "not empty" in refused(*enrol(out=server))
    assert {path: path.read_bytes() for path in server.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("host", ["https://fl.example.org", "a b", "1.2.3", "-x.org", "fl.example.org:8443"])
def test_a_host_that_is_none_leaves_nothing_behind(tmp_path, host):
    assert "neither a DNS name nor an IP address" in refused("server", "init", "--host", host, "--out", tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["fl.example.org", "https://fl.example.org:1", "x:0", "x:70000", "fd00::1:8443"])
def test_an_address_that_is_none_is_refused(enrol, tmp_path, address):
    assert "give HOST:PORT" in refused(*enrol("--superlink", address))
    assert not (tmp_path / "device").exists()


def test_a_root_certificate_that_is_the_servers_own_is_refused(enrol, server):
    assert "no certificate of an authority" in refused(*enrol("--root-certificate", server / "server.crt"))


def test_an_owner_names_the_models_that_a_device_answers_for(enrol, tmp_path):
    assert call(*enrol("--models", f"{'a' * 64}, {'b' * 64}")).exit_code == 0
    config = tomllib.loads((tmp_path / "device" / "node.toml").read_text())
    assert ClientNode.of(config, AppSettings(), run_id=0).models_allowed == ("a" * 64, "b" * 64)
    assert "--models 'best' is no fingerprint" in refused(*enrol("--models", "best", out=tmp_path / "other"))
