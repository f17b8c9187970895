#!/usr/bin/env bash
# Sees to the programs that only the tests need: a registry and object stores to push to, and clients that are not
# ours to judge mlimg. The registry's binary is put into the cache folder, where the test image is built from it.
set -euo pipefail
cd "$(dirname "$0")"
. ./debian.sh

BINARIES=${XDG_CACHE_HOME:-$HOME/.cache}/mlimg-dev/bin
PUBLIC_REGISTRY=registry:2.8.3

missing=()
for program in oras skopeo; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ ! -x "$BINARIES/docker-registry" ] && ! command -v docker-registry >/dev/null && may_install; then
  missing+=(docker-registry)
fi
if may_install && ! command -v ip >/dev/null; then missing+=(iproute2); fi # for containerd-engine.sh
if may_install && ! command -v strace >/dev/null; then missing+=(strace); fi # judges which files a spec can open
if may_install && ! command -v chromedriver >/dev/null; then missing+=(chromium chromium-driver); fi # sees the page
if [ "${#missing[@]}" -gt 0 ]; then
  may_install || die "the integration tests need: ${missing[*]}" \
    "Install them: https://oras.land/docs/installation and https://github.com/containers/skopeo/blob/main/install.md" \
    "or 'brew install ${missing[*]}', or 'sudo make test-packages' on Debian."
  say "installing ${missing[*]}"
  install_packages "${missing[@]}"
fi

mkdir -p "$BINARIES"
if binary=$(command -v docker-registry); then
  cmp -s "$binary" "$BINARIES/docker-registry" || install -m 755 "$binary" "$BINARIES/docker-registry"
elif [ ! -x "$BINARIES/docker-registry" ]; then
  say "taking the registry from $PUBLIC_REGISTRY"
  container=$(docker create "$PUBLIC_REGISTRY")
  docker cp "$container:/bin/registry" "$BINARIES/docker-registry"
  docker rm "$container" >/dev/null
  chmod 755 "$BINARIES/docker-registry"
fi

CACHE=${BINARIES%/bin}
SWIFT=2.38.3
AZURITE=3.35.0 # newer ones need a newer Node.js than Debian's

# A real S3: OpenStack Swift with its S3 API, in a virtual environment of its own.
if [ ! -e "$CACHE/swift/.made-$SWIFT" ]; then
  say "installing OpenStack Swift $SWIFT"
  rm -rf "$CACHE/swift"
  ../.venv/bin/python -m venv "$CACHE/swift"
  "$CACHE/swift/bin/python" -m pip install --quiet --disable-pip-version-check "swift==$SWIFT" "setuptools<81" >&2
  touch "$CACHE/swift/.made-$SWIFT"
fi

# Microsoft's own emulator of Azure Blob Storage.
if [ ! -e "$CACHE/azurite/.made-$AZURITE" ]; then
  if ! command -v npm >/dev/null; then
    may_install || die "Azurite needs Node.js and npm" "Install them: https://nodejs.org"
    install_packages nodejs npm
  fi
  say "installing Azurite $AZURITE"
  mkdir -p "$CACHE/azurite"
  (cd "$CACHE/azurite" && npm install --silent --no-audit --no-fund --no-save "azurite@$AZURITE" >&2)
  touch "$CACHE/azurite/.made-$AZURITE"
fi

# A real MLflow tracking server and model registry.
MLFLOW=3.17.2
if [ ! -e "$CACHE/mlflow/.made-$MLFLOW" ]; then
  say "installing MLflow $MLFLOW"
  rm -rf "$CACHE/mlflow"
  ../.venv/bin/python -m venv "$CACHE/mlflow"
  "$CACHE/mlflow/bin/python" -m pip install --quiet --disable-pip-version-check "mlflow==$MLFLOW" >&2
  touch "$CACHE/mlflow/.made-$MLFLOW"
fi
