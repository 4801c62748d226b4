//! Decides which containerd this node's images go to, and which folder they come from.
//!
//! The decision depends on the installed units, programs and data folders, and on the
//! configuration. It never depends on which socket exists: on a node with Docker and a k0s that
//! starts late, no image may get into Docker's containerd. [`probe`] reads the evidence. [`decide`]
//! is a pure function of it.

mod evidence;
mod named;

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::images::folder::{Folder, Refused};
use crate::receipts;
use crate::settings::Settings;

pub use evidence::{Evidence, probe};
pub use named::{Names, bundle_named};

/// The program that runs containerd on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distribution {
    /// k0s, which brings its own containerd.
    K0s,
    /// k3s, which brings its own containerd.
    K3s,
    /// RKE2, which brings its own containerd.
    Rke2,
    /// A containerd that was installed by itself, as on a kubeadm node.
    Containerd,
}

impl Distribution {
    /// Returns the distribution's name in the configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::K0s => "k0s",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
            Self::Containerd => "containerd",
        }
    }

    fn default_data_dir(self) -> &'static Path {
        Path::new(match self {
            // A plain containerd has no data folder with images, so it shares the documented
            // default.
            Self::K0s | Self::Containerd => "/var/lib/k0s",
            Self::K3s => "/var/lib/rancher/k3s",
            Self::Rke2 => "/var/lib/rancher/rke2",
        })
    }

    fn images_below(self, data_dir: &Path) -> PathBuf {
        match self {
            Self::K0s | Self::Containerd => data_dir.join("images"),
            Self::K3s | Self::Rke2 => data_dir.join("agent/images"),
        }
    }

    fn default_socket(self) -> &'static Path {
        Path::new(match self {
            Self::K0s => "/run/k0s/containerd.sock",
            Self::K3s | Self::Rke2 => "/run/k3s/containerd/containerd.sock",
            Self::Containerd => "/run/containerd/containerd.sock",
        })
    }

    fn programs(self) -> &'static [&'static str] {
        match self {
            Self::K0s => &["usr/local/bin/k0s", "usr/bin/k0s", "opt/bin/k0s"],
            Self::K3s => &["usr/local/bin/k3s", "usr/bin/k3s", "opt/bin/k3s"],
            Self::Rke2 => &[
                "usr/local/bin/rke2",
                "usr/bin/rke2",
                "opt/rke2/bin/rke2",
                "opt/bin/rke2",
            ],
            Self::Containerd => &[
                "usr/bin/containerd",
                "usr/local/bin/containerd",
                "opt/bin/containerd",
            ],
        }
    }

    fn units(self) -> &'static [&'static str] {
        match self {
            Self::K0s => &["k0sworker", "k0scontroller"],
            Self::K3s => &["k3s", "k3s-agent"],
            Self::Rke2 => &["rke2-server", "rke2-agent"],
            Self::Containerd => &["containerd"],
        }
    }

    /// Returns the flags with which the distribution's unit moves its data folder and its
    /// containerd.
    fn moving_flags(self) -> (&'static [&'static str], &'static [&'static str]) {
        match self {
            Self::K0s => (&["--data-dir"], &["--cri-socket"]),
            Self::K3s | Self::Rke2 => (&["--data-dir", "-d"], &["--container-runtime-endpoint"]),
            Self::Containerd => (&[], &["--address", "-a"]),
        }
    }
}

impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The folder that this node's images come from, and the containerd that they go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The distribution whose conventions apply to everything that is not configured.
    pub distribution: Distribution,
    /// The folder with the bundles, and the first one if there are several. Operators place their
    /// bundles here.
    pub images_dir: PathBuf,
    /// Further folders with bundles, which the daemon only reads.
    pub more_dirs: Vec<PathBuf>,
    /// The folder of receipts, which the daemon reads like an images folder after all others.
    pub receipts: PathBuf,
    /// The socket of the containerd that images go to.
    pub socket: PathBuf,
    /// True if the distribution itself uses this folder and this socket. If it has an importer,
    /// that importer takes bundles from the same folder into the same containerd.
    pub is_home: bool,
    /// The reasons for the choice, for the operator.
    pub because: Vec<String>,
}

impl Place {
    /// Returns all images folders in their order.
    pub fn images_dirs(&self) -> Vec<PathBuf> {
        let first = std::iter::once(&self.images_dir);
        first.chain(&self.more_dirs).cloned().collect()
    }

