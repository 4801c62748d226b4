//! What can go wrong between us and containerd, and what to do about it.
//!
//! This is the only place that reads gRPC codes and containerd's error texts. A reply that is not a
//! success becomes a [`Failure`] first; the call that got it may give it a meaning of its own (an
//! absent blob is an answer, not an error), and what is left becomes an [`Error`]. Codes and texts
//! stand in one file, however long, so that no other reads them.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use oci_spec::image::Digest;
use tonic::{Code, Status};

/// A call to containerd that did not do what it was asked to.
///
/// Variants name the thing and what was being attempted; causes are in the source chain. Ask
/// [`Error::recovery`] what to do next instead of matching on variants.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers on the socket, or the connection broke during the call.
    #[error("{}no connection to containerd on {}", trying(.attempt), socket.display())]
    #[non_exhaustive]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// What was being attempted.
        attempt: String,
        /// Why the connection could not be made or broke.
        source: Cause,
    },
    /// containerd holds the connection but does not answer.
    #[error("cannot {attempt}: containerd on {} has not moved for {} s", socket.display(), waited.as_secs())]
    #[non_exhaustive]
    Stalled {
        /// The socket that went quiet.
        socket: PathBuf,
        /// What was being attempted.
        attempt: String,
        /// How long it was waited for.
        waited: Duration,
    },
    /// Somebody else is writing this very blob, and got no further within the time we wait for
    /// that.
    #[error("blob {digest} is held by another client of containerd, which has not moved for {} s", waited.as_secs())]
    #[non_exhaustive]
    Locked {
        /// The blob.
        digest: Digest,
        /// How long it was waited for.
        waited: Duration,
        /// containerd's answer to the last try.
        source: Cause,
    },
    /// containerd's disk, or its inodes, or a quota are used up.
    #[error("cannot {attempt}: no space left for containerd")]
    #[non_exhaustive]
    Space {
        /// What was being attempted.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// containerd's disk fails, or was made read-only because it failed.
    #[error("cannot {attempt}: containerd's disk fails; the kernel's log has more")]
    #[non_exhaustive]
    Disk {
        /// What was being attempted.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// The lease is gone: expired and collected, or deleted by somebody.
    #[error("cannot {attempt}: lease {lease} is gone")]
    #[non_exhaustive]
    LeaseLost {
        /// The lease's id.
        lease: String,
        /// What was being attempted.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// Something that was there a moment ago is not, for instance collected as garbage.
    #[error("cannot {attempt}: {what} is not in containerd")]
    #[non_exhaustive]
    Gone {
        /// The missing thing.
        what: String,
        /// What was being attempted.
        attempt: String,
    },
    /// The bytes are not what the digest or the declared size promises.
    #[error("blob {digest}: {reason}")]
    #[non_exhaustive]
    Content {
        /// The blob.
        digest: Digest,
        /// What differs, with both values where they are known.
        reason: String,
    },
    /// The source of a blob could not be read.
    #[error("cannot read blob {digest} from its source")]
    #[non_exhaustive]
    Source {
        /// The blob.
        digest: Digest,
        /// The source's error.
        source: io::Error,
    },
    /// A name, digest or value that containerd could never take, or an answer we could never use.
    #[error("{0}")]
    #[non_exhaustive]
    Invalid(String),
    /// containerd understood and said no.
    #[error("cannot {attempt}: containerd refused")]
    #[non_exhaustive]
    Refused {
        /// What was being attempted.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// The request or the answer is larger than a message to or from containerd may be: 16 MiB,
    /// unless it is configured otherwise (`max_send_message_size`). The connection is as good as
    /// before, and asking again changes nothing.
    #[error(
        "cannot {attempt}: that is larger than containerd's messages may be on {} (max_send_message_size in containerd's \
         configuration allows more)",
        socket.display()
    )]
    #[non_exhaustive]
    TooLarge {
        /// The socket of that containerd.
        socket: PathBuf,
        /// What was being attempted.
        attempt: String,
        /// containerd's answer, or our own finding, with both sizes.
        source: Cause,
    },
    /// containerd failed at it; trying again later may help.
    #[error("cannot {attempt}: containerd failed")]
    #[non_exhaustive]
    Failed {
        /// What was being attempted.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
}

/// What a connection is made for. To have connected is not worth a word beside that there is no
/// connection.
const CONNECT: &str = "connect";

fn trying(attempt: &str) -> String {
    match attempt {
        CONNECT => String::new(),
        _ => format!("cannot {attempt}: "),
    }
}

/// What to do after an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Try again with a backoff: containerd is restarting, busy, or changed under us.
    Transient,
    /// Try again when there is more space; what was half written has been taken back.
    Space,
    /// Try again with a backoff, and loudly: a disk fails, containerd's or the one that is read
    /// from.
    Disk,
    /// Make a new lease and start the bundle again.
    LeaseLost,
    /// The bundle is bad; trying again is pointless until the file changes.
    Content,
    /// Somebody has to change something: permission, configuration, version.
    Permanent,
}

impl Error {
    /// Says what to do about this error.
    pub fn recovery(&self) -> Recovery {
        match self {
            Error::Unreachable { .. }
            | Error::Stalled { .. }
            | Error::Locked { .. }
            | Error::Gone { .. }
            | Error::Failed { .. } => Recovery::Transient,
            Error::Space { .. } => Recovery::Space,
            Error::Disk { .. } => Recovery::Disk,
            Error::LeaseLost { .. } => Recovery::LeaseLost,
            Error::Content { .. } => Recovery::Content,
            Error::Source { source, .. } => match source.kind() {
                io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData => Recovery::Content,
                _ if is_disk_failure(source) => Recovery::Disk,
                _ => Recovery::Transient,
            },
            Error::Invalid(_) | Error::Refused { .. } | Error::TooLarge { .. } => Recovery::Permanent,
        }
    }

    pub(crate) fn content(digest: &Digest, reason: impl Into<String>) -> Error {
        Error::Content {
            digest: digest.clone(),
            reason: reason.into(),
        }
    }

    pub(crate) fn source(digest: &Digest, source: io::Error) -> Error {
        Error::Source {
            digest: digest.clone(),
            source,
        }
    }

    pub(crate) fn gone(what: impl Into<String>, attempt: impl Into<String>) -> Error {
        Error::Gone {
            what: what.into(),
            attempt: attempt.into(),
        }
    }
}

/// containerd's own words, or the transport's, as the source of an [`Error`].
#[derive(Debug)]
pub struct Cause {
    text: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| &**source as &(dyn std::error::Error + 'static))
    }
}

impl From<tonic::transport::Error> for Cause {
    fn from(error: tonic::transport::Error) -> Cause {
        Cause::of_transport(&error)
    }
}

impl Cause {
    /// Why a connection could not be made or broke, in the system's words: those of the layers
    /// above say nothing else.
    fn of_transport(error: &(dyn std::error::Error + 'static)) -> Cause {
        const LAYERS: [&str; 4] = [
            "transport error",
            "tcp connect error",
            "error trying to connect",
            "client error (Connect)",
        ];
        let mut next = Some(error);
        while let Some(link) = next {
            let text = link.to_string();
            if !LAYERS.contains(&text.as_str()) {
                let source = deeper(link);
                return Cause { text, source };
            }
            next = link.source();
        }
        Cause {
            text: "it broke".to_owned(),
            source: None,
        }
    }
}

impl From<Status> for Cause {
    fn from(status: Status) -> Cause {
        if std::error::Error::source(&status).is_some() {
            return Cause::of_transport(&status);
        }
        tracing::debug!(code = ?status.code(), message = status.message(), "containerd's own words");
        let (meaning, words) = meaning(status.code()).unzip();
        let text = match (meaning, plain(status.message(), words.unwrap_or_default())) {
            (Some(meaning), "") => meaning.to_owned(),
            (Some(meaning), text) => format!("{meaning} ({text})"),
            (None, "") => "it gives no reason".to_owned(),
            (None, text) => text.to_owned(),
        };
        Cause { source: None, text }
    }
}

/// The errors below `error` as one chain of texts, so that no foreign type leaves this crate. Links
/// that only repeat the one above are left out.
fn deeper(error: &dyn std::error::Error) -> Option<Box<dyn std::error::Error + Send + Sync>> {
    let above = error.to_string();
    let mut next = error.source();
    while let Some(link) = next {
        let text = link.to_string();
        if !above.contains(&text) {
            return Some(Box::new(Cause {
                text,
                source: deeper(link),
            }));
        }
        next = link.source();
    }
    None
}

/// The size of a message that was too large, and how large it may be, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Oversize {
    pub(crate) size: u64,
    pub(crate) limit: u64,
}

/// An RPC without success, before the caller has given it a meaning.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An answer of containerd, or an error of the transport dressed up as one.
    Status(Box<Status>),
    /// No answer in time.
    Deadline(Duration),
    /// The server ended a stream before its last answer.
    Ended,
    /// Each try was undone by somebody else.
    Contended,
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure::Status(Box::new(status))
    }
}

