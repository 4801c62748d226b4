//! The reasons why a request fails.

use std::time::Duration;

use oci_spec::image::Digest;

/// The reason why a request failed. The text names the image or blob and the registry. The source
/// has the cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options contradict each other or are not valid.
    #[error("{0}")]
    Options(String),
    /// A file with credentials, or a credential helper, cannot be used.
    #[error("credentials: {0}")]
    Credentials(String),
    /// The registry cannot be reached, or the connection broke.
    #[error("cannot fetch {what} from {host}")]
    Transfer {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The error of the connection.
        source: reqwest::Error,
    },
    /// The registry's certificate is not trusted.
    #[error(
        "cannot fetch {what}: the certificate of {host} is not trusted. Give the certificate of its authority with --ca-file"
    )]
    Untrusted {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The fault of the certificate.
        source: reqwest::Error,
    },
    /// The server does not speak TLS.
    #[error(
        "cannot fetch {what}: {host} does not speak TLS. For a registry without TLS, use --insecure-registries plain-http"
    )]
    NoTls {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The error of the TLS handshake.
        source: reqwest::Error,
    },
    /// The connection ended before the last byte.
    #[error("the transfer of {what} from {host} ended after {got} of {expected} bytes")]
    Short {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// Bytes that arrived.
        got: u64,
        /// Bytes in total.
        expected: u64,
    },
    /// The registry sends so slowly that the transfer would not end.
    #[error("cannot fetch {what}: {host} sends less than 1 KiB a second")]
    TooSlow {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
    },
    /// The registry sends a redirect that the client must not follow.
    #[error("{host} redirects {what} {reason}, which airgapd refuses")]
    Redirect {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The kind of the target, without its address.
        reason: String,
    },
    /// The registry does not have the image or blob, or hides it.
    #[error("{what} is not in {host}{}", with(.message))]
    NotFound {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The registry's message.
        message: String,
    },
    /// The registry requires credentials, or does not accept these.
    #[error("{host} refuses access to {what}: {reason}")]
    Denied {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The reason and the remedy.
        reason: String,
    },
    /// The registry answers with another error.
    #[error("{host} answered {status} to the request for {what}{}", with(.message))]
    Status {
        /// The requested image or blob.
        what: String,
        /// The registry.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's message.
        message: String,
        /// Wait that the registry requests, with 429 only.
        retry_after: Option<Duration>,
    },
    /// A document of an image cannot be used.
    #[error("{what}: {reason}")]
    Document {
        /// The document.
        what: String,
        /// The fault of the document.
        reason: String,
    },
    /// The tag and the digest of a reference are two different images.
    #[error("{name}: the tag is {found} in the registry, not {pinned}. Give either the tag or the digest")]
    Disagree {
        /// The reference.
        name: String,
        /// Digest of the tag in the registry.
        found: Digest,
        /// Digest in the reference.
        pinned: Digest,
    },
    /// An image has no manifest for the requested platforms.
    #[error("{name} has nothing for {wanted}. It offers {offered}")]
    Platform {
        /// The image.
        name: String,
        /// The requested platforms.
        wanted: String,
        /// The platforms of the image.
        offered: String,
    },
}

fn with(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

impl Error {
    /// Returns true if a retry may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Transfer { source, .. } => !source.is_builder(),
            Error::Short { .. } | Error::TooSlow { .. } => true,
            Error::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// Returns the wait that the registry requests.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Returns the error for a failed request. The URL is dropped, because the address of a redirect
/// can contain credentials.
pub(crate) fn of_transfer(what: &str, host: &str, error: reqwest::Error) -> Error {
    let (what, host, source) = (what.to_owned(), host.to_owned(), error.without_url());
    let mut cause = std::error::Error::source(&source);
    while let Some(error) = cause {
        // The transport wraps the TLS error as the text of another error.
        let text = error.to_string();
        if text.contains("invalid peer certificate") {
            return Error::Untrusted { what, host, source };
        }
        if text.contains("InvalidContentType") {
            return Error::NoTls { what, host, source };
        }
        cause = error.source();
    }
    Error::Transfer { what, host, source }
}
