//! Authorization: answers the challenges of registries with passwords, or with tokens of token
//! services.

use std::collections::HashMap;
use std::sync::Mutex;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use crate::answer::{self, LARGEST_ANSWER, undecoded};
use crate::body::whole;
use crate::challenge::{self, Challenge};
use crate::credentials::{Credentials, Secret};
use crate::http::{Ask, Http, Security};
use crate::locations::Location;
use crate::subject::Subject;
use crate::{Error, reach};

/// The available credentials, and the authorizations that registries have accepted.
#[derive(Debug)]
pub(crate) struct Access {
    credentials: Credentials,
    /// The last accepted `Authorization` of each registry.
    granted: Mutex<HashMap<Location, HeaderValue>>,
}

impl Access {
    pub(crate) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            granted: Mutex::default(),
        }
    }

    /// Returns the `Authorization` that a registry has accepted before.
    pub(crate) fn granted(&self, location: &Location) -> Option<HeaderValue> {
        let granted = self.granted.lock().expect("no holder panics");
        granted.get(location).cloned()
    }

    /// Stores an `Authorization` that a registry has accepted.
    pub(crate) fn keep(&self, location: &Location, authorization: HeaderValue) {
        let mut granted = self.granted.lock().expect("no holder panics");
        granted.insert(location.clone(), authorization);
    }

    /// Answers the challenge in the headers of a refusal.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Denied`] if no credentials answer the challenge, and the failures of the
    /// token service.
    pub(crate) async fn authorize(
        &self,
        http: &Http,
        subject: Subject<'_>,
        headers: &HeaderMap,
    ) -> Result<HeaderValue, Error> {
        let texts = headers
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = texts.flat_map(challenge::parse).collect();
        let secret = self.credentials.of(subject.location).await?;
        if let Some(Secret::Bearer(token)) = &secret {
            return subject.secret_header(format!("Bearer {token}"));
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
                let realm = realm_at(http, subject, realm).await?;
                let secret = self.for_realm(subject, &realm, secret).await?;
                let terms = (service.as_deref(), scope.as_deref());
                let token = token(http, subject, realm, terms, secret.as_ref()).await?;
                subject.secret_header(format!("Bearer {token}"))
            }
            (_, Some(Secret::Password { user, password })) if challenges.contains(&Challenge::Basic) => {
                subject.secret_header(basic(user, password))
            }
            (_, None) => Err(subject.denied("it requires credentials: name a file with --registries-config")),
            _ => Err(subject.denied("it requires an authentication scheme that airgapd does not know")),
        }
    }

    /// Returns the secret for a token service. A service that belongs to the registry gets the
    /// registry's secret. Any other service gets only a secret that the operator has for its own
    /// host. (Docker sends the registry's secret to every service that the registry names.)
    async fn for_realm(
        &self,
        subject: Subject<'_>,
        realm: &Url,
        secret: Option<Secret>,
    ) -> Result<Option<Secret>, Error> {
        let host = realm.host_str().unwrap_or_default();
        if secret.is_none() || reach::belongs(host, subject.location.domain()) {
            return Ok(secret);
        }
        let port = realm.port().map_or_else(String::new, |port| format!(":{port}"));
        let service = Location {
            host: format!("{host}{port}"),
            path: String::new(),
        };
        match self.credentials.of(&service).await? {
            Some(own) => Ok(Some(own)),
            None => Err(subject.denied(format!(
                "its token service at {host}{port} is another host and gets no password of {}. To allow this, add an entry for \
                 {host}{port} to the credentials file",
                subject.location.host
            ))),
        }
    }
}

/// Returns the address of a token service if requests to it are allowed.
async fn realm_at(http: &Http, subject: Subject<'_>, realm: &str) -> Result<Url, Error> {
    let url = Url::parse(realm).ok();
    let url = url.filter(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
    let url = url.ok_or_else(|| subject.denied("its token service has no usable address"))?;
    if url.scheme() != "https" && http.security() != Security::PlainHttp {
        return Err(subject.denied("its token service does not use TLS"));
    }
    let reached = http.may_reach(subject.location, &url).await;
    reached.map_err(|reason| subject.denied(format!("its token service is at {reason}")))?;
    Ok(url)
}

/// Fetches a token from a token service.
async fn token(
    http: &Http,
    subject: Subject<'_>,
    realm: Url,
    terms: (Option<&str>, Option<&str>),
    secret: Option<&Secret>,
) -> Result<String, Error> {
    let ask = token_request(subject, realm, terms, secret)?;
    let response = http.follow(subject, ask).await?;
    if matches!(
        response.status(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::BAD_REQUEST
    ) {
        return Err(subject.denied(match secret {
            Some(_) => "its token service does not accept the credentials",
            None => {
                "its token service gives no token without credentials: name a file with --registries-config"
            }
        }));
    }
    let response = answer::success(response, subject).await?;
    undecoded(&response, subject)?;
    let bytes = whole(response, LARGEST_ANSWER, subject).await?;
    token_in(&bytes).ok_or_else(|| subject.denied("its token service sent no token"))
}

/// Returns the request for a token. With a refresh token it follows OAuth 2. Otherwise it follows
/// the older protocol of Docker's token services.
fn token_request(
    subject: Subject<'_>,
    realm: Url,
    (service, scope): (Option<&str>, Option<&str>),
    secret: Option<&Secret>,
) -> Result<Ask, Error> {
    let default_scope = format!("repository:{}:pull", subject.location.path);
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
            let value = subject.secret_header(basic(user, password))?;
            ask.headers.insert(AUTHORIZATION, value);
        }
    }
    Ok(ask)
}

/// Returns the token in the answer of a token service, which has one of two names.
fn token_in(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Token {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
    }
    let Token { token, access_token } = serde_json::from_slice(body).ok()?;
    [token, access_token].into_iter().find(|token| !token.is_empty())
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{user}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// Encodes pairs as `application/x-www-form-urlencoded`.
fn encoded(pairs: &[(&str, &str)]) -> String {
    let mut url = Url::parse("http://form.invalid").expect("this is a URL");
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}
