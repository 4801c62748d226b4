use std::collections::BTreeSet;

use basics::digest;
use jiff::Timestamp;

use super::*;
use crate::ready::{Circumstances, Facts};
use crate::status::{
    ContainerdStatus, ErrorStatus, MissingStatus, ReceiptStatus, UnpackStatus, VanishedStatus,
};
use crate::verdict::Verdict;

/// Returns the samples of a family.
fn samples<'t>(text: &'t str, name: &str) -> Vec<&'t str> {
    let is_of = |line: &&str| line.split(['{', ' ']).next() == Some(name);
    text.lines().filter(is_of).collect()
}

/// Returns the metrics of a node that has just looked at everything.
fn text_of(metrics: &Metrics, status: &Status) -> String {
    let facts = Facts::of(status, Circumstances::default());
    metrics.text(status, &facts.standing(facts.at))
}

/// Returns a status with a thousand bundles, each with the state that `state` returns.
fn thousand(state: impl Fn(usize) -> State) -> Status {
    let bundle = |number: usize| {
        let mut bundle = BundleStatus::named(format!("{number:04}.tar").as_ref(), state(number));
        bundle.catalog = Some(digest::sha256(&number.to_be_bytes()).to_string());
        let at = i64::try_from(number).expect("it is small");
        bundle.imported_at = Some(Timestamp::from_second(at).expect("it is a time"));
        bundle.error = (bundle.state == State::Failed).then(|| ErrorStatus {
            text: "it is bad".to_owned(),
            class: ErrorClass::ALL[number % ErrorClass::ALL.len()],
            at: Timestamp::UNIX_EPOCH,
            attempts: 1,
            refused_by: None,
        });
        bundle
    };
    let status = Status {
        containerd: ContainerdStatus {
            reachable: true,
            version: Some("2.1.9".to_owned()),
            platform: Some("linux/amd64".to_owned()),
            ..ContainerdStatus::default()
        },
        folder: crate::status::FolderStatus {
            vanished: Some(VanishedStatus {
                bundles: 1,
                problem: "it is gone".to_owned(),
            }),
            ..Default::default()
        },
        required: Some(RequiredStatus {
            checked_at: Some(Timestamp::UNIX_EPOCH),
            ..RequiredStatus::default()
        }),
        unpack: Some(UnpackStatus::default()),
        disk: Some(DiskStatus::default()),
        bundles: (0..1000).map(bundle).collect(),
        ..Status::default()
    };
    status.judged()
}

/// Returns metrics that have counted every kind of import.
fn of_a_long_life() -> Metrics {
    let metrics = Metrics::new();
    for outcome in ["imported", "unchanged", "partial", "skipped", "failed"] {
        metrics.imports.with_label_values(&[outcome]).inc();
    }
    metrics.seconds.observe(1.0);
    metrics
}

#[test]
fn a_node_has_no_more_than_200_series_with_a_thousand_bundles() {
    let half = |number| match number % 2 {
        0 => State::Done,
        _ => State::Failed,
    };
    let table = [
        ("all in place", thousand(|_| State::Done), 50, 0, 950),
        ("all failed", thousand(|_| State::Failed), 0, 50, 950),
        ("half of them", thousand(half), 50, 50, 900),
    ];
    for (case, status, in_place, not_in_place, not_shown) in table {
        let text = text_of(&of_a_long_life(), &status);
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series <= 200, "{case}: {series} series");
        assert!(series >= 100, "{case}: {series} series are not all there can be");
        assert_eq!(samples(&text, "airgapd_bundle_info").len(), in_place, "{case}");
        let named = samples(&text, "airgapd_bundle_not_in_place");
        assert_eq!(named.len(), not_in_place, "{case}");
        let wanted = format!("airgapd_bundles_not_shown {not_shown}");
        assert_eq!(samples(&text, "airgapd_bundles_not_shown"), [wanted], "{case}");
    }
}

