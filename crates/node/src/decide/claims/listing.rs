//! Listings of the folder: new files, files that disappear, and files that were known before.

use super::*;

#[test]
fn checksums_count_as_part_of_a_file_unless_they_are_off() {
    for (mode, has_sidecar) in [(Checksums::IfPresent, true), (Checksums::Off, false)] {
        let mut world = world();
        settings(&mut world).checksums = mode;
        let entries = ["a.tar", "a.tar.sha256"].map(|name| entry(&mut world, name, Class::Candidate));
        list(&mut world, seen(entries.into()));
        assert_eq!(
            version(&world, "a.tar").sidecar.is_some(),
            has_sidecar,
            "{mode:?}"
        );
        assert_eq!(phase(&world, "a.tar.sha256"), None, "{mode:?}");
    }
}

#[test]
fn the_folder_is_found_fault_with_once_for_each_reason() {
    let mut world = world();
    let folder = |trust: FolderTrust| Seen {
        trust,
        ..seen(Vec::new())
    };
    let warning = |why: &str| folder(FolderTrust::Warning(why.to_owned()));
    let refused = |why: &str| folder(FolderTrust::Refused(why.to_owned()));
    for (seen, text, problem) in [
        (warning("all may read"), "/images: all may read", None),
        (warning("a group may write"), "/images: a group may write", None),
        (
            refused("all may write"),
            "/images: nothing is imported: all may write",
            Some("nothing is imported: all may write"),
        ),
        (folder(FolderTrust::Trusted), "", None),
    ] {
        let again = Seen {
            trust: seen.trust.clone(),
            ..self::seen(Vec::new())
        };
        assert_eq!(says(&list(&mut world, seen), text), !text.is_empty(), "{text}");
        assert_eq!(world.state.folders[0].trouble.as_deref(), problem);
        assert!(
            !says(&list(&mut world, again), ""),
            "nothing is said again after {text}"
        );
    }
    let created = Seen {
        keeps: None,
        is_created: true,
        ..seen(Vec::new())
    };
    assert!(says(
        &list(&mut world, created),
        "created the images folder /images"
    ));
}

#[test]
fn a_bundle_is_gone_if_it_is_missing_in_the_same_folder_and_can_be_told_to_be() {
    let gone = |place, unclear: &[&str], missing: &[&str]| {
        let mut world = with_bundles(4);
        let entries = listed(&world, |name| !missing.contains(&name));
        let seen = Seen {
            place,
            unclear: unclear.iter().map(Into::into).collect(),
            ..seen(entries)
        };
        let turn = list(&mut world, seen);
        let gone = (0..4)
            .filter(|number| is_gone(&world, &format!("{number}.tar")))
            .count();
        assert_eq!(says(&turn, "the bundle is gone"), gone > 0);
        // A scrub beside the daemon reads the saved ledger.
        let is_saved = acts(&turn, |action| matches!(action, Action::Save));
        assert!(is_saved || gone == 0);
        (
            gone,
            world.state.folders[0].vanished.as_ref().map(ToString::to_string),
        )
    };
    assert_eq!(gone((1, 1), &[], &["0.tar"]), (1, None));
    assert_eq!(
        gone((1, 1), &["0.tar"], &["0.tar"]),
        (0, None),
        "it cannot be examined"
    );
    assert_eq!(gone((1, 1), &[], &[]), (0, None));
    assert_eq!(
        gone((1, 2), &[], &[]),
        (0, None),
        "all are in the other folder, too"
    );
    let (count, why) = gone((1, 2), &[], &["0.tar"]);
    assert_eq!(count, 0);
    let text = "/images is another folder than before: 1 of 4 bundles is missing";
    assert_eq!(why.as_deref(), Some(text));
    assert_eq!(gone((1, 1), &[], &["0.tar", "1.tar", "2.tar"]), (3, None));
}

#[test]
fn bundles_that_are_back_are_said_to_be_accounted_for() {
    let mut world = with_bundles(4);
    let empty = || Seen {
        place: (1, 2),
        ..seen(Vec::new())
    };
    let turn = list(&mut world, empty());
    assert!(says(&turn, "4 of 4 bundles are missing"));
    let turn = list(&mut world, empty());
    assert!(!says(&turn, "4 of 4 bundles are missing"), "it was said");
    let entries = listed(&world, |_| true);
    let turn = list(&mut world, seen(entries));
    assert!(says(&turn, "no bundle is missing any more"));
    let entries = listed(&world, |_| true);
    let turn = list(&mut world, seen(entries));
    assert!(!says(&turn, "no bundle is missing"));
    assert!((0..4).all(|number| !is_gone(&world, &format!("{number}.tar"))));
}

