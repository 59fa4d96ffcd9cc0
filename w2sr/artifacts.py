"""Stage folders: a folder whose `manifest.json` exists is complete; the manifest is written last.

`stage.json` is written first and says with which configuration and inputs the folder was begun, so that half-done work is never continued
under another configuration. The digest of a manifest covers configuration, inputs, counts and the bytes of the outputs, not times or
machines: two runs that computed the same thing have the same digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from w2sr.errors import UserError
from w2sr.tables import write_text

MANIFEST = "manifest.json"
STARTED = "stage.json"


@dataclass(frozen=True)
class Manifest:
    """What a finished stage says about itself. `seconds` sums all attempts, `usage` holds what it cost (tokens, device-seconds)."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int]
    files: dict[str, str]
    digest: str
    seconds: float
    num_attempts: int
    usage: dict[str, float]

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a finished stage; a UserError names the stage that has to run first."""
        path = folder / MANIFEST
        if not path.exists():
            raise UserError(f"{folder} is not finished (no {MANIFEST} there); run that stage first, or all of them with `w2sr run CONFIG`")
        found = _read_json(path, _FIELDS)
        return cls(**{name: found[name] for name in _FIELDS})


# What a manifest's file has to hold; JSON gives a whole number of seconds as an int.
_FIELDS: dict[str, Any] = {
    "stage": str,
    "config": dict,
    "inputs": dict,
    "counts": dict,
    "files": dict,
    "digest": str,
    "seconds": (int, float),
    "num_attempts": int,
    "usage": dict,
}


class StageDir:
    """One stage's folder: `is_done()`, `begin()`, write outputs, `finish()`."""

    def __init__(self, folder: Path, stage: str, config: dict[str, Any], inputs: dict[str, str]) -> None:
        self.folder = folder
        self.stage = stage
        self.config = json.loads(json.dumps(config))
        self.inputs = dict(inputs)

    def is_done(self) -> bool:
        """Return whether the stage is complete; raise UserError when it was made, or begun, with another configuration or other inputs."""
        for name in (MANIFEST, STARTED):
            path = self.folder / name
            if path.exists():
                self._refuse_changes(_read_json(path, {"config": dict, "inputs": dict}))
                if name == MANIFEST:
                    return True
        return False

    def is_current(self) -> bool:
        """Return whether the stage is complete and was made from this configuration and these inputs; never refuses."""
        if not (self.folder / MANIFEST).exists():
            return False
        found = Manifest.load(self.folder)
        return (found.config, found.inputs) == (self.config, self.inputs)

    def begin_anew(self) -> None:
        """Forget what was made and open an attempt: for what is made again in seconds, whatever changed."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        (self.folder / STARTED).unlink(missing_ok=True)
        self.begin()

    def begin(self) -> None:
        """Open an attempt. Safe to call again after a kill."""
        if self.is_done():
            raise AssertionError(f"{self.folder} is finished already")
        attempts = self._attempts()
        if attempts and attempts[-1]["ended"] is None:
            attempts[-1]["ended"] = max(_last_write(self.folder), attempts[-1]["began"])  # the attempt was killed: its last sign of life
        attempts.append({"began": time.time(), "ended": None})
        self._write_started(attempts)

    def finish(
        self, counts: dict[str, int], outputs: Iterable[Path], usage: dict[str, float] | None = None, least_s: float = 0.0
    ) -> Manifest:
        """Write the manifest: the stage is complete from here on. `outputs` are the files (inside the folder) that define the result.

        `least_s`: seconds that the work took, some of it perhaps before the stage was begun.
        """
        attempts = self._attempts()
        attempts[-1]["ended"] = time.time()
        self._write_started(attempts)
        files = {str(path.relative_to(self.folder)): file_digest(path) for path in sorted(outputs)}
        identity = {"stage": self.stage, "config": self.config, "inputs": self.inputs, "counts": counts, "files": files}
        manifest = Manifest(
            **identity,
            digest=digest_of(identity),
            seconds=round(max(least_s, sum(attempt["ended"] - attempt["began"] for attempt in attempts)), 3),
            num_attempts=len(attempts),
            usage=dict(usage or {}),
        )
        write_text(self.folder / MANIFEST, json.dumps(vars(manifest), indent=1) + "\n")
        return manifest

    def _attempts(self) -> list[dict[str, Any]]:
        path = self.folder / STARTED
        return list(_read_json(path, {"attempts": list})["attempts"]) if path.exists() else []

    def _write_started(self, attempts: list[dict[str, Any]]) -> None:
        started = {"stage": self.stage, "config": self.config, "inputs": self.inputs, "attempts": attempts}
        write_text(self.folder / STARTED, json.dumps(started, indent=1) + "\n")

    def _refuse_changes(self, found: dict[str, Any]) -> None:
        changed = changed_keys(found["config"], self.config)
        if changed:
            raise UserError(
                f"stage {self.stage} in {self.folder} was made with another configuration. Changed: {'; '.join(changed)}. "
                f"Restore the value, choose another run_dir, or remove {self.folder} (and the stages after it) to make it again"
            )
        stale = sorted(key for key in self.inputs | found["inputs"] if self.inputs.get(key) != found["inputs"].get(key))
        if stale:
            raise UserError(
                f"stage {self.stage} in {self.folder} was made from other inputs: {', '.join(stale)} changed since. "
                f"Remove {self.folder} (and the stages after it) to make it again, or choose another run_dir"
            )


def changed_keys(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return "key: old -> new" for every dotted key whose value differs."""
    before, after = flatten(old), flatten(new)
    gone = "(absent)"
    return [
        f"{key}: {_short(before.get(key, gone))} -> {_short(after.get(key, gone))}"
        for key in sorted(before | after)
        if before.get(key, gone) != after.get(key, gone)
    ]


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by dotted key; what is empty is a leaf."""
    if isinstance(value, dict) and value:
        items: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def digest_of(value: Any) -> str:
    """Return the sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest_by_blocks(file)


def code_digest(folder: Path, suffixes: Iterable[str] = (".py",)) -> str:
    """Return a digest of the sources in a folder, so that what they make is made again by a new version."""
    kept = tuple(suffixes)
    return digest_of({path.name: file_digest(path) for path in sorted(folder.iterdir()) if path.suffix in kept})


def plain(value: Any) -> Any:
    """Return dataclasses as dictionaries and tuples as lists, all the way down: what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def model_digest(folder: Path) -> str:
    """Return a digest of a model folder: names and bytes of weights, configuration, tokenizer and chat template."""
    kept = (".safetensors", ".json", ".jinja", ".model", ".txt")
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix in kept and path.name != MANIFEST)
    return digest_of({str(path.relative_to(folder)): file_digest(path) for path in files})


def _digest_by_blocks(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the object in a file that we wrote. Raises UserError where it is none, or lacks one of `fields` (name: type)."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, f"is not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise _damaged(path, "holds no object")
    for name, kind in fields.items():
        if not isinstance(found.get(name), kind):
            raise _damaged(path, f"has no {name!r}, or one of another type")
    return found


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; it was damaged from outside: remove {path.parent} to make that stage again")


def _short(value: Any) -> str:
    text = value if value == "(absent)" else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _last_write(folder: Path) -> float:
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)
