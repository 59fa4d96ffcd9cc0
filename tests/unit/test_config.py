"""Configuration: what is read, what is refused, and with which words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from w2sr.config import PipelineConfig, dump_config, load_config, read_values
from w2sr.errors import UserError

ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "run_dir": "runs/x",
    "prompts": {"source": {"kind": "reasoning_gym", "tasks": [{"name": "chain_sum"}]}, "num_train": 4, "num_test": 2},
    "teachers": [{"name": "weak", "model": "lab:teacher", "sampling": {"max_new_tokens": 8}}],
    "student": {"model": "lab:student"},
    "train": {"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 2},
    "evaluate": {"sampling": {"max_new_tokens": 8}},
}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def models_under(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    import typing

    if model in seen:
        return
    seen.add(model)
    yield model
    pending: list[Any] = [field.annotation for field in model.model_fields.values()]
    while pending:
        hint = pending.pop()
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            yield from models_under(hint, seen)
        pending.extend(typing.get_args(hint))


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(path).run_dir.startswith("runs/")


def test_every_field_has_a_help_text() -> None:
    for model in models_under(PipelineConfig, set()):
        for name, field in model.model_fields.items():
            assert field.description or name == "kind", f"{model.__name__}.{name}"


def test_resolved_config_reads_back_as_itself(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("2E+1", 20.0), ("1.5e-3", 1.5e-3), ("3", 3.0), (".5", 0.5)])
def test_numbers_are_read_as_people_write_them(config_file: Path, text: str, value: float) -> None:
    assert load_config(config_file, [f"train.learning_rate={text}"]).train.learning_rate == value


def test_overrides_reach_into_lists_and_sections(config_file: Path) -> None:
    config = load_config(config_file, ["teachers.0.samples_per_prompt=3", "cluster.num_cpus=1", "train.seeds=[0, 1, 2]"])
    assert (config.teachers[0].samples_per_prompt, config.cluster.num_cpus, config.train.seeds) == (3, 1, [0, 1, 2])


def test_config_is_immutable(config_file: Path) -> None:
    config = load_config(config_file)
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.learning_rte=1e-5"], ["train", "'learning_rte'", "did you mean 'learning_rate'"]),
        (["train.label_smoothing=0.1"], ["train", "'label_smoothing'", "did you mean 'loss.label_smoothing'"]),
        (["train.offload_optimizer=cpu"], ["did you mean 'memory.offload_optimizer'"]),
        (["zero_stage=3"], ["'zero_stage'", "did you mean 'train.zero_stage'"]),
        (["train.seeds=[-1]"], ["train.seeds.0", "greater than or equal to 0 (given: -1)"]),
        (["train.seeds=[20261122123456]"], ["train.seeds.0", "less than 4294967296"]),
        (["train.max_steps=null", "train.epochs=.inf"], ["train.epochs", "finite number (given: inf)"]),
        (["trian.max_steps=3"], ["'trian'", "did you mean 'train'"]),
        (["train.zero_stage=5"], ["train.zero_stage", "0, 1, 2 or 3", "given: 5"]),
        (["train.epochs=3"], ["exactly one of epochs and max_steps", "epochs=3", "max_steps=2"]),
        (["train.global_batch_size=7"], ["global_batch_size=7", "2 * 2", "nearest valid: 4, 8"]),
        (["evaluate.samples_per_prompt=2"], ["pass_k has 4", "allowed: 1 to 2"]),
        (["train.arms=[]"], ["train.arms is []", "nobody would be trained"]),
        (["train.mixtures=[{name: all, parts: {all: 1, gold: 1}}]"], ["'all' is the name of an arm"]),
        (["train.mixtures=[{name: m, parts: {all: 1, golden: 1}}]"], ["'m' has the part 'golden'", "all, correct, incorrect, gold"]),
        (["train.mixtures=[{name: m, parts: {all: 1, gold: 0}}]"], ["the weight of 'gold' is 0", "leave the arm out"]),
        (["train.mixtures=[{name: m, parts: {all: 1}}]"], ["train.mixtures.0.parts"]),
        (
            ["train.mixtures=[{name: m, parts: {all: 1, gold: 1}}, {name: m, parts: {all: 1, gold: 2}}]"],
            ["train.mixtures names 'm' more than once"],
        ),
        (["train.arms=[golden]"], ["'golden'", "all, correct, incorrect, gold"]),
        (["train.seeds=[1, 2, 1]"], ["train.seeds names 1 more than once"]),
        (["curate.arms=[all, all]"], ["curate.arms names 'all' more than once"]),
        (["teachers.3.name=x"], ["'3'", "list of 1"]),
        (["teachers.0.style.user=hello"], ["{question}"]),
        (["nonsense"], ["key=value"]),
        (["seed=[1"], ["not valid YAML"]),
        (["prompts.source.kind=hugging"], ["prompts.source", "hugging"]),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(config_file: Path, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(config_file, overrides)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_overriding_into_a_scalar_is_refused(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + "title: hello\n")
    with pytest.raises(UserError, match="title is 'hello', not a section"):
        load_config(config_file, ["title.text=3"])


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"a: [1", "not valid YAML"),
        (b"- 1\n- 2\n", "not a mapping"),
        (b"seed: 1\nseed: 2\n", "given twice"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"", "NoneType"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=word):
        load_config(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read configuration .*nowhere\.yaml: No such file"):
        load_config(tmp_path / "nowhere.yaml")


def test_two_teachers_need_two_names(config_file: Path) -> None:
    values = {**SMALL, "teachers": SMALL["teachers"] * 2}
    config_file.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="'weak' is used 2 times"):
        load_config(config_file)


def test_placement_does_not_change_identity(config_file: Path) -> None:
    calm, moved = (load_config(config_file, [f"teachers.0.pool.replicas={n}"]) for n in (1, 4))
    other = load_config(config_file, ["teachers.0.sampling.temperature=1.0"])
    assert calm.teachers[0].identity() == moved.teachers[0].identity() != other.teachers[0].identity()


def test_an_unknown_kind_is_named_with_the_nearest_one(config_file: Path) -> None:
    with pytest.raises(
        UserError, match=r"teachers\.0\.engine: unknown kind 'vlm': did you mean 'vllm'\? allowed: hf, vllm, openai, recorded"
    ):
        load_config(config_file, ["teachers.0.engine={kind: vlm}"])


def test_an_override_changes_one_place_even_where_an_anchor_is_used_in_several(tmp_path: Path) -> None:
    path = tmp_path / "anchored.yaml"
    path.write_text("teachers: [{engine: &engine {batch_size: 3}}]\nevaluate: {engine: *engine}\n")
    values = read_values(path, ["evaluate.engine.batch_size=7"], "x.yaml", "here")
    assert values == {"teachers": [{"engine": {"batch_size": 3}}], "evaluate": {"engine": {"batch_size": 7}}}
    path.write_text("a: &a [*a]\n")
    with pytest.raises(UserError, match=r"an anchor \(&name\) holds an alias"):
        read_values(path, [], "x.yaml", "here")