#[test]
fn a_file_that_was_found_bad_is_told_of_and_not_read_again_by_the_same_program() {
    use import::Outcome::{Failed, Partial};
    let same = Some(ledger::PROGRAM.to_owned());
    let other = Some("0.0.0".to_owned());
    let settling = |phase| matches!(phase, Some(Phase::Settling { .. }));
    let recalled = |outcome, class, program: &Option<String>, is_same_file: bool| {
        let mut world = world();
        let listed = entry(&mut world, "a.tar", Class::Candidate);
        let identity = match is_same_file {
            true => listed.identity.clone(),
            false => world.identity(),
        };
        let error = ledger::LastError {
            text: "it is broken".to_owned(),
            class,
            at: Timestamp::UNIX_EPOCH,
            images: 0,
            refused_by: None,
        };
        let state = &mut world.state;
        state
            .ledger
            .record_failure(OsStr::new("a.tar"), identity, outcome, error);
        state.ledger.context.program.clone_from(program);
        let turn = list(&mut world, seen(vec![listed]));
        let is_said = says(&turn, "not imported, as before: it is broken");
        (phase(&world, "a.tar"), is_said)
    };
    let bad = ErrorClass::Bundle;
    let failed = Some(Phase::Failed { retry: None });
    assert_eq!(recalled(Failed, bad, &same, true), (failed, true));
    assert_eq!(recalled(Partial, bad, &same, true), (Some(Phase::Known), true));
    for (class, program, is_same_file) in [
        (bad, &other, true),
        (bad, &None, true),
        (bad, &same, false),
        (ErrorClass::Transient, &same, true),
    ] {
        let (phase, is_said) = recalled(Failed, class, program, is_same_file);
        assert!(
            settling(phase) && !is_said,
            "{class:?} {program:?} {is_same_file}"
        );
    }
}

/// Returns a world after three panics over `a.tar`.
fn set_aside() -> World {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    panic_over(&mut world, "a.tar");
    world
}

/// Has three jobs of a file panic.
fn panic_over(world: &mut World, name: &str) {
    for _ in 0..3 {
        world.pass(Duration::from_secs(60));
        run(world);
        let panicked = Came::Panicked {
            cause: "a panic".to_owned(),
            program: Some("1".to_owned()),
        };
        world.take(Event::Job(name.into(), Box::new(panicked)));
    }
    assert_eq!(phase(world, name), Some(Phase::Failed { retry: None }));
}

#[test]
fn a_file_that_was_set_aside_stays_so_whatever_rules_and_trusted_digests_say() {
    let mut world = set_aside();
    let entry = world.state.ledger.get(OsStr::new("a.tar")).unwrap();
    let text = entry.last_error.as_ref().unwrap().text.clone();
    assert!(
        text.contains("`airgapd import /images/a.tar` imports it at once"),
        "{text}"
    );
    let mut turn = world.turn();
    world
        .state
        .check_context(None, "other rules".to_owned(), &mut turn);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry: None }));
    let entries = listed(&world, |_| true);
    let trusted = Trusted {
        stamp: Vec::new(),
        distrusted: ["a.tar".into()].into(),
    };
    let seen = Seen {
        trusted: Some(trusted),
        ..seen(entries)
    };
    list(&mut world, seen);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry: None }));
    // The next run of the daemon finds the error in its ledger.
    let mut next = self::world();
    next.state.ledger = world.state.ledger.clone();
    let entries = listed(&world, |_| true);
    let turn = list(&mut next, self::seen(entries));
    assert!(says(&turn, &format!("not imported: {text}")));
    assert_eq!(phase(&next, "a.tar"), Some(Phase::Failed { retry: None }));
}

/// Puts a bundle into the second folder, whose files have no time of change of their own.
fn drop_into_image(world: &mut World, name: &str, image: &str, target: Digest) {
    world.is_second_read_only = true;
    drop_in(world, name, image, target);
    let file = world.folder.get_mut(OsStr::new(name)).unwrap();
    file.identity.ctime_ns = file.identity.mtime_ns;
}

#[test]
fn a_file_of_an_os_image_that_was_set_aside_stays_so_after_a_restart() {
    let name = "/os/a.tar";
    let mut world = world();
    drop_into_image(&mut world, name, &image(0), digest(1));
    panic_over(&mut world, name);
    let arrival = |world: &World| world.state.ledger.get(OsStr::new(name)).unwrap().arrival;
    let before = arrival(&world);
    world.restart("boot");
    world.settle();
    assert_eq!(phase(&world, name), Some(Phase::Failed { retry: None }));
    assert_eq!((world.starts[OsStr::new(name)], arrival(&world)), (3, before));
}

