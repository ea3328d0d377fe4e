#!/usr/bin/env bash
# Starts Ray on one of a lab's own machines and stays until it ends. No cloud, no Kubernetes, no SSH between machines.
#
#   node.sh head                        on one machine, which runs jobs' drivers and no work
#   node.sh worker HEAD ROLE [...]      on each other one; ROLE is teacher, student or cpu, or several: teacher,student
#
# All machines need the same Python, Ray and Pathryoshka, and the file with the token ($RAY_AUTH_TOKEN_PATH, by default
# ~/.ray/auth_token; `ray get-auth-token --generate` makes one; copy it, mode 600). What follows goes to `ray start`.
# RAY_PORT (6379) and RAY_DASHBOARD_PORT (8265) where those are taken.
set -euo pipefail

say() { echo "node.sh: $1" >&2; exit 2; }
command -v ray > /dev/null || say "ray is not on PATH: activate the environment of Pathryoshka"
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
export RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ "$RAY_AUTH_MODE" = token ]; then
  [ -s "$RAY_AUTH_TOKEN_PATH" ] || say "no token in $RAY_AUTH_TOKEN_PATH: ray get-auth-token --generate"
  [ -z "$(find "$RAY_AUTH_TOKEN_PATH" -perm /077)" ] || say "$RAY_AUTH_TOKEN_PATH can be read by others: chmod 600"
fi
port=${RAY_PORT:-6379}

case ${1:-} in
  head)
    shift
    # the dashboard, and with it the Jobs API, on loopback only: people come through `ssh -L 8265:127.0.0.1:8265`
    exec ray start --head --port="$port" --num-cpus=0 --num-gpus=0 --dashboard-host=127.0.0.1 \
      --dashboard-port="${RAY_DASHBOARD_PORT:-8265}" --block "$@"
    ;;
  worker)
    [ $# -ge 3 ] || say "usage: node.sh worker HEAD ROLE"
    head=$2 roles=$3
    shift 3
    resources=
    for role in ${roles//,/ }; do
      case $role in
        teacher | student | cpu) resources+="${resources:+, }\"$role\": 1" ;;
        *) say "ROLE is teacher, student or cpu; got $role" ;;
      esac
    done
    exec ray start --address="$head:$port" --resources="{$resources}" --labels="role=${roles%%,*}" --block "$@"
    ;;
  *) say "usage: node.sh head | node.sh worker HEAD ROLE" ;;
esac
