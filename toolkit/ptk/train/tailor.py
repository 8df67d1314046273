"""Tailors a model to rows: trained with TRL by SFT, DPO, KTO or ORPO, as an adapter or whole; or shown some of them, few-shot."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import orjson
import polars as pl
from pydantic import Field, model_validator

from ptk.errors import PtkError
from ptk.files import cache_folder
from ptk.llm.backend import ResolvedModel
from ptk.llm.cases import write_cases
from ptk.llm.local_model import torch_device
from ptk.llm.model_files import read_json_file
from ptk.operator import DETAIL, KEY, REJECT, MadeFiles, asset_operator
from ptk.params import COLUMN, MODEL, UNKEYED, Params, canonical
from ptk.train.few_shot import check_case_records, draw_cases
from ptk.train.presets import preset_lora, preset_trainer
from ptk.train.stacked_adapter import unstackable
from ptk.train.training_process import run_training
from ptk.train.training_rows import RowTokens, cuts, responses_of, rows_digest, training_rows
from ptk.train.trl_options import UNKEYED_OPTIONS, launch_problems, lora_problems, trainer_problems
from ptk_catalog.digest import row_id

__all__ = ["Tailor", "base_name", "job_folder", "tailor"]

Report = Callable[[int, int | None, str], None]

_PLAIN = {"report_to": "none", "logging_steps": 1, "disable_tqdm": True, "save_total_limit": 1}
_VALIDATED = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
_FEW_SHOT = frozenset({"model", "method", "cases", "seed", "split", "train"})
"""The settings that few-shot tailoring has."""
_CURVE = 400
"""Most points of the curve that is kept with a step."""


class Tailor(Params):
    """Settings of tailor."""

    model: Annotated[str, MODEL] = Field(description="Name of the model to start from, with the adapter that it names merged.")
    method: Literal["few_shot", "sft", "dpo", "kto", "orpo"] = Field(
        "dpo",
        description="What is learned: to write responses, or to prefer them; few_shot trains nothing, and shows solved cases.",
    )
    cases: int = Field(5, ge=1, le=64, description="few_shot: how many solved cases are drawn for the model to be shown.")
    tuning: Literal["lora", "full"] = Field(
        "lora", description="lora, a small adapter beside frozen weights; full, all weights."
    )
    preset: Literal["paper", "cpu"] | None = Field(
        None, description="Named settings below those that are written: paper, the published method's; cpu, small ones."
    )
    trl: dict[str, Any] = Field(default_factory=dict, description="Options of TRL's trainer, by their names there.")
    lora: dict[str, Any] = Field(default_factory=dict, description="Options of PEFT's LoraConfig, by their names there.")
    seed: int = Field(0, ge=0, lt=1 << 32, description="Decides the adapter's first weights, the order of rows, and dropout.")
    split: Annotated[str | None, COLUMN] = Field(None, description="Column that says which part a row belongs to.")
    train: tuple[str, ...] = Field(
        (), description="Values of `split` of the rows that are learned from; all others where empty."
    )
    validation: tuple[str, ...] | float | None = Field(
        0.2,
        description="Values of `split` of the rows that are validated on, or a share that is drawn; null validates on none.",
    )
    patience: int | None = Field(
        None, ge=1, description="Evaluations without a better loss after which training ends; null trains to the end."
    )
    on_long: Literal["cut", "reject"] = Field(
        "cut",
        description="What happens to rows longer than TRL's max_length: the response loses its end, or the row is rejected.",
    )
    max_cut: float = Field(
        0.1, ge=0, le=1, description="Nothing is trained where a larger share of the rows loses the end of a response."
    )
    quantize: Literal["8bit", "4bit"] | None = Field(
        None, description="How the frozen weights are held, by bitsandbytes; needs a GPU."
    )
    save: Literal["adapter", "merged"] = Field(
        "adapter", description="What is left: the adapter alone, or the whole model with the adapter in its weights."
    )
    accelerate: dict[str, Any] | None = Field(
        None, description="Options of `accelerate launch`, such as {num_processes: 4}; null trains in one process."
    )
    checkpoint_minutes: Annotated[float | None, UNKEYED] = Field(
        10.0, gt=0, description="Minutes after which a checkpoint is saved beside those of evaluations; in one process alone."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.method == "few_shot":
            for name in sorted(self.model_fields_set - _FEW_SHOT):
                raise ValueError(f"`{name}` is about training, and method: few_shot trains nothing; leave it out")
            return self
        if "cases" in self.model_fields_set:
            raise ValueError("`cases` goes with method: few_shot")
        for problem in (
            *trainer_problems(self.method, self.trl),
            *lora_problems(self.lora),
            *launch_problems(self.accelerate or {}),
        ):
            raise ValueError(problem)
        if {"token", "use_auth_token"} & (self.trl.get("model_init_kwargs") or {}).keys():
            raise ValueError("trl: a token comes from the environment alone: set HF_TOKEN")
        if self.tuning == "full":
            if self.lora:
                raise ValueError("`lora` goes with tuning: lora")
            if self.quantize is not None:
                raise ValueError("quantised weights can't be trained; write tuning: lora, or leave `quantize` out")
        if self.quantize is not None and self.save == "merged":
            raise ValueError("an adapter is not merged into quantised weights; write save: adapter, and merge_adapter later")
        if self.split is None and (self.train or isinstance(self.validation, tuple)):
            raise ValueError("`train` and `validation` name values of a column; write `split`, the name of that column")
        if isinstance(self.validation, tuple) and set(self.validation) & set(self.train):
            raise ValueError("a part is both in `train` and in `validation`")
        if isinstance(self.validation, float) and not 0 < self.validation < 1:
            raise ValueError("a share for `validation` lies between 0 and 1; write null for none")
        if self.patience is not None and self.validation is None:
            raise ValueError("`patience` counts evaluations, and there is no `validation`")
        return self

    def canonical(self) -> dict[str, Any]:
        """Return what decides what is made."""
        if self.method == "few_shot":
            return {name: canonical(getattr(self, name)) for name in sorted(_FEW_SHOT - {"model"})}
        unkeyed = ("model", "checkpoint_minutes", "trl", "cases")
        content = {name: canonical(getattr(self, name)) for name in type(self).model_fields if name not in unkeyed}
        told = {**preset_trainer(self.preset, self.method), **self.trl}
        return {**content, "trl": {name: value for name, value in told.items() if name not in UNKEYED_OPTIONS}}

    def max_length(self) -> int:
        """Return the most tokens of prompt and response."""
        found = self.trainer_options().get("max_length", 1024)
        return 1 << 30 if found is None else int(found)

    def trainer_options(self) -> dict[str, Any]:
        """Return all options of TRL's trainer."""
        on_cpu = {"use_cpu": True, "bf16": False} if torch_device() == "cpu" else {}
        reference = {"precompute_ref_log_probs": True} if self.method in ("dpo", "kto") else {}
        if self.trl.get("sync_ref_model"):
            reference = {}
        validated = _VALIDATED if self.validation is not None else {"eval_strategy": "no", "save_strategy": "epoch"}
        written = {**preset_trainer(self.preset, self.method), **self.trl}
        seeded = {"seed": self.seed, "data_seed": self.seed, "restore_callback_states_from_checkpoint": True}
        return {**_PLAIN, **on_cpu, **reference, **validated, **written, **seeded}

    def lora_options(self) -> dict[str, Any] | None:
        """Return all options of PEFT's LoraConfig; None where all weights are trained."""
        return {**preset_lora(self.preset), **self.lora} if self.tuning == "lora" else None


