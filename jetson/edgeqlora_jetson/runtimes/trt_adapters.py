"""TensorRT's two ways of running an engine behind one face: bindings by number (8.2) and tensors by name (8.5 and newer).

Which one is taken follows from what the library has (hasattr), never from its version number. Sources: the Python
bindings at each release (NVIDIA/TensorRT, python/src/infer/pyCore.cpp) and tensorrt-stubs 10.13. Not run on hardware.
"""

import collections
from typing import TYPE_CHECKING, Any, Callable, Deque, Dict, NamedTuple, Optional, Sequence

import numpy as np

from ..errors import UserError

if TYPE_CHECKING:  # tensorrt-stubs: the tensor API is checked against 10.13's types
    import tensorrt


# TensorRT's own nptype asks numpy for np.bool, up to 8.5 at least: AttributeError with numpy 1.24 to 1.26.
_NUMPY_TYPES = {
    "float32": np.float32,
    "float16": np.float16,
    "int32": np.int32,
    "int64": np.int64,  # from 10 on
    "bool": np.bool_,
}

_REFUSED = "{}: TensorRT {} cannot load this engine: {}. Build it again (build --force)"


class EngineTensor(NamedTuple):
    """An input or output of an engine."""

    name: str
    is_input: bool
    dtype: np.dtype


def make_logger(trt: Any, hear: Optional[Callable[[str], None]] = None) -> Any:
    """A logger for TensorRT that keeps its last 20 errors in `.errors` instead of printing them. hear: called with all else."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            # TensorRT's C++ half must be made this way, not by super(): pybind11 asks for it.
            trt.ILogger.__init__(self)
            self.errors: Deque[str] = collections.deque(maxlen=20)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(str(msg).strip())
            elif hear is not None:
                hear(str(msg))

    return Logger()


def last_errors(logger: Any) -> str:
    """The last three errors that the logger heard, in one line: what a failure ended with, not what came before it."""
    last = list(logger.errors)[-3:]
    return "; ".join(error.split("\n")[0] for error in last) or "TensorRT gave no reason"


def numpy_dtype(trt: Any, dtype: Any, name: str) -> np.dtype:
    """numpy's type for a TensorRT DataType. Raises UserError naming the tensor for one that inference does not use."""
    for kind, numpy_type in _NUMPY_TYPES.items():
        if hasattr(trt, kind) and getattr(trt, kind) == dtype:
            return np.dtype(numpy_type)
    raise UserError(
        "{}: the engine has it in {}, allowed: {}. Build it again (build --force)".format(
            name, dtype, ", ".join(_NUMPY_TYPES)
        )
    )


def load_engine(trt: Any, plan: bytes, logger: Any, path: str) -> Any:
    """Deserialise an engine. Raises UserError when TensorRT refuses it."""
    runtime: "tensorrt.Runtime" = trt.Runtime(logger)
    try:
        engine = runtime.deserialize_cuda_engine(plan)
    except Exception as error:  # pybind11 turns C++ exceptions into RuntimeError, releases differ in which they throw
        raise UserError(_REFUSED.format(path, trt.__version__, error)) from error
    if engine is None:
        raise UserError(_REFUSED.format(path, trt.__version__, last_errors(logger)))
    return engine


def open_context(trt: Any, engine: Any, logger: Any) -> Any:
    """An execution context of an engine behind the adapter that its TensorRT allows."""
    context = engine.create_execution_context()
    if context is None:  # documented: out of memory
        raise UserError(
            "no memory for an execution context of TensorRT ({}): stop other programs, run without a desktop, or "
            "export with a smaller batch or window".format(last_errors(logger))
        )
    if hasattr(engine, "num_io_tensors") and hasattr(context, "execute_async_v3"):
        return TensorContext(trt, engine, context, logger)
    return BindingsContext(trt, engine, context, logger)


class TensorContext(object):
    """A context driven by tensor names: TensorRT 8.5, 8.6, 10.x, 11."""

    api = "tensors"

    def __init__(
        self, trt: Any, engine: "tensorrt.ICudaEngine", context: "tensorrt.IExecutionContext", logger: Any
    ) -> None:
        self._context, self._logger = context, logger
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self.tensors: Dict[str, EngineTensor] = {
            name: EngineTensor(
                name,
                engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
                numpy_dtype(trt, engine.get_tensor_dtype(name), name),
            )
            for name in names
        }

    def select(self, optimization_profile: int, stream: int) -> None:
        """Use an optimization profile from now on; all shapes and addresses must be set again."""
        _select(self._context, optimization_profile, stream, self._logger)

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        done = self._context.set_input_shape(name, tuple(shape))
        _check(done, "shape {} of input {}".format(tuple(shape), name), self._logger)

    def set_address(self, name: str, address: int) -> None:
        _check(self._context.set_tensor_address(name, address), "address of {}".format(name), self._logger)

    def execute(self, stream: int) -> None:
        """Give the work to the stream; the results are there when it is synchronised."""
        _check(self._context.execute_async_v3(stream), "execution", self._logger)


class BindingsContext(object):
    """A context driven by binding numbers: TensorRT 8.2.

    An engine with several optimization profiles has one set of bindings for each, one after the other: binding i of
    profile p has number p * (bindings of a set) + i, and execution takes the addresses of all sets.
    """

    api = "bindings"

    def __init__(self, trt: Any, engine: Any, context: Any, logger: Any) -> None:
        self._context, self._logger = context, logger
        self._n_set = engine.num_bindings // engine.num_optimization_profiles
        self._index = {engine.get_binding_name(i): i for i in range(self._n_set)}
        self.tensors: Dict[str, EngineTensor] = {
            name: EngineTensor(
                name, bool(engine.binding_is_input(i)), numpy_dtype(trt, engine.get_binding_dtype(i), name)
            )
            for name, i in self._index.items()
        }
        self._addresses = [0] * engine.num_bindings
        self._first = 0

    def select(self, optimization_profile: int, stream: int) -> None:
        """Use an optimization profile from now on; all shapes and addresses must be set again."""
        _select(self._context, optimization_profile, stream, self._logger)
        self._addresses = [0] * len(self._addresses)
        self._first = optimization_profile * self._n_set

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        done = self._context.set_binding_shape(self._first + self._index[name], tuple(shape))
        _check(done, "shape {} of input {}".format(tuple(shape), name), self._logger)

    def set_address(self, name: str, address: int) -> None:
        self._addresses[self._first + self._index[name]] = address

    def execute(self, stream: int) -> None:
        """Give the work to the stream; the results are there when it is synchronised."""
        _check(self._context.execute_async_v2(self._addresses, stream), "execution", self._logger)


def _select(context: Any, optimization_profile: int, stream: int, logger: Any) -> None:
    try:
        done = context.set_optimization_profile_async(optimization_profile, stream)
    except RuntimeError:  # "Error in set optimization profile async.": the reason is in the log
        done = False
    _check(done, "optimization profile {}".format(optimization_profile), logger)


def _check(done: Optional[bool], what: str, logger: Any) -> None:
    if done is False:
        raise UserError(
            "TensorRT refused the {}: {}. If it goes on after a new build of the engines (build --force), report "
            "it".format(what, last_errors(logger))
        )
