//! Public keys: ECDSA P-256 and Ed25519 in PEM, and minisign's.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use basics::digest;
use oci_spec::image::Digest;
use p256::ecdsa::VerifyingKey;
use p256::ecdsa::signature::hazmat::PrehashVerifier as _;
use p256::pkcs8::spki::SubjectPublicKeyInfoRef;
use p256::pkcs8::{Document, EncodePublicKey as _, ObjectIdentifier};
use ring::signature::{ED25519, UnparsedPublicKey};

use crate::signature::{Made, Signature, Signed};
use crate::{LARGEST_KEY, MOST_KEYS, hash_of};

/// Algorithm of an elliptic-curve key (RFC 5480, 2.1.1).
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");

/// The curve P-256 (RFC 5480, 2.1.1.1).
const P256_CURVE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");

/// Algorithm of an Ed25519 key (RFC 8410, 3).
const ED25519_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Algorithm of an RSA key (RFC 8017, A.1).
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");

/// DER of an Ed25519 key up to the 32 bytes of the key (RFC 8410, 4).
const ED25519_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// The kind of a public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyKind {
    /// ECDSA on the curve P-256, with SHA-256: the key of `cosign generate-key-pair`.
    P256,
    /// Ed25519 over the whole text. It signs lists only.
    Ed25519,
    /// Ed25519 in minisign's form. It signs lists only.
    Minisign,
}

impl KeyKind {
    /// Returns the kind's name in messages and documents. JSON has the same names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::P256 => "p256",
            Self::Ed25519 => "ed25519",
            Self::Minisign => "minisign",
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The reason why a file holds no usable public key. Each message ends with the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyProblem {
    /// The file is larger than [`LARGEST_KEY`].
    #[error("it is larger than {LARGEST_KEY} bytes: a file has one public key")]
    TooLarge,
    /// The file is neither PEM nor a key of minisign, or a cut or altered key.
    #[error("it is no whole public key in PEM or in minisign's form: copy the key again")]
    Unreadable,
    /// The file has a private key.
    #[error("it has a private key: remove it from this machine, and put the public key here")]
    Private,
    /// The PEM block is something else, such as a certificate.
    #[error("it has a {0}: put a PUBLIC KEY here")]
    NoKey(String),
    /// The key is of another kind, such as RSA or P-384.
    #[error("its kind is {0}: use an ECDSA key on P-256, an Ed25519 key, or a key of minisign")]
    Kind(String),
}

/// A public key that can make signatures valid.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    material: Material,
    fingerprint: Digest,
}

#[derive(Clone, PartialEq, Eq)]
enum Material {
    P256(Box<VerifyingKey>),
    Ed25519([u8; 32]),
    Minisign(Box<minisign_verify::PublicKey>, [u8; 8]),
}

impl Key {
    /// Reads the text of a key file: one PEM block `PUBLIC KEY`, or a key of minisign with or
    /// without its comment.
    ///
    /// # Errors
    ///
    /// Returns why the text is no usable key, and what to do.
    pub fn parse(text: &[u8]) -> Result<Self, KeyProblem> {
        if text.len() as u64 > LARGEST_KEY {
            return Err(KeyProblem::TooLarge);
        }
        let text = std::str::from_utf8(text).map_err(|_| KeyProblem::Unreadable)?;
        match text.contains("-----BEGIN ") {
            true => Self::from_pem(text),
            false => Self::from_minisign(text),
        }
    }

