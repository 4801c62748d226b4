//! Checks that the packages of one architecture have the same files. Each package is read by the
//! reader of its own format.
//!
//! Two tables of Cargo.toml list the files. Only this check keeps the tables equal.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use bundle::fixtures::digest_of;
use lab::parts;

use xtask::checks::step;

/// Files by their name and the name of their folder, with digest and permissions. The place of such
/// a folder differs between distributions.
type Contents = BTreeMap<String, (String, u32)>;

/// File that only the Debian package has: its licence.
const OF_DEBIAN: &str = "airgapd/copyright";

/// Folders in which zsh looks for completions, on Debian and elsewhere.
const ZSH: [&str; 2] = ["vendor-completions", "site-functions"];

/// Compares both packages.
pub(crate) fn compare(deb: &Path, rpm: &Path) -> Result<()> {
    let (of_deb, of_rpm) = (of_deb(deb)?, of_rpm(rpm)?);
    let differing = differences(&of_deb, &of_rpm);
    if !differing.is_empty() {
        bail!(
            "{} and {} differ in {}",
            deb.display(),
            rpm.display(),
            differing.join(", ")
        );
    }
    step(&format!("both packages have the same {} files", of_rpm.len()));
    Ok(())
}

/// Returns the names that only one package has or that differ.
fn differences(of_deb: &Contents, of_rpm: &Contents) -> Vec<String> {
    let names = of_deb.keys().chain(of_rpm.keys());
    let mut differing: Vec<String> = names
        .filter(|name| *name != OF_DEBIAN && of_deb.get(*name) != of_rpm.get(*name))
        .cloned()
        .collect();
    differing.sort();
    differing.dedup();
    differing
}

fn of_deb(path: &Path) -> Result<Contents> {
    let output = read(Command::new("dpkg-deb").arg("--fsys-tarfile").arg(path))?;
    let mut contents = Contents::new();
    for entry in tar::Archive::new(&*output).entries()? {
        let mut entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let (place, mode) = (entry.path()?.into_owned(), entry.header().mode()?);
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let hash = digest_of(&bytes).digest().to_owned();
        add(&mut contents, &place, (hash, mode & 0o7777))?;
    }
    Ok(contents)
}

fn of_rpm(path: &Path) -> Result<Contents> {
    let rpm = parts::tool("rpm")?;
    const FORMAT: &str = "[%{FILEMODES:octal} %{FILEDIGESTS} %{FILENAMES}\n]";
    // The machine's own database of packages does not matter here, and Debian has none.
    let output = read(
        Command::new(rpm)
            .args(["--nosignature", "--dbpath", "/nowhere", "--query", "--package"])
            .args(["--queryformat", FORMAT])
            .arg(path),
    )?;
    let mut contents = Contents::new();
    for line in String::from_utf8(output)?.lines() {
        let fields: Vec<_> = line.splitn(3, ' ').collect();
        let [mode, digest, place] = fields[..] else {
            bail!("cannot read the output of rpm: `{line}`");
        };
        let mode = u32::from_str_radix(mode, 8)
            .with_context(|| format!("cannot read the output of rpm: `{line}`"))?;
        // A folder has no digest.
        if !digest.is_empty() {
            add(
                &mut contents,
                Path::new(place),
                (digest.to_owned(), mode & 0o7777),
            )?;
        }
    }
    Ok(contents)
}

fn add(contents: &mut Contents, place: &Path, what: (String, u32)) -> Result<()> {
    let folder = place.parent().and_then(Path::file_name);
    let (Some(folder), Some(name)) = (folder, place.file_name()) else {
        bail!("{} is in no folder", place.display());
    };
    let folder = folder.to_string_lossy().replace(ZSH[1], ZSH[0]);
    if contents
        .insert(format!("{folder}/{}", name.display()), what)
        .is_some()
    {
        bail!("two files have the name and folder of {}", place.display());
    }
    Ok(())
}

fn read(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(files: &[(&str, &str, u32)]) -> Contents {
        let file =
            |(name, digest, mode): &(&str, &str, u32)| ((*name).to_owned(), ((*digest).to_owned(), *mode));
        files.iter().map(file).collect()
    }

    #[test]
    fn a_file_that_is_missing_or_other_or_has_other_permissions_is_a_difference() {
        let deb = contents(&[
            ("bin/airgapd", "a", 0o755),
            ("man1/airgapd.1.gz", "b", 0o644),
            ("airgapd/copyright", "c", 0o644),
            ("airgapd/README.md", "d", 0o644),
        ]);
        let rpm = contents(&[
            ("bin/airgapd", "a", 0o755),
            ("man1/airgapd.1.gz", "other", 0o644),
            ("airgapd/README.md", "d", 0o600),
            ("drop-ins/k0s.conf", "e", 0o644),
        ]);
        assert_eq!(
            differences(&deb, &rpm),
            ["airgapd/README.md", "drop-ins/k0s.conf", "man1/airgapd.1.gz"]
        );
        assert_eq!(differences(&deb, &deb), Vec::<String>::new());
    }
}
