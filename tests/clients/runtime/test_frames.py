import math
import os
import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from persephonee.clients.errors import ClientSettingsError, ImageError
from persephonee.clients.runtime.device_database import DeviceDatabase
from persephonee.clients.runtime.device_settings import Frame
from persephonee.clients.runtime.device_state import ScriptedClock
from persephonee.clients.runtime.frames import LateLabel, NoFrame, ReplayedUser, WatchedFolder, read_image
from persephonee.clients.runtime.persistent_state import PersistentState

GREY, COLOUR = (1, 12, 12), (3, 12, 12)


def write(path: Path, mode: str = "L", size: tuple[int, int] = (12, 12)) -> Path:
    Image.effect_noise(size, 60).convert(mode).save(path)
    os.utime(path, (1e9, 1e9))
    return path


def ready(folder: Path, known: set[str] | None = None) -> list:
    """Return what a watched folder yields until it has nothing to do."""
    return _until_idle(WatchedFolder(folder, GREY, ("a", "b"), (known or set()).__contains__))


def _until_idle(watched) -> list:
    items = []
    for item in watched:
        if item is None:
            return items
        items.append(item)
    return items


def test_an_image_comes_as_the_model_takes_it(tmp_path):
    path = write(tmp_path / "grey.png")
    pixels = np.array(Image.open(path))
    assert np.array_equal(read_image(path, GREY), pixels[None])
    assert np.array_equal(read_image(path, COLOUR), np.stack([pixels] * 3))
    assert read_image(write(tmp_path / "colour.png", "RGBA"), GREY).shape == GREY


def test_what_is_no_image_for_the_model_is_told_in_a_sentence(tmp_path):
    with pytest.raises(ImageError, match=r"large.png is 20x14 px, expected 12x12: crop and scale it first"):
        read_image(write(tmp_path / "large.png", size=(20, 14)), GREY)
    Image.fromarray(np.full((12, 12), 70_000, dtype=np.int32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match=r"deep.tiff .* 32 bits a channel, whose range is not known"):
        read_image(tmp_path / "deep.tiff", GREY)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageError, match=r"text.png is no image"):
        read_image(tmp_path / "text.png", GREY)
    whole = write(tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"half.png is no image"):
        read_image(tmp_path / "half.png", GREY)
    with pytest.raises(ImageError, match="has gone"):
        read_image(tmp_path / "never.png", GREY)


def test_a_watched_folder_gives_the_oldest_first_and_none_twice(tmp_path):
    for age, name in enumerate(["c.png", "a.png", "b.png"]):
        os.utime(write(tmp_path / name), (1e9 + age, 1e9 + age))
    write(tmp_path / ".hidden.png")
    (tmp_path / "folder").mkdir()
    assert [item.key for item in ready(tmp_path)] == ["c.png", "a.png", "b.png"]
    assert [item.key for item in ready(tmp_path, known={"c.png", "b.png"})] == ["a.png"]


def test_a_file_that_may_be_half_written_is_looked_at_again(tmp_path):
    path = tmp_path / "new.png"
    path.write_text("half")
    assert ready(tmp_path) == []
    os.utime(path, (1e9, 1e9))
    assert [type(item) for item in ready(tmp_path)] == [NoFrame]


def test_labels_come_with_a_frame_or_after_it(tmp_path):
    write(tmp_path / "one.png")
    (tmp_path / "labels.csv").write_text("name,label\none.png,b\ntwo.png,a\nthree.png,z\nbroken line\n")
    watched = WatchedFolder(tmp_path, GREY, ("a", "b"), lambda key: key == "one.png")
    label, no_class, no_frame, no_label = _until_idle(watched)
    assert label == LateLabel(key="one.png", label=1)
    assert no_class.reason.startswith("the label 'z' is no class")
    assert no_frame.reason.startswith("line 3 of labels.csv: 'two.png' names no frame that is there")
    assert no_label.reason.startswith("line 5 of labels.csv holds 'broken line' alone")
    assert _until_idle(watched) == []
    write(tmp_path / "two.png")
    (frame,) = _until_idle(watched)
    assert isinstance(frame, Frame)
    assert frame.label == 0


