"""An adapter folder, ours or plain PEFT's, and the base model with it: one set of checks for resume, scoring and merging."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeqlora.card import Card, read_card
from edgeqlora.errors import UserError
from edgeqlora.lora.methods.prefix import put_prefix
from edgeqlora.lora.temporal.gates import load_gates, put_gates
from edgeqlora.models.family import Learner, check_source, first_line, load_learner
from edgeqlora.models.fewer_layers import drop_layers
from edgeqlora.models.parts import check_files, verify_base, verify_weights
from edgeqlora.models.quantised import round_trip, same_in_every_mode
from edgeqlora_export.gates import RECORD, WEIGHTS, read_gates
from edgeqlora_jetson.files import read_json

METHODS = ("qlora", "lora")
"""What an adapter that does not say may be said to be trained by."""

HELD = ("quantised", "dequantised", "original")

REBUILT = ("pissa", "olora")
"""Starts that edit the base model, and that PEFT computes again from its own 16 or 32-bit weights alone."""

LOST = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Starts that edit the base model by random numbers, data or quantisation which the folder does not have."""

WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "default")
"""Parts that torch.compile, DDP, FSDP, activation checkpointing and PEFT's own adapter name put into names of weights."""

CONFIG_TYPES: dict[str, tuple[Any, str]] = {
    "peft_type": (str, "a text"),
    "base_model_name_or_path": (str, "a text"),
    "r": (int, "a whole number"),
    "lora_alpha": ((int, float), "a number"),
    "lora_dropout": ((int, float), "a number"),
    "target_modules": ((str, list), "a text or a list of texts"),
    "modules_to_save": (list, "a list of texts"),
    "rank_pattern": (dict, "an object of names to ranks"),
    "alpha_pattern": (dict, "an object of names to alphas"),
}
"""Types of the keys of adapter_config.json that are read; null is allowed."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder says of itself, before any weights are read."""

    folder: Path
    card: Card
    """Empty for an adapter of plain PEFT."""
    config: Any
    """PEFT's configuration."""
    base: str
    """Base model: folder or hub name."""
    method: str
    """Of training. qlora: on a quantised base; lora: on the base's own 16 or 32-bit weights; ia3, prefix: either."""
    base_dtype: str
    """In which training held what was not quantised."""
    bits: int | None
    """Of the base's linears in training; None: they were not quantised."""

    @property
    def held(self) -> str:
        """How `load_adapted` holds the base as training did."""
        return "quantised" if self.bits else "original"

    @property
    def has_gates(self) -> bool:
        """Whether gates in time were trained with it."""
        return (self.folder / RECORD).is_file()


def open_adapter(folder: Path, base_model: str | None = None, method: str | None = None) -> Adapter:
    """Read an adapter folder and verify that its base is the one that it was trained on.

    The base is base_model, else the card's, else base_model_name_or_path of adapter_config.json. method: overrules the
    card; an adapter without a card is scored on the base's own weights. Raises UserError for a folder that is no
    adapter, damaged files, or a base model that is missing or another one.
    """
    if not (folder / "adapter_config.json").is_file():
        hint = (
            " (it is a whole model: nothing to merge, export it as it is)" if (folder / "config.json").exists() else ""
        )
        raise UserError(f"{folder} is not an adapter folder: no adapter_config.json in it{hint}")
    if method not in (None, *METHODS):
        raise UserError(f"method={method!r}: allowed are {' and '.join(METHODS)}")
    check_files(folder)
    card: Card = read_card(folder) or {}
    verify_weights(folder, card)
    said = read_json(folder / "adapter_config.json", "adapter_config.json")
    _check_types(folder, said)
    start = str(said.get("init_lora_weights")).lower()
    if start.startswith(LOST):
        raise UserError(
            f"{folder}: this adapter started with init_lora_weights={start!r}, which edits the base model "
            "in a way that the folder does not hold: where it was trained, save it as plain LoRA (PEFT: save_pretrained "
            "with path_initial_model_for_weight_conversion)"
        )
    config = _read_config(folder, card)
    base = base_model or card.get("base_model") or config.base_model_name_or_path
    if not base:
        raise UserError(f"{folder} does not say which base model it belongs to: pass --base-model")
    try:
        check_source(base)
    except UserError as error:
        raise UserError(f"{error} (base model of {folder}: pass --base-model with where it is now)") from error
    method = method or card.get("method") or "lora"
    if start.startswith(REBUILT) and method == "qlora":
        raise UserError(
            f"{folder}: this adapter started with init_lora_weights={start!r}, which edits the base's own "
            "16 or 32-bit weights: method='lora' is allowed, not 'qlora'"
        )
    verify_base(base, card)
    if read_gates(folder) is None and "temporal_gate" in card:
        raise UserError(
            f"{folder} has no {WEIGHTS}, and its card says that it was trained with gates in time: copy the whole folder again"
        )
    bits = (card.get("settings") or {}).get("bits") if method == card.get("method") else None
    bits = bits or (4 if method == "qlora" else None)
    return Adapter(folder, card, config, base, method, card.get("base_dtype") or "float32", bits)


