"""Loading Whisper for training and scoring: quantisation, the linears that get adapters, parts of the network."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError

GROUPS = ("encoder", "cross", "decoder")


@dataclass
class SpeechModel:
    """A model with what belongs to it."""

    model: Any
    """transformers WhisperForConditionalGeneration."""
    tokenizer: Any
    feature_extractor: Any
    source: str
    """Folder or hub name it was loaded from."""

    @property
    def spelling(self) -> dict[str, str] | None:
        """OpenAI's table of British to American spellings, where the folder has it (normalizer.json)."""
        return getattr(self.tokenizer, "english_spelling_normalizer", None)


def check_is_whisper(source: str) -> None:
    """Raise before anything heavy if `source` is a folder that holds no Whisper model."""
    folder = Path(source)
    if not folder.exists():
        if source.count("/") == 1 and not source.startswith((".", "/")):
            stay_offline_without_network()
            return  # a name on the hub
        raise UserError(
            f"no model at {source!r}: give a transformers folder, or a hub name such as openai/whisper-tiny"
        )
    config = folder / "config.json"
    if not config.is_file():
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) if folder.is_dir() else "a file"
        raise UserError(f"{source} is not a transformers model folder: no config.json in it (found: {found})")
    from edgeqlora_jetson.files import read_json

    content = read_json(config, "config.json")
    family = content.get("model_type") if isinstance(content, dict) else None
    if family != "whisper":
        raise UserError(
            f"{source} holds a {family!r} model; this version trains and exports model_type 'whisper' "
            "(CTC families are planned): choose a Whisper model"
        )


def stay_offline_without_network() -> None:
    """Without a way to the hub, use what is in its cache at once: the hub's client would try for minutes.

    Call before transformers is imported. The name of the hub is looked up, nothing is sent.
    """
    import socket
    from urllib.parse import urlsplit

    if any(os.environ.get(name) for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return  # decided already, or names are looked up by the proxy
    try:
        socket.getaddrinfo(urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname, 443)
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"


def load_tokenizer(source: str) -> tuple[Any, Any]:
    """Tokenizer and feature extractor of a model folder, without loading weights."""
    from transformers import WhisperFeatureExtractor, WhisperTokenizer

    from edgeqlora.quiet import hush_transformers

    hush_transformers()
    try:
        return WhisperTokenizer.from_pretrained(source), WhisperFeatureExtractor.from_pretrained(source)
    except (OSError, ValueError) as error:
        if not Path(source).exists() and os.environ.get("HF_HUB_OFFLINE") == "1":
            raise UserError(
                f"{source} is neither a folder here nor in the hub's cache, and the hub cannot be reached: "
                "give a folder, or run this once with a network"
            ) from error
        raise UserError(f"{source}: tokenizer or feature extractor cannot be loaded: {_first_line(error)}") from error


def load_model(source: str, quantise: bool = False, dtype: str = "float32", device: str = "cpu") -> SpeechModel:
    """Load Whisper in `dtype`; with `quantise`, its linears as NF4 with double quantisation.

    Quantisation follows QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4 in blocks of 64, block scales
    themselves quantised to 8 bits. The projection is tied to the token embedding and stays as it is.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import BitsAndBytesConfig, WhisperForConditionalGeneration

    tokenizer, feature_extractor = load_tokenizer(source)
    torch_dtype = getattr(torch, dtype)
    options: dict[str, Any] = {"dtype": torch_dtype}
    if quantise:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch_dtype,
            llm_int8_skip_modules=["proj_out"],
        )
        options["device_map"] = {"": device}
    try:
        model = WhisperForConditionalGeneration.from_pretrained(source, **options)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{source}: the model cannot be loaded: {_first_line(error)}") from error
    if quantise:
        keep_linear4bit_in_train_mode(model)
    elif device != "cpu":
        model = model.to(device)
    # Forced ids of old checkpoints would be trained on by nobody and obeyed by generate(): the prompt is ours to give.
    model.generation_config.forced_decoder_ids = None
    return SpeechModel(model, tokenizer, feature_extractor, source)


def keep_linear4bit_in_train_mode(model: Any) -> None:
    """Pin bitsandbytes' 4-bit linears to training mode.

    In eval mode on CPUs with AVX512-BF16 they repack their weights for inference and then fail in the next training
    step ("view of a leaf Variable"), and they compute in bfloat16. They hold no dropout: the mode changes nothing else.
    """
    import bitsandbytes

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.training = True
            module.train = lambda mode=True, module=module: module


def adapted_linears(model: Any) -> dict[str, list[str]]:
    """Full names of the linears that get LoRA, by group: encoder, cross (attention over the audio), decoder.

    All linears but `proj_out`: it is tied to the token embedding, and an adapter there would edit both.
    """
    import torch

    groups: dict[str, list[str]] = {group: [] for group in GROUPS}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name.endswith("proj_out"):
            continue
        if ".encoder.layers." in name:
            groups["encoder"].append(name)
        elif ".encoder_attn." in name:
            groups["cross"].append(name)
        elif ".decoder.layers." in name:
            groups["decoder"].append(name)
    return groups


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
