#!/bin/sh
# What a device is and how it fares, as JSON.
#   sh probe.sh                 one document
#   sh probe.sh watch SECONDS   one line each SECONDS, until it is killed
# POSIX sh with cat, sed, ls, uname and sleep: dash, busybox, toybox, mksh. No number here is larger than 2^31 (mksh).
# What is absent or denied is {"value": null, "reason": "..."}, never 0. PREFIX stands in front of /proc, /sys and /etc.
PREFIX=${PREFIX:-}
LC_ALL=C
export LC_ALL

# ---- JSON ----
# The document grows in J and is printed once: a watcher that starts no programs takes no time from what it watches.
J=''
esc() { # text -> the inside of a JSON string, in E
    case $1 in
        *[\"\\]* | *[[:cntrl:]]*) E=$(printf '%s\n' "$1" | sed -e 's/[[:cntrl:]]/ /g' -e 's/["\\]/\\&/g') ;;
        *) E=$1 ;;
    esac
}
add() { J=$J$1; }
str() { esc "$1"; J="$J\"$E\""; }
no() { esc "$1"; J="$J{\"value\": null, \"reason\": \"$E\"}"; }
is_number() {
    case $1 in
        '' | - | *[!0-9.-]* | *.*.* | ?*-* | .* | -.* | *.) return 1 ;;
        0[0-9]* | -0[0-9]*) return 1 ;;
    esac
}
num() { if is_number "$1"; then J=$J$1; else no "not a number: $1"; fi; }
key() { esc "$1"; J="$J${2:-, }\"$E\": "; }

# ---- files ----
# first line of a file in LINE; where there is none, false with the REASON
first() {
    LINE='' OPENED='' REASON=''
    { { IFS= read -r LINE; OPENED=1; } <"$1"; } 2>/dev/null || :
    if [ -n "$OPENED" ] && [ -n "$LINE" ]; then return 0; fi
    if [ -n "$OPENED" ]; then REASON="no value in ${1#"$PREFIX"}"
    elif [ -e "$1" ]; then REASON="not allowed to read ${1#"$PREFIX"}"
    elif [ -e "${1%/*}" ] && [ ! -x "${1%/*}" ]; then REASON="not allowed to look into ${1%/*}"
    else REASON="no ${1#"$PREFIX"}"; fi
    return 1
}
file_str() { if first "$1"; then str "$LINE"; else no "$REASON"; fi; }
file_num() { if first "$1"; then num "$LINE"; else no "$REASON"; fi; }
thousandths() { # 46125 -> 46.125: millidegrees are the ABI of the thermal zones
    case $1 in '' | - | 0?* | -0* | *[!0-9-]* | ?*-* | ??????????*) no "not a number: $1"; return ;; esac
    set -- "${1#-}" "${1%"${1#-}"}"
    set -- "000$1" "$2"
    set -- "${1%???}" "${1#"${1%???}"}" "$2"
    set -- "${1#0}" "$2" "$3"; set -- "${1#0}" "$2" "$3"; set -- "${1#0}" "$2" "$3"
    add "$3${1:-0}.$2"
}
file_thousandths() { if first "$1"; then thousandths "$LINE"; else no "$REASON"; fi; }
has() { command -v "$1" >/dev/null 2>&1; }

