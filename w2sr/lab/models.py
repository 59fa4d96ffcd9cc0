"""Finds the shipped lab models and proves that they are the recorded ones. Imports neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from w2sr.artifacts import model_digest
from w2sr.errors import UserError

LAB_PREFIX = "lab:"
MODELS_DIR = Path(__file__).resolve().parent / "models"
RECORD_FILE = "lab.json"
"""Beside the model folders: what each model's files hash to, how it was made and what it scored."""


def read_records(models_dir: Path = MODELS_DIR) -> dict[str, dict[str, Any]]:
    """Model name -> {"digest", "recipe", "accuracy"}, as written by `w2sr lab build`. Raises UserError if the file cannot be read."""
    path = models_dir / RECORD_FILE
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"the list of lab models {path} cannot be read ({error}); reinstall the package or run `w2sr lab build`") from error
    assert isinstance(records, dict)
    return records


def resolve_model(name_or_path: str, models_dir: Path = MODELS_DIR) -> str:
    """The folder of a lab model ("lab:teacher"); any string without that prefix comes back unchanged.

    Raises UserError for an unknown lab model and for a folder whose content is not what was recorded.
    """
    if not name_or_path.startswith(LAB_PREFIX):
        return name_or_path
    name = name_or_path.removeprefix(LAB_PREFIX)
    records = read_records(models_dir)
    if name not in records:
        valid = ", ".join(f"{LAB_PREFIX}{known}" for known in sorted(records))
        raise UserError(f"unknown lab model {name_or_path!r}; valid names: {valid}; or give a folder or a hub name")
    folder = models_dir / name
    if not folder.is_dir():
        raise UserError(f"{name_or_path} should be in {folder}, which is missing; reinstall the package")
    found, recorded = model_digest(folder), records[name]["digest"]
    if found != recorded:
        raise UserError(
            f"{name_or_path} in {folder} has digest {found[:12]}..., recorded is {recorded[:12]}...: its files were "
            "changed; restore them (reinstall the package) or use the folder's path in place of the lab name"
        )
    return str(folder)
