//! Digests: parsing, computing and checking.
//!
//! Every crate parses and computes digests here, so that all of them accept the same digests
//! (image-spec, "Digests").

use std::fmt::Write as _;
use std::io::{self, Read};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

use crate::Foreign;

/// Length of the pieces in which [`of`] reads, in bytes.
const PIECE: usize = 128 << 10;

/// Parses a digest. Only sha256 and sha512 in lower-case hex are accepted.
///
/// # Errors
///
/// Returns the reason, which quotes the text up to the length that a digest may have.
pub fn parse(text: &str) -> Result<Digest, String> {
    let shown = Foreign::new(text);
    let digest: Digest = text
        .parse()
        .map_err(|_| format!("{shown:.140?} is not a digest"))?;
    match is_accepted(&digest) {
        true => Ok(digest),
        false => Err(format!("digest {shown:.140?} is neither sha256 nor sha512")),
    }
}

/// Returns true if the digest is of an algorithm that every containerd and every bundle may use:
/// sha256 or sha512.
#[must_use]
pub fn is_accepted(digest: &Digest) -> bool {
    matches!(
        digest.algorithm(),
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha512
    )
}

/// Parses a digest and accepts sha256 only.
///
/// # Errors
/// Returns the reason, which quotes the text.
pub fn parse_sha256(text: &str) -> Result<Digest, String> {
    let digest = parse(text)?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 => Ok(digest),
        _ => Err(format!("digest {text:?} is not sha256")),
    }
}

/// Returns the sha256 of bytes in memory.
#[must_use]
pub fn sha256(bytes: &[u8]) -> Digest {
    of_sha256(&Sha256::digest(bytes).into())
}

/// Returns the first 16 hexadecimal digits of the sha256 of bytes in memory, as a short id.
#[must_use]
pub fn short(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes)[..8])
}

/// Returns the sha512 of bytes in memory.
#[must_use]
pub fn sha512(bytes: &[u8]) -> Digest {
    named("sha512", &Sha512::digest(bytes))
}

/// Returns the digest of a sha256 that was computed elsewhere.
#[must_use]
pub fn of_sha256(hash: &[u8; 32]) -> Digest {
    named("sha256", hash)
}

/// Returns true if bytes have this digest, by its own algorithm.
#[must_use]
pub fn fits(bytes: &[u8], digest: &Digest) -> bool {
    like(digest, bytes) == *digest
}

/// Returns the digest of bytes by the algorithm of another digest.
#[must_use]
pub fn like(digest: &Digest, bytes: &[u8]) -> Digest {
    Hasher::of(digest).digest_of(bytes)
}

/// Returns the sentence for bytes whose digest is not the expected one. All messages use this
/// sentence.
#[must_use]
pub fn mismatch(wanted: &Digest, found: &Digest) -> String {
    format!("its bytes hash to {found}, not {wanted}")
}

/// Reads a source to its end and returns the digest of its bytes.
///
/// # Errors
///
/// Returns the first error of the source, an interrupted read included.
pub fn of(source: &mut impl Read, mut hasher: Hasher) -> io::Result<Digest> {
    let mut piece = vec![0; PIECE];
    loop {
        match source.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&piece[..n]),
        }
    }
}

/// Returns lower-case hexadecimal digits, two for each byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("a String takes any text");
    }
    text
}

fn named(algorithm: &str, hash: &[u8]) -> Digest {
    let text = format!("{algorithm}:{}", hex(hash));
    text.parse().expect("hex of the algorithm's length is a digest")
}

/// Computes a digest piece by piece.
#[derive(Clone, Debug)]
pub struct Hasher(Algorithm);

#[derive(Clone, Debug)]
enum Algorithm {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// Returns a hasher of sha256.
    #[must_use]
    pub fn sha256() -> Self {
        Self(Algorithm::Sha256(Sha256::new()))
    }

    /// Returns a hasher of sha512.
    #[must_use]
    pub fn sha512() -> Self {
        Self(Algorithm::Sha512(Sha512::new()))
    }

    /// Returns a hasher of the digest's algorithm: sha512, or sha256 for all others. [`parse`]
    /// accepts no third algorithm.
    #[must_use]
    pub fn of(digest: &Digest) -> Self {
        match digest.algorithm() {
            DigestAlgorithm::Sha512 => Self::sha512(),
            _ => Self::sha256(),
        }
    }

    /// Returns an empty hasher of the same algorithm.
    #[must_use]
    pub fn fresh(&self) -> Self {
        match self.0 {
            Algorithm::Sha256(_) => Self::sha256(),
            Algorithm::Sha512(_) => Self::sha512(),
        }
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Algorithm::Sha256(hasher) => hasher.update(bytes),
            Algorithm::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// Returns the digest of all bytes.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            Algorithm::Sha256(hasher) => named("sha256", &hasher.finalize()),
            Algorithm::Sha512(hasher) => named("sha512", &hasher.finalize()),
        }
    }

    /// Returns the digest of the bytes so far followed by `bytes`.
    #[must_use]
    pub fn digest_of(mut self, bytes: &[u8]) -> Digest {
        self.update(bytes);
        self.finish()
    }
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
        assert_eq!(super::sha512(b"abc").as_ref(), sha512);
        assert!(fits(b"abc", &parse(sha512).unwrap()));
        assert!(!fits(b"abd", &parse(sha512).unwrap()));
        assert!(fits(b"abc", &sha256(b"abc")));
        for text in [
            sha512,
            "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        ] {
            let digest = parse(text).unwrap();
            assert_eq!(of(&mut &b"abc"[..], Hasher::of(&digest)).unwrap(), digest);
            let mut used = Hasher::of(&digest);
            used.update(b"x");
            assert_eq!(used.fresh().digest_of(b"abc"), digest);
        }
    }
}
