//! The platform of the emulated node, and a small version of containerd's loose matching. It is
//! deliberately independent of the program's own matching.

use serde_json::Value;

use crate::wire;

/// The node's platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePlatform {
    /// Operating system, for example `linux`.
    pub os: String,
    /// Architecture in Go's spelling, for example `amd64`.
    pub architecture: String,
    /// Variant. Empty if there is none.
    pub variant: String,
}

impl Default for NodePlatform {
    fn default() -> Self {
        NodePlatform::new("linux", "amd64", "")
    }
}

impl NodePlatform {
    /// Makes a platform of three texts. The variant may be empty.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        NodePlatform {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    pub(crate) fn on_the_wire(&self) -> wire::Platform {
        wire::Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
            ..Default::default()
        }
    }

    /// Returns how well a manifest descriptor suits this node. 0 is best, and `None` means not at
    /// all. A descriptor without a platform suits every node.
    pub(crate) fn rank(&self, descriptor: &Value) -> Option<usize> {
        let platform = &descriptor["platform"];
        if platform.is_null() {
            return Some(usize::MAX);
        }
        let field = |name: &str| platform[name].as_str().unwrap_or_default();
        if field("os") != self.os {
            return None;
        }
        let offered = spelling(field("architecture"), field("variant"));
        self.acceptable()
            .iter()
            .position(|acceptable| *acceptable == offered)
    }

    /// Returns the values of `architecture[/variant]` that this node accepts, best first.
    fn acceptable(&self) -> Vec<String> {
        let arm = |from: u8| (5..=from).rev().map(|variant| format!("arm/v{variant}"));
        let own = spelling(&self.architecture, &self.variant);
        match (self.architecture.as_str(), own.as_str()) {
            ("amd64", _) => vec![own, "386".to_owned()],
            ("arm64", _) => std::iter::once(own).chain(arm(8)).collect(),
            (_, "arm/v8") => arm(8).collect(),
            (_, "arm/v7") => arm(7).collect(),
            (_, "arm/v6") => arm(6).collect(),
            _ => vec![own],
        }
    }
}

/// Returns the usual spelling: `arm64/v8` is `arm64`, `amd64/v1` is `amd64`, and `arm` is `arm/v7`.
fn spelling(architecture: &str, variant: &str) -> String {
    match (architecture, variant) {
        ("arm64", "v8" | "8") | ("amd64", "v1") | (_, "") if architecture != "arm" => architecture.to_owned(),
        ("arm", "") => "arm/v7".to_owned(),
        ("arm", variant) if !variant.starts_with('v') => format!("arm/v{variant}"),
        (architecture, variant) => format!("{architecture}/{variant}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_rank_what_they_can_run() {
        let descriptor = |architecture: &str, variant: &str| json!({"platform": {"os": "linux", "architecture": architecture, "variant": variant}});
        let arm64 = NodePlatform::new("linux", "arm64", "v8");
        assert_eq!(arm64.rank(&descriptor("arm64", "")), Some(0));
        assert_eq!(arm64.rank(&descriptor("arm64", "v8")), Some(0));
        assert_eq!(arm64.rank(&descriptor("arm", "v7")), Some(2));
        assert_eq!(arm64.rank(&descriptor("amd64", "")), None);
        assert_eq!(NodePlatform::default().rank(&descriptor("386", "")), Some(1));
        assert_eq!(NodePlatform::default().rank(&descriptor("amd64", "v2")), None);
        assert_eq!(NodePlatform::default().rank(&json!({})), Some(usize::MAX));
    }
}
