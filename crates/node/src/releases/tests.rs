use std::ffi::OsStr;
use std::sync::Arc;

use admission::KeyKind;
use bundle::{Identity, Member, Members, Release};
use import::Outcome;
use jiff::Timestamp;

use super::*;
use crate::state::ledger::{Imported, SignerEntry};

fn digest(fill: char) -> Digest {
    format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap()
}

fn identity() -> Identity {
    Identity {
        device: 1,
        inode: 2,
        size: 3,
        mtime_ns: 4,
        ctime_ns: 5,
    }
}

fn images(images: &[(&str, char)]) -> Vec<ImageEntry> {
    let image = |(name, fill): &(&str, char)| ImageEntry {
        name: (*name).to_owned(),
        target: digest(*fill),
    };
    images.iter().map(image).collect()
}

fn release(name: &str, members: &[(&str, char)]) -> Release {
    let member = |(name, fill): &(&str, char)| Member {
        name: (*name).to_owned(),
        digest: digest(*fill),
    };
    Release {
        name: name.to_owned(),
        members: Members::new(name, members.iter().map(member).collect()).map(Arc::new),
    }
}

/// A node whose bundles are in place, unless a test says otherwise.
#[derive(Default)]
struct Fleet {
    ledger: Ledger,
    bundles: Vec<BundleStatus>,
}

impl Fleet {
    fn with(self, file: &str, of: &Release, has: &[(&str, char)]) -> Fleet {
        self.with_skipped(file, of, has, &[])
    }

    fn with_skipped(
        mut self,
        file: &str,
        of: &Release,
        has: &[(&str, char)],
        skipped: &[(&str, char)],
    ) -> Fleet {
        let release = self.ledger.carry(Some(of), images(skipped));
        let imported = Imported {
            identity: identity(),
            sidecar: None,
            catalog: digest('c'),
            images: images(has),
            at: Timestamp::UNIX_EPOCH,
            duration_ms: 1,
            sent_bytes: 1,
            signers: Vec::new(),
            withheld: Vec::new(),
            is_delta: false,
            release,
        };
        self.ledger
            .record_import(OsStr::new(file), Outcome::Imported, imported, []);
        self.bundles.retain(|bundle| bundle.name.raw() != file);
        self.bundles
            .push(BundleStatus::named(OsStr::new(file), State::Done));
        self
    }

    fn signed(mut self, file: &str) -> Fleet {
        let signer = SignerEntry {
            key: "release".to_owned(),
            fingerprint: digest('f'),
            kind: KeyKind::P256,
        };
        let mut imported = self
            .ledger
            .get(OsStr::new(file))
            .unwrap()
            .imported
            .clone()
            .unwrap();
        imported.signers.push(signer);
        self.ledger
            .record_import(OsStr::new(file), Outcome::Imported, imported, []);
        self
    }

    fn change(mut self, file: &str, change: impl Fn(&mut BundleStatus)) -> Fleet {
        let bundles = self.bundles.iter_mut();
        bundles
            .filter(|bundle| bundle.name.raw() == file)
            .for_each(change);
        self
    }

    fn is(self, file: &str, state: State) -> Fleet {
        self.change(file, |bundle| bundle.state = state)
    }

    fn judged(&self) -> Vec<ReleaseStatus> {
        self.judged_by(Rules::default())
    }

    fn judged_by(&self, rules: Rules<'_>) -> Vec<ReleaseStatus> {
        releases(&self.ledger, &self.bundles, rules)
    }

    /// Returns the only release.
    #[track_caller]
    fn only(&self) -> ReleaseStatus {
        let mut releases = self.judged();
        assert_eq!(releases.len(), 1, "{releases:?}");
        releases.remove(0)
    }

    #[track_caller]
    fn lacks(&self, missing: usize, why: &str) {
        let release = self.only();
        let problem = release.problem.as_deref().unwrap_or_default();
        assert!(!release.in_place, "{release:?}");
        assert_eq!(release.missing, missing, "{release:?}");
        assert!(problem.contains(why) && !problem.contains('\n'), "{release:?}");
    }
}

