#!/usr/bin/env bash
# Sees to a slim Python base image for the demo and the tests, and prints its reference on stdout.
#
# python:3.13-slim is pulled; where no registry can be reached, an equivalent base is built once from Debian's
# packages. Its root filesystem stays in the cache folder, so that another engine only imports it.
#
#   tools/base-image.sh                  pull, else build
#   tools/base-image.sh --local          build, never pull: the same bytes whatever the network allows
#   tools/base-image.sh --python 3.11    another Python: 3.13 (the default) or 3.11
set -euo pipefail
shopt -s inherit_errexit 2>/dev/null || true # macOS has an older bash
cd "$(dirname "$0")"
. ./debian.sh

LOCAL_ONLY=
PYTHON=3.13
while [ $# -gt 0 ]; do
  case $1 in
    --local) LOCAL_ONLY=yes ;;
    --python) PYTHON=${2:-} && shift ;;
    *) die "unknown argument $1" "It takes --local and --python VERSION." ;;
  esac
  shift
done
HOOKS=
case $PYTHON in # the Debian release that has it
  3.13) SUITE=trixie ;;
  3.11)
    SUITE=bookworm
    HOOKS=/usr/share/mmdebstrap/hooks/merged-usr # without it bookworm takes usrmerge, and that 46 MiB of Perl
    ;;
  *) die "no Debian release is known for Python '$PYTHON'" "--python takes 3.11 and 3.13." ;;
esac
PUBLIC=python:$PYTHON-slim
LOCAL=mlimg.local/python:$PYTHON-slim
PACKAGES=python3,ca-certificates
PULL_SECONDS=${MLIMG_PULL_SECONDS:-120}
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mlimg-dev
# File times after this are set to it, so equal packages give an equal layer.
export SOURCE_DATE_EPOCH=1735689600

# What dpkg leaves out; later installations in a build stay as slim.
EXCLUDED=(/usr/share/doc /usr/share/info /usr/share/lintian /usr/share/locale /usr/share/man /usr/share/bug)

