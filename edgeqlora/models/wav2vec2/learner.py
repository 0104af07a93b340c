"""Wav2Vec 2.0 with its weights: loading, quantisation, batches, CTC loss and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar

import numpy as np

from edgeqlora.data.batching import IGNORE
from edgeqlora.models.family import Features, Transcription, cannot_load, refuse_streams
from edgeqlora.models.quantised import plain_model, quantised_options, same_in_every_mode
from edgeqlora.models.wav2vec2.processor import Wav2Vec2Processor, load_processor
from edgeqlora_export.wav2vec2.checks import check_task
from edgeqlora_export.wav2vec2.frames import frame_parts
from edgeqlora_jetson.decoders import collapse, spell
from edgeqlora_jetson.errors import NotFiniteError


class Wav2Vec2Learner:
    """Learner (see models/family.py) of a Wav2Vec2ForCTC."""

    unquantised = ("lm_head", "wav2vec2.feature_projection")
    """The head is new for each vocabulary; the projection is small and all later layers depend on it."""
    roles: ClassVar = {
        "q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output",
        "intermediate_dense": "inner", "output_dense": "outer",
    }  # fmt: skip
    on_rows: Callable[[Any], None] | None = None

    def __init__(self, model: Any, processor: Wav2Vec2Processor):
        self.model, self.processor = model, processor

    def blocks(self) -> dict[str, list[str]]:
        n_layers = plain_model(self.model).config.num_hidden_layers
        layers = [f"wav2vec2.encoder.layers.{i}" for i in range(n_layers)]
        return {"lower": layers[: n_layers // 2], "upper": layers[n_layers // 2 :]}

    def cached_decoder(self) -> None:
        """None: every step of a CTC model's output hears the whole clip at once."""

    def layer_stacks(self) -> dict[str, Any]:
        return {"encoder": plain_model(self.model).wav2vec2.encoder.layers}

    def keep_layers(self, stack: str, numbers: Sequence[int]) -> None:
        import torch

        model = plain_model(self.model)
        encoder = model.wav2vec2.encoder
        encoder.layers = torch.nn.ModuleList(encoder.layers[i] for i in numbers)
        for config in {id(config): config for config in (model.config, model.wav2vec2.config, encoder.config)}.values():
            config.num_hidden_layers = len(numbers)

    def attention(self, layer: Any) -> tuple[Callable[[Any], Any], list[Any]]:
        heads = layer.attention
        is_normed_first = plain_model(self.model).config.do_stable_layer_norm
        return layer.layer_norm if is_normed_first else _as_it_is, [heads.q_proj, heads.k_proj, heads.v_proj]

    def hears_frames(self, linear: str) -> bool:
        return True  # it has no other linears

    def frame_parts(self) -> tuple[Any, Any]:
        return frame_parts(plain_model(self.model))

    def counted(self, linear: str, n_valid: int, labels: Any) -> Any:
        return slice(0, max(1, self.processor.n_outputs(n_valid)))

    def allow_empty_texts(self) -> None:
        pass  # blanks alone are an empty text

    def freeze_fixed(self) -> None:
        """The convolutions over the samples stay as they are (Baevski et al. 2020, arXiv 2006.11477, section 4.3)."""
        plain_model(self.model).freeze_feature_encoder()

    def inputs(self, features: Features, n_valid: Sequence[int]) -> dict[str, Any]:
        samples = [{"features": f, "n_valid": n, "target_ids": []} for f, n in zip(features, n_valid, strict=True)]
        inputs = collate(samples, self.processor.uses_mask)
        del inputs["labels"]
        return inputs

    def window(self, inputs: dict[str, Any]) -> AbstractContextManager[Any]:
        return nullcontext()  # takes any length

    def loss(self, outputs: Any, inputs: dict[str, Any], labels: Any) -> Any:
        """CTC loss (Graves et al. 2006): -ln p(characters), summed over the batch.

        A clip whose text needs more steps than it has (after a speed-up, say) counts 0 instead of infinity.
        """
        import torch

        model = plain_model(self.model)
        n_outputs = torch.full((labels.shape[0],), outputs.logits.shape[1], dtype=torch.long)
        if "attention_mask" in inputs:
            n_outputs = model._get_feat_extract_output_lengths(inputs["attention_mask"].sum(-1)).clamp(min=0).cpu()
        return self.ctc(outputs.logits, n_outputs, labels, "sum")

    def ctc(self, logits: Any, n_outputs: Any, labels: Any, reduction: str) -> Any:
        """See `loss`. logits: (batch, n_steps, n_characters), of which the first n_outputs (batch,) count."""
        import torch

        log_p = torch.nn.functional.log_softmax(logits.float(), dim=-1).transpose(0, 1)
        counted = labels != IGNORE
        with torch.backends.cudnn.flags(enabled=False):  # cuDNN's CTC takes short labels only, and is not deterministic
            return torch.nn.functional.ctc_loss(
                log_p,
                labels.clamp(min=0),
                n_outputs,
                counted.sum(-1).cpu(),
                blank=self.processor.vocabulary.blank_id,
                reduction=reduction,
                zero_infinity=True,
            )

    def decoder(
        self, windows_s: Sequence[float], language: str | None, task: str | None, tokens_per_s: float | None = None
    ) -> Wav2Vec2Decoder:
        check_task(task)
        return Wav2Vec2Decoder(self, language)


