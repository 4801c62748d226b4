use super::*;

const IDENTITY: Identity = Identity {
    device: 1,
    inode: 2,
    size: 1 << 30,
    mtime_ns: 3,
    ctime_ns: 4,
};

struct Scene {
    lanes: Lanes,
    now: Instant,
}

impl Scene {
    fn set() -> Scene {
        Scene {
            lanes: Lanes::default(),
            now: Instant::now(),
        }
    }

    fn begin(&mut self, name: &str, lane: Lane) {
        let version = Version {
            identity: IDENTITY,
            sidecar: None,
            is_layout: false,
        };
        self.lanes.start(name.as_ref(), version, lane, self.now);
    }

    fn import(&mut self, name: &str) {
        self.lanes.go_on(name.as_ref(), Stage::Importing, self.now);
    }

    fn wait(&mut self, name: &str) {
        self.lanes.wait(name.as_ref(), BTreeMap::new(), Vec::new());
    }

    fn idle_before(&self, name: &str, is_alone: bool, now: Instant) -> Option<&OsStr> {
        let load = Load {
            name: name.as_ref(),
            identity: &IDENTITY,
            size: IDENTITY.size,
            is_repair: false,
            is_alone,
        };
        let job = self.lanes.idle_before(load, now);
        job.map(|job| job.name.as_os_str())
    }
}

#[test]
fn light_work_starts_in_either_lane_and_any_other_in_the_main_one() {
    let load = Load {
        name: "next.tar".as_ref(),
        identity: &IDENTITY,
        size: SMALL,
        is_repair: false,
        is_alone: false,
    };
    let large = Load {
        size: SMALL + 1,
        ..load
    };
    let repair = Load {
        is_repair: true,
        ..large
    };
    let alone = Load {
        is_alone: true,
        ..load
    };
    let (light, main) = (Some(Lane::Light), Some(Lane::Main));
    let table = [
        ("a small file", load, [light, main, light, None]),
        ("a large file", large, [main, main, None, None]),
        ("a repair", repair, [light, main, light, None]),
        ("a file that has to be alone", alone, [light, None, None, None]),
    ];
    for (what, load, wanted) in table {
        let running = [&[][..], &[Lane::Light], &[Lane::Main], &[Lane::Light, Lane::Main]];
        for (running, wanted) in running.into_iter().zip(wanted) {
            let mut scene = Scene::set();
            for lane in running {
                scene.begin(&format!("{lane:?}.tar"), *lane);
            }
            assert_eq!(scene.lanes.lane_for(load), wanted, "{what} beside {running:?}");
            scene.lanes.note_heavy(load.name, &IDENTITY, |_| true);
            let has_main = running.contains(&Lane::Main) || load.is_alone && !running.is_empty();
            let wanted = (!has_main).then_some(Lane::Main);
            assert_eq!(
                scene.lanes.lane_for(load),
                wanted,
                "heavy: {what} beside {running:?}"
            );
        }
    }
    let mut scene = Scene::set();
    scene.begin("next.tar", Lane::Main);
    assert_eq!(scene.lanes.lane_for(load), None, "it has a lane");
    scene.begin("other.tar", Lane::Light);
    scene.lanes.give_way(load.name);
    scene.lanes.end(load.name);
    assert_eq!(scene.lanes.lane_for(load), None, "it waits for the other job");
    scene.lanes.end("other.tar".as_ref());
    assert_eq!(scene.lanes.lane_for(load), light);
}

#[test]
fn a_file_is_heavy_until_it_changes_and_forgotten_when_it_is_gone() {
    let mut lanes = Lanes::default();
    let (one, other) = (OsStr::new("one.tar"), OsStr::new("other.tar"));
    lanes.note_heavy(one, &IDENTITY, |_| true);
    let changed = Identity {
        size: 1,
        ..IDENTITY.clone()
    };
    assert!(lanes.is_heavy(one, &IDENTITY) && !lanes.is_heavy(one, &changed));
    lanes.note_heavy(other, &IDENTITY, |name| name == other);
    assert!(lanes.is_heavy(other, &IDENTITY) && !lanes.is_heavy(one, &IDENTITY));
}

#[test]
fn the_loop_wakes_when_an_import_will_have_been_still_for_too_long() {
    let mut scene = Scene::set();
    let now = scene.now;
    scene.begin("one.tar", Lane::Main);
    assert_eq!(scene.lanes.idle_due(now), None, "it is read");
    scene.import("one.tar");
    scene.begin("two.tar", Lane::Light);
    scene.wait("two.tar");
    let idle = now + STILL;
    assert_eq!(scene.lanes.idle_due(now), Some(idle));
    assert_eq!(scene.lanes.idle_due(idle), None, "it is idle by then");
    let moved = now + Duration::from_secs(60);
    scene.lanes.note_progress([("one.tar".into(), (1, 0))], moved);
    assert_eq!(scene.lanes.idle_due(now), Some(moved + STILL));
    scene.lanes.give_way("one.tar".as_ref());
    assert_eq!(scene.lanes.idle_due(now), None, "its work is being dropped");
}