# Runs on the unpacked root filesystem, $1.
read -r -d '' TRIM <<'TRIM_END' || true
set -eu
cd "$1"
python=usr/lib/python3.13
rm -rf $python/test $python/idlelib $python/turtledemo $python/pydoc_data
# Python decodes text by itself; glibc's own converters are for programs that call iconv.
find usr/lib -path '*/gconv/*.so' -delete
find var/cache/apt var/lib/apt/lists var/log -type f -delete
rm -f var/cache/debconf/*-old var/lib/dpkg/*-old var/cache/ldconfig/aux-cache
# Settings of the machine that built this (its proxy, its mirror) stay there.
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/apt/sources.list etc/apt/sources.list.d/*
printf 'Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie trixie-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\nTypes: deb\nURIs: http://deb.debian.org/debian-security\nSuites: trixie-security\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n' \
  >etc/apt/sources.list.d/debian.sources
ln -sf python3 usr/bin/python
# Bytecode that holds no times: starting Python must not depend on a writable file system.
find usr -name __pycache__ -type d -prune -exec rm -rf {} +
chroot . python3 -m compileall -q --invalidation-mode unchecked-hash usr/lib/python3.13 usr/lib/python3
TRIM_END
TRIM=${TRIM//3.13/$PYTHON}
TRIM=${TRIM//trixie/$SUITE}

recipe=$(printf '%s\n' "$SUITE" "$PACKAGES" ${HOOKS:+"$HOOKS"} "${EXCLUDED[@]}" "$TRIM" | cksum | cut -d ' ' -f 1)
comment="mlimg base image, recipe $recipe"

exists() { docker image inspect "$1" >/dev/null 2>&1; }

# Builds the root filesystem into the file $1.
build_tar() {
  command -v mmdebstrap >/dev/null || {
    may_install || die "no registry has $PUBLIC for us, and there is no mmdebstrap to build a base with" \
      "Let this machine reach a registry, or run this on Debian or Ubuntu: 'sudo apt-get install mmdebstrap'." \
      "Any image with Python 3.13 and ca-certificates will do: 'docker tag YOUR-IMAGE $PUBLIC'."
    say "installing mmdebstrap"
    install_packages mmdebstrap
  }
  local options=() path proxy
  for path in "${EXCLUDED[@]}"; do options+=(--dpkgopt="path-exclude=$path/*"); done
  for proxy in Acquire::http::Proxy Acquire::https::Proxy; do
    path=$(apt-config dump --format '%v' "$proxy")
    if [ -n "$path" ]; then options+=(--aptopt="$proxy \"$path\""); fi
  done
  local mirror
  mirror=$(debian_mirror)
  if [ -n "$HOOKS" ]; then options+=(--hook-dir="$HOOKS"); fi
  mmdebstrap --quiet --variant=apt --include="$PACKAGES" "${options[@]}" --customize-hook="$TRIM_HOOK \"\$1\"" \
    "$SUITE" "$1" \
    "deb $mirror $SUITE main" "deb $mirror $SUITE-updates main" \
    "deb ${mirror%/debian*}/debian-security $SUITE-security main" >&2 ||
    die "mmdebstrap could not build a base image" "It needs root, or user namespaces with ranges in /etc/subuid."
}

# The cached root filesystem, built when it is not there; prints its path.
root_filesystem() {
  local tar
  tar=$CACHE/python-$PYTHON-$(uname -m)-$recipe.tar
  mkdir -p "$CACHE"
  exec 9>"$CACHE/lock" # two test runs on one machine build it once
  if command -v flock >/dev/null; then flock 9; fi
  if [ ! -s "$tar" ]; then
    say "building $LOCAL from Debian $SUITE's packages (once, about a minute)"
    local scratch started=$SECONDS
    scratch=$(mktemp -d "$CACHE/build.XXXXXX")
    # shellcheck disable=SC2064  # the folder's name is known now
    trap "rm -rf '$scratch'" EXIT
    TRIM_HOOK=$scratch/trim.sh
    printf '#!/bin/sh\n%s\n' "$TRIM" >"$TRIM_HOOK"
    chmod +x "$TRIM_HOOK"
    build_tar "$scratch/base.tar"
    mv "$scratch/base.tar" "$tar"
    say "built $(($(wc -c <"$tar") / 1000000)) MB in $((SECONDS - started)) s: $tar"
    find "$CACHE" -maxdepth 1 -name "python-$PYTHON-*.tar" ! -name "${tar##*/}" -delete
  fi
  printf '%s\n' "$tar"
}

docker info >/dev/null 2>&1 || die "no Docker Engine answers" "Run 'make engine'."
if [ -z "$LOCAL_ONLY" ]; then
  if exists "$PUBLIC"; then
    echo "$PUBLIC"
    exit
  fi
fi
if [ "$(docker image inspect --format '{{.Comment}}' "$LOCAL" 2>/dev/null)" = "$comment" ]; then
  echo "$LOCAL"
  exit
fi
if [ -z "$LOCAL_ONLY" ]; then
  say "pulling $PUBLIC"
  if output=$(limit "$PULL_SECONDS" docker pull --quiet "$PUBLIC" 2>&1); then
    echo "$PUBLIC"
    exit
  fi
  say "no registry to pull it from: ${output:-no answer within $PULL_SECONDS s}"
fi
tar=$(root_filesystem)
old=$(docker image inspect --format '{{.Id}}' "$LOCAL" 2>/dev/null || true)
docker import --message "$comment" \
  --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
  --change 'ENV LANG=C.UTF-8' \
  --change 'CMD ["python3"]' \
  "$tar" "$LOCAL" >/dev/null
if [ -n "$old" ]; then docker image rm "$old" >/dev/null 2>&1 || true; fi # unless something stands on it
say "using $LOCAL, built from Debian's packages, in place of $PUBLIC"
echo "$LOCAL"
