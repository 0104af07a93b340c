"""Every kind of sound file gives the sound that was put into it, or a message; the rules for level and channels."""

import io
import os
import struct
import sys
import threading

import numpy as np
import pytest
from fixtures.sounds import FOLDER, NAMES, is_own, mutations, read

from edgeqlora_jetson.audio.containers import CutOff, ogg_lacks_end
from edgeqlora_jetson.audio.load import load_audio, mix
from edgeqlora_jetson.audio.reader import AudioFile, NotScaled
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_bytes

ORIGINAL = load_audio(os.path.join(FOLDER, "original.wav"))
RATES = {"8": 8000, "16": 16000, "22": 22050, "44": 44100, "48": 48000}


def needs_library(name):
    if not is_own(name):
        pytest.importorskip("soundfile")


def facts_of(name):
    """(rate in Hz, channels) that a name states."""
    parts = os.path.splitext(name)[0].split("_")
    n_channels = 2 if parts[-1] == "2" and parts[-2] in RATES else 1
    return RATES[parts[-n_channels]] if len(parts) > 1 else 16000, n_channels


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_of_file_holds_the_original(name):
    needs_library(name)
    rate_hz, n_channels = facts_of(name)
    with AudioFile(os.path.join(FOLDER, name)) as file:
        assert (file.sample_rate_hz, file.n_channels) == (rate_hz, n_channels)
    audio = load_audio(os.path.join(FOLDER, name))
    assert audio.dtype == np.float32
    # Codecs of blocks pad the last one.
    assert -2 <= len(audio) - len(ORIGINAL) <= 1000
    # Of two channels the second is half as loud.
    wanted = ORIGINAL * (0.75 if n_channels == 2 else 1.0)
    heard = np.concatenate([audio, np.zeros(2, np.float32)])[: len(wanted)]
    similarity = max(
        np.dot(np.roll(heard, lag), wanted) / np.sqrt(np.dot(heard, heard) * np.dot(wanted, wanted)) for lag in (0, 1)
    )
    # What is above 4 kHz is lost in files of 8 kHz.
    assert similarity > (
        0.95 if "gsm" in name else 0.98 if rate_hz == 8000 or "opus" in name or "mp3" in name else 0.995
    )
    gain = np.sqrt(np.dot(heard, heard) / np.dot(wanted, wanted))
    assert 0.9 < gain < 1.05


@pytest.mark.parametrize("name", NAMES)
def test_a_range_of_samples_is_that_of_the_whole(name):
    needs_library(name)
    with AudioFile(os.path.join(FOLDER, name)) as file:
        whole = file.read()
        assert whole.shape == (file.n_samples, file.n_channels)
    for start, end in ((1000, 1500), (0, 100), (len(whole) - 7, None)):
        with AudioFile(os.path.join(FOLDER, name)) as file:
            np.testing.assert_allclose(file.read(start, end), whole[start:end], atol=1e-7)


CONTAINERS = [
    ("wav_s16_16.wav", "original.wav", "WAV"),
    ("wavex", "wavex_s24_8_2.wav", "WAV"),
    ("mu-law", "wav_ulaw_8_2.wav", "WAV"),
    ("rifx", "rifx_s16_8.wav", "WAV"),
    ("rf64", "rf64_s16_16.wav", "WAV"),
    ("w64", "w64_s24_8_2.w64", "W64"),
    ("aiff", "aiff_s24_8_2.aiff", "AIFF"),
    ("aifc", "aifc_f32_8.aif", "AIFF"),
    ("au", "au_s16_16.au", "AU"),
    ("caf", "caf_s16_16.caf", "CAF"),
    ("sphere", "sphere_s16_16.sph", "SPHERE"),
    ("sphere mu-law", "sphere_ulaw_8.sph", "SPHERE"),
]


