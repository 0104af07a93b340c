"""The smallest ONNX model, y = x + x, written byte by byte: to see which provider of onnxruntime really runs."""

from typing import Any, List, NamedTuple, Optional

_FLOAT = 1
_CPU = "CPUExecutionProvider"
# Sends the data to a service of Microsoft's: no provider of this machine.
_REMOTE = ("AzureExecutionProvider",)


class Probe(NamedTuple):
    """How one provider did."""

    provider: str
    works: bool
    reason: Optional[str]
    """Why it does not; None: it does."""


def tiny_model() -> bytes:
    """ModelProto of IR version 7, opset 13, with one Add, x and y float (1,). Field numbers: onnx/onnx.proto."""
    tensor = _message(1, _number(1, _FLOAT) + _message(2, _message(1, _number(1, 1))))
    value = [_message(field, _text(1, name) + _message(2, tensor)) for field, name in ((11, "x"), (12, "y"))]
    node = _message(1, _text(1, "x") + _text(1, "x") + _text(2, "y") + _text(4, "Add"))
    graph = node + _text(2, "probe") + value[0] + value[1]
    return _number(1, 7) + _message(7, graph) + _message(8, _number(2, 13))


def probe_providers(onnxruntime: Any) -> List[Probe]:
    """Load and run the tiny model with each provider this onnxruntime was built with.

    A provider that is listed and whose libraries are missing or do not match falls back to the CPU in silence
    (onnxruntime 1.12.1 for JetPack 5 does always): so the fallback is forbidden where onnxruntime can (1.17 and newer),
    and the session's own list is asked.
    """
    import numpy as np

    probes = []
    for provider in onnxruntime.get_available_providers():
        if provider in _REMOTE:
            continue
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        if provider != _CPU:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        try:
            session = onnxruntime.InferenceSession(tiny_model(), options, providers=[provider])
            active = session.get_providers()
            result = session.run(None, {"x": np.array([21.0], dtype=np.float32)})[0]
        except Exception as error:  # each provider raises its own kinds
            probes.append(
                Probe(provider, False, str(error).strip().splitlines()[0] if str(error).strip() else repr(error))
            )
            continue
        if provider not in active:
            reason = "listed, but not loaded: a library is missing or of another version; the CPU ran instead"
            probes.append(Probe(provider, False, reason))
        elif float(result[0]) != 42.0:
            probes.append(Probe(provider, False, "21 + 21 gave {}".format(float(result[0]))))
        else:
            probes.append(Probe(provider, True, None))
    return probes


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _message(field: int, payload: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode("ascii"))


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(parts + [value])
