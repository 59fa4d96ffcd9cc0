"""vLLM's asynchronous engine. With vllm_ban.py the only module that imports vllm. It may run in vLLM's own environment: imports little."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import re
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cluster.errors import RetryLater
from w2sr.errors import UserError
from w2sr.records import FinishReason
from w2sr.schema import nearest
from w2sr.teachers.config import VLLMEngineConfig
from w2sr.teachers.engine import Completion, GeneratorSpec, Request
from w2sr.teachers.orphans import Guard
from w2sr.teachers.rows import Row, RowMaker, eos_ids_of, load_tokenizer

# vLLM's arguments that have a field of their own in our configuration, or that we decide.
OURS = {
    "model": "model",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "max_model_len": "engine.max_model_len",
    "dtype": "engine.dtype",
    "max_num_seqs": "engine.max_in_flight",
    "tokenizer": "model",
    "trust_remote_code": "nothing: a model's own code is never run",
}
# On a CPU vLLM would take `gpu_memory_utilization` of the machine's whole memory.
CPU_KV_CACHE_BYTES = 2**30
RETRY_AFTER_S = 5.0
# The ban on words: the processor, and what a request brings to it.
BAN_PROCESSOR = "w2sr.teachers.vllm_ban:BanProcessor"
BANNED_WORDS, END_TOKENS = "w2sr_banned_words", "w2sr_end_tokens"
# Between the records of vLLM's log, and the last line of a traceback.
_MARK = "\x1e"
_RAISED = re.compile(r"^(?P<name>[A-Za-z_][\w.]*(?:Error|Exception|Exit)): (?P<message>.*)$", re.MULTILINE)


class VLLMEngine:
    """A causal language model served by vLLM with continuous batching: requests join and leave the running batch one by one.

    The prefix is rendered by us and goes in as token ids; the tokens that come out are decoded as for the hf engine. A request's noise is a
    function of its seed; which other requests run beside it moves the logits by rounding only, but a close call may then fall otherwise.
    """

    name = "vllm"

    def __init__(self, spec: GeneratorSpec, llm: Any, guard: Guard) -> None:
        """Take `llm`, a running AsyncLLM of the model of `spec`, whose processes `guard` looks after. Use `start`."""
        import torch
        import vllm
        from transformers import GenerationConfig

        self.version = f"vllm {vllm.__version__}, torch {torch.__version__}"
        self.model = spec.model_digest
        self._llm = llm
        self._guard = guard
        self._is_spoiled = False
        self._num_started = self._num_running = 0
        config = llm.model_config.hf_text_config
        self._tokenizer = load_tokenizer(spec.model)
        self._serve(spec)
        has_file = (Path(spec.model) / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(spec.model) if has_file else GenerationConfig.from_model_config(config)
        self._eos_ids = eos_ids_of(self._tokenizer, config, generation)

    @classmethod
    async def start(cls, spec: GeneratorSpec, config: VLLMEngineConfig, device: str, num_threads: int) -> VLLMEngine:
        """Return the engine, started beside the event loop, with `num_threads` threads for its arithmetic where `device` is "cpu".

        Raises UserError for what the configuration can mend: vLLM is not installed, an argument it does not know, a model or a length it
        cannot serve. Raises RuntimeError when its processes die while they start.
        """
        if importlib.util.find_spec("vllm") is None:
            raise UserError(
                f"generator {spec.name}: engine kind vllm needs vLLM, which {sys.executable} does not have; install it there, or set "
                "engine.python to the interpreter of an environment that has it (make setup-vllm makes one)"
            )
        _set_environment(device, num_threads)
        if spec.sampling.banned_words:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # the other model runner has another interface for logits processors
        guard = Guard()
        with ExitStack() as undo:
            undo.callback(guard.close)
            os.environ["VLLM_RPC_BASE_PATH"] = guard.folder  # its sockets, which it leaves behind
            engine = cls(spec, await asyncio.to_thread(_start, spec, config, device), guard)
            undo.pop_all()
        return engine

    async def complete(self, requests: list[Request]) -> list[Completion]:
        """Complete `requests`, in their order, all in flight at once (see Engine.complete)."""
        return list(await asyncio.gather(*(self._complete(request) for request in requests)))

    def serve(self, spec: GeneratorSpec) -> bool:
        """Serve another generator of the same model (see Engine.serve), unless just one of them forbids words: vLLM starts otherwise."""
        if bool(spec.sampling.banned_words) != bool(self._spec.sampling.banned_words):
            return False
        self._serve(spec)
        return True

    def _serve(self, spec: GeneratorSpec) -> None:
        self._spec = spec
        self._rows = RowMaker(spec, self._tokenizer, int(self._llm.model_config.max_model_len))
        self.template_hash = self._rows.template_hash

    def close(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()
        self._guard.close()

    async def _complete(self, request: Request) -> Completion:
        from vllm.exceptions import VLLMClientError, VLLMServerError

        row = self._rows.row(request)
        if row.error is None:
            has_company = self._num_running > 0
            self._num_running += 1
            self._num_started += 1
            number = self._num_started
            try:
                if await self._fill(row, request):
                    row.error = self._not_finite(alone=not has_company and number == self._num_started)
            except VLLMClientError as error:
                row.error = f"vLLM refuses the request: {_brief(str(error))}"
            except VLLMServerError as error:
                # Not as vLLM's own exception: the driver's environment may not have its class.
                raise RuntimeError(f"vLLM's engine died or failed ({type(error).__name__}): {_brief(str(error))}") from None
            finally:
                self._num_running -= 1
        return self._rows.completion(row)

    async def _fill(self, row: Row, request: Request) -> bool:
        """Generate the tokens of a row; return whether vLLM saw logits that are not finite."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        sampling = self._spec.sampling
        parameters = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=row.seed,
            max_tokens=row.limit,
            stop_token_ids=sorted(self._eos_ids),
            extra_args={BANNED_WORDS: sampling.banned_words, END_TOKENS: sorted(self._eos_ids)} if sampling.banned_words else None,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        # FINAL_ONLY: one output, when the request has ended.
        (last,) = [output async for output in self._llm.generate(tokens_input(list(row.prefix)), parameters, request.trace_id)]
        (output,) = last.outputs
        row.ids = list(output.token_ids)
        row.finish_reason = ending_of(output.finish_reason)
        return last.metrics is not None and bool(last.metrics.is_corrupted)

    def _not_finite(self, alone: bool) -> str:
        # NaN gets from one request to others, beside it or after it in the same memory (0 x NaN passes the mask): seen on requests that are
        # sound alone. It is held against a request that was alone in clean memory; else this engine ends, and the pool has what it was at
        # made again, one by one.
        if self._is_spoiled or not alone:
            raise RuntimeError("logits are not finite (NaN), of this request or of another one that vLLM had in the same memory")
        self._is_spoiled = True
        return "the model's logits are not finite (NaN)"


