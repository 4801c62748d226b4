//! Events about image records and about deleted content.
//!
//! An event is a hint to look again, not the truth. containerd replays no events, and a broken
//! connection loses those that happen meanwhile. So a caller subscribes first and lists afterwards.

use containerd_client::events::ContentDelete;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::{ImageCreate, ImageDelete, ImageUpdate, SubscribeRequest};
use containerd_client::types::Envelope;
use prost::Message;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::Client;
use crate::connect::MAX_MESSAGE;
use crate::error::Error;

/// A change to an image record of the client's namespace, or the deletion of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageEvent {
    /// The record's name, or the blob's digest.
    pub name: String,
    /// The kind of change.
    pub kind: ImageChange,
}

/// The kinds of changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageChange {
    /// The record was created.
    Created,
    /// The record's target or a label changed.
    Updated,
    /// The record was deleted.
    Deleted,
    /// A client deleted a blob. containerd sends no event for a blob that it collects as garbage.
    ContentDeleted,
}

/// A subscription to the changes of image records. Dropping it ends the subscription.
#[derive(Debug)]
pub struct ImageEvents {
    events: mpsc::Receiver<ImageEvent>,
    _subscription: AbortOnDropHandle<()>,
}

impl ImageEvents {
    /// Waits for the next event. `None` means that the connection broke: subscribe again, then
    /// list.
    ///
    /// Cancel safe: a dropped call loses no event.
    pub async fn next(&mut self) -> Option<ImageEvent> {
        self.events.recv().await
    }
}

/// Number of events on their way to a busy reader. containerd buffers the rest.
const BACKLOG: usize = 256;

impl Client {
    /// Subscribes to the changes of image records in the client's namespace.
    ///
    /// Subscribe first and list then. containerd answers a subscription only together with its
    /// first event. So this call waits for the answer to a later call on the same connection
    /// instead.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn image_events(&self) -> Result<ImageEvents, Error> {
        let (sender, events) = mpsc::channel(BACKLOG);
        let (client, namespace) = (self.clone(), self.namespace().to_owned());
        let (sent, is_sent) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move { client.relay(&namespace, &sender, sent).await });
        let subscription = AbortOnDropHandle::new(task);
        // An error means that the task has ended, and `next` will return `None`.
        let _ = is_sent.await;
        self.version().await?;
        Ok(ImageEvents {
            events,
            _subscription: subscription,
        })
    }

    /// Passes events on until the connection or the reader is gone.
    async fn relay(
        &self,
        namespace: &str,
        reader: &mpsc::Sender<ImageEvent>,
        sent: tokio::sync::oneshot::Sender<()>,
    ) {
        let filter = |topic: &str| format!("namespace=={namespace},topic{topic}");
        let request = self.request(SubscribeRequest {
            filters: vec![filter("~=\"^/images/\""), filter("==\"/content/delete\"")],
        });
        let mut client = EventsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let mut subscribing = std::pin::pin!(client.subscribe(request));
        // One poll hands the request to the connection. The answer comes with the first event.
        let first = futures_util::poll!(subscribing.as_mut());
        let _ = sent.send(());
        let answer = match first {
            std::task::Poll::Ready(answer) => answer,
            std::task::Poll::Pending => subscribing.await,
        };
        let mut stream = match answer {
            Ok(answer) => answer.into_inner(),
            Err(status) => return tracing::debug!(%status, "the subscription to events failed"),
        };
        loop {
            match stream.message().await {
                Ok(Some(envelope)) => {
                    let Some(event) = image_event(&envelope, namespace) else {
                        continue;
                    };
                    if reader.send(event).await.is_err() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(status) => return tracing::debug!(%status, "the stream of events broke"),
            }
        }
    }
}

/// Reads an envelope. Returns `None` if it is not about an image or blob of this namespace. The
/// filter asks for no others, but a server may not know the filter. The client must not react to
/// images of other namespaces.
fn image_event(envelope: &Envelope, namespace: &str) -> Option<ImageEvent> {
    if envelope.namespace != namespace {
        return None;
    }
    let bytes = envelope.event.as_ref()?.value.as_slice();
    let (name, kind) = match envelope.topic.as_str() {
        "/images/create" => (ImageCreate::decode(bytes).ok()?.name, ImageChange::Created),
        "/images/update" => (ImageUpdate::decode(bytes).ok()?.name, ImageChange::Updated),
        "/images/delete" => (ImageDelete::decode(bytes).ok()?.name, ImageChange::Deleted),
        "/content/delete" => (
            ContentDelete::decode(bytes).ok()?.digest,
            ImageChange::ContentDeleted,
        ),
        _ => return None,
    };
    Some(ImageEvent { name, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(namespace: &str, topic: &str, value: Vec<u8>) -> Envelope {
        Envelope {
            namespace: namespace.to_owned(),
            topic: topic.to_owned(),
            event: Some(prost_types::Any {
                type_url: String::new(),
                value,
            }),
            timestamp: None,
        }
    }

    #[test]
    fn only_changed_images_and_deleted_content_of_the_own_namespace_are_told() {
        let value = ImageDelete { name: "x".to_owned() }.encode_to_vec();
        let told = |namespace, topic| image_event(&envelope(namespace, topic, value.clone()), "k8s.io");
        let deleted = ImageEvent {
            name: "x".to_owned(),
            kind: ImageChange::Deleted,
        };
        assert_eq!(told("k8s.io", "/images/delete"), Some(deleted));
        assert_eq!(told("moby", "/images/delete"), None);
        assert_eq!(told("k8s.io", "/content/create"), None);
        assert_eq!(
            told("k8s.io", "/content/delete").map(|event| event.kind),
            Some(ImageChange::ContentDeleted)
        );
    }

    #[test]
    fn an_event_that_cannot_be_read_is_no_event() {
        assert_eq!(
            image_event(&envelope("k8s.io", "/images/create", vec![0xff; 9]), "k8s.io"),
            None
        );
    }
}
