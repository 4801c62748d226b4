//! The promises of the decisions, one claim each, played on the model in [`super::model`]. The file
//! is long because it is a list: no claim needs another one.

mod admit;
mod compare;
mod follow;
mod listing;
mod receipts;
mod record;
mod reload;
mod room;
mod withdraw;

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd::ImageChange;
use import::Survey;
use import::labels::OUR_PIN;
use import::result::ImageOutcome;
use import::space::{Demand, Disk, Forecast, MinFree, Shortage};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::follow::Following;
use super::lanes::Lane;
use super::listing::{KeysSeen, Seen, Trusted};
use super::model::{Content, File, Work, World, digest};
use super::record::{Bad, Came, Found, Landed, LandedImage, Stop};
use super::room::Room;
use super::withdraw::Withdrawing;
use super::withdraw::label_of;
use super::{Action, Errand, Event, Failed, Look, Opening, Readings, Start, Step, Turn, Unreached};
use crate::admit::{By, Forbidden, Verdict};
use crate::images::folder::{Class, Ending, FolderTrust, Listed, Listing, Observation, Reason, Writer};
use crate::images::sidecar;
use crate::place::Distribution;
use crate::settings::{Checksums, Coexistence, Reloaded, Settings, Signatures};
use crate::state::ledger::{self, ErrorClass, ImageEntry, SignerEntry};
use crate::state::roster::{Lack, Phase, Version};

/// A world without another importer, and with a containerd.
pub(super) fn world() -> World {
    World::new(2)
}

pub(super) fn image(number: u64) -> String {
    format!("registry.test/app:{number}")
}

/// Puts a bundle of one image into the folder.
pub(super) fn drop_in(world: &mut World, name: &str, image: &str, target: Digest) {
    let content = Content::Bundle(vec![(image.to_owned(), target)]);
    let identity = world.identity();
    world.folder.insert(name.into(), File { identity, content });
    world.state.relist = true;
}

/// Continues until nothing is due, and a moment longer: the daemon examines a file twice before it
/// counts as finished.
pub(super) fn run(world: &mut World) {
    world.go_on();
    world.pass(Duration::from_secs(2));
    world.go_on();
}

fn phase(world: &World, name: &str) -> Option<Phase> {
    world.state.roster.phase(OsStr::new(name))
}

pub(super) fn said(world: &World, part: &str) -> usize {
    world.history.iter().filter(|line| line.contains(part)).count()
}

fn disk(free: u64) -> Disk {
    Disk {
        size: 1000,
        free,
        inodes: 0,
        free_inodes: 0,
        block: 1,
    }
}

/// Half of such a disk has to stay free.
pub(super) fn shortage(free: u64) -> Option<Shortage> {
    let half = MinFree::Percent(50);
    Forecast::new(Path::new("/store"), disk(free), Demand::default(), half).shortage()
}

/// Returns the actions and errands that one event leads to.
pub(super) fn after(world: &mut World, event: Event) -> Turn {
    let mut turn = world.turn();
    world.state.on(event, &mut turn);
    turn
}

#[test]
fn the_bundle_that_arrives_later_has_the_name_and_the_earlier_one_gets_it_back() {
    let mut world = world();
    drop_in(&mut world, "early.tar", &image(0), digest(1));
    world.settle();
    drop_in(&mut world, "late.tar", &image(0), digest(2));
    world.settle();
    assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
    drop_in(&mut world, "late.tar", &image(1), digest(2));
    world.settle();
    assert_eq!(world.records[&image(0)].target.digest(), &digest(1));
    world.check();
}

#[test]
fn a_name_goes_back_to_the_earlier_bundle_whenever_the_daemon_dies_meanwhile() {
    for (is_removed, moment) in [true, false]
        .into_iter()
        .flat_map(|gone| (0..12).map(move |at| (gone, at)))
    {
        let mut world = world();
        drop_in(&mut world, "early.tar", &image(0), digest(1));
        world.settle();
        drop_in(&mut world, "late.tar", &image(0), digest(2));
        world.settle();
        match is_removed {
            true => drop(world.folder.remove(OsStr::new("late.tar"))),
            false => drop_in(&mut world, "late.tar", &image(1), digest(2)),
        }
        world.state.relist = true;
        for step in 0..moment {
            world.go_on();
            match step % 3 {
                0 => world.pass(Duration::from_secs(2)),
                1 => world.end_job(OsStr::new("late.tar")),
                _ => world.end_job(OsStr::new("early.tar")),
            }
        }
        world
            .history
            .push(format!("restart at {moment}, removed: {is_removed}"));
        world.restart("boot");
        world.settle();
        world.check();
        assert!(
            world.records[&image(0)]
                .labels
                .values()
                .all(|file| file != "late.tar")
        );
    }
}

