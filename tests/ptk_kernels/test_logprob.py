"""Log-probabilities of tokens, on the CPU and in Triton's interpreter, against a slow reference in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from ptk_kernels import logprob  # noqa: E402
from ptk_kernels.logprob import token_logprobs  # noqa: E402

TRITON = importlib.util.find_spec("triton") is not None


def reference(hidden: Any, weight: Any, targets: Any, bias: Any, scale: float, softcap: float | None) -> Any:
    """Return the log-probabilities the plain way: all logits of all rows, in float64."""
    logits = hidden.double() @ weight.double().T
    if bias is not None:
        logits = logits + bias.double()
    logits = logits * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, -1)[torch.arange(len(targets)), targets]


@st.composite
def cases(draw: Callable[..., Any], half: Any = torch.bfloat16) -> dict[str, Any]:
    rows, words, depth = draw(st.integers(0, 40)), draw(st.integers(1, 300)), draw(st.integers(1, 70))
    made = torch.Generator().manual_seed(draw(st.integers(0, 1 << 31)))
    dtype = draw(st.sampled_from([torch.float32, half]))
    spread = draw(st.sampled_from([0.1, 1.0, 30.0]))
    has_bias = draw(st.booleans())
    return {
        "hidden": (torch.randn(rows, depth, generator=made) * spread).to(dtype),
        "weight": torch.randn(words, depth, generator=made).to(dtype),
        "targets": torch.randint(0, words, (rows,), generator=made),
        "bias": torch.randn(words, generator=made).to(dtype) if has_bias else None,
        "scale": draw(st.sampled_from([1.0, 0.25])),
        "softcap": draw(st.sampled_from([None, 30.0])),
    }


def check(case: dict[str, Any], path: str) -> None:
    found = token_logprobs(**case, path=path)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), reference(**case), rtol=2e-5, atol=1e-4)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_the_chunked_path_agrees_with_float64(case: dict[str, Any]) -> None:
    check(case, "chunked")


@pytest.mark.parametrize(("rows", "words"), [(5, 2_500), (1_030, 37), (1_025, 5_000)])
def test_blocks_of_rows_and_of_the_vocabulary_meet(monkeypatch: pytest.MonkeyPatch, rows: int, words: int) -> None:
    monkeypatch.setattr(logprob, "_CELLS", 1)
    made = torch.Generator().manual_seed(1)
    case = {
        "hidden": torch.randn(rows, 8, generator=made),
        "weight": torch.randn(words, 8, generator=made),
        "targets": torch.randint(0, words, (rows,), generator=made),
        "bias": None,
        "scale": 1.0,
        "softcap": None,
    }
    check(case, "auto")


def test_the_sum_over_a_long_response_is_that_of_float64_to_a_ten_thousandth() -> None:
    """Of the hidden states of a real size: what scores differ by beyond this is the float32 of the model's body."""
    made = torch.Generator().manual_seed(0)
    case = {
        "hidden": torch.randn(400, 576, generator=made),
        "weight": torch.randn(6_000, 576, generator=made) * 0.1,
        "targets": torch.randint(0, 6_000, (400,), generator=made),
        "bias": None,
        "scale": 1.0,
        "softcap": None,
    }
    found, wanted = token_logprobs(**case).double(), reference(**case)
    assert float((found.sum() - wanted.sum()).abs()) < 1e-4
    assert float(wanted.sum()) < -3_000


def test_logits_far_beyond_the_range_of_exp_are_no_trouble() -> None:
    hidden, weight = torch.tensor([[1e4], [-1e4]]), torch.tensor([[1.0], [0.0]])
    assert token_logprobs(hidden, weight, torch.tensor([0, 0])).tolist() == [0.0, -1e4]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"targets": [0, 7]}, "outside the vocabulary of 7"),
        ({"targets": [-1, 0]}, "outside the vocabulary of 7"),
        ({"targets": [0]}, r"\(1,\) targets do not fit \(2, 3\)"),
        ({"weight": [[0.0, 0.0]]}, "do not fit"),
        ({"bias": [0.0]}, "a bias of"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], told: str) -> None:
    given = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(7, 3), "targets": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=told):
        token_logprobs(**{**given, **{name: torch.tensor(value) for name, value in changed.items()}})


def test_no_row_of_the_vocabularys_width_is_ever_held() -> None:
    """The most that is allocated at once, beside the arguments, at a vocabulary of 152k: less than one block of logits and a half."""
    script = (
        "import resource, torch\n"
        "from ptk_kernels.logprob import token_logprobs\n"
        "hidden, weight = torch.randn(1024, 64), torch.randn(152_000, 64)\n"
        "token_logprobs(hidden[:8], weight[:8], torch.zeros(8, dtype=torch.long))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "token_logprobs(hidden, weight, torch.arange(1024))\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64  # MiB; all logits would take 593


@pytest.mark.skipif(not TRITON, reason="Triton is not installed")
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is the run inside the interpreter")
def test_the_triton_kernel_agrees_with_float64_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout[-3000:]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs in Triton's interpreter, started by the test above")
@given(cases(half=torch.float16))  # the interpreter does not multiply in bfloat16
@settings(max_examples=25, deadline=None)
def test_interpreted(case: dict[str, Any]) -> None:
    check(case, "triton")