#[test]
fn bundles_of_an_os_image_are_read_again_after_a_restart_and_keep_their_places() {
    for is_read_only in [true, false] {
        let mut world = world();
        // The names have the opposite order.
        drop_into_image(&mut world, "/os/b.tar", &image(0), digest(1));
        world.settle();
        drop_into_image(&mut world, "/os/a.tar", &image(0), digest(2));
        drop_into_image(&mut world, "/os/broken.tar", &image(1), digest(3));
        let broken = world.folder.get_mut(OsStr::new("/os/broken.tar")).unwrap();
        broken.content = Content::Broken;
        world.settle();
        world.is_second_read_only = is_read_only;
        let before = world.starts.clone();
        world.restart("boot");
        world.settle();
        for name in ["/os/a.tar", "/os/b.tar", "/os/broken.tar"].map(OsStr::new) {
            assert_eq!(world.starts[name] > before[name], is_read_only, "{name:?}");
        }
        assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
        world.check();
    }
}

#[test]
fn after_a_reboot_a_read_only_folder_may_be_that_of_another_os_image() {
    // The first flags are true if the folder is read-only, and if a bundle is missing. Then comes
    // the boot of a restart. The last flag is true if the bundle counts as lost.
    let table = [
        (true, true, Some("another boot"), true),
        (true, false, Some("another boot"), false),
        (false, true, Some("another boot"), false),
        (true, true, Some("boot"), false),
        (true, true, None, false),
    ];
    for (is_read_only, is_missing, boot, is_lost) in table {
        let claim = format!("read-only: {is_read_only}, missing: {is_missing}, {boot:?}");
        let mut world = world();
        for number in 0..2 {
            let name = format!("/os/{number}.tar");
            drop_into_image(&mut world, &name, &image(number), digest(number + 1));
        }
        world.is_second_read_only = is_read_only;
        world.settle();
        if is_missing {
            world.folder.remove(OsStr::new("/os/0.tar"));
        }
        if let Some(boot) = boot {
            world.restart(boot);
        }
        world.state.relist = true;
        world.settle();
        assert_eq!(world.has_vanished(), is_lost, "{claim}");
        let wanted = if is_missing && !is_lost { 1 } else { 2 };
        assert_eq!(pinned(&world), wanted, "{claim}");
        // A restart in this boot changes nothing.
        world.restart(boot.unwrap_or("boot"));
        world.settle();
        assert_eq!(
            (world.has_vanished(), pinned(&world)),
            (is_lost, wanted),
            "{claim}"
        );
    }
}

#[test]
fn new_trusted_digests_have_bundles_judged_again_that_they_may_decide_otherwise() {
    let stamp = |world: &mut World| vec![("trusted.txt".into(), world.identity())];
    let mut world = with_bundles(3);
    let error = ledger::LastError {
        text: "its digest is not trusted".to_owned(),
        class: ErrorClass::Refused,
        at: Timestamp::UNIX_EPOCH,
        images: 0,
        refused_by: None,
    };
    let (refused, outcome) = (OsStr::new("0.tar"), import::Outcome::Failed);
    let identity = version(&world, "0.tar").identity;
    world
        .state
        .ledger
        .record_failure(refused, identity, outcome, error);
    let now = world.turn().now;
    world.state.roster.fail(refused, now, None);
    let first = stamp(&mut world);
    let queued = |world: &mut World, stamp: &Vec<_>| {
        for number in 1..3 {
            world.state.roster.finish(OsStr::new(&format!("{number}.tar")));
        }
        world.state.roster.fail(refused, now, None);
        let trusted = Trusted {
            stamp: stamp.clone(),
            distrusted: ["1.tar".into()].into(),
        };
        let entries = listed(world, |_| true);
        let seen = Seen {
            trusted: Some(trusted),
            ..seen(entries)
        };
        list(world, seen);
        world.state.roster.names(|phase| phase == Phase::Ready)
    };
    assert_eq!(queued(&mut world, &first), ["0.tar", "1.tar"]);
    assert!(queued(&mut world, &first).is_empty(), "they have not changed");
    let second = stamp(&mut world);
    assert_eq!(queued(&mut world, &second), ["0.tar", "1.tar"]);
}

#[test]
fn the_files_of_jobs_are_known_to_the_next_daemon() {
    let mut world = world();
    assert!(world.state.under_way().is_empty());
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    run(&mut world);
    let identity = version(&world, "a.tar").identity;
    assert_eq!(world.state.under_way(), [("a.tar".into(), identity)].into());
}
