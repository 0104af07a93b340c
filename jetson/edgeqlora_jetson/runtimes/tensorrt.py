"""Execution by TensorRT: engines that were built on this board, keys and values that never leave the device.

Not run on hardware: tested against stand-ins of TensorRT 8.2, 8.5, 10 and 11 that refuse what the real ones refuse.
"""

import importlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..engines.cache import default_cache_dir, find_engine, read_engine, read_place
from ..engines.request import GRAPHS, optimization_profiles
from ..errors import UserError
from .cudart import Cudart
from .trt_adapters import make_logger
from .trt_engine import DeviceBuffer, IoBuffer, TrtEngine, choose_host_memory


class TensorRt(object):
    """The two engines of a bundle, loaded, with every buffer allocated at the largest size the bundle asks for.

    providers: ["TensorRT"]. version: of TensorRT. threads: 1, the host only gives work out. precision: what the engines
    really have. engines: the records of the engine cache. notes: engines and memory in sentences, for the report. One
    batch is decoded at a time: `encode` ends the one before.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Any,
        threads: Optional[int] = None,
        providers: Optional[Sequence[str]] = None,
        precision: Optional[str] = None,
        cache_dir: Optional[str] = None,
        trt: Any = None,
        cuda: Any = None,
        root: str = "/",
    ) -> None:
        if providers:
            raise UserError(
                "providers={} belong to the onnxruntime runtime, tensorrt has none: leave them out, or ask for the "
                "onnxruntime runtime with TensorrtExecutionProvider".format(", ".join(providers))
            )
        request = bundle.manifest.get("engine_request")
        if not request:
            raise UserError(
                "{}: this bundle asks for no TensorRT engines (engine_request is null): export it for a board whose "
                "profile names a TensorRT version".format(bundle.folder)
            )
        trt = trt or import_tensorrt()
        self._cuda = cuda or Cudart()
        self.version = str(trt.__version__)
        self.providers = ["TensorRT"]
        self.threads = 1
        place = read_place(trt, self._cuda, root)
        self.engines = {
            graph: find_engine(bundle, graph, cache_dir or default_cache_dir(), place, precision) for graph in GRAPHS
        }
        self.precision = " and ".join(sorted({entry["precision"] for entry in self.engines.values()}))
        model = bundle.manifest["model"]
        self.n_layers, self._n_heads, self._head_dim = model["n_layers"], model["n_heads"], model["head_dim"]
        self._vocab_size = model["vocab_size"]
        self._max_batch, self._max_positions = request["max_batch"], request["max_positions"]
        self._stream = self._cuda.create_stream()
        logger = make_logger(trt)
        loaded: Dict[str, TrtEngine] = {}
        for graph, entry in self.engines.items():
            profiles = optimization_profiles(request, graph)
            loaded[graph] = TrtEngine(trt, read_engine(entry), entry["path"], profiles, logger, self._stream)
        self._encoder = loaded["encoder"].open()
        self._prefill, self._step = (loaded["decoder"].open([name]) for name in ("prefill", "step"))
        self.api = self._encoder.api
        self._name_tensors()
        self._allocate(request)
        self.notes = describe_engines(self) + [
            "mel, tokens and logits in {} host memory, {}".format(
                self.host_memory, "zero-copy" if self.zero_copy else "copied to and from the device"
            )
        ]

    def encode(self, mel: np.ndarray) -> Tuple[int, int]:
        """Mel float32 (batch, n_mels, n_frames) -> (batch, n_audio); keys and values stay on the device.

        Raises UserError for a batch or a window that the engines were not asked for.
        """
        batch, _, n_frames = mel.shape
        self._encoder.set_shapes({"mel": mel.shape})
        self._encoder.set_addresses(self._encoder_addresses)
        self._mel.upload(mel)
        self._encoder.execute()
        # Waits: encoder_ms would be counted as the decoder's else, and the next mel may be written.
        self._cuda.synchronize(self._stream)
        return batch, n_frames // 2

    def start(self, cross: Tuple[int, int]) -> "TrtDecoderState":
        """Begin to decode the batch that was encoded last; `cross` is what encode returned."""
        return TrtDecoderState(self, cross[0], cross[1])

    def _name_tensors(self) -> None:
        layers = range(self.n_layers)
        self._cross_names = [name.format(i) for i in layers for name in ("cross_k_{}", "cross_v_{}")]
        self._past_names = [name.format(i) for i in layers for name in ("past_k_{}", "past_v_{}")]
        self._present_names = [name.format(i) for i in layers for name in ("present_k_{}", "present_v_{}")]
        self._encoder.check_names(["mel"], self._cross_names)
        for context in (self._prefill, self._step):
            context.check_names(["tokens"] + self._past_names + self._cross_names, ["logits"] + self._present_names)

    def _allocate(self, request: Dict[str, Any]) -> None:
        """All buffers, once, at their largest: nothing is allocated while decoding."""
        cuda, stream, encoder, decoder = self._cuda, self._stream, self._encoder.tensors, self._step.tensors
        self.host_memory = choose_host_memory(cuda.gpu())
        self.zero_copy = self.host_memory == "mapped"
        mels = [profile.inputs["mel"]["max"] for profile in optimization_profiles(request, "encoder")]
        n_frames = max(shape[2] for shape in mels)
        n_tokens = max(profile.inputs["tokens"]["max"][1] for profile in optimization_profiles(request, "decoder"))
        per_position = self._max_batch * self._n_heads * self._head_dim

        def io_buffer(n_items: int, dtype: np.dtype) -> IoBuffer:
            return IoBuffer(cuda, n_items, dtype, self.host_memory, stream)

        self._mel = io_buffer(self._max_batch * mels[0][1] * n_frames, encoder["mel"].dtype)
        self._tokens = io_buffer(self._max_batch * n_tokens, decoder["tokens"].dtype)
        self._logits = io_buffer(self._max_batch * self._vocab_size, decoder["logits"].dtype)
        self._cross = {
            name: DeviceBuffer(cuda, per_position * (n_frames // 2), decoder[name].dtype) for name in self._cross_names
        }
        caches = [
            [
                DeviceBuffer(cuda, per_position * self._max_positions, decoder[name].dtype).address
                for name in self._past_names
            ]
            for _ in range(2)
        ]
        cross = {name: buffer.address for name, buffer in self._cross.items()}
        self._encoder_addresses = dict(cross, mel=self._mel.address)
        self._decoder_addresses = dict(cross, tokens=self._tokens.address, logits=self._logits.address)
        # Two sets of keys and values: a step reads one and writes the other, then they change places.
        self._cache_addresses = [
            dict(list(zip(self._past_names, caches[past])) + list(zip(self._present_names, caches[1 - past])))
            for past in (0, 1)
        ]


class TrtDecoderState(object):
    """One batch being decoded.

    n_past: positions decoded so far.
    """

    def __init__(self, runtime: TensorRt, batch: int, n_audio: int) -> None:
        self._runtime = runtime
        self.batch, self.n_past, self._n_runs = batch, 0, 0
        heads, head_dim = runtime._n_heads, runtime._head_dim
        self._cross_shapes = {
            name: (batch, heads, head_dim, n_audio) if "_k_" in name else (batch, heads, n_audio, head_dim)
            for name in runtime._cross_names
        }

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens int32 (batch, n_new), following those already given -> logits float32 (batch, vocab) of the last.

        Raises UserError beyond the positions that the bundle asked for, and when the first logits are not finite.
        """
        runtime = self._runtime
        n_new = tokens.shape[1]
        if self.n_past + n_new > runtime._max_positions:
            raise UserError(
                "position {} is beyond the {} that the engines were asked for: export the bundle again with a higher "
                "limit of tokens".format(self.n_past + n_new, runtime._max_positions)
            )
        context = runtime._prefill if self.n_past == 0 else runtime._step
        past_shape = (self.batch, runtime._n_heads, self.n_past, runtime._head_dim)
        shapes = dict(self._cross_shapes, tokens=tokens.shape)
        shapes.update(dict.fromkeys(runtime._past_names, past_shape))
        context.set_shapes(shapes)
        context.set_addresses(runtime._decoder_addresses)
        context.set_addresses(runtime._cache_addresses[self._n_runs % 2])
        runtime._tokens.upload(tokens)
        context.execute()
        self.n_past += n_new
        self._n_runs += 1
        logits = runtime._logits.download((self.batch, runtime._vocab_size))
        # Seen of transformers in fp16 (NVIDIA/TensorRT#1500, #2118): every later token would be nonsense.
        if self._n_runs == 1 and not np.isfinite(logits).all():
            raise UserError(
                "the {} engines of TensorRT {} answer NaN or infinity on this audio: build them in fp32 "
                "(build --precision fp32) and run with --precision fp32".format(runtime.precision, runtime.version)
            )
        return logits


