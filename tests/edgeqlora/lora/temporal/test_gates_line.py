"""Gates from training to a bundle, as a user types it, on both embedded models."""

import json

import pytest

from edgeqlora.demo import model_dir, speech_dir

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("model", "kind"), [("whisper", "rank"), ("wav2vec2", "layer")])
def test_the_line_from_training_to_bench(model, kind, command, tmp_path):
    speech = speech_dir()
    adapter, folded, kept, bundle = (tmp_path / name for name in ("adapter", "folded", "kept", "bundle"))
    data = ["--train", speech / "train.jsonl", "--dev", speech / "dev.jsonl", "--cache", "none"]
    steps = ["--steps", 6, "--batch-size", 8, "--eval-every", 6, "--eval-samples", 8, "--window-s", 3, "--lr", 1e-2]

    def run(*line):
        code, said = command(*line)
        assert code == 0, said
        return said

    def texts(source):
        run("evaluate", source, "-d", speech / "dev.jsonl", "--limit", 12, "-o", tmp_path / "report.json")
        rows = (tmp_path / "report.jsonl").read_text().splitlines()
        return [json.loads(row)["hypothesis"] for row in rows]

    run("train", "-m", model_dir(model), "-o", adapter, *data, *steps, "--temporal-gate", kind, "--ranks", "uniform:4")
    said = run("merge", adapter, "-o", folded, "--candidate", "dequantised", "--limit", 12)
    assert "gates in time folded into constants" in said
    code, said = command("export", adapter, "-o", bundle)
    assert code == 2
    assert "--keep-gates keeps its gates in time" in said
    run("merge", adapter, "-o", kept, "--candidate", "dequantised", "--keep-gates", "--limit", 12)
    said = run("export", kept, "-o", bundle, "-d", speech / "dev.jsonl", "--target", "jetson-nano", "--eval-clips", 4)
    assert "operator table" in said
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert all(gate["passed"] for gate in manifest["gates"])
    run("bench", bundle)
    found = texts(kept)
    assert found == texts(bundle)
    assert any(found)
