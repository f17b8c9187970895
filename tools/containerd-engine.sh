#!/usr/bin/env bash
# A second Docker Engine, with the containerd image store, beside the machine's own: mlimg is tested on both stores.
#
#   tools/containerd-engine.sh start [NAME]   start it and print its DOCKER_HOST
#   tools/containerd-engine.sh stop [NAME]    stop it and remove all it made
#   tools/containerd-engine.sh sweep          stop those whose test run (NAME is its process id) is gone
#
# It has a bridge and folders of its own. Two daemons that both manage the firewall would flush each other's rules, so
# this one does not, and the three rules that let its containers reach the network are made and removed here.
set -euo pipefail
cd "$(dirname "$0")"
. ./debian.sh

RUN_ROOT=/run/mlimg-containerd
DATA_ROOT=/var/lib/mlimg-containerd
START_SECONDS=${MLIMG_ENGINE_START_SECONDS:-90}

action=${1:-}
name=${2:-main}
run=$RUN_ROOT/$name data=$DATA_ROOT/$name
bridge=mlimg-$name # the kernel allows 15 characters
host=unix://$run/docker.sock
export PATH=$PATH:/usr/sbin:/sbin

answers() { DOCKER_HOST=$host timeout 20 docker info --format '{{.ServerVersion}}' 2>/dev/null | grep -q .; }

# The pids of processes whose command line names the path $1 below our folder: ours, whatever a stale pid file says.
processes_of() {
  local folder
  for folder in /proc/[0-9]*; do
    if { tr '\0' ' ' <"$folder/cmdline"; } 2>/dev/null | grep -qF -- "$run/$1 "; then echo "${folder#/proc/}"; fi
  done
}

end() { # end PID…, waiting for each
  local pid
  for pid in "$@"; do
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 150); do
      running "$pid" || continue 2
      sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
  done
}

# A /24 that no interface has yet.
free_subnet() {
  local third
  for third in $(seq 10 250); do
    ip -4 -o address | grep -qF " 10.213.$third." || { echo "10.213.$third"; return; }
  done
  die "no free network for a second engine in 10.213.0.0/16"
}

# firewall -I | -D: let containers of the bridge out, and the answers in.
firewall() {
  local subnet
  subnet=$(cat "$run/subnet" 2>/dev/null) || return 0
  {
    iptables -t nat "$1" POSTROUTING -s "$subnet.0/24" ! -o "$bridge" -j MASQUERADE
    iptables "$1" FORWARD -i "$bridge" -j ACCEPT
    iptables "$1" FORWARD -o "$bridge" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
  } >>"$run/firewall.log" 2>&1 || say "iptables $1 failed; builds there need --network host"
}

start() {
  if [ -S "$run/docker.sock" ] && answers; then
    echo "$host"
    return
  fi
  [ "${#bridge}" -le 15 ] || die "the name '$name' is longer than 9 characters"
  [ "$(id -u)" = 0 ] || die "only root can start a second engine"
  command -v dockerd >/dev/null || die "dockerd is not installed" "Run 'make engine'."
  stop
  mkdir -p "$run" "$data"
  ip link add "$bridge" type bridge
  free_subnet >"$run/subnet"
  ip address add "$(cat "$run/subnet").1/24" dev "$bridge"
  ip link set "$bridge" up
  firewall -I
  # A system's containerd, where one runs, is shared by all engines: the namespaces keep this one apart.
  cat >"$run/daemon.json" <<END
{
  "features": {"containerd-snapshotter": true},
  "hosts": ["$host"],
  "data-root": "$data",
  "exec-root": "$run/exec",
  "pidfile": "$run/docker.pid",
  "bridge": "$bridge",
  "iptables": false,
  "ip6tables": false,
  "containerd-namespace": "mlimg-$name",
  "containerd-plugins-namespace": "mlimg-plugins-$name"
}
END
  setsid dockerd --config-file="$run/daemon.json" >"$run/dockerd.log" 2>&1 </dev/null &
  local started=$! deadline=$((SECONDS + START_SECONDS))
  until answers; do
    if [ "$SECONDS" -ge "$deadline" ] || ! running "$started"; then
      tail -n 20 "$run/dockerd.log" >&2
      stop
      die "the second engine did not start"
    fi
    sleep 0.2
  done
  echo "$host"
}

stop() {
  local mount shim
  # In a system's containerd its images would outlive it.
  if [ -S "$run/docker.sock" ] && [ ! -e "$run/exec/containerd/containerd.pid" ]; then
    DOCKER_HOST=$host timeout 60 docker system prune --all --force --volumes >/dev/null 2>&1 || true
  fi
  # shellcheck disable=SC2046  # pids are words
  {
    end $(processes_of "daemon.json")
    # What a dockerd that was killed leaves: containerd, and containers under their shims.
    end $(processes_of "exec/containerd/containerd.toml")
    for shim in $(processes_of "exec/containerd/containerd.sock"); do
      kill -KILL $(cat "/proc/$shim/task/$shim/children") 2>/dev/null || true
      kill -KILL "$shim" 2>/dev/null || true
    done
  }
  # Deepest first.
  awk -v run="$run/" -v data="$data/" 'index($2 "/", run) == 1 || index($2 "/", data) == 1 {print $2}' /proc/mounts |
    sort -r | while read -r mount; do umount -l "$mount" || true; done
  firewall -D
  if ip link show "$bridge" >/dev/null 2>&1; then ip link delete "$bridge"; fi
  rm -rf "$run" "$data"
  rmdir "$RUN_ROOT" "$DATA_ROOT" 2>/dev/null || true
}

sweep() {
  local folder
  for folder in "$RUN_ROOT"/*/ "$DATA_ROOT"/*/; do
    folder=$(basename "$folder")
    case $folder in '*' | *[!0-9]*) continue ;; esac
    if ! running "$folder"; then
      say "removing the engine that test run $folder left"
      ./containerd-engine.sh stop "$folder"
    fi
  done
}

case $action in
  start | stop | sweep) "$action" ;;
  *) die "usage: containerd-engine.sh start|stop|sweep [NAME]" ;;
esac
