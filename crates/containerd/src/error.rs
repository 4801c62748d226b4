//! The errors between this client and containerd, and the way to recover from each.
//!
//! Only this file reads gRPC codes and containerd's error texts, so it is long. A reply without
//! success becomes a [`Failure`] first. The caller may give it a meaning of its own: an absent blob
//! is an answer, not an error. Every other failure becomes an [`Error`].

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use oci_spec::image::Digest;
use tonic::{Code, Status};

/// A call to containerd that failed.
///
/// Variants name the thing and the attempted action. Causes are in the source chain.
/// [`Error::recovery`] says what to do next, so callers need not match on variants.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing answers on the socket, or the connection broke during the call.
    #[error("{}no connection to containerd on {}", trying(.attempt), socket.display())]
    #[non_exhaustive]
    Unreachable {
        /// The socket that was tried.
        socket: PathBuf,
        /// The attempted action.
        attempt: String,
        /// The reason why the connection could not be made or broke.
        source: Cause,
    },
    /// containerd holds the connection but does not answer.
    #[error("cannot {attempt}: containerd on {} has made no progress for {} s", socket.display(), waited.as_secs())]
    #[non_exhaustive]
    Stalled {
        /// The socket that went quiet.
        socket: PathBuf,
        /// The attempted action.
        attempt: String,
        /// Time without an answer.
        waited: Duration,
    },
    /// Another client is writing the same blob and made no progress for
    /// [`crate::Options::lock_wait`].
    #[error("another client of containerd is writing blob {digest} and has made no progress for {} s", waited.as_secs())]
    #[non_exhaustive]
    Locked {
        /// The blob.
        digest: Digest,
        /// Time without progress of the other client.
        waited: Duration,
        /// containerd's answer to the last try.
        source: Cause,
    },
    /// containerd's disk, or its inodes, or a quota are used up.
    #[error("cannot {attempt}: no space left for containerd")]
    #[non_exhaustive]
    Space {
        /// The attempted action.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// containerd's disk fails, or was made read-only because it failed.
    #[error("cannot {attempt}: containerd's disk fails (see the kernel log)")]
    #[non_exhaustive]
    Disk {
        /// The attempted action.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// The lease is gone: it expired, or another client deleted it.
    #[error("cannot {attempt}: lease {lease} is gone")]
    #[non_exhaustive]
    LeaseLost {
        /// The lease's id.
        lease: String,
        /// The attempted action.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// A thing that existed a moment ago is gone, for instance collected as garbage.
    #[error("cannot {attempt}: {what} is not in containerd")]
    #[non_exhaustive]
    Gone {
        /// The missing thing.
        what: String,
        /// The attempted action.
        attempt: String,
    },
    /// The bytes are not what the digest or the declared size promises.
    #[error("blob {digest}: {reason}")]
    #[non_exhaustive]
    Content {
        /// The blob.
        digest: Digest,
        /// The difference, with both values if they are known.
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
    /// A name, digest or value that containerd never accepts, or an answer that this client cannot
    /// use.
    #[error("{0}")]
    #[non_exhaustive]
    Invalid(String),
    /// containerd understood the request and refused it.
    #[error("cannot {attempt}: containerd refused")]
    #[non_exhaustive]
    Refused {
        /// The attempted action.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
    /// The request or the answer is larger than a message to or from containerd may be. The limit
    /// is 16 MiB, unless it is configured otherwise (`max_send_message_size`). The connection still
    /// works, and a retry changes nothing.
    #[error(
        "cannot {attempt}: the message exceeds the size limit of containerd on {} (raise max_send_message_size in \
         containerd's configuration)",
        socket.display()
    )]
    #[non_exhaustive]
    TooLarge {
        /// The socket of that containerd.
        socket: PathBuf,
        /// The attempted action.
        attempt: String,
        /// containerd's answer, or this client's own finding, with both sizes.
        source: Cause,
    },
    /// containerd failed at the request. A later retry may help.
    #[error("cannot {attempt}: containerd failed")]
    #[non_exhaustive]
    Failed {
        /// The attempted action.
        attempt: String,
        /// containerd's answer.
        source: Cause,
    },
}

/// The attempt to connect. Its error leaves this word out, because "no connection" already says it.
const CONNECT: &str = "connect";

fn trying(attempt: &str) -> String {
    match attempt {
        CONNECT => String::new(),
        _ => format!("cannot {attempt}: "),
    }
}

/// The way to recover from an [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Retry with a backoff: containerd is restarting or busy, or another client changed its
    /// content.
    Transient,
    /// Retry when there is more space. The client has already removed the half-written blob.
    Space,
    /// Retry with a backoff, and warn: a disk fails, either containerd's or the bundle's.
    Disk,
    /// Make a new lease and start the bundle again.
    LeaseLost,
    /// The bundle is bad. A retry is pointless until the file changes.
    Content,
    /// The operator has to change something: permission, configuration, version.
    Permanent,
}

impl Error {
    /// Returns the way to recover from this error.
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
                // The bytes of a pipe have gone by. The bundle is sound, and its file helps.
                io::ErrorKind::NotSeekable => Recovery::Permanent,
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
    /// Returns the system's words for a broken connection. The layers above the system add nothing.
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
            text: "the connection broke".to_owned(),
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

/// Returns the errors below `error` as one chain of texts, so that no foreign type leaves this
/// crate. Leaves out links that only repeat the link above.
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

/// The size of a message that was too large, and its limit, in bytes.
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
    /// Another client undid each attempt.
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

    /// Returns true if the write was at another place than the ingest's end.
    pub(crate) fn is_out_of_range(&self) -> bool {
        self.code() == Some(Code::OutOfRange)
    }

    /// Returns true if another client has locked the ingest.
    ///
    /// UNAVAILABLE means a locked ingest or a dead daemon, and only the text tells them apart.
    /// containerd 2.0 and later may notice the lock only at the first byte. Then the code is
    /// UNKNOWN, and the text is "truncate failed: ref ... locked for 14ms (...): unavailable".
    pub(crate) fn is_locked(&self) -> bool {
        match self.code() {
            Some(Code::Unavailable) => self.message().contains("locked"),
            Some(Code::Unknown) => {
                self.message().contains(" locked for ") && self.message().ends_with("unavailable")
            }
            _ => false,
        }
    }

    /// Returns true if the digest of the written bytes is not the expected digest. A wrong size has
    /// another text.
    pub(crate) fn is_digest_mismatch(&self) -> bool {
        self.is_failed_precondition() && self.message().contains("unexpected commit digest")
    }

    /// Returns true if a message is larger than its sender or receiver allows. The limit is
    /// containerd's or this client's.
    pub(crate) fn is_too_large(&self) -> bool {
        match self.code() {
            Some(Code::ResourceExhausted) => !self.is_space(),
            Some(Code::OutOfRange) => self.message().contains("message length too large"),
            _ => false,
        }
    }

    /// Returns the size that the message would have had, and its limit, if the refusal gives them.
    ///
    /// containerd writes `(45310080 vs. 16777216)`. The transport of this client writes `found
    /// 45310080 bytes, the limit is: 33554432 bytes`.
    pub(crate) fn oversize(&self) -> Option<Oversize> {
        let mut numbers = self
            .message()
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|digits| digits.parse::<u64>().ok());
        let (size, limit) = (numbers.next()?, numbers.next()?);
        (self.is_too_large() && size > limit && limit > 0).then_some(Oversize { size, limit })
    }

    pub(crate) fn is_space(&self) -> bool {
        // ENOSPC comes as UNKNOWN with the system's text. containerd does not use the codes for it.
        const TEXTS: [&str; 3] = ["no space left on device", "disk quota exceeded", "file too large"];
        !self.is_transport() && TEXTS.iter().any(|text| self.message().contains(text))
    }

    /// Returns true if containerd has found out that it has lost bytes.
    pub(crate) fn is_data_loss(&self) -> bool {
        self.code() == Some(Code::DataLoss)
    }

    /// Returns true for EIO, EROFS and EUCLEAN, as containerd passes them on.
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

    /// Returns true if the layer is to blame for a failed unpacking.
    ///
    /// Failures of the machine come under the same codes. The system's words tell them apart, and
    /// the words at the start of a failed mount.
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

    /// Returns the reason why containerd refused the bytes of a blob at its commit.
    ///
    /// containerd writes "unexpected commit digest X, expected Y" or "unexpected commit size N,
    /// expected M".
    pub(crate) fn reason_of_bytes(&self, digest: &Digest) -> String {
        let found = |what: &str| {
            let (_, rest) = self.message().split_once(what)?;
            rest.split([',', ' ']).next().filter(|found| !found.is_empty())
        };
        let other = found("unexpected commit digest ").and_then(|other| basics::digest::parse(other).ok());
        match (other, found("unexpected commit size ")) {
            (Some(other), _) => basics::digest::mismatch(digest, &other),
            (None, Some(size)) => {
                format!("{digest} has {size} bytes in containerd, which is not the expected size")
            }
            (None, None) => format!(
                "containerd does not accept the bytes of {digest}: {}",
                plain(self.message(), "failed precondition")
            ),
        }
    }

    /// Returns the reason why a layer cannot be unpacked, without the folder in which containerd
    /// tried it.
    pub(crate) fn reason_of_unpacking(&self) -> &str {
        let words = self.code().and_then(meaning).map_or("", |(_, words)| words);
        let message = plain(self.message(), words);
        let in_folder = message.strip_prefix("mount callback failed on ");
        in_folder
            .and_then(|rest| rest.split_once(": "))
            .map_or(message, |(_, reason)| reason)
    }

    /// Returns true if the connection failed and containerd did not answer. Only such a status has
    /// a local source.
    pub(crate) fn is_transport(&self) -> bool {
        matches!(self, Failure::Status(status) if std::error::Error::source(status.as_ref()).is_some())
    }

    /// Returns containerd's text. Empty if containerd sent none.
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

    /// Returns true if containerd answered.
    pub(crate) fn is_answer(&self) -> bool {
        self.code().is_some()
    }

    /// Returns true for an answer that concerns neither a missing object nor the disk.
    pub(crate) fn is_refusal(&self) -> bool {
        self.is_answer() && !self.is_not_found() && !self.is_space() && !self.is_disk()
    }

    /// Makes the error for an ingest that stayed locked for the whole wait.
    pub(crate) fn into_locked(self, digest: &Digest, waited: Duration) -> Error {
        Error::Locked {
            digest: digest.clone(),
            waited,
            source: self.into_cause(),
        }
    }

    /// Makes the error for a failure that comes from the lease's end.
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
            Failure::Contended => "other clients keep changing it at the same time".to_owned(),
        };
        Cause { text, source: None }
    }

    /// Gives the failure its general meaning. `lease` is the lease under which the call was made.
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

