//! Room on containerd's disk.

use super::*;

fn has_store(world: &mut World) {
    if let crate::decide::compare::Connection::Up(up) = &mut world.state.connection {
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
        (100, true, Some("nothing is imported or restored: ")),
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
fn the_daemon_checks_a_visible_store_every_three_seconds() {
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
    let next = now + Duration::from_secs(3);
    assert_eq!(world.state.room_due(), Some(next));
    assert!(!checks(&mut world, 2), "it is not due");
    world.pass(Duration::from_secs(3));
    assert!(checks(&mut world, 2));
    world.pass(Duration::from_secs(3));
    assert!(!checks(&mut world, 2), "nothing has changed");
    drop_in(&mut world, "a.tar", &image(0), digest(1));
    run(&mut world);
    world.pass(Duration::from_secs(3));
    assert!(!checks(&mut world, 3), "an import of the daemon changes it");
}

/// Returns a world in which `a.tar` waits for room.
fn too_full() -> World {
    let mut world = importing();
    has_store(&mut world);
    let stop = Stop {
        text: "no space".to_owned(),
        class: ErrorClass::Space,
        retry: true,
        shortage: shortage(100),
        unreachable: None,
        lost: Vec::new(),
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
    // A bundle that failed for another reason than room does not become ready.
    let mut world = too_full();
    world.state.roster.fail(OsStr::new("a.tar"), now, None);
    let failed = Some(Phase::Failed { retry: None });
    world.pass(Duration::from_secs(4));
    in_room(&mut world, room(900, None));
    assert_eq!(phase(&world, "a.tar"), failed);
    world.state.forget_room(now);
    assert_eq!(phase(&world, "a.tar"), failed);
}

#[test]
fn a_bundle_that_fits_by_now_or_failed_for_another_reason_waits_for_room_no_more() {
    let room = |free| Room {
        below: None,
        disk: Some(disk(free)),
        stamp: None,
    };
    let name = OsStr::new("a.tar");
    for (free, retry) in [(900, Some(0)), (900, None), (200, None), (200, Some(0))] {
        let mut world = too_full();
        let now = world.turn().now;
        world.state.roster.fail(name, now, retry);
        let waits = free < 900 && retry.is_some();
        world.pass(Duration::from_secs(4));
        in_room(&mut world, room(free));
        world.state.roster.queue(name);
        world.state.roster.begin(name);
        world.state.roster.fail(name, now, Some(0));
        world.pass(Duration::from_secs(4));
        in_room(&mut world, room(900));
        assert_eq!(
            phase(&world, "a.tar") == Some(Phase::Ready),
            waits,
            "{free} {retry:?}"
        );
    }
}

#[test]
fn a_disk_that_kubelet_finds_full_is_said_once_until_there_is_room_again() {
    let mut world = world();
    run(&mut world);
    has_store(&mut world);
    let bundle = OsStr::new("a.tar");
    let mut lands = |free, inodes| {
        let disk = Disk {
            inodes: 1000,
            free_inodes: inodes,
            ..disk(free)
        };
        let demand = Demand { bytes: 1, inodes: 1 };
        let forecast = Forecast::new(Path::new("/store"), disk, demand, MinFree::Bytes(0));
        let mut turn = world.turn();
        world.state.tell_scarce(bundle, &forecast, &mut turn);
        let said = (says(&turn, "% full: above"), says(&turn, "inodes free: below"));
        world.pass(Duration::from_secs(4));
        let looked = Room {
            below: None,
            disk: Some(disk),
            stamp: None,
        };
        in_room(&mut world, looked);
        said
    };
    for (free, inodes, said) in [
        (900, 900, (false, false)),
        (140, 900, (true, false)),
        (130, 900, (false, false)),
        (120, 40, (false, true)),
        (110, 30, (false, false)),
        (900, 30, (false, false)),
        (140, 30, (true, false)),
        (130, 900, (false, false)),
        (130, 40, (false, true)),
    ] {
        assert_eq!(lands(free, inodes), said, "{free} bytes and {inodes} inodes free");
    }
}
