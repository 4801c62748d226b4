//! Receipts, and the files that they stand for.

use super::*;
use crate::receipts;
use crate::settings::AfterImport;
use crate::state::ledger::StandsFor;

/// Returns a world with containerd, and the name of the receipt of `a.tar`.
fn world_and_receipt() -> (World, String) {
    let mut world = world();
    settings(&mut world).state_dir = "/os".into();
    settings(&mut world).unpack = import::unpack::Unpack::None;
    run(&mut world);
    let path = receipts::folder(&world.state.settings).join("a.tar");
    let name = path.to_str().expect("the path is a text").to_owned();
    (world, name)
}

/// The bundle `a.tar`, as a receipt knows it.
fn of_a_tar(identity: bundle::Identity) -> StandsFor {
    StandsFor {
        bundle: "a.tar".to_owned(),
        identity,
        made_at: 1,
        rolled_back_at: None,
        lease: "airgapd-receipt-1".to_owned(),
        by_hand: false,
        catalog: None,
    }
}

/// Returns the result of an import of a file with one image.
fn landed(world: &World, name: &str, outcome: import::Outcome) -> Landed {
    let is_in_place = outcome == import::Outcome::Imported;
    let image = LandedImage {
        name: image(0),
        target: digest(1),
        outcome: ImageOutcome::Created,
        reason: None,
    };
    Landed {
        identity: version(world, name).identity,
        catalog: digest(9),
        kept: None,
        is_read_back: false,
        is_delta: false,
        outcome,
        has_landed: is_in_place,
        images: is_in_place.then_some(image).into_iter().collect(),
        closures: vec![(digest(1), vec![digest(1)])],
        duration_ms: 1,
        sent_bytes: 0,
        is_bundles_fault: false,
        stopped: None,
        forecast: None,
        release: None,
        skipped: Vec::new(),
    }
}

/// Plays the import of a file that is in the folder.
fn import(world: &mut World, name: &str, of: Option<StandsFor>, result: impl FnOnce(&World) -> Landed) {
    world.state.roster.queue(OsStr::new(name));
    opened(world, name, Some(Ending::Marker)).expect("a job begins");
    let Came::Found(mut found) = found(None, None, None) else {
        panic!("the file has a bundle");
    };
    found.stands_for = of;
    after(world, Event::Job(name.into(), Box::new(Came::Found(found))));
    let landed = result(world);
    after(
        world,
        Event::Job(name.into(), Box::new(Came::Imported(Box::new(landed)))),
    );
    assert_eq!(phase(world, name), Some(Phase::Done));
}

/// Returns the files that the next steps remove.
fn removed(world: &mut World) -> Vec<OsString> {
    assert!(world.state.connection.is_up() && !world.state.is_draining);
    let mut turn = world.turn();
    world.state.receipts.tend_soon();
    world.state.tend_receipts(&mut turn);
    let removed = turn.actions.into_iter().filter_map(|action| match action {
        Action::Remove(name, _) => Some(name),
        _ => None,
    });
    removed.collect()
}

#[test]
fn a_receipt_from_which_this_node_takes_nothing_stays_with_its_images() {
    use import::Outcome::{Imported, Skipped};
    for is_known in [true, false] {
        let (mut world, receipt) = world_and_receipt();
        drop_in(&mut world, &receipt, &image(0), digest(1));
        queue(&mut world, &receipt);
        let of = of_a_tar(version(&world, &receipt).identity);
        // Without an earlier import, the ledger was lost.
        if is_known {
            import(&mut world, &receipt, Some(of.clone()), |world| {
                landed(world, &receipt, Imported)
            });
        }
        import(&mut world, &receipt, Some(of), |world| {
            landed(world, &receipt, Skipped)
        });
        assert!(removed(&mut world).is_empty(), "{is_known}");
        let entry = world.state.ledger.get(OsStr::new(&receipt)).unwrap();
        assert!(entry.stands_for.is_some());
        let images = entry.imported.as_ref().map(|imported| imported.images.len());
        assert_eq!(images, Some(usize::from(is_known)));
    }
}

#[test]
fn a_file_goes_only_if_this_process_has_read_its_images_back() {
    use import::Outcome::Imported;
    let (mut world, receipt) = world_and_receipt();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    drop_in(&mut world, &receipt, &image(0), digest(1));
    queue(&mut world, "a.tar");
    settings(&mut world).after_import = AfterImport::Receipt;
    let version = version(&world, "a.tar");
    let of = of_a_tar(version.identity.clone());
    import(&mut world, "a.tar", None, |world| {
        landed(world, "a.tar", Imported)
    });
    import(&mut world, &receipt, Some(of), |world| {
        landed(world, &receipt, Imported)
    });
    assert!(world.state.wants_receipt(OsStr::new("a.tar"), &version));
    assert!(
        removed(&mut world).is_empty(),
        "the receipt is of an earlier time"
    );
    import(&mut world, "a.tar", None, |world| Landed {
        is_read_back: true,
        ..landed(world, "a.tar", Imported)
    });
    assert!(!world.state.wants_receipt(OsStr::new("a.tar"), &version));
    assert_eq!(removed(&mut world), [OsString::from("a.tar")]);
}

