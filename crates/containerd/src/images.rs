//! Image records: names in containerd's image store, each with a target and labels.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest, ListNamespacesRequest,
    UpdateImageRequest,
};
use containerd_client::types;
use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use oci_spec::image::{Descriptor, Digest};
use prost::Message as _;
use prost_types::FieldMask;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Response, Status};
use tonic_prost::ProstCodec;

use crate::connect::MAX_MESSAGE;
use crate::error::{Error, Failure};
use crate::parts::{self, Part};
use crate::wire::{self, Labels, descriptor_from_wire, descriptor_to_wire, label_path, time_from_wire};
use crate::{Client, LOOKUPS, within};

/// A list of image records that is too long for one message.
#[derive(Clone)]
pub(crate) struct LongList {
    /// The parts in which the list fitted last time, or the parts to start with.
    parts: Vec<Part>,
    /// Time since when the list is known to be too long.
    since: Instant,
    /// Number of records seen in the list.
    seen: usize,
}

/// Path of the call that lists.
const LIST: &str = "/containerd.services.images.v1.Images/List";

/// The answer to [`LIST`], with its records still encoded. Decoded one at a time, they take no more
/// memory than the message.
#[derive(Clone, PartialEq, prost::Message)]
struct Listed {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    images: Vec<prost::bytes::Bytes>,
}

/// Time for which a list counts as too long without another attempt.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// Size in bytes below which a list fits into one message again, with some room.
const SHORT: usize = 12 << 20;

/// An image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// The record's name, unchanged: containerd does not normalise names.
    pub name: String,
    /// The index or manifest that the record points to. It may be missing.
    pub target: Descriptor,
    /// The record's labels, of all clients.
    pub labels: Labels,
    /// Time of creation, which later changes keep. `None` if containerd does not give it.
    pub created_at: Option<Timestamp>,
}

/// An image record to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// The record's name.
    pub name: String,
    /// The index or manifest that the record will point to.
    pub target: Descriptor,
    /// The record's labels.
    pub labels: Labels,
}

/// Result of a call that creates a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// This call created the record.
    Created,
    /// A record of this name existed. The call left it unchanged.
    Exists,
}

/// Changes to an image record. The rest of the record stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUpdate {
    /// A new target. `None` keeps the target.
    pub target: Option<Descriptor>,
    /// Labels to set, or to remove if the value is `None`.
    pub labels: BTreeMap<String, Option<String>>,
}