def ending_of(finish_reason: str | None) -> FinishReason:
    """Return our name of vLLM's finish reason. Raises RetryLater for one that is vLLM's own trouble, of which it recovers."""
    if finish_reason in ("stop", "length"):
        return "stop" if finish_reason == "stop" else "length"
    raise RetryLater(f"vLLM ended the request with finish_reason {finish_reason!r}", RETRY_AFTER_S)


def engine_arguments(spec: GeneratorSpec, config: VLLMEngineConfig, device: str, known: list[str]) -> dict[str, Any]:
    """Return the arguments of vLLM's engine for `spec`; `known` are the names it has.

    Raises UserError for one in `engine_args` that vLLM does not know or that is set elsewhere.
    """
    for name in config.engine_args:
        if name in OURS:
            raise UserError(f"generator {spec.name}: engine.engine_args.{name} is decided by {OURS[name]}; set it there")
        if name not in known:
            raise UserError(
                f"generator {spec.name}: engine.engine_args has {name!r}, which this vLLM does not know: {nearest(name, known)}"
                "see the arguments of its `vllm serve`, with underscores"
            )
    arguments: dict[str, Any] = {
        "model": spec.model,
        "trust_remote_code": False,
        "dtype": config.dtype,
        "max_model_len": config.max_model_len,
        "tensor_parallel_size": config.tensor_parallel_size,
        "max_num_seqs": config.max_in_flight,
    }
    if device == "cuda":
        arguments["gpu_memory_utilization"] = config.gpu_memory_utilization
    else:
        arguments["kv_cache_memory_bytes"] = CPU_KV_CACHE_BYTES
        # A prompt read in parts makes vLLM turn a seeded generator back, which torch's on the CPU cannot: the engine would die.
        arguments["enable_chunked_prefill"] = False
    if config.tensor_parallel_size > 1:
        # The replica has all its GPUs on one node. Left alone vLLM sees Ray and asks it for GPUs again.
        arguments["distributed_executor_backend"] = "mp"
    arguments |= config.engine_args
    if spec.sampling.banned_words:
        arguments["logits_processors"] = [BAN_PROCESSOR, *config.engine_args.get("logits_processors", [])]
    return arguments