def test_names_that_are_not_utf8_can_be_stored_stay_apart_and_find_their_labels(tmp_path):
    whole = write(tmp_path / "whole.png").read_bytes()
    folder = tmp_path / "frames"
    folder.mkdir()
    # e acute and e circumflex in Latin-1, what a careless escape would make of the first, and the first in UTF-8
    names = [b"caf\xe9.png", b"caf\xea.png", b"caf\\xe9.png", b"caf\xc3\xa9.png"]
    for name in [*names, b"odd\xe9.png"]:
        path = folder / os.fsdecode(name)
        path.write_bytes(b"no image" if name.startswith(b"odd") else whole)
        os.utime(path, (1e9, 1e9))
    (folder / "labels.csv").write_bytes(b"caf\xe9.png,b\ncaf\xea.png,a\ncaf\xe9.png,\xe9\n")
    database = DeviceDatabase(tmp_path / "store")
    memory = PersistentState(database)
    watched = WatchedFolder(folder, GREY, ("a", "b"), memory.has_answered)
    items = _until_idle(watched)
    images = [item.key for item in items if isinstance(item, Frame)]
    assert sorted(images) == ["caf/xe9.png", "caf/xea.png", "caf\\xe9.png", "café.png"]
    assert [item for item in items if isinstance(item, LateLabel)] == [
        LateLabel(key="caf/xe9.png", label=1),
        LateLabel(key="caf/xea.png", label=0),
    ]
    odd, no_class = (item for item in items if isinstance(item, NoFrame))
    assert odd.reason.startswith("odd/xe9.png is no image that can be read (it does not decode")
    assert odd.reason.endswith("remove it, or write it again.")
    assert no_class.reason.startswith("the label '/xe9' is no class")
    for item in items:
        memory.note_answered(item.key)
        str(item).encode()
    assert _until_idle(watched) == []
    database.close()


def test_whatever_an_image_s_decoder_raises_is_told_in_a_sentence(tmp_path):
    # a comment that unpacks to more than Pillow allows: a plain ValueError
    comment = PngInfo()
    comment.add_text("comment", "a" * 2**21, zip=True)
    Image.new("L", (12, 12)).save(tmp_path / "comment.png", pnginfo=comment)
    # a picture of 60,000 x 60,000 px, as its head says: DecompressionBombError
    (tmp_path / "bomb.ppm").write_bytes(b"P6 60000 60000 255 ")
    # a pixel format that there is not: NotImplementedError
    Image.new("RGB", (12, 12)).save(tmp_path / "texture.dds")
    texture = bytearray((tmp_path / "texture.dds").read_bytes())
    texture[80:84] = (2).to_bytes(4, "little")
    (tmp_path / "texture.dds").write_bytes(texture)
    for name, error in (("comment.png", ValueError), ("texture.dds", NotImplementedError)):
        with pytest.raises(error), Image.open(tmp_path / name) as image:
            image.load()
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "bomb.ppm")
    for name in ("comment.png", "bomb.ppm", "texture.dds"):
        with pytest.raises(ImageError, match=f"{name} is no image that can be read"):
            read_image(tmp_path / name, GREY)


