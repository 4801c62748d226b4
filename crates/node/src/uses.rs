//! Finds which containers were made from which images. An operator wants to know this before an
//! image goes. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use containerd::{Container, ImageRecord};
use oci_spec::image::Digest;

/// Most containers that a line names.
const MOST_NAMED: usize = 5;
/// The labels that kubelet sets on its containers through CRI.
const POD: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const NAME: &str = "io.kubernetes.container.name";

/// The containers of a node, by the image that they were made from.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    by_target: HashMap<Digest, BTreeSet<String>>,
    by_name: HashMap<String, BTreeSet<String>>,
}

impl Uses {
    /// Returns the names of the records that containers were made from, as far as containers name
    /// them.
    pub(crate) fn names(containers: &[Container]) -> BTreeSet<&str> {
        let by_id = containers
            .iter()
            .filter_map(|container| container.image_id.as_deref());
        let by_name = containers.iter().map(|container| container.image.as_str());
        by_id.chain(by_name).filter(|name| !name.is_empty()).collect()
    }

    /// Finds the image that each container was made from. CRI's image id counts more than the name
    /// of a record, which may point elsewhere by now. CRI keeps a record under that id, with the
    /// same target as the records by name.
    pub(crate) fn of(containers: &[Container], records: &BTreeMap<String, ImageRecord>) -> Uses {
        let mut uses = Uses::default();
        for container in containers {
            let by_id = container.image_id.as_ref().and_then(|id| records.get(id));
            let record = by_id.or_else(|| records.get(&container.image));
            let users = match record {
                Some(record) => uses.by_target.entry(record.target.digest().clone()).or_default(),
                None => uses.by_name.entry(container.image.clone()).or_default(),
            };
            users.insert(shown(container));
        }
        uses
    }

    /// Returns the containers that were made from a record's target.
    pub(crate) fn users(&self, record: &ImageRecord) -> BTreeSet<&str> {
        let of_target = self.by_target.get(record.target.digest());
        let of_name = self.by_name.get(&record.name);
        let users = of_target.into_iter().chain(of_name).flatten();
        users.map(String::as_str).collect()
    }
}

/// Returns a few of the containers by name, and the number of the others.
pub(crate) fn listed(users: &BTreeSet<&str>) -> String {
    let named: Vec<&str> = users.iter().copied().take(MOST_NAMED).collect();
    let more = match users.len().saturating_sub(MOST_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("{}{more}", named.join(", "))
}

/// Returns a container's pod and name, or its id.
fn shown(container: &Container) -> String {
    let label = |key: &str| container.labels.get(key);
    match (label(POD_NAMESPACE), label(POD), label(NAME)) {
        (Some(namespace), Some(pod), Some(name)) => format!("{namespace}/{pod} ({name})"),
        (Some(namespace), Some(pod), None) => format!("{namespace}/{pod}"),
        _ => container.id.chars().take(13).collect(),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::image::{Descriptor, MediaType};

    use super::*;

    fn record(name: &str, fill: char) -> (String, ImageRecord) {
        let digest: Digest = format!("sha256:{}", fill.to_string().repeat(64)).parse().unwrap();
        let record = ImageRecord {
            name: name.to_owned(),
            target: Descriptor::new(MediaType::ImageIndex, 7, digest),
            labels: BTreeMap::new(),
            created_at: None,
        };
        (name.to_owned(), record)
    }

    fn container(id: &str, image: &str, image_id: Option<&str>) -> Container {
        Container {
            id: id.to_owned(),
            image: image.to_owned(),
            image_id: image_id.map(str::to_owned),
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_container_uses_every_record_of_its_image_and_no_other() {
        let records: BTreeMap<_, _> = [
            record("r.test/a:1", 'a'),
            record("r.test/a@sha256:aa", 'a'),
            record("sha256:ca", 'a'),
            record("r.test/b:1", 'b'),
            record("sha256:cb", 'b'),
        ]
        .into();
        let containers = [
            container("by-tag", "r.test/a:1", None),
            container("by-id", "sha256:ca", Some("sha256:ca")),
            // The tag moved from a to b after the container was made.
            container("moved", "r.test/b:1", Some("sha256:ca")),
            container("gone", "r.test/gone:1", Some("sha256:gone")),
            container("nothing", "", None),
        ];
        let uses = Uses::of(&containers, &records);
        let users = |name: &str| uses.users(&records[name]).into_iter().collect::<Vec<_>>();
        for name in ["r.test/a:1", "r.test/a@sha256:aa", "sha256:ca"] {
            assert_eq!(users(name), ["by-id", "by-tag", "moved"], "{name}");
        }
        assert_eq!(users("r.test/b:1"), [""; 0]);
        let (_, gone) = record("r.test/gone:1", 'd');
        assert_eq!(uses.users(&gone).len(), 1);
    }

    #[test]
    fn containers_of_pods_are_told_by_their_pod_and_others_by_their_id() {
        let pod = |keys: &[(&str, &str)]| Container {
            labels: keys.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            ..container("0123456789abcdef", "r.test/a:1", None)
        };
        assert_eq!(
            shown(&pod(&[(POD, "web"), (POD_NAMESPACE, "default"), (NAME, "app")])),
            "default/web (app)"
        );
        assert_eq!(
            shown(&pod(&[(POD, "web"), (POD_NAMESPACE, "default")])),
            "default/web"
        );
        assert_eq!(shown(&pod(&[])), "0123456789abc");
        let many = ["a", "b", "c", "d", "e", "f", "g"].into();
        assert_eq!(listed(&many), "a, b, c, d, e and 2 more");
    }
}
