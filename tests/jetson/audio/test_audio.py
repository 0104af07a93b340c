"""Audio files to samples: own WAV reader, resampling, errors that name the file."""

import io
import struct
import sys
import wave

import numpy as np
import pytest

from edgeqlora_jetson.audio.load import load_audio, mix
from edgeqlora_jetson.audio.reader import AudioFile
from edgeqlora_jetson.audio.resample import resample
from edgeqlora_jetson.audio.wav import encode_wav, write_wav
from edgeqlora_jetson.errors import UserError
from edgeqlora_jetson.files import write_bytes


def riff(fmt, data, data_size=None, before=b""):
    """A WAV file of a fmt chunk and raw sample bytes."""
    size = len(data) if data_size is None else data_size
    body = b"WAVE" + before + b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", size) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def fmt(encoding, bits, channels=1, rate=16000):
    frame = channels * bits // 8
    return struct.pack("<HHIIHH", encoding, channels, rate, rate * frame, frame, bits)


def load_audio_bytes(data):
    with AudioFile(data, "a.wav") as file:
        return mix(file.read())


def samples_of(data):
    return load_audio_bytes(data).tolist()


def test_every_sample_width_by_hand():
    """Half of full scale, negative full scale, silence."""
    assert samples_of(riff(fmt(1, 8), bytes([192, 0, 128]))) == [0.5, -1.0, 0.0]
    assert samples_of(riff(fmt(1, 16), struct.pack("<3h", 16384, -32768, 0))) == [0.5, -1.0, 0.0]
    assert samples_of(riff(fmt(1, 24), b"\x00\x00\x40\x00\x00\x80\x00\x00\x00")) == [0.5, -1.0, 0.0]
    assert samples_of(riff(fmt(1, 32), struct.pack("<3i", 2**30, -(2**31), 0))) == [0.5, -1.0, 0.0]
    assert samples_of(riff(fmt(3, 32), struct.pack("<3f", 0.5, -1.0, 1.5))) == [0.5, -1.0, 1.0]
    assert samples_of(riff(fmt(3, 64), struct.pack("<3d", 0.5, -1.0, 0.0))) == [0.5, -1.0, 0.0]


def test_extensible_format_and_odd_chunks_before():
    extension = struct.pack("<HHI", 22, 16, 4) + struct.pack("<H", 1) + b"\x00" * 14
    data = riff(fmt(0xFFFE, 16) + extension, struct.pack("<h", 16384), before=b"LIST\x03\x00\x00\x00abc\x00")
    assert samples_of(data) == [0.5]


def test_channels_are_averaged(tmp_path):
    write_bytes(tmp_path / "s.wav", riff(fmt(1, 16, channels=2), struct.pack("<4h", 16384, 0, -16384, -16384)))
    assert load_audio(tmp_path / "s.wav").tolist() == [0.25, -0.5]


def test_recorder_that_wrote_to_a_pipe():
    assert samples_of(riff(fmt(1, 16), struct.pack("<h", 16384), data_size=0xFFFFFFFF)) == [0.5]


def test_writer_agrees_with_the_standard_library(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([0.0, 0.5, -1.0, 1.0]), 8000)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        assert struct.unpack("<4h", file.readframes(4)) == (0, 16384, -32768, 32767)


def test_pcm16_round_trip_is_exact():
    levels = np.arange(-32768, 32768, 7) / 32768.0
    assert np.array_equal(load_audio_bytes(encode_wav(levels)), levels.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.wav", b"", "the file is empty"),
        ("none.wav", riff(fmt(1, 16), b""), "holds 0 samples"),
        ("cut.wav", riff(fmt(1, 16), b"\0" * 100, data_size=4000), "announces 4000 bytes of sound, the file holds 100"),
        ("nofmt.wav", b"RIFF\x0c\0\0\0WAVEdata\0\0\0\0", "no 'fmt ' chunk"),
        ("nodata.wav", b"RIFF\x1c\0\0\0WAVEfmt \x10\0\0\0" + fmt(1, 16), "no 'data' chunk"),
        ("rate.wav", riff(fmt(1, 16, rate=0), b"\0\0"), "sample rate 0 Hz, allowed 1000 to 768000"),
        ("zero.wav", riff(fmt(1, 16, channels=0), b"\0\0"), "says 0 channels"),
        ("nan.wav", riff(fmt(3, 32), struct.pack("<f", float("nan"))), "not numbers"),
        ("ints.wav", riff(fmt(3, 32), struct.pack("<f", 32767.0)), "float samples reach 32767, allowed -1 to 1"),
        ("text.wav", b'{"audio": "0001.wav", "text": "x"}', "not audio, it looks like text"),
        ("picture.wav", b"\x89PNG\r\n\x1a\n0000", "not audio, it looks like a PNG image"),
        ("lfs.wav", b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ("blank.wav", b"\0" * 64, "zero bytes only"),
    ],
)
def test_bad_files_are_named_with_their_fault(tmp_path, name, data, message):
    write_bytes(tmp_path / name, data)
    with pytest.raises(UserError, match=message) as caught:
        load_audio(tmp_path / name)
    assert name in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"audio file .*no.wav cannot be read: No such file.*check the path"):
        load_audio(tmp_path / "no.wav")
    with pytest.raises(UserError, match="is a folder, not an audio file"):
        load_audio(tmp_path)