def _check(frame: pl.LazyFrame, params: Tailor) -> None:
    if params.method == "few_shot":
        check_case_records(frame)
    else:
        responses_of(params.method, frame.collect_schema())


def _makes(params: Tailor) -> MadeFiles:
    if params.method == "few_shot":
        return "cases"
    return "adapter" if params.tuning == "lora" and params.save == "adapter" else "model"


@asset_operator(check=_check, makes=_makes, version=1)
def tailor(
    frame: pl.LazyFrame, params: Tailor, folder: Path, model: ResolvedModel, report: Report
) -> tuple[Mapping[str, Any], pl.DataFrame]:
    """Tailor a model to rows: trained with TRL by SFT, DPO, KTO or ORPO, as a LoRA adapter or whole, or few-shot, shown some of them."""
    if params.method == "few_shot":
        return _few_shot(frame, params, folder, model)
    if model.path is None:
        raise PtkError(
            f"model '{model.reference}' has no weights here that can be trained; name one of the backend transformers"
        )
    _check_base(params, model)
    rows = _parted(frame.collect(engine="streaming"), params)
    tokens = RowTokens.read(model.path, model.reference)
    if tokens.template is None and rows.schema["prompt"] != pl.String:
        raise PtkError(
            f"model '{model.reference}' has no chat template, which prompts of turns are written with; make the records with "
            "template: plain, or start from a model that has one"
        )
    used = rows.filter(pl.col("part").is_not_null())
    made = training_rows(used, params.method, tokens, params.max_length(), cut=params.on_long == "cut")
    told = cuts(made, params.max_length())
    _check_cuts(told, params)
    labelled = params.method == "kto" and "completion_ids" in made.columns
    made = made.with_columns(used.select("part", *(["label"] if labelled else [])))
    learned = _learned(made.filter(pl.col(REJECT).is_null()), params)
    counts = {part: learned.filter(pl.col("part") == part).height for part in ("train", "validation")}
    _check_counts(counts, rows, made, params)
    digest = rows_digest(learned)
    job = _job(params, model, tokens)
    place = job_folder({"job": canonical(params), "model": dict(model.identity), "rows": digest})
    _write_rows(learned, place)
    listener = _Listener(report)
    last = run_training(place, job, params.accelerate, listener)
    if last["event"] == "failed":
        raise PtkError(_failure(last, frame, place))
    for file in (place / "made").iterdir():
        shutil.move(file, folder / file.name)
    shutil.rmtree(place, ignore_errors=True)
    facts = _facts(params, model, job, last, counts, told, digest, folder)
    # Rows of other parts are left alone.
    return facts, rows.select(KEY).join(made.select(KEY, REJECT, DETAIL), on=KEY, how="left", maintain_order="left")