def test_a_labels_file_with_an_open_quote_is_read_up_to_it_and_told_once(tmp_path):
    labels = tmp_path / "labels.csv"
    rest = "".join(f"{i}.png,a\n" for i in range(20_000))
    labels.write_text(f'one.png,b\ntwo.png,"a\n{rest}')
    watched = WatchedFolder(tmp_path, GREY, ("a", "b"), lambda key: True)
    first, fault = _until_idle(watched)
    assert first == LateLabel(key="one.png", label=1)
    assert fault.reason.startswith("labels.csv cannot be read from line 2 on (field larger than field limit")
    assert _until_idle(watched) == []
    # mended, its rows come
    labels.write_text(f"one.png,b\ntwo.png,a\n{rest}")
    os.utime(labels, (1e9, 1e9))
    assert _until_idle(watched)[:2] == [LateLabel(key="two.png", label=0), LateLabel(key="0.png", label=0)]
    # a shorter file is one absurd label, which no event repeats at length
    labels.write_text(f'three.png,"a\n{rest[:9000]}')
    (swallowed,) = _until_idle(watched)
    assert "is no class" in swallowed.reason
    assert len(swallowed.reason) < 400


def test_a_labels_file_that_cannot_be_opened_is_told_and_looked_at_again(tmp_path):
    write(tmp_path / "one.png")
    labels = tmp_path / "labels.csv"
    labels.mkdir()
    watched = WatchedFolder(tmp_path, GREY, ("a", "b"), lambda key: key == "one.png")
    assert [item.reason for item in _until_idle(watched)] == [
        "labels.csv cannot be read (Is a directory): give a file that this program may read"
    ]
    labels.rmdir()
    labels.write_text("one.png,b\n")
    assert _until_idle(watched) == [LateLabel(key="one.png", label=1)]


@pytest.mark.parametrize("last_look", [1, 2, 3])
def test_files_that_go_while_the_folder_is_looked_at_are_passed_over(tmp_path, monkeypatch, last_look):
    for name in ("a.png", "b.png"):
        write(tmp_path / name)
    (tmp_path / "labels.csv").write_text("a.png,b\n")
    (tmp_path / "nowhere.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    stat, looks = Path.stat, []

    def stat_and_lose(path, **options):
        looks.append(path.name)
        found = stat(path, **options)
        if path.name in ("b.png", "labels.csv") and looks.count(path.name) == last_look:
            # somebody moves it away before it is looked at again
            path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", stat_and_lose)
    first, second, *labels = ready(tmp_path)
    assert first.key == "a.png"
    if last_look == 1:
        assert second == NoFrame(key="b.png", reason="b.png has gone before it was read: leave files in place.")
        assert not labels


ROWS = [("one.png", "a"), ("two.png", "b"), ("three.png", "a")]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("".join(f"{name},{label}\n" for name, label in ROWS), "utf-8-sig"),
        ("name;label\r\n" + "".join(f"{name};{label}\r\n" for name, label in ROWS), "utf-8"),
        ("sep=;\n" + "".join(f"{name};{label}\n" for name, label in ROWS), "utf-8"),
        ("file\tlabel\tsure\n" + "".join(f"{name}\t{label}\t0,5\n" for name, label in ROWS), "utf-16"),
        ("".join(f"folder/{name},{label}\n" for name, label in ROWS), "utf-8"),
        ("".join(f'"C:\\My Photos\\{name}";"{label}"\n' for name, label in ROWS), "utf-8-sig"),
        ("".join(f"./{name[:-4]} , {label}\n" for name, label in ROWS), "utf-8"),
        ("".join(f"{name}|{label}\n" for name, label in ROWS), "utf-8"),
        (",filename,label\n" + "".join(f"{i},{row[0]},{row[1]}\n" for i, row in enumerate(ROWS)), "utf-8"),
        ("Class;Image Name;Width\n" + "".join(f"{label};{name};8\n" for name, label in ROWS), "utf-8"),
        ("".join(f"{name.upper()},{label.upper()}\n" for name, label in ROWS), "utf-8"),
    ],
    ids=[
        *("mark", "semicolons", "excel", "tabs", "folders", "windows", "no endings", "bars", "pandas index"),
        *("columns in another order", "capitals"),
    ],
)
def test_labels_find_their_frames_however_the_file_is_written(tmp_path, text, encoding):
    for name, _ in ROWS:
        write(tmp_path / name)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    items = ready(tmp_path, known={name for name, _ in ROWS})
    assert items == [LateLabel(key=name, label="ab".index(label)) for name, label in ROWS]
    # the same rows before their frames: each line is told, and each frame gets its label when it comes
    for name, _ in ROWS:
        (tmp_path / name).rename(tmp_path / f".{name}")
    watched = WatchedFolder(tmp_path, GREY, ("a", "b"), lambda key: False)
    told = _until_idle(watched)
    assert len(told) == 3
    assert all("names no frame that is there" in item.reason for item in told)
    for name, _ in ROWS:
        (tmp_path / f".{name}").rename(tmp_path / name)
    frames = [item for item in _until_idle(watched) if isinstance(item, Frame)]
    assert {frame.key: frame.label for frame in frames} == {name: "ab".index(label) for name, label in ROWS}


