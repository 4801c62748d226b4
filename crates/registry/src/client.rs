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

/// The largest document that is fetched, in bytes: what bundles are read with.
const LARGEST_DOCUMENT: u64 = 8 << 20;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json, \
                              application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5";

/// Everything that decides how registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether there is TLS.
    pub security: Security,
    /// Certificates that are trusted beside those of the system: what the file is called, and its
    /// PEM.
    pub roots: Vec<(String, Vec<u8>)>,
    /// Proxies; none unless given.
    pub proxies: Proxies,
    /// Where repositories are fetched from in place of where their names say.
    pub rewrites: Vec<Rule>,
    /// Where repositories are looked for first.
    pub mirrors: Vec<Rule>,
    /// Users.
    pub credentials: Credentials,
    /// Trying again.
    pub retry: Retry,
}

/// Talks to registries. Share it in an `Arc`.
#[derive(Debug)]
pub struct Client {
    http: Http,
    access: Access,
    rewrites: Vec<Rule>,
    mirrors: Vec<Rule>,
    retry: Retry,
}

/// A manifest or index as the registry gave it.
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: String,
}

impl Client {
    /// Makes a client. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] when a certificate or proxy is none.
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

    /// The tries of one transfer, which [`Client::blob`] does not repeat by itself.
    pub(crate) fn tries(&self) -> Tries {
        Tries::new(self.retry)
    }

    /// Fetches a manifest or index by tag or digest, from the first location that has it. Safe to
    /// cancel.
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

    /// Fetches a small blob whole, and proves it. Safe to cancel.
    pub(crate) async fn document_blob(&self, repository: &str, blob: &BlobRef) -> Result<Vec<u8>, Error> {
        let what = format!("blob {} of {repository}", blob.digest);
        let unusable = |reason: String| Error::Document {
            what: what.clone(),
            reason,
        };
        if blob.size > LARGEST_DOCUMENT {
            return Err(unusable(format!(
                "it has {} bytes, more than {LARGEST_DOCUMENT}",
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
            Err(unusable("its bytes do not have that digest".to_owned()))
        }
    }

    /// Begins a blob at an offset: one try at each location. Its bytes are not proven. Safe to
    /// cancel.
    pub(crate) async fn blob(&self, repository: &str, blob: &BlobRef, offset: u64) -> Result<Body, Error> {
        let what = format!("blob {} of {repository}", blob.digest);
        let range = HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are a header value");
        let headers = HeaderMap::from_iter((offset > 0).then_some((RANGE, range)));
        let mut last = None;
        // A closure, as `anywhere` takes one, makes a future of which the compiler cannot tell that
        // threads may share it.
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

    /// Does something at the first location where it works.
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
                    tracing::debug!(%location, %error, "not from here");
                    last = Some(more_telling(last, error));
                }
            }
        }
        Err(last.unwrap_or_else(|| nowhere(repository)))
    }

    /// Gets something below the API of a registry, with retries.
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

    /// The same with one try. A registry that asks for credentials is asked again with them.
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

/// Of two failures at different locations the one that says more: that something is absent
/// elsewhere says least, and a registry that asks for a longer wait than the other is heard.
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
