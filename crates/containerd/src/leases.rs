//! Leases, which protect blobs from containerd's garbage collector until an image record does.

use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::{
    AddResourceRequest, CreateRequest, DeleteRequest, Lease as WireLease, ListRequest, ListResourcesRequest,
    Resource as WireResource,
};
use jiff::Timestamp;
use oci_spec::image::Digest;
use tonic::transport::Channel;

use crate::Client;
use crate::connect::MAX_MESSAGE;
use crate::error::Error;
use crate::parts;
use crate::wire::{self, Labels, digest_from_wire, time_from_wire};

/// Label with the time after which containerd ignores and removes a lease (RFC 3339).
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// Label of a lease that protects only its own resources (containerd, `metadata/gc.go`).
const FLAT_LABEL: &str = "containerd.io/gc.flat";

/// A lease of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The lease's id, unique in the namespace.
    pub id: String,
    /// Time of creation, if containerd gives it.
    pub created_at: Option<Timestamp>,
    /// Time at which the lease expires. `None` means never, for instance because the label cannot
    /// be read.
    pub expires: Option<Timestamp>,
    /// All labels of the lease, including the label with its expiry.
    pub labels: Labels,
}

/// Result of a call that creates a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// This call created the lease, with this expiry and these labels.
    New,
    /// A lease of this id existed. The call left it unchanged, since leases cannot be changed.
    Existed,
}

/// A resource that a lease protects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// A blob, and everything its gc labels refer to. The blob need not exist yet.
    Blob(Digest),
    /// A write in progress.
    Ingest(String),
    /// A snapshot.
    Snapshot {
        /// The snapshotter's name.
        snapshotter: String,
        /// The snapshot's key.
        key: String,
    },
    /// A kind of resource that this client does not know.
    Other {
        /// containerd's name of the kind.
        kind: String,
        /// The resource's id.
        id: String,
    },
}

impl Client {
    /// Creates a lease that expires at `expires`.
    ///
    /// containerd compares with the wall clock, and a lease cannot be renewed. So choose a late
    /// expiry, and create a second lease in time.
    ///
    /// # Errors
    /// Returns [`Error::Invalid`] for an empty id, and otherwise an error if the call fails. An
    /// existing lease is an answer, not an error.
    pub async fn create_lease(
        &self,
        id: &str,
        expires: Timestamp,
        labels: &Labels,
    ) -> Result<Created, Error> {
        let expiry = (EXPIRE_LABEL.to_owned(), expires.to_string());
        self.create_labelled(id, labels, expiry).await
    }

    /// Creates a lease that never expires. It protects its own resources only, not those that the
    /// gc labels of its blobs refer to. containerd calls such a lease flat.
    ///
    /// # Errors
    /// Returns the same errors as [`Client::create_lease`].
    pub async fn create_lasting_lease(&self, id: &str, labels: &Labels) -> Result<Created, Error> {
        let flat = (FLAT_LABEL.to_owned(), "true".to_owned());
        self.create_labelled(id, labels, flat).await
    }

    async fn create_labelled(
        &self,
        id: &str,
        labels: &Labels,
        (key, value): (String, String),
    ) -> Result<Created, Error> {
        // Without an id, containerd would invent one. After a crash, the next run would not find
        // the lease.
        if id.is_empty() {
            return Err(Error::Invalid("a lease needs an id".to_owned()));
        }
        let mut labels = wire::labels_to_wire(labels);
        labels.insert(key, value);
        let request = self.request(CreateRequest {
            id: id.to_owned(),
            labels,
        });
        match self.unary(self.lease_client().create(request)).await {
            Ok(_) => Ok(Created::New),
            Err(failure) if failure.is_already_exists() => Ok(Created::Existed),
            Err(failure) => Err(self.fail(failure, format!("create lease {id}"))),
        }
    }

