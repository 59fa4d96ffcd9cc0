import json
from pathlib import Path

import pytest

from launcher.cluster_file import HostConfig, LocalCluster, SshCluster, load_cluster_file
from launcher.home import ClusterState, NodeState, OpenCluster, home, known_clusters, open_cluster
from w2sr.errors import UserError

STATE = ClusterState("10.0.0.1:10247", "127.0.0.1:10248", (NodeState("a", "10.0.0.1", 7, "/tmp/w2sr-1"),), 1.0, seconds={"head": 2.0})


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def written(folder: Path, text: str, name: str = "My_Lab.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_cluster_is_called_as_its_file(tmp_path: Path) -> None:
    assert load_cluster_file(written(tmp_path, "kind: local")).name == "my-lab"
    assert load_cluster_file(written(tmp_path, "kind: local\nname: other")).name == "other"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: cloud", "kind"),
        ("kind: local\nnum_cpu: 3", "unknown key 'num_cpu': did you mean 'num_cpus'"),
        ("kind: local\nname: My lab", "'My lab' is not a name: give at most 31 of a-z, 0-9 and -"),
        ("kind: local\nenv: {HF_TOKEN: x}", "HF_TOKEN looks like a secret, .* put it into the file of env_file"),
        ("kind: local\ntemp_dir: /scratch/a-rather-long-name", "is not an absolute path of at most 24 characters"),
        ("kind: local\ntemp_dir: tmp", "is not an absolute path of at most 24 characters"),
        ("kind: ssh", "give either hosts or hostfile"),
        ("kind: ssh\nhosts: [a]\nhostfile: x", "give either hosts or hostfile"),
        ("kind: ssh\nhosts: [a, b, a]", "hosts names 'a' more than once"),
        ("kind: ssh\nhosts: [-oProxyCommand=id]", "'-oProxyCommand=id' is not a host name"),
        ("kind: ssh\nhosts: ['a b']", "'a b' is not a host name"),
        ("kind: ray", "address"),
        ("kind: ray\naddress: 127.0.0.1", "'127.0.0.1' is not host:port, for example 10.0.0.1:6379"),
        ("kind: ray\naddress: h:6379\ndashboard: http://127.0.0.1:8265/", "'http://127.0.0.1:8265/' is not host:port"),
        ("kind: ray\naddress: h:99999", "'h:99999' is not host:port"),
        ("kind: ray\naddress: h:1\nenv: {A: b}\ntemp_dir: /scratch", "leave out env, temp_dir: of a Ray that is there, whoever started it"),
        (
            "kind: ray\naddress: h:1\nnetwork: {interface: ib0}\nready_timeout_s: 9\nenv_file: x",
            "leave out env_file, network, ready_timeout_s",
        ),
        ("kind: ssh\nhosts: [a]\npython: python3\nenvironment_copy: true", "PREFIX/bin/python; 'python3' is not such a path"),
        ("kind: ssh\nhosts: [a]\npython: /bin/python\nenvironment_copy: true", "'/bin/python' is not such a path"),
        ("kind: slurm\ntime_limit: 8:00:00", 'time_limit.*put it in quotes, as "8:00:00"'),
        ("kind: slurm\nmem: 0", "mem.*put it in quotes"),
        ("kind: local\nenv: {OPENAI_APIKEY: x}", "OPENAI_APIKEY looks like a secret"),
    ],
)
def test_a_wrong_cluster_file_is_refused_with_what_is_allowed(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        load_cluster_file(path)
    assert str(path) in str(caught.value)


def test_hosts_are_names_or_mappings(tmp_path: Path) -> None:
    file = load_cluster_file(written(tmp_path, "kind: ssh\nhosts: [a, {host: b, gpus: 8, labels: {rack: r1}}]"))
    assert isinstance(file, SshCluster)
    assert file.hosts == [HostConfig(host="a"), HostConfig(host="b", gpus=8, labels={"rack": "r1"})]


def test_a_hostfile_as_of_deepspeed_and_mpi_is_read(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("# ours\nnode1 slots=8\n\nnode2 slots=4  # the old one\nuser@node3\n")
    file = load_cluster_file(written(tmp_path, "kind: ssh\nhostfile: hosts"))
    assert isinstance(file, SshCluster)
    assert [(host.host, host.gpus) for host in file.hosts] == [("node1", 8), ("node2", 4), ("user@node3", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a slots=8\nb\na slots=2\n", "line 3: host 'a' is there twice; give each host once, with all its slots"),
        ("a 8\n", "line 1: 'a 8' is not `host slots=NUMBER`"),
        ("a slots=many\n", "line 1: 'a slots=many' is not `host slots=NUMBER`"),
        ("a slots=8 max_slots=9\n", "line 1: .* is not `host slots=NUMBER`"),
        ("-oProxyCommand=id slots=8\n", "line 1: .* is not `host slots=NUMBER`"),
        ("# nothing\n", "names no host"),
    ],
)
def test_a_wrong_hostfile_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(UserError, match=message):
        load_cluster_file(written(tmp_path, "kind: ssh\nhostfile: hosts"))


def test_a_missing_hostfile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read hostfile .*/none: No such file or directory; it is looked for beside"):
        load_cluster_file(written(tmp_path, "kind: ssh\nhostfile: none"))


def test_a_hostfile_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"n\xe9ud1 slots=8\n")
    with pytest.raises(UserError, match=r"hostfile .*/hosts is not text in UTF-8 \(byte 1\); save it as such"):
        load_cluster_file(written(tmp_path, "kind: ssh\nhostfile: hosts"))


def test_a_setting_whose_name_only_contains_a_secret_s_word_is_taken(tmp_path: Path) -> None:
    assert load_cluster_file(written(tmp_path, "kind: local\nenv: {TOKENIZERS_PARALLELISM: 'false'}")).env


def test_files_of_ssh_options_are_looked_for_beside_the_cluster_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "kind: ssh\nhosts: [a]\nssh_options: [-F, config, -i, /root/key, -i, ~/.ssh/key, -o, Port=22]")
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/me")
    file = load_cluster_file(path)
    assert isinstance(file, SshCluster)
    assert file.ssh_options == ["-F", str(tmp_path / "config"), "-i", "/root/key", "-i", "/home/me/.ssh/key", "-o", "Port=22"]


