"""Lets the doctor work on a cluster from wherever its dashboard is reached: as a job on its head, whose output comes back."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from cluster.errors import ClusterError
from cluster.ray_jobs import RayJobs
from launcher.backends.ray import environment
from launcher.home import OpenCluster
from launcher.tunnel import dashboard_url

POLL_S = 0.5
# A line every few seconds: somebody waits in front of it.
SAY_S = 5.0
REQUEST_TIMEOUT_S = 30.0


def examine_from_head(cluster: OpenCluster, words: Sequence[str], timeout_s: float, say: Callable[[str], None]) -> dict[str, Any]:
    """Run `w2sr doctor` with `words` on the head and return what it prints as JSON.

    Paths in `words` are the head's. The job is ended when this call is interrupted. Raises ClusterError when it says nothing in
    `timeout_s` seconds, or nothing of use.
    """
    doctor = shlex.join([cluster.file.python, "-m", "launcher", "doctor", "--json", *words])
    # Paths of a configuration begin where the user stands, if there is such a folder on the head. Ray's address is what Ray tells its jobs:
    # the one that we know may be the end of a tunnel.
    command = f'cd {shlex.quote(os.getcwd())} 2>/dev/null; exec {doctor} --address "$RAY_ADDRESS"'
    token = cluster.token() if cluster.token_path else None
    with dashboard_url(cluster) as url:
        jobs = RayJobs(url, token)
        number = jobs.submit(f"doctor-{secrets.token_hex(4)}", command, environment(cluster))
        try:
            _wait(jobs, number, timeout_s, say)
            output = _output(url, token, number)
        finally:
            jobs.stop(number)
    return _parsed(output)


def _wait(jobs: RayJobs, number: str, timeout_s: float, say: Callable[[str], None]) -> None:
    began = said = time.monotonic()
    while (state := jobs.state(number)) != "ended":
        now = time.monotonic()
        if now - began > timeout_s:
            raise ClusterError(
                f"the doctor on the head is still {state} after {timeout_s:g} s; see `w2sr cluster status`, or give --timeout"
            )
        if now - said > SAY_S:
            say(f"{state} on the head for {now - began:.0f} s")
            said = now
        time.sleep(POLL_S)


def _output(url: str, token: str | None, number: str) -> str:
    """Return what the job printed, both streams as one text."""
    request = urllib.request.Request(f"{url}/api/jobs/{number}/logs", headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as reply:
            return str(json.load(reply)["logs"])
    except (urllib.error.URLError, TimeoutError, KeyError, json.JSONDecodeError) as error:
        raise ClusterError(f"what the doctor said on the head could not be fetched ({error}); see `w2sr cluster status`") from error


def _parsed(output: str) -> dict[str, Any]:
    """Return the JSON in the output: from the line "{" to the line "}". Around it are progress and complaints of libraries."""
    lines = output.splitlines()
    if "{" in lines and "}" in lines:
        first, last = lines.index("{"), len(lines) - lines[::-1].index("}")
        try:
            return dict(json.loads("\n".join(lines[first:last])))
        except json.JSONDecodeError:
            pass  # told below
    tail = "; ".join(line.strip() for line in lines[-5:] if line.strip())
    raise ClusterError(f"the doctor on the head gave no result; it said: {tail or 'nothing'}")
