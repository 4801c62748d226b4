//! The main job, shown to somebody who has never seen it: a bundle is dropped, its images appear, a container runs.
//!
//! Everything happens in temporary folders and on a private containerd; the machine's own is left alone.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use xtask::demo_bundle::{self, HELLO, IMAGES, PLATFORMS};
use xtask::{Containerd, Generation, Options, containerd_parts, is_root, parts, workspace};

use crate::checks;

/// How long the daemon may take to set its watch, and to end.
const DAEMON_WITHIN: Duration = Duration::from_secs(30);

/// How long the images may take to appear; on an idle machine it is well under a second.
const IMAGES_WITHIN: Duration = Duration::from_secs(60);

/// Runs the demonstration from the first step to the clean-up.
pub(crate) fn run(generation: Generation) -> Result<()> {
    if !is_root() {
        bail!("the demo starts a containerd and a container, which only root can do");
    }
    let mut story = Story::default();

    story.step("Fetching what this machine lacks, into target/parts");
    let containerd_version = containerd_parts(generation)?.version;
    let (protoc, busybox) = (parts::protoc()?, parts::busybox()?);
    story.say(&format!(
        "containerd {containerd_version}, {}, {}",
        protoc.display(),
        busybox.display()
    ));

    story.step("Building airgapd");
    let program = build()?;

    story.step(&format!(
        "Starting a private containerd {generation}, as a node would have it"
    ));
    let containerd = Containerd::start(generation, &Options::default())?;
    story.say(&format!(
        "containerd {} answers on {}",
        containerd.version_text(),
        containerd.socket().display()
    ));
    story.say("It has no images, and nothing here talks to a registry.");

    story.step("Making a bundle, as somebody with network access would");
    let node = Node::create()?;
    let bundle = node.bundle();
    let blobs = demo_bundle::write(&bundle, &busybox)?;
    story.tell_bundle(&bundle, blobs.len())?;

    story.step("Starting the daemon: airgapd run");
    let mut daemon = Daemon::start(&program, &node, &containerd)?;
    story.say(&format!("It is ready and watches {}", node.images().display()));

    let shown = show_import(&mut story, &node, &containerd, &mut daemon, &blobs);
    story.step("Stopping the daemon and containerd, removing everything");
    let stopped = daemon.stop();
    if shown.is_err() {
        story.say("The end of containerd's log:");
        story.show(&containerd.log_tail());
    }
    shown.and(stopped)?;
    drop((containerd, node));
    story.say("Done. Nothing is left of it but target/, where the next run finds what this one fetched.");
    Ok(())
}

fn show_import(
    story: &mut Story,
    node: &Node,
    containerd: &Containerd,
    daemon: &mut Daemon,
    blobs: &[String],
) -> Result<()> {
    story.step("Dropping the bundle into the images folder, with a plain copy");
    let written = copy(&node.bundle(), &node.images().join("demo-bundle.tar"))?;
    let names = wait_for_images(containerd, daemon)?;
    story.tell_records(written.elapsed(), &names);

    story.step(&format!(
        "What containerd says about one of them: ctr images ls name=={HELLO}"
    ));
    let table = containerd.ctr(&["images", "ls", &format!("name=={HELLO}")])?;
    story.show(&fields_of_first_row(&table).join("\n"));
    story.tell_content(containerd, blobs)?;

    story.step(&format!("Running a container from {HELLO}"));
    let output = containerd.run(HELLO, &[])?;
    story.show(&output);
    Ok(())
}

fn build() -> Result<PathBuf> {
    checks::run(checks::cargo()?.args(["build", "--locked", "--package", "airgapd"]))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    Ok(workspace().join(target).join("debug/airgapd"))
}

/// Copies as `cp` does and gives the moment at which the copy was closed.
fn copy(from: &Path, to: &Path) -> Result<Instant> {
    let mut target = File::create_new(to).with_context(|| format!("cannot create {}", to.display()))?;
    io::copy(&mut File::open(from)?, &mut target)?;
    drop(target);
    Ok(Instant::now())
}

