"""The process that holds a vLLM engine; requests join the running batch as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ptk.llm.chat_template import ChatTemplate, ChatTemplateError, read_chat_template
from ptk.llm.request import Message
from ptk.llm.window import OnLong, fitted, too_long
from ptk.llm.worker import Refused, Requests, Send, serve

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest


class Worker:
    """A loaded engine, and where its answers go."""

    def __init__(self, settings: dict[str, Any], send: Send) -> None:
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
        self.send = send
        self.llm: LLM = LLM(**settings["engine"])
        self.engine = self.llm.llm_engine
        self.tokenizer = self.llm.get_tokenizer()
        self.window = int(self.llm.model_config.max_model_len)
        self.on_long: OnLong = settings["on_long"]
        self.device = device
        self.adapters: dict[str, LoRARequest] = {}
        self.running: str | None = None
        self.scored: dict[int, list[tuple[str, int]]] = {}
        self.cut: dict[int, int] = {}
        self.send({"ready": {"device": device, "threads": torch.get_num_threads()}})

    def serve(self, requests: Requests) -> NoReturn:
        """Answer for ever: new requests join the running batch between two steps of the engine."""
        held: dict[str, Any] | None = None
        while True:
            while held is not None or not requests.empty() or not self.engine.has_unfinished_requests():
                request = held or requests.get()
                held = request if self.must_wait(request) else None
                if held is not None:
                    break
                self.running = request["adapter"]
                self.begin(request)
            for output in self.engine.step():
                if output.finished:
                    self.finish(output)

    def must_wait(self, request: dict[str, Any]) -> bool:
        """Return whether a request has to wait for those at work: on a CPU vLLM 0.32 takes one adapter for all in a batch."""
        return self.device == "cpu" and request["adapter"] != self.running and self.engine.has_unfinished_requests()

    def begin(self, request: dict[str, Any]) -> None:
        """Give a request to the engine, or answer at once that it can't be answered."""
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        tokens: list[int] = []
        try:
            messages = [Message(role, content) for role, content in request["messages"]]
            text, tokens = self.prompt(messages, request["prefill"])
            room = 1 if request["scored"] else request["sampling"]["max_tokens"]
            if not tokens:
                raise Refused("refused: the prompt is empty")
            if len(tokens) + room > self.window:
                shorter = fitted(
                    messages, self.window - room, self.on_long, lambda cut: len(self.prompt(cut, request["prefill"])[1])
                )
                if shorter is None:
                    raise Refused(too_long(len(tokens), room, self.window))
                whole = len(tokens)
                text, tokens = self.prompt(shorter, request["prefill"])
                self.cut[request["id"]] = whole - len(tokens)
            if request["scored"]:
                tokens, choices = self.continued(text, tokens, request["scored"], begun=bool(messages))
                self.scored[request["id"]] = list(zip(request["scored"], choices, strict=True))
                parameters = scoring_parameters(choices)
            else:
                parameters = sampling_parameters(request["sampling"], request["constraint"])
            adapter = self.adapter(request["adapter"])
            self.engine.add_request(str(request["id"]), tokens_input(tokens), parameters, lora_request=adapter)
        except Refused as refusal:
            self.refuse(request, tokens, str(refusal))
        except (ChatTemplateError, ValueError, VLLMClientError) as error:
            self.refuse(request, tokens, f"refused: {error}")

    def prompt(self, messages: Sequence[Message], prefill: str) -> tuple[str, list[int]]:
        """Return the text that the model continues, and its tokens."""
        text = self.template.render(messages, prefill)
        # A chat template writes the tokens that begin a text; plain text is begun by the tokenizer, as in training.
        return text, self.tokenizer.encode(text, add_special_tokens=not messages)

    def adapter(self, folder: str | None) -> LoRARequest | None:
        """Return what vLLM calls the adapter in a folder."""
        from vllm.lora.request import LoRARequest

        if folder is None:
            return None
        if folder not in self.adapters:
            self.adapters[folder] = LoRARequest(folder, len(self.adapters) + 1, folder)
        return self.adapters[folder]

    def continued(self, text: str, tokens: list[int], choices: list[str], *, begun: bool) -> tuple[list[int], list[int]]:
        """Return the prompt's tokens, and for each choice the one token by which it goes on.

        A blank at the end of the text belongs to the choices' tokens where the tokenizer joins it to what follows.
        """
        prompts = (tokens, tokens[:-1]) if text[-1:].isspace() else (tokens,)
        longer = [self.tokenizer.encode(text + choice, add_special_tokens=not begun) for choice in choices]
        for choice, found in zip(choices, longer, strict=True):
            if found[:-1] != longer[0][:-1] or found[:-1] not in prompts:
                raise Refused(f"refused: '{choice}' is not one token of this model after the prompt, so it can't be scored")
        return longer[0][:-1], [int(found[-1]) for found in longer]

    def refuse(self, request: dict[str, Any], tokens: list[int], error: str) -> None:
        self.scored.pop(request["id"], None)
        self.cut.pop(request["id"], None)
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
            "cut_tokens": self.cut.pop(int(output.request_id), 0),
        }
        if (scored := self.scored.pop(answer["id"], None)) is not None:
            found = completion.logprobs[0]
            scores = [found[token].logprob for _, token in scored]
            best = max(range(len(scores)), key=scores.__getitem__)
            answer |= {"text": scored[best][0], "scores": scores, "finish_reason": "stop"}
        if answer["finish_reason"] not in ("stop", "length"):
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


def scoring_parameters(tokens: list[int]) -> SamplingParams:
    """Return vLLM's parameters for the log-probabilities of tokens that could come next; one token is computed, and not used."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0.0, max_tokens=1, logprob_token_ids=tokens, output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False
    )


if __name__ == "__main__":
    serve(lambda settings, send: Worker(settings, send).serve)
