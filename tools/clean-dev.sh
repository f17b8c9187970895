#!/usr/bin/env bash
# Removes what `make` made for development: test engines, test images, caches and the virtual environment.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/debian.sh

if [ "$(id -u)" = 0 ]; then
  tools/containerd-engine.sh sweep
  tools/containerd-engine.sh stop
fi
if command -v docker >/dev/null && docker info >/dev/null 2>&1; then
  docker ps --all --quiet --filter label=com.docker.compose.project |
    while read -r container; do
      project=$(docker inspect --format '{{index .Config.Labels "com.docker.compose.project"}}' "$container")
      case $project in mlimg-test-*) docker rm --force --volumes "$container" >/dev/null ;; esac
    done
  docker image ls --quiet 'mlimg.local/*' | sort -u | while read -r image; do
    docker image rm --force "$image" >/dev/null || say "image $image is in use"
  done
fi
rm -rf "${XDG_CACHE_HOME:-$HOME/.cache}/mlimg-dev" .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
