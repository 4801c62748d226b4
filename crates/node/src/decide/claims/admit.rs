//! Files that the daemon judges finished, opens, and takes on or refuses.

use super::*;

#[test]
fn a_bundle_is_held_against_its_checksum_unless_that_was_done_or_is_not_wanted() {
    use Checksums::{IfPresent, Off, Require};
    let table = [
        (Off, false, false, true),
        (IfPresent, true, false, false),
        (IfPresent, true, true, true),
        (IfPresent, false, true, true),
        (Require, true, false, false),
        (Require, true, true, true),
        (Require, false, true, false),
    ];
    for (mode, has_sidecar, was_imported, is_checked) in table {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        if has_sidecar {
            drop_in(&mut world, "a.tar.sha256", &image(9), digest(9));
        }
        if was_imported {
            world.settle();
            world.records.clear();
            let now = world.turn().now;
            world.state.compare_soon(now);
        }
        queue(&mut world, "a.tar");
        settings(&mut world).checksums = mode;
        let start = opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        assert_eq!(
            start.is_checked, is_checked,
            "{mode:?}, sidecar: {has_sidecar}, imported: {was_imported}"
        );
    }
}

#[test]
fn the_log_names_a_file_that_is_begun_with_once_and_only_if_it_may_be_a_bundle() {
    let told = |ending, is_heavy: bool| {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        let identity = version(&world, "a.tar").identity;
        if is_heavy {
            let lanes = &mut world.state.lanes;
            lanes.note_heavy(OsStr::new("a.tar"), &identity, |_| true);
        }
        opened(&mut world, "a.tar", Some(ending))
            .expect("a job begins")
            .is_told
    };
    assert!(told(Ending::Marker, false));
    assert!(!told(Ending::Foreign, false), "its refusal is line enough");
    assert!(!told(Ending::Marker, true), "an earlier job had the line");
}

#[test]
fn a_file_that_is_no_archive_is_judged_as_soon_as_nothing_writes_it() {
    let (beginning, foreign) = (Ending::Beginning, Ending::Foreign);
    let table = [
        ("notes.md", 100, false, beginning, Some(Reason::Companion)),
        ("data", 0, false, beginning, Some(Reason::Empty)),
        ("images.txt", 100, false, beginning, Some(Reason::List)),
        ("images.txt", 100, true, beginning, None),
        ("images.txt", 100, true, foreign, None),
    ];
    for (name, size, pull_lists, ending, reason) in table {
        let mut world = world();
        settings(&mut world).pull_lists = pull_lists;
        let listed = entry(&mut world, name, Class::Candidate);
        list(&mut world, seen(vec![listed]));
        let observation = Observation {
            size,
            writer: Writer::None,
            ending,
            changed: world.turn().now,
            age: None,
        };
        world.pass(Duration::from_secs(5));
        let version = version(&world, name);
        after(
            &mut world,
            Event::Looked(name.into(), version, Look::Seen(observation)),
        );
        let wanted = reason.map_or(Phase::Ready, Phase::Ignored);
        assert_eq!(
            phase(&world, name),
            Some(wanted),
            "{name}, {pull_lists}, {ending:?}"
        );
    }
    // This file may still become an archive.
    let mut world = world();
    let listed = entry(&mut world, "a.tar", Class::Candidate);
    list(&mut world, seen(vec![listed]));
    let observation = Observation {
        size: 100,
        writer: Writer::None,
        ending: Ending::Beginning,
        changed: world.turn().now,
        age: None,
    };
    world.pass(Duration::from_secs(5));
    let version = version(&world, "a.tar");
    after(
        &mut world,
        Event::Looked("a.tar".into(), version, Look::Seen(observation)),
    );
    assert!(world.state.roster.is_settling(OsStr::new("a.tar")));
}

