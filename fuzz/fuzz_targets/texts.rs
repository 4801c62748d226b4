//! Any text for the readers of foreign text: requirements, the records of a kubelet, a registry's
//! answer 401, the daemon's own ledger. Each reader answers in little time and memory, and its
//! answer does not control a terminal. A ledger that is read, written and read again stays the
//! same.

#![no_main]

#[path = "../../crates/registry/src/challenge.rs"]
mod challenge;

use airgapd_fuzz::assert_printable;
use basics::Foreign;
use libfuzzer_sys::fuzz_target;
use node::state::ledger::Ledger;
use platforms::Platform;
use requirements::kubelet::records::{Folder, Records};
use requirements::{Limits, Problem, k0s, kubelet, lists, manifests};

const LIMITS: Limits = Limits {
    text: 64 << 10,
    document: 16 << 10,
    expanded: 1 << 20,
};

fuzz_target!(|data: &[u8]| {
    let Some((&reader, bytes)) = data.split_first() else {
        return;
    };
    if reader % 9 == 8 {
        return read_ledger(bytes);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match reader % 9 {
        0 => list_images(text),
        1 => match k0s::parse_sets(text, None, &LIMITS) {
            Ok(_) => {}
            Err(problems) => all_printable(&problems.0),
        },
        2 => {
            let found = manifests::read(text, &LIMITS);
            found
                .uses
                .iter()
                .for_each(|found| drop(found.effective_policy().to_owned()));
            all_printable(&found.problems);
        }
        3 => lists::parse(text)
            .iter()
            .for_each(|line| assert!(!line.reference.is_empty())),
        4 => judge(text, &Records::default()),
        5 => {
            let (file, text) = text.split_once('\n').unwrap_or(("sha256-a", text));
            let mut records = Records::default();
            Folder::ALL
                .iter()
                .for_each(|folder| records.add(*folder, file, text));
            judge("kind: KubeletConfiguration", &records);
        }
        6 => drop(challenge::parse(text)),
        _ => {
            let foreign = Foreign::new(text);
            assert_printable(&foreign.to_string());
            assert_printable(&format!("{foreign:?} {foreign:.7}"));
            let json = serde_json::to_string(&foreign).expect("text is plain data");
            assert_eq!(serde_json::from_str::<String>(&json).as_deref().ok(), Some(text));
        }
    }
});

fn list_images(text: &str) {
    let platform: Platform = "linux/amd64".parse().expect("a platform");
    match k0s::parse(text, &LIMITS) {
        Ok(config) => drop(k0s::images(&config, &k0s::newest(), &platform, true)),
        Err(problems) => all_printable(&problems.0),
    }
}

fn judge(text: &str, records: &Records) {
    match kubelet::parse(text, &LIMITS) {
        Ok(kubelet) => drop(kubelet.verdict(records, "r.test/a:1", "sha256:aa")),
        Err(problems) => all_printable(&problems.0),
    }
}

fn all_printable(problems: &[Problem]) {
    problems
        .iter()
        .for_each(|problem| assert_printable(&problem.to_string()));
}

fn read_ledger(bytes: &[u8]) {
    let Ok(ledger) = serde_json::from_slice::<Ledger>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&ledger).expect("a ledger is plain data");
    let read: Ledger = serde_json::from_slice(&written).expect("a written ledger can be read");
    assert_eq!(read, ledger, "a ledger is not read back as it is written");
}
