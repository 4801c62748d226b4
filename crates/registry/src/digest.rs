//! Digests of bytes at hand and of files.

use std::fmt::Write as _;
use std::io::{self, Read};

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

/// Parses a digest; only sha256 and sha512 are taken.
pub(crate) fn parse(text: &str) -> Result<Digest, String> {
    let digest: Digest = text.parse().map_err(|_| format!("{text:?} is not a digest"))?;
    match digest.algorithm() {
        DigestAlgorithm::Sha256 | DigestAlgorithm::Sha512 => Ok(digest),
        _ => Err(format!("digest {text:?} is neither sha256 nor sha512")),
    }
}

/// The sha256 of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    named("sha256", &Sha256::digest(bytes))
}

/// Whether bytes are what a digest says.
pub(crate) fn fits(mut bytes: &[u8], digest: &Digest) -> bool {
    of(&mut bytes, digest).is_ok_and(|found| found == *digest)
}

/// The digest of all that can be read, by the algorithm of `like`.
pub(crate) fn of(source: &mut impl Read, like: &Digest) -> io::Result<Digest> {
    match like.algorithm() {
        DigestAlgorithm::Sha512 => hash(source, Sha512::new()).map(|hash| named("sha512", &hash)),
        _ => hash(source, Sha256::new()).map(|hash| named("sha256", &hash)),
    }
}

fn hash<D: sha2::Digest>(source: &mut impl Read, mut hasher: D) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; 128 << 10];
    loop {
        match source.read(&mut piece)? {
            0 => return Ok(hasher.finalize().to_vec()),
            n => hasher.update(&piece[..n]),
        }
    }
}

fn named(algorithm: &str, hash: &[u8]) -> Digest {
    let mut text = format!("{algorithm}:");
    for byte in hash {
        write!(text, "{byte:02x}").expect("a String takes any text");
    }
    text.parse().expect("hex of the algorithm's length is a digest")
}