def _start(spec: GeneratorSpec, config: VLLMEngineConfig, device: str) -> Any:
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    arguments = engine_arguments(spec, config, device, known)
    with tempfile.TemporaryDirectory(prefix="w2sr-vllm-") as folder:
        log = Path(folder) / "errors"
        arguments.setdefault("log_config_file", str(_log_settings(Path(folder), log)))
        try:
            engine_config = AsyncEngineArgs(**arguments).create_engine_config()
        except (ValueError, TypeError, OSError, KeyError) as error:
            raise UserError(f"generator {spec.name}: vLLM refuses the model or its arguments: {_brief(str(error))}") from error
        try:
            return AsyncLLM.from_vllm_config(engine_config)
        except (RuntimeError, OSError) as error:
            name, cause = root_cause(log.read_text(encoding="utf-8")) or (type(error).__name__, str(error))
            if name == "ValueError":  # vLLM's word for what a setting can mend, most often too little memory for one prompt
                raise UserError(f"generator {spec.name}: vLLM cannot start: {_brief(cause)}") from None
            raise RuntimeError(f"vLLM died while it started, of {name}: {_brief(cause)}") from None


def _set_environment(device: str, num_threads: int) -> None:
    # vLLM reads these at import and in its child processes. What the user has set stays.
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_COMPUTE_NANS_IN_LOGITS", "1")
    if device == "cpu":
        # By default every engine pins its threads to the same first cores.
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ["OMP_NUM_THREADS"] = str(num_threads)


def _log_settings(folder: Path, errors: Path) -> Path:
    """Write logging settings by which vLLM's processes put errors into a file too: why one of them failed is told nowhere else."""
    errors.touch()
    settings = folder / "logging.json"
    handlers = {
        "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "level": "INFO"},
        "errors": {"class": "logging.FileHandler", "filename": str(errors), "level": "ERROR", "formatter": "marked"},
    }
    formatters = {"marked": {"format": f"{_MARK}%(message)s"}}
    loggers = {"vllm": {"handlers": ["console", "errors"], "level": "INFO", "propagate": False}}
    common = {"version": 1, "disable_existing_loggers": False}
    settings.write_text(json.dumps(common | {"formatters": formatters, "handlers": handlers, "loggers": loggers}))
    return settings


def root_cause(log: str) -> tuple[str, str] | None:
    """Return (exception's name, message) of the first traceback in vLLM's log of errors: the later ones are of those who noticed."""
    for record in log.split(_MARK):
        raised = list(_RAISED.finditer(record))
        if raised:
            return raised[-1]["name"].rpartition(".")[2], record[raised[-1].start("message") :]
    return None


def _brief(text: str) -> str:
    return " ".join(text.split())[:500]
