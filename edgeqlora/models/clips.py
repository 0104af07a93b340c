"""One clip through a model, as it is: what a calibration, an entropy or a fold hears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgeqlora.models.family import Decoder, Features, Processor
from edgeqlora.models.quantised import plain_model


def as_clip(
    processor: Processor, decoder: Decoder, name: str, audio: Features, window_s: float, target_ids: Sequence[int]
) -> dict[str, Any]:
    """{"name", "n_valid", "batch" (of one, with its labels)} of audio float32 (n_samples,) in a window."""
    n_valid = processor.n_valid_frames(audio.size, window_s)
    sample = {"features": processor.features(audio, window_s), "n_valid": n_valid, "target_ids": target_ids}
    return {"name": name, "n_valid": n_valid, "batch": decoder.collate([sample])}


def hear(learner: Any, clip: dict[str, Any]) -> tuple[Any, Any]:
    """The model's outputs on a clip, without gradients, in the model's own dtype; and the clip's labels."""
    import torch

    model = plain_model(learner.model)
    device = next(model.parameters()).device
    batch = {
        name: value.to(device, model.dtype if value.is_floating_point() else None)
        for name, value in clip["batch"].items()
    }
    labels = batch.pop("labels")
    with torch.no_grad(), learner.window(batch):
        return model(**batch), labels
