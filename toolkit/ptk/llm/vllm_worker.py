"""The process that holds a vLLM engine: JSON lines in, JSON lines out, over a socket that it inherits.

First line in: the engine's arguments. First line out: `{"ready": ...}`. Then each line in is a request, each line out its
answer, as soon as it is finished. `{"failed": ...}` is the last line of an engine that failed. The end of the input is the end
of the process, whatever the engine is doing.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ptk.llm.chat_template import ChatTemplate, ChatTemplateError, read_chat_template
from ptk.llm.request import Message

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

__all__ = ["main"]

PARENT_CHECK_S = 1.0


class Refused(Exception):
    """This request would fail again the same way; the message says why."""


def main() -> None:
    """Serve the socket whose file descriptor is the first argument; the second is the parent's process id."""
    wire = socket.socket(fileno=int(sys.argv[1]))
    lines = wire.makefile("rb")
    settings = orjson.loads(lines.readline())
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_exit_with_parent, args=(int(sys.argv[2]),), daemon=True).start()

    def read() -> None:
        for line in lines:
            requests.put(orjson.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    try:
        Worker(wire, settings).serve(requests)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        failure = f"{type(error).__name__}: {error}"
        wire.sendall(orjson.dumps({"failed": failure}, option=orjson.OPT_APPEND_NEWLINE))
    finally:
        # Threads of the engine could keep a process alive whose work has failed.
        os._exit(1)


def _exit_with_parent(parent: int) -> None:
    # A process that was forked from the parent may hold the socket open after it, so its end alone can't be relied on. A death
    # signal (PR_SET_PDEATHSIG) would also come when only the thread that started this process ends.
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    os._exit(0)


class Worker:
    """A loaded engine and the wire that its answers go to."""

    def __init__(self, wire: socket.socket, settings: dict[str, Any]) -> None:
        import torch
        from vllm import LLM
        from vllm.platforms import current_platform

        model = Path(settings["model"])
        template = read_chat_template(model)
        if template is None:
            raise ValueError(f"{model} has no chat template")
        device = str(current_platform.device_type)
        if device != settings["device"]:
            raise ValueError(f"the engine runs on {device}, but its settings were chosen for {settings['device']}")
        self.template: ChatTemplate = template
        self.wire = wire
        self.llm: LLM = LLM(**settings["engine"])
        self.engine = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.window = int(self.llm.model_config.max_model_len)
        self.send({"ready": {"device": device, "threads": torch.get_num_threads()}})

    def send(self, content: dict[str, Any]) -> None:
        self.wire.sendall(orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE))

    def serve(self, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
        """Answer for ever: new requests join the running batch between two steps of the engine."""
        while True:
            while not requests.empty() or not self.engine.has_unfinished_requests():
                self.begin(requests.get())
            for output in self.engine.step():
                if output.finished:
                    self.finish(output)

    def begin(self, request: dict[str, Any]) -> None:
        """Give a request to the engine, or answer at once that it can't be answered."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        tokens: list[int] = []
        try:
            messages = [Message(role, content) for role, content in request["messages"]]
            text = self.template.render(messages, request["prefill"])
            tokens = self.tokenizer.encode(text, add_special_tokens=False)
            room = request["sampling"]["max_tokens"]
            if not tokens:
                raise Refused("refused: the prompt is empty")
            if len(tokens) + room > self.window:
                raise Refused(f"prompt_too_long: {len(tokens)} prompt tokens + {room} answer tokens > {self.window}")
            parameters = sampling_parameters(request["sampling"], request["constraint"])
            self.engine.add_request(str(request["id"]), tokens_input(tokens), parameters)
        except Refused as refusal:
            self.refuse(request, tokens, str(refusal))
        except (ChatTemplateError, ValueError, VLLMClientError) as error:
            self.refuse(request, tokens, f"refused: {error}")

    def refuse(self, request: dict[str, Any], tokens: list[int], error: str) -> None:
        self.send({"id": request["id"], "text": "", "finish_reason": "error", "prompt_tokens": len(tokens), "error": error})

    def finish(self, output: Any) -> None:
        completion = output.outputs[0]
        answer = {
            "id": int(output.request_id),
            "text": completion.text,
            "finish_reason": completion.finish_reason,
            "prompt_tokens": len(output.prompt_token_ids),
            "output_tokens": len(completion.token_ids),
            "cached_tokens": output.num_cached_tokens or 0,
        }
        if completion.finish_reason not in ("stop", "length"):
            answer |= {
                "text": "",
                "finish_reason": "error",
                "error": f"refused: the engine gave up ({completion.finish_reason})",
            }
        self.send(answer)


def sampling_parameters(sampling: dict[str, Any], constraint: list[Any] | None) -> SamplingParams:
    """Return vLLM's parameters for one request. Raises ValueError or VLLMClientError for what vLLM refuses."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    return SamplingParams(
        **{**sampling, "stop": list(sampling["stop"]), "seed": sampling["seed"] if sampling["temperature"] else None},
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=None if constraint is None else StructuredOutputsParams(**{constraint[0]: constraint[1]}),
    )


if __name__ == "__main__":
    main()
