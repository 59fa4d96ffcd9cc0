"""The whole configuration of a run: read from YAML, overridden by key=value, checked, stored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from cluster.config import ClusterSpec
from w2sr.analysis.config import AnalyseConfig
from w2sr.curation.config import CurateConfig
from w2sr.errors import UserError
from w2sr.evaluation.bans_config import refuse_bad_bans
from w2sr.evaluation.config import EvaluateConfig
from w2sr.grading.config import VerifyConfig
from w2sr.prompts.config import PromptsConfig
from w2sr.reporting.config import ReportConfig
from w2sr.schema import PLACEMENT, StrictModel, nearest
from w2sr.teachers.config import NO_BAN, GenerateConfig, TeacherConfig
from w2sr.training.config import StudentConfig, TrainConfig

# A discriminated union puts its tag into the location of a problem; it is no key of the file.
_TAGS = ("reasoning_gym", "file", "hub", "hf", "vllm", "openai", "recorded", "local", "ray", "ssh", "slurm", "rules")

Model = TypeVar("Model", bound=BaseModel)


class ClusterConfig(StrictModel):
    """Where Ray runs."""

    address: str | None = Field(
        None, description="Address of a running Ray cluster. None: a private Ray on this machine.", json_schema_extra=PLACEMENT
    )
    num_cpus: int | None = Field(None, gt=0, description="Processors to use on this machine; None: all.", json_schema_extra=PLACEMENT)
    num_gpus: int | None = Field(None, ge=0, description="GPUs to use on this machine; None: all.", json_schema_extra=PLACEMENT)

    def spec(self) -> ClusterSpec:
        """Return the same for the `cluster` package."""
        return ClusterSpec(address=self.address, num_cpus=self.num_cpus, num_gpus=self.num_gpus)


class PipelineConfig(StrictModel):
    """A run from prompts to report."""

    run_dir: str = Field(description="Folder of everything this run makes.", json_schema_extra=PLACEMENT)
    title: str = Field("w2sr run", description="Heading of the report.", json_schema_extra=PLACEMENT)
    seed: int = Field(0, ge=0, description="Seed of sampling and of every choice among rows. Training seeds are train.seeds.")
    prompts: PromptsConfig = Field(description="Where the questions come from.")
    teachers: list[TeacherConfig] = Field(min_length=1, description="The weak models that write traces.")
    generate: GenerateConfig = Field(
        default_factory=lambda: GenerateConfig(), description="How their traces are committed, and when to stop."
    )
    student: StudentConfig = Field(description="The stronger model that learns from them.")
    verify: VerifyConfig = Field(default_factory=lambda: VerifyConfig(), description="How answers are judged.")
    curate: CurateConfig = Field(default_factory=lambda: CurateConfig(), description="Which traces train a student.")
    train: TrainConfig = Field(description="How a student is trained.")
    evaluate: EvaluateConfig = Field(description="How models are compared.")
    report: ReportConfig = Field(
        default_factory=lambda: ReportConfig(), description="Prices, and what can be browsed.", json_schema_extra=PLACEMENT
    )
    analyse: AnalyseConfig = Field(
        default_factory=lambda: AnalyseConfig(), description="What is counted in the answers.", json_schema_extra=PLACEMENT
    )
    overlap: bool = Field(
        False,
        description="Evaluate who is ready (base, teachers, trained students) while teachers write and students train, on other devices; "
        "with curate.waves and train.max_steps students train while teachers write, too.",
        json_schema_extra=PLACEMENT,
    )
    cluster: ClusterConfig = Field(default_factory=lambda: ClusterConfig(), description="Where Ray runs.")

    @model_validator(mode="after")
    def _consistent(self) -> PipelineConfig:
        names = [teacher.name for teacher in self.teachers]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"teachers: name {double[0]!r} is used {names.count(double[0])} times; every teacher needs a name of its own")
        lists: dict[str, list[Any]] = {
            "train.seeds": list(self.train.seeds),
            "train.arms": list(self.train.arms or []),
            "train.mixtures": [mixture.name for mixture in self.train.mixtures],
        }
        for key, values in lists.items():
            twice = [value for number, value in enumerate(values) if value in values[:number]]
            if twice:
                raise ValueError(f"{key} names {twice[0]!r} more than once; give each once")
        made = self.curate.arm_names
        unknown = sorted(set(self.train.arms or []) - set(made))
        if unknown:
            raise ValueError(f"train.arms names {unknown[0]!r}, which curate.arms does not make; allowed: {', '.join(made)}")
        self._refuse_bad_mixtures(made)
        made += [mixture.name for mixture in self.train.mixtures]
        self.curate.refuse_unknown_teachers(names)
        self.train.loss.refuse_unknown_teachers(names)
        self.report.refuse_unknown_names([*names, *(model.name for model in self.evaluate.models)])
        self.evaluate.refuse_foreign_names(made, [f"{arm}-seed{seed}" for arm in made for seed in self.train.seeds])
        refuse_bad_bans(self.evaluate.bans, made, self._engines(), [self.evaluate.split, *(each.name for each in self.evaluate.benchmarks)])
        too_many = [k for k in self.evaluate.pass_k if not 1 <= k <= self.evaluate.samples_per_prompt]
        if too_many:
            raise ValueError(
                f"evaluate.pass_k has {too_many[0]}, but evaluate.samples_per_prompt is {self.evaluate.samples_per_prompt}; "
                f"allowed: 1 to {self.evaluate.samples_per_prompt}"
            )
        return self

    def _refuse_bad_mixtures(self, made: list[str]) -> None:
        for mixture in self.train.mixtures:
            if mixture.name in made:
                raise ValueError(f"train.mixtures: {mixture.name!r} is the name of an arm; choose another")
            unknown = sorted(set(mixture.parts) - set(made))
            if unknown:
                raise ValueError(
                    f"train.mixtures: {mixture.name!r} has the part {unknown[0]!r}, which curate.arms does not make; allowed: "
                    f"{', '.join(made)}"
                )
        if self.prompts.num_train < self.curate.waves:
            raise ValueError(
                f"curate.waves={self.curate.waves}, but prompts.num_train={self.prompts.num_train}; give at most as many waves"
            )
        if self.train.mixtures and self.curate.waves > 1:
            raise ValueError(f"train.mixtures draw from whole arms, and curate.waves={self.curate.waves} cuts them; leave one of both out")
        if not self.student_arms:
            raise ValueError("train.arms is [] and there are no train.mixtures: nobody would be trained; name arms or mixtures")

    @property
    def student_arms(self) -> list[str]:
        """What students are trained on, by name: arms, then mixtures."""
        arms = self.curate.arm_names if self.train.arms is None else list(self.train.arms)
        return arms + [mixture.name for mixture in self.train.mixtures]

    def _engines(self) -> dict[str, str]:
        """Return the kind of the engine of everyone who may answer, by label."""
        own: str = self.evaluate.engine.kind
        arms, student = self.student_arms, self.student
        prompted = {"base-cot": student.reasoning_style, "few-shot": student.few_shot}
        labels = ["base", *(label for label, style in prompted.items() if style is not None)]
        found = dict.fromkeys([*labels, *(f"{arm}-seed{seed}" for arm in arms for seed in self.train.seeds)], own)
        for teacher in self.teachers:
            found[f"teacher-{teacher.name}"] = teacher.engine.kind if teacher.engine.kind in NO_BAN else own
        return found | {each.name: each.engine.kind if each.engine is not None else own for each in self.evaluate.models}


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-5` is a number (YAML 1.1 reads a string), a key given twice is an error (YAML keeps the last)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {first: list(pairs) for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_config(path: Path, overrides: list[str] | None = None) -> PipelineConfig:
    """Read and check a configuration file; every problem becomes one UserError that names file, key, value and what is allowed."""
    return check_values(PipelineConfig, read_values(path, overrides, "configs/quickstart.yaml", "`w2sr config schema`"), path)


def read_values(path: Path, overrides: list[str] | None, example: str, see: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, with overrides. Raises UserError when there is none; `example` and `see` tell where to look."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read configuration {path}: {error.strerror}; give a YAML file, for example {example}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); give a YAML file") from error
    values = _parse_yaml(text, str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not a mapping of keys to values; see {see}")
    for override in overrides or []:
        _apply_override(values, override)
    return values


def check_values(model: type[Model], values: dict[str, Any], path: Path) -> Model:
    """Return the model of `values`. Raises UserError that names every problem."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error)}") from error