def import_tensorrt() -> Any:
    """TensorRT's Python package. Raises UserError saying where it comes from."""
    try:
        module = importlib.import_module("tensorrt")
        if not hasattr(
            module, "Builder"
        ):  # a folder of that name, or the type stubs alone, imports as an empty package
            raise ImportError(
                "what is called tensorrt here has no Builder: {}".format(getattr(module, "__path__", module))
            )
    except (ImportError, OSError) as error:  # OSError: the package loads libnvinfer by ctypes
        raise UserError(
            "TensorRT's Python package cannot be imported ({}). On a Jetson it comes with JetPack: sudo apt install "
            "python3-libnvinfer, and use the system's Python; a pip package for desktop GPUs does not run on a "
            "Jetson. Without it use the onnxruntime runtime".format(error)
        ) from error
    return module


def describe_engines(runtime: TensorRt) -> List[str]:
    """One line an engine for reports: graph, precision, what was kept in fp32, when it was built."""
    return [
        "{}: {}{}{}, built {} in {:.0f} s".format(
            graph,
            entry["precision"],
            " without TF32" if entry.get("tf32") is False else "",
            ", {} layers kept in fp32".format(entry["n_fp32_layers"]) if entry.get("n_fp32_layers") else "",
            entry["created_utc"],
            entry["build_s"],
        )
        for graph, entry in sorted(runtime.engines.items())
    ]
