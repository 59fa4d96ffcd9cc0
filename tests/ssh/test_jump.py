"""A host that only another host reaches (ProxyJump in the user's ssh configuration): up, files, jobs' dashboard and down go through it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.ssh.hosts import ROOT, Hosts


def make_environment(prefix: Path) -> Path:
    """Make a small environment that finds its packages in the one that runs the tests; return its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(prefix)], check=True)
    [packages] = prefix.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return prefix / "bin" / "python"


def test_a_host_behind_a_jump_host_gets_our_files_and_environment_and_becomes_the_head(two_hosts: Hosts) -> None:
    config = two_hosts.folder / "jump_config"
    config.write_text(f"Host b\n  ProxyJump a\n{two_hosts.ssh_config.read_text()}")
    empty = {ROOT / name: two_hosts.folder / f"jump/{name}" for name in ("cluster", "launcher", "w2sr", "configs")}
    python = make_environment(two_hosts.folder / "environment")
    empty[two_hosts.folder / "environment"] = two_hosts.folder / "jump/environment"
    for folder in empty.values():
        folder.mkdir(parents=True)
    two_hosts.kill_host("b")
    two_hosts.start_host("b", mounts=empty)
    login = two_hosts.addresses["a"].rpartition(".")[0] + ".254"
    two_hosts.run("b", "ip", "route", "add", "blackhole", login)
    try:
        through = {"hosts": ["b"], "tree": "copy", "ssh_options": ["-F", str(config)], "python": str(python)}
        said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("inner", **through), code=2)
        assert "set tree: copy and environment_copy: true" in said
        two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("inner", **through, environment_copy=True))
        assert "1 of 1 nodes up" in two_hosts.w2sr("cluster", "status", "inner")
        # By a job on the head, over a tunnel through both.
        assert "0 failed" in two_hosts.w2sr("doctor", "--cluster", "inner", "--no-bandwidth")
        two_hosts.w2sr("cluster", "down", "inner")
        said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("direct", hosts=["b"]), code=2)
        assert "host b: ssh failed: " in said  # what shows that the rest went through host a
    finally:
        two_hosts.run("b", "ip", "route", "del", "blackhole", login)
        two_hosts.kill_host("b")
        two_hosts.start_host("b")
    shutil.rmtree(two_hosts.folder / "jump")
    shutil.rmtree(two_hosts.folder / "environment")
    assert two_hosts.leftovers() == []
