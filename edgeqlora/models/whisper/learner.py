"""Whisper with its weights: loading, quantisation, batches, loss and greedy decoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import numpy as np

from edgeqlora.data.batching import IGNORE
from edgeqlora.models.family import CachedDecoder, Features, Transcription, cannot_load, refuse_streams
from edgeqlora.models.quantised import plain_model, quantised_options, same_in_every_mode
from edgeqlora.models.whisper.processor import WhisperProcessor, load_processor
from edgeqlora_export.whisper.checks import end_ids
from edgeqlora_export.whisper.decoding import CACHE_NAME, decoding_spec, torch_decode, torch_encode
from edgeqlora_export.whisper.detokenizer import detokenizer_table
from edgeqlora_export.whisper.frames import frame_parts
from edgeqlora_export.whisper.windowed import FRAMES_PER_S, windowed
from edgeqlora_jetson.decoders import Detokenizer


class WhisperLearner:
    """Learner (see models/family.py) of a WhisperForConditionalGeneration."""

    unquantised = ("proj_out",)
    """Tied to the token embedding."""
    roles: ClassVar = {
        "q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output", "fc1": "inner", "fc2": "outer",
    }  # fmt: skip
    on_rows: Callable[[Any], None] | None = None

    def __init__(self, model: Any, processor: WhisperProcessor):
        self.model, self.processor = model, processor
        self.tokenizer = processor.tokenizer

    def blocks(self) -> dict[str, list[str]]:
        """Encoder layers, the decoder's attention over the audio, and the decoder layers around it.

        `proj_out` is in none: it is tied to the token embedding, and an adapter there would edit both.
        """
        config = plain_model(self.model).config
        decoder = [f"model.decoder.layers.{i}" for i in range(config.decoder_layers)]
        return {
            "encoder": [f"model.encoder.layers.{i}" for i in range(config.encoder_layers)],
            "decoder": decoder,
            "cross": [f"{name}.encoder_attn" for name in decoder],
        }

    def cached_decoder(self) -> CachedDecoder:
        model = plain_model(self.model)
        config = model.config
        heads, width = config.decoder_attention_heads, config.d_model
        return CachedDecoder(model.model.decoder, CACHE_NAME, config.decoder_layers, heads, width)

    def layer_stacks(self) -> dict[str, Any]:
        model = plain_model(self.model).model
        return {"encoder": model.encoder.layers, "decoder": model.decoder.layers}

    def keep_layers(self, stack: str, numbers: Sequence[int]) -> None:
        import torch

        model = plain_model(self.model)
        part = getattr(model.model, stack)
        part.layers = torch.nn.ModuleList(part.layers[i] for i in numbers)
        for config in {id(config): config for config in (model.config, part.config)}.values():
            setattr(config, f"{stack}_layers", len(numbers))
            if stack == "encoder":
                config.num_hidden_layers = len(numbers)
        if stack == "decoder":
            for number, layer in enumerate(part.layers):  # their places in the K/V cache
                layer.self_attn.layer_idx = layer.encoder_attn.layer_idx = number
            model.generation_config.alignment_heads = None  # they name layers by number

    def attention(self, layer: Any) -> tuple[Callable[[Any], Any], list[Any]]:
        heads = layer.self_attn
        return layer.self_attn_layer_norm, [heads.q_proj, heads.k_proj, heads.v_proj]

    def hears_frames(self, linear: str) -> bool:
        return linear.startswith("model.encoder.") or linear.endswith((".encoder_attn.k_proj", ".encoder_attn.v_proj"))

    def frame_parts(self) -> tuple[Any, Any]:
        return frame_parts(plain_model(self.model))

    def counted(self, linear: str, n_valid: int, labels: Any) -> Any:
        if self.hears_frames(linear):
            return slice(0, -(-n_valid // 2))  # the second convolution halves the frames
        return labels.flatten() != IGNORE

    def allow_empty_texts(self) -> None:
        """Take the end of text out of begin_suppress_tokens, where every released Whisper has it (with the space)."""
        model, generation = plain_model(self.model), self.processor.generation
        ends = end_ids(model.config, generation)
        for settings in (model.generation_config, generation):
            suppressed = [i for i in settings.begin_suppress_tokens or () if i not in ends]
            settings.begin_suppress_tokens = suppressed or None

    def freeze_fixed(self) -> None:
        plain_model(self.model).get_encoder().embed_positions.requires_grad_(False)  # fixed sinusoids

    def inputs(self, features: Features, n_valid: Sequence[int]) -> dict[str, Any]:
        import torch

        config = plain_model(self.model).config
        ids = [config.decoder_start_token_id, *range(0, config.vocab_size, max(1, config.vocab_size // 16))]
        return {
            "input_features": torch.from_numpy(features),
            "decoder_input_ids": torch.tensor([ids[: config.max_target_positions]] * len(features)),
        }

    def window(self, inputs: dict[str, Any]) -> AbstractContextManager[Any]:
        window: AbstractContextManager[Any] = windowed(
            plain_model(self.model), inputs["input_features"].shape[-1] / FRAMES_PER_S
        )
        return window

    def loss(self, outputs: Any, inputs: dict[str, Any], labels: Any) -> Any:
        import torch

        return torch.nn.functional.cross_entropy(
            outputs.logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum"
        )

    def decoder(
        self, windows_s: Sequence[float], language: str | None, task: str | None, tokens_per_s: float | None = None
    ) -> WhisperDecoder:
        """`decoding_spec`'s rules, which also go into the bundle: training, evaluation and board say the same."""
        model = plain_model(self.model)
        spec = decoding_spec(
            model, self.tokenizer, self.processor.generation, list(windows_s), language, task, tokens_per_s
        )
        return WhisperDecoder(self, spec)


