#!/usr/bin/env bash
# Makes .venv and installs the locked packages and this checkout into it. Start it again after an interruption: it goes on.
# PYTHON names the interpreter, TORCH_INDEX another index that has the CPU build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."

lock=requirements/lock.txt
stamp=.venv/.installed
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { echo "[install] $*"; }
pip() { .venv/bin/python -m pip "$@"; }
fits() { "$1" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
  local candidate candidates=(python3.11 python3)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    if fits "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  {
    echo "error: found no Python 3.11 or newer with its venv and ensurepip modules (tried: ${candidates[*]})."
    echo "       Install one (Debian and Ubuntu: apt install python3.11 python3.11-venv), or name one: make PYTHON=/path/to/python3.11 ..."
  } >&2
  return 1
}

# A virtual environment names its own folder in every script, so that of a moved or copied checkout is of no use.
venv_is_usable() {
  grep -qsF "$(pwd -P)/.venv" .venv/bin/activate && fits .venv/bin/python && pip --version >/dev/null 2>&1
}

make_venv() {
  local python
  python=$(find_python)
  say "making .venv with $python ($("$python" -c 'import platform; print(platform.python_version())'))"
  "$python" -m venv --clear .venv
  .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
    || say "note: the locked versions are tested on Python 3.11 alone"
}

# pip writes INSTALLER after a package's files. A package without it was cut off half-way, yet pip would call it installed.
forget_half_installed() {
  local info
  for info in .venv/lib/python3*/site-packages/*.dist-info; do
    if [ -d "$info" ] && [ ! -e "$info/INSTALLER" ]; then
      say "$(basename "$info" .dist-info) was cut off half-way: installing it again"
      rm -rf "$info"
    fi
  done
}

# torch goes first and by itself: a missing CPU build shows at once, and the second index is asked for nothing else.
install_torch() {
  local torch errors=.venv/.torch-errors
  torch=$(grep '^torch==' "$lock")
  say "installing $torch"
  if pip install -qq --no-deps "$torch" 2>"$errors"; then
    return
  fi
  if grep -q "No matching distribution found for torch" "$errors"; then
    say "the package registry did not give $torch; asking $torch_index"
    if ! pip install -qq --no-deps --index-url "$torch_index" "$torch"; then
      echo "error: neither gave $torch. The package registry said:" >&2
      cat "$errors" >&2
      return 1
    fi
  else
    cat "$errors" >&2
    return 1
  fi
}

venv_is_usable || make_venv
rm -f "$stamp"
forget_half_installed
install_torch
say "installing the other locked packages (5 GB on disk, a few minutes the first time)"
pip install -qq --no-deps -r "$lock"
say "installing ptk from this checkout"
pip install -qq --no-deps --no-build-isolation -e .
touch "$stamp"
say "done"