#[test]
fn a_layout_that_is_not_whole_waits_and_is_refused_when_nothing_comes_for_a_while() {
    let mut world = world();
    run(&mut world);
    let listed = entry(&mut world, "app", Class::Layout);
    list(&mut world, seen(vec![listed]));
    let name = OsStr::new("app");
    let version = version(&world, "app");
    world.pass(Duration::from_secs(5));
    let look = || Event::Looked("app".into(), version.clone(), Look::Layout);
    after(&mut world, look());
    let cut = || {
        let bad = Bad {
            text: "a blob is missing".to_owned(),
            class: ErrorClass::Bundle,
            may_go_on: true,
            is_beyond_limits: false,
        };
        Event::Job("app".into(), Box::new(Came::Bad(bad)))
    };
    let start = opened(&mut world, "app", None).expect("a job begins");
    assert!(!start.is_told, "the line comes when the folder is whole");
    after(&mut world, cut());
    assert!(world.state.roster.is_settling(name));
    assert!(world.state.lanes.is_empty());
    world.pass(Duration::from_secs(3600));
    after(&mut world, look());
    opened(&mut world, "app", None).expect("a job begins");
    let turn = after(&mut world, cut());
    assert!(says(&turn, "not imported: a blob is missing"));
    assert_eq!(phase(&world, "app"), Some(Phase::Failed { retry: None }));
}

#[test]
fn a_file_that_changed_while_it_was_looked_at_is_listed_and_looked_at_again() {
    let mut world = world();
    let listed = entry(&mut world, "a.tar", Class::Candidate);
    list(&mut world, seen(vec![listed]));
    world.state.relist = false;
    let version = version(&world, "a.tar");
    let now = world.turn().now;
    after(&mut world, Event::Looked("a.tar".into(), version, Look::Replaced));
    assert!(world.state.relist);
    let look = now + Duration::from_millis(500);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Settling { look }));
}

/// Returns a world with a job that reads `images.txt`.
fn reading_a_list() -> World {
    let mut world = world();
    settings(&mut world).pull_lists = true;
    drop_in(&mut world, "images.txt", &image(0), digest(1));
    queue(&mut world, "images.txt");
    opened(&mut world, "images.txt", Some(Ending::Foreign)).expect("a job begins");
    world
}

#[test]
fn a_list_is_pulled_if_it_is_trusted_and_still_the_file_that_was_read() {
    let came = |distrust: Option<&str>| {
        let distrust = distrust.map(str::to_owned);
        let catalog = digest(7);
        Event::Job("images.txt".into(), Box::new(Came::List { catalog, distrust }))
    };
    let pulls = |turn: &Turn| acts(turn, |action| matches!(action, Action::Pull(_)));
    let mut world = reading_a_list();
    assert!(pulls(&after(&mut world, came(None))));
    let mut world = reading_a_list();
    let turn = after(&mut world, came(Some("its digest is not trusted")));
    assert!(!pulls(&turn) && says(&turn, "its digest is not trusted"));
    assert_eq!(phase(&world, "images.txt"), Some(Phase::Failed { retry: None }));
    let mut world = reading_a_list();
    world.state.is_draining = true;
    assert!(!pulls(&after(&mut world, came(None))), "the daemon stops");
    assert!(world.state.lanes.is_empty());
    let mut world = reading_a_list();
    let listed = entry(&mut world, "images.txt", Class::Candidate);
    list(&mut world, seen(vec![listed]));
    assert!(!pulls(&after(&mut world, came(None))), "it was replaced");
    assert!(world.state.lanes.is_empty());
}

