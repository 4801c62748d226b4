//! Signatures as cosign, openssl and minisign write them into files.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use basics::digest;
use oci_spec::image::Digest;
use serde::Deserialize;

use crate::{Hash, LARGEST_SIGNATURE, hash_of};

/// Length of an Ed25519 signature, in bytes (RFC 8032, 5.1.6).
const ED25519_LENGTH: usize = 64;

/// Algorithm letters of a minisign signature over the BLAKE2b of a file.
const MINISIGN_HASHED: &[u8] = b"ED";

/// Algorithm letters of a minisign signature over the bytes of a file.
const MINISIGN_LEGACY: &[u8] = b"Ed";

/// The form of a signature file. The ending of its name decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `.sig`: an ECDSA signature in DER, or the 64 bytes of Ed25519, as they are or in base64.
    /// `cosign sign-blob --output-signature` and `openssl dgst -sign` make it.
    Plain,
    /// `.sigstore.json`: a Sigstore bundle with a message signature of a managed key. `cosign
    /// sign-blob --bundle` makes it.
    Sigstore,
    /// `.minisig`: a signature of minisign.
    Minisign,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::Plain, Self::Sigstore, Self::Minisign];

    /// Returns the ending that a signature's name adds to the name of the signed file.
    #[must_use]
    pub const fn ending(self) -> &'static str {
        match self {
            Self::Plain => ".sig",
            Self::Sigstore => ".sigstore.json",
            Self::Minisign => ".minisig",
        }
    }
}

/// The reason why a file holds no usable signature. Each message ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignatureProblem {
    /// The file is larger than [`LARGEST_SIGNATURE`].
    #[error("it is larger than {LARGEST_SIGNATURE} bytes: a file has one signature")]
    TooLarge,
    /// The file has no byte.
    #[error("it is empty: copy the signature again")]
    Empty,
    /// The file was cut or altered, or has another form than its ending says.
    #[error("it is no whole signature of the form {}: copy the signature again", .0.ending())]
    Broken(Form),
    /// The Sigstore bundle has a certificate instead of a key.
    #[error("it was signed without a key, by a certificate: sign with `cosign sign-blob --key`")]
    Keyless,
    /// The Sigstore bundle signs a statement about a file, as `cosign attest-blob` does.
    #[error("it signs a statement and not the file: sign with `cosign sign-blob --key`")]
    Statement,
    /// The file has the form that cosign wrote before Sigstore bundles.
    #[error("it has the form of older cosigns: sign with `cosign sign-blob --new-bundle-format`")]
    OldBundle,
    /// The media type of the Sigstore bundle is unknown.
    #[error("its media type is {0}, which this version does not know")]
    MediaType(String),
    /// The signature of minisign signs the bytes themselves, the form of versions before 0.11.
    #[error("it has minisign's legacy form: sign without `-l`, by minisign 0.10 with `-H`")]
    Legacy,
    /// The file cannot be read, in words of its reader.
    #[error("{0}")]
    Unreadable(String),
}

/// The bytes that a signature speaks of: a text in memory, or a file by its digest.
#[derive(Clone, Copy)]
pub struct Signed<'a> {
    /// The text. Ed25519 needs all bytes, since it does not sign a hash.
    pub(crate) text: Option<&'a [u8]>,
    /// The sha256 of the bytes. A file's digest by another algorithm has none.
    pub(crate) hash: Option<Hash>,
}

impl<'a> Signed<'a> {
    /// Takes a text, and hashes it once for all keys.
    #[must_use]
    pub fn text(text: &'a [u8]) -> Self {
        Self {
            text: Some(text),
            hash: hash_of(&digest::sha256(text)),
        }
    }

    /// Takes the sha256 of a file, which a pass over the file has computed.
    #[must_use]
    pub fn file(digest: &Digest) -> Self {
        Self {
            text: None,
            hash: hash_of(digest),
        }
    }
}

/// A signature as its file has it. Only [`Key::verifies`](crate::Key::verifies) says if it is
/// valid.
#[derive(Clone)]
pub struct Signature {
    pub(crate) made: Made,
    /// Sha256 of the signed bytes, if the signature names it.
    message: Option<Hash>,
    /// Fingerprint of the key, if the signature names it.
    pub(crate) hint: Option<Hash>,
}

/// The bytes of a signature by their kind.
#[derive(Clone)]
pub(crate) enum Made {
    P256(p256::ecdsa::Signature),
    Ed25519([u8; ED25519_LENGTH]),
    /// With the number of its key.
    Minisign(Box<minisign_verify::Signature>, [u8; 8]),
}

impl Signature {
    /// Reads the bytes of a signature file.
    ///
    /// # Errors
    ///
    /// Returns why the file has no usable signature, and what to do.
    pub fn parse(form: Form, bytes: &[u8]) -> Result<Self, SignatureProblem> {
        if bytes.len() as u64 > LARGEST_SIGNATURE {
            return Err(SignatureProblem::TooLarge);
        }
        if bytes.trim_ascii().is_empty() {
            return Err(SignatureProblem::Empty);
        }
        match form {
            Form::Plain => Ok(Self::bare(plain(bytes)?)),
            Form::Sigstore => sigstore(bytes),
            Form::Minisign => minisign(bytes).map(Self::bare),
        }
    }

    fn bare(made: Made) -> Self {
        Self {
            made,
            message: None,
            hint: None,
        }
    }

    /// Returns true if a pass over a file can show that the signature is valid. Ed25519 signs whole
    /// texts, so its signatures are for lists.
    pub(crate) fn may_sign_files(&self) -> bool {
        matches!(self.made, Made::P256(_))
    }

