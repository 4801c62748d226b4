use super::*;
use crate::state::ledger::ErrorClass;
use crate::status::{
    ContainerdStatus, DaemonStatus, DiskStatus, ErrorStatus, FolderStatus, MissingStatus, ReceiptStatus,
    VanishedStatus,
};

const SECOND: Duration = Duration::from_secs(1);
const RECEIPTS: &str = "/var/lib/airgapd/receipts";
const CONTENT: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Returns a bundle in this state, with a content digest.
fn bundle(name: &str, state: State) -> BundleStatus {
    BundleStatus {
        catalog: Some(CONTENT.to_owned()),
        ..BundleStatus::named(name.as_ref(), state)
    }
}

fn failed(class: ErrorClass) -> Option<ErrorStatus> {
    Some(ErrorStatus {
        text: "it broke".to_owned(),
        class,
        at: jiff::Timestamp::UNIX_EPOCH,
        attempts: 1,
        refused_by: None,
    })
}

/// Returns the status of a node with everything in place: a required image, and two bundles.
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
        folder: FolderStatus {
            path: "/images".to_owned(),
            ..FolderStatus::default()
        },
        required: Some(RequiredStatus {
            is_current: true,
            checked_at: Some(jiff::Timestamp::UNIX_EPOCH),
            references: 3,
            ..RequiredStatus::default()
        }),
        bundles: vec![bundle("a.tar", State::Done), bundle("other.tar", State::Done)],
        ..Status::default()
    }
}

fn changed(change: impl FnOnce(&mut Status)) -> Status {
    let mut status = well();
    change(&mut status);
    status
}

/// Changes the bundle `a.tar`.
fn of_bundle(change: impl FnOnce(&mut BundleStatus)) -> Status {
    changed(|status| change(&mut status.bundles[0]))
}

fn missing(name: &str) -> MissingStatus {
    MissingStatus {
        reference: name.to_owned(),
        ..MissingStatus::default()
    }
}

/// The daemon: it notes one status after the other.
struct Node {
    memory: Memory,
    at: Duration,
    boot: &'static str,
    containerd: &'static str,
    key: &'static str,
    facts: Facts,
}

impl Node {
    fn new() -> Node {
        Node {
            memory: Memory::default(),
            at: Duration::from_secs(1000),
            boot: "boot",
            containerd: "uuid",
            key: "key",
            facts: Facts::default(),
        }
    }

    fn note(&mut self, status: &Status) {
        let circumstances = Circumstances {
            at: self.at,
            boot: Some(self.boot.to_owned()),
            containerd: status.containerd.reachable.then(|| self.containerd.to_owned()),
            key: Some(self.key.to_owned()).filter(|key| !key.is_empty()),
            receipts: PathBuf::from(RECEIPTS),
        };
        self.facts = Facts::of(status, circumstances).noted_in(&mut self.memory);
    }

    fn after(&mut self, time: Duration, status: &Status) {
        self.at += time;
        self.note(status);
    }

    /// Replaces the daemon by its successor, which has the file of this one.
    fn restart(&mut self) {
        self.memory = Memory::read(self.memory.text().as_bytes());
        self.facts = Facts::default();
    }

    fn asks(&self, query: &str) -> Readiness {
        let query = Query::parse(query).expect("the query is well-formed");
        judge(&self.facts, &query, self.at)
    }

    /// Returns the causes for no query, for the bundle `a.tar`, and for all bundles.
    fn causes(&self) -> [Option<Cause>; 3] {
        ["", "bundle=a.tar", "bundles=all"].map(|query| {
            let readiness = self.asks(query);
            assert_eq!(readiness.ready, readiness.cause.is_none(), "{readiness:?}");
            assert!(!readiness.reason.is_empty() && !readiness.reason.contains('\n'));
            readiness.cause
        })
    }
}

