"""TRL's trainers, fed with tokens, watched, and made to go on where they were killed: what `tailor_worker` runs."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
import trl
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig, PeftModel
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from ptk.train.job import Events, JobFailed
from ptk.train.stacked_adapter import stack_adapters

__all__ = ["train"]

WHOLE = "ptk-whole"
"""Name of the file that says that a checkpoint is complete."""
_ROW = "_row"
_WEIGHTS = "model.safetensors"
_REFERENCES_AT_ONCE = 16
"""Batches whose reference log-probabilities are computed before they are stored."""
_TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("chat_template.json", "vocab.json", "merges.txt", "tokenizer.model", "generation_config.json"),
)


@dataclass(slots=True)
class _Job:
    """What the trainer's own methods need of the job."""

    settings: Mapping[str, Any]
    folder: Path
    events: Events
    keys: list[str]
    """Key of each row, by its number."""
    reference_seconds: float = 0.0
    reference_cpu_seconds: float = 0.0
    reference_computed: int = 0
    reference_found: int = 0
    last_whole: int | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def train(settings: Mapping[str, Any], folder: Path, events: Events) -> None:
    """Train as a job's settings say and leave the model in `made`, or merge an adapter where there is nothing to train.

    Raises JobFailed.
    """
    rows = pl.read_parquet(folder / "rows.parquet") if settings["method"] != "merge" else pl.DataFrame()
    job = _Job(settings, folder, events, rows["key"].to_list() if rows.height else [])
    with _said():
        model = _model(settings, folder)
        if settings["method"] == "merge":
            _leave(job, lambda target: _save_whole(model, settings, target))
            events.send(event="done", metrics={}, history=[])
            return
        started = time.monotonic()
        trainer = _trainer(job, model, rows)
        at = _last_whole(job)
        events.send(event="begin", steps=_total_steps(trainer), resumed_at=job.last_whole, **_reference_told(job))
        before, resumed_at, busy = time.monotonic(), job.last_whole, time.process_time()
        trainer.train(resume_from_checkpoint=None if at is None else str(at))
        seconds, busy = time.monotonic() - before, time.process_time() - busy
        history = [dict(entry) for entry in trainer.state.log_history]
        own = folder / "trained"
        trainer.save_model(str(own))  # by all processes: weights may be in parts
        if trainer.is_world_process_zero():
            _leave(job, lambda target: _save(job, own, target))
        trainer.accelerator.wait_for_everyone()
        metrics = _metrics(trainer, history)
        timing = {
            "resumed_at": resumed_at,
            "train_seconds": seconds,
            "train_cpu_seconds": busy,
            "start_seconds": before - started,
            "processes": trainer.args.world_size,
        }
        events.send(event="done", metrics=metrics, history=history, timing=timing, **_reference_told(job))


@contextmanager
def _said() -> Iterator[None]:
    """Turn failures that have a known cause into words."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        what = "the GPU ran out of memory; write a smaller per_device_train_batch_size with more gradient_accumulation_steps"
        raise JobFailed("memory", what) from error


def _model(settings: Mapping[str, Any], folder: Path) -> Any:
    """Return the model that training starts from: the base, with the adapter it is to start from merged into its weights."""
    source, adapter = settings["model"], settings["adapter"]
    kwargs = {"dtype": "float32", **(settings["model_init"] or {})}
    if isinstance(kwargs["dtype"], str) and kwargs["dtype"] != "auto":
        kwargs["dtype"] = getattr(torch, kwargs["dtype"])
    quantize = settings["quantize"]
    if quantize is not None and adapter is not None:
        source, adapter = _merged_aside(source, adapter, kwargs, folder), None
    if quantize is not None:
        from accelerate import PartialState
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = (
            BitsAndBytesConfig(load_in_8bit=True)
            if quantize == "8bit"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
            )
        )
        kwargs.setdefault("device_map", {"": PartialState().local_process_index})
    model = AutoModelForCausalLM.from_pretrained(source, **kwargs)
    if adapter is not None:
        model = _with_adapter(model, adapter)
    # What a saved adapter names as its base: a name that others know, not a path of this machine.
    model.config._name_or_path = model.name_or_path = settings["base_name"]
    return model


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        raise JobFailed("adapter", f"the adapter {adapter} does not fit the model: {str(error).splitlines()[0]}") from error


def _merged_aside(source: str, adapter: str, kwargs: Mapping[str, Any], folder: Path) -> str:
    """Return a folder with the merged model: quantised weights are made of whole ones."""
    place = folder / "merged"
    if not place.is_dir():
        model = _with_adapter(AutoModelForCausalLM.from_pretrained(source, **kwargs), adapter)
        model.save_pretrained(place.with_name("merged.partial"))
        place.with_name("merged.partial").rename(place)
        del model
        gc.collect()
    return str(place)


class _Numbered:
    """A collator that leaves the rows' numbers in the batch."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [example[_ROW] for example in examples if _ROW in example]
        batch = self.collate([{name: value for name, value in example.items() if name != _ROW} for example in examples])
        if numbers:
            batch[_ROW] = torch.tensor(numbers)
        return batch


