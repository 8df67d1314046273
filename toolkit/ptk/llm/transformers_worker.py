"""The process that holds a model in transformers and gives likelihoods: see `worker` for how it is spoken to.

Requests whose prompts are the same token for token are computed together: the prompt once, then every continuation on the keys
and values it left. Requests of about one length share a batch, and in it continuations of about one length are computed together.
"""

from __future__ import annotations

import copy
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from ptk.llm.chat_template import ChatTemplateError, read_chat_template
from ptk.llm.request import Message
from ptk.llm.worker import Refused, Requests, Send, serve

__all__ = ["Group", "Scorer", "batches"]

_GATHER_S = 0.05
"""How long more requests are waited for before a batch is made of those that are there."""
_CLOSE = 1e-2
"""How far the model's own log-probabilities may be from those of the unembedding, which is all that is computed here."""


@dataclass(slots=True)
class Group:
    """Continuations of one prompt, each with the number of its request."""

    prompt: tuple[int, ...]
    continuations: list[tuple[int, list[int]]] = field(default_factory=list)

    @property
    def longest(self) -> int:
        return max(len(tokens) for _, tokens in self.continuations)


def _started(settings: dict[str, Any], send: Send) -> Callable[[Requests], NoReturn]:
    scorer = Scorer(settings)
    send({"ready": {"device": settings["device"]}})

    def answer(requests: Requests) -> NoReturn:
        while True:
            for found in scorer.answers(_gathered(requests, settings["at_once"])):
                send(found)

    return answer


def _gathered(requests: Requests, most: int) -> list[dict[str, Any]]:
    """Wait for a request and return it with those that follow it closely."""
    gathered = [requests.get()]
    while len(gathered) < most:
        try:
            gathered.append(requests.get(timeout=_GATHER_S))
        except queue.Empty:
            break
    return gathered


