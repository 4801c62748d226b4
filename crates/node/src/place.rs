//! Decides which containerd this node's images belong to, and which folder they come from.
//!
//! The decision goes by what is installed (units, programs, data folders) and by what the operator
//! configured. It never looks at which socket exists: on a node with Docker and a k0s that starts
//! late, nothing may land in Docker's containerd. [`probe`] reads the evidence, [`decide`] is a pure
//! function of it.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::settings::Settings;

/// What runs containerd on this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distribution {
    /// k0s, which brings its own containerd.
    K0s,
    /// k3s, which brings its own containerd.
    K3s,
    /// RKE2, which brings its own containerd.
    Rke2,
    /// A containerd of its own, as on a kubeadm node.
    Containerd,
}

impl Distribution {
    /// The distribution as the configuration spells it.
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
            // A plain containerd has no data folder with images; it shares the documented default.
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

    /// The flags by which the distribution's unit moves its data folder and its containerd.
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

/// A service definition that was found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its name without `.service`.
    pub(crate) name: String,
    /// The command line it starts, split at white space with quotes taken off.
    pub(crate) command: Vec<String>,
}

/// What of one distribution was found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traces {
    /// Programs, by path.
    pub(crate) programs: Vec<PathBuf>,
    pub(crate) units: Vec<Unit>,
    /// The default data folder, where it holds more than an images folder. That one alone proves
    /// nothing: we create it ourselves, and operators do before they install.
    pub(crate) data: Option<PathBuf>,
}

impl Traces {
    /// A unit is better evidence than a program, and a program than a data folder, which an
    /// uninstallation may have left behind.
    fn strength(&self) -> u8 {
        match (self.units.is_empty(), self.programs.is_empty(), &self.data) {
            (false, _, _) => 3,
            (true, false, _) => 2,
            (true, true, Some(_)) => 1,
            (true, true, None) => 0,
        }
    }

    fn describe(&self) -> Vec<String> {
        let units = self
            .units
            .iter()
            .map(|unit| format!("unit {}.service", unit.name));
        let programs = self
            .programs
            .iter()
            .map(|path| format!("program {}", path.display()));
        let data = self
            .data
            .iter()
            .map(|path| format!("data folder {}", path.display()));
        units.chain(programs).chain(data).collect()
    }

    fn flag(&self, names: &[&str]) -> Option<(&str, &str)> {
        self.units
            .iter()
            .find_map(|unit| Some((unit.name.as_str(), flag_value(&unit.command, names)?)))
    }
}

/// Everything [`decide`] goes by, as [`probe`] found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    pub(crate) k0s: Traces,
    pub(crate) k3s: Traces,
    pub(crate) rke2: Traces,
    pub(crate) containerd: Traces,
}

impl Evidence {
    /// The traces of one distribution.
    pub(crate) fn of(&self, distribution: Distribution) -> &Traces {
        match distribution {
            Distribution::K0s => &self.k0s,
            Distribution::K3s => &self.k3s,
            Distribution::Rke2 => &self.rke2,
            Distribution::Containerd => &self.containerd,
        }
    }

    /// Whether this is a k0s controller on which no worker, and so no containerd, runs: the daemon
    /// is idle there, which is no error.
    pub fn is_controller_without_worker(&self) -> bool {
        let runs_worker = |unit: &Unit| {
            let given = |name: &str| {
                unit.command
                    .iter()
                    .any(|word| word == name || *word == format!("{name}=true"))
            };
            unit.name == "k0sworker" || given("--enable-worker") || given("--single")
        };
        !self.k0s.units.is_empty() && !self.k0s.units.iter().any(runs_worker)
    }
}

/// Where the images of this node come from and go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The distribution whose conventions hold where nothing is configured.
    pub distribution: Distribution,
    /// The folder that bundles are dropped in.
    pub images_dir: PathBuf,
    /// The socket of the containerd that images go to.
    pub socket: PathBuf,
    /// Folder and socket are those that the distribution uses itself: its own importer, where it has one, takes bundles
    /// from the same folder into the same containerd.
    pub is_home: bool,
    /// What the choice rests on, to be told to the operator.
    pub because: Vec<String>,
}

impl Place {
    /// Whether bundles come from the same folder and images go to the same containerd. As long as nothing answers there,
    /// whoever waits should look again: what the node is for may only be about to be installed.
    pub(crate) fn is_same_place(&self, other: &Place) -> bool {
        let place = |node: &Place| (node.distribution, node.images_dir.clone(), node.socket.clone());
        place(self) == place(other)
    }
}

