//! Digests as texts, `algorithm:hex`, and the running hash of an ingest.

use basics::digest::Hasher;

/// Returns the hasher of an ingest: sha512 if the expected digest has it and the emulated version
/// supports it, else sha256.
pub(crate) fn hasher_for(expected: &str, sha512: bool) -> Hasher {
    match sha512 && expected.starts_with("sha512:") {
        true => Hasher::sha512(),
        false => Hasher::sha256(),
    }
}

/// Returns the sha256 digest of `bytes` in containerd's spelling.
pub fn sha256(bytes: &[u8]) -> String {
    basics::digest::sha256(bytes).to_string()
}

/// Returns true if containerd's parser accepts a text as a digest.
pub(crate) fn is_valid(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == length && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Returns the first digest in an ingest ref.
pub(crate) fn within(reference: &str) -> Option<&str> {
    ["sha256:", "sha512:"].iter().find_map(|algorithm| {
        let start = reference.find(algorithm)?;
        let rest = &reference[start + algorithm.len()..];
        let hex = rest.bytes().take_while(u8::is_ascii_hexdigit).count();
        let digest = &reference[start..start + algorithm.len() + hex];
        is_valid(digest).then_some(digest)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_found_inside_an_ingest_ref() {
        let digest = sha256(b"layer");
        assert_eq!(within(&format!("airgapd-{digest}")), Some(digest.as_str()));
        assert_eq!(within(&digest), Some(digest.as_str()));
        for reference in ["", "tar-blobs/sha256/abc", "airgapd-sha256:abc", "sha256:"] {
            assert_eq!(within(reference), None, "{reference}");
        }
    }

    #[test]
    fn only_complete_lower_case_digests_are_valid() {
        assert!(is_valid(&sha256(b"")));
        for text in [
            "",
            "sha256",
            "sha256:",
            "md5:00",
            &sha256(b"").to_uppercase(),
            &sha256(b"")[..70],
        ] {
            assert!(!is_valid(text), "{text}");
        }
    }
}
