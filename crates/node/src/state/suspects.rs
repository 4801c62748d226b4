//! Crashes over a file, as the ledger counts them. After the first crash the file is a suspect, and
//! the daemon tries it alone. After several in a row the daemon sets it aside.
//!
//! Pure. [`super::crash`] decides which file to blame for a crash.

use std::ffi::OsStr;

use bundle::Identity;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::entry::{ErrorClass, LastError, LastTry};
use super::ledger::Ledger;
use import::Outcome;

/// Consecutive crashes of the daemon, or of one of its jobs, in one boot while it worked on a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Crashes {
    /// Number of crashes. At [`Crashes::MOST`] the file is set aside. Below that it is a suspect,
    /// which the daemon tries alone. 0 means that the file or the program changed since.
    pub(crate) times: u32,
    /// The boot in which the crashes happened.
    pub(crate) boot: Option<String>,
    /// The program that crashed ([`crate::state::crash::program`]).
    pub(crate) program: Option<String>,
}

impl Crashes {
    /// Number of crashes in a row that sets a file aside.
    pub(crate) const MOST: u32 = 3;
}

/// A crash while the daemon worked on a file.
#[derive(Clone, Debug)]
pub(crate) struct Crash {
    /// The cause of the crash, for messages.
    pub(crate) cause: String,
    pub(crate) boot: Option<String>,
    pub(crate) program: Option<String>,
    pub(crate) at: Timestamp,
}

impl Ledger {
    /// Records a crash over a file and returns the number of crashes so far. The crash that reaches
    /// [`Crashes::MOST`] in one boot sets the file aside. The error then ends with `way_out`, the
    /// remedy for the operator.
    pub(crate) fn record_crash(
        &mut self,
        file: &OsStr,
        identity: &Identity,
        crash: Crash,
        way_out: &str,
    ) -> u32 {
        self.arrive(file, identity);
        let entry = self.get_mut(file);
        let entry = entry.expect("a file that has arrived has an entry");
        let before = entry.crashes.take().filter(|before| before.boot == crash.boot);
        let times = before.map_or(0, |before| before.times).saturating_add(1);
        if times >= Crashes::MOST {
            entry.outcome = LastTry::Ended(Outcome::Failed);
            entry.last_error = Some(LastError {
                text: format!(
                    "set aside: the daemon crashed over it {times} times in one boot, the last time by {}. {way_out}",
                    crash.cause
                ),
                class: ErrorClass::Permanent,
                at: crash.at,
                images: 0,
                refused_by: None,
            });
        }
        entry.attempts = entry.attempts.saturating_add(1);
        entry.crashes = Some(Crashes {
            times,
            boot: crash.boot,
            program: crash.program,
        });
        times
    }

    /// Returns true if the daemon crashed over a file of this name and therefore tries it alone.
    pub(crate) fn is_suspect(&self, file: &OsStr) -> bool {
        self.get(file).is_some_and(|entry| entry.crashes.is_some())
    }

    /// Returns true if any file is a suspect or set aside.
    pub(crate) fn has_crashes(&self) -> bool {
        self.all().any(|entry| entry.crashes.is_some())
    }