class _Watched:
    """Mixed into a trainer of TRL: rows come as tokens, a loss that is no number and a checkpoint that fails end the job in words."""

    job: _Job

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        trainer: Any = self
        if _ROW not in trainer._signature_columns:
            trainer._signature_columns = [*trainer._signature_columns, _ROW]

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        numbers = inputs.pop(_ROW, None)
        found = super().compute_loss(model, inputs, *args, **kwargs)  # type: ignore[misc]
        loss = found[0] if isinstance(found, tuple) else found
        if not bool(torch.isfinite(loss.detach()).all()):
            rows = [] if numbers is None else [self.job.keys[number] for number in numbers.tolist()]
            state: Any = self.state  # type: ignore[attr-defined]
            raise JobFailed(
                "not_finite", f"the loss is {float(loss)} in step {state.global_step + 1}", rows=rows, **_kept(self.job)
            )
        return found

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: the catalog's own says where the model comes from."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        state: Any = self.state  # type: ignore[attr-defined]
        place = self.job.checkpoints / f"checkpoint-{state.global_step}"
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
            if self.is_world_process_zero():  # type: ignore[attr-defined]
                (place / WHOLE).write_text("")
        except Exception as error:  # the libraries that write raise errors of their own
            shutil.rmtree(place, ignore_errors=True)
            lines = str(error).strip().splitlines() or [type(error).__name__]
            free = shutil.disk_usage(self.job.folder).free
            raise JobFailed("checkpoint", lines[0], step=state.global_step, free=free, **_kept(self.job)) from error
        self.job.last_whole = state.global_step
        self.job.events.send(event="saved", step=state.global_step)


def _kept(job: _Job) -> dict[str, Any]:
    return {"last_checkpoint": job.last_whole}


class _SftTrainer(_Watched, trl.SFTTrainer):  # type: ignore[misc]
    """Rows have `input_ids` and `labels`, which TRL takes as they are."""


