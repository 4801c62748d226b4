//! Proofs: a signature file, and the signed list or the bundle file that it speaks of.

use std::sync::Arc;

use basics::Foreign;

use crate::Hash;
use crate::list::{List, ListProblem};
use crate::signature::{Form, Signature, SignatureProblem, Signed};

/// A list with its text, since a signature speaks of the text. Several proofs share it.
#[derive(Clone, Debug)]
pub struct SignedList {
    name: String,
    text: Vec<u8>,
    hash: Option<Hash>,
    pub(crate) list: Result<List, ListProblem>,
}

impl SignedList {
    /// Reads the text of a list.
    #[must_use]
    pub fn new(name: &str, text: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            list: List::parse(&text),
            hash: Signed::text(&text).hash,
            text,
        }
    }

    /// Notes a list that cannot be read, and why. Its proofs do not count.
    #[must_use]
    pub fn unreadable(name: &str, why: String) -> Self {
        Self {
            name: name.to_owned(),
            list: Err(ListProblem::Unreadable(why)),
            text: Vec::new(),
            hash: None,
        }
    }

    /// Returns the text as that which is signed. The sha256 was computed before.
    pub(crate) fn signed(&self) -> Signed<'_> {
        Signed {
            text: Some(&self.text),
            hash: self.hash,
        }
    }

    /// Returns the name of the list's file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the text that signatures speak of.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

/// The bundles that a proof speaks of by its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The proof lies beside the bundle. If it speaks of another bundle, it is a wrong proof.
    Bundle,
    /// The proof lies in a folder for all bundles. It can admit a bundle and never refuses it.
    All,
}

/// A signature that was found for a bundle.
#[derive(Clone, Debug)]
pub struct Proof {
    name: String,
    form: Form,
    bytes: Vec<u8>,
    reach: Reach,
    pub(crate) signature: Result<Signature, SignatureProblem>,
    list: Option<Arc<SignedList>>,
}

impl Proof {
    /// Reads the bytes of a signature file over a list, or over the bundle file itself.
    #[must_use]
    pub fn new(name: &str, form: Form, bytes: Vec<u8>, list: Option<Arc<SignedList>>, reach: Reach) -> Self {
        Self {
            name: name.to_owned(),
            form,
            signature: Signature::parse(form, &bytes),
            bytes,
            reach,
            list,
        }
    }

    /// Notes a signature file that cannot be read, and why.
    #[must_use]
    pub fn unreadable(
        name: &str,
        form: Form,
        why: String,
        list: Option<Arc<SignedList>>,
        reach: Reach,
    ) -> Self {
        Self {
            name: name.to_owned(),
            form,
            signature: Err(SignatureProblem::Unreadable(why)),
            bytes: Vec::new(),
            reach,
            list,
        }
    }

    /// Returns the name of the signature's file.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name of the signature's file for messages.
    #[must_use]
    pub fn shown_name(&self) -> Foreign<&str> {
        Foreign::new(&self.name)
    }

    /// Returns the form of the signature's file.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Returns the bytes of the signature's file, to keep as evidence.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the signed list, or `None` if the signature speaks of the bundle file itself.
    #[must_use]
    pub fn list(&self) -> Option<&Arc<SignedList>> {
        self.list.as_ref()
    }

    /// Returns the bundles that the proof speaks of.
    #[must_use]
    pub fn reach(&self) -> Reach {
        self.reach
    }
}
