//! Judges an answer: a success, a redirect or a refusal, and whether its body is the requested one.

use std::time::Duration;

use basics::Foreign;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Response, StatusCode};
use serde::Deserialize;

use crate::Error;
use crate::body::whole;
use crate::subject::Subject;

/// Largest answer in bytes that is not the requested body: of a token service, or the text of an
/// error.
pub(crate) const LARGEST_ANSWER: u64 = 1 << 20;

/// Returns the answer if it is a success.
///
/// # Errors
///
/// Returns the refusal with the registry's own message.
pub(crate) async fn success(response: Response, subject: Subject<'_>) -> Result<Response, Error> {
    if response.status().is_success() {
        return Ok(response);
    }
    let (status, retry_after) = (response.status(), retry_after(response.headers()));
    let message = match whole(response, LARGEST_ANSWER, subject).await {
        Ok(bytes) => message_in(&bytes),
        Err(_) => String::new(),
    };
    Err(refusal(status, retry_after, message, subject))
}

/// Returns the error for a status.
fn refusal(
    status: StatusCode,
    retry_after: Option<Duration>,
    message: String,
    subject: Subject<'_>,
) -> Error {
    let (what, host) = (subject.what.to_owned(), subject.location.host.clone());
    match status {
        StatusCode::NOT_FOUND => Error::NotFound { what, host, message },
        StatusCode::FORBIDDEN if message.is_empty() => subject.denied("forbidden"),
        StatusCode::FORBIDDEN => subject.denied(message),
        status => Error::Status {
            what,
            host,
            status: status.as_u16(),
            message,
            retry_after: retry_after.filter(|_| status == StatusCode::TOO_MANY_REQUESTS),
        },
    }
}

/// Returns the seconds in `Retry-After`. Its other form, a date, depends on both clocks and is
/// ignored.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Returns the registry's message about its refusal, in one line (distribution-spec, "Error
/// Codes").
fn message_in(body: &[u8]) -> String {
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
    let Ok(envelope) = serde_json::from_slice::<Envelope>(body) else {
        return String::new();
    };
    let texts = envelope
        .errors
        .iter()
        .map(|problem| match problem.message.as_str() {
            "" => problem.code.as_str(),
            message => message,
        });
    let text = texts.collect::<Vec<_>>().join("; ");
    format!("{:.300}", Foreign::new(text))
}

/// Returns the target of a redirect, if the answer is one.
pub(crate) fn redirect_of(response: &Response) -> Option<&str> {
    let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    let location = response.headers().get(LOCATION).filter(|_| is_redirect)?;
    // A target that is not text leads nowhere.
    Some(location.to_str().unwrap_or("https://"))
}

/// Returns the media type of a body without its parameters, or an empty text if the registry sent
/// none.
pub(crate) fn content_type_of(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE);
    let text = value.and_then(|value| value.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_owned()
}

/// Refuses a body with a content coding if no digest proves its bytes. The client never requests a
/// coding. Some stores name a coding for bytes that are the requested ones (`aws-chunked`, and
/// `x-gzip` for a gzip layer).
///
/// # Errors
///
/// Returns [`Error::Document`], which names the coding.
pub(crate) fn undecoded(response: &Response, subject: Subject<'_>) -> Result<(), Error> {
    match encoding_of(response) {
        None => Ok(()),
        Some(encoding) => Err(subject.unusable(format!(
            "{} sent Content-Encoding {encoding}, which airgapd did not request and does not decode",
            subject.location.host
        ))),
    }
}

/// Returns the coding of a body, if it has one.
fn encoding_of(response: &Response) -> Option<String> {
    let encoding = response.headers().get(CONTENT_ENCODING)?.to_str().unwrap_or("?");
    let is_itself = encoding.is_empty() || encoding.eq_ignore_ascii_case("identity");
    (!is_itself).then(|| encoding.chars().filter(char::is_ascii_graphic).take(40).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::locations::locations;

    #[test]
    fn the_words_of_a_registry_are_one_line_that_drives_no_terminal() {
        let rows = [
            (
                r#"{"errors":[{"code":"DENIED","message":"not for you"}]}"#,
                "not for you",
            ),
            (
                r#"{"errors":[{"code":"DENIED"},{"code":"X","message":"y"}]}"#,
                "DENIED; y",
            ),
            (
                r#"{"errors":[{"message":"a\nb\u001b[2J\u202ec"}]}"#,
                "a\\nb\\u{1b}[2J\\u{202e}c",
            ),
            (r#"{"errors":[]}"#, ""),
            ("<html>", ""),
        ];
        for (body, said) in rows {
            assert_eq!(message_in(body.as_bytes()), said, "{body}");
        }
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "a".repeat(1000));
        assert_eq!(message_in(long.as_bytes()).len(), 303);
    }

    #[test]
    fn only_too_many_requests_come_with_a_wait() {
        let location = locations("registry.test/app", &[], &[]).remove(0);
        let subject = Subject {
            what: "app",
            location: &location,
        };
        for (code, header, expected) in [
            (429, Some("7"), Some(Duration::from_secs(7))),
            (429, Some("Wed, 21 Oct 2026 07:28:00 GMT"), None),
            (429, Some("-1"), None),
            (429, None, None),
            (503, Some("7"), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(header.map(|text| (RETRY_AFTER, text.parse().unwrap())));
            let status = StatusCode::from_u16(code).unwrap();
            let error = refusal(status, retry_after(&headers), String::new(), subject);
            assert_eq!(error.retry_after(), expected, "{code} {header:?}");
        }
    }
}
