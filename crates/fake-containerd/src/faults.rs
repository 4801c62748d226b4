//! Faults that tests inject, and the counts that decide when each of them strikes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::{Code, Status};

use crate::wire::RPCS;

/// A fault. A fault with a count strikes that many times. Other faults last until
/// [`Fake::clear_faults`](crate::Fake::clear_faults). RPCs are named `Service.Method` as in
/// [`RPCS`](crate::RPCS).
#[derive(Clone, Debug)]
pub enum Fault {
    /// The `nth` call from now (1 is the next) fails and has no effect. A stream counts when it is
    /// opened.
    Fail {
        /// Name of the RPC.
        rpc: &'static str,
        /// Number of the call since the injection, from 1.
        nth: u64,
        /// Code of the answer.
        code: Code,
        /// Text of the answer.
        message: String,
    },
    /// Every call fails and has no effect.
    FailAll {
        /// Name of the RPC.
        rpc: &'static str,
        /// Code of the answer.
        code: Code,
        /// Text of the answer.
        message: String,
    },
    /// The `nth` unary call from now takes effect, but its answer is lost. The caller gets
    /// `UNAVAILABLE`.
    LoseAnswer {
        /// Name of the unary RPC.
        rpc: &'static str,
        /// Number of the call since the injection, from 1.
        nth: u64,
    },
    /// Every call is answered late. For `Content.Write`, every message is.
    Delay {
        /// Name of the RPC.
        rpc: &'static str,
        /// Delay of each answer.
        by: Duration,
    },
    /// One call is never answered: the next unary call, or the next `Content.Write` stream after
    /// `after` answered messages.
    Stall {
        /// Name of the RPC.
        rpc: &'static str,
        /// Messages that are answered before. Only for `Content.Write`.
        after: u64,
    },
    /// Calls wait for each other until this many have come. If they do not come in 20 s, those that
    /// wait fail. Later calls do not wait.
    Gather {
        /// Name of the RPC.
        rpc: &'static str,
        /// Number of calls that must be under way at the same time.
        calls: u64,
    },
    /// A `Content.Write` stream breaks with `UNAVAILABLE` after `after` bytes. The ingest keeps
    /// them.
    CutStream {
        /// Bytes that all streams accept before the cut.
        after: u64,
    },
    /// All connections break after `Content.Write` streams have accepted `after` bytes. The ingests
    /// keep them.
    CutConnections {
        /// Bytes that all streams accept before the cut.
        after: u64,
    },
    /// The disk has room for `free` more bytes of content. Aborted ingests return theirs.
    DiskFull {
        /// Bytes left.
        free: u64,
    },
    /// The next openings of any ingest ref are answered as if another stream held it.
    RefLocked {
        /// Number of openings.
        opens: u64,
    },
    /// After `writes` data messages, the lease of the writing stream disappears, and garbage is
    /// collected.
    LeaseVanishes {
        /// Data messages before that.
        writes: u64,
    },
    /// After `commits` commits, the lease of the committing stream disappears, and garbage is
    /// collected.
    LeaseVanishesAtCommit {
        /// Commits before that, the last of them included.
        commits: u64,
    },
    /// The next commits are answered as a digest mismatch, whatever the bytes are. The ingest
    /// stays.
    RefuseCommit {
        /// Number of commits.
        commits: u64,
    },
    /// Every commit takes longer.
    SlowCommit {
        /// Duration of a commit.
        by: Duration,
    },
    /// The next `Content.Read` calls see only the beginning of a blob, and end without an error.
    ShortRead {
        /// Bytes of the blob that are left.
        bytes: usize,
        /// Number of calls.
        reads: u64,
    },
    /// The commit of a snapshot skips the parent, as before 2.2.
    SkipParents,
}

/// The faults that are armed.
#[derive(Default)]
pub(crate) struct Faults {
    armed: Vec<Fault>,
    /// The calls that wait for each other, by RPC.
    gathering: BTreeMap<&'static str, Gathering>,
    /// Bytes left on the disk, if they are limited.
    disk: Option<u64>,
    /// Runs before each call, and before each message of a write stream.
    step: Option<Box<dyn FnMut() + Send>>,
}

