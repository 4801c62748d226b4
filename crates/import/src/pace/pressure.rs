//! Pressure, as Linux tells it (PSI), and what it leaves of the speed. Pure.

/// Under pressure that lasts, so many bytes a second still go through: 30 GB are there after four hours, and a node's own
/// images, which it may need in order to get well, after a minute or two.
pub(super) const TRICKLE: u64 = 2 << 20;
/// Twice what pressure leaves at first where nothing else is a limit, in bytes a second.
pub(super) const FULL: u64 = 128 << 20;

/// What tasks may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    Io,
    Memory,
}

impl Resource {
    /// Of its file, and of its key in the configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Resource::Io => "io",
            Resource::Memory => "memory",
        }
    }
}

/// What the kernel says about a resource.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reading {
    pub(super) resource: Resource,
    /// In how much of the last ten seconds tasks waited for it, in hundredths.
    pub(super) waited: f64,
    /// In how much they may.
    pub(super) allowed: u8,
}

/// How much pressure is too much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strain {
    /// Less than three quarters of what is allowed.
    #[default]
    Low,
    /// Nearly as much as is allowed. Between these two nothing changes, or sending would falter at the threshold.
    Bearable,
    /// As much as is allowed, or more.
    High,
}

impl Reading {
    pub(super) fn strain(&self) -> Strain {
        let allowed = f64::from(self.allowed);
        if self.waited >= allowed {
            Strain::High
        } else if self.waited >= allowed * 0.75 {
            Strain::Bearable
        } else {
            Strain::Low
        }
    }
}

/// The average over ten seconds of the time in which some task waited, in hundredths.
///
/// See the kernel's `Documentation/accounting/psi.rst`: the file has a line that begins with `some`, with `avg10=1.23`.
pub(super) fn some_avg10(text: &str) -> Option<f64> {
    let mut words = text
        .lines()
        .find_map(|line| line.strip_prefix("some "))?
        .split_ascii_whitespace();
    let average: f64 = words.find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
    (0.0..=100.0).contains(&average).then_some(average)
}

/// The most bytes a second that pressure leaves from now on, by what it left before; `limit` is what is allowed without
/// any. Half as much from look to look while it is high, twice as much again when it has gone.
pub(super) fn next(ceiling: Option<u64>, strain: Strain, limit: Option<u64>) -> Option<u64> {
    let full = limit.unwrap_or(FULL).min(FULL);
    match strain {
        Strain::High => Some((ceiling.unwrap_or(full) / 2).max(TRICKLE)),
        Strain::Bearable => ceiling,
        Strain::Low => ceiling.map(|ceiling| ceiling * 2).filter(|more| *more < full),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_average_is_read_from_what_kernels_write_and_from_nothing_else() {
        let table = [
            (
                "some avg10=12.88 avg60=5.80 avg300=1.91 total=8619478\nfull avg10=11.23 avg60=5.13 avg300=1.69 total=7593390\n",
                Some(12.88),
            ),
            ("some avg10=0.00 avg60=0.00 avg300=0.00 total=0\n", Some(0.0)),
            ("some avg10=100.00 avg60=0.00", Some(100.0)),
            ("full avg10=11.23\nsome total=5 avg10=1.5\n", Some(1.5)),
            ("full avg10=11.23 avg60=5.13 avg300=1.69 total=7593390\n", None),
            ("", None),
            ("some\n", None),
            ("some avg60=5.80\n", None),
            ("some avg10=\n", None),
            ("some avg10=NaN\n", None),
            ("some avg10=inf\n", None),
            ("some avg10=-1.00\n", None),
            ("some avg10=100.01\n", None),
            ("someavg10=1.00\n", None),
        ];
        for (text, wanted) in table {
            assert_eq!(some_avg10(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn strain_has_a_middle_where_nothing_changes() {
        let table = [
            (0.0, Strain::Low),
            (29.99, Strain::Low),
            (30.0, Strain::Bearable),
            (39.99, Strain::Bearable),
            (40.0, Strain::High),
            (100.0, Strain::High),
        ];
        for (waited, wanted) in table {
            let reading = Reading {
                resource: Resource::Io,
                waited,
                allowed: 40,
            };
            assert_eq!(reading.strain(), wanted, "{waited}");
        }
        for strain in [Strain::Low, Strain::Bearable] {
            assert_eq!(next(None, strain, None), None);
        }
        assert_eq!(next(Some(TRICKLE), Strain::Bearable, None), Some(TRICKLE));
    }

    fn strain() -> impl Strategy<Value = Strain> {
        prop_oneof![Just(Strain::Low), Just(Strain::Bearable), Just(Strain::High)]
    }

    proptest! {
        #[test]
        fn anything_can_be_read_and_is_a_part_of_the_time_or_nothing(text in "(some )?(avg10=)?\\PC*\n?\\PC*") {
            if let Some(average) = some_avg10(&text) {
                prop_assert!((0.0..=100.0).contains(&average));
            }
        }

        #[test]
        fn whatever_happens_something_goes_through_and_all_of_it_again_in_the_end(
            strains in prop::collection::vec(strain(), 0..60),
            limit in prop::option::of(1_u64 << 20..1 << 33),
        ) {
            let mut ceiling = None;
            for strain in strains {
                ceiling = next(ceiling, strain, limit);
                let most = limit.unwrap_or(FULL).clamp(TRICKLE, FULL);
                prop_assert!(ceiling.is_none_or(|left| (TRICKLE..=most).contains(&left)));
            }
            let rested = (0..8).fold(ceiling, |ceiling, _| next(ceiling, Strain::Low, limit));
            prop_assert_eq!(rested, None);
            let strained = (0..8).fold(ceiling, |ceiling, _| next(ceiling, Strain::High, limit));
            prop_assert_eq!(strained, Some(TRICKLE));
        }
    }
}