const ALL: [(&str, char); 3] = [("a", '1'), ("b", '2'), ("c", '3')];

#[test]
fn a_release_is_in_place_when_the_bundles_together_have_every_member() {
    assert_eq!(Fleet::default().judged(), []);
    let one = release("r1", &ALL);
    let part = Fleet::default().with("x.tar", &one, &ALL[..2]);
    part.lacks(
        1,
        "1 of 3 members are not in place: c: no bundle of the release has it",
    );
    assert_eq!(part.only().missing_names, [Foreign::new("c".to_owned())]);
    let whole = part.with("y.tar", &one, &ALL[2..]);
    let status = whole.only();
    assert!(status.in_place && status.problem.is_none(), "{status:?}");
    assert_eq!((status.members, status.missing), (3, 0));
    assert_eq!(
        status.bundles,
        ["x.tar", "y.tar"].map(|name| Foreign::new(name.to_owned()))
    );
}

#[test]
fn a_bundle_without_a_release_adds_nothing_to_one() {
    let one = release("r1", &ALL);
    let other = release("r2", &[("c", '3')]);
    let fleet = Fleet::default()
        .with("x.tar", &one, &ALL[..2])
        .with("y.tar", &other, &ALL[2..]);
    let judged = fleet.judged();
    assert_eq!(
        judged.iter().map(|release| release.in_place).collect::<Vec<_>>(),
        [false, true]
    );
}

#[test]
fn another_image_under_the_name_of_a_member_is_not_that_member() {
    let one = release("r1", &ALL);
    let forged = Fleet::default().with("x.tar", &one, &[("a", '1'), ("b", '2'), ("c", '9')]);
    forged.lacks(1, "has it with sha256:333");
    // The name is with a bundle that arrived later.
    let other = release("r2", &[("c", '9')]);
    let fleet = Fleet::default()
        .with("x.tar", &one, &ALL)
        .with("y.tar", &other, &[("c", '9')]);
    let judged = fleet.judged();
    let old = &judged[0];
    assert!(!old.in_place && judged[1].in_place);
    let problem = old.problem.as_deref().unwrap();
    assert!(
        problem.contains("of y.tar") && problem.contains("sha256:999"),
        "{problem}"
    );
}

#[test]
fn a_bundle_counts_only_in_a_state_that_holds() {
    let one = release("r1", &ALL);
    for state in State::ALL {
        let fleet = Fleet::default().with("x.tar", &one, &ALL).is("x.tar", state);
        let counts = matches!(state, State::Done | State::Skipped);
        assert_eq!(fleet.only().in_place, counts, "{state:?}");
        if !counts {
            fleet.lacks(3, &format!("x.tar is {}", state.as_str()));
        }
    }
    let mut gone = Fleet::default().with("x.tar", &one, &ALL);
    gone.bundles.clear();
    gone.lacks(3, "x.tar is gone");
    gone.ledger.mark_gone(|_| Some(false), Timestamp::UNIX_EPOCH);
    assert_eq!(gone.judged(), []);
}

#[test]
fn a_member_that_is_not_for_this_node_counts_if_its_bundle_is_here_and_says_so() {
    let one = release("r1", &ALL);
    let here = Fleet::default().with_skipped("x.tar", &one, &ALL[..2], &ALL[2..]);
    assert!(here.only().in_place);
    let mut doubtful = here;
    doubtful.ledger.forget_skipped();
    doubtful.lacks(1, "c: no bundle");
    let all = Fleet::default()
        .with_skipped("x.tar", &one, &[], &ALL)
        .is("x.tar", State::Skipped);
    assert!(all.only().in_place);
    all.is("x.tar", State::Importing).lacks(3, "x.tar is importing");
}