@pytest.mark.parametrize(("kind", "name", "container"), CONTAINERS, ids=[kind for kind, _, _ in CONTAINERS])
def test_a_file_that_broke_off_is_refused_without_any_library(kind, name, container, tmp_path):
    content = read(name)
    for n_bytes in (len(content) * 6 // 10, len(content) - 2):
        write_bytes(tmp_path / name, content[:n_bytes])
        with pytest.raises(CutOff, match="{}: the {} header announces .* it is cut off".format(name, container)):
            load_audio(tmp_path / name)


def test_a_bw64_file_is_read_as_rf64_is():
    with AudioFile(b"BW64" + read("rf64_s16_16.wav")[4:], "b") as file:
        np.testing.assert_array_equal(mix(file.read()), ORIGINAL)


def stream_header(riff, data, tail=b""):
    content = read("original.wav")
    return content[:4] + struct.pack("<I", riff) + content[8:40] + struct.pack("<I", data) + content[44:] + tail


@pytest.mark.parametrize("data", [0, 0xFFFFFFFF, 0xFFFFFFDB, 0x7FFFFFFF, 0x7FFFF000, 0x7F000000, 0x80000000])
@pytest.mark.parametrize("riff", [0, 8, 36, 7076, 0xFFFFFFFF])
def test_a_header_without_a_length_means_to_the_end(riff, data):
    with AudioFile(stream_header(riff, data), "pipe") as file:
        np.testing.assert_array_equal(mix(file.read()), ORIGINAL)


def test_an_empty_recording_with_chunks_behind_it_is_empty():
    head, chunk = read("original.wav")[:40], b"LIST" + struct.pack("<I", 4) + b"INFO"
    for tail in (b"", chunk, chunk + chunk):
        with pytest.raises(UserError, match="holds 0 samples of sound"):
            AudioFile(head + bytes(4) + tail, "empty")


def test_a_size_between_the_known_ones_is_a_cut_recording():
    with pytest.raises(CutOff, match="announces 3000000000 bytes"):
        AudioFile(stream_header(0, 3000000000), "long")


def test_ogg_without_its_last_page():
    pytest.importorskip("soundfile")
    content = read("ogg_vorbis_16.ogg")
    with AudioFile(content, "a.ogg") as file:
        assert not file.lacks_end
    last = content.rfind(b"OggS\0")
    unmarked = content[: last + 5] + bytes(bytearray([content[last + 5] & ~4])) + content[last + 6 :]
    for damaged in (content[:-10], content[: last + 20]):
        with pytest.raises(UserError, match=r"it is cut off|cannot be read as audio"):
            AudioFile(damaged, "a.ogg")
    with AudioFile(content + content, "chained.ogg") as file:
        assert not file.lacks_end
    # libsndfile compares a checksum of each page, so that this one is not opened.
    assert ogg_lacks_end(io.BytesIO(unmarked), len(unmarked))


def floats(*channels):
    """A float WAV file of some channels."""
    samples = np.array(channels, dtype="<f4").T
    fmt = struct.pack("<HHIIHH", 3, len(channels), 16000, 64000 * len(channels), 4 * len(channels), 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", samples.nbytes) + samples.tobytes()
    return b"RIFF" + struct.pack("<I", len(body)) + body


def heard(*channels):
    with AudioFile(floats(*channels), "f.wav") as file:
        return mix(file.read()).tolist()


def test_floats_beyond_one_are_clipped_and_integers_refused():
    assert heard([0.5, -1.5, 256.0]) == [0.5, -1.0, 1.0]
    for peak, divisor in ((257.0, 32768), (32768.0, 32768), (40000.0, 8388608), (2e9, 2147483648), (1e12, 2147483648)):
        with pytest.raises(
            NotScaled, match="float samples reach .*, allowed -1 to 1: .*Divide them by {} ".format(divisor)
        ):
            heard([0.5, -peak])
    for bad in (float("nan"), float("inf")):
        with pytest.raises(UserError, match="samples that are not numbers"):
            heard([0.5, bad])


def test_a_dead_channel_is_left_out_of_the_mean():
    """Constant, also at a level that is not 0, or within one step of 16 bits; when all are dead, all are heard."""
    step = 1.0 / 32768
    assert heard([0.5, -0.5, 0.25], [0.0, 0.0, 0.0]) == [0.5, -0.5, 0.25]
    assert heard([0.25, 0.25, 0.25], [0.5, -0.5, 0.25]) == [0.5, -0.5, 0.25]
    assert heard([step, 0.0, -step], [0.5, -0.5, 0.25]) == [0.5, -0.5, 0.25]
    assert heard([0.5, -0.5, 0.25], [0.0, 0.5, 0.25], [0.0, 0.0, 0.0]) == [0.25, 0.0, 0.25]
    assert heard([0.5, 0.5], [0.0, 0.0]) == [0.25, 0.25]


def test_24_bits_in_four_bytes():
    fmt = struct.pack("<HHIIHH", 1, 1, 16000, 64000, 4, 24)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I2i", 8, 2**30, -(2**31))
    with AudioFile(b"RIFF" + struct.pack("<I", len(body)) + body, "a") as file:
        assert mix(file.read()).tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"#!AMR\n" + bytes(bytearray(range(1, 60))), "AMR audio"),
        (b"caff\0\1\0\0desc", "CAF audio"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0", "a W64"),
        (b"NIST_1A\n   1024\nchannel_count -i 1\nend_head\n", "a NIST SPHERE"),
        (b"RIFF\x10\0\0\0AVI LIST", "a RIFF file"),
    ],
)
@pytest.mark.parametrize("library", [True, False])
def test_sound_of_a_kind_that_cannot_be_read_is_named_as_sound(content, words, library, tmp_path, monkeypatch):
    if library:
        pytest.importorskip("soundfile")
    else:
        monkeypatch.setitem(sys.modules, "soundfile", None)
    write_bytes(tmp_path / "a.wav", content)
    with pytest.raises(UserError, match="a.wav: .*looks like {}.*ffmpeg -i".format(words)):
        load_audio(tmp_path / "a.wav")


def test_what_a_file_is_its_bytes_say_and_not_its_name(tmp_path):
    pytest.importorskip("soundfile")
    for name in ("speech.raw", "speech.au", "speech.txt"):
        write_bytes(tmp_path / name, read("flac_16_16.flac"))
        np.testing.assert_array_equal(load_audio(tmp_path / name), ORIGINAL)
        write_bytes(tmp_path / name, b"shopping list: milk, bread, eggs")
        with pytest.raises(UserError, match="not audio, it looks like text"):
            load_audio(tmp_path / name)


def test_a_pipe_is_read(tmp_path):
    """As in `transcribe <(ffmpeg ...)`."""
    os.mkfifo(str(tmp_path / "pipe"))
    writer = threading.Thread(target=write_whole, args=(str(tmp_path / "pipe"), read("original.wav")))
    writer.start()
    np.testing.assert_array_equal(load_audio(tmp_path / "pipe"), ORIGINAL)
    writer.join()


def write_whole(path, content):
    with open(path, "wb") as file:
        file.write(content)


def test_damaged_wav_files_give_sound_or_a_message():
    n_heard = 0
    for content in mutations():
        try:
            with AudioFile(content, "a.wav") as file:
                samples = file.read()
                assert samples.shape == (file.n_samples, file.n_channels) or not content.startswith(b"RIFF")
                audio = mix(samples)
        except UserError:
            continue
        n_heard += 1
        assert audio.dtype == np.float32
        assert len(audio) > 0
        assert np.abs(audio).max() <= 1.0
    assert n_heard > 500
