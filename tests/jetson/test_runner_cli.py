"""The command line: exit codes, plain errors, what it prints."""

import json
import os
import subprocess
import sys

import pytest

import edgeqlora_jetson
from edgeqlora_jetson import __main__ as cli
from edgeqlora_jetson.files import write_bytes, write_text

ROOT = os.path.dirname(os.path.dirname(edgeqlora_jetson.__file__))


def run(*args, **settings):
    """Run the program: (exit code, stdout, stderr)."""
    env = dict(os.environ, PYTHONPATH=ROOT, OMP_NUM_THREADS="1")
    env.update(settings.pop("env", {}))
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeqlora_jetson"] + list(args),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        **settings,
    )
    out, err = process.communicate()
    return process.returncode, out.decode("utf-8"), err.decode("utf-8")


def clip(folder, i):
    return os.path.join(folder, "eval", "{:04d}.wav".format(i))


def test_info(fixture_folder, capsys):
    assert cli.main(["info", fixture_folder]) == 0
    out = capsys.readouterr().out
    assert "Bundle      tiny-fixture" in out
    assert "Gate        parity: passed" in out
    assert "Next: python3 -m edgeqlora_jetson transcribe speech.wav --bundle " in out


def test_transcribe_one_and_many(fixture_folder, expected, capsys):
    pytest.importorskip("onnxruntime")
    assert cli.main(["transcribe", clip(fixture_folder, 1), "--bundle", fixture_folder]) == 0
    assert capsys.readouterr().out == expected["texts"][1] + "\n"
    assert cli.main(["transcribe", clip(fixture_folder, 1), clip(fixture_folder, 2), "--bundle", fixture_folder]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["{}: {}".format(clip(fixture_folder, i), expected["texts"][i]) for i in (1, 2)]


def test_transcribe_json(fixture_folder, expected, capsys):
    pytest.importorskip("onnxruntime")
    assert cli.main(["transcribe", "--json", clip(fixture_folder, 2), "--bundle", fixture_folder]) == 0
    captured = capsys.readouterr()
    row = json.loads(captured.out)
    assert (row["text"], row["tokens"], row["window_s"]) == (expected["texts"][2], expected["tokens"][2], 1.0)
    assert row["total_ms"] > 0
    assert "ran into the limit of 10 tokens" in captured.err


def test_transcribe_goes_on_after_a_bad_file_and_exits_2(fixture_folder, expected, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    write_bytes(tmp_path / "notes.wav", b"shopping list: milk, bread, eggs")
    bad = str(tmp_path / "notes.wav")
    assert cli.main(["transcribe", bad, clip(fixture_folder, 1), "--bundle", fixture_folder]) == 2
    captured = capsys.readouterr()
    assert expected["texts"][1] in captured.out
    assert "error: {}: not audio, it looks like text ('shopping list: milk, bre')".format(bad) in captured.err


def test_long_files_say_that_they_are_cut(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    import numpy as np

    from edgeqlora_jetson.audio.wav import write_wav

    write_wav(tmp_path / "long.wav", np.random.RandomState(0).uniform(-0.5, 0.5, 40000))
    assert cli.main(["transcribe", str(tmp_path / "long.wav"), "--bundle", fixture_folder]) == 0
    assert (
        "2.5 s is longer than the largest window of 1 s: cut into 3 pieces at quiet places" in capsys.readouterr().err
    )


def test_bench_writes_a_report_and_a_table(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    output = str(tmp_path / "out" / "report.json")
    args = [
        "bench",
        fixture_folder,
        "--repeats",
        "2",
        "--min-count",
        "1",
        "--warmup",
        "1",
        "--limit",
        "2",
        "--output",
        output,
    ]
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    assert "single-stream: 4 runs of 2 clips (0.8 s of audio)" in out
    assert "Wrote " + output in out
    with open(output, encoding="utf-8") as file:
        assert len(json.load(file)["utterances"]) == 2


def test_bench_over_another_manifest(fixture_folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    write_text(tmp_path / "m.jsonl", json.dumps({"audio": clip(fixture_folder, 0)}) + "\n")
    args = ["bench", fixture_folder, "--manifest", str(tmp_path / "m.jsonl"), "--output", str(tmp_path / "r.json")]
    assert cli.main(args) == 0
    assert "not measured (the clips have no references)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["info"], "no bundle given: name the bundle folder"),
        (["info", "/no/such/bundle"], "error: /no/such/bundle: there is no such bundle folder"),
        (["bench", "BUNDLE", "--limit", "0"], "limit=0, at least 1 clip is needed (this manifest has 3)"),
        (["bench", "BUNDLE", "--manifest", "/no/m.jsonl"], "error: /no/m.jsonl: there is no such manifest"),
    ],
)
def test_bad_input_exits_2_without_traceback(fixture_folder, args, message):
    code, out, err = run(*[fixture_folder if arg == "BUNDLE" else arg for arg in args])
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_a_flipped_byte_exits_2(bundle_copy):
    with open(os.path.join(bundle_copy, "mel_filters.npy"), "r+b") as file:
        file.seek(500)
        file.write(b"x")
    code, _, err = run("info", bundle_copy)
    assert code == 2
    assert "mel_filters.npy: expected sha256" in err


def test_report_onto_a_folder_exits_2_and_leaves_nothing(fixture_folder, tmp_path):
    pytest.importorskip("onnxruntime")
    code, _, err = run("bench", fixture_folder, "--repeats", "1", "--output", str(tmp_path))
    assert code == 2
    assert "cannot write {}: there is a folder of that name".format(tmp_path) in err
    assert os.listdir(str(tmp_path)) == []


def test_text_is_utf8_in_a_plain_c_locale(fixture_folder, expected):
    """Python 3.6 in a container: LANG=C means ASCII, and the text has an accent or a replacement character."""
    pytest.importorskip("onnxruntime")
    code, out, _ = run("transcribe", clip(fixture_folder, 2), "--bundle", fixture_folder, env={"LC_ALL": "C"})
    assert (code, out) == (0, expected["texts"][2] + "\n")
    assert any(ord(char) > 127 for char in out)


def test_ctrl_c_exits_130(fixture_folder, monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_info", interrupt)
    assert cli.main(["info", fixture_folder]) == 130
    assert capsys.readouterr().err == "\nstopped\n"


def test_a_reader_that_went_away_is_no_drama(fixture_folder):
    read_end, write_end = os.pipe()
    os.close(read_end)
    env = dict(os.environ, PYTHONPATH=ROOT)
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeqlora_jetson", "info", fixture_folder],
        stdout=write_end,
        stderr=subprocess.PIPE,
        env=env,
    )
    os.close(write_end)
    assert process.communicate()[1] == b""
    assert process.returncode == 141


def test_help_and_version_load_no_onnxruntime():
    code = (
        "import sys; from edgeqlora_jetson.__main__ import build_parser; build_parser().format_help(); "
        "sys.exit('onnxruntime' in sys.modules or 'soundfile' in sys.modules)"
    )
    assert subprocess.call([sys.executable, "-c", code], env=dict(os.environ, PYTHONPATH=ROOT)) == 0
    assert run("--version")[1].strip() == "edgeqlora-jetson " + edgeqlora_jetson.__version__
    assert run()[0] == 2