@pytest.mark.parametrize("written", ["3", "03", "3.0"])
def test_a_number_is_a_class_however_it_is_written(tmp_path, written):
    (tmp_path / "labels.csv").write_text(f"one.png,{written}\n")
    watched = WatchedFolder(tmp_path, GREY, ("0", "1", "2", "3"), lambda key: key == "one.png")
    assert _until_idle(watched) == [LateLabel(key="one.png", label=3)]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_are_the_same_in_both_unicode_forms_and_as_western_windows_writes_them(tmp_path, form, encoding):
    write(tmp_path / "Käse.png")
    text = unicodedata.normalize(form if encoding == "utf-8" else "NFC", "Käse.png;Öl\n")
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    known = WatchedFolder(tmp_path, GREY, ("Essig", "Öl"), lambda key: key == "Käse.png")
    assert _until_idle(known) == [LateLabel(key="Käse.png", label=1)]


def test_names_that_differ_in_case_only_label_their_own_frames(tmp_path):
    write(tmp_path / "one.png")
    write(tmp_path / "ONE.png")
    (tmp_path / "labels.csv").write_text("ONE.png,b\none.png,a\nOne.png,a\n")
    *labels, told = ready(tmp_path, known={"one.png", "ONE.png"})
    assert labels == [LateLabel(key="ONE.png", label=1), LateLabel(key="one.png", label=0)]
    assert "'One.png' names no frame that is there" in told.reason


def test_a_name_without_an_ending_that_may_mean_two_files_labels_neither(tmp_path):
    write(tmp_path / "one.png")
    write(tmp_path / "one.bmp")
    (tmp_path / "labels.csv").write_text("one,b\n")
    (told,) = ready(tmp_path, known={"one.png", "one.bmp"})
    assert "'one' may mean one.bmp or one.png: write the name with its ending" in told.reason
    frames = ready(tmp_path)[:2]
    assert [frame.label for frame in frames] == [None, None]


def test_a_label_reaches_a_frame_whose_file_is_gone(tmp_path):
    (tmp_path / "labels.csv").write_text("watch/one,b\n")
    assert ready(tmp_path, known={"one.jpeg"}) == [LateLabel(key="one.jpeg", label=1)]


def test_thousands_of_lines_without_a_frame_are_counted_and_not_each_told(tmp_path):
    (tmp_path / "labels.csv").write_text("".join(f"{number}.png,a\n" for number in range(3000)))
    told = ready(tmp_path)
    assert len(told) == 101
    assert told[-1].reason == "2900 more lines of labels.csv give no label to a frame that is there"


def test_pipes_in_the_folder_are_passed_over_or_told_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "one.png")
    os.mkfifo(tmp_path / "labels.csv")
    (told,) = ready(tmp_path)
    assert told.reason == "labels.csv cannot be read (it is no regular file): write it again"


def test_a_photograph_that_its_camera_marked_as_rotated_is_answered_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    picture = Image.effect_noise((14, 10), 60)
    picture.save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(np.array(picture), -1)[None].copy()
    assert np.array_equal(read_image(tmp_path / "turned.png", (1, 14, 10)), expected)
    with pytest.raises(ImageError, match=r"turned.png is 10x14 px, expected 14x10"):
        read_image(tmp_path / "turned.png", (1, 10, 14))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ClientSettingsError, match="there is no folder"):
        WatchedFolder(tmp_path / "nowhere", GREY, ("a",), lambda key: False)


