"""Stage folders: complete only with a manifest, never continued under another configuration, digests that ignore time."""

import json
import re
from pathlib import Path

import pytest

from w2sr.artifacts import Manifest, StageDir, changed_keys, model_digest
from w2sr.errors import UserError


def stage_in(folder: Path, rate: float = 0.1, upstream: str = "aaa") -> StageDir:
    return StageDir(folder, "train", {"lr": rate, "style": {"system": None}}, {"prompts": upstream})


def finished(folder: Path, text: str = "result") -> Manifest:
    stage = stage_in(folder)
    assert not stage.is_done()
    stage.begin()
    (folder / "out.txt").write_text(text)
    return stage.finish({"rows": 1}, [folder / "out.txt"], {"tokens": 5})


def test_a_finished_stage_is_skipped_and_its_manifest_reads_back(tmp_path: Path) -> None:
    manifest = finished(tmp_path / "a")
    assert stage_in(tmp_path / "a").is_done()
    assert Manifest.load(tmp_path / "a") == manifest
    assert manifest.counts == {"rows": 1}
    assert manifest.usage == {"tokens": 5}


def test_the_digest_covers_outputs_and_not_times(tmp_path: Path) -> None:
    one, two, other = finished(tmp_path / "a"), finished(tmp_path / "b"), finished(tmp_path / "c", "another")
    assert one.digest == two.digest != other.digest


def test_begin_cannot_reopen_a_finished_stage(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    with pytest.raises(AssertionError, match="finished already"):
        stage_in(tmp_path / "a").begin()


def test_a_changed_config_is_refused_with_the_keys_named(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    with pytest.raises(UserError, match=r"Changed: lr: 0\.1 -> 0\.2"):
        stage_in(tmp_path / "a", rate=0.2).is_done()


def test_half_done_work_is_not_continued_under_another_config(tmp_path: Path) -> None:
    stage_in(tmp_path / "a").begin()
    with pytest.raises(UserError, match=r"lr: 0\.1 -> 0\.2"):
        stage_in(tmp_path / "a", rate=0.2).begin()


def test_changed_inputs_are_refused(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    with pytest.raises(UserError, match="other inputs: prompts changed"):
        stage_in(tmp_path / "a", upstream="bbb").is_done()


def test_a_killed_attempt_counts_until_its_last_write(tmp_path: Path) -> None:
    stage_in(tmp_path / "a").begin()
    (tmp_path / "a" / "half.txt").write_text("half")
    stage_in(tmp_path / "a").begin()
    attempts = json.loads((tmp_path / "a" / "stage.json").read_text())["attempts"]
    assert len(attempts) == 2
    assert attempts[0]["began"] <= attempts[0]["ended"] <= attempts[1]["began"]
    assert attempts[1]["ended"] is None


def test_a_missing_manifest_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not finished"):
        Manifest.load(tmp_path / "a")


def test_a_damaged_manifest_is_named(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON"):
        stage_in(tmp_path / "a").is_done()


@pytest.mark.parametrize("damage", [b"[]", b"\xff\xfe", b"{}", b'{"config": 5, "inputs": {}}', b"null"])
@pytest.mark.parametrize("name", ["manifest.json", "stage.json"])
def test_whatever_the_damage_is_the_file_and_the_remedy_are_named(name: str, damage: bytes, tmp_path: Path) -> None:
    finished(tmp_path / "a")
    (tmp_path / "a" / "manifest.json").unlink()
    (tmp_path / "a" / name).write_bytes(damage)
    message = rf"{re.escape(name)} .*; it was damaged from outside: remove .*a to make that stage again"
    with pytest.raises(UserError, match=message):
        stage_in(tmp_path / "a").is_done()
    if name == "manifest.json":
        with pytest.raises(UserError, match=message):
            Manifest.load(tmp_path / "a")


def test_a_manifest_that_lacks_a_field_is_named_with_it(tmp_path: Path) -> None:
    finished(tmp_path / "a")
    path = tmp_path / "a" / "manifest.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "digest"}))
    with pytest.raises(UserError, match=r"manifest\.json has no 'digest'"):
        Manifest.load(tmp_path / "a")


def test_changed_keys_reports_added_removed_and_nested() -> None:
    old = {"a": 1, "b": {"c": [1, 2]}, "gone": True}
    new = {"a": 1, "b": {"c": [1, 3]}, "new": "x"}
    assert changed_keys(old, new) == ["b.c.1: 2 -> 3", "gone: True -> (absent)", "new: (absent) -> 'x'"]


def test_a_model_digest_sees_weights_and_template_but_not_notes(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    before = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("note")
    assert model_digest(tmp_path) == before
    (tmp_path / "chat_template.jinja").write_text("{{ other }}")
    assert model_digest(tmp_path) != before