#[test]
fn a_label_that_shows_whose_a_record_was_stays_until_the_earlier_bundle_has_it_unless_that_waits_for_space() {
    for (obstacle, stays) in [("a failure", true), ("space", false), ("the minimum", false)] {
        let mut world = world();
        drop_in(&mut world, "early.tar", &image(0), digest(1));
        world.settle();
        drop_in(&mut world, "late.tar", &image(0), digest(2));
        world.settle();
        let early = OsStr::new("early.tar");
        if obstacle == "the minimum" {
            let room = Room {
                below: shortage(1),
                disk: None,
                stamp: None,
            };
            let mut turn = world.turn();
            world.state.on_room(room, &mut turn);
        }
        world.folder.remove(OsStr::new("late.tar"));
        world.state.relist = true;
        world.go_on();
        let label = label_of(OsStr::new("late.tar"));
        let has_label = |world: &World| world.records[&image(0)].labels.contains_key(&label);
        if obstacle != "the minimum" {
            world.end_job(early);
            assert!(matches!(world.jobs.remove(early), Some(Work::Importing(..))));
            let (class, retry) = (ErrorClass::Transient, true);
            let stop = Stop {
                text: "it failed".to_owned(),
                class,
                retry,
                shortage: shortage(100).filter(|_| obstacle == "space"),
                unreachable: None,
                lost: Vec::new(),
            };
            assert!(has_label(&world));
            world.take(Event::Job(early.to_owned(), Box::new(Came::Untried(stop))));
            let now = world.turn().now;
            world.state.compare_soon(now);
            world.go_on();
        }
        assert!(world.state.lanes.is_empty(), "{obstacle}");
        assert_eq!(has_label(&world), stays, "{obstacle}");
    }
}

#[test]
fn a_name_that_a_job_is_moving_was_not_moved_by_another_program() {
    let mut world = world();
    drop_in(&mut world, "early.tar", &image(0), digest(1));
    world.settle();
    drop_in(&mut world, "late.tar", &image(0), digest(2));
    run(&mut world);
    let late = OsStr::new("late.tar");
    world.end_job(late);
    let images = vec![(image(0), digest(2))];
    let landed = world.import_in_part(late, &images, &BTreeSet::new());
    assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
    let now = world.turn().now;
    world.state.compare_soon(now);
    world.go_on();
    assert!(world.state.elsewhere.is_empty(), "{:?}", world.state.elsewhere);
    world.jobs.remove(late);
    world.take(Event::Job(
        late.to_owned(),
        Box::new(Came::Imported(Box::new(landed))),
    ));
    world.settle();
    assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
    assert!(world.state.elsewhere.is_empty());
    world.check();
}

#[test]
fn a_later_bundle_whose_import_is_cut_short_keeps_the_names_that_it_could_not_get() {
    let mut world = world();
    drop_in(&mut world, "early.tar", &image(0), digest(1));
    world.settle();
    drop_in(&mut world, "late.tar", &image(0), digest(2));
    world.settle();
    let images = vec![(image(0), digest(3)), (image(1), digest(4))];
    let identity = world.identity();
    let content = Content::Bundle(images.clone());
    world.folder.insert("late.tar".into(), File { identity, content });
    world.state.relist = true;
    run(&mut world);
    let late = OsStr::new("late.tar");
    world.end_job(late);
    let landed = world.import_in_part(late, &images, &BTreeSet::new());
    world.jobs.remove(late);
    world.take(Event::Job(
        late.to_owned(),
        Box::new(Came::Imported(Box::new(landed))),
    ));
    world.pass(Duration::from_millis(500));
    world.go_on();
    assert_eq!(world.starts[OsStr::new("early.tar")], 1);
    assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
    world.settle();
    assert_eq!(world.records[&image(0)].target.digest(), &digest(3));
    world.check();
}

