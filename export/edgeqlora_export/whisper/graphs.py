"""Write the two graphs of a Whisper model as ONNX files."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch

from edgeqlora_export.whisper.modules import WhisperDecoderExport, WhisperEncoderExport, cache_names
from edgeqlora_export.whisper.windowed import base_whisper
from edgeqlora_jetson.errors import UserError

LOWEST_OPSET, HIGHEST_OPSET = 13, 20
"""13: what TensorRT 8.2 reads. 20: the last one that torch's TorchScript exporter writes."""

INLINE_LIMIT_BYTES = 1_900_000_000
"""Above this, weights go to a file beside the graph: a protobuf file ends at 2 GiB."""


def export_whisper(
    model: Any, out_dir: Path | str, opset: int = 13, inline_limit_bytes: int = INLINE_LIMIT_BYTES
) -> dict[str, Path]:
    """Write encoder.onnx and decoder.onnx (and a .onnx.data beside each that is too large) into `out_dir`.

    model: a transformers WhisperForConditionalGeneration of any size, at its native window; it is exported in
    fp32 and in eval mode, both restored after. One pair of graphs serves all windows and batch sizes.
    Returns {"encoder": path, "decoder": path}. Raises UserError for an opset out of range or another dtype.
    """
    base = base_whisper(model)
    if not LOWEST_OPSET <= opset <= HIGHEST_OPSET:
        raise UserError(
            f"opset={opset} cannot be exported: allowed are {LOWEST_OPSET} to {HIGHEST_OPSET}; "
            "change the profile's opset"
        )
    dtypes = {parameter.dtype for parameter in base.parameters()}
    if dtypes != {torch.float32}:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UserError(f"dtype={found}: export needs a model in float32; load the merged folder with dtype=float32")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    was_training = base.training
    base.eval()
    try:
        return _export_both(base, out_dir, opset, inline_limit_bytes)
    finally:
        base.train(was_training)


def _export_both(model: Any, out_dir: Path, opset: int, inline_limit_bytes: int) -> dict[str, Path]:
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
    _export(encoder, (mel,), paths["encoder"], ["mel"], cross, axes, opset, inline_limit_bytes)
    del encoder
    _export(
        WhisperDecoderExport(model).eval(),
        (tokens, *past_example, *cross_example),
        paths["decoder"],
        ["tokens", *past, *cross],
        ["logits", *present],
        axes,
        opset,
        inline_limit_bytes,
    )
    return paths


def _export(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]],
    opset: int,
    inline_limit_bytes: int,
) -> None:
    # Beside the target: the same disk, and above 2 GiB the exporter leaves one file per weight there.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as scratch:
        raw = Path(scratch) / "graph.onnx"
        with torch.no_grad(), warnings.catch_warnings():
            # The TorchScript exporter is deprecated in favour of dynamo, which cannot write opset 13; and tracing
            # notes that constant shapes of the custom Reshape are constants, which is what they are for.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module,
                example,
                str(raw),
                dynamo=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: axes[name] for name in [*inputs, *outputs]},
            )
        graph = onnx.load(str(raw))
    with torch.no_grad():
        shapes = [list(tensor.shape) for tensor in module(*example)]
    _declare_outputs(graph, dict(zip(outputs, shapes, strict=True)), axes)
    _save(graph, path, inline_limit_bytes)


def _declare_outputs(graph: onnx.ModelProto, shapes: dict[str, list[int]], axes: dict[str, dict[int, str]]) -> None:
    """Give every output axis its name or its size; behind Reshape the exporter knows neither."""
    for output in graph.graph.output:
        dims = output.type.tensor_type.shape.dim
        for i, (dim, size) in enumerate(zip(dims, shapes[output.name], strict=True)):
            if i in axes[output.name]:
                dim.dim_param = axes[output.name][i]
            else:
                dim.dim_value = size


def _save(graph: onnx.ModelProto, path: Path, inline_limit_bytes: int) -> None:
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    weights_bytes = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    if weights_bytes > inline_limit_bytes:
        onnx.save_model(graph, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=data.name)
        # onnx makes this file private to its owner; the bundle goes to other users and machines.
        data.chmod(path.stat().st_mode)
    else:
        onnx.save_model(graph, str(path))
