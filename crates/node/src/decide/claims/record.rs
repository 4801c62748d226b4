//! The ends of jobs.

use super::*;

#[test]
fn a_checksum_that_is_missing_is_waited_for_a_wrong_one_refused_and_an_unreadable_file_tried_again() {
    let sidecar = || "a.tar.sha256".to_owned();
    let missing = || sidecar::Failure::Missing { sidecar: sidecar() };
    let unusable = sidecar::Failure::Unusable {
        sidecar: sidecar(),
        why: "it is empty".to_owned(),
    };
    let mismatch = sidecar::Failure::Mismatch {
        sidecar: sidecar(),
        expected: digest(1),
        found: digest(2),
    };
    let waiting = |phase| phase == Some(Phase::Waiting(Lack::Checksum));
    let refused = |phase| phase == Some(Phase::Failed { retry: None });
    let retried = |phase| matches!(phase, Some(Phase::Failed { retry: Some(_) }));
    type Is = fn(Option<Phase>) -> bool;
    let table: [(sidecar::Failure, Is); 5] = [
        (missing(), waiting),
        (sidecar::Failure::NoFile, waiting),
        (unusable, refused),
        (mismatch, refused),
        (sidecar::Failure::Changed, retried),
    ];
    for (failure, is_so) in table {
        let mut world = reading();
        let case = failure.to_string();
        let turn = after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(Came::Unverified(failure))),
        );
        let phase = phase(&world, "a.tar");
        assert!(is_so(phase), "{case}: {phase:?}");
        assert!(says(&turn, &case), "{case}");
        assert!(acts(&turn, |action| matches!(action, Action::Save)));
    }
    let mut world = reading();
    let listed = entry(&mut world, "a.tar", Class::Candidate);
    list(&mut world, seen(vec![listed]));
    after(
        &mut world,
        Event::Job("a.tar".into(), Box::new(Came::Unverified(missing()))),
    );
    assert!(
        world.state.roster.is_settling(OsStr::new("a.tar")),
        "it was replaced"
    );
}

#[test]
fn a_checksum_that_is_being_written_has_its_bundle_looked_at_again_soon() {
    let mut world = reading();
    let now = world.turn().now;
    after(&mut world, Event::Job("a.tar".into(), Box::new(Came::NotNow)));
    let look = now + Duration::from_millis(500);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Settling { look }));
    assert!(world.state.relist && world.state.lanes.is_empty());
}

/// Returns the result of an import of `a.tar` with this outcome.
fn landed(world: &World, outcome: import::Outcome) -> Landed {
    let is_in_place = outcome == import::Outcome::Imported;
    Landed {
        identity: version(world, "a.tar").identity,
        catalog: digest(9),
        kept: None,
        is_read_back: false,
        is_delta: false,
        outcome,
        has_landed: is_in_place,
        images: vec![LandedImage {
            name: image(0),
            target: digest(1),
            outcome: match is_in_place {
                true => ImageOutcome::Created,
                false => ImageOutcome::Failed,
            },
            reason: Some("a blob is missing".to_owned()),
        }],
        closures: vec![(digest(1), vec![digest(1)])],
        duration_ms: 1,
        sent_bytes: 1,
        is_bundles_fault: true,
        stopped: None,
        forecast: None,
        release: None,
        skipped: Vec::new(),
    }
}

