"""The generate stage with an endpoint as its teacher: the pool, the store, the messages, and where the key is not."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.cli import main
from tests.endpoint.conftest import MODEL, FaultyProxy, Server
from w2sr.records import Trace
from w2sr.tables import read_table

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
KEY = "sk-Very.Secret-123"
NUM_PROMPTS = 20
FAST = {"kind": "openai", "backoff_s": 0.1, "timeout_s": 5, "max_retries": 5, "max_in_flight": 6, "api_key_env": "TEACHER_KEY"}


def generate(folder: Path, url: str, **engine: object) -> int:
    settings = json.dumps(FAST | {"base_url": url} | engine)
    # Greedy: `transformers serve` seeds all its requests together.
    sampling = json.dumps({"temperature": 0, "max_new_tokens": 64})
    overrides = [
        f"run_dir={folder}",
        f"prompts.num_train={NUM_PROMPTS}",
        "prompts.num_selection=0",
        "prompts.num_test=4",
        f"teachers.0.engine={settings}",
        f"teachers.0.model={MODEL}",
        f"teachers.0.sampling={sampling}",
        "teachers.0.samples_per_prompt=1",
        "generate.flush_interval_s=0.1",
        "generate.drain_timeout_s=2",
    ]
    stages = ["prompts", "generate"] if not (folder / "prompts").exists() else ["generate"]
    return max(main([stage, QUICKSTART, *overrides]) for stage in stages)


def parts_of(folder: Path) -> dict[str, str]:
    paths = (folder / "generate" / "weak").glob("part-*.parquet")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)


@pytest.fixture(scope="module")
def calm(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("calm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", KEY)
        assert generate(folder, server.url) == 0
    traces = read_table(folder / "generate" / "weak", Trace)
    assert len(traces) == NUM_PROMPTS
    assert {(trace.finish_reason, trace.engine, trace.model) for trace in traces} == {("stop", "openai", f"{MODEL}@main")}
    assert all(trace.num_tokens and trace.num_prompt_tokens for trace in traces)
    return parts_of(folder)


@pytest.mark.usefixtures("_key")
def test_a_run_over_a_faulty_wire_writes_the_same_bytes(calm: dict[str, str], faulty: Callable[[int], FaultyProxy], tmp_path: Path) -> None:
    proxy = faulty(3)
    assert generate(tmp_path, proxy.url) == 0
    assert sum(proxy.faults().values()) >= NUM_PROMPTS / 3
    assert parts_of(tmp_path) == calm


@pytest.mark.usefixtures("_key")
def test_an_endpoint_that_goes_down_ends_the_run_in_words_and_a_second_run_goes_on(
    calm: dict[str, str], faulty: Callable[[int], FaultyProxy], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proxy = faulty(0)
    store = tmp_path / "generate" / "weak"

    def kill_when_some_are_committed() -> None:
        while not list(store.glob("*.parquet")):
            time.sleep(0.02)
        proxy.process.kill()

    killer = threading.Thread(target=kill_when_some_are_committed)
    killer.start()
    assert generate(tmp_path, proxy.url, max_retries=3) == 2
    killer.join()
    message = capsys.readouterr().err
    assert f"the endpoint {proxy.url} has answered no request in 4 tries (max_retries = 3), the last time: no connection" in message
    assert "run again: what is finished stays" in message
    assert not (store / "manifest.json").exists()
    assert parts_of(tmp_path) == {}
    assert generate(tmp_path, faulty(0).url) == 0  # elsewhere now: that changes nothing
    assert parts_of(tmp_path) == calm


@pytest.mark.usefixtures("_key")
def test_the_key_is_in_nothing_that_is_written_or_shown(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert generate(tmp_path / "good", server.url) == 0
    assert generate(tmp_path / "bad", server.url.removesuffix("/v1")) == 2
    assert generate(tmp_path / "none", server.url, extra_body={"note": 1}) in (0, 2)
    shown = capfd.readouterr()
    assert "has no such path" in shown.err
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    for secret in (KEY, KEY[3:]):
        assert secret not in shown.out + shown.err
        assert [path for path in written if secret.encode() in path.read_bytes()] == []


def test_a_key_that_is_not_set_stops_the_run_before_it_begins(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    folder = tmp_path / "run"
    (folder / "prompts").mkdir(parents=True)  # so that generate alone is asked for
    assert generate(folder, server.url) == 2
    assert "the environment variable TEACHER_KEY (api_key_env) is not set or empty" in capsys.readouterr().err
    assert not (folder / "generate").exists()