def _few_shot(
    frame: pl.LazyFrame, params: Tailor, folder: Path, model: ResolvedModel
) -> tuple[Mapping[str, Any], pl.DataFrame]:
    """Write the solved cases that the model is to be shown."""
    rows = _parted(frame.collect(engine="streaming"), params)
    used = rows.filter(pl.col("part").is_not_null())
    cases, decided = draw_cases(used, params.cases, params.seed)
    digest = write_cases(cases, folder)
    facts = {
        "made": _made(params, model),
        "rows": {"records": used.height, "cases": len(cases), "digest": digest},
        "settings": {"method": params.method, "seed": params.seed},
    }
    return facts, rows.select(KEY).join(decided, on=KEY, how="left", maintain_order="left")


def _check_base(params: Tailor, model: ResolvedModel) -> None:
    """Raise PtkError where the model can't be trained as the settings say, here."""
    if params.quantize is not None and torch_device() == "cpu":
        raise PtkError(
            f"quantize: {params.quantize} needs a GPU, and torch finds none here; leave `quantize` out, or run where there is one"
        )
    if model.adapter is None:
        return
    config = read_json_file(model.adapter / "adapter_config.json")
    if (what := unstackable(config)) is not None and _makes(params) == "adapter":
        raise PtkError(
            f"the adapter of '{model.reference}' has `{what}`, so that what is trained upon it can't be one adapter with it; write "
            "save: merged"
        )


def _parted(frame: pl.DataFrame, params: Tailor) -> pl.DataFrame:
    """Return the rows with `part`: train, validation, or null for those that are left alone."""
    part = pl.lit("train", pl.String)
    if params.split is not None:
        told = pl.col(params.split).cast(pl.String)
        if params.train:
            part = pl.when(told.is_in(params.train)).then(pl.lit("train"))
        if isinstance(params.validation, tuple):
            part = pl.when(told.is_in(params.validation)).then(pl.lit("validation")).otherwise(part)
    frame = frame.with_columns(part.alias("part"))
    if not isinstance(params.validation, float):
        return frame
    # The records of a pair stay together, else one would be validated on what the other taught.
    group = "pair_id" if "pair_id" in frame.columns else "prompt"
    seeded = frame.with_columns(_seed=pl.lit(params.seed, pl.Int64))
    number = row_id({"_seed": pl.Int64(), group: frame.schema[group]})
    drawn = seeded.with_columns(_number=number).filter(pl.col("part") == "train")["_number"].unique().sort()
    chosen = drawn.head(round(len(drawn) * params.validation))
    told = pl.when(pl.col("part").is_not_null() & pl.col("_number").is_in(chosen.implode())).then(pl.lit("validation"))
    return (
        seeded.with_columns(_number=number).with_columns(told.otherwise(pl.col("part")).alias("part")).drop("_seed", "_number")
    )


