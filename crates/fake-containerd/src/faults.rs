//! Faults that tests inject, and the book-keeping that decides when each of them strikes.

use std::time::Duration;

use tonic::{Code, Status};

use crate::wire::RPCS;

/// A fault. Those with a count strike that often and are spent; the others last until
/// [`Fake::clear_faults`](crate::Fake::clear_faults). RPCs are named `Service.Method` as in
/// [`RPCS`](crate::RPCS).
#[derive(Clone, Debug)]
pub enum Fault {
    /// The `nth` call from now (1 is the next) fails and does nothing. A stream counts when it is
    /// opened.
    Fail {
        /// Which RPC.
        rpc: &'static str,
        /// Which call, counted from the injection, from 1.
        nth: u64,
        /// The code of the answer.
        code: Code,
        /// The text of the answer.
        message: String,
    },
    /// Every call fails and does nothing.
    FailAll {
        /// Which RPC.
        rpc: &'static str,
        /// The code of the answer.
        code: Code,
        /// The text of the answer.
        message: String,
    },
    /// The `nth` unary call from now takes effect, but its answer is lost: the caller sees
    /// `UNAVAILABLE`.
    LoseAnswer {
        /// Which unary RPC.
        rpc: &'static str,
        /// Which call, counted from the injection, from 1.
        nth: u64,
    },
    /// Every call is answered late; for `Content.Write` every message is.
    Delay {
        /// Which RPC.
        rpc: &'static str,
        /// How late.
        by: Duration,
    },
    /// One call is never answered: the next unary call, or the next `Content.Write` stream after so
    /// many answered messages.
    Stall {
        /// Which RPC.
        rpc: &'static str,
        /// Messages answered before the silence; only for `Content.Write`.
        after: u64,
    },
    /// A `Content.Write` stream breaks with `UNAVAILABLE` once it has taken so many bytes; the
    /// ingest keeps them.
    CutStream {
        /// Bytes taken, over all streams, before the cut.
        after: u64,
    },
    /// All connections break once `Content.Write` streams have taken so many bytes; the ingests
    /// keep them.
    CutConnections {
        /// Bytes taken, over all streams, before the cut.
        after: u64,
    },
    /// Only so many bytes of content fit on the disk. Aborted ingests give theirs back.
    DiskFull {
        /// Bytes left.
        free: u64,
    },
    /// The next openings of any ingest ref are answered as if another stream held it.
    RefLocked {
        /// How many openings.
        opens: u64,
    },
    /// After so many data messages the lease of the writing stream is gone, and garbage is
    /// collected.
    LeaseVanishes {
        /// Data messages before that.
        writes: u64,
    },
    /// After so many commits the lease of the committing stream is gone, and garbage is collected.
    LeaseVanishesAtCommit {
        /// Commits before that, the last of them included.
        commits: u64,
    },
    /// The next commits are answered as a digest mismatch, whatever was written; the ingest stays.
    RefuseCommit {
        /// How many commits.
        commits: u64,
    },
    /// Every commit takes this long.
    SlowCommit {
        /// How long.
        by: Duration,
    },
}

/// The faults that are still to come.
#[derive(Default)]
pub(crate) struct Faults {
    armed: Vec<Fault>,
    /// Bytes left on the disk, if that is limited.
    disk: Option<u64>,
}

/// What a call meets before it is carried out.
#[derive(Default)]
pub(crate) struct Obstacle {
    pub(crate) delay: Duration,
    pub(crate) stall: bool,
    pub(crate) failure: Option<Status>,
}

/// What stops the bytes of one write message.
#[derive(Debug, PartialEq)]
pub(crate) enum Barrier {
    CutStream,
    CutConnections,
    DiskFull,
}

