"""Flags, rejects or masks personal data in texts: addresses of mail, phone numbers, numbers of cards and accounts, keys."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field, field_validator

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params
from ptk.text import is_turns, texts_of

__all__ = ["FlagPii", "find_pii", "flag_pii"]

Kind = Literal["email", "phone", "card", "iban", "ip", "secret"]
Span = tuple[int, int, str]

_KINDS: tuple[Kind, ...] = ("secret", "email", "iban", "card", "ip", "phone")
"""All kinds; where two overlap in a text, the former counts."""


class FlagPii(Params):
    """Settings of flag_pii."""

    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("prompt", "chosen", "rejected"), min_length=1, description="Columns of text or turns to look in."
    )
    kinds: tuple[Kind, ...] = Field(
        ("email", "phone", "card", "iban", "ip", "secret"), min_length=1, description="What to look for."
    )
    region: str | None = Field(
        None, description="Country whose phone numbers count without +, such as US; none where left out."
    )
    action: Literal["flag", "reject", "mask"] = Field(
        "flag", description="Whether rows are flagged only, rejected, or masked too."
    )

    @field_validator("region")
    @classmethod
    def _known(cls, region: str | None) -> str | None:
        if region is not None:
            import phonenumbers

            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ValueError(f"'{region}' is no region with phone numbers; write two capitals, such as US or DE")
        return region


@frame_operator(scope="rows", flags="pii", version=1)
def flag_pii(frame: pl.LazyFrame, params: FlagPii) -> pl.LazyFrame:
    """Flag rows whose texts hold personal data, or reject them, or mask it; the column `pii` says what was found."""
    schema = frame.collect_schema()
    kinds = tuple(kind for kind in _KINDS if kind in params.kinds)
    suspicion = "|".join(_suspicious(kind, params.region) for kind in kinds)
    found, masked = [], {}
    for column, text in texts_of(frame, params.columns).items():
        whole, dtype = (pl.col(column), schema[column]) if is_turns(schema[column]) else (text, pl.String())
        # Few texts are looked at closely, one after the other; the rest passes a scan of all texts at once.
        suspect = pl.when(text.str.contains(suspicion)).then(whole)
        looked = suspect.map_batches(_looking(dtype, kinds, params), return_dtype=_looked(dtype), is_elementwise=True)
        found.append(looked.struct.field("kinds"))
        if params.action == "mask":
            masked[column] = pl.coalesce(looked.struct.field("masked"), whole)
    pii = pl.concat_list(item.fill_null(pl.lit([], pl.List(pl.String))) for item in found).list.unique().list.sort()
    flagged = frame.select(KEY, **masked, pii=pii)
    if params.action != "reject":
        return flagged
    rejected = pl.col("pii").list.len() > 0
    return flagged.with_columns(
        _reject=pl.when(rejected).then(pl.lit("pii")),
        _detail=pl.when(rejected).then(pl.concat_str(pl.lit("holds "), pl.col("pii").list.join(", "))),
    )


def find_pii(text: str, kinds: Iterable[str], region: str | None = None) -> list[Span]:
    """Return (start, end, kind) of personal data in a text, in their order; none overlaps another."""
    found: list[Span] = []
    taken = bytearray(len(text))
    for kind in _KINDS:
        if kind in kinds:
            for start, end in _finders()[kind](text, region):
                if not any(taken[start:end]):
                    taken[start:end] = b"\1" * (end - start)
                    found.append((start, end, kind))
    return sorted(found)


def _masked(text: str, spans: Sequence[Span]) -> str:
    for start, end, kind in reversed(spans):
        text = f"{text[:start]}[{kind.upper()}]{text[end:]}"
    return text


def _looked(dtype: pl.DataType) -> pl.Struct:
    return pl.Struct({"kinds": pl.List(pl.String), "masked": dtype})


def _looking(dtype: pl.DataType, kinds: Sequence[str], params: FlagPii) -> Callable[[pl.Series], pl.Series]:
    """Return a function that looks at texts or lists of turns, one after the other; nulls are not looked at."""
    turns, mask = is_turns(dtype), params.action == "mask"

    def text(value: str) -> tuple[list[str], str]:
        spans = find_pii(value, kinds, params.region)
        return [kind for _, _, kind in spans], _masked(value, spans) if mask else value

    def list_of_turns(value: list[dict[str, Any] | None]) -> tuple[list[str], list[dict[str, Any] | None]]:
        found: list[str] = []
        seen: list[dict[str, Any] | None] = []
        for turn in value:
            if turn is None or turn["content"] is None:
                seen.append(turn)
                continue
            in_turn, content = text(turn["content"])
            found += in_turn
            seen.append({**turn, "content": content})
        return found, seen

    def look(series: pl.Series) -> pl.Series:
        rows: list[dict[str, Any] | None] = [None] * len(series)
        for row in series.is_not_null().arg_true().to_list():
            value = series[row]
            found, seen = list_of_turns(value.to_list()) if turns else text(str(value))
            rows[row] = {"kinds": found, "masked": seen if mask and found else None}
        return pl.Series(series.name, rows, dtype=_looked(dtype))

    return look


def _suspicious(kind: str, region: str | None) -> str:
    """Return a pattern, for Polars, that every text with something of that kind matches; most other texts do not."""
    if kind == "phone":
        # Without a region a number begins with +; the shortest numbers have five digits.
        return r"[+＋][^\p{L}\p{Nd}]{0,10}\p{Nd}" if region is None else r"\p{Nd}(?:[^\p{L}\p{Nd}]{0,5}\p{Nd}){4}"
    return {
        "secret": _HINT_OF_SECRET.pattern,
        "email": r"@",
        "iban": r"[A-Z]{2}[0-9]{2} ?[A-Z0-9]{4}",
        "card": r"[0-9](?:[ -]?[0-9]){12}",
        "ip": r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.|(?:[0-9A-Fa-f]{0,4}:){2}",
    }[kind]


# Mail, cards, accounts and addresses of the network are found by patterns of our own: the libraries there are judge a string that is
# one of these already, and none finds them in a text. What a pattern finds is then checked: sums of digits, lengths, ranges.

_EMAIL = re.compile(
    r"(?<![\w.!#$%&'*+/=?^`{|}~@-])[\w!#$%&'*+/=?^`{|}~-]{1,64}(?:\.[\w!#$%&'*+/=?^`{|}~-]{1,64}){0,8}"
    r"@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}[^\W\d_]{2,24}(?![\w@-])"
)
_CARD = re.compile(r"(?<![\w.+-])[0-9](?:[ -]?[0-9]){11,18}(?![\w-])")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]){11,30}")
_IPV4 = re.compile(r"(?<![\w.-])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w-]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:.])")
_LONG_LINE, _OVERLAP = 6_000, 2_000
_HINT_OF_SECRET = re.compile(
    r"[A-Za-z0-9_+/=-]{20}|://[^\s:]+:[^\s@]+@|(?i:xox[abposr]-|hooks\.slack)|eyJ|_authToken|PRIVATE KEY"
)
_REST_OF_TOKEN = re.compile(r"[A-Za-z0-9_.+/=-]+")
_KEY_BLOCK_END = re.compile(r"END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-*")

_IBAN_LENGTHS = {
    **dict.fromkeys(("NO",), 15),
    **dict.fromkeys(("BE",), 16),
    **dict.fromkeys(("DK", "FI", "FO", "GL", "NL"), 18),
    **dict.fromkeys(("MK", "SI"), 19),
    **dict.fromkeys(("AT", "BA", "EE", "KZ", "LT", "LU", "XK"), 20),
    **dict.fromkeys(("CH", "HR", "LI", "LV"), 21),
    **dict.fromkeys(("BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"), 22),
    **dict.fromkeys(("AE", "GI", "IL", "IQ", "TL"), 23),
    **dict.fromkeys(("AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG"), 24),
    **dict.fromkeys(("PT", "ST"), 25),
    **dict.fromkeys(("IS", "TR"), 26),
    **dict.fromkeys(("FR", "GR", "IT", "MC", "MR", "SM"), 27),
    **dict.fromkeys(("AL", "AZ", "BY", "CY", "DO", "EG", "GT", "HU", "LB", "PL", "SV"), 28),
    **dict.fromkeys(("BR", "PS", "QA", "UA"), 29),
    **dict.fromkeys(("JO", "KW", "MU"), 30),
    **dict.fromkeys(("MT", "SC"), 31),
    **dict.fromkeys(("LC",), 32),
}


def _emails(text: str, _region: str | None) -> Iterator[tuple[int, int]]:
    return (match.span() for match in _EMAIL.finditer(text))


def _cards(text: str, _region: str | None) -> Iterator[tuple[int, int]]:
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ -]", "", match.group())
        if _is_card(digits):
            yield match.span()


def _is_card(digits: str) -> bool:
    """Return whether an issuer gives out numbers of that beginning and length, and the check digit is right."""
    two, three, four, length = int(digits[:2]), int(digits[:3]), int(digits[:4]), len(digits)
    issued = (
        (digits[0] == "4" and length in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and length == 16)
        or (two in (34, 37) and length == 15)
        or ((300 <= three <= 305 or two in (36, 38, 39)) and length in (14, 16))
        or ((two == 65 or four == 6011 or 644 <= three <= 649 or two == 62 or 3528 <= four <= 3589) and 16 <= length <= 19)
        or (two in (50, 56, 57, 58, 63, 67) and 12 <= length <= 19)
    )
    return issued and _luhn(digits) and len(set(digits)) > 1


def _luhn(digits: str) -> bool:
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(int(digit) for digit in digits[::-2])) % 10 == 0


def _ibans(text: str, _region: str | None) -> Iterator[tuple[int, int]]:
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTHS.get(match.group()[:2])
        if length is None:
            continue
        characters, end = "", match.start()
        for at in range(match.start(), match.end()):
            if text[at] != " ":
                characters += text[at]
                end = at + 1
            if len(characters) == length:
                break
        whole = len(characters) == length and not text[end : end + 1].isalnum()
        if whole and int("".join(str(int(item, 36)) for item in characters[4:] + characters[:4])) % 97 == 1:
            yield match.start(), end


def _addresses(text: str, _region: str | None) -> Iterator[tuple[int, int]]:
    for pattern in (_IPV4, _IPV6):
        for match in pattern.finditer(text):
            try:
                address = ipaddress.ip_address(match.group())
            except ValueError:
                continue
            # Of the sixth version public ones begin with 001, so that `a::` in a program is none.
            if address.is_global and not address.is_multicast and (address.version == 4 or int(address) >> 125 == 1):
                yield match.span()


def _phones(text: str, region: str | None) -> Iterator[tuple[int, int]]:
    from phonenumbers import PhoneNumberMatcher

    for match in PhoneNumberMatcher(text, region):
        yield match.start, match.end


def _secrets(text: str, _region: str | None) -> Iterator[tuple[int, int]]:
    for at, line in _lines(text):
        for detector in _detectors() if _HINT_OF_SECRET.search(line) else ():
            judged = getattr(detector, "is_formally_valid", None)
            for pattern in detector.denylist:
                # Not the detector's own list of what it found: it gives parts of some keys, and no places.
                for match in pattern.finditer(line):
                    if judged is None or judged(match.group()):
                        yield _whole_secret(text, at, match)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a text and where they begin; long ones in pieces, since the detectors take the square of their length."""
    at = 0
    for line in text.splitlines(keepends=True):
        for start in range(0, max(1, len(line) - _OVERLAP), _LONG_LINE - _OVERLAP):
            yield at + start, line[start : start + _LONG_LINE]
        at += len(line)