    /// Lets the daemon retry files that another program crashed over.
    pub(crate) fn acquit_of_others(&mut self, program: &str) {
        for entry in self.all_mut() {
            let Some(crashes) = &mut entry.crashes else {
                continue;
            };
            if crashes.program.as_deref() == Some(program) {
                continue;
            }
            if crashes.times >= Crashes::MOST {
                entry.last_error = None;
                entry.outcome = LastTry::Pending;
            }
            crashes.times = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ledger::tests::{failure, identity, imported, name, sample};
    use super::*;

    fn crash(boot: &str, program: &str) -> Crash {
        Crash {
            cause: "SIGABRT".to_owned(),
            boot: Some(boot.to_owned()),
            program: Some(program.to_owned()),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    /// Returns the counts after a crash in each of these boots.
    fn crashed(ledger: &mut Ledger, boots: &[&str]) -> Vec<u32> {
        let file = name("a.tar");
        let crash =
            |boot: &&str| ledger.record_crash(file, &identity(1), self::crash(boot, "1"), "change it");
        boots.iter().map(crash).collect()
    }

    #[test]
    fn three_crashes_in_a_row_and_in_one_boot_set_a_file_aside() {
        let is_set_aside = |ledger: &Ledger| ledger.get(name("a.tar")).unwrap().is_set_aside(&identity(1));
        for mut ledger in [Ledger::default(), sample()] {
            assert_eq!(crashed(&mut ledger, &["x", "x", "y", "y"]), [1, 2, 1, 2]);
            assert!(!is_set_aside(&ledger) && ledger.is_suspect(name("a.tar")));
            assert_eq!(crashed(&mut ledger, &["y"]), [3]);
            assert!(is_set_aside(&ledger));
            let entry = ledger.get(name("a.tar")).unwrap();
            assert!(!entry.is_set_aside(&identity(2)), "another file");
            let text = &entry.last_error.as_ref().unwrap().text;
            assert!(
                text.contains("3 times in one boot, the last time by SIGABRT. change it"),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_daemon_survives_clears_a_suspect_and_what_says_nothing_of_it_does_not() {
        let failure = |class| LastError {
            class,
            ..failure("no")
        };
        for (class, is_suspect) in [
            (ErrorClass::Transient, true),
            (ErrorClass::Space, true),
            (ErrorClass::Bundle, false),
            (ErrorClass::Permanent, false),
        ] {
            let mut ledger = Ledger::default();
            crashed(&mut ledger, &["x", "x"]);
            ledger.record_failure(name("a.tar"), identity(1), Outcome::Failed, failure(class));
            assert_eq!(ledger.is_suspect(name("a.tar")), is_suspect, "{class:?}");
        }
        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x"]);
        ledger.record_import(name("a.tar"), Outcome::Imported, imported(1, &[]), []);
        assert!(!ledger.is_suspect(name("a.tar")));
    }

    #[test]
    fn another_file_or_program_is_tried_again_and_counted_anew() {
        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x", "x"]);
        assert!(ledger.arrive(name("a.tar"), &identity(2)));
        assert!(ledger.is_suspect(name("a.tar")), "the daemon tries it alone");
        assert_eq!(
            ledger.record_crash(name("a.tar"), &identity(2), crash("x", "1"), ""),
            1
        );

        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x", "x"]);
        ledger.acquit_of_others("1");
        assert!(
            ledger.get(name("a.tar")).unwrap().is_set_aside(&identity(1)),
            "the same program"
        );
        ledger.acquit_of_others("2");
        let entry = ledger.get(name("a.tar")).unwrap();
        assert!(!entry.is_set_aside(&identity(1)) && entry.last_error.is_none());
        assert!(ledger.is_suspect(name("a.tar")), "the daemon tries it alone");
        assert_eq!(crashed(&mut ledger, &["x"]), [1]);
    }

    /// An error class that an earlier version does not know would cost it the whole ledger.
    #[test]
    fn a_ledger_with_crashes_is_written_in_words_that_earlier_versions_know() {
        let mut ledger = Ledger::default();
        crashed(&mut ledger, &["x", "x", "x"]);
        let written = serde_json::to_value(&ledger).unwrap();
        let entry = written["bundles"].as_object().unwrap().values().next().unwrap();
        assert_eq!(
            (&entry["outcome"], &entry["last_error"]["class"]),
            (&"failed".into(), &"permanent".into())
        );
        assert_eq!(entry["crashes"]["times"], 3);
        let read: Ledger = serde_json::from_value(written).unwrap();
        assert_eq!(read, ledger);
        let without = serde_json::to_string(&sample()).unwrap();
        assert!(!without.contains("crashes"), "{without}");
    }
}
