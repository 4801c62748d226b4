//! Unpacks Debian packages into a private folder, from the mirror that this machine uses.
//!
//! It installs nothing and leaves apt's own lists alone: each [`Archive`] has its own list folder.
//! The module knows apt but not containerd. [`parts`](crate::parts) knows containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::output_of;

/// Suites that name a release by its state. A machine may use such a name in place of a code name.
const ROLLING_SUITES: [&str; 5] = ["stable", "oldstable", "testing", "unstable", "sid"];

/// Returns the code name of this machine's Debian release, or `None` if the machine is no Debian.
pub(crate) fn codename() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    codename_in(&release)
}

fn codename_in(os_release: &str) -> Option<String> {
    let field = |name: &str| {
        os_release.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key == name).then(|| value.trim_matches('"').to_owned())
        })
    };
    (field("ID")? == "debian").then(|| field("VERSION_CODENAME").unwrap_or_else(|| "sid".to_owned()))
}

/// Returns the address of this machine's mirror.
pub(crate) fn mirror() -> Result<String> {
    let codename = codename().context("this machine is not a Debian, so its package source is not known")?;
    machine_source(&codename)?
        .address()
        .context("the machine's package source has no address")
}

/// The packages of one suite.
pub(crate) struct Archive {
    folder: TempDir,
    sources: PathBuf,
    /// Architecture of the packages as dpkg names it, if it is not this machine's.
    architecture: Option<&'static str>,
}

impl Archive {
    /// Fetches the package lists of `suite` from this machine's mirror into a temporary folder.
    pub(crate) fn open(suite: &str) -> Result<Self> {
        Self::open_for(suite, None)
    }

    /// Does the same for packages of another architecture. They can be unpacked but do not run.
    pub(crate) fn open_for(suite: &str, architecture: Option<&'static str>) -> Result<Self> {
        let Some(codename) = codename() else {
            bail!("this machine is not a Debian, so its package source is not known");
        };
        let source = machine_source(&codename)?.with_suite(suite);
        let folder = tempfile::Builder::new().prefix("airgapd-apt-").tempdir()?;
        for part in ["lists/partial", "cache/archives/partial", "debs"] {
            fs::create_dir_all(folder.path().join(part))?;
        }
        let sources = folder.path().join(source.file_name());
        fs::write(&sources, source.text())?;
        let archive = Self {
            folder,
            sources,
            architecture,
        };
        output_of(archive.apt_get().args(["-qq", "update"]))
            .with_context(|| format!("cannot fetch the package lists of Debian {suite}"))?;
        Ok(archive)
    }

    /// Unpacks one package without its dependencies.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        let debs = self.folder.path().join("debs").join(package);
        fs::create_dir_all(&debs)?;
        output_of(
            self.apt_get()
                .args(["-qq", "download", package])
                .current_dir(&debs),
        )?;
        unpack_all(&debs, into)
    }

    /// Unpacks packages with all dependencies that are not installed on this machine.
    pub(crate) fn unpack_with_dependencies(&self, packages: &[&str], into: &Path) -> Result<()> {
        output_of(
            self.apt_get()
                .args([
                    "-qq",
                    "-y",
                    "--download-only",
                    "--reinstall",
                    "--no-install-recommends",
                ])
                // apt installs nothing here, so it needs no lock. Only root could take it.
                .args(["-o", "Debug::NoLocking=true", "install"])
                .args(packages),
        )?;
        unpack_all(&self.folder.path().join("cache/archives"), into)
    }

    fn apt_get(&self) -> Command {
        let folder = self.folder.path();
        let mut command = Command::new("apt-get");
        let options = [
            format!("Dir::Etc::sourcelist={}", self.sources.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", folder.join("lists").display()),
            format!("Dir::Cache={}", folder.join("cache").display()),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
            // A mirror that lags behind serves expired lists. apt still checks their signature.
            "Acquire::Check-Valid-Until=false".to_owned(),
            // Only root can write to this folder, so apt's download user cannot.
            "APT::Sandbox::User=root".to_owned(),
        ];
        let foreign = self.architecture.iter().flat_map(|architecture| {
            ["APT::Architecture", "APT::Architectures"].map(|key| format!("{key}={architecture}"))
        });
        for option in options.into_iter().chain(foreign) {
            command.args(["-o", &option]);
        }
        command
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command
    }
}

fn unpack_all(debs: &Path, into: &Path) -> Result<()> {
    let mut unpacked = 0;
    for entry in fs::read_dir(debs)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            output_of(Command::new("dpkg").arg("-x").arg(&path).arg(into))?;
            unpacked += 1;
        }
    }
    if unpacked == 0 {
        bail!("apt-get downloaded no package");
    }
    Ok(())
}

