//! The query of `GET /ready`: what has to be there besides the required images.

use std::fmt::Write as _;

/// Most names in a query.
const MOST_NAMES: usize = 64;

/// What has to be there besides the required images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Releases by name.
    pub releases: Vec<String>,
    /// Bundles by name, path or content digest.
    pub bundles: Vec<String>,
    /// True if every bundle has to be in place or skipped.
    pub all_bundles: bool,
}

/// The reason why a query has no answer. The texts do not repeat the query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// It is no query by RFC 3986, or has more than 64 names.
    #[error("malformed query: {0}")]
    Malformed(&'static str),
    /// It asks for something that this version does not know. A typing mistake must not be ready.
    #[error("unknown query: {0}")]
    Unknown(&'static str),
}

impl Query {
    /// Reads the query of a URI, without the question mark. `+` is a plus, as RFC 3986 has it, since
    /// releases may have one in their name.
    ///
    /// # Errors
    ///
    /// Returns a [`BadQuery`] for anything that it does not understand.
    pub fn parse(text: &str) -> Result<Query, BadQuery> {
        let mut query = Query::default();
        for part in text.split('&').filter(|_| !text.is_empty()) {
            let (key, value) = part
                .split_once('=')
                .ok_or(BadQuery::Malformed("a parameter has no value"))?;
            let value = decoded(value)?;
            if value.is_empty() {
                return Err(BadQuery::Malformed("a parameter has an empty value"));
            }
            match decoded(key)?.as_str() {
                "release" => query.releases.push(value),
                "bundle" => query.bundles.push(value),
                "bundles" if value == "all" => query.all_bundles = true,
                "bundles" => return Err(BadQuery::Unknown("`bundles` has only the value `all`")),
                _ => {
                    return Err(BadQuery::Unknown(
                        "the parameters are `release`, `bundle` and `bundles=all`",
                    ));
                }
            }
        }
        match query.releases.len() + query.bundles.len() > MOST_NAMES {
            true => Err(BadQuery::Malformed("it has more than 64 names")),
            false => Ok(query),
        }
    }

    /// Returns the path of a request with this query.
    pub fn path(&self) -> String {
        let releases = self.releases.iter().map(|name| ("release", name.as_str()));
        let bundles = self.bundles.iter().map(|name| ("bundle", name.as_str()));
        let all = self.all_bundles.then_some(("bundles", "all"));
        let mut path = "/ready".to_owned();
        for (at, (key, value)) in releases.chain(bundles).chain(all).enumerate() {
            path.push(if at == 0 { '?' } else { '&' });
            path.push_str(key);
            path.push('=');
            for byte in value.bytes() {
                match byte {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                        path.push(byte.into());
                    }
                    _ => write!(path, "%{byte:02X}").expect("a text takes everything"),
                }
            }
        }
        path
    }
}

/// Returns a text with its percent-encoded bytes decoded (RFC 3986, section 2.1).
fn decoded(text: &str) -> Result<String, BadQuery> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(BadQuery::Malformed("a percent sign begins no encoded byte"));
        };
        bytes.push(u8::try_from(high * 16 + low).expect("two digits are a byte"));
    }
    String::from_utf8(bytes).map_err(|_| BadQuery::Malformed("it is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(releases: &[&str], bundles: &[&str], all_bundles: bool) -> Query {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Query {
            releases: owned(releases),
            bundles: owned(bundles),
            all_bundles,
        }
    }

    #[test]
    fn a_query_is_read_as_it_was_written() {
        let table = [
            ("", query(&[], &[], false)),
            ("release=v1.2+3", query(&["v1.2+3"], &[], false)),
            (
                "bundle=a%20b.tar&release=r&bundle=%2Fos%2Fa.tar&bundles=all",
                query(&["r"], &["a b.tar", "/os/a.tar"], true),
            ),
            (
                "bundle=%C3%A4.tar%26&b%75ndle=b",
                query(&[], &["ä.tar&", "b"], false),
            ),
            ("bundle=a=b", query(&[], &["a=b"], false)),
        ];
        for (text, wanted) in table {
            assert_eq!(Query::parse(text), Ok(wanted.clone()), "{text}");
            let path = wanted.path();
            let (path, text) = path.split_once('?').unwrap_or((&path, ""));
            assert_eq!((path, Query::parse(text)), ("/ready", Ok(wanted)));
        }
    }

    #[test]
    fn a_query_that_is_not_understood_is_refused() {
        let many = ["bundle=a"; MOST_NAMES + 1].join("&");
        let malformed = [
            "release",
            "release=",
            "bundle=%",
            "bundle=%4",
            "bundle=%zz",
            "bundle=%+1",
            "bundle=%ff",
            "&",
            "bundle=a&",
            "=a&",
            &many,
        ];
        for text in malformed {
            let refused = Query::parse(text);
            assert!(
                matches!(refused, Err(BadQuery::Malformed(_))),
                "{text}: {refused:?}"
            );
        }
        for text in ["relaese=a", "bundles=some", "bundle=a&x=y", "=a", "Bundle=a"] {
            let refused = Query::parse(text);
            assert!(
                matches!(refused, Err(BadQuery::Unknown(_))),
                "{text}: {refused:?}"
            );
        }
        assert!(Query::parse(&many[9..]).is_ok());
    }
}
