//! Tests the Debian package the way an operator uses it: on a fresh Debian that systemd has booted
//! in a container.
//!
//! The steps are a script (`packaged.sh`), which reads like a session at a terminal. The container
//! has no network, like the nodes that airgapd is for.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use bundle::fixtures::{Data, Image, Layer, Layout};
use lab::{on_path, parts, workspace};
use sha2::{Digest, Sha256};
use workshop::demo_bundle;

use xtask::checks::{run, step};

/// The suite for which the unit's restrictions were written.
pub(crate) const SUITE: &str = "bookworm";
const PACKAGES: &str = "systemd,systemd-sysv,dbus,containerd,runc,util-linux,ca-certificates,prometheus,prometheus-node-exporter";
const SCRIPT: &str = include_str!("packaged.sh");
/// A part of the script.
const INCIDENTS: &str = include_str!("incidents.sh");

/// Bytes of an image in a bundle that is compressed with the largest window. The image is larger
/// than the window.
const WIDE: usize = 160 << 20;

/// Arguments of `timeout`, which stops a system that does not finish in this time.
pub(crate) const PATIENCE: [&str; 3] = ["--kill-after=60s", "--signal=TERM", "20m"];

/// Unit that runs the script in the booted system and then powers it off.
const UNIT: &str = "\
[Unit]
After=basic.target dbus.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'sh /root/try.sh > /root/output 2>&1 || true && systemctl poweroff --no-block'
TimeoutStartSec=15min
[Install]
WantedBy=multi-user.target
";

/// Installs the package of `cargo xtask dist` on a fresh Debian, uses it and purges it.
pub(crate) fn run_task(suite: &str) -> Result<()> {
    let dist = dist()?;
    let nspawn = on_path("systemd-nspawn")
        .context("systemd-nspawn is missing: run apt-get install systemd-container")?;
    step(&format!("a fresh Debian {suite}"));
    let fresh = parts::debian_root(suite, "systemd-prometheus", PACKAGES)?;
    let folder = tempfile::Builder::new().prefix("airgapd-packaged-").tempdir()?;
    let root = folder.path().join("root");
    run(Command::new("cp").arg("-a").arg(&fresh).arg(&root))?;
    furnish(&root, &dist)?;
    step("booting it, and installing, using and purging the package");
    run(Command::new("timeout")
        .args(PATIENCE)
        .arg(nspawn)
        .args([
            "--boot",
            "--register=no",
            "--keep-unit",
            "--private-network",
            "--quiet",
            "--console=pipe",
            "-D",
        ])
        .arg(&root)
        .stdin(Stdio::null())
        .stdout(File::create(workspace().join("target/packaged.console"))?))?;
    let output = fs::read_to_string(root.join("root/output")).context("the script did not run")?;
    print!("{output}");
    match output.trim_end().ends_with("PASSED") {
        true => Ok(()),
        false => bail!("the last step above failed"),
    }
}

/// The files of `cargo xtask dist` that this task needs.
struct Dist {
    package: PathBuf,
    image: PathBuf,
}

fn dist() -> Result<Dist> {
    Ok(Dist {
        package: in_dist("_amd64.deb")?,
        image: in_dist("-image.tar")?,
    })
}

/// Returns the file of `cargo xtask dist` whose name ends like this.
pub(crate) fn in_dist(end: &str) -> Result<PathBuf> {
    let folder = workspace().join("target/dist");
    fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.to_string_lossy().ends_with(end))
        .with_context(|| format!("no *{end} in {}: run cargo xtask dist", folder.display()))
}

fn furnish(root: &Path, dist: &Dist) -> Result<()> {
    let home = root.join("root");
    fs::copy(&dist.package, home.join("airgapd.deb"))?;
    fs::copy(&dist.image, home.join("airgapd-image.tar"))?;
    demo_bundle::write(&home.join("demo.tar"), &parts::busybox()?)?;
    write_wide_bundle(&home.join("wide.tar.zst"))?;
    fs::write(home.join("try.sh"), SCRIPT)?;
    fs::write(home.join("incidents.sh"), INCIDENTS)?;
    let k0s = home.join("k0s");
    fs::write(&k0s, "#!/bin/sh\nexec sleep infinity\n")?;
    fs::set_permissions(&k0s, fs::Permissions::from_mode(0o755))?;
    let units = root.join("etc/systemd/system");
    fs::write(units.join("try.service"), UNIT)?;
    // The script starts containerd when it needs it. Minimal images keep no files that a package
    // manager can fetch.
    run(Command::new("chroot")
        .arg(root)
        .args(["systemctl", "disable", "containerd.service"]))?;
    run(Command::new("chroot")
        .arg(root)
        .args(["systemctl", "enable", "try.service"]))
}

/// Writes a bundle whose decompression takes 128 MiB of memory, like a bundle of `zstd --long=27`.
fn write_wide_bundle(path: &Path) -> Result<()> {
    let plain = path.with_extension("");
    // airgapd would take zeros alone for a decompression bomb.
    let mut bytes = vec![0; WIDE];
    for (index, block) in bytes.chunks_exact_mut(256).enumerate() {
        block[..32].copy_from_slice(&Sha256::digest(index.to_le_bytes()));
    }
    let image = Image::new("registry.example/demo/wide:1.0")
        .platform("linux/amd64")
        .with_layer(Layer::plain(Data::from(bytes)));
    Layout::new().image(image).write_to(&plain);
    run(Command::new(parts::tool("zstd")?)
        .args(["-q", "-1", "--long=27", "--rm"])
        .arg(&plain)
        .arg("-o")
        .arg(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of alerts in a text, in its order.
    fn alerts(text: &str) -> Vec<&str> {
        let words = text.split(|letter: char| !letter.is_alphanumeric());
        words.filter(|word| word.starts_with("Airgapd")).collect()
    }

    #[test]
    fn the_document_has_the_alerts_of_each_incident() {
        let page = fs::read_to_string(workspace().join("docs/metrics.md")).expect("the document");
        let (_, table) = page.split_once("| incident | alerts |").expect("a table");
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        let of_document: Vec<_> = rows.map(alerts).collect();
        let of_script: Vec<_> = INCIDENTS
            .lines()
            .map(alerts)
            .filter(|row| !row.is_empty())
            .collect();
        assert_eq!(of_document, of_script);
    }
}
