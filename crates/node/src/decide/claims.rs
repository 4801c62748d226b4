//! What the decisions promise, one claim each, played on the model of [`super::model`].

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use import::Survey;
use import::labels::OUR_PIN;
use import::result::ImageOutcome;
use import::space::{Demand, Disk, Forecast, MinFree, Shortage};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest, MediaType};

use super::follow::Following;
use super::lanes::Lane;
use super::listing::{Seen, Trusted};
use super::model::{Content, File, Work, World, digest};
use super::record::{Bad, Came, Found, Landed, LandedImage, Stop};
use super::room::Room;
use super::withdraw::Withdrawing;
use super::{Action, Errand, Event, Failed, Look, Opening, Start, Turn, Unreached};
use crate::images::folder::{Class, Ending, FolderTrust, Listed, Listing, Observation, Reason, Writer};
use crate::images::sidecar;
use crate::place::Distribution;
use crate::settings::{Checksums, Coexistence, Reloaded, Settings};
use crate::state::ledger::{self, ErrorClass, ImageEntry};
use crate::state::roster::{Phase, Version};

/// A world without another importer, and with a containerd.
fn world() -> World {
    World::new(2)
}

fn image(number: u64) -> String {
    format!("registry.test/app:{number}")
}

/// Puts a bundle of one image into the folder.
fn drop_in(world: &mut World, name: &str, image: &str, target: Digest) {
    let content = Content::Bundle(vec![(image.to_owned(), target)]);
    let identity = world.identity();
    world.folder.insert(name.into(), File { identity, content });
    world.state.relist = true;
}

/// Goes on until nothing is due, and a moment longer: a file is looked at twice before it counts as finished.
fn run(world: &mut World) {
    while world.step() {}
    world.pass(Duration::from_secs(2));
    while world.step() {}
}

fn phase(world: &World, name: &str) -> Option<Phase> {
    world.state.roster.phase(OsStr::new(name))
}