/// Returns the machine's own Debian source, from the places where releases have kept it.
fn machine_source(codename: &str) -> Result<Source> {
    candidates()
        .iter()
        .filter_map(|path| Some((path, fs::read_to_string(path).ok()?)))
        .find_map(|(path, text)| match path.extension()?.to_str()? {
            "sources" => Source::from_deb822(&text, codename),
            _ => Source::from_lines(&text, codename),
        })
        .with_context(|| format!("no package source for Debian {codename} below /etc/apt"))
}

fn candidates() -> Vec<PathBuf> {
    let mut paths = vec![
        PathBuf::from("/etc/apt/sources.list.d/debian.sources"),
        PathBuf::from("/etc/apt/sources.list"),
    ];
    let mut others: Vec<_> = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| !paths.contains(path))
        .collect();
    others.sort();
    paths.append(&mut others);
    paths
}

/// One package source of the machine: the address of its mirror and the keys it trusts.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// A deb822 stanza (sources.list(5)) without its types, suites and components.
    Deb822(String),
    /// A one-line source up to the address and including it.
    Line(String),
}

impl Source {
    fn from_deb822(text: &str, codename: &str) -> Option<Self> {
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        lines
            .split(|line| line.trim().is_empty())
            .map(Stanza::parse)
            .find(|stanza| stanza.is_debian(codename))
            .map(|stanza| Self::Deb822(stanza.fields_without(&["types", "suites", "components", "enabled"])))
    }

    fn from_lines(text: &str, codename: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let line = line.split('#').next()?.trim();
            let rest = line.strip_prefix("deb")?.strip_prefix([' ', '\t'])?.trim();
            let options = if rest.starts_with('[') {
                &rest[..=rest.find(']')?]
            } else {
                ""
            };
            let mut words = rest[options.len()..].split_whitespace();
            let (address, suite) = (words.next()?, words.next()?);
            (is_debian_suite(suite, codename) && words.any(|component| component == "main"))
                .then(|| Self::Line(format!("deb {options} {address}")))
        })
    }

    /// Returns the address, or the first one if a stanza has several.
    fn address(&self) -> Option<String> {
        match self {
            Self::Deb822(fields) => {
                let lines: Vec<_> = fields.lines().collect();
                Stanza::parse(&lines).words("uris").next().map(str::to_owned)
            }
            Self::Line(start) => start.split_whitespace().last().map(str::to_owned),
        }
    }

    fn with_suite(self, suite: &str) -> SuiteSource {
        match self {
            Self::Deb822(fields) => {
                SuiteSource::Deb822(format!("Types: deb\nSuites: {suite}\nComponents: main\n{fields}"))
            }
            Self::Line(start) => SuiteSource::Line(format!("{start} {suite} main\n")),
        }
    }
}

/// The text of a source file for one suite.
#[derive(Debug, PartialEq, Eq)]
enum SuiteSource {
    Deb822(String),
    Line(String),
}

impl SuiteSource {
    /// Returns the file name. apt recognises the format by its extension.
    fn file_name(&self) -> &'static str {
        match self {
            Self::Deb822(_) => "suite.sources",
            Self::Line(_) => "suite.list",
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Deb822(text) | Self::Line(text) => text,
        }
    }
}

/// The fields of a deb822 stanza: each with its name in lower case and its lines.
struct Stanza(Vec<(String, String)>);

impl Stanza {
    fn parse(lines: &[&str]) -> Self {
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in lines {
            if line.starts_with([' ', '\t']) {
                if let Some((_, text)) = fields.last_mut() {
                    text.push('\n');
                    text.push_str(line);
                }
            } else if let Some((name, _)) = line.split_once(':') {
                fields.push((name.trim().to_ascii_lowercase(), (*line).to_owned()));
            }
        }
        Self(fields)
    }

    fn words(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0
            .iter()
            .filter(move |(field, _)| field == name)
            .flat_map(|(_, text)| {
                text.split_once(':')
                    .map_or("", |(_, value)| value)
                    .split_whitespace()
            })
    }

    fn is_debian(&self, codename: &str) -> bool {
        self.words("types").any(|kind| kind == "deb")
            && self.words("components").any(|component| component == "main")
            && self.words("suites").any(|suite| is_debian_suite(suite, codename))
            && !self
                .words("enabled")
                .any(|value| matches!(value, "no" | "false" | "0"))
    }

