//! The image or blob that a request is about, and its registry, for the text of errors.

use reqwest::header::HeaderValue;

use crate::locations::Location;
use crate::{Error, error};

/// An image or blob at one registry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    /// The image or blob, in words.
    pub(crate) what: &'a str,
    /// The registry, and the path in it.
    pub(crate) location: &'a Location,
}

impl Subject<'_> {
    /// Returns the error of a connection that failed or broke.
    pub(crate) fn broken(self, error: reqwest::Error) -> Error {
        error::of_transfer(self.what, &self.location.host, error)
    }

    /// Returns the error of a registry that requires other credentials.
    pub(crate) fn denied(self, reason: impl Into<String>) -> Error {
        Error::Denied {
            what: self.what.to_owned(),
            host: self.location.host.clone(),
            reason: reason.into(),
        }
    }

    /// Returns the error of a refused redirect.
    pub(crate) fn misled(self, reason: String) -> Error {
        Error::Redirect {
            what: self.what.to_owned(),
            host: self.location.host.clone(),
            reason,
        }
    }

    /// Returns the error of an unusable document.
    pub(crate) fn unusable(self, reason: String) -> Error {
        Error::Document {
            what: self.what.to_owned(),
            reason,
        }
    }

    /// Returns the error of a transfer that is too slow to end.
    pub(crate) fn too_slow(self) -> Error {
        Error::TooSlow {
            what: self.what.to_owned(),
            host: self.location.host.clone(),
        }
    }

    /// Returns a header value that no log shows.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Denied`] if the text is not a valid header value. No registry would accept
    /// such a token.
    pub(crate) fn secret_header(self, text: String) -> Result<HeaderValue, Error> {
        let value = HeaderValue::try_from(text);
        let mut value = value.map_err(|_| self.denied("its token is not a valid header value"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}