def load_adapted(
    adapter: Adapter, held: str, dtype: str = "float32", device: str = "cpu", say: Say = lambda line: None
) -> Learner:
    """Learner of the base model with the adapter beside it, in eval mode.

    held: "quantised" as training did; "dequantised", the values that the quantised weights stand for, in fp32;
    "original", the base's own weights in `dtype`. Raises UserError for an adapter that does not fit the base.
    """
    import torch

    assert held in HELD, held
    if held == "original":
        learner = load_learner(adapter.base, dtype=dtype, device=device)
    else:
        learner = load_learner(adapter.base, held == "quantised", adapter.base_dtype, device, adapter.bits or 4)
    if dropped := adapter.card.get("dropped_layers"):
        drop_layers(learner, dropped)
    if (adapter.card.get("data") or {}).get("n_empty_texts"):
        learner.allow_empty_texts()
    if held == "dequantised":
        learner.model.float()
        with torch.no_grad():
            for name, module in learner.model.named_modules():
                if isinstance(module, torch.nn.Linear) and not name.startswith(learner.unquantised):
                    held_dtype = getattr(torch, adapter.base_dtype)
                    module.weight.copy_(round_trip(module.weight, held_dtype, adapter.bits or 4))
    _verify_tokenizer(adapter.folder, learner.processor.tokenizer)
    weights = _read_weights(adapter.folder)
    _untie(learner.model, weights, adapter.config)
    from peft import PeftModel

    try:
        model = PeftModel(learner.model, copy.deepcopy(adapter.config))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, ImportError) as error:
        raise UserError(
            f"{adapter.folder}: PEFT cannot put this adapter on {adapter.base}: {first_line(error)}"
        ) from error
    put_weights(model, weights, adapter.folder, say)
    if adapter.method == "prefix":
        put_prefix(learner, model)
    learner.model = model
    if adapter.has_gates:
        load_gates(learner, adapter.folder)
    if held == "quantised":
        same_in_every_mode(model)
    model.eval()
    return learner


def resume_weights(model: Any, folder: Path) -> None:
    """Put the adapter weights of a checkpoint into the PEFT model that is being trained."""
    check_files(folder)
    put_weights(model, _read_weights(folder), folder, is_trained=False)
    put_gates(model, folder)


def put_weights(
    model: Any, weights: Mapping[str, Any], folder: Path, say: Say = lambda line: None, is_trained: bool = True
) -> None:
    """Put `weights` into a PEFT model: all of them are used, and all that it adapts are there.

    folder: named in errors. is_trained: refuse an adapter that changes nothing. Raises UserError, with counts and
    examples, for names or shapes that differ, and for weights that are NaN or infinite.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    named, stripped = _plain_names(weights, wanted)
    if len(named) > len(wanted):
        # PEFT saves whole embeddings beside an adapter on them, or after tokens were added.
        wanted |= {name: value for name, value in _embeddings(model).items() if name in named}
    missing, unexpected = sorted(set(wanted) - set(named)), sorted(set(named) - set(wanted))
    if missing or unexpected:
        raise UserError(
            f"{folder}: the adapter does not fit the model: {_counted(missing, len(wanted), 'weights that it needs', 'not in the file')}; "
            f"{_counted(unexpected, len(named), 'weights in the file', 'of no use in the model')}. The save broke off, or the "
            "adapter belongs to another base model: save it again, or pass --base-model with the right one"
        )
    if stripped:
        say(f"{folder}: names of weights hold {', '.join(stripped)}, put there by a wrapper in training: taken out")
    shapes = [n for n in sorted(named) if tuple(named[n].shape) != tuple(wanted[n].shape)]
    if shapes:
        here, there = tuple(named[shapes[0]].shape), tuple(wanted[shapes[0]].shape)
        raise UserError(
            f"{folder}: {shapes[0]} has shape {here} in the adapter and {there} in the model ({len(shapes)} of {len(named)} weights "
            "differ): probably another base model, or tokens were added to it, which is not supported; pass --base-model "
            "with the model that it was trained on"
        )
    broken = [name for name in sorted(named) if not named[name].isfinite().all()]
    if broken:
        raise UserError(
            f"{folder}: {len(broken)} of {len(named)} weights hold NaN or infinity, first {broken[0]}: its training diverged; "
            "take another checkpoint, or train again with a lower --learning-rate"
        )
    if is_trained and _changes_nothing(named):
        raise UserError(
            f"{folder}: every lora_B of this adapter is 0 (or its lora_A), or every vector 1, so it changes nothing: it was not trained, or its "
            "weights were lost when they were saved; save it again"
        )
    set_peft_model_state_dict(model, named)


def _check_types(folder: Path, said: Any) -> None:
    """PEFT takes any type for what adapter_config.json says, and fails far from there."""
    if not isinstance(said, dict):
        raise UserError(f"{folder}/adapter_config.json holds no object: save the adapter again")
    for name, (types, allowed) in CONFIG_TYPES.items():
        value = said.get(name)
        if value is not None and (not isinstance(value, types) or isinstance(value, bool)):
            raise UserError(f"{folder}/adapter_config.json: {name} is {value!r:.60}, allowed: {allowed}; save it again")


def _read_config(folder: Path, card: Card) -> Any:
    from peft import PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise UserError(
            f"{folder}/adapter_config.json cannot be read by PEFT: {first_line(error)}: take the PEFT that wrote it"
        ) from error
    if getattr(config, "is_prompt_learning", True) and card.get("method") != "prefix":
        raise UserError(
            f"{folder}: peft_type={config.peft_type} cannot be merged into weights: allowed are LoRA and its kin, and to be "
            "scored, a prefix that edgeqlora trained"
        )
    config.inference_mode = True
    return config


def _read_weights(folder: Path) -> dict[str, Any]:
    from peft.utils import load_peft_weights

    names = ("adapter_model.safetensors", "adapter_model.bin")
    if not any((folder / name).is_file() for name in names):
        raise UserError(f"{folder} has no weights: needed is {' or '.join(names)}; copy the folder again")
    try:
        weights: dict[str, Any] = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # pickles fail in many ways
        raise UserError(f"{folder}: the adapter's weights cannot be read: {first_line(error)}") from error
    return weights


def _plain_names(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Weights under the names that the model has, and the parts of wrappers that were taken out."""
    named, stripped = {}, set()
    for name, value in weights.items():
        parts = name.split(".")
        plain = ".".join(part for part in parts if part not in WRAPPERS)
        if name not in wanted and plain in wanted:
            stripped |= set(parts) & set(WRAPPERS)
            name = plain
        named[name] = value
    return named, sorted(stripped)


