"""Devices as folders: what /proc, /sys and /etc of a board say, for `PREFIX=... sh probe.sh`, and its own programs."""

from __future__ import annotations

from pathlib import Path

PI_CPUINFO = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Revision\t: d04170
Serial\t\t: 0000000000000000
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""
MEMINFO = """MemTotal:        8255856 kB
MemFree:             123 kB
MemAvailable:    6511232 kB
SwapTotal:        204784 kB
SwapFree:         204784 kB
"""
ORIN_CORE = "processor\t: {}\nFeatures\t: fp asimd asimdhp asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\n\n"
PIXEL_CORE = "processor\t: {}\nFeatures\t: fp asimd i8mm bf16 sve2\nCPU implementer\t: 0x41\nCPU part\t: {}\n\n"
PC_CORE = "processor\t: {}\nmodel name\t: Intel(R) N100\nflags\t\t: fpu sse4_2 avx2 avx_vnni f16c fma\n\n"
NVPMODEL_CONF = (
    "# < POWER_MODEL ID=9 NAME=COMMENT >\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n"
    "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
)
THERMAL_SERVICE = """IsStatusOverride: false
ThermalEventListeners:
\tcallbacks: 4
Thermal Status: 1
Cached temperatures:
\tTemperature{mValue=84.0, mType=0, mName=BIG, mStatus=0}
HAL Ready: true
HAL connection:
\tThermalHAL AIDL 2 connected: yes
Current temperatures from HAL:
\tTemperature{mValue=58.1, mType=0, mName=BIG, mStatus=0}
\tTemperature{mValue=31.5, mType=2, mName=battery, mStatus=0}
Current cooling devices from HAL:
\tCoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
Temperature static thresholds from HAL:
\tTemperatureThreshold{mType=0, mName=BIG, mHotThrottlingThresholds=[NaN, NaN, NaN]}
"""
BATTERY_SERVICE = """Current Battery Service state:
  AC powered: false
  USB powered: true
  Wireless powered: false
  status: 2
  level: 81
  voltage: 4312
  temperature: 301
"""
Tree = dict[str, str]


def zone(number: int, kind: str, milli: str, **trips: str) -> Tree:
    at = f"sys/class/thermal/thermal_zone{number}"
    found = {f"{at}/type": kind, f"{at}/temp": milli}
    for i, (name, value) in enumerate(trips.items()):
        found |= {f"{at}/trip_point_{i}_type": name, f"{at}/trip_point_{i}_temp": value}
    return found


def policy(number: int, governor: str, now: str, allowed: str, highest: str) -> Tree:
    at = f"sys/devices/system/cpu/cpufreq/policy{number}"
    return {
        f"{at}/scaling_governor": governor,
        f"{at}/scaling_cur_freq": now,
        f"{at}/scaling_max_freq": allowed,
        f"{at}/cpuinfo_max_freq": highest,
        f"{at}/cpuinfo_min_freq": "300000",
        f"{at}/related_cpus": "0 1 2 3",
    }


def cooling(number: int, kind: str, now: str) -> Tree:
    at = f"sys/class/thermal/cooling_device{number}"
    return {f"{at}/type": kind, f"{at}/cur_state": now, f"{at}/max_state": "4"}


def common(release: str) -> Tree:
    return {
        "proc/uptime": "1234.56 4321.00",
        "proc/loadavg": "0.15 0.20 0.30 1/200 999",
        "proc/meminfo": MEMINFO,
        "etc/os-release": f'NAME="x"\nPRETTY_NAME="{release}"\n',
        "proc/self/status": "Cpus_allowed_list:\t0-3\n",
        "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 204784 0 100\n",
    }


PI: Tree = {
    **common("Debian GNU/Linux 12 (bookworm)"),
    **zone(0, "cpu-thermal", "48350", critical="110000"),
    **policy(0, "ondemand", "1500000", "2400000", "2400000"),
    **cooling(0, "pwm-fan", "2"),
    "proc/cpuinfo": PI_CPUINFO,
    "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "proc/sys/kernel/arch": "aarch64",
}
ORIN: Tree = {
    **common("Ubuntu 22.04.5 LTS"),
    **zone(0, "cpu-thermal", "48562"),
    **zone(1, "gpu-thermal", ""),
    **zone(2, "tj-thermal", "-5"),
    **policy(0, "schedutil", "729600", "1728000", "1728000"),
    **cooling(0, "cpu-throttle-alert", "0"),
    "proc/cpuinfo": "".join(ORIN_CORE.format(i) for i in range(6)),
    "sys/firmware/devicetree/base/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "etc/nvpmodel.conf": NVPMODEL_CONF,
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.7, GCID: 42132812, BOARD: generic, EABI: aarch64, DATE: x\n",
    "etc/vulkan/icd.d/nvidia_icd.json": "{}",
    "var/lib/nvpmodel/status": "pmode:0002",
}
PIXEL: Tree = {
    "proc/uptime": "99.01 4.00",
    "proc/meminfo": MEMINFO.replace("8255856", "11776568"),
    "proc/cpuinfo": "".join(PIXEL_CORE.format(i, part) for i, part in enumerate(["0xd46"] * 4 + ["0xd4d", "0xd4e"])),
}
PC: Tree = {
    **common('Arch "rolling" \\o/'),
    **zone(0, "x86_pkg_temp", "51000", passive="95000", critical="105000"),
    **policy(0, "powersave", "700000", "3400000", "3400000"),
    "proc/cpuinfo": PC_CORE.format(0) + PC_CORE.format(1),
    "sys/class/dmi/id/sys_vendor": "Beelink",
    "sys/class/dmi/id/product_name": "EQ12",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": "4",
    "sys/firmware/acpi/platform_profile": "balanced",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "sys/class/power_supply/BAT0/capacity": "77",
    "sys/class/power_supply/BAT0/current_now": "-1500000",
    "sys/class/power_supply/BAT0/voltage_now": "11400000",
}
VCGENCMD = 'echo "throttled=0x50005"'
NVPMODEL = 'echo "NVPM WARN: fan mode is not set!"; echo "NV Power Mode: 25W"; echo 1'
GETPROP = """case $1 in
ro.product.model) echo "Pixel 8" ;; ro.build.version.release) echo 15 ;; ro.soc.model) echo Tensor G3 ;;
esac"""
DUMPSYS = (
    f"case $1 in\nthermalservice) cat <<'X'\n{THERMAL_SERVICE}X\n;; battery) cat <<'X'\n{BATTERY_SERVICE}X\n;; esac"
)


def plant(root: Path, tree: Tree) -> Path:
    """The files of a device below `root`."""
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text if text.endswith(("\n", "\0")) or not text else text + "\n", encoding="utf-8")
    return root


def programs(folder: Path, **scripts: str) -> Path:
    """A folder for PATH with programs of a device."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, body in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder
