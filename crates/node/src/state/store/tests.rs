use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;

use super::super::crash::boot_id;
use super::super::entry::{ErrorClass, Imported, LastError, StandsFor};
use super::super::ledger::tests::{digest, failure, identity, imported, name, sample};
use super::super::suspects::Crash;
use super::*;
use import::Outcome;

#[test]
fn what_is_saved_is_read_back_equal_odd_file_names_included() {
    let folder = tempfile::tempdir().unwrap();
    let (mut store, _, notices) = Store::open(folder.path()).unwrap();
    assert!(notices.is_empty());
    let mut ledger = sample();
    let odd = OsStr::from_bytes(b"\xff\xfe\n.tar");
    ledger.record_import(odd, Outcome::Partial, imported(1, &[]), []);
    ledger.context.boot = boot_id();
    assert!(matches!(store.save(&ledger), Saved::Written));
    assert!(matches!(store.save(&ledger), Saved::Unchanged));
    drop(store);

    let (_, again, notices) = Store::open(folder.path()).unwrap();
    assert!(notices.is_empty());
    assert_eq!(again, ledger);
    assert!(!folder.path().join(TEMPORARY).exists());
    let mode = std::fs::metadata(folder.path().join(FILE))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_daemon_is_refused_with_the_pid_of_the_first_until_that_one_ends() {
    let folder = tempfile::tempdir().unwrap();
    let first = Store::open(folder.path()).unwrap();
    let error = Store::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    drop(first);
    assert!(Store::open(folder.path()).is_ok());
}

#[test]
fn broken_files_are_set_aside_and_the_ledger_starts_empty() {
    let whole = serde_json::to_vec(&sample()).unwrap();
    let cut = &whole[..whole.len() / 2];
    let bad_digest = String::from_utf8(whole.clone())
        .unwrap()
        .replace(&"1".repeat(64), "../etc");
    let table: [(&str, &[u8]); 7] = [
        ("empty", b""),
        ("no JSON", b"\0\0\0"),
        ("cut", cut),
        ("no version", b"{}"),
        ("foreign", b"[1, 2]"),
        ("version 0", br#"{"version": 0}"#),
        ("a digest that is none", bad_digest.as_bytes()),
    ];
    for (case, bytes) in table {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), bytes).unwrap();
        let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
        assert_eq!(ledger, Ledger::default(), "{case}");
        assert!(
            matches!(notices.as_slice(), [Notice::SetAside { .. }]),
            "{case}: {notices:?}"
        );
        assert_eq!(std::fs::read(folder.path().join(ASIDE)).unwrap(), bytes, "{case}");
        assert!(matches!(store.save(&sample()), Saved::Written), "{case}");
    }
}

/// The form of `state.json` in 0.1.0, as far as a reader depends on it. This module must not
/// change.
#[allow(dead_code, reason = "these keys are only read")]
mod as_of_0_1_0 {
    use std::collections::{BTreeMap, HashMap};

    use jiff::Timestamp;
    use oci_spec::image::Digest;
    use serde::Deserialize;

    use super::super::super::entry::file_name;

    #[derive(Deserialize)]
    pub(super) struct Ledger {
        pub(super) version: u32,
        #[serde(default)]
        pub(super) context: Context,
        pub(super) next_arrival: u64,
        #[serde(default)]
        pub(super) bundles: BTreeMap<String, Entry>,
        #[serde(default)]
        pub(super) closures: HashMap<Digest, Vec<Digest>>,
    }

    #[derive(Default, Deserialize)]
    pub(super) struct Context {
        containerd: Option<String>,
        boot: Option<String>,
        selection: Option<String>,
        #[serde(default)]
        folder: Option<(u64, u64)>,
        #[serde(default)]
        program: Option<String>,
    }

    #[derive(Deserialize)]
    pub(super) struct Entry {
        #[serde(with = "file_name_only")]
        pub(super) file: std::ffi::OsString,
        arrival: u64,
        identity: Identity,
        pub(super) outcome: Outcome,
        #[serde(default)]
        attempts: u32,
        #[serde(default)]
        pub(super) last_error: Option<LastError>,
        #[serde(default)]
        pub(super) imported: Option<Imported>,
        #[serde(default)]
        pub(super) gone: Option<Timestamp>,
    }