impl Failure {
    pub(crate) fn is_not_found(&self) -> bool {
        self.code() == Some(Code::NotFound) && !self.is_lease_lost()
    }

    pub(crate) fn is_already_exists(&self) -> bool {
        self.code() == Some(Code::AlreadyExists)
    }

    pub(crate) fn is_unimplemented(&self) -> bool {
        self.code() == Some(Code::Unimplemented)
    }

    pub(crate) fn is_failed_precondition(&self) -> bool {
        self.code() == Some(Code::FailedPrecondition)
    }

    /// A write at another place than the ingest's end.
    pub(crate) fn is_out_of_range(&self) -> bool {
        self.code() == Some(Code::OutOfRange)
    }

    /// UNAVAILABLE means a locked ingest or a dead daemon; only the text tells them apart. Where
    /// containerd 2.0 and later notice it with the first byte only, the text is all there is:
    /// "truncate failed: ref ... locked for 14ms (...): unavailable" is UNKNOWN.
    pub(crate) fn is_locked(&self) -> bool {
        match self.code() {
            Some(Code::Unavailable) => self.message().contains("locked"),
            Some(Code::Unknown) => {
                self.message().contains(" locked for ") && self.message().ends_with("unavailable")
            }
            _ => false,
        }
    }

    /// The digest of what was written is not the expected one. The size would have been another
    /// text.
    pub(crate) fn is_digest_mismatch(&self) -> bool {
        self.is_failed_precondition() && self.message().contains("unexpected commit digest")
    }

