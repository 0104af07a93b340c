"""Workstation and board hear the same: every kind of sound file, through the commands that a user types."""

import json
import os
import struct
import sys
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from edgeqlora.cli.main import app
from edgeqlora.data.audio import decode, load_audio, probe
from edgeqlora.data.cache import FeatureCache
from edgeqlora.data.row import Row
from edgeqlora.errors import UserError
from edgeqlora_jetson import __main__ as board
from edgeqlora_jetson.audio.load import load_audio as load_on_the_board
from edgeqlora_jetson.audio.load import mix
from edgeqlora_jetson.audio.reader import AudioFile
from edgeqlora_jetson.transcribe import Transcriber

JETSON_TESTS = Path(__file__).parents[2] / "jetson"
sys.path.insert(0, str(JETSON_TESTS))

from fixtures.sounds import FOLDER, NAMES, mutations, read  # noqa: E402

BUNDLE = JETSON_TESTS / "fixtures" / "bundle"


def run(*arguments: object):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def manifest(folder: Path, files: dict[str, bytes], text: str = "one") -> Path:
    """Write files and a manifest of them."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    rows = [json.dumps({"audio": name, "text": text}) for name in files]
    (folder / "rows.jsonl").write_text("\n".join(rows))
    return folder / "rows.jsonl"


def check(path: Path) -> dict[str, dict]:
    """Findings of `edgeqlora data check`, by name; without those about texts and other clips."""
    report = path.parent / "check.json"
    done = run("data", "check", path, "-o", report)
    findings = {f["name"]: f for f in json.loads(report.read_text())["findings"]}
    assert done.exit_code == (1 if any(f["severity"] == "error" for f in findings.values()) else 0), done.output
    return {name: f for name, f in findings.items() if not name.startswith(("mixed_", "duplicate_"))}


class Listener:
    """A model whose features are the samples that it is given."""

    sample_rate_hz = 16000

    def feature_shape(self, window_s):
        return (round(window_s * self.sample_rate_hz),)

    def features(self, audio, window_s):
        return audio


def test_evaluate_transcribe_and_train_hear_the_same_samples(tmp_path, monkeypatch, capsys):
    heard: list[np.ndarray] = []
    transcribe = Transcriber.transcribe

    def listen(self, audio):
        heard.append(audio)
        return transcribe(self, audio)

    monkeypatch.setattr(Transcriber, "transcribe", listen)
    done = run("evaluate", BUNDLE, "-d", manifest(tmp_path, {name: read(name) for name in NAMES}))
    assert done.exit_code == 0, done.output
    on_the_workstation, heard = heard, []
    assert board.main(["transcribe", "--bundle", str(BUNDLE), *(os.path.join(FOLDER, name) for name in NAMES)]) == 0
    assert "error" not in capsys.readouterr().err
    assert len(on_the_workstation) == len(heard) == len(NAMES)
    cache = FeatureCache(Listener(), None)
    for name, workstation, on_the_board in zip(NAMES, on_the_workstation, heard, strict=True):
        in_training = cache.features(Row(os.path.join(FOLDER, name), ""), 1.0)
        assert workstation.tobytes() == on_the_board.tobytes() == in_training.tobytes(), name
    assert check(tmp_path / "rows.jsonl") == {}


def outcome(read_it, *arguments):
    """What a reader gives: samples, or the text of its error."""
    try:
        return read_it(*arguments)
    except UserError as error:
        return str(error)


def read_on_the_board(content: bytes, name: str) -> np.ndarray:
    with AudioFile(content, name) as file:
        return mix(file.read())


def test_damaged_wav_files_are_the_same_on_both_machines(tmp_path):
    """Up to the change of rate, which is one function: damaged rates make it slow. Some through a file as well."""
    path, n_heard = tmp_path / "damaged.wav", 0
    for i, content in enumerate(mutations()):
        row = Row(str(path), "", read_bytes=partial(bytes, content))
        workstation = outcome(lambda row: decode(row)[0], row)
        pairs = [(workstation, outcome(read_on_the_board, content, row.name))]
        if i % 25 == 0:
            path.write_bytes(content)
            pairs.append((outcome(load_audio, row), outcome(load_on_the_board, path)))
        for one, other in pairs:
            assert type(one) is type(other), (i, one, other)
            assert one == other if isinstance(one, str) else one.tobytes() == other.tobytes(), i
        if not isinstance(workstation, str):
            n_heard += 1
            assert workstation.size > 0
            assert np.abs(workstation).max() <= 1.0
    assert n_heard > 1000


def with_samples(samples, subtype: str, tmp_path: Path, rate_hz: int = 16000) -> bytes:
    soundfile.write(tmp_path / "made.wav", samples, rate_hz, subtype=subtype)
    return (tmp_path / "made.wav").read_bytes()


def speech() -> np.ndarray:
    return load_on_the_board(os.path.join(FOLDER, "original.wav"))


def test_floats_beyond_one_are_clipped_and_said(tmp_path):
    loud = with_samples(4 * speech(), "FLOAT", tmp_path)
    path = manifest(tmp_path, {"loud.wav": loud, "right.wav": with_samples(speech(), "FLOAT", tmp_path)})
    findings = check(path)
    assert set(findings) == {"float_beyond_one"}
    assert findings["float_beyond_one"]["severity"] == "warning"
    assert findings["float_beyond_one"]["count"] == 1
    share = 100 * np.mean(np.abs(4 * speech()) > 1)
    assert (
        f"loud.wav: {share:.2f} % of samples, up to {4 * np.abs(speech()).max():.2f}"
        in findings["float_beyond_one"]["examples"][0]
    )
    np.testing.assert_array_equal(load_audio(tmp_path / "loud.wav"), np.clip(4 * speech(), -1, 1))


@pytest.mark.parametrize(("scale", "subtype"), [(32768, "FLOAT"), (8388608, "FLOAT"), (2**31, "DOUBLE")])
@pytest.mark.parametrize("container", ["WAV", "AIFF", "AU", "CAF", "W64"])
def test_integers_written_as_floats_are_refused_everywhere(container, scale, subtype, tmp_path, capsys):
    soundfile.write(tmp_path / "ints.wav", scale * speech(), 16000, subtype=subtype, format=container)
    path = manifest(tmp_path, {"ints.wav": (tmp_path / "ints.wav").read_bytes()})
    findings = check(path)
    assert set(findings) == {"unscaled_audio"}
    assert findings["unscaled_audio"]["severity"] == "error"
    assert (
        f"allowed -1 to 1: integers that were not scaled? Divide them by {scale}"
        in findings["unscaled_audio"]["examples"][0]
    )
    done = run("evaluate", BUNDLE, "-d", path)
    assert isinstance(done.exception, UserError)
    assert "float samples reach" in str(done.exception)
    assert board.main(["transcribe", str(tmp_path / "ints.wav"), "--bundle", str(BUNDLE)]) == 2
    assert "integers that were not scaled?" in capsys.readouterr().err


def test_a_wav_without_a_length_is_read(tmp_path):
    content, files = read("original.wav"), {}
    for riff in (0, len(content) - 8, 0xFFFFFFFF):
        for data in (0, 0xFFFFFFFF, 0x7FFFF000):
            files[f"{riff}-{data}.wav"] = (
                content[:4] + struct.pack("<I", riff) + content[8:40] + struct.pack("<I", data) + content[44:]
            )
    assert check(manifest(tmp_path, files)) == {}
    for name in files:
        np.testing.assert_array_equal(load_audio(tmp_path / name), speech())


def test_a_cut_of_a_long_recording_is_read_alone(tmp_path):
    """A second in the middle of nine hours, a file of 1 GB without blocks on the disk."""
    n_bytes, start_s = 2**30, 20000
    with (tmp_path / "day.wav").open("wb") as file:
        file.write(read("original.wav")[:40] + struct.pack("<I", n_bytes))
        file.seek(44 + start_s * 16000 * 2)
        file.write(read("original.wav")[44:])
        file.truncate(44 + n_bytes)
    row = Row(str(tmp_path / "day.wav"), "", start=start_s, end=start_s + speech().size / 16000)
    tracemalloc.start()
    np.testing.assert_array_equal(load_audio(row), speech())
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1e6
    assert probe(row) == (16000, 0.22, 1)


def test_files_that_broke_off(tmp_path):
    """Lossy formats without a length in their header are read as far as they go, and data check says so."""
    cut = [
        name
        for name in NAMES
        if name.split("_")[0] in ("wav", "wavex", "rf64", "rifx", "w64", "aiff", "aifc", "au", "caf", "sphere")
    ]
    cut = [name for name in cut if "pipe" not in name]
    findings = check(manifest(tmp_path, {name: read(name)[: len(read(name)) * 6 // 10] for name in cut}))
    assert {name: (f["severity"], f["count"]) for name, f in findings.items()} == {
        "truncated_audio": ("error", len(cut))
    }
    for name in cut:
        with pytest.raises(UserError, match="it is cut off, copy or record it again"):
            load_audio(tmp_path / name)


def test_ogg_without_its_last_page_is_a_warning(tmp_path):
    rng = np.random.default_rng(0)
    files = {}
    for name, subtype in (("vorbis.ogg", "VORBIS"), ("opus.ogg", "OPUS")):
        soundfile.write(tmp_path / name, rng.uniform(-0.5, 0.5, 16000 * 8), 16000, format="OGG", subtype=subtype)
        files["whole-" + name] = (tmp_path / name).read_bytes()
        files[name] = files["whole-" + name][: len(files["whole-" + name]) * 6 // 10]
    findings = check(manifest(tmp_path, files))
    assert {name: (f["severity"], f["count"]) for name, f in findings.items()} == {"ogg_without_end": ("warning", 2)}
    assert load_audio(tmp_path / "vorbis.ogg").size > 16000
    short = read("ogg_vorbis_16.ogg")
    findings = check(manifest(tmp_path, {"short.ogg": short[:-100]}))
    assert set(findings) == {"truncated_audio"}
    assert "no page of sound in this Ogg file is whole" in findings["truncated_audio"]["examples"][0]


def test_levels_and_channels(tmp_path):
    rng = np.random.default_rng(0)
    voice = np.tile(speech(), 3)
    nothing = np.zeros_like(voice)
    click = nothing.copy()
    click[100:130] = 0.5
    made = {
        "good.wav": voice,
        "quiet.wav": 0.02 * voice,
        "zeros.wav": nothing,
        "offset.wav": nothing + 0.25,
        "offset-in-two.wav": np.stack([nothing + 0.25, nothing - 0.125], axis=1),
        "nearly.wav": rng.uniform(-2e-4, 2e-4, voice.size) + 0.1,
        "click.wav": click,
        "dead.wav": np.stack([voice, nothing], axis=1),
        "dead-offset.wav": np.stack([nothing + 0.5, 0.5 * voice, voice], axis=1),
        "opposite.wav": np.stack([voice, -voice], axis=1),
        "nearly-opposite.wav": np.stack([voice, 0.05 - 0.9 * voice], axis=1),
        "two-speakers.wav": np.stack([voice, voice[::-1]], axis=1),
        "loud.wav": np.clip(20 * voice, -1, 1),
        "loud-right.wav": np.stack([0.1 * voice, np.clip(20 * voice, -1, 1)], axis=1),
    }
    findings = check(manifest(tmp_path, {name: with_samples(made[name], "PCM_16", tmp_path) for name in made}))
    found = {
        name: (
            f["severity"],
            sorted(example.split("/")[-1].split(": ")[1 if "/" not in example else 0] for example in f["examples"]),
        )
        for name, f in findings.items()
    }
    assert found == {
        "silent_audio": ("error", ["click.wav", "nearly.wav", "offset-in-two.wav", "offset.wav", "zeros.wav"]),
        "clipped_audio": ("warning", ["loud-right.wav", "loud.wav"]),
        "channels_cancel": ("warning", ["nearly-opposite.wav", "opposite.wav"]),
        "dead_channel": ("note", ["dead-offset.wav", "dead.wav"]),
    }
    np.testing.assert_allclose(load_audio(tmp_path / "dead.wav"), voice, atol=1e-4)
    assert check(manifest(tmp_path, {"zeros.wav": (tmp_path / "zeros.wav").read_bytes()}, text="")).keys() == {
        "empty_text"
    }
