"""Write the two graphs of a Whisper model as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeqlora_export.onnx_graph import check_exportable, evaluating, write_graph
from edgeqlora_export.whisper.modules import WhisperDecoderExport, WhisperEncoderExport, cache_names
from edgeqlora_export.whisper.windowed import base_whisper


def export_whisper(model: Any, out_dir: Path | str, opset: int = 13) -> dict[str, Path]:
    """Write encoder.onnx and decoder.onnx (and a .onnx.data beside each that is too large) into `out_dir`.

    model: a transformers WhisperForConditionalGeneration of any size, at its native window; it is exported in
    fp32 and in eval mode, both restored after. One pair of graphs serves all windows and batch sizes.
    Returns {"encoder": path, "decoder": path}. Raises UserError for an opset out of range or another dtype.
    """
    base = base_whisper(model)
    check_exportable(base, opset)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with evaluating(base):
        return _export_both(base, out_dir, opset)


def _export_both(model: Any, out_dir: Path, opset: int) -> dict[str, Path]:
    config = model.config
    n_layers, heads = config.decoder_layers, config.decoder_attention_heads
    cross, past, present = (cache_names(kind, n_layers) for kind in ("cross", "past", "present"))
    # Sizes that no other axis has: what the tracer sees must not look equal by chance.
    encoder = WhisperEncoderExport(model).eval()
    mel = torch.zeros(2, config.num_mel_bins, 2 * min(5, config.max_source_positions))
    with torch.no_grad():
        cross_example = encoder(mel)
    tokens = torch.zeros(2, 4, dtype=torch.int32)
    past_example = [torch.zeros(2, heads, 3, config.d_model // heads) for _ in past]

    axes: dict[str, dict[int, str]] = {
        "mel": {0: "batch", 2: "n_frames"},
        "tokens": {0: "batch", 1: "n_new"},
        "logits": {0: "batch"},
    }
    axes |= {name: {0: "batch", 3 if "_k_" in name else 2: "n_audio"} for name in cross}
    axes |= {name: {0: "batch", 2: "n_past"} for name in past}
    axes |= {name: {0: "batch", 2: "n_total"} for name in present}
    paths = {"encoder": out_dir / "encoder.onnx", "decoder": out_dir / "decoder.onnx"}
    write_graph(encoder, (mel,), paths["encoder"], ["mel"], cross, axes, opset)
    del encoder
    write_graph(
        WhisperDecoderExport(model).eval(),
        (tokens, *past_example, *cross_example),
        paths["decoder"],
        ["tokens", *past, *cross],
        ["logits", *present],
        axes,
        opset,
    )
    return paths