/// Two distributions are equally well evidenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ambiguous {
    pub(crate) found: Vec<(Distribution, Vec<String>)>,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot tell which containerd the images belong to:")?;
        for (distribution, traces) in &self.found {
            write!(f, " {distribution} by {};", traces.join(", "))?;
        }
        f.write_str(" set `distribution` in the configuration (or AIRGAPD_DISTRIBUTION) to one of them")
    }
}

impl std::error::Error for Ambiguous {}

/// Chooses folder and socket. What is configured wins, piece by piece; the rest follows from the
/// distribution, and that one from the evidence where it is `auto`.
///
/// # Errors
///
/// [`Ambiguous`] where the evidence is equally good for two distributions. A plain containerd never
/// competes with a distribution: those bring their own.
pub fn decide(evidence: &Evidence, settings: &Settings) -> Result<Place, Ambiguous> {
    let (distribution, mut because) = distribution(evidence, settings)?;
    let traces = evidence.of(distribution);
    let (data_flags, socket_flags) = distribution.moving_flags();

    let data_dir = || match (&settings.data_dir, traces.flag(data_flags)) {
        (Some(configured), _) => (configured.clone(), None),
        (None, Some((unit, path))) => (
            PathBuf::from(path),
            Some(format!("{unit}.service says its data folder is {path}")),
        ),
        (None, None) => (distribution.default_data_dir().to_path_buf(), None),
    };
    let images_dir = match &settings.images_dir {
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
            because.push(format!("{unit}.service says its containerd is at {endpoint}"));
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
        // Both pieces are given by hand, so the distribution no longer decides anything.
        [(distribution, because), ..] if settings.address.is_some() && settings.images_dir.is_some() => {
            Ok((*distribution, because.clone()))
        }
        _ => Err(Ambiguous { found }),
    }
}

/// The value of the first of `names` on a command line, given as `--flag=value` or `--flag value`.
fn flag_value<'a>(command: &'a [String], names: &[&str]) -> Option<&'a str> {
    command.iter().enumerate().find_map(|(position, word)| {
        names.iter().find_map(|name| match word.strip_prefix(name)? {
            "" => command.get(position + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        })
    })
}

/// The socket of an endpoint such as `/run/x.sock`, `unix:///run/x.sock` or k0s's
/// `remote:unix:///run/x.sock`; none where it is not a socket on this machine.
fn socket_path(endpoint: &str) -> Option<PathBuf> {
    let endpoint = endpoint.strip_prefix("remote:").unwrap_or(endpoint);
    let path = endpoint
        .strip_prefix("unix://")
        .or(endpoint.strip_prefix("unix:"))
        .unwrap_or(endpoint);
    path.starts_with('/').then(|| PathBuf::from(path))
}

/// Looks for traces of all distributions below `root` (`/`, unless a test says otherwise). What
/// cannot be read is no evidence.
pub fn probe(root: &Path) -> Evidence {
    let traces = |distribution| traces(root, distribution);
    Evidence {
        k0s: traces(Distribution::K0s),
        k3s: traces(Distribution::K3s),
        rke2: traces(Distribution::Rke2),
        containerd: traces(Distribution::Containerd),
    }
}

fn traces(root: &Path, distribution: Distribution) -> Traces {
    let programs = distribution
        .programs()
        .iter()
        .map(|path| root.join(path))
        .filter(|path| path.is_file());
    let data = match distribution {
        Distribution::Containerd => None,
        _ => Some(below(root, distribution.default_data_dir())).filter(|folder| is_lived_in(folder)),
    };
    Traces {
        programs: programs.collect(),
        units: distribution
            .units()
            .iter()
            .filter_map(|name| unit(root, name))
            .collect(),
        data,
    }
}

