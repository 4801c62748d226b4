//! The client of registries: manifests and blobs, from the first location that has them.

use basics::digest;
use bundle::BlobRef;
use reqwest::header::{ACCEPT, HeaderMap, HeaderValue, RANGE};
use reqwest::{Response, StatusCode};

use crate::Error;
use crate::access::Access;
use crate::answer::{self, content_type_of, undecoded};
use crate::body::{Body, whole};
use crate::credentials::Credentials;
use crate::http::{Http, Proxies, Security};
use crate::locations::{Location, Rule, locations};
use crate::retry::{Retry, Tries};
use crate::subject::Subject;

/// Largest document in bytes that the client fetches. Readers of bundles have the same limit.
const LARGEST_DOCUMENT: u64 = 8 << 20;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json, \
                              application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5";

/// The settings for connections to registries.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Use of TLS.
    pub security: Security,
    /// Trusted certificates beside those of the system: the name of each file, and its PEM text.
    pub roots: Vec<(String, Vec<u8>)>,
    /// Proxies. The default is none.
    pub proxies: Proxies,
    /// Rules that replace the place from which a repository is fetched.
    pub rewrites: Vec<Rule>,
    /// Rules for the places that are tried first.
    pub mirrors: Vec<Rule>,
    /// Credentials of the registries.
    pub credentials: Credentials,
    /// Settings for retries.
    pub retry: Retry,
}

/// Sends requests to registries. Share it in an `Arc`.
#[derive(Debug)]
pub struct Client {
    http: Http,
    access: Access,
    rewrites: Vec<Rule>,
    mirrors: Vec<Rule>,
    retry: Retry,
}

/// A manifest or index as the registry sent it.
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: String,
}

impl Client {
    /// Makes a client. It does not connect yet.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Options`] if a certificate or a proxy is not valid.
    pub fn new(options: Options) -> Result<Self, Error> {
        let Options {
            security,
            roots,
            proxies,
            rewrites,
            mirrors,
            credentials,
            retry,
        } = options;
        Ok(Self {
            http: Http::new(security, &roots, proxies)?,
            access: Access::new(credentials),
            rewrites,
            mirrors,
            retry,
        })
    }