class Scorer:
    """A loaded model."""

    def __init__(self, settings: dict[str, Any]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = Path(settings["model"])
        if settings["device"] == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch finds no GPU; hide it with CUDA_VISIBLE_DEVICES= to score on the CPU")
        trust = settings["trust_remote_code"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, settings["dtype"]), trust_remote_code=trust
        ).to(settings["device"])
        if settings["adapter"] is not None:
            model = _adapted(model, settings["adapter"])
        self.template = read_chat_template(folder)
        self.model = model.eval()
        self.body = model.base_model
        head = model.get_output_embeddings()
        if head is None:
            raise ValueError(f"{folder} has no unembedding: it is no model that writes")
        self.weight, self.bias = head.weight, getattr(head, "bias", None)
        config = model.config.get_text_config()
        self.scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
        cap = getattr(config, "final_logit_softcapping", None)
        self.softcap = None if not cap else float(cap)
        self.window = int(settings["window"])
        self.batch_tokens = int(settings["batch_tokens"])
        self.device = settings["device"]
        self._check_head(min(len(self.weight), config.vocab_size))

    def _check_head(self, vocabulary: int) -> None:
        """Raise ValueError where the model does more to its logits than is computed here."""
        import torch

        from ptk_kernels.logprob import token_logprobs

        tokens = torch.tensor([[number % vocabulary for number in range(11, 19)]], device=self.device)
        with torch.inference_mode():
            whole = torch.log_softmax(self.model(tokens).logits[0, :-1].float(), -1)
            wanted = whole[torch.arange(7), tokens[0, 1:]]
            hidden = self.body(tokens).last_hidden_state[0, :-1]
            found = token_logprobs(
                hidden, self.weight, tokens[0, 1:], bias=self.bias, scale=self.scale, softcap=self.softcap, path="chunked"
            )
        far = float((found - wanted).abs().max())
        if not far < (_CLOSE if self.weight.dtype == torch.float32 else 0.5):
            raise ValueError(
                f"log-probabilities from the unembedding are {far:.3g} from the model's own: it changes its logits in a way "
                "that is not known here"
            )

    def answers(self, requests: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield an answer to each request, in any order."""
        groups: dict[tuple[int, ...], Group] = {}
        for request in requests:
            try:
                prompt, continuation = self._tokens(request)
            except Refused as refusal:
                yield {"id": request["id"], "text": "", "finish_reason": "error", "error": str(refusal)}
                continue
            groups.setdefault(prompt, Group(prompt)).continuations.append((request["id"], continuation))
        for batch in batches(list(groups.values()), self.batch_tokens):
            for group, scores in zip(batch, self.scores(batch), strict=True):
                for number, ((name, tokens), found) in enumerate(zip(group.continuations, scores, strict=True)):
                    yield {
                        "id": name,
                        "text": "",
                        "finish_reason": "stop",
                        "prompt_tokens": len(group.prompt),
                        "output_tokens": len(tokens),
                        "cached_tokens": len(group.prompt) if number else 0,
                        "scores": found,
                    }

    def _tokens(self, request: dict[str, Any]) -> tuple[tuple[int, ...], list[int]]:
        """Return the tokens of a prompt and of its continuation, which are told apart. Raises Refused."""
        if request["continuation"] is None:
            raise Refused("refused: this backend writes no answers")
        messages = tuple(Message(role, content) for role, content in request["messages"])
        if messages and self.template is None:
            raise Refused("refused: the model has no chat template; score it with `template: plain`")
        text, answer, end = request["prefill"], request["continuation"], ""
        if self.template is not None:
            try:
                text = self.template.render(messages, text)
                end = self.template.closing(messages) if messages else ""
            except ChatTemplateError as error:
                raise Refused(f"refused: {error}") from error
            answer = self.template.defused(answer)
        prompt = self.tokenizer(text, add_special_tokens=not messages)["input_ids"]
        continuation = self.tokenizer(answer + end, add_special_tokens=False)["input_ids"]
        if not end and self.tokenizer.eos_token_id is not None:
            continuation = [*continuation, self.tokenizer.eos_token_id]
        if not prompt or not continuation:
            raise Refused(f"refused: the {'continuation' if prompt else 'prompt'} is empty")
        if len(prompt) + len(continuation) > self.window:
            raise Refused(f"prompt_too_long: {len(prompt)} prompt tokens + {len(continuation)} answer tokens > {self.window}")
        return tuple(prompt), continuation

    def scores(self, groups: Sequence[Group]) -> list[list[list[float]]]:
        """Return, by group and continuation, the log-probability of each token."""
        import torch

        from ptk_kernels.logprob import token_logprobs

        rows = [number for number, group in enumerate(groups) for _ in group.continuations]
        targets = [tokens for group in groups for _, tokens in group.continuations]
        lengths = torch.tensor([len(group.prompt) for group in groups])
        with torch.inference_mode():
            prompts, mask = _padded([list(group.prompt) for group in groups], left=True)
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            first = self.body(
                input_ids=prompts.to(self.device),
                attention_mask=mask.to(self.device),
                position_ids=positions.to(self.device),
                use_cache=True,
            )
            cache, last = first.past_key_values, first.last_hidden_state[:, -1]
            index = torch.tensor(rows)
            found: list[list[float]] = [[]] * len(targets)
            for part in _of_one_length([len(tokens) for tokens in targets], self.batch_tokens // 16):
                of = index[part]
                hidden = last[of.to(self.device)][:, None]
                wanted, counted = _padded([targets[number] for number in part], left=False)
                if wanted.shape[1] > 1:
                    follow, present = _padded([targets[number][:-1] for number in part], left=False)
                    places = lengths[of][:, None] + torch.arange(follow.shape[1])[None, :]
                    second = self.body(
                        input_ids=follow.to(self.device),
                        attention_mask=torch.cat([mask[of], present], 1).to(self.device),
                        position_ids=places.to(self.device),
                        past_key_values=_rows_of(cache, of.to(self.device)),
                        use_cache=True,
                    )
                    hidden = torch.cat([hidden, second.last_hidden_state], 1)
                flat = token_logprobs(
                    hidden[counted.bool().to(self.device)],
                    self.weight,
                    wanted[counted.bool()].to(self.device),
                    bias=self.bias,
                    scale=self.scale,
                    softcap=self.softcap,
                )
                scores = torch.split(flat.cpu(), [len(targets[number]) for number in part])
                for number, row in zip(part, scores, strict=True):
                    found[number] = row.tolist()
        each = iter(found)
        return [[next(each) for _ in group.continuations] for group in groups]


def _rows_of(cache: Any, rows: Any) -> Any:
    """Return a cache with the keys and values of some rows, and leave `cache` as it is."""
    part = copy.copy(cache)
    part.layers = [copy.copy(layer) for layer in cache.layers]
    part.batch_select_indices(rows)
    return part


def _of_one_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Yield the numbers of all rows, longest first, in parts which take at most `most` tokens to be filled up to one length."""
    part: list[int] = []
    filling = 0
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        filling += lengths[part[0]] - lengths[number] if part else 0
        if filling > most:
            yield part
            part, filling = [], 0
        part.append(number)
    yield part


def batches(groups: Sequence[Group], most: int) -> Iterator[list[Group]]:
    """Yield groups of about one length, in batches of at most `most` tokens with their padding, or of one group."""
    # Continuations are more rows than prompts, and differ more in length: they decide how much is padding.
    ordered = sorted(groups, key=lambda group: (group.longest, len(group.prompt), group.prompt))
    batch: list[Group] = []
    prompt = longest = rows = 0
    for group in ordered:
        prompt, longest = max(prompt, len(group.prompt)), max(longest, group.longest)
        rows += len(group.continuations)
        # The prompt counts once more for each continuation: its keys and values are repeated.
        if batch and rows * (prompt + longest) > most:
            yield batch
            batch, prompt, longest, rows = [], len(group.prompt), group.longest, len(group.continuations)
        batch.append(group)
    if batch:
        yield batch


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Any, Any]:
    """Return the rows as one tensor, filled with 0, and a mask of what is not filling."""
    import torch

    width = max(map(len, rows))
    tokens = torch.zeros((len(rows), width), dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for number, row in enumerate(rows):
        if row:
            place = slice(width - len(row), None) if left else slice(0, len(row))
            tokens[number, place] = torch.tensor(row)
            mask[number, place] = 1
    return tokens, mask


def _adapted(model: Any, adapter: str) -> Any:
    """Return the model with a LoRA adapter merged into its weights. Raises ValueError where they do not fit."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(f"the adapter {adapter} does not fit the model: {str(error).splitlines()[0]}") from error


if __name__ == "__main__":
    serve(_started)