    /// `#[serde(with)]` needs a module. These types are only read, so it has no `serialize`.
    mod file_name_only {
        pub(super) use super::file_name::deserialize;
    }

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "kebab-case")]
    pub(super) enum Outcome {
        Pending,
        Imported,
        Unchanged,
        Partial,
        Skipped,
        Failed,
    }

    #[derive(Deserialize)]
    pub(super) struct LastError {
        pub(super) text: String,
        class: ErrorClass,
        at: Timestamp,
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    enum ErrorClass {
        Transient,
        Space,
        Disk,
        Bundle,
        Permanent,
        Refused,
    }

    #[derive(Deserialize)]
    pub(super) struct Imported {
        identity: Identity,
        #[serde(default)]
        sidecar: Option<Identity>,
        pub(super) catalog: Digest,
        pub(super) images: Vec<ImageEntry>,
        at: Timestamp,
        duration_ms: u64,
        sent_bytes: u64,
    }

    #[derive(Deserialize)]
    pub(super) struct ImageEntry {
        pub(super) name: String,
        pub(super) target: Digest,
    }

    #[derive(Deserialize)]
    struct Identity {
        device: u64,
        inode: u64,
        size: u64,
        mtime_ns: i64,
        ctime_ns: i64,
    }
}

/// A rollback: this ledger has every key that came after 0.1.0, and every class of error.
#[test]
fn a_ledger_of_this_version_is_read_by_0_1_0() {
    let mut ledger = sample();
    let again = Imported {
        at: jiff::Timestamp::from_second(9).unwrap(),
        ..imported(1, &[("docker.io/library/x:1", '1')])
    };
    ledger.record_import(name("a.tar"), Outcome::Unchanged, again, []);
    let classes = [
        ErrorClass::Transient,
        ErrorClass::Space,
        ErrorClass::Disk,
        ErrorClass::Bundle,
        ErrorClass::Permanent,
        ErrorClass::Refused,
        ErrorClass::Degraded,
    ];
    for (number, class) in classes.into_iter().enumerate() {
        let error = LastError {
            class,
            images: number,
            ..failure("bad")
        };
        let file = format!("bad-{number}.tar");
        ledger.record_failure(name(&file), identity(1), Outcome::Failed, error);
    }
    ledger.arrive(name("new.tar"), &identity(1));
    ledger.arrive(OsStr::from_bytes(b"\xff.tar"), &identity(1));
    let crash = Crash {
        cause: "a crash".to_owned(),
        boot: Some("a boot".to_owned()),
        program: Some("a program".to_owned()),
        at: jiff::Timestamp::UNIX_EPOCH,
    };
    ledger.record_crash(name("new.tar"), &identity(1), crash, "the way out");
    ledger.mark_gone(|file| Some(file != "bad-0.tar"), jiff::Timestamp::UNIX_EPOCH);
    let text = serde_json::to_string(&ledger).unwrap();
    for key in ["\"first\"", "\"crashes\"", "\"images\":5", "\"degraded\":true"] {
        assert!(text.contains(key), "{key} is not in {text}");
    }

    let read: as_of_0_1_0::Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!((read.version, read.next_arrival), (1, 11));
    assert_eq!(read.closures.len(), 1);
    let of = |file: &str| read.bundles.values().find(|entry| entry.file == file).unwrap();
    let a = of("a.tar");
    assert_eq!(a.outcome, as_of_0_1_0::Outcome::Unchanged);
    let images = &a.imported.as_ref().unwrap().images;
    assert_eq!(
        (images[0].name.as_str(), &images[0].target),
        ("docker.io/library/x:1", &digest('1'))
    );
    assert_eq!(of("new.tar").outcome, as_of_0_1_0::Outcome::Pending);
    assert_eq!(of("bad-3.tar").last_error.as_ref().unwrap().text, "bad");
    assert!(of("bad-0.tar").gone.is_some());
    assert_eq!(read.bundles.len(), 10);
}

/// A rollback: a bundle whose file a receipt has replaced is no bundle that 0.1.0 calls gone.
#[test]
fn receipts_are_none_to_0_1_0() {
    let mut ledger = sample();
    let receipt = name("/var/lib/airgapd/receipts/a.tar");
    ledger.arrive(receipt, &identity(7));
    let of = StandsFor {
        bundle: "a.tar".to_owned(),
        identity: identity(1),
        made_at: 1,
        rolled_back_at: None,
        lease: "airgapd-receipt-a".to_owned(),
        by_hand: false,
        catalog: None,
    };
    ledger.stand_for(receipt, of);
    let images = imported(7, &[("docker.io/library/x:1", '1')]);
    ledger.record_import(receipt, Outcome::Imported, images, []);
    ledger.forget(name("a.tar"));
    let text = serde_json::to_string(&ledger).unwrap();
    let read: as_of_0_1_0::Ledger = serde_json::from_str(&text).unwrap();
    assert!(
        read.bundles.is_empty(),
        "it would call a bundle gone and take off its labels"
    );
    let again: Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!(again.receipts().collect::<Vec<_>>(), [receipt]);
}

