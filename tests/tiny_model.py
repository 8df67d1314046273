"""A Llama of two layers with random weights, 150 KB, whose tokens are bytes: real enough to train in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

__all__ = ["TEMPLATE", "tiny_model"]

WIDTH, LAYERS, HEADS, INNER = 32, 2, 4, 64
SPECIAL = ("<|im_start|>", "<|im_end|>", "<pad>")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE, pad: str | None = "<pad>") -> Path:
    """Write the model's files into `folder`, which is made, and return it."""
    folder.mkdir(parents=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab_size()
    named = {"eos_token": "<|im_end|>", **({} if pad is None else {"pad_token": pad})}
    written = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **named}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**written, **({} if template is None else {"chat_template": template})})
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<pad>"),
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (vocabulary, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"model.layers.{layer}.mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (WIDTH, INNER)
    weights = {name: random.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    norms = [
        f"model.layers.{layer}.{name}.weight"
        for layer in range(LAYERS)
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    weights |= {name: np.ones(WIDTH, np.float32) for name in [*norms, "model.norm.weight"]}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