impl Client {
    /// Lists all image records of the namespace, sorted by name. The whole list is in memory at
    /// once. For a namespace with very many records, use [`Client::each_image`].
    ///
    /// # Errors
    /// Returns the errors of [`Client::each_image`].
    pub async fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        self.images_where(&[]).await
    }

    /// Lists the image records that have one of these labels with any value, sorted by name.
    ///
    /// # Errors
    /// Returns the errors of [`Client::each_image`].
    pub async fn images_labelled(&self, keys: &[&str]) -> Result<Vec<ImageRecord>, Error> {
        let filters: Vec<String> = keys.iter().map(|key| parts::labelled(key)).collect();
        match filters.is_empty() {
            true => Ok(Vec::new()),
            false => self.images_where(&filters).await,
        }
    }

    /// Lists the image records that point to one of these targets, sorted by name.
    ///
    /// # Errors
    /// Returns the errors of [`Client::each_image`].
    pub async fn images_targeting(&self, digests: &[&Digest]) -> Result<Vec<ImageRecord>, Error> {
        let filters: Vec<String> = digests
            .iter()
            .map(|digest| parts::targeting(digest.as_ref()))
            .collect();
        match filters.is_empty() {
            true => Ok(Vec::new()),
            false => self.images_where(&filters).await,
        }
    }

    async fn images_where(&self, filters: &[String]) -> Result<Vec<ImageRecord>, Error> {
        let mut records = Vec::new();
        let keep = |record| {
            records.push(record);
            ControlFlow::Continue(())
        };
        self.each_where(filters, keep).await?;
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }

    /// Calls `look` with each image record of the namespace, in no order, until `look` breaks.
    ///
    /// If the list is too long for one message, the client asks for it in parts. One part is in
    /// memory at a time. The parts are not of one moment. A record that is created or deleted
    /// meanwhile may be shown or not. Each part costs containerd a walk over all records.
    ///
    /// # Errors
    /// Returns an error if the call fails. [`Error::TooLarge`] means that a single record is too
    /// large for a message.
    pub async fn each_image(&self, look: impl FnMut(ImageRecord) -> ControlFlow<()>) -> Result<(), Error> {
        self.each_where(&[], look).await
    }

    async fn each_where(
        &self,
        filters: &[String],
        mut look: impl FnMut(ImageRecord) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        // Start with the parts that fitted last time, not with the whole list.
        let known = self.long_list().filter(|_| filters.is_empty());
        let mut parts: Vec<(Part, Option<u64>)> = match known {
            Some(known) => known.parts.into_iter().map(|part| (part, None)).collect(),
            None => vec![(Part::all(), None)],
        };
        let mut fitting: Vec<(usize, Part)> = Vec::new();
        let (mut is_enough, mut seen) = (false, 0);
        while !is_enough && let Some((part, above)) = parts.pop() {
            let failure = match self.images_of(part.filters(filters)).await {
                Ok(answer) => {
                    seen += answer.images.len();
                    fitting.push((answer.encoded_len(), part));
                    is_enough = self.look_at(answer, &mut look)?;
                    continue;
                }
                Err(failure) => failure,
            };
            let told = failure.oversize();
            match part.pieces(told, above).filter(|_| failure.is_too_large()) {
                Some(pieces) => {
                    let above = told.map(|told| told.size);
                    parts.extend(pieces.into_iter().map(|piece| (piece, above)));
                }
                None => return Err(self.fail(failure, "list images")),
            }
        }
        if filters.is_empty() {
            self.keep_parts(parts.into_iter().map(|(part, _)| part), fitting, seen);
        }
        Ok(())
    }

    /// Remembers the parts of a list: those that were not asked for, and those that fitted, each
    /// with its size in bytes. The next list starts with the largest.
    fn keep_parts(&self, left: impl Iterator<Item = Part>, mut fitting: Vec<(usize, Part)>, seen: usize) {
        fitting.sort_by_key(|(size, _)| *size);
        let size: usize = fitting.iter().map(|(size, _)| size).sum();
        let mut parts: Vec<Part> = left.collect();
        let is_short = parts.is_empty() && size < SHORT;
        parts.extend(fitting.into_iter().map(|(_, part)| part));
        match parts.len() > 1 && !is_short {
            true => self.remember_long_list(parts, seen),
            false => self.forget_long_list(),
        }
    }

    /// Calls `look` with the records of an answer, one at a time. Returns true if `look` broke.
    fn look_at(
        &self,
        answer: Listed,
        look: &mut impl FnMut(ImageRecord) -> ControlFlow<()>,
    ) -> Result<bool, Error> {
        for bytes in answer.images {
            let image = Image::decode(bytes).map_err(|error| {
                let socket = self.socket().display();
                Error::Invalid(format!(
                    "containerd on {socket} lists an image that cannot be read: {error}"
                ))
            })?;
            if let Some(record) = image_from_wire(image)
                && look(record).is_break()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn images_of(&self, filters: Vec<String>) -> Result<Listed, Failure> {
        let mut client = Grpc::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let request = self.request(ListImagesRequest { filters });
        let call = async {
            let ready = client.ready().await;
            ready.map_err(|error| Status::from_error(Box::new(error)))?;
            let codec = ProstCodec::<ListImagesRequest, Listed>::default();
            client
                .unary(request, PathAndQuery::from_static(LIST), codec)
                .await
        };
        // containerd walks over all records before it answers. With very many records, that takes
        // seconds.
        let answer = within(self.options().stall, call).await;
        answer.map(Response::into_inner)
    }

    /// Calls `look` with each image record, if their list fits into one message. Otherwise returns
    /// `false` without a call of `look`, and does not ask again for an hour.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn each_image_if_few(&self, mut look: impl FnMut(ImageRecord)) -> Result<bool, Error> {
        if self.has_long_list() {
            return Ok(false);
        }
        match self.images_of(Vec::new()).await {
            Ok(answer) => {
                let mut look = |record| {
                    look(record);
                    ControlFlow::Continue(())
                };
                self.look_at(answer, &mut look)?;
                Ok(true)
            }
            Err(failure) if failure.is_too_large() => {
                let pieces = Part::all().pieces(failure.oversize(), None);
                self.remember_long_list(pieces.unwrap_or_default(), 0);
                Ok(false)
            }
            Err(failure) => Err(self.fail(failure, "list images")),
        }
    }

    /// Looks up the image records of these names and leaves out absent ones.
    ///
    /// Each name is one call. containerd finds a record by its name at once, however many records
    /// there are. For any list it walks over all of them.
    ///
    /// # Errors
    /// Returns the errors of [`Client::image`].
    pub async fn images_named(
        &self,
        names: impl IntoIterator<Item = &str>,
    ) -> Result<Vec<ImageRecord>, Error> {
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let calls = names
            .into_iter()
            .map(|name| async move { self.image(&name).await });
        let found: Vec<_> = futures_util::stream::iter(calls)
            .buffer_unordered(LOOKUPS)
            .try_collect()
            .await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// Returns the number of records seen in the last list that was too long for one message. If
    /// `look` broke early, only its first parts count. 0 if no list was too long for an hour.
    pub fn images_seen(&self) -> usize {
        self.long_list().map_or(0, |known| known.seen)
    }

    pub(crate) fn has_long_list(&self) -> bool {
        self.long_list().is_some()
    }

    fn long_list(&self) -> Option<LongList> {
        let known = self
            .shared
            .long_list
            .lock()
            .expect("no holder of this lock panics");
        known.clone().filter(|known| known.since.elapsed() < REMEMBERED)
    }

    fn remember_long_list(&self, parts: Vec<Part>, seen: usize) {
        let since = self.long_list().map_or_else(Instant::now, |known| known.since);
        let mut known = self
            .shared
            .long_list
            .lock()
            .expect("no holder of this lock panics");
        *known = Some(LongList { parts, since, seen });
    }

    fn forget_long_list(&self) {
        *self
            .shared
            .long_list
            .lock()
            .expect("no holder of this lock panics") = None;
    }

    /// Looks up one image record by its exact name.
    ///
    /// # Errors
    /// Returns an error if the call fails. An absent record is not an error.
    pub async fn image(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let request = self.request(GetImageRequest {
            name: name.to_owned(),
        });
        match self.unary(self.image_client().get(request)).await {
            Ok(answer) => self.record_of(name, answer.image),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(self.fail(failure, format!("look up image {name}"))),
        }
    }

    /// Creates a whole image record in one call. containerd does not check that its target exists.
    ///
    /// # Errors
    /// Returns [`Error::Refused`] for a record that containerd does not accept: an empty name or
    /// media type, size 0, or a label over 4096 bytes. An existing record is an answer, not an
    /// error.
    pub async fn create_image(&self, image: &NewImage) -> Result<Creation, Error> {
        let message = CreateImageRequest {
            image: Some(Image {
                name: image.name.clone(),
                labels: wire::labels_to_wire(&image.labels),
                target: Some(descriptor_to_wire(&image.target)?),
                created_at: None,
                updated_at: None,
            }),
            source_date_epoch: None,
        };
        match self
            .unary(self.image_client().create(self.request(message)))
            .await
        {
            Ok(_) => Ok(Creation::Created),
            Err(failure) if failure.is_already_exists() => Ok(Creation::Exists),
            Err(failure) => Err(self.fail(failure, format!("create image {}", image.name))),
        }
    }

    /// Changes an image record in one call. Returns the changed record, or `None` if there is no
    /// such record.
    ///
    /// The call changes labels one by one, never as a whole, so labels of other clients survive. An
    /// update without any change is a look-up.
    ///
    /// # Errors
    /// Returns [`Error::Refused`] for values that containerd does not accept.
    pub async fn update_image(&self, name: &str, update: &ImageUpdate) -> Result<Option<ImageRecord>, Error> {
        let paths = mask_of(update);
        if paths.is_empty() {
            // An empty mask would not mean "change nothing" but "replace everything".
            return self.image(name).await;
        }
        let image = Image {
            name: name.to_owned(),
            labels: update
                .labels
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.clone()?)))
                .collect(),
            target: Some(target_of(update)?),
            created_at: None,
            updated_at: None,
        };
        let message = UpdateImageRequest {
            image: Some(image),
            update_mask: Some(FieldMask { paths }),
            source_date_epoch: None,
        };
        match self
            .unary(self.image_client().update(self.request(message)))
            .await
        {
            Ok(answer) => self.record_of(name, answer.image),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(self.fail(failure, format!("update image {name}"))),
        }
    }

    /// Returns the record of the answer. An answer about another record is an error.
    fn record_of(&self, name: &str, answer: Option<Image>) -> Result<Option<ImageRecord>, Error> {
        match answer {
            Some(image) if image.name != name => Err(self.answered_for(&image.name, name)),
            answer => Ok(answer.and_then(image_from_wire)),
        }
    }

    /// Deletes an image record. Returns true if the record existed. With `sync`, the call returns
    /// after the garbage collection that follows.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn delete_image(&self, name: &str, sync: bool) -> Result<bool, Error> {
        let request = self.request(DeleteImageRequest {
            name: name.to_owned(),
            sync,
            target: None,
        });
        let mut client = self.image_client();
        let call = client.delete(request);
        let answer = if sync {
            self.synchronous(call).await
        } else {
            self.unary(call).await
        };
        match answer {
            Ok(()) => Ok(true),
            Err(failure) if failure.is_not_found() => Ok(false),
            Err(failure) => Err(self.fail(failure, format!("delete image {name}"))),
        }
    }

    /// Lists the names of all namespaces of this containerd.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn namespaces(&self) -> Result<Vec<String>, Error> {
        let mut client = NamespacesClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let answer = self
            .unary(client.list(self.request(ListNamespacesRequest::default())))
            .await;
        let namespaces = answer
            .map_err(|failure| self.fail(failure, "list namespaces"))?
            .namespaces;
        Ok(namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    fn image_client(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Returns the paths that the update names: `target`, and one path per label.
fn mask_of(update: &ImageUpdate) -> Vec<String> {
    let target = update.target.iter().map(|_| "target".to_owned());
    target
        .chain(update.labels.keys().map(|key| label_path(key)))
        .collect()
}

/// Returns the target to send. containerd 1.7 and 2.x crash on an update without a target, even
/// when the mask leaves the target alone. In that case the content of the target does not matter.
fn target_of(update: &ImageUpdate) -> Result<types::Descriptor, Error> {
    match &update.target {
        Some(target) => descriptor_to_wire(target),
        None => Ok(types::Descriptor::default()),
    }
}

/// Leaves out a record whose target has an unknown digest algorithm: this client did not write it.
fn image_from_wire(image: Image) -> Option<ImageRecord> {
    let Image {
        name,
        labels,
        target,
        created_at,
        ..
    } = image;
    let Some(target) = target.and_then(descriptor_from_wire) else {
        tracing::debug!(
            name,
            "skipped an image record whose target has a digest of an unknown kind"
        );
        return None;
    };
    Some(ImageRecord {
        name,
        target,
        labels: wire::labels_from_wire(labels),
        created_at: time_from_wire(created_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::MediaType;

    #[test]
    fn masks_name_labels_one_by_one_and_the_target_only_when_it_changes() {
        let digest: Digest = format!("sha256:{}", "c".repeat(64)).parse().expect("a digest");
        let target = Descriptor::new(MediaType::ImageIndex, 3, digest);
        let labels = BTreeMap::from([
            ("io.cri-containerd.image".to_owned(), None),
            ("io.airgapd.pinned".to_owned(), Some("true".to_owned())),
        ]);
        let label_paths = ["labels.io.airgapd.pinned", "labels.io.cri-containerd.image"];
        for (target, expected) in [
            (None, label_paths.to_vec()),
            (Some(target), [&["target"], &label_paths[..]].concat()),
        ] {
            assert_eq!(
                mask_of(&ImageUpdate {
                    target,
                    labels: labels.clone()
                }),
                expected
            );
        }
        assert!(mask_of(&ImageUpdate::default()).is_empty());
    }
}