class _Cached(_Watched):
    """A trainer with a reference model, whose log-probabilities are computed once for each row, and kept by its content."""

    references: tuple[str, ...]
    """Columns of what `compute_ref_log_probs` gives."""

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        trainer: Any = self
        if trainer.is_deepspeed_enabled:  # its weights are in parts, which TRL knows how to gather
            return super()._precompute_ref_logps(dataset, name, batch_size)  # type: ignore[misc]
        job, accelerator = self.job, trainer.accelerator
        contents = _contents(dataset)
        known = _known_references(job)
        accelerator.wait_for_everyone()  # all look before one writes
        missing = [number for number, content in enumerate(contents) if content not in known]
        job.reference_found += len(contents) - len(missing)
        started, busy = time.monotonic(), time.process_time()
        done = 0
        for values in self._computed(dataset.select(missing), batch_size) if missing else ():
            chosen = missing[done : done + len(next(iter(values.values())))]
            for place, number in enumerate(chosen):
                row = {column: column_values[place] for column, column_values in values.items()}
                if not all(map(math.isfinite, row.values())):
                    what = "a reference log-probability is no number"
                    raise JobFailed("not_finite", what, rows=[job.keys[dataset[number][_ROW]]], **_kept(job))
                known[contents[number]] = row
            if accelerator.is_main_process:
                _keep_references(job, [contents[number] for number in chosen], values)
            done += len(chosen)
            job.events.send(event="reference", done=done, of=len(missing), part=name)
        job.reference_computed += done
        job.reference_seconds += time.monotonic() - started
        job.reference_cpu_seconds += time.process_time() - busy
        columns = list(next(iter(known.values()))) if contents else []
        beside = Dataset.from_dict({column: [known[content][column] for content in contents] for column in columns})
        return concatenate_datasets([dataset, beside], axis=1)

    def _computed(self, dataset: Any, batch_size: int) -> Iterator[dict[str, list[float]]]:
        """Yield the reference log-probabilities of the rows in their order, some batches at a time."""
        trainer: Any = self
        loader = trainer.accelerator.prepare(
            DataLoader(dataset, batch_size=batch_size, collate_fn=trainer.data_collator, shuffle=False)
        )
        model = trainer.ref_model or trainer.model
        waiting: dict[str, list[float]] = {}
        for number, batch in enumerate(loader, start=1):
            given = [values for values in trainer.compute_ref_log_probs(model, batch) if values is not None]
            gathered = trainer.accelerator.gather_for_metrics(tuple(given))
            for column, values in zip(self.references, gathered, strict=False):
                waiting.setdefault(column, []).extend(values.float().cpu().tolist())
            if number % _REFERENCES_AT_ONCE == 0:
                yield waiting
                waiting = {}
        if waiting:
            yield waiting


class _DpoTrainer(_Cached, trl.DPOTrainer):  # type: ignore[misc]
    """Rows have `prompt_ids`, `chosen_ids` and `rejected_ids`."""

    references = ("ref_chosen_logps", "ref_rejected_logps")

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset


class _KtoTrainer(_Cached, trl.KTOTrainer):  # type: ignore[misc]
    """Rows have `prompt_ids`, `completion_ids` and `label`."""

    references = ("ref_logps", "ref_KL_logps")

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        if not self.calculate_KL:
            return dataset

        # Within each batch every prompt gets the completion before its own, as TRL pairs them.
        def shifted(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {"KL_completion_ids": [rows["completion_ids"][-1], *rows["completion_ids"][:-1]]}

        return dataset.map(shifted, batched=True, batch_size=args.per_device_train_batch_size)


def _orpo_trainer() -> Any:
    from trl.experimental.orpo import ORPOTrainer

    class _OrpoTrainer(_Watched, ORPOTrainer):  # type: ignore[misc]
        """Rows have `prompt_ids`, `chosen_ids` and `rejected_ids`."""

        def tokenize_row(self, feature: Any, model: Any = None) -> dict[str, Any]:
            prompt = list(feature["prompt_ids"])
            row: dict[str, Any] = {"prompt_input_ids": prompt, "prompt_attention_mask": [1] * len(prompt)}
            for side in ("chosen", "rejected"):
                answer = list(feature[f"{side}_ids"])
                row[f"{side}_input_ids"] = prompt + answer
                row[f"{side}_attention_mask"] = [1] * len(prompt + answer)
                row[f"{side}_labels"] = [-100] * len(prompt) + answer
            return row

        def _set_signature_columns_if_needed(self) -> None:
            """Leave the columns: this trainer keeps all."""

    return _OrpoTrainer


def _contents(dataset: Any) -> list[str]:
    """Return an id of the tokens of each row."""
    columns = sorted(name for name in dataset.column_names if name.endswith("_ids"))
    found = []
    for row in dataset.select_columns(columns):
        content = json.dumps([list(row[name]) for name in columns], separators=(",", ":"))
        found.append(hashlib.sha256(content.encode()).hexdigest()[:32])
    return found


def _reference_place(job: _Job) -> Path:
    return Path(job.settings["reference"]["folder"]) / str(job.settings["reference"]["model"])


def _known_references(job: _Job) -> dict[str, dict[str, float]]:
    known: dict[str, dict[str, float]] = {}
    for file in sorted(_reference_place(job).glob("*.parquet")):
        for row in pl.read_parquet(file).iter_rows(named=True):
            known[row.pop("content")] = row
    return known


def _keep_references(job: _Job, contents: Sequence[str], values: Mapping[str, Sequence[float]]) -> None:
    place = _reference_place(job)
    place.mkdir(parents=True, exist_ok=True)
    aside = place / f".{uuid.uuid4().hex}"
    pl.DataFrame({"content": list(contents), **{name: list(column) for name, column in values.items()}}).write_parquet(aside)
    aside.rename(place / f"{uuid.uuid4().hex}.parquet")


def _reference_told(job: _Job) -> dict[str, Any]:
    told = {
        "computed": job.reference_computed,
        "found": job.reference_found,
        "seconds": job.reference_seconds,
        "cpu_seconds": job.reference_cpu_seconds,
    }
    return {"reference": told}


def _trainer(job: _Job, model: Any, rows: pl.DataFrame) -> Any:
    settings = job.settings
    method = settings["method"]
    cache = {"sft": (_SftTrainer, trl.SFTConfig), "dpo": (_DpoTrainer, trl.DPOConfig), "kto": (_KtoTrainer, trl.KTOConfig)}
    if method == "orpo":
        from trl.experimental.orpo import ORPOConfig

        kind, config = _orpo_trainer(), ORPOConfig
    else:
        kind, config = cache[method]
    try:
        args = config(output_dir=str(job.checkpoints), **settings["trl"])
        lora = None if settings["lora"] is None else LoraConfig(task_type="CAUSAL_LM", **settings["lora"])
    except (TypeError, ValueError, ImportError, RuntimeError) as error:
        raise JobFailed("settings", " ".join(str(error).split())[:600]) from error
    tokenizer = AutoTokenizer.from_pretrained(
        settings["model"], trust_remote_code=bool(settings["trl"].get("trust_remote_code"))
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(settings["pad"])
    sets = {
        part: _dataset(method, rows.with_row_index(_ROW).filter(pl.col("part") == part)) for part in ("train", "validation")
    }
    more: dict[str, Any] = {}
    if method in ("dpo", "kto") and lora is None and not args.precompute_ref_log_probs and settings["adapter"] is not None:
        import copy

        more["ref_model"] = copy.deepcopy(model)  # TRL would load the base without the adapter
    callbacks: list[Any] = [_Telling(job)]
    if settings["checkpoint_minutes"] is not None and args.world_size == 1:
        callbacks.append(_SavingOften(settings["checkpoint_minutes"] * 60))
    if settings["patience"] is not None:
        callbacks.append(EarlyStoppingCallback(early_stopping_patience=settings["patience"]))
    watched = type("Tailored", (kind,), {"job": job, "__doc__": kind.__doc__})
    try:
        trainer = watched(
            model=model,
            args=args,
            train_dataset=sets["train"],
            eval_dataset=sets["validation"] if len(sets["validation"]) else None,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=callbacks,
            **more,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise JobFailed("settings", " ".join(str(error).split())[:600]) from error
    trainer.data_collator = _Numbered(trainer.data_collator)
    return trainer


def _dataset(method: str, rows: pl.DataFrame) -> Any:
    if method == "sft":
        whole = pl.concat_list("prompt_ids", "completion_ids")
        masked = pl.concat_list(pl.col("prompt_ids").list.eval(pl.element() * 0 - 100), "completion_ids")
        rows = rows.select(_ROW, whole.alias("input_ids"), masked.alias("labels"))
    else:
        names = [
            name for name in ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids", "label") if name in rows.columns
        ]
        rows = rows.select(_ROW, *names)
    return Dataset.from_dict({name: rows[name].to_list() for name in rows.columns})


class _Telling(TrainerCallback):  # type: ignore[misc]
    """Sends what the trainer logs as events."""

    def __init__(self, job: _Job) -> None:
        self.job = job

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, (int, float))}
        self.job.events.send(event="log", step=state.global_step, of=state.max_steps, **numbers)


class _SavingOften(TrainerCallback):  # type: ignore[misc]
    """Saves a checkpoint where none was saved for a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self.last >= self.seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.last = time.monotonic()


def _last_whole(job: _Job) -> Path | None:
    """Return the last checkpoint that is complete; those that are not are removed."""
    found: list[tuple[int, Path]] = []
    for place in job.checkpoints.glob("checkpoint-*"):
        if (place / WHOLE).is_file():
            found.append((int(place.name.rpartition("-")[2]), place))
        elif job.events.writes:
            shutil.rmtree(place, ignore_errors=True)
    if not found:
        job.last_whole = None
        return None
    job.last_whole, last = max(found)
    return last


def _total_steps(trainer: Any) -> int:
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    batches = math.ceil(len(trainer.train_dataset) / (args.per_device_train_batch_size * args.world_size))
    updates = max(1, math.ceil(batches / args.gradient_accumulation_steps))
    steps: int = math.ceil(updates * args.num_train_epochs)
    return steps


def _metrics(trainer: Any, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is told of a finished training: last and best losses, and what the best checkpoint's evaluation measured."""
    state = trainer.state
    losses = [entry["loss"] for entry in history if "loss" in entry]
    evaluated = [entry for entry in history if "eval_loss" in entry]
    best = next((entry for entry in evaluated if entry["step"] == state.best_global_step), evaluated[-1] if evaluated else None)
    timed = ("runtime", "per_second")
    return {
        "steps": state.global_step,
        "epochs": state.epoch,
        "final_train_loss": losses[-1] if losses else None,
        "final_eval_loss": evaluated[-1]["eval_loss"] if evaluated else None,
        "best_step": state.best_global_step if state.best_global_step else None,
        **({name: value for name, value in best.items() if not name.endswith(timed)} if best is not None else {}),
    }


def _leave(job: _Job, save: Callable[[Path], object]) -> None:
    """Write the model aside, and give the folder its name when it is whole."""
    aside, made = job.folder / "made.partial", job.folder / "made"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(made, ignore_errors=True)
    aside.mkdir()
    try:
        save(aside)
    except Exception as error:  # the libraries that write raise errors of their own
        lines = str(error).strip().splitlines() or [type(error).__name__]
        free = shutil.disk_usage(job.folder).free
        raise JobFailed("checkpoint", lines[0], step=None, free=free, **_kept(job)) from error
    aside.rename(made)


def _save(job: _Job, own: Path, target: Path) -> None:
    """Write what the step leaves, out of what the trainer saved in `own`."""
    settings = job.settings
    if settings["lora"] is None:
        for file in own.iterdir():
            if file.suffix == ".safetensors" or file.name in (
                "config.json",
                "generation_config.json",
                f"{_WEIGHTS}.index.json",
            ):
                shutil.copyfile(file, target / file.name)
        _copy_tokenizer(settings, target)
        return
    if settings["save"] == "merged":
        start = _model({**settings, "quantize": None}, job.folder)
        _save_whole(_with_adapter(start, str(own)), settings, target)
        return
    if settings["adapter"] is None:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(own / name, target / name)
    else:
        stack_adapters(Path(settings["adapter"]), own, target)
    config = json.loads((target / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = settings["base_name"]
    # PEFT holds these in sets, whose order is another in every process: the same adapter is the same files.
    config |= {
        name: sorted(config[name]) for name in ("target_modules", "exclude_modules") if isinstance(config.get(name), list)
    }
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _save_whole(model: Any, settings: Mapping[str, Any], target: Path) -> None:
    model.config._name_or_path = settings["base_name"]
    model.save_pretrained(target, safe_serialization=True)
    _copy_tokenizer(settings, target)


def _copy_tokenizer(settings: Mapping[str, Any], target: Path) -> None:
    """Copy the base's own tokenizer: what a library writes of it anew may read otherwise."""
    for name in _TOKENIZER:
        source = Path(settings["model"]) / name
        if source.is_file():
            shutil.copyfile(source, target / name)
