"""Decoding loops over a runtime's named tensors, each written once for every runtime, and ids to text."""

from typing import Any, Dict

from .buffered import BufferedDecoder
from .ctc import CtcDecoder, collapse
from .decoded import Decoded, verify_finite
from .key_value import KeyValueDecoder
from .loops import loop_start, said_before
from .texts import Characters, Detokenizer, spell

DECODERS: Dict[str, Any] = {"greedy": KeyValueDecoder, "greedy-buffered": BufferedDecoder, "ctc": CtcDecoder}


def open_decoder(bundle: Any, runtime: Any) -> Any:
    """The decoding loop that the bundle's decoder.kind names."""
    return DECODERS[bundle.manifest["decoder"]["kind"]](runtime, bundle.manifest)


__all__ = [
    "BufferedDecoder",
    "Characters",
    "CtcDecoder",
    "Decoded",
    "Detokenizer",
    "KeyValueDecoder",
    "collapse",
    "loop_start",
    "open_decoder",
    "said_before",
    "spell",
    "verify_finite",
]
