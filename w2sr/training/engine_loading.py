"""The student's weights, from safetensors into a model: whole on every rank, or under ZeRO-3 sharded while they are read.

Under ZeRO-3 no rank ever holds the whole model: each parameter is sharded the moment its module is made, and filled from the file that
holds it while it alone is gathered. Rank 0 reads and the others receive. (transformers' own loading has rank 0 hold every tensor of every
file; it is taken only for models whose checkpoints are named or cut otherwise than their parameters.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from w2sr.errors import UserError
from w2sr.packing import attention
from w2sr.training.export_plan import INDEX, WHOLE

if TYPE_CHECKING:
    import torch

Tensors = dict[str, tuple[Path, tuple[int, ...]]]


def torch_dtype(precision: str) -> torch.dtype:
    """Return torch's type for one of fp32, bf16 and fp16."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def load_model(folder: str, precision: str, config: dict[str, Any], half_on_gpu: bool) -> Any:
    """Return the causal language model in `folder`; sharded where DeepSpeed's `config` says stage 3, and then every rank calls it.

    Raises UserError when weights are missing, too many or of other shapes than config.json says.
    """
    import torch
    from transformers import AutoConfig

    attention.register()
    model_config = AutoConfig.from_pretrained(folder)
    chosen = attention.attention_for(model_config, half_on_gpu)
    if chosen is not None:
        model_config._attn_implementation = chosen
    with torch.device("meta"):
        expected = empty_model(model_config, torch_dtype(precision))
    found = tensors_in(Path(folder))
    named_alike = dict(saved_tensors(expected)).keys() <= found.keys()
    if named_alike:
        _refuse_another_model(folder, expected, found)
    if config["zero_optimization"]["stage"] == 3 and named_alike:
        return load_sharded(model_config, torch_dtype(precision), config, found)
    return _load_by_transformers(folder, model_config, torch_dtype(precision), config)


def empty_model(model_config: Any, dtype: torch.dtype) -> Any:
    """Return a causal language model with parameters of no particular value; the context says where they are and who shares them."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights, no_tie_weights
    from transformers.modeling_utils import local_torch_dtype

    model_class = AutoModelForCausalLM._model_mapping[type(model_config)]
    model_config.dtype = dtype
    with no_init_weights(), no_tie_weights(), local_torch_dtype(dtype, model_class.__name__):
        model = model_class(model_config)
    model.tie_weights()
    return model


def load_sharded(model_config: Any, dtype: torch.dtype, config: dict[str, Any], tensors: Tensors) -> Any:
    """Return the model with parameters sharded by ZeRO-3 and filled from `tensors` one at a time; collective."""
    import deepspeed
    import torch
    from transformers.integrations.deepspeed import prevent_arange_dtype_change

    with ExitStack() as stack:
        stack.enter_context(prevent_arange_dtype_change())  # rotary tables are computed in fp32, whatever the weights are
        stack.enter_context(deepspeed.zero.Init(config_dict_or_path=config))  # its dtype is the config's: given here it is misread
        model = empty_model(model_config, dtype)
    reads = torch.distributed.get_rank() == 0
    for name, tensor in saved_tensors(model):
        with gathered([tensor], modified=True), torch.no_grad():
            if reads:
                tensor.copy_(read_tensor(tensors[name][0], name))
    return model


@contextmanager
def gathered(tensors: Iterable[torch.Tensor], modified: bool = False) -> Iterator[None]:
    """Hold `tensors` whole inside, where ZeRO-3 has sharded them; `modified`: rank 0 changes them, and its values go back to all."""
    import deepspeed

    sharded = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    with deepspeed.zero.GatheredParameters(sharded, modifier_rank=0 if modified else None, enabled=bool(sharded)):
        yield


def saved_tensors(model: Any) -> list[tuple[str, torch.Tensor]]:
    """Return parameters (tied ones once) and the buffers that belong to a checkpoint, by name."""
    names = set(model.state_dict().keys())
    buffers = [(name, buffer) for name, buffer in model.named_buffers() if name in names]
    return [*model.named_parameters(), *buffers]


def tensors_in(folder: Path) -> Tensors:
    """Return file and shape of every tensor in a folder's safetensors; nothing when it has none. Reads headers only."""
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise UserError(f"{folder / INDEX} names {missing[0]}, which is not there; download or copy the model again")
    else:
        names = {WHOLE} if (folder / WHOLE).is_file() else set()
    found: Tensors = {}
    for name in sorted(names):
        with safe_open(folder / name, framework="pt") as file:
            found |= {key: (folder / name, tuple(file.get_slice(key).get_shape())) for key in file.keys()}  # noqa: SIM118
    return found


