//! `containerd.services.images.v1`.

use prost::Message as _;
use tonic::{Request, Response, Status};

use crate::content::mask_paths;
use crate::filters::Filters;
use crate::service::{Call, Service, missing};
use crate::state::{Image, Labels, State, check_labels, timestamp, without_empty};
use crate::wire;
use crate::wire::generated::images_server::Images;
use crate::{cri, digest};

#[tonic::async_trait]
impl Images for Service {
    async fn get(
        &self,
        request: Request<wire::GetImageRequest>,
    ) -> Result<Response<wire::GetImageResponse>, Status> {
        self.unary("Images.Get", request, |state, call, request| {
            let image = state
                .image(&call.namespace, &request.name)
                .ok_or_else(|| unknown(&request.name))?;
            Ok(wire::GetImageResponse {
                image: Some(on_the_wire(&request.name, image)),
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        self.unary("Images.List", request, |state, call, request| {
            let filters = Filters::parse(&request.filters)?;
            let images = &state.namespace(&call.namespace).images;
            let found = images.iter().filter(|(name, image)| {
                filters.accept(|path| match path {
                    ["name"] => Some(name.as_str()),
                    ["target", "digest"] => Some(&image.target.digest),
                    ["target", "mediatype"] => Some(&image.target.media_type),
                    ["labels", key @ ..] => image.labels.get(&key.join(".")).map(String::as_str),
                    ["annotations", key @ ..] => {
                        image.target.annotations.get(&key.join(".")).map(String::as_str)
                    }
                    _ => None,
                })
            });
            let answer = wire::ListImagesResponse {
                images: found.map(|(name, image)| on_the_wire(name, image)).collect(),
            };
            // A refusal by the codec would reach the caller with another code than containerd's.
            wire::check_size(answer.encoded_len())?;
            Ok(answer)
        })
        .await
    }

    async fn create(
        &self,
        request: Request<wire::CreateImageRequest>,
    ) -> Result<Response<wire::CreateImageResponse>, Status> {
        self.unary("Images.Create", request, |state, call, request| {
            let image = complete(state, call, request.image)?;
            let (name, now) = (image.name, state.now());
            let created = Image {
                labels: image.labels.into_iter().collect(),
                target: image.target.unwrap_or_default(),
                created: now,
                updated: now,
            };
            validated(&name, &created)?;
            if state.image(&call.namespace, &name).is_some() {
                return Err(Status::already_exists(format!("image {name:?}: already exists")));
            }
            state.check_record(&call.namespace, &name, &created.target.digest);
            state.check_management(&call.namespace, &name, None, &created);
            let answer = on_the_wire(&name, &created);
            put(state, call, &name, created, "/images/create");
            Ok(wire::CreateImageResponse { image: Some(answer) })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<wire::UpdateImageRequest>,
    ) -> Result<Response<wire::UpdateImageResponse>, Status> {
        self.unary("Images.Update", request, |state, call, request| {
            let wanted = complete(state, call, request.image)?;
            let paths = mask_paths(state, call.rpc, request.update_mask);
            let old = state.image(&call.namespace, &wanted.name).cloned();
            let old = old.ok_or_else(|| unknown(&wanted.name))?;
            let mut image = merged(&old, &wanted, &paths)?;
            image.updated = state.now();
            validated(&wanted.name, &image)?;
            if vouches(&wanted, &paths) {
                state.check_record(&call.namespace, &wanted.name, &image.target.digest);
            }
            state.check_management(&call.namespace, &wanted.name, Some(&old), &image);
            let answer = on_the_wire(&wanted.name, &image);
            put(state, call, &wanted.name, image, "/images/update");
            Ok(wire::UpdateImageResponse { image: Some(answer) })
        })
        .await
    }

    async fn delete(&self, request: Request<wire::DeleteImageRequest>) -> Result<Response<()>, Status> {
        self.unary("Images.Delete", request, |state, call, request| {
            let image = state
                .image(&call.namespace, &request.name)
                .ok_or_else(|| unknown(&request.name))?;
            let target = request.target.filter(|_| state.version.image_leases());
            if let Some(target) = target.filter(|target| target.digest != image.target.digest) {
                let (name, there) = (&request.name, &image.target.digest);
                let text = format!(
                    "image {name:?} has target {there}, not {}: not found",
                    target.digest
                );
                return Err(Status::not_found(text));
            }
            state.changed(call.rpc, &call.namespace, &request.name, call.lease.as_deref());
            remove(state, &call.namespace, &request.name);
            if request.sync {
                state.collect();
            }
            Ok(())
        })
        .await
    }
}

/// Returns a record. Parts whose absence crashes containerd must be present.
fn complete(state: &mut State, call: &Call, image: Option<wire::Image>) -> Result<wire::Image, Status> {
    let Some(image) = image else {
        return Err(missing(state, call.rpc, "image"));
    };
    if image.target.is_none() {
        return Err(missing(state, call.rpc, "image.target"));
    }
    if image.name.is_empty() {
        return Err(Status::invalid_argument("Image.Name required: invalid argument"));
    }
    Ok(image)
}

fn validated(name: &str, image: &Image) -> Result<(), Status> {
    let invalid = |text: String| Err(Status::invalid_argument(format!("{text}: invalid argument")));
    let target = &image.target;
    if !digest::is_valid(&target.digest) {
        return invalid(format!(
            "image {name:?}: Target.Digest {:?} invalid",
            target.digest
        ));
    }
    if target.size <= 0 {
        return invalid("Target.Size must be greater than zero".to_owned());
    }
    if target.media_type.is_empty() {
        return invalid("Target.MediaType must be set".to_owned());
    }
    check_labels(&image.labels)
}

/// Returns the record after an update by field mask. Without a mask, everything is replaced.
fn merged(old: &Image, wanted: &wire::Image, paths: &[String]) -> Result<Image, Status> {
    let mut image = old.clone();
    let labels: Labels = wanted.labels.clone().into_iter().collect();
    let target = wanted.target.clone().unwrap_or_default();
    if paths.is_empty() {
        (image.labels, image.target) = (labels.clone(), target.clone());
    }
    for path in paths {
        if let Some(key) = path.strip_prefix("labels.") {
            image
                .labels
                .insert(key.to_owned(), labels.get(key).cloned().unwrap_or_default());
        } else if let Some(key) = path.strip_prefix("annotations.") {
            let value = target.annotations.get(key).cloned().unwrap_or_default();
            image.target.annotations.insert(key.to_owned(), value);
        } else {
            match path.as_str() {
                "labels" => image.labels.clone_from(&labels),
                "target" => image.target = target.clone(),
                "annotations" => image.target.annotations.clone_from(&target.annotations),
                _ => {
                    let text = format!(
                        "cannot update {path:?} field on image {:?}: invalid argument",
                        wanted.name
                    );
                    return Err(Status::invalid_argument(text));
                }
            }
        }
    }
    Ok(image)
}

/// Returns true if an update makes a statement about the content: it moves the target or adds
/// labels. Removing labels does not.
fn vouches(wanted: &wire::Image, paths: &[String]) -> bool {
    paths.is_empty()
        || paths.iter().any(|path| match path.strip_prefix("labels.") {
            Some(key) => wanted.labels.get(key).is_some_and(|value| !value.is_empty()),
            None => path == "target" || path == "labels",
        })
}

/// Writes a record, notifies subscribers, and lets CRI handle it.
pub(crate) fn put(state: &mut State, call: &Call, name: &str, image: Image, topic: &str) {
    state.changed(call.rpc, &call.namespace, name, call.lease.as_deref());
    store(state, &call.namespace, name, image, topic);
    cri::observe(state, &call.namespace, name);
}

/// Writes a record and publishes the event.
pub(crate) fn store(state: &mut State, namespace: &str, name: &str, mut image: Image, topic: &str) {
    image.labels = without_empty(image.labels);
    image.target.annotations.retain(|_, value| !value.is_empty());
    let (event_name, labels) = (name.to_owned(), image.labels.clone().into_iter().collect());
    // A record that moves or loses labels can leave garbage, like a deletion.
    state.dirty |= topic == "/images/update";
    state
        .namespace_mut(namespace)
        .images
        .insert(name.to_owned(), image);
    if topic == "/images/create" {
        state.publish(
            namespace,
            topic,
            name,
            &wire::ImageCreate {
                name: event_name,
                labels,
            },
        );
    } else {
        state.publish(
            namespace,
            topic,
            name,
            &wire::ImageUpdate {
                name: event_name,
                labels,
            },
        );
    }
}

/// Removes a record, and notifies subscribers and CRI.
pub(crate) fn remove(state: &mut State, namespace: &str, name: &str) {
    state.namespace_mut(namespace).images.remove(name);
    state.dirty = true;
    state.publish(
        namespace,
        "/images/delete",
        name,
        &wire::ImageDelete {
            name: name.to_owned(),
        },
    );
    cri::forget(state, namespace, name);
}

fn on_the_wire(name: &str, image: &Image) -> wire::Image {
    wire::Image {
        name: name.to_owned(),
        labels: image.labels.clone().into_iter().collect(),
        target: Some(image.target.clone()),
        created_at: Some(timestamp(image.created)),
        updated_at: Some(timestamp(image.updated)),
    }
}

fn unknown(name: &str) -> Status {
    Status::not_found(format!("image {name:?}: not found"))
}