/// Returns true if the system reports a failing disk.
///
/// The codes are EIO, EROFS and EUCLEAN. The kernel makes a file system read-only when its disk
/// fails, and reports EUCLEAN when the file system is damaged.
pub fn is_disk_failure(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::IO | Errno::ROFS | Errno::UCLEAN))
}

/// Returns true for an answer that a retry does not change. UNKNOWN is not such an answer:
/// containerd uses it for most of its own trouble. Examples are a database that closes at shutdown
/// and an input/output error.
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

/// Returns the meaning of a code that says more than its text, and containerd's words for the code.
/// containerd's libraries repeat these words at the end of the text. "It" in the meaning is
/// containerd.
fn meaning(code: Code) -> Option<(&'static str, &'static str)> {
    match code {
        Code::Unavailable => Some(("it is starting, stopping or busy", "unavailable")),
        Code::Unimplemented => Some(("it does not know this request", "not implemented")),
        Code::PermissionDenied => Some(("it does not allow this", "permission denied")),
        Code::Unauthenticated => Some(("it does not allow this", "unauthenticated")),
        Code::Cancelled => Some(("it cancelled the request", "context canceled")),
        Code::Aborted => Some(("another request interfered", "aborted")),
        Code::DeadlineExceeded => Some(("it took too long", "context deadline exceeded")),
        Code::FailedPrecondition => Some(("a precondition is not met", "failed precondition")),
        Code::ResourceExhausted => Some(("it reached one of its own limits", "resource exhausted")),
        Code::NotFound => Some(("it does not have this", "not found")),
        Code::AlreadyExists => Some(("it already has this", "already exists")),
        Code::InvalidArgument => Some(("it does not accept this", "invalid argument")),
        Code::Ok | Code::Unknown | Code::OutOfRange | Code::Internal | Code::DataLoss => None,
    }
}

/// Returns containerd's text without the prefix of gRPC in Go, and without the words for its code
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
