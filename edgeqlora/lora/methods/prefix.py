"""Prefix tuning (Li and Liang 2021, arXiv 2101.00190): trained keys and values that a decoder reads in front of the text.

PEFT holds, saves and loads them; its own forward pass does not take speech models (it wants input_ids: peft#1988). So the
decoder gets them here, as the beginning of its key/value cache. They stand at no position: the text keeps its own.
"""

from __future__ import annotations

from typing import Any

from edgeqlora.errors import UserError
from edgeqlora.models.family import CachedDecoder, Learner


def prefix_config(learner: Learner, n_tokens: int) -> Any:
    """PEFT's configuration of a prefix of n_tokens. UserError for a model without a decoder that has a cache."""
    from peft import PrefixTuningConfig

    decoder = _decoder_of(learner)
    return PrefixTuningConfig(
        num_virtual_tokens=n_tokens,
        num_layers=decoder.n_layers,
        num_attention_heads=decoder.n_heads,
        token_dim=decoder.width,
        num_transformer_submodules=1,
    )


def with_prefix(learner: Learner, n_tokens: int) -> Any:
    """PEFT's model around the learner's, with a new prefix that its decoder reads: random at first, of variance 1."""
    from peft import PeftModel

    model = PeftModel(learner.model, prefix_config(learner, n_tokens))
    put_prefix(learner, model)
    return model


def put_prefix(learner: Learner, model: Any) -> None:
    """Have the learner's decoder read the prefix of `model` (PEFT's, around it): in training, scoring and decoding alike."""
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    decoder, cache_name = _decoder_of(learner).module, _decoder_of(learner).cache_name
    n_tokens = model.peft_config["default"].num_virtual_tokens

    def begin(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        import torch

        tokens, cache = given["input_ids"], given.get(cache_name)
        if cache is None:
            cache = EncoderDecoderCache(model.get_prompt(len(tokens)), DynamicCache())
        elif cache.get_seq_length() == 0:
            cache.self_attention_cache = model.get_prompt(len(tokens))
        first = cache.get_seq_length() - n_tokens
        places = torch.arange(first, first + tokens.shape[1], device=tokens.device).expand(tokens.shape)
        return args, {**given, cache_name: cache, "use_cache": True, "position_ids": places}

    decoder.register_forward_pre_hook(begin, with_kwargs=True)


def _decoder_of(learner: Learner) -> CachedDecoder:
    decoder = learner.cached_decoder()
    if decoder is None:
        raise UserError(
            "method='prefix' needs a decoder that keeps keys and values of the text, and this model has none: allowed are "
            "qlora, lora, ia3 and full"
        )
    return decoder
