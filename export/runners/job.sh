#!/bin/sh
# A job that outlives the connection that started it. For any POSIX sh (dash, busybox, mksh, toybox).
#   job.sh start FOLDER COMMAND   begin, or begin again what died; one that runs or has ended well is left alone
#   job.sh poll FOLDER OFFSET     first line: STATE RC SIZE; then what is behind OFFSET in out.jsonl, at most 1 MiB
#   job.sh stop FOLDER            end it with all that it started
# In FOLDER: command; out.jsonl, written by the command; err.txt, all else that it says; pid, the process that watches
# over it and when that began (a number that another process has got since is not taken for it); rc, its exit status,
# there from the moment it ended. State: none, running, ended (rc is there), dead (killed, or the device restarted).
# Everything of the job has MPA_EDGE_JOB=(FOLDER) in its environment: that is how stop finds it, whoever its parent is.

verb=$1
job=$2

# ticks since boot when a process began; fails where there is none, or only its zombie
began() {
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
    # the name in brackets may hold anything, brackets and blanks as well
    # shellcheck disable=SC2086  # the fields
    set -- ${stat##*) }
    [ "$1" != Z ] && echo "${20}"
}

alive() {
    [ -f "$job/pid" ] && read -r pid ticks <"$job/pid" && [ "$(began "$pid")" = "$ticks" ]
}

state() {
    if [ -f "$job/rc" ]; then
        echo ended
    elif alive; then
        echo running
    elif [ -f "$job/pid" ]; then
        echo dead
    else
        echo none
    fi
}

bytes() { if [ -f "$1" ]; then wc -c <"$1"; else echo 0; fi; }

members() {
    grep -lF "MPA_EDGE_JOB=($job)" /proc/[0-9]*/environ 2>/dev/null | while IFS=/ read -r _ _ one _; do echo "$one"; done
}

nap() { sleep 0.2 2>/dev/null || sleep 1; }

# asked first, for fifteen naps; then killed
stop() {
    naps=0
    while [ "$naps" -lt 30 ]; do
        left=$(members)
        [ -n "$left" ] || return 0
        signal=TERM
        [ "$naps" -lt 15 ] || signal=KILL
        # shellcheck disable=SC2086  # a list of numbers
        kill -s "$signal" $left 2>/dev/null
        naps=$((naps + 1))
        nap
    done
}

# a last line without its end is what a kill left: it is taken away, or the next line would be glued to it
cut_torn_line() {
    out=$job/out.jsonl
    if [ -s "$out" ] && [ -n "$(tail -c 1 "$out")" ]; then
        whole=$(($(bytes "$out") - $(tail -n 1 "$out" | wc -c)))
        head -c "$whole" "$out" >"$out.whole" && mv -f "$out.whole" "$out"
    fi
}

lock() {
    tries=0
    until mkdir "$job/lock" 2>/dev/null; do
        tries=$((tries + 1))
        # starting takes a moment; a lock that stays was left by a device that went off
        [ "$tries" -lt 40 ] || break
        nap
    done
}

start() {
    lock
    found=$(state)
    case $found in
    running) ;;
    ended) [ "$(cat "$job/rc")" = 0 ] || launch ;;
    *) launch ;;
    esac
    rmdir "$job/lock"
    echo "$found"
}

launch() {
    stop
    cut_torn_line
    rm -f "$job/rc" "$job/pid"
    printf '%s\n' "$command" >"$job/command" || exit 1
    detached=
    command -v setsid >/dev/null 2>&1 && detached=setsid
    MPA_EDGE_JOB="($job)" $detached sh "$0" watch "$job" </dev/null >/dev/null 2>&1 &
    tries=0
    until [ -f "$job/pid" ] || [ "$tries" -ge 50 ]; do
        tries=$((tries + 1))
        nap
    done
}

watch() {
    trap '' HUP
    cd "$job" || exit 1
    echo "$$ $(began $$)" >pid.new && mv -f pid.new pid
    sh -c "$(cat command)" >>err.txt 2>&1 </dev/null
    echo "$?" >rc.new && mv -f rc.new rc
}

case $verb in
start)
    mkdir -p "$job" || exit 1
    command=$3
    start
    ;;
poll)
    # the state first: what was written before the end is then in the bytes that follow
    echo "$(state) $(cat "$job/rc" 2>/dev/null || echo -) $(bytes "$job/out.jsonl")"
    [ ! -f "$job/out.jsonl" ] || tail -c +"$(($3 + 1))" "$job/out.jsonl" | head -c 1048576
    ;;
stop) stop ;;
watch) watch ;;
*)
    echo "job.sh: start, poll or stop" >&2
    exit 2
    ;;
esac