def _as_it_is(hidden: Any) -> Any:
    return hidden


class Wav2Vec2Decoder:
    """Decoder (see models/family.py): the likeliest character of each step, repeats and blanks taken out."""

    def __init__(self, learner: Wav2Vec2Learner, language: str | None):
        processor, words = learner.processor, learner.processor.vocabulary
        self._learner, self.language = learner, language
        self.rules = {"blank_id": words.blank_id, "word_delimiter": words.delimiter, "language": language}
        self.collate = partial(collate, uses_mask=processor.uses_mask)

    def transcribe(
        self, features: Features, n_valid: Sequence[int], window_s: float, states: Sequence[Any] | None = None
    ) -> list[Transcription]:
        """Texts of normalised audio of shape (batch, n_samples)."""
        import torch

        refuse_streams(states)
        model, processor = plain_model(self._learner.model), self._learner.processor
        words = processor.vocabulary
        inputs = self._learner.inputs(features, n_valid)
        inputs["input_values"] = inputs["input_values"].to(model.dtype)
        with torch.no_grad():
            logits = model(**{name: value.to(model.device) for name, value in inputs.items()}).logits
        if not logits.isfinite().all():
            raise NotFiniteError(
                f"the model in {str(logits.dtype).removeprefix('torch.')} answers NaN or infinity on this audio: its "
                "training diverged, or the numbers are too large for this precision; train again with a lower "
                "--learning-rate, or take another checkpoint"
            )
        found = []
        for row, n in zip(logits, n_valid, strict=True):
            n_outputs = processor.n_outputs(n) if processor.uses_mask else len(row)
            ids = collapse(row[:n_outputs].argmax(-1).tolist(), words.blank_id)
            found.append(Transcription(spell(ids, words.characters, words.delimiter), heard=(row, n_outputs)))
        return found

    def losses(self, found: Sequence[Transcription], target_ids: Sequence[list[int]]) -> list[float]:
        import torch

        rows, n_outputs = zip(*(one.heard for one in found), strict=True)
        labels = torch.from_numpy(batch_labels(target_ids)).to(rows[0].device)
        losses: list[float] = self._learner.ctc(torch.stack(rows), torch.tensor(n_outputs), labels, "none").tolist()
        return losses


def collate(samples: Sequence[dict[str, Any]], uses_mask: bool) -> dict[str, Any]:
    """Samples {"features": float32 (n_samples,), "n_valid", "target_ids"} to a batch of tensors.

    Returns input_values (batch, n_samples), labels (batch, n_labels), and with uses_mask attention_mask (batch,
    n_samples): 1 where the clip is, 0 on padding.
    """
    import torch

    mask = np.zeros((len(samples), len(samples[0]["features"])), dtype=np.int64)
    for row, sample in enumerate(samples):
        mask[row, : sample["n_valid"]] = 1
    inputs = {
        "input_values": torch.from_numpy(np.stack([sample["features"] for sample in samples])),
        "labels": torch.from_numpy(batch_labels([sample["target_ids"] for sample in samples])),
    }
    return {**inputs, "attention_mask": torch.from_numpy(mask)} if uses_mask else inputs


def batch_labels(target_ids: Sequence[list[int]]) -> Any:
    """Ids of a batch in one array (batch, n_labels), filled up with IGNORE."""
    labels = np.full((len(target_ids), max(map(len, target_ids))), IGNORE, dtype=np.int64)
    for row, ids in enumerate(target_ids):
        labels[row, : len(ids)] = ids
    return labels


def load_learner(
    source: str, quantise: bool = False, dtype: str = "float32", device: str = "cpu", bits: int = 4
) -> Wav2Vec2Learner:
    """Load a Wav2Vec 2.0 CTC model in `dtype`; with `quantise`, its encoder's linears in 4 bits (NF4) or 8 (int8)."""
    import torch
    from safetensors import SafetensorError
    from transformers import Wav2Vec2ForCTC

    processor = load_processor(source)
    torch_dtype = getattr(torch, dtype)
    options = {
        "dtype": torch_dtype,
        **(quantised_options(bits, torch_dtype, device, Wav2Vec2Learner.unquantised) if quantise else {}),
    }
    try:
        # Masks and dropped layers would be drawn from another random state than the run's own augmentation.
        model = Wav2Vec2ForCTC.from_pretrained(source, apply_spec_augment=False, layerdrop=0.0, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(source, "the model", error) from error
    if quantise:
        same_in_every_mode(model)
    elif device != "cpu":
        model = model.to(device)
    return Wav2Vec2Learner(model, processor)