#[test]
fn the_ledger_says_what_an_import_came_to_and_whose_fault_it_was() {
    use import::Outcome::{Failed, Imported, Partial, Skipped};
    let table = [
        (Imported, true, None, true),
        (Skipped, true, None, true),
        (Failed, true, Some(ErrorClass::Bundle), false),
        (Failed, false, Some(ErrorClass::Permanent), false),
        (Partial, true, Some(ErrorClass::Bundle), false),
    ];
    for (outcome, is_bundles_fault, class, is_written_down) in table {
        let mut world = importing();
        let landed = Landed {
            is_bundles_fault,
            ..landed(&world, outcome)
        };
        let turn = after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(Came::Imported(Box::new(landed)))),
        );
        let case = format!("{outcome:?} {is_bundles_fault}");
        assert!(
            acts(&turn, |action| matches!(action, Action::Report(..))),
            "{case}"
        );
        assert!(acts(&turn, |action| matches!(action, Action::Count(_))), "{case}");
        let entry = world.state.ledger.get(OsStr::new("a.tar")).unwrap();
        let error = entry.last_error.as_ref();
        assert_eq!(error.map(|error| error.class), class, "{case}");
        let text = error.map(|error| error.text.as_str());
        assert!(
            text.is_none_or(|text| text == "registry.test/app:0: a blob is missing"),
            "{text:?}"
        );
        assert_eq!(entry.imported.is_some(), is_written_down, "{case}");
        let wanted = match class {
            None => Phase::Done,
            Some(_) => Phase::Failed { retry: None },
        };
        assert_eq!(phase(&world, "a.tar"), Some(wanted), "{case}");
    }
}

#[test]
fn an_import_that_stopped_is_tried_again_and_one_of_a_file_that_was_replaced_starts_over() {
    let stop = |unreachable: Option<&str>| Stop {
        text: "it was cut short".to_owned(),
        class: ErrorClass::Transient,
        retry: true,
        shortage: None,
        unreachable: unreachable.map(str::to_owned),
        lost: Vec::new(),
    };
    for unreachable in [None, Some("the socket is gone")] {
        for has_begun in [true, false] {
            let mut world = importing();
            let came = match has_begun {
                true => Came::Imported(Box::new(Landed {
                    stopped: Some(stop(unreachable)),
                    ..landed(&world, import::Outcome::Partial)
                })),
                false => Came::Untried(stop(unreachable)),
            };
            let turn = after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
            assert!(says(&turn, "not imported: it was cut short"));
            assert!(matches!(
                phase(&world, "a.tar"),
                Some(Phase::Failed { retry: Some(_) })
            ));
            assert_eq!(world.state.connection.is_up(), unreachable.is_none());
            assert_eq!(
                says(&turn, "containerd went away: the socket is gone"),
                unreachable.is_some()
            );
        }
    }
    let mut world = importing();
    let listed = entry(&mut world, "a.tar", Class::Candidate);
    list(&mut world, seen(vec![listed]));
    world.state.relist = false;
    after(
        &mut world,
        Event::Job("a.tar".into(), Box::new(Came::Untried(stop(None)))),
    );
    assert!(world.state.relist && world.state.roster.is_settling(OsStr::new("a.tar")));
}

#[test]
fn a_file_whose_job_gave_way_waits_for_the_job_it_gave_way_to_or_a_while() {
    for (has_other, retry) in [(false, true), (true, false)] {
        let mut world = importing();
        let name = OsStr::new("a.tar");
        if has_other {
            let mut version = version(&world, "a.tar");
            version.identity = world.identity();
            let now = world.turn().now;
            world
                .state
                .lanes
                .start(OsStr::new("b.tar"), version, Lane::Main, now);
        }
        world.state.lanes.give_way(name);
        let now = world.turn().now;
        after(&mut world, Event::Job("a.tar".into(), Box::new(Came::Dropped)));
        let wanted = match retry {
            true => Phase::Failed {
                retry: Some(now + crate::decide::lanes::STILL),
            },
            false => Phase::Ready,
        };
        assert_eq!(phase(&world, "a.tar"), Some(wanted), "{has_other}");
        assert_eq!(
            world.state.connection.due(),
            Some(now + Duration::from_millis(200))
        );
    }
    let mut world = importing();
    after(&mut world, Event::Job("a.tar".into(), Box::new(Came::Dropped)));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready), "it did not give way");
}