/// A rollback: 0.1.0 has one folder, and would take off the pins of bundles that it lacks.
#[test]
fn bundles_of_further_folders_are_none_to_0_1_0_and_everything_else_is_as_without_them() {
    let mut ledger = sample();
    let mut before = serde_json::to_value(&ledger).unwrap();
    let file = name("/usr/share/images/a.tar");
    let images = imported(2, &[("docker.io/library/y:1", '3')]);
    ledger.record_import(
        file,
        Outcome::Imported,
        images,
        [(digest('3'), vec![digest('3')])],
    );
    ledger
        .context
        .more_folders
        .insert("/usr/share/images".into(), (1, 2));
    let text = serde_json::to_string(&ledger).unwrap();

    let read: as_of_0_1_0::Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!(
        read.bundles.values().map(|entry| &entry.file).collect::<Vec<_>>(),
        ["a.tar"]
    );
    let mut written: serde_json::Value = serde_json::from_str(&text).unwrap();
    let keys = written.as_object_mut().unwrap();
    assert!(keys.remove("more_bundles").is_some());
    assert!(
        keys["context"]
            .as_object_mut()
            .unwrap()
            .remove("more_folders")
            .is_some()
    );
    // The number of the next bundle and the blobs of its images are all that remains.
    keys["next_arrival"] = before["next_arrival"].take();
    keys["closures"]
        .as_object_mut()
        .unwrap()
        .remove(&digest('3').to_string());
    before["next_arrival"] = keys["next_arrival"].clone();
    assert_eq!(written, before);

    let again: Ledger = serde_json::from_str(&text).unwrap();
    assert_eq!(again, ledger);
    assert!(again.get(file).is_some());
}

/// An upgrade: a file that 0.1.0 wrote is whole, and the daemon does not write it again.
#[test]
fn a_ledger_of_0_1_0_is_read_by_this_version_and_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let written = include_bytes!("fixtures/state-0.1.0.json").trim_ascii_end();
    std::fs::write(folder.path().join(FILE), written).unwrap();
    let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
    assert!(notices.is_empty(), "{notices:?}");
    let entry = ledger.get(name("a.tar")).unwrap();
    let imported = entry.imported.as_ref().unwrap();
    assert_eq!(imported.images.len(), 6);
    assert_eq!(entry.first_imported(), Some(imported.at));
    let failed = ledger.get(name("bad.tar")).unwrap();
    assert_eq!(failed.last_error.as_ref().unwrap().images, 0);
    assert_eq!(ledger.closure(&imported.images[0].target).unwrap().len(), 4);
    assert!(matches!(store.save(&ledger), Saved::Unchanged));
}

#[test]
fn a_file_of_a_newer_version_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let newer = br#"{"version": 2, "bundles": "in a form yet unknown"}"#;
    std::fs::write(folder.path().join(FILE), newer).unwrap();
    let (mut store, ledger, notices) = Store::open(folder.path()).unwrap();
    assert_eq!(ledger, Ledger::default());
    assert!(matches!(notices.as_slice(), [Notice::Newer { version: 2 }]));
    assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
    assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), newer);
}

#[test]
fn a_folder_that_cannot_be_written_is_told_once_and_again_after_it_healed() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let (mut store, _, _) = Store::open(&state).unwrap();
    assert!(matches!(store.save(&Ledger::default()), Saved::Written));
    // A folder in the way makes the save fail for root too.
    let obstacle = state.join(TEMPORARY);
    std::fs::create_dir(&obstacle).unwrap();
    assert!(matches!(store.save(&sample()), Saved::NotSaved(Some(_))));
    assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
    std::fs::remove_dir(&obstacle).unwrap();
    assert!(matches!(store.save(&sample()), Saved::Written));
    std::fs::create_dir(&obstacle).unwrap();
    assert!(matches!(store.save(&Ledger::default()), Saved::NotSaved(Some(_))));
}

#[test]
fn a_state_folder_that_cannot_exist_gives_a_notice_and_an_empty_ledger() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let (mut store, ledger, notices) = Store::open(&folder.path().join("file/state")).unwrap();
    assert_eq!(ledger, Ledger::default());
    assert!(!notices.is_empty());
    assert!(matches!(store.save(&sample()), Saved::NotSaved(None)));
}
