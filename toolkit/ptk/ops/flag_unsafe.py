"""Flags rows that labels, scores or words show to be unsafe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import polars as pl
from polars.exceptions import ColumnNotFoundError
from pydantic import Field, PrivateAttr, field_validator, model_validator

from ptk.operator import KEY, frame_operator
from ptk.params import COLUMN, Params, SourceFiles, suggestion
from ptk.text import texts_of

__all__ = ["FlagUnsafe", "flag_unsafe"]

Label = bool | int | str | None

_AT_ONCE = 500
"""Words in one regular expression: longer ones pass the limit of what may be compiled."""
_UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"


class FlagUnsafe(Params):
    """Settings of flag_unsafe."""

    labels: dict[str, Label | tuple[Label, ...]] = Field({}, description="Values that mean unsafe, by the column of the label.")
    scores: dict[str, float] = Field({}, description="The least score that means unsafe, by the column of the score.")
    words: tuple[str, ...] = Field((), description="Words and phrases that mean unsafe, found whole and in any case.")
    word_files: SourceFiles | None = Field(None, description="Text files of such words and phrases, one a line.")
    columns: Annotated[tuple[str, ...], COLUMN] = Field(
        ("prompt", "chosen", "rejected"), min_length=1, description="Columns of text or turns to look for the words in."
    )
    action: Literal["flag", "reject"] = Field("flag", description="Whether rows are flagged only, or rejected too.")
    _words: tuple[str, ...] = PrivateAttr(())

    @field_validator("labels", mode="before")
    @classmethod
    def _plain(cls, labels: Any) -> Any:
        if not isinstance(labels, dict):
            return labels
        written = {column: tuple(values) if isinstance(values, list) else values for column, values in labels.items()}
        for column, values in written.items():
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and not isinstance(value, (bool, int, str)):
                    raise ValueError(f"a label of '{column}' is text, a whole number, true, false or null, not {value!r}")
        return written

    @model_validator(mode="after")
    def _read(self) -> FlagUnsafe:
        if not (self.labels or self.scores or self.words or self.word_files):
            raise ValueError("nothing says what is unsafe: give `labels`, `scores`, `words` or `word_files`")
        for column in (*self.labels, *self.scores):
            if column in self.labels and column in self.scores:
                raise ValueError(f"'{column}' is among the `labels` and among the `scores`")
        for column, values in self.labels.items():
            if values == ():
                raise ValueError(f"no value of '{column}' means unsafe; name one")
        words = list(self.words)
        for path in self.word_files.paths if self.word_files else ():
            try:
                words += path.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ValueError(f"{path.name} can't be read as UTF-8 text: {error}") from error
        normal = _normal(pl.lit(pl.Series(words, dtype=pl.String)))
        self._words = tuple(pl.select(normal.alias("word")).filter(pl.col("word") != "")["word"].unique().sort())
        if not self._words and (self.words or self.word_files):
            raise ValueError("the list of words holds no word")
        return self

    @property
    def normal_words(self) -> tuple[str, ...]:
        """The words as they are looked for, each once."""
        return self._words


@frame_operator(scope="rows", flags="unsafe", version=1)
def flag_unsafe(frame: pl.LazyFrame, params: FlagUnsafe) -> pl.LazyFrame:
    """Flag rows that labels, scores or words show to be unsafe, or reject them; the column `unsafe` says which did."""
    schema = frame.collect_schema()
    for column in (*params.labels, *params.scores):
        if column not in schema or column == KEY:
            raise ColumnNotFoundError(
                f"there is no column '{column}'{suggestion(column, (name for name in schema if name != KEY))}"
            )
    found: dict[str, pl.Expr] = {}
    for column, values in params.labels.items():
        found[column] = _has_label(column, values if isinstance(values, tuple) else (values,), schema)
    for column, least in params.scores.items():
        if not schema[column].is_numeric():
            raise TypeError(f"column '{column}' is {schema[column]}, and a score is a number")
        score = pl.col(column)
        high = score >= least
        # NaN is greater than every number here, and says nothing.
        found[column] = high & score.is_not_nan() if schema[column].is_float() else high
    if params.normal_words:
        for column, text in texts_of(frame, params.columns).items():
            found[f"words_in_{column}"] = _has_word(text, params.normal_words)
    flags = {name: is_unsafe.fill_null(False) for name, is_unsafe in found.items()}
    unsafe = pl.concat_list(
        pl.when(is_unsafe).then(pl.lit(name)).otherwise(pl.lit(None, pl.String)) for name, is_unsafe in flags.items()
    ).list.drop_nulls()
    flagged = frame.select(KEY, unsafe=unsafe)
    if params.action == "flag":
        return flagged
    rejected = pl.col("unsafe").list.len() > 0
    return flagged.with_columns(
        _reject=pl.when(rejected).then(pl.lit("unsafe")),
        _detail=pl.when(rejected).then(pl.concat_str(pl.lit("unsafe by "), pl.col("unsafe").list.join(", "))),
    )


def _has_label(column: str, values: Sequence[Label], schema: Mapping[str, pl.DataType]) -> pl.Expr:
    """Return whether the column has one of the values; of a list, whether one of its items is."""
    dtype = schema[column]
    listed = isinstance(dtype, pl.List)
    inner = dtype.inner if isinstance(dtype, pl.List) else dtype
    present = [value for value in values if value is not None]
    for value in present:
        if not _fits(value, inner):
            raise TypeError(f"column '{column}' is {dtype}, which never is {value!r}")
    text_like = isinstance(inner, (pl.Categorical, pl.Enum))
    wanted = pl.Series(present, dtype=pl.String if text_like else inner).implode() if present else None
    label = pl.col(column)
    if listed:
        items = pl.element().cast(pl.String) if text_like else pl.element()
        having = label.list.eval(items.is_in(wanted)).list.any() if wanted is not None else pl.lit(False)
    else:
        having = (label.cast(pl.String) if text_like else label).is_in(wanted) if wanted is not None else pl.lit(False)
    return having.fill_null(False) | label.is_null() if None in values else having


def _fits(value: Label, dtype: object) -> bool:
    if isinstance(value, bool):
        return dtype == pl.Boolean
    if isinstance(value, str):
        return dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum))
    return isinstance(dtype, pl.DataType) and dtype.is_numeric()


def _normal(text: pl.Expr) -> pl.Expr:
    """Return text in the one form in which words and texts are compared: whatever the case and the way letters are composed."""
    return text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()


def _has_word(text: pl.Expr, words: Sequence[str]) -> pl.Expr:
    normal = _normal(text)
    return pl.any_horizontal(
        normal.str.contains(pattern)
        for pattern in (_pattern(words[at : at + _AT_ONCE]) for at in range(0, len(words), _AT_ONCE))
    )


def _pattern(words: Sequence[str]) -> str:
    r"""Return the pattern of any of some words as wholes: not `\b`, which knows no word that ends in a sign, such as "c++"."""
    # Where a script puts no spaces between words, a word ends where it ends.
    edges = pl.DataFrame({"word": words}).with_columns(
        before=pl.when(pl.col("word").str.contains(f"^{_UNSPACED}")).then(pl.lit("")).otherwise(pl.lit(r"(?:^|\W)")),
        after=pl.when(pl.col("word").str.contains(f"{_UNSPACED}$")).then(pl.lit("")).otherwise(pl.lit(r"(?:\W|$)")),
    )
    return "|".join(
        f"{before}(?:{'|'.join(pl.escape_regex(word) for word in group['word'])}){after}"
        for (before, after), group in edges.group_by("before", "after", maintain_order=True)
    )
