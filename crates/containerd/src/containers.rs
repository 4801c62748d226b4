//! The containers of a namespace, and the image that each was made from.

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::{Container as WireContainer, ListContainersRequest};
use serde_json::Value;

use crate::connect::MAX_MESSAGE;
use crate::error::Error;
use crate::wire::{self, Labels};
use crate::within;
use crate::{Client, MOST_LISTED};

/// Key of CRI's metadata about a container. The value is JSON, in a message of a type that changes
/// its name with each release.
const CRI_METADATA: &str = "io.cri-containerd.container.metadata";

/// A container, running or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The container's id.
    pub id: String,
    /// Name of the image record that the container was made from. May be empty. The record may
    /// point to another image by now.
    pub image: String,
    /// The image's id (its config's digest) if CRI made the container. CRI keeps an image record of
    /// that name.
    pub image_id: Option<String>,
    /// The container's labels. Those of CRI name the pod.
    pub labels: Labels,
}

impl Client {
    /// Lists the containers of the namespace. Each comes in its own message, since a container's
    /// specification may be large.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn containers(&self) -> Result<Vec<Container>, Error> {
        let attempt = "list containers";
        let request = self.request(ListContainersRequest::default());
        let mut client = ContainersClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let opened = within(self.options().stall, client.list_stream(request)).await;
        let mut stream = opened
            .map_err(|failure| self.fail(failure, attempt))?
            .into_inner();
        let (mut containers, mut there) = (Vec::new(), 0);
        while let Some(message) = self
            .next(&mut stream)
            .await
            .map_err(|failure| self.fail(failure, attempt))?
        {
            there += 1;
            if there > MOST_LISTED {
                return Err(self.endless(attempt));
            }
            containers.extend(message.container.map(container_from_wire));
        }
        Ok(containers)
    }
}

fn container_from_wire(container: WireContainer) -> Container {
    let WireContainer {
        id,
        image,
        labels,
        extensions,
        ..
    } = container;
    let metadata = extensions.get(CRI_METADATA);
    Container {
        id,
        image,
        image_id: metadata.and_then(|metadata| image_id(&metadata.value)),
        labels: wire::labels_from_wire(labels),
    }
}

/// Returns the image's id in CRI's metadata. Metadata of an unknown form has none.
fn image_id(metadata: &[u8]) -> Option<String> {
    let document: Value = serde_json::from_slice(metadata).ok()?;
    let id = document["Metadata"]["ImageRef"].as_str()?;
    (!id.is_empty()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_image_id_is_read_from_cris_metadata_and_nothing_from_others() {
        let metadata =
            br#"{"Version":"v1","Metadata":{"ID":"c","ImageRef":"sha256:aa","Config":{"image":{}}}}"#;
        assert_eq!(image_id(metadata).as_deref(), Some("sha256:aa"));
        for other in [&b""[..], b"{}", b"\x0a\x02v1", br#"{"Metadata":{"ImageRef":""}}"#] {
            assert_eq!(image_id(other), None);
        }
    }
}