def _check_cuts(told: Mapping[str, Any], params: Tailor) -> None:
    if told["cut_share"] > params.max_cut:
        longest = ", ".join(f"{key} ({tokens:,} tokens)" for key, tokens in told["longest"])
        raise PtkError(
            f"max_length {told['max_length']:,} cuts the end of a response in {told['cut_rows']:,} of {told['rows']:,} rows "
            f"({told['cut_share']:.0%}), and max_cut is {params.max_cut:g}; the longest: {longest}. Nothing was trained. 95% of the "
            f"rows have at most {told['p95_tokens']:,} tokens: raise max_length under `trl`, reject long rows with on_long: reject, or raise max_cut"
        )


def _check_counts(counts: Mapping[str, int], rows: pl.DataFrame, made: pl.DataFrame, params: Tailor) -> None:
    if counts["train"] < 1 or (params.validation is not None and counts["validation"] < 1):
        lacking = "train" if counts["train"] < 1 else "validation"
        rejected = made.filter(pl.col(REJECT).is_not_null())
        reasons = "".join(f", {count:,} {reason}" for reason, count in rejected[REJECT].value_counts(sort=True).iter_rows())
        left = rows.height - made.height
        raise PtkError(
            f"there is no row to {'learn from' if lacking == 'train' else 'validate on'}: of {rows.height:,} rows {left:,} belong to other "
            f"parts{reasons}{'; write validation: null for none' if lacking == 'validation' else ''}"
        )


def _learned(made: pl.DataFrame, params: Tailor) -> pl.DataFrame:
    """Return the rows in the order of their keys, with what the method's trainer reads."""
    rows = made.drop(REJECT, DETAIL).select(pl.exclude("^.*_whole$"))
    if params.method == "sft" and "chosen_ids" in rows.columns:
        rows = rows.rename({"chosen_ids": "completion_ids"})
    if params.method == "kto" and "chosen_ids" in rows.columns:
        sides = [
            rows.select(KEY, "part", "prompt_ids", pl.col(f"{side}_ids").alias("completion_ids"), label=pl.lit(label))
            for side, label in (("chosen", True), ("rejected", False))
        ]
        rows = pl.concat(sides)
    return rows.sort(KEY, *(["label"] if "label" in rows.columns else []))


def _write_rows(learned: pl.DataFrame, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    learned.rename({KEY: "key"}).write_parquet(place / "rows.parquet")


def _name(content: Any) -> str:
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()[:32]


def _job(params: Tailor, model: ResolvedModel, tokens: RowTokens) -> dict[str, Any]:
    """Return what the training process is told."""
    options = params.trainer_options()
    init = options.pop("model_init_kwargs", None)
    reference = {name: options.get(name) for name in ("ld_alpha", "bf16", "fp16", "use_cpu")}
    weights = {name: model.identity.get(name) for name in ("digest", "adapter")}
    return {
        "method": params.method,
        "model": str(model.path),
        "adapter": None if model.adapter is None else str(model.adapter),
        "base_name": base_name(model),
        "model_init": {**(init or {}), **({"trust_remote_code": True} if options.get("trust_remote_code") else {})},
        "trl": options,
        "lora": params.lora_options(),
        "quantize": params.quantize,
        "save": params.save,
        "pad": tokens.pad,
        "patience": params.patience,
        "checkpoint_minutes": params.checkpoint_minutes,
        "reference": {
            "folder": str(cache_folder() / "reference"),
            "model": _name([params.method, weights, params.quantize, init, reference]),
        },
    }


def job_folder(content: Any) -> Path:
    """Return where a job is done that `content` decides; what is left there by a kill is gone on with."""
    return cache_folder() / "training" / _name(content)


def base_name(model: ResolvedModel) -> str:
    """Return the name by which others know a model without its adapter: a folder's is its last part."""
    name = model.reference.partition(" + ")[0]
    if name.startswith("catalog:") and model.versions:
        return model.versions[0].reference
    known = name.startswith(("bundled/", "step:")) or model.revision is not None or model.path is None
    return name if known or model.path is None else model.path.name


@dataclass(slots=True)
class _Listener:
    """Tells the run what the training process tells."""

    report: Report
    losses: str = ""
    of: int | None = None

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "reference":
            self.report(event["done"], event["of"], f"reference log-probabilities of {event['part']} rows")
        elif event["event"] == "begin":
            self.of = event["steps"]
            at = event["resumed_at"]
            self.report(at or 0, self.of, "training" if at is None else f"going on from the checkpoint of step {at:,}")
        elif event["event"] == "log":
            self.of = event["of"]
            told = {name: event[name] for name in ("loss", "eval_loss") if name in event}
            if told:
                self.losses = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in told.items())
            self.report(event["step"], self.of, self.losses)


