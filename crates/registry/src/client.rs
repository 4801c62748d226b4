//! Requests to registries: authentication, locations one after the other, and trying again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use basics::{Backoff, digest};
use bundle::BlobRef;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE,
    RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use crate::challenge::{self, Challenge};
use crate::credentials::{Credentials, Secret};
use crate::locations::{Location, Rule, locations, without_port};
use crate::reach::{self, Guard};
use crate::{Error, error};

/// The largest document that is fetched, in bytes: what bundles are read with.
const LARGEST_DOCUMENT: u64 = 8 << 20;

/// The largest answer of a token service, and the largest text of an error that is looked at.
const LARGEST_ANSWER: u64 = 1 << 20;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection on which nothing comes for this long is broken.
const SILENCE: Duration = Duration::from_secs(60);

/// The longest wait that a registry may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// The least bytes that come within [`SILENCE`] of waiting: a registry that sends less keeps a transfer alive for ever
/// without any end. 1 KiB a second is less than any line has.
const LEAST: u64 = 60 << 10;

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                              application/vnd.docker.distribution.manifest.list.v2+json, \
                              application/vnd.docker.distribution.manifest.v2+json, */*;q=0.5";

/// How registries are spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// TLS, with certificates that are checked.
    #[default]
    Verify,
    /// TLS, whoever answers. Blobs are proven by digest all the same, tags and credentials are anybody's.
    SkipVerify,
    /// No TLS at all.
    PlainHttp,
}

/// Proxies as the usual environment variables give them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// `HTTP_PROXY`.
    pub http: Option<String>,
    /// `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `NO_PROXY`: hosts, domains, addresses and networks, with commas between them.
    pub no_proxy: Option<String>,
}

/// How often and after which pause something is tried again.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Further tries without any progress.
    pub times: u32,
    /// Before the first of them; each pause is twice the one before, ten seconds at most.
    pub pause: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            times: 5,
            pause: Duration::from_millis(500),
        }
    }
}

impl Retry {
    pub(crate) fn pause(&self, failures: u32) -> Duration {
        let backoff = Backoff {
            first: self.pause,
            longest: Duration::from_secs(10),
        };
        backoff.whole(failures.saturating_sub(1))
    }
}

/// Everything that decides how registries are reached.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether there is TLS.
    pub security: Security,
    /// Certificates that are trusted beside those of the system: what the file is called, and its PEM.
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
    http: reqwest::Client,
    guard: Guard,
    options: Options,
    /// The `Authorization` that was accepted last.
    granted: Mutex<HashMap<Location, HeaderValue>>,
}

/// A manifest or index as the registry gave it.
pub(crate) struct Document {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: String,
}

/// A blob on its way, from the offset that was asked for.
pub(crate) struct Body {
    response: Response,
    /// Bytes to pass over, where the registry does not know ranges.
    skip: u64,
    pace: Pace,
    what: String,
    host: String,
}

/// How fast bytes come while they are waited for. The time in which the reader is busy does not count.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    came: u64,
}

/// A request, which is sent again where a redirect leads.
struct Ask {
    url: Url,
    headers: HeaderMap,
    /// A form to post. None to get.
    form: Option<String>,
}

impl Client {
    /// Makes a client. No connection is made yet.
    ///
    /// # Errors
    ///
    /// [`Error::Options`] when a certificate or proxy is none.
    pub fn new(options: Options) -> Result<Self, Error> {
        // Whoever was first has installed the same, or has reasons of their own.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = certificates(&options.roots)?;
        let guard = Guard::default();
        let proxy_hosts = [&options.proxies.http, &options.proxies.https];
        for url in proxy_hosts.into_iter().flatten() {
            guard.allow(proxy_host(url));
        }
        let builder = || -> Result<_, Error> {
            let proxies = proxies(&options.proxies)?;
            let builder = builder(options.security).dns_resolver(Arc::new(guard.clone()));
            Ok(proxies.into_iter().fold(builder, reqwest::ClientBuilder::proxy))
        };
        let with_system = builder()?.tls_certs_merge(certificates.clone()).build();
        let http = match with_system {
            Ok(http) => http,
            // That is an error where the system has no certificates at all, also for those who need none.
            Err(error) => {
                tracing::debug!(error = %basics::chain(&error), "without the system's certificates");
                let without = builder()?.tls_certs_only(certificates).build();
                without.map_err(|error| bad(&error))?
            }
        };
        Ok(Self {
            http,
            guard,
            options,
            granted: Mutex::default(),
        })
    }

    pub(crate) fn retry(&self) -> Retry {
        self.options.retry
    }

    /// Fetches a manifest or index by tag or digest, from the first location that has it. Safe to cancel.
    pub(crate) async fn manifest(&self, repository: &str, reference: &str) -> Result<Document, Error> {
        let separator = if reference.contains(':') { '@' } else { ':' };
        let what = format!("{repository}{separator}{reference}");
        self.anywhere(repository, async |location: &Location| {
            let accept = [(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))];
            let response = self
                .get(location, &format!("manifests/{reference}"), &what, &accept)
                .await?;
            if separator == ':' {
                undecoded(&response, location, &what)?;
            }
            let content_type = response
                .headers()
                .get(CONTENT_TYPE)
                .and_then(|value| value.to_str().ok());
            let content_type = content_type
                .unwrap_or_default()
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned();
            let bytes = self.whole(response, LARGEST_DOCUMENT, location, &what).await?;
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
                let response = self
                    .get(location, &format!("blobs/{}", blob.digest), &what, &[])
                    .await?;
                self.whole(response, blob.size, location, &what).await
            })
            .await?;
        if digest::fits(&bytes, &blob.digest) {
            Ok(bytes)
        } else {
            Err(unusable("its bytes do not have that digest".to_owned()))
        }
    }

    /// Begins a blob at an offset: one try at each location. Its bytes are not proven. Safe to cancel.
    pub(crate) async fn blob(&self, repository: &str, blob: &BlobRef, offset: u64) -> Result<Body, Error> {
        let what = format!("blob {} of {repository}", blob.digest);
        let mut last = None;
        for location in locations(repository, &self.options.rewrites, &self.options.mirrors) {
            let range =
                HeaderValue::from_str(&format!("bytes={offset}-")).expect("digits are a header value");
            let range = [(RANGE, range)];
            let headers = if offset > 0 { &range[..] } else { &[] };
            match self
                .try_get(&location, &format!("blobs/{}", blob.digest), &what, headers)
                .await
            {
                Ok(response) => {
                    let is_rest = response.status() == StatusCode::PARTIAL_CONTENT;
                    return Ok(Body {
                        skip: if is_rest { 0 } else { offset },
                        pace: Pace::default(),
                        response,
                        what,
                        host: location.host,
                    });
                }
                Err(error) => last = more_telling(last, error),
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
        for location in locations(repository, &self.options.rewrites, &self.options.mirrors) {
            match act(&location).await {
                Ok(done) => return Ok(done),
                Err(error) => {
                    tracing::debug!(%location, %error, "not from here");
                    last = more_telling(last, error);
                }
            }
        }
        Err(last.unwrap_or_else(|| nowhere(repository)))
    }

    /// Asks again and again while that may help.
    async fn get(
        &self,
        location: &Location,
        path: &str,
        what: &str,
        headers: &[(reqwest::header::HeaderName, HeaderValue)],
    ) -> Result<Response, Error> {
        let mut failures = 0;
        loop {
            match self.try_get(location, path, what, headers).await {
                Err(error) if error.is_transient() && failures < self.options.retry.times => {
                    failures += 1;
                    tracing::debug!(%error, failures, "trying again");
                    tokio::time::sleep(self.options.retry.pause(failures)).await;
                }
                done => return done,
            }
        }
    }

    async fn try_get(
        &self,
        location: &Location,
        path: &str,
        what: &str,
        headers: &[(reqwest::header::HeaderName, HeaderValue)],
    ) -> Result<Response, Error> {
        let url = format!("{}{}/{path}", self.base(location), location.path);
        let url = Url::parse(&url)
            .map_err(|error| Error::Options(format!("{location} is no place of a registry: {error}")))?;
        let granted = self
            .granted
            .lock()
            .expect("nobody panics with it")
            .get(location)
            .cloned();
        let response = self.send(location, &url, what, headers, granted).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.checked(response, location, what).await;
        }
        let authorization = self.authorize(location, what, response.headers()).await?;
        let response = self
            .send(location, &url, what, headers, Some(authorization.clone()))
            .await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            return Err(denied(location, what, "the credentials are not accepted"));
        }
        self.granted
            .lock()
            .expect("nobody panics with it")
            .insert(location.clone(), authorization);
        self.checked(response, location, what).await
    }

    async fn send(
        &self,
        location: &Location,
        url: &Url,
        what: &str,
        headers: &[(reqwest::header::HeaderName, HeaderValue)],
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Error> {
        let mut all: HeaderMap = headers.iter().cloned().collect();
        if let Some(value) = authorization {
            all.insert(AUTHORIZATION, value);
        }
        let ask = Ask {
            url: url.clone(),
            headers: all,
            form: None,
        };
        self.guard.allow(url.host_str().unwrap_or_default());
        self.follow(location, what, ask).await
    }

    /// Sends a request, and again wherever redirects lead it. Credentials stay with scheme, host and port.
    async fn follow(&self, location: &Location, what: &str, mut ask: Ask) -> Result<Response, Error> {
        let refused = |reason: String| Error::Redirect {
            what: what.to_owned(),
            host: location.host.clone(),
            reason,
        };
        for _ in 0..=reach::MOST_REDIRECTS {
            let request = match &ask.form {
                None => self.http.get(ask.url.clone()),
                Some(form) => self.http.post(ask.url.clone()).body(form.clone()),
            };
            let request = request.headers(ask.headers.clone());
            let response = request
                .send()
                .await
                .map_err(|error| broken(location, what, error))?;
            let Some(target) = redirect_of(&response) else {
                return Ok(response);
            };
            let next = reach::next(&ask.url, target).map_err(refused)?;
            let is_same = reach::is_same_origin(&ask.url, &next);
            // Of the redirects only these two keep the method and the body (RFC 9110, 15.4).
            let keeps_body = matches!(response.status().as_u16(), 307 | 308);
            if ask.form.is_some() && !(is_same && keeps_body) {
                return Err(refused("a request with credentials".to_owned()));
            }
            if !is_same {
                ask.headers.remove(AUTHORIZATION);
                self.may_reach(location, &next)
                    .await
                    .map_err(|reason| refused(format!("to {reason}")))?;
            }
            ask.url = next;
        }
        Err(refused(format!("more than {} times", reach::MOST_REDIRECTS)))
    }

    /// Whether something that a registry names may be asked; why not.
    async fn may_reach(&self, location: &Location, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let origin = Url::parse(&self.base(location)).ok();
        let origin = origin.as_ref().and_then(Url::host_str).unwrap_or_default();
        if host == origin {
            return Ok(());
        }
        if self.has_proxy_for(url) && !reach::is_plain(host) {
            // The proxy looks the name up. A name that goes around it is looked up for the connection (`Guard`).
            return Ok(());
        }
        let targets = reach::addresses(host).await;
        if reach::refusal(host, &targets, &[]).is_none() {
            return Ok(());
        }
        let origins: Vec<IpAddr> = reach::addresses(origin).await;
        match reach::refusal(host, &targets, &origins) {
            Some(reason) => Err(reason),
            None => {
                self.guard.allow(host);
                Ok(())
            }
        }
    }

    fn has_proxy_for(&self, url: &Url) -> bool {
        let proxies = &self.options.proxies;
        let proxy = match url.scheme() {
            "http" => &proxies.http,
            _ => &proxies.https,
        };
        proxy.is_some()
    }

    /// Where a registry is asked.
    fn base(&self, location: &Location) -> String {
        let scheme = match self.options.security {
            Security::PlainHttp => "http",
            Security::Verify | Security::SkipVerify => "https",
        };
        format!("{scheme}://{}/v2/", location.api_host())
    }

    async fn checked(&self, response: Response, location: &Location, what: &str) -> Result<Response, Error> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            let wait = response
                .headers()
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            let wait = Duration::from_secs(wait.unwrap_or(0)).min(LONGEST_WAIT);
            tokio::time::sleep(wait).await;
        }
        let (what, host) = (what.to_owned(), location.host.clone());
        let message = self.message(response, location, &what).await;
        Err(match status {
            StatusCode::NOT_FOUND => Error::NotFound { what, host, message },
            StatusCode::FORBIDDEN => Error::Denied {
                what,
                host,
                reason: if message.is_empty() {
                    "forbidden".to_owned()
                } else {
                    message
                },
            },
            status => Error::Status {
                what,
                host,
                status: status.as_u16(),
                message,
            },
        })
    }

    /// What a registry says about its refusal, in one line.
    async fn message(&self, response: Response, location: &Location, what: &str) -> String {
        #[derive(Deserialize)]
        struct Envelope {
            errors: Vec<Problem>,
        }
        #[derive(Deserialize)]
        struct Problem {
            #[serde(default)]
            code: String,
            #[serde(default)]
            message: String,
        }
        let Ok(bytes) = self.whole(response, LARGEST_ANSWER, location, what).await else {
            return String::new();
        };
        let Ok(envelope) = serde_json::from_slice::<Envelope>(&bytes) else {
            return String::new();
        };
        let texts = envelope
            .errors
            .iter()
            .map(|problem| match problem.message.as_str() {
                "" => problem.code.clone(),
                message => message.to_owned(),
            });
        let text = texts.collect::<Vec<_>>().join("; ");
        text.chars().filter(|c| !c.is_control()).take(300).collect()
    }

    /// Reads an answer to its end.
    async fn whole(
        &self,
        mut response: Response,
        limit: u64,
        location: &Location,
        what: &str,
    ) -> Result<Vec<u8>, Error> {
        let (mut bytes, mut pace) = (Vec::new(), Pace::default());
        while let Some(chunk) = pace
            .watch(response.chunk())
            .await
            .map_err(|error| broken(location, what, error))?
        {
            if pace.is_too_slow() {
                return Err(too_slow(&location.host, what));
            }
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > limit {
                return Err(Error::Document {
                    what: what.to_owned(),
                    reason: format!("{} sends more than {limit} bytes", location.host),
                });
            }
        }
        Ok(bytes)
    }

    /// Answers a challenge.
    async fn authorize(
        &self,
        location: &Location,
        what: &str,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, Error> {
        let texts = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = texts.flat_map(challenge::parse).collect();
        let secret = self.options.credentials.of(location).await?;
        if let Some(Secret::Bearer(token)) = &secret {
            return header(location, what, format!("Bearer {token}"));
        }
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        match (bearer, &secret) {
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                _,
            ) => {
                let realm = self.realm(location, what, realm).await?;
                let secret = self.for_realm(location, what, &realm, secret).await?;
                let terms = (service.as_deref(), scope.as_deref());
                let token = self.token(location, what, realm, terms, secret.as_ref()).await?;
                header(location, what, format!("Bearer {token}"))
            }
            (_, Some(Secret::Password { user, password })) if challenges.contains(&Challenge::Basic) => {
                header(location, what, basic(user, password))
            }
            (_, None) => Err(denied(
                location,
                what,
                "it wants credentials; give a file with them by --registries-config",
            )),
            _ => Err(denied(
                location,
                what,
                "it wants credentials of a kind that is not known here",
            )),
        }
    }

    /// The address of a token service, if it may be asked at all.
    async fn realm(&self, location: &Location, what: &str, realm: &str) -> Result<Url, Error> {
        let url = Url::parse(realm).ok();
        let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
        let url = url.ok_or_else(|| denied(location, what, "its token service has no usable address"))?;
        if url.scheme() != "https" && self.options.security != Security::PlainHttp {
            return Err(denied(location, what, "its token service is not behind TLS"));
        }
        let reason = self.may_reach(location, &url).await;
        reason.map_err(|reason| denied(location, what, &format!("its token service is at {reason}")))?;
        Ok(url)
    }

    /// The secret that a token service gets. That of the registry goes to a service that belongs to the registry; any
    /// other gets what the operator has for its own host. (Docker sends the registry's secret wherever the registry says.)
    async fn for_realm(
        &self,
        location: &Location,
        what: &str,
        realm: &Url,
        secret: Option<Secret>,
    ) -> Result<Option<Secret>, Error> {
        let host = realm.host_str().unwrap_or_default();
        if secret.is_none() || reach::belongs(host, location.domain()) {
            return Ok(secret);
        }
        let port = realm.port().map_or_else(String::new, |port| format!(":{port}"));
        let service = Location {
            host: format!("{host}{port}"),
            path: String::new(),
        };
        match self.options.credentials.of(&service).await? {
            Some(own) => Ok(Some(own)),
            None => Err(denied(
                location,
                what,
                &format!(
                    "its token service is at {host}{port}, another host, which gets no password of {}; an entry for \
                     {host}{port} in the file with the credentials allows one",
                    location.host
                ),
            )),
        }
    }

    /// Gets a token: with a refresh token as OAuth 2 does it, else as Docker's token services always have.
    async fn token(
        &self,
        location: &Location,
        what: &str,
        realm: Url,
        (service, scope): (Option<&str>, Option<&str>),
        secret: Option<&Secret>,
    ) -> Result<String, Error> {
        let default_scope = format!("repository:{}:pull", location.path);
        let scope = scope.unwrap_or(&default_scope);
        let mut query: Vec<(&str, &str)> = service.map(|service| ("service", service)).into_iter().collect();
        query.push(("scope", scope));
        let mut ask = Ask {
            url: realm,
            headers: HeaderMap::new(),
            form: None,
        };
        if let Some(Secret::Identity(token)) = secret {
            query.extend([
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
                ("client_id", "airgapd"),
            ]);
            let form = HeaderValue::from_static("application/x-www-form-urlencoded");
            ask.headers.insert(CONTENT_TYPE, form);
            ask.form = Some(encoded(&query));
        } else {
            ask.url.query_pairs_mut().extend_pairs(&query);
            if let Some(Secret::Password { user, password }) = secret {
                let value = header(location, what, basic(user, password))?;
                ask.headers.insert(AUTHORIZATION, value);
            }
        }
        let response = self.follow(location, what, ask).await?;
        let status = response.status();
        if matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
        ) {
            let reason = if secret.is_some() {
                "its token service does not accept the credentials"
            } else {
                "its token service gives no token without credentials; give a file with them by --registries-config"
            };
            return Err(denied(location, what, reason));
        }
        let response = self.checked(response, location, what).await?;
        undecoded(&response, location, what)?;
        let bytes = self.whole(response, LARGEST_ANSWER, location, what).await?;
        #[derive(Deserialize)]
        struct Token {
            #[serde(default)]
            token: String,
            #[serde(default)]
            access_token: String,
        }
        match serde_json::from_slice(&bytes) {
            Ok(Token { token, .. }) if !token.is_empty() => Ok(token),
            Ok(Token { access_token, .. }) if !access_token.is_empty() => Ok(access_token),
            _ => Err(denied(
                location,
                what,
                "its token service answers without a token",
            )),
        }
    }
}

impl Pace {
    /// Waits for the next bytes.
    async fn watch<E>(
        &mut self,
        chunk: impl Future<Output = Result<Option<bytes::Bytes>, E>>,
    ) -> Result<Option<bytes::Bytes>, E> {
        let began = Instant::now();
        let chunk = chunk.await;
        let came = chunk
            .as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map_or(0, bytes::Bytes::len);
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

impl Body {
    /// The next bytes; none at the end. Safe to cancel, which loses nothing.
    pub(crate) async fn chunk(&mut self) -> Result<Option<bytes::Bytes>, Error> {
        loop {
            let chunk = self.pace.watch(self.response.chunk()).await;
            let chunk = chunk.map_err(|error| Error::Transfer {
                what: self.what.clone(),
                host: self.host.clone(),
                source: error.without_url(),
            })?;
            if self.pace.is_too_slow() {
                return Err(too_slow(&self.host, &self.what));
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

    /// What to say when it ends too soon.
    pub(crate) fn short(&self, got: u64, expected: u64) -> Error {
        Error::Short {
            what: self.what.clone(),
            host: self.host.clone(),
            got,
            expected,
        }
    }
}

fn builder(security: Security) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("airgapd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE)
        .tls_danger_accept_invalid_certs(security == Security::SkipVerify)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
}

/// Where a response leads, if it is a redirect.
fn redirect_of(response: &Response) -> Option<&str> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    // What is no text leads nowhere.
    Some(location.to_str().unwrap_or("https://"))
}

/// Refuses a body in a coding, which is never asked for, where no digest tells if its bytes are the right ones. Stores send
/// codings with bytes that are as they should be (`aws-chunked`, and `x-gzip` for a layer in gzip).
fn undecoded(response: &Response, location: &Location, what: &str) -> Result<(), Error> {
    match encoding_of(response) {
        None => Ok(()),
        Some(encoding) => Err(Error::Document {
            what: what.to_owned(),
            reason: format!(
                "{} sends it as Content-Encoding {encoding}, which was not asked for and is not decoded",
                location.host
            ),
        }),
    }
}

/// The coding of a body that is not the body itself.
fn encoding_of(response: &Response) -> Option<String> {
    let encoding = response.headers().get(CONTENT_ENCODING)?.to_str().unwrap_or("?");
    let is_itself = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
    (!is_itself).then(|| encoding.chars().filter(char::is_ascii_graphic).take(40).collect())
}

/// The host in the address of a proxy.
fn proxy_host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or_default();
    without_port(rest.rsplit('@').next().unwrap_or_default())
}

/// The certificates in these files.
fn certificates(roots: &[(String, Vec<u8>)]) -> Result<Vec<reqwest::Certificate>, Error> {
    let mut all = Vec::new();
    for (name, pem) in roots {
        let unusable = |reason: &str| Error::Options(format!("{name}: {reason}"));
        let certificates =
            reqwest::Certificate::from_pem_bundle(pem).map_err(|error| unusable(&basics::chain(&error)))?;
        if certificates.is_empty() {
            return Err(unusable("there is no certificate in PEM form in it"));
        }
        all.extend(certificates);
    }
    Ok(all)
}

fn proxies(proxies: &Proxies) -> Result<Vec<reqwest::Proxy>, Error> {
    let exceptions = || {
        proxies
            .no_proxy
            .as_deref()
            .and_then(reqwest::NoProxy::from_string)
    };
    let proxy = |url: &Option<String>, make: fn(&str) -> reqwest::Result<reqwest::Proxy>| {
        let proxy = url.as_deref().filter(|url| !url.is_empty()).map(make).transpose();
        proxy
            .map(|proxy| proxy.map(|proxy| proxy.no_proxy(exceptions())))
            .map_err(|error| bad(&error))
    };
    let http = proxy(&proxies.http, |url| reqwest::Proxy::http(url))?;
    let https = proxy(&proxies.https, |url| reqwest::Proxy::https(url))?;
    Ok(http.into_iter().chain(https).collect())
}

/// Of two failures at different locations the one that says more: that something is absent elsewhere says least.
fn more_telling(before: Option<Error>, error: Error) -> Option<Error> {
    match before {
        Some(before)
            if matches!(error, Error::NotFound { .. }) && !matches!(before, Error::NotFound { .. }) =>
        {
            Some(before)
        }
        _ => Some(error),
    }
}

fn too_slow(host: &str, what: &str) -> Error {
    Error::TooSlow {
        what: what.to_owned(),
        host: host.to_owned(),
    }
}

fn nowhere(what: &str) -> Error {
    Error::Options(format!("{what} names no registry"))
}

fn bad(error: &reqwest::Error) -> Error {
    Error::Options(basics::chain(error))
}

fn broken(location: &Location, what: &str, error: reqwest::Error) -> Error {
    error::of_transfer(what, &location.host, error)
}

fn denied(location: &Location, what: &str, reason: &str) -> Error {
    Error::Denied {
        what: what.to_owned(),
        host: location.host.clone(),
        reason: reason.to_owned(),
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{user}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

fn header(location: &Location, what: &str, text: String) -> Result<HeaderValue, Error> {
    let mut value =
        HeaderValue::try_from(text).map_err(|_| denied(location, what, "its token is no header value"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `application/x-www-form-urlencoded`.
fn encoded(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form.invalid").expect("this is a URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
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

    #[test]
    fn the_host_of_a_proxy_is_found_in_every_form() {
        for (url, host) in [
            ("http://proxy.test:3128", "proxy.test"),
            ("proxy.test:3128/", "proxy.test"),
            ("http://user:p%40w@proxy.test", "proxy.test"),
            ("http://localhost", "localhost"),
        ] {
            assert_eq!(proxy_host(url), host, "{url}");
        }
    }
}
