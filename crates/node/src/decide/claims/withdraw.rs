//! Removal of labels and pins.

use super::*;

/// Returns the labels whose records a comparison reads.
fn looked_up(world: &mut World) -> Vec<String> {
    let at = world.turn().at;
    world.state.labels_in_doubt(at)
}

fn label(name: &str) -> String {
    crate::decide::withdraw::label_of(OsStr::new(name))
}

#[test]
fn labels_are_in_doubt_when_their_bundle_is_gone_for_good_or_was_imported_with_other_images() {
    let mut world = with_bundles(4);
    assert!(looked_up(&mut world).is_empty());
    settings(&mut world).unpin_grace = Duration::from_secs(100);
    let entries = listed(&world, |name| name != "0.tar");
    list(&mut world, seen(entries));
    assert!(is_gone(&world, "0.tar"));
    assert!(looked_up(&mut world).is_empty(), "its pins last a while");
    world.pass(Duration::from_secs(99));
    assert!(looked_up(&mut world).is_empty());
    world.pass(Duration::from_secs(1));
    assert_eq!(looked_up(&mut world), [label("0.tar")]);
    world.state.reworded.insert("1.tar".into());
    let mut wanted = [label("0.tar"), label("1.tar")];
    wanted.sort();
    let mut found = looked_up(&mut world);
    found.sort();
    assert_eq!(found, wanted);
}

#[test]
fn labels_of_bundles_that_vanished_are_in_doubt_since_they_may_be_released_by_hand() {
    let mut world = with_bundles(4);
    let entries = listed(&world, |name| name == "0.tar");
    list(&mut world, seen(entries));
    let mut wanted = [label("1.tar"), label("2.tar"), label("3.tar")];
    wanted.sort();
    let mut found = looked_up(&mut world);
    found.sort();
    assert_eq!(found, wanted);
}

/// Returns the survey that a comparison would make now.
fn survey(world: &World) -> Survey {
    Survey {
        records: world.records.clone(),
        census: Some(import::survey::Census::default()),
        ..Survey::default()
    }
}

/// Returns the labels and pins that the daemon removes after a survey.
fn withdrawals(world: &mut World) -> Option<Box<Withdrawing>> {
    let survey = survey(world);
    let mut turn = world.turn();
    world.state.withdraw(survey, Vec::new(), &mut turn);
    turn.errands.into_iter().find_map(|errand| match errand {
        Errand::Withdraw(withdrawing) => Some(withdrawing),
        _ => None,
    })
}

/// Returns a world with two bundles. `0.tar` is gone, so its record loses its labels.
fn with_one_gone() -> World {
    let mut world = with_bundles(2);
    let entries = listed(&world, |name| name != "0.tar");
    list(&mut world, seen(entries));
    assert!(is_gone(&world, "0.tar"));
    world
}

#[test]
fn labels_of_a_bundle_that_is_gone_go_when_its_grace_is_over() {
    let mut world = with_one_gone();
    settings(&mut world).unpin_grace = Duration::from_secs(100);
    assert!(withdrawals(&mut world).is_none());
    world.pass(Duration::from_secs(100));
    let plan = withdrawals(&mut world).expect("it is over").plan;
    let names: Vec<_> = plan.iter().map(|withdrawal| withdrawal.name.as_str()).collect();
    assert_eq!(names, [image(0)]);
}

#[test]
fn the_loop_wakes_when_a_grace_is_over() {
    let mut world = with_one_gone();
    settings(&mut world).unpin_grace = Duration::from_secs(100);
    world.pass(Duration::from_secs(40));
    let now = world.turn().now;
    world.state.compare_soon(now);
    assert_eq!(errands(&mut world).len(), 1);
    withdrawals(&mut world);
    world.take(Event::Swept(BTreeSet::new()));
    assert_eq!(world.state.connection.due(), Some(now + Duration::from_secs(60)));
}

#[test]
fn a_record_that_a_job_is_about_to_write_keeps_its_labels_until_the_job_has_ended() {
    let mut world = with_bundles(2);
    drop_in(&mut world, "late.tar", &image(0), digest(7));
    run(&mut world);
    let late = OsStr::new("late.tar");
    let records = [(image(0), digest(7))].into();
    world.state.lanes.get_mut(late).expect("it is read").records = records;
    let entries = listed(&world, |name| name != "0.tar");
    list(&mut world, seen(entries));
    assert!(withdrawals(&mut world).is_none());
    let job = world.state.lanes.get(late).expect("it goes on");
    assert!(job.disturbed, "a comparison follows its end");
}

