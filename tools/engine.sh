#!/usr/bin/env bash
# Sees to a Docker Engine with buildx and compose.
#
# An engine that answers is used as it is. Where none is installed, and this runs as root on Debian or Ubuntu, the
# distribution's packages are installed and the daemon is started. Anywhere else this says what to do and fails.
set -euo pipefail
cd "$(dirname "$0")"
. ./debian.sh

LOG=/var/log/mlimg-dockerd.log
START_SECONDS=${MLIMG_ENGINE_START_SECONDS:-90}

how_to_install=(
  "Install Docker Engine with its buildx and compose plugins, start it, and run this again:"
  "  https://docs.docker.com/engine/install/   (Linux)"
  "  Docker Desktop, Rancher Desktop, colima or OrbStack   (macOS, Windows)"
  "On Debian or Ubuntu, 'sudo make engine' does it from the distribution's packages."
)

answers() { limit 20 docker info --format '{{.ServerVersion}}' 2>/dev/null | grep -q .; }

# The daemon this script would start listens on the default socket; a context or DOCKER_HOST points elsewhere.
points_elsewhere() {
  case "${DOCKER_HOST:-}" in '' | unix:///var/run/docker.sock | unix:///run/docker.sock) ;; *) return 0 ;; esac
  command -v docker >/dev/null && [ "$(docker context show 2>/dev/null || echo default)" != default ]
}

# The package with the compose plug-in: Ubuntu's docker-compose is the old Python program.
compose_package() { if available docker-compose-v2; then echo docker-compose-v2; else echo docker-compose; fi; }

install_engine() {
  say "no Docker Engine is installed: installing it from the distribution's packages"
  add_trixie
  refresh_lists
  local packages=(docker.io docker-buildx "$(compose_package)" iptables ca-certificates)
  if available docker-cli; then packages+=(docker-cli); fi # part of docker.io on Ubuntu
  install_packages "${packages[@]}"
}

daemon_pid() { cat /var/run/docker.pid 2>/dev/null || true; }

# A pid file whose process is gone, or is another program by now, keeps dockerd from starting.
clear_stale_files() {
  local program file
  for program in dockerd containerd; do
    case $program in dockerd) file=/var/run/docker.pid ;; *) file=/var/run/docker/containerd/containerd.pid ;; esac
    if [ -e "$file" ] && ! running "$(cat "$file")" "$program"; then
      say "removing stale $file"
      rm -f "$file"
    fi
  done
  rm -f /var/run/docker.sock
}

start_engine() {
  local started=''
  if [ -d /run/systemd/system ]; then
    say "starting docker.service"
    systemctl start docker.service >&2 || die "docker.service did not start" "See: journalctl -u docker.service"
  elif running "$(daemon_pid)" dockerd; then
    say "dockerd runs as process $(daemon_pid); waiting for it to answer"
  else
    clear_stale_files
    say "starting dockerd, log in $LOG"
    # iptables lies in sbin, which the PATH of a job may lack.
    PATH=$PATH:/usr/sbin:/sbin setsid dockerd >>"$LOG" 2>&1 </dev/null &
    started=$!
  fi
  local deadline=$((SECONDS + START_SECONDS))
  until answers; do
    if [ "$SECONDS" -ge "$deadline" ] || { [ -n "$started" ] && ! running "$started"; }; then
      tail -n 20 "$LOG" >&2 2>/dev/null || true
      die "the engine did not start within $START_SECONDS s" "Its log: $LOG"
    fi
    sleep 0.3
  done
}

# check_plugin NAME [tried]
check_plugin() {
  docker "$1" version >/dev/null 2>&1 && return
  if may_install && [ "${2:-}" != tried ]; then
    say "docker $1 is missing: installing it"
    add_trixie
    refresh_lists
    if [ "$1" = compose ]; then install_packages "$(compose_package)"; else install_packages "docker-$1"; fi
    check_plugin "$1" tried
    return
  fi
  die "the docker CLI has no working '$1' plug-in" \
    "Install it: https://docs.docker.com/build/install-buildx/ or https://docs.docker.com/compose/install/linux/" \
    "The CLI looks in ~/.docker/cli-plugins, /usr/local/lib/docker/cli-plugins and /usr/libexec/docker/cli-plugins."
}

if ! { command -v docker >/dev/null && answers; }; then
  if points_elsewhere; then
    die "no Docker Engine answers at ${DOCKER_HOST:-the docker context \"$(docker context show)\"}" \
      "Start that engine, or choose another: 'unset DOCKER_HOST', 'docker context use default'."
  fi
  if ! command -v dockerd >/dev/null; then
    may_install || die "no Docker Engine answers, and none is installed here" "${how_to_install[@]}"
    install_engine
  fi
  [ "$(id -u)" = 0 ] || die "dockerd is installed but does not answer, and only root can start it" \
    "Start it: 'sudo systemctl start docker' or 'sudo make engine'." \
    "If it runs, your user may not use it: 'sudo usermod -aG docker \$USER', then log in again."
  start_engine
fi
check_plugin buildx
check_plugin compose
say "engine $(docker info --format '{{.ServerVersion}} ({{.Driver}})'), buildx $(docker buildx version | awk '{print $2}'), compose $(docker compose version --short)"