/// The rows of docs/control.md, and every state and trouble of the verdict.
#[test]
fn through_every_state_of_the_verdict_only_what_is_asked_for_decides() {
    use Cause::{Containerd, Failed, Missing, Waiting, Working};
    use ErrorClass::{Bundle, Crash, Disk, Permanent, Refused, Space, Transient};
    let state = |state, class: Option<ErrorClass>| {
        of_bundle(|bundle| (bundle.state, bundle.error) = (state, class.and_then(failed)))
    };
    let bad = |cause| [None, Some(cause), Some(cause)];
    let all = |cause| [Some(cause); 3];
    let strict = |cause| [None, None, Some(cause)];
    let required = |change: fn(&mut RequiredStatus)| {
        changed(|status| change(status.required.as_mut().expect("images are required")))
    };
    let table = [
        ("all in place", well(), [None; 3]),
        ("settling", state(State::Settling, None), bad(Working)),
        ("stalled", state(State::Stalled, None), bad(Waiting)),
        ("checksum", state(State::AwaitingChecksum, None), bad(Waiting)),
        ("signature", state(State::AwaitingSignature, None), bad(Waiting)),
        ("queued", state(State::Queued, None), bad(Working)),
        ("importing", state(State::Importing, None), bad(Working)),
        ("following", state(State::Following, None), bad(Working)),
        // It was never in place as far as this daemon knows.
        ("checking", state(State::Checking, None), bad(Working)),
        ("skipped", state(State::Skipped, None), [None, Some(Failed), None]),
        ("space", state(State::Retrying, Some(Space)), bad(Waiting)),
        ("transient", state(State::Retrying, Some(Transient)), bad(Waiting)),
        ("disk", state(State::Retrying, Some(Disk)), bad(Waiting)),
        ("turn", state(State::Retrying, None), bad(Working)),
        ("bundle", state(State::Failed, Some(Bundle)), bad(Failed)),
        ("permanent", state(State::Failed, Some(Permanent)), bad(Failed)),
        ("refused", state(State::Failed, Some(Refused)), bad(Failed)),
        ("crash", state(State::Failed, Some(Crash)), bad(Failed)),
        ("gone", state(State::Gone, None), [None, Some(Failed), None]),
        (
            "removed again and again",
            of_bundle(|bundle| {
                bundle.state = State::Retrying;
                bundle.waits_for = Some("the record a is missing once more".to_owned());
            }),
            bad(Failed),
        ),
        (
            "moved",
            of_bundle(|bundle| bundle.moved = vec![Foreign::new("r.test/a:1".to_owned())]),
            bad(Failed),
        ),
        (
            "a bad file beside",
            changed(|status| status.bundles[1].state = State::Failed),
            strict(Failed),
        ),
        (
            "an import beside",
            changed(|status| status.bundles[1].state = State::Importing),
            strict(Working),
        ),
        (
            "image missing",
            required(|required| required.missing.push(missing("r.test/x:1"))),
            all(Missing),
        ),
        (
            "image missing, and a check runs",
            required(|required| {
                required.missing.push(missing("r.test/x:1"));
                required.is_current = false;
            }),
            all(Missing),
        ),
        (
            "unreadable",
            required(|required| required.problem = Some("x.yaml".to_owned())),
            all(Failed),
        ),
        (
            "a check runs",
            required(|required| required.is_current = false),
            [None; 3],
        ),
        (
            "no check yet",
            required(|required| required.checked_at = None),
            all(Working),
        ),
        (
            "a check failed",
            required(|required| required.is_unsure = true),
            all(Working),
        ),
        (
            "no containerd",
            changed(|status| {
                status.containerd.reachable = false;
                status.bundles[0].state = State::Checking;
                status.bundles[1].state = State::Checking;
            }),
            all(Containerd),
        ),
        (
            "folder",
            changed(|status| status.folder.problem = Some("it is not mounted".to_owned())),
            strict(Waiting),
        ),
        (
            "vanished",
            changed(|status| {
                status.folder.vanished = Some(VanishedStatus {
                    bundles: 1,
                    problem: "a mount is missing".to_owned(),
                });
                status.bundles.remove(0);
            }),
            [None, Some(Waiting), Some(Waiting)],
        ),
        (
            "troubles of the node that concern no image",
            changed(|status| {
                status.configuration_problem = Some("a mistake".to_owned());
                status.keys_problem = Some("no key".to_owned());
                status.metrics_file_problem = Some("no metrics".to_owned());
                status.metrics_address_problem = Some("no metrics".to_owned());
                status.disk = Some(DiskStatus {
                    problem: Some("it is full".to_owned()),
                    ..DiskStatus::default()
                });
            }),
            [None; 3],
        ),
    ];
    for (row, status, wanted) in table {
        let mut node = Node::new();
        node.note(&status);
        assert_eq!(node.causes(), wanted, "{row}");
    }
}

