"""The command line on terminals, and in files, that cannot show every letter."""

import io
import sys

import pytest

from persephonee.commands.application import main
from tests.commands.command_line import NETWORK
from tests.tiny_cnn import SIDE, SOURCE


@pytest.fixture(params=["ascii", "latin-1", "utf-8"])
def written_by(request, monkeypatch):
    """Return a function that runs the program on streams of an encoding, as PYTHONIOENCODING sets it.

    It returns the status, what stdout got, decoded, and the bytes that stderr got.
    """

    def run(*words: object) -> tuple[object, str, bytes]:
        raw = io.BytesIO(), io.BytesIO()
        streams = [io.TextIOWrapper(one, encoding=request.param, errors="strict") for one in raw]
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr(sys, "argv", ["persephonee", *map(str, words)])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            main()
        for stream in streams:
            stream.flush()
        return ended.value.code, raw[0].getvalue().decode(request.param), raw[1].getvalue()

    return run


def test_what_a_terminal_cannot_encode_is_replaced(written_by):
    words = ("inspect", *NETWORK, "--sources", SOURCE, "--input-size", SIDE, "--num-classes", 2)
    status, shown, complaints = written_by(*words)
    assert status == 0, complaints
    assert "exit" in shown
    # the name of a file that is not there has letters of its own
    status, _, complaints = written_by("inspect", "Müdüll→")
    assert (status, complaints[:7]) == (2, b"Error: ")
    assert b"Traceback" not in complaints
