//! The traces of each distribution on this node: its programs, its units and its data folder.
//!
//! Reading them changes nothing and decides nothing. Sockets are no evidence.

use std::path::{Path, PathBuf};

use super::Distribution;

/// A service definition that was found on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    /// Its name without `.service`.
    pub(super) name: String,
    /// The command line it starts, split at white space with quotes taken off.
    pub(super) command: Vec<String>,
}

/// The traces of one distribution on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Traces {
    /// Programs, by path.
    pub(super) programs: Vec<PathBuf>,
    pub(super) units: Vec<Unit>,
    /// The default data folder, if it has other content than an images folder. An images folder
    /// alone proves nothing: airgapd creates it, and operators create it before they install the
    /// distribution.
    pub(super) data: Option<PathBuf>,
}

impl Traces {
    /// Returns how good the evidence is. A unit is better than a program. A program is better than
    /// a data folder, which may be the rest of an earlier installation.
    pub(super) fn strength(&self) -> u8 {
        match (self.units.is_empty(), self.programs.is_empty(), &self.data) {
            (false, _, _) => 3,
            (true, false, _) => 2,
            (true, true, Some(_)) => 1,
            (true, true, None) => 0,
        }
    }

    pub(super) fn describe(&self) -> Vec<String> {
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

    pub(super) fn flag(&self, names: &[&str]) -> Option<(&str, &str)> {
        self.units
            .iter()
            .find_map(|unit| Some((unit.name.as_str(), flag_value(&unit.command, names)?)))
    }
}

/// The evidence for [`super::decide`], as [`probe`] found it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    pub(super) k0s: Traces,
    pub(super) k3s: Traces,
    pub(super) rke2: Traces,
    pub(super) containerd: Traces,
}

impl Evidence {
    /// The traces of one distribution.
    pub(super) fn of(&self, distribution: Distribution) -> &Traces {
        match distribution {
            Distribution::K0s => &self.k0s,
            Distribution::K3s => &self.k3s,
            Distribution::Rke2 => &self.rke2,
            Distribution::Containerd => &self.containerd,
        }
    }

    /// Returns true on a k0s controller without a worker, where no containerd runs. The daemon is
    /// idle there, which is no error.
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

/// Returns the value of the first of `names` on a command line, given as `--flag=value` or `--flag
/// value`.
fn flag_value<'a>(command: &'a [String], names: &[&str]) -> Option<&'a str> {
    command.iter().enumerate().find_map(|(position, word)| {
        names.iter().find_map(|name| match word.strip_prefix(name)? {
            "" => command.get(position + 1).map(String::as_str),
            rest => rest.strip_prefix('='),
        })
    })
}

/// Looks for traces of all distributions below `root`, which is `/` outside of tests. An unreadable
/// file is no evidence.
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
        .filter(|path| verify::is_foreign_program(path));
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

/// The folders in which systemd looks for units (systemd.unit(5)), the strongest first.
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

/// Returns the words of `ExecStart=` (systemd) or `command_args=` (OpenRC), with continuation lines
/// joined.
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

/// Returns true if a data folder has other content than the images folder. airgapd or an operator
/// may have created that folder before the distribution was installed.
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
pub(super) mod tests {
    use super::*;

    pub(in crate::place) fn with_unit(name: &str, command: &str) -> Traces {
        Traces {
            units: vec![Unit {
                name: name.into(),
                command: command_line(&format!("ExecStart={command}")),
            }],
            ..Traces::default()
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
    fn a_worker_of_openrc_is_known_by_its_service() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("etc/init.d");
        std::fs::create_dir_all(&folder).unwrap();
        for (arguments, is_idle) in [
            ("'controller' '--single=true' ", false),
            ("'controller' '--enable-worker=true' '--no-taints=true' ", false),
            ("'controller' '--config=/etc/k0s/k0s.yaml' ", true),
        ] {
            let text =
                format!("#!/sbin/openrc-run\ncommand=\"/usr/local/bin/k0s\"\ncommand_args=\"{arguments}\"\n");
            std::fs::write(folder.join("k0scontroller"), text).unwrap();
            let evidence = probe(root.path());
            assert_eq!(evidence.is_controller_without_worker(), is_idle, "{arguments}");
            assert_eq!(evidence.k0s.units.len(), 1);
        }
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

    #[test]
    fn a_name_of_k0s_that_leads_to_airgapd_is_no_k0s() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("usr/local/bin");
        std::fs::create_dir_all(&folder).unwrap();
        let airgapd = root.path().join("usr/local/bin/airgapd");
        std::fs::write(&airgapd, "").unwrap();
        let k0s = folder.join("k0s");
        for (target, is_k0s) in [
            (airgapd, false),
            (std::env::current_exe().unwrap(), false),
            ("/bin/sh".into(), true),
        ] {
            std::os::unix::fs::symlink(&target, &k0s).unwrap();
            let found = probe(root.path()).k0s.programs;
            assert_eq!(!found.is_empty(), is_k0s, "{}", target.display());
            std::fs::remove_file(&k0s).unwrap();
        }
    }
}
