//! Limits the addresses to which a registry can send the client: redirects and token services.
//!
//! The operator names registries, mirrors and proxies, and these may be anywhere. An address that a
//! registry names is different. It must not make this machine send requests to its own services.
//! Nor may it reach services that only this network can reach, such as the metadata of a cloud. So
//! addresses of this machine and of its link are refused, unless the requested registry is itself
//! on this machine.
//!
//! The client resolves names for this check, and again for the connection. If a proxy connects, the
//! proxy resolves names, and the client still refuses addresses. Sources: RFC 6890 (special
//! addresses), RFC 9110, 15.4 (redirects).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// Most redirects of one request.
pub(crate) const MOST_REDIRECTS: usize = 10;

/// Addresses of cloud metadata outside the link: AWS by IPv6, Alibaba, Oracle.
const METADATA: [IpAddr; 3] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// The distance of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// This machine.
    Here,
    /// The link, or the metadata of a cloud.
    Beside,
    /// Any other place.
    Away,
}

impl Place {
    fn of(address: IpAddr) -> Self {
        let address = plain(address);
        let (is_here, is_beside) = match address {
            IpAddr::V4(v4) => (v4.is_loopback() || v4.octets()[0] == 0, v4.is_link_local()),
            IpAddr::V6(v6) => (
                v6.is_loopback() || v6.is_unspecified(),
                v6.is_unicast_link_local(),
            ),
        };
        match (is_here, is_beside || METADATA.contains(&address)) {
            (true, _) => Self::Here,
            (_, true) => Self::Beside,
            _ => Self::Away,
        }
    }
}

/// Returns the IPv4 address inside an IPv6 address: mapped, compatible, NAT64 (RFC 6052) and 6to4
/// (RFC 3056).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else {
        return address;
    };
    let parts = v6.segments();
    let v4 = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        IpAddr::V4(Ipv4Addr::new(a, b, c, d))
    };
    match parts {
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => address,
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x2002, high, low, ..] => v4(high, low),
        _ => address,
    }
}

/// Returns the reason to refuse a host that a registry names, from its addresses and those of the
/// registry.
pub(crate) fn refusal(host: &str, targets: &[IpAddr], origins: &[IpAddr]) -> Option<String> {
    let is_here = |address: &IpAddr| Place::of(*address) == Place::Here;
    // If an address leads away from this machine and link, the connection takes it (`Guard`).
    if targets.iter().any(|address| Place::of(*address) == Place::Away) {
        return None;
    }
    let target = targets.first()?;
    if targets.iter().all(is_here) && !origins.is_empty() && origins.iter().all(is_here) {
        return None;
    }
    let what = match Place::of(*target) {
        Place::Here => "an address of this machine",
        _ => "an address that only machines on this link can reach",
    };
    let named = if host.trim_matches(['[', ']']) == target.to_string() {
        host.to_owned()
    } else {
        format!("{host} ({target})")
    };
    Some(format!("{named}, {what}"))
}

/// Returns the target of a redirect.
///
/// # Errors
///
/// Returns the reason if the redirect is refused.
pub(crate) fn next(from: &Url, location: &str) -> Result<Url, String> {
    let next = from
        .join(location)
        .map_err(|_| "to no usable address".to_owned())?;
    match (from.scheme(), next.scheme()) {
        ("https", "http") => Err("from https to http".to_owned()),
        (_, "http" | "https") if next.host_str().is_some() => Ok(next),
        (_, scheme) => Err(format!("to {scheme}:, which is not HTTP")),
    }
}

/// Returns true if both have the same scheme, host and port. Only then does a request keep its
/// credentials.
pub(crate) fn is_same_origin(one: &Url, other: &Url) -> bool {
    let parts = |url: &Url| {
        (
            url.scheme().to_owned(),
            url.host_str().map(ToOwned::to_owned),
            url.port_or_known_default(),
        )
    };
    parts(one) == parts(other)
}