fn said(world: &World, part: &str) -> usize {
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

/// The half of such a disk has to stay free.
fn shortage(free: u64) -> Option<Shortage> {
    let half = MinFree::Percent(50);
    Forecast::new(Path::new("/store"), disk(free), Demand::default(), half).shortage()
}

/// The actions and errands that one event leads to.
fn after(world: &mut World, event: Event) -> Turn {
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
    while world.step() {}
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
    assert_eq!(said(&world, "it was replaced or removed"), 1);
    world.settle();
    assert_eq!(world.records[&image(0)].target.digest(), &digest(2));
    assert_eq!(world.starts[OsStr::new("a.tar")], 2);
}

#[test]
fn most_bundles_that_go_at_once_are_a_fault_of_the_folder_and_unpin_nothing() {
    let mut world = world();
    for number in 0..4 {
        drop_in(
            &mut world,
            &format!("{number}.tar"),
            &image(number),
            digest(number + 1),
        );
    }
    world.settle();
    world.folder.clear();
    world.settle();
    assert_eq!(said(&world, "4 of 4 bundles are missing"), 1);
    let is_pinned = |name: &String| world.records[name].labels.contains_key(import::labels::PINNED);
    assert!((0..4).map(image).all(|name| is_pinned(&name)));
    // One of them is a wish.
    let mut world = self::world();
    for number in 0..4 {
        drop_in(
            &mut world,
            &format!("{number}.tar"),
            &image(number),
            digest(number + 1),
        );
    }
    world.settle();
    world.folder.remove(OsStr::new("0.tar"));
    world.settle();
    assert!(
        !world.records[&image(0)]
            .labels
            .contains_key(import::labels::PINNED)
    );
    world.check();
}

#[test]
fn an_image_that_is_removed_again_and_again_is_restored_later_each_time() {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    world.settle();
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
    assert_eq!(restored, 5, "at once");
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
    world.state.step(None, &mut turn);
    assert!(matches!(turn.errands[..], [Errand::Survey { .. }]), "{turn:?}");
    let mut turn = world.turn();
    world.state.step(None, &mut turn);
    assert!(turn.errands.is_empty(), "a comparison is under way: {turn:?}");
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

/// The numbers that Vigna's reference implementation of SplitMix64 gives for the seed 1234567.
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

/// The folder with these entries, in good order.
fn seen(entries: Vec<Listed>) -> Seen {
    Seen {
        listing: Listing {
            entries,
            ..Listing::default()
        },
        place: (1, 1),
        is_created: false,
        trust: FolderTrust::Trusted,
        unclear: BTreeSet::new(),
        trusted: None,
    }
}

fn list(world: &mut World, seen: Seen) -> Turn {
    after(world, Event::Listed(Ok(Box::new(seen))))
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

/// Queues a file, which nothing starts by itself.
fn queue(world: &mut World, name: &str) {
    world.state.is_draining = true;
    run(world);
    world.state.is_draining = false;
    assert_eq!(phase(world, name), Some(Phase::Ready));
}

/// The job that begins when the file was opened.
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
    assert!(!told(Ending::Foreign, false), "it will be refused");
    assert!(!told(Ending::Marker, true), "it was begun with before");
}

#[test]
fn a_file_that_is_no_archive_is_judged_as_soon_as_nothing_writes_it() {
    let table = [
        ("notes.md", false, Ending::Beginning, Some(Reason::Companion)),
        ("images.txt", false, Ending::Beginning, Some(Reason::List)),
        ("images.txt", true, Ending::Beginning, None),
        ("images.txt", true, Ending::Foreign, None),
    ];
    for (name, pull_lists, ending, reason) in table {
        let mut world = world();
        settings(&mut world).pull_lists = pull_lists;
        let listed = entry(&mut world, name, Class::Candidate);
        list(&mut world, seen(vec![listed]));
        let observation = Observation {
            size: 100,
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
    // It may become an archive yet.
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
    assert!(!start.is_told, "it is said when the folder is whole");
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

/// A job that reads `images.txt`.
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
    let turn = after(&mut world, came(Some("nobody trusts it")));
    assert!(!pulls(&turn) && says(&turn, "nobody trusts it"));
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

fn found(broken: Option<&str>, unfinished: Option<&str>, distrust: Option<&str>) -> Came {
    Came::Found(Box::new(Found {
        records: [(image(0), digest(1))].into(),
        broken: broken.map(str::to_owned),
        unfinished: unfinished.map(str::to_owned),
        may_go_on: false,
        distrust: distrust.map(str::to_owned),
    }))
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
            found(None, None, Some("nobody trusts it")),
            Some(("nobody trusts it", ErrorClass::Refused)),
        ),
        (
            found(None, Some("it is cut off"), Some("nobody trusts it")),
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

/// A file that is left to k0s, which has not come yet.
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
        "its turn is over"
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
            chain: "no such file".to_owned(),
            is_elsewhere,
        };
        let turn = after(&mut world, Event::Unreached(unreached));
        assert!(says(&turn, "no containerd; waiting for it (no such file)"));
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

/// The errands of one step.
fn errands(world: &mut World) -> Vec<Errand> {
    let mut turn = world.turn();
    world.state.step(None, &mut turn);
    turn.errands
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
    // Two seconds have passed since.
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
        let [Errand::Survey { is_new_boot, labels }] = &sent[..] else {
            panic!("{sent:?}")
        };
        assert_eq!(*is_new_boot, is_new);
        let survey = Survey {
            records: world.records.clone(),
            ..Survey::default()
        };
        let turn = after(&mut world, Event::Surveyed(Box::new(survey), labels.clone()));
        let text = "the machine was started anew: 0 blobs of imported bundles are there, 0 are lost";
        assert_eq!(says(&turn, text), is_new);
        world.take(Event::Swept);
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
    world.take(Event::Swept);
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
    let Some(Errand::Sweep(kept)) = swept(&mut world) else {
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
        world.state.healing.wait(OsStr::new("a.tar"), now);
    }
    world.records.clear();
    world.state.compare_soon(now);
    while world.step() {}
    let retry = Some(now + Duration::from_secs(60));
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry }));
    assert_eq!(said(&world, "is restored in 60s"), 1);
}

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
        assert_eq!(world.state.folder.problem().as_deref(), problem);
        assert!(
            !says(&list(&mut world, again), ""),
            "nothing is said again after {text}"
        );
    }
    let created = Seen {
        is_created: true,
        ..seen(Vec::new())
    };
    assert!(says(
        &list(&mut world, created),
        "created the images folder /images"
    ));
    world.state.folder.vanished = Some("3 of 4 are missing".to_owned());
    assert_eq!(
        world.state.folder.problem().as_deref(),
        Some("3 of 4 are missing")
    );
}