# ---- parts of the document ----
cpuinfo() { # name, features, and the parts of Arm's cores (an Arm kernel says no name)
    NAME='' FLAGS='' PARTS='' MAKER=''
    while IFS= read -r row; do
        value=${row#*:}; value=${value# }
        case $row in
            'model name'*) NAME=${NAME:-$value} ;;
            flags* | Features*) FLAGS=${FLAGS:-$value} ;;
            'CPU implementer'*) MAKER=$value ;;
            'CPU part'*) case " $PARTS " in *" $MAKER/$value "*) ;; *) PARTS="$PARTS $MAKER/$value" ;; esac ;;
            # one block tells all on x86, and there may be hundreds
            '') if [ -z "$MAKER" ] && [ -n "$FLAGS" ]; then break; fi ;;
        esac
    done 2>/dev/null <"$PREFIX/proc/cpuinfo"
}
cpu() {
    cpuinfo 2>/dev/null
    key cpu; if [ -n "$NAME" ]; then str "$NAME"; else no "no model name in /proc/cpuinfo"; fi
    key cpu_parts; if [ -n "$PARTS" ]; then str "${PARTS# }"; else no "no CPU part in /proc/cpuinfo"; fi
    key cpu_features; if [ -n "$FLAGS" ]; then str "$FLAGS"; else no "no flags or Features in /proc/cpuinfo"; fi
}
field() { # file, name -> what stands behind it
    found=
    { while IFS= read -r row; do
        case $row in "$2"*) found=${row#"$2"}; break ;; esac
    done <"$1"; } 2>/dev/null
    while :; do case $found in [\ :=\	]*) found=${found#?} ;; *) break ;; esac; done
    found=${found% kB}
    [ -n "$found" ]
}
board() { # NUL at the end of a device tree's text
    for f in "$PREFIX/sys/firmware/devicetree/base/model" "$PREFIX/proc/device-tree/model"; do
        if [ -r "$f" ]; then str "$(tr -d '\000' <"$f" 2>/dev/null)"; return; fi
    done
    if first "$PREFIX/sys/class/dmi/id/product_name"; then
        name=$LINE
        if first "$PREFIX/sys/class/dmi/id/sys_vendor"; then name="$LINE $name"; fi
        str "$name"
    else no "neither a device tree nor DMI"; fi
}
cores() {
    key affinity
    if field "$PREFIX/proc/$$/status" Cpus_allowed_list || field "$PREFIX/proc/self/status" Cpus_allowed_list
    then str "$found"; else no "no Cpus_allowed_list in /proc/self/status"; fi
    key cores; if has nproc; then num "$(nproc 2>/dev/null)"; else no "no nproc"; fi
}
frequencies() { # MODE: all | now
    add '['; sep=
    for p in "$PREFIX"/sys/devices/system/cpu/cpufreq/policy*; do
        [ -d "$p" ] || continue
        add "$sep"; sep=', '
        key name '{'; str "${p##*/}"
        key now_khz; file_num "$p/scaling_cur_freq"
        key allowed_khz; file_num "$p/scaling_max_freq"
        if [ "$1" = all ]; then
            key governor; file_str "$p/scaling_governor"
            key cpus; file_str "$p/related_cpus"
            key lowest_khz; file_num "$p/cpuinfo_min_freq"
            key highest_khz; file_num "$p/cpuinfo_max_freq"
        fi
        add '}'
    done
    add ']'
}
trips() {
    add '['; tsep=
    for t in "$1"/trip_point_*_temp; do
        [ -e "$t" ] || continue
        add "$tsep"; tsep=', '
        key type '{'; file_str "${t%temp}type"
        key temp_c; file_thousandths "$t"
        add '}'
    done
    add ']'
}
zones() { # MODE: all | now
    add '['; sep=
    for z in "$PREFIX"/sys/class/thermal/thermal_zone*; do
        [ -e "$z" ] || continue
        add "$sep"; sep=', '
        key type '{'; file_str "$z/type"
        key temp_c; file_thousandths "$z/temp"
        if [ "$1" = all ]; then key trips; trips "$z"; fi
        add '}'
    done
    add ']'
}
power_mode_of_file() { # pmode:0003 names an ID of /etc/nvpmodel.conf
    field "$PREFIX/var/lib/nvpmodel/status" pmode || return 1
    id=$found
    while :; do case $id in 0?*) id=${id#0} ;; *) break ;; esac; done
    while IFS= read -r row; do
        case $row in '#'*) continue ;; esac
        case "$row " in *POWER_MODEL*" ID=$id "*NAME=*) found=${row#*NAME=}; found=${found%% *}; found=${found%>}; return 0 ;; esac
    done 2>/dev/null <"$PREFIX/etc/nvpmodel.conf"
    return 1
}
power_mode() {
    if has nvpmodel; then
        found=$(nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: *//p')
        if [ -n "$found" ]; then str "$found"; return; fi
    fi
    if [ -r "$PREFIX/etc/nvpmodel.conf" ]; then
        if power_mode_of_file; then str "$found"; else no "nvpmodel -q says nothing without root, /var/lib/nvpmodel/status neither"; fi
    elif has settings && has getprop; then
        case $(settings get global low_power 2>/dev/null) in
            1) str "battery saver" ;; 0 | null) str "normal" ;; *) no "settings does not say" ;;
        esac
    elif first "$PREFIX/sys/firmware/acpi/platform_profile"; then str "$LINE"
    else no "no nvpmodel, no platform_profile"; fi
}
memory() {
    sep='{'
    for name in MemTotal MemAvailable SwapTotal SwapFree; do
        key "$name" "$sep"; sep=', '
        if field "$PREFIX/proc/meminfo" "$name:"; then num "$found"; else no "no $name in /proc/meminfo"; fi
    done
    add '}'
}
swaps() {
    add '['; sep=
    { while read -r name kind size _; do
        case $name in '' | Filename*) continue ;; esac
        add "$sep"; sep=', '
        key name '{'; str "$name"; key kind; str "$kind"; key kib; num "$size"; add '}'
    done <"$PREFIX/proc/swaps"; } 2>/dev/null
    add ']'
}
battery_of_service() { # current is not told there
    # the end of a pipe is a shell of its own: it prints what it adds
    add "$(dumpsys battery 2>/dev/null | {
        J='' level='' state='' volts='' plug=''
        while read -r row; do
            case $row in
                'level: '*) level=${row#*: } ;; 'status: '*) state=${row#*: } ;; 'voltage: '*) volts=${row#*: } ;;
                *' powered: true') plug=${plug:-${row%% powered*}} ;;
            esac
        done
        case $state in 2) state=Charging ;; 3) state=Discharging ;; 4) state='Not charging' ;; 5) state=Full ;; *) state= ;; esac
        key capacity '{'; num "$level"
        key status; if [ -n "$state" ]; then str "$state"; else no "dumpsys battery does not say"; fi
        key current_ua; no "not allowed to read /sys/class/power_supply"
        key voltage_uv; if is_number "$volts"; then add "${volts}000"; else no "dumpsys battery does not say"; fi
        key plugged; if [ -n "$plug" ]; then str "$plug"; else no "nothing plugged in"; fi
        add '}'
        printf '%s' "$J"
    })"
}
battery() {
    for b in "$PREFIX"/sys/class/power_supply/*; do
        first "$b/type" || continue
        [ "$LINE" = Battery ] || continue
        key capacity '{'; file_num "$b/capacity"
        key status; file_str "$b/status"
        key current_ua; file_num "$b/current_now"
        key voltage_uv; file_num "$b/voltage_now"
        add '}'
        return
    done
    if has dumpsys; then battery_of_service; else no "no battery in /sys/class/power_supply"; fi
}
pi_throttled() {
    if first "$PREFIX/sys/devices/platform/soc/soc:firmware/get_throttled"; then str "0x${LINE#0x}"; return; fi
    if has vcgencmd; then
        found=$(vcgencmd get_throttled 2>/dev/null)
        case $found in throttled=0x*) str "${found#*=}"; return ;; esac
    fi
    no "no vcgencmd"
}
counters() { # slowed down so many times, all cores together
    total='' why="no thermal_throttle counters"
    for f in "$PREFIX"/sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count; do
        [ -e "$f" ] || continue
        if first "$f" && is_number "$LINE"; then total=$((${total:-0} + LINE)); else why=$REASON; fi
    done
    if [ -n "$total" ]; then add "$total"; else no "$why"; fi
}
cooling() {
    add '['; sep=
    for c in "$PREFIX"/sys/class/thermal/cooling_device*; do
        [ -e "$c" ] || continue
        add "$sep"; sep=', '
        key type '{'; file_str "$c/type"
        key now; file_num "$c/cur_state"
        key most; file_num "$c/max_state"
        add '}'
    done
    add ']'
}
throttling() {
    key pi '{'; pi_throttled
    key counters; counters
    key cooling; cooling
    add '}'
}
thermal_service() { # the cached block of this service lags far behind: only the status and what the HAL says now
    if ! has dumpsys; then no "no dumpsys: not Android"; return; fi
    add "$(dumpsys thermalservice 2>/dev/null | {
        J='' status='' now='' sep=''
        while IFS= read -r row; do
            case $row in
                'Thermal Status: '*) status=${row#*: } ;;
                'Current temperatures from HAL'*) now=1 ;;
                *'Temperature{'*mValue=*mName=*)
                    [ -n "$now" ] || continue
                    value=${row#*mValue=}; name=${row#*mName=}
                    add "$sep"; sep=', '
                    key type '{'; str "${name%%[,\}]*}"
                    key temp_c; num "${value%%[,\}]*}"
                    add '}' ;;
                [!\ \	]*) now= ;;
            esac
        done
        list=$J J=''
        if [ -n "$status$list" ]; then
            key status '{'; if [ -n "$status" ]; then num "$status"; else no "no Thermal Status in dumpsys thermalservice"; fi
            key temperatures; add "[$list]}"
        else no "dumpsys thermalservice says nothing"; fi
        printf '%s' "$J"
    })"
}
os_release() {
    for f in "$PREFIX/etc/os-release" "$PREFIX/usr/lib/os-release"; do
        if field "$f" PRETTY_NAME; then found=${found#\"}; str "${found%\"}"; return; fi
    done
    if has getprop; then str "Android $(getprop ro.build.version.release)"; else no "no /etc/os-release"; fi
}
android() {
    if ! has getprop; then no "no getprop: not Android"; return; fi
    sep='{'
    for name in ro.product.manufacturer ro.product.model ro.soc.manufacturer ro.soc.model ro.hardware ro.build.version.release ro.build.version.sdk; do
        key "$name" "$sep"; sep=', '
        found=$(getprop "$name" 2>/dev/null)
        if [ -n "$found" ]; then str "$found"; else no "getprop says nothing"; fi
    done
    add '}'
}
l4t() { # "# R36 (release), REVISION: 4.7, GCID: ..." -> R36.4.7
    if ! first "$PREFIX/etc/nv_tegra_release"; then no "$REASON"; return; fi
    major=${LINE#\# } minor=${LINE#*REVISION: }
    str "${major%% *}.${minor%%,*}"
}
nvidia() {
    if ! has nvidia-smi; then no "no nvidia-smi"; return; fi
    found=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null </dev/null)
    if [ -n "$found" ]; then str "$found"; else no "nvidia-smi says nothing"; fi
}
vulkan() { # names of the drivers that are installed; the loader finds them by these files
    add '['; sep=
    for f in "$PREFIX"/usr/share/vulkan/icd.d/*.json "$PREFIX"/etc/vulkan/icd.d/*.json "$PREFIX"/vendor/lib64/hw/vulkan.*.so; do
        [ -e "$f" ] || continue
        f=${f##*/}; f=${f%.json}; f=${f%.so}
        add "$sep"; sep=', '; str "$f"
    done
    add ']'
}
python() {
    if ! has python3; then no "no python3 on PATH"; return; fi
    found=$(python3 -V 2>&1 | sed -n 's/^Python //p')
    if [ -n "$found" ]; then str "$found"; else no "python3 -V does not work"; fi
}
sha256() {
    if has sha256sum; then str sha256sum
    elif has toybox && toybox sha256sum </dev/null >/dev/null 2>&1; then str "toybox sha256sum"
    elif has busybox && busybox sha256sum </dev/null >/dev/null 2>&1; then str "busybox sha256sum"
    elif has shasum; then str "shasum -a 256"
    elif has openssl; then str "openssl dgst -sha256 -r"
    else no "no sha256sum, shasum or openssl"; fi
}

