"""What a decoding loop gives, and the check of what it is given."""

from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

from ..errors import NotFiniteError


class Decoded(NamedTuple):
    """Tokens of a batch of clips, and what the decoding took."""

    tokens: List[List[int]]  # per clip, without prompt and end token
    is_complete: List[bool]  # per clip: the end token came, before max_new_tokens and before any loop
    phases_ms: Dict[str, float]  # one after the other, such as encoder, decoder (prefill and all steps)
    n_steps: int = 0  # decoder runs, prefill included; 0: this decoder has no steps
    first_token_ms: Optional[float] = None  # from the call to the first token; None: all tokens come at once


def verify_finite(logits: np.ndarray, graph: str, runtime: Any) -> None:
    """Raise NotFiniteError where a graph answers NaN or infinity: seen of transformers in fp16 (NVIDIA/TensorRT#1500)."""
    if not np.isfinite(logits).all():
        raise NotFiniteError(
            "the {} {} in {} {} answers NaN or infinity on this audio: run it in fp32 (export it again with "
            "--precision fp32; of graphs in fp32 build --precision fp32), and if it is fp32 already, train again".format(
                getattr(runtime, "precision", "fp32"), graph, runtime.name, runtime.version
            )
        )