#[test]
fn what_landed_of_a_file_that_was_replaced_is_written_down_and_the_new_file_comes_next() {
    let mut world = importing();
    let landed = landed(&world, import::Outcome::Imported);
    let before = version(&world, "a.tar").identity;
    let listed = entry(&mut world, "a.tar", Class::Candidate);
    list(&mut world, seen(vec![listed]));
    world.state.relist = false;
    after(
        &mut world,
        Event::Job("a.tar".into(), Box::new(Came::Imported(Box::new(landed)))),
    );
    let imported = world
        .state
        .ledger
        .get(OsStr::new("a.tar"))
        .unwrap()
        .imported
        .as_ref();
    assert_eq!(imported.expect("it landed").identity, before);
    assert!(world.state.relist && world.state.roster.is_settling(OsStr::new("a.tar")));
}

#[test]
fn names_that_a_bundle_has_no_more_go_back_to_the_bundle_before_it_at_once() {
    for (late_images, early) in [
        (vec![(image(1), digest(2))], Phase::Ready),
        (vec![(image(0), digest(3))], Phase::Done),
    ] {
        let mut world = world();
        drop_in(&mut world, "early.tar", &image(0), digest(1));
        world.settle();
        drop_in(&mut world, "a.tar", &image(0), digest(2));
        world.settle();
        let content = Content::Bundle(late_images.clone());
        let identity = world.identity();
        world.folder.insert("a.tar".into(), File { identity, content });
        world.state.relist = true;
        queue(&mut world, "a.tar");
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        let read = Found {
            records: late_images.iter().cloned().collect(),
            broken: None,
            unfinished: None,
            may_go_on: false,
            catalog: digest(9),
            stands_for: None,
            verdict: Verdict::Allowed,
        };
        after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(Came::Found(Box::new(read)))),
        );
        let images = late_images.iter().map(|(name, target)| LandedImage {
            name: name.clone(),
            target: target.clone(),
            outcome: ImageOutcome::Created,
            reason: None,
        });
        let landed = Landed {
            images: images.collect(),
            ..landed(&world, import::Outcome::Imported)
        };
        after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(Came::Imported(Box::new(landed)))),
        );
        assert_eq!(phase(&world, "early.tar"), Some(early), "{late_images:?}");
    }
}

#[test]
fn after_an_import_everything_is_compared_if_others_wrote_its_records_or_its_images_are_new() {
    for (is_disturbed, was_imported, compares) in
        [(false, true, false), (true, true, true), (false, false, true)]
    {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.settle();
        if !was_imported {
            world.state.ledger.forget(OsStr::new("a.tar"));
        }
        world.state.roster.queue(OsStr::new("a.tar"));
        opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
        after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(found(None, None, None))),
        );
        let job = world
            .state
            .lanes
            .get_mut(OsStr::new("a.tar"))
            .expect("it is imported");
        job.disturbed = is_disturbed;
        let landed = landed(&world, import::Outcome::Imported);
        let now = world.turn().now;
        let turn = after(
            &mut world,
            Event::Job("a.tar".into(), Box::new(Came::Imported(Box::new(landed)))),
        );
        let soon = Some(now + Duration::from_millis(200));
        assert_eq!(
            world.state.connection.due() == soon,
            compares,
            "{is_disturbed} {was_imported}"
        );
        assert!(acts(&turn, |action| matches!(action, Action::Save)));
    }
}

