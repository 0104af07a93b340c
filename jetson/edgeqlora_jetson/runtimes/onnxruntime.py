"""Execution by onnxruntime, 1.10 to current: one encoder session, one decoder session."""

import os
import sys
from typing import Any, List, Optional, Sequence

import numpy as np

from ..errors import UserError


class OnnxRuntime(object):
    """The two graphs of a bundle, loaded.

    providers: the execution providers really active. version: of onnxruntime. threads: intra-op threads.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Any, threads: Optional[int] = None, providers: Optional[Sequence[str]] = None) -> None:
        onnxruntime = _import_onnxruntime()
        model = bundle.manifest["model"]
        self.version = onnxruntime.__version__
        self.threads = _choose_threads(bundle, threads)
        self.n_layers = model["n_layers"]
        self._kv_shape = (model["n_heads"], model["head_dim"])
        self._onnxruntime = onnxruntime
        self._encoder = _open_session(onnxruntime, bundle.graph_path("encoder"), self.threads, providers)
        self._decoder = _open_session(onnxruntime, bundle.graph_path("decoder"), self.threads, providers)
        self.providers = list(self._encoder.get_providers())
        self._device = "cuda" if "CUDAExecutionProvider" in self.providers else "cpu"
        layers = range(self.n_layers)
        self._cross_names = [name.format(i) for i in layers for name in ("cross_k_{}", "cross_v_{}")]
        self._past_names = [name.format(i) for i in layers for name in ("past_k_{}", "past_v_{}")]
        self._present_names = [name.format(i) for i in layers for name in ("present_k_{}", "present_v_{}")]
        _check_names(self._encoder, bundle.graph_path("encoder"), ["mel"], self._cross_names)
        _check_names(
            self._decoder,
            bundle.graph_path("decoder"),
            ["tokens"] + self._past_names + self._cross_names,
            ["logits"] + self._present_names,
        )

    def encode(self, mel: np.ndarray) -> List[Any]:
        """Mel float32 (batch, n_mels, n_frames) -> cross-attention keys and values of all decoder layers.

        They stay in the runtime's memory (on its device): OrtValues in the order k_0, v_0, k_1, ...
        """
        binding = self._encoder.io_binding()
        mel = np.ascontiguousarray(mel, dtype=np.float32)  # a name of its own: the binding does not keep it alive
        binding.bind_cpu_input("mel", mel)
        for name in self._cross_names:
            binding.bind_output(name, self._device)
        self._encoder.run_with_iobinding(binding)
        return binding.get_outputs()

    def start(self, cross: List[Any]) -> "DecoderState":
        """Begin to decode a batch whose encoder output is `cross`."""
        return DecoderState(self, cross)


class DecoderState(object):
    """One batch being decoded: holds its keys and values, which are never copied out of the runtime.

    n_past: positions decoded so far.
    """

    def __init__(self, runtime: OnnxRuntime, cross: List[Any]) -> None:
        self._runtime = runtime
        self._cross = cross
        self.batch = cross[0].shape()[0]
        self.n_past = 0
        self._binding = runtime._decoder.io_binding()
        for name, value in zip(runtime._cross_names, cross):
            self._binding.bind_ortvalue_input(name, value)
        n_heads, head_dim = runtime._kv_shape
        empty = np.zeros((self.batch, n_heads, 0, head_dim), dtype=np.float32)
        past = runtime._onnxruntime.OrtValue.ortvalue_from_numpy(empty)
        self._past = [past] * (2 * runtime.n_layers)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens int32 (batch, n_new), following those already given -> logits float32 (batch, vocab) of the last."""
        runtime, binding = self._runtime, self._binding
        tokens = np.ascontiguousarray(tokens, dtype=np.int32)
        binding.bind_cpu_input("tokens", tokens)
        for name, value in zip(runtime._past_names, self._past):
            binding.bind_ortvalue_input(name, value)
        # Bound anew each time: a bound output keeps its buffer, whose shape was that of the step before.
        binding.clear_binding_outputs()
        binding.bind_output("logits", "cpu")
        for name in runtime._present_names:
            binding.bind_output(name, runtime._device)
        runtime._decoder.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        self._past = outputs[1:]
        self.n_past += tokens.shape[1]
        return outputs[0].numpy()


def pip_line() -> str:
    """The pip command that brings onnxruntime for this Python."""
    if sys.version_info < (3, 7):
        # The last release with wheels for 3.6; older pip does not find its manylinux_2_17 wheels.
        return "python3 -m pip install -U 'pip>=19.3' && python3 -m pip install onnxruntime==1.10.0"
    return "python3 -m pip install onnxruntime"


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "onnxruntime, which executes the bundle, cannot be imported ({}). Install it: {}".format(error, pip_line())
        ) from error
    return onnxruntime


def _choose_threads(bundle: Any, threads: Optional[int]) -> int:
    if threads is None:
        threads = (bundle.manifest.get("profile") or {}).get("threads")
    n_usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(threads) if threads else n_usable


def _open_session(onnxruntime: Any, path: str, threads: int, providers: Optional[Sequence[str]]) -> Any:
    available = onnxruntime.get_available_providers()
    wanted = list(providers) if providers else ["CPUExecutionProvider"]
    for provider in wanted:
        if provider not in available:
            raise UserError(
                "execution provider {!r} is not in this onnxruntime, allowed: {}".format(provider, ", ".join(available))
            )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads sleep instead of spinning: two sessions on few cores otherwise take the processor from each other
    # (a 2 s clip beside other work on two cores: 160 ms spinning, 60 ms sleeping), and spinning costs energy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path, sess_options=options, providers=wanted)
    except Exception as error:  # onnxruntime's own exception classes differ from release to release
        raise UserError(
            "{}: onnxruntime {} cannot load this graph: {}".format(
                path, onnxruntime.__version__, str(error).strip().split("\n")[0]
            )
        ) from error


def _check_names(session: Any, path: str, inputs: List[str], outputs: List[str]) -> None:
    has_inputs = {node.name for node in session.get_inputs()}
    has_outputs = {node.name for node in session.get_outputs()}
    missing = sorted(set(inputs) - has_inputs) + sorted(set(outputs) - has_outputs)
    if missing:
        raise UserError("{}: this graph lacks {}: export the bundle again".format(path, ", ".join(missing)))
