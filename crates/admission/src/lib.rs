//! Signed admission: keys, signatures, lists, and the verdict on a bundle by them.
//!
//! One value is checked: each proof ends in the digest of a bundle's catalog. A proof speaks of the
//! catalog itself, or of the bundle file's bytes. [`judge`] takes keys, revocations and proofs as
//! values and returns a [`Judgement`].
//!
//! The crate is pure. No function here opens a file, reads a clock, or knows bundles or containerd.
//! Each parser bounds its input, and any bytes end in a value or in a problem with its remedy.

mod judge;
mod key;
mod list;
mod proof;
mod revoked;
mod signature;

pub use judge::{Admission, Bytes, Flaw, Judgement, Policy, Question, Reason, Refusal, Signer, judge};
pub use key::{Key, KeyKind, KeyProblem, Keys, TrustedKey};
pub use list::{HEADER, Hashes, List, ListProblem};
pub use proof::{Proof, Reach, SignedList};
pub use revoked::Revocations;
pub use signature::{Form, Signature, SignatureProblem, Signed};

/// Largest file with a public key, in bytes. A key in PEM has some 200.
pub const LARGEST_KEY: u64 = 16 << 10;

/// Largest file with a signature, in bytes. A Sigstore bundle with an entry of a log has some 5 kB.
pub const LARGEST_SIGNATURE: u64 = 64 << 10;

/// Largest list, in bytes. It has space for some 30 000 files.
pub const LARGEST_LIST: u64 = 4 << 20;

/// Most signatures for one bundle. Each costs a verification with each key.
pub const MOST_SIGNATURES: usize = 8;

/// Most trusted keys. Each is tried on each signature.
pub const MOST_KEYS: usize = 64;

/// A sha256 as bytes. Lists hold many, and a digest as text would take three times the memory.
type Hash = [u8; 32];

/// Returns the bytes of a digest if it is a sha256.
fn hash_of(digest: &oci_spec::image::Digest) -> Option<Hash> {
    hash_in(digest.as_ref().strip_prefix("sha256:")?.as_bytes())
}

/// Reads exactly 64 hexadecimal digits of either case.
fn hash_in(hex: &[u8]) -> Option<Hash> {
    let nibble = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut hash = [0; 32];
    let (pairs, rest) = hex.as_chunks::<2>();
    if pairs.len() != hash.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in hash.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(hash)
}