# ---- is this a machine, or a program that plays one? ----
family() { case $1 in x86_64 | amd64 | i?86) echo x86 ;; aarch64* | arm* ) echo arm ;; *) echo "$1" ;; esac; }
# qemu-user shows the guest what it expects in /proc/self and /proc/PID, and uname; it does not cover up
# /proc/PID/task/PID, nor /proc/sys/kernel/arch (Linux 6.1), which both belong to the real kernel.
emulated() {
    exe=$(readlink "$PREFIX/proc/$$/task/$$/exe" 2>/dev/null)
    if [ -z "$exe" ] && field "$PREFIX/proc/$$/task/$$/status" Name; then exe=$found; fi
    case ${exe##*/} in
        *qemu* | *box64* | *box86* | FEX* | *rosetta* | *blink*) key emulated; add true; key emulated_why; str "${exe##*/} runs this shell"; return ;;
    esac
    machine=$(uname -m)
    if first "$PREFIX/proc/sys/kernel/arch" && [ "$(family "$LINE")" != "$(family "$machine")" ]; then
        key emulated; add true; key emulated_why; str "the kernel is $LINE, programs see $machine"; return
    fi
    key emulated; add false; key emulated_why; no "no sign of an emulator"
}
virtual() { # said, but a virtual machine on its own processor runs at that processor's speed
    if has getprop; then
        case "$(getprop ro.hardware) $(getprop ro.kernel.qemu)" in *goldfish* | *ranchu* | *cutf* | *' 1') str "Android emulator"; return ;; esac
    fi
    for f in sys_vendor product_name; do
        first "$PREFIX/sys/class/dmi/id/$f" || continue
        case $LINE in *QEMU* | *KVM* | *VMware* | *VirtualBox* | *Xen* | *'Virtual Machine'* | *'Google Compute'* | *'Amazon EC2'* | *Firecracker*) str "$LINE"; return ;; esac
    done
    if [ -z "$FLAGS" ]; then cpuinfo 2>/dev/null; fi
    case " $FLAGS " in *' hypervisor '*) str "hypervisor" ;; *) no "no sign of a virtual machine" ;; esac
}
uptime_s() { if first "$PREFIX/proc/uptime"; then num "${LINE%% *}"; else no "$REASON"; fi; }
load_average() {
    if first "$PREFIX/proc/loadavg"; then
        # shellcheck disable=SC2086  # three numbers
        set -- $LINE
        add '['; num "$1"; add ', '; num "$2"; add ', '; num "$3"; add ']'
    else no "$REASON"; fi
}

