#!/usr/bin/env bash
# Makes .venv with mlimg (editable) and the development group in it. A second run only installs what changed.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian.sh

usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
    if usable "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  return 1
}

has_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

if ! { [ -x .venv/bin/python ] && usable .venv/bin/python && .venv/bin/python -m pip --version >/dev/null 2>&1; }; then
  python=$(find_python) || true
  if { [ -z "$python" ] || ! has_venv "$python"; } && may_install; then
    say "installing python3 and python3-venv"
    install_distribution_packages python3 python3-venv
    # A python3 from elsewhere, earlier on the PATH, does not get better by that; Debian's own does.
    if [ -z "$python" ] || ! has_venv "$python"; then python=/usr/bin/python3; fi
  fi
  if [ -z "$python" ] || ! usable "$python"; then
    die "mlimg needs Python 3.11 or newer" "Install it, or name one: 'make venv PYTHON=/path/to/python3.13'."
  fi
  has_venv "$python" || die "$python cannot make virtual environments" \
    "On Debian and Ubuntu: 'sudo apt-get install python3-venv'."
  rm -rf .venv
  "$python" -m venv .venv
fi
[ -x .venv/bin/uv ] || .venv/bin/python -m pip install --quiet --disable-pip-version-check uv

# uv does not read pip's configuration; a company's index or folder of wheels is often named only there.
pip_setting() { .venv/bin/python -m pip config get "global.$1" 2>/dev/null || true; }
index=${PIP_INDEX_URL:-$(pip_setting index-url)}
links=${PIP_FIND_LINKS:-$(pip_setting find-links)}
if [ -n "$index" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$index}; fi
if [ -n "$links" ]; then export UV_FIND_LINKS=${UV_FIND_LINKS:-${links// /,}}; fi

.venv/bin/uv pip install --quiet --python .venv/bin/python --editable . --group dev