#[test]
fn a_list_of_which_an_image_could_not_be_pulled_is_tried_again() {
    use import::Outcome::{Failed, Imported, Partial};
    for (pulled, problems, outcome) in [
        (1, 0, Imported),
        (0, 0, Imported),
        (1, 1, Partial),
        (0, 1, Failed),
    ] {
        let mut world = reading_a_list();
        let catalog = digest(7);
        let read = Came::List {
            catalog,
            distrust: None,
        };
        after(&mut world, Event::Job("images.txt".into(), Box::new(read)));
        let images = (0..pulled).map(|number| ImageEntry {
            name: image(number),
            target: digest(number + 1),
        });
        let came = Came::Pulled {
            images: images.collect(),
            problems: vec!["it is not there".to_owned(); problems],
        };
        let turn = after(&mut world, Event::Job("images.txt".into(), Box::new(came)));
        assert!(acts(&turn, |action| matches!(action, Action::Save)));
        let case = format!("{pulled} pulled, {problems} not");
        assert_eq!(
            landed_on(&world, "images.txt"),
            ledger::LastTry::Ended(outcome),
            "{case}"
        );
        let is_retried = matches!(
            phase(&world, "images.txt"),
            Some(Phase::Failed { retry: Some(_) })
        );
        assert_eq!(is_retried, problems > 0, "{case}");
        let kept = world.state.ledger.get(OsStr::new("images.txt")).unwrap();
        assert_eq!(
            kept.imported.as_ref().unwrap().images.len() as u64,
            pulled,
            "{case}"
        );
    }
}

#[test]
fn a_bundle_is_imported_if_it_is_finished_and_trusted_and_still_the_file_that_was_read() {
    let table = [
        (found(None, None, None), None),
        (found(Some("a blob is missing"), None, None), None),
        (
            found(None, Some("it is cut off"), None),
            Some(("it is cut off", ErrorClass::Bundle)),
        ),
        (
            found(None, None, Some("its digest is not trusted")),
            Some(("its digest is not trusted", ErrorClass::Refused)),
        ),
        (
            found(None, Some("it is cut off"), Some("its digest is not trusted")),
            Some(("it is cut off", ErrorClass::Bundle)),
        ),
    ];
    let imports = |turn: &Turn| acts(turn, |action| matches!(action, Action::Import(..)));
    for (came, refusal) in table {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        let case = format!("{came:?}");
        let turn = after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
        assert_eq!(imports(&turn), refusal.is_none(), "{case}");
        let entry = world.state.ledger.get(OsStr::new("a.tar")).unwrap();
        let error = entry
            .last_error
            .as_ref()
            .map(|error| (error.text.as_str(), error.class));
        assert_eq!(error, refusal, "{case}");
    }
    for is_draining in [true, false] {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        match is_draining {
            true => world.state.is_draining = true,
            false => {
                let listed = entry(&mut world, "a.tar", Class::Candidate);
                list(&mut world, seen(vec![listed]));
            }
        }
        let turn = after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(found(None, None, None))),
        );
        assert!(!imports(&turn), "the daemon stops: {is_draining}");
        assert!(world.state.lanes.is_empty());
    }
}

#[test]
fn a_layout_is_imported_when_it_is_whole_or_when_nothing_more_comes() {
    let came = |broken, waited| {
        let mut world = world();
        run(&mut world);
        let listed = entry(&mut world, "app", Class::Layout);
        list(&mut world, seen(vec![listed]));
        let version = version(&world, "app");
        world.pass(Duration::from_secs(5));
        after(&mut world, Event::Looked("app".into(), version, Look::Layout));
        opened(&mut world, "app", None).expect("a job begins");
        world.pass(waited);
        let turn = after(
            &mut world,
            Event::Job("app".into(), Box::new(found(broken, None, None))),
        );
        (
            says(&turn, "importing"),
            world.state.roster.is_settling(OsStr::new("app")),
        )
    };
    let (soon, late) = (Duration::ZERO, Duration::from_secs(3600));
    assert_eq!(came(None, soon), (true, false));
    assert_eq!(came(Some("a blob is missing"), soon), (false, true));
    assert_eq!(came(Some("a blob is missing"), late), (true, false));
}