    fn fields_without(&self, names: &[&str]) -> String {
        self.0
            .iter()
            .filter(|(name, _)| !names.contains(&name.as_str()))
            .map(|(_, text)| format!("{text}\n"))
            .collect()
    }
}

fn is_debian_suite(suite: &str, codename: &str) -> bool {
    suite == codename || ROLLING_SUITES.contains(&suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swapped(source: Option<Source>, suite: &str) -> String {
        source
            .expect("a source for Debian")
            .with_suite(suite)
            .text()
            .to_owned()
    }

    #[test]
    fn a_deb822_source_gets_another_suite_and_keeps_its_mirror_and_keys() {
        let text = "\
# the mirror
Types: deb deb-src
# a snapshot
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
";
        assert_eq!(
            swapped(Source::from_deb822(text, "bookworm"), "forky"),
            "Types: deb\nSuites: forky\nComponents: main\nURIs: http://mirror.example/debian\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
        );
    }

    #[test]
    fn a_source_has_the_address_of_its_mirror() {
        let stanza = "Types: deb\nURIs: http://m.example/debian http://n.example/debian\nSuites: stable\nComponents: main\n";
        let sources = [
            Source::from_deb822(stanza, "bookworm"),
            Source::from_lines("deb [arch=amd64] http://m.example/debian stable main", "bookworm"),
        ];
        for source in sources {
            assert_eq!(
                source.unwrap().address().as_deref(),
                Some("http://m.example/debian")
            );
        }
    }

    #[test]
    fn a_key_written_into_the_stanza_is_kept_line_by_line() {
        let text = "types: deb\nuris: http://m.example/d\nsuites: stable\ncomponents: main\nsigned-by:\n -----BEGIN\n .\n AAAA\n";
        assert!(
            swapped(Source::from_deb822(text, "trixie"), "trixie")
                .ends_with("signed-by:\n -----BEGIN\n .\n AAAA\n")
        );
    }

    #[test]
    fn stanzas_of_others_and_disabled_ones_are_passed_over() {
        let others = [
            "Types: deb\nURIs: http://x.example\nSuites: nodistro\nComponents: main\n",
            "Types: deb\nURIs: http://x.example\nSuites: bookworm-security\nComponents: main\n",
            "Types: deb\nURIs: http://x.example\nSuites: bookworm\nComponents: stable\n",
            "Types: deb-src\nURIs: http://x.example\nSuites: bookworm\nComponents: main\n",
            "Enabled: no\nTypes: deb\nURIs: http://x.example\nSuites: bookworm\nComponents: main\n",
        ];
        for text in others {
            assert_eq!(Source::from_deb822(text, "bookworm"), None, "{text}");
        }
        let all =
            others.join("\n") + "\nTypes: deb\nURIs: http://y.example\nSuites: bookworm\nComponents: main\n";
        assert!(swapped(Source::from_deb822(&all, "bookworm"), "trixie").contains("y.example"));
    }

    #[test]
    fn a_one_line_source_gets_another_suite_and_keeps_its_options() {
        let table = [
            (
                "deb http://m.example/debian bookworm main contrib",
                "deb  http://m.example/debian forky main\n",
            ),
            (
                "# old\ndeb [arch=amd64 signed-by=/k.gpg] http://m.example/debian bookworm main # x",
                "deb [arch=amd64 signed-by=/k.gpg] http://m.example/debian forky main\n",
            ),
            (
                "deb-src http://s.example bookworm main\ndeb\thttp://m.example/debian\tstable\tmain",
                "deb  http://m.example/debian forky main\n",
            ),
        ];
        for (text, expected) in table {
            assert_eq!(
                swapped(Source::from_lines(text, "bookworm"), "forky"),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn a_one_line_source_of_somebody_else_is_passed_over() {
        for text in [
            "deb http://x.example cloud-bookworm main",
            "deb http://x.example bookworm stable",
            "#deb http://m.example/debian bookworm main",
            "deb [broken http://m.example/debian bookworm main",
            "deb",
            "",
        ] {
            assert_eq!(Source::from_lines(text, "bookworm"), None, "{text}");
        }
    }

    #[test]
    fn only_debian_has_a_code_name() {
        let table = [
            ("ID=debian\nVERSION_CODENAME=bookworm\n", Some("bookworm")),
            ("VERSION_CODENAME=\"trixie\"\nID=\"debian\"\n", Some("trixie")),
            ("ID=debian\n", Some("sid")),
            ("ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\n", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(codename_in(text).as_deref(), expected, "{text}");
        }
    }
}
