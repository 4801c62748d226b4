//! Receipts, and the files that they stand for.

use super::super::compare::Facts;
use super::super::desired;
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

#[test]
fn a_file_without_the_layers_of_its_images_replaces_no_receipt_until_its_own_receipt_holds_them() {
    use import::Outcome::Imported;
    let table = [
        ("b.tar", false, false, true),
        ("b.tar", true, false, false),
        ("b.tar", true, true, true),
        // It has the name of the bundle that the receipt stands for.
        ("a.tar", false, false, true),
        ("a.tar", true, false, false),
        ("images.txt", true, false, false),
    ];
    for (name, is_delta, has_receipt, goes) in table {
        let case = format!("{name}, a delta: {is_delta}, with a receipt: {has_receipt}");
        let (mut world, receipt) = world_and_receipt();
        settings(&mut world).pull_lists = true;
        drop_in(&mut world, &receipt, &image(0), digest(1));
        queue(&mut world, &receipt);
        let of = of_a_tar(version(&world, &receipt).identity);
        import(&mut world, &receipt, Some(of.clone()), |world| {
            landed(world, &receipt, Imported)
        });
        drop_in(&mut world, name, &image(0), digest(1));
        queue(&mut world, name);
        match name {
            "images.txt" => pull(&mut world),
            _ => import(&mut world, name, None, |world| Landed {
                is_delta,
                ..landed(world, name, Imported)
            }),
        }
        // A comparison has missed its record meanwhile.
        import(&mut world, &receipt, Some(of), |world| {
            landed(world, &receipt, Imported)
        });
        if has_receipt {
            let path = receipts::folder(&world.state.settings).join(name);
            let own = path.to_str().expect("the path is a text");
            let of = StandsFor {
                bundle: name.to_owned(),
                lease: "airgapd-receipt-2".to_owned(),
                ..of_a_tar(version(&world, name).identity)
            };
            drop_in(&mut world, own, &image(0), digest(1));
            queue(&mut world, own);
            let of_the_other = of_a_tar(version(&world, &receipt).identity);
            for (path, of) in [(own, of), (receipt.as_str(), of_the_other)] {
                import(&mut world, path, Some(of), |world| landed(world, path, Imported));
            }
        }
        let expected = goes.then(|| OsString::from(&receipt));
        assert_eq!(removed(&mut world), Vec::from_iter(expected), "{case}");
    }
}

#[test]
fn bytes_that_were_sent_after_the_images_were_read_back_are_read_back_before_the_file_goes() {
    use import::Outcome::Imported;
    for sent_bytes in [0, 1] {
        let (mut world, receipt) = world_and_receipt();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        drop_in(&mut world, &receipt, &image(0), digest(1));
        queue(&mut world, "a.tar");
        settings(&mut world).after_import = AfterImport::Receipt;
        let version = version(&world, "a.tar");
        let of = of_a_tar(version.identity.clone());
        import(&mut world, "a.tar", None, |world| Landed {
            is_read_back: true,
            sent_bytes: 1,
            ..landed(world, "a.tar", Imported)
        });
        // Its import once more, while it has its receipt: a blob was lost, or only a record.
        import(&mut world, "a.tar", None, |world| Landed {
            sent_bytes,
            ..landed(world, "a.tar", Imported)
        });
        import(&mut world, &receipt, Some(of), |world| {
            landed(world, &receipt, Imported)
        });
        let is_proven = sent_bytes == 0;
        assert_eq!(
            world.state.wants_receipt(OsStr::new("a.tar"), &version),
            !is_proven
        );
        let expected = is_proven.then(|| OsString::from("a.tar"));
        assert_eq!(removed(&mut world), Vec::from_iter(expected), "{sent_bytes}");
    }
}

#[test]
fn the_blobs_of_a_lease_are_read_once_for_each_connection_and_after_each_loss_of_the_lease() {
    use import::Outcome::Imported;
    let (mut world, receipt) = world_and_receipt();
    drop_in(&mut world, &receipt, &image(0), digest(1));
    queue(&mut world, &receipt);
    let of = of_a_tar(version(&world, &receipt).identity);
    let lease = of.lease.clone();
    import(&mut world, &receipt, Some(of), |world| {
        landed(world, &receipt, Imported)
    });
    let one = BTreeSet::from([lease.clone()]);
    let survey = |leases: &[&String]| Survey {
        receipts: Some(leases.iter().map(|lease| (*lease).clone()).collect()),
        ..Survey::default()
    };
    assert_eq!(world.state.unread_leases(), one);
    world.state.note_leases(&survey(&[&lease]));
    assert!(world.state.unread_leases().is_empty());
    world.state.note_leases(&survey(&[]));
    assert_eq!(world.state.unread_leases(), one, "it was lost, or lacks a blob");
    world.state.note_leases(&survey(&[&lease]));
    let again = Facts {
        text: "the model".to_owned(),
        uuid: None,
        fingerprint: "rules".to_owned(),
        has_store: false,
    };
    after(&mut world, Event::Connected(Box::new(again)));
    assert_eq!(world.state.unread_leases(), one, "another connection");
    let held = desired::held_by_leases(&world.state.ledger);
    let target = digest(1);
    assert_eq!(held, [(lease.as_str(), HashSet::from([&target]))].into());
}

#[test]
fn the_lease_of_a_receipt_that_no_ledger_knew_stays_and_is_told_of_once() {
    let mut world = world();
    run(&mut world);
    let paths = |names: &[&str]| -> BTreeSet<String> {
        names
            .iter()
            .map(|name| format!("/state/receipts/{name}"))
            .collect()
    };
    let stays = |turn: &Turn| says(turn, "without a file, such as /state/receipts/");
    let table: [(&[&str], bool); 6] = [
        (&["a.tar"], true),
        (&["a.tar"], false),
        (&["a.tar", "b.tar"], true),
        (&["b.tar"], false),
        (&[], false),
        (&["b.tar"], true),
    ];
    for (names, is_told) in table {
        let turn = after(&mut world, Event::Swept(paths(names)));
        assert_eq!(stays(&turn), is_told, "{names:?}");
    }
}