#[test]
fn an_import_is_told_which_names_it_leaves_and_why() {
    type Change = fn(&mut World);
    let table: [(Change, bool, Option<&str>); 6] = [
        (|_| {}, true, None),
        (
            |world| settings(world).exclude = vec!["registry.test/app:*".parse().unwrap()],
            true,
            Some("`exclude` names it"),
        ),
        (
            |world| {
                drop_in(world, "late.tar", &image(0), digest(2));
                world.settle();
            },
            true,
            Some("a bundle that arrived later has this name"),
        ),
        (
            |world| {
                drop_in(world, "late.tar", &image(0), digest(1));
                world.settle();
            },
            true,
            None,
        ),
        (
            moved_by_another,
            true,
            Some("another program moved the record since the bundle was imported"),
        ),
        (moved_by_another, false, None),
    ];
    for (at, (change, is_known, why)) in table.into_iter().enumerate() {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.settle();
        change(&mut world);
        if !is_known {
            drop_in(&mut world, "a.tar", &image(0), digest(1));
        }
        world.state.is_draining = true;
        run(&mut world);
        world.state.is_draining = false;
        world.state.roster.queue(OsStr::new("a.tar"));
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        let came = Box::new(found(None, None, None));
        let turn = after(&mut world, Event::Job("a.tar".into(), came));
        let left = turn.actions.iter().find_map(|action| match action {
            Action::Import(_, left) => Some(left.clone()),
            _ => None,
        });
        let wanted = why.map(|why| (image(0), why.to_owned()));
        assert_eq!(left, Some(wanted.into_iter().collect()), "{at}");
    }
}

fn moved_by_another(world: &mut World) {
    let moved = [image(0)].into();
    world.state.elsewhere.insert("a.tar".into(), moved);
}

pub(super) fn signer(key: &str, number: u64) -> SignerEntry {
    SignerEntry {
        key: key.to_owned(),
        fingerprint: digest(number),
        kind: admission::KeyKind::P256,
    }
}

/// Notes an import of the file that is listed under a name.
pub(super) fn record(world: &mut World, name: &str, target: Digest, signers: Vec<SignerEntry>) {
    let imported = ledger::Imported {
        identity: version(world, name).identity,
        sidecar: None,
        catalog: digest(9),
        images: vec![ImageEntry {
            name: image(0),
            target,
        }],
        at: Timestamp::UNIX_EPOCH,
        duration_ms: 1,
        sent_bytes: 1,
        signers,
        withheld: Vec::new(),
        release: ledger::Carried::default(),
    };
    let outcome = import::Outcome::Imported;
    let ledger = &mut world.state.ledger;
    ledger.record_import(OsStr::new(name), outcome, imported, Vec::new());
}

/// Returns keys without revocations, of which these are trusted.
pub(super) fn keys(trusted: &[u64]) -> KeysSeen {
    KeysSeen {
        stamp: crate::images::keys::Stamp::of(Path::new("/nonexistent/keys.d")),
        is_stale: false,
        trusted: trusted.iter().map(|number| digest(*number)).collect(),
        problem: None,
        withdrawn: BTreeSet::new(),
        unusable: Vec::new(),
    }
}

/// Returns the verdict that these keys admit a bundle.
fn admitted(signers: &[SignerEntry]) -> Verdict {
    let signers = signers.iter().map(|signer| admission::Signer {
        key: signer.key.clone(),
        fingerprint: signer.fingerprint.clone(),
        kind: signer.kind,
        proof: 0,
    });
    Verdict::Admitted(admission::Admission {
        catalog: digest(9),
        signers: signers.collect(),
        remarks: Vec::new(),
    })
}

pub(super) fn with_verdict(verdict: Verdict) -> Came {
    Came::Found(Box::new(Found {
        records: [(image(0), digest(1)), (image(1), digest(1))].into(),
        broken: None,
        unfinished: None,
        may_go_on: false,
        catalog: digest(9),
        stands_for: None,
        verdict,
    }))
}

