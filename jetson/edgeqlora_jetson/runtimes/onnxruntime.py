"""Execution by onnxruntime, 1.10 to current: one session a graph."""

import os
import sys
import tempfile
from typing import Any, Callable, Dict, List, Optional, Sequence, Set

import numpy as np

from ..audio.features import feature_shape
from ..decoders import open_decoder
from ..engines.cache import default_cache_dir
from ..engines.request import choose_precision
from ..errors import UserError
from .providers import (
    AUTO,
    CPU,
    CUDA,
    TENSORRT,
    choose_providers,
    explain_idle,
    heard_output,
    read_placement,
    tensorrt_options,
)


class OnnxRuntime(object):
    """The graphs of a bundle, loaded.

    providers: the execution providers really active. version: of onnxruntime. threads: intra-op threads. precision: of
    the graphs, or what the TensorRT provider was asked for. notes: a provider that was passed over, and why.
    takes_any_length: whether audio of a new length costs no new plan, as it does in TensorRT and cuDNN.
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Any,
        threads: Optional[int] = None,
        providers: Optional[Sequence[str]] = None,
        precision: Optional[str] = None,
        cache_dir: Optional[str] = None,
    ) -> None:
        onnxruntime = _import_onnxruntime()
        self.version = onnxruntime.__version__
        self.threads = choose_threads(bundle, threads)
        self._onnxruntime = onnxruntime
        self._placement: Optional[Dict[str, Dict[str, int]]] = None
        self.notes: List[str] = []
        self.precision = bundle.precision
        options: Dict[str, Dict[str, str]] = {graph: {} for graph in bundle.graphs}
        wanted = choose_providers(providers, onnxruntime.get_available_providers())
        if bundle.is_for_cpu and wanted != [CPU]:
            if list(providers or ()) != [AUTO]:
                raise UserError(
                    "providers {}: the graphs of this bundle are made for a CPU ({}), allowed: cpu. For a GPU export again, such "
                    "as with --target workstation-gpu".format(", ".join(wanted), self.precision)
                )
            wanted = [CPU]
        if self.precision == "int8" and CUDA in wanted and TENSORRT not in wanted:
            if list(providers or ()) != [AUTO]:
                raise UserError(
                    "providers {}: onnxruntime's CUDA provider has no products of integers, and would be slower in int8 than in fp16; "
                    "allowed: tensorrt, cpu. Or export again with --precision fp16".format(", ".join(wanted))
                )
            wanted = [CPU]
        if self.precision == "bf16" and TENSORRT not in wanted:
            raise UserError(
                "onnxruntime runs no bf16 graphs here: build this bundle's engines and pass --runtime tensorrt, or export it again with "
                "--precision fp16"
            )
        if TENSORRT in wanted:
            self.precision = choose_precision(bundle.manifest.get("engine_request"), precision)
            place = self.precision, self.version, cache_dir or default_cache_dir()
            options = {graph: tensorrt_options(bundle, graph, *place) for graph in bundle.graphs}
        elif precision not in (None, self.precision):
            raise UserError(
                "precision {!r} is for TensorRT only: the graphs are {}. {}".format(
                    precision,
                    self.precision,
                    "Leave it away, or export again with another --precision"
                    if bundle.is_for_cpu
                    else "Ask for the tensorrt provider or runtime",
                )
            )
        accelerators = [name for name in wanted if name != CPU]
        if accelerators:
            idle = self._open_checked(bundle, wanted, accelerators[0], options)
            if idle is None:
                return
            if list(providers or ()) != [AUTO]:
                raise UserError(idle)
            self.notes.append(idle)
        self._open_sessions(bundle, [CPU], options)
        if bundle.precision in ("fp16", "int8") and not bundle.is_int8:
            self.notes.append(
                "onnxruntime's CPU provider has no fp16: it computes in fp32 and converts, which is slow; for a CPU export with --target cpu"
            )

    def node_placement(self) -> Optional[Dict[str, Dict[str, int]]]:
        """Graph -> provider -> nodes it really ran, counted in a warm-up run; None where only the CPU was asked for."""
        return self._placement

    def _open_checked(
        self, bundle: Any, wanted: List[str], best: str, options: Dict[str, Dict[str, str]]
    ) -> Optional[str]:
        """Open the sessions and run them once; returns why the best provider runs no node, None: it does."""
        try:
            with tempfile.TemporaryDirectory(prefix="edgeqlora-nodes-") as folder:
                with heard_output() as heard:
                    self._open_sessions(bundle, wanted, options, folder)
                smallest = min(bundle.windows_s)
                open_decoder(bundle, self).warm_up(
                    np.zeros((1, *feature_shape(bundle.manifest, smallest)), dtype=np.float32)
                )
                placement = {graph: read_placement(self._sessions[graph].end_profiling()) for graph in bundle.graphs}
        except Exception as error:  # of onnxruntime, whose exception classes differ from release to release
            return explain_idle(best, str(error))
        # Of several, the best one counts: behind TensorRT, CUDA may rightly be left without a node.
        if not any(best in nodes for nodes in placement.values()):
            return explain_idle(best, heard[0])
        self._placement = placement
        return None

    def _open_sessions(
        self, bundle: Any, wanted: List[str], options: Dict[str, Dict[str, str]], profile_folder: Optional[str] = None
    ) -> None:
        self._sessions = {
            graph: _open_graph(
                self._onnxruntime,
                bundle.graph_path(graph),
                self.threads,
                wanted,
                options[graph],
                os.path.join(profile_folder, graph) if profile_folder else None,
            )
            for graph in bundle.graphs
        }
        self.providers = list(next(iter(self._sessions.values())).get_providers())
        self.takes_any_length = self.providers == [CPU]
        self._device = "cuda" if CUDA in self.providers or TENSORRT in self.providers else "cpu"
        self._halves: Dict[str, Set[str]] = {}
        for graph, session in self._sessions.items():
            self._halves[graph] = {node.name for node in session.get_inputs() if node.type == "tensor(float16)"}
            entry = bundle.manifest["graphs"][graph]
            _check_names(session, bundle.graph_path(graph), entry["inputs"], entry["outputs"])

    def run(
        self, graph: str, inputs: Dict[str, Any], shapes: Dict[str, Sequence[int]], keep: Sequence[str] = ()
    ) -> Dict[str, Any]:
        """Run a graph: input name -> array, or what an earlier run kept; gives output name -> array.

        shapes: of every output, as the caller expects it. keep: outputs that stay in the runtime's memory (on its
        device); what stands for them is only good as an input of a later run.
        """
        # A binding for each run: what get_outputs gives refers to the binding (seen up to onnxruntime 1.19), so the next
        # run of the same one would write over what an earlier run kept.
        session = self._sessions[graph]
        binding, alive = session.io_binding(), []  # the binding keeps no array alive
        for name, value in inputs.items():
            if isinstance(value, np.ndarray) and name in self._halves[graph]:
                value = value.astype(np.float16)
            if not isinstance(value, np.ndarray):
                binding.bind_ortvalue_input(name, value)
            elif value.size:
                alive.append(np.ascontiguousarray(value))
                binding.bind_cpu_input(name, alive[-1])
            else:
                alive.append(self._onnxruntime.OrtValue.ortvalue_from_numpy(value))
                binding.bind_ortvalue_input(name, alive[-1])
        for name in shapes:
            binding.bind_output(name, self._device if name in keep else "cpu")
        session.run_with_iobinding(binding)
        outputs = dict(zip(shapes, binding.get_outputs()))
        return {name: value if name in keep else _float32(value.numpy()) for name, value in outputs.items()}

    def bind(self, graph: str, inputs: Dict[str, Any], outputs: Dict[str, np.ndarray]) -> Callable[[], None]:
        """A function that runs a graph on these arrays, and on what an earlier run kept, each time as they then are.

        outputs: name -> array of the output's shape and type, which each run fills. float32 and int32 only: onnxruntime 1.10 takes no
        int64 here.
        """
        session = self._sessions[graph]
        binding = session.io_binding()
        for name, value in inputs.items():
            if isinstance(value, np.ndarray):
                binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
            else:
                binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_output(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        alive = inputs, outputs  # the binding keeps no array alive

        def run() -> None:
            assert alive
            session.run_with_iobinding(binding)

        return run


def _float32(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype == np.float16 else value


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


def choose_threads(bundle: Any, threads: Optional[int]) -> int:
    """The threads asked for, else the profile's, else one for each core that this process may use."""
    if threads is None:
        threads = (bundle.manifest.get("profile") or {}).get("threads")
    n_usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return int(threads) if threads else n_usable


def _open_graph(
    onnxruntime: Any,
    path: str,
    threads: int,
    providers: Sequence[str],
    tensorrt: Dict[str, str],
    profile_prefix: Optional[str],
) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Idle threads sleep instead of spinning: two sessions on few cores otherwise take the processor from each other
    # (a 2 s clip beside other work on two cores: 160 ms spinning, 60 ms sleeping), and spinning costs energy.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of memory is made for each length of audio, and kept (whisper-tiny.en: peak 275 MiB with plans, 195 without, as fast).
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
        options.log_severity_level = 2  # warnings say why a provider is not available; they are heard, not printed
    try:
        return onnxruntime.InferenceSession(
            path,
            sess_options=options,
            providers=list(providers),
            provider_options=[tensorrt if name == TENSORRT else {} for name in providers],
            enable_fallback=0,
        )
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
