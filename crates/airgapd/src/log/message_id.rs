//! Message ids. Each identifies one kind of event for systemd's message catalog and for alerts, so
//! it never changes.

use node::outcome::Outcome;

use super::line::Fields;

/// The subject of an event, which is the smallest thing that its fields name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    Image,
    Bundle,
    Node,
}

impl About {
    fn of(fields: &Fields) -> About {
        match (fields.get("image"), fields.get("bundle")) {
            (Some(_), _) => About::Image,
            (None, Some(_)) => About::Bundle,
            (None, None) => About::Node,
        }
    }
}

/// Returns the id of an event with these fields, if its kind has one.
pub(super) fn message_id(fields: &Fields) -> Option<&'static str> {
    let about = About::of(fields);
    let outcome = Outcome::of(fields.get("outcome")?.as_str()?)?;
    let mut ids = ids(outcome).iter();
    ids.find(|(of, _)| *of == about).map(|(_, id)| *id)
}

/// Returns the ids of an outcome, by the subject of the event.
const fn ids(outcome: Outcome) -> &'static [(About, &'static str)] {
    match outcome {
        Outcome::Imported => &[(About::Bundle, "8556b10ba49d4573ae06291804dbd4ca")],
        Outcome::Partial => &[(About::Bundle, "50e4782bcb78412fab65bdeb90d4a011")],
        Outcome::Failed => &[
            (About::Bundle, "b8ad2be7d1b1473e81fc6ea1b2d810ae"),
            (About::Image, "3fed07ccc2b6498dabd319e22b75ee1e"),
        ],
        Outcome::Removed => &[
            (About::Bundle, "d23c90c08ff84e1ba47ddae057aaa32c"),
            (About::Image, "d9279616bfe64f6cb672764e7f4c95cf"),
        ],
        Outcome::Restored => &[(About::Bundle, "315594b37c034c658c846fc8d3dd5493")],
        Outcome::Stalled => &[(About::Bundle, "cc26b9f77e0a46c7bf2efe6fff9b3c94")],
        Outcome::NotUnpacked => &[(About::Image, "cf149ce95c8f4272b55fbd72c2602288")],
        Outcome::Missing => &[(About::Node, "c1d6a540622441ab918cd1b69c809c0b")],
        Outcome::Unreachable => &[(About::Node, "3988ec706eea40a9a5688978feadff45")],
        Outcome::Unusable => &[(About::Node, "ee8ae775d0f948a098e0256c8144859f")],
        Outcome::Vanished => &[(About::Node, "1ca980092c484a7eb02e4b85523d74d5")],
        Outcome::Full => &[(About::Node, "bfa545555844475d9e07c8fd3b3791cc")],
        Outcome::Misconfigured => &[(About::Node, "aedd3481ff3140f8904e5e937d8c2012")],
        Outcome::Verdict => &[(About::Node, "dfd971fec6bf4f089f4514f64cc3c38b")],
        Outcome::Refused => &[(About::Bundle, "61f4b1c8a6e9432b9d03c7e2875fa0d4")],
        Outcome::Repaired | Outcome::Unpacked => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CATALOG: &str = include_str!("../../../../systemd/airgapd.catalog");

    fn all() -> impl Iterator<Item = (Outcome, About, &'static str)> {
        let of = |outcome| ids(outcome).iter().map(move |(about, id)| (outcome, *about, *id));
        Outcome::ALL.into_iter().flat_map(of)
    }

    #[test]
    fn message_ids_are_distinct_and_of_the_right_form() {
        let mut known: Vec<_> = all().map(|(_, _, id)| id).collect();
        assert_eq!(known.len(), 17);
        assert!(
            known
                .iter()
                .all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        );
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), 17);
    }

    /// The journal's catalog (`journalctl -x`) and the program have the same ids.
    #[test]
    fn the_message_catalog_explains_every_message_id() {
        let ids = CATALOG.lines().filter_map(|line| line.strip_prefix("-- "));
        let mut explained: Vec<_> = ids.collect();
        let mut sent: Vec<_> = all().map(|(_, _, id)| id).collect();
        explained.sort_unstable();
        sent.sort_unstable();
        assert_eq!(explained, sent);
        for entry in CATALOG.split("\n-- ").skip(1) {
            let (header, text) = entry.split_once("\n\n").expect("a text below the header");
            assert!(
                header.contains("\nSubject: ") && header.contains("\nDefined-By: airgapd"),
                "{header}"
            );
            assert!(text.trim().lines().count() > 1, "{header}");
        }
    }

    /// A field in a sentence of the catalog (`@AIRGAPD_BUNDLE@`) is in every entry of that kind.
    #[test]
    fn the_message_catalog_relies_on_no_field_that_its_events_lack() {
        for (outcome, about, id) in all() {
            let (_, entry) = CATALOG.split_once(&format!("-- {id}\n")).unwrap();
            let entry = entry.split("\n-- ").next().unwrap();
            let allowed: &[&str] = match about {
                About::Image if outcome == Outcome::NotUnpacked => &["AIRGAPD_IMAGE"],
                About::Image => &["AIRGAPD_IMAGE", "AIRGAPD_BUNDLE"],
                About::Bundle => &["AIRGAPD_BUNDLE"],
                About::Node => &[],
            };
            for field in entry.split('@').skip(1).step_by(2) {
                assert!(allowed.contains(&field), "{outcome:?}: {field}");
            }
        }
    }
}
