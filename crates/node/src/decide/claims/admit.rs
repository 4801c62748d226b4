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