#[test]
fn nothing_is_started_without_containerd_below_the_minimum_or_while_the_daemon_stops() {
    for obstacle in ["away", "below", "draining"] {
        let mut world = world();
        world.is_up = obstacle != "away";
        run(&mut world);
        if obstacle == "below" {
            let room = Room {
                below: shortage(1),
                disk: None,
                stamp: None,
            };
            let mut turn = world.turn();
            world.state.on_room(room, &mut turn);
        }
        world.state.is_draining = obstacle == "draining";
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        run(&mut world);
        assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready), "{obstacle}");
        assert!(world.starts.is_empty(), "{obstacle}");
    }
}

#[test]
fn a_bundle_too_heavy_for_the_light_lane_waits_for_the_main_lane() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    run(&mut world);
    let lane = |world: &World| world.state.lanes.get(OsStr::new("a.tar")).map(|job| job.lane);
    assert_eq!(lane(&world), Some(Lane::Light));
    let too_much = Bad {
        text: "too many entries".to_owned(),
        class: ErrorClass::Bundle,
        may_go_on: false,
        is_beyond_limits: true,
    };
    world.take(Event::Job("a.tar".into(), Box::new(Came::Bad(too_much.clone()))));
    run(&mut world);
    assert_eq!(lane(&world), Some(Lane::Main));
    world.take(Event::Job("a.tar".into(), Box::new(Came::Bad(too_much))));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry: None }));
}

#[test]
fn an_upload_that_may_go_on_is_read_again_later_and_then_taken_for_what_it_is() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    let cut = Bad {
        text: "cut off".to_owned(),
        class: ErrorClass::Bundle,
        may_go_on: true,
        is_beyond_limits: false,
    };
    run(&mut world);
    world.take(Event::Job("a.tar".into(), Box::new(Came::Bad(cut.clone()))));
    assert!(matches!(phase(&world, "a.tar"), Some(Phase::Settling { .. })));
    assert_eq!(said(&world, "not imported"), 0);
    world.pass(Duration::from_secs(31));
    run(&mut world);
    world.take(Event::Job("a.tar".into(), Box::new(Came::Bad(cut))));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry: None }));
    assert_eq!(said(&world, "not imported: cut off"), 1);
}

#[test]
fn the_job_of_a_file_that_was_replaced_is_dropped_once_and_the_new_file_is_imported() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    run(&mut world);
    drop_in(&mut world, "a.tar", &image(0), digest(2));
    run(&mut world);
    assert!(matches!(world.jobs[OsStr::new("a.tar")], Work::Aborted));
    world.state.relist = true;
    run(&mut world);
    assert_eq!(said(&world, "the file was replaced or removed"), 1);
    world.settle();
    assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
    assert_eq!(world.starts[OsStr::new("a.tar")], 2);
}

/// Returns a world with this number of bundles in place.
fn world_with(bundles: u64) -> World {
    let mut world = world();
    for number in 0..bundles {
        drop_in(
            &mut world,
            &format!("{number}.tar"),
            &image(number),
            digest(number + 1),
        );
    }
    world.settle();
    world
}

fn pinned(world: &World) -> usize {
    let records = world.records.values();
    records
        .filter(|record| record.labels.contains_key(import::labels::PINNED))
        .count()
}

#[test]
fn bundles_are_taken_for_lost_where_the_folder_looks_like_a_lost_mount_and_for_removed_elsewhere() {
    #[derive(Clone, Copy, PartialEq)]
    enum Sign {
        None,
        /// Another device and inode.
        OtherFolder,
        /// The same inode on another device.
        OtherDevice,
        Unmounted,
    }
    // The number of bundles, the number of those that disappear, and the change of the folder. The
    // flags are true if this counts as a lost mount: while the daemon runs, after its restart, and
    // after a reboot.
    let table = [
        (1, 1, Sign::None, [false; 3]),
        (65, 60, Sign::None, [false; 3]),
        (65, 65, Sign::None, [false; 3]),
        (1, 1, Sign::OtherFolder, [true; 3]),
        (65, 60, Sign::OtherFolder, [true; 3]),
        (5, 1, Sign::OtherFolder, [true; 3]),
        (5, 0, Sign::OtherFolder, [false; 3]),
        (5, 5, Sign::OtherDevice, [true, true, false]),
        (1, 1, Sign::Unmounted, [false, true, true]),
        (65, 65, Sign::Unmounted, [false, true, true]),
        (5, 0, Sign::Unmounted, [false; 3]),
    ];
    for (bundles, gone, sign, faults) in table {
        for (way, is_fault) in ["running", "stopped", "booted"].into_iter().zip(faults) {
            let mut world = world_with(bundles);
            for number in 0..gone {
                world.folder.remove(OsStr::new(&format!("{number}.tar")));
            }
            match sign {
                Sign::None => {}
                Sign::OtherFolder => world.place = (2, 2),
                Sign::OtherDevice => world.place = (2, 1),
                Sign::Unmounted => world.missing_mount = Some("/".into()),
            }
            match way {
                "running" => {}
                "stopped" => world.restart("boot"),
                _ => world.restart("another boot"),
            }
            world.state.relist = true;
            world.settle();
            let claim = format!(
                "{gone} of {bundles}, {way}: {:?}",
                world.state.folders[0].vanished
            );
            assert_eq!(world.state.folders[0].vanished.is_some(), is_fault, "{claim}");
            let left = if is_fault { bundles } else { bundles - gone };
            assert_eq!(pinned(&world), usize::try_from(left).unwrap(), "{claim}");
        }
    }
}

