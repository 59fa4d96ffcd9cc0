"""What the cluster section of a configuration may say.

`cluster` imports nothing of w2sr, so this is a plain dataclass; w2sr/config.py shows it to the user as the `cluster:` section.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClusterSpec:
    """Where Ray runs. `address` None: a private Ray on this machine with `num_cpus` CPUs and `num_gpus` GPUs (None: all)."""

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