    /// Returns false if the signature names other bytes than these. The name itself is no proof.
    pub(crate) fn speaks_of(&self, signed: Signed<'_>) -> bool {
        self.message.is_none() || self.message == signed.hash
    }

    /// Returns the name of the key that the signature states, if it states one, as its tool shows
    /// it: the number of a minisign key, or the start of a fingerprint.
    pub(crate) fn stated_key(&self) -> Option<String> {
        match (&self.made, self.hint) {
            (Made::Minisign(_, number), _) => Some(format!("{:016X}", u64::from_le_bytes(*number))),
            (_, Some(hint)) => Some(digest::hex(&hint[..8])),
            _ => None,
        }
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.made {
            Made::P256(_) => "Signature(p256)",
            Made::Ed25519(_) => "Signature(ed25519)",
            Made::Minisign(..) => "Signature(minisign)",
        })
    }
}

/// Reads a signature as it is or in base64, with line breaks or without.
fn plain(bytes: &[u8]) -> Result<Made, SignatureProblem> {
    let letters: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    // base64 has no letter for the third byte of DER, nor for some of 64 random bytes.
    match STANDARD.decode(letters) {
        Ok(decoded) => made_of(&decoded),
        Err(_) => made_of(bytes),
    }
    .ok_or(SignatureProblem::Broken(Form::Plain))
}

/// Tells Ed25519 from ECDSA. A signature in DER is as short as 64 bytes once in 2^48.
fn made_of(bytes: &[u8]) -> Option<Made> {
    match bytes.try_into() {
        Ok(bytes) => Some(Made::Ed25519(bytes)),
        Err(_) => p256::ecdsa::Signature::from_der(bytes).ok().map(Made::P256),
    }
}

/// A Sigstore bundle, as far as a managed key needs it (sigstore/protobuf-specs,
/// `sigstore_bundle.proto`). The proofs of logs and clocks say nothing to a node without a network.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: Option<String>,
    verification_material: Option<Material>,
    message_signature: Option<MessageSignature>,
    dsse_envelope: Option<serde::de::IgnoredAny>,
    /// The signature of cosign's own form before Sigstore bundles.
    base64_signature: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Material {
    public_key: Option<KeyHint>,
}

#[derive(Deserialize)]
struct KeyHint {
    hint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MessageSignature {
    message_digest: Option<MessageDigest>,
    signature: String,
}

/// cosign 3 leaves the digest out of an Ed25519 signature, whose message was not hashed.
#[derive(Deserialize)]
struct MessageDigest {
    #[serde(default)]
    algorithm: String,
    #[serde(default)]
    digest: String,
}

/// The media types of Sigstore bundles that have the fields of [`Bundle`].
const MEDIA_TYPES: [&str; 4] = [
    "application/vnd.dev.sigstore.bundle.v0.3+json",
    "application/vnd.dev.sigstore.bundle+json;version=0.3",
    "application/vnd.dev.sigstore.bundle+json;version=0.2",
    "application/vnd.dev.sigstore.bundle+json;version=0.1",
];

fn sigstore(bytes: &[u8]) -> Result<Signature, SignatureProblem> {
    let broken = || SignatureProblem::Broken(Form::Sigstore);
    let bundle: Bundle = serde_json::from_slice(bytes).map_err(|_| broken())?;
    let Some(media_type) = bundle.media_type else {
        return Err(match bundle.base64_signature {
            Some(_) => SignatureProblem::OldBundle,
            None => broken(),
        });
    };
    if !MEDIA_TYPES.contains(&media_type.as_str()) {
        return Err(SignatureProblem::MediaType(basics::foreign::quoted(&media_type)));
    }
    let Some(message) = bundle.message_signature else {
        return Err(match bundle.dsse_envelope {
            Some(_) => SignatureProblem::Statement,
            None => broken(),
        });
    };
    let key = bundle.verification_material.ok_or_else(broken)?.public_key;
    let key = key.ok_or(SignatureProblem::Keyless)?;
    let sha256_in = |text: &str| -> Option<Hash> { STANDARD.decode(text).ok()?.try_into().ok() };
    let signed = match message.message_digest {
        Some(digest) if digest.algorithm == "SHA2_256" => Some(sha256_in(&digest.digest).ok_or_else(broken)?),
        _ => None,
    };
    let made = STANDARD.decode(message.signature).ok();
    Ok(Signature {
        made: made.as_deref().and_then(made_of).ok_or_else(broken)?,
        message: signed,
        hint: key.hint.as_deref().and_then(sha256_in),
    })
}

fn minisign(bytes: &[u8]) -> Result<Made, SignatureProblem> {
    let broken = || SignatureProblem::Broken(Form::Minisign);
    let text = std::str::from_utf8(bytes).map_err(|_| broken())?;
    let made = minisign_verify::Signature::decode(text).map_err(|_| broken())?;
    let line = text.lines().nth(1).ok_or_else(broken)?;
    let head = STANDARD.decode(line).map_err(|_| broken())?;
    // Two letters for the algorithm, eight bytes for the number of the key, 64 for the signature.
    let (letters, number) = head
        .get(..10)
        .and_then(<[u8]>::split_last_chunk::<8>)
        .ok_or_else(broken)?;
    match letters {
        MINISIGN_HASHED => Ok(Made::Minisign(Box::new(made), *number)),
        MINISIGN_LEGACY => Err(SignatureProblem::Legacy),
        _ => Err(broken()),
    }
}
