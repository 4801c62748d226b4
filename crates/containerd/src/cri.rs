//! The container runtime interface (CRI) on the same socket: images as kubelet sees them.

use std::time::Duration;

use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListPodSandboxRequest, PodSandboxStatusRequest,
    PullImageRequest, StatusRequest, VersionRequest,
};
use tonic::Request;
use tonic::transport::Channel;

use crate::connect::MAX_MESSAGE;
use crate::error::Error;
use crate::introspection::Plugin;
use crate::{Client, within};

/// Time limit of a pull. A large image over a slow line takes minutes. A pull that takes longer
/// than this will not end.
const LONGEST_PULL: Duration = Duration::from_secs(1800);

/// containerd's CRI service. It works in the namespace `k8s.io`, even if the client has another.
#[derive(Clone, Debug)]
pub struct Cri {
    client: Client,
}

/// An image as kubelet sees it. Its layers may be missing all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriImage {
    /// The config's digest.
    pub id: String,
    /// Names with a tag.
    pub repo_tags: Vec<String>,
    /// Names with a digest.
    pub repo_digests: Vec<String>,
    /// True if kubelet's garbage collector keeps the image.
    pub pinned: bool,
}

/// The file system on which CRI keeps images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageFilesystem {
    /// The snapshotter's directory.
    pub(crate) mountpoint: String,
    /// The snapshotter's name, if it follows from the directory.
    pub(crate) snapshotter: Option<String>,
    /// Bytes used by the snapshotter.
    pub(crate) used_bytes: u64,
}

/// The version that CRI reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CriVersion {
    /// The runtime's name, `containerd`.
    pub runtime: String,
    /// The runtime's version.
    pub runtime_version: String,
}

impl Client {
    /// Returns the CRI service on this socket. [`Client::has_cri`] says whether there is one.
    pub fn cri(&self) -> Cri {
        Cri { client: self.clone() }
    }

    /// Returns true if this containerd offers CRI, and so may be a kubelet's.
    ///
    /// CRI's plugin must have loaded, and the service must answer or be about to.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn has_cri(&self) -> Result<bool, Error> {
        let plugin_is_up = self
            .plugins()
            .await?
            .iter()
            .any(|plugin| plugin.healthy && is_cri(plugin));
        let request = Request::new(VersionRequest::default());
        match self.unary(self.cri().runtime_client().version(request)).await {
            Ok(_) => Ok(true),
            Err(failure) if failure.is_unimplemented() => Ok(false),
            // CRI answers UNAVAILABLE or UNKNOWN until it is initialised.
            Err(failure) if !failure.is_transport() => Ok(plugin_is_up),
            Err(failure) => Err(self.fail(failure, "ask for CRI's version")),
        }
    }
}

fn is_cri(plugin: &Plugin) -> bool {
    plugin.is("io.containerd.grpc.v1", "cri") || plugin.is("io.containerd.cri.v1", "images")
}

impl Cri {
    /// Asks for CRI's version.
    ///
    /// # Errors
    /// Returns [`Error::Refused`] if there is no CRI on the socket.
    pub async fn version(&self) -> Result<CriVersion, Error> {
        let answer = self
            .client
            .unary(self.runtime_client().version(VersionRequest::default()))
            .await;
        let version = answer.map_err(|failure| self.client.fail(failure, "ask for CRI's version"))?;
        Ok(CriVersion {
            runtime: version.runtime_name,
            runtime_version: version.runtime_version,
        })
    }

