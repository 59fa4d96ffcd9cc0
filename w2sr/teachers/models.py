"""Finds a model on disk and describes it to the replicas. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path

from w2sr.prompting import PromptStyle
from w2sr.teachers.config import SamplingConfig
from w2sr.teachers.engine import GeneratorSpec


def model_folder(name: str) -> Path:
    """Return the folder of a model given as a lab name ("lab:teacher"), a folder, or a hub id (downloaded, or found in its cache).

    Raises UserError when there is no such model, or its folder has no config.json or no safetensors weights.
    """
    raise NotImplementedError


def generator_spec(name: str, model: str, style: PromptStyle, sampling: SamplingConfig, batch_size: int) -> GeneratorSpec:
    """Return what a replica needs to serve `model` (a lab name, folder or hub id) as the generator `name`."""
    raise NotImplementedError
