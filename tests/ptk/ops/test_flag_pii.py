from __future__ import annotations

import base64
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ptk.ops.flag_pii import _KINDS, FlagPii, _detectors, _suspicious, find_pii, flag_pii
from ptk.stages import run_stages

HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("=")
BODY = base64.urlsafe_b64encode(b'{"sub":"1234567890"}').decode().rstrip("=")
JWT = f"{HEADER}.{BODY}.c2lnbmF0dXJlLXNpZ25hdHVyZQ"
KEY_BLOCK = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\nabc=\n-----END RSA PRIVATE KEY-----"

# Put together here, so that no scanner of this repository takes them for keys that leaked.
SECRETS = {
    "aws": "AKIA" + "IOSFODNN7EXAMPLE",
    "aws_secret": "aws_secret_key = '" + "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" + "'",
    "github": "ghp_" + "a1B2" * 9,
    "gitlab": "glpat-" + "a1B2" * 5,
    "slack": "xoxb-" + "1-a",
    "slack_hook": "https://hooks.slack.com/services/" + "T1/B1/x",
    "stripe": "sk_live_" + "a1B2" * 6,
    "telegram": "110201543:" + "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1",
    "twilio": "AC" + "a1" * 16,
    "sendgrid": "SG." + "a" * 22 + "." + "b" * 43,
    "pypi": "pypi-AgEIcHlwaS5vcmc" + "a1" * 40,
    "npm": "//registry.npmjs.org/:_authToken=" + "npm_xyz",
    "openai": "sk-" + "a1" * 10 + "T3BlbkFJ" + "b2" * 10,
    "mailchimp": "a1" * 16 + "-us12",
    "discord": "M" + "a" * 23 + ".abcdef." + "b" * 27,
    "azure": "AccountKey=" + "a1" * 44,
    "square": "sq0csp-" + "a" * 43,
    "jwt": JWT,
    "key": KEY_BLOCK,
    "putty": "PuTTY-User-Key-File-2: ssh-rsa",
}


def masked(text: str, *kinds: str, region: str | None = None) -> str:
    frame = pl.DataFrame({"_key": ["a"], "prompt": [text]})
    params = FlagPii(columns=("prompt",), kinds=kinds or _KINDS, region=region, action="mask")  # type: ignore[arg-type]
    return str(run_stages(flag_pii, [frame.lazy()], params).collect()["prompt"].item())


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("Write to jo.smith+x@mail.example.org.", "Write to [EMAIL]."),
        ("<møller@købmand.dk>, not @handle or a@b", "<[EMAIL]>, not @handle or a@b"),
        ("call +1 415 555 2671 or +44 20 7946 0958", "call [PHONE] or [PHONE]"),
        ("call ＋49 30 901820", "call [PHONE]"),
        ("card 4111 1111 1111 1111, 5500-0000-0000-0004", "card [CARD], [CARD]"),
        ("no card 4111 1111 1111 1112, nor 1234 5678 9012 3452", "no card 4111 1111 1111 1112, nor 1234 5678 9012 3452"),
        ("DE89 3704 0044 0532 0130 00 OK", "[IBAN] OK"),
        ("GB82WEST12345698765432 and GB82WEST12345698765433", "[IBAN] and GB82WEST12345698765433"),
        ("from 8.8.8.8 and 2001:4860:4860::8888", "from [IP] and [IP]"),
        (
            "at 127.0.0.1, 192.168.0.7, 999.1.1.1, 12:30:45, std::vector, a::",
            "at 127.0.0.1, 192.168.0.7, 999.1.1.1, 12:30:45, std::vector, a::",
        ),
        ("https://user:hunter2@host.com/x", "https://user:[SECRET]@host.com/x"),
        ("nothing here, 3 + 4 = 7", "nothing here, 3 + 4 = 7"),
    ],
)
def test_what_is_found_and_what_is_not(text: str, without: str) -> None:
    assert masked(text) == without


@pytest.mark.parametrize("name", SECRETS)
def test_a_key_is_masked_as_a_whole(name: str) -> None:
    end = "" if name in ("putty", "npm") else ", see"  # these two reach to the end of the text or the line
    assert masked(f"it is {SECRETS[name]}{end}") == f"it is [SECRET]{end}"


def test_there_is_a_key_here_for_every_detector() -> None:
    for detector in _detectors():
        lines = [line for secret in [*SECRETS.values(), "https://user:hunter2@host.com"] for line in secret.splitlines()]
        assert any(pattern.search(line) for pattern in detector.denylist for line in lines), detector


def test_a_private_key_that_does_not_end_hides_the_rest() -> None:
    assert masked(KEY_BLOCK.rpartition("\n")[0] + "\nmore") == "[SECRET]"


def test_national_phone_numbers_are_found_where_a_region_is_given() -> None:
    assert masked("call (415) 555-2671") == "call (415) 555-2671"
    assert masked("call (415) 555-2671", region="US") == "call [PHONE]"