/// Returns true if a token service belongs to a registry: the hosts are the same, or the first is a
/// subdomain of the second or the reverse. Examples are `auth.docker.io` for `docker.io`, and
/// `gitlab.com` for `registry.gitlab.com`. The owner of the upper name controls the lower one.
/// Addresses must be equal. A name with a single label has no subdomains here.
pub(crate) fn belongs(realm: &str, registry: &str) -> bool {
    let clean = |host: &str| host.trim_end_matches('.').to_ascii_lowercase();
    let (realm, registry) = (clean(realm), clean(registry));
    let is_address = |host: &str| host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_below = |lower: &str, upper: &str| {
        let rest = lower.strip_suffix(upper);
        rest.is_some_and(|rest| rest.ends_with('.')) && upper.contains('.') && !is_address(upper)
    };
    realm == registry || is_below(&realm, &registry) || is_below(&registry, &realm)
}

/// Returns true if a host is an address, or the name that means this machine everywhere (RFC 6761,
/// 6.3).
pub(crate) fn is_plain(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    is_address || name == "localhost" || name.ends_with(".localhost")
}

/// Resolves a host that is a name or an address.
///
/// The result is empty for an unknown name. The connection then reports the failure.
pub(crate) async fn addresses(host: &str) -> Vec<IpAddr> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse() {
        return vec![address];
    }
    let found = tokio::net::lookup_host((host, 0)).await;
    found.map_or_else(
        |_| Vec::new(),
        |found| found.map(|address| address.ip()).collect(),
    )
}

/// Resolves names for connections. Names from the operator may have any address. Other names may
/// only have addresses away from this machine and link. So a name whose address changes after the
/// check reaches nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    named: Arc<Mutex<HashSet<String>>>,
}

impl Guard {
    /// Allows any address for a name from now on.
    pub(crate) fn allow(&self, host: &str) {
        let mut named = self.named.lock().expect("no holder panics");
        named.insert(host.to_ascii_lowercase());
    }