#[test]
fn lost_bundles_are_pinned_until_each_of_them_is_back_as_it_was_or_with_the_same_catalog() {
    let mut world = world_with(3);
    let before = std::mem::take(&mut world.folder);
    world.place = (2, 2);
    world.state.relist = true;
    world.settle();
    assert_eq!(said(&world, "3 of 3 bundles are missing"), 1);
    // A new bundle does not show that the lost ones are back.
    drop_in(&mut world, "new.tar", &image(9), digest(10));
    world.settle();
    assert_eq!(
        (pinned(&world), world.state.folders[0].vanished.is_some()),
        (4, true)
    );
    // The first bundle is back as it was, and the second was restored from elsewhere. The third is
    // another bundle under the same name.
    world
        .folder
        .insert("0.tar".into(), before[OsStr::new("0.tar")].clone());
    drop_in(&mut world, "1.tar", &image(1), digest(2));
    drop_in(&mut world, "2.tar", &image(8), digest(9));
    world.settle();
    let vanished = world.state.folders[0].vanished.as_ref();
    assert_eq!(vanished.map(|vanished| vanished.missing), Some(1));
    drop_in(&mut world, "2.tar", &image(2), digest(3));
    world.settle();
    assert!(world.state.folders[0].vanished.is_none());
    assert_eq!(said(&world, "no bundle is missing any more"), 1);
    // From now on this folder is the folder, and a bundle that leaves it was removed.
    world.folder.remove(OsStr::new("0.tar"));
    world.state.relist = true;
    world.settle();
    assert!(
        !world.records[&image(0)]
            .labels
            .contains_key(import::labels::PINNED)
    );
}

/// A restored file has another time of its last change. Until the daemon has read it, it may be the
/// lost bundle or another one.
#[test]
fn a_file_under_the_name_of_a_lost_bundle_is_not_missing_and_holds_the_pins_until_it_is_read() {
    let mut world = world_with(2);
    world.folder.clear();
    world.place = (2, 2);
    world.state.relist = true;
    world.settle();
    assert_eq!(said(&world, "2 of 2 bundles are missing"), 1);
    drop_in(&mut world, "0.tar", &image(0), digest(1));
    drop_in(&mut world, "1.tar", &image(8), digest(9));
    let entries = listed(&world, |_| true);
    let place = world.place;
    list(
        &mut world,
        Seen {
            place,
            ..seen(entries)
        },
    );
    let held = world.state.folders[0].vanished.as_ref();
    assert_eq!(held.map(|vanished| vanished.missing), Some(0));
    assert!(world.state.folders[0].alarm().is_none());
    assert_eq!(pinned(&world), 2);
    // The first file is the lost bundle, and the second is another one.
    world.settle();
    assert_eq!(world.state.folders[0].alarm().map(|alarm| alarm.missing), Some(1));
    assert_eq!(said(&world, "1 of 2 bundles is missing"), 1);
    assert_eq!(said(&world, "0 of 2"), 0);
    assert!(
        world.records[&image(0)]
            .labels
            .contains_key(import::labels::PINNED)
    );
}

