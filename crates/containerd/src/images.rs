//! Image records: names in containerd's image store, each with a target and labels.

use std::collections::BTreeMap;

use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::namespaces_client::NamespacesClient;
use containerd_client::services::v1::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest, ListNamespacesRequest,
    UpdateImageRequest,
};
use containerd_client::types;
use oci_spec::image::Descriptor;
use prost_types::FieldMask;
use tonic::transport::Channel;

use crate::Client;
use crate::connect::MAX_MESSAGE;
use crate::error::{Error, Failure};
use crate::parts::Part;
use crate::wire::{self, Labels, descriptor_from_wire, descriptor_to_wire, label_path};

/// An image record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRecord {
    /// Its name, as it is; containerd does not normalise.
    pub name: String,
    /// What it names: an index or a manifest. Whether that is there is another question.
    pub target: Descriptor,
    /// Its labels, everybody's.
    pub labels: Labels,
}

/// An image record to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewImage {
    /// Its name.
    pub name: String,
    /// What it will name.
    pub target: Descriptor,
    /// Its labels.
    pub labels: Labels,
}

/// Whether a record was created by this call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Creation {
    /// It was created now.
    Created,
    /// A record of this name was there and was left as it was.
    Exists,
}

/// Changes to an image record. What is not named here stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUpdate {
    /// A new target, if it shall change.
    pub target: Option<Descriptor>,
    /// Labels to set, or with `None` to remove.
    pub labels: BTreeMap<String, Option<String>>,
}

impl Client {
    /// Lists all image records of the namespace, in the order of their names.
    ///
    /// A list that is too long for one message is asked for in parts, by the ends of the names, as many as it takes. Those are not
    /// of one moment: a record that comes or goes meanwhile may be in the list or not, as it may right after any list.
    ///
    /// # Errors
    /// Those of any call; [`Error::TooLarge`] only where a single record is too large for a message.
    pub async fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        let mut records = Vec::new();
        let mut parts = vec![Part::all()];
        while let Some(part) = parts.pop() {
            match self.images_of(&part).await {
                Ok(images) => records.extend(images.into_iter().filter_map(image_from_wire)),
                Err(failure) => match part.halves().filter(|_| failure.is_too_large()) {
                    Some(halves) => parts.extend(halves),
                    None => return Err(self.fail(failure, "list images")),
                },
            }
        }
        records.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(records)
    }

    async fn images_of(&self, part: &Part) -> Result<Vec<Image>, Failure> {
        let request = self.request(ListImagesRequest {
            filters: part.filter().into_iter().collect(),
        });
        Ok(self.unary(self.image_client().list(request)).await?.images)
    }

    /// Asks for one image record by its exact name.
    ///
    /// # Errors
    /// Those of any call; an absent record is not one.
    pub async fn image(&self, name: &str) -> Result<Option<ImageRecord>, Error> {
        let request = self.request(GetImageRequest {
            name: name.to_owned(),
        });
        match self.unary(self.image_client().get(request)).await {
            Ok(answer) => Ok(answer.image.and_then(image_from_wire)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(self.fail(failure, format!("look up image {name}"))),
        }
    }

    /// Creates an image record, whole, in one call. containerd does not check that its target is there.
    ///
    /// # Errors
    /// [`Error::Refused`] for a record containerd does not take (empty name or media type, size 0, a label over
    /// 4096 bytes). That it exists is an answer.
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

    /// Changes an image record in one call; gives the record afterwards, or `None` when there is none.
    ///
    /// Labels are changed one by one, never as a whole, so other people's survive. An update without any change
    /// is a look-up.
    ///
    /// # Errors
    /// [`Error::Refused`] for values containerd does not take.
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
            Ok(answer) => Ok(answer.image.and_then(image_from_wire)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(self.fail(failure, format!("update image {name}"))),
        }
    }

    /// Deletes an image record; says whether it was there. With `sync`, returns after the garbage collection
    /// that follows.
    ///
    /// # Errors
    /// Those of any call.
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
    /// Those of any call.
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

/// Only what the update names: `target`, and one path per label.
fn mask_of(update: &ImageUpdate) -> Vec<String> {
    let target = update.target.iter().map(|_| "target".to_owned());
    target
        .chain(update.labels.keys().map(|key| label_path(key)))
        .collect()
}

/// containerd 1.7 and 2.x crash on an update without a target, even when the mask leaves the target alone; what
/// is in it does not matter then.
fn target_of(update: &ImageUpdate) -> Result<types::Descriptor, Error> {
    match &update.target {
        Some(target) => descriptor_to_wire(target),
        None => Ok(types::Descriptor::default()),
    }
}

/// Records with a target of an unknown kind are none of ours, and left out.
fn image_from_wire(image: Image) -> Option<ImageRecord> {
    let Image {
        name, labels, target, ..
    } = image;
    let Some(target) = target.and_then(descriptor_from_wire) else {
        tracing::debug!(
            name,
            "left out an image record whose target has a digest of an unknown kind"
        );
        return None;
    };
    Some(ImageRecord {
        name,
        target,
        labels: wire::labels_from_wire(labels),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::image::{Digest, MediaType};

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
