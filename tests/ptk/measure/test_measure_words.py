from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from ptk.measure.measure_words import compared_part, lemma, log_odds, measure_words

from .tables import rows, table

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "persona_pairs.jsonl"

THOROUGH = {"comprehensive", "detailed", "detail-oriented", "thorough", "nuance", "multi-faceted", "in-depth", "complexity"}
BRIEF = {"concise", "straightforward", "direct", "brief", "simple", "quick"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("The user is calm and prefers facts rather than praise.", "the user is calm and prefers facts"),
        ("Prefers depth over speed, versus width", "prefers depth"),
        ("They like an overall view compared to parts", "they like an overall view"),
        ("Likes over-the-top prose instead of plain", "likes over-the-top prose"),
        ("One sentence. Another over here", "one sentence."),
        ('Costs 3.5 euro. "Quoted" next', "costs 3.5 euro."),
        ("First line\nsecond line", "first line"),
        ("", ""),
        (None, None),
    ],
)
def test_what_the_user_does_not_want_is_left_out(text: str | None, kept: str | None) -> None:
    assert pl.select(compared_part(pl.lit(text, pl.String))).item() == kept


def test_words_are_counted_by_lemma_but_those_with_a_hyphen() -> None:
    assert [lemma(word, "en") for word in ("prefers", "explanations", "detail-oriented", "user's")] == [
        "prefer",
        "explanation",
        "detail-oriented",
        "user",
    ]
    assert lemma("prefers", None) == "prefers"


WORDS = ["calm", "quick", "deep", "plain"]
persona = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(persona, persona, st.sampled_from("xy")), min_size=1, max_size=20), st.integers(1, 6))
def test_salience_and_log_odds_are_those_of_the_slow_way(pairs: list[tuple[str, str, str]], least: int) -> None:
    frame = pl.DataFrame(pairs, schema=["chosen_persona", "rejected_persona", "domain"], orient="row")
    found = rows(measure_words, frame, by=["domain"], least=least, prior=7.0, top=3)
    for suffix, some in [("", pairs)] + [(f"/domain={d}", [pair for pair in pairs if pair[2] == d]) for d in "xy"]:
        sides = {
            side: Counter(word for pair in some for word in pair[at].split()) for at, side in enumerate(("chosen", "rejected"))
        }
        both = sides["chosen"] + sides["rejected"]
        kept = sorted(word for word in both if both[word] >= least)
        whole = {side: sum(counts.values()) for side, counts in sides.items()}
        z, p = {}, {}
        for word in kept:
            prior = 7.0 * both[word] / sum(both.values())
            logits, variance = [], 0.0
            for side in sides:
                y = sides[side][word] + prior
                logits.append(math.log(y / (whole[side] + 7.0 - y)) if whole[side] + 7.0 - y > 0 else math.inf)
                variance += 1 / y
            z[word] = (logits[0] - logits[1]) / math.sqrt(variance) if math.inf not in logits else 0.0
            p[word] = 2 * stats.norm.sf(abs(z[word]))
        for side, other in (("chosen", 1), ("rejected", -1)):
            order = sorted(kept, key=lambda word: (-sides[side][word] / both[word], -both[word], word))[:3]
            got = {
                line["word"]: line
                for name, line in found.items()
                if name.startswith(f"salience/{side}%2F") and line["domain"] == (suffix[-1:] or None)
            }
            assert sorted(got, key=lambda word: got[word]["rank"]) == order
            for word in order:
                share = sides[side][word] / both[word]
                assert (got[word]["value"], got[word]["n"]) == (pytest.approx(share, abs=1e-9), both[word])
                low, high = proportion_confint(sides[side][word], both[word], method="wilson")
                assert (got[word]["low"], got[word]["high"]) == pytest.approx((low, high), abs=1e-9)
            if len(both) == 1:
                continue
            odds = {
                line["word"]: line
                for name, line in found.items()
                if name.startswith(f"log_odds/{side}%2F") and line["domain"] == (suffix[-1:] or None)
            }
            corrected = (
                dict(zip(kept, multipletests([p[word] for word in kept], method="fdr_bh")[1], strict=True)) if kept else {}
            )
            assert set(odds) <= {word for word in kept if other * z[word] > -1e-9}
            for word, line in odds.items():
                assert line["value"] / line["standard_error"] == pytest.approx(other * z[word], abs=1e-9)
                assert (line["p_value"], line["p_adjusted"]) == pytest.approx((p[word], corrected[word]), abs=1e-9)


def test_a_strong_prior_shrinks_and_none_is_the_plain_log_odds_ratio() -> None:
    chosen, rejected = np.array([30, 70]), np.array([10, 90])
    plain, error = log_odds(chosen, rejected, 1e-12)
    assert plain[0] == pytest.approx(math.log((30 / 70) / (10 / 90)), abs=1e-9)
    assert error[0] == pytest.approx(math.sqrt(1 / 30 + 1 / 10), abs=1e-9)
    assert 0 < log_odds(chosen, rejected, 1e4)[0][0] < 0.1 * plain[0]


def test_rare_words_and_empty_texts_are_left_out() -> None:
    frame = pl.DataFrame({"chosen_persona": ["calm calm", None, ""], "rejected_persona": ["deep", "calm", "over all"]})
    assert {line["word"] for line in rows(measure_words, frame, least=2).values()} == {"calm"}
    assert table(measure_words, frame).height == 0
    assert table(measure_words, frame.clear()).height == 0


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"language": "xx"}, "no lemmas for the language 'xx'"),
        ({"rejected_persona": "chosen_persona"}, "both sides are the same column"),
        ({"by": ["word"]}, "'word' can't be a column to group by"),
    ],
)
def test_settings_without_sense_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=re.escape(what)):
        table(measure_words, pl.DataFrame({"chosen_persona": ["a"], "rejected_persona": ["b"], "word": ["c"]}), **options)


@pytest.mark.skipif(not DATA.exists(), reason="the corpora are not here")
@pytest.mark.parametrize("measure", ["salience", "log_odds"])
def test_chosen_personas_of_a_real_corpus_want_thoroughness_and_rejected_ones_brevity(measure: str) -> None:
    found = table(measure_words, pl.read_ndjson(DATA), by=["domain"]).filter(
        pl.col("measure") == measure, pl.col("domain") == "BeaverTails"
    )
    top = {side: set(found.filter(pl.col("side") == side)["word"]) for side in ("chosen", "rejected")}
    assert len(top["chosen"]) == len(top["rejected"]) == 10
    assert len(top["chosen"] & THOROUGH) >= 3 and not top["chosen"] & BRIEF
    assert len(top["rejected"] & BRIEF) >= 3 and not top["rejected"] & THOROUGH