#[test]
fn an_image_that_is_removed_again_and_again_is_restored_later_each_time() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    assert_eq!(world.restored, 0, "an import is no restoration");
    let mut restored = 0;
    for _ in 0..9 {
        world.records.clear();
        let now = world.turn().now;
        world.state.compare_soon(now);
        run(&mut world);
        for _ in 0..3 {
            world.end_job(OsStr::new("a.tar"));
        }
        restored += usize::from(!world.records.is_empty());
    }
    assert_eq!((restored, world.restored), (5, 5), "at once");
    assert!(matches!(
        phase(&world, "a.tar"),
        Some(Phase::Failed { retry: Some(_) })
    ));
    world.settle();
    world.check();
}

#[test]
fn a_file_over_which_its_job_panics_three_times_is_set_aside() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    for times in 1..=3 {
        world.pass(Duration::from_secs(60));
        run(&mut world);
        let panicked = Came::Panicked {
            cause: "a panic".to_owned(),
            program: Some("1".to_owned()),
        };
        world.take(Event::Job("a.tar".into(), Box::new(panicked)));
        let is_retried = matches!(phase(&world, "a.tar"), Some(Phase::Failed { retry: Some(_) }));
        assert_eq!(is_retried, times < 3, "{times}");
    }
    assert_eq!(said(&world, "set aside"), 1);
}

#[test]
fn a_bundle_that_did_not_fit_is_tried_again_when_it_fits() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    run(&mut world);
    world.end_job(OsStr::new("a.tar"));
    let stop = Stop {
        text: "no space".to_owned(),
        class: ErrorClass::Space,
        retry: true,
        shortage: shortage(100),
        unreachable: None,
        lost: Vec::new(),
    };
    world.take(Event::Job("a.tar".into(), Box::new(Came::Untried(stop))));
    run(&mut world);
    assert!(matches!(
        phase(&world, "a.tar"),
        Some(Phase::Failed { retry: Some(_) })
    ));
    if let super::compare::Connection::Up(up) = &mut world.state.connection {
        up.has_store = true;
    }
    let room = Room {
        below: None,
        disk: Some(disk(900)),
        stamp: None,
    };
    let mut turn = world.turn();
    world.state.on_room(room, &mut turn);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready));
}

#[test]
fn a_connection_that_breaks_is_said_once_and_everything_is_compared_after_it() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    world.is_up = false;
    world.take(Event::Ended);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Known));
    for _ in 0..5 {
        world.pass(Duration::from_secs(6));
        run(&mut world);
    }
    assert_eq!(said(&world, "containerd went away"), 1);
    assert_eq!(said(&world, "no containerd"), 1);
    world.settle();
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Done));
    assert_eq!(world.starts.len(), 1);
}

#[test]
fn of_many_changes_the_first_asks_for_a_comparison() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    let change = || {
        Event::Changed(containerd::ImageEvent {
            name: image(0),
            kind: containerd::ImageChange::Updated,
        })
    };
    let lines = |turn: &Turn| {
        let said = turn.actions.iter();
        said.filter(|action| matches!(action, Action::Say(_))).count()
    };
    assert_eq!(lines(&after(&mut world, change())), 1);
    assert_eq!(lines(&after(&mut world, change())), 0);
    world.pass(Duration::from_secs(10));
    let mut turn = world.turn();
    world.state.ask(None, &mut turn);
    assert!(matches!(turn.errands[..], [Errand::Survey { .. }]), "{turn:?}");
    let mut turn = world.turn();
    world.state.ask(None, &mut turn);
    assert!(turn.errands.is_empty(), "a comparison is under way: {turn:?}");
}

#[test]
fn images_are_unpacked_ahead_only_while_no_job_runs() {
    let mut world = world();
    for number in 0..3 {
        let name = format!("{number}.tar");
        drop_in(&mut world, &name, &image(number), digest(number + 1));
        run(&mut world);
        assert!(!world.state.lanes.is_empty());
        let work = world.unpacking.as_ref();
        assert_eq!(work.is_some(), number > 0, "of the bundles before it");
        assert!(work.is_none_or(|work| work.is_interrupted));
        world.go_on_unpacking();
        world.pass(Duration::from_secs(3600));
        run(&mut world);
        assert!(world.unpacking.is_none());
        for _ in 0..3 {
            world.end_job(OsStr::new(&name));
        }
        run(&mut world);
        assert!(world.unpacking.as_ref().is_some_and(|work| !work.is_interrupted));
    }
    world.settle();
    world.check();
}

