"""Optimiser, scheduler and random state as safetensors and JSON: what a resumed run needs, without pickle."""

import random
from pathlib import Path
from typing import Any

from edgeqlora.errors import UserError
from edgeqlora_jetson.files import read_json, sha256_file, write_json

COMPLETE = "complete.json"
"""Written last into a checkpoint: without it the checkpoint was cut off and is passed over."""


def save_tree(tree: Any, path: Path) -> None:
    """Write nested dicts, lists, tuples, numbers, strings and tensors as `path`.json and `path`.safetensors."""
    import safetensors.torch

    tensors: dict[str, Any] = {}
    structure = _pack(tree, tensors)
    if tensors:
        safetensors.torch.save_file(tensors, str(path) + ".safetensors")
    write_json(Path(str(path) + ".json"), structure)


def load_tree(path: Path) -> Any:
    """What `save_tree` wrote, tensors on the CPU."""
    import safetensors.torch

    tensor_file = Path(str(path) + ".safetensors")
    tensors = safetensors.torch.load_file(tensor_file) if tensor_file.exists() else {}
    return _unpack(read_json(Path(str(path) + ".json"), "checkpoint state"), tensors)


def random_state() -> dict[str, Any]:
    """State of the generators that training draws from: python, numpy, torch, and each GPU."""
    import numpy as np
    import torch

    of_numpy: dict[str, Any] = np.random.get_state(legacy=False)
    of_numpy["state"]["key"] = of_numpy["state"]["key"].tolist()
    state = {"python": random.getstate(), "numpy": of_numpy, "torch": torch.random.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.random.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Undo: the next draw is the one after `random_state()` was taken."""
    import numpy as np
    import torch

    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.random.set_rng_state_all(state["cuda"])


def last_complete(folder: Path) -> Path | None:
    """The newest checkpoint of `folder` that was written to its end and is as it was written."""
    found = [path for path in folder.glob("checkpoint-*") if (path / COMPLETE).is_file()]
    found.sort(key=lambda path: int(path.name.rsplit("-", 1)[1]), reverse=True)
    return next((path for path in found if _is_whole(path)), None)


def _is_whole(path: Path) -> bool:
    recorded = read_json(path / COMPLETE, "checkpoint record").get("sha256", {})
    return all((path / name).is_file() and sha256_file(path / name) == digest for name, digest in recorded.items())


def _pack(value: Any, tensors: dict[str, Any]) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_pack(k, tensors), _pack(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_pack(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_pack(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot write {type(value).__name__} into a checkpoint")


def _unpack(value: Any, tensors: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        if value["tensor"] not in tensors:
            raise UserError(
                f"checkpoint state lacks tensor {value['tensor']!r}: remove this checkpoint and resume again"
            )
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_unpack(item, tensors) for item in value["tuple"])
    return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value["dict"]}