def _whole_secret(text: str, at: int, match: re.Match[str]) -> tuple[int, int]:
    """Return where all of a secret stands of which `match`, in the line that begins at `at`, may be the beginning."""
    if match.group().startswith("://"):
        return at + match.start(1), at + match.end(1)  # the password of an address; its host is nobody's secret
    start, end = at + match.start(), at + match.end()
    if match.group().startswith("PuTTY"):
        return start, len(text)
    if match.group().startswith("BEGIN "):
        start -= len(text[:start]) - len(text[:start].rstrip("-"))
        closing = _KEY_BLOCK_END.search(text, end)
        return start, closing.end() if closing else len(text)
    rest = _REST_OF_TOKEN.match(text, end)
    return start, end + len(rest.group().rstrip(".")) if rest else end


@cache
def _detectors() -> tuple[Any, ...]:
    """Return the detectors of keys that have a form of their own; those that guess by entropy or by words nearby are left out."""
    from detect_secrets.plugins import (
        aws,
        azure_storage_key,
        basic_auth,
        discord,
        github_token,
        gitlab_token,
        jwt,
        mailchimp,
        npm,
        openai,
        private_key,
        pypi_token,
        sendgrid,
        slack,
        square_oauth,
        stripe,
        telegram_token,
        twilio,
    )

    return (
        private_key.PrivateKeyDetector(),
        aws.AWSKeyDetector(),
        azure_storage_key.AzureStorageKeyDetector(),
        basic_auth.BasicAuthDetector(),
        discord.DiscordBotTokenDetector(),
        github_token.GitHubTokenDetector(),
        gitlab_token.GitLabTokenDetector(),
        jwt.JwtTokenDetector(),
        mailchimp.MailchimpDetector(),
        npm.NpmDetector(),
        openai.OpenAIDetector(),
        pypi_token.PypiTokenDetector(),
        sendgrid.SendGridDetector(),
        slack.SlackDetector(),
        square_oauth.SquareOAuthDetector(),
        stripe.StripeDetector(),
        telegram_token.TelegramBotTokenDetector(),
        twilio.TwilioKeyDetector(),
    )


@cache
def _finders() -> dict[str, Callable[[str, str | None], Iterator[tuple[int, int]]]]:
    return {"secret": _secrets, "email": _emails, "iban": _ibans, "card": _cards, "ip": _addresses, "phone": _phones}
