"""Write the two graphs of a Whisper model as ONNX files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgeqlora_export.onnx_graph import check_exportable, evaluating, write_graph
from edgeqlora_export.whisper.graphs.buffered import BufferedDecoder, BufferedEncoder, example_mask
from edgeqlora_export.whisper.graphs.modules import WhisperDecoderExport, WhisperEncoderExport, cache_names
from edgeqlora_export.whisper.windowed import base_whisper


def export_whisper(model: Any, out_dir: Path | str, opset: int = 13, buffered: bool = False) -> dict[str, Path]:
    """Write encoder.onnx and decoder.onnx (and a .onnx.data beside each that is too large) into `out_dir`.

    model: a transformers WhisperForConditionalGeneration of any size, at its native window; it is exported in
    fp32 and in eval mode, both restored after. One pair of graphs serves all windows and batch sizes.
    buffered: the graphs that are made for a CPU (see buffered.py); else those that TensorRT takes.
    Returns {"encoder": path, "decoder": path}. Raises UserError for an opset out of range or another dtype.
    """
    base = base_whisper(model)
    check_exportable(base, opset)
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    with evaluating(base):
        return _export_both(base, out_dir, opset, buffered)


def _export_both(model: Any, out_dir: Path, opset: int, buffered: bool) -> dict[str, Path]:
    config = model.config
    n_layers, heads = config.decoder_layers, config.decoder_attention_heads
    cross, past, grown = (cache_names(kind, n_layers) for kind in ("cross", "past", "new" if buffered else "present"))
    # Sizes that no other axis has: what the tracer sees must not look equal by chance.
    encoder = (BufferedEncoder if buffered else WhisperEncoderExport)(model).eval()
    mel = torch.zeros(2, config.num_mel_bins, 2 * min(5, config.max_source_positions))
    with torch.no_grad():
        cross_example = encoder(mel)
    tokens = torch.zeros(2, 4, dtype=torch.int32)
    past_example = [torch.zeros(2, heads, 3, config.d_model // heads) for _ in past]

    axes: dict[str, dict[int, str]] = {
        "mel": {0: "batch", 2: "n_frames"},
        "tokens": {0: "batch", 1: "n_new"},
        "positions": {0: "n_new"},
        "mask": {0: "n_new", 1: "n_mask"},
        "logits": {0: "batch"},
    }
    axes |= {name: {0: "batch", 3 if "_k_" in name else 2: "n_audio"} for name in cross}
    axes |= {name: {0: "batch", 2: "n_buffer" if buffered else "n_past"} for name in past}
    axes |= {name: {0: "batch", 2: "n_new" if buffered else "n_total"} for name in grown}
    places = [torch.arange(2, 6, dtype=torch.int32), example_mask(4, 3, 2)] if buffered else []
    paths = {"encoder": out_dir / "encoder.onnx", "decoder": out_dir / "decoder.onnx"}
    write_graph(encoder, (mel,), paths["encoder"], ["mel"], cross, axes, opset)
    del encoder
    write_graph(
        (BufferedDecoder if buffered else WhisperDecoderExport)(model).eval(),
        (tokens, *places, *past_example, *cross_example),
        paths["decoder"],
        ["tokens", *(["positions", "mask"] if buffered else []), *past, *cross],
        ["logits", *grown],
        axes,
        opset,
    )
    return paths