/// A world whose ledger has these bundles, one image each, and nothing else to do.
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

/// The files of the folder that a listing finds, as they were.
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
        (gone, world.state.folder.vanished.clone())
    };
    assert_eq!(gone((1, 1), &[], &["0.tar"]), (1, None));
    assert_eq!(
        gone((1, 1), &["0.tar"], &["0.tar"]),
        (0, None),
        "it cannot be looked at"
    );
    assert_eq!(gone((1, 1), &[], &[]), (0, None));
    assert_eq!(
        gone((1, 2), &[], &[]),
        (0, None),
        "all are in the other folder, too"
    );
    let (count, why) = gone((1, 2), &[], &["0.tar"]);
    assert_eq!(count, 0);
    let text = "/images is another folder than before, and 1 of 4 bundles are not in it";
    assert_eq!(why.as_deref(), Some(text));
    let (count, why) = gone((1, 1), &[], &["0.tar", "1.tar", "2.tar"]);
    let text = "3 of 4 bundles are missing in /images at once";
    assert_eq!((count, why.as_deref()), (0, Some(text)));
}

#[test]
fn bundles_that_are_back_are_said_to_be_accounted_for() {
    let mut world = with_bundles(4);
    let turn = list(&mut world, seen(Vec::new()));
    assert!(says(&turn, "4 of 4 bundles are missing"));
    let turn = list(&mut world, seen(Vec::new()));
    assert!(!says(&turn, "4 of 4 bundles are missing"), "it was said");
    let entries = listed(&world, |_| true);
    let turn = list(&mut world, seen(entries));
    assert!(says(&turn, "the bundles that were missing are accounted for"));
    let entries = listed(&world, |_| true);
    let turn = list(&mut world, seen(entries));
    assert!(!says(&turn, "accounted for"));
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

/// Three panics over `a.tar`.
fn set_aside() -> World {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    for _ in 0..3 {
        world.pass(Duration::from_secs(60));
        run(&mut world);
        let panicked = Came::Panicked {
            cause: "a panic".to_owned(),
            program: Some("1".to_owned()),
        };
        world.take(Event::Job("a.tar".into(), Box::new(panicked)));
    }
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Failed { retry: None }));
    world
}