#[test]
fn of_the_bundles_that_wait_the_first_to_arrive_goes_on_that_disagrees_with_no_import() {
    let records = |pairs: &[(&str, char)]| -> BTreeMap<String, Digest> {
        let digest = |fill: char| format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap();
        pairs
            .iter()
            .map(|(name, target)| ((*name).to_owned(), digest(*target)))
            .collect()
    };
    let mut scene = Scene::set();
    for (name, pairs) in [
        ("1.tar", &[("a", '2')][..]),
        ("2.tar", &[("a", '1'), ("c", '3')]),
        ("3.tar", &[("b", '1')]),
    ] {
        scene.begin(name, Lane::Main);
        scene.lanes.wait(name.as_ref(), records(pairs), Vec::new());
    }
    scene.begin("importing.tar", Lane::Main);
    let importing = OsStr::new("importing.tar");
    scene.lanes.wait(importing, records(&[("a", '1')]), Vec::new());
    scene.import("importing.tar");
    let early = |name: &OsStr| u64::from(name.as_encoded_bytes()[0]);
    let late = |name: &OsStr| u64::MAX - early(name);
    assert_eq!(scene.lanes.unblocked(early), Some("2.tar".into()));
    assert_eq!(scene.lanes.unblocked(late), Some("3.tar".into()));
    assert_eq!(
        scene.lanes.writer_of("a").map(|job| job.name.clone()),
        Some("1.tar".into())
    );
    assert!(scene.lanes.writer_of("d").is_none());
    scene.lanes.end(importing);
    assert_eq!(scene.lanes.unblocked(early), Some("1.tar".into()));
    scene.lanes.drop_waiting();
    assert_eq!(scene.lanes.unblocked(early), None);
    assert!(scene.lanes.is_empty());
}

#[test]
fn a_file_that_has_to_be_alone_has_the_only_job_give_way_once_nothing_of_it_moves() {
    let mut scene = Scene::set();
    let now = scene.now;
    let late = now + STILL + Duration::from_secs(60);
    for is_alone in [true, false] {
        assert_eq!(scene.idle_before("next.tar", is_alone, late), None);
    }
    scene.begin("one.tar", Lane::Main);
    assert_eq!(scene.idle_before("next.tar", true, late), None, "it is read");
    scene.import("one.tar");
    for is_alone in [true, false] {
        assert_eq!(scene.idle_before("next.tar", is_alone, now), None);
        let idle = scene.idle_before("next.tar", is_alone, late);
        assert_eq!(idle, Some(OsStr::new("one.tar")));
        assert_eq!(scene.idle_before("one.tar", is_alone, late), None);
    }
    scene.begin("two.tar", Lane::Light);
    assert_eq!(scene.idle_before("next.tar", true, late), None, "there are two");
    assert!(scene.idle_before("next.tar", false, late).is_some());
}

#[test]
fn an_import_that_was_interrupted_keeps_its_lane_twice_as_long_the_next_time() {
    let mut scene = Scene::set();
    for times in [1, 2, 4, 8] {
        scene.begin("a.tar", Lane::Main);
        scene.import("a.tar");
        let patience = STILL * times;
        let before = scene.now + patience.saturating_sub(Duration::from_secs(1));
        assert_eq!(scene.idle_before("b.tar", false, before), None, "{times}");
        let after = scene.now + patience;
        assert!(scene.idle_before("b.tar", false, after).is_some(), "{times}");
        let left = scene.lanes.give_way("a.tar".as_ref());
        assert!(matches!(left, Some(Leaving::Working)));
        scene.lanes.end("a.tar".as_ref());
    }
    scene.begin("a.tar", Lane::Main);
    scene.import("a.tar");
    scene.lanes.end("a.tar".as_ref());
    scene.begin("a.tar", Lane::Main);
    assert_eq!(scene.lanes.get("a.tar".as_ref()).unwrap().patience, STILL);
    assert!(patience(u32::MAX) > patience(5));
}

#[test]
fn a_job_that_waits_and_is_dropped_frees_what_is_behind_it_and_tells_of_its_news() {
    for is_disturbed in [true, false] {
        let mut scene = Scene::set();
        scene.begin("one.tar", Lane::Main);
        scene.begin("two.tar", Lane::Light);
        scene.import("one.tar");
        scene.lanes.give_way("one.tar".as_ref());
        scene.lanes.end("one.tar".as_ref());
        assert!(scene.lanes.is_behind("one.tar".as_ref()));
        scene.wait("two.tar");
        scene.lanes.get_mut("two.tar".as_ref()).unwrap().disturbed = is_disturbed;
        let (working, over) = scene.lanes.drop_if(|_| true);
        assert!(working.is_empty());
        assert_eq!(over.iter().any(|job| job.disturbed), is_disturbed);
        assert!(scene.lanes.is_empty());
        assert!(!scene.lanes.is_behind("one.tar".as_ref()));
    }
}

#[test]
fn a_job_is_still_while_neither_its_bytes_nor_its_images_get_more() {
    let begin = Instant::now();
    let at = |seconds: u64| begin + Duration::from_secs(seconds);
    let table: [(u64, Mark, u64); 6] = [
        (10, (0, 0), 0),
        (20, (1, 0), 20),
        (30, (1, 0), 20),
        (40, (1, 1), 40),
        (50, (2, 1), 50),
        (400, (2, 1), 50),
    ];
    let mut stillness = Stillness::begins(begin);
    for (now, mark, since) in table {
        stillness.note(mark, at(now));
        assert_eq!(stillness.since, at(since), "{mark:?} after {now} s");
    }
}
