#!/usr/bin/env bash
# Recompiles requirements/lock.txt from pyproject.toml. For maintainers: it needs uv, a user never does.
# UV names another uv; UV_FLAGS adds flags, such as --upgrade, --upgrade-package NAME, or where to find the CPU build of torch.
set -euo pipefail
cd "$(dirname "$0")/.."

uv=${UV:-uv}
command -v "$uv" >/dev/null || { echo "error: '$uv' is not a command: install uv, or name it with UV=/path/to/uv" >&2; exit 1; }

# Prereleases: some OpenTelemetry packages that vLLM asks for have no other release.
# shellcheck disable=SC2086  # UV_FLAGS holds several flags
"$uv" pip compile pyproject.toml --extra all --extra dev \
  --override requirements/overrides.txt --python-version 3.11 --prerelease=if-necessary \
  --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
  --output-file requirements/lock.txt --quiet ${UV_FLAGS:-}
echo "requirements/lock.txt: $(grep -c '^[A-Za-z]' requirements/lock.txt) packages"
