//! New settings.

use super::*;

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

#[test]
fn the_keys_of_before_count_until_the_next_look_and_changed_keys_drop_the_jobs() {
    use super::admit::keys;
    let aborts = |turn: &Turn| acts(turn, |action| matches!(action, Action::Abort(_)));
    for is_changed in [true, false] {
        let mut world = importing();
        settings(&mut world).signatures = Some(Signatures::IfPresent);
        world.state.keys = Some(keys(&[7]));
        reload(&mut world, vec!["resync"], vec![]);
        let before = world.state.keys.as_ref().expect("the keys of before count");
        assert!(before.is_stale);
        let mut seen = seen(listed(&world, |_| true));
        let mut now = keys(&[8]);
        now.problem = is_changed.then(|| "no key is left".to_owned());
        seen.keys = Some(now);
        let turn = list(&mut world, seen);
        assert_eq!(aborts(&turn), is_changed);
        let after = world.state.keys.as_ref().unwrap();
        assert!(!after.is_stale && after.trusted.contains(&digest(8)));
        settings(&mut world).signatures = None;
        reload(&mut world, vec!["signatures"], vec![]);
        assert!(world.state.keys.is_none(), "no rule asks for keys");
    }
}
