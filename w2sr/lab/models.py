"""Finds the shipped lab models and proves that they are the recorded ones. Imports no heavy library."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from w2sr.errors import UserError

LAB_PREFIX = "lab:"
MODELS_DIR = Path(__file__).resolve().parent / "models"
DIGESTS_FILE = "digests.json"
RECORD_FILE = "lab.json"
"""How a model was made and what it scored; kept beside the model and left out of its digest."""


def folder_digest(folder: Path) -> str:
    """sha256 over the names and contents of the files in a model folder, except its record."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != RECORD_FILE:
            content = path.read_bytes()
            digest.update(f"{path.name}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def recorded_digests(models_dir: Path = MODELS_DIR) -> dict[str, str]:
    """Model name -> digest, as written by `w2sr lab build`. Raises UserError if the file is missing or unreadable."""
    path = models_dir / DIGESTS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"the list of lab models {path} cannot be read ({error}); reinstall the package or run `w2sr lab build`") from error
    return {str(name): str(digest) for name, digest in content.items()}


def resolve_model(name_or_path: str, models_dir: Path = MODELS_DIR) -> str:
    """The folder of a lab model ("lab:teacher"); any string without that prefix comes back unchanged.

    Raises UserError for an unknown lab model and for a folder whose content is not what was recorded.
    """
    if not name_or_path.startswith(LAB_PREFIX):
        return name_or_path
    name = name_or_path.removeprefix(LAB_PREFIX)
    digests = recorded_digests(models_dir)
    if name not in digests:
        valid = ", ".join(f"{LAB_PREFIX}{known}" for known in sorted(digests))
        raise UserError(f"unknown lab model {name_or_path!r}; valid names: {valid}; or give a folder or a hub name")
    folder = models_dir / name
    if not folder.is_dir():
        raise UserError(f"{name_or_path} should be in {folder}, which is missing; reinstall the package")
    found = folder_digest(folder)
    if found != digests[name]:
        raise UserError(
            f"{name_or_path} in {folder} has digest {found[:12]}..., recorded is {digests[name][:12]}...: its files were "
            "changed; restore them (reinstall the package) or use the folder's path in place of the lab name"
        )
    return str(folder)
