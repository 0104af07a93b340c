"""NF4 bases on the bitsandbytes library, the same for every family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def nf4_options(dtype: Any, device: str, skip: Sequence[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for linears in NF4 with double quantisation; modules named in `skip` stay.

    QLoRA (Dettmers et al. 2023, arXiv 2305.14314): NF4 in blocks of 64, block scales themselves quantised to 8 bits.
    """
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(skip),
    )
    return {"quantization_config": config, "device_map": {"": device}}


def nf4_round_trip(weight: Any, dtype: Any) -> Any:
    """The fp32 values that an NF4 weight with double quantisation stands for, shape (out_features, in_features).

    dtype: in which training held the base, and so quantised it and computed with it. Quantising and dequantising a
    second time gives the same values, so this is exactly what training computed with.
    """
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight.to(dtype).contiguous(), quant_type="nf4", compress_statistics=True)
    return bnb.dequantize_4bit(packed, state).float()


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


def plain_model(model: Any) -> Any:
    """The transformers model inside PEFT's and DDP's wrappers, adapters active."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