    /// A message is larger than the sender or the receiver allows: containerd's limit, or ours.
    pub(crate) fn is_too_large(&self) -> bool {
        match self.code() {
            Some(Code::ResourceExhausted) => !self.is_space(),
            Some(Code::OutOfRange) => self.message().contains("message length too large"),
            _ => false,
        }
    }

    /// How large the message would have been that was too large, where the refusal tells:
    /// `(45310080 vs. 16777216)` in containerd's words, `found 45310080 bytes, the limit is:
    /// 33554432 bytes` in those of our own transport.
    pub(crate) fn oversize(&self) -> Option<Oversize> {
        let mut numbers = self
            .message()
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|digits| digits.parse::<u64>().ok());
        let (size, limit) = (numbers.next()?, numbers.next()?);
        (self.is_too_large() && size > limit && limit > 0).then_some(Oversize { size, limit })
    }

    pub(crate) fn is_space(&self) -> bool {
        // ENOSPC comes as UNKNOWN with the system's text; the codes for it are not used by
        // containerd.
        const TEXTS: [&str; 3] = ["no space left on device", "disk quota exceeded", "file too large"];
        !self.is_transport() && TEXTS.iter().any(|text| self.message().contains(text))
    }

    /// EIO, EROFS or EUCLEAN, as containerd passes them on.
    pub(crate) fn is_disk(&self) -> bool {
        const TEXTS: [&str; 3] = [
            "input/output error",
            "read-only file system",
            "structure needs cleaning",
        ];
        !self.is_transport() && TEXTS.iter().any(|text| self.message().contains(text))
    }

    pub(crate) fn is_lease_lost(&self) -> bool {
        self.code() == Some(Code::NotFound) && self.message().contains("lease")
    }

    /// Whether containerd's answer to having to unpack a layer is about the layer. What is about
    /// the machine comes under the same codes, and is told by the system's words and by those that
    /// a failed mount begins with.
    pub(crate) fn blames_the_layer(&self) -> bool {
        const MACHINE: [&str; 8] = [
            "failed to mount",
            "operation not permitted",
            "permission denied",
            "operation not supported",
            "cannot allocate memory",
            "too many open files",
            "resource temporarily unavailable",
            "context canceled",
        ];
        let by_code = match self.code() {
            Some(
                Code::Unknown
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::DataLoss,
            ) => true,
            Some(_) | None => false,
        };
        let by_machine = MACHINE.iter().any(|text| self.message().contains(text));
        by_code && !by_machine && !self.is_space() && !self.is_disk()
    }

    /// Why containerd does not take the bytes of a blob at its commit, by its "unexpected commit
    /// digest X, expected Y" and "unexpected commit size N, expected M".
    pub(crate) fn reason_of_bytes(&self, digest: &Digest) -> String {
        let found = |what: &str| {
            let (_, rest) = self.message().split_once(what)?;
            rest.split([',', ' ']).next().filter(|found| !found.is_empty())
        };
        let other = found("unexpected commit digest ").and_then(|other| basics::digest::parse(other).ok());
        match (other, found("unexpected commit size ")) {
            (Some(other), _) => basics::digest::mismatch(digest, &other),
            (None, Some(size)) => format!("{digest} has {size} bytes in containerd, and should have others"),
            (None, None) => format!(
                "containerd does not take the bytes of {digest}: {}",
                plain(self.message(), "failed precondition")
            ),
        }
    }

    /// Why a layer cannot be unpacked, without the folder that containerd tried it in.
    pub(crate) fn reason_of_unpacking(&self) -> &str {
        let words = self.code().and_then(meaning).map_or("", |(_, words)| words);
        let message = plain(self.message(), words);
        let in_folder = message.strip_prefix("mount callback failed on ");
        in_folder
            .and_then(|rest| rest.split_once(": "))
            .map_or(message, |(_, reason)| reason)
    }

    /// The connection failed, rather than containerd answering. Only then has the status a local
    /// source.
    pub(crate) fn is_transport(&self) -> bool {
        matches!(self, Failure::Status(status) if std::error::Error::source(status.as_ref()).is_some())
    }

    /// containerd's text, or nothing.
    pub(crate) fn message(&self) -> &str {
        match self {
            Failure::Status(status) => status.message(),
            Failure::Deadline(_) | Failure::Ended | Failure::Contended => "",
        }
    }

    fn code(&self) -> Option<Code> {
        match self {
            Failure::Status(status) if !self.is_transport() => Some(status.code()),
            _ => None,
        }
    }

    /// Whether containerd is there and answered.
    pub(crate) fn is_answer(&self) -> bool {
        self.code().is_some()
    }

    /// A locked ingest that was waited for in vain.
    pub(crate) fn into_locked(self, digest: &Digest, waited: Duration) -> Error {
        Error::Locked {
            digest: digest.clone(),
            waited,
            source: self.into_cause(),
        }
    }

    /// A failure found to come from the lease's end.
    pub(crate) fn into_lease_lost(self, lease: &str, attempt: String) -> Error {
        Error::LeaseLost {
            lease: lease.to_owned(),
            attempt,
            source: self.into_cause(),
        }
    }

    fn into_cause(self) -> Cause {
        let text = match self {
            Failure::Status(status) => return Cause::from(*status),
            Failure::Deadline(waited) => format!("no answer for {} s", waited.as_secs()),
            Failure::Ended => "the stream ended before its last answer".to_owned(),
            Failure::Contended => "others keep changing it at the same time".to_owned(),
        };
        Cause { text, source: None }
    }

    /// Gives the failure its general meaning. `lease` is the one the call was made under.
    pub(crate) fn into_error(self, socket: &Path, lease: Option<&str>, attempt: impl Into<String>) -> Error {
        let (attempt, socket) = (attempt.into(), socket.to_path_buf());
        if let Failure::Deadline(waited) = self {
            return Error::Stalled {
                socket,
                attempt,
                waited,
            };
        }
        if let Some(lease) = lease.filter(|_| self.is_lease_lost()) {
            return self.into_lease_lost(lease, attempt);
        }
        let (transport, space, disk) = (self.is_transport(), self.is_space(), self.is_disk());
        let (permanent, too_large) = (self.code().is_some_and(is_permanent), self.is_too_large());
        let source = self.into_cause();
        match (transport, space, permanent) {
            (true, _, _) => Error::Unreachable {
                socket,
                attempt,
                source,
            },
            (_, true, _) => Error::Space { attempt, source },
            _ if disk => Error::Disk { attempt, source },
            _ if too_large => Error::TooLarge {
                socket,
                attempt,
                source,
            },
            (_, _, true) => Error::Refused { attempt, source },
            _ => Error::Failed { attempt, source },
        }
    }
}