#[test]
fn contradictory_unknown_and_unusable_lists_are_not_in_place() {
    let (one, other) = (release("r1", &ALL), release("r1", &ALL[..2]));
    let two_lists = Fleet::default()
        .with("x.tar", &one, &ALL)
        .with("y.tar", &other, &ALL[..2]);
    two_lists.lacks(0, "x.tar and y.tar carry different lists");
    let unusable = Release {
        name: "r1".to_owned(),
        members: Err("its list is cut off".to_owned()),
    };
    let fleet = Fleet::default()
        .with("x.tar", &one, &ALL)
        .with("y.tar", &unusable, &[]);
    fleet.lacks(0, "y.tar: its list is cut off");
    // A receipt may carry the list as well as its bundle.
    let twice = Fleet::default()
        .with("x.tar", &one, &ALL)
        .with("z.tar", &one, &ALL);
    assert!(twice.only().in_place);
}

#[test]
fn names_that_others_moved_or_the_operator_excludes_are_missing() {
    let one = release("r1", &ALL);
    let fleet = Fleet::default()
        .with("x.tar", &one, &ALL)
        .change("x.tar", |bundle| {
            bundle.moved = vec![Foreign::new("b".to_owned())];
        });
    fleet.lacks(1, "b: another program moved its record");
    let fleet = Fleet::default().with("x.tar", &one, &ALL);
    let exclude: Vec<Pattern> = vec!["c".parse().unwrap()];
    let rules = Rules {
        exclude: &exclude,
        ..Rules::default()
    };
    let judged = fleet.judged_by(rules);
    let problem = judged[0].problem.as_deref().unwrap();
    assert!(problem.contains("the configuration excludes it"), "{problem}");
}

#[test]
fn unsigned_bundles_have_no_word_beside_signed_ones() {
    let (one, forged) = (release("r1", &ALL), release("r1", &ALL[..1]));
    let by = |signatures| Rules {
        signatures: Some(signatures),
        ..Rules::default()
    };
    let fleet =
        Fleet::default()
            .with("x.tar", &one, &ALL)
            .signed("x.tar")
            .with("evil.tar", &forged, &ALL[..1]);
    for signatures in [Signatures::Require, Signatures::IfPresent] {
        let judged = fleet.judged_by(by(signatures));
        assert!(
            judged.len() == 1 && judged[0].in_place,
            "{signatures:?} {judged:?}"
        );
        assert_eq!(judged[0].bundles, [Foreign::new("x.tar".to_owned())]);
    }
    assert!(!fleet.only().in_place, "no rule tells them apart");
    // Nor does an unsigned bundle add to a release.
    let fleet = Fleet::default()
        .with("x.tar", &one, &ALL[..2])
        .signed("x.tar")
        .with("y.tar", &one, &ALL[2..]);
    assert!(!fleet.judged_by(by(Signatures::IfPresent))[0].in_place);
    let unsigned = Fleet::default().with("x.tar", &one, &ALL);
    assert!(unsigned.judged_by(by(Signatures::IfPresent))[0].in_place);
    assert_eq!(unsigned.judged_by(by(Signatures::Require)), []);
    let withdrawn = Fleet::default()
        .with("x.tar", &one, &ALL)
        .signed("x.tar")
        .change("x.tar", |bundle| {
            bundle.unadmitted = Some("no signature of a trusted key admits it any more".to_owned());
        });
    assert_eq!(withdrawn.judged_by(by(Signatures::Require)), []);
}

#[test]
fn many_missing_members_are_counted_and_few_are_named() {
    let names: Vec<String> = (0..20_000).map(|n| format!("i{n:05}")).collect();
    let all: Vec<(&str, char)> = names.iter().map(|name| (name.as_str(), '1')).collect();
    let one = release("r1", &all);
    let fleet = Fleet::default().with("x.tar", &one, &all[..10_000]);
    let status = fleet.only();
    assert_eq!((status.members, status.missing), (20_000, 10_000));
    assert_eq!(status.missing_names.len(), MOST_NAMED);
    assert_eq!(status.missing_names[0].raw(), "i10000");
}