#[test]
fn a_withheld_name_is_written_down_and_wanted_again_once_its_owner_has_it_no_more() {
    use super::admit::{keys, signer, with_verdict};
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum End {
        Removed,
        Dropped,
        Restarted,
        None,
    }
    let entry = |world: &World, name: &str| {
        let entry = world.state.ledger.get(OsStr::new(name)).unwrap();
        entry.imported.clone().unwrap()
    };
    let put = |world: &mut World, name: &str, imported: ledger::Imported| {
        let outcome = import::Outcome::Imported;
        let ledger = &mut world.state.ledger;
        ledger.record_import(OsStr::new(name), outcome, imported, Vec::new());
    };
    for end in [End::Removed, End::Dropped, End::Restarted, End::None] {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(5), digest(2));
        drop_in(&mut world, "late.tar", &image(8), digest(3));
        drop_in(&mut world, "gone.tar", &image(9), digest(4));
        world.settle();
        let mut imported = entry(&world, "a.tar");
        imported.signers = vec![signer("theirs", 8)];
        put(&mut world, "a.tar", imported);
        // Another bundle wants the name of the first one.
        let mut imported = entry(&world, "late.tar");
        imported.signers = vec![signer("ours", 7)];
        imported.withheld = vec![ImageEntry {
            name: image(5),
            target: digest(1),
        }];
        put(&mut world, "late.tar", imported);
        settings(&mut world).signatures = Some(Signatures::IfPresent);
        world.state.keys = Some(keys(&[7, 8]));
        match end {
            End::Removed | End::None => {
                let gone = if end == End::None { "gone.tar" } else { "a.tar" };
                let entries = listed(&world, |name| name != gone);
                list(&mut world, seen(entries));
            }
            End::Dropped => {
                // The bundle has other names in its next file.
                drop_in(&mut world, "a.tar", &image(6), digest(1));
                queue(&mut world, "a.tar");
                opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
                let came = with_verdict(Verdict::Allowed);
                after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
                let mut landed = landed(&world, import::Outcome::Imported);
                landed.images[0].name = image(6);
                let came = Came::Imported(Box::new(landed));
                after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
            }
            End::Restarted => {
                let entries = listed(&world, |_| true);
                world.state.keys = None;
                let seen = Seen {
                    keys: Some(keys(&[7, 8])),
                    ..seen(entries)
                };
                list(&mut world, seen);
            }
        }
        let is_queued = phase(&world, "late.tar") == Some(Phase::Ready);
        assert_eq!(is_queued, end != End::None, "{end:?}");
    }
}

#[test]
fn names_that_an_import_may_not_write_are_kept_for_the_next_daemon() {
    use super::admit::{keys, record, signer, with_verdict};
    let mut world = world();
    drop_in(&mut world, "old.tar", &image(0), digest(2));
    world.settle();
    record(&mut world, "old.tar", digest(2), vec![signer("theirs", 8)]);
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    queue(&mut world, "a.tar");
    opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
    settings(&mut world).signatures = Some(Signatures::IfPresent);
    world.state.keys = Some(keys(&[8]));
    let came = with_verdict(Verdict::Allowed);
    after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
    let mut landed = landed(&world, import::Outcome::Imported);
    landed.images[0].outcome = ImageOutcome::Skipped;
    let came = Came::Imported(Box::new(landed));
    after(&mut world, Event::Job("a.tar".into(), Box::new(came)));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Done));
    let entry = world.state.ledger.get(OsStr::new("a.tar")).unwrap();
    let imported = entry.imported.as_ref().unwrap();
    let name = image(0);
    let target = digest(1);
    assert_eq!(imported.withheld, [ImageEntry { name, target }]);
    assert!(imported.images.is_empty(), "{:?}", imported.images);
}

#[test]
fn a_list_of_images_takes_no_blob_from_an_image_that_a_bundle_has_brought() {
    let mut world = with_bundles(1);
    let closure = |world: &World| world.state.ledger.closure(&digest(1)).map(<[Digest]>::to_vec);
    let whole = closure(&world).expect("the bundle has the image");
    assert_eq!(whole.len(), 2, "the image has a layer");
    settings(&mut world).pull_lists = true;
    drop_in(&mut world, "images.txt", &image(0), digest(1));
    queue(&mut world, "images.txt");
    pull(&mut world);
    assert_eq!(closure(&world), Some(whole.clone()));
    assert!(world.state.ledger.needs(&whole[1]) && world.state.ledger.needs(&whole[0]));

    // Without the bundle, the list alone has the image, and does not tell which layers it has.
    world.state.ledger.forget(OsStr::new("0.tar"));
    world.state.roster.queue(OsStr::new("images.txt"));
    pull(&mut world);
    assert_eq!(closure(&world), Some(vec![digest(1)]));
    // Neither does another list.
    world.state.roster.queue(OsStr::new("images.txt"));
    pull(&mut world);
    assert_eq!(closure(&world), Some(vec![digest(1)]));
}
