"""The shape of a model from its config.json alone: built on torch's meta device, where tensors have sizes but no bytes."""

from __future__ import annotations

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

    `parameters`: (name, sizes) of each, tied ones once, in the model's order. `config`: its config.json as JSON text.
    """

    name: str = field(compare=False)
    config: str
    parameters: tuple[tuple[str, tuple[int, ...]], ...]

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

    @cached_property
    def num_multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the input embeddings, which are looked up (tied ones are multiplied too)."""
        embeddings = [_product(sizes) for name, sizes in self.parameters if name.endswith("embed_tokens.weight")]
        return self.num_parameters - (0 if self.values.get("tie_word_embeddings") else sum(embeddings[:1]))

    @property
    def values(self) -> dict[str, Any]:
        """The configuration as plain values, those of the text part of a larger model included."""
        values = json.loads(self.config)
        return {**values, **values.get("text_config", {})}

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return int(self.values["num_hidden_layers"])

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self.values["hidden_size"])

    @property
    def vocab_size(self) -> int:
        """Logits of a token."""
        return int(self.values["vocab_size"])

    @property
    def attention_width(self) -> int:
        """Query heads times their size."""
        values = self.values
        heads = int(values["num_attention_heads"])
        return heads * int(values.get("head_dim") or self.hidden_size // heads)


def shape_of(name: str, folder: Path) -> ModelShape:
    """Return the shape of the model whose config.json is in `folder`; no weights are read. Raises UserError when there is none."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"model {name!r}: cannot read {path} ({error.strerror}); give a folder with the model's config.json") from error
    except json.JSONDecodeError as error:
        raise UserError(f"model {name!r}: {path} is not valid JSON ({error}); copy the model's config.json again") from error
    return shape_from(name, values)


def shape_from(name: str, values: dict[str, Any]) -> ModelShape:
    """Return the shape of a model from the values of its config.json. Raises UserError when transformers does not know it."""
    config, parameters = _built(json.dumps(values, sort_keys=True), name)
    return ModelShape(name, config, parameters)


@lru_cache(maxsize=16)
def _built(text: str, name: str) -> tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]:
    values = json.loads(text)
    model = meta_model(name, values)
    # Defaults that config.json leaves out are part of the shape.
    own = {**model.config.get_text_config().to_dict(), "tie_word_embeddings": bool(model.config.tie_word_embeddings)}
    full = json.dumps({**values, **own}, sort_keys=True, default=str)
    return full, tuple((key, tuple(value.shape)) for key, value in model.named_parameters())


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


def weight_bytes_on_disk(folder: Path) -> int | None:
    """Return the bytes of the tensors in a folder's safetensors files, read from their headers; None when there are no weights."""
    total, found = 0, False
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        found = True
        ends = (value["data_offsets"] for key, value in header.items() if key != "__metadata__")
        total += sum(end - start for start, end in ends)
    return total if found else None


def _product(sizes: tuple[int, ...]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result
