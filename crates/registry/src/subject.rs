//! The thing that a request is about, and the registry that is asked for it, as errors name them.

use reqwest::header::HeaderValue;

use crate::locations::Location;
use crate::{Error, error};

/// A thing at one registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The thing, in words.
    pub(crate) what: &'a str,
    /// The registry, and the thing's place in it.
    pub(crate) location: &'a Location,
}

impl Subject<'_> {
    /// The connection failed or broke.
    pub(crate) fn broken(self, error: reqwest::Error) -> Error {
        error::of_transfer(self.what, &self.location.host, error)
    }

    /// The registry wants other credentials, or any.
    pub(crate) fn denied(self, reason: impl Into<String>) -> Error {
        Error::Denied {
            what: self.what.to_owned(),
            host: self.location.host.clone(),
            reason: reason.into(),
        }
    }

    /// The registry leads to where it is not followed.
    pub(crate) fn misled(self, reason: String) -> Error {
        Error::Redirect {
            what: self.what.to_owned(),
            host: self.location.host.clone(),
            reason,
        }
    }

    /// The answer cannot be used as a document.
    pub(crate) fn unusable(self, reason: String) -> Error {
        Error::Document {
            what: self.what.to_owned(),
            reason,
        }
    }

    /// The bytes come so slowly that the answer has no end.
    pub(crate) fn too_slow(self) -> Error {
        Error::TooSlow {
            what: self.what.to_owned(),
            host: self.location.host.clone(),
        }
    }

    /// A header value that no log shows.
    ///
    /// # Errors
    ///
    /// [`Error::Denied`] when the text fits no header: such a token is never accepted.
    pub(crate) fn secret_header(self, text: String) -> Result<HeaderValue, Error> {
        let value = HeaderValue::try_from(text);
        let mut value = value.map_err(|_| self.denied("its token is no header value"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}