/// Calls that wait for each other.
struct Gathering {
    /// Calls that have not come yet.
    left: u64,
    /// Closed when all have come.
    closed: Arc<Semaphore>,
}

/// The effect of faults on a call before it runs.
#[derive(Default)]
pub(crate) struct Obstacle {
    pub(crate) delay: Duration,
    pub(crate) stall: bool,
    pub(crate) gathering: Option<Arc<Semaphore>>,
    pub(crate) failure: Option<Status>,
}

/// The effect of faults on the bytes of one write message.
#[derive(Debug, PartialEq)]
pub(crate) enum Barrier {
    CutStream,
    CutConnections,
    DiskFull,
}

impl Faults {
    pub(crate) fn arm(&mut self, fault: Fault) {
        if let Some(rpc) = fault.rpc() {
            assert!(RPCS.contains(&rpc), "no RPC is called {rpc:?}: see RPCS");
        }
        match fault {
            Fault::DiskFull { free } => self.disk = Some(free),
            Fault::Gather { rpc, calls } => {
                let closed = Arc::new(Semaphore::new(0));
                self.gathering.insert(rpc, Gathering { left: calls, closed });
            }
            fault => self.armed.push(fault),
        }
    }

    pub(crate) fn at_each_step(&mut self, act: impl FnMut() + Send + 'static) {
        self.step = Some(Box::new(act));
    }

    fn step(&mut self) {
        if let Some(act) = &mut self.step {
            act();
        }
    }

    pub(crate) fn clear(&mut self) {
        self.gathering.values().for_each(|calls| calls.closed.close());
        *self = Faults::default();
    }

    /// Counts one call and returns its obstacle.
    pub(crate) fn on_call(&mut self, called: &str) -> Obstacle {
        self.step();
        let mut obstacle = Obstacle::default();
        if let Some(calls) = self.gathering.get_mut(called) {
            calls.left = calls.left.saturating_sub(1);
            obstacle.gathering = Some(Arc::clone(&calls.closed));
            if calls.left == 0 {
                calls.closed.close();
                self.gathering.remove(called);
            }
        }
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

    /// Returns true if the answer of this call is lost.
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

    /// Returns the obstacle for one message of a write stream, after `answered` messages of it.
    pub(crate) fn on_message(&mut self, answered: u64, commit: bool) -> Obstacle {
        self.step();
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

    /// Returns how many of `wanted` bytes are accepted, and the barrier for the rest.
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

    /// Returns bytes to a limited disk.
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

    /// Returns how many bytes this reading of a blob sees, if not all.
    pub(crate) fn short_read(&mut self) -> Option<usize> {
        self.armed.iter_mut().find_map(|fault| match fault {
            Fault::ShortRead { bytes, reads } if *reads > 0 => {
                *reads -= 1;
                Some(*bytes)
            }
            _ => None,
        })
    }

    /// Returns true if the commit of a snapshot skips the parent.
    pub(crate) fn skips_parents(&self) -> bool {
        self.armed.iter().any(|fault| matches!(fault, Fault::SkipParents))
    }

    /// Returns true if the lease of a stream disappears with this data message.
    pub(crate) fn lease_vanishes(&mut self) -> bool {
        self.is_last(|fault| match fault {
            Fault::LeaseVanishes { writes } => Some(writes),
            _ => None,
        })
    }

    /// Returns true if the lease of a stream disappears after this commit.
    pub(crate) fn lease_vanishes_at_commit(&mut self) -> bool {
        self.is_last(|fault| match fault {
            Fault::LeaseVanishesAtCommit { commits } => Some(commits),
            _ => None,
        })
    }

    /// Counts one off every fault with such a count. Returns true if that was the last count of a
    /// fault, which is then over.
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

    /// Counts one off the first such fault that is left.
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
            | Fault::Stall { rpc, .. }
            | Fault::Gather { rpc, .. } => Some(rpc),
            Fault::CutStream { .. }
            | Fault::CutConnections { .. }
            | Fault::DiskFull { .. }
            | Fault::RefLocked { .. }
            | Fault::LeaseVanishes { .. }
            | Fault::LeaseVanishesAtCommit { .. }
            | Fault::RefuseCommit { .. }
            | Fault::SlowCommit { .. }
            | Fault::ShortRead { .. }
            | Fault::SkipParents => None,
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
