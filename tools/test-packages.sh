#!/usr/bin/env bash
# Sees to the programs that only the tests need: a registry to push to, and clients that are not ours to
# judge mlimg. The registry's binary is put into the cache folder, where the test image is built from it.
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
