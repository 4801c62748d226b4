//! A node that commands are typed on as documents have them: with the paths, the programs and the
//! configuration that an operator has, in a mount namespace of its own (`stage/node.sh`).
//!
//! [`super::Node`] gives the program folders and a configuration of the test's; here it finds its
//! own. Programs that a machine under test may lack, or that would change it, are stand-ins
//! (`stage/programs`): `systemctl` starts what the unit says, `ssh` and `scp` reach this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lab::Containerd;
use tempfile::TempDir;

use super::node::Answer;

/// A command that takes longer than this has come to a halt; in the form of timeout(1).
const PATIENCE: &str = "5m";

/// Where the scripts are.
fn scripts() -> PathBuf {
    lab::workspace().join("tests/support/stage")
}

/// The node. What runs on it ends when it is dropped.
pub struct Stage {
    holder: Child,
    folder: TempDir,
}

impl Stage {
    /// A node without airgapd in its folders, and with a plain containerd.
    pub fn on(containerd: &Containerd) -> Stage {
        let folder = tempfile::Builder::new()
            .prefix("airgapd-stage-")
            .tempdir()
            .expect("a temporary folder");
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh"])
            .arg(scripts().join("node.sh"))
            .arg(env!("CARGO_BIN_EXE_airgapd"))
            .arg(containerd.socket())
            .arg(scripts().join("programs"))
            .arg(folder.path())
            .arg(&containerd.parts().ctr)
            .args(containerd.run_flags())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare comes with util-linux");
        let said = BufReader::new(holder.stdout.take().expect("it is piped"));
        let is_ready = said.lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(is_ready, "the node could not be made");
        Stage { holder, folder }
    }

    /// Where something of the node is on this machine: below `/etc` or `/var/lib`, or in the folder
    /// in which commands are typed.
    pub fn at(&self, path: &str) -> PathBuf {
        let below = |folder: &str, rest: &str| self.folder.path().join(folder).join(rest);
        match (path.strip_prefix("/etc/"), path.strip_prefix("/var/lib/")) {
            (Some(rest), _) => below("etc", rest),
            (_, Some(rest)) => below("var", rest),
            _ => below("home", path),
        }
    }

    /// Writes a file of the node, and the folders it lies in.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("it is in a folder")).expect("a folder");
        fs::write(path, contents).expect("a file");
    }

    /// Types a command, and gives all that is then on the screen as standard output.
    pub fn types(&self, command: &str) -> Answer {
        let output = Command::new("timeout")
            .args([
                PATIENCE,
                "nsenter",
                "--target",
                &self.holder.id().to_string(),
                "--mount",
            ])
            .args(["sh", "-c"])
            // A comment may be at its end.
            .arg(format!("cd {} && {{ {command}\n}} 2>&1", self.at("").display()))
            .env_clear()
            .env("PATH", "/run/program:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.at(""))
            .envs([("LC_ALL", "C"), ("TZ", "UTC")])
            .stdin(Stdio::null())
            .output()
            .expect("nsenter comes with util-linux");
        Answer::from(output)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.types("for pid in /run/*.pid; do kill -KILL \"$(cat \"$pid\")\"; done");
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
