//! Host detection from the texts of real Linux machines.

use airgapd_platforms::{Platform, detect};

const SERVER: &str = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n\
                      CPU architecture: 8\nCPU variant\t: 0x3\n\nprocessor\t: 1\nCPU architecture: 7\n";
const PI_ZERO: &str = "processor\t: 0\nmodel name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\nHardware\t: BCM2835\n";
const PI_2: &str = "processor\t: 0\nmodel name\t: ARMv7 Processor rev 5 (v7l)\nCPU architecture: 7\n";
const X86: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Some CPU\nflags\t\t: fpu avx2\n";

#[test]
fn arm_machines_get_the_variant_of_their_cpu() {
    for (cpuinfo, machine, go_arch, variant) in [
        (SERVER, "aarch64", "arm64", "v8"),
        (SERVER, "aarch64", "arm", "v8"),
        (PI_ZERO, "armv6l", "arm", "v6"),
        (PI_ZERO, "armv6l", "arm64", "v7"),
        (PI_2, "armv7l", "arm", "v7"),
        ("cpu ARCHITECTURE : AArch64 : x\n", "", "arm64", "v8"),
        ("CPU architecture: 7M\n", "", "arm", "v7"),
        ("CPU architecture: ?(13)\n", "", "arm", "v7"),
        ("CPU architecture: ?(18)\n", "", "arm", "unknown"),
        ("CPU architecture: 6TEJ\n", "", "arm", "v6"),
        ("CPU architecture: 5TE\n", "", "arm", "v5"),
        ("CPU architecture: 4T\n", "", "arm", "v4"),
        ("CPU architecture: 3\n", "", "arm", "v3"),
        ("CPU architecture: 9\n", "aarch64", "arm64", "unknown"),
        ("CPU architecture:\n", "aarch64", "arm64", "unknown"),
    ] {
        let expected = Platform::new("linux", go_arch, variant);
        assert_eq!(
            detect(cpuinfo, machine, go_arch),
            expected,
            "{cpuinfo:?} on {machine}"
        );
    }
}

#[test]
fn without_the_cpuinfo_line_the_machine_name_decides() {
    for (machine, variant) in [
        ("aarch64", "v8"),
        ("AARCH64", "v8"),
        ("armv8l", "v8"),
        ("armv7l", "v7"),
        ("armv6l", "v6"),
        ("armv5tel", "v5"),
        ("armv4l", "v4"),
        ("armv3", "v3"),
        ("armv2", "unknown"),
        ("armv9", "unknown"),
        ("armv", ""),
        ("arm", ""),
        ("x86_64", ""),
        ("", ""),
    ] {
        assert_eq!(
            detect(X86, machine, "arm"),
            Platform::new("linux", "arm", variant),
            "{machine:?}"
        );
    }
}

#[test]
fn other_machines_have_no_variant() {
    for go_arch in ["amd64", "386", "riscv64", "s390x", "ppc64le", "loong64"] {
        assert_eq!(
            detect(SERVER, "aarch64", go_arch),
            Platform::new("linux", go_arch, "")
        );
    }
}
