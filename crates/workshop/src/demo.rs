//! Shows the main job and the promises to a reader who has never seen the project.
//!
//! Everything runs in temporary folders and on a private containerd. The machine's own containerd
//! is left alone. Each step fails if its claim is not true.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{Containerd, Generation, Options, containerd_parts, is_root, output_of, parts};
use rustix::fs::inotify;
use rustix::process::{Pid, Signal, kill_process};
use workshop::demo_bundle::{self, DAMAGED, HELLO, IMAGES, PLATFORMS, SOUND};
use xtask::workshop::target_folder;

/// Longest time in which the daemon starts to watch, and in which it stops.
const DAEMON_WITHIN: Duration = Duration::from_secs(30);

/// Longest time until a change in containerd appears. On an idle machine it takes well under a
/// second.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);

/// The bundle of the main job.
const BUNDLE: &str = "demo-bundle.tar";

/// The bundle with a damaged image.
const UPDATE: &str = "update.tar";

/// Label that makes kubelet's garbage collector keep an image.
const PIN: &str = "io.cri-containerd.pinned=pinned";

/// Runs the demonstration from the first step to the cleanup.
pub(crate) fn run(generation: Generation) -> Result<()> {
    if !is_root() {
        bail!("the demo starts containerd and a container, which only root can do");
    }
    let mut story = Story::default();
    story.step("A node without a registry");
    containerd_parts(generation)?;
    let busybox = parts::busybox()?;
    let containerd = Containerd::start(generation, &Options::default())?;
    story.say(&format!(
        "A private containerd {} is running. It has no images, and nothing here uses a network.",
        containerd.version_text()
    ));
    let node = Node::create(&containerd)?;
    let mut daemon = Daemon::start(&node)?;
    story.say("The daemon is running too: `airgapd run`. It watches an empty images folder.");

    let shown = Demo {
        story: &mut story,
        node: &node,
        containerd: &containerd,
        daemon: &mut daemon,
    }
    .show(&busybox);
    if shown.is_err() {
        let _ = daemon.stop();
        story.say("The end of the daemon's log:");
        story.show(&lab::tail(&daemon.log(), 20));
        story.say("The end of containerd's log:");
        story.show(&containerd.log_tail());
    }
    shown?;
    drop((containerd, node));
    story.end();
    Ok(())
}

/// The parts of the demonstration.
struct Demo<'a> {
    story: &'a mut Story,
    node: &'a Node,
    containerd: &'a Containerd,
    daemon: &'a mut Daemon,
}