    /// Asks for the sandbox image, from which every pod is started (often called pause). Returns
    /// `None` if CRI does not give it.
    ///
    /// containerd up to 1.7 has it in the configuration that its verbose status shows. From 2.0 on
    /// it belongs to another plugin's configuration, which the status does not show. There the
    /// newest pod shows it, if there is a pod.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn sandbox_image(&self) -> Result<Option<String>, Error> {
        let attempt = "ask CRI for its sandbox image";
        let mut client = self.runtime_client();
        let status = match self
            .client
            .unary(client.status(StatusRequest { verbose: true }))
            .await
        {
            Ok(status) => status,
            Err(failure) if failure.is_unimplemented() => return Ok(None),
            Err(failure) => return Err(self.client.fail(failure, attempt)),
        };
        if let Some(image) = text_in(status.info.get("config"), "sandboxImage") {
            return Ok(Some(image));
        }
        let pods = self
            .client
            .unary(client.list_pod_sandbox(ListPodSandboxRequest { filter: None }))
            .await;
        let pods = match pods {
            Ok(pods) => pods,
            // CRI cannot list pods in parts.
            Err(failure) if failure.is_too_large() => return Ok(None),
            Err(failure) => return Err(self.client.fail(failure, attempt)),
        };
        let newest = pods.items.into_iter().max_by_key(|pod| pod.created_at);
        let Some(pod) = newest else { return Ok(None) };
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id,
            verbose: true,
        };
        match self.client.unary(client.pod_sandbox_status(request)).await {
            Ok(status) => Ok(text_in(status.info.get("info"), "image")),
            // The pod ended meanwhile.
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(self.client.fail(failure, attempt)),
        }
    }

    /// Asks for an image by name, name and digest, or id, as kubelet does before it decides to
    /// pull.
    ///
    /// # Errors
    /// Returns an error if the call fails. An unknown image is not an error.
    pub async fn image_status(&self, reference: &str) -> Result<Option<CriImage>, Error> {
        let image = ImageSpec {
            image: reference.to_owned(),
            ..ImageSpec::default()
        };
        let request = ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        let answer = self.client.unary(self.image_client().image_status(request)).await;
        let status = answer.map_err(|failure| {
            self.client
                .fail(failure, format!("ask CRI for image {reference}"))
        })?;
        Ok(status.image.map(|image| CriImage {
            id: image.id,
            repo_tags: image.repo_tags,
            repo_digests: image.repo_digests,
            pinned: image.pinned,
        }))
    }

    /// Lets CRI pull an image as kubelet would, with the registries and credentials of CRI's own
    /// configuration. Returns the id of the pulled image.
    ///
    /// The pull takes as long as the registry does, up to half an hour. From 1.7 on, CRI itself
    /// gives up a pull without progress. Cancelling this call cancels the pull.
    ///
    /// # Errors
    /// Returns an error if the call fails. It has CRI's reason if the registry has no such image or
    /// cannot be reached.
    pub async fn pull_image(&self, reference: &str) -> Result<String, Error> {
        let image = ImageSpec {
            image: reference.to_owned(),
            ..ImageSpec::default()
        };
        let request = PullImageRequest {
            image: Some(image),
            ..PullImageRequest::default()
        };
        let mut client = self.image_client();
        let answer = within(LONGEST_PULL, client.pull_image(request)).await;
        let pulled =
            answer.map_err(|failure| self.client.fail(failure, format!("pull {reference} through CRI")))?;
        Ok(pulled.into_inner().image_ref)
    }

    /// Asks for the file system on which CRI keeps images. Returns `None` if CRI does not give it.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub(crate) async fn image_filesystem(&self) -> Result<Option<ImageFilesystem>, Error> {
        let answer = self
            .client
            .unary(self.image_client().image_fs_info(ImageFsInfoRequest::default()))
            .await;
        let info = answer.map_err(|failure| self.client.fail(failure, "ask CRI where images are kept"))?;
        let first = info.image_filesystems.into_iter().next();
        Ok(first.and_then(|usage| {
            let mountpoint = usage.fs_id?.mountpoint;
            Some(ImageFilesystem {
                snapshotter: snapshotter_of(&mountpoint).map(str::to_owned),
                used_bytes: usage.used_bytes.map_or(0, |bytes| bytes.value),
                mountpoint,
            })
        }))
    }

    fn runtime_client(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.client.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    fn image_client(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.client.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Returns a text value of a JSON object from a verbose answer of CRI.
fn text_in(document: Option<&String>, key: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_str(document?).ok()?;
    let text = document.get(key)?.as_str()?;
    (!text.is_empty()).then(|| text.to_owned())
}

/// Returns the snapshotter whose data a directory holds. Each directory has its plugin's name.
fn snapshotter_of(mountpoint: &str) -> Option<&str> {
    let (_, directory) = mountpoint.rsplit_once('/')?;
    directory
        .strip_prefix("io.containerd.snapshotter.v1.")
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_that_is_there_is_taken_from_a_document() {
        for (document, expected) in [
            (Some(r#"{"sandboxImage":"a"}"#), Some("a")),
            (Some(r#"{"sandboxImage":""}"#), None),
            (Some(r#"{"sandboxImage":1}"#), None),
            (Some("{}"), None),
            (Some("no JSON"), None),
            (None, None),
        ] {
            let found = text_in(document.map(str::to_owned).as_ref(), "sandboxImage");
            assert_eq!(found.as_deref(), expected, "{document:?}");
        }
    }

    #[test]
    fn the_snapshotter_is_told_by_its_directory() {
        for (mountpoint, snapshotter) in [
            (
                "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs",
                Some("overlayfs"),
            ),
            ("/var/lib/containerd/io.containerd.snapshotter.v1.", None),
            ("/var/lib/containerd", None),
            ("", None),
        ] {
            assert_eq!(snapshotter_of(mountpoint), snapshotter, "{mountpoint}");
        }
    }
}
