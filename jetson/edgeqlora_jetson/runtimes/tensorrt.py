"""Execution by TensorRT: engines that were built on this board, kept tensors that never leave the device.

Not run on hardware: tested against stand-ins of TensorRT 8.2, 8.5, 10 and 11 that refuse what the real ones refuse.
"""

import importlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from ..engines.cache import default_cache_dir, find_engine, read_engine, read_place
from ..engines.request import optimization_profiles
from ..errors import UserError
from .cudart import Cudart
from .trt_adapters import make_logger
from .trt_engine import DeviceBuffer, IoBuffer, TrtContext, TrtEngine, choose_host_memory


class KeptTensor(object):
    """An output that stayed on the device: good as an input until the graph that made it runs again (twice, in a loop)."""

    def __init__(self, address: int, shape: Tuple[int, ...]) -> None:
        self.address, self.shape = address, shape


class TensorRt(object):
    """The engines of a bundle, loaded, with every buffer allocated at the largest size the bundle asks for.

    providers: ["TensorRT"]. version: of TensorRT. threads: 1, the host only gives work out. precision: what the engines
    really have. engines: the records of the engine cache. notes: engines and memory in sentences, for the report. One
    batch is decoded at a time: a run of the encoder ends the one before.
    """

    name = "tensorrt"
    takes_any_length = False

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
            graph: find_engine(bundle, graph, cache_dir or default_cache_dir(), place, precision)
            for graph in bundle.graphs
        }
        self.precision = " and ".join(sorted({entry["precision"] for entry in self.engines.values()}))
        self._stream = self._cuda.create_stream()
        logger = make_logger(trt)
        self._engines: Dict[str, TrtEngine] = {}
        self._contexts: Dict[str, List[TrtContext]] = {}
        for graph, entry in self.engines.items():
            profiles = optimization_profiles(request, graph)
            engine = TrtEngine(trt, read_engine(entry), entry["path"], profiles, logger, self._stream)
            self._engines[graph] = engine
            # A graph that reads what it kept changes its optimization profile within a clip: a context for each.
            own = is_loop(request["graphs"][graph])
            self._contexts[graph] = [engine.open([p.name]) for p in profiles] if own else [engine.open()]
            for context in self._contexts[graph]:
                context.check_names(list(profiles[0].inputs), list(request["graphs"][graph]["outputs"]))
        self.api = next(iter(self._contexts.values()))[0].api
        self.host_memory = choose_host_memory(self._cuda.gpu())
        self.zero_copy = self.host_memory == "mapped"
        self._allocate(request)
        names = [name for _, name in self._io]
        self.notes = describe_engines(self) + [
            "{} and {} in {} host memory, {}".format(
                ", ".join(names[:-1]),
                names[-1],
                self.host_memory,
                "zero-copy" if self.zero_copy else "copied to and from the device",
            )
        ]

    def _allocate(self, request: Dict[str, Any]) -> None:
        """All buffers, once, at their largest: nothing is allocated while decoding."""
        self._io: Dict[Tuple[str, str], IoBuffer] = {}
        self._device: Dict[Tuple[str, str], List[DeviceBuffer]] = {}
        self._owner: Dict[int, KeptTensor] = {}  # by address: what lies there now
        self._nothing = DeviceBuffer(self._cuda, 1, np.dtype(np.float32)).address
        for graph, contexts in self._contexts.items():
            asked, tensors = request["graphs"][graph], contexts[0].tensors
            largest = {name: tuple(shape) for name, shape in asked["outputs"].items()}
            for profile in optimization_profiles(request, graph):
                for name, shapes in profile.inputs.items():
                    # The largest product, not the largest shape: windows and batches may pull apart.
                    largest[name] = max(largest.get(name, ()), shapes["max"], key=_n_items)
            for name, shape in sorted(largest.items(), key=lambda item: (item[0] in asked["outputs"], item[0])):
                dtype = tensors[name].dtype
                if name not in asked["on_device"]:
                    self._io[graph, name] = IoBuffer(self._cuda, _n_items(shape), dtype, self.host_memory, self._stream)
                elif name in asked["outputs"]:
                    # Two in a loop: a step reads one and writes the other, then they change places.
                    self._device[graph, name] = [
                        DeviceBuffer(self._cuda, _n_items(shape), dtype) for _ in range(1 + is_loop(asked))
                    ]

    def run(
        self, graph: str, inputs: Dict[str, Any], shapes: Dict[str, Sequence[int]], keep: Sequence[str] = ()
    ) -> Dict[str, Any]:
        """Run a graph: input name -> array, or what an earlier run kept; gives output name -> array (float32).

        shapes: of every output. keep: outputs that stay on the device, those that the engine request calls on_device.
        Raises UserError for a batch, a window or a length that the engines were not asked for.
        """
        given = {name: tuple(value.shape) for name, value in inputs.items()}
        context = next((c for c in self._contexts[graph] if c.takes(given)), None)
        if context is None:
            raise self._engines[graph].refusal(given)
        context.set_shapes(given)
        addresses, kept = {}, {}
        for name, value in inputs.items():
            if isinstance(value, KeptTensor):
                if self._owner[value.address] is not value:
                    raise ValueError("{}: what was kept is written over: one batch is decoded at a time".format(name))
                addresses[name] = value.address
            elif (graph, name) in self._io:
                addresses[name] = self._io[graph, name].address
            else:
                addresses[name] = self._nothing  # an empty past: TensorRT wants an address all the same
        in_use = set(addresses.values())
        for name, shape in shapes.items():
            if name in keep:
                free = next(b.address for b in self._device[graph, name] if b.address not in in_use)
                kept[name] = self._owner[free] = KeptTensor(free, tuple(shape))
                addresses[name] = free
            else:
                addresses[name] = self._io[graph, name].address
        context.set_addresses(addresses)
        for name, value in inputs.items():
            if (graph, name) in self._io:
                self._io[graph, name].upload(value)
        context.execute()
        outputs: Dict[str, Any] = dict(kept)
        for name, shape in shapes.items():
            if name not in kept:
                outputs[name] = self._io[graph, name].download(tuple(shape))
        if len(kept) == len(shapes):
            # Waits: the time would be counted as the next graph's else, and the next input may be written.
            self._cuda.synchronize(self._stream)
        return outputs


def is_loop(asked: Dict[str, Any]) -> bool:
    """Whether a graph of the engine request reads what it kept itself, as a decoder its past."""
    inputs = asked["optimization_profiles"][0]["inputs"]
    return any(name in inputs for name in asked["on_device"]) and any(
        name in asked["outputs"] for name in asked["on_device"]
    )


def _n_items(shape: Sequence[int]) -> int:
    return int(np.prod(shape)) if shape else 0


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
