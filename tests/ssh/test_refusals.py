"""What `w2sr cluster up` refuses over ssh, and that it leaves nothing when it is refused or interrupted."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.ssh.hosts import DEADLINE_S, ROOT, Hosts


def test_a_host_with_other_code_is_refused_by_name(two_hosts: Hosts) -> None:
    other = two_hosts.folder / "other_code"
    shutil.copytree(ROOT / "w2sr", other, ignore=shutil.ignore_patterns("__pycache__"))
    with open(other / "errors.py", "a") as file:
        file.write("# a commit ahead\n")
    two_hosts.kill_host("b")
    two_hosts.start_host("b", mounts={ROOT / "w2sr": other})
    try:
        said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("skewed"), code=2)
    finally:
        two_hosts.kill_host("b")
        two_hosts.start_host("b")
    assert f"host b has other code in {ROOT} than this machine" in said
    assert "tree: copy" in said
    assert "host a" not in said
    assert two_hosts.leftovers() == []


def test_a_tree_that_a_host_lacks_is_copied_there(two_hosts: Hosts) -> None:
    empty = {ROOT / name: two_hosts.folder / f"empty/{name}" for name in ("cluster", "launcher", "w2sr", "configs")}
    for folder in empty.values():
        folder.mkdir(parents=True)
    two_hosts.kill_host("b")
    two_hosts.start_host("b", mounts=empty)
    try:
        assert "No module named launcher" in two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("bare"), code=2)
        assert "copy" in two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("copied", tree="copy"))
        assert (two_hosts.folder / "empty/launcher/cli.py").read_bytes() == (ROOT / "launcher/cli.py").read_bytes()
        two_hosts.w2sr("cluster", "down", "copied")
    finally:
        two_hosts.kill_host("b")
        two_hosts.start_host("b")
    assert two_hosts.leftovers() == []


def test_hosts_that_cannot_be_reached_are_named_with_ssh_s_words(two_hosts: Hosts) -> None:
    refused = two_hosts.folder / "refused_config"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", two_hosts.folder / "stranger"], check=True)
    refused.write_text(two_hosts.ssh_config.read_text().replace(f"{two_hosts.folder}/key", f"{two_hosts.folder}/stranger"))
    said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("refused", ssh_options=["-F", "refused_config"]), code=2)
    for host in ("a", "b"):
        assert f"host {host}: ssh failed: " in said
        assert f"`ssh {host} true` must work without a question" in said
    assert "Permission denied (publickey)" in said

    nowhere = two_hosts.write_cluster("nowhere", hosts=["a", "no-such-host.invalid"])
    said = two_hosts.w2sr("cluster", "up", nowhere, code=2)
    assert "host no-such-host.invalid: ssh failed: ssh: Could not resolve hostname" in said
    assert "host a" not in said

    said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("pythonless", python="/opt/none/bin/python"), code=2)
    assert "/opt/none/bin/python must be there too" in said
    assert two_hosts.leftovers() == []


def test_a_node_that_does_not_come_up_ends_the_others_and_shows_why(two_hosts: Hosts) -> None:
    secrets = two_hosts.folder / "secrets.env"
    secrets.write_text("OPENAI_API_KEY=sk-none\n")
    secrets.chmod(0o644)
    said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("open", env_file=str(secrets)), code=2)
    assert f"env_file {secrets} on a can be read by others (mode 644); chmod 600 it" in said
    said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("wrong", network={"interface": "ib0"}, hosts=["a", "b"]), code=2)
    assert "network.interface 'ib0' has no IPv4 address on a; it has lo, eth0" in said
    said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("hasty", ready_timeout_s=0.2), code=2)
    assert "Ray on a was not ready after 0.2 s" in said
    assert two_hosts.leftovers() == []


def test_ctrl_c_in_the_middle_of_up_leaves_nothing(two_hosts: Hosts) -> None:
    """Once while the head starts, once while the worker does."""
    two_hosts.write_cluster("stopped")
    for awaited in (b"waiting for a: starting Ray on a", b"1 of 2 nodes ready"):
        with subprocess.Popen(
            [sys.executable, "-m", "launcher", "cluster", "up", "stopped.yaml"],
            env=two_hosts.environment,
            cwd=two_hosts.folder,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # A shell that started these tests in the background has them ignore Ctrl-C, and so their children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as up:
            assert up.stderr is not None
            said = b""
            while awaited not in said:
                line = up.stderr.readline()
                assert line, said.decode()
                said += line
            os.killpg(up.pid, signal.SIGINT)
            said += up.stderr.read()
            assert up.wait() == 130, said.decode()
        assert b"what this command started has been ended" in said
        wait_until_nothing_is_left(two_hosts)
        assert not (two_hosts.folder / "home/clusters/stopped/token").exists()


def test_up_that_is_killed_outright_leaves_no_keeper_behind(two_hosts: Hosts) -> None:
    two_hosts.write_cluster("killed")
    with subprocess.Popen(
        [sys.executable, "-m", "launcher", "cluster", "up", "killed.yaml"],
        env=two_hosts.environment,
        cwd=two_hosts.folder,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as up:
        assert up.stderr is not None
        assert b"waiting for a: starting Ray on a" in up.stderr.readline()
        up.kill()
    # Its ssh clients live on, in sessions of their own, until their stdin, which was its, is closed.
    wait_until_nothing_is_left(two_hosts)


def test_down_names_the_host_that_cannot_be_reached(two_hosts: Hosts) -> None:
    file = two_hosts.write_cluster("half")
    two_hosts.w2sr("cluster", "up", file)
    two_hosts.kill_host("b")
    said = two_hosts.w2sr("cluster", "down", "half", code=2)
    assert "could not end the node on b (ssh: connect to host" in said
    assert "node on a" not in said
    two_hosts.start_host("b")
    assert "half is down" in two_hosts.w2sr("cluster", "down", "half")
    assert two_hosts.leftovers() == []


def test_down_forgets_a_host_that_will_never_come_back(two_hosts: Hosts) -> None:
    file = two_hosts.write_cluster("gone")
    two_hosts.w2sr("cluster", "up", file)
    two_hosts.kill_host("b")
    assert "could not end the node on b" in (said := two_hosts.w2sr("cluster", "down", "gone", "--forget"))
    assert "gone is down" in said
    assert "gone (ssh): down" in two_hosts.w2sr("cluster", "list")
    two_hosts.start_host("b")
    for folder in Path(two_hosts.folder).glob("w2sr-*"):
        shutil.rmtree(folder)  # what the killed host had on its own disk


def wait_until_nothing_is_left(hosts: Hosts) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while left := hosts.leftovers():
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_a_host_that_says_nothing_at_all_is_reported_in_time(two_hosts: Hosts) -> None:
    """Its cable is pulled: nothing refuses, nothing answers."""
    two_hosts.run("b", "ip", "link", "set", "eth0", "down")
    try:
        began = time.monotonic()
        said = two_hosts.w2sr("cluster", "up", two_hosts.write_cluster("silent"), code=2)
        assert "host b: ssh failed: ssh: connect to host" in said
        assert time.monotonic() - began < 60
    finally:
        two_hosts.run("b", "ip", "link", "set", "eth0", "up")
        two_hosts.run("b", "ip", "route", "replace", "default", "via", two_hosts.addresses["b"].rsplit(".", 1)[0] + ".254")