#[test]
fn the_required_images_are_checked_again_after_whatever_may_change_them() {
    let change = |kind, name| Event::Changed(containerd::ImageEvent { kind, name });
    let reloaded = |world: &World| {
        Event::Reloaded(
            Box::new(Reloaded {
                settings: (*world.state.settings).clone(),
                applied: vec!["require"],
                postponed: Vec::new(),
            }),
            None,
        )
    };
    for what in [
        "nothing",
        "a record",
        "a blob",
        "a comparison",
        "a client",
        "a reload",
        "a connection",
        "a bundle",
    ] {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.settle();
        let before = world.checks;
        match what {
            "a record" => world.take(change(ImageChange::Updated, image(0))),
            "a blob" => world.take(change(ImageChange::ContentDeleted, digest(77).to_string())),
            "a comparison" => {
                let now = world.turn().now;
                world.state.compare_soon(now);
            }
            "a client" => world.take(Event::CheckWanted),
            "a reload" => {
                let reloaded = reloaded(&world);
                world.take(reloaded);
            }
            "a connection" => world.take(Event::Ended),
            "a bundle" => drop_in(&mut world, "b.tar", &image(1), digest(1)),
            _ => {}
        }
        for _ in 0..3 {
            run(&mut world);
            world.end_job(OsStr::new("b.tar"));
            world.end_check();
        }
        assert_eq!(world.checks > before, what != "nothing", "{what}");
    }
}

#[test]
fn a_configuration_that_changes_what_imports_yield_has_every_bundle_looked_at_again() {
    for (fingerprint, starts) in [("rules", 1), ("other rules", 2)] {
        let mut world = world();
        drop_in(&mut world, "a.tar", &image(0), digest(1));
        world.settle();
        let reloaded = Reloaded {
            settings: Settings {
                resync: Duration::from_secs(601),
                ..(*world.state.settings).clone()
            },
            applied: vec!["resync"],
            postponed: vec!["namespace"],
        };
        let fingerprint = Some(fingerprint.to_owned());
        world.take(Event::Reloaded(Box::new(reloaded), fingerprint));
        run(&mut world);
        for _ in 0..3 {
            world.end_job(OsStr::new("a.tar"));
        }
        assert_eq!(world.starts[OsStr::new("a.tar")], starts);
        assert_eq!(said(&world, "resync changed"), 1);
        assert_eq!(said(&world, "restart airgapd for the new namespace"), 1);
    }
}

#[test]
fn the_same_state_event_and_turn_have_the_same_result() {
    let play = || {
        let mut world = world();
        for number in 0..3 {
            drop_in(
                &mut world,
                &format!("{number}.tar"),
                &image(number % 2),
                digest(number + 1),
            );
        }
        world.settle();
        (world.history.clone(), format!("{:?}", world.records))
    };
    assert_eq!(play(), play());
    let mut one = Turn::new(std::time::Instant::now(), Timestamp::UNIX_EPOCH, 7);
    let mut other = Turn::new(std::time::Instant::now(), Timestamp::UNIX_EPOCH, 7);
    let numbers: Vec<_> = (0..9).map(|_| one.chance()).collect();
    assert!(numbers.iter().all(|number| *number == other.chance()));
}

#[test]
#[should_panic(expected = "from Done to Running")]
fn a_move_that_no_decision_makes_stops_a_test() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
    world.state.roster.begin(OsStr::new("a.tar"));
}

/// The numbers that Vigna's reference implementation of SplitMix64 yields for the seed 1234567.
#[test]
fn chance_is_splitmix64() {
    let mut turn = Turn::new(std::time::Instant::now(), Timestamp::UNIX_EPOCH, 1_234_567);
    let numbers: Vec<u64> = (0..5).map(|_| turn.chance()).collect();
    assert_eq!(
        numbers,
        [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ]
    );
}

fn entry(world: &mut World, name: &str, class: Class) -> Listed {
    Listed {
        name: name.into(),
        class,
        identity: world.identity(),
    }
}

/// A sound folder with these entries.
fn seen(entries: Vec<Listed>) -> Seen {
    Seen {
        listing: Listing {
            entries,
            ..Listing::default()
        },
        place: (1, 1),
        is_read_only: false,
        keeps: None,
        is_created: false,
        trust: FolderTrust::Trusted,
        missing_mount: None,
        unclear: BTreeSet::new(),
        trusted: None,
        proofs: Vec::new(),
        keys: None,
    }
}

