//! The body of an answer: its bytes as they come, how fast they come, and where they end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

use crate::Error;
use crate::locations::Location;
use crate::subject::Subject;

/// A connection on which nothing comes for this long is broken.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// The least bytes that come within [`SILENCE`] of waiting: a registry that sends less keeps a
/// transfer alive for ever without any end. 1 KiB a second is less than any line has.
const LEAST: u64 = 60 << 10;

/// How fast bytes come while they are waited for. The time in which the reader is busy does not
/// count.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    came: u64,
}

impl Pace {
    /// Waits for the next bytes.
    async fn watch<E>(
        &mut self,
        chunk: impl Future<Output = Result<Option<Bytes>, E>>,
    ) -> Result<Option<Bytes>, E> {
        let began = Instant::now();
        let chunk = chunk.await;
        let came = chunk.as_ref().ok().and_then(Option::as_ref).map_or(0, Bytes::len);
        self.note(began.elapsed(), came as u64);
        chunk
    }

    fn note(&mut self, waited: Duration, came: u64) {
        if self.waited >= SILENCE && self.came >= LEAST {
            *self = Self::default();
        }
        self.waited += waited;
        self.came += came;
    }

    fn is_too_slow(&self) -> bool {
        self.waited >= SILENCE && self.came < LEAST
    }
}

/// Reads an answer to its end.
///
/// # Errors
///
/// When the connection breaks, the bytes drip, or there are more than `limit`.
pub(crate) async fn whole(
    mut response: Response,
    limit: u64,
    subject: Subject<'_>,
) -> Result<Vec<u8>, Error> {
    let (mut bytes, mut pace) = (Vec::new(), Pace::default());
    while let Some(chunk) = pace
        .watch(response.chunk())
        .await
        .map_err(|error| subject.broken(error))?
    {
        if pace.is_too_slow() {
            return Err(subject.too_slow());
        }
        bytes.extend_from_slice(&chunk);
        if bytes.len() as u64 > limit {
            let host = &subject.location.host;
            return Err(subject.unusable(format!("{host} sends more than {limit} bytes")));
        }
    }
    Ok(bytes)
}

/// A blob on its way, from the offset that was asked for.
pub(crate) struct Body {
    response: Response,
    /// Bytes to pass over, where the registry does not know ranges.
    skip: u64,
    pace: Pace,
    what: String,
    location: Location,
}

impl Body {
    /// The body of an answer about `subject`, of whose bytes the first `skip` are passed over.
    pub(crate) fn new(response: Response, skip: u64, subject: Subject<'_>) -> Self {
        Self {
            response,
            skip,
            pace: Pace::default(),
            what: subject.what.to_owned(),
            location: subject.location.clone(),
        }
    }

    /// The next bytes; none at the end. Safe to cancel, which loses nothing.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let chunk = self.pace.watch(self.response.chunk()).await;
            let chunk = chunk.map_err(|error| self.subject().broken(error))?;
            if self.pace.is_too_slow() {
                return Err(self.subject().too_slow());
            }
            let Some(mut chunk) = chunk else {
                return Ok(None);
            };
            let skipped = usize::try_from(self.skip).map_or(chunk.len(), |skip| skip.min(chunk.len()));
            self.skip -= skipped as u64;
            let _ = chunk.split_to(skipped);
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }

    /// The error of a body that ends too soon.
    pub(crate) fn short(&self, got: u64, expected: u64) -> Error {
        Error::Short {
            what: self.what.clone(),
            host: self.location.host.clone(),
            got,
            expected,
        }
    }

    fn subject(&self) -> Subject<'_> {
        Subject {
            what: &self.what,
            location: &self.location,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drip_is_told_from_a_slow_line() {
        let second = Duration::from_secs(1);
        let mut drip = Pace::default();
        let seconds = (1..).find(|_| {
            drip.note(second, 100);
            drip.is_too_slow()
        });
        assert_eq!(seconds, Some(60));
        // A slow line, a busy reader, and a line that was fast before.
        let mut slow = Pace::default();
        let mut busy = Pace::default();
        for _ in 0..600 {
            slow.note(second, 2 << 10);
            busy.note(Duration::from_millis(1), 10);
            assert!(!slow.is_too_slow() && !busy.is_too_slow());
        }
        let mut stalls = Pace::default();
        stalls.note(second * 60, 1 << 30);
        assert!(!stalls.is_too_slow());
        stalls.note(second * 60, 1);
        assert!(stalls.is_too_slow());
    }
}