#[test]
fn a_file_from_before_the_rule_keeps_its_images_and_any_other_file_needs_a_signature() {
    let forbidden = |by| {
        let why = "a rule forbids it".to_owned();
        Verdict::Forbidden(Forbidden { why, by })
    };
    let missing = || Verdict::Missing("there is no signature".to_owned());
    // The file is new, or was imported without a signature, or with one.
    let (new, unsigned, signed) = (None, Some(vec![]), Some(vec![signer("release", 7)]));
    let waits = Some(Phase::Waiting(Lack::Signature));
    let refused = Some(Phase::Failed { retry: None });
    let imports = Some(Phase::Running);
    let table = [
        (missing(), [waits, imports, waits]),
        (forbidden(By::Signatures), [refused, imports, refused]),
        (forbidden(By::Keys), [refused, imports, refused]),
        (forbidden(By::Revocation), [refused, refused, refused]),
        (forbidden(By::UnreadableRevocations), [refused, refused, refused]),
        (forbidden(By::TrustedDigests), [refused, refused, refused]),
        (Verdict::Allowed, [imports, imports, imports]),
    ];
    for (verdict, expected) in table {
        for (before, expected) in [&new, &unsigned, &signed].into_iter().zip(expected) {
            let mut world = reading();
            settings(&mut world).signatures = Some(Signatures::Require);
            if let Some(signers) = before.clone() {
                record(&mut world, "a.tar", digest(1), signers);
            }
            let case = format!("{verdict:?} after {before:?}");
            let came = with_verdict(verdict.clone());
            let turn = after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
            assert_eq!(phase(&world, "a.tar"), expected, "{case}");
            let left = turn.actions.iter().find_map(|action| match action {
                Action::Import(_, left) => Some(left.keys().cloned().collect::<Vec<_>>()),
                _ => None,
            });
            // A name that was not recorded needs a signature.
            let is_older = before.as_ref().is_some_and(Vec::is_empty) && expected == imports;
            let is_new = before.is_none() && expected == imports;
            let held = match (is_older, is_new) {
                (true, _) => Some(vec![image(1)]),
                (_, true) => Some(vec![image(0), image(1)]),
                _ => (expected == imports).then(Vec::new),
            };
            assert_eq!(left, held, "{case}");
        }
    }
}

#[test]
fn a_name_of_a_trusted_key_is_withheld_from_bundles_of_other_keys() {
    let (ours, theirs) = (|| signer("ours", 7), || signer("theirs", 8));
    // The keys of the bundle in place, the keys of the new bundle, the trusted keys.
    type Row<'a> = (Vec<SignerEntry>, Vec<SignerEntry>, &'a [u64], bool);
    let table: [Row<'_>; 6] = [
        (vec![theirs()], vec![ours()], &[7, 8], true),
        (vec![theirs()], vec![ours()], &[7], false),
        (vec![theirs()], vec![ours(), theirs()], &[7, 8], false),
        (vec![theirs(), ours()], vec![ours()], &[7, 8], false),
        (vec![], vec![ours()], &[7, 8], false),
        (vec![ours()], vec![ours()], &[7, 8], false),
    ];
    for (before, now, trusted, is_withheld) in table {
        let mut world = world();
        drop_in(&mut world, "old.tar", &image(0), digest(2));
        world.settle();
        record(&mut world, "old.tar", digest(2), before.clone());
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        settings(&mut world).signatures = Some(Signatures::IfPresent);
        world.state.keys = Some(keys(trusted));
        let came = with_verdict(admitted(&now));
        let turn = after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
        let left = turn.actions.iter().find_map(|action| match action {
            Action::Import(_, left) => Some(left.clone()),
            _ => None,
        });
        let left = left.expect("it is imported");
        let case = format!("{before:?} {now:?} {trusted:?}");
        assert_eq!(left.contains_key(&image(0)), is_withheld, "{case}: {left:?}");
        assert!(!left.contains_key(&image(1)), "{case}");
    }
}

/// Returns the error that the ledger has of a file.
fn error_of(world: &World, name: &str) -> Option<(String, ErrorClass)> {
    let entry = world.state.ledger.get(OsStr::new(name))?;
    let error = entry.last_error.as_ref()?;
    Some((error.text.clone(), error.class))
}