def read_tensor(path: Path, name: str) -> torch.Tensor:
    """Return one tensor of a safetensors file. The file is mapped for as long as the tensor lives, so it counts for no more than itself."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _refuse_another_model(folder: str, expected: Any, found: Tensors) -> None:
    known = {**dict(expected.named_parameters(remove_duplicate=False)), **dict(expected.named_buffers())}
    ignored = [*(expected._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    others = sorted(name for name in found if name not in known and not any(re.search(pattern, name) for pattern in ignored))
    if others:
        raise UserError(
            f"{folder}: {len(others)} weights have no place in the model of its config.json, {others[0]} first; these are the weights of "
            "another model: put the config.json beside them that they were saved with"
        )
    for name, (path, shape) in found.items():
        if name in known and tuple(known[name].shape) != shape:
            raise UserError(
                f"{path}: {name} is {list(shape)}, but config.json makes it {list(known[name].shape)}; these are the weights of another "
                "model: put the config.json beside them that they were saved with"
            )


def _load_by_transformers(folder: str, model_config: Any, dtype: torch.dtype, config: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.integrations import deepspeed as integration

    # transformers looks at a global (weak) reference to this object while it loads; it must not outlive the loading, or every later
    # from_pretrained in this process would shard too.
    sharded = integration.HfDeepSpeedConfig(config) if config["zero_optimization"]["stage"] == 3 else None
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, config=model_config, dtype=dtype, output_loading_info=True)
    finally:
        integration.unset_hf_deepspeed_config()
        del sharded
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"{folder}: {len(missing)} weights of the model of its config.json are missing, {missing[0]} first; these are the weights of "
            "another model, or not all of them"
        )
    return model


@contextmanager
def reloaded(
    folder: Path, dtype: torch.dtype, config: dict[str, Any], device: torch.device
) -> Iterator[tuple[Any, Callable[[torch.Tensor], torch.Tensor]]]:
    """Yield the model in `folder` and its forward pass, from ids to logits, without gradients.

    It is sharded where DeepSpeed's `config` says stage 3, and then every rank calls it.
    """
    import deepspeed
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if config["zero_optimization"]["stage"] != 3:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        size_bytes = sum(parameter.nbytes for parameter in model.parameters())
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] > 1.5 * size_bytes:
            model = model.to(device)
        with torch.no_grad():
            yield model, lambda ids: model(input_ids=ids.to(model.device), use_cache=False).logits
        return
    # Beside the states of a training that fills the GPU, the shards of this copy wait in the host's memory.
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0, **({"offload_param": {"device": "cpu"}} if device.type == "cuda" else {})}
    same = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "bf16", "fp16")
    reading = {**{key: config[key] for key in same if key in config}, "zero_optimization": zero}
    model = load_sharded(AutoConfig.from_pretrained(folder), dtype, reading, tensors_in(folder))
    engine = deepspeed.initialize(model=model, config=reading)[0]
    engine.eval()
    try:
        with torch.no_grad():
            yield model, lambda ids: engine(input_ids=ids, use_cache=False).logits
    finally:
        engine.destroy()
