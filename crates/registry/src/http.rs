//! Sends requests over HTTP: TLS, certificates, proxies and redirects.
//!
//! This module knows no user and does not decide about retries.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Response, Url};

use crate::Error;
use crate::answer::redirect_of;
use crate::body::SILENCE;
use crate::locations::{Location, without_port};
use crate::reach::{self, Guard};
use crate::subject::Subject;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The protection of connections to registries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Security {
    /// TLS with checked certificates.
    #[default]
    Verify,
    /// TLS without checks of certificates. Digests still prove blobs. Any machine on the way can
    /// read credentials and change tags.
    SkipVerify,
    /// No TLS.
    PlainHttp,
}

/// Proxies, as the usual environment variables name them.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// `HTTP_PROXY`.
    pub http: Option<String>,
    /// `HTTPS_PROXY`.
    pub https: Option<String>,
    /// `NO_PROXY`: hosts, domains, addresses and networks, separated by commas.
    pub no_proxy: Option<String>,
}

/// Sends requests.
#[derive(Debug)]
pub(crate) struct Http {
    client: reqwest::Client,
    guard: Guard,
    security: Security,
    proxies: Proxies,
}

/// A request. A redirect sends it again to another address.
pub(crate) struct Ask {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    /// A form for a POST request. Without it, the request is a GET.
    pub(crate) form: Option<String>,
}

impl Http {
    /// Prepares connections. `roots` are trusted certificates beside those of the system, each with
    /// the name of its file.
    ///
    /// # Errors
    ///
    /// Returns [`Error::Options`] if a certificate or a proxy is not valid.
    pub(crate) fn new(
        security: Security,
        roots: &[(String, Vec<u8>)],
        proxies: Proxies,
    ) -> Result<Self, Error> {
        // The installation fails if a provider is installed already. That provider then serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = certificates(roots)?;
        let guard = Guard::default();
        for url in [&proxies.http, &proxies.https].into_iter().flatten() {
            guard.allow(proxy_host(url));
        }
        let builder = || -> Result<_, Error> {
            let builder = builder(security).dns_resolver(Arc::new(guard.clone()));
            Ok(in_use(&proxies)?
                .into_iter()
                .fold(builder, reqwest::ClientBuilder::proxy))
        };
        let with_system = builder()?.tls_certs_merge(certificates.clone()).build();
        let client = match with_system {
            Ok(client) => client,
            // The builder fails if the system has no certificates at all. A user who needs none
            // must not fail here.
            Err(error) => {
                tracing::debug!(error = %basics::chain(&error), "continuing without the system's certificates");
                let without = builder()?.tls_certs_only(certificates).build();
                without.map_err(|error| bad(&error))?
            }
        };
        Ok(Self {
            client,
            guard,
            security,
            proxies,
        })
    }

    pub(crate) fn security(&self) -> Security {
        self.security
    }

    /// Sends a GET request to the API of a registry. The registry may have any address, because the
    /// operator named it.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection fails or a redirect is refused. An answer without success
    /// is not an error here.
    pub(crate) async fn get(
        &self,
        subject: Subject<'_>,
        path: &str,
        mut headers: HeaderMap,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, Error> {
        let location = subject.location;
        let url = format!("{}{}/{path}", self.base(location), location.path);
        let url = Url::parse(&url).map_err(|error| {
            Error::Options(format!("{location} is not the address of a registry: {error}"))
        })?;
        headers.extend(authorization.map(|value| (AUTHORIZATION, value)));
        self.guard.allow(url.host_str().unwrap_or_default());
        let ask = Ask {
            url,
            headers,
            form: None,
        };
        self.follow(subject, ask).await
    }

    /// Sends a request and follows its redirects. Credentials stay with scheme, host and port.
    ///
    /// # Errors
    ///
    /// Returns an error if the connection fails or a redirect is refused.
    pub(crate) async fn follow(&self, subject: Subject<'_>, mut ask: Ask) -> Result<Response, Error> {
        for _ in 0..=reach::MOST_REDIRECTS {
            let request = match &ask.form {
                None => self.client.get(ask.url.clone()),
                Some(form) => self.client.post(ask.url.clone()).body(form.clone()),
            };
            let request = request.headers(ask.headers.clone());
            let response = request.send().await.map_err(|error| subject.broken(error))?;
            let Some(target) = redirect_of(&response) else {
                return Ok(response);
            };
            let next = reach::next(&ask.url, target).map_err(|reason| subject.misled(reason))?;
            let is_same = reach::is_same_origin(&ask.url, &next);
            // Only these two redirects keep the method and the body (RFC 9110, 15.4).
            let keeps_body = matches!(response.status().as_u16(), 307 | 308);
            if ask.form.is_some() && !(is_same && keeps_body) {
                return Err(subject.misled("a request with credentials".to_owned()));
            }
            if !is_same {
                ask.headers.remove(AUTHORIZATION);
                let reached = self.may_reach(subject.location, &next).await;
                reached.map_err(|reason| subject.misled(format!("to {reason}")))?;
            }
            ask.url = next;
        }
        Err(subject.misled(format!("more than {} times", reach::MOST_REDIRECTS)))
    }

    /// Allows requests to an address that a registry names.
    ///
    /// # Errors
    ///
    /// Returns the reason if the address is refused.
    pub(crate) async fn may_reach(&self, location: &Location, url: &Url) -> Result<(), String> {
        let host = url.host_str().unwrap_or_default();
        let origin = Url::parse(&self.base(location)).ok();
        let origin = origin.as_ref().and_then(Url::host_str).unwrap_or_default();
        if host == origin {
            return Ok(());
        }
        if self.has_proxy_for(url) && !reach::is_plain(host) {
            // The proxy resolves the name. If the name bypasses the proxy, the connection resolves
            // it (`Guard`).
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
        let proxy = match url.scheme() {
            "http" => &self.proxies.http,
            _ => &self.proxies.https,
        };
        proxy.is_some()
    }

    /// Returns the address of a registry's API.
    fn base(&self, location: &Location) -> String {
        let scheme = match self.security {
            Security::PlainHttp => "http",
            Security::Verify | Security::SkipVerify => "https",
        };
        format!("{scheme}://{}/v2/", location.api_host())
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

/// Returns the host in the address of a proxy.
fn proxy_host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split('/').next().unwrap_or_default();
    without_port(rest.rsplit('@').next().unwrap_or_default())
}

/// Reads the certificates in these files.
fn certificates(roots: &[(String, Vec<u8>)]) -> Result<Vec<reqwest::Certificate>, Error> {
    let mut all = Vec::new();
    for (name, pem) in roots {
        let unusable = |reason: &str| Error::Options(format!("{name}: {reason}"));
        let certificates =
            reqwest::Certificate::from_pem_bundle(pem).map_err(|error| unusable(&basics::chain(&error)))?;
        if certificates.is_empty() {
            return Err(unusable("it has no certificate in PEM form"));
        }
        all.extend(certificates);
    }
    Ok(all)
}

/// Returns the configured proxies.
fn in_use(proxies: &Proxies) -> Result<Vec<reqwest::Proxy>, Error> {
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

fn bad(error: &reqwest::Error) -> Error {
    Error::Options(basics::chain(error))
}

#[cfg(test)]
mod tests {
    use super::*;

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
