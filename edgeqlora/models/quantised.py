"""Bases in 4 bits (NF4) and 8 bits (int8) on the bitsandbytes library, the same for every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMES = {4: "NF4", 8: "int8"}
"""What a base is held in, by bits of a weight."""


def quantised_options(bits: int, dtype: Any, device: str, skip: Sequence[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for linears in 4 or 8 bits; modules named in `skip` stay.

    4: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), NF4 in blocks of 64, block scales themselves quantised to 8 bits.
    8: see models/int8.py.
    """
    from transformers import BitsAndBytesConfig

    if bits == 8:
        config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(skip))
        return {"quantization_config": config, "device_map": {"": device}}
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def round_trip(weight: Any, dtype: Any, bits: int) -> Any:
    """The fp32 values that training in `dtype` computes with where this weight (out_features, in_features) is quantised."""
    from edgeqlora.models.int8 import int8_round_trip

    return nf4_round_trip(weight, dtype) if bits == 4 else int8_round_trip(weight, dtype)


def nf4_round_trip(weight: Any, dtype: Any) -> Any:
    """The fp32 values that an NF4 weight with double quantisation stands for, shape (out_features, in_features).

    dtype: in which training held the base, and so quantised it and computed with it. Quantising and dequantising a
    second time gives the same values, so this is exactly what training computed with.
    """
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight.to(dtype).contiguous(), quant_type="nf4", compress_statistics=True)
    return bnb.dequantize_4bit(packed, state).float()


def same_in_every_mode(model: Any) -> None:
    """Have bitsandbytes' linears compute the same in training and evaluation.

    8-bit ones would round their inputs too (see models/int8.py). 4-bit ones are pinned to training mode:
    in eval mode on CPUs with AVX512-BF16 they repack their weights for inference and then fail in the next training
    step ("view of a leaf Variable"), and they compute in bfloat16. They hold no dropout: the mode changes nothing else.
    """
    import bitsandbytes

    from edgeqlora.models.int8 import compute_plainly

    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear8bitLt):
            compute_plainly(module)
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.training = True
            module.train = lambda mode=True, module=module: module


def plain_model(model: Any) -> Any:
    """The transformers model inside PEFT's and DDP's wrappers, adapters active."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
