"""Decoding: formats, mix-down, cuts and resampling give the samples that were written; bad files are named."""

import io
from functools import partial

import numpy as np
import pytest
import soundfile

from edgeqlora.data.audio import decode, load_audio, probe
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError


def tone(seconds: float, rate_hz: int = 16000, frequency_hz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "tolerance"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.05), ("mp3", 0.05)])
def test_formats(tmp_path, suffix, tolerance):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(1.0), 16000)
    audio = load_audio(path)
    assert audio.dtype == np.float32
    assert audio.shape == (16000,)
    assert np.abs(audio - tone(1.0))[500:-500].max() < tolerance
    assert probe(path) == (16000, 1.0, 1)


def test_stereo_is_averaged(tmp_path):
    soundfile.write(tmp_path / "s.wav", np.array([[0.5, 0.25], [-0.5, 0.0]] * 100), 16000)
    np.testing.assert_allclose(load_audio(tmp_path / "s.wav")[:2], [0.375, -0.25], atol=1e-4)
    assert probe(tmp_path / "s.wav")[2] == 2


@pytest.mark.parametrize("rate_hz", [8000, 22050, 44100, 48000])
def test_resampling_keeps_the_tone(tmp_path, rate_hz):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate_hz), rate_hz)
    audio = load_audio(tmp_path / "a.wav")
    assert audio.shape == (16000,)
    assert np.abs(audio - tone(1.0))[400:-400].max() < 2e-3


def test_cut_by_start_and_end(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(2.0), 16000)
    whole = load_audio(path)
    row = Row(str(path), "", start=0.5, end=1.25)
    np.testing.assert_array_equal(load_audio(row), whole[8000:20000])
    assert probe(row) == (16000, 0.75, 1)
    assert load_audio(Row(str(path), "", start=1.5, end=2.05)).size == 8000, "rounded ends reach the last sample"
    np.testing.assert_array_equal(decode(Row(str(path), "", end=0.1))[0], whole[:1600])


@pytest.mark.parametrize(("start", "end"), [(2.0, None), (5.0, 6.0), (0.0, 2.2), (1.99999, 1.999991)])
def test_cut_outside_the_file(tmp_path, start, end):
    soundfile.write(tmp_path / "a.wav", tone(2.0), 16000)
    with pytest.raises(UserError, match=r"a.wav .*lies outside the file, which is 2.000 s long"):
        load_audio(Row(str(tmp_path / "a.wav"), "", start=start, end=end))


def test_bytes_in_memory(tmp_path):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(0.5, 8000), 8000, format="FLAC")
    row = Row("hub#0", "", read_bytes=partial(bytes, buffer.getvalue()))
    assert load_audio(row).shape == (8000,)
    assert probe(row) == (8000, 0.5, 1)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.wav", b"", "the file is empty"),
        ("a.wav", b"this is not audio at all", "not audio, it looks like text"),
        ("a.raw", b"\0\1" * 50, "cannot be read as audio"),
        ("a.mp3", b"{}", "not audio, it looks like text"),
    ],
)
def test_not_audio(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: {message}"):
        load_audio(path)
    with pytest.raises(UserError, match=r"hub#7: .*" + message):
        load_audio(Row("hub#7", "", read_bytes=partial(bytes, content)))


def test_missing_file_folder_and_no_samples(tmp_path):
    with pytest.raises(UserError, match=r"gone.wav cannot be read: No such file.*check the path"):
        load_audio(tmp_path / "gone.wav")
    with pytest.raises(UserError, match="is a folder"):
        load_audio(tmp_path)
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    for read in (load_audio, probe):
        with pytest.raises(UserError, match=r"none.wav: holds 0 samples of sound"):
            read(tmp_path / "none.wav")


def test_nan_samples(tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan, 0.5]), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"nan.wav: holds samples that are not numbers"):
        load_audio(tmp_path / "nan.wav")


def test_truncated_flac_is_bad_or_short_but_never_a_crash(tmp_path):
    path = tmp_path / "t.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16000), 16000)
    path.write_bytes(path.read_bytes()[:9000])
    try:
        outcome = load_audio(path).size < 16000
    except UserError as error:
        outcome = "t.flac" in str(error)
    assert outcome


@pytest.mark.real
def test_real_recording(shared):
    path = shared / "data/fsdd/audio/george/0_george_0.flac"
    audio = load_audio(path)
    assert audio.size == 4768
    assert abs(float(np.sqrt(np.mean(audio**2))) - 0.08887) < 1e-4, "rms that the manifest states"


@pytest.mark.parametrize("format_name", ["FLAC", "MP3"])
def test_header_that_promises_terabytes_sets_no_memory_aside(tmp_path, format_name):
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(1.0), 16000, format=format_name)
    content = bytearray(buffer.getvalue())
    # FLAC: 36 bits of STREAMINFO's sample count from byte 21 on. MP3: the frame count of the Xing or Info header.
    tag = max(content.find(b"Xing"), content.find(b"Info"))
    start = 22 if format_name == "FLAC" else tag + 8
    content[start : start + 4] = b"\x7f\xff\xff\xff"
    row = Row("claim", "", read_bytes=partial(bytes, bytes(content)))
    try:
        n_samples = load_audio(row).size
    except UserError:
        n_samples = 0
    assert n_samples <= 20000