/// Where systemd looks for units (systemd.unit(5)), the strongest first.
const UNIT_FOLDERS: [&str; 5] = [
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

fn unit(root: &Path, name: &str) -> Option<Unit> {
    let systemd = UNIT_FOLDERS
        .iter()
        .map(|folder| root.join(folder).join(format!("{name}.service")));
    // k0s and k3s install OpenRC scripts on Alpine.
    let openrc = root.join("etc/init.d").join(name);
    systemd.chain([openrc]).find_map(|path| {
        let text = std::fs::read(path).ok()?;
        Some(Unit {
            name: name.to_owned(),
            command: command_line(&String::from_utf8_lossy(&text)),
        })
    })
}

/// The words of `ExecStart=` (systemd) or `command_args=` (OpenRC), with continuation lines joined.
fn command_line(text: &str) -> Vec<String> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().map(str::trim);
    lines
        .filter_map(|line| {
            line.strip_prefix("ExecStart=")
                .or_else(|| line.strip_prefix("command_args="))
        })
        .flat_map(str::split_whitespace)
        .map(|word| word.trim_matches(['"', '\'']).to_owned())
        .filter(|word| !word.is_empty())
        .collect()
}

/// Whether a data folder holds anything besides the images folder that we or an operator may have
/// made before the distribution was installed.
fn is_lived_in(folder: &Path) -> bool {
    let others = |folder: &Path, expected: &str| {
        std::fs::read_dir(folder)
            .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() != expected))
    };
    let nested = folder.join("agent");
    if nested.is_dir() {
        others(folder, "agent") || others(&nested, "images")
    } else {
        others(folder, "images")
    }
}

fn below(root: &Path, absolute: &Path) -> PathBuf {
    root.join(absolute.strip_prefix("/").unwrap_or(absolute))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_unit(name: &str, command: &str) -> Traces {
        Traces {
            units: vec![Unit {
                name: name.into(),
                command: command_line(&format!("ExecStart={command}")),
            }],
            ..Traces::default()
        }
    }

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

    /// Distribution, folder and socket, as the tables below write them.
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
    fn units_say_where_data_and_socket_are() {
        let table = [
            ("k0s worker --data-dir /a", &["--data-dir"][..], Some("/a")),
            ("k0s worker --data-dir=/a", &["--data-dir"], Some("/a")),
            ("k3s server -d /b", &["--data-dir", "-d"], Some("/b")),
            ("k0s worker '--data-dir=/c'", &["--data-dir"], Some("/c")),
            ("k0s worker --data-dirs=/c", &["--data-dir"], None),
            ("k0s worker --data-dir", &["--data-dir"], None),
            ("k0s worker", &["--data-dir"], None),
        ];
        for (line, names, expected) in table {
            let command = command_line(&format!("[Service]\nExecStart={line}\nRestart=always\n"));
            assert_eq!(flag_value(&command, names), expected, "{line}");
        }
        assert_eq!(command_line("ExecStart=a \\\n  --b\\\n c").join(" "), "a --b c");
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

    #[test]
    fn a_controller_without_worker_is_known_by_its_unit() {
        let k0s = |name: &str, command: &str| Evidence {
            k0s: with_unit(name, command),
            ..Evidence::default()
        };
        assert!(k0s("k0scontroller", "k0s controller").is_controller_without_worker());
        assert!(!k0s("k0scontroller", "k0s controller --enable-worker=true").is_controller_without_worker());
        assert!(!k0s("k0scontroller", "k0s controller --enable-worker").is_controller_without_worker());
        assert!(!k0s("k0scontroller", "k0s controller --single").is_controller_without_worker());
        assert!(!k0s("k0sworker", "k0s worker").is_controller_without_worker());
        assert!(!Evidence::default().is_controller_without_worker());
    }

    #[test]
    fn probing_finds_units_programs_and_lived_in_data_folders_and_no_sockets() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("run/containerd/containerd.sock", "");
        write("run/k3s/containerd/containerd.sock", "");
        write("var/lib/k0s/images/bundle.tar", "");
        write("var/lib/rancher/k3s/agent/images/bundle.tar", "");
        assert_eq!(probe(root.path()), Evidence::default());

        write("usr/local/bin/k0s", "");
        write(
            "etc/systemd/system/k0sworker.service",
            "[Service]\nExecStart=/usr/local/bin/k0s worker\n",
        );
        write("var/lib/k0s/bin/containerd", "");
        write("var/lib/rancher/k3s/agent/client.crt", "");
        let evidence = probe(root.path());
        assert_eq!(evidence.k0s.programs, [root.path().join("usr/local/bin/k0s")]);
        assert_eq!(evidence.k0s.units[0].command, ["/usr/local/bin/k0s", "worker"]);
        assert_eq!(evidence.k0s.data, Some(root.path().join("var/lib/k0s")));
        assert_eq!(evidence.k3s.data, Some(root.path().join("var/lib/rancher/k3s")));
        assert_eq!(evidence.containerd, Traces::default());
    }
}
