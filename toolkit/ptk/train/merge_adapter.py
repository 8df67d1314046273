"""Merges a model's adapter into its weights: a whole model, for what takes no adapters."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from ptk.errors import PtkError
from ptk.llm.backend import ResolvedModel
from ptk.operator import MadeFiles, asset_operator
from ptk.params import MODEL, Params
from ptk.train.tailor import base_name, job_folder
from ptk.train.training_process import run_training

__all__ = ["MergeAdapter", "merge_adapter"]


class MergeAdapter(Params):
    """Settings of merge_adapter."""

    model: Annotated[str, MODEL] = Field(description="Name of the model, whose entry names an adapter.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="Type of the weights that are written.")


def _makes(params: MergeAdapter) -> MadeFiles:
    return "model"


@asset_operator(makes=_makes, version=1)
def merge_adapter(frame: pl.LazyFrame, params: MergeAdapter, folder: Path, model: ResolvedModel) -> Mapping[str, Any]:
    """Merge a model's adapter into its weights and leave the whole model."""
    if model.path is None or model.adapter is None:
        raise PtkError(f"model '{model.reference}' has no adapter to merge; name one beside it, as in adapter: step:dpo")
    job = {
        "method": "merge",
        "model": str(model.path),
        "adapter": str(model.adapter),
        "base_name": base_name(model),
        "model_init": {"dtype": params.dtype},
        "quantize": None,
    }
    place = job_folder({"merge": params.dtype, "model": dict(model.identity)})
    last = run_training(place, job, None, lambda event: None)
    if last["event"] == "failed":
        raise PtkError(
            f"the adapter of '{model.reference}' could not be merged: {last['what']}. The log is {place / 'log.txt'}"
        )
    for file in (place / "made").iterdir():
        shutil.move(file, folder / file.name)
    shutil.rmtree(place, ignore_errors=True)
    identity = model.identity
    base = {"base": base_name(model), "base_revision": model.revision, "base_digest": identity.get("digest")}
    return {"made": {"form": "model", **base, "from_adapter": identity.get("adapter")}}
