# shellcheck shell=bash
# shellcheck disable=SC2016  # '$(REPO_URI)' is apt's, not the shell's
# Debian and Ubuntu packages for tools/*.sh. Sourced, never run.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "error: $1"
  shift
  for line in "$@"; do printf '  %s\n' "$line" >&2; done
  exit 1
}

# limit SECONDS COMMAND…: macOS has no timeout.
limit() { if command -v timeout >/dev/null; then timeout "$@"; else "${@:2}"; fi; }

# running PID [NAME]: a process that lives, and is that program. A dead one stays as a zombie until init collects it.
running() {
  local name=${2:-}
  [ -n "$1" ] && [ -r "/proc/$1/stat" ] || return 1
  if [ -n "$name" ] && [ "$(cat "/proc/$1/comm" 2>/dev/null)" != "$name" ]; then return 1; fi
  ! { sed 's/.*) //' "/proc/$1/stat" | grep -q '^[ZX]'; } 2>/dev/null
}

may_install() {
  [ "$(id -u)" = 0 ] && [ -r /etc/os-release ] && command -v apt-get >/dev/null &&
    (. /etc/os-release && case "$ID ${ID_LIKE:-}" in *debian* | *ubuntu*) ;; *) exit 1 ;; esac)
}

TRIXIE=/etc/apt/sources.list.d/mlimg-trixie.sources

# Debian 12's engine has no buildx: on bookworm packages come from trixie. They bring trixie's base-files along, after
# which /etc/os-release says trixie: the source that we added tells that too.
from_trixie() { [ -e "$TRIXIE" ] || (. /etc/os-release && [ "${VERSION_CODENAME:-}" = bookworm ]); }

# Pinned so low that nothing is ever taken from there that was not asked for.
add_trixie() {
  if from_trixie && [ ! -e "$TRIXIE" ]; then
    say "adding Debian trixie at priority 100 ($TRIXIE)"
    printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' >/etc/apt/preferences.d/mlimg-trixie
    printf 'Types: deb\nURIs: %s\nSuites: trixie\nComponents: main\nSigned-By: %s\n' \
      "$(debian_mirror)" /usr/share/keyrings/debian-archive-keyring.gpg >"$TRIXIE"
    rm -f /var/lib/apt/lists/.mlimg-updated
  fi
}

# Where this machine gets Debian's packages from: a company's mirror, where its apt sources name one.
debian_mirror() {
  local mirror
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Created-By: Packages' 2>/dev/null |
    grep -E '/debian/?$' | head -n 1 || true)
  mirror=${mirror:-http://deb.debian.org/debian}
  printf '%s\n' "${mirror%/}"
}

available() { apt-cache show "$1" >/dev/null 2>&1; }

# One apt-get update a day is enough; a fresh machine has no lists at all.
refresh_lists() {
  local stamp=/var/lib/apt/lists/.mlimg-updated
  if [ -z "$(find "$stamp" -mmin -1440 2>/dev/null)" ]; then
    # A third-party source that is down must not keep us from Debian's: installing says what is missing.
    if apt-get update -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 >&2; then
      touch "$stamp"
    else
      say "apt-get update had problems; going on"
    fi
  fi
}

apt_install() {
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
    -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" >&2 </dev/null
}

# From the distribution as it is.
install_distribution_packages() {
  refresh_lists
  apt_install "$@"
}

# From trixie on bookworm, else as above.
install_packages() {
  local suite=()
  add_trixie
  refresh_lists
  if from_trixie; then suite=(-t trixie); fi
  apt_install "${suite[@]}" "$@"
}