impl Demo<'_> {
    fn show(&mut self, busybox: &Path) -> Result<()> {
        self.a_bundle_is_dropped(busybox)?;
        self.one_bad_image_hurts_no_other(busybox)?;
        self.a_deleted_image_comes_back()?;
        self.a_restart_opens_no_bundle()?;
        self.only_what_is_ours_is_taken_back()
    }

    fn a_bundle_is_dropped(&mut self, busybox: &Path) -> Result<()> {
        self.story.step(&format!(
            "A bundle is copied into the folder: cp {BUNDLE} images/"
        ));
        let bundle = self.node.path(BUNDLE);
        let blobs = demo_bundle::write(&bundle, busybox)?;
        let megabytes = fs::metadata(&bundle)?.len() / 1_000_000;
        self.story.say(&format!(
            "{BUNDLE} has {megabytes} MB and {} images for {}.",
            IMAGES.len(),
            PLATFORMS.join(", ")
        ));
        let closed = self.node.drop_in(BUNDLE)?;
        self.wait_until("the images", is_complete)?;
        let took = closed.elapsed().as_millis();
        self.story.say(&format!(
            "{took} ms after the end of cp, containerd has these names:"
        ));
        let (of_cri, ours): (Vec<_>, Vec<_>) = self
            .names()?
            .into_iter()
            .partition(|name| name.starts_with("sha256:"));
        self.story.show(&ours.join("\n"));
        if !of_cri.is_empty() {
            self.story
                .say("(CRI has added names of its own, which are the ids of the images.)");
        }

        self.story.promise("Only missing blobs are sent");
        let present = self.containerd.ctr(&["content", "ls", "-q"])?;
        let sent = blobs
            .iter()
            .filter(|digest| present.contains(digest.as_str()))
            .count();
        ensure!(sent < blobs.len(), "blobs of other platforms were sent");
        self.story.say(&format!(
            "airgapd sent {sent} of the bundle's {} blobs. The others belong to platforms that this node cannot run.",
            blobs.len()
        ));
        self.story
            .say(&format!("A container of {HELLO} runs without any registry:"));
        let said = self.containerd.run(HELLO, &[])?;
        self.story.show(&said);
        Ok(())
    }

    fn one_bad_image_hurts_no_other(&mut self, busybox: &Path) -> Result<()> {
        self.story.step(&format!(
            "A bundle with a damaged image is copied into the folder: cp {UPDATE} images/"
        ));
        demo_bundle::write_damaged(&self.node.path(UPDATE), busybox)?;
        self.story.say(&format!(
            "It has {SOUND} and {DAMAGED}. A layer of the second image has a flipped bit."
        ));
        self.node.drop_in(UPDATE)?;
        let verdict = self.daemon.wait_for_line(DAMAGED)?;
        self.wait_until("the sound image", |names| names.iter().any(|name| name == SOUND))?;
        self.story.promise("One bad bundle hurts no other");
        self.story
            .say("The sound image is in containerd. The daemon's log names the damaged one:");
        self.story.show(&verdict);
        self.story.promise("Complete or not at all");
        let names = self.names()?;
        ensure!(
            !names.iter().any(|name| name == DAMAGED),
            "the damaged image has a name in containerd"
        );
        self.story.say(&format!(
            "containerd has no {DAMAGED}: a name appears only after every byte of the image was checked."
        ));
        self.story.say("`airgapd status` shows the operator:");
        let status = self.node.airgapd().arg("status").output()?;
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        let table = status.split_once("\n\n").map_or(&*status, |(_, table)| table);
        self.story.show(table);
        Ok(())
    }

    fn a_deleted_image_comes_back(&mut self) -> Result<()> {
        self.story
            .step(&format!("An image is deleted by mistake: ctr images rm {HELLO}"));
        self.containerd.ctr(&["images", "rm", "--sync", HELLO])?;
        let deleted = Instant::now();
        self.wait_until("the deleted image", |names| {
            names.iter().any(|name| name == HELLO)
        })?;
        self.story.promise("Images of the folder are in containerd");
        self.story.say(&format!(
            "It is back after {} ms. airgapd restores images while their bundle is in the folder.",
            deleted.elapsed().as_millis()
        ));
        let said = self.containerd.run(HELLO, &[])?;
        self.story.show(said.lines().next().unwrap_or_default());
        Ok(())
    }

    fn a_restart_opens_no_bundle(&mut self) -> Result<()> {
        self.story.step("The daemon is restarted, as after a reboot");
        self.daemon.stop()?;
        let reads = Reads::of(&self.node.images().join(BUNDLE))?;
        let started = Instant::now();
        *self.daemon = Daemon::start(self.node)?;
        output_of(self.node.airgapd().args(["wait", "--bundle", BUNDLE]))?;
        ensure!(!reads.any(), "the daemon opened an unchanged bundle");
        self.story.promise("Unchanged means free");
        self.story.say(&format!(
            "After {} ms the daemon has compared the node with its notes. It opened no bundle.",
            started.elapsed().as_millis()
        ));
        Ok(())
    }

    fn only_what_is_ours_is_taken_back(&mut self) -> Result<()> {
        self.story
            .step("airgapd is removed from the node: systemctl stop airgapd, airgapd release --all");
        // A pin of another tool, on an image that airgapd did not import.
        let foreign = "registry.example/other/tool:1";
        self.containerd.ctr(&["images", "tag", HELLO, foreign])?;
        self.containerd
            .ctr(&["images", "label", foreign, PIN, "io.airgapd.pinned="])?;
        self.daemon.stop()?;
        let before = self.pinned()?;
        output_of(self.node.airgapd().args(["release", "--all"]))?;
        let after = self.pinned()?;
        self.story.promise("airgapd takes back only its own pins");
        self.story.say(&format!(
            "Pinned names before: {}. Pinned names now: {}, the pin of another tool.",
            before.len(),
            after.len()
        ));
        self.story.show(&after.join("\n"));
        ensure!(after == [foreign], "a pin of another tool has changed: {after:?}");
        let names = self.names()?;
        ensure!(is_complete(&names), "release removed images");
        self.story
            .say("No image was removed. kubelet may now collect the images that no pod uses.");
        Ok(())
    }

    fn names(&self) -> Result<Vec<String>> {
        let listed = self.containerd.ctr(&["images", "ls", "-q"])?;
        Ok(listed.lines().map(str::to_owned).collect())
    }

    /// Returns the pinned names. CRI copies pins to its own records, which are left out.
    fn pinned(&self) -> Result<Vec<String>> {
        let filter = format!(
            "labels.\"{}\"==pinned",
            PIN.split_once('=').map_or(PIN, |(key, _)| key)
        );
        let listed = self.containerd.ctr(&["images", "ls", "-q", &filter])?;
        let names = listed.lines().filter(|name| !name.starts_with("sha256:"));
        Ok(names.map(str::to_owned).collect())
    }

    fn wait_until(&mut self, what: &str, done: impl Fn(&[String]) -> bool) -> Result<()> {
        let deadline = Instant::now() + CHANGE_WITHIN;
        loop {
            let names = self.names()?;
            if done(&names) {
                return Ok(());
            }
            self.daemon.check_it_runs()?;
            if Instant::now() > deadline {
                bail!(
                    "{what} did not appear within {} s. containerd has {names:?}",
                    CHANGE_WITHIN.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Notices if a file is opened or read.
struct Reads(OwnedFd);

impl Reads {
    fn of(path: &Path) -> Result<Reads> {
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK)?;
        inotify::add_watch(&fd, path, inotify::WatchFlags::OPEN | inotify::WatchFlags::ACCESS)?;
        Ok(Reads(fd))
    }

    fn any(&self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        inotify::Reader::new(&self.0, &mut buffer).next().is_ok()
    }
}

/// Returns true if every image has its name and a second name with its digest.
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

/// A node that exists only for the demonstration: its folders, and the commands that an operator
/// types.
struct Node {
    folder: tempfile::TempDir,
    socket: PathBuf,
}

impl Node {
    fn create(containerd: &Containerd) -> Result<Self> {
        let node = Self {
            folder: tempfile::Builder::new().prefix("airgapd-demo-").tempdir()?,
            socket: containerd.socket(),
        };
        fs::create_dir(node.images())?;
        fs::create_dir(node.path("state"))?;
        // This keeps the machine's own configuration out.
        fs::write(node.path("config.yaml"), "cri: true\n")?;
        Ok(node)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Copies a bundle the way `cp` does, and returns the time at which the copy was closed.
    fn drop_in(&self, name: &str) -> Result<Instant> {
        let to = self.images().join(name);
        let mut target = File::create_new(&to).with_context(|| format!("cannot create {}", to.display()))?;
        io::copy(&mut File::open(self.path(name))?, &mut target)?;
        drop(target);
        Ok(Instant::now())
    }

    /// Returns the program without the machine's own settings. The caller adds a command.
    fn airgapd(&self) -> Command {
        let mut command = Command::new(target_folder().join("debug/airgapd"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AIRGAPD_"))
        {
            command.env_remove(name);
        }
        command
            .env("AIRGAPD_CONFIG", self.path("config.yaml"))
            .env("AIRGAPD_IMAGES_DIR", self.images())
            .env("AIRGAPD_STATE_DIR", self.path("state"))
            .env("AIRGAPD_ADDRESS", &self.socket)
            .stdin(Stdio::null());
        command
    }
}

/// The running daemon. Dropping it kills the process if it was not stopped before.
struct Daemon {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Daemon {
    fn start(node: &Node) -> Result<Self> {
        let notifications = node.path("notify.sock");
        let _ = fs::remove_file(&notifications);
        let socket = UnixDatagram::bind(&notifications)?;
        let mut child = node
            .airgapd()
            .arg("run")
            .env("NOTIFY_SOCKET", &notifications)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start airgapd")?;
        let log = Arc::new(Mutex::new(String::new()));
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    *log += &line;
                    log.push('\n');
                }
            });
        }
        let mut daemon = Self { child, log };
        daemon.wait_until_ready(&socket)?;
        Ok(daemon)
    }

    /// Returns the log so far.
    fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the first warning or error of the log that contains a text.
    fn wait_for_line(&mut self, text: &str) -> Result<String> {
        let deadline = Instant::now() + CHANGE_WITHIN;
        loop {
            let log = self.log();
            let mut complaints = log
                .lines()
                .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
            if let Some(line) = complaints.find(|line| line.contains(text)) {
                return Ok(line.to_owned());
            }
            self.check_it_runs()?;
            if Instant::now() > deadline {
                bail!("the daemon did not log {text}");
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the daemon watches the folder. It tells systemd so (sd_notify(3)), and this
    /// program listens in place of systemd.
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
        match self.child.try_wait()? {
            Some(status) => bail!("the daemon exited on its own ({status})"),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let deadline = Instant::now() + DAEMON_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return if status.success() {
                    Ok(())
                } else {
                    bail!("the daemon exited with {status}")
                };
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!(
            "the daemon did not stop within {} s of SIGTERM",
            DAEMON_WITHIN.as_secs()
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The text on the screen.
struct Story {
    steps: u32,
    promises: u32,
    started: Instant,
}

impl Default for Story {
    fn default() -> Self {
        Self {
            steps: 0,
            promises: 0,
            started: Instant::now(),
        }
    }
}

impl Story {
    fn step(&mut self, what: &str) {
        self.steps += 1;
        println!("\n{}. {what}", self.steps);
    }

    fn promise(&mut self, what: &str) {
        self.promises += 1;
        println!("   * {what}.");
    }

    fn say(&self, what: &str) {
        println!("   {what}");
    }

    fn show(&self, text: &str) {
        for line in text.lines() {
            println!("     | {line}");
        }
    }

    fn end(self) {
        println!(
            "\nDone: {} promises shown in {:.1} s. containerd, daemon and folders are removed. Only target/ is left.",
            self.promises,
            self.started.elapsed().as_secs_f64()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
