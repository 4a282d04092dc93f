import io
import tomllib
import zipfile

from flwr.cli.build import build_fab_from_disk

from persephonee.fl_app.settings.app_settings import AppSettings
from persephonee.fl_app.simulation.app_folder import write_app_folder
from persephonee.fl_app.wire.code_fingerprint import code_fingerprint, source_files


def test_the_folder_is_an_app_that_flower_packs_with_all_our_code(tmp_path):
    config = AppSettings().to_run_config()
    folder = write_app_folder(tmp_path / "app", config)
    packed = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder)))
    ours = {f"persephonee/{name}" for name in source_files()}
    assert {"persephonee/__init__.py", "persephonee/clients/personalisation/personalise.py"} <= ours
    assert {name for name in packed.namelist() if name.endswith(".py")} == ours
    assert tomllib.loads(packed.read("pyproject.toml").decode())["tool"]["flwr"]["app"]["config"] == config


def test_the_copy_has_the_fingerprint_of_the_original(tmp_path):
    copy = write_app_folder(tmp_path / "app", {}) / "persephonee"
    assert code_fingerprint(copy) == code_fingerprint()
    (copy / "clients" / "personalisation" / "policy.py").write_text("# changed")
    code_fingerprint.cache_clear()
    assert code_fingerprint(copy) != code_fingerprint()


def test_odd_strings_survive_the_configuration(tmp_path):
    config = {"data-path": 'a "b" \\c\tü\x7f\U0001f600', "small": 1e-05, "flag": True, "count": -3, "empty": ""}
    folder = write_app_folder(tmp_path / "app", config)
    assert tomllib.loads((folder / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"] == config