REPLAY_BEGINS = 1_767_254_400.0
"""1 January 2026, 8 h UTC."""


def replay(user, clock, **changes) -> ReplayedUser:
    settings = {"labelled": 1.0, "every_s": 60.0, "speed": 0.0, "is_known": lambda key: False, "seed": 0}
    return ReplayedUser(user, clock=clock, **{**settings, **changes})


def test_a_replay_gives_every_sample_once_at_its_own_time(user):
    clock, times, keys = ScriptedClock(100.0), [], []
    for frame in replay(user, clock):
        times.append(clock.now)
        keys.append(frame.key)
        i = int(frame.key.split("/")[1])
        assert np.array_equal(frame.image, user.images[i])
        assert frame.label == user.labels[i]
    assert times == [100.0 + 60 * i for i in range(120)]
    assert len(set(keys)) == 120
    assert keys != sorted(keys, key=lambda key: int(key.split("/")[1]))


def test_a_replay_goes_on_where_it_stopped_in_the_same_order(user):
    keys = [frame.key for frame in replay(user, ScriptedClock(0.0))]
    clock = ScriptedClock(0.0)
    rest = replay(user, clock, is_known=set(keys[:50]).__contains__)
    first = next(iter(rest))
    assert first.key == keys[50]
    assert clock.now == 50 * 60.0


def test_a_fraction_of_the_labels_is_told(user):
    told = [frame.label is not None for frame in replay(user, ScriptedClock(0.0), labelled=0.25)]
    # 120 draws with p = 1/4: three standard deviations are 14
    assert abs(sum(told) - 30) < 14
    assert not any(frame.label is not None for frame in replay(user, ScriptedClock(0.0), labelled=0.0))


def test_speed_divides_the_time_between_two_samples(user):
    waited: list[float] = []
    list(replay(user, ScriptedClock(0.0), speed=120.0, wait=waited.append))
    assert waited == [0.5] * 120


@pytest.mark.parametrize("speed", [-1.0, math.nan, math.inf, 1e-300, 1e-12])
def test_a_speed_at_which_no_sample_would_come_is_refused(user, speed):
    with pytest.raises(ClientSettingsError, match=f"speed={speed:g} is out of range: expected 0, or a finite number"):
        replay(user, ScriptedClock(0.0), speed=speed)


@pytest.mark.parametrize("every_s", [-1.0, 0.0, math.nan, math.inf, 6e13, 8.4 * 365 * 86_400])
def test_a_life_that_no_calendar_holds_is_refused(user, every_s):
    # 120 samples, 8.4 years apart
    with pytest.raises(ClientSettingsError, match=r"does not do: give more than 0, .* the 120 samples take less than"):
        replay(user, ScriptedClock(0.0), every_s=every_s)
    clock = ScriptedClock(REPLAY_BEGINS)
    assert len(list(replay(user, clock, every_s=8.3 * 365 * 86_400))) == 120
    assert datetime.fromtimestamp(clock.now, UTC).year > 3000


def test_a_file_that_was_incomplete_for_long_is_answered_once_it_is_complete(tmp_path):
    whole = write(tmp_path / "whole.png").read_bytes()
    (tmp_path / "whole.png").unlink()
    path = tmp_path / "slow.png"
    path.write_bytes(whole[: len(whole) // 2])
    os.utime(path, (1e9, 1e9))
    known: set[str] = set()
    (refused,) = ready(tmp_path, known)
    known.add(refused.seen_as)
    assert ready(tmp_path, known) == []
    path.write_bytes(whole)
    os.utime(path, (1e9 + 5, 1e9 + 5))
    (frame,) = ready(tmp_path, known)
    assert (type(frame), frame.key) == (Frame, "slow.png")
