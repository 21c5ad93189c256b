#!/bin/sh
# A whole job on this device: sh bench.sh JOBDIR [PYTHON]
# probe.json before, watch.jsonl meanwhile, out.jsonl the answers, probe-after.json behind. Exit status: that of run.py.
set -u

if [ $# -lt 1 ] || [ $# -gt 2 ]; then
    echo "usage: sh bench.sh JOBDIR [PYTHON]" >&2
    exit 2
fi
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit 1
job=$1
python=${2:-python3}
runner='' watch=''

mkdir -p -- "$job" || exit 1
if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: no $python on this device: install Python 3.10 or newer, or give another as sh bench.sh JOBDIR PYTHON" >&2
    exit 127
fi

# $1: name of the document
probe() {
    sh "$here/probe.sh" >"$job/.$1" && mv -- "$job/.$1" "$job/$1"
}

can_read_power() {
    command -v tegrastats >/dev/null 2>&1 && return 0
    for one in /sys/class/power_supply/*/current_now; do [ -r "$one" ] && return 0; done
    return 1
}

end_watch() {
    [ -z "$watch" ] || kill "$watch" 2>/dev/null
    watch=''
}

# the runner ends its own process, and ends; a second signal finds nothing more to do
stop() {
    [ -z "$runner" ] || kill "$runner" 2>/dev/null
    end_watch
}

trap stop HUP INT TERM
trap end_watch EXIT

probe probe.json
sh "$here/probe.sh" watch 1 >>"$job/watch.jsonl" &
watch=$!
# energy is what answering takes beyond this
if can_read_power; then sleep 3; fi
"$python" -B "$here/run.py" "$job" &
runner=$!
# a signal interrupts wait: what counts is how the runner ended
wait "$runner"
rc=$?
while kill -0 "$runner" 2>/dev/null; do
    wait "$runner"
    rc=$?
done
end_watch
probe probe-after.json
exit "$rc"
