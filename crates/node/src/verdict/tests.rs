use super::*;
use crate::status::{
    ContainerdStatus, DaemonStatus, DiskStatus, ErrorStatus, FolderStatus, MissingStatus, ReceiptStatus,
    ScrubStatus, VanishedStatus,
};

fn well() -> Status {
    Status {
        daemon: Some(DaemonStatus {
            version: "1".to_owned(),
            pid: 1,
            started_at: jiff::Timestamp::UNIX_EPOCH,
        }),
        containerd: ContainerdStatus {
            reachable: true,
            ..ContainerdStatus::default()
        },
        ..Status::default()
    }
}

fn bundle(state: State, class: Option<ErrorClass>) -> BundleStatus {
    BundleStatus {
        error: class.map(|class| ErrorStatus {
            text: "it broke".to_owned(),
            class,
            at: jiff::Timestamp::UNIX_EPOCH,
            attempts: 1,
            refused_by: None,
        }),
        ..BundleStatus::named("a.tar".as_ref(), state)
    }
}

fn of(bundles: impl IntoIterator<Item = BundleStatus>) -> Verdict {
    let status = Status {
        bundles: bundles.into_iter().collect(),
        ..well()
    };
    Verdict::of(&status)
}

#[test]
fn each_state_of_a_bundle_has_its_verdict() {
    use ErrorClass::{Bundle, Crash, Degraded, Disk, Permanent, Refused, Space, Transient};
    let table = [
        (State::Settling, None, "working"),
        (State::Stalled, None, "waiting for the end of an upload"),
        (State::AwaitingChecksum, None, "waiting for a checksum"),
        (State::AwaitingSignature, None, "waiting for a signature"),
        (State::Queued, None, "working"),
        (State::Importing, None, "working"),
        (State::Following, None, "working"),
        (State::Checking, None, "working"),
        (State::Done, None, "healthy"),
        (State::Skipped, None, "healthy"),
        (
            State::Retrying,
            Some(Space),
            "waiting for room on containerd's disk",
        ),
        (State::Retrying, Some(Transient), "waiting for another try"),
        (State::Retrying, Some(Disk), "waiting for another try"),
        (State::Retrying, Some(Degraded), "degraded"),
        (State::Failed, Some(Bundle), "failed"),
        (State::Failed, Some(Permanent), "failed"),
        (State::Failed, Some(Refused), "failed"),
        (State::Failed, Some(Crash), "failed"),
        (State::Gone, None, "healthy"),
    ];
    for (state, class, wanted) in table {
        let verdict = of([bundle(state, class)]);
        assert_eq!(verdict.in_short(), wanted, "{state:?} {class:?}");
        // A reason that needs an action names it.
        for reason in verdict.reasons.iter().filter(|reason| !reason.health.is_well()) {
            assert!(reason.remedy.is_some(), "{reason:?}");
        }
    }
    assert!(
        State::ALL
            .iter()
            .all(|state| table.iter().any(|(of, ..)| of == state))
    );
}

#[test]
fn wrong_blobs_that_a_scrub_left_degrade_the_node() {
    for (wrong, verdict, text) in [
        (0, "healthy", ""),
        (
            1,
            "degraded",
            "1 blob is wrong in containerd after the last scrub",
        ),
        (
            2,
            "degraded",
            "2 blobs are wrong in containerd after the last scrub",
        ),
    ] {
        let status = Status {
            scrub: Some(ScrubStatus {
                at: jiff::Timestamp::UNIX_EPOCH,
                finished_at: None,
                blobs: 9,
                read: 7,
                remaining: 2,
                wrong,
            }),
            ..well()
        };
        let of = Verdict::of(&status);
        assert_eq!(of.in_short(), verdict, "{wrong}");
        assert!(of.headline().ends_with(text), "{}", of.headline());
        assert!(!of.is_without_containerd());
    }
}

#[test]
fn a_degraded_receipt_names_the_bundle_to_bring_and_may_not_pass() {
    let receipt = BundleStatus {
        receipt_of: Some(ReceiptStatus {
            bundle: Foreign::new("shop.tar".to_owned()),
            size: 5_000_000,
            by_hand: false,
            catalog: Some(basics::digest::sha256(b"shop")),
        }),
        ..bundle(State::Retrying, Some(ErrorClass::Degraded))
    };
    let verdict = of([receipt]);
    assert!(!verdict.may_pass(), "{verdict:?}");
    let remedy = verdict.reasons[0].remedy.as_ref().unwrap();
    let content = basics::digest::sha256(b"shop").to_string();
    for part in ["bring the bundle shop.tar", content.as_str(), "images folder"] {
        assert!(remedy.contains(part), "{part}: {remedy}");
    }
}

#[test]
fn a_bundle_that_is_restored_again_and_again_and_a_record_that_was_moved_degrade_the_node() {
    let removed = BundleStatus {
        waits_for: Some("the record a is missing once more".to_owned()),
        ..bundle(State::Retrying, None)
    };
    let moved = BundleStatus {
        moved: vec![Foreign::new("r.test/a:1".to_owned())],
        ..bundle(State::Done, None)
    };
    for of_bundle in [removed, moved] {
        assert_eq!(of([of_bundle]).in_short(), "degraded");
    }
}

