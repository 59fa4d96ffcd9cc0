"""The shape of a model from its config.json alone: built on torch's meta device, where tensors have sizes but no bytes."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from w2sr.errors import UserError
from w2sr.lab.models import resolve_model
from w2sr.planning.meta import meta_model

CONFIG = "config.json"


@dataclass(frozen=True)
class ModelShape:
    """A model's parameters, without their values. Shapes are equal whatever they are called.

    `parameters`: (name, sizes) of each, tied ones once, in the model's order. `linear`: the last part of the name and the sizes of each
    linear layer, `head` that part of the head's. `config`: the config.json of its text part as JSON text, defaults included.
    `num_looked_up`: elements of the input embeddings, 0 where they are the head too. `max_positions`: tokens of a row at most, None where
    the model sets no limit.
    """

    name: str = field(compare=False)
    config: str
    parameters: tuple[tuple[str, tuple[int, ...]], ...]
    linear: tuple[tuple[str, tuple[int, int]], ...]
    head: str
    model_type: str
    num_layers: int
    hidden_size: int
    vocab_size: int
    num_heads: int
    num_key_heads: int
    head_size: int
    num_looked_up: int
    max_positions: int | None

    @cached_property
    def elements(self) -> tuple[int, ...]:
        """Elements of each parameter."""
        return tuple(_product(sizes) for _, sizes in self.parameters)

    @cached_property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return sum(self.elements)

    @cached_property
    def num_vectors(self) -> int:
        """Elements of the parameters of one dimension: gains of norms and biases."""
        return sum(size for (_, sizes), size in zip(self.parameters, self.elements) if len(sizes) < 2)

    @property
    def num_multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the input embeddings, which are looked up (tied ones are multiplied too)."""
        return self.num_parameters - self.num_looked_up

    @property
    def attention_width(self) -> int:
        """Query heads times their size."""
        return self.num_heads * self.head_size


def shape_of(name: str, folder: Path) -> ModelShape:
    """Return the shape of the model whose config.json is in `folder`; no weights are read. Raises UserError when there is none."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"model {name!r}: cannot read {path} ({error.strerror}); give a folder with the model's config.json") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"model {name!r}: {path} is not valid JSON ({error}); copy the model's config.json again") from error
    if not isinstance(values, dict):
        raise UserError(
            f"model {name!r}: {path} holds a {type(values).__name__}, not an object of keys; copy the model's config.json again"
        )
    return shape_from(name, values)


def shape_from(name: str, values: dict[str, Any]) -> ModelShape:
    """Return the shape of a model from the values of its config.json. Raises UserError when transformers does not know it."""
    return dataclasses.replace(_built(json.dumps(values, sort_keys=True), name), name=name)


@lru_cache(maxsize=16)
def _built(text: str, name: str) -> ModelShape:
    import torch
    from transformers.pytorch_utils import Conv1D

    model = meta_model(name, json.loads(text))
    config, embeddings, head = model.config.get_text_config(), model.get_input_embeddings(), model.get_output_embeddings()
    # Models call these by names of their own (GPT-2: n_layer); transformers maps the attributes, not the keys of config.json.
    wanted = {
        "num_layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "vocab_size": "vocab_size",
        "num_heads": "num_attention_heads",
    }
    sizes = {ours: _size(name, config, key) for ours, key in wanted.items()}
    linear = [(key, each) for key, each in model.named_modules() if isinstance(each, (torch.nn.Linear, Conv1D))]
    is_tied = head is None or head.weight is embeddings.weight
    return ModelShape(
        name=name,
        # Defaults that config.json leaves out are part of the shape.
        config=json.dumps({**config.to_dict(), "tie_word_embeddings": is_tied}, sort_keys=True, default=str),
        parameters=tuple((key, tuple(value.shape)) for key, value in model.named_parameters()),
        linear=tuple((key.rsplit(".", 1)[-1], (each.weight.shape[0], each.weight.shape[1])) for key, each in linear),
        head=next((key.rsplit(".", 1)[-1] for key, each in linear if each is head), ""),
        model_type=str(model.config.model_type),
        num_key_heads=getattr(config, "num_key_value_heads", None) or sizes["num_heads"],
        head_size=getattr(config, "head_dim", None) or sizes["hidden_size"] // sizes["num_heads"],
        num_looked_up=0 if is_tied else embeddings.weight.numel(),
        max_positions=getattr(config, "max_position_embeddings", None),
        **sizes,
    )


def _size(name: str, config: Any, key: str) -> int:
    value = getattr(config, key, None)
    if not isinstance(value, int) or value < 1:
        what = "has no" if value is None else f"has {key}={value!r}, which is no number of at least 1, as"
        raise UserError(
            f"model {name!r} (model_type={config.model_type!r}) {what} {key}; plan knows transformers whose layers are alike: check "
            "config.json, or take another model"
        )
    return value


def config_folder(name: str) -> Path:
    """Return the folder with the config.json of a model: a lab model, a folder (weights need not be there), or one in the hub's cache.

    Raises UserError when there is none on this machine; nothing is downloaded.
    """
    resolved = resolve_model(name)
    folder = Path(resolved).expanduser()
    if (folder / CONFIG).is_file():
        return folder.resolve()
    if not folder.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", resolved):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(resolved, CONFIG)
        if isinstance(cached, str):
            return Path(cached).parent
    raise UserError(
        f"model {name!r}: no {CONFIG} of it is on this machine, and plan downloads nothing; copy the model's config.json (a few hundred "
        "bytes, no weights needed) into a folder and name that folder"
    )


def _product(sizes: tuple[int, ...]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
