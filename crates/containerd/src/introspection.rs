//! Facts about this containerd: version, identity, plugins, and the platform it runs on.

use std::path::PathBuf;

use containerd_client::services::v1::introspection_client::IntrospectionClient;
use containerd_client::services::v1::version_client::VersionClient;
use containerd_client::services::v1::{DeprecationWarning, Plugin as WirePlugin, PluginsRequest};
use containerd_client::types;
use platforms::{Platform, Rules};
use tonic::transport::Channel;

use crate::Client;
use crate::connect::MAX_MESSAGE;
use crate::error::Error;

/// A containerd's version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The text that containerd gives, for instance `1.6.20~ds1` or `v2.1.9-k3s1`.
    pub text: String,
    /// First number. 0 if the text has none.
    pub major: u64,
    /// Second number. 0 if the text has none.
    pub minor: u64,
    /// Third number. 0 if the text has none.
    pub patch: u64,
}

impl Version {
    /// Reads the first dotted number of a version text and ignores the rest.
    pub fn parse(text: &str) -> Version {
        let start = text.find(|c: char| c.is_ascii_digit()).unwrap_or(text.len());
        let dotted = &text[start..];
        let end = dotted
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(dotted.len());
        let mut numbers = dotted[..end].split('.').map(|number| number.parse().unwrap_or(0));
        let mut number = || numbers.next().unwrap_or(0);
        Version {
            major: number(),
            minor: number(),
            patch: number(),
            text: text.to_owned(),
        }
    }

    /// Returns true if the text has a number. Builds from a working tree have none.
    pub fn is_known(&self) -> bool {
        (self.major, self.minor, self.patch) != (0, 0, 0)
    }

    /// Returns the rules by which this containerd matches platforms. A containerd without a number
    /// counts as a new one.
    ///
    /// The number tells which platform library a release of the containerd project was built with.
    /// A containerd 2.x calls itself `+unknown` if its build did not set the version. Debian's 2.1
    /// does so, and has the library of 2.3.
    pub fn rules(&self) -> Rules {
        let is_of_a_distribution = self.major >= 2 && self.text.ends_with("+unknown");
        if !self.is_known() || is_of_a_distribution {
            return Rules::Rc3;
        }
        Rules::of_containerd(self.major, self.minor)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// A plugin of containerd, loaded or failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plugin {
    /// For instance `io.containerd.snapshotter.v1`.
    pub(crate) r#type: String,
    /// For instance `overlayfs`.
    pub(crate) id: String,
    /// The platforms that the plugin works for.
    pub(crate) platforms: Vec<Platform>,
    /// True if the plugin loaded. Skipped and failed plugins did not.
    pub(crate) healthy: bool,
    /// Folder of the plugin's data, as containerd sees it, if the plugin gives it.
    pub(crate) root: Option<PathBuf>,
    /// For instance `rebase`.
    pub(crate) capabilities: Vec<String>,
}

impl Plugin {
    pub(crate) fn is(&self, r#type: &str, id: &str) -> bool {
        self.r#type == r#type && self.id == id
    }
}

/// A deprecated feature in use, which a later containerd will not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecation {
    /// For instance `io.containerd.deprecation/cri-registry-mirrors`.
    pub id: String,
    /// containerd's own description: the feature, the dates of its deprecation and removal, and its
    /// replacement.
    pub message: String,
}