#[test]
fn the_worst_reason_decides_and_the_others_are_counted() {
    let failed = bundle(State::Failed, Some(ErrorClass::Bundle));
    let verdict = of([bundle(State::Importing, None), failed.clone(), failed]);
    assert_eq!(verdict.headline(), "failed: a.tar: it broke (and 1 more)");
    assert!(verdict.may_pass(), "one is still under way");
    assert!(!of([bundle(State::Done, None)]).may_pass());
    assert_eq!(of([]).headline(), "healthy");
}

#[test]
fn each_trouble_of_the_node_has_its_verdict() {
    type Row = (fn(&mut Status), &'static str);
    let table: [Row; 11] = [
        (|_| {}, "healthy"),
        (|status| status.daemon = None, "failed"),
        (|status| status.containerd.reachable = false, "working"),
        (
            |status| {
                status.containerd.reachable = false;
                status.containerd.problem = Some("no containerd".to_owned());
            },
            "waiting for containerd",
        ),
        (
            |status| status.required = Some(RequiredStatus::default()),
            "working",
        ),
        (
            |status| status.folder.problem = Some("it is gone".to_owned()),
            "waiting for the images folder",
        ),
        (
            |status| {
                status.folder = FolderStatus {
                    vanished: Some(VanishedStatus {
                        bundles: 1,
                        problem: "it is another one".to_owned(),
                    }),
                    ..FolderStatus::default()
                };
            },
            "degraded",
        ),
        (
            |status| status.configuration_problem = Some("line 3".to_owned()),
            "degraded",
        ),
        (
            |status| {
                status.disk = Some(DiskStatus {
                    problem: Some("1 B free".to_owned()),
                    ..DiskStatus::default()
                });
            },
            "waiting for room on containerd's disk",
        ),
        (
            |status| {
                status.required = Some(RequiredStatus {
                    is_current: true,
                    checked_at: Some(jiff::Timestamp::UNIX_EPOCH),
                    missing: vec![MissingStatus::default()],
                    ..RequiredStatus::default()
                });
            },
            "failed",
        ),
        (
            |status| {
                status.unpack = Some(UnpackStatus {
                    failed: vec![crate::status::UnpackFailureStatus::default()],
                    ..UnpackStatus::default()
                });
            },
            "failed",
        ),
    ];
    for (change, wanted) in table {
        let mut status = well();
        change(&mut status);
        let verdict = Verdict::of(&status);
        assert_eq!(verdict.in_short(), wanted, "{status:?}");
        let is_without = status.containerd.problem.is_some();
        assert_eq!(verdict.is_without_containerd(), is_without);
        let is_told = |reason: &Reason| reason.health.is_well() || reason.remedy.is_some();
        assert!(verdict.reasons.iter().all(is_told), "{verdict:?}");
    }
}

#[test]
fn bundles_that_were_asked_for_are_judged_with_what_keeps_them_from_being_imported() {
    let mut status = Status {
        bundles: vec![
            bundle(State::Done, None),
            bundle(State::Failed, Some(ErrorClass::Bundle)),
        ],
        configuration_problem: Some("line 3".to_owned()),
        ..well()
    };
    assert_eq!(
        Verdict::of_bundles(&status, &status.bundles[..1]).in_short(),
        "healthy"
    );
    status.bundles[0].state = State::Queued;
    assert_eq!(
        Verdict::of_bundles(&status, &status.bundles[..1]).in_short(),
        "working"
    );
    status.containerd.problem = Some("no containerd".to_owned());
    status.containerd.reachable = false;
    let verdict = Verdict::of_bundles(&status, &status.bundles[..1]);
    assert_eq!(verdict.in_short(), "waiting for containerd");
}

#[test]
fn an_image_that_is_not_in_place_degrades_the_node() {
    let image = |record| ImageStatus {
        name: "r.test/a:1".to_owned(),
        digest: String::new(),
        bundle: "a.tar".to_owned(),
        record,
        missing_blobs: Vec::new(),
        pinned: true,
    };
    let verdict = |record| of([]).with_images(&[image(record)]).in_short();
    assert_eq!(verdict(RecordStatus::InPlace), "healthy");
    assert_eq!(verdict(RecordStatus::Missing), "degraded");
    assert_eq!(verdict(RecordStatus::Elsewhere), "degraded");
}

#[test]
fn metrics_that_do_not_arrive_degrade_the_node_and_name_the_remedy() {
    let file = Status {
        metrics_file_problem: Some("no metrics in /var/x.prom: Read-only file system".to_owned()),
        ..well()
    };
    let features = Status {
        node_feature_file_problem: Some("no node features in /etc/f: No such file".to_owned()),
        ..well()
    };
    let address = Status {
        metrics_address_problem: Some("no metrics on 127.0.0.1:9799: Address in use".to_owned()),
        ..well()
    };
    for (status, text, remedy) in [
        (file, "/var/x.prom", "ReadWritePaths="),
        (features, "/etc/f", "ReadWritePaths="),
        (address, "9799", "metrics.conf"),
    ] {
        let verdict = Verdict::of(&status);
        let [reason] = &*verdict.reasons else {
            panic!("{verdict:?}")
        };
        assert_eq!(
            (verdict.health, reason.subject),
            (Health::Degraded, Subject::Metrics)
        );
        assert!(reason.text.contains(text), "{reason:?}");
        let told = reason.remedy.as_ref();
        assert!(told.is_some_and(|told| told.contains(remedy)), "{reason:?}");
    }
}
