//! Digests at the border: which are accepted, and how bytes are checked against one.

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use crate::Foreign;

/// Parses a digest. Only sha256 and sha512 in lower-case hex are accepted; the reason quotes the text, as far as it is
/// no longer than a digest may be.
pub(crate) fn parse(text: &str) -> Result<Digest, String> {
    let shown = Foreign::new(text);
    let digest: Digest = text
        .parse()
        .map_err(|_| format!("{shown:.140?} is not a digest"))?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha512 => Ok(digest),
        _ => Err(format!("digest {shown:.140?} is neither sha256 nor sha512")),
    }
}

/// Parses a digest where only sha256 will do.
pub(crate) fn parse_sha256(text: &str) -> Result<Digest, String> {
    let digest = parse(text)?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(digest),
        _ => Err(format!("digest {text:?} is not sha256")),
    }
}

/// The name of a digest's blob in an OCI image layout (image-spec, "Image Layout").
pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.digest())
}

/// The sha256 of bytes that are at hand.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::sha256();
    hasher.update(bytes);
    hasher.finish()
}

/// The digest of a sha256 that was computed elsewhere.
pub(crate) fn of_sha256(hash: &[u8; 32]) -> Digest {
    let text = format!("sha256:{}", hex(hash));
    text.parse().expect("hex of the algorithm's length is a digest")
}

/// Whether bytes are what a digest says.
pub(crate) fn fits(bytes: &[u8], digest: &Digest) -> bool {
    let mut hasher = Hasher::of(digest);
    hasher.update(bytes);
    hasher.finish() == *digest
}

/// Computes a digest piece by piece.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// A hasher of the digest's algorithm, which [`parse`] has accepted.
    pub(crate) fn of(digest: &Digest) -> Self {
        match digest.algorithm() {
            DigestAlgorithm::Sha512 => Self::Sha512(Sha512::new()),
            _ => Self::sha256(),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let text = match self {
            Self::Sha256(hasher) => format!("sha256:{}", hex(&hasher.finalize())),
            Self::Sha512(hasher) => format!("sha512:{}", hex(&hasher.finalize())),
        };
        text.parse().expect("hex of the algorithm's length is a digest")
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes any text");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_sha256_and_sha512_in_lower_case_hex_are_digests() {
        let hex = "0123456789abcdef".repeat(4);
        let rows = [
            (format!("sha256:{hex}"), true),
            (format!("sha512:{hex}{hex}"), true),
            (format!("sha512:{hex}"), false),
            (format!("sha384:{}", &"ab".repeat(48)), false),
            (format!("sha256:{}", hex.to_uppercase()), false),
            (format!("sha256:{}", &hex[1..]), false),
            ("md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(), false),
            ("sha256:../../etc/passwd".to_owned(), false),
            (hex.clone(), false),
            (String::new(), false),
        ];
        for (text, accepted) in rows {
            assert_eq!(parse(&text).is_ok(), accepted, "{text}");
        }
    }

    #[test]
    fn bytes_fit_the_digest_of_their_own_algorithm() {
        // FIPS 180-2, appendix C.1: SHA-512 of "abc".
        let sha512 = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                      2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";
        assert!(fits(b"abc", &parse(sha512).unwrap()));
        assert!(!fits(b"abd", &parse(sha512).unwrap()));
        assert!(fits(b"abc", &sha256(b"abc")));
    }
}