    /// Returns the folders after the first one: the further images folders, and that of receipts.
    pub fn later_dirs(&self) -> Vec<PathBuf> {
        let receipts = std::iter::once(&self.receipts);
        self.more_dirs.iter().chain(receipts).cloned().collect()
    }

    /// Returns all folders that the daemon lists, in their order. The last one has receipts.
    pub(crate) fn dirs(&self) -> Vec<PathBuf> {
        let first = std::iter::once(self.images_dir.clone());
        first.chain(self.later_dirs()).collect()
    }

    /// Returns true if a file is a receipt, by its name.
    pub fn is_receipt(&self, name: &OsStr) -> bool {
        Path::new(name).starts_with(&self.receipts)
    }

    /// Opens a file of an images folder by its name, see [`Folder::open`].
    ///
    /// # Errors
    ///
    /// Returns [`Refused`] with the reason, in words for the operator.
    pub fn open(&self, name: &OsStr) -> Result<File, Refused> {
        let (folder, name) = self.locate(name).ok_or(Refused::Gone)?;
        let folder = Folder::open_dir(folder).map_err(Refused::Unreadable)?;
        folder.open(name)
    }

    /// Returns the images folder of a bundle, and the bundle's name in that folder. Returns `None`
    /// for a bundle of a folder that this node does not have. See [`folder_of`].
    pub(crate) fn locate<'n>(&'n self, name: &'n OsStr) -> Option<(&'n Path, &'n OsStr)> {
        match folder_of(name, &self.later_dirs())? {
            0 => Some((&self.images_dir, name)),
            at => {
                let folder = self.more_dirs.get(at - 1).unwrap_or(&self.receipts);
                Some((folder, Path::new(name).strip_prefix(folder).ok()?.as_os_str()))
            }
        }
    }

    /// Returns true if sub-folders are searched for bundles, too. Without a choice of the operator,
    /// they are if the distribution imports this folder and searches sub-folders itself.
    pub fn searches_sub_folders(&self, settings: &Settings) -> bool {
        let does_the_distribution =
            self.is_home && matches!(self.distribution, Distribution::K3s | Distribution::Rke2);
        settings.recursive.unwrap_or(does_the_distribution)
    }

    /// Returns true if the folder and the containerd are the same. A daemon that waits for
    /// containerd should check this again and again: the node's distribution may be installed
    /// later.
    pub(crate) fn is_same_place(&self, other: &Place) -> bool {
        let place = |node: &Place| (node.distribution, node.images_dirs(), node.socket.clone());
        place(self) == place(other)
    }
}

/// Returns the number of the images folder that a bundle belongs to: 0 for the first folder, 1 for
/// the first of `more`, and so on. Returns `None` for a bundle of another folder.
///
/// The name of a bundle in the first folder is its path in the folder. In every other folder it is
/// the whole path. So two files never have the same name. A node with one folder has the names that
/// it always had.
pub fn folder_of(name: &OsStr, more: &[PathBuf]) -> Option<usize> {
    let path = Path::new(name);
    match path.is_absolute() {
        false => Some(0),
        true => more
            .iter()
            .position(|folder| path.starts_with(folder))
            .map(|at| at + 1),
    }
}

/// The error for equally good evidence of two distributions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ambiguous {
    pub(crate) found: Vec<(Distribution, Vec<String>)>,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.iter();
        let found = found.map(|(distribution, traces)| format!("{distribution} ({})", traces.join(", ")));
        let found: Vec<_> = found.collect();
        write!(
            f,
            "cannot tell which containerd the images belong to, since the node has {}: set `distribution` in the \
             configuration (or AIRGAPD_DISTRIBUTION) to one of them",
            found.join(" and ")
        )
    }
}

impl std::error::Error for Ambiguous {}