#[test]
fn of_many_releases_those_that_are_not_in_place_are_named() {
    let release = |number: usize| ReleaseStatus {
        name: format!("r{number}"),
        in_place: number != 70,
        ..ReleaseStatus::default()
    };
    let mut status = Status {
        releases: (0..80).map(release).collect(),
        ..Status::default()
    };
    let in_place = |status: &Status| {
        let text = text_of(&Metrics::new(), status);
        let named = samples(&text, "airgapd_release_in_place").into_iter();
        named.filter(|line| line.ends_with(" 1")).count()
    };
    assert_eq!(in_place(&status), 0, "nothing is known without containerd");
    status.containerd.reachable = true;
    assert_eq!(in_place(&status), 49);
    let text = text_of(&Metrics::new(), &status);
    let named = samples(&text, "airgapd_release_in_place");
    assert_eq!(named.len(), 50);
    assert!(
        named.contains(&r#"airgapd_release_in_place{release="r70"} 0"#),
        "{named:?}"
    );
    assert_eq!(
        samples(&text, "airgapd_releases_not_shown"),
        ["airgapd_releases_not_shown 30"]
    );
    let without = text_of(&Metrics::new(), &Status::default());
    assert!(!without.contains("release"), "{without}");
}

/// The metrics have the answers of `/ready`.
#[test]
fn the_state_of_the_required_images_is_known_while_ready_has_an_answer() {
    type Row<'a> = (fn(&mut RequiredStatus), &'a (String, usize));
    let mut status = thousand(|_| State::Done);
    let required = |change: fn(&mut RequiredStatus), status: &Status| {
        let mut status = status.clone();
        change(status.required.as_mut().expect("images are required"));
        let text = text_of(&Metrics::new(), &status);
        let counts = samples(&text, "airgapd_required_missing_images").len();
        (samples(&text, "airgapd_required_up")[0].to_owned(), counts)
    };
    let (up, down) = (
        ("airgapd_required_up 1".to_owned(), 1),
        ("airgapd_required_up 0".to_owned(), 0),
    );
    let table: [Row<'_>; 5] = [
        (|_| {}, &up),
        (|required| required.missing.push(MissingStatus::default()), &up),
        (|required| required.problem = Some("no list".to_owned()), &down),
        (|required| required.checked_at = None, &down),
        (|required| required.is_unsure = true, &down),
    ];
    for (row, (change, wanted)) in table.into_iter().enumerate() {
        assert_eq!(required(change, &status), *wanted, "row {row}");
    }
    status.containerd.reachable = false;
    assert_eq!(required(|_| {}, &status), down);
}

#[test]
fn the_newest_of_those_in_place_and_the_worst_of_the_others_are_named() {
    let status = thousand(|number| match number {
        0..500 => State::Done,
        500..510 => State::Failed,
        510..520 => State::Retrying,
        520..530 => State::Stalled,
        530..700 => State::Queued,
        _ => State::Skipped,
    });
    let text = text_of(&Metrics::new(), &status);
    for (family, bundle, is_named) in [
        ("airgapd_bundle_info", "0499.tar", true),
        ("airgapd_bundle_info", "0450.tar", true),
        ("airgapd_bundle_info", "0449.tar", false),
        ("airgapd_bundle_not_in_place", "0509.tar", true),
        ("airgapd_bundle_not_in_place", "0519.tar", true),
        ("airgapd_bundle_not_in_place", "0529.tar", true),
        ("airgapd_bundle_not_in_place", "0549.tar", true),
        ("airgapd_bundle_not_in_place", "0550.tar", false),
        ("airgapd_bundle_not_in_place", "0999.tar", false),
    ] {
        let found = samples(&text, family).iter().any(|line| line.contains(bundle));
        assert_eq!(found, is_named, "{family} {bundle}");
    }
}

#[test]
fn nodes_with_the_same_bundles_in_place_have_the_same_hash_and_others_have_not() {
    let hash = |status: &Status| {
        samples(&text_of(&Metrics::new(), status), "airgapd_bundles_in_place_hash")[0].to_owned()
    };
    let all = thousand(|_| State::Done);
    let mut later = all.clone();
    for bundle in &mut later.bundles {
        bundle.imported_at = None;
    }
    assert_eq!(
        hash(&later),
        hash(&all),
        "when they were imported does not matter"
    );
    let mut other_content = all.clone();
    other_content.bundles[7].catalog = Some(digest::sha256(b"other").to_string());
    let mut other_name = all.clone();
    other_name.bundles[7].name = Foreign::new("other.tar".to_owned());
    let one_less = thousand(|number| match number {
        7 => State::Failed,
        _ => State::Done,
    });
    let none = Status::default();
    let different: BTreeSet<_> = [&all, &other_content, &other_name, &one_less, &none]
        .map(hash)
        .into();
    assert_eq!(different.len(), 5, "{different:?}");
    let number = hash(&all).split(' ').next_back().expect("a value").to_owned();
    assert!(
        number.parse::<u64>().is_ok_and(|number| number < 1 << 48),
        "{number}"
    );
}

