"""Write the graph of a CTC model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Wav2Vec2ForCTC

from edgeqlora_export.onnx_graph import check_exportable, evaluating, write_graph
from edgeqlora_export.wav2vec2.modules import CtcExport
from edgeqlora_jetson.errors import UserError


def export_ctc(model: Any, path: Path | str, *, attention_mask: bool, opset: int = 13) -> None:
    """Write the graph of a CTC model to `path`, weights inside, or beside it as .data where they are too large.

    model: a transformers Wav2Vec2ForCTC of any size in fp32 on the CPU, exported in eval mode and left as it was.
    attention_mask: `return_attention_mask` of the model's preprocessor. True: the graph has the input frame_mask, and
    the valid frames of a padded clip have the logits of the clip alone (with feat_extract_norm "layer"; a group norm
    takes its statistics over the padding too, in transformers as here). False: the model was trained on padding
    with zeros and without a mask, so the graph has none.

    Inputs: audio float32 (batch, n_samples), normalised as the model's feature extractor does it, zero-padded;
    frame_mask float32 (batch, n_frames), 1 for the first frames of a clip, as many as the runner's n_outputs(clip)
    says, then 0. Output: logits float32 (batch, n_frames, vocab), n_frames = n_outputs(n_samples).
    One graph serves all windows and batch sizes.

    Raises UserError for an opset out of range, another model or dtype, or a model with a convolutional adapter.
    """
    _check(model, opset)
    # Sizes that no other axis has: what the tracer sees must not look equal by chance.
    batch, frames = 2, 11
    example = [torch.zeros(batch, _n_samples_needed(frames, model.config) + 1)]
    axes = {"audio": {0: "batch", 1: "n_samples"}, "logits": {0: "batch", 1: "n_frames"}}
    if attention_mask:
        example.append(torch.ones(batch, frames))
        axes["frame_mask"] = {0: "batch", 1: "n_frames"}
    inputs = ["audio", "frame_mask"][: len(example)]
    with evaluating(model):
        write_graph(CtcExport(model).eval(), tuple(example), Path(path), inputs, ["logits"], axes, opset)


def _n_samples_needed(frames: int, config: Any) -> int:
    """Fewest samples that give `frames` frames, at least 1: 400 for the first one of a released wav2vec 2.0."""
    n = frames
    for kernel, stride in reversed(list(zip(config.conv_kernel, config.conv_stride, strict=True))):
        n = (n - 1) * stride + kernel
    return n


def _check(model: Any, opset: int) -> None:
    if not isinstance(model, Wav2Vec2ForCTC):
        raise UserError(
            f"model is a {type(model).__name__}: allowed is Wav2Vec2ForCTC; merge an adapter first, or take a "
            "wav2vec2 model with a CTC head"
        )
    if model.config.add_adapter:
        raise UserError(
            "add_adapter=True cannot be exported: allowed is False, since the convolutions behind the encoder change "
            "the number of frames; take a model without them"
        )
    check_exportable(model, opset)
