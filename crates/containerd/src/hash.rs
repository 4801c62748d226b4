//! Hashing bytes the way a digest asks for.

use oci_spec::image::{Digest, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha512};

/// Hashes by the algorithm of a digest.
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// The hasher for a digest that was checked to be of a supported kind.
    pub(crate) fn of(digest: &Digest) -> Hasher {
        match digest.algorithm() {
            DigestAlgorithm::Sha512 => Hasher::Sha512(Sha512::new()),
            _ => Hasher::Sha256(Sha256::new()),
        }
    }

    /// The hasher for what containerd says is a digest; `None` if it is of a kind we do not know.
    pub(crate) fn of_text(digest: &str) -> Option<Hasher> {
        match digest.split_once(':')?.0 {
            "sha256" => Some(Hasher::Sha256(Sha256::new())),
            "sha512" => Some(Hasher::Sha512(Sha512::new())),
            _ => None,
        }
    }

    /// The digest of all of `bytes`.
    pub(crate) fn digest_of(mut self, bytes: &[u8]) -> String {
        self.update(bytes);
        self.finish()
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hash) => hash.update(bytes),
            Hasher::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all that was hashed.
    pub(crate) fn finish(self) -> String {
        match self {
            Hasher::Sha256(hash) => format!("sha256:{}", hex(&hash.finalize())),
            Hasher::Sha512(hash) => format!("sha512:{}", hex(&hash.finalize())),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_computed_by_their_own_algorithm() {
        let empty_sha256 = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(
            Hasher::of_text(empty_sha256).expect("known").digest_of(b""),
            empty_sha256
        );
        let sha512 = Hasher::of_text("sha512:").expect("known").digest_of(b"");
        assert!(
            sha512.starts_with("sha512:cf83e1357eefb8bd") && sha512.len() == 7 + 128,
            "{sha512}"
        );
        assert!(Hasher::of_text("md5:x").is_none());
        assert!(Hasher::of_text("").is_none());
    }
}