#[test]
fn a_file_goes_only_after_its_images_are_unpacked_if_that_is_asked_for() {
    use crate::decide::unpack::{UnpackEnd, UnpackProgress};
    use import::Outcome::Imported;
    for is_content in [false, true] {
        let (mut world, receipt) = world_and_receipt();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        drop_in(&mut world, &receipt, &image(0), digest(1));
        queue(&mut world, "a.tar");
        settings(&mut world).after_import = AfterImport::Receipt;
        settings(&mut world).unpack = import::unpack::Unpack::Background;
        let of = of_a_tar(version(&world, "a.tar").identity);
        import(&mut world, "a.tar", None, |world| Landed {
            is_read_back: true,
            ..landed(world, "a.tar", Imported)
        });
        import(&mut world, &receipt, Some(of), |world| {
            landed(world, &receipt, Imported)
        });
        assert!(removed(&mut world).is_empty(), "unpacking has not begun");
        let mut turn = world.turn();
        world.state.unpack_if_due(&mut turn);
        let begins = turn
            .actions
            .iter()
            .any(|action| matches!(action, Action::Unpack(_)));
        assert!(begins && removed(&mut world).is_empty(), "unpacking goes on");
        if is_content {
            let failed = UnpackProgress::Failed {
                name: image(0),
                target: digest(1),
                reason: "a layer is no archive".to_owned(),
                is_content,
            };
            after(&mut world, Event::Unpacking(failed));
        }
        after(
            &mut world,
            Event::Unpacking(UnpackProgress::Ended(UnpackEnd::Done)),
        );
        let expected = (!is_content).then(|| OsString::from("a.tar"));
        assert_eq!(removed(&mut world), Vec::from_iter(expected), "{is_content}");
    }
}

#[test]
fn a_bundle_of_the_folder_replaces_the_receipt_of_its_name_but_none_of_an_import_by_hand() {
    use import::Outcome::Imported;
    for by_hand in [true, false] {
        let (mut world, receipt) = world_and_receipt();
        drop_in(&mut world, &receipt, &image(0), digest(1));
        queue(&mut world, &receipt);
        let of = StandsFor {
            by_hand,
            ..of_a_tar(version(&world, &receipt).identity)
        };
        let again = of.clone();
        import(&mut world, &receipt, Some(of), |world| {
            landed(world, &receipt, Imported)
        });
        drop_in(&mut world, "a.tar", &image(1), digest(2));
        queue(&mut world, "a.tar");
        import(&mut world, "a.tar", None, |world| {
            let mut landed = landed(world, "a.tar", Imported);
            landed.images[0].name = image(1);
            landed
        });
        // A comparison has missed its record meanwhile.
        import(&mut world, &receipt, Some(again), |world| {
            landed(world, &receipt, Imported)
        });
        let expected = (!by_hand).then(|| OsString::from(&receipt));
        assert_eq!(removed(&mut world), Vec::from_iter(expected), "{by_hand}");
    }
}

#[test]
fn the_receipts_of_the_last_former_releases_stay_while_the_settings_say_so() {
    use import::Outcome::Imported;
    let (mut world, _) = world_and_receipt();
    let folder = receipts::folder(&world.state.settings);
    let path = |file: &str| folder.join(file).to_str().expect("the path is a text").to_owned();
    // Three releases with one name for their image, each of two bundles.
    let releases = ["r1", "r2", "r3"];
    let files: Vec<_> = releases
        .into_iter()
        .flat_map(|release| ["a.tar", "b.tar"].map(|bundle| (release, bundle)))
        .map(|(release, bundle)| (release, bundle, path(&format!("{release}-{bundle}"))))
        .collect();
    for (_, _, name) in &files {
        drop_in(&mut world, name, &image(0), digest(1));
    }
    for (_, _, name) in &files {
        queue(&mut world, name);
    }
    for (at, (release, bundle, name)) in (0..).zip(&files) {
        let of = StandsFor {
            bundle: (*bundle).to_owned(),
            made_at: at,
            lease: name.clone(),
            ..of_a_tar(version(&world, name).identity)
        };
        import(&mut world, name, Some(of), |world| Landed {
            release: Some(bundle::Release {
                name: (*release).to_owned(),
                members: Err("none".to_owned()),
            }),
            ..landed(world, name, Imported)
        });
    }
    let of = |releases: &[&str]| -> Vec<OsString> {
        let bundles = releases
            .iter()
            .flat_map(|release| ["a.tar", "b.tar"].map(|bundle| path(&format!("{release}-{bundle}"))));
        // The last receipt of all has the name. The other one of its release is a former one.
        bundles
            .filter(|name| !name.ends_with("r3-b.tar"))
            .map(OsString::from)
            .collect()
    };
    for (keep, gone) in [
        (0, &["r1", "r2", "r3"][..]),
        (1, &["r1", "r2"]),
        (2, &["r1"]),
        (3, &[]),
    ] {
        settings(&mut world).keep_releases = keep;
        assert_eq!(removed(&mut world), of(gone), "{keep}");
    }
}