#[test]
fn records_that_changed_while_labels_were_taken_back_are_judged_again() {
    for (untouched, is_again) in [(vec![image(0)], true), (vec![], false)] {
        let mut world = with_bundles(2);
        replace(&mut world, &image(7), 1);
        world.state.reworded.insert("0.tar".into());
        let now = world.turn().now;
        world.state.compare_soon(now);
        assert_eq!(errands(&mut world).len(), 1);
        let withdrawing = withdrawals(&mut world).expect("labels go");
        after(&mut world, Event::Withdrawn(withdrawing, untouched));
        let soon = Some(now + Duration::from_millis(200));
        assert_eq!(world.state.connection.due() == soon, is_again);
        let is_in_doubt = world.state.reworded.contains(OsStr::new("0.tar"));
        assert_eq!(is_in_doubt, is_again);
    }
}

#[test]
fn a_bundle_that_is_gone_is_forgotten_when_no_record_is_known_to_name_it() {
    for (names_it, all_were_listed, is_forgotten) in
        [(true, true, false), (false, true, true), (false, false, false)]
    {
        let mut world = with_one_gone();
        let mut withdrawing = withdrawals(&mut world).expect("labels go");
        if !names_it {
            world.records.get_mut(&image(0)).unwrap().labels.clear();
        }
        withdrawing.survey = survey(&world);
        if !all_were_listed {
            withdrawing.survey.census = None;
        }
        after(&mut world, Event::Withdrawn(withdrawing, Vec::new()));
        let entry = world.state.ledger.get(OsStr::new("0.tar"));
        assert_eq!(entry.is_none(), is_forgotten, "{names_it} {all_were_listed}");
        assert!(world.state.ledger.get(OsStr::new("1.tar")).is_some());
    }
}

#[test]
fn a_bundle_vouches_for_a_record_as_long_as_nothing_certain_says_otherwise() {
    type Change = fn(&mut World);
    let table: [(&str, Change, bool); 9] = [
        ("as it is", |_| {}, false),
        (
            "the bundle has another image now",
            |world| replace(world, &image(7), 1),
            true,
        ),
        (
            "the operator excludes the name",
            |world| {
                replace(world, &image(7), 1);
                settings(world).exclude = vec!["registry.test/app:0".parse().unwrap()];
            },
            false,
        ),
        (
            "the last try failed",
            |world| {
                replace(world, &image(7), 1);
                let error = ledger::LastError {
                    text: "it is broken".to_owned(),
                    class: ErrorClass::Bundle,
                    at: Timestamp::UNIX_EPOCH,
                    images: 0,
                    refused_by: None,
                };
                let identity = version(world, "0.tar").identity;
                let failed = import::Outcome::Partial;
                world
                    .state
                    .ledger
                    .record_failure(OsStr::new("0.tar"), identity, failed, error);
            },
            false,
        ),
        (
            "the file is being imported",
            |world| {
                replace(world, &image(7), 1);
                world.state.roster.queue(OsStr::new("0.tar"));
            },
            false,
        ),
        (
            "the file was replaced",
            |world| {
                replace(world, &image(7), 1);
                let listed = entry(world, "0.tar", Class::Candidate);
                list(world, seen(vec![listed]));
                world.state.roster.finish(OsStr::new("0.tar"));
            },
            false,
        ),
        (
            "another program moved the record",
            |world| retarget(world, &image(0), 5),
            false,
        ),
        (
            "a later bundle has the name",
            |world| {
                drop_in(world, "late.tar", &image(0), digest(5));
                world.settle();
                relabel(world);
            },
            true,
        ),
        (
            "the ledger does not know the bundle",
            |world| drop(world.state.ledger.forget(OsStr::new("0.tar"))),
            false,
        ),
    ];
    for (case, change, goes) in table {
        let mut world = with_bundles(1);
        change(&mut world);
        let plan = withdrawals(&mut world).map(|withdrawing| withdrawing.plan);
        let goes_now = plan.is_some_and(|plan| plan.iter().any(|withdrawal| withdrawal.name == image(0)));
        assert_eq!(goes_now, goes, "{case}");
    }
}

/// Makes the ledger say that `0.tar` was imported with this image alone.
fn replace(world: &mut World, name: &str, target: u64) {
    let entry = world.state.ledger.get(OsStr::new("0.tar")).unwrap();
    let mut imported = entry.imported.clone().unwrap();
    imported.images = vec![ImageEntry {
        name: name.to_owned(),
        target: digest(target),
    }];
    let outcome = import::Outcome::Imported;
    world
        .state
        .ledger
        .record_import(OsStr::new("0.tar"), outcome, imported, []);
}

fn retarget(world: &mut World, name: &str, target: u64) {
    let record = world.records.get_mut(name).unwrap();
    record.target = Descriptor::new(MediaType::ImageManifest, 1, digest(target));
}

/// Puts the label of `0.tar` back, as if it had not been removed yet.
fn relabel(world: &mut World) {
    let record = world.records.get_mut(&image(0)).unwrap();
    record.labels.insert(label("0.tar"), "0.tar".to_owned());
}