fn list(world: &mut World, seen: Seen) -> Turn {
    after(world, Event::Listed(vec![Ok(Box::new(seen))]))
}

fn version(world: &World, name: &str) -> Version {
    world
        .state
        .roster
        .version(OsStr::new(name))
        .expect("it is listed")
}

fn settings(world: &mut World) -> &mut Settings {
    Arc::make_mut(&mut world.state.settings)
}

/// Queues a file that nothing starts by itself.
fn queue(world: &mut World, name: &str) {
    world.state.is_draining = true;
    run(world);
    world.state.is_draining = false;
    assert_eq!(phase(world, name), Some(Phase::Ready));
}

/// Returns the job that starts after the file was opened.
fn opened(world: &mut World, name: &str, ending: Option<Ending>) -> Option<Start> {
    let version = version(world, name);
    let turn = after(world, Event::Opened(name.into(), version, Opening::Open(ending)));
    turn.actions.into_iter().find_map(|action| match action {
        Action::Start(start) => Some(start),
        _ => None,
    })
}

fn landed_on(world: &World, name: &str) -> ledger::LastTry {
    world
        .state
        .ledger
        .get(OsStr::new(name))
        .expect("it is known")
        .outcome
}

fn acts(turn: &Turn, is: impl Fn(&Action) -> bool) -> bool {
    turn.actions.iter().any(is)
}

fn says(turn: &Turn, part: &str) -> bool {
    acts(
        turn,
        |action| matches!(action, Action::Say(line) if line.text.contains(part)),
    )
}

fn found(broken: Option<&str>, unfinished: Option<&str>, distrust: Option<&str>) -> Came {
    Came::Found(Box::new(Found {
        records: [(image(0), digest(1))].into(),
        broken: broken.map(str::to_owned),
        unfinished: unfinished.map(str::to_owned),
        may_go_on: false,
        catalog: digest(9),
        stands_for: None,
        verdict: distrust.map_or(Verdict::Allowed, |why| {
            let (why, by) = (why.to_owned(), By::TrustedDigests);
            Verdict::Forbidden(Forbidden { why, by })
        }),
    }))
}

/// Returns the errands of one step.
fn errands(world: &mut World) -> Vec<Errand> {
    let mut turn = world.turn();
    let _ = world.state.step(Step::Ask, Readings::default(), &mut turn);
    turn.errands
}

/// Returns a world whose ledger has these bundles, with one image each, and no other work.
fn with_bundles(count: u64) -> World {
    let mut world = world();
    for number in 0..count {
        drop_in(
            &mut world,
            &format!("{number}.tar"),
            &image(number),
            digest(number + 1),
        );
    }
    world.settle();
    world
}

/// Returns the files of the folder that a listing finds, unchanged.
fn listed(world: &World, is_found: impl Fn(&str) -> bool) -> Vec<Listed> {
    let files = world.folder.iter();
    let found = files.filter(|(name, _)| is_found(name.to_str().unwrap()));
    let listed = found.map(|(name, file)| Listed {
        name: name.clone(),
        class: Class::Candidate,
        identity: file.identity.clone(),
    });
    listed.collect()
}

fn is_gone(world: &World, name: &str) -> bool {
    let entry = world.state.ledger.get(OsStr::new(name));
    entry.is_some_and(|entry| entry.gone.is_some())
}

/// Plays the job of the list `images.txt`, of which the only image is there.
fn pull(world: &mut World) {
    opened(world, "images.txt", Some(Ending::Foreign)).expect("a job begins");
    let list = Came::List {
        catalog: digest(7),
        distrust: None,
    };
    let pulled = Came::Pulled {
        images: vec![ImageEntry {
            name: image(0),
            target: digest(1),
        }],
        problems: Vec::new(),
    };
    for came in [list, pulled] {
        after(world, Event::Job("images.txt".into(), Box::new(came)));
    }
    assert_eq!(phase(world, "images.txt"), Some(Phase::Done));
}

/// Returns a world with a job that reads `a.tar`.
fn reading() -> World {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    queue(&mut world, "a.tar");
    opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
    world
}

/// Returns a world with a job that imports `a.tar`.
fn importing() -> World {
    let mut world = reading();
    let turn = after(
        &mut world,
        Event::Job("a.tar".into(), Box::new(found(None, None, None))),
    );
    assert!(acts(&turn, |action| matches!(action, Action::Import(..))));
    world
}