    /// Lists all leases of the namespace.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.leases_where(Vec::new()).await
    }

    /// Lists the leases whose ids begin with a text. Other leases do not make the answer longer.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn leases_beginning(&self, text: &str) -> Result<Vec<Lease>, Error> {
        self.leases_where(vec![parts::beginning("id", text)]).await
    }

    async fn leases_where(&self, filters: Vec<String>) -> Result<Vec<Lease>, Error> {
        let request = self.request(ListRequest { filters });
        let answer = self.unary(self.lease_client().list(request)).await;
        let leases = answer
            .map_err(|failure| self.fail(failure, "list leases"))?
            .leases;
        Ok(leases.into_iter().map(lease_from_wire).collect())
    }

    /// Deletes a lease. Returns true if the lease existed. With `sync`, the call returns after the
    /// garbage collection that follows, which may take minutes on a busy node.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn delete_lease(&self, id: &str, sync: bool) -> Result<bool, Error> {
        let request = self.request(DeleteRequest {
            id: id.to_owned(),
            sync,
        });
        let mut client = self.lease_client();
        let call = client.delete(request);
        let answer = if sync {
            self.synchronous(call).await
        } else {
            self.unary(call).await
        };
        match answer {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_not_found() || failure.is_lease_lost() => Ok(false),
            Err(failure) => Err(self.fail(failure, format!("delete lease {id}"))),
        }
    }

    /// Puts a resource under a lease. Adding it twice has the same effect as once. The resource
    /// need not exist.
    ///
    /// # Errors
    /// Returns [`Error::LeaseLost`] if there is no such lease.
    pub async fn add_to_lease(&self, id: &str, resource: &Resource) -> Result<(), Error> {
        let attempt = || format!("add {} to lease {id}", resource.id());
        let message = AddResourceRequest {
            id: id.to_owned(),
            resource: Some(resource_to_wire(resource)),
        };
        let answer = self
            .unary(self.lease_client().add_resource(self.request(message)))
            .await;
        answer
            .map(|_| ())
            .map_err(|failure| self.fail_leased(failure, id, attempt()))
    }

    /// Lists the resources that a lease protects directly, without those that its blobs refer to.
    ///
    /// # Errors
    /// Returns [`Error::LeaseLost`] if there is no such lease.
    pub async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>, Error> {
        let request = self.request(ListResourcesRequest { id: id.to_owned() });
        let answer = self.unary(self.lease_client().list_resources(request)).await;
        let resources = answer
            .map_err(|failure| self.fail_leased(failure, id, format!("list resources of lease {id}")))?
            .resources;
        Ok(resources.into_iter().map(resource_from_wire).collect())
    }

    pub(crate) async fn has_lease(&self, id: &str) -> Result<bool, Error> {
        Ok(self
            .leases_beginning(id)
            .await?
            .iter()
            .any(|lease| lease.id == id))
    }

    fn lease_client(&self) -> LeasesClient<Channel> {
        LeasesClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

impl Resource {
    fn id(&self) -> &str {
        match self {
            Resource::Blob(digest) => digest.as_ref(),
            Resource::Ingest(id) | Resource::Snapshot { key: id, .. } | Resource::Other { id, .. } => id,
        }
    }

    fn kind(&self) -> String {
        match self {
            Resource::Blob(_) => "content".to_owned(),
            Resource::Ingest(_) => "ingests".to_owned(),
            Resource::Snapshot { snapshotter, .. } => format!("snapshots/{snapshotter}"),
            Resource::Other { kind, .. } => kind.clone(),
        }
    }
}

fn resource_to_wire(resource: &Resource) -> WireResource {
    WireResource {
        id: resource.id().to_owned(),
        r#type: resource.kind(),
    }
}

fn resource_from_wire(resource: WireResource) -> Resource {
    let WireResource { id, r#type: kind } = resource;
    match (
        kind.as_str(),
        kind.strip_prefix("snapshots/"),
        digest_from_wire(&id),
    ) {
        ("content", _, Some(digest)) => Resource::Blob(digest),
        ("ingests", _, _) => Resource::Ingest(id),
        (_, Some(snapshotter), _) => Resource::Snapshot {
            snapshotter: snapshotter.to_owned(),
            key: id,
        },
        _ => Resource::Other { kind, id },
    }
}

fn lease_from_wire(lease: WireLease) -> Lease {
    let labels = wire::labels_from_wire(lease.labels);
    let expires = labels.get(EXPIRE_LABEL).and_then(|text| text.parse().ok());
    Lease {
        id: lease.id,
        created_at: time_from_wire(lease.created_at),
        expires,
        labels,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_survive_the_round_trip() {
        let digest: Digest = format!("sha256:{}", "b".repeat(64)).parse().expect("a digest");
        for resource in [
            Resource::Blob(digest),
            Resource::Ingest("airgapd-x".to_owned()),
            Resource::Snapshot {
                snapshotter: "overlayfs".to_owned(),
                key: "sha256:c".to_owned(),
            },
            Resource::Other {
                kind: "images".to_owned(),
                id: "docker.io/library/x:1".to_owned(),
            },
        ] {
            assert_eq!(resource_from_wire(resource_to_wire(&resource)), resource);
        }
    }

    #[test]
    fn a_lease_with_an_unreadable_expiry_never_expires() {
        let labels = [(EXPIRE_LABEL.to_owned(), "tomorrow".to_owned())].into();
        let lease = lease_from_wire(WireLease {
            id: "l".to_owned(),
            created_at: None,
            labels,
        });
        assert_eq!(lease.expires, None);
    }
}