/// Waits until every image has its record, and one more under its digest.
fn wait_for_images(containerd: &Containerd, daemon: &mut Daemon) -> Result<Vec<String>> {
    let deadline = Instant::now() + IMAGES_WITHIN;
    loop {
        let names: Vec<_> = containerd
            .ctr(&["images", "ls", "-q"])?
            .lines()
            .map(str::to_owned)
            .collect();
        if is_complete(&names) {
            return Ok(names);
        }
        daemon.check_it_runs()?;
        if Instant::now() > deadline {
            bail!(
                "after {} s containerd has only these images: {names:?}",
                IMAGES_WITHIN.as_secs()
            );
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn is_complete(names: &[String]) -> bool {
    IMAGES.iter().all(|image| {
        let repository = image
            .rsplit_once(':')
            .map_or(*image, |(repository, _)| repository);
        names.iter().any(|name| name == image)
            && names
                .iter()
                .any(|name| name.starts_with(&format!("{repository}@sha256:")))
    })
}

/// The fields of the first row of a table, one in a line, labels one by one: `ctr` writes rows far too wide to read.
fn fields_of_first_row(table: &str) -> Vec<String> {
    let mut lines = table.lines();
    let (Some(header), Some(row)) = (lines.next(), lines.next()) else {
        return Vec::new();
    };
    let starts: Vec<_> = header
        .char_indices()
        .filter(|(at, letter)| *letter != ' ' && (*at == 0 || header.as_bytes()[at - 1] == b' '))
        .map(|(at, _)| at)
        .collect();
    let ends = starts.iter().skip(1).copied().chain([usize::MAX]);
    let cell = |line: &str, from: usize, to: usize| {
        line.get(from..to.min(line.len()))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let mut fields = Vec::new();
    for (from, to) in starts.iter().copied().zip(ends) {
        for (number, value) in cell(row, from, to).split(',').enumerate() {
            let name = if number == 0 {
                cell(header, from, to)
            } else {
                String::new()
            };
            fields.push(format!("{name:<10} {value}"));
        }
    }
    fields
}

/// The folders of a node that exists for the demonstration only.
struct Node(tempfile::TempDir);

impl Node {
    fn create() -> Result<Self> {
        let node = Self(tempfile::Builder::new().prefix("airgapd-demo-").tempdir()?);
        fs::create_dir(node.images())?;
        fs::create_dir(node.state())?;
        // Above all, this keeps the machine's own configuration out.
        fs::write(node.configuration(), "cri: true\n")?;
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn bundle(&self) -> PathBuf {
        self.path("demo-bundle.tar")
    }

    fn images(&self) -> PathBuf {
        self.path("images")
    }

    fn state(&self) -> PathBuf {
        self.path("state")
    }

    fn configuration(&self) -> PathBuf {
        self.path("config.yaml")
    }
}

/// The running daemon; killed when dropped, if it was not stopped before.
struct Daemon(Child);

impl Daemon {
    fn start(program: &Path, node: &Node, containerd: &Containerd) -> Result<Self> {
        let notifications = node.path("notify.sock");
        let socket = UnixDatagram::bind(&notifications)?;
        let mut command = Command::new(program);
        command
            .arg("run")
            .arg("--config")
            .arg(node.configuration())
            .arg("--images-dir")
            .arg(node.images())
            .arg("--state-dir")
            .arg(node.state())
            .arg("--address")
            .arg(containerd.socket())
            .env("NOTIFY_SOCKET", &notifications)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AIRGAPD_"))
        {
            command.env_remove(name);
        }
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if let Some(log) = child.stderr.take() {
            thread::spawn(move || relay(log));
        }
        let mut daemon = Self(child);
        daemon.wait_until_ready(&socket)?;
        Ok(daemon)
    }

    /// The daemon tells systemd, whose place we take, when its watch is set (sd_notify(3)).
    fn wait_until_ready(&mut self, socket: &UnixDatagram) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let deadline = Instant::now() + DAEMON_WITHIN;
        let mut message = [0; 4096];
        while Instant::now() < deadline {
            let length = socket.recv(&mut message).unwrap_or(0);
            if String::from_utf8_lossy(&message[..length])
                .lines()
                .any(|line| line == "READY=1")
            {
                return Ok(());
            }
            self.check_it_runs()?;
        }
        bail!("the daemon was not ready within {} s", DAEMON_WITHIN.as_secs())
    }

    fn check_it_runs(&mut self) -> Result<()> {
        match self.0.try_wait()? {
            Some(status) => bail!("the daemon ended by itself ({status})"),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.0), Signal::TERM)?;
        let deadline = Instant::now() + DAEMON_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.0.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    bail!("the daemon ended with {status}")
                };
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "the daemon did not end within {} s of SIGTERM",
            DAEMON_WITHIN.as_secs()
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Shows the daemon's log as it is written.
fn relay(log: impl io::Read) {
    for line in BufReader::new(log).lines().map_while(Result::ok) {
        println!("     airgapd: {line}");
    }
}

/// What the person in front of the screen reads.
#[derive(Default)]
struct Story {
    steps: u32,
}

impl Story {
    fn step(&mut self, what: &str) {
        self.steps += 1;
        println!("\n{}. {what}", self.steps);
    }

    fn say(&self, what: &str) {
        println!("   {what}");
    }

    fn show(&self, text: &str) {
        for line in text.lines() {
            println!("     | {line}");
        }
    }

    fn tell_bundle(&self, bundle: &Path, blobs: usize) -> Result<()> {
        let megabytes = fs::metadata(bundle)?.len() / 1_000_000;
        self.say(&format!("{}: {megabytes} MB, {blobs} blobs", bundle.display()));
        for image in IMAGES {
            self.say(&format!("holds {image} for {}", PLATFORMS.join(", ")));
        }
        Ok(())
    }

    fn tell_records(&self, took: Duration, names: &[String]) {
        let (of_cri, ours): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.starts_with("sha256:"));
        let (took, count) = (took.as_millis(), ours.len());
        self.say(&format!(
            "{took} ms after the file was closed, containerd has these {count} image records:"
        ));
        for name in ours {
            self.show(name);
        }
        if !of_cri.is_empty() {
            self.say("CRI has seen them too and adds records of its own, under the images' ids.");
        }
    }

    fn tell_content(&self, containerd: &Containerd, blobs: &[String]) -> Result<()> {
        let present = containerd.ctr(&["content", "ls", "-q"])?;
        let sent = blobs
            .iter()
            .filter(|digest| present.contains(digest.as_str()))
            .count();
        self.say(&format!(
            "Of the bundle's {} blobs, {sent} are in containerd: what other platforms need was not sent.",
            blobs.len()
        ));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_turned_into_fields_and_labels_into_lines() {
        let table = "REF    SIZE    LABELS       \na:1    4.3 MiB a=1,b=2 \nb:1    1 B     -\n";
        let expected = [
            "REF        a:1",
            "SIZE       4.3 MiB",
            "LABELS     a=1",
            "           b=2",
        ];
        assert_eq!(fields_of_first_row(table), expected);
        assert!(fields_of_first_row("REF SIZE\n").is_empty());
        assert!(fields_of_first_row("").is_empty());
    }

    #[test]
    fn the_import_is_complete_with_a_name_and_a_digest_for_each_image() {
        let by_digest = |image: &str| format!("{}@sha256:00", image.rsplit_once(':').unwrap().0);
        let mut names: Vec<_> = IMAGES
            .iter()
            .flat_map(|image| [(*image).to_owned(), by_digest(image)])
            .collect();
        assert!(is_complete(&names));
        names.pop();
        assert!(!is_complete(&names));
    }
}
