from tests.commands.command_line import call, refused


def test_new_writes_an_app_once_and_never_over_something(tmp_path):
    done = call("new", tmp_path / "my-app")
    assert done.exit_code == 0, done.output
    assert "my_app/cnn.py" in done.stdout
    assert (tmp_path / "my-app" / "pyproject.toml").is_file()
    assert "not empty" in refused("new", tmp_path / "my-app")