    /// Returns the tries of one transfer. [`Client::blob`] itself does not retry.
    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.retry)
    }

    /// Fetches a manifest or index by tag or digest, from the first location that has it. Cancel
    /// safe.
    pub(crate) async fn manifest(&self, repository: &str, reference: &str) -> Result<Document, Error> {
        let separator = if reference.contains(':') { '@' } else { ':' };
        let what = format!("{repository}{separator}{reference}");
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))]);
        self.anywhere(repository, async |location: &Location| {
            let subject = Subject {
                what: &what,
                location,
            };
            let response = self
                .get(subject, &format!("manifests/{reference}"), &headers)
                .await?;
            if separator == ':' {
                undecoded(&response, subject)?;
            }
            let content_type = content_type_of(&response);
            let bytes = whole(response, LARGEST_DOCUMENT, subject).await?;
            Ok(Document { bytes, content_type })
        })
        .await
    }

    /// Fetches a whole small blob and verifies its digest. Cancel safe.
    pub(crate) async fn document_blob(&self, repository: &str, blob: &BlobRef) -> Result<Vec<u8>, Error> {
        let what = format!("blob {} of {repository}", blob.digest);
        let unusable = |reason: String| Error::Document {
            what: what.clone(),
            reason,
        };
        if blob.size > LARGEST_DOCUMENT {
            return Err(unusable(format!(
                "it has {} bytes, and the limit is {LARGEST_DOCUMENT}",
                blob.size
            )));
        }
        let bytes = self
            .anywhere(repository, async |location: &Location| {
                let subject = Subject {
                    what: &what,
                    location,
                };
                let path = format!("blobs/{}", blob.digest);
                let response = self.get(subject, &path, &HeaderMap::new()).await?;
                whole(response, blob.size, subject).await
            })
            .await?;
        if digest::fits(&bytes, &blob.digest) {
            Ok(bytes)
        } else {
            Err(unusable("its content does not match the digest".to_owned()))
        }
    }

    /// Starts the transfer of a blob at an offset, with one try at each location. The caller
    /// verifies the digest. Cancel safe.
    pub(crate) async fn blob(&self, repository: &str, blob: &BlobRef, offset: u64) -> Result<Body, Error> {
        let what = format!("blob {} of {repository}", blob.digest);
        let range = HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are a header value");
        let headers = HeaderMap::from_iter((offset > 0).then_some((RANGE, range)));
        let mut last = None;
        // A closure for `anywhere` would make a future that the compiler does not prove to be
        // `Send`.
        for location in &locations(repository, &self.rewrites, &self.mirrors) {
            let subject = Subject {
                what: &what,
                location,
            };
            match self
                .get_once(subject, &format!("blobs/{}", blob.digest), &headers)
                .await
            {
                Ok(response) => {
                    let is_rest = response.status() == StatusCode::PARTIAL_CONTENT;
                    return Ok(Body::new(response, if is_rest { 0 } else { offset }, subject));
                }
                Err(error) => last = Some(more_telling(last, error)),
            }
        }
        Err(last.unwrap_or_else(|| nowhere(&what)))
    }

    /// Runs an action at each location until it succeeds.
    async fn anywhere<T>(
        &self,
        repository: &str,
        act: impl AsyncFn(&Location) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut last = None;
        for location in locations(repository, &self.rewrites, &self.mirrors) {
            match act(&location).await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    tracing::debug!(%location, %error, "trying the next location");
                    last = Some(more_telling(last, error));
                }
            }
        }
        Err(last.unwrap_or_else(|| nowhere(repository)))
    }

    /// Sends a GET request to the API of a registry, with retries.
    async fn get(&self, subject: Subject<'_>, path: &str, headers: &HeaderMap) -> Result<Response, Error> {
        let mut tries = self.tries();
        loop {
            let error = match self.get_once(subject, path, headers).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let Some(wait) = tries.wait_after(&error, false) else {
                return Err(error);
            };
            tracing::debug!(%error, ?wait, "trying again");
            tokio::time::sleep(wait).await;
        }
    }

    /// Sends a GET request once. If the registry requires credentials, sends it again with them.
    async fn get_once(
        &self,
        subject: Subject<'_>,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response, Error> {
        let send = async |authorization| self.http.get(subject, path, headers.clone(), authorization).await;
        let response = send(self.access.granted(subject.location)).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return answer::success(response, subject).await;
        }
        let authorization = self
            .access
            .authorize(&self.http, subject, response.headers())
            .await?;
        let response = send(Some(authorization.clone())).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(subject.denied("the credentials are not accepted"));
        }
        self.access.keep(subject.location, authorization);
        answer::success(response, subject).await
    }
}

/// Returns the more useful of two failures at different locations. Absence is the least useful one.
/// A request for a longer wait wins.
fn more_telling(before: Option<Error>, error: Error) -> Error {
    match before {
        Some(before) if says_more(&before, &error) => before,
        _ => error,
    }
}

fn nowhere(what: &str) -> Error {
    Error::Options(format!("{what} names no registry"))
}

fn says_more(before: &Error, error: &Error) -> bool {
    let is_absent = |error: &Error| matches!(error, Error::NotFound { .. });
    let asks_for_more = error.is_transient() && before.retry_after() > error.retry_after();
    asks_for_more || is_absent(error) && !is_absent(before)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_most_telling_of_the_failures_at_several_locations_is_kept() {
        let absent = || Error::NotFound {
            what: "app".to_owned(),
            host: "registry.test".to_owned(),
            message: String::new(),
        };
        let denied = || Error::Denied {
            what: "app".to_owned(),
            host: "registry.test".to_owned(),
            reason: String::new(),
        };
        let status = |status: u16, seconds: Option<u64>| Error::Status {
            what: "app".to_owned(),
            host: "registry.test".to_owned(),
            status,
            message: String::new(),
            retry_after: seconds.map(Duration::from_secs),
        };
        let rows = [
            (absent(), absent(), false),
            (absent(), denied(), false),
            (denied(), absent(), true),
            (status(503, None), absent(), true),
            (status(503, None), status(500, None), false),
            (status(429, Some(7)), status(503, None), true),
            (status(429, Some(7)), status(429, Some(9)), false),
            (status(429, Some(9)), status(429, Some(7)), true),
            (status(429, Some(9)), denied(), false),
            (status(429, Some(9)), absent(), true),
        ];
        for (before, error, expected) in rows {
            assert_eq!(says_more(&before, &error), expected, "{before:?}, then {error:?}");
        }
    }
}