def test_other_formats_without_soundfile_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "soundfile", None)
    write_bytes(tmp_path / "a.flac", b"fLaC" + bytes(100))
    with pytest.raises(UserError, match=r"a.flac: looks like FLAC audio; .*ffmpeg -i .*a.flac .*pip install soundfile"):
        load_audio(tmp_path / "a.flac")
    write_bytes(tmp_path / "a.wav", riff(fmt(7, 8), b"abc"))
    with pytest.raises(UserError, match="mu-law"):
        load_audio(tmp_path / "a.wav")


def test_other_formats_through_soundfile(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    audio = np.sin(np.arange(8000) * 0.1) * 0.5
    soundfile.write(str(tmp_path / "a.flac"), np.stack([audio, audio], axis=1), 16000)
    assert np.abs(load_audio(tmp_path / "a.flac") - audio).max() < 1e-4
    soundfile.write(str(tmp_path / "u.wav"), audio, 16000, subtype="ULAW")
    assert np.abs(load_audio(tmp_path / "u.wav") - audio).max() < 0.02
    write_bytes(tmp_path / "bad.flac", b"fLaC" + bytes(100))
    with pytest.raises(UserError, match=r"bad.flac: cannot be read as audio \(.*\), it looks like FLAC"):
        load_audio(tmp_path / "bad.flac")


def test_own_reader_agrees_with_soundfile(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    audio = np.random.RandomState(0).uniform(-0.9, 0.9, 1000)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"):
        buffer = io.BytesIO()
        soundfile.write(buffer, audio, 16000, format="WAV", subtype=subtype)
        theirs = soundfile.read(io.BytesIO(buffer.getvalue()), dtype="float32")[0]
        assert np.abs(load_audio_bytes(buffer.getvalue()) - theirs).max() < 1e-7, subtype


@pytest.mark.parametrize("from_hz", [8000, 11025, 22050, 24000, 44100, 48000, 96000, 44099])
def test_resampling_keeps_a_tone_and_its_phase(from_hz):
    """A 1 kHz tone stays the same curve at the same times, 80 dB clean, away from the edges."""
    audio = np.sin(2 * np.pi * 1000 * np.arange(from_hz // 4) / from_hz)
    out = resample(audio, from_hz, 16000)
    assert out.dtype == np.float32
    assert len(out) == -(-len(audio) * 16000 // from_hz)
    wanted = np.sin(2 * np.pi * 1000 * np.arange(len(out)) / 16000)
    assert np.abs(out - wanted)[200:-200].max() < 1e-4


def test_resampling_removes_what_would_alias():
    """10 kHz at 48 kHz would fold to 6 kHz at 16 kHz; a constant stays constant."""
    tone = np.sin(2 * np.pi * 10000 * np.arange(48000) / 48000)
    assert np.abs(resample(tone, 48000, 16000))[100:-100].max() < 1e-4
    assert np.abs(resample(np.ones(4410), 44100, 16000)[100:-100] - 1.0).max() < 1e-5


def test_resampling_short_and_empty():
    assert len(resample(np.zeros(0), 8000, 16000)) == 0
    assert len(resample(np.ones(1), 8000, 16000)) == 2
    assert len(resample(np.ones(1), 44100, 16000)) == 1


def test_resampling_agrees_with_soxr():
    soxr = pytest.importorskip("soxr")
    noise = np.random.RandomState(0).randn(22050) * 0.2
    smooth = np.convolve(noise, np.hanning(9) / np.hanning(9).sum(), mode="same")  # little near the band edge
    theirs = soxr.resample(smooth, 22050, 16000, quality="VHQ")
    ours = resample(smooth, 22050, 16000)
    assert np.abs(ours[300:-300] - theirs[300 : len(ours) - 300]).max() < 5e-3


def test_load_resamples(tmp_path):
    write_wav(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000), 8000)
    audio = load_audio(tmp_path / "a.wav")
    assert audio.shape == (16000,)
    assert np.abs(audio - 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000))[200:-200].max() < 1e-3