def _failure(last: Mapping[str, Any], frame: pl.LazyFrame, place: Path) -> str:
    """Return what went wrong in the training process, and what to do."""
    step = last.get("last_checkpoint")
    kept = "no checkpoint was saved yet" if step is None else f"the checkpoint of step {step:,} is kept in {place}"
    if last["kind"] == "not_finite":
        return (
            f"training stopped: {last['what']}, in a batch of {_batch(frame, list(dict.fromkeys(last['rows'])))}. Write a smaller "
            f"learning_rate, or look at these rows; {kept}"
        )
    if last["kind"] == "checkpoint":
        free = last["free"] / (1 << 20)
        return (
            f"a checkpoint could not be written: {last['what']} ({free:,.0f} MiB are free in {place}); {kept}. Make room and run the same "
            "command again: it goes on from there"
        )
    if last["kind"] == "settings":
        return f"TRL refuses the settings: {last['what']}"
    return f"training failed: {last['what']}; {kept}. The log is {place / 'log.txt'}"


def _batch(frame: pl.LazyFrame, keys: Sequence[str]) -> str:
    """Return the rows of a batch in words, with the pairs that they were made of."""
    told = f"the rows {', '.join(keys)}"
    if "pair_id" not in frame.collect_schema():
        return told
    pairs = frame.filter(pl.col(KEY).is_in(list(keys))).select("pair_id").unique().sort("pair_id").collect()["pair_id"]
    return f"{told} of the pairs {', '.join(pairs)}"


def _made(params: Tailor, model: ResolvedModel) -> dict[str, Any]:
    """Return what was made, of which model."""
    return {
        "form": _makes(params),
        "base": base_name(model),
        "base_revision": model.revision,
        "base_digest": model.identity.get("digest"),
        "from_adapter": model.identity.get("adapter"),
    }


def _facts(
    params: Tailor,
    model: ResolvedModel,
    job: Mapping[str, Any],
    last: Mapping[str, Any],
    counts: Mapping[str, int],
    told: Mapping[str, Any],
    digest: str,
    folder: Path,
) -> dict[str, Any]:
    """Return what is kept with the model: what it was made of and how, and what was measured on the way."""
    config = read_json_file(folder / "adapter_config.json")
    history = [entry for entry in last["history"] if {"loss", "eval_loss"} & entry.keys()]
    return {
        "made": {
            **_made(params, model),
            **({"rank": config["r"], "alpha": config["lora_alpha"]} if config else {}),
        },
        "rows": {**counts, "digest": digest},
        "cut": dict(told),
        "settings": {
            "method": params.method,
            "tuning": params.tuning,
            "trl": job["trl"],
            "lora": job["lora"],
            "seed": params.seed,
        },
        "metrics": last["metrics"],
        "curve": _thinned(history),
        "timing": {**last.get("timing", {}), "reference": last.get("reference")},
    }


def _thinned(history: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the points of a curve: all evaluations, and at most so many of the others."""
    names = (
        *("step", "epoch", "loss", "eval_loss", "learning_rate", "grad_norm"),
        *("rewards/accuracies", "rewards/margins", "eval_rewards/accuracies", "eval_rewards/margins"),
    )
    every = max(1, len(history) // _CURVE)
    kept = [entry for number, entry in enumerate(history) if number % every == 0 or "eval_loss" in entry]
    return [{name: entry[name] for name in names if name in entry} for entry in kept]