impl Faults {
    pub(crate) fn arm(&mut self, fault: Fault) {
        if let Some(rpc) = fault.rpc() {
            assert!(RPCS.contains(&rpc), "no RPC is called {rpc:?}; see RPCS");
        }
        match fault {
            Fault::DiskFull { free } => self.disk = Some(free),
            fault => self.armed.push(fault),
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Faults::default();
    }

    /// Counts one call and says what is in its way.
    pub(crate) fn on_call(&mut self, called: &str) -> Obstacle {
        let mut obstacle = Obstacle::default();
        self.armed.retain_mut(|fault| match fault {
            Fault::Fail {
                rpc,
                nth,
                code,
                message,
            } if *rpc == called => {
                *nth = nth.saturating_sub(1);
                if *nth == 0 {
                    obstacle.failure = Some(Status::new(*code, message.clone()));
                }
                *nth > 0
            }
            Fault::FailAll { rpc, code, message } if *rpc == called => {
                obstacle.failure = Some(Status::new(*code, message.clone()));
                true
            }
            Fault::Delay { rpc, by } if *rpc == called && called != "Content.Write" => {
                obstacle.delay = *by;
                true
            }
            Fault::Stall { rpc, .. } if *rpc == called && called != "Content.Write" => {
                obstacle.stall = true;
                false
            }
            _ => true,
        });
        obstacle
    }

    /// Whether the answer of this call gets lost.
    pub(crate) fn loses_answer(&mut self, called: &str) -> bool {
        let mut lost = false;
        self.armed.retain_mut(|fault| match fault {
            Fault::LoseAnswer { rpc, nth } if *rpc == called => {
                *nth = nth.saturating_sub(1);
                lost |= *nth == 0;
                *nth > 0
            }
            _ => true,
        });
        lost
    }

    /// What one message of a write stream meets; `answered` messages of this stream went before it.
    pub(crate) fn on_message(&mut self, answered: u64, commit: bool) -> Obstacle {
        let mut obstacle = Obstacle::default();
        self.armed.retain(|fault| match fault {
            Fault::Delay {
                rpc: "Content.Write",
                by,
            } => {
                obstacle.delay += *by;
                true
            }
            Fault::SlowCommit { by } if commit => {
                obstacle.delay += *by;
                true
            }
            Fault::Stall {
                rpc: "Content.Write",
                after,
            } if *after <= answered => {
                obstacle.stall = true;
                false
            }
            _ => true,
        });
        obstacle
    }

    /// How many of `wanted` bytes get through, and what stops the rest.
    pub(crate) fn admit(&mut self, wanted: u64) -> (u64, Option<Barrier>) {
        let mut admitted = wanted;
        let mut barrier = None;
        if let Some(free) = self.disk.filter(|free| *free < wanted) {
            (admitted, barrier) = (free, Some(Barrier::DiskFull));
        }
        for fault in &self.armed {
            let (after, kind) = match fault {
                Fault::CutStream { after } => (*after, Barrier::CutStream),
                Fault::CutConnections { after } => (*after, Barrier::CutConnections),
                _ => continue,
            };
            if after < admitted || (after == admitted && barrier.is_none()) {
                (admitted, barrier) = (after, Some(kind));
            }
        }
        self.consume(admitted);
        (admitted, barrier)
    }

    fn consume(&mut self, taken: u64) {
        if let Some(free) = &mut self.disk {
            *free -= taken;
        }
        self.armed.retain_mut(|fault| match fault {
            Fault::CutStream { after } | Fault::CutConnections { after } => {
                let strikes = *after <= taken;
                *after -= taken.min(*after);
                !strikes
            }
            _ => true,
        });
    }

    /// Gives bytes back to a limited disk.
    pub(crate) fn free(&mut self, bytes: u64) {
        if let Some(free) = &mut self.disk {
            *free += bytes;
        }
    }

    pub(crate) fn ref_is_locked(&mut self) -> bool {
        self.count_down(|fault| match fault {
            Fault::RefLocked { opens } => Some(opens),
            _ => None,
        })
    }

    pub(crate) fn refuses_commit(&mut self) -> bool {
        self.count_down(|fault| match fault {
            Fault::RefuseCommit { commits } => Some(commits),
            _ => None,
        })
    }

    /// Whether the lease of a stream vanishes with this data message.
    pub(crate) fn lease_vanishes(&mut self) -> bool {
        self.is_last(|fault| match fault {
            Fault::LeaseVanishes { writes } => Some(writes),
            _ => None,
        })
    }

    /// Whether the lease of a stream vanishes after this commit.
    pub(crate) fn lease_vanishes_at_commit(&mut self) -> bool {
        self.is_last(|fault| match fault {
            Fault::LeaseVanishesAtCommit { commits } => Some(commits),
            _ => None,
        })
    }

    /// Counts one off every fault with such a count, and says whether that was the last one of any,
    /// which is over then.
    fn is_last(&mut self, count: impl Fn(&mut Fault) -> Option<&mut u64>) -> bool {
        let mut is_last = false;
        self.armed.retain_mut(|fault| {
            let Some(left) = count(fault) else { return true };
            *left = left.saturating_sub(1);
            is_last |= *left == 0;
            *left > 0
        });
        is_last
    }

    /// Takes one from the first fault with a count that is left.
    fn count_down(&mut self, count: impl Fn(&mut Fault) -> Option<&mut u64>) -> bool {
        self.armed
            .iter_mut()
            .filter_map(count)
            .find(|left| **left > 0)
            .map(|left| *left -= 1)
            .is_some()
    }
}

impl Fault {
    fn rpc(&self) -> Option<&'static str> {
        match self {
            Fault::Fail { rpc, .. }
            | Fault::FailAll { rpc, .. }
            | Fault::LoseAnswer { rpc, .. }
            | Fault::Delay { rpc, .. }
            | Fault::Stall { rpc, .. } => Some(rpc),
            Fault::CutStream { .. }
            | Fault::CutConnections { .. }
            | Fault::DiskFull { .. }
            | Fault::RefLocked { .. }
            | Fault::LeaseVanishes { .. }
            | Fault::LeaseVanishesAtCommit { .. }
            | Fault::RefuseCommit { .. }
            | Fault::SlowCommit { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_call_fails_once() {
        let mut faults = Faults::default();
        faults.arm(Fault::Fail {
            rpc: "Images.Create",
            nth: 2,
            code: Code::Unknown,
            message: "disk I/O error".into(),
        });
        let failures: Vec<bool> = (0..4)
            .map(|_| faults.on_call("Images.Create").failure.is_some())
            .collect();
        assert_eq!(failures, [false, true, false, false]);
    }

    #[test]
    fn a_full_disk_takes_what_fits_and_gets_back_what_is_freed() {
        let mut faults = Faults::default();
        faults.arm(Fault::DiskFull { free: 10 });
        assert_eq!(faults.admit(8), (8, None));
        assert_eq!(faults.admit(8), (2, Some(Barrier::DiskFull)));
        faults.free(10);
        assert_eq!(faults.admit(8), (8, None));
    }

    #[test]
    fn a_cut_strikes_once_at_its_byte() {
        let mut faults = Faults::default();
        faults.arm(Fault::CutStream { after: 10 });
        assert_eq!(faults.admit(8), (8, None));
        assert_eq!(faults.admit(8), (2, Some(Barrier::CutStream)));
        assert_eq!(faults.admit(8), (8, None));
    }

    #[test]
    #[should_panic(expected = "no RPC is called")]
    fn a_misspelt_rpc_is_refused() {
        Faults::default().arm(Fault::Stall {
            rpc: "Image.Create",
            after: 0,
        });
    }
}
