//! The connection to containerd, and the time of comparisons.

use super::*;

#[test]
fn containerd_is_elsewhere_only_if_no_job_says_otherwise() {
    for (is_elsewhere, has_job, is_misplaced) in
        [(true, false, true), (true, true, false), (false, false, false)]
    {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        queue(&mut world, "a.tar");
        if has_job {
            opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        }
        let unreached = Unreached {
            text: "no containerd".to_owned(),
            cause: Some("no such file".to_owned()),
            is_elsewhere,
        };
        let turn = after(&mut world, Event::Unreached(unreached));
        assert!(says(
            &turn,
            "no containerd (no such file). Waiting for containerd"
        ));
        assert_eq!(world.state.is_misplaced, is_misplaced, "{is_elsewhere} {has_job}");
    }
}

#[test]
fn an_answer_that_is_too_large_costs_no_connection_and_any_other_failure_does() {
    for is_too_large in [true, false] {
        let mut world = world();
        run(&mut world);
        let failed = Failed {
            text: "it failed".to_owned(),
            is_too_large,
        };
        let turn = after(&mut world, Event::Lost(failed));
        assert!(says(&turn, "it failed"));
        assert_eq!(world.state.connection.is_up(), is_too_large);
        let disconnects = acts(&turn, |action| matches!(action, Action::Disconnect));
        assert_eq!(disconnects, !is_too_large);
    }
}

#[test]
fn everything_is_compared_each_resync_and_not_sooner() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    let resync = world.state.settings.resync;
    let now = world.turn().now;
    world.state.compare_soon(now);
    run(&mut world);
    // Two seconds have passed since the comparison.
    world.pass(resync - Duration::from_secs(3));
    assert!(errands(&mut world).is_empty());
    world.pass(Duration::from_secs(1));
    assert!(matches!(
        errands(&mut world)[..],
        [Errand::Survey {
            is_new_boot: false,
            ..
        }]
    ));
}

#[test]
fn after_a_restart_of_the_machine_each_blob_is_looked_at_and_that_is_said_once() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    world.state.boot = Some("another boot".to_owned());
    for is_new in [true, false] {
        let now = world.turn().now;
        world.state.compare_soon(now);
        let sent = errands(&mut world);
        let [
            Errand::Survey {
                is_new_boot, labels, ..
            },
        ] = &sent[..]
        else {
            panic!("{sent:?}")
        };
        assert_eq!(*is_new_boot, is_new);
        let survey = Survey {
            records: world.records.clone(),
            ..Survey::default()
        };
        let turn = after(&mut world, Event::Surveyed(Box::new(survey), labels.clone()));
        let text = "after a reboot: 0 blobs of imported bundles present, 0 lost";
        assert_eq!(says(&turn, text), is_new);
        world.take(Event::Swept(BTreeSet::new()));
    }
}

#[test]
fn after_a_comparison_that_took_long_changes_wait_four_times_as_long() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    let now = world.turn().now;
    world.state.compare_soon(now);
    assert_eq!(errands(&mut world).len(), 1);
    world.pass(Duration::from_secs(10));
    world.take(Event::Swept(BTreeSet::new()));
    let changed = containerd::ImageEvent {
        name: image(0),
        kind: containerd::ImageChange::Updated,
    };
    let now = world.turn().now;
    let turn = after(&mut world, Event::Changed(changed));
    assert!(says(&turn, "a managed record changed"));
    assert_eq!(world.state.connection.due(), Some(now + Duration::from_secs(40)));
}

#[test]
fn changes_of_what_bundles_brought_ask_for_a_comparison_and_no_others_do() {
    use containerd::ImageChange::{ContentDeleted, Deleted, Updated};
    let table = [
        (image(0), Updated, true),
        (image(0), Deleted, true),
        (image(1), Updated, false),
        (digest(1).to_string(), ContentDeleted, true),
        (digest(2).to_string(), ContentDeleted, false),
        (image(0), ContentDeleted, false),
    ];
    for (name, kind, compares) in table {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.settle();
        let case = format!("{name} {kind:?}");
        let now = world.turn().now;
        after(&mut world, Event::Changed(containerd::ImageEvent { name, kind }));
        let soon = now + Duration::from_millis(200);
        assert_eq!(world.state.connection.due() == Some(soon), compares, "{case}");
    }
}

#[test]
fn leases_are_given_back_once_but_for_those_of_files_that_are_not_done() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    drop_in(&mut world, "b.tar", &image(1), digest(2));
    queue(&mut world, "b.tar");
    let swept = |world: &mut World| {
        let mut turn = world.turn();
        world.state.sweep_leases(&mut turn);
        turn.errands.pop()
    };
    assert!(swept(&mut world).is_none(), "at the first comparison");
    let now = world.turn().now;
    world.state.sweep_soon(now);
    assert_eq!(
        world.state.connection.due(),
        Some(now + Duration::from_millis(200))
    );
    let Some(Errand::Sweep { kept, .. }) = swept(&mut world) else {
        panic!("nothing is swept")
    };
    assert_eq!(
        kept,
        [format!("{}{}", import::lease::PREFIX, import::bundle_id("b.tar"))]
    );
    assert!(swept(&mut world).is_none());
}

#[test]
fn a_bundle_that_is_restored_once_more_waits_a_minute_from_now() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    let now = world.turn().now;
    for _ in 0..5 {
        world.state.healing.wait(OsStr::new("a.tar"), "a record", now);
    }
    world.records.clear();
    world.state.compare_soon(now);
    world.go_on();
    let retry = Some(now + Duration::from_secs(60));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry }));
    assert_eq!(said(&world, "The daemon restores it in 60s"), 1);
}