def _embeddings(model: Any) -> dict[str, Any]:
    from peft import get_peft_model_state_dict

    try:
        found: dict[str, Any] = get_peft_model_state_dict(model, save_embedding_layers=True)
    except NotImplementedError:  # a model without tokens at its input
        return {}
    return found


def _changes_nothing(weights: Mapping[str, Any]) -> bool:
    """Whether one side of every low-rank product is 0, or every vector of IA3 is 1."""
    if weights and all(name.endswith(".ia3_l") for name in weights):
        return all((value == 1).all() for value in weights.values())
    sides: dict[str, list[bool]] = {}
    for name, value in weights.items():
        for side in ("lora_embedding_A", "lora_embedding_B", "lora_A", "lora_B"):
            if name.endswith((f".{side}.weight", f".{side}")):
                sides.setdefault(name.split(f".{side}")[0], []).append(not value.any())
    return bool(sides) and all(any(zero) for zero in sides.values())


def _counted(names: list[str], total: int, what: str, wrong: str) -> str:
    examples = f" (such as {', '.join(names[:2])})" if names else ""
    return f"{len(names)} of {total} {what} are {wrong}{examples}"


def _untie(model: Any, weights: Mapping[str, Any], config: Any) -> None:
    """Give the output projection weights of its own where an adapter is on it or on the embedding that it shares.

    PEFT trains such an adapter on one of the two uses; merged into shared weights it would change both. With
    ensure_weight_tying or trainable tokens PEFT changes both itself.
    """
    import torch

    tied = {
        name.removesuffix(".weight")
        for pair in (getattr(model, "_tied_weights_keys", None) or {}).items()
        for name in pair
    }
    on_tied = any(f".{name}." in key for name in tied for key in weights)
    ties_itself = getattr(config, "ensure_weight_tying", False) or getattr(config, "trainable_token_indices", None)
    if on_tied and model.config.tie_word_embeddings and not ties_itself:
        projection = model.get_output_embeddings()
        projection.weight = torch.nn.Parameter(projection.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = False


def _verify_tokenizer(folder: Path, tokenizer: Any) -> None:
    """A tokenizer in the adapter folder must give the base model's ids: the adapter has learned its own."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        return
    try:
        own = type(tokenizer).from_pretrained(str(folder)).get_vocab()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder}: the adapter's tokenizer cannot be read: {first_line(error)}") from error
    base = tokenizer.get_vocab()
    differing = sorted(token for token in {*own, *base} if own.get(token) != base.get(token))
    if differing:
        shown = ", ".join(
            f"{t!r} is {own.get(t, 'absent')} there and {base.get(t, 'absent')} here" for t in differing[:2]
        )
        raise UserError(
            f"{folder}: its tokenizer has {len(own)} tokens, the base model's {len(base)}, and {len(differing)} differ: "
            f"{shown}. Tokens that were added in training are not supported: pass --base-model with the model that "
            "has this tokenizer"
        )