def test_the_network_becomes_the_environment_of_nccl_and_gloo(tmp_path: Path) -> None:
    file = load_cluster_file(
        written(
            tmp_path, "kind: local\nnetwork: {interface: ib0, infiniband: mlx5_0, nccl: {DEBUG: WARN}}\nenv: {GLOO_SOCKET_IFNAME: eth1}"
        )
    )
    assert file.environment() == {
        "NCCL_DEBUG": "WARN",
        "NCCL_IB_HCA": "mlx5_0",
        "NCCL_SOCKET_IFNAME": "ib0",
        "GLOO_SOCKET_IFNAME": "eth1",
    }


def test_the_state_folder_is_private_and_a_bad_one_is_named(own_home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home() == own_home
    assert own_home.stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("W2SR_HOME", str(tmp_path / "file/home"))
    with pytest.raises(UserError, match=r"cannot make the state folder .*; set W2SR_HOME to a folder you may write to"):
        home()


def test_a_cluster_is_known_by_name_after_its_file_was_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"known: none yet; or give a CLUSTER\.yaml"):
        open_cluster("lab")
    opened = open_cluster(str(written(tmp_path, "kind: local\nnum_gpus: 2", "lab.yaml")))
    assert open_cluster("lab") == opened
    assert known_clusters() == ["lab"]
    with pytest.raises(UserError, match="no cluster is called 'lap': did you mean 'lab'"):
        open_cluster("lap")


def test_what_is_up_is_stored_and_the_token_goes_with_it(tmp_path: Path) -> None:
    cluster = open_cluster(str(written(tmp_path, "kind: local", "lab.yaml")))
    with pytest.raises(UserError, match=r"cluster 'lab' is not up; bring it up with `w2sr cluster up lab`"):
        _ = cluster.address
    token = cluster.token()
    assert len(token) == 64
    assert cluster.token() == token
    assert cluster.token_path is not None
    assert cluster.token_path.stat().st_mode & 0o777 == 0o600
    up = cluster.save(STATE)
    assert open_cluster("lab") == up
    assert open_cluster("lab").address == "10.0.0.1:10247"
    assert token not in json.dumps(up.environment())
    down = up.save(None)
    assert not cluster.token_path.exists()
    assert open_cluster("lab") == down
    assert down.state is None