#[test]
fn with_nothing_required_only_a_query_is_an_answer() {
    let mut node = Node::new();
    let nothing = changed(|status| status.required = None);
    node.note(&nothing);
    assert_eq!(node.causes(), [Some(Cause::NothingRequired), None, None]);
    assert_eq!(node.asks("").reason, "nothing is required");
    // Perhaps no bundle has reached an empty folder yet.
    node.note(&changed(|status| {
        (status.required, status.bundles) = (None, Vec::new());
    }));
    assert_eq!(node.asks("bundles=all").cause, Some(Cause::Absent));
    node.note(&changed(|status| status.bundles.clear()));
    assert_eq!(node.asks("bundles=all").cause, None);
}

#[test]
fn a_bundle_is_known_by_its_name_its_path_its_content_and_its_receipt() {
    let mut node = Node::new();
    node.note(&changed(|status| {
        let folder = |path: &str| FolderStatus {
            path: path.to_owned(),
            ..FolderStatus::default()
        };
        status.more_folders = vec![folder("/os"), folder("/usb"), folder(RECEIPTS)];
        status.bundles = vec![
            bundle("a.tar", State::Done),
            bundle("/os/a.tar", State::Failed),
            bundle("/usb/b.tar", State::Done),
            receipt("shop.tar", "shop.tar", State::Done),
            // A second copy of the bundle has come.
            bundle("both.tar", State::Importing),
            receipt("both.tar", "both.tar", State::Done),
            receipt("of-release-1-two.tar", "two.tar", State::Done),
            receipt("of-release-2-two.tar", "two.tar", State::Retrying),
            receipt("of-release-1-three.tar", "three.tar", State::Done),
            receipt("of-release-2-three.tar", "three.tar", State::Done),
            // No import has read it yet.
            bundle(&format!("{RECEIPTS}/new.tar"), State::Queued),
            bundle("new.tar", State::Done),
            by_hand("by-hand-1-hand.tar", "hand.tar"),
        ];
    }));
    let table = [
        ("/images/a.tar", None),
        ("/os/a.tar", Some(Cause::Failed)),
        ("a.tar", Some(Cause::Failed)),
        ("b.tar", None),
        ("shop.tar", None),
        ("/images/shop.tar", None),
        ("/var/lib/airgapd/receipts/shop.tar", None),
        ("both.tar", Some(Cause::Working)),
        ("/images/both.tar", Some(Cause::Working)),
        ("two.tar", Some(Cause::Working)),
        ("three.tar", None),
        ("new.tar", None),
        // Another bundle may come under this name.
        ("hand.tar", Some(Cause::Failed)),
        ("/images/hand.tar", Some(Cause::Failed)),
        ("/var/lib/airgapd/receipts/by-hand-1-hand.tar", None),
        ("c.tar", Some(Cause::Failed)),
        // The best of several bundles with the same content counts.
        (CONTENT, None),
        (&CONTENT.replace("aa", "bb"), Some(Cause::Absent)),
    ];
    for (name, wanted) in table {
        let readiness = node.asks(&format!("bundle={name}"));
        assert_eq!(readiness.cause, wanted, "{name}: {readiness:?}");
    }
    assert!(
        node.asks("bundle=a.tar")
            .reason
            .contains("several bundles: a.tar")
    );
}

