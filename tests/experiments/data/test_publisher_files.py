import hashlib

import pytest

from persephonee.data_partitions.errors import BrokenDataError, MissingDataError
from persephonee.experiments.data.publisher_files import Fetching, PublisherFile

DATA = b"what somebody publishes"


def published(url="http://nobody.invalid/file.bin", **changes):
    checksum = f"sha256:{hashlib.sha256(DATA).hexdigest()[:8]}"
    return PublisherFile(**{"name": "file.bin", "url": url, "checksum": checksum, "stated_by": "somebody"} | changes)


def test_a_file_with_the_published_checksum_is_taken_and_said_to_have_it(tmp_path, capsys):
    (tmp_path / "file.bin").write_bytes(DATA)
    assert Fetching(folder=tmp_path).obtain(published()) == tmp_path / "file.bin"
    printed = capsys.readouterr().out
    assert f"{len(DATA)} bytes, sha256 {hashlib.sha256(DATA).hexdigest()}" in printed
    assert "the sha256 is the one that somebody states" in printed
    md5 = published(checksum=f"md5:{hashlib.md5(DATA).hexdigest()}")
    Fetching(folder=tmp_path).obtain(md5)
    assert "the md5 is the one" in capsys.readouterr().out


def test_a_file_with_another_checksum_is_refused_unless_it_is_meant(tmp_path, capsys):
    (tmp_path / "file.bin").write_bytes(DATA + b".")
    with pytest.raises(BrokenDataError, match=r"has the sha256 [0-9a-f]{64}, and somebody states [0-9a-f]{8}: fetch"):
        Fetching(folder=tmp_path).obtain(published())
    assert Fetching(folder=tmp_path, takes_any=True).obtain(published()).exists()
    assert "the sha256 is not the one that somebody states" in capsys.readouterr().out


def test_where_nobody_states_a_checksum_that_is_said(tmp_path, capsys):
    (tmp_path / "file.bin").write_bytes(DATA)
    Fetching(folder=tmp_path).obtain(published(checksum=""))
    assert "no published checksum is known" in capsys.readouterr().out


def test_a_missing_file_is_fetched_only_when_it_is_asked_for(tmp_path):
    source = tmp_path / "publisher" / "file.bin"
    source.parent.mkdir()
    source.write_bytes(DATA)
    folder, file = tmp_path / "downloads", published(url=source.as_uri())
    with pytest.raises(MissingDataError, match=r"is missing: fetch it from file://.*, or give --download\."):
        Fetching(folder=folder).obtain(file)
    assert Fetching(folder=folder, downloads=True).obtain(file).read_bytes() == DATA
    source.unlink()
    (folder / "file.bin").unlink()
    with pytest.raises(MissingDataError, match="cannot be fetched"):
        Fetching(folder=folder, downloads=True).obtain(file)
    assert list(folder.iterdir()) == []
