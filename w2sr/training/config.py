"""How a student is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.schema import PLACEMENT, StrictModel
from w2sr.training.deepspeed_keys import refuse_derived
from w2sr.training.export_config import ExportConfig
from w2sr.training.lora_config import LoraConfig
from w2sr.training.loss_config import LossConfig
from w2sr.training.memory_config import MemoryConfig
from w2sr.training.optimizer_config import OptimizerConfig
from w2sr.training.selection_config import SelectionConfig
from w2sr.training.watch_config import WatchConfig


class FewShotConfig(StrictModel):
    """Worked examples before the question: what the untuned student can do when it is shown how."""

    shots: int = Field(4, gt=0, description="How many examples.")
    path: str | None = Field(
        None,
        description="A .jsonl, .json or .parquet file with columns question and trace, used from its start. None: training prompts with "
        "their reference traces. A question of a test set is refused.",
    )
    style: PromptStyle | None = Field(None, description="Under which the examples and the question are put. None: student.style.")
    separator: str = Field(
        "\n\n---\n\n", min_length=1, description="Text between two examples. What a model writes after it is a further example: not judged."
    )


class StudentConfig(StrictModel):
    """The stronger model that learns from the traces."""

    model: str = Field(description="Folder of a Hugging Face model, a hub id, or a shipped lab model such as lab:student.")
    style: PromptStyle = Field(
        default_factory=lambda: PromptStyle(),
        description="The student's own prompt: trained under it, evaluated under it, and so is its untuned base.",
    )
    reasoning_style: PromptStyle | None = Field(
        None, description="A prompt that asks the untuned base to reason: the CoT-prompted baseline. None: no such row."
    )
    few_shot: FewShotConfig | None = Field(
        None, description="The few-shot baseline: the untuned base with worked examples. None: no such row.", json_schema_extra=PLACEMENT
    )


class MixtureConfig(StrictModel):
    """Several arms in one training, by weight. An epoch has as many rows as the arms together, each arm as many of them as its share."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Stands where an arm's name does: the students are called <name>-seed<N>."
    )
    parts: dict[str, float] = Field(
        min_length=2,
        description="Weight of each arm, relative to the others: {correct: 0.7, gold: 0.3}. An arm is seen in permutations of its own, end "
        "to end over all epochs: one with fewer rows than its share comes round again, one with more goes on in the next epoch.",
    )

    @field_validator("parts")
    @classmethod
    def _positive(cls, parts: dict[str, float]) -> dict[str, float]:
        wrong = [arm for arm, weight in parts.items() if not 0 < weight < float("inf")]
        if wrong:
            raise ValueError(f"the weight of {wrong[0]!r} is {parts[wrong[0]]:g}; give more than 0, or leave the arm out")
        return parts

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the arms, which sum to 1."""
        total = sum(self.parts.values())
        return {arm: weight / total for arm, weight in self.parts.items()}


class TrainConfig(StrictModel):
    """Full-parameter supervised fine-tuning with DeepSpeed ZeRO."""

    arms: list[str] | None = Field(
        None,
        description="Arms to train on, a student for each; None: every curated arm; []: none, only mixtures.",
        json_schema_extra=PLACEMENT,
    )
    mixtures: list[MixtureConfig] = Field(
        default_factory=list,
        description="Further students, of several arms by weight, for example [{name: blend, parts: {correct: 0.7, gold: 0.3}}].",
        json_schema_extra=PLACEMENT,
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(
        default_factory=lambda: [0],
        min_length=1,
        description="One student for each arm, or mixture, and seed.",
        json_schema_extra=PLACEMENT,
    )
    num_ranks: int = Field(2, gt=0, description="Data-parallel ranks that are wanted.", json_schema_extra=PLACEMENT)
    min_ranks: int | None = Field(
        None,
        gt=0,
        description="With how few ranks a training may go on when there is no room for all, as after a lost node. None: num_ranks.",
        json_schema_extra=PLACEMENT,
    )
    wait_for_ranks_s: float = Field(
        120, ge=0, description="Seconds to wait for room for all ranks before going on with fewer.", json_schema_extra=PLACEMENT
    )
    rows_cache: str | None = Field(
        None,
        description="A folder for tokenised rows that runs share: rows of the same traces, tokenizer, style and limits are made once. "
        "None: in the run folder, until its students are trained. Empty it when no training runs.",
        json_schema_extra=PLACEMENT,
    )
    rows_workers: int | None = Field(
        None,
        gt=0,
        description="Processes that tokenise, at most. None: the processors of the machine. Few rows take one.",
        json_schema_extra=PLACEMENT,
    )
    cpus_per_rank: float = Field(1, gt=0, description="Processors of one rank.", json_schema_extra=PLACEMENT)
    use_gpu: bool = Field(False, description="One GPU a rank and NCCL; otherwise CPU and gloo.", json_schema_extra=PLACEMENT)
    zero_stage: Literal[0, 1, 2, 3] = Field(
        2, description="DeepSpeed ZeRO stage: 0 shards nothing (fp32 only), 1 optimizer states, 2 also gradients, 3 also parameters."
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32",
        description="Precision of weights in the forward and backward pass; master weights are fp32. fp16 scales the loss and "
        "repeats a step that overflows at half the scale.",
    )
    epochs: float | None = Field(None, gt=0, description="Passes over the arm. Give this or max_steps.")
    max_steps: int | None = Field(None, gt=0, description="Optimizer steps. Give this or epochs.")
    global_batch_size: int | None = Field(
        None,
        gt=0,
        description="Sequences of one optimizer step, over all ranks: rows, or with packing full sequences of max_length. This or "
        "global_batch_tokens; of neither: 128 rows without packing.",
    )
    global_batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens of one optimizer step, over all ranks: a row or packed sequence belongs to the step in which its first token "
        "falls. This or global_batch_size; of neither: 131072 with packing.",
    )
    micro_batch_size: int | None = Field(
        None,
        gt=0,
        description="Sequences a rank processes at once; global_batch_size must be a multiple of micro_batch_size * num_ranks. This or "
        "micro_batch_tokens; of neither: 1 with packing, else 8.",
    )
    micro_batch_tokens: int | None = Field(
        None,
        gt=0,
        description="Tokens a rank processes at once at most, padding included. Any number of ranks then carries the global batch. This or "
        "micro_batch_size.",
    )
    max_length: int = Field(
        4096,
        gt=1,
        description="Tokens of a row (with its prefix) and of a packed sequence. Longer rows are dropped and counted, never cut.",
    )
    packing: bool = Field(
        True,
        description="Put rows end to end in sequences of max_length, without attention across rows. false: one row a sequence, rows of "
        "like length together.",
    )
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Learning rate after the warm-up. wsd: stable, then a decay over the last decay_ratio of the steps."
    )
    warmup_ratio: float | None = Field(
        None, ge=0, lt=1, description="Share of the steps in which the learning rate rises from 0. This or warmup_steps; of neither: 0.1."
    )
    warmup_steps: int | None = Field(None, ge=0, description="Steps in which the learning rate rises from 0. This or warmup_ratio.")
    decay_ratio: float = Field(0.1, gt=0, le=1, description="Share of the steps in which wsd decays.")
    decay_shape: Literal["linear", "cosine", "sqrt", "exponential"] = Field(
        "sqrt", description="How wsd decays: sqrt is 1 - sqrt(progress); exponential is geometric, to min_learning_rate_ratio above 0."
    )
    min_learning_rate_ratio: float = Field(0.0, ge=0, le=1, description="Last learning rate over the peak.")
    max_grad_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to this global norm. None: never.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass to save memory.")
    checkpoint_every: int = Field(50, gt=0, description="Optimizer steps between checkpoints.", json_schema_extra=PLACEMENT)
    asynchronous_checkpoints: bool = Field(
        False,
        description="Copy the state to memory of the CPU and write it from there while steps go on. Costs each rank as much of that memory "
        "as it writes: with AdamW in bf16 about (12 / ranks + 2) bytes a parameter on rank 0, 12 / ranks on the others.",
        json_schema_extra=PLACEMENT,
    )
    keep_checkpoints: bool = Field(False, description="Keep the last training checkpoint after the export.", json_schema_extra=PLACEMENT)
    max_failures: int = Field(
        2, ge=0, description="Times a training is restarted from its last checkpoint after a rank died.", json_schema_extra=PLACEMENT
    )

    loss: LossConfig = Field(default_factory=LossConfig, description=LossConfig.__doc__)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description=OptimizerConfig.__doc__)
    selection: SelectionConfig = Field(default_factory=SelectionConfig, description=SelectionConfig.__doc__)
    memory: MemoryConfig = Field(default_factory=MemoryConfig, description=MemoryConfig.__doc__)
    watch: WatchConfig = Field(default_factory=WatchConfig, description=WatchConfig.__doc__, json_schema_extra=PLACEMENT)
    lora: LoraConfig | None = Field(None, description=f"{LoraConfig.__doc__} None: all weights are trained.")
    export: ExportConfig = Field(default_factory=ExportConfig, description=ExportConfig.__doc__)
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="Further keys of DeepSpeed's configuration, for experts: buffer sizes, aio, profilers. Keys that follow from the rest "
        "of train are refused; docs/memory.md lists them.",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError(f"give exactly one of epochs and max_steps; given: epochs={self.epochs}, max_steps={self.max_steps}")
        return self

    @model_validator(mode="after")
    def _one_schedule(self) -> TrainConfig:
        if self.warmup_ratio is not None and self.warmup_steps is not None:
            raise ValueError(f"give one of warmup_ratio and warmup_steps; given: {self.warmup_ratio} and {self.warmup_steps}")
        if self.schedule != "wsd":
            return self
        if self.warmup_steps is None and self.warmup_share + self.decay_ratio > 1:
            raise ValueError(
                f"warmup_ratio={self.warmup_share} and decay_ratio={self.decay_ratio} are more than all the steps; lower one of them"
            )
        if self.decay_shape == "exponential" and not self.min_learning_rate_ratio:
            raise ValueError("decay_shape=exponential never reaches 0: give min_learning_rate_ratio, such as 0.01, or another decay_shape")
        return self

    @model_validator(mode="after")
    def _master_weights(self) -> TrainConfig:
        if self.zero_stage == 0 and self.precision != "fp32":
            raise ValueError(
                f"zero_stage=0 with precision={self.precision} keeps no fp32 master weights; use zero_stage 1, 2 or 3, or precision: fp32"
            )
        return self

    @model_validator(mode="after")
    def _parts_combine(self) -> TrainConfig:
        self.optimizer.refuse_what_does_not_combine(self)
        if self.selection.export == "best" and self.memory.uses_nvme:
            raise ValueError(
                "selection.export=best needs the weights in memory; with offload to nvme they are not: offload to cpu, or export: last"
            )
        self.memory.refuse_what_does_not_combine(self.zero_stage, self.use_gpu, self.gradient_checkpointing, self.packing)
        if self.loss.kernel == "liger" and not self.use_gpu:
            raise ValueError("loss.kernel=liger runs on GPUs only; leave it out, or set use_gpu=true")
        shared, loss = self.memory.sequence_parallel > 1, self.loss
        whole = [name for name in ("progress", "kl_to_base", "neftune_alpha") if getattr(loss, name)]
        if shared and whole:
            raise ValueError(f"loss.{whole[0]} needs whole sequences on each rank; leave it out, or set memory.sequence_parallel=1")
        refuse_derived(self.deepspeed)
        undivided = self.memory.undivided(self.num_ranks)
        if undivided is not None:
            raise ValueError(undivided)
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_batch(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        packing, found = values.get("packing", True), dict(values)
        if values.get("global_batch_size") is None and values.get("global_batch_tokens") is None:
            found |= {"global_batch_tokens": 131_072} if packing else {"global_batch_size": 128}
        if values.get("micro_batch_size") is None and values.get("micro_batch_tokens") is None:
            found["micro_batch_size"] = 1 if packing else 8
        return found

    @model_validator(mode="after")
    def _one_measure(self) -> TrainConfig:
        for size, tokens in (("global_batch_size", "global_batch_tokens"), ("micro_batch_size", "micro_batch_tokens")):
            given = getattr(self, size), getattr(self, tokens)
            if None not in given:
                raise ValueError(f"give one of {size} and {tokens}; given: {size}={given[0]}, {tokens}={given[1]} (null is not given)")
            if given[1] is not None and given[1] < self.max_length:
                raise ValueError(
                    f"{tokens}={given[1]} is less than max_length={self.max_length}, the longest row there may be; give at least that, "
                    "or lower max_length"
                )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> TrainConfig:
        if self._carries(self.num_ranks):
            return self
        if self.global_batch_size is None or self.micro_batch_size is None:
            raise ValueError(self._which_carry(self.num_ranks))
        group = self.micro_batch_size * self.data_size(self.num_ranks)
        below = self.global_batch_size // group * group
        nearest = ", ".join(str(size) for size in (below, below + group) if size)
        raise ValueError(
            f"global_batch_size={self.global_batch_size} is not divisible by micro_batch_size * num_ranks = "
            f"{self.micro_batch_size} * {self.data_size(self.num_ranks)}; nearest valid: {nearest}; or give micro_batch_tokens in place of "
            "micro_batch_size: then any number of ranks carries the batch"
        )

    @model_validator(mode="after")
    def _fewer_ranks_carry_the_batch(self) -> TrainConfig:
        least = self.min_ranks if self.min_ranks is not None else self.num_ranks
        if least > self.num_ranks:
            raise ValueError(f"min_ranks={least} is more than num_ranks={self.num_ranks}; give at most that, or leave it out: not elastic")
        if least < self.num_ranks and len(self.group_sizes) == 1:
            undivided = self.memory.undivided(self.num_ranks - 1)
            if undivided is not None:
                raise ValueError(f"min_ranks={least} allows no group smaller than num_ranks={self.num_ranks}: {undivided}")
            raise ValueError(
                f"min_ranks={least} allows no group smaller than num_ranks={self.num_ranks}: {self._which_carry(self.num_ranks - 1)}"
            )
        return self

    @property
    def warmup_share(self) -> float:
        """Share of the steps in which the learning rate rises, when it is not given in steps."""
        return self.warmup_ratio if self.warmup_ratio is not None else 0.1

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """Numbers of ranks a training may have, ascending; the last is num_ranks. Each carries the global batch in whole micro-batches."""
        least = self.min_ranks if self.min_ranks is not None else self.num_ranks
        return tuple(size for size in range(least, self.num_ranks + 1) if self._carries(size))

    def check_size(self, num_ranks: int) -> None:
        """Raise UserError unless a group of `num_ranks` may train."""
        if num_ranks in self.group_sizes:
            return
        undivided = self.memory.undivided(num_ranks)
        if undivided is not None:
            raise UserError(undivided)
        least = self.group_sizes[0]
        if least <= num_ranks <= self.num_ranks:
            raise UserError(f"{num_ranks} ranks were started; {self._which_carry(self.num_ranks)}")
        fewer = f", or let it have fewer with train.min_ranks={num_ranks}" if num_ranks < least and self._carries(num_ranks) else ""
        wanted = f"train.num_ranks={self.num_ranks}" + (f" and train.min_ranks={least}" if least < self.num_ranks else "")
        raise UserError(
            f"{wanted}, but {num_ranks} ranks were started; start {self.num_ranks} (torchrun --nproc-per-node), "
            f"or set train.num_ranks={num_ranks}{fewer}"
        )

    def data_size(self, num_ranks: int) -> int:
        """Return in how many shares a group of `num_ranks` deals the rows of a step."""
        return num_ranks // self.memory.sequence_parallel

    def _carries(self, num_ranks: int) -> bool:
        if self.memory.undivided(num_ranks) is not None:
            return False
        shares = self.data_size(num_ranks)
        if self.global_batch_size is not None and self.micro_batch_size is not None:
            return self.global_batch_size % (self.micro_batch_size * shares) == 0
        return shares <= self._most_shares()

    def _most_shares(self) -> int:
        """With more shares than this some rank would have nothing to do in every step."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        assert self.global_batch_tokens is not None
        return self.global_batch_tokens // (self.max_length if self.packing else 1)

    def _which_carry(self, most: int) -> str:
        if self.global_batch_size is None or self.micro_batch_size is None:
            batch = f"global_batch_size={self.global_batch_size}"
            if self.global_batch_size is None:
                batch = f"global_batch_tokens={self.global_batch_tokens} with max_length={self.max_length}"
            return (
                f"{batch} makes {self._most_shares()} sequences a step, too few for {most} ranks: some would have nothing to do. Give at "
                f"most {self._most_shares() * self.memory.sequence_parallel} ranks or a larger global batch"
            )
        sizes = ", ".join(str(size) for size in range(1, most + 1) if self._carries(size)) or "none"
        return (
            f"global_batch_size={self.global_batch_size} is not a multiple of micro_batch_size * ranks, {self.micro_batch_size} * ranks. "
            f"Numbers of ranks up to {most} that carry it: {sizes}; or change train.micro_batch_size, or give train.micro_batch_tokens in "
            "its place: then any number carries it"
        )