impl Client {
    /// Asks for containerd's version.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn version(&self) -> Result<Version, Error> {
        self.version_or("ask for containerd's version").await
    }

    /// Asks for the version on behalf of another attempt, which errors name.
    pub(crate) async fn version_or(&self, attempt: &str) -> Result<Version, Error> {
        let answer = self
            .unary(VersionClient::new(self.channel()).version(self.request(())))
            .await;
        let version = answer.map_err(|failure| self.fail(failure, attempt))?.version;
        Ok(Version::parse(&version))
    }

    /// Asks for the UUID that this containerd made for itself. The UUID changes if containerd's
    /// root directory is wiped.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn server_uuid(&self) -> Result<String, Error> {
        let answer = self.unary(self.introspection().server(self.request(()))).await;
        Ok(answer
            .map_err(|failure| self.fail(failure, "ask for containerd's identity"))?
            .uuid)
    }

    /// Lists the deprecated features in use on this containerd. Releases before 1.7 report none,
    /// except later patch releases of 1.6.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn deprecations(&self) -> Result<Vec<Deprecation>, Error> {
        let answer = self.unary(self.introspection().server(self.request(()))).await;
        let warnings = answer
            .map_err(|failure| self.fail(failure, "ask for containerd's deprecation warnings"))?
            .deprecations;
        let of_wire = |warning: DeprecationWarning| Deprecation {
            id: warning.id,
            message: warning.message,
        };
        Ok(warnings.into_iter().map(of_wire).collect())
    }

    /// Lists containerd's plugins.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub(crate) async fn plugins(&self) -> Result<Vec<Plugin>, Error> {
        let answer = self
            .unary(
                self.introspection()
                    .plugins(self.request(PluginsRequest::default())),
            )
            .await;
        let plugins = answer
            .map_err(|failure| self.fail(failure, "list containerd's plugins"))?
            .plugins;
        Ok(plugins.into_iter().map(plugin_from_wire).collect())
    }

    /// Asks for the platform of the node as containerd sees it. Returns `None` if no plugin gives
    /// it.
    ///
    /// # Errors
    /// Returns an error if the call fails.
    pub async fn node_platform(&self) -> Result<Option<Platform>, Error> {
        Ok(node_platform(&self.plugins().await?))
    }

    /// Asks for the folder of containerd's content store, as containerd sees the file system. All
    /// namespaces share it.
    ///
    /// # Errors
    /// Returns an error if the call fails. A containerd that does not give the folder is not an
    /// error.
    pub async fn content_root(&self) -> Result<Option<PathBuf>, Error> {
        let plugins = self.plugins().await?;
        let store = plugins
            .into_iter()
            .find(|plugin| plugin.is("io.containerd.content.v1", "content"));
        Ok(store.and_then(|plugin| plugin.root))
    }

    fn introspection(&self) -> IntrospectionClient<Channel> {
        IntrospectionClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Plugins that report the default platform of the host, most reliable first: CRI judges images by
/// its own platform. Other plugins (proxies, emulated runtimes) may name platforms of their own.
const WITNESSES: [(&str, &str); 6] = [
    ("io.containerd.cri.v1", "images"),
    ("io.containerd.grpc.v1", "cri"),
    ("io.containerd.snapshotter.v1", "overlayfs"),
    ("io.containerd.snapshotter.v1", "native"),
    ("io.containerd.differ.v1", "walking"),
    ("io.containerd.diff.v1", "walking"),
];

fn node_platform(plugins: &[Plugin]) -> Option<Platform> {
    let testimony = |(r#type, id): &(&str, &str)| {
        let plugin = plugins.iter().find(|plugin| plugin.is(r#type, id))?;
        plugin.platforms.first().cloned()
    };
    WITNESSES.iter().find_map(testimony)
}

fn plugin_from_wire(plugin: WirePlugin) -> Plugin {
    Plugin {
        r#type: plugin.r#type,
        id: plugin.id,
        platforms: plugin.platforms.into_iter().map(platform_from_wire).collect(),
        healthy: plugin.init_err.is_none(),
        root: plugin.exports.get("root").map(PathBuf::from),
        capabilities: plugin.capabilities,
    }
}

fn platform_from_wire(platform: types::Platform) -> Platform {
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    Platform {
        os: platform.os,
        architecture: platform.architecture,
        variant: given(platform.variant),
        os_version: given(platform.os_version),
        os_features: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_texts_of_all_vendors_are_read() {
        for (text, numbers) in [
            ("1.6.20~ds1", (1, 6, 20)),
            ("1.7.24~ds1", (1, 7, 24)),
            ("2.1.9+unknown", (2, 1, 9)),
            ("v2.1.9-k3s1.32", (2, 1, 9)),
            ("v2.3.4", (2, 3, 4)),
            ("2.2", (2, 2, 0)),
            ("containerd 1.7.0-rc.1", (1, 7, 0)),
            ("", (0, 0, 0)),
            ("main", (0, 0, 0)),
            ("99999999999999999999.1.2", (0, 1, 2)),
        ] {
            let version = Version::parse(text);
            assert_eq!((version.major, version.minor, version.patch), numbers, "{text}");
            assert_eq!(version.text, text);
        }
    }

    #[test]
    fn an_unnumbered_containerd_is_taken_for_a_new_one() {
        assert_eq!(Version::parse("").rules(), Rules::Rc3);
    }

    #[test]
    fn a_2_1_that_a_distribution_built_has_the_newest_rules_and_one_of_containerds_own_has_not() {
        for (text, rules) in [
            ("2.1.9+unknown", Rules::Rc3),
            ("v2.1.9", Rules::Rc1),
            ("v2.1.5-k3s1", Rules::Rc1),
            ("1.7.24+unknown", Rules::V0_2),
            ("1.7.24~ds1", Rules::V0_2),
            ("v2.3.7", Rules::Rc3),
        ] {
            assert_eq!(Version::parse(text).rules(), rules, "{text}");
        }
    }

    #[test]
    fn the_node_platform_is_cris_where_cri_says_one() {
        let plugin = |r#type: &str, id: &str, arch: &str| Plugin {
            r#type: r#type.to_owned(),
            id: id.to_owned(),
            platforms: vec![Platform {
                os: "linux".into(),
                architecture: arch.into(),
                ..Platform::default()
            }],
            healthy: true,
            root: None,
            capabilities: Vec::new(),
        };
        let overlayfs = plugin("io.containerd.snapshotter.v1", "overlayfs", "amd64");
        let cri = plugin("io.containerd.grpc.v1", "cri", "arm64");
        let foreign = plugin("io.containerd.snapshotter.v1", "stargz", "riscv64");
        let architecture = |plugins: &[Plugin]| node_platform(plugins).map(|platform| platform.architecture);
        assert_eq!(architecture(&[overlayfs.clone(), cri]).as_deref(), Some("arm64"));
        assert_eq!(
            architecture(&[foreign.clone(), overlayfs]).as_deref(),
            Some("amd64")
        );
        assert_eq!(architecture(&[foreign]), None);
    }
}
