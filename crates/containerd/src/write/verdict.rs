//! The meaning of containerd's answers during a write: the state of an ingest, and the reaction to
//! a failure. Pure.

use containerd_client::services::v1::WriteContentResponse;

use crate::error::Failure;
use crate::wire::size_from_wire;

/// The part of its blob that an opened ingest has.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing.
    Empty,
    /// As many bytes as the blob has. COMMIT shows whether they are the right bytes.
    Whole,
    /// A beginning, not yet compared with the source.
    Beginning { offset: u64, digest: String },
    /// More bytes than the blob has.
    TooMuch { offset: u64 },
}

impl Standing {
    pub(super) fn of(answer: &WriteContentResponse, size: u64) -> Standing {
        let offset = size_from_wire(answer.offset);
        match offset {
            _ if offset > size => Standing::TooMuch { offset },
            _ if offset == size && size > 0 => Standing::Whole,
            0 => Standing::Empty,
            _ => Standing::Beginning {
                offset,
                digest: answer.digest.clone(),
            },
        }
    }
}

/// The origin of an ingest's bytes at a failed commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Proof {
    /// This pass read all bytes from the source, and sent or compared them.
    Ours,
    /// Some bytes have another origin, or the origin is unknown.
    Foreign,
}

/// The next step after a transfer or commit that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The blob exists.
    Present,
    /// Abort the ingest and start another pass, for this reason.
    CleanAndRetry(&'static str),
    /// Abort the ingest. The source has the wrong bytes.
    BadContent,
    /// Abort the ingest and fail.
    CleanAndFail,
    /// Keep the ingest for a later write, and fail.
    KeepAndFail,
}

/// Judges a failed transfer or commit. The `last` pass asks for no other.
pub(super) fn verdict(failure: &Failure, proof: Proof, last: bool) -> Verdict {
    if failure.is_already_exists() {
        return Verdict::Present;
    }
    if failure.is_space() {
        return Verdict::CleanAndFail;
    }
    if failure.is_failed_precondition() {
        // If all bytes came from the source and are wrong, sending them again changes nothing. A
        // wrong size is different: the source's bytes may have the tail of an earlier ingest behind
        // them, which was declared with another size.
        let hopeless = last || (proof == Proof::Ours && failure.is_digest_mismatch());
        return if hopeless {
            Verdict::BadContent
        } else {
            Verdict::CleanAndRetry("the ingest had bad bytes")
        };
    }
    if failure.is_out_of_range() {
        // containerd 1.6 loses count of an ingest whose blob was deleted and not collected yet.
        return if last {
            Verdict::CleanAndFail
        } else {
            Verdict::CleanAndRetry("the ingest lost its place")
        };
    }
    Verdict::KeepAndFail
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tonic::Status;

    use super::*;

    fn answer(offset: i64) -> WriteContentResponse {
        WriteContentResponse {
            offset,
            digest: "sha256:d".to_owned(),
            ..WriteContentResponse::default()
        }
    }

    #[test]
    fn an_ingest_is_judged_by_its_length() {
        let beginning = Standing::Beginning {
            offset: 4,
            digest: "sha256:d".to_owned(),
        };
        for (offset, size, standing) in [
            (0, 10, Standing::Empty),
            (0, 0, Standing::Empty),
            (4, 10, beginning),
            (10, 10, Standing::Whole),
            (11, 10, Standing::TooMuch { offset: 11 }),
            (1, 0, Standing::TooMuch { offset: 1 }),
        ] {
            assert_eq!(
                Standing::of(&answer(offset), size),
                standing,
                "{offset} of {size}"
            );
        }
    }

    #[test]
    fn a_failure_is_worth_another_pass_only_when_that_can_change_something() {
        use Proof::{Foreign, Ours};
        let mismatch = || Status::failed_precondition("unexpected commit digest sha256:a, expected sha256:b");
        let size = || Status::failed_precondition("unexpected commit size 90, expected 10");
        let space = || Status::unknown("write /x: no space left on device");
        let retry = |reason| Verdict::CleanAndRetry(reason);
        for (status, proof, last, expected) in [
            (Status::already_exists("x"), Ours, true, Verdict::Present),
            (mismatch(), Ours, false, Verdict::BadContent),
            (mismatch(), Foreign, false, retry("the ingest had bad bytes")),
            (mismatch(), Foreign, true, Verdict::BadContent),
            (size(), Ours, false, retry("the ingest had bad bytes")),
            (size(), Ours, true, Verdict::BadContent),
            (
                Status::out_of_range("write @5 must occur at 9"),
                Ours,
                false,
                retry("the ingest lost its place"),
            ),
            (
                Status::out_of_range("write @5 must occur at 9"),
                Ours,
                true,
                Verdict::CleanAndFail,
            ),
            (space(), Ours, false, Verdict::CleanAndFail),
            (
                Status::not_found("lease does not exist: not found"),
                Ours,
                false,
                Verdict::KeepAndFail,
            ),
            (
                Status::unavailable("transport is closing"),
                Ours,
                false,
                Verdict::KeepAndFail,
            ),
            (
                Status::unknown("context canceled"),
                Ours,
                false,
                Verdict::KeepAndFail,
            ),
        ] {
            let text = format!("{status:?} {proof:?} {last}");
            assert_eq!(verdict(&Failure::from(status), proof, last), expected, "{text}");
        }
        assert_eq!(
            verdict(&Failure::Deadline(Duration::from_secs(1)), Ours, true),
            Verdict::KeepAndFail
        );
        assert_eq!(verdict(&Failure::Ended, Ours, true), Verdict::KeepAndFail);
    }
}