document() {
    J=''
    key schema_version '{'; add 1
    key uptime_s; uptime_s
    key machine; str "$(uname -m)"
    key kernel_name; str "$(uname -s)"
    key kernel; str "$(uname -r)"
    key os; os_release
    key board; board
    cpu
    cores
    key frequencies; frequencies all
    key thermal_zones; zones all
    key power_mode; power_mode
    key memory_kib; memory
    key swaps; swaps
    key load_average; load_average
    key battery; battery
    key throttling; throttling
    key android; android
    key l4t; l4t
    key nvidia; nvidia
    key vulkan; vulkan
    key thermal_service; thermal_service
    key python3; python
    key sha256; sha256
    emulated
    key virtual; virtual
    printf '%s}\n' "$J"
}
watch_line() { # tegrastats' line, or nothing; printed in one piece, so that a kill leaves whole lines
    J=''
    key uptime_s '{'; uptime_s
    key thermal_zones; zones now
    key frequencies; frequencies now
    key throttling; throttling
    key available_kib; if field "$PREFIX/proc/meminfo" MemAvailable:; then num "$found"; else no "no MemAvailable"; fi
    key battery; battery
    key thermal_service; thermal_service
    key tegrastats; if [ -n "$1" ]; then str "$1"; else no "no tegrastats"; fi
    printf '%s}\n' "$J"
}
alive() { # this shell; a killed one that nobody has waited for is not
    kill -0 $$ 2>/dev/null || return 1
    if field "/proc/$$/status" State; then case $found in Z*) return 1 ;; esac; fi
}
watch() {
    if has tegrastats; then # it is the clock then; it ends by itself when nobody reads, and the reader when this shell is gone
        tegrastats --interval "${1}000" 2>/dev/null | while IFS= read -r reading; do
            alive || exit 0
            watch_line "$reading"
        done
    fi
    while :; do watch_line ''; sleep "$1"; done
}

case ${1:-} in
    '') document ;;
    watch)
        case ${2:-} in '' | *[!0-9]* | 0) echo "probe.sh watch: name whole seconds, as 5" >&2; exit 2 ;; esac
        watch "$2" ;;
    *) echo "probe.sh [watch SECONDS]" >&2; exit 2 ;;
esac