/// Records that the rules refuse a file, or a part of it.
fn fall_short(world: &mut World, name: &str, outcome: import::Outcome, class: ErrorClass) {
    let error = ledger::LastError {
        text: "a rule forbids it".to_owned(),
        class,
        at: Timestamp::UNIX_EPOCH,
        images: 1,
        refused_by: None,
    };
    let (file, identity) = (OsStr::new(name), version(world, name).identity);
    let state = &mut world.state;
    state.ledger.record_failure(file, identity, outcome, error);
    let now = world.turn().now;
    world.state.roster.fail(file, now, None);
}

#[test]
fn a_file_that_replaces_a_bundle_of_another_trusted_key_moves_no_name_of_it() {
    let (ours, theirs) = (|| signer("ours", 7), || signer("theirs", 8));
    let table = [
        (vec![ours()], Some(&[7, 8][..]), true),
        (vec![ours()], None, true),
        (vec![], Some(&[7, 8]), true),
        (vec![ours()], Some(&[7]), false),
        (vec![ours(), theirs()], Some(&[7, 8]), false),
    ];
    for (now, trusted, is_refused) in table {
        let case = format!("{now:?} {trusted:?}");
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(2));
        world.settle();
        record(&mut world, "a.tar", digest(2), vec![theirs()]);
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        settings(&mut world).signatures = Some(Signatures::IfPresent);
        world.state.keys = trusted.map(keys);
        let verdict = match now.is_empty() {
            true => Verdict::Allowed,
            false => admitted(&now),
        };
        let mut came = Box::new(with_verdict(verdict));
        if let Came::Found(found) = &mut *came {
            found.catalog = digest(10);
        }
        let turn = after(&mut world, Event::Job("a.tar".into(), came));
        let imports = acts(&turn, |action| matches!(action, Action::Import(..)));
        assert_eq!(imports, !is_refused, "{case}");
        let class = error_of(&world, "a.tar").map(|(_, class)| class);
        assert_eq!(class, is_refused.then_some(ErrorClass::Refused), "{case}");
        let entry = world.state.ledger.get(OsStr::new("a.tar")).unwrap();
        assert_eq!(entry.imported.as_ref().unwrap().signers, [theirs()], "{case}");
        if is_refused {
            let (text, _) = error_of(&world, "a.tar").unwrap();
            assert!(text.contains("key theirs"), "{case}: {text}");
        }
    }
}

#[test]
fn a_refused_bundle_keeps_its_names_and_later_bundles_without_a_key_take_none() {
    let (ours, theirs) = (|| signer("ours", 7), || signer("theirs", 8));
    for (is_refused, has_unsigned) in [(true, false), (false, true), (true, true)] {
        let mut world = world();
        drop_in(&mut world, "old.tar", &image(0), digest(2));
        world.settle();
        record(&mut world, "old.tar", digest(2), vec![theirs()]);
        if has_unsigned {
            drop_in(&mut world, "unsigned.tar", &image(0), digest(3));
            world.settle();
            record(&mut world, "unsigned.tar", digest(3), vec![]);
        }
        if is_refused {
            fall_short(
                &mut world,
                "old.tar",
                import::Outcome::Failed,
                ErrorClass::Refused,
            );
        }
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        settings(&mut world).signatures = Some(Signatures::Require);
        world.state.keys = Some(keys(&[7, 8]));
        let came = Box::new(with_verdict(admitted(&[ours()])));
        let turn = after(&mut world, Event::Job("a.tar".into(), came));
        let left = turn.actions.iter().find_map(|action| match action {
            Action::Import(_, left) => Some(left.keys().cloned().collect::<Vec<_>>()),
            _ => None,
        });
        assert_eq!(left, Some(vec![image(0)]), "{is_refused} {has_unsigned}");
    }
}

