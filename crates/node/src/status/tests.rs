use super::*;

#[test]
fn no_more_images_are_in_place_than_there_are() {
    let table = [
        // All, failed, seen in place -> text.
        ((3, 0, 2), "2 of 3 images in place"),
        ((3, 0, 4), "4 of 4 images in place"),
        ((3, 1, 2), "2 of 3 images in place, 1 failed"),
        ((3, 1, 3), "3 of 4 images in place, 1 failed"),
        ((1, 0, 1), "1 of 1 image in place"),
    ];
    for ((all, failed, seen), text) in table {
        let counted = ImageCount {
            all,
            failed,
            in_place: 0,
        };
        assert_eq!(counted.with_in_place(seen).to_string(), text);
    }
}

#[test]
fn every_state_is_written_as_it_is_called() {
    for state in State::ALL {
        let written = serde_json::to_value(state).unwrap();
        assert_eq!(written, state.as_str());
    }
}

#[test]
fn a_tag_changes_with_what_is_worth_being_told() {
    let status = |change: fn(&mut BundleStatus)| {
        let mut bundle = of_entry("a.tar".as_ref(), None, None);
        bundle.state = State::Importing;
        change(&mut bundle);
        Status {
            bundles: vec![bundle],
            ..Status::default()
        }
        .tag()
    };
    let as_it_is = status(|_| {});
    let moved_on = status(|bundle| bundle.progress = Some(ProgressStatus::new(5, 10, 1)));
    assert_eq!(moved_on, as_it_is);
    assert_eq!(status(|bundle| bundle.retry_in_ms = Some(7)), as_it_is);
    assert_ne!(status(|bundle| bundle.state = State::Done), as_it_is);
    assert_ne!(
        status(|bundle| bundle.waits_for = Some("its end".to_owned())),
        as_it_is
    );
}

#[test]
fn rate_and_rest_follow_from_what_was_sent() {
    type Row = ((u64, u64, u64), (Option<u64>, u64, Option<u64>));
    let table: [Row; 6] = [
        // sent, total, ms -> total, rate, rest
        ((500, 1000, 1000), (Some(1000), 500, Some(1000))),
        ((0, 1000, 1000), (Some(1000), 0, None)),
        ((0, 0, 0), (None, 0, None)),
        ((10, 0, 100), (None, 100, None)),
        // The bytes sent exceed the plan, because another image turned out to need the blob.
        ((1500, 1000, 1000), (Some(1500), 1500, Some(0))),
        ((u64::MAX, u64::MAX, 1), (Some(u64::MAX), u64::MAX, Some(0))),
    ];
    for ((sent, total, elapsed), wanted) in table {
        let made = ProgressStatus::new(sent, total, elapsed);
        assert_eq!(
            (made.total_bytes, made.bytes_per_second, made.remaining_ms),
            wanted
        );
    }
}