    fn is_allowed(&self, host: &str) -> bool {
        let named = self.named.lock().expect("no holder panics");
        named.contains(&host.to_ascii_lowercase())
    }
}

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let host = name.as_str().to_owned();
        let is_allowed = self.is_allowed(&host);
        Box::pin(async move {
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let usable: Vec<_> = found
                .filter(|address| is_allowed || Place::of(address.ip()) == Place::Away)
                .collect();
            if usable.is_empty() {
                return Err(format!(
                    "{host} is an address of this machine or its link, and the operator did not name it"
                )
                .into());
            }
            let usable: Addrs = Box::new(usable.into_iter());
            Ok(usable)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_proxy_is_not_trusted_with_addresses_and_localhost() {
        for plain in ["127.0.0.1", "[::1]", "localhost", "LOCALHOST.", "x.localhost"] {
            assert!(is_plain(plain), "{plain}");
        }
        for name in ["registry.test", "localhost.test", "notlocalhost"] {
            assert!(!is_plain(name), "{name}");
        }
    }

    #[test]
    fn addresses_of_this_machine_and_its_link_are_known_in_every_form() {
        for here in [
            "127.0.0.1",
            "127.8.9.10",
            "0.0.0.0",
            "0.1.2.3",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "::ffff:0:127.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2002:7f00:1:2::3",
        ] {
            assert_eq!(Place::of(ip(here)), Place::Here, "{here}");
        }
        for beside in [
            "169.254.169.254",
            "169.254.0.1",
            "fe80::1",
            "febf::1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "fd00:ec2::254",
            "100.100.100.200",
            "192.0.0.192",
        ] {
            assert_eq!(Place::of(ip(beside)), Place::Beside, "{beside}");
        }
        // Private networks, where operators run registries.
        for away in [
            "10.0.0.1",
            "192.168.1.1",
            "172.16.0.1",
            "fd00::1",
            "2001:db8::1",
            "8.8.8.8",
            "128.0.0.1",
            "fec0::1",
        ] {
            assert_eq!(Place::of(ip(away)), Place::Away, "{away}");
        }
    }

    #[test]
    fn only_a_registry_on_this_machine_leads_to_this_machine() {
        let (here, away, link) = (ip("127.0.0.1"), ip("10.0.0.1"), ip("169.254.169.254"));
        let rows: [(&[IpAddr], &[IpAddr], bool); 12] = [
            (&[away], &[away], false),
            (&[away], &[here], false),
            (&[], &[away], false),
            (&[here], &[away], true),
            (&[here, away], &[away], false),
            (&[link, away], &[away], false),
            (&[here, link], &[away], true),
            (&[here], &[here, away], true),
            (&[here], &[], true),
            (&[here], &[here], false),
            (&[link], &[here], true),
            (&[link], &[link], true),
        ];
        for (targets, origins, is_refused) in rows {
            let refusal = refusal("x.test", targets, origins);
            assert_eq!(
                refusal.is_some(),
                is_refused,
                "{targets:?} {origins:?}: {refusal:?}"
            );
        }
        let said = refusal("x.test", &[link], &[away]).unwrap();
        assert!(
            said.contains("x.test (169.254.169.254)") && said.contains("this link"),
            "{said}"
        );
    }

    #[test]
    fn redirects_go_by_http_and_never_from_https_to_http() {
        let from = Url::parse("https://a.test/v2/x/blobs/1").unwrap();
        for (location, expected) in [
            ("/other", Some("https://a.test/other")),
            ("//b.test/c?d", Some("https://b.test/c?d")),
            ("https://b.test/c", Some("https://b.test/c")),
            ("http://a.test/v2/x/blobs/1", None),
            ("file:///etc/passwd", None),
            ("ftp://b.test/x", None),
            ("data:text/plain,x", None),
            ("https://[::1", None),
            ("https://", None),
        ] {
            let next = next(&from, location);
            assert_eq!(
                next.as_ref().ok().map(Url::as_str),
                expected,
                "{location}: {next:?}"
            );
        }
        let plain = Url::parse("http://a.test:5000/").unwrap();
        assert!(next(&plain, "https://b.test/").is_ok() && next(&plain, "http://b.test/").is_ok());
        // Addresses in unusual spellings are read as the addresses that they mean.
        for odd in [
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.1/",
        ] {
            assert_eq!(next(&plain, odd).unwrap().host_str(), Some("127.0.0.1"), "{odd}");
        }
    }

    #[test]
    fn credentials_stay_with_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        let one = url("https://a.test/v2/");
        assert!(is_same_origin(&one, &url("https://A.test:443/other")));
        for other in [
            "http://a.test/v2/",
            "https://a.test:444/v2/",
            "https://b.test/",
            "https://a.test.evil/",
        ] {
            assert!(!is_same_origin(&one, &url(other)), "{other}");
        }
    }

    #[test]
    fn a_token_service_belongs_to_a_registry_above_or_below_it() {
        for (realm, registry) in [
            ("quay.io", "quay.io"),
            ("Quay.io.", "quay.io"),
            ("auth.docker.io", "docker.io"),
            ("gitlab.com", "registry.gitlab.com"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
        ] {
            assert!(belongs(realm, registry), "{realm} {registry}");
        }
        for (realm, registry) in [
            ("evil.test", "quay.io"),
            ("evilquay.io", "quay.io"),
            ("quay.io.evil.test", "quay.io"),
            ("auth.example.com", "registry.example.com"),
            ("two.azurecr.io", "one.azurecr.io"),
            ("io", "quay.io"),
            ("x.1.2.3.4", "1.2.3.4"),
            ("localhost", "registry.localhost"),
        ] {
            assert!(!belongs(realm, registry), "{realm} {registry}");
        }
    }

    #[tokio::test]
    async fn a_name_that_leads_here_connects_only_where_it_was_named() {
        let guard = Guard::default();
        let resolve = |name: &str| guard.resolve(name.parse().unwrap());
        let error = resolve("localhost")
            .await
            .err()
            .expect("the name means this machine");
        assert!(error.to_string().contains("did not name it"), "{error}");
        guard.allow("LocalHost");
        assert!(resolve("localhost").await.is_ok());
    }
}
