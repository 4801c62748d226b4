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
