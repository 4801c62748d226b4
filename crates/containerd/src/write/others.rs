//! Other importers that write the same blob: how to recognise them, and how long to wait. Pure.
//!
//! containerd does not say which blob an ingest will become. It gives only the name that the writer
//! chose. The importers that matter put the digest into the name. containerd's Go import (k0s, k3s,
//! `ctr`) names an ingest after the path in the archive, for image layouts
//! `tar-blobs/sha256/<hex>`. Pulls (CRI, `ctr`) use names like `layer-sha256:<hex>`. An ingest
//! whose writer died looks like an active one until it has made no progress for a while.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use oci_spec::image::Digest;

use crate::connect::Options;
use crate::content::{Ingest, ingest_ref};

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// Returns true if an ingest of another importer is about to become this blob, judged by its name
/// and size.
fn is_of_blob(ingest: &Ingest, digest: &Digest, size: u64) -> bool {
    ingest.reference != ingest_ref(digest)
        && ingest.reference.contains(digest.digest())
        && (ingest.total == size || ingest.total == 0)
        && ingest.offset <= size
}

/// Observed progress of the other importers of one blob.
pub(super) struct Others<'a> {
    digest: &'a Digest,
    size: u64,
    /// Limit without progress for an importer that still has bytes to write.
    patience: Duration,
    /// Limit for an importer that has sent all bytes and waits for its commit to reach the disk.
    commit_patience: Duration,
    /// Furthest offset among them, and the time since when.
    seen: Option<(u64, Instant)>,
}

impl<'a> Others<'a> {
    pub(super) fn of(digest: &'a Digest, size: u64, options: &Options) -> Others<'a> {
        Others {
            digest,
            size,
            patience: options.other_wait,
            commit_patience: options.lock_wait,
            seen: None,
        }
    }

    /// Takes the ingests of this moment. Returns the pause before the next look. Returns `None` if
    /// no importer is writing the blob, or if none makes progress.
    pub(super) fn look(&mut self, ingests: &[Ingest], now: Instant, clock: Timestamp) -> Option<Duration> {
        let theirs = ingests
            .iter()
            .filter(|ingest| is_of_blob(ingest, self.digest, self.size));
        let alive: Vec<&Ingest> = theirs.filter(|ingest| !self.is_stale(ingest, clock)).collect();
        let furthest = alive.iter().map(|ingest| ingest.offset).max()?;
        let since = match self.seen {
            Some((before, since)) if before == furthest => since,
            _ => now,
        };
        self.seen = Some((furthest, since));
        (now.saturating_duration_since(since) < self.patience_at(furthest)).then_some(PAUSE)
    }

    fn patience_at(&self, offset: u64) -> Duration {
        if offset == self.size {
            self.commit_patience
        } else {
            self.patience
        }
    }

    /// Returns true if the last write is so long ago that the ingest's writer must be gone. Without
    /// a time of the last write, returns false, and the ingest is watched.
    fn is_stale(&self, ingest: &Ingest, clock: Timestamp) -> bool {
        let idle = ingest.updated_at.map(|at| clock.duration_since(at));
        idle.is_some_and(|idle| {
            Duration::try_from(idle).is_ok_and(|idle| idle > self.patience_at(ingest.offset))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 100;

    fn digest() -> Digest {
        format!("sha256:{}", "ab".repeat(32)).parse().unwrap()
    }

    fn ingest(reference: &str, offset: u64, total: u64) -> Ingest {
        Ingest {
            reference: reference.to_owned(),
            offset,
            total,
            started_at: None,
            updated_at: None,
        }
    }

    #[test]
    fn an_ingest_is_of_the_blob_whose_digest_is_in_its_name() {
        let hex = "ab".repeat(32);
        let table = [
            (format!("tar-blobs/sha256/{hex}"), 7, SIZE, true),
            (format!("tar-./blobs/sha256/{hex}"), 7, SIZE, true),
            (format!("layer-sha256:{hex}"), 0, 0, true),
            (format!("tar-{hex}.tar"), SIZE, SIZE, true),
            // Another file of that name, an ingest of this client, another blob, a name without a
            // digest.
            (format!("tar-blobs/sha256/{hex}"), 7, SIZE + 1, false),
            (format!("compress-blob-sha256-{hex}"), SIZE + 1, 0, false),
            (format!("airgapd-sha256:{hex}"), 7, SIZE, false),
            (format!("tar-blobs/sha256/{}", "cd".repeat(32)), 7, SIZE, false),
            ("tar-abab/layer.tar".to_owned(), 7, SIZE, false),
        ];
        for (reference, offset, total, wanted) in table {
            let found = is_of_blob(&ingest(&reference, offset, total), &digest(), SIZE);
            assert_eq!(found, wanted, "{reference} {offset} of {total}");
        }
    }

    /// Looks once a second. Returns the number of seconds after which the wait ends.
    fn waited(offset_at: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let (digest, start) = (digest(), Instant::now());
        let mut others = Others::of(&digest, SIZE, &Options::default());
        let reference = format!("tar-blobs/sha256/{}", digest.digest());
        (0..1000).find(|second| {
            let found = offset_at(*second).map(|offset| ingest(&reference, offset, SIZE));
            let now = start + Duration::from_secs(*second);
            others
                .look(&Vec::from_iter(found), now, Timestamp::UNIX_EPOCH)
                .is_none()
        })
    }

    #[test]
    fn one_who_gets_on_is_waited_for_to_the_end_and_one_who_does_not_for_a_while() {
        let until = |end: u64, offset: u64| move |second| (second < end).then_some(offset);
        assert_eq!(waited(|_| None), Some(0), "no importer is there");
        assert_eq!(waited(until(3, 7)), Some(3), "it ends");
        assert_eq!(waited(|_| Some(7)), Some(10), "it stands still");
        assert_eq!(
            waited(|second| Some((second / 9).min(SIZE))),
            Some(960),
            "it gets on, and stops at the end"
        );
        assert_eq!(waited(|_| Some(SIZE)), Some(60), "its commit takes long");
    }

    #[test]
    fn what_was_left_behind_long_ago_is_not_waited_for() {
        let digest = digest();
        let clock: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let look = |offset, idle: i64| {
            let mut found = ingest(&format!("tar-blobs/sha256/{}", digest.digest()), offset, SIZE);
            found.updated_at = Some(clock - jiff::SignedDuration::from_secs(idle));
            let mut others = Others::of(&digest, SIZE, &Options::default());
            others.look(&[found], Instant::now(), clock).is_some()
        };
        assert!(look(7, 5) && look(SIZE, 50), "it was written to just now");
        assert!(!look(7, 11) && !look(SIZE, 61), "it was not");
        assert!(look(7, -3600), "a clock that was set back proves nothing");
    }
}
