//! Files that another importer may import first.

use super::*;

#[test]
fn plain_new_archives_alone_are_left_to_another_importer_first() {
    #[derive(Debug)]
    struct Case {
        setting: Coexistence,
        name: &'static str,
        size: u64,
        ending: Option<Ending>,
        was_imported: bool,
    }
    let case = || Case {
        setting: Coexistence::Auto,
        name: "a.tar",
        size: 10 << 10,
        ending: Some(Ending::Marker),
        was_imported: false,
    };
    let ending = |ending| Case { ending, ..case() };
    let table = [
        (case(), true),
        (ending(Some(Ending::NoMarker)), true),
        (ending(Some(Ending::Beginning)), true),
        (ending(Some(Ending::Compressed)), false),
        (ending(Some(Ending::Foreign)), false),
        (ending(None), false),
        (
            Case {
                setting: Coexistence::Follow,
                ..case()
            },
            true,
        ),
        (
            Case {
                setting: Coexistence::Exclusive,
                ..case()
            },
            false,
        ),
        (
            Case {
                was_imported: true,
                ..case()
            },
            false,
        ),
        (
            Case {
                name: "images.txt",
                size: 100,
                ending: Some(Ending::Beginning),
                ..case()
            },
            false,
        ),
    ];
    for (case, is_left) in table {
        let mut world = world();
        let content = Content::Bundle(vec![(image(0), digest(1))]);
        let mut identity = world.identity();
        identity.size = case.size;
        world.folder.insert(case.name.into(), File { identity, content });
        settings(&mut world).pull_lists = true;
        if case.was_imported {
            world.settle();
            world.records.clear();
            let now = world.turn().now;
            world.state.compare_soon(now);
        }
        queue(&mut world, case.name);
        settings(&mut world).coexistence = case.setting;
        let start = opened(&mut world, case.name, case.ending);
        assert_eq!(start.is_none(), is_left, "{case:?}");
        assert_eq!(
            phase(&world, case.name) == Some(Phase::Following),
            is_left,
            "{case:?}"
        );
    }
}

#[test]
fn a_layout_is_not_left_to_another_importer() {
    let mut world = world();
    run(&mut world);
    settings(&mut world).coexistence = Coexistence::Auto;
    let listed = entry(&mut world, "app", Class::Layout);
    list(&mut world, seen(vec![listed]));
    let version = version(&world, "app");
    world.pass(Duration::from_secs(5));
    after(&mut world, Event::Looked("app".into(), version, Look::Layout));
    assert!(opened(&mut world, "app", Some(Ending::Marker)).is_some());
}

/// Returns a world with a file that waits for k0s, which has not come yet.
fn following() -> World {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    queue(&mut world, "a.tar");
    settings(&mut world).coexistence = Coexistence::Auto;
    world.state.following = Following::new(Some(Distribution::K0s));
    assert!(opened(&mut world, "a.tar", Some(Ending::Marker)).is_none());
    world
}

#[test]
fn the_importer_that_is_followed_is_named_once_and_its_turn_ends() {
    let mut world = following();
    let sighted = |took| Event::Sighted(Box::default(), took);
    let next = |world: &World| world.state.following.next_look();
    let now = world.turn().now;
    let turn = after(&mut world, sighted(Duration::ZERO));
    assert!(says(&turn, "k0s imports this folder"));
    assert_eq!(next(&world), Some(now + Duration::from_millis(500)));
    let turn = after(&mut world, sighted(Duration::from_secs(1)));
    assert!(!says(&turn, "k0s imports this folder"), "it was said");
    assert_eq!(
        next(&world),
        Some(now + Duration::from_secs(4)),
        "looks take a part of the time"
    );
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Following));
    world.pass(Duration::from_secs(16));
    let turn = after(&mut world, sighted(Duration::ZERO));
    assert!(says(&turn, "not waiting for another importer: it does not come"));
    assert_eq!((next(&world), phase(&world, "a.tar")), (None, Some(Phase::Ready)));
    assert!(
        opened(&mut world, "a.tar", Some(Ending::Marker)).is_some(),
        "its wait is over"
    );
}

#[test]
fn other_importers_are_looked_for_while_a_file_waits_for_them_and_there_is_a_connection() {
    let looks = |world: &mut World| {
        let mut turn = world.turn();
        world.state.follow_if_due(&mut turn);
        matches!(turn.errands[..], [Errand::Sight])
    };
    let mut world = following();
    assert!(looks(&mut world));
    assert!(!looks(&mut world), "the next look is due later");
    world.pass(Duration::from_millis(500));
    assert!(looks(&mut world));
    world.pass(Duration::from_millis(500));
    list(&mut world, seen(Vec::new()));
    assert!(!looks(&mut world), "the file is gone");
    assert_eq!(world.state.following.next_look(), None);
    let mut world = following();
    world.take(Event::Ended);
    assert!(!looks(&mut world));
}

#[test]
fn a_folder_that_signatures_cannot_guard_is_looked_at_until_they_can() {
    for policy in [Some(Signatures::Require), None] {
        let mut world = following();
        settings(&mut world).signatures = policy;
        settings(&mut world).coexistence = Coexistence::Follow;
        world.state.following = Following::new(None);
        let sighted = || Event::Sighted(Box::default(), Duration::ZERO);
        after(&mut world, sighted());
        assert_eq!(world.state.unguarded(Some(0)).is_some(), policy.is_some());
        assert_eq!(world.state.following.next_look().is_some(), policy.is_some());
        if policy.is_none() {
            continue;
        }
        // The folder has no bundle that waits, and the looks go on.
        world.state.roster.queue(OsStr::new("a.tar"));
        let version = version(&world, "a.tar");
        let opening = Opening::Open(Some(Ending::Marker));
        after(&mut world, Event::Opened("a.tar".into(), version, opening));
        assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry: None }));
        world.pass(Duration::from_secs(5));
        let asked = errands(&mut world);
        assert!(asked.iter().any(|errand| matches!(errand, Errand::Sight)));
        settings(&mut world).coexistence = Coexistence::Auto;
        world.state.relist = false;
        after(&mut world, sighted());
        assert_eq!(world.state.unguarded(Some(0)), None);
        assert!(world.state.relist, "the folder is listed again");
        assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready));
        assert_eq!(world.state.following.next_look(), None);
    }
}