def test_another_file_under_the_name_of_a_cluster_that_is_up_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "kind: local", "lab.yaml")
    open_cluster(str(path)).save(STATE)
    path.write_text("kind: local\nnum_gpus: 2")
    with pytest.raises(UserError, match=r"is up with another file \(changed: num_gpus\); first `w2sr cluster down lab`"):
        open_cluster(str(path))
    open_cluster("lab").save(None)
    assert isinstance(file := open_cluster(str(path)).file, LocalCluster)
    assert file.num_gpus == 2


def test_a_foreign_cluster_has_the_token_file_that_was_given_or_none(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    given = open_cluster(str(written(tmp_path, f"kind: ray\naddress: h:6379\ntoken_file: {tmp_path}/token", "theirs.yaml")))
    assert given.token() == "abc"
    assert given.environment() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{tmp_path}/token"}
    given.save(None)
    assert (tmp_path / "token").exists()  # theirs, not ours to remove
    none: OpenCluster = open_cluster(str(written(tmp_path, "kind: ray\naddress: h:6379", "open.yaml")))
    assert none.token_path is None
    assert none.environment() == {}


def test_a_token_file_is_looked_for_beside_the_cluster_file_or_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their-token").write_text("abc\n")
    path = written(tmp_path, "kind: ray\naddress: h:6379\ntoken_file: their-token", "theirs.yaml")
    monkeypatch.chdir("/")
    open_cluster(str(path))
    assert open_cluster("theirs").token() == "abc"
    path.write_text("kind: ray\naddress: h:6379\ntoken_file: ~/token")
    monkeypatch.setenv("HOME", "/home/me")
    assert open_cluster(str(path)).token_path == Path("/home/me/token")


@pytest.mark.parametrize("text", ["s3cret\nanother\n", "s3cret x", "s3cret\u00e9", "", "\n"])
def test_a_token_file_that_holds_no_token_is_refused_and_never_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "token").write_text(text)
    given = open_cluster(str(written(tmp_path, "kind: ray\naddress: h:6379\ntoken_file: token", "theirs.yaml")))
    with pytest.raises(UserError, match=r"cluster 'theirs': .*/token holds no token: give one line") as caught:
        given.token()
    assert "s3cret" not in str(caught.value)


def test_a_token_file_that_is_gone_is_named(tmp_path: Path) -> None:
    given = open_cluster(str(written(tmp_path, "kind: ray\naddress: h:6379\ntoken_file: token", "theirs.yaml")))
    with pytest.raises(UserError, match=r"cannot read its token in .*/token \(No such file or directory\)"):
        given.token()


def test_a_cluster_that_another_version_stored_is_named(tmp_path: Path) -> None:
    cluster = open_cluster(str(written(tmp_path, "kind: local", "lab.yaml")))
    path = cluster.folder / "cluster.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "red"}))
    with pytest.raises(UserError, match=r"cluster\.json is not as this version of w2sr writes it \(.*'colour'.*then remove .*/lab"):
        open_cluster("lab")


def test_what_came_up_is_stored_with_its_own_file(tmp_path: Path) -> None:
    path = written(tmp_path, "kind: local", "lab.yaml")
    coming_up = open_cluster(str(path))
    path.write_text("kind: local\nnum_gpus: 2")
    open_cluster(str(path))  # somebody looks at another file of that name meanwhile
    assert coming_up.save(STATE) == open_cluster("lab")


def test_what_is_up_as_another_version_wrote_it_is_named(tmp_path: Path) -> None:
    folder = open_cluster(str(written(tmp_path, "kind: local", "lab.yaml"))).folder
    node = {"host": "a", "address": "10.0.0.1", "pid": 7, "folder": "/f"}
    state = {"address": "10.0.0.1:1", "dashboard": "10.0.0.1:2", "nodes": [node], "started_at": 3.5, "mood": "good"}
    (folder / "state.json").write_text(json.dumps(state))
    found = open_cluster("lab").state
    assert found is not None
    assert found.nodes[0].pid == 7
    del state["nodes"]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=r"state\.json is not as this version of w2sr writes it \(nodes: .*then remove .*/lab"):
        open_cluster("lab")
