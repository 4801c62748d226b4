//! Why something could not be fetched.

use std::time::Duration;

use oci_spec::image::Digest;

/// Why something could not be fetched. Texts name the image or blob and the registry; causes are in
/// the source.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The options contradict themselves or cannot be used.
    #[error("{0}")]
    Options(String),
    /// A file with credentials, or a credential helper, is unusable.
    #[error("credentials: {0}")]
    Credentials(String),
    /// The registry cannot be reached, or the connection broke.
    #[error("cannot fetch {what} from {host}")]
    Transfer {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What the connection says.
        source: reqwest::Error,
    },
    /// The registry's certificate is not to be trusted.
    #[error(
        "the certificate of {host} is not trusted, so {what} is not fetched; --ca-file names the certificate of its authority"
    )]
    Untrusted {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What is wrong with it.
        source: reqwest::Error,
    },
    /// Something answers that does not speak TLS.
    #[error(
        "{host} does not speak TLS, so {what} is not fetched; --insecure-registries plain-http is for such a registry"
    )]
    NoTls {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What came in place of TLS.
        source: reqwest::Error,
    },
    /// The connection ended before all bytes were there.
    #[error("the transfer of {what} from {host} ended after {got} of {expected} bytes")]
    Short {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that should have come.
        expected: u64,
    },
    /// The registry sends so little that there is no end to it.
    #[error("{host} sends less than 1 KiB a second of {what}")]
    TooSlow {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
    },
    /// The registry leads to where it is not followed.
    #[error("{host} redirects {what} {reason}: that is not followed")]
    Redirect {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// Where to, without the address.
        reason: String,
    },
    /// The registry has no such thing, or does not show it to us.
    #[error("{what} is not in {host}{}", with(.message))]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What the registry says.
        message: String,
    },
    /// The registry wants other credentials, or any.
    #[error("{host} refuses access to {what}: {reason}")]
    Denied {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// Why, and what may help.
        reason: String,
    },
    /// The registry answers with another error.
    #[error("{host} answers {status} when asked for {what}{}", with(.message))]
    Status {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says.
        message: String,
        /// How long the registry asks to be left alone, with 429 only.
        retry_after: Option<Duration>,
    },
    /// A document of an image is unusable.
    #[error("{what}: {reason}")]
    Document {
        /// Which one.
        what: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A tag and the digest beside it are two images.
    #[error("{name}: the tag is {found} in the registry, not {pinned}; give one of them only")]
    Disagree {
        /// The reference.
        name: String,
        /// What the tag is.
        found: Digest,
        /// What was asked for.
        pinned: Digest,
    },
    /// An image offers nothing for the platforms asked for.
    #[error("{name} has nothing for {wanted}; it offers {offered}")]
    Platform {
        /// The image.
        name: String,
        /// The platforms that were asked for.
        wanted: String,
        /// Those that there are.
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
    /// Whether the same may go well a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Transfer { source, .. } => !source.is_builder(),
            Error::Short { .. } | Error::TooSlow { .. } => true,
            Error::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// How long the registry asks to be left alone.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Error::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What a request that failed comes to. Redirects lead to addresses that are as good as
/// credentials: no URL is kept.
pub(crate) fn of_transfer(what: &str, host: &str, error: reqwest::Error) -> Error {
    let (what, host, source) = (what.to_owned(), host.to_owned(), error.without_url());
    let mut cause = std::error::Error::source(&source);
    while let Some(error) = cause {
        // The transport keeps the error of TLS as the text of another one.
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