def dump_config(config: StrictModel) -> str:
    """Return the resolved configuration as YAML, defaults included."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _parse_yaml(text: str, where: str) -> Any:
    try:
        return _unshared(yaml.load(text, Loader=_Loader))
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"{where}: an anchor (&name) holds an alias (*name) of itself; write the value out") from error


def _unshared(value: Any) -> Any:
    """Return the same value, with every alias of an anchor as a copy: an override of one place must not change the others."""
    if isinstance(value, dict):
        return {key: _unshared(item) for key, item in value.items()}
    return [_unshared(item) for item in value] if isinstance(value, list) else value


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override {override!r} is not of the form key=value, for example train.learning_rate=1e-3")
    *parents, last = key.split(".")
    place: Any = values
    for number, name in enumerate(parents):
        place = _step(place, name, ".".join(parents[:number]), override)
    if isinstance(place, list):
        place[_index(place, last, override)] = _parse_yaml(text, override)
    else:
        place[last] = _parse_yaml(text, override)


def _step(place: Any, name: str, where: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_index(place, name, override)]
    found = place.setdefault(name, {})
    if not isinstance(found, (dict, list)):
        raise UserError(f"override {override!r}: {f'{where}.' if where else ''}{name} is {found!r}, not a section with keys of its own")
    return found


def _index(items: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(items):
        raise UserError(f"override {override!r}: {name!r} is not an index of a list of {len(items)}; allowed: 0 to {len(items) - 1}")
    return int(name)


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors():
        where = ".".join(str(part) for part in problem["loc"] if part not in _TAGS)
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_invalid":  # pydantic speaks of tags and discriminators
            tag, allowed = problem["ctx"]["tag"], [word.strip(" '") for word in problem["ctx"]["expected_tags"].split(",")]
            message = f"unknown kind {tag!r}: {nearest(tag, allowed)}allowed: {', '.join(allowed)}"
        if problem["type"] == "union_tag_not_found":
            message = "the key `kind` is missing"
        given = problem.get("input")
        shown = f" (given: {given!r})" if isinstance(given, (str, int, float, bool)) and problem["type"] != "value_error" else ""
        lines.append(f"{where}: {message}{shown}" if where else f"{message}{shown}")
    return "; ".join(lines)