class WhisperDecoder:
    """Decoder (see models/family.py): greedy tokens with a K/V cache."""

    def __init__(self, learner: WhisperLearner, spec: dict[str, Any]):
        self._learner, self.spec = learner, spec
        # The board's table, not the tokenizer's decode: that takes letters of added tokens for bytes.
        vocab_size = plain_model(learner.model).config.vocab_size
        self._detokenizer = Detokenizer(detokenizer_table(learner.tokenizer, vocab_size))
        self.language: str | None = spec["language"]
        self.collate = partial(collate, prompt_ids=spec["prompt_ids"], pad_id=spec["eos_ids"][0])
        self.rules = {key: spec[key] for key in ("prompt_ids", "language", "task", "max_new_tokens")}

    def transcribe(
        self, features: Features, n_valid: Sequence[int], window_s: float, states: Sequence[Any] | None = None
    ) -> list[Transcription]:
        """Texts of log-mels of shape (batch, n_mels, 100 * window_s)."""
        refuse_streams(states)
        model, limit = plain_model(self._learner.model), self.spec["max_new_tokens"][str(float(window_s))]
        heard = torch_encode(model, features)
        tokens, ended = torch_decode(model, heard, self.spec, limit, self._learner.on_rows)
        return [
            Transcription(self._detokenizer(ids), is_complete=end, heard=row)
            for ids, end, row in zip(tokens, ended, heard, strict=True)
        ]

    def losses(self, found: Sequence[Transcription], target_ids: Sequence[list[int]]) -> list[float]:
        import torch

        model = plain_model(self._learner.model)
        texts = batch_texts(target_ids, self.spec["prompt_ids"], self.spec["eos_ids"][0])
        ids, labels = (texts[name].to(model.device) for name in ("decoder_input_ids", "labels"))
        heard = torch.stack([one.heard for one in found])
        with torch.no_grad():
            logits = model(encoder_outputs=(heard,), decoder_input_ids=ids, use_cache=False).logits
        # Vocabulary last: over another axis torch adds 50,000 exponentials one by one, which loses 0.0002 nats a token.
        of_ids = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none"
        )
        losses: list[float] = of_ids.view(len(found), -1).sum(1).tolist()
        return losses


def collate(samples: Sequence[dict[str, Any]], prompt_ids: list[int], pad_id: int) -> dict[str, Any]:
    """Samples {"features": float32 (n_mels, n_frames), "target_ids": text ids + end} to a batch of tensors.

    Returns input_features (batch, n_mels, n_frames), decoder_input_ids and labels (batch, n_tokens): the decoder reads
    prompt + text and must say text + end; the loss passes over the prompt, which decoding never has to guess.
    """
    import torch

    features = torch.from_numpy(np.stack([sample["features"] for sample in samples]))
    return {
        "input_features": features,
        **batch_texts([sample["target_ids"] for sample in samples], prompt_ids, pad_id),
    }


def batch_texts(target_ids: Sequence[list[int]], prompt_ids: list[int], pad_id: int) -> dict[str, Any]:
    """The part of `collate` that the decoder reads and must say."""
    import torch

    n_prompt = len(prompt_ids)
    longest = max(map(len, target_ids)) + n_prompt - 1
    inputs = np.full((len(target_ids), longest), pad_id, dtype=np.int64)
    labels = np.full((len(target_ids), longest), IGNORE, dtype=np.int64)
    for row, target in enumerate(target_ids):
        end = n_prompt - 1 + len(target)
        inputs[row, :end] = prompt_ids + target[:-1]
        labels[row, n_prompt - 1 : end] = target
    return {"decoder_input_ids": torch.from_numpy(inputs), "labels": torch.from_numpy(labels)}


def load_learner(
    source: str, quantise: bool = False, dtype: str = "float32", device: str = "cpu", bits: int = 4
) -> WhisperLearner:
    """Load Whisper in `dtype`; with `quantise`, its linears in 4 bits (NF4) or 8 (int8)."""
    import torch
    from safetensors import SafetensorError
    from transformers import WhisperForConditionalGeneration

    processor = load_processor(source)
    torch_dtype = getattr(torch, dtype)
    options = {
        "dtype": torch_dtype,
        **(quantised_options(bits, torch_dtype, device, WhisperLearner.unquantised) if quantise else {}),
    }
    try:
        model = WhisperForConditionalGeneration.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise cannot_load(source, "the model", error) from error
    if quantise:
        same_in_every_mode(model)
    elif device != "cpu":
        model = model.to(device)
    # Forced ids of old checkpoints would be trained on by nobody and obeyed by generate(): the prompt is ours to give.
    model.generation_config.forced_decoder_ids = None
    return WhisperLearner(model, processor)
