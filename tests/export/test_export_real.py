"""The parity gate on a real Whisper and real speech, and the exported graphs in the oldest runtime we support."""

import json

import pytest
import soundfile

from edgeqlora_export.run import export_bundle

pytestmark = pytest.mark.real


def _clips(folder, n, every=1):
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()]
    return [(soundfile.read(folder / r["audio"], dtype="float32")[0], r["text"]) for r in rows[::every][:n]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "every", "windows_s", "opset", "tensorrt"),
    [("fsdd", 60, [1.0, 2.0], 13, "8.2"), ("librispeech-sample", 7, [30.0], 17, "10.3")],
)
def test_whisper_tiny_en_passes_every_gate(shared, tmp_path, data, every, windows_s, opset, tensorrt):
    """encoder, logits (batch 1, 2, 4; past 0, 1, 7, 200) and every greedy token, on clips of real speakers."""
    summary = export_bundle(
        shared / "models" / "whisper-tiny.en",
        tmp_path / "bundle",
        opset=opset,
        windows_s=windows_s,
        profile={"name": "real", "tensorrt": tensorrt, "threads": 2, "max_batch": 4},
        clips=_clips(shared / "data" / data, 4, every),
        n_eval=4,
    )
    assert all(gate["passed"] for gate in summary["gates"])
    assert "batch 1/2/4, past 0/1/7/200;" in summary["gates"][2]["detail"]
    # 8.2 M encoder and cross, 29.5 M decoder parameters, 0.2 M causal mask, in fp32; no weight twice.
    assert 151e6 < summary["graph_bytes"] < 153e6