PIECES = [
    *SECRETS.values(),
    "jo@example.org",
    "+1 415 555 2671",
    "(415) 555-2671",
    "030 901820",
    "4111 1111 1111 1111",
    "DE89370400440532013000",
    "8.8.8.8",
    "2001:4860:4860::8888",
    " ",
    "\n",
    "word",
    "12",
    ".",
    "+",
]


@given(st.lists(st.sampled_from(PIECES), max_size=6), st.sampled_from([None, "US", "DE"]))
def test_the_quick_scan_passes_over_nothing_that_a_close_look_finds(pieces: list[str], region: str | None) -> None:
    text = "".join(pieces)
    for kind in _KINDS:
        if find_pii(text, [kind], region):
            assert pl.select(pl.lit(text).str.contains(_suspicious(kind, region))).item(), kind


@given(st.lists(st.sampled_from(PIECES), max_size=6))
def test_spans_are_in_order_and_do_not_overlap(pieces: list[str]) -> None:
    text = "".join(pieces)
    spans = find_pii(text, _KINDS, "US")
    assert all(0 <= start < end <= len(text) for start, end, _ in spans)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@given(st.text(max_size=200), st.sampled_from([None, "US"]))
def test_any_text_can_be_looked_at(text: str, region: str | None) -> None:
    find_pii(text, _KINDS, region)


@pytest.mark.parametrize("before", [0, 3_990, 5_980, 5_999, 6_001, 13_000])
def test_keys_are_found_wherever_they_stand_in_a_long_line(before: int) -> None:
    text = "x " * (before // 2) + SECRETS["github"] + " y" * 4_000
    assert masked(text) == "x " * (before // 2) + "[SECRET]" + " y" * 4_000


def turns(*contents: str | None) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content} for content in contents]


FRAME = pl.DataFrame(
    {
        "_key": list("abcde"),
        "prompt": [turns("hi", "I am jo@example.org"), turns("8.8.8.8?"), turns(None, "x"), [], None],
        "chosen": ["+1 415 555 2671", "jo@example.org or bo@example.org", "", None, "fine"],
    },
    schema_overrides={"prompt": pl.List(pl.Struct({"role": pl.String, "content": pl.String}))},
)


def decided(frame: pl.DataFrame = FRAME, **settings: Any) -> pl.DataFrame:
    params = FlagPii(columns=("prompt", "chosen"), **settings)
    return run_stages(flag_pii, [frame.lazy()], params).collect(engine="streaming")


def test_rows_are_flagged_with_the_kinds_found_in_any_column() -> None:
    assert decided().to_dict(as_series=False) == {
        "_key": list("abcde"),
        "pii": [["email", "phone"], ["email", "ip"], [], [], []],
    }


def test_kinds_that_are_not_asked_for_are_not_looked_for() -> None:
    assert decided(kinds=("ip",))["pii"].to_list() == [[], ["ip"], [], [], []]


def test_rows_can_be_rejected() -> None:
    decision = decided(action="reject", kinds=("phone", "email"))
    assert decision["_reject"].to_list() == ["pii", "pii", None, None, None]
    assert decision["_detail"].to_list() == ["holds email, phone", "holds email", None, None, None]


def test_masked_columns_keep_their_turns_and_all_that_is_not_personal() -> None:
    decision = decided(action="mask")
    assert decision["prompt"].to_list() == [turns("hi", "I am [EMAIL]"), turns("[IP]?"), turns(None, "x"), [], None]
    assert decision["chosen"].to_list() == ["[PHONE]", "[EMAIL] or [EMAIL]", "", None, "fine"]
    assert decision["pii"].to_list() == decided()["pii"].to_list()
    assert decision["prompt"].dtype == FRAME["prompt"].dtype


def test_categories_are_looked_at_as_text() -> None:
    frame = pl.DataFrame({"_key": ["a"], "chosen": ["to jo@example.org"]}, schema_overrides={"chosen": pl.Categorical})
    decision = run_stages(flag_pii, [frame.lazy()], FlagPii(columns=("chosen",), action="mask")).collect()
    assert decision["chosen"].to_list() == ["to [EMAIL]"]


@pytest.mark.parametrize("action", ["flag", "reject", "mask"])
def test_each_row_is_looked_at_alone(action: str) -> None:
    alone = pl.concat(decided(FRAME[row], action=action) for row in range(FRAME.height))
    assert alone.equals(decided(action=action))
    assert decided(FRAME.clear(), action=action).schema == alone.schema


@pytest.mark.parametrize(
    "settings", [{"region": "XX"}, {"region": "us"}, {"kinds": ()}, {"kinds": ("passport",)}, {"columns": ()}]
)
def test_settings_that_can_not_be_right_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FlagPii(**settings)