#[test]
fn a_file_that_was_set_aside_stays_so_whatever_rules_and_trusted_digests_say() {
    let mut world = set_aside();
    let entry = world.state.ledger.get(OsStr::new("a.tar")).unwrap();
    let text = entry.last_error.as_ref().unwrap().text.clone();
    assert!(
        text.contains("`airgapd import /images/a.tar` tries it at once"),
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
    // The next run of the daemon finds it in its ledger.
    let mut next = self::world();
    next.state.ledger = world.state.ledger.clone();
    let entries = listed(&world, |_| true);
    let turn = list(&mut next, self::seen(entries));
    assert!(says(&turn, &format!("not imported: {text}")));
    assert_eq!(phase(&next, "a.tar"), Some(Phase::Failed { retry: None }));
}

#[test]
fn new_trusted_digests_have_bundles_judged_again_that_they_may_decide_otherwise() {
    let stamp = |world: &mut World| vec![("trusted.txt".into(), world.identity())];
    let mut world = with_bundles(3);
    let error = ledger::LastError {
        text: "nobody trusts it".to_owned(),
        class: ErrorClass::Refused,
        at: Timestamp::UNIX_EPOCH,
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

/// A job that reads `a.tar`.
fn reading() -> World {
    let mut world = world();
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    queue(&mut world, "a.tar");
    opened(&mut world, "a.tar", Some(Ending::Marker)).expect("a job begins");
    world
}

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
    let waiting = |phase| phase == Some(Phase::Waiting);
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

/// An import of `a.tar` of which this became.
fn landed(world: &World, outcome: import::Outcome) -> Landed {
    let is_in_place = outcome == import::Outcome::Imported;
    Landed {
        identity: version(world, "a.tar").identity,
        catalog: digest(9),
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
    }
}

/// A job that imports `a.tar`.
fn importing() -> World {
    let mut world = reading();
    let turn = after(
        &mut world,
        Event::Job("a.tar".into(), Box::new(found(None, None, None))),
    );
    assert!(acts(&turn, |action| matches!(action, Action::Import(..))));
    world
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
                retry: Some(now + super::lanes::STILL),
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

fn has_store(world: &mut World) {
    if let super::compare::Connection::Up(up) = &mut world.state.connection {
        up.has_store = true;
    }
}

fn in_room(world: &mut World, room: Room) -> Turn {
    let mut turn = world.turn();
    world.state.on_room(room, &mut turn);
    turn
}

#[test]
fn too_little_space_is_said_once_and_so_is_that_there_is_enough_again() {
    let mut world = world();
    run(&mut world);
    let room = |free| Room {
        below: shortage(free),
        disk: None,
        stamp: None,
    };
    for (free, is_below, text) in [
        (900, false, None),
        (100, true, Some("nothing is imported or healed: ")),
        (50, true, None),
        (
            900,
            false,
            Some("there is enough space on containerd's disk again"),
        ),
        (900, false, None),
    ] {
        let turn = in_room(&mut world, room(free));
        assert_eq!(world.state.room.is_below(), is_below, "{free}");
        assert_eq!(says(&turn, text.unwrap_or_default()), text.is_some(), "{free}");
    }
}

#[test]
fn the_store_is_looked_at_every_four_seconds_where_it_can_be_seen() {
    let stamp = |number| Room {
        below: None,
        disk: None,
        stamp: Some((1, number, 0, 0)),
    };
    let checks = |world: &mut World, number| {
        let turn = in_room(world, stamp(number));
        acts(&turn, |action| matches!(action, Action::CheckFiles))
    };
    let mut world = world();
    run(&mut world);
    assert_eq!(world.state.room_due(), None);
    assert!(!checks(&mut world, 1), "it cannot be seen");
    has_store(&mut world);
    let now = world.turn().now;
    world.state.forget_room(now);
    assert_eq!(world.state.room_due(), Some(now));
    assert!(checks(&mut world, 1));
    let next = now + Duration::from_secs(4);
    assert_eq!(world.state.room_due(), Some(next));
    assert!(!checks(&mut world, 2), "it is not due");
    world.pass(Duration::from_secs(4));
    assert!(checks(&mut world, 2));
    world.pass(Duration::from_secs(4));
    assert!(!checks(&mut world, 2), "nothing has changed");
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    run(&mut world);
    world.pass(Duration::from_secs(4));
    assert!(!checks(&mut world, 3), "our own import changes it");
}

/// A world in which `a.tar` waits for room.
fn too_full() -> World {
    let mut world = importing();
    has_store(&mut world);
    let stop = Stop {
        text: "no space".to_owned(),
        class: ErrorClass::Space,
        retry: true,
        shortage: shortage(100),
        unreachable: None,
    };
    after(
        &mut world,
        Event::Job("a.tar".into(), Box::new(Came::Untried(stop))),
    );
    world
}

#[test]
fn a_bundle_that_does_not_fit_waits_for_room_or_an_hour_or_another_containerd() {
    let mut world = too_full();
    let retry = Some(world.turn().now + Duration::from_secs(3600));
    let waiting = Some(Phase::Failed { retry });
    assert_eq!(phase(&world, "a.tar"), waiting);
    let room = |free, below| Room {
        below,
        disk: Some(disk(free)),
        stamp: None,
    };
    for (free, below, wanted) in [
        (200, None, waiting),
        (900, shortage(1), waiting),
        (900, None, Some(Phase::Ready)),
    ] {
        world.pass(Duration::from_secs(4));
        in_room(&mut world, room(free, below));
        assert_eq!(phase(&world, "a.tar"), wanted, "{free}");
    }
    let mut world = too_full();
    let now = world.turn().now;
    world.state.forget_room(now);
    assert_eq!(phase(&world, "a.tar"), Some(Phase::Ready));
    // By another reason than room it is not ready.
    let mut world = too_full();
    world.state.roster.fail(OsStr::new("a.tar"), now, None);
    let failed = Some(Phase::Failed { retry: None });
    world.pass(Duration::from_secs(4));
    in_room(&mut world, room(900, None));
    assert_eq!(phase(&world, "a.tar"), failed);
    world.state.forget_room(now);
    assert_eq!(phase(&world, "a.tar"), failed);
}

fn reload(world: &mut World, applied: Vec<&'static str>, postponed: Vec<&'static str>) -> Turn {
    let reloaded = Reloaded {
        settings: (*world.state.settings).clone(),
        applied,
        postponed,
    };
    after(world, Event::Reloaded(Box::new(reloaded), None))
}

#[test]
fn new_settings_are_adopted_if_they_differ_and_hold_for_files_that_were_ignored() {
    let mut world = with_bundles(1);
    let ignored = entry(&mut world, "images.txt", Class::Candidate);
    let mut entries = listed(&world, |_| true);
    entries.push(ignored);
    list(&mut world, seen(entries));
    world.state.roster.ignore(OsStr::new("images.txt"), Reason::List);
    let adopts = |turn: &Turn| acts(turn, |action| matches!(action, Action::Adopt));
    let turn = reload(&mut world, vec![], vec![]);
    assert!(says(&turn, "nothing has changed") && !adopts(&turn));
    let turn = reload(&mut world, vec![], vec!["namespace"]);
    assert!(says(&turn, "restart airgapd for the new namespace") && !adopts(&turn));
    assert!(!says(&turn, "the configuration was read again"));
    assert_eq!(phase(&world, "images.txt"), Some(Phase::Ignored(Reason::List)));
    world.state.relist = false;
    let now = world.turn().now;
    let turn = reload(&mut world, vec!["pullLists", "resync"], vec![]);
    assert!(says(
        &turn,
        "the configuration was read again: pullLists, resync changed"
    ));
    assert!(adopts(&turn) && world.state.relist);
    assert!(!says(&turn, "restart airgapd"));
    assert_eq!(phase(&world, "images.txt"), Some(Phase::Settling { look: now }));
    assert_eq!(world.state.connection.due(), Some(now));
    assert_eq!(world.state.labels_in_doubt(Timestamp::UNIX_EPOCH), [OUR_PIN]);
}

/// The labels whose records a comparison looks up.
fn looked_up(world: &mut World) -> Vec<String> {
    let at = world.turn().at;
    world.state.labels_in_doubt(at)
}

fn label(name: &str) -> String {
    super::withdraw::label_of(OsStr::new(name))
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

/// What a comparison finds, as it is now.
fn survey(world: &World) -> Survey {
    Survey {
        records: world.records.clone(),
        census: Some(import::survey::Census::default()),
        ..Survey::default()
    }
}

/// The plan of what is taken back after a survey.
fn withdrawals(world: &mut World) -> Option<Box<Withdrawing>> {
    let survey = survey(world);
    let mut turn = world.turn();
    world.state.withdraw(survey, Vec::new(), &mut turn);
    turn.errands.into_iter().find_map(|errand| match errand {
        Errand::Withdraw(withdrawing) => Some(withdrawing),
        _ => None,
    })
}

/// Two bundles, of which `0.tar` is gone: its record loses its labels.
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
    world.take(Event::Swept);
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

/// Writes into the ledger that `0.tar` was imported with this image alone.
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

/// Puts the label of `0.tar` back, as if it had not been taken yet.
fn relabel(world: &mut World) {
    let record = world.records.get_mut(&image(0)).unwrap();
    record.labels.insert(label("0.tar"), "0.tar".to_owned());
}