    fn from_pem(text: &str) -> Result<Self, KeyProblem> {
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyProblem::Private);
        }
        let (label, document) = Document::from_pem(text.trim()).map_err(|_| KeyProblem::Unreadable)?;
        if label != "PUBLIC KEY" {
            return Err(KeyProblem::NoKey(basics::foreign::shown(label)));
        }
        let info: SubjectPublicKeyInfoRef<'_> = document.decode_msg().map_err(|_| KeyProblem::Unreadable)?;
        match info.algorithm.oid {
            EC => {
                let named = info.algorithm.parameters_oid();
                if named.is_ok_and(|curve| curve != P256_CURVE) {
                    return Err(KeyProblem::Kind("an elliptic curve other than P-256".to_owned()));
                }
                let key = VerifyingKey::try_from(info).map_err(|_| KeyProblem::Unreadable)?;
                let der = key.to_public_key_der().map_err(|_| KeyProblem::Unreadable)?;
                Ok(Self {
                    material: Material::P256(Box::new(key)),
                    fingerprint: digest::sha256(der.as_bytes()),
                })
            }
            ED25519_KEY => {
                let key = info.subject_public_key.as_bytes();
                let key = key.and_then(|key| key.try_into().ok());
                key.filter(|_| info.algorithm.parameters.is_none())
                    .map(|key| Self::ed25519(Material::Ed25519(key), &key))
                    .ok_or(KeyProblem::Unreadable)
            }
            RSA => Err(KeyProblem::Kind("RSA".to_owned())),
            other => Err(KeyProblem::Kind(format!("the algorithm {other}"))),
        }
    }

    fn from_minisign(text: &str) -> Result<Self, KeyProblem> {
        let lines: Vec<_> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        let line = match lines[..] {
            [line] => line,
            [comment, line] if comment.starts_with("untrusted comment:") => line,
            _ => return Err(KeyProblem::Unreadable),
        };
        let bytes = STANDARD.decode(line).map_err(|_| KeyProblem::Unreadable)?;
        // Two letters for the algorithm, eight bytes for the number, 32 for the key.
        let Ok(bytes) = <[u8; 42]>::try_from(bytes) else {
            return Err(match text.contains("secret key") {
                true => KeyProblem::Private,
                false => KeyProblem::Unreadable,
            });
        };
        let (head, key) = bytes.split_last_chunk::<32>().expect("42 bytes are more than 32");
        let (_, number) = head.split_last_chunk::<8>().expect("10 bytes are more than 8");
        let public = minisign_verify::PublicKey::from_base64(line).map_err(|_| KeyProblem::Unreadable)?;
        Ok(Self::ed25519(Material::Minisign(Box::new(public), *number), key))
    }

    fn ed25519(material: Material, key: &[u8; 32]) -> Self {
        Self {
            material,
            fingerprint: digest::sha256(&[&ED25519_PREFIX[..], key].concat()),
        }
    }

    /// Returns the sha256 of the key's SubjectPublicKeyInfo in DER, with a point that is not
    /// compressed. `openssl pkey -pubin -outform DER | sha256sum` prints the same for a PEM key. A
    /// key of minisign has the fingerprint of its Ed25519 key.
    #[must_use]
    pub fn fingerprint(&self) -> &Digest {
        &self.fingerprint
    }

    /// Returns the first 16 hexadecimal digits of the fingerprint, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        &self.fingerprint.digest()[..16]
    }

    /// Returns the kind of the key.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match self.material {
            Material::P256(_) => KeyKind::P256,
            Material::Ed25519(_) => KeyKind::Ed25519,
            Material::Minisign(..) => KeyKind::Minisign,
        }
    }

    /// Returns true if this key made the signature over these bytes.
    ///
    /// A key of minisign makes only signatures of minisign valid, and the other keys none of them.
    /// Ed25519 hashes the signed bytes itself, so only P-256 can speak of a [`Signed::file`].
    #[must_use]
    pub fn verifies(&self, signature: &Signature, signed: Signed<'_>) -> bool {
        if !signature.speaks_of(signed) {
            return false;
        }
        let Signed { text, hash } = signed;
        match (&self.material, &signature.made) {
            (Material::P256(key), Made::P256(made)) => {
                hash.is_some_and(|hash| key.verify_prehash(&hash, made).is_ok())
            }
            (Material::Ed25519(key), Made::Ed25519(made)) => {
                let key = UnparsedPublicKey::new(&ED25519, key);
                text.is_some_and(|text| key.verify(text, made).is_ok())
            }
            (Material::Minisign(key, _), Made::Minisign(made, _)) => {
                text.is_some_and(|text| key.verify(text, made, false).is_ok())
            }
            _ => false,
        }
    }

    /// Returns true if the signature names this key as its maker. Names are no proof, they make
    /// messages better.
    pub(crate) fn is_named_by(&self, signature: &Signature) -> bool {
        match (&self.material, &signature.made) {
            (Material::Minisign(_, own), Made::Minisign(_, number)) => own == number,
            _ => signature.hint.is_some() && signature.hint == hash_of(&self.fingerprint),
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({} {})", self.kind(), self.short())
    }
}

/// A key that root has placed on the node, with the name that its file gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedKey {
    /// Name of the key: its file's name without `.pub`. No other trusted key has the name. It leads
    /// to the patterns of the image names that the key may sign.
    pub name: String,
    /// The key.
    pub key: Key,
}

impl fmt::Display for TrustedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", basics::foreign::shown(&self.name), self.key.short())
    }
}

/// The trusted keys of a node, and why other files of their folder do not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    usable: Vec<TrustedKey>,
    problems: Vec<String>,
}

impl Keys {
    /// Takes the keys that the folder holds, and a sentence for each file there that is no usable
    /// key. With more than [`MOST_KEYS`] keys, none is usable.
    #[must_use]
    pub fn new(usable: Vec<TrustedKey>, problems: Vec<String>) -> Self {
        match usable.len() {
            0..=MOST_KEYS => Self { usable, problems },
            found => Self::unusable(format!(
                "there are {found} keys, and at most {MOST_KEYS} can be used: remove some"
            )),
        }
    }

    /// Takes the reason why the folder of keys cannot be used at all.
    #[must_use]
    pub fn unusable(why: String) -> Self {
        Self {
            usable: Vec::new(),
            problems: vec![why],
        }
    }

    /// Returns the usable keys.
    #[must_use]
    pub fn usable(&self) -> &[TrustedKey] {
        &self.usable
    }

    /// Returns why no key can be used. `None` if there is a usable key.
    #[must_use]
    pub fn lack(&self) -> Option<String> {
        match (self.usable.is_empty(), &self.problems[..]) {
            (false, _) => None,
            (true, []) => Some("place a public key in the folder of trusted keys".to_owned()),
            (true, problems) => Some(problems.join(". ")),
        }
    }

    /// Returns true if a key can sign a bundle file. Without such a key, a pass would be in vain.
    pub(crate) fn may_sign_files(&self) -> bool {
        self.usable
            .iter()
            .any(|trusted| trusted.key.kind() == KeyKind::P256)
    }

    /// Returns why the folder or files in it do not count.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.problems
    }
}
