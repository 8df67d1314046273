from __future__ import annotations

from pathlib import Path

import pytest

from ptk.places import Place
from ptk.rates import Rate, note_rate, seen_rates


def noted(folder: Place, **changes: object) -> None:
    given = {"model": "m", "kind": "written", "machine": "here", "requests": 10, "starting": 0.0, **changes}
    note_rate(folder, Rate.model_validate(given))


def test_two_different_mixes_of_tokens_tell_what_each_kind_costs(tmp_path: Path) -> None:
    for prompt, output in ((9_000, 100), (1_000, 2_000), (40_000, 50)):
        noted(tmp_path, computed_tokens=prompt, output_tokens=output, seconds=prompt * 0.001 + output * 0.01, starting=20.0)
    seen = seen_rates(tmp_path, "m", "written", "here")
    assert seen is not None
    assert (seen.runs, seen.starting) == (3, 20.0)
    assert seen.seconds(10_000, 1_000) == pytest.approx(20, rel=0.2)  # a weak guess of what few runs can't tell is mixed in


def test_what_was_seen_elsewhere_tells_nothing(tmp_path: Path) -> None:
    noted(tmp_path, computed_tokens=100, output_tokens=10, seconds=1.0)
    assert seen_rates(tmp_path, "m", "written", "here") is not None
    for model, kind, machine in (("other", "written", "here"), ("m", "scored", "here"), ("m", "written", "there")):
        assert seen_rates(tmp_path, model, kind, machine) is None  # type: ignore[arg-type]


def test_a_broken_note_is_passed_over(tmp_path: Path) -> None:
    noted(tmp_path, computed_tokens=100, output_tokens=10, seconds=1.0)
    (tmp_path / "m" / "written-99999999999999999999-x.json").write_text("{")
    seen = seen_rates(tmp_path, "m", "written", "here")
    assert seen is not None
    assert seen.runs == 1
