//! Conversion between containerd's messages and the types of this crate.

use std::collections::{BTreeMap, HashMap};

use basics::digest;
use containerd_client::types;
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest, MediaType};

use crate::error::Error;

pub(crate) type Labels = BTreeMap<String, String>;

/// Reads labels. In containerd, an empty label means no label.
pub(crate) fn labels_from_wire(labels: HashMap<String, String>) -> Labels {
    labels
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .collect()
}

pub(crate) fn labels_to_wire(labels: &Labels) -> HashMap<String, String> {
    labels
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Returns the path of one label in a mask. An empty mask would replace the whole object.
pub(crate) fn label_path(key: &str) -> String {
    format!("labels.{key}")
}

/// Reads a digest of containerd. Returns `None` unless it is sha256 or sha512.
pub(crate) fn digest_from_wire(text: &str) -> Option<Digest> {
    digest::parse(text).ok()
}

/// Refuses a digest that oci-spec accepts and containerd does not.
pub(crate) fn check_digest(digest: &Digest) -> Result<(), Error> {
    if digest::is_accepted(digest) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{digest} is neither a sha256 nor a sha512 digest"
    )))
}

/// Reads a size or offset, which is signed on the wire. A negative one counts as 0.
pub(crate) fn size_from_wire(size: i64) -> u64 {
    u64::try_from(size).unwrap_or(0)
}

pub(crate) fn size_to_wire(size: u64) -> Result<i64, Error> {
    i64::try_from(size).map_err(|_| Error::Invalid(format!("{size} bytes is more than containerd can count")))
}

/// Reads a time. Go's zero time (year 1, from 1.6) and times out of range count as none.
pub(crate) fn time_from_wire(time: Option<prost_types::Timestamp>) -> Option<Timestamp> {
    let time = time.filter(|time| time.seconds > 0)?;
    Timestamp::new(time.seconds, time.nanos).ok()
}

pub(crate) fn descriptor_from_wire(descriptor: types::Descriptor) -> Option<Descriptor> {
    let digest = digest_from_wire(&descriptor.digest)?;
    let media_type = MediaType::from(descriptor.media_type.as_str());
    let mut target = Descriptor::new(media_type, size_from_wire(descriptor.size), digest);
    if !descriptor.annotations.is_empty() {
        target.set_annotations(Some(descriptor.annotations));
    }
    Some(target)
}

pub(crate) fn descriptor_to_wire(descriptor: &Descriptor) -> Result<types::Descriptor, Error> {
    check_digest(descriptor.digest())?;
    Ok(types::Descriptor {
        media_type: descriptor.media_type().to_string(),
        digest: descriptor.digest().to_string(),
        size: size_to_wire(descriptor.size())?,
        annotations: descriptor.annotations().clone().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gos_zero_time_is_no_time() {
        let zero = prost_types::Timestamp {
            seconds: -62_135_596_800,
            nanos: 0,
        };
        assert_eq!(time_from_wire(Some(zero)), None);
        assert_eq!(time_from_wire(Some(prost_types::Timestamp::default())), None);
        assert_eq!(
            time_from_wire(Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: 0
            })),
            None
        );
        let real = prost_types::Timestamp {
            seconds: 1_700_000_000,
            nanos: 5,
        };
        assert_eq!(
            time_from_wire(Some(real)).map(Timestamp::as_second),
            Some(1_700_000_000)
        );
    }

    #[test]
    fn descriptors_survive_the_round_trip_with_annotations_and_foreign_media_types() {
        let wire = types::Descriptor {
            media_type: "application/x-unheard-of".into(),
            digest: format!("sha256:{}", "a".repeat(64)),
            size: 7,
            annotations: HashMap::from([("k".to_owned(), "v".to_owned())]),
        };
        let ours = descriptor_from_wire(wire.clone()).expect("a good descriptor");
        assert_eq!(descriptor_to_wire(&ours).expect("a good descriptor"), wire);
    }

    #[test]
    fn only_sha256_and_sha512_are_digests() {
        for (text, good) in [
            (format!("sha256:{}", "a".repeat(64)), true),
            (format!("sha512:{}", "a".repeat(128)), true),
            (format!("sha384:{}", "a".repeat(96)), false),
            ("md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(), false),
            ("sha256:short".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(digest_from_wire(&text).is_some(), good, "{text}");
        }
    }
}