#[test]
fn a_failure_is_counted_under_its_class_and_an_old_error_of_a_bundle_in_place_is_not() {
    let mut status = thousand(|number| match number {
        0..8 => State::Failed,
        _ => State::Done,
    });
    status.bundles[9].error = status.bundles[0].error.clone();
    let text = text_of(&Metrics::new(), &status);
    for class in ErrorClass::ALL {
        let wanted = format!("airgapd_bundles_failed{{class=\"{}\"}} 1", class.as_str());
        assert!(text.lines().any(|line| line == wanted), "{wanted}\n{text}");
        assert_eq!(serde_json::to_value(class).unwrap(), class.as_str());
    }
    assert_eq!(
        samples(&text, "airgapd_set_aside_bundles"),
        ["airgapd_set_aside_bundles 1"]
    );
}

#[test]
fn receipts_are_counted_by_state_with_the_size_of_their_bundles() {
    let mut status = thousand(|number| match number {
        1 | 2 => State::Retrying,
        3 => State::Failed,
        4 => State::Gone,
        _ => State::Done,
    });
    for bundle in &mut status.bundles[0..5] {
        bundle.receipt_of = Some(ReceiptStatus {
            bundle: Foreign::new("shop.tar".to_owned()),
            size: 100,
            by_hand: false,
            catalog: None,
        });
    }
    // containerd was away when the other one was tried. A rule refuses the next.
    for (at, class) in [
        (1, ErrorClass::Degraded),
        (2, ErrorClass::Transient),
        (3, ErrorClass::Refused),
    ] {
        status.bundles[at].error = Some(ErrorStatus {
            text: "it broke".to_owned(),
            class,
            at: jiff::Timestamp::UNIX_EPOCH,
            attempts: 1,
            refused_by: None,
        });
    }
    let text = text_of(&Metrics::new(), &status);
    assert_eq!(
        samples(&text, "airgapd_receipts"),
        [
            "airgapd_receipts{state=\"degraded\"} 1",
            "airgapd_receipts{state=\"failed\"} 1",
            "airgapd_receipts{state=\"held\"} 2"
        ]
    );
    assert_eq!(
        samples(&text, "airgapd_receipts_bundle_bytes"),
        ["airgapd_receipts_bundle_bytes 400"]
    );
}

#[test]
fn exactly_one_state_is_the_verdict() {
    for health in Health::ALL {
        let status = Status {
            verdict: Verdict {
                health,
                ..Verdict::default()
            },
            ..Status::default()
        };
        let text = text_of(&Metrics::new(), &status);
        let lines = samples(&text, "airgapd_verdict");
        let on: Vec<_> = lines.iter().filter(|line| line.ends_with(" 1")).collect();
        let wanted = format!("airgapd_verdict{{state=\"{}\"}} 1", health.as_str());
        assert_eq!((lines.len(), on), (5, vec![&&*wanted]));
    }
}

#[test]
fn images_are_counted_once_in_one_of_three_states() {
    let status = Status {
        image_count: ImageCount {
            all: 11,
            in_place: 7,
            failed: 1,
        },
        ..Status::default()
    };
    let text = text_of(&Metrics::new(), &status);
    for (state, count) in [("in-place", 7), ("failed", 1), ("pending", 3)] {
        let wanted = format!("airgapd_images{{state=\"{state}\"}} {count}");
        assert!(text.lines().any(|line| line == wanted), "{wanted}\n{text}");
    }
}

#[test]
fn the_file_is_replaced_follows_no_link_and_fails_in_the_same_words_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let (file, new) = (folder.path().join("a.prom"), folder.path().join(".a.prom.new"));
    let other = folder.path().join("other");
    fs::write(&other, "theirs").unwrap();
    std::os::unix::fs::symlink(&other, &new).unwrap();
    write(&file, "one\n").unwrap();
    write(&file, "two\n").unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "two\n");
    assert_eq!(fs::read_to_string(&other).unwrap(), "theirs");
    assert!(!new.exists());
    let nowhere = folder.path().join("none/a.prom");
    let failed = || write(&nowhere, "").unwrap_err().to_string();
    assert_eq!(failed(), failed());
}

#[test]
fn a_name_that_lies_neither_breaks_a_line_nor_hides_in_one() {
    let status = Status {
        containerd: ContainerdStatus {
            version: Some("2.1\n\u{9b}1m".to_owned()),
            platform: Some("linux/amd64".to_owned()),
            ..ContainerdStatus::default()
        },
        bundles: vec![BundleStatus::named(
            "new\nline \u{202e}rat.tar".as_ref(),
            State::Done,
        )],
        ..Status::default()
    };
    let text = text_of(&Metrics::new(), &status);
    assert!(text.chars().all(|c| c == '\n' || basics::is_visible(c)), "{text}");
    assert!(
        text.lines()
            .all(|line| line.starts_with("airgapd") || line.starts_with("# "))
    );
    assert!(text.contains("rat.tar"), "{text}");
}