/// Whether the system says that a disk fails, rather than that something is not as it should be:
/// EIO, EROFS (file systems are made read-only when they fail) or EUCLEAN (they are found to be
/// damaged).
pub fn is_disk_failure(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::IO | Errno::ROFS | Errno::UCLEAN))
}

/// Answers that stay the same however often one asks. UNKNOWN is not among them: containerd passes
/// most of its own trouble (a database closing at shutdown, an input/output error) on under it.
fn is_permanent(code: Code) -> bool {
    match code {
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::ResourceExhausted => true,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::Aborted
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => false,
    }
}

/// What an answer means, where its code says more than its text, and the words by which
/// containerd's libraries repeat the code at the end of the text. "It" is containerd.
fn meaning(code: Code) -> Option<(&'static str, &'static str)> {
    match code {
        Code::Unavailable => Some(("it is starting, stopping or busy", "unavailable")),
        Code::Unimplemented => Some(("it does not know this request", "not implemented")),
        Code::PermissionDenied => Some(("it does not allow that", "permission denied")),
        Code::Unauthenticated => Some(("it does not allow that", "unauthenticated")),
        Code::Cancelled => Some(("it broke off", "context canceled")),
        Code::Aborted => Some(("something else got in between", "aborted")),
        Code::DeadlineExceeded => Some(("it took too long", "context deadline exceeded")),
        Code::FailedPrecondition => Some(("something has to be different before", "failed precondition")),
        Code::ResourceExhausted => Some(("one of its own limits is reached", "resource exhausted")),
        Code::NotFound => Some(("it does not have that", "not found")),
        Code::AlreadyExists => Some(("it has that already", "already exists")),
        Code::InvalidArgument => Some(("it does not take that", "invalid argument")),
        Code::Ok | Code::Unknown | Code::OutOfRange | Code::Internal | Code::DataLoss => None,
    }
}

/// A text of containerd without what gRPC in Go puts before it, and without the words for its code
/// at the end.
fn plain<'t>(text: &'t str, words: &str) -> &'t str {
    let mut text = text.trim();
    while let Some((_, rest)) = text
        .strip_prefix("rpc error: code = ")
        .and_then(|rest| rest.split_once(" desc = "))
    {
        text = rest;
    }
    if words.is_empty() {
        return text;
    }
    loop {
        match text.strip_suffix(words) {
            Some("") => return "",
            Some(before) if before.ends_with(": ") => text = &before[..before.len() - 2],
            Some(_) | None => return text,
        }
    }
}

#[cfg(test)]
mod tests;
