//! The platform of a machine, as containerd detects it.
//!
//! This is a fallback. A containerd that answers reports its own platform.

use std::fs;

use crate::Platform;
use crate::platform::RUNNING_OS;

/// Detects the platform of this machine as its containerd would: Linux, the architecture that this
/// program was built for, and on arm and arm64 the CPU's level.
///
/// Reads `/proc/cpuinfo` and `uname(2)`. If they cannot be read, the platform has no variant.
pub fn host() -> Platform {
    let cpuinfo = fs::read("/proc/cpuinfo").unwrap_or_default();
    let machine = rustix::system::uname();
    let architecture = go_architecture(std::env::consts::ARCH, cfg!(target_endian = "little"));
    detect(
        &String::from_utf8_lossy(&cpuinfo),
        &machine.machine().to_string_lossy(),
        architecture,
    )
}

/// Detects the platform of a Linux machine from texts that the caller read there.
///
/// They are its `/proc/cpuinfo` and the `machine` field of its `uname(2)`. `go_arch` is the
/// architecture that its containerd was built for, by Go's name.
///
/// Only `arm` and `arm64` have a variant. An amd64 node never claims `v2` or `v3`, even if its CPU
/// has that level. ARMv9 CPUs report 8 and are `v8`.
pub fn detect(cpuinfo: &str, machine: &str, go_arch: &str) -> Platform {
    let variant = match go_arch {
        "arm" | "arm64" => cpu_architecture(cpuinfo, machine, go_arch).map(|value| variant(&value)),
        _ => None,
    };
    Platform::new(RUNNING_OS, go_arch, variant.unwrap_or_default())
}

fn cpu_architecture(cpuinfo: &str, machine: &str, go_arch: &str) -> Option<String> {
    let Some(value) = field(cpuinfo, "CPU architecture") else {
        // An emulated program sees the cpuinfo of the host, which has no such line on x86.
        return machine_level(machine).map(str::to_owned);
    };
    let model = field(cpuinfo, "model name")
        .unwrap_or_default()
        .to_ascii_lowercase();
    // On Raspberry Pi 1 and Zero the kernel reports 7 for the ARMv6 CPU.
    let pi = go_arch == "arm" && value == "7" && model.starts_with("armv6-compatible");
    Some(if pi { "6" } else { value }.to_owned())
}

/// Returns the value of the first `key : value` line. A second colon ends the value.
fn field<'a>(cpuinfo: &'a str, key: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let mut parts = line.split(':').map(str::trim);
        let found = parts.next()?.eq_ignore_ascii_case(key);
        parts.next().filter(|_| found)
    })
}

fn machine_level(machine: &str) -> Option<&'static str> {
    let machine = machine.to_ascii_lowercase();
    if machine == "aarch64" {
        return Some("8");
    }
    let level = machine.strip_prefix("armv")?.chars().next()?;
    Some(match level {
        '8' => "8",
        '7' => "7",
        '6' => "6",
        '5' => "5",
        '4' => "4",
        '3' => "3",
        _ => "unknown",
    })
}

fn variant(value: &str) -> &'static str {
    match value.to_ascii_lowercase().as_str() {
        "8" | "aarch64" => "v8",
        "7" | "7m" | "?(12)" | "?(13)" | "?(14)" | "?(15)" | "?(16)" | "?(17)" => "v7",
        "6" | "6tej" => "v6",
        "5" | "5t" | "5te" | "5tej" => "v5",
        "4" | "4t" => "v4",
        "3" => "v3",
        _ => "unknown",
    }
}

/// Returns Go's name of an architecture in [`std::env::consts::ARCH`].
fn go_architecture(rust: &'static str, little_endian: bool) -> &'static str {
    match (rust, little_endian) {
        ("x86_64", _) => "amd64",
        ("x86", _) => "386",
        ("aarch64", _) => "arm64",
        ("loongarch64", _) => "loong64",
        ("powerpc64", true) => "ppc64le",
        ("powerpc64", false) => "ppc64",
        ("mips", true) => "mipsle",
        ("mips64", true) => "mips64le",
        (same, _) => same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rust_architectures_get_their_go_names() {
        let names = [
            ("x86_64", "amd64"),
            ("x86", "386"),
            ("aarch64", "arm64"),
            ("arm", "arm"),
            ("powerpc64", "ppc64le"),
            ("s390x", "s390x"),
            ("riscv64", "riscv64"),
            ("loongarch64", "loong64"),
        ];
        for (rust, go) in names {
            assert_eq!(go_architecture(rust, true), go, "{rust}");
        }
        assert_eq!(go_architecture("powerpc64", false), "ppc64");
    }

    #[test]
    fn this_machine_is_a_linux_of_the_architecture_we_were_built_for() {
        let host = host();
        assert_eq!(host.os, "linux");
        assert_eq!(
            host.architecture,
            go_architecture(std::env::consts::ARCH, cfg!(target_endian = "little"))
        );
        let arm = host.architecture.starts_with("arm");
        assert_eq!(host.variant.is_some(), arm, "only arm has a variant: {host}");
    }
}