/// Returns the receipt of a bundle of the images folder. `file` is its name in the folder of
/// receipts.
fn receipt(file: &str, of: &str, state: State) -> BundleStatus {
    BundleStatus {
        receipt_of: Some(ReceiptStatus {
            bundle: Foreign::new(of.to_owned()),
            size: 1,
            by_hand: false,
            catalog: None,
        }),
        catalog: None,
        ..bundle(&format!("{RECEIPTS}/{file}"), state)
    }
}

/// Returns the receipt of an import by hand.
fn by_hand(file: &str, of: &str) -> BundleStatus {
    let mut receipt = receipt(file, of, State::Done);
    if let Some(of) = &mut receipt.receipt_of {
        of.by_hand = true;
    }
    receipt
}

#[test]
fn a_bundle_that_has_nothing_for_this_node_is_not_in_place_by_any_name_of_it() {
    let other = CONTENT.replace("aa", "bb");
    let skipped = |state| {
        changed(|status| {
            status.bundles.push(BundleStatus {
                outcome: Some(LastTry::Ended(Outcome::Skipped)),
                catalog: Some(other.clone()),
                ..bundle("arm64.tar", state)
            });
        })
    };
    let mut node = Node::new();
    node.note(&skipped(State::Skipped));
    let causes = |node: &Node| {
        ["arm64.tar", "/images/arm64.tar", &other].map(|name| node.asks(&format!("bundle={name}")).cause)
    };
    assert_eq!(causes(&node), [Some(Cause::Failed); 3]);
    assert_eq!(node.asks("bundles=all").cause, None);
    // A restart of the daemon changes no answer.
    node.restart();
    node.after(SECOND, &skipped(State::Checking));
    assert_eq!(causes(&node), [Some(Cause::Failed); 3]);
    assert_eq!(node.asks("bundles=all").cause, None);
    // A bundle with the same content that is in place counts.
    let mut status = skipped(State::Skipped);
    status.bundles[1].catalog = Some(other.clone());
    node.note(&status);
    assert_eq!(causes(&node)[2], None);
    status.bundles[1].state = State::Importing;
    node.note(&status);
    assert_eq!(causes(&node)[2], Some(Cause::Working));
}

/// Images change all the time, and a check may be slow or hang.
#[test]
fn a_change_that_no_check_follows_ends_readiness_after_a_minute() {
    let doubted = |seconds: u64| {
        changed(|status| {
            let required = status.required.as_mut().expect("images are required");
            required.is_current = false;
            required.doubted_for = Some(Duration::from_secs(seconds));
        })
    };
    let mut node = Node::new();
    node.note(&well());
    for (seconds, wanted) in [
        (1, None),
        (60, None),
        (61, Some(Cause::Working)),
        (3600, Some(Cause::Working)),
    ] {
        node.at = Duration::from_secs(1000 + seconds);
        node.note(&doubted(seconds));
        assert_eq!(node.causes(), [wanted; 3], "after {seconds} s");
        assert_eq!(node.asks("").held_seconds, None);
    }
    assert!(
        node.asks("")
            .reason
            .contains("check of the required images has not ended")
    );
    node.after(SECOND, &well());
    assert_eq!(node.causes(), [None; 3]);
    // The facts get older, too.
    node.note(&doubted(40));
    for (seconds, is_ready) in [(20, true), (21, false)] {
        let now = node.at + seconds * SECOND;
        let readiness = judge(&node.facts, &Query::default(), now);
        assert_eq!(readiness.ready, is_ready, "{readiness:?}");
    }
    // A restart, and the loss of containerd, add nothing to the time.
    for is_restarted in [true, false] {
        let mut node = Node::new();
        node.note(&well());
        node.after(40 * SECOND, &doubted(40));
        if is_restarted {
            node.restart();
        }
        for (seconds, wanted) in [(20, None), (1, Some(Cause::Containerd))] {
            node.after(seconds * SECOND, &doubtful(is_restarted, false));
            assert_eq!(node.asks("").cause, wanted, "{is_restarted} {seconds}");
        }
    }
}

#[test]
fn files_that_are_not_known_are_not_those_of_the_last_certain_state() {
    for (before, now) in [("", ""), ("key", ""), ("", "key")] {
        let mut node = Node::new();
        node.key = before;
        node.note(&well());
        assert_eq!(node.asks("").cause, None, "a check has ended");
        node.restart();
        node.key = now;
        node.note(&doubtful(true, true));
        assert_eq!(node.asks("").cause, Some(Cause::Working), "{before} {now}");
    }
}

/// `metricsAddress` is open to every user of the machine.
#[test]
fn ten_thousands_of_bundles_and_releases_are_judged_at_once() {
    const MANY: usize = 30_000;
    let status = changed(|status| {
        let names = (0..MANY).map(|number| format!("{number}.tar"));
        status.bundles = names.map(|name| bundle(&name, State::Done)).collect();
        let release = |number| ReleaseStatus {
            name: format!("release-{number}"),
            in_place: true,
            bundles: vec![Foreign::new(format!("{number}.tar"))],
            ..ReleaseStatus::default()
        };
        status.releases = (0..MANY).map(release).collect();
    });
    let mut node = Node::new();
    node.note(&status);
    let names = (0..63).map(|number| format!("bundle={number}.tar"));
    let query = names
        .chain(["release=release-29999".to_owned()])
        .collect::<Vec<_>>()
        .join("&");
    let began = std::time::Instant::now();
    let readiness = node.asks(&query);
    assert!(readiness.ready, "{readiness:?}");
    assert_eq!(readiness.releases.map(|releases| releases.in_place), Some(MANY));
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
}

/// Everything in doubt: containerd went away, or the daemon has just started.
fn doubtful(is_first: bool, is_reachable: bool) -> Status {
    changed(|status| {
        status.containerd.reachable = is_reachable;
        let required = status.required.as_mut().expect("images are required");
        (required.is_current, required.is_unsure) = (false, !is_first);
        if is_first {
            required.checked_at = None;
            required.references = 0;
        }
        for bundle in &mut status.bundles {
            bundle.state = State::Checking;
        }
    })
}

#[test]
fn without_containerd_the_last_certain_state_holds_for_a_minute() {
    let mut node = Node::new();
    node.note(&well());
    let away = doubtful(false, false);
    for (seconds, wanted) in [
        (1, None),
        (59, None),
        (1, Some(Cause::Containerd)),
        (3600, Some(Cause::Containerd)),
    ] {
        node.after(seconds * SECOND, &away);
        assert_eq!(node.causes(), [wanted; 3], "at {:?}", node.at);
    }
    // A connection alone confirms nothing.
    let back = doubtful(false, true);
    node.after(SECOND, &back);
    assert_eq!(node.causes(), [Some(Cause::Working); 3]);
    node.after(SECOND, &well());
    assert_eq!(node.causes(), [None; 3]);

    // A containerd that comes and goes gets no more trust than an absent containerd.
    for second in 0..=60 {
        let status = if second % 2 == 0 { &away } else { &back };
        node.after(SECOND, status);
        assert_eq!(node.asks("").ready, second < 60, "after {second} s");
    }
}

#[test]
fn while_a_restart_is_held_the_age_is_told() {
    let mut node = Node::new();
    node.note(&well());
    node.after(12 * SECOND, &doubtful(false, false));
    let readiness = node.asks("bundle=a.tar");
    assert_eq!(readiness.held_seconds, Some(12));
    assert_eq!(
        readiness.reason,
        "3 required images there, 1 bundle in place, as of 12 s ago"
    );
    assert_eq!(
        readiness.bundles.map(|bundles| (bundles.all, bundles.in_place)),
        Some((2, 2))
    );
}

#[test]
fn a_restart_of_the_daemon_changes_no_answer_for_a_minute() {
    let mut node = Node::new();
    node.note(&changed(|status| {
        status.bundles.push(bundle("skipped.tar", State::Skipped));
    }));
    node.restart();
    let started = |is_reachable| {
        let mut status = doubtful(true, is_reachable);
        status.bundles.push(bundle("skipped.tar", State::Checking));
        status
    };
    for (seconds, is_reachable) in [(30, false), (30, true)] {
        node.after(seconds * SECOND, &started(is_reachable));
        assert_eq!(node.causes(), [None; 3]);
    }
    node.after(SECOND, &started(true));
    assert_eq!(node.causes(), [Some(Cause::Working); 3]);

    // A node that was not ready does not become ready by a restart.
    for change in [
        (|status| {
            status
                .required
                .as_mut()
                .unwrap()
                .missing
                .push(missing("r.test/x:1"));
        }) as fn(&mut Status),
        |status| status.required.as_mut().unwrap().problem = Some("x.yaml".to_owned()),
        |status| status.required = None,
    ] {
        node.note(&well());
        node.note(&changed(change));
        node.restart();
        node.note(&doubtful(true, false));
        assert_eq!(node.asks("").cause, Some(Cause::Containerd));
    }
    node.note(&well());
    node.note(&of_bundle(|bundle| bundle.state = State::Importing));
    node.restart();
    node.note(&doubtful(true, false));
    assert_eq!(node.asks("bundle=a.tar").cause, Some(Cause::Containerd));
    assert_eq!(node.asks("bundle=other.tar").cause, None);
}

#[test]
fn another_boot_containerd_requirement_or_content_ends_the_last_certain_state() {
    let begin = || {
        let mut node = Node::new();
        node.note(&well());
        node.restart();
        node
    };
    let mut node = begin();
    node.boot = "another";
    node.note(&doubtful(true, false));
    assert_eq!(node.causes(), [Some(Cause::Containerd); 3]);
    let mut node = begin();
    node.containerd = "another";
    node.note(&doubtful(true, false));
    assert_eq!(node.causes(), [None; 3], "its uuid is not known yet");
    node.note(&doubtful(true, true));
    assert_eq!(node.causes(), [Some(Cause::Working); 3]);
    let mut node = begin();
    node.key = "another";
    node.note(&doubtful(true, true));
    assert_eq!(node.asks("").cause, Some(Cause::Working));
    let mut node = begin();
    let mut other = doubtful(true, true);
    other.bundles[0].catalog = Some(CONTENT.replace("aa", "bb"));
    node.note(&other);
    assert_eq!(node.asks("bundle=a.tar").cause, Some(Cause::Working));
    // A clock that runs backwards is no clock.
    let mut node = begin();
    node.at -= SECOND;
    node.note(&doubtful(true, false));
    assert_eq!(node.causes(), [Some(Cause::Containerd); 3]);
    for text in [
        "",
        "{}",
        "[1",
        r#"{"version":2,"bundles_at":0,"bundles":[],"releases":[]}"#,
    ] {
        assert_eq!(Memory::read(text.as_bytes()), Memory::default(), "{text}");
    }
}

#[test]
fn a_missing_image_that_was_found_ends_it_even_if_containerd_goes_away_then() {
    let mut node = Node::new();
    node.note(&well());
    let gone = changed(|status| {
        status
            .required
            .as_mut()
            .unwrap()
            .missing
            .push(missing("r.test/x:1"));
    });
    node.after(SECOND, &gone);
    let mut away = gone.clone();
    away.containerd.reachable = false;
    node.after(SECOND, &away);
    assert_eq!(node.asks("").cause, Some(Cause::Missing));
    assert_eq!(
        node.asks("").reason,
        "1 of 3 required images is missing: r.test/x:1"
    );
}

#[test]
fn a_release_is_judged_as_its_bundles_are() {
    let release = |in_place, missing| ReleaseStatus {
        name: "shop+1".to_owned(),
        in_place,
        members: 3,
        missing,
        missing_names: Vec::new(),
        problem: (!in_place).then(|| "r.test/x:1 has no bundle".to_owned()),
        bundles: vec![Foreign::new("a.tar".to_owned())],
        ..ReleaseStatus::default()
    };
    let with = |status: Status, in_place, missing| Status {
        releases: vec![release(in_place, missing)],
        ..status
    };
    let mut node = Node::new();
    let cause = |node: &Node| node.asks("release=shop+1").cause;
    node.note(&well());
    assert_eq!(cause(&node), Some(Cause::Absent));
    node.note(&with(well(), false, 2));
    let readiness = node.asks("release=shop+1");
    assert!(
        readiness
            .reason
            .contains("2 of 3 members missing: shop+1: r.test/x:1 has no bundle"),
        "{readiness:?}"
    );
    let plain = readiness.without_names();
    assert!(
        !plain.reason.contains("shop") && !plain.reason.contains("r.test"),
        "{plain:?}"
    );
    // A restart of the daemon does not make it ready, and does not end it.
    node.restart();
    node.after(SECOND, &with(doubtful(true, false), false, 3));
    assert_eq!(cause(&node), Some(Cause::Containerd));
    node.after(SECOND, &with(well(), true, 0));
    assert_eq!(cause(&node), None);
    node.restart();
    for in_place in [true, false] {
        node.after(30 * SECOND, &with(doubtful(true, false), in_place, 3));
        assert_eq!(cause(&node), None);
    }
    node.after(SECOND, &with(doubtful(true, false), true, 0));
    assert_eq!(cause(&node), Some(Cause::Containerd));
    let mut lost = doubtful(true, true);
    lost.bundles[0].state = State::Queued;
    node.after(SECOND, &with(well(), true, 0));
    node.after(SECOND, &with(lost, false, 3));
    assert_eq!(cause(&node), Some(Cause::Absent));
    // A bundle that failed in part has landed its members, and nothing is known without containerd.
    let mut away = well();
    away.containerd.reachable = false;
    (away.bundles[0].state, away.bundles[0].error) = (State::Failed, failed(ErrorClass::Disk));
    node.after(SECOND, &with(well(), true, 0));
    node.after(30 * SECOND, &with(away.clone(), true, 0));
    assert_eq!(cause(&node), None);
    node.after(31 * SECOND, &with(away, true, 0));
    assert_eq!(cause(&node), Some(Cause::Containerd));
}

#[test]
fn a_caller_without_privileges_gets_numbers_and_no_names() {
    let mut node = Node::new();
    let mut status = changed(|status| {
        let required = status.required.as_mut().unwrap();
        required.missing = (0..60)
            .map(|number| missing(&format!("secret.test/{number}:1")))
            .collect();
        required.references = 60;
        status.bundles[0].state = State::Failed;
        status.bundles[0].error = failed(ErrorClass::Bundle);
        status.folder.path = "/secret".to_owned();
    });
    let queries = [
        "",
        "bundle=a.tar",
        "bundle=/secret/a.tar",
        "bundle=secret",
        "bundles=all",
        "release=secret",
    ];
    let mut check = |status: &Status| {
        node.note(status);
        for query in queries {
            let all = node.asks(query);
            let plain = all.clone().without_names();
            let text = serde_json::to_string(&plain).unwrap();
            for name in ["secret", "a.tar", "other.tar", "broke", "\"missing\":{\"images\""] {
                assert!(!text.contains(name), "{query}: {text}");
            }
            assert_eq!(
                (plain.ready, plain.cause, plain.bundles),
                (all.ready, all.cause, all.bundles)
            );
        }
    };
    check(&status);
    status.required.as_mut().unwrap().missing.clear();
    check(&status);
    status.required.as_mut().unwrap().problem = Some("/secret/list.txt".to_owned());
    check(&status);
    status.folder.problem = Some("/secret".to_owned());
    check(&status);
    status.required = None;
    check(&status);
    let readiness = {
        node.note(&changed(|status| {
            status.required.as_mut().unwrap().missing =
                (0..60).map(|number| missing(&number.to_string())).collect();
        }));
        node.asks("")
    };
    assert_eq!(readiness.missing.map(|missing| missing.images.len()), Some(50));
    assert!(
        readiness.reason.ends_with(": 0, 1, 2, 3, 4 and 55 more"),
        "{}",
        readiness.reason
    );
}

#[test]
fn facts_of_a_loop_that_stands_still_hold_for_a_minute() {
    let mut node = Node::new();
    node.note(&well());
    node.at += TRUST;
    assert_eq!(node.causes(), [None; 3]);
    node.at += SECOND;
    assert_eq!(node.causes(), [Some(Cause::Daemon); 3]);
}
