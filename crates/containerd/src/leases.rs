//! Leases: what keeps blobs from containerd's garbage collector until an image record does.

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

/// Label with the instant after which containerd ignores and removes a lease (RFC 3339).
const EXPIRE_LABEL: &str = "containerd.io/gc.expire";

/// A lease of this namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its id, unique in the namespace.
    pub id: String,
    /// When it was created, where containerd says so.
    pub created_at: Option<Timestamp>,
    /// When it ends by itself; `None` means never, for instance because the label cannot be read.
    pub expires: Option<Timestamp>,
    /// All its labels, with the one that says when it expires.
    pub labels: Labels,
}

/// Whether a lease was created by this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Created {
    /// It was created now, with this expiry and these labels.
    New,
    /// A lease of this id was there; nothing about it was changed (leases cannot be).
    Existed,
}

/// Something a lease protects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resource {
    /// A blob, and what its gc labels refer to. It need not exist yet.
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
    /// A kind this client has no word for.
    Other {
        /// containerd's name of the kind.
        kind: String,
        /// The thing's id.
        id: String,
    },
}

impl Client {
    /// Creates a lease that ends by itself at `expires`.
    ///
    /// containerd compares with the wall clock, and a lease cannot be renewed: choose it long, and
    /// make a second one in time.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty id, otherwise those of any call. That it exists is an
    /// answer.
    pub async fn create_lease(
        &self,
        id: &str,
        expires: Timestamp,
        labels: &Labels,
    ) -> Result<Created, Error> {
        // containerd would invent an id, and nobody would find the lease again after a crash.
        if id.is_empty() {
            return Err(Error::Invalid("a lease needs an id".to_owned()));
        }
        let mut labels = wire::labels_to_wire(labels);
        labels.insert(EXPIRE_LABEL.to_owned(), expires.to_string());
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
    /// Those of any call.
    pub async fn leases(&self) -> Result<Vec<Lease>, Error> {
        self.leases_where(Vec::new()).await
    }

    /// Lists the leases whose ids begin with a text. Others do not make the answer longer.
    ///
    /// # Errors
    /// Those of any call.
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

    /// Deletes a lease; says whether it was there. With `sync`, returns after the garbage
    /// collection that follows, which may take minutes on a busy node.
    ///
    /// # Errors
    /// Those of any call.
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

    /// Puts a resource under a lease. Adding it twice is the same as once, and the resource need
    /// not exist.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when there is no such lease.
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

    /// Lists what a lease protects directly, not what its blobs refer to.
    ///
    /// # Errors
    /// [`Error::LeaseLost`] when there is no such lease.
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
