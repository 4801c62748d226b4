//! A node on which a test types commands exactly as documents show them. It has the paths, programs
//! and configuration of an operator's node, in its own mount namespace (`stage/node.sh`).
//!
//! [`super::Node`] gives the program the folders and configuration of a test. On a stage the
//! program finds its own. Programs that a test machine may lack, or that would change it, are
//! replaced by stand-ins (`stage/programs`). `systemctl` starts the program of the unit, and `ssh`
//! and `scp` reach this machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use lab::Containerd;
use tempfile::TempDir;

use super::node::Answer;

/// Longest time of a command, in the form of timeout(1).
const PATIENCE: &str = "5m";

/// Returns the folder of the scripts.
fn scripts() -> PathBuf {
    lab::workspace().join("tests/support/stage")
}

/// The node. Dropping it ends its processes.
pub struct Stage {
    holder: Child,
    folder: TempDir,
}

impl Stage {
    /// Makes a node without airgapd in its folders, and with a plain containerd.
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
        let said = BufReader::new(holder.stdout.take().expect("the stream is piped"));
        let is_ready = said.lines().map_while(Result::ok).any(|line| line == "ready");
        assert!(is_ready, "the node could not be made");
        Stage { holder, folder }
    }

    /// Returns the path on this machine of a file of the node: below `/etc` or `/var/lib`, or in
    /// the folder of the typed commands.
    pub fn at(&self, path: &str) -> PathBuf {
        let below = |folder: &str, rest: &str| self.folder.path().join(folder).join(rest);
        match (path.strip_prefix("/etc/"), path.strip_prefix("/var/lib/")) {
            (Some(rest), _) => below("etc", rest),
            (_, Some(rest)) => below("var", rest),
            _ => below("home", path),
        }
    }

    /// Writes a file of the node, and creates its folders.
    pub fn write(&self, path: &str, contents: impl AsRef<[u8]>) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().expect("the path has a folder")).expect("a folder");
        fs::write(path, contents).expect("a file");
    }

    /// Returns the id of a process that lives in the node's mount namespace.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Types a command. The answer has the whole screen as its standard output.
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
            // The command may end with a comment.
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