/// Chooses folder and socket. Each configured value wins. The others follow from the distribution,
/// which follows from the evidence if it is `auto`.
///
/// # Errors
///
/// Returns [`Ambiguous`] if the evidence is equally good for two distributions. A plain containerd
/// never competes with a distribution, because distributions bring their own.
pub fn decide(evidence: &Evidence, settings: &Settings) -> Result<Place, Ambiguous> {
    let (distribution, mut because) = distribution(evidence, settings)?;
    let traces = evidence.of(distribution);
    let (data_flags, socket_flags) = distribution.moving_flags();

    let data_dir = || match (&settings.data_dir, traces.flag(data_flags)) {
        (Some(configured), _) => (configured.clone(), None),
        (None, Some((unit, path))) => (
            PathBuf::from(path),
            Some(format!("{unit}.service sets the data folder {path}")),
        ),
        (None, None) => (distribution.default_data_dir().to_path_buf(), None),
    };
    let (first, more_dirs) = match settings.images_dirs.split_first() {
        Some((first, more)) => (Some(first), more.to_vec()),
        None => (settings.images_dir.as_ref(), Vec::new()),
    };
    let images_dir = match first {
        Some(configured) => configured.clone(),
        None => {
            let (data_dir, reason) = data_dir();
            because.extend(reason);
            distribution.images_below(&data_dir)
        }
    };
    let socket = match (&settings.address, traces.flag(socket_flags)) {
        (Some(configured), _) => configured.clone(),
        (None, Some((unit, endpoint))) if socket_path(endpoint).is_some() => {
            because.push(format!("{unit}.service sets the containerd socket {endpoint}"));
            socket_path(endpoint).expect("checked by the guard")
        }
        (None, _) => distribution.default_socket().to_path_buf(),
    };
    let is_home = distribution != Distribution::Containerd
        && images_dir == distribution.images_below(&data_dir().0)
        && socket == distribution.default_socket();
    Ok(Place {
        distribution,
        images_dir,
        more_dirs,
        receipts: receipts::folder(settings),
        socket,
        is_home,
        because,
    })
}

fn distribution(evidence: &Evidence, settings: &Settings) -> Result<(Distribution, Vec<String>), Ambiguous> {
    if let Some(configured) = settings.distribution {
        return Ok((configured, vec!["it is configured".to_owned()]));
    }
    let bundled = [Distribution::K0s, Distribution::K3s, Distribution::Rke2];
    let strongest = bundled
        .iter()
        .map(|d| evidence.of(*d).strength())
        .max()
        .unwrap_or(0);
    let found: Vec<_> = bundled
        .into_iter()
        .filter(|d| strongest > 0 && evidence.of(*d).strength() == strongest)
        .map(|d| (d, evidence.of(d).describe()))
        .collect();
    match found.as_slice() {
        [] => Ok((Distribution::Containerd, evidence.containerd.describe())),
        [(distribution, because)] => Ok((*distribution, because.clone())),
        // The operator gives both folder and socket, so the distribution decides nothing.
        [(distribution, because), ..] if settings.address.is_some() && has_folder(settings) => {
            Ok((*distribution, because.clone()))
        }
        _ => Err(Ambiguous { found }),
    }
}

fn has_folder(settings: &Settings) -> bool {
    settings.images_dir.is_some() || !settings.images_dirs.is_empty()
}