#[test]
fn a_bundle_with_images_out_of_scope_is_read_again_for_new_patterns_and_proofs() {
    use import::Outcome::{Failed, Partial};
    for (outcome, class, wakes) in [
        (Partial, ErrorClass::Permanent, true),
        (Failed, ErrorClass::Permanent, true),
        (Failed, ErrorClass::Bundle, false),
    ] {
        for by_proof in [true, false] {
            let mut world = with_bundles(1);
            settings(&mut world).signatures = Some(Signatures::Require);
            world.state.keys = Some(keys(&[7]));
            fall_short(&mut world, "0.tar", outcome, class);
            let entries = listed(&world, |_| true);
            let mut seen = seen(entries);
            match by_proof {
                true => seen.proofs = vec![("0.tar.sig".into(), world.identity())],
                false => seen.keys = Some(keys(&[7, 8])),
            }
            list(&mut world, seen);
            let is_queued = phase(&world, "0.tar") == Some(Phase::Ready);
            assert_eq!(is_queued, wakes, "{outcome:?} {class:?} {by_proof}");
        }
    }
}

#[test]
fn a_bundle_that_waits_for_a_signature_is_read_again_when_one_may_be_there() {
    let proof = |name: &str, world: &mut World| vec![(OsString::from(name), world.identity())];
    let waiting = || {
        let mut world = reading();
        settings(&mut world).signatures = Some(Signatures::Require);
        let came = with_verdict(Verdict::Missing("there is no signature".to_owned()));
        after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
        world
    };
    for (name, wakes) in [
        ("a.tar.digest.sig", true),
        ("SHA256SUMS.sig", true),
        ("b.tar.sig", false),
    ] {
        let mut world = waiting();
        let entries = listed(&world, |_| true);
        let proofs = proof(name, &mut world);
        let seen = Seen {
            proofs: proofs.clone(),
            ..seen(entries)
        };
        list(&mut world, seen);
        let is_queued = phase(&world, "a.tar") == Some(Phase::Ready);
        assert_eq!(is_queued, wakes, "{name}");
    }
    let mut world = waiting();
    let entries = listed(&world, |_| true);
    let keys = KeysSeen {
        stamp: crate::images::keys::Stamp::of(Path::new("/nonexistent/keys.d")),
        is_stale: false,
        trusted: HashSet::new(),
        problem: Some("place a public key".to_owned()),
        withdrawn: BTreeSet::new(),
        unusable: Vec::new(),
    };
    let turn = list(
        &mut world,
        Seen {
            keys: Some(keys),
            ..seen(entries)
        },
    );
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready));
    assert!(says(&turn, "no new bundle is imported: place a public key"));
}

#[test]
fn a_proof_or_a_key_that_comes_while_its_bundle_is_read_is_not_missed() {
    let missing = || with_verdict(Verdict::Missing("there is no signature".to_owned()));
    for (name, expected) in [
        ("a.tar.digest.sig", Phase::Ready),
        ("b.tar.sig", Phase::Waiting(Lack::Signature)),
    ] {
        let mut world = reading();
        settings(&mut world).signatures = Some(Signatures::Require);
        let entries = listed(&world, |_| true);
        let proofs = vec![(name.into(), world.identity())];
        let seen = Seen {
            proofs,
            ..seen(entries)
        };
        list(&mut world, seen);
        assert_eq!(phase(&world, "a.tar"), Some(Phase::Running), "{name}");
        after(&mut world, Event::Job("a.tar".into(), Box::new(missing())));
        assert_eq!(phase(&world, "a.tar"), Some(expected), "{name}");
    }
    let mut world = reading();
    settings(&mut world).signatures = Some(Signatures::Require);
    let keys = |problem: &str| KeysSeen {
        stamp: crate::images::keys::Stamp::of(Path::new("/nonexistent/keys.d")),
        is_stale: false,
        trusted: HashSet::new(),
        problem: Some(problem.to_owned()),
        withdrawn: BTreeSet::new(),
        unusable: Vec::new(),
    };
    world.state.keys = Some(keys("one"));
    let entries = listed(&world, |_| true);
    let seen = Seen {
        keys: Some(keys("two")),
        ..seen(entries)
    };
    let turn = list(&mut world, seen);
    assert!(acts(&turn, |action| matches!(action, Action::Abort(_))));
    after(&mut world, Event::Job("a.tar".into(), Box::new(Came::Dropped)));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready));
}
