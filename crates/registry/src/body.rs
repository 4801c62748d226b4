//! The body of an answer: its bytes, their speed, and their end.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

use crate::Error;
use crate::locations::Location;
use crate::subject::Subject;

/// Longest silence of a connection. A connection without bytes for this long is broken.
pub(crate) const SILENCE: Duration = Duration::from_secs(60);

/// Fewest bytes that must arrive while the reader waits for [`SILENCE`]. A registry that sends less
/// could keep a transfer alive forever. This is 1 KiB a second, which is slower than any line.
const LEAST: u64 = 60 << 10;

/// The speed of bytes while the reader waits for them. Time in which the reader is busy does not
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
/// Returns an error if the connection breaks, if it is too slow, or after more than `limit` bytes.
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
            return Err(subject.unusable(format!("{host} sent more than {limit} bytes")));
        }
    }
    Ok(bytes)
}

/// A blob that is being transferred, from the requested offset.
pub(crate) struct Body {
    response: Response,
    /// Bytes to drop, if the registry does not support ranges.
    skip: u64,
    pace: Pace,
    what: String,
    location: Location,
}

impl Body {
    /// Returns the body of an answer about `subject`. The first `skip` bytes are dropped.
    pub(crate) fn new(response: Response, skip: u64, subject: Subject<'_>) -> Self {
        Self {
            response,
            skip,
            pace: Pace::default(),
            what: subject.what.to_owned(),
            location: subject.location.clone(),
        }
    }

    /// Returns the next bytes, or `None` at the end. Cancel safe: no bytes are lost.
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

    /// Returns the error for a body that ends too early.
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