/// Returns the socket of an endpoint such as `/run/x.sock`, `unix:///run/x.sock` or k0s's
/// `remote:unix:///run/x.sock`. Returns `None` if the endpoint is no socket on this machine.
fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let endpoint = endpoint.strip_prefix("remote:").unwrap_or(endpoint);
    let path = endpoint
        .strip_prefix("unix://")
        .or(endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint);
    path.starts_with('/').then(|| PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::evidence::Traces;
    use super::evidence::tests::with_unit;
    use super::*;

    fn with_program(path: &str) -> Traces {
        Traces {
            programs: vec![path.into()],
            ..Traces::default()
        }
    }

    fn with_data(path: &str) -> Traces {
        Traces {
            data: Some(path.into()),
            ..Traces::default()
        }
    }

    /// Returns distribution, folder and socket, as the tables below write them.
    fn decided(evidence: &Evidence, settings: &Settings) -> (Distribution, String, String) {
        let runtime = decide(evidence, settings).unwrap();
        let text = |path: &Path| path.display().to_string();
        (
            runtime.distribution,
            text(&runtime.images_dir),
            text(&runtime.socket),
        )
    }

    const K0S: (&str, &str) = ("/var/lib/k0s/images", "/run/k0s/containerd.sock");
    const K3S: (&str, &str) = (
        "/var/lib/rancher/k3s/agent/images",
        "/run/k3s/containerd/containerd.sock",
    );
    const RKE2: (&str, &str) = (
        "/var/lib/rancher/rke2/agent/images",
        "/run/k3s/containerd/containerd.sock",
    );
    const PLAIN: (&str, &str) = ("/var/lib/k0s/images", "/run/containerd/containerd.sock");

    #[test]
    fn auto_goes_by_what_is_installed() {
        use Distribution::{Containerd, K0s, K3s, Rke2};
        let containerd = || with_unit("containerd", "/usr/bin/containerd");
        let table = [
            ("nothing", Evidence::default(), Containerd, PLAIN),
            (
                "containerd alone",
                Evidence {
                    containerd: containerd(),
                    ..Evidence::default()
                },
                Containerd,
                PLAIN,
            ),
            (
                "k0s beside Docker's containerd",
                Evidence {
                    containerd: containerd(),
                    k0s: with_program("/usr/local/bin/k0s"),
                    ..Evidence::default()
                },
                K0s,
                K0S,
            ),
            (
                "k0s, known by its data folder only",
                Evidence {
                    containerd: containerd(),
                    k0s: with_data("/var/lib/k0s"),
                    ..Evidence::default()
                },
                K0s,
                K0S,
            ),
            (
                "k3s",
                Evidence {
                    k3s: with_unit("k3s-agent", "/usr/local/bin/k3s agent"),
                    ..Evidence::default()
                },
                K3s,
                K3S,
            ),
            (
                "rke2",
                Evidence {
                    rke2: with_unit("rke2-agent", "/opt/rke2/bin/rke2 agent"),
                    ..Evidence::default()
                },
                Rke2,
                RKE2,
            ),
            (
                "a unit beats what an old k0s left behind",
                Evidence {
                    k0s: with_data("/var/lib/k0s"),
                    k3s: with_unit("k3s", "/usr/local/bin/k3s server"),
                    ..Evidence::default()
                },
                K3s,
                K3S,
            ),
            (
                "a program beats a data folder",
                Evidence {
                    k0s: with_program("/usr/bin/k0s"),
                    rke2: with_data("/var/lib/rancher/rke2"),
                    ..Evidence::default()
                },
                K0s,
                K0S,
            ),
        ];
        for (case, evidence, distribution, (folder, socket)) in table {
            let expected = (distribution, folder.to_owned(), socket.to_owned());
            assert_eq!(decided(&evidence, &Settings::default()), expected, "{case}");
        }
    }

    #[test]
    fn a_distribution_is_at_home_in_its_own_folder_and_containerd_only() {
        let evidence = |command: &str| Evidence {
            k0s: with_unit("k0sworker", command),
            ..Evidence::default()
        };
        let settings = |images_dir: Option<&str>, address: Option<&str>| Settings {
            images_dir: images_dir.map(PathBuf::from),
            address: address.map(PathBuf::from),
            ..Settings::default()
        };
        let table = [
            ("k0s worker", None, None, true),
            ("k0s worker --data-dir=/data/k0s", None, None, true),
            (
                "k0s worker",
                Some("/var/lib/k0s/images"),
                Some("/run/k0s/containerd.sock"),
                true,
            ),
            ("k0s worker", Some("/srv/images"), None, false),
            ("k0s worker", None, Some("/run/containerd/containerd.sock"), false),
            (
                "k0s worker --cri-socket=remote:unix:///run/c.sock",
                None,
                None,
                false,
            ),
        ];
        for (command, images_dir, address, wanted) in table {
            let decided = decide(&evidence(command), &settings(images_dir, address)).unwrap();
            assert_eq!(decided.is_home, wanted, "{command} {images_dir:?} {address:?}");
        }
        assert!(
            !decide(&Evidence::default(), &Settings::default())
                .unwrap()
                .is_home
        );
    }

    #[test]
    fn another_folder_or_socket_is_another_place_and_another_reason_is_not() {
        let default = decide(&Evidence::default(), &Settings::default()).unwrap();
        let with = |evidence: Evidence| decide(&evidence, &Settings::default()).unwrap();
        let plain = with(Evidence {
            containerd: with_program("/usr/bin/containerd"),
            ..Evidence::default()
        });
        assert!(plain.is_same_place(&default) && plain.because != default.because);
        let k0s = with(Evidence {
            k0s: with_program("/usr/local/bin/k0s"),
            ..Evidence::default()
        });
        assert!(!k0s.is_same_place(&default));
        let moved = with(Evidence {
            k0s: with_unit("k0sworker", "/usr/local/bin/k0s worker --data-dir=/data/k0s"),
            ..Evidence::default()
        });
        assert!(!moved.is_same_place(&k0s));
    }

    #[test]
    fn equal_evidence_for_two_is_refused_with_the_way_out() {
        let evidence = Evidence {
            k0s: with_unit("k0sworker", "/usr/local/bin/k0s worker"),
            k3s: with_unit("k3s", "/usr/local/bin/k3s server"),
            ..Evidence::default()
        };
        let error = decide(&evidence, &Settings::default()).unwrap_err().to_string();
        for part in ["unit k0sworker.service", "unit k3s.service", "distribution"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let settings = Settings {
            address: Some("/run/x.sock".into()),
            images_dir: Some("/images".into()),
            ..Settings::default()
        };
        assert_eq!(decided(&evidence, &settings).2, "/run/x.sock");
    }

    #[test]
    fn what_is_configured_wins_piece_by_piece() {
        let evidence = Evidence {
            k0s: with_unit(
                "k0sworker",
                "k0s worker --data-dir=/srv/k0s --cri-socket=remote:unix:///run/a.sock",
            ),
            ..Evidence::default()
        };
        let plain = Settings::default();
        let table = [
            ("by the unit", plain.clone(), "/srv/k0s/images", "/run/a.sock"),
            (
                "data folder",
                Settings {
                    data_dir: Some("/data".into()),
                    ..plain.clone()
                },
                "/data/images",
                "/run/a.sock",
            ),
            (
                "images folder beats data folder",
                Settings {
                    data_dir: Some("/data".into()),
                    images_dir: Some("/in".into()),
                    ..plain.clone()
                },
                "/in",
                "/run/a.sock",
            ),
            (
                "address",
                Settings {
                    address: Some("/run/b.sock".into()),
                    ..plain.clone()
                },
                "/srv/k0s/images",
                "/run/b.sock",
            ),
            (
                "another distribution than the evidence",
                Settings {
                    distribution: Some(Distribution::Rke2),
                    data_dir: Some("/r".into()),
                    ..plain
                },
                "/r/agent/images",
                "/run/k3s/containerd/containerd.sock",
            ),
        ];
        for (case, settings, folder, socket) in table {
            let (_, images_dir, address) = decided(&evidence, &settings);
            assert_eq!(
                (images_dir.as_str(), address.as_str()),
                (folder, socket),
                "{case}"
            );
        }
    }

    #[test]
    fn several_folders_stand_in_the_place_of_the_first() {
        let settings = Settings {
            images_dirs: ["/in", "/usr/share/images"].map(PathBuf::from).to_vec(),
            ..Settings::default()
        };
        let place = decide(&Evidence::default(), &settings).unwrap();
        assert_eq!(place.images_dirs(), settings.images_dirs);
        let one = Settings {
            images_dir: Some("/in".into()),
            ..Settings::default()
        };
        assert!(!place.is_same_place(&decide(&Evidence::default(), &one).unwrap()));
        let table = [
            ("a.tar", Some(("/in", "a.tar"))),
            ("sub/a.tar", Some(("/in", "sub/a.tar"))),
            ("/usr/share/images/a.tar", Some(("/usr/share/images", "a.tar"))),
            (
                "/usr/share/images/sub/a.tar",
                Some(("/usr/share/images", "sub/a.tar")),
            ),
            ("/usr/share/images2/a.tar", None),
            ("/in/a.tar", None),
        ];
        for (name, wanted) in table {
            let wanted = wanted.map(|(folder, name)| (Path::new(folder), OsStr::new(name)));
            assert_eq!(place.locate(OsStr::new(name)), wanted, "{name}");
        }
    }

    #[test]
    fn sub_folders_are_searched_as_the_distribution_searches_them() {
        use Distribution::{Containerd, K0s, K3s, Rke2};
        let searches = |distribution, images_dir: Option<&str>, recursive| {
            let settings = Settings {
                distribution: Some(distribution),
                images_dir: images_dir.map(PathBuf::from),
                recursive,
                ..Settings::default()
            };
            let place = decide(&Evidence::default(), &settings).unwrap();
            place.searches_sub_folders(&settings)
        };
        for (distribution, expected) in [(K0s, false), (K3s, true), (Rke2, true), (Containerd, false)] {
            assert_eq!(searches(distribution, None, None), expected, "{distribution}");
            assert!(
                !searches(distribution, Some("/srv/bundles"), None),
                "{distribution}"
            );
            assert!(searches(distribution, None, Some(true)), "{distribution}");
            assert!(!searches(distribution, None, Some(false)), "{distribution}");
        }
    }

    #[test]
    fn endpoints_that_are_no_local_socket_are_not_used() {
        let table = [
            ("remote:unix:///run/x.sock", Some("/run/x.sock")),
            ("unix:///run/x.sock", Some("/run/x.sock")),
            ("unix:/run/x.sock", Some("/run/x.sock")),
            ("/run/x.sock", Some("/run/x.sock")),
            ("tcp://10.0.0.1:1", None),
            ("", None),
        ];
        for (endpoint, expected) in table {
            assert_eq!(socket_path(endpoint), expected.map(PathBuf::from), "{endpoint}");
        }
    }
}
